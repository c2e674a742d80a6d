"""Chapter 7: positional encodings against the equation, their behavior, their errors, and the exercises' checks."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.book.checks import chapter_07
from transformer_lib.embeddings import (
    LearnedPositionalEncoding,
    SinusoidalPositionalEncoding,
    sinusoidal_positions,
)

KINDS = [SinusoidalPositionalEncoding, LearnedPositionalEncoding]


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 40), pairs=st.integers(1, 20), data=st.data())
def test_every_entry_is_the_equation(length: int, pairs: int, data: st.DataObject) -> None:
    d_model = 2 * pairs
    table = sinusoidal_positions(length, d_model)
    assert table.shape == (length, d_model)
    assert table.dtype == torch.float32
    position, i = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, pairs - 1))
    angle = position / 10_000 ** (2 * i / d_model)
    assert math.isclose(table[position, 2 * i], math.sin(angle), abs_tol=1e-6)
    assert math.isclose(table[position, 2 * i + 1], math.cos(angle), abs_tol=1e-6)


def test_exact_far_out() -> None:
    position, i = 99_999, 3
    angle = position / 10_000 ** (2 * i / 512)
    row = sinusoidal_positions(position + 1, 512)[-1]
    assert math.isclose(row[2 * i], math.sin(angle), abs_tol=1e-6)


@settings(max_examples=20, deadline=None)
@given(offset=st.integers(1, 50), d_model=st.sampled_from([2, 8, 64]))
def test_dot_products_depend_on_the_offset_alone(offset: int, d_model: int) -> None:
    table = sinusoidal_positions(100, d_model).double()
    products = (table[offset:] * table[:-offset]).sum(dim=-1)
    assert (products.max() - products.min()).item() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_adds_rows_of_its_table(kind: type[nn.Module]) -> None:
    position, x = kind(8, max_length=10), torch.randn(3, 6, 8)
    torch.testing.assert_close(position(x), x + position.table[:6])
    torch.testing.assert_close(position(x, offset=4), x + position.table[4:])
    pieces = [position(x[:, i : i + 1], offset=i) for i in range(6)]
    assert torch.equal(torch.cat(pieces, dim=1), position(x)), (
        "word by word should equal all at once"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("length", "offset", "message"),
    [
        (11, 0, "positions 0 to 10 asked for, there are 0 to 9"),
        (1, 10, "positions 10 to 10 asked for, there are 0 to 9"),
        (3, -1, "positions -1 to 1 asked for, there are 0 to 9"),
    ],
)
def test_positions_that_are_not_there(
    kind: type[nn.Module], length: int, offset: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(8, max_length=10)(torch.zeros(2, length, 8), offset)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_position_fits(kind: type[nn.Module]) -> None:
    assert kind(8, max_length=10)(torch.zeros(1, 1, 8), offset=9).shape == (1, 1, 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d_model", "max_length"), [(0, 8), (-2, 8), (8, 0), (8, -1)])
def test_impossible_tables(kind: type[nn.Module], d_model: int, max_length: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to inf, got {min(d_model, max_length)}"):
        kind(d_model, max_length)


def test_sines_and_cosines_come_in_pairs() -> None:
    for make in (lambda: sinusoidal_positions(5, 7), lambda: SinusoidalPositionalEncoding(7)):
        with pytest.raises(ValueError, match="d_model 7 is not even"):
            make()


def test_what_is_trained_and_what_is_saved() -> None:
    fixed, learned = SinusoidalPositionalEncoding(8, 10), LearnedPositionalEncoding(8, 10)
    assert not list(fixed.parameters())
    assert not fixed.state_dict(), "the sinusoids can be recomputed and should not be saved"
    assert [tuple(p.shape) for p in learned.parameters()] == [(10, 8)]
    learned(torch.zeros(1, 4, 8)).sum().backward()
    assert (learned.table.grad[:4] == 1).all()
    assert (learned.table.grad[4:] == 0).all(), "rows that no word reached get no gradient"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_table_is_the_exact_one_rounded(dtype: torch.dtype) -> None:
    position = SinusoidalPositionalEncoding(8, 300)
    exact = sinusoidal_positions(300, 8, torch.float64)
    assert torch.equal(position.to(dtype).table, exact.to(dtype))
    assert torch.equal(position.float().table, exact.float()), "what a cast rounded is there again"


def test_right_positions_after_to_empty_and_load_state_dict() -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), SinusoidalPositionalEncoding(8, 10))

    saved, x = make(), torch.randn(1, 10, 8)
    with torch.device("meta"):
        unborn = make()
    for model in (make(), unborn):
        model.to_empty(device="cpu")
        model.load_state_dict(saved.state_dict())
        assert torch.equal(model[1].table, sinusoidal_positions(10, 8))
        assert torch.equal(model(x), saved(x))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_knows_the_order_now(kind: type[nn.Module]) -> None:
    attention, position = MultiHeadAttention(8, 2), kind(8, 10)
    if kind is LearnedPositionalEncoding:
        nn.init.normal_(position.table)
    x, order = torch.randn(1, 5, 8), torch.tensor([4, 2, 0, 1, 3])
    straight, shuffled = (attention(v, v, v) for v in (position(x), position(x[:, order])))
    assert not torch.allclose(shuffled, straight[:, order], atol=1e-3)


TURN = 2 * math.pi


def base(length: float, d_model: int) -> float:
    return (length / TURN) ** (d_model / (d_model - 2))


def base_by_logarithms(length: float, d_model: int) -> Tensor:
    """float32, by another way: the exponent of the slowest pair comes from the pairs themselves."""
    exponent = torch.arange(0, d_model, 2)[-1] / d_model
    return torch.exp(torch.log(torch.tensor(length) / TURN) / exponent)


def base_by_halving(length: float, d_model: int) -> float:
    low, high = 1e-6, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        slowest = TURN * middle ** ((d_model - 2) / d_model)
        low, high = (middle, high) if slowest < length else (low, middle)
    return low


def halves(
    length: int, d_model: int, *, divide_by: int | None = None, factor: int = 1, start: int = 0
) -> Tensor:
    pairs = d_model // 2
    frequency = 10_000.0 ** (-factor * torch.arange(pairs).double() / (divide_by or pairs - 1))
    angle = torch.outer(torch.arange(start, start + length).double(), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def halves_in_a_loop(length: int, d_model: int) -> Tensor:
    pairs = d_model // 2
    angles = [[p * 10_000 ** (-i / (pairs - 1)) for i in range(pairs)] for p in range(length)]
    rows = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
    return torch.tensor(rows)


def halves_by_logspace(length: int, d_model: int) -> Tensor:
    frequency = torch.logspace(0, -4, d_model // 2)
    angle = torch.arange(length)[:, None] * frequency
    table = torch.empty(length, d_model)
    table[:, : d_model // 2], table[:, d_model // 2 :] = angle.sin(), angle.cos()
    return table


def look_back(back: int, d_model: int, *, sign: int = -1, exponent: int = 2) -> Tensor:
    angles = [sign * back * 10_000 ** (-exponent * i / d_model) for i in range(d_model // 2)]
    blocks = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles]
    return torch.block_diag(*map(torch.tensor, blocks))


def look_back_by_power(back: int, d_model: int) -> Tensor:
    """One step back, as often as needed, in float64."""
    step = torch.zeros(d_model, d_model, dtype=torch.float64)
    for i in range(d_model // 2):
        angle = 10_000 ** (-2 * i / d_model)
        step[2 * i, 2 * i] = step[2 * i + 1, 2 * i + 1] = math.cos(angle)
        step[2 * i, 2 * i + 1], step[2 * i + 1, 2 * i] = math.sin(angle), -math.sin(angle)
    return torch.linalg.matrix_power(step, back)


def look_back_by_exp(back: int, d_model: int) -> Tensor:
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2).double() / d_model)
    generator = torch.zeros(d_model, d_model, dtype=torch.float64)
    even, odd = torch.arange(0, d_model, 2), torch.arange(1, d_model, 2)
    generator[even, odd], generator[odd, even] = frequency, -frequency
    return torch.linalg.matrix_exp(back * generator).float()


def look_back_in_halves(back: int, d_model: int) -> Tensor:
    """Right for a table whose sines all come first."""
    order = (
        torch.arange(d_model).view(2, -1).T.flatten()
    )  # where entry j of our layout stands there
    turned = torch.empty(d_model, d_model)
    turned[order[:, None], order] = look_back(back, d_model)
    return turned


def grid(rows: int, columns: int, d_model: int) -> Tensor:
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    table = sinusoidal_positions(max(rows, columns), d_model // 2)
    return torch.cat([table[row], table[column]], dim=-1)


def grid_in_a_loop(rows: int, columns: int, d_model: int) -> Tensor:
    row, column = (sinusoidal_positions(n, d_model // 2) for n in (rows, columns))
    return torch.stack([torch.cat([r, c]) for r in row for c in column])


def by_columns(rows: int, columns: int, d_model: int) -> Tensor:
    return grid(rows, columns, d_model).view(rows, columns, d_model).transpose(0, 1).flatten(0, 1)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_07.check_base: [base, base_by_logarithms, base_by_halving],
    chapter_07.check_halves: [
        halves,
        halves_in_a_loop,
        halves_by_logspace,
        lambda n, d: halves(n, d).double(),
    ],
    chapter_07.check_look_back: [look_back, look_back_by_power, look_back_by_exp],
    chapter_07.check_grid_positions: [grid, grid_in_a_loop],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_07.check_base: [
        (lambda n, d: n / TURN, "exponent is missing"),
        (lambda n, d: n, "taken for the wavelength"),
        (lambda n, d: n ** (d / (d - 2)), "where is 2 pi"),
        (lambda n, d: (n * TURN) ** (d / (d - 2)), "multiplied"),
        (lambda n, d: (n / TURN) ** ((d - 2) / d), "other way round"),
        (lambda n, d: (n / TURN) ** (d / (d - 1)), "counts pairs"),
        (lambda n, d: (n / TURN) ** (d / (d // 2 - 1)), "not 1/4"),
        (lambda n, d: (n / TURN) ** 2, "right at width 4"),
        (lambda n, d: 10_000.0, "right at width 4"),
        (lambda n, d: None, "returned None"),
    ],
    chapter_07.check_halves: [
        (sinusoidal_positions, "all sines come first"),
        (lambda n, d: halves(n, d, divide_by=d // 2), "divides by n - 1"),
        (lambda n, d: halves(n, d).roll(d // 2, dims=1), "all sines do"),
        (lambda n, d: halves(n, d, factor=2), "doubled"),
        (lambda n, d: halves(n, d, factor=2, divide_by=d - 1), r"2i / \("),
        (lambda n, d: halves(n, d, divide_by=d - 1), "d_model - 1"),
        (lambda n, d: halves(n, d).view(n, 2, -1).flip(-1).flatten(1), "minus is missing"),
        (lambda n, d: halves(n, d, start=1), "start at 0"),
        (lambda n, d: halves(n, 6), "shape|built in"),
        (lambda n, d: halves(n, d, divide_by=2), "built in"),
    ],
    chapter_07.check_look_back: [
        (lambda back, d: look_back(back, d, sign=1), "turns forward"),
        (lambda back, d: look_back(back, d).T, "turns forward"),
        (lambda back, d: look_back(back, d, exponent=1), "own angle"),
        (lambda back, d: look_back(back, d, exponent=0), "own angle"),
        (lambda back, d: look_back(min(back, 1), d), "one step back"),
        (lambda back, d: torch.eye(d), "should become"),
        (look_back_in_halves, "pairs are mixed"),
        (lambda back, d: look_back(back, d)[: d // 2], "should have shape"),
    ],
    chapter_07.check_grid_positions: [
        (lambda r, c, d: grid(r, c, d).roll(d // 2, dims=1), "encode the row"),
        (by_columns, "row by row"),
        (lambda r, c, d: sinusoidal_positions(r * c, d), "of a sentence"),
        (lambda r, c, d: grid(r, c, 2 * d)[:, ::2], "half the width"),
        (lambda r, c, d: grid(r, c, 2 * d), "should have shape"),
        (lambda r, c, d: grid(r, c, d).view(r, c, d), "should have shape"),
        (lambda r, c, d: torch.cat([grid(r, c, d)[:, : d // 2]] * 2, dim=-1), "columns 0, 1, 2"),
        (
            lambda r, c, d: torch.cat(
                [
                    sinusoidal_positions(r, d // 2).repeat(c, 1),
                    sinusoidal_positions(c, d // 2).repeat(r, 1),
                ],
                dim=-1,
            ),
            "wrong row or column",
        ),
    ],
}
