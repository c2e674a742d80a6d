"""Chapter 7: positional encodings against the equation, their behavior, their errors, and the exercises' checks."""

import math
from collections.abc import Callable

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


def halves(length: int, d_model: int, *, divide_by: int | None = None) -> Tensor:
    pairs = d_model // 2
    frequency = 10_000.0 ** (-torch.arange(pairs).double() / (divide_by or pairs - 1))
    angle = torch.outer(torch.arange(length).double(), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def look_back(back: int, d_model: int, *, sign: int = -1, exponent: int = 2) -> Tensor:
    angles = [sign * back * 10_000 ** (-exponent * i / d_model) for i in range(d_model // 2)]
    blocks = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles]
    return torch.block_diag(*map(torch.tensor, blocks))


def grid(rows: int, columns: int, d_model: int) -> Tensor:
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    table = sinusoidal_positions(max(rows, columns), d_model // 2)
    return torch.cat([table[row], table[column]], dim=-1)


def by_columns(rows: int, columns: int, d_model: int) -> Tensor:
    return grid(rows, columns, d_model).view(rows, columns, d_model).transpose(0, 1).flatten(0, 1)


RIGHT = {
    chapter_07.check_wavelength: lambda i, d: 2 * math.pi * 10_000 ** (2 * i / d),
    chapter_07.check_halves: halves,
    chapter_07.check_look_back: look_back,
    chapter_07.check_grid_positions: grid,
}
WRONG = [
    (chapter_07.check_wavelength, lambda i, d: 10_000 ** (2 * i / d), "whole turn is 2 pi"),
    (chapter_07.check_wavelength, lambda i, d: 2 * math.pi * 10_000 ** (i / d), "i counts pairs"),
    (chapter_07.check_wavelength, lambda i, d: 2 * math.pi / 10_000 ** (2 * i / d), "grows with i"),
    (chapter_07.check_halves, sinusoidal_positions, "all sines come first"),
    (chapter_07.check_halves, lambda n, d: halves(n, d, divide_by=d // 2), "divides by n - 1"),
    (chapter_07.check_halves, lambda n, d: halves(n, d).roll(d // 2, dims=1), "position 0 is sin"),
    (chapter_07.check_look_back, lambda back, d: look_back(back, d, sign=1), "turns forward"),
    (chapter_07.check_look_back, lambda back, d: look_back(back, d, exponent=1), "its own angle"),
    (chapter_07.check_look_back, lambda back, d: torch.eye(d), "should become"),
    (
        chapter_07.check_grid_positions,
        lambda r, c, d: grid(r, c, d).roll(d // 2, dims=1),
        "encode the row",
    ),
    (chapter_07.check_grid_positions, by_columns, "row by row"),
    (chapter_07.check_grid_positions, lambda r, c, d: sinusoidal_positions(r * c, d), "first half"),
]


@pytest.mark.parametrize("check", RIGHT)
def test_checks_accept_the_right_answer(
    check: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    check(RIGHT[check])
    assert "every check passed" in capsys.readouterr().out


def float32_wavelength(i: int, d_model: int, *, factor: float = 2 * math.pi) -> Tensor:
    return factor * torch.tensor(10_000.0) ** (2 * i / d_model)


def test_wavelengths_may_be_float32(capsys: pytest.CaptureFixture[str]) -> None:
    chapter_07.check_wavelength(float32_wavelength)
    assert "every check passed" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="whole turn is 2 pi"):
        chapter_07.check_wavelength(lambda i, d: float32_wavelength(i, d, factor=1.0))
    with pytest.raises(AssertionError, match="not i / d_model"):
        chapter_07.check_wavelength(lambda i, d: float32_wavelength(i, 2 * d))


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_checks_reject_likely_mistakes(check: Callable, answer: Callable, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(answer)
