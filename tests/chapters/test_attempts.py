"""The attempts at every exercise: what is right passes, what is wrong is refused and told why.

A chapter's tests hold two tables: RIGHT, the check of an exercise -> attempts by different ways, and
WRONG, the check -> attempts that a learner would write, each with the words, a regular expression,
that must occur in what the check says. `pytest tests/chapters/test_attempts.py -k check_attention`
runs those of one exercise.
"""

import functools
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

FOLDER, ROOT = Path(__file__).parent, Path(__file__).parents[2]
RIGHT: dict[Any, list[Any]] = {}
WRONG: dict[Any, list[tuple[Any, str]]] = {}
for file in sorted(FOLDER.glob("test_*.py")):
    if file.stem != Path(__file__).stem:
        module = import_module(f"tests.chapters.{file.stem}")
        RIGHT |= getattr(module, "RIGHT", {})
        WRONG |= getattr(module, "WRONG", {})
CHECKS = [
    check
    for file in sorted((ROOT / "transformer_lib" / "book" / "checks").glob("chapter_*.py"))
    for name, check in vars(import_module(f"transformer_lib.book.checks.{file.stem}")).items()
    if name.startswith("check_") and hasattr(check, "__wrapped__")
]


# Their attempts may work on what they are given: the stream, the gradients.
MAY_CHANGE = {"check_encoder_layer", "check_decoder_layer", "check_clip"}


def case(check: Any, number: int, *values: Any) -> Any:
    """A parameter whose name says which exercise it is of."""
    chapter = check.__module__.rpartition("_")[2]
    return pytest.param(check, *values, id=f"{chapter}-{check.__name__}-{number}")


@pytest.mark.parametrize("check", [case(check, 0) for check in CHECKS])
def test_every_exercise_has_two_right_attempts_and_five_wrong_ones(check: Any) -> None:
    right, wrong = RIGHT.get(check, []), WRONG.get(check, [])
    assert len(right) >= 2, f"{check.__name__} has {len(right)} right attempts"
    assert len(wrong) >= 5, f"{check.__name__} has {len(wrong)} wrong attempts"


@pytest.mark.parametrize(
    ("check", "attempt"), [case(c, n, a) for c in RIGHT for n, a in enumerate(RIGHT[c], start=1)]
)
def test_a_right_attempt_passes(
    check: Any, attempt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(attempt)
    assert "every check passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "attempt", "words"),
    [case(c, n, *pair) for c in WRONG for n, pair in enumerate(WRONG[c], start=1)],
)
def test_a_wrong_attempt_is_told_why(check: Any, attempt: Any, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check(attempt)
    assert re.search(words, str(caught.value), re.DOTALL), f"{words!r} is not in: {caught.value}"


def spoiled(given: Any) -> bool:
    """Change a tensor where autograd does not see it, or a list; whether there was one to change."""
    if isinstance(given, Tensor) and given.numel() and not given.is_meta:
        changed = ~given.data if given.dtype == torch.bool else given.data + 1
        given.data.copy_(changed)
        return True
    if isinstance(given, list) and given:
        given.append(given[0])
        return True
    return False


@pytest.mark.parametrize("check", [case(check, 0) for check in RIGHT])
def test_an_attempt_that_changes_what_it_is_given_is_told(check: Any) -> None:
    attempt, changed = RIGHT[check][0], []

    @functools.wraps(attempt)
    def careless(*given: Any, **named: Any) -> Any:
        answer = attempt(*given, **named)
        answer = answer.clone() if isinstance(answer, Tensor) else answer
        changed.extend(filter(spoiled, given))
        return answer

    found = ""
    try:
        check(careless)
    except AssertionError as error:
        found = str(error)
    told = bool(changed) and check.__name__ not in MAY_CHANGE
    assert ("in place" in found) == told, f"{check.__name__} says {found!r}"


@pytest.mark.parametrize("check", [case(check, 0) for check in RIGHT])
def test_an_attempt_that_writes_a_number_out_is_refused(check: Any) -> None:
    """What stands as a number for one of the arguments: right the first time, and no more."""
    attempt = RIGHT[check][0]
    seen: dict[int, float] = {}

    def written_out(place: int | None) -> Any:
        @functools.wraps(attempt)
        def run(*given: Any, **named: Any) -> Any:
            for n, value in enumerate(given):
                if isinstance(value, int | float):
                    seen.setdefault(n, value)
            return attempt(*(seen[n] if n == place else x for n, x in enumerate(given)), **named)

        return run

    check(written_out(None))
    for place in tuple(seen):
        if (check.__name__, place) != ("check_cache_bytes", 1):  # the queries' heads do not matter
            with pytest.raises(AssertionError):
                check(written_out(place))
