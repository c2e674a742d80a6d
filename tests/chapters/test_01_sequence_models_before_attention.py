"""Chapter 1: the cells against torch's, what they refuse, and what the checks catch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks import chapter_01
from transformer_lib.recurrent import GRUCell, LSTMCell, RNNCell

sizes = st.integers(1, 5)


# --- the cells


@settings(max_examples=30, deadline=None)
@given(batch=sizes, input_size=sizes, hidden_size=sizes, seed=sizes)
def test_cells_are_torchs(batch: int, input_size: int, hidden_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, hidden = torch.randn(batch, input_size), torch.randn(batch, hidden_size)
    memory = torch.randn(batch, hidden_size)
    for ours, theirs in ((RNNCell, nn.RNNCell), (GRUCell, nn.GRUCell)):
        cell, other = ours(input_size, hidden_size), theirs(input_size, hidden_size)
        cell.load_state_dict(other.state_dict())
        torch.testing.assert_close(cell(x, hidden), other(x, hidden))
    cell, other = LSTMCell(input_size, hidden_size), nn.LSTMCell(input_size, hidden_size)
    cell.load_state_dict(other.state_dict())
    for one, two in zip(cell(x, (hidden, memory)), other(x, (hidden, memory)), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(RNNCell, nn.RNNCell), (LSTMCell, nn.LSTMCell), (GRUCell, nn.GRUCell)]
)
def test_cells_are_drawn_as_torchs(ours: type[nn.Module], theirs: type[nn.Module]) -> None:
    torch.manual_seed(5)
    cell = ours(3, 4)
    torch.manual_seed(5)
    other = theirs(3, 4)
    for name, parameter in other.named_parameters():
        assert torch.equal(dict(cell.named_parameters())[name], parameter), name


@pytest.mark.parametrize("cell", [RNNCell, LSTMCell, GRUCell])
def test_cells_refuse_what_does_not_fit(cell: type[nn.Module]) -> None:
    def state(*shape: int) -> Any:
        hidden = torch.zeros(shape)
        return (hidden, hidden) if cell is LSTMCell else hidden

    for arguments, message in (((0, 2), "input_size must be int"), ((2, 0), "hidden_size must be")):
        with pytest.raises(ValueError, match=message):
            cell(*arguments)
    with pytest.raises(ValueError, match="2 inputs need as many states, got 1"):
        cell(3, 5)(torch.zeros(2, 3), state(1, 5))
    for x, hidden in (((2, 4), (2, 5)), ((2, 3), (2, 4))):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            cell(3, 5)(torch.zeros(x), state(*hidden))


# --- the exercises' checks


Step = Callable[[Tensor, Tensor], Tensor]


def one_way(words: Any, step: Step, size: int, start: float = 0.0) -> list[Tensor]:
    hidden, states = torch.full((len(words[0]), size), start), []
    for x in words:
        hidden = step(x, hidden)
        states.append(hidden)
    return states


def both_ways(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
    words = x.unbind(dim=1)
    there, back = one_way(words, forward, size), one_way(words[::-1], backward, size)[::-1]
    return torch.cat([torch.stack(there, dim=1), torch.stack(back, dim=1)], dim=-1)


def both_by_filling(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
    batch, length, _ = x.shape
    states = torch.empty(batch, length, 2 * size)
    left = right = torch.zeros(batch, size)
    for t in range(length):
        left, right = forward(x[:, t], left), backward(x[:, -1 - t], right)
        states[:, t, :size], states[:, -1 - t, size:] = left, right
    return states


def both_by_recursion(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
    def walk(t: int, left: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The backward reader's state before word t - 1, and the rows from t on."""
        if t == x.size(1):
            return torch.zeros(len(x), size), []
        left = forward(x[:, t], left)
        right, rows = walk(t + 1, left)
        right = backward(x[:, t], right)
        return right, [torch.cat([left, right], dim=-1), *rows]

    return torch.stack(walk(0, torch.zeros(len(x), size))[1], dim=1)


def both_as(
    *, turn_in: bool = True, turn_out: bool = True, swap: bool = False, start: float = 0.0
) -> Callable[..., Tensor]:
    def attempt(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
        words = x.unbind(dim=1)
        there = one_way(words, forward, size, start)
        back = one_way(words[::-1] if turn_in else words, backward, size)
        back = back[::-1] if turn_out else back
        halves = [torch.stack(there, dim=1), torch.stack(back, dim=1)]
        return torch.cat(halves[::-1] if swap else halves, dim=-1)

    return attempt


def one_state_for_both(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
    words = x.unbind(dim=1)
    there, hidden, back = one_way(words, forward, size), None, []
    hidden = there[-1]
    for word in words[::-1]:
        hidden = backward(word, hidden)
        back.append(hidden)
    return torch.cat([torch.stack(there, dim=1), torch.stack(back[::-1], dim=1)], dim=-1)


def last_of_the_other(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
    states = both_ways(x, forward, backward, size)
    return torch.cat([states[..., :size], states[:, :1, size:].expand(-1, x.size(1), -1)], dim=-1)


def flips_in_place(x: Tensor, forward: Step, backward: Step, size: int) -> Tensor:
    states = both_ways(x, forward, backward, size)
    x.copy_(x.flip(1))
    return states


def latch(
    gate: float = 10.0, shut: float = -20.0, new: float = 3.0, new_x: float = 0.0
) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "weight_ih": [0.0, shut, new_x],
        "weight_hh": [0.0, 0.0, 0.0],
        "bias_ih": [0.0, gate, new],
        "bias_hh": [0.0, 0.0, 0.0],
    }


def latch_by_state() -> dict[str, Tensor]:
    """The new content is large if the input or the state is: nothing needs a gate that is shut."""
    return {
        "weight_ih": torch.tensor([[0.0], [0.0], [10.0]]),
        "weight_hh": torch.tensor([[0.0], [0.0], [10.0]]),
        "bias_ih": torch.tensor([20.0, -20.0, 0.0]),
        "bias_hh": torch.zeros(3),
    }


def last_by_gather(states: Tensor, lengths: Tensor) -> Tensor:
    index = (lengths - 1)[:, None, None].expand(-1, 1, states.size(2))
    return states.gather(1, index)[:, 0]


def last_by_mask(states: Tensor, lengths: Tensor) -> Tensor:
    here = torch.arange(states.size(1)) == (lengths - 1)[:, None]
    return (states * here[..., None]).sum(dim=1)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_01.check_both_ways: [both_ways, both_by_filling, both_by_recursion],
    chapter_01.check_latch: [latch(), latch(12.0, -30.0, 0.0, 5.0), latch_by_state],
    chapter_01.check_forget_bias: [
        lambda steps: -math.log(2 ** (1 / steps) - 1),
        lambda steps: torch.logit(torch.tensor(0.5).double() ** (1 / steps)),
    ],
    chapter_01.check_last_states: [
        last_by_gather,
        last_by_mask,
        lambda s, n: torch.stack([row[k - 1] for row, k in zip(s, n.tolist(), strict=True)]),
    ],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_01.check_both_ways: [
        (both_as(turn_out=False), "Turn them round"),
        (both_as(turn_in=False, turn_out=False), "left to right too"),
        (both_as(turn_in=False), "the backward one is off"),
        (both_as(swap=True), "states come first"),
        (both_as(start=1.0), "does it begin with zeros"),
        (lambda x, f, b, n: both_ways(x, f, f, n), "each has its own"),
        (one_state_for_both, "the backward one is off"),
        (last_of_the_other, "beside every word"),
        (flips_in_place, "number 1 in place"),
        (
            lambda x, f, b, n: both_ways(x, f, b, n)[..., :n] + both_ways(x, f, b, n)[..., n:],
            "should have shape",
        ),
        (
            lambda x, f, b, n: both_ways(x.transpose(0, 1), f, b, n).transpose(0, 1),
            "does it go on|should have shape|raised",
        ),
    ],
    chapter_01.check_latch: [
        (latch(gate=-10.0, shut=0.0), "writes whatever it reads"),
        (latch(gate=-10.0, shut=20.0), "nothing is written"),
        (latch(shut=0.0), "nothing is written"),
        (latch(new=-3.0), "wrong sign"),
        (latch(new=1.0), "large enough for tanh"),
        (latch(gate=4.0, shut=-20.0), "drifts"),
        (latch(4.0, -20.0, 0.0, 5.0), "nearer to 1"),
        (
            lambda: {**latch()(), "weight_hh": [0.0, 0.0, -6.0], "bias_ih": [9.0, 10.0, 3.0]},
            "many ones",
        ),
        (lambda: {"weight_ih": [0.0, -20.0, 0.0]}, "a dictionary with"),
        (lambda: {**latch()(), "bias_hh": [0.0]}, "bias_hh has 1 numbers"),
    ],
    chapter_01.check_forget_bias: [
        (lambda steps: 0.5 ** (1 / steps), "the gate's value"),
        (lambda steps: 0.0, "more than half open"),
        (lambda steps: math.log(steps), "is left after 10 steps"),
        (lambda steps: -math.log(0.5 ** (-1 / steps) - 1) * (-1) ** (steps > 1), "a positive bias"),
        (lambda steps: math.log(0.5 ** (1 / steps)), "invert the sigmoid"),
        (lambda steps: -math.log(2 ** (1 / min(steps, 10)) - 1), "after 1000"),
    ],
    chapter_01.check_last_states: [
        (lambda states, lengths: states[:, -1], "you took the last column"),
        (lambda states, lengths: states[torch.arange(2), lengths.clamp(max=3)], "off by one"),
        (lambda states, lengths: states[torch.arange(2), lengths - 2], "off by one"),
        (lambda states, lengths: states[:, lengths[0] - 1], "the first row's length"),
        (lambda states, lengths: states[torch.arange(2), lengths[:2] - 1], "should have shape"),
        (lambda states, lengths: states[:, lengths - 1], "should have shape"),
        (
            lambda states, lengths: states[torch.arange(len(states)), lengths.sub_(1)],
            "number 2 in place",
        ),
        (
            lambda states, lengths: last_by_gather(states.detach(), lengths),
            "does not require grad|the gradient",
        ),
    ],
}
