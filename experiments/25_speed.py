"""Chapter 25's gains, end to end: one thread, CPU seconds, all variants in turns (a quarter of an hour).

python -m experiments.25_speed

Interrupted, it goes on where it stopped. Writes transformer_lib/book/results/speed.json.
"""

import copy
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.resumable import Results
from transformer_lib import attention, decoding
from transformer_lib.attention import attention_weights
from transformer_lib.decoding import beam_search, greedy_decode
from transformer_lib.evaluation import bleu
from transformer_lib.layers import Dropout, ResidualConnection
from transformer_lib.pairs import (
    Batch,
    Example,
    encode_pairs,
    load_pairs,
    make_batch,
    token_batches,
)
from transformer_lib.training import make_optimizer, translation_loss
from transformer_lib.transformer import Transformer, TransformerConfig
from transformer_lib.translator import Translator

SEED, ROUNDS, TRAINING_ROUNDS, TOKENS, SENTENCES = 25, 9, 15, 2048, 1000
SHOWN = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")

Step = Callable[[Batch], Tensor]


def machine() -> dict[str, Any]:
    """What kind of processor this is, as far as speed goes."""
    found = {
        "threads": torch.get_num_threads(),
        "model": platform.processor() or platform.machine(),
    }
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        numbers = f"family {fields.get('cpu family')}, model {fields.get('model')}"
        found["model"] = f"{fields.get('model name')} ({numbers})"
        found["flags"] = [flag for flag in SHOWN if flag in fields.get("flags", "").split()]
    return found


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def in_turns(variants: dict[str, Callable[[int], Any]], rounds: int = ROUNDS) -> dict[str, Any]:
    """CPU seconds of each variant in each round; the order is drawn anew, the first round not counted."""
    order = random.Random(SEED)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name in order.sample(list(variants), len(variants)):
            start = time.process_time()
            variants[name](number)
            if number:
                seconds[name].append(round(time.process_time() - start, 4))
    return {"seconds": seconds}


# Training


def naive_loss(model: Transformer, batch: Batch) -> tuple[Tensor, int]:
    """Logits at all positions, padding ignored afterwards."""
    logits = model(batch.source, batch.target_in).flatten(0, 1)  # (batch * target, vocab_size)
    wanted = batch.target_out.flatten()
    total = F.cross_entropy(logits, wanted, ignore_index=0, label_smoothing=0.1, reduction="sum")
    return total, int((wanted != 0).sum())


def plain_loss(model: Transformer, batch: Batch) -> tuple[Tensor, int]:
    """Chapter 14's: logits of real tokens, all at once."""
    real = batch.target_out != 0

    def loss(inner: Any, hidden: Tensor) -> Tensor:
        logits = inner.project(hidden[real])
        wanted = batch.target_out[real]
        return F.cross_entropy(logits, wanted, label_smoothing=0.1, reduction="sum")

    return model(batch.source, batch.target_in, loss), int(real.sum())


def float32_loss(model: Transformer, batch: Batch) -> tuple[Tensor, int]:
    """The plain one, with the logits in float32 before their softmax: a control for bfloat16."""
    real = batch.target_out != 0

    def loss(inner: Any, hidden: Tensor) -> Tensor:
        logits = inner.project(hidden[real]).float()
        wanted = batch.target_out[real]
        return F.cross_entropy(logits, wanted, label_smoothing=0.1, reduction="sum")

    return model(batch.source, batch.target_in, loss), int(real.sum())


def chunked_loss(model: Transformer, batch: Batch) -> tuple[Tensor, int]:
    """Chapter 25's: 512 tokens at a time."""
    return translation_loss(model, batch, 0.1)


def with_dropout(model: Transformer, kind: type[nn.Dropout]) -> Transformer:
    """The same model, its residual connections dropping in another way."""
    for part in model.modules():
        if isinstance(part, ResidualConnection):
            part.dropout = kind(part.dropout.p)
    return model


def fused_only(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """Chapter 5's attention: torch's kernel at every length."""
    mask, dropout_p, is_causal = rest
    if is_causal and mask is None and query.size(-2) == key.size(-2):
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p, is_causal=True)
    allowed = attention._allowed(query, key, mask, is_causal)
    return F.scaled_dot_product_attention(query, key, value, allowed, dropout_p)


def plain_only(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """Two products and a softmax at every length."""
    mask, dropout_p, is_causal = rest
    return F.dropout(attention_weights(query, key, mask, is_causal), dropout_p) @ value


@contextmanager
def attending(how: Callable[..., Tensor]) -> Iterator[None]:
    """Another attention for a while."""
    kept, attention.scaled_dot_product_attention = attention.scaled_dot_product_attention, how
    try:
        yield
    finally:
        attention.scaled_dot_product_attention = kept


def stepper(
    config: Any,
    batches: Sequence[Batch],
    loss: Callable[[Transformer, Batch], tuple[Tensor, int]],
    dropout: type[nn.Dropout],
    bfloat16: bool = False,
    attend: Callable[..., Tensor] = fused_only,
    wrap: Callable[[nn.Module], Any] = lambda model: model,
) -> Callable[[int], None]:
    """A training step of a fresh model on batch number n."""
    torch.manual_seed(SEED)
    model = with_dropout(Transformer(config), dropout).train()
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    wrapped = wrap(model)

    def step(number: int) -> None:
        with attending(attend), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            total, count = loss(wrapped, batches[number % len(batches)])
            optimizer.zero_grad()
            (total / count).backward()
        optimizer.step()

    return step


def training(config: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """A training step, each choice added to the one before."""
    batches = list(islice(token_batches(examples, TOKENS, SEED), TRAINING_ROUNDS + 1))
    ours = attention.scaled_dot_product_attention
    ladder: dict[str, Any] = {
        "logits everywhere": (naive_loss, nn.Dropout),
        "real tokens": (plain_loss, nn.Dropout),
        "chunked loss": (chunked_loss, nn.Dropout),
        "16-bit dropout": (chunked_loss, Dropout),
        "bfloat16": (chunked_loss, Dropout, True),
        "plain attention": (chunked_loss, Dropout, True, ours),
        # beside the ladder
        "logits at once": (plain_loss, Dropout, True, ours),
        "logits at once, in float32": (float32_loss, Dropout, True, ours),
        "plain attention in float32": (chunked_loss, Dropout, False, plain_only),
    }
    steps = {name: stepper(config, batches, *how) for name, how in ladder.items()}
    found = in_turns(steps, TRAINING_ROUNDS)
    found["tokens"] = [int((batch.target_out != 0).sum()) for batch in batches[1:]]
    return found


def batching(config: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """The same sentences in batches of three kinds: as drawn, by lengths in steps of 16, by both lengths."""
    some = random.Random(SEED).sample(examples, 600)
    longest = [max(len(source), len(target) + 1) for source, target in some]

    def grouped(order: list[int]) -> list[Batch]:
        groups: list[list[int]] = [[]]
        for index in order:
            width = max(longest[i] for i in [*groups[-1], index])
            if groups[-1] and (len(groups[-1]) + 1) * width > TOKENS:
                groups.append([])
            groups[-1].append(index)
        return [make_batch([some[i] for i in group]) for group in groups]

    numbers = list(range(len(some)))
    kinds = {
        "as drawn": grouped(numbers),
        "lengths in steps of 16": grouped(sorted(numbers, key=lambda i: longest[i] // 16)),
        "by both lengths": list(token_batches(some, TOKENS, SEED)),
    }
    variants: dict[str, Callable[[int], Any]] = {}
    for name, batches in kinds.items():
        step = stepper(config, batches, chunked_loss, Dropout)

        def epoch(number: int, step: Any = step, batches: Sequence[Batch] = batches) -> None:
            for i in range(len(batches)):
                step(i)

        variants[name] = epoch
    found = in_turns(variants, rounds=3)
    for name, batches in kinds.items():
        positions = sum(batch.source.numel() + batch.target_in.numel() for batch in batches)
        real = sum(
            int((x != 0).sum()) for batch in batches for x in (batch.source, batch.target_out)
        )
        found[name] = {"batches": len(batches), "positions": positions, "real": real}
    return found


def compiling(config: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """torch.compile: what the first step costs, and what the others gain; one shape of batch."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # in this process, so that its time is seen
    batches = [token_batches(examples, TOKENS, SEED)[0]]
    variants, found = {}, {}
    # What an earlier run has compiled, and torch has kept in a file, would look free
    torch._inductor.config.force_disable_caches = True
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        how = (config, batches, plain_loss, nn.Dropout, bfloat16)
        variants[name] = stepper(*how)
        variants[f"{name}, compiled"] = stepper(*how, wrap=torch.compile)
        start = spent()
        variants[f"{name}, compiled"](0)
        found[f"first step, {name}"] = round(spent() - start, 1)
    return found | in_turns(variants)


# Writing


def by_rows(model: nn.Module) -> Any:
    """In place of by_columns: weights stay as they lie."""
    return nullcontext()


def int8_model(model: Transformer) -> Transformer:
    """Weights rounded to 8 bits, products by torch's kernel (deprecated, but nothing public replaces it)."""
    import torch.ao.quantization as quantization

    small = copy.deepcopy(model)
    small.output = nn.Linear(*reversed(small.embedding.weight.shape), bias=False)
    small.output.weight.data.copy_(small.embedding.weight.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantization.quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8)


@contextmanager
def ordered(how: Callable[[nn.Module], Any]) -> Iterator[None]:
    """Another order of weights for a while."""
    kept, decoding.by_columns = decoding.by_columns, how
    try:
        yield
    finally:
        decoding.by_columns = kept


def writing(translator: Translator, sources: Sequence[list[int]]) -> dict[str, Any]:
    """Greedy, one sentence and 32 at a time, and beam 4 with 8 at a time; all of the same length of answer."""
    columns, model, found = decoding.by_columns, translator.model, {}
    half, small = copy.deepcopy(model).bfloat16(), int8_model(model)
    kinds = {
        "float32 by rows": (model, by_rows),
        "float32 by columns": (model, columns),
        "bfloat16 by rows": (half, by_rows),
        "bfloat16 by columns": (half, columns),
        "int8": (small, by_rows),
    }
    settings = {"greedy, 1": (1, 1, 12), "greedy, 32": (1, 32, 64), "beam 4, 8": (4, 8, 16)}
    for name, (beam, size, count) in settings.items():
        rows = sorted(sources[:count], key=len)
        batches = [rows[i : i + size] for i in range(0, count, size)]
        tensors = [make_batch([Example(row, []) for row in batch]).source for batch in batches]

        def write(model: Any, how: Any, tensors: Any = tensors, beam: int = beam) -> None:
            with ordered(how):
                for source in tensors:
                    most = source.size(1) + 50
                    if beam == 1:
                        greedy_decode(model, source, most)
                    else:
                        beam_search(model, source, most, beam)

        variants = {
            kind: lambda number, model=model, how=how, write=write: write(model, how)
            for kind, (model, how) in kinds.items()
        }
        found[name] = in_turns(variants)["seconds"] | {"sentences": count}
    return found


def long_answers() -> dict[str, Any]:
    """64 tokens, always, from a model of the size that `make bench` uses: random weights."""
    torch.manual_seed(SEED)
    model = Transformer(TransformerConfig(8000, 256, 4, 1024, 3, 3)).eval()
    found = {}
    for name, (beam, size) in {
        "greedy, 1": (1, 1),
        "greedy, 32": (1, 32),
        "beam 4, 8": (4, 8),
    }.items():
        source = torch.randint(3, 8000, (size, 20))

        def write(how: Any, source: Tensor = source, beam: int = beam) -> None:
            with ordered(how):
                if beam == 1:
                    greedy_decode(model, source, 64, eos_id=-1)
                else:
                    beam_search(model, source, 64, beam, eos_id=-1)

        kinds = {"float32 by rows": by_rows, "float32 by columns": decoding.by_columns}
        variants = {
            kind: lambda number, how=how, write=write: write(how) for kind, how in kinds.items()
        }
        found[name] = in_turns(variants, rounds=2 * ROUNDS + 1)["seconds"]
    return found


def quality(translator: Translator) -> dict[str, Any]:
    """BLEU of the first sentences of the test set, beam 4 and greedy, and the bytes of the weights."""
    pairs = load_pairs("test")[:SENTENCES]
    texts, references = [pair.source for pair in pairs], [pair.target for pair in pairs]
    model, found, first = translator.model, {}, []
    for name, variant, size in (
        ("float32", model, 4),
        ("bfloat16", copy.deepcopy(model).bfloat16(), 2),
        ("int8", int8_model(model), 1),
    ):
        with ordered(by_rows if name == "int8" else decoding.by_columns):
            writer = Translator(variant, translator.tokenizer)
            said, greedily = writer.translate(texts), writer.translate(texts, beam_size=1)
        first = first or said
        found[name] = {
            "bleu": round(bleu(said, references).score, 2),
            "greedy": round(bleu(greedily, references).score, 2),
            "same": sum(a == b for a, b in zip(first, said, strict=True)),
            "bytes a weight": size,
        }
    return found


# One processor, with and without its instructions


def products() -> dict[str, Any]:
    """A product and a training step's part of it, float32 and bfloat16."""
    found = {}
    for rows in (1, 2048):
        variants = {}
        for dtype in (torch.float32, torch.bfloat16):
            layer, x = nn.Linear(512, 2048, dtype=dtype), torch.randn(rows, 512, dtype=dtype)
            repeat = 20 if rows > 1 else 400

            @torch.inference_mode()
            def run(number: int, layer: Any = layer, x: Any = x, repeat: int = repeat) -> None:
                for _ in range(repeat):
                    layer(x)

            variants[str(dtype).removeprefix("torch.")] = run
        found[f"{rows} rows"] = in_turns(variants)["seconds"]
    return found


def without_instructions() -> dict[str, Any]:
    """The same in processes that may use fewer of the processor's instructions."""
    found = {}
    for name in ("AVX512_CORE_BF16", "AVX512_CORE", "AVX2"):
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": name, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "experiments.25_speed", "products"]
        text = subprocess.check_output(command, env=environment, text=True)
        found[name] = json.loads(text.splitlines()[-1])
    return found


def main() -> None:
    """Run what is not there yet."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["products"]:
        print(json.dumps(products()))
        return
    results = Results(
        "speed",
        "python -m experiments.25_speed",
        seed=SEED,
        rounds=ROUNDS,
        training_rounds=TRAINING_ROUNDS,
        max_tokens=TOKENS,
        test_sentences=SENTENCES,
        machine=machine(),
    )
    translator = Translator.from_pretrained()
    config = translator.model.config
    examples = encode_pairs(load_pairs("train"), translator.tokenizer)
    tests = [source for source, _ in encode_pairs(load_pairs("test"), translator.tokenizer)]
    for name, run in {
        "training": lambda: training(config, examples),
        "writing": lambda: writing(translator, tests),
        "long answers": long_answers,
        "instructions": without_instructions,
        "quality": lambda: quality(translator),
        "compile": lambda: compiling(config, examples),
        "batches": lambda: batching(config, examples),
    }.items():
        if name not in results:
            start = spent()
            result = run()
            results[name] = result | {"CPU seconds": round(spent() - start)}
            print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
