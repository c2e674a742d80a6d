"""Spine (to be regenerated from chapters 7 and 8)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LearnedPositionalEncoding", "SinusoidalPositionalEncoding", "TokenEmbedding", "sinusoidal_positions"]


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(same); shape (length, d_model), float32 (section 3.5).

    Raises ValueError if d_model is odd or length < 1.
    """
    if d_model % 2 or d_model < 2:
        raise ValueError(f"sines and cosines come in pairs: d_model {d_model} is not a positive even number")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    position = torch.arange(length, dtype=torch.float64)[:, None]  # (length, 1)
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (d_model / 2,)
    angle = position * frequency  # (length, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()  # (length, d_model)


class SinusoidalPositionalEncoding(nn.Module):
    """Adds fixed sinusoids to x. forward(x: (batch, length, d_model), offset: int = 0) -> same shape.

    ValueError when offset + length > max_length (names both), or x has the wrong width.
    """

    table: Tensor

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_positions(max_length, d_model), persistent=False)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return x + _rows(self.table, x, offset)


class LearnedPositionalEncoding(nn.Module):
    """The same with a trained table: parameter `table` of shape (max_length, d_model), std 0.02."""

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.02)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return x + _rows(self.table, x, offset)


def _rows(table: Tensor, x: Tensor, offset: int) -> Tensor:
    """Rows offset to offset + length of the table, after checking that x fits it."""
    length, (max_length, d_model) = x.size(-2), table.shape
    if x.size(-1) != d_model:
        raise ValueError(f"x has width {x.size(-1)}, the positional encoding {d_model}")
    if offset < 0 or offset + length > max_length:
        raise ValueError(f"positions {offset} to {offset + length - 1} do not fit a table of {max_length} positions")
    return table[offset : offset + length]  # (length, d_model)


class TokenEmbedding(nn.Module):
    """Token ids to vectors, times sqrt(d_model); `project` maps vectors to logits with the same matrix (section 3.4).

    weight: Parameter (vocab_size, d_model), normal with std d_model^-0.5.
    forward(tokens: (batch, length)) -> (batch, length, d_model). ValueError for ids outside the vocabulary, not integers, empty.
    project(x: (..., d_model)) -> (..., vocab_size).
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.vocab_size, self.d_model = vocab_size, d_model
        self.weight = nn.Parameter(torch.randn(vocab_size, d_model) * d_model**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        try:
            return F.embedding(tokens, self.weight) * math.sqrt(self.d_model)  # (batch, length, d_model)
        except IndexError:
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(
                f"token ids run from {low} to {high}, the vocabulary from 0 to {self.vocab_size - 1}"
            ) from None

    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)  # (..., vocab_size)
