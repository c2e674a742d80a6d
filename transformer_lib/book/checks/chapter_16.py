"""The checks of chapter 16's exercises."""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 16.1")
def check_stop(attempt: Callable[[list[tuple[float, int]], float, int, float], bool]) -> None:
    """Check a stopping rule: nothing finished, both bounds, which finished one counts, equality."""

    def stops(
        finished: list[tuple[float, int]], unfinished: float, limit: int, alpha: float
    ) -> bool:
        answer = attempt(finished, unfinished, limit, alpha)
        assert isinstance(answer, bool), f"answer True or False, not {answer!r}"
        return answer

    assert not stops([], -5.0, 20, 0.6), (
        "nothing is finished, and the search stopped: it needs at least one finished translation"
    )
    assert not stops([(-6.0, 3)], -2.0, 20, 0.6), (
        "the finished one has -6, an unfinished one only -2 so far: the search stopped at the first finished one"
    )
    assert stops([(-2.0, 7)], -9.0, 7, 0.0), (
        "alpha 0, -2 finished, -9 unfinished: log-probabilities only fall, so the search may stop"
    )
    # Finished: -4 / 1^1. Unfinished: -6 / (25 / 6) = -1.44 at the limit, but -6 / 1 now.
    assert not stops([(-4.0, 1)], -6.0, 20, 1.0), (
        "-6 may still become -6 / lp(20) = -1.44, better than -4 / lp(1) = -4: the unfinished one is bounded by the "
        "penalty at the limit, equation 16.3, and a log-probability alone compares nothing"
    )
    assert stops([(-4.0, 7)], -10.0, 7, 1.0), (
        "-4 / lp(7) = -2, and -10 / lp(7) = -5 is all that the other can reach: the search may stop"
    )
    # Finished: -4 / lp(7) = -2, and -4.5 / lp(19) = -1.125. Reachable: -6 / lp(19) = -1.5.
    assert stops([(-4.0, 7), (-4.5, 19)], -6.0, 19, 1.0), (
        "the best finished one is not the likeliest: -4.5 / lp(19) = -1.1 beats -4 / lp(7) = -2: take the largest score of the finished ones"
    )
    assert stops([(-4.5, 19), (-4.0, 7)], -6.0, 19, 1.0), (
        "finished ones in another order: take the best score of all of them, not the last one's"
    )
    assert not stops([(-4.0, 7)], -6.0, 19, 1.0), (
        "-4 / lp(7) = -2 is worse than -6 / lp(19) = -1.5: each finished one has the penalty of its own length, not the limit's"
    )
    assert stops([(-3.0, 7)], -4.6, 19, 0.5), (
        "alpha 0.5: -3 / sqrt(2) = -2.12 beats -4.6 / sqrt(4) = -2.3: alpha is an exponent"
    )
    assert stops([(-4.0, 7)], -8.0, 19, 1.0), (
        "-4 / lp(7) = -2 and -8 / lp(19) = -2 are equal: the unfinished one cannot do better, so stop"
    )
    generator = random.Random(0)
    for _ in range(300):
        alpha, limit = generator.choice((0.0, 0.4, 0.6, 1.0, 1.5)), generator.randint(5, 60)
        lengths = [generator.randint(1, limit) for _ in range(generator.randint(1, 3))]
        ended = [(-generator.uniform(1, 9), length) for length in lengths]
        best = max(p / ((5 + length) / 6) ** alpha for p, length in ended)
        edge = best * ((5 + limit) / 6) ** alpha  # there the two are equal
        for unfinished, may in ((0.99 * edge, False), (1.01 * edge, True)):
            assert stops(ended, unfinished, limit, alpha) == may, (
                f"finished {ended}, unfinished {unfinished:.3f}, limit {limit}, alpha {alpha}: the best score is "
                f"{best:.3f}, and what can be reached {unfinished * best / edge:.3f}, so the answer is {may}. Does every "
                "argument count, and is the penalty that of equation 16.2, ((5 + length) / 6) ** alpha?"
            )


@diagnostic("Exercise 16.2")
def check_top_p(attempt: Callable[[Tensor, float], Tensor]) -> None:
    """Check a top-p filter: nothing dropped, only the first, the token that crosses p, places, sum."""

    def kept(values: list[float], p: float) -> Tensor:
        answer = attempt(torch.tensor(values), p)
        answer = expect_tensor(answer, (len(values),), "the probabilities")
        assert bool((answer >= 0).all()), f"there are no negative probabilities: {answer.tolist()}"
        return answer

    four = [0.1, 0.5, 0.15, 0.25]
    everything = kept(four, 1.0)
    assert torch.allclose(everything, torch.tensor(four)), (
        f"p = 1 keeps every token at its place, yours gives {everything.tolist()}"
    )
    first = kept(four, 0.3)
    assert first.count_nonzero() > 0, (
        "p = 0.3 kept nothing: the token that crosses p belongs to the kept ones"
    )
    assert first[1] > 0, "the likeliest token is number 1: put the answer back to its old place"
    assert first.count_nonzero() == 1, (
        f"p = 0.3: token 1 alone has more than that, no other is needed; yours: {first.tolist()}"
    )
    assert abs(first.sum().item() - 1) < 1e-5, (
        f"what is kept should sum to 1 again, not to {first.sum():.2f}"
    )
    two = kept(four, 0.6)
    assert two[3] > 0, (
        "p = 0.6: token 1 has 0.5, so token 3 is still needed: the one that crosses p is kept"
    )
    assert two[0] == two[2] == 0, "p = 0.6: tokens 1 and 3 have 0.75 together, the others go"
    expected = torch.tensor([0, 2 / 3, 0, 1 / 3])
    assert torch.allclose(two, expected), (
        f"tokens 1 and 3 stay in proportion, 2/3 and 1/3, yours: {two.tolist()} (divide by the sum; a softmax of probabilities is something else)"
    )
    flat = kept([0.3, 0.1, 0.3, 0.3], 0.5)
    assert flat.count_nonzero() == 2, (
        f"p = 0.5 of three tokens with 0.3 each: any two are enough, yours keeps {int(flat.count_nonzero())}: count tokens, do not compare probabilities"
    )
    exactly = kept([0.5, 0.25, 0.25], 0.5)
    assert exactly[0] == 1, "p = 0.5, and the first token has just that: no other is needed"
    rising = torch.linspace(1, 3, 50).square()
    fifty = (rising / rising.sum()).tolist()
    assert kept(fifty, 0.5)[-1] > 0, "with 50 tokens the last is the likeliest: it is lost"


@diagnostic("Exercise 16.3")
def check_beam_search(
    attempt: Callable[[Callable[[list[int]], list[float]], int, int, int], list[int]],
) -> None:
    """Check a beam search on tables: each is made so that one mistake, and no other, shows."""
    end = 2
    asked: list[list[int]] = []

    def found(rows: dict[tuple[int, ...], list[float]], beam_size: int, most: int) -> list[int]:
        asked.clear()

        def next_token(tokens: list[int]) -> list[float]:
            asked.append(list(tokens))
            return [math.log(p) for p in rows.get(tuple(tokens), [0.01, 0.01, 0.98])]

        answer = attempt(next_token, beam_size, end, most)
        assert isinstance(answer, list), f"return a list of tokens, not {type(answer).__name__}"
        assert end not in answer, "leave the end token out of the answer"
        return answer

    def ends_with_0(tokens: list[int]) -> list[float]:
        return [math.log(p) for p in ([0.01, 0.9, 0.09] if not tokens else [0.9, 0.05, 0.05])]

    one_way = {(): [0.97, 0.02, 0.01], (0,): [0.02, 0.97, 0.01], (0, 1): [0.001, 0.001, 0.998]}
    one_way |= {(0, 1, last): [0.4, 0.3, 0.3] for last in (0, 1)}
    answer = found(one_way, 1, 5)
    assert answer or len(asked) > 1, (
        "[] has a probability of 0.01, [0, 1] of 0.92: the search stopped at the first finished one"
    )
    assert answer, (
        "[] came back, with a probability of 0.01: is the log-probability of the end token added, too?"
    )
    assert answer == [0, 1], f"the likeliest sentence is [0, 1], yours is {answer}"
    sums = {(): [0.6, 0.1, 0.3], (1,): [0.002, 0.002, 0.996]}
    answer = found(sums, 2, 5)
    assert answer != [1], (
        "[0] has 0.6 * 0.98, [1] only 0.1 * 0.996: log-probabilities are added up over all tokens"
    )
    assert answer == [0], f"the likeliest sentence is [0], with 0.588, yours is {answer}"
    steps = {(): [0.6, 0.39, 0.01], (0,): [0.3, 0.3, 0.4]}
    answer = found(steps, 2, 5)
    assert answer != [0], (
        "with a beam of 2 the start 1 survives, and 0.39 * 0.98 beats 0.6 * 0.4: how many go on?"
    )
    assert answer == [1], f"the likeliest sentence is [1], yours is {answer}"
    answer = found(steps, 1, 5)
    assert answer != [1], "a beam of 1 keeps the beginning 0 only: does yours keep more?"
    assert answer == [0], f"a beam of 1: token 0, then the end; yours gives {answer}"
    limited = {(): [0.9, 0.09, 0.01], (0,): [0.9, 0.09, 0.01]}
    assert found(limited, 2, 3) == [0, 0], (
        "[0, 0] and its end are 3 tokens, as many as allowed: is the last step missing?"
    )
    # Ends third of three: [] is the best within two tokens; then fifth of six.
    third = {(): [0.5, 0.3, 0.2], (0,): [0.5, 0.4, 0.1], (1,): [0.5, 0.4, 0.1]}
    fifth = {(): [0.5, 0.499, 0.001], (0,): [0.5, 0.49, 0.01], (1,): [0.5, 0.48, 0.02]}
    for rows, best in ((third, []), (fifth, [1])):
        answer = found(rows, 2, 2)
        assert len(answer) < 2, (
            f"{answer} has not ended within 2 tokens, the end counted: an unfinished sentence is no "
            "answer, however likely"
            if len(asked) < 4
            else f"{answer} and its end are 3 tokens, and the limit was 2"
        )
        assert answer == best, (
            f"{best} ends, although others that go on rank before it, yours gives {answer}: what ends "
            "is finished whatever its rank"
        )
    answer = attempt(ends_with_0, 2, 0, 4)
    assert answer == [1], (
        f"with the end token 0, [1] and its end are the likeliest, yours gives {answer}: use the argument `end`"
    )
    found({(): [0.5, 0.2, 0.3], (0,): [0.4, 0.3, 0.3], (1,): [0.4, 0.3, 0.3]}, 2, 3)
    places = sorted(tokens for tokens in asked if len(tokens) == 1)
    assert places == [[0], [1]], (
        f"after one token the beam holds [0] and [1], yours asks for {places}: what has ended must not "
        "take a place in the beam, and no beginning is asked for twice"
    )
