"""Layer norm and residual connection: equality with torch, behavior, bad input, and what the exercises refuse."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_09 import (
    check_layer_norm,
    check_layer_norm_gradient,
    check_residual,
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


def normalize(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    correction: int = 0,
    dim: int = -1,
    outside: bool = False,
) -> Tensor:
    centered = x - x.mean(dim=dim, keepdim=True)
    variance = x.var(dim=dim, keepdim=True, correction=correction if x.size(dim) > 1 else 0)
    std = variance.sqrt() + eps if outside else (variance + eps).sqrt()
    return centered / std * gain + shift


def test_exercise_1_refuses() -> None:
    check_layer_norm(normalize)
    with pytest.raises(AssertionError, match="divides by d_model - 1"):
        check_layer_norm(lambda *args: normalize(*args, correction=1))
    with pytest.raises(AssertionError, match="eps stands outside the root"):
        check_layer_norm(lambda *args: normalize(*args, outside=True))
    with pytest.raises(AssertionError, match="the features, the last dimension"):
        check_layer_norm(lambda *args: normalize(*args, dim=0))
    with pytest.raises(AssertionError, match=r"gain \(2, 3\) and shift"):
        check_layer_norm(lambda x, gain, shift, eps: normalize(x, gain, 0 * shift, eps))
    with pytest.raises(AssertionError, match="which axis"):
        check_layer_norm(
            lambda x, gain, shift, eps: (
                normalize(x.flatten(1), torch.ones(()), torch.zeros(()), eps).view_as(x) * gain
                + shift
            )
        )


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda x, f, norm, drop, first: norm(x + f(x)), "dropout is not applied"),
        (lambda x, f, norm, drop, first: norm(drop(x + f(x))), "dropout acts on the sum"),
        (lambda x, f, norm, drop, first: x + drop(f(norm(x))), "that is pre-norm"),
        (lambda x, f, norm, drop, first: norm(drop(f(x))), "x is not added"),
        (lambda x, f, norm, drop, first: norm(x + drop(f(x))), "that is post-norm"),
        (
            lambda x, f, norm, drop, first: (
                norm(x) + drop(f(norm(x))) if first else norm(x + drop(f(x)))
            ),
            "starts from the normalized x",
        ),
        (lambda x, f, norm, drop, first: norm(x.add_(drop(f(x)))), "in place"),
    ],
)
def test_exercise_2_refuses(attempt: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_residual(attempt)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
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
)
def test_exercise_3_refuses(attempt: Callable[..., tuple[float, float]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_stream_growth(attempt)


def way_back(
    x: Tensor, upstream: Tensor, eps: float, mean: bool, std: bool, divide: bool
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


def test_exercise_4_refuses() -> None:
    check_layer_norm_gradient(lambda *args: way_back(*args, mean=True, std=True, divide=True))
    for left_out, message in {
        "mean": "see the mean",
        "std": "see s",
        "divide": "times as large",
    }.items():
        parts = {name: name != left_out for name in ("mean", "std", "divide")}
        with pytest.raises(AssertionError, match=message):
            check_layer_norm_gradient(lambda *args, parts=parts: way_back(*args, **parts))
    with pytest.raises(AssertionError, match="without autograd"):
        check_layer_norm_gradient(gradient_by_autograd)
    with pytest.raises(AssertionError, match="number 2 in place"):
        check_layer_norm_gradient(gradient_in_place)
    check_layer_norm_gradient(gradient_by_matrix)


def gradient_by_autograd(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    leaf = x.clone().requires_grad_()
    normed = normalize(leaf, torch.ones(x.size(-1)), torch.zeros(x.size(-1)), eps)
    return torch.autograd.grad(normed, leaf, upstream)[0]


def gradient_in_place(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    result = way_back(x, upstream, eps, mean=True, std=True, divide=True)
    upstream.div_(2)
    return result


def gradient_by_matrix(x: Tensor, upstream: Tensor, eps: float) -> Tensor:
    """Another right way: the Jacobian of each position, as a matrix."""
    d = x.size(-1)
    s = (x.var(dim=-1, correction=0) + eps).sqrt()[..., None, None]
    normed = (x - x.mean(dim=-1, keepdim=True)) / s[..., 0]
    jacobian = torch.eye(d) - 1 / d - normed[..., :, None] * normed[..., None, :] / d
    return (upstream[..., None, :] @ (jacobian / s))[..., 0, :]


def norm_in_place(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    x -= x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain + shift


def norm_by_var_mean(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return shift + gain * (x - mean) * (variance + eps) ** -0.5


def norm_of_rows(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    rows = [
        (row - row.mean()) / math.sqrt(float(row.square().mean() - row.mean() ** 2) + eps)
        for row in x.reshape(-1, x.size(-1))
    ]
    return torch.stack(rows).view_as(x) * gain + shift


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda x, gain, shift, eps: F.layer_norm(x, gain.shape, gain, shift, eps),
            "without torch",
        ),
        (
            lambda x, gain, shift, eps: nn.LayerNorm(x.size(-1), eps)(x) * gain + shift,
            "without torch",
        ),
        (norm_in_place, "number 1 in place"),
        (lambda x, gain, shift, eps: normalize(x, gain, shift, 0.0), "0.5 on the right"),
        (lambda x, gain, shift, eps: normalize(x, gain, 0 * shift, eps) + shift[0], "gain"),
        (lambda x, gain, shift, eps: None, "returned None"),
    ],
)
def test_exercise_1_refuses_more(attempt: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_layer_norm(attempt)


@pytest.mark.parametrize("attempt", [norm_by_var_mean, norm_of_rows])
def test_exercise_1_accepts_other_ways(attempt: Callable[..., Tensor]) -> None:
    check_layer_norm(attempt)


def residual_in_steps(
    x: Tensor, f: Callable[..., Tensor], norm: Any, drop: Any, first: bool
) -> Tensor:
    change = drop(f(norm(x) if first else x))
    return torch.add(x, change) if first else norm(torch.add(x, change))


def test_exercises_2_and_3_accept_other_ways() -> None:
    check_residual(residual_in_steps)
    check_residual(lambda x, f, norm, drop, p: x + drop(f(norm(x))) if p else norm(x + drop(f(x))))
    check_stream_growth(growth_in_a_loop)
    check_stream_growth(
        lambda start, step, count: (
            (start**2 + count * step**2) ** 0.5,
            step / (start**2 + (count - 1) * step**2) ** 0.5,
        )
    )


def growth_in_a_loop(start: float, step: float, count: int) -> tuple[float, float]:
    size = before = start
    for _ in range(count):
        before, size = size, math.hypot(size, step)
    return size, step / before
