"""Sentence pairs, and batches of them by token count.

Written from chapter 13 of the book: edit the chapter, then `make sync`.
"""

import gzip
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer_lib.tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS

__all__ = [
    "Batch",
    "Example",
    "Pair",
    "encode_pairs",
    "load_pairs",
    "make_batch",
    "read_pairs",
    "token_batches",
]


class Pair(NamedTuple):
    """A sentence, its translation, and where the two are from."""

    source: str
    target: str
    origin: str = ""


def read_pairs(path: str | Path) -> list[Pair]:
    """Read pairs from a text file: a line each, source and target divided by a tab.

    Args:
        path: a file in UTF-8, packed with gzip if its name ends in .gz. A third column, if there is
            one, says where the pair is from.

    Returns:
        The pairs, in the file's order.

    Raises:
        ValueError: naming file and line, for a line without two or three columns, an empty side, or
            bytes that are not UTF-8; naming the file, if it has no lines or is no whole gzip file.
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # some editors put these first
    if lines[-1] == b"":
        lines.pop()  # the last line ends with a line break, too
    pairs = []
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        try:
            columns = line.removesuffix(b"\r").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: byte {error.start + 1} is not UTF-8") from None
        if not 2 <= len(columns) <= 3:
            raise ValueError(
                f"{place}: needs 2 or 3 columns divided by tabs, source, target and origin, "
                f"got {len(columns)}"
            )
        pair = Pair(*columns)
        if not pair.source.strip() or not pair.target.strip():
            side = "target" if pair.source.strip() else "source"
            raise ValueError(f"{place}: the {side} is empty")
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} is empty: it should hold a pair a line")
    return pairs


def load_pairs(split: str) -> list[Pair]:
    """The German-English pairs that come with the package.

    Args:
        split: "train", "validation" or "test".

    Returns:
        The pairs, in the file's order.

    Raises:
        ValueError: for any other split.
    """
    splits = ("train", "validation", "test")
    if split not in splits:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(splits)}")
    folder = resources.files("transformer_lib") / "corpora"
    with resources.as_file(folder / f"de-en.{split}.tsv.gz") as path:
        return read_pairs(path)


class Example(NamedTuple):
    """A pair as token ids: the source ends in <eos>, the target has no special tokens yet."""

    source: list[int]
    target: list[int]


def encode_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer) -> list[Example]:
    """Turn pairs into token ids.

    Args:
        pairs: what to encode.
        tokenizer: one for both sides, made by train_tokenizer.

    Returns:
        One Example for each pair, in the same order.

    Raises:
        ValueError: if a side is empty, if the tokenizer's special tokens have other ids than ours,
            or if it makes special tokens out of text.
    """
    for token_id, token in enumerate(SPECIAL_TOKENS):
        if (actual := tokenizer.token_to_id(token)) != token_id:
            raise ValueError(f"the tokenizer's id of {token} is {actual}, it should be {token_id}")
    pairs = list(pairs)
    sides = []
    for texts in ([pair.source for pair in pairs], [pair.target for pair in pairs]):
        sides.append([encoding.ids for encoding in tokenizer.encode_batch(texts)])
        for text, ids in zip(texts, sides[-1], strict=True):
            if not ids:
                raise ValueError(f"{text!r} has no tokens: there is nothing to translate")
            if min(ids) < len(SPECIAL_TOKENS):
                token = SPECIAL_TOKENS[min(ids)]
                raise ValueError(
                    f"{text!r} became {token}: is tokenizer.encode_special_tokens set?"
                )
    return [Example([*source, EOS_ID], target) for source, target in zip(*sides, strict=True)]


@dataclass(frozen=True)
class Batch:
    """Examples as rows of token ids, filled up with <pad> on the right.

    source: (batch, source length), in each row x_1 ... x_m <eos>.
    target_in: (batch, target length), <bos> y_1 ... y_n, what the decoder reads.
    target_out: (batch, target length), y_1 ... y_n <eos>, what it should say at each position.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor


def make_batch(examples: Sequence[Example]) -> Batch:
    """Put examples into one batch, a row each.

    Args:
        examples: sources that end in <eos>, targets without special tokens.

    Returns:
        A Batch of int64 tensors, rows in the order of the examples.

    Raises:
        ValueError: if there are no examples, a source is empty or does not end in <eos>, another
            token is <bos> or <eos>, or an id is negative or <pad>'s.
    """
    if not examples:
        raise ValueError("a batch needs at least one example, got none")
    for number, (source, target) in enumerate(examples):
        if not source:
            raise ValueError(f"the source of example {number} has no tokens, not even <eos>")
        if (lowest := min(source + target)) <= PAD_ID:
            raise ValueError(
                f"example {number} holds id {lowest}: only {PAD_ID + 1} and up are tokens"
            )
        if source[-1] != EOS_ID:
            raise ValueError(f"the source of example {number} ends in {source[-1]}, not in <eos>")
        if special := {BOS_ID, EOS_ID}.intersection([*source[:-1], *target]):
            raise ValueError(
                f"example {number} has special tokens inside: {sorted(special)}; "
                "<bos> is added here, <eos> belongs at the end of the source only"
            )
    return Batch(
        source=_pad([source for source, _ in examples]),
        target_in=_pad([[BOS_ID, *target] for _, target in examples]),
        target_out=_pad([[*target, EOS_ID] for _, target in examples]),
    )


def _pad(rows: Sequence[list[int]]) -> Tensor:
    """Rows of ids as one tensor, (rows, length of the longest)."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])


def token_batches(examples: Sequence[Example], max_tokens: int, seed: int) -> list[Batch]:
    """One epoch: every example once, in batches of similar lengths (paper, section 5.1).

    Args:
        examples: all of them.
        max_tokens: the most tokens a batch may have on either side, padding counted.
        seed: another seed gives other batches in another order.

    Returns:
        The batches, shuffled; their number depends on max_tokens and the lengths only.

    Raises:
        ValueError: if there are no examples, or a single one has more than max_tokens tokens: none
            is cut or left out.
    """
    if not examples:
        raise ValueError("an epoch needs at least one example, got none")
    # What a row takes in the batch: the target gets <bos> or <eos>.
    lengths = [(len(target) + 1, len(source)) for source, target in examples]
    for number, length in enumerate(lengths):
        if max(length) > max_tokens:
            raise ValueError(
                f"example {number} has {max(length)} tokens, more than max_tokens {max_tokens}"
            )
    generator = random.Random(seed)
    order = list(range(len(examples)))
    generator.shuffle(order)  # sorting keeps this order among equal lengths
    order.sort(key=lengths.__getitem__)
    groups: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, *lengths[index])
        if (len(groups[-1]) + 1) * longest > max_tokens:  # full: start another
            groups.append([])
            longest = max(lengths[index])
        groups[-1].append(index)
    generator.shuffle(groups)
    return [make_batch([examples[index] for index in group]) for group in groups]
