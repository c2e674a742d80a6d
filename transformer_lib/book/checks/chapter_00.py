"""The checks of chapter 0's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 0.1")
def check_looked_at(attempt: Callable[[Tensor], Tensor]) -> None:
    """For each query, the key with the largest weight in the mean of the heads."""
    one_head = torch.tensor([[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]])  # (1, queries 2, keys 3)
    found = _indices(attempt, one_head, "one head of two queries and three keys")
    assert found == [2, 0], (
        "one head, whose first query looks most at key 2 and whose second at key 0: that should"
        f" give [2, 0], yours is {found}. A query's weights are a row: the search goes along keys"
    )
    # Two heads favor key 0 by a little, one favors key 1 by much; no head but one wants most of it.
    three = torch.tensor([[[0.5, 0.4, 0.1]], [[0.5, 0.4, 0.1]], [[0.1, 0.8, 0.1]]])  # (3, 1, 3)
    found = _indices(attempt, three, "three heads of one query")
    assert found == [1], (
        "two heads give key 0 a weight of 0.5 and key 1 one of 0.4, a third gives them 0.1 and 0.8:"
        f" in the mean key 1 leads, yours is {found}. First the mean of the weights, then the search;"
        " no vote of the heads"
    )
    loud = torch.tensor([[[0.9, 0.1, 0.0]], [[0.0, 0.6, 0.4]], [[0.0, 0.6, 0.4]]])  # (3, 1, 3)
    found = _indices(attempt, loud, "three heads of one query")
    assert found == [1], (
        "one head gives key 0 a weight of 0.9, but the mean of key 1 is larger: it should be [1],"
        f" yours is {found}. A mean over the heads, not the largest weight of any, nor one head alone"
    )
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 3, 3), (3, 3, 5), (2, 6, 2), (5, 1, 4)):
        weights = torch.rand(shape, generator=generator)  # (heads, queries, keys)
        weights = weights / weights.sum(dim=-1, keepdim=True)  # (heads, queries, keys)
        expected = weights.mean(dim=0).argmax(dim=-1).tolist()
        found = _indices(attempt, weights, f"weights of shape {shape}")
        assert found == expected, (
            f"weights of shape {shape} should give {expected}, yours is {found}: is the mean taken"
            " over all heads, the first dimension, not of one alone, and the largest looked for among the keys, the last?"
        )


def _indices(attempt: Callable[[Tensor], Tensor], weights: Tensor, what: str) -> list[int]:
    """What an attempt makes of the weights: whole numbers, one a query."""
    found = attempt(weights)
    found = expect_tensor(found, weights.shape[1:2], f"the answer to {what}, one index a query,")
    assert not found.is_floating_point(), (
        f"an index is a whole number, yours are {found.tolist()}: the mean of weights comes first, the"
        " index of the largest after it"
    )
    return [int(index) for index in found]


@diagnostic("Exercise 0.2")
def check_sentences_needed(attempt: Callable[[float, float], int]) -> None:
    """The fewest sentences for which a mean lies five standard errors from 0."""

    def needed(mean: float, deviation: float) -> int:
        count = attempt(mean, deviation)
        assert isinstance(count, int) and not isinstance(count, bool), (
            f"a number of sentences is a whole number, an int; yours is {count!r}"
        )
        return count

    count = needed(1.25, 0.5)
    assert count != 2, (
        "with a mean of 1.25 and a deviation of 0.5, 2 sentences have a standard error of 0.35, and five"
        " of these are more than 1.25. You have found the root of n: square it"
    )
    assert count != 5, (
        "with 4 sentences a mean of 1.25 lies exactly five standard errors of 0.25 from 0: that is"
        " enough, yours asks for 5"
    )
    assert count == 4, (
        "with a mean of 1.25 and a deviation of 0.5 it takes 4 sentences: 0.5 / 2 = 0.25, and five of"
        f" these are 1.25; yours is {count}"
    )
    for mean, deviation in (
        (0.5, 0.33),
        (0.5, 0.31),
        (0.02, 0.3),
        (0.1, 0.9),
        (3.0, 0.2),
        (7.0, 2.1),
    ):
        count, expected = needed(mean, deviation), math.ceil((5 * deviation / mean) ** 2)
        case = f"mean {mean}, deviation {deviation}: yours is {count}"
        assert count >= 1, f"{case}: at least one sentence is needed to have a mean at all"
        errors = mean / (deviation / math.sqrt(count))
        assert errors >= 5, (
            f"{case}, but then the mean is only {errors:.2f} standard errors from 0: too few. Is the"
            " number rounded up?"
        )
        assert count <= expected, (
            f"{case}, but {expected} are enough: too many. Is it the fewest for five standard errors?"
        )
