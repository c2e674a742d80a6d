"""Sentence pairs, and batches of them by token count.

Written from chapters 13, 15 of the book: edit the chapter, then `make sync`.
"""

import gzip
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from transformer_lib.door import check_tokens
from transformer_lib.tokenizer import BOS_ID, EOS_ID, PAD_ID, encode_texts

__all__ = [
    "Batch",
    "Example",
    "LazyBatches",
    "Pair",
    "encode_pairs",
    "endless_batches",
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

    The file is in UTF-8, packed with gzip if its name ends in .gz. A third column, if there is one,
    says where the pair is from.

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
            raise ValueError(f"{place}: needs 2 or 3 columns divided by tabs, got {len(columns)}")
        pair = Pair(*columns)
        if not pair.source.strip() or not pair.target.strip():
            side = "target" if pair.source.strip() else "source"
            raise ValueError(f"{place}: the {side} is empty")
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} is empty: it should hold a pair a line")
    return pairs


def load_pairs(split: str) -> list[Pair]:
    """The German-English pairs that come with the package: "train", "validation" or "test".

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
    """Turn pairs into token ids, by one tokenizer for both sides.

    Raises:
        ValueError: if a side is empty, or for what encode_texts refuses.
    """
    pairs = list(pairs)
    sides = []
    for texts in ([pair.source for pair in pairs], [pair.target for pair in pairs]):
        sides.append(encode_texts(tokenizer, texts))
        if [] in sides[-1]:
            text = texts[sides[-1].index([])]
            raise ValueError(f"{text!r} has no tokens: there is nothing to translate")
    return [Example([*source, EOS_ID], target) for source, target in zip(*sides, strict=True)]


@dataclass(frozen=True)
class Batch:
    """Examples as rows of token ids, filled up with <pad> on the right.

    source: (batch, source length), in each row x_1 ... x_m <eos>.
    target_in: (batch, target length), <bos> y_1 ... y_n, what the decoder reads.
    target_out: (batch, target length), y_1 ... y_n <eos>, what it should say at each position.

    Raises:
        ValueError: if the three do not fit together, are no ids, or every target is padding.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor
    pad_id: int = PAD_ID

    def __post_init__(self) -> None:
        _check_batch(self)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = copy(self)  # without the checks: looking at numbers makes a GPU wait
        for name in ("source", "target_in", "target_out"):
            vars(moved)[name] = getattr(self, name).to(device)
        return moved


def make_batch(examples: Sequence[Example]) -> Batch:
    """Put examples into one batch, a row each, of int64.

    Raises:
        ValueError: if there are no examples, a source does not end in <eos>, or another token is
            special or negative.
    """
    _check_examples(examples)
    return Batch(
        source=_pad([source for source, _ in examples]),
        target_in=_pad([[BOS_ID, *target] for _, target in examples]),
        target_out=_pad([[*target, EOS_ID] for _, target in examples]),
    )


def _pad(rows: Sequence[list[int]]) -> Tensor:
    """Rows of ids as one tensor, (rows, length of the longest)."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])


def _check_batch(batch: Batch) -> None:
    """Refuse with a ValueError tensors that are no batch."""
    tensors = {name: getattr(batch, name) for name in ("source", "target_in", "target_out")}
    for name, ids in tensors.items():
        check_tokens(name, ids)
        if (least := int(ids.min())) < 0:
            raise ValueError(f"{name} holds {least}: ids begin at 0, padding is {batch.pad_id}")
    shapes = {name: tuple(ids.shape) for name, ids in tensors.items()}
    if shapes["source"][0] != shapes["target_in"][0] or shapes["target_in"] != shapes["target_out"]:
        raise ValueError(f"these do not fit together: {shapes}")
    if (batch.target_out == batch.pad_id).all():
        raise ValueError(f"nothing to learn: all targets are padding (id {batch.pad_id})")


def _check_examples(examples: Sequence[Example]) -> None:
    """Refuse with a ValueError what cannot be a batch."""
    if not examples:
        raise ValueError("a batch needs at least one example, got none")
    for number, (source, target) in enumerate(examples):
        if source[-1:] != [EOS_ID] or min([*source[:-1], *target, EOS_ID + 1]) <= EOS_ID:
            expected = "<eos> at the end of the source and no other special token"
            raise ValueError(f"example {number} should have {expected}: {source}, {target}")


class LazyBatches(Sequence[Batch]):
    """Batches made when they are asked for, each of a group of indices: an epoch fits in memory."""

    def __init__(self, examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> None:
        self.examples, self.groups = examples, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyBatches(self.examples, self.groups[index])
        return make_batch([self.examples[i] for i in self.groups[index]])


def token_batches(examples: Sequence[Example], max_tokens: int, seed: int) -> LazyBatches:
    """One epoch: every example once, in batches of similar lengths (paper, section 5.1).

    The batches are shuffled; their number depends on max_tokens and the lengths only.

    Args:
        examples: all of them.
        max_tokens: the most tokens a batch may have on either side, padding counted.
        seed: another seed gives other batches in another order.

    Raises:
        ValueError: if there are no examples, or a single one has more than max_tokens tokens: none
            is cut or left out.
    """
    if not examples:
        raise ValueError("an epoch needs at least one example, got none")
    # What a row takes in the batch: the target gets <bos> or <eos>.
    lengths = [(len(target) + 1, len(source)) for source, target in examples]
    longest = max(range(len(lengths)), key=lambda number: max(lengths[number]))
    if max(lengths[longest]) > max_tokens:
        least = max(lengths[longest])
        raise ValueError(f"example {longest} needs max_tokens {least}, got {max_tokens}")
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
    return LazyBatches(examples, groups)


def endless_batches(examples: Sequence[Example], max_tokens: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch of token_batches, each shuffled anew, for as long as anybody asks.

    Args and errors are those of token_batches; they are looked at now, not when the first is taken.
    """
    generator = random.Random(seed)
    first = token_batches(examples, max_tokens, generator.getrandbits(32))

    def epochs() -> Iterator[Batch]:
        yield from first
        while True:
            yield from token_batches(examples, max_tokens, generator.getrandbits(32))

    return epochs()
