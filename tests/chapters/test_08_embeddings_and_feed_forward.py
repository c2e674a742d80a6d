"""Token embedding and feed-forward network: equality with torch, behavior, bad input, and what the exercises refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_08 import (
    check_embedding,
    check_embedding_gradient,
    check_feed_forward,
    check_maximum,
    check_parameter_counts,
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


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda tokens, weight: weight[tokens], "factor should be 4, not 1"),
        (lambda tokens, weight: weight[tokens] * weight.size(1), "factor should be 4, not 16"),
        (
            lambda tokens, weight: (weight[tokens] * weight.size(1) ** 0.5).flatten(0, -2),
            "should have shape",
        ),
    ],
)
def test_exercise_1_refuses(attempt: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_embedding(attempt)


def test_exercise_1_refuses_one_hot_without_the_size_of_the_vocabulary() -> None:
    def unaware(tokens: Tensor, weight: Tensor) -> Tensor:
        return F.one_hot(tokens).float() @ weight * math.sqrt(weight.size(1))

    with pytest.raises(AssertionError, match="unaware raised RuntimeError"):
        check_embedding(unaware)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda x, w_1, b_1, w_2, b_2: (x @ w_1 + b_1) @ w_2 + b_2, "counts as 0"),
        (
            lambda x, w_1, b_1, w_2, b_2: F.relu(F.relu(x @ w_1 + b_1) @ w_2 + b_2),
            "cut off at the end",
        ),
        (lambda x, w_1, b_1, w_2, b_2: F.relu(x @ w_1) @ w_2 + b_2, "b_1 is added before the bend"),
        (lambda x, w_1, b_1, w_2, b_2: F.relu(x @ w_1 + b_1) @ w_2, r"b_2 = \(1, -2\)"),
        (lambda x, w_1, b_1, w_2, b_2: F.gelu(x @ w_1 + b_1) @ w_2 + b_2, "should be -6"),
    ],
)
def test_exercise_2_refuses(attempt: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_feed_forward(attempt)


def counts(
    v: int, d: int, f: int, n: int, attentions: int = 3, bias: int = 1
) -> tuple[int, int, int]:
    return v * d, attentions * n * 4 * (d * d + bias * d), 2 * n * (2 * d * f + bias * (d + f))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attentions": 2}, "96 counts one attention a layer"),
        ({"bias": 0}, "108 leaves the biases out"),
        ({"attentions": 2, "bias": 0}, "72 leaves the biases out and counts one attention"),
    ],
)
def test_exercise_3_refuses(changed: dict[str, int], message: str) -> None:
    check_parameter_counts(counts)
    with pytest.raises(AssertionError, match=message):
        check_parameter_counts(lambda *sizes: counts(*sizes, **changed))


def gradient(
    tokens: Tensor, upstream: Tensor, vocab_size: int, overwrite: bool, factor: bool
) -> Tensor:
    result = upstream.new_zeros(vocab_size, upstream.size(-1))
    result.index_put_((tokens,), upstream, accumulate=not overwrite)
    return result * (math.sqrt(upstream.size(-1)) if factor else 1.0)


def test_exercise_4_refuses() -> None:
    check_embedding_gradient(lambda *args: gradient(*args, overwrite=False, factor=True))
    with pytest.raises(AssertionError, match="overwrite"):
        check_embedding_gradient(lambda *args: gradient(*args, overwrite=True, factor=True))
    with pytest.raises(AssertionError, match="factor"):
        check_embedding_gradient(lambda *args: gradient(*args, overwrite=False, factor=False))


def test_exercise_5_refuses_a_network_that_loses_negative_numbers() -> None:
    w_1, w_2 = (
        torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]),
        torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]),
    )
    with pytest.raises(AssertionError, match="lost when it is negative"):
        check_maximum(lambda: (w_1, torch.zeros(3), w_2, torch.zeros(2)))


def test_exercise_5_refuses_a_bias_that_only_moves_the_bend() -> None:
    def shifted(bias: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w_1 = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])
        w_2 = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
        return w_1, torch.tensor([0.0, bias, 0.0]), w_2, torch.tensor([-bias, -bias])

    for bias in (10.0, 1000.0, 100_000.0):
        with pytest.raises(AssertionError, match="only moves the bend further out"):
            check_maximum(lambda bias=bias: shifted(bias))


def test_exercise_5_accepts_biases_that_cancel() -> None:
    w_1 = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, -1.0]])
    w_2 = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    check_maximum(lambda: (w_1, torch.tensor([0.0, 0.1, -0.1]), w_2, torch.tensor([-0.1, -0.1])))
