"""Chapter 18's recall task, reader by reader, three seeds: python -m experiments.18_long_range

It runs the chapter's own cells, those tagged "long-range". About 6 minutes on one core; resumable.
"""

import ast
import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.resumable import Results
from tools.chapters import chapters
from transformer_lib.layers import EncoderLayer

FIVE, THREE = (2, 8, 16, 32, 60), (2, 16, 60)
DISTANCES = {
    "GRU": FIVE,
    "LSTM": FIVE,
    "convolution": FIVE,
    "dilated convolution": FIVE,
    "self-attention": THREE,
    "GRU, gate open": (60,),  # two controls, where the GRU fails
    "GRU that looks back": (60,),
}
SEEDS = (1, 2, 3)
STEPS = 300


def chapter_code() -> str:
    """The chapter's cells that define readers and task."""
    (chapter,) = chapters(["18"])
    return "\n\n".join(cell.source for cell in chapter.tagged("long-range"))


def fingerprint(code: str) -> str:
    """Of what the code does: comments and layout aside."""
    return hashlib.sha256(ast.dump(ast.parse(code)).encode()).hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    code = chapter_code()
    names: dict[str, Any] = {"Callable": Callable, "EncoderLayer": EncoderLayer, "F": F}
    names |= {"Tensor": Tensor, "nn": nn, "torch": torch}
    exec(compile(code, "chapter 18", "exec"), names)
    results = Results(
        "long_range",
        "python -m experiments.18_long_range",
        distances=DISTANCES,
        seeds=SEEDS,
        steps=STEPS,
        code=fingerprint(code),
        parameters={
            name: sum(p.numel() for p in names["Recall"](name).parameters())
            for name in names["READERS"]
        },
    )
    for name in DISTANCES:
        for distance in DISTANCES[name]:
            for seed in SEEDS:
                run = f"{name}, distance {distance}, seed {seed}"
                if run not in results:
                    torch.manual_seed(1000 * seed + distance)
                    accuracy, learned = names["recall"](name, distance, STEPS)
                    results[run] = {"accuracy": round(accuracy, 4), "learned": learned}
                    print(run, accuracy, learned, flush=True)


if __name__ == "__main__":
    main()
