"""The library composes: a part may be swapped, by assignment or in a subclass, and everything follows.

Each row of SWAPS changes a small Transformer in a way that later models do. For every row: cached decoding gives the
logits of the full pass at every position, the training loss is the evaluated loss and has the gradient of the plain
one, beam search equals enumeration, a saved model comes back, attention can be read, and torch.compile agrees.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import (
    AlibiAttention,
    GroupedQueryAttention,
    KeyValueCache,
    MultiHeadAttention,
    RotaryAttention,
)
from transformer_lib.book.changes import Experts, QueryKeyNorm
from transformer_lib.checkpoint import load_checkpoint, save_checkpoint
from transformer_lib.decoding import IncrementalDecoder, beam_search, greedy_decode, sample
from transformer_lib.embeddings import NoPositions
from transformer_lib.inspection import record_attention
from transformer_lib.layers import GatedFeedForward, RMSNorm
from transformer_lib.pairs import Batch
from transformer_lib.training import evaluate_loss, make_optimizer, translation_loss
from transformer_lib.transformer import Transformer

D_MODEL, NUM_HEADS = 16, 2


class GeluFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(D_MODEL, 32), nn.Linear(32, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


def positions(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys in self-attention: the last query stands where the last key stands."""
    keys = torch.arange(key.size(2))
    return keys[-query.size(2) :], keys


class BiasedAttention(MultiHeadAttention):
    """Adds a bias that depends on the distance to the scores."""

    def bias(self, distance: Tensor) -> Tensor:
        raise NotImplementedError

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        rows, columns = positions(query, key)
        distance = rows[:, None] - columns  # (queries, keys)
        scores = query @ key.mT / math.sqrt(self.d_k) + self.bias(distance)
        if is_causal:
            scores = scores.masked_fill(distance < 0, -math.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        return scores.softmax(dim=-1) @ value


class RelativeAttention(BiasedAttention):
    """A learned bias for each head and distance, as in T5 (Raffel et al., 2020) but for its buckets."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__(d_model, num_heads)
        self.table = nn.Parameter(torch.randn(num_heads, 9))

    def bias(self, distance: Tensor) -> Tensor:
        return self.table[:, distance.clamp(-4, 4) + 4]


class TodaysAttention(QueryKeyNorm, RotaryAttention, GroupedQueryAttention):
    """Three at once: each does its part of attend."""


def layers(model: Transformer) -> list[nn.Module]:
    return [*model.encoder.layers, *model.decoder.layers]


def swap_feed_forward(kind: Callable[[], nn.Module]) -> Callable[[Transformer], None]:
    def swap(model: Transformer) -> None:
        for layer in layers(model):
            layer.feed_forward = kind()

    return swap


def swap_attention(
    kind: Callable[[int, int], MultiHeadAttention], own_positions: bool = False
) -> Callable[[Transformer], None]:
    def swap(model: Transformer) -> None:
        for layer in layers(model):
            layer.self_attention = kind(D_MODEL, NUM_HEADS)
        if own_positions:
            model.position = NoPositions()

    return swap


def swap_norms(model: Transformer) -> None:
    for layer in layers(model):
        for name, part in layer.named_children():
            if name.startswith("residual"):
                part.norm = RMSNorm(D_MODEL)
    model.encoder.norm, model.decoder.norm = RMSNorm(D_MODEL), RMSNorm(D_MODEL)


def swap_output(model: Transformer) -> None:
    model.output = nn.Linear(D_MODEL, model.config.vocab_size)


def swap_biases(model: Transformer) -> None:
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.bias = None


def swap_width(model: Transformer) -> None:
    for layer in layers(model):
        for name, part in list(layer.named_children()):
            if isinstance(part, MultiHeadAttention):
                setattr(layer, name, MultiHeadAttention(D_MODEL, NUM_HEADS, d_k=5))


class DoubledProjection(Transformer):
    """A subclass with its own way from vectors to logits."""

    def project(self, hidden: Tensor) -> Tensor:
        return 2 * super().project(hidden)


SWAPS: dict[str, Callable[[Transformer], None]] = {
    "nothing": lambda model: None,
    "GELU": swap_feed_forward(GeluFeedForward),
    "gated feed-forward": swap_feed_forward(lambda: GatedFeedForward(D_MODEL, 24)),
    "experts": swap_feed_forward(lambda: Experts(D_MODEL, 24, experts=4, chosen=2)),
    "RMSNorm": swap_norms,
    "ALiBi": swap_attention(AlibiAttention, own_positions=True),
    "relative bias": swap_attention(RelativeAttention),
    "rotary": swap_attention(RotaryAttention, own_positions=True),
    "grouped queries": swap_attention(lambda d, heads: GroupedQueryAttention(d, heads, 1)),
    "query-key norm": swap_attention(QueryKeyNorm),
    "normalized, rotary, grouped": swap_attention(
        lambda d, heads: TodaysAttention(d, heads, 1), own_positions=True
    ),
    "untied output": swap_output,
    "no biases": swap_biases,
    "other head width": swap_width,
    "subclass": lambda model: setattr(model, "__class__", DoubledProjection),
}
each_swap = pytest.mark.parametrize("name", SWAPS)
Make = Callable[..., Transformer]


def swapped(tiny: Make, name: str, seed: int = 0, **sizes: object) -> Transformer:
    """A tiny model with a part replaced, its numbers drawn anew so that every one of them matters."""
    model = tiny(
        seed=seed, d_model=D_MODEL, num_heads=NUM_HEADS, dropout=0.0, norm_first=True, **sizes
    )
    SWAPS[name](model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@each_swap
def test_a_swap_changes_the_model(tiny: Make, batch: Batch, name: str) -> None:
    """Else the rows of the table would all test the same."""
    model, standard = swapped(tiny, name), swapped(tiny, "nothing")
    missing = (
        model.load_state_dict(standard.state_dict(), strict=False)
        if name in ("GELU", "ALiBi")
        else None
    )
    different = not torch.allclose(
        model(batch.source, batch.target_in), standard(batch.source, batch.target_in)
    )
    assert different == (name != "nothing"), f"{name}: {missing}"


@each_swap
def test_cached_decoding_gives_the_logits_of_the_full_pass(
    tiny: Make, batch: Batch, name: str
) -> None:
    model = swapped(tiny, name)
    with torch.no_grad():
        full = model(batch.source, batch.target_in)  # (batch, target, vocab_size)
        decoder = IncrementalDecoder(model, batch.source)
        steps = torch.stack([decoder.step(tokens) for tokens in batch.target_in.unbind(1)], dim=1)
        torch.testing.assert_close(steps, full, rtol=1e-4, atol=1e-4)
        cache, memory_cache, memory = (
            KeyValueCache(),
            KeyValueCache(grows=False),
            model.encode(batch.source),
        )
        pieces = [
            model.project(model.decode(piece, memory, batch.source, cache, memory_cache))
            for piece in batch.target_in.split([2, 1, batch.target_in.size(1) - 3], dim=1)
        ]
        torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-4, atol=1e-4)


@each_swap
def test_the_training_loss_is_the_evaluated_loss_with_the_plain_gradient(
    tiny: Make, batch: Batch, name: str
) -> None:
    model = swapped(tiny, name)
    total, count = translation_loss(model, batch)
    logits = model(batch.source, batch.target_in)  # (batch, target, vocab_size)
    real = batch.target_out != batch.pad_id
    plain = F.cross_entropy(logits[real], batch.target_out[real], reduction="sum")
    torch.testing.assert_close(total, plain)
    assert count == int(real.sum())
    assert evaluate_loss(model, [batch]) == pytest.approx(plain.item() / count, rel=1e-5)
    total.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()
    plain.backward()
    for key, parameter in model.named_parameters():
        assert found[key] is not None, f"{key} gets no gradient"
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-5)


@each_swap
def test_beam_search_equals_enumeration(tiny: Make, name: str) -> None:
    """A beam as wide as all beginnings finds the best of all translations of at most 3 tokens."""
    model = swapped(tiny, name, seed=3, vocab_size=6)
    source, longest = torch.tensor([[3, 4, 5, 2]]), 3
    scores = {}
    with torch.no_grad():
        for length in range(longest):
            for words in itertools.product(
                [token for token in range(6) if token != 2], repeat=length
            ):
                target = torch.tensor([[1, *words]])
                logs = model(source, target).log_softmax(dim=-1)[0]
                wanted = torch.tensor([*words, 2])
                log_probability = logs.gather(1, wanted[:, None]).sum().item()
                scores[words] = log_probability / ((5 + length + 1) / 6) ** 0.6
    (found,) = beam_search(model, source, longest, beam_size=5**longest)
    best = max(scores, key=scores.__getitem__)
    assert tuple(found[0].tokens) == best
    assert found[0].score == pytest.approx(scores[best], rel=1e-4)
    (greedy,) = greedy_decode(model, source, longest)
    (drawn,) = sample(model, source, longest, top_k=1)
    assert greedy == drawn


@each_swap
def test_a_saved_model_comes_back_and_the_standard_one_refuses_its_file(
    tiny: Make, batch: Batch, name: str, tmp_path: Path
) -> None:
    model = swapped(tiny, name)
    save_checkpoint(tmp_path / "c", model, make_optimizer(model), step=3)
    again = swapped(tiny, name, seed=1)
    assert load_checkpoint(tmp_path / "c", again, make_optimizer(again)) == {"step": 3}
    assert torch.equal(again(batch.source, batch.target_in), model(batch.source, batch.target_in))
    standard = swapped(tiny, "nothing", seed=1)
    if name == "nothing":
        load_checkpoint(tmp_path / "c", standard, make_optimizer(standard))
    else:
        with pytest.raises(ValueError, match="another|group"):
            load_checkpoint(tmp_path / "c", standard, make_optimizer(standard))


@each_swap
def test_reading_attention_changes_nothing_and_reads_what_is_used(
    tiny: Make, batch: Batch, name: str
) -> None:
    model = swapped(tiny, name)
    with torch.no_grad():
        free = model(batch.source, batch.target_in)
        with record_attention(model) as weights:
            assert torch.equal(model(batch.source, batch.target_in), free)
    assert len(weights) == 6  # two encoder layers, two decoder layers with two each
    for key, table in weights.items():
        torch.testing.assert_close(table.sum(dim=-1), torch.ones_like(table.sum(dim=-1)), msg=key)
        if key.startswith("decoder") and "self" in key:
            assert (table.triu(1) == 0).all(), key


@each_swap
@pytest.mark.slow
def test_torch_compile_computes_the_same(tiny: Make, batch: Batch, name: str) -> None:
    model = swapped(tiny, name)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(batch.source, batch.target_in),
            model(batch.source, batch.target_in),
            rtol=1e-4,
            atol=1e-5,
        )
    total, count = translation_loss(compiled, batch)
    plain, same = translation_loss(model, batch)
    torch.testing.assert_close(total, plain)
    assert count == same
