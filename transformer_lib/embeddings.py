"""Token embeddings and positional encodings.

Written from chapters 7, 8, 27 of the book: edit the chapter, then `make sync`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.door import check_numbers

__all__ = [
    "LearnedPositionalEncoding",
    "NoPositions",
    "SinusoidalPositionalEncoding",
    "TokenEmbedding",
    "rotate",
    "sinusoidal_positions",
]


def sinusoidal_positions(length: int, d_model: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of each position, from fast to slow (paper, section 3.5).

    Entries 2i and 2i + 1 of row p are the sine and the cosine of p / 10000^(2i / d_model): shape
    (length, d_model). ValueError if length or d_model is below 1, or d_model is odd.
    """
    check_numbers(int, 1, length=length, d_model=d_model)
    if d_model % 2:
        raise ValueError(f"sines and cosines come in pairs: d_model {d_model} is not even")
    position = torch.arange(length, dtype=torch.float64)  # (length,); float32 loses digits far out
    # (d_model / 2,)
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.outer(position, frequency)  # (length, d_model / 2)
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)  # (length, d_model)
    return table.to(dtype)


class LearnedPositionalEncoding(nn.Module):
    """Adds a trained vector for each position (paper, section 3.5 and Table 3, row E).

    There are max_length of them, d_model wide, and none beyond (ValueError in forward).
    """

    table: Tensor  # (max_length, d_model)

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model, max_length=max_length)
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.02)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add row offset + i to vector i: (batch, length, d_model) -> (batch, length, d_model)."""
        end = offset + x.size(-2)
        if offset < 0 or end > len(self.table):  # a slice would be shorter, or from the other end
            last = len(self.table) - 1
            raise ValueError(f"positions {offset} to {end - 1} asked for, there are 0 to {last}")
        return x + self.table[offset:end]


class SinusoidalPositionalEncoding(LearnedPositionalEncoding):
    """Adds fixed sinusoids, neither trained nor saved with the weights (paper, section 3.5).

    The arguments are LearnedPositionalEncoding's; d_model must be even (ValueError).
    """

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        nn.Module.__init__(self)
        self.register_buffer("table", sinusoidal_positions(max_length, d_model), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Follow to(), half() or to_empty(), and compute the table anew: no file brings it back."""
        nn.Module._apply(self, fn, recurse)
        length, d_model = self.table.shape
        self.table = sinusoidal_positions(length, d_model, self.table.dtype).to(self.table.device)
        return self


class TokenEmbedding(nn.Module):
    """Token ids to vectors, and vectors to logits with the same matrix (paper, section 3.4).

    The matrix begins normal with standard deviation d_model^-0.5: so logits of normalized vectors
    begin with standard deviation 1, and so do the embeddings, times sqrt(d_model).

    Raises:
        ValueError: if an id is not in the vocabulary. (On a GPU torch itself stops there: looking
            at the ids first would make the GPU wait.)
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        check_numbers(int, 1, vocab_size=vocab_size, d_model=d_model)
        self.weight = nn.Parameter(torch.randn(vocab_size, d_model) * d_model**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up the rows, times sqrt(d_model): (batch, length) -> (batch, length, d_model)."""
        try:
            rows = F.embedding(tokens, self.weight)  # (batch, length, d_model)
        except IndexError:
            ids = f"{int(tokens.min())} to {int(tokens.max())}"
            known = f"0 to {len(self.weight) - 1}"
            raise ValueError(f"token ids run from {ids}, the vocabulary from {known}") from None
        return rows * math.sqrt(self.weight.size(1))

    def project(self, x: Tensor) -> Tensor:
        """Logits, x times each row, without the factor: (..., d_model) -> (..., vocab_size)."""
        return F.linear(x, self.weight)


def rotate(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Turn each pair of features, slower from pair to pair, by its position (Su et al., 2021).

    (..., length, d), positions (length,) -> (..., length, d). Features i and i + d/2 make a pair,
    as in the Llama models: it is turned by position * base^(-2i / d).
    """
    half = x.size(-1) // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = torch.outer(position.to(frequency), frequency)  # (length, half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)  # (..., length, half) twice
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class NoPositions(nn.Module):
    """Adds nothing: for a model whose attention knows where its tokens stand."""

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """(batch, length, d_model), unchanged."""
        return x
