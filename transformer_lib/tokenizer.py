"""Byte-pair encoding with one vocabulary for both languages.

Written from chapter 13 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]


SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD_ID = 0
BOS_ID = 1
EOS_ID = 2


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE vocabulary, to be shared by source and target (paper, section 5.1).

    Args:
        texts: what the merges are counted on; give it both languages.
        vocab_size: the most tokens it may have: 256 bytes, 3 special tokens and one for each merge.

    Returns:
        A tokenizer with `encode(text).ids` and `decode(ids)`, which gives every text back exactly.
        Ids 0, 1 and 2 are <pad>, <bos> and <eos>; no text turns into one of them. (That setting is
        not saved with the tokenizer: after loading, set `encode_special_tokens = True` again.)

    Raises:
        ValueError: if there is no text, or one string in place of many, or vocab_size has no room
            for bytes and special tokens.
    """
    if isinstance(texts, str):
        raise ValueError("a tokenizer learns from many texts, got one string")
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size {vocab_size} has no room for the {smallest} bytes and special tokens"
        )
    texts = list(texts)
    if not texts:
        raise ValueError("a tokenizer learns from texts, got none")
    tokenizer = Tokenizer(models.BPE())
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
    tokenizer.encode_special_tokens = True  # "<eos>" inside a text is a text like any other
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer into a JSON file.

    Args:
        tokenizer: made by train_tokenizer.
        path: the file.

    Raises:
        OSError: if it cannot be written.
    """
    Path(path).write_text(tokenizer.to_str(), encoding="utf-8")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read what save_tokenizer wrote.

    Args:
        path: the file.

    Returns:
        The tokenizer, with encode_special_tokens set.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is damaged, or its special tokens are not ours.
    """
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{path} is no tokenizer: {error}") from None
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    if ids != [PAD_ID, BOS_ID, EOS_ID]:
        raise ValueError(f"{path} has {SPECIAL_TOKENS} as ids {ids}, they should be 0, 1 and 2")
    tokenizer.encode_special_tokens = True
    return tokenizer
