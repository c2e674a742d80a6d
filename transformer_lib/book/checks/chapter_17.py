"""The checks of chapter 17's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.book.checks import diagnostic
from transformer_lib.layers import EncoderLayer


@diagnostic("Exercise 17.1")
def check_clipped_matches(
    attempt: Callable[[list[str], list[list[str]], int], tuple[int, int]],
) -> None:
    """Check clipped matches: clipping, one reference, several, longer runs, none."""

    def counts(hypothesis: list[str], references: list[list[str]], n: int) -> tuple[int, ...]:
        found = attempt(hypothesis, references, n)
        assert isinstance(found, tuple | list) and len(found) == 2, (
            f"return (matches, runs), not {found!r}"
        )
        return tuple(found)

    answer = counts(["the"] * 4, [["the", "cat"]], 1)
    assert answer != (4, 4), "'the the the the' against 'the cat': clip, one 'the' is allowed"
    assert answer == (1, 4), f"'the the the the' against 'the cat' is (1, 4), yours {answer}"
    answer = counts(["the", "the", "cat"], [["the", "the", "dog"]], 1)
    assert answer[0] != 1, "'the' stands twice on both sides and counts twice: a set forgets that"
    assert answer == (2, 3), f"'the the cat' against 'the the dog' is (2, 3), yours {answer}"
    answer = counts(["the"] * 4, [["the", "cat"], ["a", "the", "the"]], 1)
    assert answer[0] != 3, "references with one and with two 'the' allow two, the most, not three"
    assert answer == (2, 4), f"one 'the' in a reference, two in the other: (2, 4), yours {answer}"
    answer = counts(["a", "b", "c", "d"], [["b", "c", "d", "a"]], 2)
    assert answer == (2, 3), f"'a b c d' against 'b c d a', runs of 2: (2, 3), yours {answer}"
    answer = counts(["a"], [["a", "b"]], 2)
    assert answer == (0, 0), f"one word has no run of 2: (0, 0), yours {answer}"
    answer = counts(["a", "b"], [["a"], ["b"]], 1)
    assert answer == (2, 2), (
        f"each run may use the reference that has it most often: (2, 2), yours {answer}"
    )


@diagnostic("Exercise 17.2")
def check_brevity_penalty(attempt: Callable[[list[int], list[list[int]]], float]) -> None:
    """Check the brevity penalty: long, short, several sentences, several references, nothing."""
    upside_down = "upside down: it is exp(1 - r/h), the reference's length over the hypothesis's"
    answer = attempt([12], [[10]])
    assert abs(answer - math.exp(1 - 12 / 10)) > 1e-6, upside_down
    assert not answer > 1, f"12 words for 10: a long text gets no bonus, yours {answer}"
    assert answer == 1, f"12 words for 10: long enough, so 1, yours {answer}"
    answer = attempt([8], [[10]])
    assert abs(answer - math.exp(1 - 8 / 10)) > 1e-6, upside_down
    assert abs(answer - 0.8) > 1e-6, "8/10 is the ratio itself: the penalty is exponential in r/h"
    assert abs(answer - math.exp(1 - 10 / 8)) < 1e-6, (
        f"8 words for 10: exp(1 - 10/8) = 0.779, yours {answer}"
    )
    answer = attempt([5, 15], [[10], [10]])
    assert answer == 1, f"5 and 15 words for 10 and 10, 20 for 20: 1, yours {answer}; add up first"
    answer = attempt([8], [[12, 7, 20]])
    assert answer == 1, f"8 words for 12, 7 or 20: the closest is 7, so 1, yours {answer}"
    answer = attempt([9], [[12, 5]])
    assert abs(answer - math.exp(1 - 12 / 9)) < 1e-6, (
        f"9 words for 12 or 5: the closest is 12, so exp(1 - 12/9) = 0.717, yours {answer}"
    )
    answer = attempt([8], [[10, 6]])
    assert answer == 1, f"8 words for 10 or 6, equally close: the shorter, so 1, yours {answer}"
    answer = attempt([8], [[6, 10]])
    assert answer == 1, f"8 words for 6 or 10, equally close: the shorter, so 1, yours {answer}"
    answer = attempt([5, 5], [[5, 9], [9, 5]])
    assert answer == 1, f"each sentence has a reference of its own length, so 1, yours {answer}"
    answer = attempt([0], [[5]])
    assert answer == 0, f"no words at all: 0, yours {answer}"


@diagnostic("Exercise 17.3")
def check_paired_bootstrap(
    attempt: Callable[[Tensor, Tensor, Callable[[Tensor], float], int, int], float],
) -> None:
    """Check a paired bootstrap on two systems of which one is always a little better."""
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(50, 1, generator=generator) * 10  # (sentences, 1)
    better = torch.cat([torch.ones(50, 1), right], dim=1)  # (sentences, 2)
    worse = torch.cat([torch.ones(50, 1), right - 0.01], dim=1)  # (sentences, 2)
    drawn: list[Tensor] = []

    def score(summed: Tensor) -> float:
        assert tuple(summed.shape) == (2,), (
            f"score wants counts summed over the drawn sentences, shape (2,), got {tuple(summed.shape)}"
        )
        drawn.append(summed)
        return float(summed[1] / summed[0])

    answer = attempt(better, worse, score, 40, 1)
    assert len(drawn) == 80, f"40 draws, 2 systems: score should run 80 times, it ran {len(drawn)}"
    numbers = {round(float(summed[0])) for summed in drawn}
    assert numbers == {50}, f"50 sentences: each draw takes 50 rows, yours took {sorted(numbers)}"
    assert len({round(float(summed[1]), 2) for summed in drawn}) > 2, (
        "every draw has the same sum: draw WITH replacement, anew each time"
    )
    assert answer != 40, "return the share of the draws, not their number"
    assert answer == 1.0, (
        f"the first is better by 0.01 in every sentence, so in every draw: 1.0, yours {answer}."
        " Are both systems given the SAME drawn sentences?"
    )
    answer = attempt(worse, better, score, 40, 1)
    assert answer == 0.0, f"the other way around it never wins: 0.0, yours {answer}"
    answer = attempt(better, better, score, 40, 1)
    assert answer == 0.0, f"a system is never strictly better than itself: 0.0, yours {answer}"
    noise = torch.randn(50, 1, generator=generator) * 3  # (sentences, 1)
    other = torch.cat([torch.ones(50, 1), right + noise - noise.mean()], dim=1)  # (sentences, 2)
    shares = [attempt(better, other, score, 200, seed) for seed in (1, 1, 2)]
    assert shares[0] == shares[1], f"the same seed should give the same share, not {shares[:2]}"
    drawn.clear()
    attempt(better, other, score, 1, 1)
    attempt(better, other, score, 1, 2)
    assert not torch.equal(drawn[0], drawn[2]), "another seed should draw other sentences"
    assert 0.3 < shares[2] < 0.7, f"equal on average, it wins in about half: yours {shares[2]}"


@diagnostic("Exercise 17.4")
def check_layer_flops(attempt: Callable[[int, int, int], int]) -> None:
    """Check the FLOPs of an encoder layer against torch's counter."""
    for length, d_model, d_ff in ((5, 8, 24), (11, 16, 40)):
        layer = EncoderLayer(d_model, 2, d_ff)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            layer(torch.zeros(1, length, d_model))
        expected, answer = counter.get_total_flops(), attempt(length, d_model, d_ff)
        product = 2 * length * length * d_model  # one of attention's two
        matrix = 2 * length * d_model * d_model
        network = 2 * length * d_model * d_ff
        assert answer != expected // 2, "these are multiply-adds: each is two FLOPs"
        assert answer != 3 * expected, "this is forward and backward: forward only"
        assert answer != expected - 2 * product, (
            "attention itself is missing: queries with keys, and weights with values"
        )
        assert answer != expected - product, "attention has TWO products, one of them is missing"
        assert answer != expected - matrix, "there are FOUR matrices of d x d, W_O is one of them"
        assert answer != expected - network, "the feed-forward network has TWO matrices"
        assert answer == expected, (
            f"length {length}, d_model {d_model}, d_ff {d_ff}: torch counts {expected}, you {answer}"
        )
