"""The checks of chapter 9's exercises."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


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
def check_rms_norm(attempt: Callable[..., Tensor]) -> None:
    """Known numbers, the place of eps, gain, batch; then the same in 16 bits, large and small."""
    names = (
        *("torch.nn.functional.rms_norm", "torch.rms_norm", "torch._fused_rms_norm"),
        *("torch.nn.functional.layer_norm", "torch.layer_norm"),
    )
    with _without("torch's own norms", *names):
        _check_rms_norm(attempt)


def _check_rms_norm(attempt: Callable[..., Tensor]) -> None:
    one = torch.ones(2)
    pair = expect_tensor(
        attempt(torch.tensor([[1.0, 7.0]]), one, 0.0), (1, 2), "the norm of one position"
    ).flatten()
    assert abs(pair[0].item() - 1) > 1e-3, (
        "(1, 7) with eps 0 came out with 1 on the left, so 1 was divided by itself: does the mean run over the features, the last dimension?"
    )
    assert abs(pair[1].item() - 2.8) > 1e-3, (
        "(1, 7) with eps 0 and gain 1 came out twice as large as it should: multiply by the gain itself, not by 1 + gain"
    )
    slips = {
        1: "7 came out as 1, as layer norm has it: no mean is subtracted here",
        7 / 25: "7 came out divided by the mean square; its root is missing",
        7 / 50**0.5: "7 came out divided by the root of the sum of squares; the mean is asked for",
        7 / 50: "7 came out divided by the sum of squares; the root of their mean is asked for",
        7 / 4: "7 came out divided by the mean; the mean of the squares is asked for, under a root",
        7 / 3: "7 came out divided by the standard deviation; no mean is subtracted here",
        7 / 18**0.5: "7 came out divided by a standard deviation; no mean is subtracted here",
    }
    for number, message in slips.items():
        assert abs(pair[1].item() - number) > 1e-3, f"(1, 7) with eps 0: {message}"
    assert (pair - torch.tensor([0.2, 1.4])).abs().max() < 1e-3, (
        f"(1, 7) with eps 0 has the root mean square 5, so (0.2, 1.4) should come out, not {pair.tolist()}"
    )
    wide = attempt(torch.tensor([[-1.0, 1.0]]), one, 3.0)[0, 1].item()
    assert abs(wide - 1 / (1 + 3)) > 1e-3, (
        "(-1, 1) with eps 3 came out as 1/4: eps stands outside the root, it belongs inside"
    )
    assert abs(wide - 0.5) < 1e-3, (
        f"(-1, 1) with eps 3 should have 1 / sqrt(1 + 3) = 0.5 on the right, not {wide:.3g}: where is eps?"
    )
    learned = attempt(torch.tensor([[1.0, 7.0]]), torch.tensor([2.0, 3.0]), 0.0).flatten()
    assert (learned - torch.tensor([0.4, 4.2])).abs().max() < 1e-3, (
        f"gain (2, 3) should turn (0.2, 1.4) into (0.4, 4.2), not {[round(y, 3) for y in learned.tolist()]}"
    )
    generator = torch.Generator().manual_seed(9)
    for shape in ((2, 3, 4), (5, 7)):
        scales = torch.arange(1.0, shape[-2] + 1)[:, None]  # of the positions
        x = scales * torch.randn(shape, generator=generator)
        gain = torch.rand(shape[-1], generator=generator) + 0.5
        normed = expect_tensor(attempt(x, gain, 0.1), shape, f"the norm of a {shape} batch")
        gap = (normed - _rms(x, 0.1) * gain).abs().max().item()
        assert gap < 1e-3, (
            f"right for one position; for a batch of shape {shape} off by {gap:.2g}: which axis, which size?"
        )
    _check_in_half(attempt, torch.randn(2, 6, generator=generator))


def _rms(x: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + eps)


def _check_in_half(attempt: Callable[..., Tensor], x: Tensor) -> None:
    gain = torch.tensor([1.0, 0.5, 2.0, 1.0, -1.0, 0.25])  # (d_model,)
    for kind, margin in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        for size, what in (
            (1.0, "of size 1"),
            (1000.0, "of size 1,000 (their squares do not fit into 16 bits)"),
            (1e-4, "of size 0.0001 (their squares vanish in 16 bits)"),
        ):
            halves = (size * x).to(kind)
            normed = attempt(halves, gain.to(kind), 1e-12)
            expect_tensor(normed, x.shape, f"the norm of {kind} numbers")
            assert normed.dtype == kind, (
                f"x and gain are {kind}; the result should have the same type, not {normed.dtype}"
            )
            gap = (normed.double() - _rms(halves, 1e-12) * gain).abs().max().item()
            assert gap < margin, f"for {kind} numbers {what} off by {gap:.2g}"
    silent = attempt(torch.zeros(2, 5), torch.ones(5), 1e-6)
    assert (silent == 0).all(), (
        f"a position of zeros stays zeros, as eps under the root makes sure: yours gives {silent[0].tolist()}"
    )
    exact = attempt(x.double(), gain.double(), 1e-12)
    assert exact.dtype == torch.float64, (
        f"x and gain are torch.float64; the result should have the same type, not {exact.dtype}"
    )


@diagnostic("Exercise 9.2", in_place=True)
def check_stack(attempt: Callable[..., Tensor]) -> None:
    """Functions so different that the number that comes out tells in which order they were called."""
    _check_one_sublayer(attempt)
    for count in (2, 3):
        for norm_first in (False, True):
            wiring = "pre-norm" if norm_first else "post-norm"
            got = _run_stack(attempt, norm_first, count)
            expected = _run_stack(_stack, norm_first, count)
            shared = _run_stack(_stack, norm_first, count, one_norm=True)
            alike = _run_stack(_stack, norm_first, count, one_sublayer=True)
            assert got != shared, (
                f"{wiring}, {count} sub-layers: the first norm is used everywhere; each has its own"
            )
            assert got != alike, (
                f"{wiring}, {count} sub-layers: the first sub-layer is used {count} times"
            )
            bare = _run_stack(_stack, norm_first, count, last=False)
            assert not norm_first or got != bare, (
                f"pre-norm, {count} sub-layers: the last norm is missing, the end of the stream is not normalized"
            )
            assert got == expected, (
                f"right for one sub-layer; {wiring} with {count} gives {got:g}, not {expected:g}: which norm belongs to which, and does each go on from the last?"
            )


def _stack(x: Any, sublayers: Any, norms: Any, dropout: Any, norm_first: bool) -> Any:
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = x + dropout(sublayer(norm(x))) if norm_first else norm(x + dropout(sublayer(x)))
    return norms[len(sublayers)](x) if norm_first and len(norms) > len(sublayers) else x


def _run_stack(
    attempt: Callable[..., Tensor],
    norm_first: bool,
    count: int,
    one_norm: bool = False,
    one_sublayer: bool = False,
    last: bool = True,
) -> float:
    """sublayer i adds i + 1, norm i multiplies by 100 + i, dropout by 10; x is 1."""
    of_norms = range(count + (norm_first and last))
    norms = [lambda x, i=0 if one_norm else i: (100 + i) * x for i in of_norms]
    sublayers = [lambda x, i=0 if one_sublayer else i: x + 1 + i for i in range(count)]
    x = torch.ones(1, 1, dtype=torch.float64)
    out = attempt(x, list(sublayers), list(norms), lambda x: 10 * x, norm_first)
    assert x.item() == 1, (
        f"x itself was changed in place, to {x.item():g}: `x +=` does that. Make a new tensor"
    )
    return expect_tensor(out, (1, 1), "the output").item()


def _check_one_sublayer(attempt: Callable[..., Tensor]) -> None:
    # sublayer(x) = x + 1, norms (x) = 100 x and 101 x, dropout(x) = 10 x, x = 1
    post_slips = {
        2000: "x is not added: 1 is missing from the sum",
        300: "dropout is not applied",
        3000: "dropout acts on the sum, or on what is normalized; it belongs on the sub-layer's output, before x is added",
        120: "only x is normalized; post-norm normalizes the sum",
        2001: "only the sub-layer's output is normalized; post-norm normalizes the sum",
        21: "nothing is normalized",
        1011: "that is pre-norm; norm_first=False asks for post-norm",
        102111: "that is pre-norm; norm_first=False asks for post-norm",
        210000: "a norm comes after the stack; in post-norm the last sub-layer's norm is the last",
    }
    post = _run_stack(attempt, False, 1)
    assert post == 2100, (
        f"post-norm: 100 (1 + 10 (1 + 1)) is 2100, not {post:g}: {post_slips.get(int(post), 'look at the order')}"
    )
    pre_slips = {
        1011: "the last norm is missing, the end of the stream is not normalized",
        101100: "the last norm is the first one again; it has one of its own",
        1010 * 101: "x is not added",
        102 * 101: "dropout is not applied",
        1110 * 101: "the sum starts from the normalized x; the stream should pass by the norm",
        1110: "the sum starts from the normalized x, and the last norm is missing",
        2001 * 101: "the sub-layer's output is normalized; pre-norm normalizes its input",
        2001: "the sub-layer's output is normalized; pre-norm normalizes its input",
        21: "nothing is normalized",
        1020
        * 101: "dropout acts on the sum, or on what is normalized; it belongs on the sub-layer's output, before x is added",
        1011
        * 1010: "dropout acts on the sum, or on what is normalized; it belongs on the sub-layer's output, before x is added",
        102: "dropout is not applied, and the last norm is missing",
        1010: "x is not added",
        2100: "that is post-norm; norm_first=True asks for pre-norm",
        2121: "that is post-norm; norm_first=True asks for pre-norm",
        212100: "that is post-norm with one more norm; norm_first=True asks for pre-norm",
    }
    pre = _run_stack(attempt, True, 1)
    assert pre == 102111, (
        f"pre-norm: 101 (1 + 10 (100 + 1)) is 102111, not {pre:g}: {pre_slips.get(int(pre), 'look at the order')}"
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
            return attempt(*given)

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


def check_residual(attempt: Callable[..., Tensor]) -> None:
    """Whether attempt(x, sublayer, norm, dropout, norm_first) wires one sub-layer as a stack needs it."""

    def stack(x: Tensor, sublayers: Any, norms: Any, dropout: Any, norm_first: bool) -> Tensor:
        for sublayer, norm in zip(sublayers, norms, strict=False):
            x = attempt(x, sublayer, norm, dropout, norm_first)
        return norms[-1](x) if norm_first else x

    check_stack(stack)
