"""The checks of chapter 25's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor, on_copies


@diagnostic("Exercise 25.3")
def check_ring(attempt: Callable[[list[Tensor]], tuple[list[Tensor], int]]) -> None:
    """Check the sums of two, three and five ranks, then the count of what each has sent."""
    for ranks, length in ((2, 4), (3, 12), (5, 10)):
        start = [torch.arange(length) + 100.0 * 2**rank for rank in range(ranks)]
        vectors = [vector.clone() for vector in start]
        answer = attempt(vectors)
        assert all(map(torch.equal, vectors, start)), (
            "your function changes the vectors it is given: work on copies, or a sender sends what has been added meanwhile"
        )
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f"return the list of what each rank holds, and a number, not {type(answer).__name__}"
        )
        held, sent = answer
        assert len(held) == ranks, f"{ranks} ranks hold a vector each, got {len(held)}"
        total = torch.stack(start).sum(dim=0)  # (length,)
        for rank, vector in enumerate(held):
            expect_tensor(vector, (length,), f"what rank {rank} of {ranks} holds")
            assert ranks == 1 or not torch.allclose(vector, total / ranks), (
                f"rank {rank} of {ranks} holds the mean, the sum is wanted"
            )
            assert not (vector > total).any(), (
                f"rank {rank} of {ranks} holds more than the sum: something was added twice; copy what is sent before anybody adds, and replace, not add, in the second half"
            )
            right = vector == total  # (length,)
            assert not 0 < int(right.sum()) <= length // ranks, (
                f"rank {rank} of {ranks} holds the sum of one piece only: the second half, which hands the sums around, is missing"
            )
            assert right.all(), (
                f"rank {rank} of {ranks} should hold {total.tolist()}, got {vector.tolist()}"
            )
        wanted = 2 * (ranks - 1) * length // ranks
        names = {
            wanted * ranks: "that is what all ranks send together",
            wanted // 2: "that is one half of the way: the sums are handed around, too",
            (ranks - 1) * length: "that is whole vectors: send one piece in a round",
            2 * (ranks - 1): "that is the number of messages: count the numbers in them",
        }
        if ranks > 2:  # of two ranks some of these are the same
            assert sent == wanted, (
                f"each of {ranks} ranks sends {wanted} numbers of {length}, got {sent}; {names.get(sent, 'count those of one rank')}"
            )


def _loss(a: float, alpha: float, b: float, beta: float, n: float, d: float) -> float:
    return float(a / n**alpha + b / d**beta)


@diagnostic("Exercise 25.4")
def check_best_split(
    attempt: Callable[[float, float, float, float, float], tuple[float, float]],
) -> None:
    """Check that the compute is spent, then that neither a larger nor a smaller model is better."""
    for a, alpha, b, beta, flops in (
        (400.0, 0.34, 410.0, 0.28, 1e18),
        (350.0, 0.8, 600.0, 0.5, 1e12),
        (20.0, 0.3, 90.0, 0.6, 1e15),
    ):
        answer = on_copies(attempt, a, alpha, b, beta, flops)
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f"return N and D, got {answer!r}"
        )
        n, d = map(float, answer)
        assert n > 0 and d > 0, f"N and D should be positive, got {n} and {d}"
        spent = 6 * n * d / flops
        assert not math.isclose(spent, 6, rel_tol=1e-3), (
            "N times D is all the FLOPs: where is the 6 of 6 N D?"
        )
        assert math.isclose(spent, 1, rel_tol=1e-3), (
            f"6 N D should be the FLOPs, it is {spent:.3g} times as much"
        )
        best = (alpha * a / (beta * b) * (flops / 6) ** beta) ** (1 / (alpha + beta))
        right = _loss(a, alpha, b, beta, best, flops / 6 / best)
        if _loss(a, alpha, b, beta, n, d) < right * (1 + 1e-4):
            continue
        assert not math.isclose(n, flops / 6 / best, rel_tol=1e-2), "N and D are swapped"
        assert not math.isclose(n, (flops / 6) ** 0.5, rel_tol=1e-2), (
            "N = D is best only by chance: look at the exponents"
        )
        unweighted = (a / b * (flops / 6) ** beta) ** (1 / (alpha + beta))
        assert not math.isclose(n, unweighted, rel_tol=1e-2), (
            "both terms are equal there, but it is their slopes that should be: the derivative brings alpha and beta down"
        )
        side = "small" if n < best else "large"
        assert math.isclose(n, best, rel_tol=1e-2), (
            f"the model is too {side}: N = {n:.3g}, the loss is smallest at {best:.3g}"
        )
