"""The checks of chapter 22's exercises."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 22.1")
def check_yardsticks(
    attempt: Callable[[float, int, int, int], tuple[float, float, float]],
) -> None:
    """Check the three measures, each for itself, on texts whose four numbers all differ."""
    for text in ((1200.0, 400, 250, 1500), (90.0, 60, 50, 200)):
        _try_yardsticks(attempt, *text)


def _try_yardsticks(
    attempt: Callable[..., Any], nats: float, tokens: int, words: int, characters: int
) -> None:
    answer = attempt(nats, tokens, words, characters)
    assert isinstance(answer, tuple | list) and len(answer) == 3, (
        f"return three numbers, got {answer!r}"
    )
    per_token, per_word, bits = map(float, answer)
    assert not math.isclose(per_token, 2 ** (nats / tokens), rel_tol=1e-3), (
        "perplexity per token: the cost is in nats, so the base is e, not 2"
    )
    assert not math.isclose(per_token, nats / tokens, rel_tol=1e-3), (
        "perplexity per token: that is the mean loss, its exponential is wanted"
    )
    assert math.isclose(per_token, math.exp(nats / tokens), rel_tol=1e-3), (
        f"perplexity per token should be {math.exp(nats / tokens):.3f}, got {per_token:.3f}"
    )
    assert not math.isclose(per_word, per_token * tokens / words, rel_tol=1e-3), (
        "perplexity per word: costs add up, perplexities do not; spread the nats over the words first"
    )
    assert math.isclose(per_word, math.exp(nats / words), rel_tol=1e-3), (
        f"perplexity per word should be {math.exp(nats / words):.3f}, got {per_word:.3f}"
    )
    assert not math.isclose(bits, nats / characters, rel_tol=1e-3), (
        "bits per character: these are nats; one bit is ln 2 nats"
    )
    assert not math.isclose(bits, nats * math.log(2) / characters, rel_tol=1e-3), (
        "bits per character: divide by ln 2, there are more bits than nats"
    )
    assert not math.isclose(bits, nats / math.log(2) / tokens, rel_tol=1e-3), (
        "bits per character: that is per token"
    )
    right = nats / math.log(2) / characters
    assert math.isclose(bits, right, rel_tol=1e-3), (
        f"bits per character should be {right:.3f}, got {bits:.3f}"
    )


@diagnostic("Exercise 22.2")
def check_windows(attempt: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check the windows of a text whose token i is 100 + i: shapes, the shift, then what is left out."""
    # The last window just fits, just does not, leaves a rest; another length
    for count, length in ((21, 5), (20, 5), (23, 5), (31, 4)):
        tokens = torch.arange(100, 100 + count)
        fit = (count - 1) // length
        pair = attempt(tokens, length)
        assert isinstance(pair, tuple | list) and len(pair) == 2, (
            f"return read and wanted, got {type(pair).__name__}"
        )
        read, wanted = pair
        for name, windows in (("read", read), ("wanted", wanted)):
            assert isinstance(windows, Tensor) and windows.dim() == 2, f"{name} should be a matrix"
            assert len(windows) >= fit, (
                f"{count} tokens have {fit} windows of {length}, {name} has {len(windows)}: "
                "only a rest that fills no window is left out"
            )
            expect_tensor(windows, (fit, length), f"of {count} tokens, {name}")
        assert not torch.equal(read, wanted), (
            "what is wanted is what is read: shift it by one token"
        )
        assert not torch.equal(wanted, read - 1), "wanted is the token before: shift the other way"
        assert torch.equal(wanted, read + 1), (
            f"each wanted token should be the one behind it: {read[0].tolist()}, {wanted[0].tolist()}"
        )
        assert read[0, 0] == 100, f"begin with the first token, not with number {read[0, 0] - 100}"
        missing = set(range(101, 101 + length * fit)) - set(wanted.flatten().tolist())
        assert not missing, (
            f"tokens {sorted(x - 100 for x in missing)} are never wanted: "
            "a window's last wanted token is the next one's first that is read"
        )


@diagnostic("Exercise 22.3")
def check_discounting(
    attempt: Callable[[Counter[str], dict[str, float], float], dict[str, float]],
) -> None:
    """Check absolute discounting: an unseen history, the sum, an unseen character, then the values."""
    shorter = {"a": 0.5, "b": 0.2, "c": 0.2, "d": 0.1}
    counts = Counter({"a": 6, "b": 3, "c": 1})
    found = attempt(Counter(counts), dict(shorter), 0.5)
    assert isinstance(found, dict), f"return a dictionary, got {type(found).__name__}"
    assert set(found) == set(shorter), (
        f"give every character of `shorter` a probability, got {sorted(found)}"
    )
    assert found["d"] >= 0, f"'d' was never seen: max(..., 0), a probability is not {found['d']}"
    assert found["d"] > 0, "'d' was never seen here: it should get what the shorter history gives"
    total = sum(found.values())
    assert abs(total - 1) < 1e-6, (
        f"the probabilities add up to {total:.3f}: hand out what was taken, the discount once for "
        "each DIFFERENT character"
    )
    expected = {"a": 0.55 + 0.075, "b": 0.25 + 0.03, "c": 0.05 + 0.03, "d": 0.015}
    for character, p in expected.items():
        assert abs(found[character] - p) < 1e-6, (
            f"p({character!r}) should be {p:.3f}, got {found[character]:.3f}: hand out in proportion "
            "to `shorter`"
        )
    other = attempt(Counter(counts), dict(shorter), 0.9)
    assert abs(other["d"] - 0.9 * 3 / 10 * 0.1) < 1e-6, (
        f"with a discount of 0.9 p('d') should be 0.027, got {other['d']:.3f}: use `discount`"
    )
    unseen = attempt(Counter(), dict(shorter), 0.5)
    assert unseen == shorter, (
        f"a history that was never seen should leave it to `shorter`, got {unseen}"
    )


@diagnostic("Exercise 22.4")
def check_longest_copy(attempt: Callable[[list[str], list[str]], list[str]]) -> None:
    """Check the longest copied run: words, gaps, order, ties, ends, and nothing at all."""

    def ask(text: str, source: str) -> list[str]:
        answer = attempt(text.split(), source.split())
        assert isinstance(answer, list | tuple), (
            f"return a list of words, got {type(answer).__name__}"
        )
        return list(answer)

    got = ask("she was very glad indeed", "he was very glad of it")
    assert got == ["was", "very", "glad"], f"should be ['was', 'very', 'glad'], got {got}"
    got = ask("a b c x d e", "a b c d e")
    assert got == ["a", "b", "c"], f"without a gap it is ['a', 'b', 'c'], got {got}"
    got = ask("c b a d", "a b c e d")
    assert len(got) == 1, f"the words have to stand in the same order, got {got}"
    got = ask("the cat", "other cathedrals")
    assert got == [], f"whole words only: 'the cat' has no word of 'other cathedrals', got {got}"
    got = ask("one two x three four", "three four y one two")
    assert got == ["one", "two"], f"of two equally long, the first in `text`, got {got}"
    got = ask("u v w", "a b c u v w")
    assert got == ["u", "v", "w"], f"a run may reach to the end of both, got {got}"
    got = ask("a b", "c d")
    assert got == [], f"nothing was copied: [] is wanted, got {got}"
    got = ask("a a a b", "a a b a")
    assert got == ["a", "a", "b"], f"of 'a a a b', 'a a b' stands in 'a a b a', got {got}"
