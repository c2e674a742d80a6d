"""Chapter 1: the cells against torch's, what they refuse, and what the checks catch."""

import math
import re
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


def read_without_tanh(inputs: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
    return inputs @ w_ih.T + bias


def reader(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loop around a step that may be wrong."""

    def read(inputs: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
        hidden, states = torch.zeros(inputs.size(0), w_hh.size(0)), []
        for x in inputs.unbind(dim=1):
            hidden = step(x @ w_ih.T + bias, hidden, w_hh)
            states.append(hidden)
        return torch.stack(states, dim=1)

    return read


def gru(from_input: Tensor, from_hidden: Tensor, hidden: Tensor, mistake: str) -> Tensor:
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
        from_input.chunk(3, dim=-1),
        from_hidden.chunk(3, dim=-1),
    )
    if mistake == "order":
        reset_x, update_x, reset_h, update_h = update_x, reset_x, update_h, reset_h
    update, reset = (update_x + update_h).sigmoid(), (reset_x + reset_h).sigmoid()
    new = new_x + reset * new_h
    if mistake == "reset all":
        new = reset * (new_x + new_h)
    if mistake != "no tanh":
        new = new.tanh()
    if mistake == "swapped":
        update = 1 - update
    if mistake == "input gates only":
        update = update_x.sigmoid()
        return (1 - update) * torch.tanh(new_x + reset_x.sigmoid() * new_h) + update * hidden
    return (1 - update) * new + update * hidden


def gru_with(mistake: str) -> Callable[..., Tensor]:
    return lambda *arguments: gru(*arguments, mistake)


WRONG: list[tuple[Callable[..., None], Callable[..., Any], str]] = [
    (chapter_01.check_read_sequence, read_without_tanh, "the tanh is missing"),
    (
        chapter_01.check_read_sequence,
        reader(lambda x, h, w: torch.tanh(x)),
        "does not know the first",
    ),
    (
        chapter_01.check_read_sequence,
        reader(lambda x, h, w: torch.tanh(x + h @ w)),
        "weight_hh is transposed",
    ),
    (
        chapter_01.check_read_sequence,
        lambda *a: reader(lambda x, h, w: torch.tanh(x + h @ w.T))(*a).mT,
        "should have shape",
    ),
    (chapter_01.check_gru_update, gru_with("swapped"), "z is the share of the old state"),
    (chapter_01.check_gru_update, gru_with("no tanh"), "the tanh of the new content is missing"),
    (chapter_01.check_gru_update, gru_with("reset all"), "should hide the state, not the input"),
    (chapter_01.check_gru_update, gru_with("input gates only"), "do both maps go into the gates"),
    (chapter_01.check_gru_update, gru_with("order"), "reset and update have changed places"),
    (chapter_01.check_forget_bias, lambda steps: 0.5 ** (1 / steps), "is it the gate itself?"),
    (chapter_01.check_forget_bias, lambda steps: 0.0, "must be more than half open"),
    (chapter_01.check_forget_bias, lambda steps: math.log(steps), "is left after 10 steps"),
    (
        chapter_01.check_last_states,
        lambda states, lengths: states[:, -1],
        "you took the last column",
    ),
    (
        chapter_01.check_last_states,
        lambda states, lengths: states[torch.arange(2), lengths.clamp(max=3)],
        "off by one",
    ),
    (
        chapter_01.check_last_states,
        lambda states, lengths: states[torch.arange(2), lengths - 2],
        "off by one",
    ),
]


@pytest.mark.parametrize(
    ("check", "attempt", "message"), WRONG, ids=[f"{c.__name__}: {m}" for c, _, m in WRONG]
)
def test_a_wrong_solution_is_told_why(
    check: Callable[..., None], attempt: Callable[..., Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check(attempt)
