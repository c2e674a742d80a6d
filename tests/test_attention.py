"""Masks and scaled dot-product attention: equal to torch's, finite everywhere, and strict about what comes in."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer_lib import causal_mask, padding_mask, scaled_dot_product_attention
from transformer_lib.book.checks.chapter_05 import (
    check_attention,
    check_causal_mask,
    check_leak_detector,
    check_window_mask,
)
from transformer_lib.book.plots import plot_attention

sizes = st.integers(1, 6)


def random(*shape: int) -> Tensor:
    """A tensor in double precision, so that equality is not a matter of tolerance."""
    return torch.randn(*shape, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    batch=sizes,
    heads=sizes,
    queries=sizes,
    keys=sizes,
    d_k=sizes,
    d_v=sizes,
    seed=st.integers(0, 1000),
)
def test_equals_torch_with_any_boolean_mask(
    batch: int, heads: int, queries: int, keys: int, d_k: int, d_v: int, seed: int
) -> None:
    torch.manual_seed(seed)
    query, key, value = (
        random(batch, heads, queries, d_k),
        random(batch, heads, keys, d_k),
        random(batch, heads, keys, d_v),
    )
    mask = torch.rand(batch, heads, queries, keys) > 0.5
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    output, nothing = scaled_dot_product_attention(query, key, value, mask)
    explained, weights = scaled_dot_product_attention(query, key, value, mask, need_weights=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(explained, expected)
    assert nothing is None
    assert weights is not None
    torch.testing.assert_close(
        weights.sum(dim=-1), torch.ones(batch, heads, queries, dtype=torch.float64)
    )
    assert (weights[~mask] == 0).all()


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 9), seed=st.integers(0, 1000), need_weights=st.booleans())
def test_causal_attention_never_sees_the_future(length: int, seed: int, need_weights: bool) -> None:
    torch.manual_seed(seed)
    x = random(2, length, 4)
    output, _ = scaled_dot_product_attention(x, x, x, is_causal=True, need_weights=need_weights)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(x, x, x, is_causal=True))
    position = seed % length
    changed = x.clone()
    changed[:, position] = 9.0
    moved, _ = scaled_dot_product_attention(
        changed, changed, changed, is_causal=True, need_weights=need_weights
    )
    assert torch.equal(moved[:, :position], output[:, :position])


def test_causal_and_padding_masks_combine() -> None:
    x = random(2, 1, 5, 4)
    keep = padding_mask(torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0]]), pad_id=0)
    combined = F.scaled_dot_product_attention(x, x, x, attn_mask=keep & causal_mask(5))
    output, _ = scaled_dot_product_attention(x, x, x, keep, is_causal=True)
    torch.testing.assert_close(output, combined)


def test_permuting_the_inputs_permutes_the_outputs() -> None:
    x, order = random(7, 4), torch.randperm(7)
    output, _ = scaled_dot_product_attention(x, x, x)
    shuffled, _ = scaled_dot_product_attention(x[order], x[order], x[order])
    torch.testing.assert_close(shuffled, output[order])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_row_with_nothing_to_attend_to_is_zero_forward_and_backward(
    need_weights: bool, is_causal: bool
) -> None:
    query, key, value = (random(2, 3, 4).requires_grad_() for _ in range(3))
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 1] = False  # one query of the first sentence
    mask[1] = False  # the whole second sentence
    output, weights = scaled_dot_product_attention(
        query, key, value, mask, is_causal=is_causal, need_weights=need_weights
    )
    output.square().sum().backward()
    assert (output[0, 1] == 0).all()
    assert (output[1] == 0).all()
    assert (output[0, 2] != 0).all()
    if weights is not None:
        assert (weights[1] == 0).all()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad[1] == 0).all()
    assert (query.grad[0, 1] == 0).all()  # type: ignore[index]


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    x = random(1, 400, 8)
    _, weights = scaled_dot_product_attention(x, x, x, dropout_p=0.25, need_weights=True)
    assert weights is not None
    assert abs((weights == 0).double().mean().item() - 0.25) < 0.01
    assert abs(weights.sum(dim=-1).mean().item() - 1) < 0.03


@pytest.mark.parametrize(
    ("shapes", "mask", "message"),
    [
        (((3,), (3,), (3,)), None, "at least 2 dimensions"),
        (((2, 4), (3, 5), (3, 5)), None, "equally wide, got 4 and 5"),
        (
            ((2, 2, 4), (3, 2, 4), (3, 2, 4)),
            None,
            "agree in all but the last two dimensions, got (2, 2, 4), (3, 2, 4)",
        ),
        (((2, 4), (3, 4), (5, 4)), None, "got 3 keys and 5 values"),
        (
            ((2, 4), (3, 4), (3, 4)),
            torch.ones(2, 3),
            "must be boolean, True where attention is allowed, got torch.float32",
        ),
        (
            ((2, 4), (3, 4), (3, 4)),
            torch.ones(3, 2, dtype=torch.bool),
            "(3, 2) does not broadcast",
        ),
        (
            ((2, 4), (3, 4), (3, 4)),
            torch.ones(1, 2, 3, dtype=torch.bool),
            "(1, 2, 3) does not broadcast",
        ),
        (
            ((2, 4), (3, 4), (3, 4)),
            torch.ones(2, 3, dtype=torch.bool, device="meta"),
            "on meta, the query on cpu",
        ),
    ],
)
def test_bad_input_is_named(
    shapes: tuple[tuple[int, ...], ...], mask: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        scaled_dot_product_attention(*(torch.randn(shape) for shape in shapes), mask)


def test_bad_dtypes_and_causal_lengths_are_named() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="one dtype, got torch.float32, torch.float64"):
        scaled_dot_product_attention(x, x.double(), x)
    with pytest.raises(ValueError, match="floating point, got torch.int64"):
        scaled_dot_product_attention(*[torch.ones(2, 4, dtype=torch.long)] * 3)
    with pytest.raises(ValueError, match="on one device, got cpu, meta and cpu"):
        scaled_dot_product_attention(x, x.to("meta"), x)
    with pytest.raises(ValueError, match="shape .3,. does not broadcast"):
        scaled_dot_product_attention(x, x, x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="as many queries as keys, got 2 and 3"):
        scaled_dot_product_attention(x, torch.randn(3, 4), torch.randn(3, 4), is_causal=True)


def test_padding_mask() -> None:
    mask = padding_mask(torch.tensor([[5, 6, 9], [5, 9, 9]]), pad_id=9)
    assert mask.shape == (2, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]
    for tokens, message in [
        (torch.tensor([1, 2]), "shape (2,)"),
        (torch.ones(1, 2), "torch.float32"),
        (torch.ones(1, 2, dtype=torch.bool), "torch.bool"),
        (torch.ones(0, 2, dtype=torch.long), "empty: tokens has shape (0, 2)"),
        (torch.ones(2, 0, dtype=torch.long), "empty: tokens has shape (2, 0)"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            padding_mask(tokens, pad_id=0)


def test_causal_mask() -> None:
    assert causal_mask(3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    with pytest.raises(ValueError, match="got length 0"):
        causal_mask(0)


def test_plot_attention_wants_a_label_for_each_row_and_column() -> None:
    ax = plot_attention(torch.eye(2), ["a", "b"], ["c", "d"], title="t")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(
        ValueError,
        match=re.escape("(2, 2) need as many labels, got 1 for the queries and 2"),
    ):
        plot_attention(torch.eye(2), ["a"], ["c", "d"])


# What readers are likely to hand in, and what the check must say of it.


def no_scale(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


def softmax_over_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / 2).masked_fill(~mask, float("-inf")).softmax(
        dim=-2
    ) @ value


def mask_upside_down(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / 2).masked_fill(mask, -1e9).softmax(dim=-1) @ value


def mask_after_softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / 2).softmax(dim=-1).masked_fill(~mask, 0.0) @ value


def no_batch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.transpose(0, 1) / 2).masked_fill(~mask, float("-inf")).softmax(
        dim=-1
    ) @ value


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (no_scale, "sqrt"),
        (softmax_over_queries, "softmax over the keys"),
        (mask_upside_down, "True means allowed"),
        (mask_after_softmax, "applied after the softmax"),
        (no_batch, "transpose the last two|raised|shape"),
        (lambda *inputs: None, "None"),
    ],
)
def test_check_attention_names_the_mistake(attempt: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_attention(attempt)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda n: torch.ones(n, n).tril(), "boolean"),
        (lambda n: torch.ones(n, n, dtype=torch.bool).triu(), "future|transposed"),
        (lambda n: torch.ones(n, n, dtype=torch.bool).tril(-1), "itself"),
        (lambda n: ~torch.ones(n, n, dtype=torch.bool).tril(), "itself"),
        (lambda n: torch.ones(n, n, dtype=torch.bool), "future"),
    ],
)
def test_check_causal_mask_names_the_mistake(attempt: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_causal_mask(attempt)


def test_check_window_mask_names_the_mistake() -> None:
    def one_sided(length: int, radius: int) -> Tensor:
        position = torch.arange(length)
        distance = position[:, None] - position
        return (distance >= 0) & (distance <= radius)

    def wraps_around(length: int, radius: int) -> Tensor:
        position = torch.arange(length)
        distance = (position[:, None] - position) % length
        return (distance <= radius) | (distance >= length - radius)

    with pytest.raises(AssertionError, match="both neighbors"):
        check_window_mask(one_sided)
    with pytest.raises(AssertionError, match="wraps around"):
        check_window_mask(wraps_around)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda attention: False, "you did not see it"),
        (lambda attention: True, "does not leak"),
    ],
)
def test_check_leak_detector_names_the_mistake(attempt: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_leak_detector(attempt)
