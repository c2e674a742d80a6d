"""Byte-pair encoding with one vocabulary for both languages.

Written from chapter 13 of the book: edit the chapter, then `make sync`.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from transformer_lib.door import check_numbers

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "check_texts",
    "encode_texts",
    "load_tokenizer",
    "parse_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]


SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD_ID = 0
BOS_ID = 1
EOS_ID = 2


def check_texts(texts: Sequence[str]) -> None:
    """Refuse with a ValueError one string in place of many, and text that is no Unicode."""
    if isinstance(texts, str):
        raise ValueError(f"needs a list of texts, got the single text {texts[:40]!r}")
    for text in texts:
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{text!r} is no text: half a surrogate pair is no character")


def _prepared(tokenizer: Tokenizer) -> Tokenizer:
    """Set what a tokenizer's file does not keep; ValueError if its special tokens are not ours."""
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    if ids != [PAD_ID, BOS_ID, EOS_ID]:
        raise ValueError(f"the tokenizer has {SPECIAL_TOKENS} as ids {ids}, they should be 0, 1, 2")
    tokenizer.encode_special_tokens = True  # "<eos>" inside a text is a text like any other
    tokenizer.normalizer = normalizers.NFC()  # ä is one character, however it was written
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE vocabulary, to be shared by source and target (paper, section 5.1).

    The vocabulary is 256 bytes, 3 special tokens and at most vocab_size - 259 merges. Every text
    comes back from its ids, in Unicode's composed form (NFC); none turns into a special token.

    Raises:
        ValueError: for no text, one string in place of many, text that is no Unicode, or a
            vocab_size below 259.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)
    check_numbers(int, smallest, vocab_size=vocab_size)
    texts = texts if isinstance(texts, str) else list(texts)
    check_texts(texts)
    if not texts:
        raise ValueError("a tokenizer learns from texts, got none")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # Text becomes bytes, cut into words, each with the space before it: no merge crosses a cut.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),  # they get the first ids, in this order
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _prepared(tokenizer)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without <bos> and <eos>.

    Raises:
        ValueError: for a single string, text that is no Unicode, or one that became a special token.
    """
    check_texts(texts)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    for text, row in zip(texts, rows, strict=True):
        if row and min(row) < len(SPECIAL_TOKENS):
            token = SPECIAL_TOKENS[min(row)]
            raise ValueError(f"{text!r} became {token}: is tokenizer.encode_special_tokens set?")
    return rows


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer into a JSON file."""
    Path(path).write_text(tokenizer.to_str(), encoding="utf-8")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read what save_tokenizer wrote; ValueError if it is damaged, or has other special tokens."""
    return parse_tokenizer(Path(path).read_bytes().decode("utf-8", "replace"), str(path))


def parse_tokenizer(text: str, origin: str) -> Tokenizer:
    """Make the tokenizer that `text`, JSON from `origin`, describes; ValueError if it is none."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{origin} is no tokenizer: {error}") from None
    return _prepared(tokenizer)
