"""Spine (to be regenerated from chapter 13)."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["BOS_ID", "EOS_ID", "PAD_ID", "SPECIAL_TOKENS", "train_tokenizer"]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE vocabulary, to be shared by source and target (paper, section 5.1).

    Args:
        texts: what the merges are counted on; give it both languages.
        vocab_size: the most tokens it may hold: 256 bytes, 3 special tokens, and a token a merge.

    Returns:
        A tokenizer with `encode(text).ids` and `decode(ids)`, which gives every text back exactly.
        Ids 0, 1 and 2 are <pad>, <bos> and <eos>; no text turns into one of them.

    Raises:
        ValueError: if vocab_size has no room for the bytes and the special tokens, or there is no text.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone are {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # bytes; no merge across a word's end
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),  # they get the first ids, in this order
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    count = 0

    def counted() -> Iterable[str]:
        nonlocal count
        for text in texts:
            count += 1
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if count == 0:
        raise ValueError("a tokenizer learns from texts, got none")
    tokenizer.encode_special_tokens = True  # a text that holds "<eos>" is only text
    return tokenizer
