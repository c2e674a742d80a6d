"""Chapter 20's table: each row of transformer_lib.book.variations, several seeds, one thread (an hour and a half).

python -m experiments.20_variations

Interrupted, it goes on where it stopped. Writes transformer_lib/book/results/variations.json.
"""

from dataclasses import asdict
from statistics import median

import torch

from experiments.resumable import Results
from transformer_lib.book.variations import (
    BASE,
    HELD_OUT,
    LONGEST,
    MAX_TOKENS,
    ROWS,
    STEPS,
    load_task,
    run_row,
)

SEEDS = (1, 2, 3)
FEW = 1000  # pairs, each of which is then seen often


def main() -> None:
    """Run what is not there yet."""
    torch.set_num_threads(1)
    results = Results(
        "variations",
        "python -m experiments.20_variations",
        base=asdict(BASE),
        steps=STEPS,
        max_tokens=MAX_TOKENS,
        longest=LONGEST,
        held_out=HELD_OUT,
    )
    task = load_task()

    def do(row: str, seed: int, steps: int = STEPS, pairs: int | None = None) -> None:
        key = f"{row} | seed {seed}" + (f" | {pairs} pairs" if pairs else "")
        key += " | equal time" if steps != STEPS else ""
        if key not in results:
            results[key] = {"row": row, "seed": seed, **run_row(row, seed, steps, pairs, task)}
            print(key, results[key], flush=True)

    for seed in SEEDS:
        for row in ROWS:
            do(row, seed)
    do("base", 4)
    do("base", 5)
    for seed in SEEDS:
        for row in ("base", "dropout 0", "dropout 0.2"):
            do(row, seed, pairs=FEW)

    def cost(row: str) -> float:
        return median(results[f"{row} | seed {s}"]["cpu_seconds"] for s in SEEDS)

    for seed in SEEDS:
        for row, (group, _) in ROWS.items():
            if group == "C":
                do(row, seed, round(STEPS * cost("base") / cost(row)))


if __name__ == "__main__":
    main()
