"""Checks of the reader's own solutions that say what is wrong and what is left to suspect."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# The check of an exercise: takes the reader's attempt, raises AssertionError if that is wrong.
_Check = Callable[[Callable[..., Any]], None]


def _copy(given: Any) -> Any:
    """Tensors, and lists and dictionaries of anything, copied; what else there is, as it is."""
    if isinstance(given, Tensor):
        return given.detach().clone()
    if isinstance(given, list | tuple):
        return [_copy(x) for x in given]
    if isinstance(given, dict):
        return {key: _copy(x) for key, x in given.items()}
    return given


def _same(given: Any, copy: Any) -> bool:
    """Whether an argument is still what it was, to the bit."""
    if isinstance(given, Tensor):
        if not isinstance(copy, Tensor) or given.shape != copy.shape or given.dtype != copy.dtype:
            return False
        nothing = (given != given) & (copy != copy)  # NaN is not even equal to itself
        return bool(((given == copy) | nothing).all())
    if isinstance(given, list | tuple):
        return len(given) == len(copy) and all(map(_same, given, copy))
    if isinstance(given, dict):
        return list(given) == list(copy) and all(_same(given[key], copy[key]) for key in copy)
    return given is copy or bool(given == copy)


def diagnostic(label: str, in_place: bool = False) -> Callable[[_Check], _Check]:
    """Turn a function of asserts into the check of an exercise.

    `check(attempt)` then prints one line if the exercise is still open (its stub raises
    NotImplementedError) or if every assert holds. Otherwise it raises AssertionError: the check's
    own, or one that says that the attempt raised, or returned nothing, followed by the error that
    came of it.

    For a teacher there is `check(attempt, graded=True)`: an open exercise is then an error like any other.

    An attempt that changes a tensor, list or dictionary it is given is told so: the caller still
    needs it, and the check compares with it.

    Args:
        label: of the exercise, such as "Exercise 6.1".
        in_place: whether the exercise lets an attempt change what it is given.

    Returns:
        The decorator; the check that it makes takes the reader's attempt and returns None.
    """

    def decorate(check: _Check) -> _Check:
        @functools.wraps(check)
        def run(attempt: Callable[..., Any], graded: bool = False) -> None:
            name = getattr(attempt, "__name__", type(attempt).__name__)
            raised: list[Exception] = []
            answers: list[Any] = []

            @functools.wraps(attempt)
            def watched(*args: Any, **kwargs: Any) -> Any:
                given = (*args, *kwargs.values())
                before = _copy(given)
                try:
                    answers.append(attempt(*args, **kwargs))
                except Exception as error:
                    raised.append(error)
                    raise
                for number, (now, was) in enumerate(zip(given, before, strict=True), start=1):
                    assert in_place or _same(now, was), (
                        f"{name} changes its argument number {number} in place: work on a copy, the caller still "
                        "needs the old one"
                    )
                return answers[-1]

            try:
                check(watched)
            except Exception as error:
                # torch has NotImplementedErrors of its own; the stub's is bare or names the exercise.
                if isinstance(error, NotImplementedError) and (
                    not error.args or label in str(error)
                ):
                    still_open = f"{label} is still open: fill in {name}, then run this cell again."
                    if graded:
                        raise AssertionError(still_open) from None
                    print(still_open)
                    return
                if error not in raised and answers and (answers[-1] is None or answers[-1] is ...):
                    message = f"{name} returned {answers[-1]}: does every way through it end with `return`?"
                elif isinstance(error, AssertionError):
                    raise
                elif error in raised:
                    message = f"{name} raised {type(error).__name__}: {error}"
                elif "did not match" in str(error) or "same dtype" in str(error):
                    message = f"{name} returned numbers of another type than it was given: {error}"
                else:
                    message = f"the check cannot use what {name} returned: {type(error).__name__}: {error}"
                raise AssertionError(f"{label}: {message}") from error
            print(f"{label}: every check passed.")

        return run

    return decorate


def expect_tensor(value: object, shape: Sequence[int], what: str) -> Tensor:
    """Return `value` if it is a tensor of `shape`.

    Args:
        value: what an attempt returned.
        shape: that it should have.
        what: the words for it in a message, such as "the scores".

    Returns:
        `value` itself.

    Raises:
        AssertionError: if `value` is no tensor or has another shape; the message names both.
    """
    assert isinstance(value, Tensor), (
        f"{what} should be a tensor of shape {tuple(shape)}, not {type(value).__name__}"
    )
    assert value.shape == tuple(shape), (
        f"{what} should have shape {tuple(shape)}, not {tuple(value.shape)}"
    )
    return value


class Refuse(TorchFunctionMode):
    """Refuses functions of torch that an exercise asks to write, by whatever name they were imported."""

    def __init__(self, *names: str, instead: str) -> None:
        super().__init__()
        self.names, self.instead = names, instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in self.names, f"{self.instead}, without torch's {name}"
        return func(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result
