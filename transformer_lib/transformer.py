"""Encoder, decoder and the whole Transformer.

Written from chapters 10, 11, 12 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from transformer_lib.attention import KeyValueCache, padding_mask
from transformer_lib.door import check_numbers, check_tokens
from transformer_lib.embeddings import SinusoidalPositionalEncoding, TokenEmbedding
from transformer_lib.layers import DecoderLayer, EncoderLayer, LayerNorm

__all__ = [
    "Decoder",
    "Encoder",
    "Stack",
    "Transformer",
    "TransformerConfig",
    "count_parameters",
    "evaluating",
]


class Stack(nn.Module):
    """Layers one above the other (paper, section 3.1: 6), and a last norm if they are pre-norm."""

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm
        check_numbers(int, 1, number_of_layers=len(self.layers))

    def forward(self, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
        """(batch, length, d_model), the same shape; every layer is given all the rest."""
        for layer in self.layers:
            x = layer(x, *inputs, **options)
        return x if self.norm is None else self.norm(x)


class Encoder(Stack):
    """Vectors that know their word to vectors that know their sentence: the memory.

    Of EncoderLayers, and called as they are: encoder(x, attn_mask, is_causal, cache).
    """


class Decoder(Stack):
    """Each target position to the vector from which its next word is predicted.

    Of DecoderLayers, and called as they are; all of them read the same memory.
    """


@dataclass(frozen=True)
class TransformerConfig:
    """The numbers that make a Transformer; the defaults are the paper's base model (its Table 3).

    Args:
        vocab_size: entries of the vocabulary that source and target share.
        d_model: width of the vectors between the layers; even: sines and cosines come in pairs.
        num_heads: heads of each attention; has to divide d_model.
        d_ff: inner width of the feed-forward networks.
        num_encoder_layers, num_decoder_layers: layers of each stack.
        dropout: share dropped of a sub-layer's output, and of the embeddings with positions.
        attention_dropout: share dropped of the attention weights; the paper has none.
        norm_first: normalize before each sub-layer (pre-norm), not after the sum (post-norm, paper).
        final_norm: one more norm after each stack; None means as norm_first: pre-norm needs one.
        max_length: longest sequence, in tokens.
        pad_id: the id that fills up short rows.

    Raises:
        ValueError: if a value is out of range, or two of them do not fit together.
    """

    vocab_size: int
    d_model: int = 512
    num_heads: int = 8
    d_ff: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    norm_first: bool = False
    final_norm: bool | None = None
    max_length: int = 1024
    pad_id: int = 0

    def __post_init__(self) -> None:
        _check_config(self)

    @classmethod
    def base(cls, vocab_size: int = 37_000) -> "TransformerConfig":
        """The paper's base model, by default with its vocabulary of about 37,000 entries."""
        return cls(vocab_size)

    @classmethod
    def big(cls, vocab_size: int = 37_000) -> "TransformerConfig":
        """The paper's big model: twice as wide, with more dropout."""
        return cls(vocab_size, d_model=1024, num_heads=16, d_ff=4096, dropout=0.3)

    @classmethod
    def small(cls, vocab_size: int) -> "TransformerConfig":
        """Small enough to be trained on a laptop: two layers a side, 128 wide."""
        return cls(vocab_size, 128, 4, 512, num_encoder_layers=2, num_decoder_layers=2)


def _check_config(c: TransformerConfig) -> None:
    """Refuse with a ValueError numbers that cannot make a model."""
    sizes = ("vocab_size", "d_model", "num_heads", "d_ff", "max_length")
    layers = ("num_encoder_layers", "num_decoder_layers")
    check_numbers(int, 1, 2**31, **{name: getattr(c, name) for name in sizes + layers})
    check_numbers(float, 0, 1, dropout=c.dropout, attention_dropout=c.attention_dropout)
    final_norm = c.norm_first if c.final_norm is None else c.final_norm
    check_numbers(bool, norm_first=c.norm_first, final_norm=final_norm)
    check_numbers(int, 0, c.vocab_size - 1, pad_id=c.pad_id)
    if c.d_model % c.num_heads or c.d_model % 2:
        raise ValueError(
            f"d_model {c.d_model} must be even, and divisible by num_heads {c.num_heads}"
        )


_DRAWN_AS_ONE = ("query_projection", "key_projection", "value_projection")


def _fresh_stacks(c: TransformerConfig) -> tuple[Encoder, Decoder]:
    """Encoder and decoder: each matrix as Xavier draws it, biases zero."""
    sizes = (c.d_model, c.num_heads, c.d_ff, c.dropout, c.norm_first, c.attention_dropout)
    encoder_layers = [EncoderLayer(*sizes) for _ in range(c.num_encoder_layers)]
    decoder_layers = [DecoderLayer(*sizes) for _ in range(c.num_decoder_layers)]
    has_norm = c.norm_first if c.final_norm is None else c.final_norm
    encoder = Encoder(encoder_layers, LayerNorm(c.d_model) if has_norm else None)
    decoder = Decoder(decoder_layers, LayerNorm(c.d_model) if has_norm else None)
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        if parameter.dim() > 1:
            # Query, key and value count as one matrix of 3 d_model outputs, as in torch.
            of_three = name.split(".")[-2] in _DRAWN_AS_ONE
            nn.init.xavier_uniform_(parameter, gain=0.5**0.5 if of_three else 1.0)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return encoder, decoder


class _Parts(nn.Module):
    """The parts of a Transformer, and its two ends."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.position = SinusoidalPositionalEncoding(config.d_model, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder, self.decoder = _fresh_stacks(config)
        self.output: nn.Module | None = None

    def embed(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """Ids (batch, length), the first at position `offset`, to vectors (batch, length, d_model)."""
        vectors: Tensor = self.dropout(self.position(self.embedding(tokens), offset))
        return vectors

    def project(self, hidden: Tensor) -> Tensor:
        """Vectors (..., d_model) to logits (..., vocab_size)."""
        logits: Tensor = (self.embedding.project if self.output is None else self.output)(hidden)
        return logits


def _check_together(target: Tensor, memory: Tensor, source: Tensor | None) -> None:
    """Refuse with a ValueError memory of another batch, or of another source."""
    check_tokens("target", target)
    shapes = [tuple(x.shape) for x in (target, memory, source) if x is not None]
    if len({shape[0] for shape in shapes}) > 1 or shapes[-1][1] != shapes[1][1]:
        raise ValueError(f"target, memory and source do not belong together: {shapes}")


class Transformer(_Parts):
    """Token ids in, logits for the next token out (paper, figure 1 and section 3).

    Rows are padded on the right with `config.pad_id`; nothing listens to padding of the source. Any
    part may be replaced, by assignment or in a subclass: all else calls the parts' own methods.
    `output` is None while all share one matrix (section 3.4), or maps d_model to vocab_size.

    Raises:
        ValueError: in its methods, for what is no batch of ids of the vocabulary, is empty or too
            long, or for memory of another source.
    """

    def encode(self, source: Tensor) -> Tensor:
        """Read the source, ids (batch, source), into the memory (batch, source, d_model)."""
        allowed = padding_mask(source, self.config.pad_id)  # (batch, 1, 1, source)
        memory: Tensor = self.encoder(self.embed(source), allowed)
        return memory

    def decode(
        self,
        target: Tensor,  # the ids so far, <bos> first, (batch, target); with a cache the new ones
        memory: Tensor,  # what encode made of the source, (batch, source, d_model)
        source: Tensor | None,  # its ids: they tell which memory is padding; None if none is
        cache: KeyValueCache | None = None,  # as in DecoderLayer
        memory_cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Say what follows each target token, as a vector (batch, target, d_model)."""
        _check_together(target, memory, source)
        allowed = None if source is None else padding_mask(source, self.config.pad_id)
        x = self.embed(target, 0 if cache is None else cache.length)  # (batch, target, d_model)
        hidden: Tensor = self.decoder(x, memory, None, allowed, cache, memory_cache)
        if cache is not None:
            cache.length += target.size(1)
        return hidden

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        loss: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Give the logits of what follows each target token, (batch, target, vocab_size).

        Position t has seen the source and the target's tokens 0 to t. A `loss` gets this model and
        the vectors (batch, target, d_model), and what it returns is returned: it may leave out
        padding, and computes inside whatever wraps the model.
        """
        hidden = self.decode(target, self.encode(source), source)  # (batch, target, d_model)
        return self.project(hidden) if loss is None else loss(self, hidden)


def count_parameters(module: nn.Module) -> int:
    """Count the numbers that training changes; a shared matrix counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each part is in the mode it was in."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
