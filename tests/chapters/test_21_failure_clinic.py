"""Chapter 21: diagnose is silent on healthy models and names planted faults; the exercises."""

import math
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention, causal_mask, scaled_dot_product_attention
from transformer_lib.book.checks import chapter_21
from transformer_lib.inspection import another_token, diagnose, diagnose_training, influence
from transformer_lib.pairs import Batch, make_batch
from transformer_lib.training import backward, learning_rate, make_optimizer, translation_loss
from transformer_lib.transformer import Transformer, TransformerConfig

VOCAB = 30


def make_patient(**changes: Any) -> Transformer:
    sizes = {"d_model": 32, "num_heads": 4, "d_ff": 64}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    return Transformer(TransformerConfig(VOCAB, **sizes | layers | changes)).eval()


def some_batch(seed: int = 0, rows: int = 12) -> Batch:
    torch.manual_seed(seed)

    def ids() -> list[int]:
        return torch.randint(3, VOCAB, (int(torch.randint(3, 9, ())),)).tolist()

    return make_batch([([*ids(), 2], ids()) for _ in range(rows)])


# Ten and more healthy models: each with the arguments of diagnose that introduce it.
Introduced = tuple[nn.Module, Any, dict[str, Any]]


class Torchs(nn.Module):
    def __init__(self, tells_memory: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCAB, 32), nn.Embedding(64, 32)
        self.core = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.out, self.tells_memory = nn.Linear(32, VOCAB), tells_memory

    def embed(self, tokens: Tensor) -> Tensor:
        return self.words(tokens) + self.places.weight[: tokens.size(1)]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        padding, hidden = source == 0, ~causal_mask(target.size(1))
        memory_padding = padding if self.tells_memory else None
        x, y = self.embed(source), self.embed(target)
        return self.out(self.core(x, y, None, hidden, None, padding, None, memory_padding))

    def read(self, tokens: Tensor) -> Tensor:
        return self.out(self.core.encoder(self.embed(tokens), None, tokens == 0))

    def write(self, tokens: Tensor) -> Tensor:
        return self.out(self.core.encoder(self.embed(tokens), ~causal_mask(tokens.size(1))))


def one_sided(batch: Batch) -> SimpleNamespace:
    return SimpleNamespace(target_in=batch.target_in, target_out=batch.target_out, pad_id=0)


def hugging(name: str, batch: Batch) -> Introduced:
    """Models of Hugging Face's transformers with random weights."""
    hf = pytest.importorskip("transformers")
    small = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 2}
    if name == "marian":
        sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
        sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        more = {"max_position_embeddings": 64, "decoder_start_token_id": 1}
        model = hf.MarianMTModel(hf.MarianConfig(**small, **sizes, **more, d_model=16)).eval()
    elif name == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = hf.T5Config(**small, **sizes, decoder_start_token_id=0)
        model = hf.T5ForConditionalGeneration(config).eval()
    elif name == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**small, **sizes, bos_token_id=1)).eval()
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 32, "max_position_embeddings": 64}
        make = {"llama": "LlamaForCausalLM", "bert": "BertForMaskedLM"}[name]
        config = {"llama": hf.LlamaConfig, "bert": hf.BertConfig}[name](**small, **sizes)
        model = getattr(hf, make)(config).eval()

    def both(source: Tensor, target: Tensor) -> Tensor:
        mask = (source != 0).long()
        logits: Tensor = model(source, attention_mask=mask, decoder_input_ids=target).logits
        return logits

    def alone(tokens: Tensor) -> Tensor:
        logits: Tensor = model(tokens, attention_mask=(tokens != 0).long()).logits
        return logits

    if name in ("marian", "t5"):
        return model, batch, {"logits": both, "absolute": name != "t5"}
    if name == "bert":
        return (
            model,
            SimpleNamespace(target_in=batch.source, pad_id=0),
            {"logits": alone} | {"causal": False},
        )
    return model, one_sided(batch), {"logits": alone, "absolute": name != "llama"}


def healthy_model(name: str) -> Introduced:
    batch = some_batch()
    if name.startswith("torch"):
        model = Torchs().eval()
        return {
            "torch": (model, batch, {"logits": model}),
            "torch decoder": (model, one_sided(batch), {"logits": model.write}),
            "torch encoder": (model, one_sided(batch), {"logits": model.read, "causal": False}),
        }[name]
    if name in ("marian", "t5", "gpt2", "llama", "bert"):
        return hugging(name, batch)
    changes: dict[str, Any] = {"pre-norm": {"norm_first": True}, "one head": {"num_heads": 1}}
    model = make_patient(**changes.get(name, {}))
    model = model.to({"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name))
    return model, batch, {"loss": lambda batch: translation_loss(model, batch), "eos_id": 2}


OURS = ["post-norm", "pre-norm", "one head", "bfloat16", "float16"]
TORCH, HUGGING = (
    ["torch", "torch decoder", "torch encoder"],
    ["marian", "t5", "gpt2", "llama", "bert"],
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OURS + TORCH + HUGGING)
def test_a_healthy_model_gives_no_finding(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, batch, introduction = healthy_model(name)
    torch.manual_seed(seed)
    found = diagnose(model, batch, **introduction)
    assert found == [], f"{name}: {found}"
    assert len(found.checked) >= 5
    assert "nothing found" in repr(found)


# Faults inside: each a function in place of attend, or of something else.
def softmax(q: Tensor, k: Tensor, m: Any, c: bool, axis: int = -1, scale: float = 1.0) -> Tensor:
    scores = scale * (q @ k.mT)
    allowed = torch.ones(q.size(2), k.size(2), dtype=torch.bool)
    allowed = allowed.tril(k.size(2) - q.size(2)) if c else allowed
    allowed = allowed if m is None else allowed & m
    return scores.masked_fill(~allowed, -1e9).softmax(dim=axis)


def careless(q: Tensor, k: Tensor, v: Tensor, m: Any, c: bool) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.size(-1))
    if c:
        scores = scores.masked_fill(~causal_mask(k.size(2))[-q.size(2) :], -math.inf)
    return (scores if m is None else scores.masked_fill(~m, -math.inf)).softmax(dim=-1) @ v


def upside_down(q: Tensor, k: Tensor, v: Tensor, m: Any, c: bool) -> Tensor:
    ahead = torch.ones(q.size(2), k.size(2), dtype=torch.bool).triu(1)
    return scaled_dot_product_attention(q, k, v, ahead if c and q.size(2) > 1 else m)


ATTENDS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "no causal mask": (
        lambda q, k, v, m, c: scaled_dot_product_attention(q, k, v, m),
        "sees the future",
    ),
    "causal mask upside down": (upside_down, "mask polarity swapped"),
    "padding mask upside down": (
        lambda q, k, v, m, c: scaled_dot_product_attention(
            q, k, v, None if m is None else ~m, is_causal=c
        ),
        "mask polarity swapped",
    ),
    "no padding mask": (
        lambda q, k, v, m, c: scaled_dot_product_attention(q, k, v, is_causal=c),
        "padding is heard",
    ),
    "softmax over queries": (
        lambda q, k, v, m, c: softmax(q, k, m, c, axis=-2, scale=q.size(-1) ** -0.5) @ v,
        "softmax over the wrong axis",
    ),
    "softmax over heads": (
        lambda q, k, v, m, c: softmax(q, k, m, c, axis=1, scale=q.size(-1) ** -0.5) @ v,
        "softmax over the wrong axis",
    ),
    "no scaling": (lambda q, k, v, m, c: softmax(q, k, m, c) @ v, "no scaling"),
    "scaled by d_model": (
        lambda q, k, v, m, c: softmax(q, k, m, c, scale=32**-0.5) @ v,
        "no scaling",
    ),
    "minus infinity": (careless, "NaN from a fully masked row"),
    "dropout always": (
        lambda q, k, v, m, c: scaled_dot_product_attention(q, k, v, m, 0.1, c),
        "dropout in eval mode",
    ),
}


def planted(name: str) -> tuple[Transformer, Batch, dict[str, Any], str]:
    """A model with one fault, what it is examined with, and what the fault is called."""
    model, batch = make_patient(), some_batch()
    if name in ATTENDS:
        for part in model.modules():
            if isinstance(part, MultiHeadAttention):
                part.attend = ATTENDS[name][0]  # type: ignore[method-assign]
        return model, batch, {}, ATTENDS[name][1]
    if name == "heads split by view":
        for part in model.modules():
            if isinstance(part, MultiHeadAttention):
                part.split_heads = lambda x: x.reshape(len(x), 4, -1, 8)  # type: ignore[method-assign]
    elif name == "positions forgotten":
        model.position.forward = lambda x, offset=0: x  # type: ignore[method-assign]
    elif name == "positions wrong in cached decoding":
        add = model.position.forward
        model.position.forward = lambda x, offset=0: add(x, 0)  # type: ignore[method-assign]
    elif name == "deaf to the source":
        for layer in model.decoder.layers:
            layer.cross_attention.forward = lambda x, *more, **others: torch.zeros_like(x)
    elif name == "eval() forgotten":
        model.train()
    elif name == "target not shifted":
        batch = Batch(batch.source, batch.target_out, batch.target_out)
    elif name == "no end token":
        keep = batch.target_out != 2
        batch = Batch(batch.source, batch.target_in * keep, batch.target_out * keep)
    elif name == "vocabularies swapped":
        model.output = nn.Linear(32, VOCAB)
        nn.init.normal_(model.output.weight, std=2.0)  # sure of itself, and of other words
        return model, batch, {"trained": True}, name
    elif name == "NaN from float16":
        model = model.half()
        for layer in model.decoder.layers:
            layer.feed_forward.inner.weight.data *= 3000
            layer.feed_forward.outer.weight.data *= 3000
    elif name == "NaN in the weights":
        model.decoder.layers[0].feed_forward.inner.weight.data[0, 0] = math.nan
    losses = {
        "padding counted in the loss": lambda x: F.cross_entropy(
            model(x.source, x.target_in).flatten(0, 1), x.target_out.flatten()
        ),
        "target not shifted in the loss": lambda x: F.cross_entropy(
            model(x.source, x.target_in).flatten(0, 1), x.target_in.flatten(), ignore_index=0
        ),
        "target shifted twice": lambda x: F.cross_entropy(
            model(x.source, x.target_in)[:, :-1].flatten(0, 1),
            x.target_out[:, 1:].flatten(),
            ignore_index=0,
        ),
        "another loss": lambda x: 2 * translation_loss(model, x)[0] / 100,
    }
    return model, batch, {"loss": losses[name]} if name in losses else {}, name


FAULTS = [*ATTENDS, "heads split by view", "positions forgotten", "deaf to the source"]
FAULTS += ["positions wrong in cached decoding", "eval() forgotten", "target not shifted"]
FAULTS += ["no end token", "vocabularies swapped", "NaN from float16", "NaN in the weights"]
FAULTS += ["padding counted in the loss", "target not shifted in the loss"]
FAULTS += ["target shifted twice", "another loss"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_first(fault: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, batch, introduction, name = planted(fault)
    found = diagnose(model, batch, **introduction)
    assert found, f"{fault} is not found"
    assert found[0].name == name, f"{fault}: {found}"
    assert name in repr(found)
    assert found[0].seen in repr(found)


def test_faults_of_torchs_transformer_and_of_somebodys_attention() -> None:
    torch.manual_seed(0)
    model = Torchs(tells_memory=False).eval()
    assert [f.name for f in diagnose(model, some_batch(), logits=model)] == ["padding is heard"]

    def unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT).softmax(dim=-1) @ value

    model = Torchs().eval()
    found = diagnose(model, some_batch(), logits=model, attention=unscaled, d_k=8)
    assert [finding.name for finding in found] == ["no scaling"]
    everything = SimpleNamespace(target_in=some_batch().target_in, pad_id=0)
    found = diagnose(model, everything, logits=model.write, causal=False)
    assert found[0].name == "does not look around"


def test_the_model_is_as_it_was() -> None:
    model, batch = make_patient(dropout=0.1).train(), some_batch()
    before = deepcopy(model.state_dict())
    diagnose(model, batch)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model._forward_hooks


def test_influence_finds_what_moves_what() -> None:
    table = torch.randn(9, 4)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    reach = influence(lambda ids: table[ids].cumsum(dim=1), tokens)  # (replaced, position)
    assert ((reach > 0) == torch.ones(3, 3, dtype=torch.bool).triu()).all()
    other = another_token(torch.tensor([[3, 5, 0], [7, 3, 0]]), pad_id=0)
    assert other.tolist() == [[5, 7, 0], [3, 5, 0]]
    with pytest.raises(ValueError, match="two different tokens"):
        another_token(torch.ones(2, 2, dtype=torch.long))


class Run:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = make_patient(dropout=0.0).train()
        self.optimizer = make_optimizer(self.model)

    def rate(self, step: int) -> float:
        return learning_rate(step, 32, warmup_steps=30)

    def backward(self, batches: list[Batch]) -> float:
        return backward(self.model, batches, translation_loss, 0.0, False)[0]

    def save(self) -> Any:
        return deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def load(self, state: Any) -> None:
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])


class Tenfold(Run):
    def rate(self, step: int) -> float:
        return 10 * super().rate(step)


class NoWarmUp(Run):
    def rate(self, step: int) -> float:
        return super().rate(30)


class ByBatches(Run):
    def backward(self, batches: list[Batch]) -> float:
        losses = [translation_loss(self.model, batch) for batch in batches]
        mean = sum(total / count for total, count in losses) / len(batches)
        mean.backward()
        return float(mean.detach())


class Sum(Run):
    def backward(self, batches: list[Batch]) -> float:
        for batch in batches:
            total, count = translation_loss(self.model, batch)
            (total / count).backward()
        return float(total / count)


class Forgetful(Run):
    def load(self, state: Any) -> None:
        self.model.load_state_dict(state[0])


RUNS: dict[type[Run], list[str]] = {
    Run: [],
    Tenfold: ["learning rate too high"],
    NoWarmUp: ["no warm-up"],
    ByBatches: ["accumulation normalized by batches"],
    Sum: ["accumulated gradient never divided"],
    Forgetful: ["checkpoint without optimizer state"],
}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_a_training_run_is_examined(run: type[Run]) -> None:
    batch = some_batch(rows=12)
    parts = [
        Batch(batch.source[p], batch.target_in[p], batch.target_out[p])
        for p in (slice(3), slice(3, None))
    ]
    found = diagnose_training(run, batch, parts)
    assert [finding.name for finding in found] == RUNS[run], str(found)
    assert found.checked == ["rate", "accumulation", "checkpoint"]


# The attempts at the exercises, which test_attempts.py hands to the checks.


def by_rows(logits: Any, source: Tensor, target: Tensor, pad_id: int) -> float:
    column = torch.full_like(source[:, :1], pad_id)
    moved = logits(torch.cat([source, column, column], dim=1), target) - logits(source, target)
    return float(max(moved.max(), -moved.min()))


def by_loop(logits: Any, tokens: Tensor) -> bool:
    before = logits(tokens)
    for place in range(1, tokens.size(1)):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 9
        if not torch.equal(logits(changed)[:, :place], before[:, :place]):
            return True
    return False


def by_prefix(logits: Any, tokens: Tensor) -> bool:
    full = logits(tokens)
    return any(
        not torch.allclose(logits(tokens[:, :n])[:, : n - 1], full[:, : n - 1], atol=1e-6)
        for n in range(2, tokens.size(1))
    ) or by_loop(logits, tokens)


def by_ratio(attend: Any, d_k: int) -> float:
    one = torch.ones(1, 1, 1, d_k) / math.sqrt(d_k)
    weights = attend(one, torch.cat([one, 0 * one], dim=2), torch.eye(2)[None, None])[0, 0, 0]
    return float((weights[0] / weights[1]).log())


def padding_like(change: Callable[..., Any]) -> Callable[..., Any]:
    def attempt(logits: Any, source: Tensor, target: Tensor, pad_id: int) -> Any:
        return change(logits, source, target, pad_id)

    return attempt


def in_place(logits: Any, source: Tensor, target: Tensor, pad_id: int) -> float:
    before = logits(source, target)
    source[:, 0] = pad_id
    return float((logits(source, target) - before).abs().max())


def two_keys(attend: Any, d_k: int, length: float = 1.0) -> Tensor:
    one = torch.full((1, 1, 1, d_k), length / math.sqrt(d_k))
    keys, values = torch.cat([one, 0 * one], dim=2), torch.cat([one * 0 + 1, one * 0], dim=2)
    return attend(one, keys, values).mean()


RIGHT: dict[Any, list[Any]] = {
    chapter_21.check_padding: [
        by_rows,
        lambda f, s, t, p: (f(F.pad(s, (0, 5), value=p), t) - f(s, t)).abs().max(),
    ],
    chapter_21.check_future: [by_loop, by_prefix],
    chapter_21.check_factor: [by_ratio, lambda f, d: two_keys(f, d).logit()],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_21.check_padding: [
        (in_place, "in place"),
        (lambda f, s, t, p: (f(torch.full_like(s, p), t) - f(s, t)).abs().max(), "accused"),
        (lambda f, s, t, p: 0.0, "not found"),
        (lambda f, s, t, p: (f(F.pad(s, (0, 3), value=p), t) - f(s, t)).max(), "sign"),
        (lambda f, s, t, p: (f(F.pad(s, (0, 3), value=9), t) - f(s, t)).abs().max(), "pad_id"),
        (
            lambda f, s, t, p: (f(F.pad(s, (0, 3), value=p), t) - f(s, t)).abs().mean() > 0,
            "number",
        ),
        (
            lambda f, s, t, p: (f(s, F.pad(t, (0, 3), value=p))[:, :3] - f(s, t)).abs().max(),
            "not found",
        ),
    ],
    chapter_21.check_future: [
        (lambda f, x: False, "not found"),
        (lambda f, x: True, "accused"),
        (lambda f, x: bool((influence(f, x)[-1, :-1] > 0).any()), "middle"),
        (lambda f, x: bool((influence(f, x).tril(-1) > 0.01).any()), "small"),
        (lambda f, x: bool((influence(f, x).triu(1) > 0).any()), "accused"),
        (lambda f, x: bool((influence(f, x).tril() > 0).any()), "accused"),
        (lambda f, x: bool((influence(f, x)[1:, 0] > 1e-6).any()), "middle"),
    ],
    chapter_21.check_factor: [
        (lambda f, d: d**-0.5, "measure"),
        (lambda f, d: 1 / two_keys(f, d).logit(), "reciprocal"),
        (lambda f, d: two_keys(f, d), "measure"),
        (lambda f, d: two_keys(f, d) / (1 - two_keys(f, d)), "measure"),
        (lambda f, d: two_keys(f, d, 100.0).logit() / 1e4, "saturated"),
    ],
}
