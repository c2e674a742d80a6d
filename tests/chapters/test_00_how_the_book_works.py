"""Chapter 0: the one refusal that it shows, the manners of every exercise's check, and its own checks."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer_lib.book.checks import Refuse, diagnostic, expect_tensor
from transformer_lib.book.checks.chapter_00 import check_looked_at, check_sentences_needed
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


def test_numbers_of_another_type_are_named() -> None:
    @diagnostic("Exercise 99.5")
    def check_close(attempt: Callable[..., Any]) -> None:
        assert torch.allclose(attempt(torch.ones(2)), torch.ones(2)), "the same is asked for"

    with pytest.raises(AssertionError, match="numbers of another type than it was given: Double"):
        check_close(lambda x: x.double())


def append(row: list[Any]) -> None:
    row.append(5)


@pytest.mark.parametrize(
    ("given", "change"),
    [
        (torch.ones(2), lambda x: x.add_(1)),
        (torch.ones(2), lambda x: x.data.mul_(2)),
        (torch.ones(2), lambda x: x.numpy().fill(7.0)),
        (torch.tensor([1.0, math.nan]), lambda x: x.fill_(1.0)),
        (torch.ones(1, 2), lambda x: x.squeeze_()),
        ([1, 2], append),
        ([[1], [2]], lambda rows: append(rows[0])),
        ([torch.ones(2)], lambda rows: rows[0].zero_()),
        ({"a": torch.ones(2)}, lambda state: state["a"].zero_()),
        ({"a": 1}, lambda state: state.update(b=2)),
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_change_of_what_is_given_is_told(given: Any, change: Any, allowed: bool) -> None:
    @diagnostic("Exercise 99.6", in_place=allowed)
    def check_nothing(attempt: Callable[..., Any]) -> None:
        attempt(0, copy.deepcopy(given))

    def my_answer(number: int, given: Any) -> int:
        change(given)
        return 1

    check_nothing(lambda number, given: 1)
    if allowed:
        check_nothing(my_answer)
    else:
        with pytest.raises(
            AssertionError, match="my_answer changes its argument number 2 in place"
        ):
            check_nothing(my_answer)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_what_an_exercise_forbids_is_refused_by_any_name(name: str) -> None:
    with Refuse("softmax", instead="write it out"):
        ways = (getattr(torch, name), getattr(torch.nn.functional, name), getattr(Tensor, name))
        for way in ways:
            if name == "softmax":
                with pytest.raises(AssertionError, match="write it out, without torch's softmax"):
                    way(torch.ones(2), dim=0)
            else:
                way(torch.ones(2), dim=0)


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


# --- the exercises of chapter 0: what is right passes by any way, what readers get wrong is refused, and said


def looked_at_by_loops(weights: Tensor) -> Tensor:
    best = []
    for query in range(weights.size(1)):
        means = [float(weights[:, query, key].mean()) for key in range(weights.size(2))]
        best.append(means.index(max(means)))
    return torch.tensor(best)


def looked_at_in_place(weights: Tensor) -> Tensor:
    for head in weights[1:]:
        weights[0] += head
    return weights[0].argmax(dim=-1)


def sentences_by_trying(mean: float, deviation: float) -> int:
    count = 1
    while mean < 5 * deviation / math.sqrt(count):
        count += 1
    return count


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_looked_at: [
        lambda weights: weights.mean(dim=0).argmax(dim=-1),
        lambda weights: weights.sum(dim=-3).max(dim=-1).indices,
        lambda weights: torch.einsum("hqk->qk", weights).topk(1, dim=-1).indices[:, 0],
        looked_at_by_loops,
    ],
    check_sentences_needed: [
        lambda mean, deviation: math.ceil((5 * deviation / mean) ** 2),
        lambda mean, deviation: max(1, -int(-25 * deviation**2 / mean**2 // 1)),
        sentences_by_trying,
    ],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_looked_at: [
        (lambda weights: weights.argmax(dim=-1).float().mean(dim=0), "whole number"),
        (lambda weights: weights.mean(dim=0).amax(dim=-1), "whole number"),
        (lambda weights: weights.argmax(dim=-1).mode(dim=0).values, "no vote"),
        (lambda weights: weights.amax(dim=0).argmax(dim=-1), "not the largest weight of any"),
        (lambda weights: weights[-1].argmax(dim=-1), "not of one alone"),
        (lambda weights: weights[0].argmax(dim=-1), "no vote"),
        (lambda weights: weights.mean(dim=0).argmax(dim=0), r"shape \(2,\), not \(3,\)"),
        (lambda weights: weights.mean(dim=1).argmax(dim=-1), r"shape \(2,\), not \(1,\)"),
        (lambda weights: weights.mean(dim=-1).argmax(dim=0), "along keys"),
        (lambda weights: weights.mean(dim=0).argmin(dim=-1), "along keys"),
        (lambda weights: weights.argmax(dim=-1), r"shape \(2,\), not \(1, 2\)"),
        (lambda weights: weights.mean(dim=0).argmax(dim=-1).tolist(), "not list"),
        (looked_at_in_place, "in place"),
        (lambda weights: weights.mean(dim=3).argmax(dim=-1), "raised IndexError"),
    ],
    check_sentences_needed: [
        (lambda mean, deviation: math.ceil(5 * deviation / mean), "square it"),
        (lambda mean, deviation: (5 * deviation / mean) ** 2, "an int"),
        (lambda mean, deviation: int((5 * deviation / mean) ** 2), "rounded up|at least one"),
        (lambda mean, deviation: max(1, round((5 * deviation / mean) ** 2)), "rounded up"),
        (lambda mean, deviation: int((5 * deviation / mean) ** 2) + 1, "exactly five"),
        (lambda mean, deviation: math.ceil((deviation / mean) ** 2), "takes 4 sentences"),
        (lambda mean, deviation: math.ceil((5 * mean / deviation) ** 2), "takes 4 sentences"),
        (lambda mean, deviation: math.ceil(25 * deviation / mean**2), "takes 4 sentences"),
        (
            lambda mean, deviation: 2 * math.ceil((5 * deviation / mean) ** 2) - 4,
            "too|at least one",
        ),
        (lambda mean, deviation: 4, "rounded up"),
        (lambda mean, deviation: None, "returned None"),
    ],
}
