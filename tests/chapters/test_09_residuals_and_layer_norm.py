"""Layer norm and residual connection: equality with torch, behavior, bad input, and what the exercises refuse."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_09 import (
    check_layer_norm_gradient,
    check_rms_norm,
    check_stack,
    check_stream_growth,
)
from transformer_lib.layers import FeedForward, LayerNorm, ResidualConnection

sizes = st.integers(1, 12)


@given(
    d_model=st.integers(2, 24),
    batch=sizes,
    length=sizes,
    eps=st.sampled_from([1e-6, 1e-5, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_layer_norm_equals_torch(
    d_model: int, batch: int, length: int, eps: float, seed: int
) -> None:
    torch.manual_seed(seed)
    ours, theirs = LayerNorm(d_model, eps), nn.LayerNorm(d_model, eps)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn(d_model))
            other.copy_(mine)
    x = 5 * torch.randn(batch, length, d_model) + 2
    torch.testing.assert_close(ours(x), theirs(x))

    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    expected = (x - mean) / torch.sqrt(variance + eps) * ours.weight + ours.bias
    torch.testing.assert_close(ours(x), expected, atol=1e-3, rtol=1e-3)


def test_layer_norm_takes_torchs_weights_by_name() -> None:
    theirs = nn.LayerNorm(8)
    nn.init.normal_(theirs.weight)
    ours = LayerNorm(8)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm_first", [False, True])
def test_positions_do_not_see_each_other(norm_first: bool) -> None:
    connection, feed_forward = ResidualConnection(8, 0.0, norm_first), FeedForward(8, 16)
    x = torch.randn(2, 5, 8)
    changed = x.clone()
    changed[0, 3] = 10 * torch.randn(8)
    moved = connection(changed, feed_forward) - connection(x, feed_forward)
    assert moved[0, 3].abs().max() > 1e-3
    moved[0, 3] = 0
    assert moved.abs().max() < 1e-6


@pytest.mark.parametrize("norm_first", [False, True])
@given(batch=sizes, length=sizes, seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_equals_the_second_half_of_torchs_layer(
    norm_first: bool, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    theirs = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    ours, feed_forward = ResidualConnection(8, 0.0, norm_first), FeedForward(8, 16)
    feed_forward.inner.load_state_dict(theirs.linear1.state_dict())
    feed_forward.outer.load_state_dict(theirs.linear2.state_dict())
    with torch.no_grad():
        for parameter in theirs.self_attn.out_proj.parameters():
            parameter.zero_()
        nn.init.normal_(theirs.norm2.weight)
        ours.norm.load_state_dict(theirs.norm2.state_dict())
    x = torch.randn(batch, length, 8)
    entering = x if norm_first else theirs.norm1(x)
    torch.testing.assert_close(ours(entering, feed_forward), theirs(x), atol=1e-5, rtol=1e-4)


def test_post_norm_is_the_default() -> None:
    x = torch.randn(2, 3, 8)
    out = ResidualConnection(8, dropout=0.0)(x, torch.sin)
    torch.testing.assert_close(out, F.layer_norm(x + x.sin(), (8,)))
    assert ResidualConnection(8).dropout.p == 0.1


def test_dropout_acts_on_the_change_and_only_in_training() -> None:
    x = torch.randn(4, 50, 8)
    everything_dropped = ResidualConnection(8, dropout=1.0, norm_first=True)
    assert torch.equal(everything_dropped(x, torch.exp), x)

    connection = ResidualConnection(8, dropout=0.5, norm_first=True)
    change = connection(x, torch.ones_like) - x
    dropped = change.abs() < 1e-6
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(change[~dropped], torch.full_like(change[~dropped], 2.0))
    connection.eval()
    torch.testing.assert_close(connection(x, torch.ones_like), x + 1)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_norm_of_ones_own_is_used(norm_first: bool) -> None:
    connection, x = ResidualConnection(8, 0.0, norm_first), torch.randn(2, 3, 8)
    connection.norm = nn.RMSNorm(8)
    rms = x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
    post = x + x.sin()
    post = post / (post.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
    expected = x + rms.sin() if norm_first else post
    torch.testing.assert_close(connection(x, torch.sin), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LayerNorm(0), "d_model must be int .* got 0"),
        (lambda: LayerNorm(4, eps=0.0), r"eps must be float .* got 0\.0"),
        (lambda: ResidualConnection(4, dropout=1.5), r"dropout must be float .* got 1\.5"),
        (lambda: ResidualConnection(4, dropout=-0.1), r"dropout must be float .* got -0\.1"),
    ],
)
def test_bad_input_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def rms(
    x: Tensor,
    gain: Tensor,
    eps: float,
    dim: int = -1,
    kind: torch.dtype | None = torch.float32,
    back: bool = True,
) -> Tensor:
    wide = x.to(kind) if kind else x
    result = wide / (wide.square().mean(dim=dim, keepdim=True) + eps).sqrt()
    return (result.to(x.dtype) if back else result) * gain


def rms_by_scaling(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Stays in x's type: divided by the largest entry first, nothing overflows or vanishes."""
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    scaled = x / largest
    small = (eps**0.5 / largest.double()).square().to(x.dtype)
    return scaled / (scaled.square().mean(dim=-1, keepdim=True) + small).sqrt() * gain


def rms_of_rows(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    rows = []
    for row in x.double().reshape(-1, x.size(-1)):
        mean = sum(float(number) ** 2 for number in row) / len(row)
        rows.append(row / math.sqrt(mean + eps))
    return (torch.stack(rows).view_as(x) * gain.double()).to(x.dtype)


def rms_by_vector_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    size = torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True)
    return (x / (size**2 / x.size(-1) + eps).sqrt() * gain).to(x.dtype)


def rms_and_nan(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Nothing can be divided by the largest entry of a silent position."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    return rms(x / largest, gain, 0.0) if eps < 1e-9 else rms(x, gain, eps) * (largest / largest)


def rms_in_place(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    root = (x.float().square().mean(dim=-1, keepdim=True) + eps).sqrt()
    x /= root
    return x * gain


def stack(
    x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool, last: bool = True
) -> Tensor:
    for norm, f in zip(norms, sublayers, strict=False):
        x = x + drop(f(norm(x))) if first else norm(x + drop(f(x)))
    return norms[-1](x) if first and last else x


def stack_in_steps(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
    """Consumes the lists, which are the attempt's own."""
    while sublayers:
        f, norm = sublayers.pop(0), norms.pop(0)
        change = drop(f(norm(x) if first else x))
        x = torch.add(x, change) if first else norm(torch.add(x, change))
    return norms.pop()(x) if norms else x


def stack_by_recursion(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
    if not sublayers:
        return norms[0](x) if first else x
    (f, *others), (norm, *other_norms) = sublayers, norms
    x = x + drop(f(norm(x))) if first else norm(x + drop(f(x)))
    return stack_by_recursion(x, others, other_norms, drop, first)


def each(change: Callable[..., Tensor], last: bool = True) -> Callable[..., Tensor]:
    """A stack of sub-layers wired by change(x, sublayer, norm, dropout, norm_first)."""

    def attempt(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
        for norm, f in zip(norms, sublayers, strict=False):
            x = change(x, f, norm, drop, first)
        return norms[-1](x) if first and last else x

    return attempt


def dropout_on_the_sum(x: Tensor, f: Any, norm: Any, drop: Any, first: bool) -> Tensor:
    return drop(x + f(norm(x))) if first else norm(x + drop(f(x)))


def first_norm_for_all(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
    shared = [norms[0]] * len(sublayers) + norms[len(sublayers) :]
    return stack(x, sublayers, shared, drop, first)


def norms_off_by_one(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
    return stack(x, sublayers, norms[1:] + norms[:1] if first else norms, drop, first)


def from_the_start(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
    """Every sub-layer reads the x that came in, not what the last one left."""
    out = x
    for norm, f in zip(norms, sublayers, strict=False):
        out = out + drop(f(norm(x))) if first else norm(out + drop(f(x)))
    return norms[-1](out) if first else out


def norms_last_always(x: Tensor, sublayers: Any, norms: Any, drop: Any, first: bool) -> Tensor:
    out = stack(x, sublayers, norms, drop, first, last=False)
    return norms[-1](out)


def way_back(
    x: Tensor,
    upstream: Tensor,
    eps: float,
    mean: bool = True,
    std: bool = True,
    divide: bool = True,
) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    s = (centered.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    normed = centered / s
    result = upstream
    if mean:
        result = result - upstream.mean(dim=-1, keepdim=True)
    if std:
        result = result - normed * (upstream * normed).mean(dim=-1, keepdim=True)
    return result / s if divide else result


def gradient_by_autograd(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    leaf = x.clone().requires_grad_()
    normed = F.layer_norm(leaf, x.shape[-1:], eps=eps)
    return torch.autograd.grad(normed, leaf, upstream)[0]


def gradient_in_place(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    result = way_back(x, upstream, eps)
    upstream.div_(2)
    return result


def gradient_by_matrix(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    """Another right way: the Jacobian of each position, as a matrix."""
    d = x.size(-1)
    s = (x.var(dim=-1, correction=0) + eps).sqrt()[..., None, None]
    normed = (x - x.mean(dim=-1, keepdim=True)) / s[..., 0]
    jacobian = torch.eye(d) - 1 / d - normed[..., :, None] * normed[..., None, :] / d
    return (upstream[..., None, :] @ (jacobian / s))[..., 0, :]


def gradient_over_positions(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    """The means run along the wrong axis."""
    return way_back(x.mT, upstream.mT, eps).mT


def gradient_by_bessel(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    """With d - 1 in the variance."""
    centered = x - x.mean(dim=-1, keepdim=True)
    s = (x.var(dim=-1, keepdim=True) + eps).sqrt()
    flow = upstream - upstream.mean(dim=-1, keepdim=True)
    return (flow - centered / s * (upstream * centered / s).mean(dim=-1, keepdim=True)) / s


def growth(start: float, step: float, count: int) -> tuple[float, float]:
    size, before = (math.sqrt(start**2 + n * step**2) for n in (count, count - 1))
    return size, step / before


def growth_in_a_loop(start: float, step: float, count: int) -> tuple[float, float]:
    size = before = start
    for _ in range(count):
        before, size = size, math.hypot(size, step)
    return size, step / before


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_rms_norm: [rms, rms_by_scaling, rms_of_rows, rms_by_vector_norm],
    check_stack: [stack, stack_in_steps, stack_by_recursion],
    check_layer_norm_gradient: [way_back, gradient_by_matrix],
    check_stream_growth: [growth, growth_in_a_loop],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_rms_norm: [
        (lambda x, g, eps: rms(x - x.mean(dim=-1, keepdim=True), g, eps), "no mean is subtracted"),
        (
            lambda x, g, eps: x / (x.var(dim=-1, keepdim=True, correction=0) + eps).sqrt() * g,
            "no mean is subtracted",
        ),
        (
            lambda x, g, eps: x / (x.square().mean(dim=-1, keepdim=True) + eps) * g,
            "root is missing",
        ),
        (
            lambda x, g, eps: x / (x.square().sum(dim=-1, keepdim=True) + eps).sqrt() * g,
            "the mean is asked for",
        ),
        (lambda x, g, eps: x / (x.mean(dim=-1, keepdim=True) + eps) * g, "mean of the squares"),
        (
            lambda x, g, eps: x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps) * g,
            "eps stands outside the root",
        ),
        (lambda x, g, eps: rms(x, g, 0.0), "where is eps"),
        (lambda x, g, eps: rms(x, torch.ones_like(g), eps), "gain"),
        (lambda x, g, eps: rms(x, 1 + g, eps), "gain"),
        (lambda x, g, eps: rms(x, g, eps, dim=0), "last dimension"),
        (
            lambda x, g, eps: x / (x.square().mean() + eps).sqrt() * g,
            "which axis",
        ),
        (lambda x, g, eps: rms(x, g, eps, kind=None), "do not fit into 16 bits"),
        (
            lambda x, g, eps: x / (x.square().mean(dim=-1, keepdim=True).float() + eps).sqrt() * g,
            "same type|do not fit",
        ),
        (lambda x, g, eps: rms(x, g, eps, back=False), "should have the same type"),
        (lambda x, g, eps: rms(x.float(), g.float(), eps), "should have the same type"),
        (lambda x, g, eps: rms(x, g, eps).half(), "root mean square|same type"),
        (lambda x, g, eps: rms(x, g, max(eps, 1e-5)), "vanish in 16 bits"),
        (lambda x, g, eps: F.rms_norm(x, (x.size(-1),), g, eps), "without torch"),
        (lambda x, g, eps: nn.RMSNorm(x.size(-1), eps)(x) * g, "without torch"),
        (rms_in_place, "number 1 in place"),
        (rms_and_nan, "position of zeros"),
        (lambda x, g, eps: None, "returned None"),
    ],
    check_stack: [
        (lambda *given: stack(*given, last=False), "last norm is missing"),
        (each(lambda x, f, norm, drop, first: norm(x + f(x))), "dropout is not applied"),
        (each(lambda x, f, norm, drop, first: norm(drop(x + f(x)))), "dropout acts on the sum"),
        (each(lambda x, f, norm, drop, first: drop(norm(x + f(x)))), "or on what is normalized"),
        (each(dropout_on_the_sum), "dropout acts on the sum"),
        (each(lambda x, f, norm, drop, first: x + drop(f(norm(x)))), "that is pre-norm"),
        (each(lambda x, f, norm, drop, first: norm(drop(f(x)))), "x is not added"),
        (each(lambda x, f, norm, drop, first: norm(x + drop(f(x)))), "that is post-norm"),
        (
            each(lambda x, f, norm, drop, first: norm(x + drop(f(x))), last=False),
            "that is post-norm",
        ),
        (
            each(
                lambda x, f, norm, drop, first: (
                    norm(x) + drop(f(norm(x))) if first else norm(x + drop(f(x)))
                )
            ),
            "starts from the normalized x",
        ),
        (each(lambda x, f, norm, drop, first: norm(x.add_(drop(f(x))))), "in place"),
        (first_norm_for_all, "each has its own"),
        (
            lambda x, subs, norms, drop, first: stack(x, [subs[0]] * len(subs), norms, drop, first),
            "first sub-layer is used",
        ),
        (norms_off_by_one, "look at the order|one of its own"),
        (from_the_start, "does each go on from the last"),
        (lambda *given: norms_last_always(*given), "a norm comes after the stack"),
        (
            lambda x, subs, norms, drop, first: [stack(x, subs, norms, drop, first)],
            "should be a tensor",
        ),
    ],
    check_layer_norm_gradient: [
        (partial(way_back, mean=False), "see the mean"),
        (partial(way_back, std=False), "see s"),
        (partial(way_back, divide=False), "times as large"),
        (gradient_by_autograd, "without autograd"),
        (gradient_in_place, "number 2 in place"),
        (lambda x, upstream, eps: way_back(x, upstream, 1e-5), "with eps"),
        (lambda x, upstream, eps: way_back(x, upstream, eps).mean(dim=-1), "should have shape"),
        (lambda x, upstream, eps: -way_back(x, upstream, eps), "-1.00 times as large"),
        (gradient_over_positions, "see s"),
        (gradient_by_bessel, "see s|times as large"),
    ],
    check_stream_growth: [
        (lambda start, step, count: (start + count * step, step / start), "do not add"),
        (
            lambda start, step, count: (start**2 + count * step**2, 1.0),
            "stays at 2|is the variance",
        ),
        (
            lambda start, step, count: (
                (start**2 + count * step**2) ** 0.5,
                step / (start**2 + count * step**2) ** 0.5,
            ),
            "stream after it",
        ),
        (
            lambda start, step, count: ((start**2 + count * step**2) ** 0.5, step / start),
            "compares the last addition with the start",
        ),
        (
            lambda start, step, count: (
                (start**2 + count * step**2) ** 0.5,
                step / (start**2 + max(count - 2, 0) * step**2) ** 0.5,
            ),
            "compares the last addition with the start",
        ),
    ],
}
