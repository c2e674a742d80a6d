"""The checks of chapter 3's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)


@diagnostic("Exercise 3.1")
def check_additive_look(
    attempt: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """One additive look: one token isolates the sum, then tanh, projections, mask, other sizes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state, memory = draw(2, 4), draw(2, 5, 3)
    maps = draw(6, 4), draw(6, 3), draw(6)
    every = torch.ones(2, 5, dtype=torch.bool)

    def answer(
        state: Tensor, memory: Tensor, maps: tuple[Tensor, ...], real: Tensor
    ) -> tuple[Tensor, Tensor]:
        pair = attempt(state, memory, *maps, real)
        assert isinstance(pair, tuple | list) and len(pair) == 2, (
            "return two things: context and weights"
        )
        rows, length, width = memory.shape
        return (
            expect_tensor(pair[0], (rows, width), "the context"),
            expect_tensor(pair[1], (rows, length), "the weights, the second thing returned,"),
        )

    def scores_of(state: Tensor, memory: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        w_query, w_key, v = maps
        return ((state @ w_query.T)[:, None] + memory @ w_key.T).tanh() @ v  # (batch, source)

    context, weights = answer(state, memory[:, :1], maps, every[:, :1])
    assert torch.isfinite(context).all(), (
        "NaN: everything was forbidden; is the mask upside down? True means that a token is real"
    )
    assert _close(weights, torch.ones(2, 1)), (
        "with one source token its weight is 1: is the softmax over the source?"
    )
    assert _close(context, memory[:, 0]), (
        "with one source token of weight 1 its memory is the context: nothing else comes into it"
    )
    context, weights = answer(state, memory, maps, every)
    assert not _close(weights, torch.full((2, 5), 0.2)), (
        "all source tokens have one weight: is everything forbidden alike, the mask upside down?"
    )
    assert _close(weights.sum(dim=-1), torch.ones(2)), (
        "the weights of each sentence should add up to 1: over which axis is the softmax?"
    )
    mixed = (state @ maps[0].T)[:, None] + memory @ maps[1].T  # (batch, source, hidden)
    scores = scores_of(state, memory, maps)
    for wrong, cause in (
        (mixed @ maps[2], "the tanh is missing"),
        (mixed.tanh().sum(dim=-1), "v is missing: it weighs the hidden features"),
        ((memory @ maps[1].T).tanh() @ maps[2], "the state has no say: add its projection, too"),
        (scores / math.sqrt(6), "equation 3.1 has no scale: nothing is divided by a root"),
        (scores.tanh(), "the tanh comes before v, not after it"),
        (-scores, "the signs are turned: the largest score should get the largest weight"),
    ):
        assert not _close(weights, wrong.softmax(dim=-1)), cause
    expected = scores.softmax(dim=-1)
    assert _close(weights, expected), (
        "the weights are off: left to suspect are the two projections and v"
    )
    assert _close(context, (expected[:, None] @ memory)[:, 0]), (
        "the weights are right and the context is not: it is the sum of the memory, times the weights"
    )
    some = every.clone()
    some[1, 3:] = False
    context, weights = answer(state, memory, maps, some)
    assert not _close(weights, expected), "the padding of row 1 is looked at: is the mask used?"
    assert torch.isfinite(weights).all(), (
        "with padding there is NaN: is the mask used the right way?"
    )
    assert (weights[1, 3:] < 1e-6).all(), (
        "the padding of row 1 is looked at: is the mask used, and True where a token is real?"
    )
    assert _close(weights.sum(dim=-1), torch.ones(2)), (
        "with padding the weights no longer add up to 1: mask before the softmax"
    )
    assert _close(weights[0], expected[0]), (
        "row 0 has no padding, and row 1's mask has reached it: each row has a mask of its own"
    )
    right = scores.masked_fill(~some, -math.inf).softmax(dim=-1)
    assert _close(weights, right), (
        "with padding the weights are off: a forbidden score is minus infinity, not 0"
    )
    assert _close(context, (right[:, None] @ memory)[:, 0]), "padding changes the context"
    # other sizes, and scores so large that a mask of -100 is not low enough
    state, memory = draw(3, 2), draw(3, 4, 7)
    maps = draw(5, 2).abs(), draw(5, 7) / 7, 60 * draw(5).abs()
    state[
        0
    ] = -9.0  # every tanh of row 0 is near -1, so the score of its one real token is far below 0
    real = torch.tensor([[True, False, False, False], [True] * 4, [True, True, False, False]])
    context, weights = answer(state, memory, maps, real)
    right = scores_of(state, memory, maps).masked_fill(~real, -math.inf).softmax(dim=-1)
    off = (weights - right).abs().max() + (context - (right[:, None] @ memory)[:, 0]).abs().max()
    assert off < 1e-2, (
        "with other sizes and larger scores the result is off: is a size or a batch built in, or a"
        " forbidden score not low enough, or exp of a large score infinite?"
    )


@diagnostic("Exercise 3.2")
def check_luong_attention(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Luong's attention: one token isolates the last map, then the lookup, then the mask."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def last(weights: Tensor, states: Tensor, memory: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(torch.cat([weights @ memory, states], dim=-1) @ w.T)

    def answer(states: Tensor, memory: Tensor, real: Tensor, w: Tensor) -> Tensor:
        vectors = attempt(states, memory, real, w)
        return expect_tensor(vectors, states.shape, "the vectors")

    states, memory, w = draw(2, 3, 4), draw(2, 5, 4), draw(4, 8) / 3
    real = torch.ones(2, 5, dtype=torch.bool)
    one = answer(states, memory[:, :1], real[:, :1], w)
    assert torch.isfinite(one).all(), (
        "NaN: everything was forbidden; is the mask upside down? True means that a token is real"
    )
    found = memory[:, :1].expand(2, 3, 4)
    linear = torch.cat([found, states], dim=-1) @ w.T
    other_way = torch.cat([states, found], dim=-1) @ w.T
    over_target = (states @ memory[:, :1].mT).softmax(dim=1) @ memory[:, :1]
    third = torch.cat([over_target, states], dim=-1) @ w.T
    assert not _close(one, linear), "the tanh is missing"
    assert not _close(one, other_way.tanh()), "first the context, then the state"
    assert not _close(one, third.tanh()), "the softmax is over the target: it is over the source"
    assert _close(one, linear.tanh()), (
        "with one source token its memory is the context; left to suspect is the map of the two, put"
        " side by side"
    )
    vectors = answer(states, memory, real, w)
    scores = states @ memory.mT  # (batch, target, source)
    for weights, cause in (
        (scores.softmax(dim=1), "the softmax is over the target: it is over the source"),
        (scores.softmax(dim=0), "the softmax is over the batch: it is over the source"),
        (torch.full_like(scores, 0.2), "all source tokens count alike: is the mask upside down?"),
        ((scores / 2).softmax(dim=-1), "here the dot product is not divided by a root"),
        (scores, "the softmax is missing"),
    ):
        assert not _close(vectors, last(weights, states, memory, w)), cause
    assert _close(vectors, last(scores.softmax(dim=-1), states, memory, w)), (
        "with several source tokens the vectors are off: left to suspect are the scores, a dot product"
        " of each state with each memory"
    )
    real[1, 2:] = False
    vectors = answer(states, memory, real, w)
    for weights, cause in (
        (scores.softmax(dim=-1), "the padding is looked at: is the mask used?"),
        (scores.softmax(dim=-1) * real[:, None], "mask before the softmax, not after it"),
        (
            (scores * real[:, None]).softmax(dim=-1),
            "a forbidden score is minus infinity, not 0: exp(0) is 1",
        ),
    ):
        assert not _close(vectors, last(weights, states, memory, w)), cause
    right = scores.masked_fill(~real[:, None], -math.inf).softmax(dim=-1)
    assert _close(vectors, last(right, states, memory, w)), (
        "with padding the vectors are off: does the mask run along the source, a row for each sentence?"
    )
    states, memory, w = draw(3, 4, 6), 40 * draw(3, 4, 6), draw(6, 12) / 40
    real = torch.tensor([[True, False, False, False], [True] * 4, [True, True, False, False]])
    right = (states @ memory.mT).masked_fill(~real[:, None], -math.inf).softmax(dim=-1)
    assert _close(answer(states, memory, real, w), last(right, states, memory, w)), (
        "with other sizes (3 sentences, 4 tokens on either side) and larger scores the vectors are off:"
        " is a size built in, the mask along the target, or a forbidden score not low enough?"
    )


@diagnostic("Exercise 3.3")
def check_word_order(attempt: Callable[[Tensor], float]) -> None:
    """The share of crossing pairs: order kept, reversed, one exchange, ties, rows against columns."""

    def share(weights: Tensor) -> float:
        answer = attempt(weights)
        assert isinstance(answer, int | float | Tensor), (
            f"a share is one number, not {type(answer).__name__}"
        )
        return float(answer)

    eye = torch.eye(4)
    assert abs(share(eye)) < 1e-6, "where the order is kept nothing crosses"
    assert abs(share(eye.flip(0)) - 1) < 1e-6, "a reversed order crosses in every pair: 1"
    found = share(eye[[1, 0, 2, 3]])
    assert abs(found - 1) > 1e-6, (
        "that is the number of crossing pairs: divide by the number of all pairs"
    )
    assert abs(found - 2 / 6) > 1e-6, (
        "every pair counts once; and all pairs count, not only neighbors"
    )
    assert abs(found - 1 / 6) < 1e-6, f"one of 6 pairs crosses: 1/6, not {found:.3f}"
    ties = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8]])
    assert abs(share(ties)) < 1e-6, "two words that look at the same place do not cross"
    lopsided = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    assert abs(share(lopsided) - 1) < 1e-6, (
        "2 target words, 3 source words: the first looks at source word 2, the second at 0; rows are target words"
    )
    most = torch.tensor([[0.4, 0.3, 0.3], [0.0, 0.6, 0.4], [0.45, 0.0, 0.55]])
    assert abs(share(most)) < 1e-6, "the place that a word looks at MOST, not the mean place"
    tied = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.9, 0.1]])
    assert abs(share(tied) - 2 / 3) < 1e-6, (
        f"places 1, 0, 0: two of 3 pairs cross, and the pair that looks at one place counts as a pair;"
        f" yours is {share(tied):.3f}"
    )
    assert share(torch.ones(1, 3)) == 0.0, "one target word has no pairs: 0"
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((7, 4), (5, 9), (12, 12)):
        weights = torch.rand(rows, columns, generator=generator).softmax(dim=-1)
        place = weights.argmax(dim=-1).tolist()
        pairs = [a > b for i, a in enumerate(place) for b in place[i + 1 :]]
        expected = sum(pairs) / len(pairs)
        found = share(weights)
        assert abs(found - expected) < 1e-6, (
            f"places {place}: {sum(pairs)} of {len(pairs)} pairs cross, {expected:.3f}, not {found:.3f}:"
            " do all pairs count, far ones and ties too?"
        )


@diagnostic("Exercise 3.4")
def check_uncovered(attempt: Callable[[Tensor, float], list[int]]) -> None:
    """The uncovered source words: none, one, several in order, rows against columns."""

    def places(weights: Tensor, least: float) -> list[int]:
        answer = attempt(weights, least)
        assert isinstance(answer, list), f"return a list of indices, not {type(answer).__name__}"
        assert all(type(index) is int for index in answer), (
            f"plain Python integers, please, not {answer}"
        )
        return answer

    even = torch.full((4, 2), 0.5)
    assert places(even, 0.75) == [], (
        "each of two source words got 2.0 in all from four target words, so none is below 0.75: add up"
        " over the target words, no mean"
    )
    weights = torch.tensor([[0.7, 0.0, 0.1, 0.2], [0.8, 0.1, 0.0, 0.1], [0.6, 0.1, 0.2, 0.1]])
    answer = places(weights, 0.25)
    assert 0 not in answer, "source word 0 got 2.1: add up over the target words (the rows)"
    assert answer == [1], f"only source word 1, with 0.2, is below 0.25: [1], not {answer}"
    assert places(weights, 0.35) == [1, 2], (
        "source words 1 (0.2) and 2 (0.3) are below 0.35, the least covered first"
    )
    assert places(weights[:, [0, 2, 1, 3]], 0.35) == [2, 1], "sort by coverage, not by place"
    assert places(even, 2.0) == [], "each got 2.0, and 2.0 is not less than 2.0"
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((6, 9), (9, 4), (3, 3)):
        weights = torch.rand(rows, columns, generator=generator).softmax(dim=-1)
        coverage = weights.sum(dim=0)  # (source,)
        least = coverage.sort().values[columns // 2 - 1 : columns // 2 + 1].mean().item()
        expected = [i for i in coverage.argsort().tolist() if coverage[i] < least]
        answer = places(weights, least)
        assert answer == expected, (
            f"{rows} target and {columns} source words, least {least:.2f}: {expected}, not {answer}:"
            " those below it, by how little they were looked at"
        )
