"""Token embedding and feed-forward network: equality with torch, behavior, bad input, and what the exercises refuse."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_08 import (
    check_embedding_gradient,
    check_maximum,
    check_memory,
    check_sentence_vectors,
)
from transformer_lib.embeddings import TokenEmbedding
from transformer_lib.layers import FeedForward

sizes = st.integers(1, 12)


@given(vocab_size=sizes, d_model=sizes, batch=sizes, length=sizes, seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_embedding_equals_torch(
    vocab_size: int, d_model: int, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    embedding = TokenEmbedding(vocab_size, d_model)
    reader, writer = nn.Embedding(vocab_size, d_model), nn.Linear(d_model, vocab_size, bias=False)
    with torch.no_grad():
        reader.weight.copy_(embedding.weight)
        writer.weight.copy_(embedding.weight)
    tokens = torch.randint(vocab_size, (batch, length))
    x = embedding(tokens)
    torch.testing.assert_close(x, reader(tokens) * math.sqrt(d_model))
    torch.testing.assert_close(embedding.project(x), writer(x))
    one_hot = F.one_hot(tokens, vocab_size).float()
    torch.testing.assert_close(x, one_hot @ embedding.weight * math.sqrt(d_model))


def test_the_matrix_is_one_parameter_with_gradient_from_both_ends() -> None:
    embedding = TokenEmbedding(6, 4)
    tokens, answers = torch.tensor([[0, 2, 2]]), torch.tensor([1, 3, 5])
    assert [name for name, _ in embedding.named_parameters()] == ["weight"]

    F.cross_entropy(embedding.project(embedding(tokens)[0]), answers).backward()
    reader, writer = (embedding.weight.detach().clone().requires_grad_() for _ in range(2))
    F.cross_entropy((reader[tokens[0]] * 2) @ writer.T, answers).backward()
    assert reader.grad is not None
    assert writer.grad is not None
    torch.testing.assert_close(embedding.weight.grad, reader.grad + writer.grad)
    assert reader.grad[[1, 3, 4, 5]].eq(0).all()
    assert writer.grad.norm(dim=-1).gt(0).all()


def test_scales_at_the_start() -> None:
    embedding = TokenEmbedding(2000, 256)
    x = embedding(torch.arange(2000)[None])
    logits = embedding.project(F.layer_norm(torch.randn(100, 256), (256,)))
    assert x.std().item() == pytest.approx(1.0, abs=0.05)
    assert logits.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_ids_of_any_shape(dtype: torch.dtype) -> None:
    embedding = TokenEmbedding(5, 4)
    for shape in ((3,), (2, 3), (2, 3, 4)):
        assert embedding(torch.zeros(shape, dtype=dtype)).shape == (*shape, 4)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, 5]]), r"run from 0 to 5, the vocabulary from 0 to 4"),
        (torch.tensor([[-1, 3]]), r"run from -1 to 3, the vocabulary from 0 to 4"),
    ],
)
def test_embedding_refuses(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenEmbedding(5, 4)(tokens)


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (TokenEmbedding, (0, 4), "vocab_size must be int .* got 0"),
        (TokenEmbedding, (5, 4.0), r"d_model must be int .* got 4\.0"),
        (FeedForward, (0, 8), "d_model must be int .* got 0"),
        (FeedForward, (4, 0), "d_ff must be int .* got 0"),
    ],
)
def test_bad_sizes_are_refused(kind: type[nn.Module], sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*sizes)


@given(d_model=sizes, d_ff=sizes, batch=sizes, length=sizes, seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_feed_forward_equals_torch(
    d_model: int, d_ff: int, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ours = FeedForward(d_model, d_ff)
    convolution = nn.Sequential(nn.Conv1d(d_model, d_ff, 1), nn.ReLU(), nn.Conv1d(d_ff, d_model, 1))
    with torch.no_grad():
        for theirs, mine in zip(convolution.parameters(), ours.parameters(), strict=True):
            theirs.copy_(mine[..., None] if mine.dim() == 2 else mine)
    x = torch.randn(batch, length, d_model)
    torch.testing.assert_close(
        ours(x), convolution(x.transpose(1, 2)).transpose(1, 2), atol=1e-5, rtol=1e-4
    )

    layer = nn.TransformerEncoderLayer(d_model, 1, d_ff, dropout=0.0, batch_first=True)
    layer.linear1.load_state_dict(ours.inner.state_dict())
    layer.linear2.load_state_dict(ours.outer.state_dict())
    torch.testing.assert_close(ours(x), layer.linear2(F.relu(layer.linear1(x))))


def test_positions_do_not_see_each_other() -> None:
    feed_forward, x = FeedForward(8, 32), torch.randn(2, 5, 8)
    changed = x.clone()
    changed[:, 3] += 1.0
    moved = (feed_forward(changed) - feed_forward(x)).abs().amax(dim=(0, 2))
    assert moved[3] > 1e-3
    assert moved[[0, 1, 2, 4]].max() < 1e-6
    order = torch.randperm(5)
    torch.testing.assert_close(feed_forward(x[:, order]), feed_forward(x)[:, order])


# --- the exercises


def vectors(tokens: Tensor, weight: Tensor, pad_id: int, **wrong: bool) -> Tensor:
    """Exercise 8.1 right, or wrong in one way."""
    real = (tokens != (0 if wrong.get("pad_0") else pad_id))[..., None]
    rows = weight[tokens] * weight.size(1) ** (1.0 if wrong.get("not_the_root") else 0.5)
    if not wrong.get("with_pads"):
        rows = rows * real
    if wrong.get("sum"):
        return rows.sum(dim=1)
    if wrong.get("by_length"):
        return rows.mean(dim=1)
    divisor = real.sum(dim=1)
    return rows.sum(dim=1) / (divisor if wrong.get("nan") else divisor.clamp(min=1))


def vectors_by_counting(tokens: Tensor, weight: Tensor, pad_id: int) -> Tensor:
    counts = F.one_hot(tokens, len(weight)).sum(dim=1).to(weight.dtype)  # (batch, vocab_size)
    counts[:, pad_id] = 0
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1) @ weight * weight.size(1) ** 0.5


def vectors_in_a_loop(tokens: Tensor, weight: Tensor, pad_id: int) -> Tensor:
    result = []
    for row in tokens:
        words = [weight[t] for t in row.tolist() if t != pad_id]
        mean = torch.stack(words).mean(dim=0) if words else torch.zeros(weight.size(1))
        result.append(mean * math.sqrt(weight.size(1)))
    return torch.stack(result)


def vectors_of_a_set(tokens: Tensor, weight: Tensor, pad_id: int) -> Tensor:
    present = F.one_hot(tokens, len(weight)).amax(dim=1).to(weight.dtype)
    present[:, pad_id] = 0
    return present / present.sum(dim=1, keepdim=True).clamp(min=1) @ weight * weight.size(1) ** 0.5


def vectors_by_wiping(tokens: Tensor, weight: Tensor, pad_id: int) -> Tensor:
    weight[pad_id] = 0.0  # the caller's matrix
    return vectors(tokens, weight, pad_id)


def vectors_of_a_prefix(tokens: Tensor, weight: Tensor, pad_id: int) -> Tensor:
    lengths = (tokens != pad_id).sum(dim=1)
    real = torch.arange(tokens.size(1)) < lengths[:, None]
    rows = weight[tokens] * real[..., None] * weight.size(1) ** 0.5
    return rows.sum(dim=1) / lengths.clamp(min=1)[:, None]


def gradient(tokens: Tensor, upstream: Tensor, vocab_size: int, **wrong: bool) -> Tensor:
    result = upstream.new_zeros(vocab_size, upstream.size(-1))
    result.index_put_((tokens,), upstream, accumulate=not wrong.get("overwrite"))
    return result * (1.0 if wrong.get("no_factor") else math.sqrt(upstream.size(-1)))


def gradient_in_a_loop(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    result = torch.zeros(vocab_size, upstream.size(-1))
    for token, row in zip(tokens.flatten().tolist(), upstream.flatten(0, 1), strict=True):
        result[token] += row * math.sqrt(upstream.size(-1))
    return result


def gradient_by_scatter(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    rows = upstream.reshape(-1, upstream.size(-1)) * upstream.size(-1) ** 0.5
    places = tokens.reshape(-1, 1).expand_as(rows)
    return torch.zeros(vocab_size, upstream.size(-1)).scatter_add(0, places, rows)


def gradient_by_plus_equals(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    result = torch.zeros(vocab_size, upstream.size(-1))
    result[tokens] += upstream * math.sqrt(upstream.size(-1))
    return result


def gradient_in_place(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    upstream *= math.sqrt(upstream.size(-1))
    return gradient(tokens, upstream, vocab_size, no_factor=True)


def gradient_by_autograd(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    with torch.enable_grad():
        weight = torch.zeros(vocab_size, upstream.size(-1), requires_grad=True)
        (F.embedding(tokens, weight) * math.sqrt(upstream.size(-1))).backward(upstream)
    assert weight.grad is not None
    return weight.grad


def gradient_by_one_hot(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    one_hot = F.one_hot(tokens.flatten(), vocab_size).float()
    return one_hot.T @ upstream.flatten(0, 1) * math.sqrt(upstream.size(-1))


def gradient_by_comparing(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    same = (torch.arange(vocab_size)[:, None] == tokens.flatten()).float()
    return same @ upstream.flatten(0, 1) * math.sqrt(upstream.size(-1))


def gradient_of_the_first_row(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    return gradient(tokens[:1], upstream[:1], vocab_size)


def gradient_by_mean(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    total = gradient(tokens, upstream, vocab_size)
    counts = torch.bincount(tokens.flatten(), minlength=vocab_size).clamp(min=1)
    return total / counts[:, None]


Memory = tuple[Tensor, Tensor, Tensor, Tensor]


def memory(key: Tensor, value: Tensor, **wrong: bool) -> Memory:
    """Exercise 8.3 right, or wrong in one way."""
    n, d_v = value.shape
    loudest = (key @ key.T - 2 * torch.eye(n)).amax(dim=-1)
    if wrong.get("no_bias"):
        loudest = torch.zeros(n)
    if wrong.get("half"):
        loudest = torch.full((n,), 0.5)
    if wrong.get("everybodys"):
        loudest = loudest.min().expand(n)
    if wrong.get("silent"):
        return key.T, -torch.ones(n), value, torch.zeros(d_v)
    if wrong.get("plus"):
        return key.T, loudest, value / (1 + loudest)[:, None], torch.zeros(d_v)
    w_2 = value if wrong.get("quiet") else value / (1 - loudest)[:, None]
    return (key if wrong.get("rows") else key.T), -loudest, w_2, torch.zeros(d_v)


def memory_with_one_threshold(key: Tensor, value: Tensor) -> Memory:
    threshold = (key @ key.T).fill_diagonal_(-2).max()
    bias = -threshold.expand(len(key)).clone()
    return key.T, bias, value / (1 - threshold), torch.zeros(value.size(1))


def memory_by_solving(key: Tensor, value: Tensor) -> Memory:
    bias = -torch.full((len(key),), 0.9)  # some neighbors may answer: solve for the rest
    hidden = torch.relu(10 * (key @ key.T + bias))
    return 10 * key.T, 10 * bias, torch.linalg.solve(hidden, value), torch.zeros(value.size(1))


def memory_without_a_bend(key: Tensor, value: Tensor) -> Memory:
    n, d_v = value.shape
    return torch.linalg.pinv(key), torch.zeros(n), value, torch.zeros(d_v)


def memory_in_place(key: Tensor, value: Tensor) -> Memory:
    loudest = (key @ key.T - 2 * torch.eye(len(key))).amax(dim=-1)
    value /= (1 - loudest)[:, None]
    return key.T, -loudest, value, torch.zeros(value.size(1))


def maximum(
    bias: float = 0.0, negative: bool = True, ones: tuple[float, float] = (1.0, 1.0)
) -> Memory:
    w_1 = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, -1.0 if negative else 0.0]])
    w_2 = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]) * torch.tensor(ones)
    b_1 = torch.tensor([0.0, bias, 0.0])
    return w_1, b_1, w_2, torch.tensor([-bias, -bias])


def maximum_from_a() -> Memory:
    """max(a, b) = a + max(0, b - a)."""
    w_1 = torch.tensor([[-1.0, 1.0, -1.0], [1.0, 0.0, 0.0]])
    return w_1, torch.zeros(3), torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]), torch.zeros(2)


def maximum_by_halves() -> Memory:
    """Half of a + b, which is (a + b) past the bend less its negative part, and half of |a - b|."""
    # |a - b| / 2 = max(0, a - b) - (a - b) / 2, and (a + b) / 2 - (a - b) / 2 = b
    w_1 = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.5, -0.5]])
    return w_1, torch.zeros(3), torch.tensor([[0.5, 0.5], [2.0, 2.0], [-2.0, -2.0]]), torch.zeros(2)


def maximum_with_biases_that_cancel() -> Memory:
    w_1, _, w_2, _ = maximum()
    return w_1, torch.tensor([0.0, 0.1, -0.1]), w_2, torch.tensor([-0.1, -0.1])


def wrong(right: Callable[..., Any], mistake: str) -> Callable[..., Any]:
    return lambda *arguments: right(*arguments, **{mistake: True})


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_sentence_vectors: [vectors, vectors_by_counting, vectors_in_a_loop],
    check_embedding_gradient: [gradient, gradient_in_a_loop, gradient_by_scatter],
    check_memory: [memory, memory_with_one_threshold, memory_by_solving],
    check_maximum: [maximum, maximum_from_a, maximum_by_halves, maximum_with_biases_that_cancel],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_sentence_vectors: [
        (wrong(vectors, "with_pads"), "padding is added in"),
        (wrong(vectors, "by_length"), "not by the length"),
        (wrong(vectors, "sum"), "means of 20, 40"),
        (wrong(vectors, "pad_0"), "padding id written out"),
        (wrong(vectors, "nan"), "NaN"),
        (wrong(vectors, "not_the_root"), "should be 4, not 16"),
        (lambda t, w, p: vectors(t, w, p) / w.size(1) ** 0.5, "4, not 1"),
        (lambda t, w, p: w[t].mean(dim=1), "padding is added in"),
        (lambda t, w, p: w[t], "should have shape"),
        (vectors_of_a_set, "counts twice"),
        (vectors_by_wiping, "in place"),
        (vectors_of_a_prefix, "in front"),
    ],
    check_embedding_gradient: [
        (wrong(gradient, "overwrite"), "overwrite"),
        (gradient_by_plus_equals, "overwrite"),
        (wrong(gradient, "no_factor"), "factor"),
        (lambda *a: gradient(*a) / a[1].size(-1), "factor"),
        (gradient_in_place, "in place"),
        (gradient_by_autograd, "autograd is switched off"),
        (gradient_by_one_hot, "one-hot matrix"),
        (gradient_by_comparing, "one-hot matrix"),
        (gradient_of_the_first_row, "a batch of two is off"),
        (gradient_by_mean, "not the mean"),
    ],
    check_memory: [
        (wrong(memory, "no_bias"), "Does the other key answer"),
        (wrong(memory, "half"), "Does the other key answer"),
        (wrong(memory, "everybodys"), "neighbors of its own"),
        (wrong(memory, "quiet"), "times as loud"),
        (wrong(memory, "silent"), "nothing comes out"),
        (wrong(memory, "plus"), "Does the other key answer"),
        (wrong(memory, "rows"), "should have shape"),
        (memory_without_a_bend, "neighbors of its own"),
        (memory_in_place, "in place"),
        (lambda k, v: memory(k, v)[:3], "four tensors"),
    ],
    check_maximum: [
        (lambda: maximum(negative=False), "lost when it is negative"),
        (lambda: maximum(10.0, negative=False), "only moves the bend further out"),
        (lambda: maximum(1e5, negative=False), "only moves the bend further out"),
        (lambda: maximum(ones=(1.0, 0.0)), "two equal columns"),
        (lambda: maximum()[:3], "four tensors"),
        (lambda: tuple(x.T for x in maximum()), "should have shape"),
        (lambda: (*maximum()[:3], torch.ones(2)), "look at the biases"),
        (lambda: (-maximum()[0], *maximum()[1:]), "here b is the larger"),
        (lambda: tuple(x.requires_grad_() for x in maximum()), "no training"),
    ],
}
