"""Chapter 25, scale: its stored runs, and the exercises on the ring and on the best split."""

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book import scaling
from transformer_lib.book.checks import chapter_25

# --- the runs behind the law


def test_the_stored_runs_are_those_of_the_command() -> None:
    file = resources.files("transformer_lib.book") / "results" / "scaling.json"
    stored = json.loads(file.read_text())
    settings = {"widths": scaling.WIDTHS, "steps": scaling.STEPS, "fourth": scaling.FOURTH}
    settings |= {"seeds": scaling.SEEDS, "peak": scaling.PEAK, "held_out": scaling.HELD_OUT}
    settings |= {"length": scaling.LENGTH, "rows": scaling.ROWS}
    assert stored["settings"] == json.loads(json.dumps(settings))
    grid = [(w, s) for w in scaling.WIDTHS for s in scaling.STEPS] + [scaling.FOURTH]
    found = {(r["width"], r["steps"], r["seed"]) for r in stored["runs"].values()}
    assert found == {(*cell, seed) for cell in grid for seed in scaling.SEEDS}
    for one in stored["runs"].values():
        assert one["tokens"] == one["steps"] * scaling.ROWS * scaling.LENGTH
        assert one["weights"] == scaling.count_weights(scaling.make_model(one["width"]))


# --- exercise 25.3


def ring(
    vectors: list[Tensor], last: int | None = None, factor: float = 1, twice: bool = False
) -> tuple[list[Tensor], int]:
    """The ring, piece by piece; `last` rounds only, or with mistakes."""
    n, sent = len(vectors), 0
    table = torch.stack(vectors).unflatten(1, (n, -1)).clone()  # (ranks, pieces, length / n)
    for k in range(2 * (n - 1) if last is None else last(n)):
        old = table.clone()
        for r in range(n):
            number = (r - k) % n
            right = (r + 1) % n
            if k >= n - 1:
                number = (r + 1 - (k - n + 1)) % n
            adds = k < n - 1 or twice
            table[right, number] = old[r, number] + (old[right, number] if adds else 0)
        sent += table.size(2)
    return [row.flatten() * factor for row in table], sent


def by_sum(vectors: list[Tensor]) -> tuple[list[Tensor], int]:
    n, total = len(vectors), torch.stack(vectors).sum(dim=0)
    return [total.clone() for _ in vectors], 2 * (n - 1) * (len(total) // n)


def in_place(vectors: list[Tensor]) -> tuple[list[Tensor], int]:
    answer = by_sum(vectors)
    vectors[0] += vectors[1]
    return answer


def sums_with(sent: Callable[[int, int], int]) -> Callable[..., Any]:
    return lambda vectors: (by_sum(vectors)[0], sent(len(vectors), len(vectors[0])))


# --- exercise 25.4


def by_formula(a: float, alpha: float, b: float, beta: float, c: float) -> tuple[float, float]:
    n = (alpha * a / (beta * b) * (c / 6) ** beta) ** (1 / (alpha + beta))
    return n, c / 6 / n


def by_search(a: float, alpha: float, b: float, beta: float, c: float) -> tuple[float, float]:
    n = torch.logspace(1, 17, 20_000, dtype=torch.float64)
    best = n[(a / n**alpha + b / (c / 6 / n) ** beta).argmin()].item()
    return best, c / 6 / best


def without_slopes(a: float, alpha: float, b: float, beta: float, c: float) -> tuple[float, float]:
    n = (a / b * (c / 6) ** beta) ** (1 / (alpha + beta))
    return n, c / 6 / n


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_25.check_ring: [ring, by_sum],
    chapter_25.check_best_split: [by_formula, by_search],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_25.check_ring: [
        (lambda vectors: ring(vectors, last=lambda n: n - 1), "second half"),
        (lambda vectors: ring(vectors, twice=True), "more than the sum"),
        (lambda vectors: ([x / len(vectors) for x in by_sum(vectors)[0]], 1), "the mean"),
        (in_place, "in place"),
        (sums_with(lambda n, length: 2 * (n - 1) * length), "all ranks send together"),
        (sums_with(lambda n, length: (n - 1) * length // n), "one half of the way"),
        (sums_with(lambda n, length: (n - 1) * length), "whole vectors"),
        (sums_with(lambda n, length: 2 * (n - 1)), "number of messages"),
        (lambda vectors: by_sum(vectors)[0][0], "return the list"),
        (lambda vectors: ([by_sum(vectors)[0][0]], 4), "hold a vector each"),
        (lambda vectors: (vectors, 4), "should hold"),
    ],
    chapter_25.check_best_split: [
        (lambda a, x, b, y, c: by_formula(a, x, b, y, 6 * c), "where is the 6"),
        (lambda a, x, b, y, c: by_formula(a, x, b, y, c)[::-1], "swapped"),
        (lambda a, x, b, y, c: ((c / 6) ** 0.5, (c / 6) ** 0.5), "only by chance"),
        (without_slopes, "slopes"),
        (lambda a, x, b, y, c: (by_formula(a, x, b, y, c)[0], c), "should be the FLOPs"),
        (lambda a, x, b, y, c: (1e3, c / 6e3), "too small"),
        (lambda a, x, b, y, c: by_formula(a, x, b, y, c)[0], "return N and D"),
    ],
}
