"""The checks of chapter 1's exercises."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.recurrent import GRUCell


def _steps(size: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Two readers with a state of `size` numbers, (batch, 2) inputs; order, input and state all count."""

    def forward(x: Tensor, hidden: Tensor) -> Tensor:
        return 0.5 * hidden.roll(1, dims=-1) + x.sum(dim=-1, keepdim=True) + 1

    def backward(x: Tensor, hidden: Tensor) -> Tensor:
        return 0.25 * hidden + 100 * x[:, :1] + torch.arange(1.0, size + 1)

    return forward, backward


def _read(words: list[Tensor], step: Callable[..., Tensor], size: int) -> list[Tensor]:
    hidden, states = torch.zeros(len(words[0]), size), []
    for x in words:
        hidden = step(x, hidden)
        states.append(hidden)
    return states


@diagnostic("Exercise 1.1")
def check_both_ways(attempt: Callable[..., Tensor]) -> None:
    """One word isolates the order of the halves; then each reader by itself, and several shapes."""
    generator = torch.Generator().manual_seed(0)
    for batch, length, size in ((2, 1, 3), (2, 4, 3), (3, 5, 2), (1, 7, 4)):
        inputs = torch.randn(batch, length, 2, generator=generator)
        forward, backward = _steps(size)
        what = f"the states of {batch} sentences of {length} words, {size} numbers a state"
        got = expect_tensor(
            attempt(inputs, forward, backward, size), (batch, length, 2 * size), what
        )
        words = list(inputs.unbind(dim=1))
        there = torch.stack(_read(words, forward, size), dim=1)
        back = torch.stack(_read(words[::-1], backward, size)[::-1], dim=1)
        first, second = got[..., :size], got[..., size:]
        _compare_halves(first, second, there, back, words, (forward, backward))


def _compare_halves(
    first: Tensor,
    second: Tensor,
    there: Tensor,
    back: Tensor,
    words: list[Tensor],
    steps: tuple[Callable[..., Tensor], Callable[..., Tensor]],
) -> None:
    def same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, atol=1e-3, rtol=1e-4)

    size, length = there.size(-1), len(words)
    assert not same(first, back), (
        "the backward reader's states come first; the forward reader's should"
    )
    assert not same(first, torch.stack(_read(words[::-1], steps[0], size), dim=1)) or length == 1, (
        "the forward reader reads from right to left"
    )
    assert same(first, there), (
        "the forward reader's states are off: does it begin with zeros, and does it go on from its own last state?"
    )
    assert not same(second, back.flip(1)) or length == 1, (
        "the backward reader's states stand in the order in which it made them: its first one belongs to the last word. Turn them round"
    )
    assert not same(second, torch.stack(_read(words, steps[1], size), dim=1)) or length == 1, (
        "the backward reader reads from left to right too"
    )
    assert not same(second, torch.stack(_read(words[::-1], steps[0], size)[::-1], dim=1)), (
        "both directions use the forward step; each has its own"
    )
    only_last = back[:, :1].expand_as(back)
    assert not same(second, only_last) or length == 1, (
        "beside every word stands the backward reader's last state; each word has its own"
    )
    assert same(second, back), (
        "the forward half is right, the backward one is off: does that reader begin with zeros, at the last word, and go on from its own last state?"
    )


@diagnostic("Exercise 1.2")
def check_latch(attempt: Callable[[], dict[str, Any]]) -> None:
    """Read sequences of zeros and ones with the cell: before the first one, at it, after it, many ones."""
    cell, answer = GRUCell(1, 1), attempt()
    names = [name for name, _ in cell.named_parameters()]
    assert isinstance(answer, dict) and sorted(answer) == sorted(names), (
        f"a dictionary with {', '.join(names)} is asked for, not {answer!r:.60}"
    )
    for name, parameter in cell.named_parameters():
        numbers = torch.as_tensor(answer[name], dtype=torch.float32).detach().flatten()
        assert len(numbers) == 3, f"{name} has {len(numbers)} numbers; it should have three"
        with torch.no_grad():
            parameter.copy_(numbers.view_as(parameter))

    @torch.no_grad()
    def states(*bits: int) -> list[float]:
        hidden, found = torch.zeros(1, 1), []
        for bit in bits:
            hidden = cell(torch.tensor([[float(bit)]]), hidden)
            found.append(hidden.item())
        return found

    wrote = states(1)[-1]
    zeros = states(*[0] * 100)
    assert wrote < 0.9 or max(map(abs, zeros[:3])) < 0.5, (
        f"the state is {zeros[2]:.2f} after three zeros already: it writes whatever it reads. On a 0 the update gate should be near 1, so that the old state stays"
    )
    assert wrote > -0.5, f"after a 1 the state is {wrote:.2f}: the new content has the wrong sign"
    assert abs(wrote) > 0.05, (
        f"after a 1 the state is {wrote:.2f}: nothing is written. On a 1 the update gate should be near 0 (it is the share of the old state), and the new content near 1"
    )
    assert wrote > 0.9, (
        f"after a 1 the state is {wrote:.2f}, it should be above 0.9: is the update gate shut, and the new content large enough for tanh?"
    )
    worst = max(zeros, key=abs)
    assert abs(worst) < 0.1, (
        f"in a hundred zeros the state drifts to {worst:.2f}: a gate that is only nearly open lets some new content in at each step. Larger weights, or no new content on a 0"
    )
    kept = states(0, 1, *[0] * 100)
    assert kept[-1] > 0.9, (
        f"a hundred zeros after the 1 the state is {kept[-1]:.2f}, right after it {kept[1]:.2f}: on a 0 the update gate should be nearer to 1"
    )
    many = states(0, *[1] * 50, 0, 1, 0, 0)
    assert min(many[1:]) > 0.9, (
        f"with many ones the state falls to {min(many[1:]):.2f}: what a second 1 writes, with the state at 1 already, should be near 1 as well"
    )


@diagnostic("Exercise 1.3")
def check_forget_bias(attempt: Callable[[int], float]) -> None:
    """Check the forget gate's bias for a half-life: one step, several, many."""
    one = float(attempt(1))
    assert abs(one - 0.5) > 1e-6, (
        "for one step that is 0.5, the gate's value: which bias has it as its sigmoid?"
    )
    assert abs(one) < 1e-6, (
        f"to keep half over one step the gate is at 1/2, so its bias is 0; yours is {one:.4g}: do you invert the sigmoid, log(f / (1 - f))?"
    )
    ten = float(attempt(10))
    gate = 0.5 ** (1 / 10)
    assert abs(ten - gate) > 1e-6, "that is the gate's value: which bias has it as its sigmoid?"
    assert abs(ten) > 1e-6, (
        "for 10 steps the bias is 0 too: to keep more, the gate must be more than half open"
    )
    assert ten > 0, (
        f"to keep more, the gate must be more than half open: a positive bias, not {ten:.4g}"
    )
    kept = (1 / (1 + math.exp(-ten))) ** 10
    assert abs(kept - 0.5) < 1e-4, (
        f"with your bias {kept:.3f} is left after 10 steps, it should be 0.5: the gate itself is f = 0.5 ** (1 / steps)"
    )
    for steps in (3, 1000):
        kept = (1 / (1 + math.exp(-float(attempt(steps))))) ** steps
        assert abs(kept - 0.5) < 1e-3, (
            f"right for 10 steps; with your bias {kept:.3f} is left after {steps}"
        )


@diagnostic("Exercise 1.4")
def check_last_states(attempt: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the last real state of each row: full rows, short rows, rows of one, other sizes, and where gradients go."""
    states = 24.0 - torch.arange(24.0).reshape(2, 4, 3)  # (batch, length, hidden)

    def last(states: Tensor, *lengths: int) -> Tensor:
        shape = (states.size(0), states.size(2))
        return expect_tensor(attempt(states, torch.tensor(lengths)), shape, "the last states")

    assert torch.equal(last(states, 4, 4), states[:, 3]), (
        "for rows without padding the last column should come out (off by one: a length of 4 ends at index 3?)"
    )
    short = last(states, 2, 4)
    assert not torch.equal(short, states[:, 3]), (
        "row 0 has 2 real words, and you took the last column"
    )
    assert not torch.equal(short[0], states[0, 2]), "off by one: a length of 2 ends at index 1"
    assert not torch.equal(short, states[:, 1]), (
        "the first row's length was used for all: each row has its own"
    )
    assert torch.equal(short, torch.stack([states[0, 1], states[1, 3]])), (
        f"row 0 should end at index 1, row 1 at index 3; got {short.tolist()}"
    )
    assert torch.equal(last(states, 1, 1), states[:, 0]), "a sentence of one word ends at index 0"
    many = torch.randn(5, 6, 2, generator=torch.Generator().manual_seed(0))
    many[3] = 0.0  # a state may be zero, and is a state all the same
    lengths = (6, 1, 3, 2, 5)
    expected = torch.stack([many[row, length - 1] for row, length in enumerate(lengths)])
    wrong = (last(many, *lengths) - expected).abs().amax(dim=-1).nonzero().flatten().tolist()
    assert not wrong, f"right for 2 rows; of 5 rows with lengths {lengths} rows {wrong} are wrong"
    watched = states.clone().requires_grad_()
    last(watched, 2, 4).sum().backward()
    assert watched.grad is not None and watched.grad.sum() == 6, (
        "the gradient should reach one state of each row and no other"
    )
