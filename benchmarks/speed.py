"""The speed of the package against its peers: all in one run, in turns, medians and ratios.

    make bench                                      everything, about 12 minutes on a quiet machine
    python benchmarks/speed.py training --rounds 3  one part

Writes benchmarks/results, a file a part. Compare ratios, not seconds: two runs differ by a tenth, on a busy machine by
more.
"""

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from transformer_lib.attention import scaled_dot_product_attention
from transformer_lib.costs import training_flops
from transformer_lib.pairs import Batch, encode_pairs, endless_batches, load_pairs
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters

RESULTS = Path(__file__).resolve().parent / "results"


def in_turns(
    functions: dict[str, Callable[[], Any]], rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of each function in each round.

    The order within a round is drawn anew; the first round is not counted.
    """
    order = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name in order.sample(list(functions), len(functions)):
            start = time.perf_counter()
            functions[name]()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> tuple[float, float, float]:
    """How many times as fast as another: the median over the rounds, and its quartiles."""
    each = [b / a for a, b in zip(times[name], times[to], strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return middle, low, high


def table(times: dict[str, list[float]], to: str, extra: Callable[[str, float], str]) -> str:
    """A row for each peer."""
    lines = [f"| | median (ms) | times as fast as {to} [quartiles] | |", "|---|---:|---:|---|"]
    for name, seconds in times.items():
        middle, low, high = ratio(times, name, to)
        median = statistics.median(seconds)
        lines.append(
            f"| {name} | {1e3 * median:.1f} | {middle:.2f} [{low:.2f}-{high:.2f}] | {extra(name, median)} |"
        )
    return "\n".join(lines)


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the best of twenty."""
    left, right = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    times = in_turns({"product": lambda: left @ right}, 20)["product"]
    return 2 * 2048**3 / min(times)


def step_flops(batch: Batch) -> float:
    """Operations in the matrix products of a step, padded positions included, the same for all peers."""
    from peers import D_FF, D_MODEL, HEADS, LAYERS, VOCAB

    config = TransformerConfig(VOCAB, D_MODEL, HEADS, D_FF, LAYERS, LAYERS)
    return training_flops(config, len(batch.source), batch.source.size(1), batch.target_in.size(1))


def training(rounds: int) -> str:
    """A training step of every peer, in float32 and in bfloat16."""
    from peers import PAD, random_batch, training_peers

    batch = random_batch(102, 16, 24)
    tokens = int((batch.target_out != PAD).sum())
    functions: dict[str, Callable[[], Any]] = {}
    sizes = {}
    for name, (model, loss) in training_peers().items():
        sizes[name] = count_parameters(model)
        for dtype in ("float32", "bfloat16"):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)

            def step(
                model: Any = model, loss: Any = loss, optimizer: Any = optimizer, dtype: str = dtype
            ) -> None:
                model.train()
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                    value = loss(model, batch)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()

            functions[f"{name}, {dtype}"] = step
    single, half = peak(torch.float32), peak(torch.bfloat16)
    flops = step_flops(batch)

    def extra(name: str, seconds: float) -> str:
        size = sizes[name.rpartition(", ")[0]]
        text = f"{tokens / seconds:,.0f} tokens/s, {size / 1e6:.2f} M parameters"
        if name.endswith("float32"):
            text += f", {flops / seconds / single:.0%} of the float32 peak"
        return text

    times = in_turns(functions, rounds)
    head = f"{tokens:,} target tokens in {len(batch.source)} rows of 16 to 24, Adam included. "
    head += f"Peak of a 2,048-wide product: {single / 1e9:.0f} GFLOP/s in float32, "
    head += f"{half / 1e9:.0f} in bfloat16. A step is {flops / 1e9:.0f} GFLOP "
    head += (
        "(matrix products, padding counted, logits at all positions; ours makes none for padding)."
    )
    return f"# A training step\n\n{head}\n\n" + table(times, "torch.nn.Transformer, float32", extra)


def same_loss(rounds: int) -> str:
    """300 steps in float32 with two seeds, and in bfloat16."""
    from peers import D_FF, D_MODEL, HEADS, LAYERS

    pairs = load_pairs("train")
    tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], 2000)
    examples = encode_pairs(pairs, tokenizer)
    lines = ["| | seed | training loss, mean of steps 251 to 300 |", "|---|---:|---:|"]
    for seed, bfloat16 in ((1, False), (2, False), (1, True), (2, True)):
        torch.manual_seed(seed)
        model = Transformer(TransformerConfig(2000, D_MODEL, HEADS, D_FF, LAYERS, LAYERS))
        history = train(
            model,
            endless_batches(examples, 512, seed),
            settings=TrainingSettings(300, warmup_steps=1000, bfloat16=bfloat16, report_every=50),
        )
        name = "bfloat16" if bfloat16 else "float32"
        lines.append(f"| {name} | {seed} | {history[-1].train_loss:.3f} |")
    return "# The loss after 300 steps, float32 and bfloat16\n\n" + "\n".join(lines)


def decoding(rounds: int) -> str:
    """Greedy at batch 1 and 32, beam 4 at batch 8, 64 tokens each."""
    from peers import decoding_peers, random_batch

    parts = []
    for beam_size, rows in ((1, 1), (1, 32), (4, 8)):
        batch = random_batch(rows, 16, 24, seed=1)
        times = in_turns(decoding_peers(beam_size, batch, 64), rounds)
        name = f"Greedy, batch {rows}" if beam_size == 1 else f"Beam {beam_size}, batch {rows}"
        parts.append(
            f"## {name}, 64 tokens\n\n"
            + table(times, "Marian, sdpa", lambda name, s: f"{1e3 * s / 64:.2f} ms a step")
        )
    return "\n\n".join(parts)


def growth(rounds: int) -> str:
    """Time a token as more of them are written, with and without a cache, batch 1."""
    from peers import BOS, NEVER, ours, random_batch

    from transformer_lib.decoding import greedy_decode

    model = ours().eval()
    source = random_batch(1, 20, 20).source

    @torch.inference_mode()
    def no_cache(count: int) -> None:
        memory, target = model.encode(source), torch.tensor([[BOS]])
        for _ in range(count):
            token = model.project(model.decode(target, memory, source)[:, -1]).argmax(dim=-1)
            target = torch.cat([target, token[:, None]], dim=1)

    lines = ["| tokens | with a cache (ms a token) | without |", "|---:|---:|---:|"]
    for count in (16, 32, 64, 128, 256):
        times = in_turns(
            {
                "cache": lambda count=count: greedy_decode(model, source, count, eos_id=NEVER),
                "none": lambda count=count: no_cache(count),
            },
            max(3, rounds // 2),
        )
        cache, none = (1e3 * statistics.median(times[name]) / count for name in ("cache", "none"))
        lines.append(f"| {count} | {cache:.2f} | {none:.2f} |")
    return "# Time a token, batch 1\n\n" + "\n".join(lines)


def attend(kind: str, length: int) -> tuple[float, float]:
    """Seconds and megabytes of causal self-attention, forward and backward, 4 heads of width 64."""
    torch.manual_seed(0)
    heads = [torch.randn(1, 4, length, 64, requires_grad=True) for _ in range(3)]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)

    def run() -> None:
        if kind == "naive":
            scores = (heads[0] @ heads[1].transpose(-2, -1)) / 8
            output = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ heads[2]
        elif kind == "torch's fused kernel":
            output = F.scaled_dot_product_attention(*heads, is_causal=True)
        else:
            output = scaled_dot_product_attention(*heads, is_causal=True)
        output.sum().backward()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times), megabytes


def attention(rounds: int) -> str:
    """Time and memory of attention as the length grows; each in a process of its own, so that memory is its own."""
    lengths = (128, 256, 512, 1024, 2048, 4096)
    kinds = ("transformer_lib", "torch's fused kernel", "naive")
    found = {}
    for length in lengths:
        for kind in kinds:
            command = [sys.executable, __file__, "attend", "--kind", kind, "--length", str(length)]
            found[kind, length] = json.loads(subprocess.check_output(command))
    lines = ["| length | " + " | ".join(f"{kind}, ms (MB)" for kind in kinds) + " |"]
    lines.append("|---:|" + "---:|" * len(kinds))
    for length in lengths:
        cells = [f"{1e3 * s:.1f} ({mb:.0f})" for s, mb in (found[kind, length] for kind in kinds)]
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    head = "Causal, batch 1, 4 heads of width 64, forward and backward, 2 threads. "
    head += "Memory is the growth of the process's peak."
    return f"# Self-attention by length\n\n{head}\n\n" + "\n".join(lines)


PARTS = {
    "training": training,
    "same_loss": same_loss,
    "decoding": decoding,
    "growth": growth,
    "attention": attention,
}


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.parts == ["attend"]:  # a process of its own for each measurement of memory
        print(json.dumps(attend(options.kind, options.length)))
        return
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    RESULTS.mkdir(exist_ok=True)
    peers = ("torch", "transformers", "x-transformers", "ctranslate2")
    versions = ", ".join(f"{name} {version(name)}" for name in peers)
    for name in options.parts or PARTS:
        text = PARTS[name](options.rounds)
        text += f"\n\n{versions}; {options.threads} threads; {options.rounds} rounds, in turns.\n"
        print(text, flush=True)
        (RESULTS / f"{name}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
