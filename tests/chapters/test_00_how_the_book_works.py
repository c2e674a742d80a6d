"""Chapter 0: the one refusal that it shows, the manners of every exercise's check, and its own checks."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.book.checks.chapter_00 import (
    check_centered_rows,
    check_predicted_shape,
    check_tolerance,
)
from transformer_lib.door import check_numbers


@pytest.mark.parametrize(
    ("kind", "low", "high", "good"),
    [
        (int, 1, math.inf, 1),
        (int, 0, 7, 7),
        (float, 0, 1, 0.5),
        (float, 0, 1, 1),  # a whole number is one, too
        (bool, -math.inf, math.inf, False),
    ],
)
def test_numbers_in_range_pass(kind: type, low: float, high: float, good: object) -> None:
    check_numbers(kind, low, high, rate=good)
    with pytest.raises(ValueError, match=f"^rate must be {kind.__name__}.*, got 'x'"):
        check_numbers(kind, low, high, size=good, rate="x")


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        *((int, 0), (int, 9), (int, 2.0), (int, True), (int, "3")),
        *((float, 0.5), (float, math.nan), (float, False), (float, None)),
        *((bool, 1), (bool, 0.0)),
    ],
)
def test_other_numbers_are_refused_by_name_and_value(kind: type, bad: object) -> None:
    limits = "" if kind is bool else " from 1 to 8"
    message = f"rate must be {kind.__name__}{limits}, got {bad!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_numbers(kind, 1, 8, rate=bad)


@diagnostic("Exercise 99.1")
def check_doubled(attempt: Callable[..., Tensor]) -> None:
    """Double a tensor."""
    doubled = expect_tensor(attempt(torch.ones(2)), (2,), "the double")
    assert torch.equal(doubled, torch.full((2,), 2.0)), f"the double of 1 is 2, not {doubled}"


@pytest.mark.parametrize("arguments", [(), ("Exercise 99.1",), ("Exercise 99.1: later",)])
def test_an_open_exercise_prints_a_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def my_doubled(x: Tensor) -> Tensor:
        raise NotImplementedError(*arguments)

    check_doubled(my_doubled)
    line = "Exercise 99.1 is still open: fill in my_doubled, then run this cell again.\n"
    assert capsys.readouterr().out == line


def test_a_right_answer_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    check_doubled(lambda x: 2 * x)
    assert capsys.readouterr().out == "Exercise 99.1: every check passed.\n"
    assert check_doubled.__name__ == "check_doubled"
    assert check_doubled.__doc__ == "Double a tensor."


def test_a_wrong_answer_raises_the_message_of_the_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(AssertionError, match=r"^the double of 1 is 2, not tensor\(\[3"):
        check_doubled(lambda x: 3 * x)
    assert capsys.readouterr().out == "", "a wrong answer prints nothing"


@pytest.mark.parametrize("nothing", [None, ...])
def test_an_answer_of_nothing_is_named(nothing: Any) -> None:
    def my_doubled(x: Tensor) -> Any:
        return nothing

    with pytest.raises(AssertionError, match=rf"Exercise 99.1: my_doubled returned {nothing}"):
        check_doubled(my_doubled)

    @diagnostic("Exercise 99.2")
    def careless(attempt: Callable[..., Any]) -> None:
        assert attempt().shape == ()

    with pytest.raises(AssertionError, match="99.2: <lambda> returned") as caught:
        careless(lambda: nothing)
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError, KeyError])
def test_an_attempt_that_raises_fails_with_its_own_message(error: type[Exception]) -> None:
    def my_doubled(x: Tensor) -> Tensor:
        raise error("sizes 2 and 3")

    message = rf"Exercise 99.1: my_doubled raised {error.__name__}: .*sizes 2 and 3"
    with pytest.raises(AssertionError, match=message) as caught:
        check_doubled(my_doubled)
    assert isinstance(caught.value.__cause__, error)


def test_what_torch_has_not_implemented_is_no_open_exercise() -> None:
    with pytest.raises(AssertionError, match="raised NotImplementedError: .*softmax"):
        check_doubled(lambda x: x.long().softmax(dim=0))


def test_an_answer_of_another_kind_is_named() -> None:
    @diagnostic("Exercise 99.3")
    def check_sum(attempt: Callable[..., Any]) -> None:
        assert attempt().sum() == 1, "the sum should be 1"

    with pytest.raises(AssertionError, match="cannot use what <lambda> returned: Attribute"):
        check_sum(lambda: "one")


def test_a_class_can_be_an_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    @diagnostic("Exercise 99.4")
    def check_module(attempt: Callable[..., nn.Module]) -> None:
        expect_tensor(attempt(2)(torch.ones(2)), (2,), "the output")

    class Open(nn.Module):
        def __init__(self, width: int) -> None:
            raise NotImplementedError("Exercise 99.4")

    class Crashing(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(3)

    check_module(Open)
    check_module(lambda width: nn.Linear(width, width))
    out = capsys.readouterr().out
    assert "still open: fill in Open" in out
    assert "every check passed" in out
    with pytest.raises(AssertionError, match="what Crashing returned: RuntimeError"):
        check_module(Crashing)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"scores should be a tensor of shape \(2, 3\), not NoneType"),
        ([1.0], r"scores should be a tensor of shape \(2, 3\), not list"),
        (torch.zeros(3, 2), r"scores should have shape \(2, 3\), not \(3, 2\)"),
    ],
)
def test_expect_tensor_says_what_it_got(value: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        expect_tensor(value, (2, 3), "scores")


def test_expect_tensor_returns_the_tensor() -> None:
    scores = torch.zeros(2, 3)
    assert expect_tensor(scores, (2, 3), "scores") is scores


# --- the exercises of chapter 0: what readers get wrong is refused, and said


def centered_unless_square(x: Tensor) -> Tensor:
    """What goes wrong in chapter 0: the means of a square matrix are taken for a row."""
    means = x.mean(dim=-1, keepdim=True)
    return x - (means.mT if x.size(0) == x.size(1) else means)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x - x.mean(), "own mean"),
        (lambda x: x - x.mean(dim=0), r"become"),
        (lambda x: x - x.mean(dim=0, keepdim=True), r"become"),
        (lambda x: x - x.mean(dim=-1), "keepdim=True"),
        (lambda x: x - x.mean(dim=-1) if len(x) == 1 else x, "own mean"),
        (centered_unless_square, "keepdim=True"),
        (lambda x: x.mean(dim=-1, keepdim=True), r"shape \(1, 3\), not \(1, 1\)"),
    ],
)
def test_rows_centered_wrongly(wrong: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_centered_rows(wrong)


@pytest.mark.parametrize("standard_errors", [4, 5, 6])
def test_tolerances_that_hold(standard_errors: int, capsys: pytest.CaptureFixture[str]) -> None:
    check_tolerance(lambda throws: standard_errors * math.sqrt(35 / 12 / throws))
    assert capsys.readouterr().out == "Exercise 0.2: every check passed.\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda throws: 0.5, "too generous"),
        (lambda throws: 7 * math.sqrt(35 / 12 / throws), "too generous"),
        (lambda throws: 10 / math.sqrt(throws) * 1.7, "too generous"),
        (lambda throws: math.sqrt(35 / 12 / throws), "too strict"),
        (lambda throws: 0.08, "halve"),
        (lambda throws: 800 / throws, "halve"),
        (lambda throws: torch.tensor(0.08), "one float, not Tensor"),
    ],
)
def test_tolerances_that_do_not_hold(wrong: Callable[[int], float], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_tolerance(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((5, 7), "four dimensions"),
        ((2, 3, 8, 8), "d_k = 8"),
        ((2, 3, 5, 8), "d_k = 8"),
        ((2, 3, 7, 5), "one row for each query"),
        ((3, 2, 5, 7), "batch and heads"),
    ],
)
def test_shapes_predicted_wrongly(wrong: tuple[int, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_predicted_shape(lambda: wrong)
