"""The checks of chapter 13's exercises."""

import random
from collections import Counter
from collections.abc import Callable

from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 13.1")
def check_merge(attempt: Callable[[list[str], tuple[str, str]], list[str]]) -> None:
    """Check one BPE merge: nothing to do, one and several occurrences, order, overlap, the input."""
    pieces = list("abcab")
    assert attempt(pieces, ("x", "y")) == pieces, "a pair that does not occur should change nothing"
    assert attempt(list("abc"), ("b", "c")) == ["a", "bc"], (
        "a pair at the end of the list is missed, or its rest lost"
    )
    merged = attempt(pieces, ("a", "b"))
    assert merged == ["ab", "c", "ab"], (
        f"a b c a b with (a, b) is ab c ab, yours is {' '.join(merged)}"
    )
    assert pieces == list("abcab"), "the list that came in was changed: build a new one"
    assert attempt(list("ba"), ("a", "b")) == ["b", "a"], "(a, b) is not (b, a): mind the order"
    assert attempt(list("aaa"), ("a", "a")) == ["aa", "a"], (
        "a a a with (a, a) is aa a: each piece can be used once"
    )
    assert attempt(["au", "s", "s"], ("au", "s")) == ["aus", "s"], (
        "pieces may be longer than a letter"
    )
    assert attempt(["xa", "b"], ("a", "b")) == ["xa", "b"], (
        "xa is not a: compare whole pieces, not the text they spell"
    )


@diagnostic("Exercise 13.2")
def check_reads_and_says(attempt: Callable[[list[list[int]]], tuple[Tensor, Tensor]]) -> None:
    """Check the decoder's input and output: one row first, then rows of different lengths."""
    answer = attempt([[7, 8, 9]])
    assert isinstance(answer, tuple) and len(answer) == 2, (
        "return two tensors: what is read, what should be said"
    )
    reads = expect_tensor(answer[0], (1, 4), "what the decoder reads for one target of 3 tokens")
    says = expect_tensor(answer[1], (1, 4), "what it should say for one target of 3 tokens")
    assert not reads.is_floating_point() and not says.is_floating_point(), "ids are integers"
    assert reads.tolist() != [[7, 8, 9, 2]], (
        "the two are swapped: what is read begins with <bos>, what is said ends with <eos>"
    )
    assert reads.tolist() == [[1, 7, 8, 9]], (
        f"the decoder should read 1 7 8 9, yours reads {reads.tolist()[0]}"
    )
    assert says.tolist() == [[7, 8, 9, 2]], f"it should say 7 8 9 2, yours says {says.tolist()[0]}"
    reads, says = attempt([[7, 8, 9], [5]])
    reads = expect_tensor(reads, (2, 4), "what the decoder reads for targets of 3 and 1 tokens")
    says = expect_tensor(says, (2, 4), "what it should say for targets of 3 and 1 tokens")
    assert says[1].tolist() != [5, 0, 0, 2], (
        "the short row ends with <eos>, then comes the padding: you have it the other way round"
    )
    assert reads[1].tolist() != [1, 5, 2, 0], (
        "the short row still reads <eos>: cutting off the last column takes it from the longest row only"
    )
    assert reads[1].tolist() == [1, 5, 0, 0], (
        f"the short row should read 1 5 0 0, yours reads {reads[1].tolist()}"
    )
    assert says[1].tolist() == [5, 2, 0, 0], (
        f"the short row should say 5 2 0 0, yours says {says[1].tolist()}"
    )
    assert attempt([[5], [7, 8, 9]])[1][1].tolist() == [7, 8, 9, 2], "the longest row may come last"


@diagnostic("Exercise 13.3")
def check_padding_share(attempt: Callable[[list[int], int], float]) -> None:
    """Check a predicted share of padding: none, one batch, several, a last batch that is smaller."""

    def close(lengths: list[int], batch_size: int, expected: float) -> bool:
        return abs(float(attempt(lengths, batch_size)) - expected) < 1e-9

    assert close([4, 4, 4, 4], 2, 0.0), "equal lengths need no padding"
    assert close([1, 3], 2, 1 / 3), (
        f"lengths 1 and 3: 2 of 6 positions are padding, you say {attempt([1, 3], 2)}"
    )
    assert not close([1, 3, 10, 10], 2, 1 / 6), (
        "you average the shares of the batches, but large batches count more"
    )
    assert close([1, 3, 10, 10], 2, 2 / 26), (
        f"2 of 26 positions are padding, you say {attempt([1, 3, 10, 10], 2)}"
    )
    assert close([3, 3, 9], 2, 0.0), (
        "the last batch is smaller: it has only as many rows as there are sentences left"
    )
    assert close([1, 9, 1, 9], 4, 16 / 36) and close([1, 1, 9, 9], 2, 0.0), (
        "the order of the lengths matters"
    )


@diagnostic("Exercise 13.4")
def check_groups(attempt: Callable[[list[int], int], list[list[int]]]) -> None:
    """Check batches by tokens: cover, limit, padding, use of the room, and what fits nowhere."""
    groups = attempt([3, 3, 3, 3], 6)
    assert sorted(map(sorted, groups)) != [[3, 3], [3, 3]], (
        "return the sentences' numbers, not their lengths"
    )
    generator = random.Random(0)
    lengths = [min(generator.randint(1, 12) * generator.randint(1, 5), 50) for _ in range(400)] + [
        50
    ]
    groups = attempt(lengths, 100)
    assert all(groups), "there is an empty group"
    used = Counter(index for group in groups for index in group)
    missing = [index for index in range(len(lengths)) if index not in used]
    assert not missing, (
        f"{len(missing)} of {len(lengths)} sentences are in no group: is the last group returned?"
    )
    assert used.total() == len(lengths), "a sentence is in two groups"
    padded = [len(group) * max(lengths[index] for index in group) for group in groups]
    assert max(padded) <= 100, (
        f"a group has {max(padded)} positions with padding, the limit is 100: do you count only real tokens?"
    )
    share = 1 - sum(lengths) / sum(padded)
    assert share < 0.1, f"{share:.0%} of the positions are padding: are similar lengths together?"
    assert len(groups) < 0.5 * len(lengths), (
        f"{len(groups)} groups for {len(lengths)} sentences: are they filled up to the limit?"
    )
    assert len(attempt([5, 5], 10)) == 1, "exactly max_tokens positions still fit"
    try:
        attempt([2, 11, 3], 10)
    except ValueError:
        return
    raise AssertionError("a sentence of 11 tokens cannot fit under 10: raise a ValueError")
