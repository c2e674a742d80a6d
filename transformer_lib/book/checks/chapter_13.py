"""The checks of chapter 13's exercises."""

import random
from collections import Counter
from collections.abc import Callable

from tokenizers import Tokenizer

from transformer_lib.book.checks import diagnostic
from transformer_lib.tokenizer import encode_texts, train_tokenizer


@diagnostic("Exercise 13.1")
def check_token_bytes(attempt: Callable[[str], bytes]) -> None:
    """Check the way back from what is shown to bytes: printable ones, the space, all 256, no detour by text."""
    got = attempt("the")
    assert isinstance(got, bytes), f"return bytes, not {type(got).__name__}"
    assert got == b"the", f"letters stand for themselves: b'the', yours is {got!r}"
    space = attempt("Ġthe")
    assert space != "Ġthe".encode(), (
        "this is the UTF-8 of the token: the characters shown are no text, each is one byte"
    )
    assert space == b" the", (
        f"Ġ is number 288, the 33rd of the others, byte 32: b' the', yours is {space!r}"
    )
    umlaut = attempt("Ã¤")
    assert umlaut != "Ã¤".encode(), (
        "this is the UTF-8 of the token: each character shown is one byte, also those from 161 on"
    )
    assert umlaut == "ä".encode(), f"Ã¤ is two bytes, 195 and 164, yours are {list(umlaut)}"
    half = attempt("Ã")
    assert half == bytes([195]), (
        f"half a character is a token like any other: byte 195, yours are {list(half)}"
    )
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    wrong = []
    for number, byte in [*((b, b) for b in shown), *((256 + n, b) for n, b in enumerate(others))]:
        answer = attempt(chr(number))
        if answer != bytes([byte]):
            wrong.append((number, byte, list(answer)))
    low = [case for case in wrong if case[1] > 32]
    assert not wrong or low, f"the first 33 of the others are bytes 0 to 32: {wrong[0]}"
    assert not wrong, (
        f"{len(wrong)} of 256 characters are wrong, first number {wrong[0][0]}: byte {wrong[0][1]}, yours {wrong[0][2]}. "
        "The others are counted through, 0 to 32, then 127 to 160, then 173"
    )
    every = "".join(chr(256 + n) for n in range(68))
    assert attempt(every) == bytes(others), "a token of many such characters is the bytes of each"
    assert attempt("") == b"", "a token of no characters is no bytes"


_TEXTS = [
    "Öffnet das Dokument.",
    "Fertig 🙂",
    "🙂🙃 und 👩‍🚀, שלום",
    "ñ",
    "ein ñ und ß",
    "",
    "  two  spaces ",
    "ä",
]


@diagnostic("Exercise 13.2")
def check_shown_at_once(attempt: Callable[[Tokenizer, list[int]], list[str]]) -> None:
    """Check what can be shown: as many as tokens, whole characters, as early as can be, all of the text."""
    tokenizer = train_tokenizer(
        [" ä ö ü ß é à", "das Dokument das"] * 3, 263
    )  # one token: space, half a letter
    for text in _TEXTS:
        (ids,) = encode_texts(tokenizer, [text])
        shown = attempt(tokenizer, ids)
        assert isinstance(shown, list) and all(isinstance(part, str) for part in shown), (
            f"return a list of strings, one for each token, not {shown!r}"
        )
        assert len(shown) == len(ids), (
            f"{text!r} has {len(ids)} tokens, yours are {len(shown)} strings: an unfinished character adds an empty one"
        )
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown), (
            f"for {text!r} a replacement mark is shown, {shown}: what is not a whole character has to wait"
        )
        joined = "".join(shown)
        if joined != text:
            cause = "a part is shown twice, or too early"
            if joined.replace(" ", "") == text.replace(" ", ""):
                cause = "a space is lost"
            elif len(joined) < len(text):
                cause = "what had to wait is never shown"
            raise AssertionError(f"all together should be {text!r}, yours is {joined!r}: {cause}")
        data = b"".join(_bytes(tokenizer.id_to_token(i)) for i in ids)
        end, early = 0, ""
        for number, i in enumerate(ids):
            end += len(_bytes(tokenizer.id_to_token(i)))
            can_be = data[:end].decode("utf-8", "ignore")  # whole characters only
            early += shown[number]
            assert early == can_be, (
                f"{text!r}: after token {number} one can show {can_be!r}, yours shows {early!r}: whole characters are shown "
                "at once, also when something unfinished follows them, and nothing before it is there"
            )


def _bytes(token: str | None) -> bytes:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return bytes(ord(c) if ord(c) < 256 else others[ord(c) - 256] for c in token or "")


@diagnostic("Exercise 13.3")
def check_padding_share(attempt: Callable[[list[int], int], float]) -> None:
    """Check a predicted share of padding: none, one batch, several, a last batch that is smaller."""

    def share(lengths: list[int], batch_size: int) -> float:
        answer = attempt(lengths, batch_size)
        assert isinstance(answer, int | float), f"return a number, not {type(answer).__name__}"
        return float(answer)

    def is_close(got: float, expected: float) -> bool:
        return abs(got - expected) < 1e-9

    got = share([1, 3], 2)
    assert not is_close(got, 2 / 3), "this is the share of real tokens: the rest is padding"
    assert not is_close(got, 2 / 4), "padding by real tokens: divide by all positions"
    assert not is_close(got, 2), "this is the number of pads: divide by the number of positions"
    assert is_close(got, 1 / 3), f"lengths 1 and 3: 2 of 6 positions are padding, you say {got}"
    assert is_close(share([4, 4, 4, 4], 2), 0), "equal lengths need no padding"
    got = share([1, 3, 10, 10], 2)
    assert not is_close(got, 1 / 6), (
        "you average the shares of the batches, but large batches count more"
    )
    assert not is_close(got, 16 / 40), (
        "you fill up to the longest of all: each batch is as wide as its own longest sentence"
    )
    assert is_close(got, 2 / 26), f"2 of 26 positions are padding, you say {got}"
    got = share([3, 3, 9], 2)
    assert is_close(got, 0), (
        f"lengths 3, 3, 9 by twos need none, you say {got}: the last batch is smaller, with as many rows as there are "
        "sentences left"
    )
    got = share([2, 4, 5, 1, 9], 2)
    assert not is_close(got, 1 - 12 / 18), "the last batch, which is not full, is left out"
    assert not is_close(got, 1 - 21 / 23), "the lengths come in this order, so do not sort them"
    assert is_close(got, 1 - 21 / 27), f"2 4, 5 1, 9: 6 of 27 positions are padding, you say {got}"
    got = share([1, 9, 1, 9], 2)
    assert is_close(got, 16 / 36), (
        f"1 9, 1 9: 16 of 36 positions are padding, you say {got}: the lengths come in this order, so do not sort"
    )
    got = share([9, 8, 2, 2], 2)
    assert is_close(got, 1 / 22), (
        f"9 8, 2 2: 1 of 22 positions is padding, you say {got}: a batch is as wide as the longest of ITS sentences, "
        "not of all so far"
    )
    assert is_close(share([7], 64), 0), "a single sentence fills its batch"
    assert is_close(share([1, 2, 3, 4, 5], 1), 0), "batches of one sentence have no padding"


@diagnostic("Exercise 13.4")
def check_groups(attempt: Callable[[list[int], int], list[list[int]]]) -> None:
    """Check batches by tokens: cover, limit, padding, use of the room, and what fits nowhere."""
    groups = attempt([3, 3, 3, 3], 6)
    assert isinstance(groups, list) and all(isinstance(group, list) for group in groups), (
        f"return a list of lists, not {groups!r}"
    )
    assert sorted(map(sorted, groups)) != [[3, 3], [3, 3]], (
        "return the sentences' numbers, not their lengths"
    )
    generator = random.Random(0)
    mixed = [min(generator.randint(1, 12) * generator.randint(1, 5), 50) for _ in range(400)]
    for lengths, max_tokens in (
        ([4] * 6, 8),
        ([5, 9, 2, 2, 7], 20),
        ([*mixed, 50], 100),
        (sorted(mixed, reverse=True), 163),
        (mixed[:90], max(mixed[:90])),
    ):
        _check_cover(attempt(lengths, max_tokens), lengths, max_tokens)
    assert len(attempt([5, 5], 10)) == 1, "exactly max_tokens positions still fit"
    for lengths, max_tokens in (([2, 11, 3], 10), ([3, 4, 6], 5)):
        try:
            attempt(lengths, max_tokens)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(
                f"a sentence of {max(lengths)} tokens cannot fit under {max_tokens}: raise a ValueError, not {type(error).__name__}"
            ) from error
        raise AssertionError(
            f"a sentence of {max(lengths)} tokens cannot fit under {max_tokens}: raise a ValueError"
        )


def _check_cover(groups: list[list[int]], lengths: list[int], max_tokens: int) -> None:
    used = Counter(index for group in groups for index in group)
    missing = [index for index in range(len(lengths)) if index not in used]
    assert not missing, (
        f"{len(missing)} of {len(lengths)} sentences are in no group, the first has number {missing[0]} and {lengths[missing[0]]} "
        "tokens: is the last group returned, and the one that did not fit any more kept?"
    )
    assert all(groups), "there is an empty group"
    assert len(used) == len(lengths), f"there is no sentence with the number {max(used)}"
    assert used.total() == len(lengths), "a sentence is in two groups"
    padded = [len(group) * max(lengths[index] for index in group) for group in groups]
    real = [sum(lengths[index] for index in group) for group in groups]
    assert max(padded) <= max_tokens or max(real) > max_tokens, (
        f"a group has {max(padded)} positions with padding, the limit is {max_tokens}: do you count only real tokens?"
    )
    assert max(padded) <= max_tokens, (
        f"a group has {max(padded)} positions with padding, the limit is {max_tokens}: count before you add, not after"
    )
    if len(lengths) < 50:
        return
    share = 1 - sum(lengths) / sum(padded)
    assert share <= 0.15, f"{share:.0%} of the positions are padding: are similar lengths together?"
    best, room = 1, 0
    for length in sorted(lengths):  # the fewest groups that sorted lengths allow
        room += 1
        if room * length > max_tokens:
            best, room = best + 1, 1
    assert len(groups) <= 1.1 * best, (
        f"{len(groups)} groups for {len(lengths)} sentences, {best} would do: are they filled up to the limit of {max_tokens}?"
    )
