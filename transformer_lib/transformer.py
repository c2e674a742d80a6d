"""Spine (to be regenerated from chapters 10 to 12)."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from transformer_lib.attention import padding_mask
from transformer_lib.embeddings import SinusoidalPositionalEncoding, TokenEmbedding
from transformer_lib.layers import DecoderLayer, EncoderLayer, LayerNorm

__all__ = ["Decoder", "Encoder", "Transformer", "TransformerConfig", "count_parameters"]


class Encoder(nn.Module):  # chapter 10
    """A stack of encoder layers, and a last norm if the layers are pre-norm (paper, section 3.1)."""

    def __init__(self, layers: Iterable[EncoderLayer], norm: LayerNorm | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, attn_mask)  # (batch, source, d_model)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):  # chapter 11
    """A stack of decoder layers that all read the same memory, and a last norm if the layers are pre-norm."""

    def __init__(self, layers: Iterable[DecoderLayer], norm: LayerNorm | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, x: Tensor, memory: Tensor, attn_mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory, attn_mask, memory_mask)  # (batch, target, d_model)
        return x if self.norm is None else self.norm(x)


@dataclass(frozen=True)
class TransformerConfig:  # chapter 12
    """The numbers that make a Transformer; the defaults are the paper's base model. Validated in __post_init__ (ValueError)."""

    vocab_size: int
    d_model: int = 512
    num_heads: int = 8
    d_ff: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    norm_first: bool = False
    final_norm: bool | None = None  # None: as norm_first
    max_length: int = 1024
    pad_id: int = 0

    @classmethod
    def base(cls, vocab_size: int = 37_000) -> "TransformerConfig":
        return cls(vocab_size)

    @classmethod
    def big(cls, vocab_size: int = 37_000) -> "TransformerConfig":
        return cls(vocab_size, d_model=1024, num_heads=16, d_ff=4096, dropout=0.3)

    @classmethod
    def small(cls, vocab_size: int) -> "TransformerConfig":
        """For a laptop: d_model 128, 4 heads, d_ff 512, 2 + 2 layers."""
        return cls(vocab_size, d_model=128, num_heads=4, d_ff=512, num_encoder_layers=2, num_decoder_layers=2)


class Transformer(nn.Module):  # chapter 12
    """Token ids in, logits out (paper, figure 1). Both embeddings and the output map share one matrix (section 3.4).

    encode(source) -> memory; decode(target, memory, source) -> hidden (batch, target, d_model); project(hidden) -> logits;
    forward(source, target) = project(decode(target, encode(source), source)), shape (batch, target, vocab_size).
    Rows are padded on the right with config.pad_id.
    from_torch(torch.nn.Transformer, ...) / to_torch(): see CONTRACT.md
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.position = SinusoidalPositionalEncoding(c.d_model, c.max_length)
        self.dropout = nn.Dropout(c.dropout)
        has_norm = c.norm_first if c.final_norm is None else c.final_norm
        sizes = (c.d_model, c.num_heads, c.d_ff, c.dropout, c.norm_first, c.attention_dropout)
        self.encoder = Encoder(
            [EncoderLayer(*sizes) for _ in range(c.num_encoder_layers)], LayerNorm(c.d_model) if has_norm else None
        )
        self.decoder = Decoder(
            [DecoderLayer(*sizes) for _ in range(c.num_decoder_layers)], LayerNorm(c.d_model) if has_norm else None
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith("embedding"):
                nn.init.xavier_uniform_(parameter)

    def embed(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """(batch, length) -> (batch, length, d_model): embedding, position, dropout."""
        return self.dropout(self.position(self.embedding(tokens), offset))

    def encode(self, source: Tensor) -> Tensor:
        return self.encoder(self.embed(source), padding_mask(source, self.config.pad_id))

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        return self.decoder(self.embed(target), memory, memory_mask=padding_mask(source, self.config.pad_id))

    def project(self, hidden: Tensor) -> Tensor:
        return self.embedding.project(hidden)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.project(self.decode(target, self.encode(source), source))


def count_parameters(module: nn.Module) -> int:  # chapter 12
    """Number of trained numbers, a shared matrix counted once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
