"""The checks of chapter 21's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic

Logits = Callable[[Tensor, Tensor], Tensor]


def _number(value: object, what: str) -> float:
    kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
    assert isinstance(value, int | float | Tensor) and "bool" not in kind, (
        f"{what} should be a number, not {kind}"
    )
    return float(value)


@diagnostic("Exercise 21.1")
def check_padding(attempt: Callable[[Logits, Tensor, Tensor, int], float]) -> None:
    """Check a measure of heard padding: a healthy model, then sick ones of several kinds."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(12, 6, generator=generator)  # (vocabulary, logits)
    source = torch.tensor([[3, 4, 5, 9], [6, 4, 9, 9]])  # (batch, source)
    target = torch.tensor([[1, 3, 4], [1, 5, 5]])  # (batch, target)

    def model(pad_id: int, weight: float, sign: float = 0.0) -> Logits:
        def logits(source: Tensor, target: Tensor) -> Tensor:
            real = (source != pad_id).float()  # (batch, source)
            heard = real + weight * (1 - real)
            mean = (heard[..., None] * table[source]).sum(dim=1) / heard.sum(dim=1, keepdim=True)
            down = sign * (1 - real).sum(dim=1)  # (batch,): lower with each <pad>
            return table[target] + mean[:, None] + down[:, None, None]

        return logits

    healthy = _number(attempt(model(9, 0.0), source, target, 9), "the largest move")
    assert abs(healthy) < 1e-4, (
        f"a healthy model is accused: you measure {healthy:.3f}; are only <pad> added to the source?"
    )
    sick = _number(attempt(model(9, 1.0), source, target, 9), "the largest move")
    assert sick > 1e-2, f"padding that is heard like a word is not found: you measure {sick:.5f}"
    lower = _number(attempt(model(9, 0.0, -0.5), source, target, 9), "the largest move")
    assert lower > 1e-2, f"logits that get smaller are not found ({lower:.3f}): a move has no sign"
    twice = torch.cat([source, torch.full_like(source[:, :1], 9)], dim=1)
    small = model(9, 0.0, -0.5)
    least = (small(twice, target) - small(source, target)).abs().max().item()
    assert lower > 0.99 * least, (
        f"the LARGEST move is wanted: at least {least:.2f}, not {lower:.2f}"
    )
    zero = torch.where(source == 9, 0, source)
    other = _number(attempt(model(0, 1.0), zero, target, 0), "the largest move")
    calm = _number(attempt(model(0, 0.0), zero, target, 0), "the largest move")
    assert other > 1e-2 and abs(calm) < 1e-4, (
        f"with another pad_id it goes wrong: {other:.3f} for a sick model, {calm:.3f} for a healthy one"
    )


@diagnostic("Exercise 21.2")
def check_future(attempt: Callable[[Callable[[Tensor], Tensor], Tensor], bool]) -> None:
    """Check a search for leaks: a healthy model, then leaks that are large, small and hidden."""
    table = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))  # (vocabulary, logits)
    tokens = torch.tensor([[1, 3, 4, 5, 6], [1, 7, 3, 3, 4]])  # (batch, length)

    def model(leak: list[tuple[int, int]], amount: float) -> Callable[[Tensor], Tensor]:
        def logits(tokens: Tensor) -> Tensor:
            x = table[tokens]  # (batch, length, 5)
            answer = x.cumsum(dim=1)
            for later, earlier in leak:
                if later < tokens.size(1):
                    answer[:, earlier] = answer[:, earlier] + amount * x[:, later]
            return answer

        return logits

    every = [(later, earlier) for later in range(5) for earlier in range(later)]
    patients = {
        "a healthy model": (model([], 0.0), False),
        "a model without a mask": (model(every, 1.0), True),
        "a model that sees the next word": (model([(i + 1, i) for i in range(4)], 1.0), True),
        "a small leak of 0.001": (model(every, 1e-3), True),
        "a leak in the middle, from 2 to 1,": (model([(2, 1)], 1.0), True),
        "a leak from the last to the first": (model([(4, 0)], 1.0), True),
        "a leak from the second token to the first": (model([(1, 0)], 1.0), True),
    }
    for name, (logits, sick) in patients.items():
        answer = attempt(logits, tokens)
        assert isinstance(answer, bool | int | Tensor), f"return True or False, not {answer!r}"
        if sick:
            assert bool(answer), f"{name} is not found"
        else:
            assert not bool(answer), (
                f"{name} is accused: a token may move its own position and later"
            )


def _attention(d_k: int, factor: float) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        widths = query.size(-1), key.size(-1)
        assert widths == (d_k, d_k), f"d_k is {d_k}, your queries and keys are {widths} wide"
        return (factor * query @ key.mT).softmax(dim=-1) @ value

    return attend


@diagnostic("Exercise 21.3")
def check_factor(attempt: Callable[[Callable[..., Tensor], int], float]) -> None:
    """Check a measurement of what scores are multiplied by: right, missing, and wrong factors."""
    for d_k, factor in ((16, 0.25), (64, 0.125), (16, 0.5), (4, 1.0), (64, 1.0), (16, 0.1)):
        attend = _attention(d_k, factor)
        found = _number(attempt(attend, d_k), "the factor")
        assert math.isfinite(found), (
            f"you measure {found} for a factor of {factor} and d_k = {d_k}: softmax is saturated, "
            "use smaller vectors"
        )
        assert abs(found * factor - 1) > 1e-2 or factor == 1, (
            f"you return the reciprocal: {found:.3f} for a factor of {factor}"
        )
        assert abs(found / factor - 1) < 0.02, (
            f"d_k = {d_k}: scores are multiplied by {factor}, you measure {found:.3f}"
        )
