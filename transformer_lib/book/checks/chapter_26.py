"""The checks of chapter 26's exercises."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 26.1")
def check_split(attempt: Callable[..., tuple[list[Any], list[Any]]]) -> None:
    """Check a split by groups: nothing lost, no group on both sides, size, order, and seed."""
    pairs = [f"{page}{number}" for number in range(5) for page in "dbaec"]  # a0 is of group a

    def split(wanted: int, seed: int) -> tuple[list[Any], list[Any]]:
        sides = attempt(pairs, lambda pair: pair[0], wanted, seed)
        assert isinstance(sides, tuple | list) and len(sides) == 2, (
            "return two lists, training and test"
        )
        return list(sides[0]), list(sides[1])

    training, test = split(7, 0)
    missing = set(pairs) - set(training) - set(test)
    assert not missing, f"pairs on neither side: {sorted(missing)}"
    twice = set(training) & set(test)
    assert not twice, f"pairs on both sides: {sorted(twice)}"
    both = {pair[0] for pair in training} & {pair[0] for pair in test}
    assert not both, f"groups torn apart, on both sides: {sorted(both)}"
    assert len(test) >= 7, f"the second list should have at least 7 pairs, has {len(test)}"
    assert len(test) == 10, f"two groups of 5 are enough for 7 pairs, {len(test)} were taken"
    for side in (training, test):
        assert side == [pair for pair in pairs if pair in side], "the pairs' order was changed"
    found = {"".join(sorted({pair[0] for pair in split(5, seed)[1]})) for seed in range(20)}
    assert len(found) > 1, f"the seed has no effect: group {found} is always held out"
    assert split(5, 3) == split(5, 3), "the same seed should give the same split"
    first = [split(5, seed)[1][0][0] for seed in range(20)]
    again = [attempt(pairs[::-1], lambda pair: pair[0], 5, seed)[1][0][0] for seed in range(20)]
    assert first == again, (
        "with the pairs in another order other groups are drawn: sort the groups before shuffling"
    )


@diagnostic("Exercise 26.2")
def check_between(attempt: Callable[..., dict[str, Tensor]]) -> None:
    """Check the way between two states: both ends, a quarter, names, dtypes, and no change in place."""
    before = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([[8.0]], dtype=torch.float64)}
    after = {"a": torch.tensor([4.0, 0.0]), "b": torch.tensor([[0.0]], dtype=torch.float64)}
    kept = {name: x.clone() for name, x in after.items()}
    was = {name: x.clone() for name, x in before.items()}
    found = attempt(before, after, 0.25)
    assert isinstance(found, dict), f"return a dictionary, got {type(found).__name__}"
    assert set(found) == {"a", "b"}, f"the names should be a and b, got {sorted(found)}"
    for name in was:
        x = expect_tensor(found[name], tuple(was[name].shape), name)
        assert x.dtype == was[name].dtype, f"{name} should stay {was[name].dtype}, got {x.dtype}"
    swapped = torch.allclose(found["a"], torch.tensor([3.0, 1.0]))
    assert not swapped, "the wrong way round: share 0 is `before`, share 1 is `after`"
    middle = torch.allclose(found["a"], torch.tensor([2.0, 2.0]))
    assert not middle, "this is the mean: the share has no effect"
    assert torch.allclose(found["a"], torch.tensor([1.0, 3.0])), (
        f"a quarter of the way from [0, 4] to [4, 0] is [1, 3], got {found['a'].tolist()}"
    )
    assert torch.allclose(found["b"], torch.tensor([[6.0]], dtype=torch.float64)), (
        f"a quarter of the way from 8 to 0 is 6, got {found['b'].item()}: all weights, not only some"
    )
    ends = attempt(before, after, 0.0), attempt(before, after, 1.0)
    assert torch.equal(ends[0]["a"], before["a"]), "share 0 should give `before`"
    assert torch.allclose(ends[1]["a"], after["a"]), "share 1 should give `after`"
    for result in (found, *ends):
        result["a"].zero_()
    assert torch.equal(before["a"], was["a"]), "the result shares memory with `before`"
    assert torch.equal(after["a"], kept["a"]), "the result shares memory with `after`"


@diagnostic("Exercise 26.3")
def check_grow(attempt: Callable[..., Tensor]) -> None:
    """Check a grown matrix: shape, old rows, then the new ones."""
    weight = torch.tensor([[1.0, 10.0, 0.0], [2.0, 20.0, 0.0], [3.0, 60.0, 0.0], [6.0, 0.0, 9.0]])
    grown = attempt(weight, [[0, 2], [1, 2, 3]])
    expect_tensor(grown, (6, 3), "the grown matrix")
    assert not torch.equal(grown[-4:], weight), (
        "old rows come first: every id of the model would move"
    )
    assert torch.equal(grown[:4], weight), (
        f"the old rows should stay as they are: {grown[:4].tolist()}"
    )
    first, second = grown[4].tolist(), grown[5].tolist()
    assert first != weight.mean(dim=0).tolist(), "this is the mean of all rows, not of the pieces'"
    assert first != [4.0, 70.0, 0.0], "this is the sum of the pieces' rows: the mean is asked for"
    assert first == [2.0, 35.0, 0.0], (
        f"the mean of rows 0 and 2 is [2, 35, 0], got {first}: the mean over the pieces?"
    )
    wanted = weight[[1, 2, 3]].mean(dim=0)
    assert torch.allclose(grown[5], wanted), f"rows 1, 2, 3: {wanted.tolist()}, got {second}"


@diagnostic("Exercise 26.4")
def check_columns(attempt: Callable[[int, int, int], Tensor]) -> None:
    """Check columns of relative positions: dtype and shape, the square, clipping, one query, then two."""
    columns = expect_tensor(attempt(3, 3, 4), (3, 3), "the columns")
    assert columns.dtype == torch.int64, f"columns are indices, int64, got {columns.dtype}"
    assert columns.min() >= 0, f"columns run from 0, got {columns.min()}: add `farthest`"
    assert (columns.diagonal() == 4).all(), (
        f"a query's own place is column farthest = 4, got {columns.diagonal().tolist()}"
    )
    assert columns[0, 1] != 3, "the wrong sign: a key to the right has a larger column"
    square = [[4, 5, 6], [3, 4, 5], [2, 3, 4]]
    assert columns.tolist() == square, f"three by three: {square}, got {columns.tolist()}"
    far = attempt(5, 5, 2)
    assert far.max() <= 4, f"with farthest 2 the last column is 4, got {far.max()}: clip"
    assert far.min() >= 0, f"with farthest 2 the first column is 0, got {far.min()}: clip first"
    assert far[0].tolist() == [2, 3, 4, 4, 4], f"far is far, from 2 on: got {far[0].tolist()}"
    assert far[4].tolist() == [0, 0, 0, 1, 2], f"also to the left: got {far[4].tolist()}"
    one = expect_tensor(attempt(1, 3, 4), (1, 3), "the columns of one query")
    assert one.tolist() == [[2, 3, 4]], (
        f"one query stands beside the last key: [[2, 3, 4]], got {one.tolist()}"
    )
    two = expect_tensor(attempt(2, 5, 4), (2, 5), "the columns of two queries")
    assert two.tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4]], f"2 queries, 5 keys: {two.tolist()}"
