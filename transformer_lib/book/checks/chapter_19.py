"""The checks of chapter 19's exercises."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor

_Link = tuple[int, int]


@diagnostic("Exercise 19.1")
def check_tokens_looked_at(attempt: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check e to the entropy: one token, even weights, zeros, then mean of exponentials and padding."""
    every = torch.ones(1, 4).bool()
    sharp, even = torch.eye(4)[None, None], torch.full((1, 1, 4, 4), 0.25)
    found = expect_tensor(attempt(torch.cat([sharp, even], dim=1), every), (2,), "the result")
    assert not found.isnan().any(), (
        f"weights that are exactly 0 gave NaN: 0 ln 0 counts as 0, got {found.tolist()}"
    )
    assert not torch.allclose(found, torch.tensor([0.0, 4.0]).log().clamp(min=0), atol=1e-3), (
        "this is the entropy itself: return e to its power, a number of tokens"
    )
    assert not torch.allclose(found, torch.tensor([1.0, 0.25]), atol=1e-3), (
        "the sign of the entropy is the other way around: -sum a ln a"
    )
    assert torch.allclose(found, torch.tensor([1.0, 4.0]), atol=1e-3), (
        f"all weight on one token is 1, even weights over 4 are 4, got {found.tolist()}"
    )
    mixed = torch.cat([sharp, even], dim=2)  # (1, 1, 8, 4): four sharp rows, four even ones
    [found_mixed] = attempt(mixed, torch.ones(1, 8).bool()).tolist()
    assert abs(found_mixed - 2.0) > 1e-3, (
        "first the exponential, then the mean: e to the mean entropy gives 2, the mean is 2.5"
    )
    assert abs(found_mixed - 2.5) < 1e-3, f"half sharp, half even over 4: 2.5, got {found_mixed}"
    real = torch.tensor([[True, True, False, False]] * 2)
    weights = torch.cat(
        [torch.cat([sharp, even], dim=1)[:, :, [0, 1, 2, 2]], even.expand(1, 2, 4, 4)]
    )
    weights = weights.clone()
    weights[:, :, 2:] = torch.eye(4)[0]  # what the padding looks at
    found = attempt(weights, real)
    assert not torch.allclose(found, torch.tensor([1.75, 2.5]), atol=1e-3), (
        "padding counts: queries where `real` is False should be left out of the mean"
    )
    assert torch.allclose(found, torch.tensor([2.5, 4.0]), atol=1e-3), (
        f"with padding: the mean over real queries is [2.5, 4.0], got {found.tolist()}"
    )


@diagnostic("Exercise 19.2")
def check_alignment_error_rate(
    attempt: Callable[[set[_Link], set[_Link], set[_Link]], float],
) -> None:
    """Check the alignment error rate: perfect, nothing right, then sure and possible links by name."""
    sure: set[_Link] = {(0, 0), (1, 2)}
    perfect = attempt(set(sure), set(sure), set(sure))
    assert perfect != 1, "a perfect alignment has the error 0: this is the agreement, 1 - AER"
    assert perfect == 0, f"what is proposed is what is sure: the error should be 0, got {perfect}"
    wrong = attempt({(0, 1), (1, 1)}, set(sure), set(sure))
    assert wrong == 1, f"nothing that is proposed is possible: the error should be 1, got {wrong}"
    more = {(2, 1), (2, 2)}
    proposed = {(0, 0), (2, 1), (3, 3)}
    listed = attempt(set(proposed), set(sure), sure | more)
    assert abs(listed - 0.6) > 1e-9, (
        "a possible link that is proposed is no error: count A & P, too"
    )
    assert abs(listed - 0.5) > 1e-9, (
        "the denominator is |A| + |S|: possible links that are not found cost nothing"
    )
    assert abs(listed - 0.4) < 1e-9, f"1 - (1 + 2) / (3 + 2) = 0.4, got {listed}"
    apart = attempt(set(proposed), set(sure), set(more))
    assert abs(apart - 0.4) < 1e-9, (
        f"`possible` may leave the sure links out; they are possible all the same: 0.4, got {apart}"
    )


@diagnostic("Exercise 19.3")
def check_gate_estimate(attempt: Callable[[Callable[[Tensor], Tensor], int], Tensor]) -> None:
    """Check a first-order estimate at open gates: sign, point, one pass, then any size."""
    calls: list[Tensor] = []

    def curved(gates: Tensor) -> Tensor:
        calls.append(gates.detach().clone())
        slopes = torch.arange(1.0, 1.0 + gates.numel())
        return 10 - (slopes * gates**2).sum()  # at 1 it falls by 2 * slope for each gate that opens

    found = expect_tensor(attempt(curved, 3), (3,), "the estimate")
    assert not found.requires_grad, "return plain numbers: detach the result"
    assert all(torch.equal(gates, torch.ones(3)) for gates in calls), (
        f"the gates are open, all 1, where the gradient is taken; loss_of got {calls[0].tolist()}"
    )
    assert len(calls) == 1, f"one evaluation is the point: loss_of was called {len(calls)} times"
    exact = torch.tensor([2.0, 4.0, 6.0])
    assert not torch.allclose(found, -exact), (
        "the sign: the gate moves from 1 to 0, by -1; a head that lowers the loss costs when it is cut"
    )
    assert torch.allclose(found, exact), f"should be {exact.tolist()}, got {found.tolist()}"
    harmful = attempt(lambda gates: (gates * torch.tensor([1.0, -1.0])).sum(), 2)
    assert torch.allclose(harmful, torch.tensor([-1.0, 1.0])), (
        "a head that does harm has a negative rise, no absolute value here: "
        f"should be [-1, 1], got {harmful.tolist()}"
    )


@diagnostic("Exercise 19.4")
def check_rollout(attempt: Callable[[Sequence[Tensor]], Tensor]) -> None:
    """Check rollout: the residual half, the mean over heads, then the order of the layers."""
    back = torch.eye(3).roll(
        1, dims=0
    )  # each position looks at the one before it, the first at the last
    first = torch.zeros(3, 3)
    first[:, 0] = 1.0  # everybody looks at position 0
    one = expect_tensor(attempt([back[None]]), (3, 3), "the rollout")
    assert not torch.allclose(one, back), "half of each position stays where it is: the residual"
    assert not torch.allclose(one, back + torch.eye(3)), (
        "half and half: the rows should add up to 1, and add up to 2"
    )
    assert torch.allclose(one, (back + torch.eye(3)) / 2), f"one layer: {one.tolist()}"
    two_heads = attempt([torch.stack([back, first])])
    assert torch.allclose(two_heads.sum(dim=-1), torch.ones(3)), (
        f"two heads: rows should add up to 1, take the mean, got {two_heads.sum(dim=-1).tolist()}"
    )
    assert torch.allclose(two_heads, (back + first) / 4 + torch.eye(3) / 2), (
        f"two heads: the mean over heads, then half and half, got {two_heads.tolist()}"
    )
    low, high = (back + torch.eye(3)) / 2, (first + torch.eye(3)) / 2
    both = attempt([back[None], first[None]])
    assert not torch.allclose(both, low @ high), (
        "the order: the top layer's rows say what is taken from below, so it stands on the left"
    )
    assert not torch.allclose(both, (low + high) / 2), (
        "layers follow one another: multiply their matrices, no mean over layers"
    )
    assert torch.allclose(both, high @ low), f"two layers: should be {high @ low}, got {both}"
