"""Chapter 27's table: each row of transformer_lib.book.changes, three seeds, at equal steps and at equal time.

python -m experiments.27_changes [processes]

Twenty minutes of CPU time, in two processes of one thread. Interrupted, it goes on where it stopped. Writes
transformer_lib/book/results/changes.json.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import torch

from experiments.resumable import Results
from transformer_lib.book import changes

SEEDS = (1, 2, 3)
BASE_SEEDS = (1, 2, 3, 4, 5)
EQUAL = 0.05  # costs that are closer than this count as the same
_task: Any = None


def work(kind: str, name: str, seed: int, steps: int) -> Any:
    """One run, in a process that keeps its data."""
    global _task
    torch.set_num_threads(1)
    if _task is None:
        _task = changes.make_task()
    return (
        changes.cost_ratios(_task) if kind == "costs" else changes.run_row(name, seed, steps, _task)
    )


def main() -> None:
    """Run what is not there yet."""
    results = Results(
        "changes",
        "python -m experiments.27_changes",
        base=asdict(changes.BASE),
        steps=changes.STEPS,
        max_tokens=changes.MAX_TOKENS,
    )

    def planned() -> Iterator[tuple[str, tuple[str, str, int, int]]]:
        yield "costs", ("costs", "", 0, 0)
        for seed in BASE_SEEDS:
            for name in changes.ROWS if seed in SEEDS else ["base"]:
                yield f"{name} | seed {seed}", ("row", name, seed, changes.STEPS)

    def at_equal_time() -> Iterator[tuple[str, tuple[str, str, int, int]]]:
        for name, ratio in sorted(results["costs"].items(), key=lambda item: -item[1]):
            for seed in SEEDS if abs(ratio - 1) > EQUAL else ():
                steps = round(changes.STEPS / ratio)
                yield f"{name} | seed {seed} | equal time", ("row", name, seed, steps)

    context = multiprocessing.get_context("spawn")
    processes = int((sys.argv[1:] or ["2"])[0])
    with ProcessPoolExecutor(processes, context, initializer=os.setsid) as pool:
        for plan in (planned, at_equal_time):
            jobs = {pool.submit(work, *what): key for key, what in plan() if key not in results}
            for job in as_completed(jobs):
                results[jobs[job]] = job.result()
                print(jobs[job], job.result(), flush=True)


if __name__ == "__main__":
    main()
