"""The checks of chapter 3's exercises."""

from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 3.1")
def check_additive_look(
    attempt: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    """Check one additive look: one token isolates the sum, equal tokens the softmax, then tanh, query, mask."""
    generator = torch.Generator().manual_seed(0)
    state, memory = (
        torch.randn(2, 4, generator=generator),
        torch.randn(2, 5, 3, generator=generator),
    )
    w_query, w_key = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator)
    v = torch.randn(6, generator=generator)
    every = torch.ones(2, 5, dtype=torch.bool)

    def answer(state: Tensor, memory: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        pair = attempt(state, memory, w_query, w_key, v, real)
        assert isinstance(pair, tuple) and len(pair) == 2, "return two things: context and weights"
        rows, length = memory.shape[:2]
        return (
            expect_tensor(pair[0], (rows, 3), "the context"),
            expect_tensor(pair[1], (rows, length), "the weights"),
        )

    context, weights = answer(state, memory[:, :1], every[:, :1])
    assert torch.isfinite(context).all(), (
        "NaN: everything was forbidden; is the mask upside down? True means that a token is real"
    )
    assert torch.allclose(context, memory[:, 0], atol=1e-5), (
        "with one source token its memory is the context: is the softmax over the source?"
    )
    context, weights = answer(state, memory, every)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2), atol=1e-5), (
        "the weights of each sentence should add up to 1: over which axis is the softmax?"
    )
    mixed = (state @ w_query.T)[:, None] + memory @ w_key.T  # (batch, source, hidden)
    expected = (mixed.tanh() @ v).softmax(dim=-1)
    assert not torch.allclose(weights, (mixed @ v).softmax(dim=-1), atol=1e-5), (
        "the tanh is missing"
    )
    assert torch.allclose(weights, expected, atol=1e-5), (
        "the weights are off: left to suspect are the two projections and v"
    )
    assert torch.allclose(context, (expected[:, None] @ memory)[:, 0], atol=1e-5), (
        "the weights are right and the context is not: it is the weighted sum of the memory, not of its projection"
    )
    some = every.clone()
    some[1, 3:] = False
    context, weights = answer(state, memory, some)
    assert (weights[1, 3:] == 0).all(), (
        "the padding of row 1 is looked at: is the mask used, and True where a token is real?"
    )
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2), atol=1e-5), (
        "with padding the weights no longer add up to 1: mask before the softmax"
    )
    assert torch.allclose(weights[0], expected[0], atol=1e-5), (
        "row 0 has no padding, and row 1's mask has reached it: each row has a mask of its own"
    )
    alone = answer(state[1:], memory[1:, :3], every[1:, :3])
    assert torch.allclose(context[1], alone[0][0], atol=1e-5), "padding changes the context"


@diagnostic("Exercise 3.2")
def check_luong_attention(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check Luong's attention: one token isolates the last map, then the lookup, the order, the mask."""
    generator = torch.Generator().manual_seed(0)
    states, memory = (
        torch.randn(2, 3, 4, generator=generator),
        torch.randn(2, 5, 4, generator=generator),
    )
    w_context = torch.randn(4, 8, generator=generator)
    real = torch.ones(2, 5, dtype=torch.bool)

    def expected(states: Tensor, memory: Tensor, real: Tensor) -> Tensor:
        scores = (states @ memory.mT).masked_fill(~real[:, None], float("-inf"))
        return torch.tanh(
            torch.cat([scores.softmax(dim=-1) @ memory, states], dim=-1) @ w_context.T
        )

    one = expect_tensor(
        attempt(states, memory[:, :1], real[:, :1], w_context), (2, 3, 4), "the vectors"
    )
    assert torch.isfinite(one).all(), (
        "NaN: everything was forbidden; is the mask upside down? True means that a token is real"
    )
    found = memory[:, :1].expand(2, 3, 4)
    linear = torch.cat([found, states], dim=-1) @ w_context.T
    other_way = torch.cat([states, found], dim=-1) @ w_context.T
    assert not torch.allclose(one, linear, atol=1e-5), "the tanh is missing"
    assert not torch.allclose(one, other_way.tanh(), atol=1e-5), "first the context, then the state"
    assert torch.allclose(one, linear.tanh(), atol=1e-5), (
        "with one source token its memory is the context; left to suspect are the map of the two, put side by side, and a softmax over the target"
    )
    answer = attempt(states, memory, real, w_context)
    assert torch.allclose(answer, expected(states, memory, real), atol=1e-5), (
        "with several source tokens the vectors are off: is the softmax over the source (the last axis of the scores)?"
    )
    real[1, 2:] = False
    answer = attempt(states, memory, real, w_context)
    assert torch.allclose(answer, expected(states, memory, real), atol=1e-5), (
        "with padding the vectors are off: is the mask used before the softmax, and along the source?"
    )


@diagnostic("Exercise 3.3")
def check_word_order(attempt: Callable[[Tensor], float]) -> None:
    """Check the share of crossing pairs: order kept, reversed, one exchange, ties, rows against columns."""
    eye = torch.eye(4)
    assert abs(float(attempt(eye))) < 1e-6, "where the order is kept nothing crosses"
    assert abs(float(attempt(eye.flip(0))) - 1) < 1e-6, "a reversed order crosses in every pair: 1"
    exchanged = eye[[1, 0, 2, 3]]
    share = float(attempt(exchanged))
    assert abs(share - 1) > 1e-6, (
        "that is the number of crossing pairs: divide by the number of all pairs"
    )
    assert abs(share - 2 / 6) > 1e-6, (
        "every pair counts once; and all pairs count, not only neighbors"
    )
    assert abs(share - 1 / 6) < 1e-6, f"one of 6 pairs crosses: 1/6, not {share:.3f}"
    ties = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8]])
    assert abs(float(attempt(ties))) < 1e-6, "two words that look at the same place do not cross"
    lopsided = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    assert abs(float(attempt(lopsided)) - 1) < 1e-6, (
        "2 target words, 3 source words: the first looks at source word 2, the second at 0; rows are target words"
    )
    most = torch.tensor([[0.4, 0.3, 0.3], [0.0, 0.6, 0.4], [0.45, 0.0, 0.55]])
    assert abs(float(attempt(most))) < 1e-6, (
        "the place that a word looks at MOST, not the mean place"
    )
    assert float(attempt(torch.ones(1, 3))) == 0.0, "one target word has no pairs: 0"


@diagnostic("Exercise 3.4")
def check_uncovered(attempt: Callable[[Tensor, float], list[int]]) -> None:
    """Check the uncovered source words: none, one, several in order, rows against columns."""
    even = torch.full((4, 2), 0.5)
    assert attempt(even, 0.5) == [], "each source word got 2.0 in all, so none is below 0.5"
    weights = torch.tensor([[0.7, 0.0, 0.1, 0.2], [0.8, 0.1, 0.0, 0.1], [0.6, 0.1, 0.2, 0.1]])
    answer = attempt(weights, 0.25)
    assert isinstance(answer, list), f"return a list of indices, not {type(answer).__name__}"
    assert 0 not in answer, "source word 0 got 2.1: add up over the target words (the rows)"
    assert answer == [1], f"only source word 1, with 0.2, is below 0.25: [1], not {answer}"
    assert attempt(weights, 0.35) == [1, 2], (
        "source words 1 (0.2) and 2 (0.3) are below 0.35, the least covered first"
    )
    assert attempt(weights[:, [0, 2, 1, 3]], 0.35) == [2, 1], "sort by coverage, not by place"
    assert all(isinstance(index, int) for index in attempt(weights, 0.35)), (
        "plain Python integers, please"
    )
    assert attempt(even, 2.0) == [], "each got 2.0, and 2.0 is not less than 2.0"
