"""The checks of chapter 0's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 0.1")
def check_centered_rows(attempt: Callable[..., Tensor]) -> None:
    """Center the rows of a matrix."""
    one_row = torch.tensor([[1.0, 2.0, 6.0]])  # (1, 3)
    centered = expect_tensor(attempt(one_row), (1, 3), "one centered row of three numbers")
    assert torch.allclose(centered, torch.tensor([[-2.0, -1.0, 3.0]])), (
        f"the row 1, 2, 6 has the mean 3, so it becomes -2, -1, 3; yours becomes {centered.tolist()[0]}"
    )
    square = torch.tensor([[0.0, 2.0], [10.0, 30.0]])  # (2, 2)
    centered = expect_tensor(attempt(square), (2, 2), "a square matrix, centered,")
    assert not torch.allclose(centered, square - square.mean(dim=-1)), (
        f"a square matrix becomes {centered.tolist()}: the means of its rows were taken for a row."
        " They must stand in a column, (2, 1): keepdim=True"
    )
    rows = torch.tensor([[1.0, 2.0, 6.0], [10.0, 20.0, 60.0]])  # (2, 3)
    for x, what in ((square, "a square matrix"), (rows, "a matrix of shape (2, 3)")):
        centered = expect_tensor(attempt(x), x.shape, f"{what}, centered,")
        means = [round(mean, 3) for mean in centered.mean(dim=-1).tolist()]
        assert torch.allclose(centered.mean(dim=-1), torch.zeros(2), atol=1e-5), (
            f"each row should have the mean 0, but {what} comes out with {means}: do you subtract"
            " each row's own mean, not one for all rows, nor one for each column?"
        )


@diagnostic("Exercise 0.2")
def check_tolerance(attempt: Callable[[int], float]) -> None:
    """Choose a tolerance that holds at any seed and can still fail."""
    tolerance = attempt(10_000)
    assert isinstance(tolerance, float), f"a tolerance is one float, not {type(tolerance).__name__}"
    standard_error = math.sqrt(35 / 12 / 10_000)
    assert tolerance < 0.2 - 5 * standard_error, (
        f"a tolerance of {tolerance:.3g} lets a die of mean 3.7 pass at some seed: it is too generous"
    )
    generator = torch.Generator().manual_seed(0)
    means = torch.randint(1, 7, (400, 10_000), generator=generator).float().mean(dim=-1)  # (runs,)
    failures = int(((means - 3.5).abs() >= tolerance).sum())
    assert failures == 0, (
        f"a fair die fails your claim in {failures} of 400 runs: {tolerance:.3g} is too strict"
    )
    assert tolerance > 0.065, (
        f"{tolerance:.3g} held in 400 runs, but is under four standard errors: a seed will break it"
    )
    ratio = attempt(40_000) / tolerance
    assert abs(ratio - 0.5) < 0.01, (
        f"four times the throws should halve the tolerance; yours becomes {ratio:.3g} of it"
    )


@diagnostic("Exercise 0.3")
def check_predicted_shape(attempt: Callable[[], tuple[int, ...]]) -> None:
    """Predict the shape of query @ key.transpose(-2, -1)."""
    shape = tuple(attempt())
    assert len(shape) == 4, (
        f"four dimensions go in and four come out; yours has {len(shape)}: {shape}"
    )
    assert shape[:2] == (2, 3), (
        f"batch and heads, (2, 3), only come along; yours begins with {shape[:2]}"
    )
    assert 8 not in shape[2:], f"d_k = 8 is summed over, so it does not remain; yours is {shape}"
    scores = torch.zeros(2, 3, 5, 8) @ torch.zeros(2, 3, 7, 8).transpose(-2, -1)  # (2, 3, 5, 7)
    assert shape == tuple(scores.shape), (
        f"one row for each query, one column for each key; yours is {shape}"
    )
