"""The checks of chapter 7's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.embeddings import sinusoidal_positions


@diagnostic("Exercise 7.1")
def check_base(attempt: Callable[[float, int], float]) -> None:
    """Two pairs of width 4 isolate the exponent; then other widths, and the promise itself."""
    whole = 2 * math.pi
    # width 4 has pairs 0 and 1, with wavelengths 2 pi and 2 pi sqrt(base)
    base = float(attempt(100 * whole, 4))
    slips = {
        100.0: "the exponent is missing: the slowest wave of width 4 is 2 pi times base^(1/2)",
        10.0: "that is 100^(1/2): the power is the other way round, base = (length / 2 pi)^(d_model / 2i)",
        100.0
        * whole: "the base was taken for the wavelength: neither 2 pi nor the exponent is in it",
        (100 * whole) ** 2: "a wave has come round after 2 pi radians, not after 1: where is 2 pi?",
        (100 * whole**2) ** 2: "2 pi is multiplied where it should be divided by",
        100.0
        ** (
            4 / 3
        ): "i counts pairs: the exponent is 2i / d_model with i up to d_model / 2 - 1; (d_model - 1) / d_model is no pair",
        100.0
        ** 4: "the slowest pair of width 4 is i = 1, with the exponent 2i / d_model = 1/2, not 1/4",
    }
    for wrong, message in slips.items():
        assert not math.isclose(base, wrong, rel_tol=1e-4), (
            f"length 200 pi, width 4, gives {base:.6g}: {message}"
        )
    assert math.isclose(base, 10_000, rel_tol=1e-3), (
        f"at width 4 base 10,000 has a slowest wave of 2 pi 10,000^(1/2) = 200 pi positions; yours for 200 pi is {base:.6g}"
    )
    for length, d_model in ((1000.0, 8), (5.0, 6), (60_611.0, 512), (20_000.0, 64)):
        base = float(attempt(length, d_model))
        assert base > 0, f"length {length:g}, width {d_model}: a base is positive, not {base:.6g}"
        slowest = whole * base ** ((d_model - 2) / d_model)
        nearly = whole * base
        assert not (
            math.isclose(nearly, length, rel_tol=1e-3)
            and not math.isclose(slowest, length, rel_tol=1e-3)
        ), (
            f"width {d_model}: with your base only a pair i = d_model / 2 would be {length:g} long, and there is none: i ends at d_model / 2 - 1"
        )
        assert math.isclose(slowest, length, rel_tol=1e-3), (
            f"width {d_model}, right at width 4: with base {base:.6g} the slowest wave is {slowest:.6g} positions long, not {length:g}"
        )


def _halves(length: int, d_model: int) -> Tensor:
    pairs = d_model // 2
    frequency = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / (pairs - 1))
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


@diagnostic("Exercise 7.2")
def check_halves(attempt: Callable[[int, int], Tensor]) -> None:
    """Check the layout in halves: position 0 shows the layout, position 1 the frequencies."""
    first = expect_tensor(attempt(1, 6), (1, 6), "the table of one position, width 6")[0].double()
    layouts = {
        (0, 1, 0, 1, 0, 1): "sines and cosines alternate; here all sines come first",
        (1, 1, 1, 0, 0, 0): "all cosines come first; here all sines do",
    }
    for layout, message in layouts.items():
        assert not torch.allclose(first, torch.tensor(layout).double(), atol=1e-6), message
    origin = torch.tensor([0.0, 0, 0, 1, 1, 1]).double()
    assert torch.allclose(first, origin, atol=1e-6), (
        f"position 0 is sin(0) three times, cos(0) three times, not {first.tolist()}: do positions start at 0?"
    )
    table = expect_tensor(attempt(4, 6), (4, 6), "the table of four positions, width 6").double()
    # sin and cos of 1 * frequency: the angle, whichever of the two is imprecise
    frequency = torch.atan2(table[1, :3], table[1, 3:])
    wanted = torch.tensor([1.0, 0.01, 0.0001], dtype=torch.float64)
    exponents = torch.arange(3, dtype=torch.float64)
    slips = {
        "these are the paper's frequencies; the code divides by n - 1": 10_000.0
        ** (-exponents / 3),
        "the exponent is doubled: i / (n - 1) here, not 2i / (n - 1)": 10_000.0**-exponents,
        "the frequencies rise; with i they should fall: a minus is missing": wanted.flip(0),
        "that divides by d_model - 1; n is the number of pairs": 10_000.0 ** (-exponents / 5),
        "pair i has the exponent i / (n - 1); yours is 2i / d_model or 2i / (d_model - 1)": 10_000.0
        ** (-2 * exponents / 5),
    }
    for message, wrong in slips.items():
        assert not torch.allclose(frequency, wrong, atol=1e-5), message
    assert torch.allclose(frequency, wanted, atol=1e-5), (
        f"the frequencies should be {wanted.tolist()}, not {frequency.tolist()}"
    )
    for length, d_model in ((4, 6), (9, 4), (600, 20)):
        what = f"the table of {length} positions, width {d_model}"
        table = expect_tensor(attempt(length, d_model), (length, d_model), what).double()
        half = d_model // 2
        circle = table[:, :half].square() + table[:, half:].square()
        assert torch.allclose(circle, torch.ones_like(circle), atol=1e-3), (
            f"{what}: entry i and i + n should be sine and cosine of one angle"
        )
        gap = (table - _halves(length, d_model)).abs().max().item()
        assert gap < 2e-3, (
            f"{what} is off by {gap:.2g}; position 1 of width 6 is right: is a size or a position built in, or a digit lost?"
        )


@diagnostic("Exercise 7.3")
def check_look_back(attempt: Callable[[int, int], Tensor]) -> None:
    """Check a matrix that turns positions back: width 2 shows the block, then every pair, then where it looks."""
    still = expect_tensor(attempt(0, 2), (2, 2), "the matrix for back = 0, width 2").float()
    assert torch.allclose(still, torch.eye(2), atol=1e-3), (
        f"no step back is no turn, the identity, not {still.tolist()}"
    )
    narrow = sinusoidal_positions(9, 2)
    block = expect_tensor(attempt(1, 2), (2, 2), "the matrix for back = 1, width 2").float()
    assert (narrow[:-1] @ block - narrow[1:]).abs().max() > 1e-3, (
        "this turns forward: position 0 becomes position 1. Change the sign of the angle (or transpose)"
    )
    turned = narrow[1] @ block
    assert (narrow[1:] @ block - narrow[:-1]).abs().max() < 1e-3, (
        f"width 2, one step back: position 1 should become (sin 0, cos 0) = (0, 1), not {[round(y, 3) for y in turned.tolist()]}"
    )
    for back, d_model in ((3, 32), (1, 32), (7, 8), (12, 64)):
        what = f"the matrix for back = {back}, width {d_model}"
        turn = expect_tensor(attempt(back, d_model), (d_model, d_model), what).float()
        table = sinusoidal_positions(300, d_model)
        gaps = (table @ turn)[back:] - table[:-back]  # (positions, d_model)
        by_pair = gaps.abs().amax(dim=0).unflatten(0, (-1, 2)).amax(dim=-1)  # (pairs,)
        wrong = [i for i, gap in enumerate(by_pair.tolist()) if not gap < 0.01]
        transposed = ((table @ turn.T)[back:] - table[:-back]).abs().max() < 0.01
        assert not transposed or not wrong, f"{what} turns forward: transpose it"
        mixed = turn * (1 - torch.block_diag(*[torch.ones(2, 2)] * (d_model // 2)))
        assert not wrong or mixed.abs().max() < 1e-3, (
            f"{what}: pairs {wrong} come out wrong, and pairs are mixed: entries outside the 2x2 blocks on the diagonal should be 0, entries 2i and 2i + 1 are a pair"
        )
        one_by_one = ((table @ turn)[1:] - table[:-1]).abs().max() < 0.01
        assert back == 1 or not one_by_one, (
            f"{what} turns one step back: the angle is back times the frequency"
        )
        assert not wrong, (
            f"{what}: pairs {wrong} come out wrong: each turns by its own angle, back times its frequency 10000^(-2i / d_model)"
        )
        best = (table @ turn @ table.T).argmax(dim=-1)[back:60]
        assert best.tolist() == list(range(60 - back)), (
            f"{what}: from position {back} on the positions looked at are {best.tolist()}"
        )


@diagnostic("Exercise 7.4")
def check_grid_positions(attempt: Callable[[int, int, int], Tensor]) -> None:
    """Check positions on a grid: one row, one column, then the order of the cells."""
    half = sinusoidal_positions(5, 4)
    one_row = expect_tensor(attempt(1, 3, 8), (3, 8), "a grid of 1 row and 3 columns")
    assert not torch.allclose(one_row, sinusoidal_positions(3, 8), atol=1e-5), (
        "the cells of a row have the positions of a sentence, 0, 1, 2, in one encoding of full width; the first half should encode the row, the second the column"
    )
    assert not torch.allclose(one_row[:, :4], half[:3], atol=1e-5), (
        "the first half changes along a row: it should encode the row"
    )
    assert torch.allclose(one_row[:, :4], half[:1].expand(3, 4), atol=1e-5), (
        "in one row the first half should be row 0 everywhere: sinusoidal_positions with half the width"
    )
    assert torch.allclose(one_row[:, 4:], half[:3], atol=1e-5), (
        "in one row the second half should be columns 0, 1, 2"
    )
    one_column = expect_tensor(attempt(3, 1, 8), (3, 8), "a grid of 3 rows and 1 column")
    assert torch.allclose(one_column[:, :4], half[:3], atol=1e-5), (
        "in one column the first half should be rows 0, 1, 2"
    )
    assert torch.allclose(one_column[:, 4:], half[:1].expand(3, 4), atol=1e-5), (
        "in one column the second half should be column 0 everywhere"
    )
    for rows, columns, d_model in ((2, 5, 8), (3, 3, 8), (4, 3, 12)):
        of = f"a grid of {rows} rows and {columns} columns, width {d_model}"
        grid = expect_tensor(attempt(rows, columns, d_model), (rows * columns, d_model), of)
        row, column = (sinusoidal_positions(n, d_model // 2) for n in (rows, columns))
        by_columns = torch.cat([row.repeat(columns, 1), column.repeat_interleave(rows, 0)], dim=-1)
        expected = torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1)], dim=-1)
        assert not torch.allclose(grid, by_columns, atol=1e-5), (
            f"{of}: the cells are listed column by column; list them row by row"
        )
        wrong = (grid - expected).abs().amax(dim=-1).gt(1e-4).nonzero().flatten().tolist()
        assert not wrong, (
            f"single rows and columns are right; in {of}, cells {wrong} have the wrong row or column"
        )
