"""The checks of chapter 1's exercises."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 1.1")
def check_read_sequence(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check a plain recurrent loop: the first step isolates the input, the second the state, then a batch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 3, generator=generator)
    weight_ih, weight_hh = (
        torch.randn(5, 3, generator=generator),
        torch.randn(5, 5, generator=generator),
    )
    bias = torch.randn(5, generator=generator)

    first = expect_tensor(
        attempt(inputs[:, :1], weight_ih, weight_hh, bias), (2, 1, 5), "the states for length 1"
    )
    linear = inputs[:, 0] @ weight_ih.T + bias
    assert not torch.allclose(first[:, 0], linear, atol=1e-5), "the tanh is missing"
    assert torch.allclose(first[:, 0], linear.tanh(), atol=1e-5), (
        "the first state is off, and the state before it is zero: left to suspect are the input's map and the bias"
    )
    states = expect_tensor(
        attempt(inputs, weight_ih, weight_hh, bias), (2, 4, 5), "the states for length 4"
    )
    second = inputs[:, 1] @ weight_ih.T + bias
    transposed = torch.tanh(second + states[:, 0] @ weight_hh)
    assert not torch.allclose(states[:, 1], second.tanh(), atol=1e-5), (
        "the second state does not know the first: is the state handed on?"
    )
    assert not torch.allclose(states[:, 1], transposed, atol=1e-5), "weight_hh is transposed"
    hidden = torch.zeros(2, 5)
    for t in range(4):
        hidden = torch.tanh(inputs[:, t] @ weight_ih.T + hidden @ weight_hh.T + bias)
        assert torch.allclose(states[:, t], hidden, atol=1e-5), (
            f"state {t} is off: left to suspect are the order of the steps and which state is handed on"
        )


@diagnostic("Exercise 1.2")
def check_gru_update(attempt: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check a GRU's update: closed and open update gate isolate the parts, then the reset gate, then torch's cell."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(2, 4, generator=generator) - 0.5
    new_x, new_h = torch.randn(2, 4, generator=generator), torch.randn(2, 4, generator=generator)

    def answer(reset: float, update: float) -> Tensor:
        from_input = torch.cat(
            [torch.full((2, 4), reset), torch.full((2, 4), update), new_x], dim=-1
        )
        from_hidden = torch.cat([torch.zeros(2, 8), new_h], dim=-1)
        return expect_tensor(attempt(from_input, from_hidden, hidden), (2, 4), "the new state")

    kept, replaced = answer(0.0, 50.0), answer(50.0, -50.0)
    assert not torch.allclose(replaced, hidden, atol=1e-5), (
        "with an update gate of 0 the old state stays: in torch z is the share of the old state, yours is that of the new "
        "(or reset and update have changed places)"
    )
    assert torch.allclose(kept, hidden, atol=1e-5), (
        "with an update gate of 1 the old state should stay as it is: left to suspect are a missing sigmoid and the order of the parts"
    )
    assert not torch.allclose(replaced, new_x + new_h, atol=1e-5), (
        "the tanh of the new content is missing"
    )
    assert torch.allclose(replaced, torch.tanh(new_x + new_h), atol=1e-5), (
        "with an update gate of 0 and a reset gate of 1 the new content should come out: tanh(new_x + new_h)"
    )
    forgot = answer(-50.0, -50.0)
    assert not torch.allclose(forgot, torch.zeros(2, 4), atol=1e-5), (
        "a reset gate of 0 should hide the state, not the input: it multiplies what comes from the state only"
    )
    assert torch.allclose(forgot, new_x.tanh(), atol=1e-5), (
        "with a reset gate of 0 only the input should be left in the new content: tanh(new_x)"
    )
    theirs = torch.nn.GRUCell(3, 4)
    x = torch.randn(2, 3, generator=generator)
    with torch.no_grad():
        from_input = F.linear(x, theirs.weight_ih, theirs.bias_ih)
        from_hidden = F.linear(hidden, theirs.weight_hh, theirs.bias_hh)
        assert torch.allclose(
            attempt(from_input, from_hidden, hidden), theirs(x, hidden), atol=1e-5
        ), (
            "gates that are neither open nor shut are off: do both maps go into the gates, and is the rest 1 - z?"
        )


@diagnostic("Exercise 1.3")
def check_forget_bias(attempt: Callable[[int], float]) -> None:
    """Check the forget gate's bias for a half-life: one step, several, many."""
    one = float(attempt(1))
    assert abs(one) < 1e-6, (
        f"to keep half over one step the gate is at 1/2, so its bias is 0; yours is {one} (is it the gate itself?)"
    )
    ten = float(attempt(10))
    gate = 0.5 ** (1 / 10)
    assert abs(ten - gate) > 1e-6, "that is the gate's value: which bias has it as its sigmoid?"
    assert ten > 0, (
        f"to keep more, the gate must be more than half open: a positive bias, not {ten}"
    )
    kept = (1 / (1 + math.exp(-ten))) ** 10
    assert abs(kept - 0.5) < 1e-4, (
        f"with your bias {kept:.3f} is left after 10 steps, it should be 0.5"
    )
    kept = (1 / (1 + math.exp(-float(attempt(1000))))) ** 1000
    assert abs(kept - 0.5) < 1e-3, f"with your bias {kept:.3f} is left after 1000 steps"


@diagnostic("Exercise 1.4")
def check_last_states(attempt: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the last real state of each row: full rows, short rows, rows of one, and where gradients go."""
    states = 24.0 - torch.arange(24.0).reshape(2, 4, 3)  # (batch, length, hidden)
    full = expect_tensor(attempt(states, torch.tensor([4, 4])), (2, 3), "the last states")
    assert torch.equal(full, states[:, 3]), (
        "for rows without padding the last column should come out (off by one: a length of 4 ends at index 3?)"
    )
    short = attempt(states, torch.tensor([2, 4]))
    assert not torch.equal(short, states[:, 3]), (
        "row 0 has 2 real words, and you took the last column"
    )
    assert not torch.equal(short[0], states[0, 2]), "off by one: a length of 2 ends at index 1"
    assert torch.equal(short, torch.stack([states[0, 1], states[1, 3]])), (
        f"row 0 should end at index 1, row 1 at index 3; got {short.tolist()}"
    )
    one = attempt(states, torch.tensor([1, 1]))
    assert torch.equal(one, states[:, 0]), "a sentence of one word ends at index 0"
    watched = states.clone().requires_grad_()
    attempt(watched, torch.tensor([2, 4])).sum().backward()
    assert watched.grad is not None and watched.grad.sum() == 6, (
        "the gradient should reach one state of each row and no other"
    )
