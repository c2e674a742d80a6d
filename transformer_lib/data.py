"""Spine (to be regenerated from chapter 13)."""

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
        path: a file in UTF-8, packed with gzip if its name ends in .gz. A third column says where the pair is from.

    Returns:
        The pairs, in the file's order.

    Raises:
        ValueError: naming file and line, for a line without two or three columns, an empty side, bytes that are not
            UTF-8; and for a file without a line or broken packing.
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    pairs = []
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # some editors begin a file with these three bytes
    if lines[-1] == b"":
        lines.pop()  # the last line ends with a line break, too
    for number, line in enumerate(lines, start=1):
        try:
            columns = line.removesuffix(b"\r").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8: {error.reason}, byte {error.start + 1}") from None
        if not 2 <= len(columns) <= 3:
            raise ValueError(f"{path}, line {number}: {len(columns)} columns, not source, target and perhaps origin")
        pair = Pair(*columns)
        for side in ("source", "target"):
            if not getattr(pair, side).strip():
                raise ValueError(f"{path}, line {number}: the {side} is empty")
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} is empty")
    return pairs


def load_pairs(split: str) -> list[Pair]:
    """The German-English pairs that come with the package.

    Args:
        split: "train", "validation" or "test".

    Raises:
        ValueError: for another split.
    """
    splits = ("train", "validation", "test")
    if split not in splits:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(splits)}")
    with resources.as_file(resources.files("transformer_lib") / "data" / f"de-en.{split}.tsv.gz") as path:
        return read_pairs(path)


class Example(NamedTuple):
    """A pair as token ids: the source ends in <eos>, the target has no special tokens yet."""

    source: list[int]
    target: list[int]


def encode_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer) -> list[Example]:
    """Turn pairs into token ids, one Example a pair, in their order.

    Args:
        pairs: what to encode.
        tokenizer: made by train_tokenizer, for both sides.

    Raises:
        ValueError: if the tokenizer has other special tokens or makes them out of text, or a side has no tokens.
    """
    for token_id, token in enumerate(SPECIAL_TOKENS):
        if (actual := tokenizer.token_to_id(token)) != token_id:
            raise ValueError(f"the tokenizer's id of {token} is {actual}, it should be {token_id}")
    pairs = list(pairs)
    sources = tokenizer.encode_batch([pair.source for pair in pairs])
    targets = tokenizer.encode_batch([pair.target for pair in pairs])
    examples = [Example([*source.ids, EOS_ID], target.ids) for source, target in zip(sources, targets, strict=True)]
    for pair, example in zip(pairs, examples, strict=True):
        for text, ids in ((pair.source, example.source[:-1]), (pair.target, example.target)):
            if min(ids, default=-1) < len(SPECIAL_TOKENS):
                problem = "a special token inside the text (is encode_special_tokens set?)" if ids else "no tokens"
                raise ValueError(f"{text!r} gives {problem}")
    return examples


@dataclass(frozen=True)
class Batch:
    """Examples as rows of token ids, filled up with <pad> on the right.

    source: (batch, source length), each row x_1 ... x_m <eos>.
    target_in: (batch, target length), <bos> y_1 ... y_n, what the decoder reads.
    target_out: (batch, target length), y_1 ... y_n <eos>, what it should say at the same positions.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor


def make_batch(examples: Sequence[Example]) -> Batch:
    """Put examples into one batch, row by row.

    Raises:
        ValueError: if there are no examples, a source is empty, or an id is negative or that of <pad>.
    """
    if not examples:
        raise ValueError("a batch needs at least one example, got none")
    for number, (source, target) in enumerate(examples):
        if not source:
            raise ValueError(f"the source of example {number} has no tokens, not even <eos>")
        if min(source + target) <= PAD_ID:
            raise ValueError(f"example {number} holds id {min(source + target)}: ids start at 1, {PAD_ID} is <pad>")
    return Batch(
        source=_pad([source for source, _ in examples]),
        target_in=_pad([[BOS_ID, *target] for _, target in examples]),
        target_out=_pad([[*target, EOS_ID] for _, target in examples]),
    )


def _pad(rows: Sequence[list[int]]) -> Tensor:
    """(rows, length of the longest), short rows filled up with <pad>."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])


def token_batches(examples: Sequence[Example], max_tokens: int, seed: int) -> list[Batch]:
    """One epoch in batches of similar lengths: every example once (paper, section 5.1).

    Args:
        examples: all of them.
        max_tokens: no batch has more tokens than this on either side, padding counted.
        seed: another seed, other batches in another order.

    Raises:
        ValueError: if there are no examples, or one alone has more than max_tokens tokens: none is cut or left out.
    """
    if not examples:
        raise ValueError("an epoch needs at least one example, got none")
    lengths = [(len(target) + 1, len(source)) for source, target in examples]  # the target is given <bos> or <eos>
    for number, length in enumerate(lengths):
        if max(length) > max_tokens:
            raise ValueError(f"example {number} has {max(length)} tokens, a batch at most max_tokens {max_tokens}")
    generator = random.Random(seed)
    order = list(range(len(examples)))
    generator.shuffle(order)  # the sort keeps this order among equal lengths
    order.sort(key=lengths.__getitem__)
    groups: list[list[int]] = [[]]
    longest = (0, 0)
    for index in order:
        longest = (max(longest[0], lengths[index][0]), max(longest[1], lengths[index][1]))
        if (len(groups[-1]) + 1) * max(longest) > max_tokens:  # full: the next one begins
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    generator.shuffle(groups)
    return [make_batch([examples[index] for index in group]) for group in groups]
