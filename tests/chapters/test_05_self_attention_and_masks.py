"""Masks and scaled dot-product attention: equal to torch's, finite everywhere, zeros where nothing is allowed."""

import math
import re
from collections.abc import Callable
from typing import Any

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


def test_plot_attention_tells_a_forbidden_key_from_a_small_weight() -> None:
    ax = plot_attention(torch.tensor([[1.0, 0.0], [0.999, 0.001]]), ["a", "b"], ["c", "d"])
    assert [text.get_text() for text in ax.texts] == ["1.00", "1.00", ".00"]


# What readers are likely to hand in, and what the check must say of it.


def no_scale(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.mT).masked_fill(~mask, -math.inf).softmax(dim=-1) @ value


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


def causal_by_positions(length: int) -> Tensor:
    position = torch.arange(length)
    return position <= position[:, None]


def attention_by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.size(-1))
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ value


def attention_by_einsum(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("...qd,...kd->...qk", query, key) * query.size(-1) ** -0.5
    grown = (scores - scores.amax(dim=-1, keepdim=True)).exp() * mask
    return torch.einsum("...qk,...kv->...qv", grown / grown.sum(dim=-1, keepdim=True), value)


def attention_in_place(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    query /= math.sqrt(query.size(-1))
    return (query @ key.mT).masked_fill(~mask, -math.inf).softmax(dim=-1) @ value


def attention_with_a_loose_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.size(-1))
    return scores.masked_fill(~mask, -1.0).softmax(dim=-1) @ value


def attention_multiplied(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.mT / math.sqrt(query.size(-1)) * mask).softmax(dim=-1) @ value


def attention_of_d_k_4(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (query @ key.mT / 2).masked_fill(~mask, -math.inf).softmax(dim=-1) @ value


def attention_by_values_width(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.mT / math.sqrt(value.size(-1))
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ value


def window_by_distance(length: int, radius: int) -> Tensor:
    position = torch.arange(length)
    return (position[:, None] - position).abs() <= radius


def window_by_loops(length: int, radius: int) -> Tensor:
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        mask[i, max(0, i - radius) : i + radius + 1] = True
    return mask


def one_sided(length: int, radius: int) -> Tensor:
    return window_by_distance(length, radius).tril()


def wraps_around(length: int, radius: int) -> Tensor:
    position = torch.arange(length)
    distance = (position[:, None] - position) % length
    return (distance <= radius) | (distance >= length - radius)


def one_too_narrow(length: int, radius: int) -> Tensor:
    return window_by_distance(length, max(radius - 1, 0))


def negative_slice(length: int, radius: int) -> Tensor:
    """What a slice from a negative place does."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        mask[i, i - radius : i + radius + 1] = True
    return mask


Attention = Callable[[Tensor], Tensor]


def leaks_by_nudges(attention: Attention, places: int = 6, amount: float = 1.0) -> bool:
    x = torch.randn(6, 4)
    before = attention(x)
    for place in range(1, places):
        changed = x.clone()
        changed[place] += amount
        if not torch.equal(attention(changed)[:place], before[:place]):
            return True
    return False


def leaks_by_gradients(attention: Attention) -> bool:
    x = torch.randn(5, 8, requires_grad=True)
    output = attention(x)
    for i in range(len(x)):
        (gradient,) = torch.autograd.grad(output[i].sum(), x, retain_graph=True)
        if (gradient[i + 1 :] != 0).any():
            return True
    return False


def leaks_at_the_end(attention: Attention) -> bool:
    """Changes the last position only."""
    x = torch.randn(6, 4)
    changed = torch.cat([x[:-1], x[-1:] + 1])
    return not torch.equal(attention(changed)[:-1], attention(x)[:-1])


def leaks_roughly(attention: Attention) -> bool:
    x = torch.randn(6, 4)
    return any(
        not torch.allclose(
            attention(torch.cat([x[:i], x[i:] + 1]))[:i], attention(x)[:i], atol=0.05
        )
        for i in range(1, 6)
    )


def leaks_with_itself(attention: Attention) -> bool:
    """Counts what a position does to itself."""
    x = torch.randn(6, 4)
    changed = torch.cat([x[:3], x[3:] + 1])
    return not torch.equal(attention(changed)[:4], attention(x)[:4])


def leaks_into_the_first(attention: Attention) -> bool:
    x = torch.randn(6, 4)
    changed = torch.cat([x[:1], x[1:] + 1])
    return not torch.equal(attention(changed)[0], attention(x)[0])


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_attention: [attention_by_hand, attention_by_einsum],
    check_causal_mask: [
        causal_by_positions,
        lambda n: torch.tensor([[j <= i for j in range(n)] for i in range(n)]),
    ],
    check_window_mask: [window_by_distance, window_by_loops],
    check_leak_detector: [leaks_by_nudges, leaks_by_gradients],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_attention: [
        (no_scale, "sqrt"),
        (softmax_over_queries, "softmax over the keys"),
        (mask_upside_down, "True means allowed"),
        (mask_after_softmax, "applied after the softmax"),
        (no_batch, "transpose the last two|raised|shape"),
        (lambda *inputs: None, "None"),
        (attention_in_place, "in place"),
        (F.scaled_dot_product_attention, "without torch's scaled"),
        (lambda q, k, v, m: scaled_dot_product_attention(q, k, v, m), "without torch's scaled"),
        (attention_with_a_loose_mask, "only key 2 is allowed"),
        (attention_multiplied, "multiplied instead of filled"),
        (attention_of_d_k_4, "width"),
        (attention_by_values_width, "scale"),
    ],
    check_causal_mask: [
        (lambda n: causal_by_positions(n).float(), "boolean"),
        (lambda n: causal_by_positions(n).T, "future|transposed"),
        (lambda n: causal_by_positions(n) & ~torch.eye(n, dtype=torch.bool), "itself"),
        (lambda n: ~causal_by_positions(n), "itself"),
        (lambda n: torch.ones(n, n, dtype=torch.bool), "future"),
        (lambda n: causal_by_positions(n + 1), "shape"),
        (lambda n: causal_by_positions(4)[:n, :n], "shape"),
        (lambda n: torch.ones(n, n, dtype=torch.bool).tril(), "without torch's tril"),
        (causal_mask, "without torch's tril"),
        (lambda n: torch.ones(n, n).triu(1) == 0, "without torch's triu"),
    ],
    check_window_mask: [
        (one_sided, "both neighbors"),
        (wraps_around, "wraps around"),
        (one_too_narrow, "both neighbors"),
        (negative_slice, "first positions"),
        (lambda n, r: window_by_distance(n, r + 1), "nobody else"),
        (lambda n, r: window_by_distance(n, r).float(), "boolean"),
        (lambda n, r: ~window_by_distance(n, r), "radius 0"),
        (lambda n, r: window_by_distance(5, r), "length"),
    ],
    check_leak_detector: [
        (leaks_at_the_end, "every position"),
        (leaks_roughly, "compare exactly|tolerance"),
        (leaks_with_itself, "itself"),
        (leaks_into_the_first, "every position"),
        (lambda attention: torch.tensor(leaks_by_nudges(attention)), "True or False"),
        (lambda attention: not leaks_by_nudges(attention), "itself"),
        (lambda attention: False, "you did not see it"),
        (lambda attention: True, "does not leak"),
    ],
}
