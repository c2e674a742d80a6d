"""Masks and scaled dot-product attention: equal to torch's, finite everywhere, zeros where nothing is allowed."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer_lib.attention import (
    attention_weights,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
)
from transformer_lib.book.checks.chapter_05 import (
    check_attention,
    check_causal_mask,
    check_leak_detector,
    check_window_mask,
)
from transformer_lib.book.plots import plot_attention

sizes = st.integers(1, 6)
WAYS = ("output", "weights")


def attend(
    way: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """The output, by torch's function or by the weights."""
    if way == "weights":
        return attention_weights(query, key, attn_mask, is_causal) @ value
    return scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal)


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
    weights = attention_weights(query, key, mask)
    torch.testing.assert_close(scaled_dot_product_attention(query, key, value, mask), expected)
    torch.testing.assert_close(weights @ value, expected)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    assert (weights[~mask] == 0).all()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 9), seed=st.integers(0, 1000))
def test_causal_attention_never_sees_the_future(way: str, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = random(2, length, 4)
    output = attend(way, x, x, x, None, True)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(x, x, x, is_causal=True))
    position = seed % length
    changed = x.clone()
    changed[:, position] = 9.0
    moved = attend(way, changed, changed, changed, None, True)
    assert torch.equal(moved[:, :position], output[:, :position])


@pytest.mark.parametrize("way", WAYS)
def test_causal_and_padding_masks_combine(way: str) -> None:
    x = random(2, 1, 5, 4)
    keep = padding_mask(torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0]]), pad_id=0)
    combined = F.scaled_dot_product_attention(x, x, x, attn_mask=keep & causal_mask(5))
    torch.testing.assert_close(attend(way, x, x, x, keep, True), combined)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_last_query_stands_beside_the_last_key(way: str, masked: bool) -> None:
    x = random(2, 6, 4)
    mask = torch.tensor([True, False, True, True, True, True]) if masked else None
    whole = attend(way, x, x, x, mask, True)
    for queries in (1, 2, 5, 6):  # the newest of 6 words
        torch.testing.assert_close(
            attend(way, x[:, -queries:], x, x, mask, True), whole[:, -queries:]
        )
    more = attend(way, x, x[:, :2], x[:, :2], None, True)  # four queries stand before the first key
    assert (more[:, :4] == 0).all()
    torch.testing.assert_close(more[:, 4], x[:, 0])


@pytest.mark.parametrize("way", WAYS)
def test_permuting_the_inputs_permutes_the_outputs(way: str) -> None:
    x, order = random(7, 4), torch.randperm(7)
    shuffled = attend(way, x[order], x[order], x[order])
    torch.testing.assert_close(shuffled, attend(way, x, x, x)[order])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_row_with_nothing_to_attend_to_is_zero_forward_and_backward(
    way: str, is_causal: bool
) -> None:
    query, key, value = (random(2, 3, 4).requires_grad_() for _ in range(3))
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 1] = False  # one query of the first sentence
    mask[1] = False  # the whole second sentence
    output = attend(way, query, key, value, mask, is_causal)
    output.square().sum().backward()
    assert (output[0, 1] == 0).all()
    assert (output[1] == 0).all()
    assert (output[0, 2] != 0).all()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad[1] == 0).all()
    assert (query.grad[0, 1] == 0).all()  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [5, 200], ids=["short", "long"])  # two ways in bfloat16
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("heads", [(), (2,)], ids=["plain kernel", "fused kernel"])
def test_lonely_rows_are_zero_in_every_dtype_and_by_every_kernel(
    dtype: torch.dtype, keys: int, dropout_p: float, heads: tuple[int, ...]
) -> None:
    query, key, value = (
        torch.randn(2, *heads, length, 8, dtype=dtype, requires_grad=True)
        for length in (4, keys, keys)
    )
    mask = torch.ones(2, *[1 for _ in heads], 4, keys, dtype=torch.bool)
    mask[0, ..., 2, :] = False
    mask[1] = False
    output = scaled_dot_product_attention(query, key, value, mask, dropout_p)
    weights = attention_weights(query, key, mask)
    (output.square().sum() + weights.square().sum()).backward()
    for found in (output, weights):
        assert found.isfinite().all()
        assert (found[0, ..., 2, :] == 0).all(), "one query"
        assert (found[1] == 0).all(), "a whole sentence"
        assert (found[0, ..., 1, :] != 0).any()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_reaches_the_weights_and_keeps_their_mean(dtype: torch.dtype) -> None:
    x = torch.randn(1, 100, 8, dtype=dtype)
    value = torch.eye(100, dtype=dtype)[None]  # the output is the weights
    output = torch.cat(
        [scaled_dot_product_attention(x, x, value, dropout_p=0.25) for _ in range(9)]
    )
    assert abs((output == 0).double().mean().item() - 0.25) < 0.01
    assert abs(output.double().sum(dim=-1).mean().item() - 1) < 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_half_precision_does_not_overflow(way: str, dtype: torch.dtype) -> None:
    query = torch.full((1, 1, 1, 64), 40.0, dtype=dtype)  # q.k is 102,400, q.k / 8 is 12,800
    key = torch.cat([query, query / 2], dim=2)
    value = torch.tensor([[[[1.0], [2.0]]]], dtype=dtype)
    assert attend(way, query, key, value).item() == 1.0


def test_a_mask_of_numbers_is_refused() -> None:
    x = torch.randn(2, 4)
    for call in (
        lambda mask: scaled_dot_product_attention(x, x, x, mask),
        lambda mask: attention_weights(x, x, mask),
    ):
        with pytest.raises(ValueError, match=r"must be boolean, True .*allowed, got torch.float32"):
            call(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("shapes", "mask_shape"),
    [
        (((2, 4), (3, 5), (3, 5)), None),
        (((2, 4), (3, 4), (5, 4)), None),
        (((2, 2, 4), (3, 2, 4), (3, 2, 4)), None),
        (((2, 4), (3, 4), (3, 4)), (3, 2)),
    ],
    ids=["widths", "keys and values", "batches", "mask"],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_is_refused_by_torch(
    way: str, shapes: tuple[tuple[int, ...], ...], mask_shape: tuple[int, ...] | None
) -> None:
    mask = None if mask_shape is None else torch.ones(mask_shape, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"(?i)size|shape"):
        attend(way, *(torch.randn(shape) for shape in shapes), mask)


def test_padding_mask() -> None:
    mask = padding_mask(torch.tensor([[5, 6, 9], [5, 9, 9]]), pad_id=9)
    assert mask.shape == (2, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([1, 2]), "got torch.int64 of shape (2,)"),
        (torch.ones(1, 2), "got torch.float32"),
        (torch.ones(1, 2, dtype=torch.bool), "got torch.bool"),
        (torch.ones(0, 2, dtype=torch.long), "none empty, got torch.int64 of shape (0, 2)"),
        (torch.ones(2, 0, dtype=torch.long), "none empty, got torch.int64 of shape (2, 0)"),
    ],
)
def test_what_is_no_batch_of_tokens_is_refused(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        padding_mask(tokens, pad_id=0)


def test_causal_mask() -> None:
    assert causal_mask(3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    with pytest.raises(ValueError, match="length must be int from 1 to inf, got 0"):
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
