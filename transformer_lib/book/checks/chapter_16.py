"""The checks of chapter 16's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 16.1")
def check_length_penalty(attempt: Callable[[float, int, float], float]) -> None:
    """Check a length penalty: one token, alpha 0, alpha 1, then any."""

    def near(answer: float, expected: float) -> bool:
        return abs(float(answer) - expected) < 1e-6

    assert not near(attempt(-3.0, 1, 0.6), -3.0 * (6 / 6) ** 0.6 * 2), "that is twice the score"
    assert near(attempt(-3.0, 1, 0.6), -3.0), (
        f"one token has the penalty (5 + 1) / 6 = 1, so the score is -3, yours is {attempt(-3.0, 1, 0.6)}"
    )
    assert near(attempt(-3.0, 20, 0.0), -3.0), (
        "alpha 0 leaves the log-probability as it is: is alpha the exponent?"
    )
    assert near(attempt(-6.0, 7, 1.0), -3.0), (
        f"7 tokens have the penalty 12 / 6 = 2 with alpha 1: -6 becomes -3, yours is {attempt(-6.0, 7, 1.0)} "
        "(multiplied instead of divided gives -12)"
    )
    assert near(attempt(-4.0, 19, 0.5), -2.0), (
        "19 tokens with alpha 0.5: the penalty is sqrt(4) = 2"
    )


@diagnostic("Exercise 16.2")
def check_top_p(attempt: Callable[[Tensor, float], Tensor]) -> None:
    """Check a top-p filter: nothing dropped, only the first, the token that crosses p, places, sum."""
    probability = torch.tensor([0.1, 0.5, 0.15, 0.25])
    before = probability.clone()
    everything = expect_tensor(attempt(probability, 1.0), (4,), "four probabilities")
    assert torch.equal(probability, before), "the tensor that came in was changed: return a new one"
    assert torch.allclose(everything, probability), "p = 1 keeps every token"
    first = attempt(probability, 0.3)
    assert torch.equal(probability, before), "the tensor that came in was changed: return a new one"
    assert first.count_nonzero() > 0, (
        "p = 0.3 kept nothing: the token that crosses p belongs to the kept ones"
    )
    assert first[1] > 0, "the likeliest token is number 1: put the answer back to its old place"
    assert torch.allclose(first, torch.tensor([0.0, 1.0, 0.0, 0.0])), (
        f"p = 0.3: token 1 alone has more than that, so it gets probability 1; yours: {first.tolist()}"
    )
    two = attempt(probability, 0.6)
    assert two[3] > 0, "p = 0.6: token 1 has 0.5, so token 3 is still needed to get there"
    assert two[0] == two[2] == 0, "p = 0.6: tokens 1 and 3 have 0.75 together, the others go"
    assert abs(two.sum().item() - 1) < 1e-5, "what is kept should sum to 1 again"
    exactly = attempt(torch.tensor([0.5, 0.25, 0.25]), 0.5)
    assert exactly[0] == 1, "p = 0.5, and the first token has just that: no other is needed"


@diagnostic("Exercise 16.3")
def check_beam_search(
    attempt: Callable[[Callable[[list[int]], list[float]], int, int, int], list[int]],
) -> None:
    """Check a beam search on tables: beam 1, a better second start, the end token, an early short one."""
    end = 2

    def table(rows: dict[tuple[int, ...], list[float]]) -> Callable[[list[int]], list[float]]:
        def next_token(tokens: list[int]) -> list[float]:
            row = rows.get(tuple(tokens), [0.01, 0.01, 0.98])
            return [math.log(p) for p in row]

        return next_token

    steps = table({(): [0.6, 0.39, 0.01], (0,): [0.3, 0.3, 0.4], (1,): [0.01, 0.01, 0.98]})
    greedy = attempt(steps, 1, end, 5)
    assert isinstance(greedy, list), f"return a list of tokens, not {type(greedy).__name__}"
    assert end not in greedy, "leave the end token out of the answer"
    assert greedy == [0], f"a beam of 1 is greedy: token 0, then the end; yours gives {greedy}"
    wide = attempt(steps, 2, end, 5)
    assert wide != [0], (
        "with a beam of 2 the start 1 survives, and 0.39 * 0.98 beats 0.6 * 0.4: are log-probabilities "
        "added up over all tokens, the end included?"
    )
    assert wide == [1], f"the likeliest sentence is [1], yours is {wide}"
    longer = table(
        {
            (): [0.5, 0.08, 0.42],
            (0,): [0.97, 0.02, 0.01],
            (0, 0): [0.01, 0.97, 0.02],
            (0, 0, 1): [0.01, 0.01, 0.98],
        }
    )
    found = attempt(longer, 2, end, 6)
    assert found != [], (
        "the empty sentence has 0.42, but [0, 0, 1] has more: the search stopped at the first finished one"
    )
    assert found == [0, 0, 1], f"the likeliest sentence is [0, 0, 1], yours is {found}"
    endless = table({(0,) * n: [0.9, 0.05, 0.05] for n in range(9)})
    assert attempt(endless, 2, end, 4) == [], (
        "of at most 4 tokens, the end counted, [] is the likeliest finished sentence, with 0.05: "
        "an unfinished sentence is no answer, however likely"
    )
    limited = table({(): [0.9, 0.09, 0.01], (0,): [0.9, 0.09, 0.01], (0, 0): [0.01, 0.01, 0.98]})
    found = attempt(limited, 2, end, 2)
    assert found != [0, 0], "[0, 0] and its end are 3 tokens, and the limit was 2"
    assert found == [1], f"of at most 2 tokens, the end counted, [1] is the likeliest, not {found}"
    assert attempt(limited, 2, end, 3) == [0, 0], (
        "[0, 0] and its end are 3 tokens, as many as allowed"
    )
    narrow = table(
        {
            (): [0.55, 0.44, 0.01],
            (0,): [0.5, 0.49, 0.01],
            (1,): [0.5, 0.49, 0.01],
            (0, 0): [0.5, 0.4, 0.1],
            (0, 1): [0.5, 0.4, 0.1],
        }
    )
    assert attempt(narrow, 4, end, 5) == [1, 0], "a beam of 4 finds [1, 0], with 0.22"
    assert attempt(narrow, 2, end, 5) == [0, 0, 0], (
        "a beam of 2 goes on with the two likeliest beginnings only and loses [1, 0]; does yours keep more?"
    )
