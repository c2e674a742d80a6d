"""The checks of chapter 7's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.embeddings import sinusoidal_positions


@diagnostic("Exercise 7.1")
def check_wavelength(attempt: Callable[[int, int], float]) -> None:
    """Check wavelengths: the fastest pair, then the role of i and of d_model."""
    fastest = float(attempt(0, 512))
    assert not math.isclose(fastest, 1.0, rel_tol=1e-5), (
        "pair 0 turns by one radian at each position; a whole turn is 2 pi radians"
    )
    assert math.isclose(fastest, 2 * math.pi, rel_tol=1e-5), (
        f"pair 0 has frequency 1, so wavelength 2 pi, not {fastest}"
    )
    middle = float(attempt(128, 512))
    assert not math.isclose(middle, 2 * math.pi * 10, rel_tol=1e-5), (
        "i counts pairs: the exponent is 2i / d_model, not i / d_model"
    )
    assert not math.isclose(middle, 2 * math.pi / 100, rel_tol=1e-5), (
        "the wavelength grows with i: divide by the frequency"
    )
    assert math.isclose(middle, 2 * math.pi * 100, rel_tol=1e-5), (
        f"pair 128 of 256: 10000^(1/2) = 100 times 2 pi, not {middle}"
    )
    for i, d_model in ((3, 8), (5, 64)):
        angle = float(attempt(i, d_model)) / 10_000 ** (2 * i / d_model)
        assert math.isclose(angle, 2 * math.pi, rel_tol=1e-5), (
            f"pair {i} of width {d_model} turns by {angle:.3f} radians, not by 2 pi"
        )


@diagnostic("Exercise 7.2")
def check_halves(attempt: Callable[[int, int], Tensor]) -> None:
    """Check the layout in halves: position 0 shows the layout, position 1 the frequencies."""
    first = expect_tensor(attempt(1, 6), (1, 6), "the table of one position, width 6")[0]
    assert first.tolist() != [0, 1, 0, 1, 0, 1], (
        "sines and cosines alternate; here all sines come first"
    )
    assert first.tolist() == [0, 0, 0, 1, 1, 1], (
        f"position 0 is sin(0) three times, cos(0) three times, not {first.tolist()}"
    )
    table = expect_tensor(attempt(4, 6), (4, 6), "the table of four positions, width 6").double()
    frequency = torch.asin(table[1, :3])  # sin(1 * frequency): all three frequencies are at most 1
    paper = 10_000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    assert not torch.allclose(frequency, paper, atol=1e-6), (
        "these are the paper's frequencies; the code divides by n - 1"
    )
    wanted = torch.tensor([1.0, 0.01, 0.0001], dtype=torch.float64)
    assert torch.allclose(frequency, wanted, atol=1e-6), (
        f"the frequencies should be {wanted.tolist()}, not {frequency.tolist()}"
    )
    circle = table[:, :3].square() + table[:, 3:].square()
    assert torch.allclose(circle, torch.ones_like(circle), atol=1e-5), (
        "entry i and i + n should be sine and cosine of one angle"
    )
    angle = torch.outer(torch.arange(4, dtype=torch.float64), wanted)
    assert torch.allclose(table[:, :3], angle.sin(), atol=1e-5), (
        "position 1 is right, later ones are not"
    )


@diagnostic("Exercise 7.3")
def check_look_back(attempt: Callable[[int, int], Tensor]) -> None:
    """Check a matrix that turns positions back: width 2 shows the block, then the diagonal, then where it looks."""
    table = sinusoidal_positions(60, 32)
    still = expect_tensor(attempt(0, 2), (2, 2), "the matrix for back = 0, width 2").float()
    assert torch.allclose(still, torch.eye(2), atol=1e-5), (
        f"no step back is no turn, the identity, not {still.tolist()}"
    )
    block = expect_tensor(attempt(1, 2), (2, 2), "the matrix for back = 1, width 2").float()
    origin = torch.tensor([0.0, 1.0])  # sine and cosine at position 0
    assert not torch.allclose(
        origin @ block, torch.tensor([math.sin(1), math.cos(1)]), atol=1e-5
    ), (
        "this turns forward: position 0 becomes position 1. Change the sign of the angle (or transpose)"
    )
    assert torch.allclose(origin @ block, torch.tensor([math.sin(-1), math.cos(-1)]), atol=1e-5), (
        f"width 2, one step back: position 0 should become (sin(-1), cos(-1)), not {(origin @ block).tolist()}"
    )
    turn = expect_tensor(attempt(3, 32), (32, 32), "the matrix for back = 3, width 32").float()
    outside = turn * (1 - torch.block_diag(*[torch.ones(2, 2)] * 16))
    assert outside.abs().max() < 1e-6, (
        "entries outside the 2x2 blocks on the diagonal should be 0: pairs must not mix"
    )
    assert torch.allclose((table @ turn)[3:], table[:-3], atol=1e-4), (
        "the blocks do not turn each pair by its own angle: the frequency of pair i is 10000^(-2i / d_model)"
    )
    for back in (1, 7):
        best = (table @ attempt(back, 32).float() @ table.T).argmax(dim=-1)
        assert best[back:].tolist() == list(range(60 - back)), (
            f"back = {back}: the positions looked at are {best.tolist()}"
        )


@diagnostic("Exercise 7.4")
def check_grid_positions(attempt: Callable[[int, int, int], Tensor]) -> None:
    """Check positions on a grid: one row, one column, then the order of the cells."""
    half = sinusoidal_positions(5, 4)
    one_row = expect_tensor(attempt(1, 3, 8), (3, 8), "a grid of 1 row and 3 columns")
    assert not torch.allclose(one_row[:, :4], half[:3]), (
        "the first half changes along a row: it should encode the row"
    )
    assert torch.allclose(one_row[:, :4], half[:1].expand(3, 4)), (
        "in one row the first half should be row 0 everywhere"
    )
    assert torch.allclose(one_row[:, 4:], half[:3]), (
        "in one row the second half should be columns 0, 1, 2"
    )
    one_column = expect_tensor(attempt(3, 1, 8), (3, 8), "a grid of 3 rows and 1 column")
    assert torch.allclose(one_column[:, :4], half[:3]), (
        "in one column the first half should be rows 0, 1, 2"
    )
    grid = expect_tensor(attempt(2, 5, 8), (10, 8), "a grid of 2 rows and 5 columns")
    by_columns = torch.cat([half[:2].repeat(5, 1), half.repeat_interleave(2, dim=0)], dim=-1)
    assert not torch.allclose(grid, by_columns), (
        "the cells are listed column by column; list them row by row"
    )
    expected = torch.cat([half[:2].repeat_interleave(5, dim=0), half.repeat(2, 1)], dim=-1)
    assert torch.allclose(grid, expected), (
        "single rows and columns are right; in a grid some cell has the wrong row or column"
    )
