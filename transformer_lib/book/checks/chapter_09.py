"""The checks of chapter 9's exercises."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor, on_copies


@contextmanager
def _without(what: str, *names: str) -> Iterator[None]:
    """Refuse the calls of what an exercise forbids."""

    def refuse(*_args: Any, **_keywords: Any) -> None:
        raise AssertionError(f"this exercise is to be solved without {what}")

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch(name, refuse))
        yield


@diagnostic("Exercise 9.1")
def check_layer_norm(attempt: Callable[..., Tensor]) -> None:
    """Known numbers: eps 0 isolates the variance, a large eps its place; then gain, shift, batch."""
    names = ("torch.nn.functional.layer_norm", "torch.layer_norm", "torch.native_layer_norm")
    with _without("torch's layer norm", *names):
        _check_layer_norm(lambda *given: on_copies(attempt, *given))


def _check_layer_norm(attempt: Callable[..., Tensor]) -> None:
    one, zero = torch.ones(2), torch.zeros(2)
    pair = expect_tensor(
        attempt(torch.tensor([[4.0, 8.0]]), one, zero, 0.0), (1, 2), "the norm of one position"
    ).flatten()
    assert not pair.isnan().any(), (
        "(4, 8) with eps 0 came out as nan: 0 / 0. Do mean and variance run over the features, the last dimension?"
    )
    assert abs(pair.sum().item()) < 1e-4, (
        f"(4, 8) should come out with mean 0, not {pair.mean().item():.3g}"
    )
    unbiased = abs(pair[1].item() - 0.5**0.5) < 1e-3
    assert not unbiased, (
        "(4, 8) came out as (-0.71, 0.71): your variance divides by d_model - 1; it should by d_model"
    )
    assert abs(pair[1].item() - 1) < 1e-3, (
        f"(4, 8) with eps 0 should come out as (-1, 1), not {pair.tolist()}"
    )
    wide = attempt(torch.tensor([[-1.0, 1.0]]), one, zero, 3.0)[0, 1].item()
    assert abs(wide - 0.25) > 1e-3, (
        "(-1, 1) with eps 3 came out as 1/4: eps stands outside the root, it belongs inside"
    )
    assert abs(wide - 0.5) < 1e-3, (
        f"(-1, 1) with eps 3 should have 1 / sqrt(1 + 3) = 0.5 on the right, not {wide:.3g}"
    )
    learned = attempt(
        torch.tensor([[4.0, 8.0]]), torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0]), 0.0
    ).flatten()
    expected = torch.tensor([8.0, 23.0])
    message = (
        f"gain (2, 3) and shift (10, 20) should turn (-1, 1) into (8, 23), not {learned.tolist()}"
    )
    assert (learned - expected).abs().max() < 1e-3, message
    x = (
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(9))
        * torch.tensor([1.0, 10.0, 100.0])[:, None]
    )
    normed = expect_tensor(
        attempt(x, torch.ones(4), torch.zeros(4), 1e-5), (2, 3, 4), "the norm of a (2, 3, 4) batch"
    )
    means, stds = normed.mean(dim=-1), normed.std(dim=-1, correction=0)
    message = f"right for one position; in a batch the positions' means are {means.flatten().tolist()}: which axis?"
    assert means.abs().max() < 1e-3, message
    message = f"right for one position; in a batch the standard deviations are {stds.flatten().tolist()}: which axis?"
    assert (stds - 1).abs().max() < 1e-2, message
    # other sizes, and a gain and a shift that differ from feature to feature
    rows, (gain, shift) = torch.arange(35.0).reshape(5, 7) ** 1.5, torch.rand(2, 7) + 0.5
    mean = rows.mean(dim=-1, keepdim=True)  # (positions, 1)
    std = torch.sqrt((rows - mean).square().mean(dim=-1, keepdim=True) + 0.1)  # (positions, 1)
    normed = expect_tensor(attempt(rows, gain, shift, 0.1), (5, 7), "the norm of five positions")
    gap = (normed - ((rows - mean) / std * gain + shift)).abs().max().item()
    assert gap < 1e-3, f"with 5 positions of 7 features it is off by {gap:.2g}: is a size built in?"


@diagnostic("Exercise 9.2")
def check_residual(attempt: Callable[..., Tensor]) -> None:
    """Functions so different that the number that comes out tells in which order they were called."""

    def run(norm_first: bool) -> float:
        x = torch.tensor([[1.0]])
        out = attempt(x, lambda x: x + 1, lambda x: 100 * x, lambda x: 10 * x, norm_first)
        assert x.item() == 1, (
            f"x itself was changed in place, to {x.item():g}: `x +=` does that. Make a new tensor"
        )
        return expect_tensor(out, (1, 1), "the output").item()

    # sublayer(x) = x + 1, norm(x) = 100 x, dropout(x) = 10 x, x = 1
    post_slips = {
        2000: "x is not added: 1 is missing from the sum",
        300: "dropout is not applied",
        3000: "dropout acts on the sum; it belongs on the sub-layer's output, before x is added",
        120: "only x is normalized; post-norm normalizes the sum",
        2001: "only the sub-layer's output is normalized; post-norm normalizes the sum",
        21: "nothing is normalized",
        1011: "that is pre-norm; norm_first=False asks for post-norm",
    }
    post = run(False)
    assert post == 2100, (
        f"post-norm: 100 (1 + 10 (1 + 1)) is 2100, not {post:g}: {post_slips.get(int(post), 'look at the order')}"
    )
    pre_slips = {
        1010: "x is not added",
        102: "dropout is not applied",
        1110: "the sum starts from the normalized x; the stream should pass by the norm",
        2001: "the sub-layer's output is normalized; pre-norm normalizes its input",
        21: "nothing is normalized",
        1020: "dropout acts on the sum; it belongs on the sub-layer's output, before x is added",
        2100: "that is post-norm; norm_first=True asks for pre-norm",
    }
    pre = run(True)
    assert pre == 1011, (
        f"pre-norm: 1 + 10 (100 + 1) is 1011, not {pre:g}: {pre_slips.get(int(pre), 'look at the order')}"
    )


@diagnostic("Exercise 9.3")
def check_stream_growth(attempt: Callable[..., tuple[float, float]]) -> None:
    """Numbers that come out round; then against a stream made of random numbers."""
    still = attempt(2.0, 0.0, 5)
    assert len(still) == 2, (
        f"two numbers are asked for: the final size and the last addition's share; got {len(still)}"
    )
    assert abs(still[0] - 2) < 1e-6, (
        f"additions of size 0 change nothing: the stream stays at 2, not {still[0]:g}"
    )
    size, share = attempt(3.0, 4.0, 1)
    assert abs(size - 7) > 1e-6, "3 and 4 gave 7: standard deviations do not add, variances do"
    assert abs(size - 25) > 1e-6, "3 and 4 gave 25: that is the variance; its root is asked for"
    assert abs(size - 5) < 1e-6, f"3 and 4 give sqrt(9 + 16) = 5, not {size:g}"
    assert abs(share - 0.8) > 1e-6, (
        "4/5 compares the addition with the stream after it; asked is the stream before, 3"
    )
    assert abs(share - 4 / 3) < 1e-6, (
        f"one addition of size 4 to a stream of size 3 is 4/3 of it, not {share:g}"
    )
    size, share = attempt(3.0, 4.0, 2)
    assert abs(share - 4 / 3) > 1e-6, (
        "that compares the last addition with the start; before the second of two the stream is 5"
    )
    assert abs(share - 0.8) < 1e-6, (
        f"3, then 4, is 5; a second addition of 4 is 4/5 of that, not {share:g}"
    )
    generator = torch.Generator().manual_seed(9)
    stream = torch.randn(100_000, generator=generator)
    before = stream
    for _ in range(24):
        before, stream = stream, stream + torch.randn(100_000, generator=generator)
    size, share = attempt(1.0, 1.0, 24)
    real, real_share = stream.std().item(), 1 / before.std().item()
    assert abs(size - real) < 0.1, (
        f"right for one addition; for 24 of size 1 a real stream has {real:.2f}, not {size:.2f}"
    )
    assert abs(share - real_share) < 0.01, (
        f"the 24th addition is {real_share:.2f} of the stream before it, not {share:.2f}"
    )


@diagnostic("Exercise 9.4")
def check_layer_norm_gradient(attempt: Callable[..., Tensor]) -> None:
    """Two directions in which nothing can flow, because the norm removes them; then the size; then autograd."""
    names = (
        *("torch.autograd.grad", "torch.autograd.backward", "torch.Tensor.backward"),
        *("torch.func.grad", "torch.func.vjp", "torch.autograd.functional.vjp"),
    )
    generator = torch.Generator().manual_seed(9)
    x, upstream = (
        torch.randn(2, 3, 6, generator=generator),
        torch.randn(2, 3, 6, generator=generator),
    )

    def by_hand(*given: Any) -> Any:
        with _without("autograd", *names):
            return on_copies(attempt, *given)

    flat = expect_tensor(
        by_hand(x, torch.ones(2, 3, 6), 1e-5), (2, 3, 6), "the gradient of a (2, 3, 6) batch"
    )
    message = "a constant upstream should give 0, since adding a constant to x changes nothing: see the mean"
    assert flat.abs().max() < 1e-4, message
    through_std = (
        (by_hand(x, upstream, 1e-8) * (x - x.mean(dim=-1, keepdim=True)))
        .sum(dim=-1)
        .abs()
        .max()
        .item()
    )
    message = (
        "scaling x changes nothing, so the gradient should be at right angles to x - mean: see s"
    )
    assert through_std < 1e-3, message
    leaf = x.clone().requires_grad_()
    for eps in (1e-5, 0.1):
        (expected,) = torch.autograd.grad(F.layer_norm(leaf, (6,), eps=eps), leaf, upstream)
        got = by_hand(x, upstream, eps)
        ratio = (got / expected).median().item()
        gap = (got - expected).abs().max().item()
        message = f"with eps {eps} off by {gap:.2g}, and {ratio:.2f} times as large as it should be"
        assert gap < 1e-4, message
    wide, flow = torch.randn(2, 4, 9, generator=generator)  # (positions, d_model) each
    leaf = (5 * wide).requires_grad_()
    (expected,) = torch.autograd.grad(F.layer_norm(leaf, (9,), eps=0.1), leaf, flow)
    got = expect_tensor(by_hand(5 * wide, flow, 0.1), (4, 9), "the gradient of four positions")
    gap = (got - expected).abs().max().item()
    assert gap < 1e-4, f"with 4 positions of 9 features off by {gap:.2g}: is a size built in?"
