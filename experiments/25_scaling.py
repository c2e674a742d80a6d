"""Chapter 25's scaling law: three widths, three budgets, three seeds, and a fourth to be predicted (ten minutes).

python -m experiments.25_scaling

Interrupted, it goes on where it stopped. One thread. Writes transformer_lib/book/results/scaling.json.
"""

import torch

from experiments.resumable import Results
from transformer_lib.book.scaling import (
    FOURTH,
    HELD_OUT,
    LENGTH,
    PEAK,
    ROWS,
    SEEDS,
    STEPS,
    WIDTHS,
    run,
)


def main() -> None:
    """Run what is not there yet."""
    torch.set_num_threads(1)
    results = Results(
        "scaling",
        "python -m experiments.25_scaling",
        widths=WIDTHS,
        steps=STEPS,
        fourth=FOURTH,
        seeds=SEEDS,
        length=LENGTH,
        rows=ROWS,
        held_out=HELD_OUT,
        peak=PEAK,
    )
    for seed in SEEDS:
        for width, steps in [(w, s) for w in WIDTHS for s in STEPS] + [FOURTH]:
            key = f"width {width} | {steps} steps | seed {seed}"
            if key not in results:
                about = {"width": width, "steps": steps, "seed": seed}
                results[key] = about | run(width, steps, seed)
                print(key, results[key], flush=True)


if __name__ == "__main__":
    main()
