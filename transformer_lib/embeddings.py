"""Token embeddings and positional encodings.

Written from chapters 7, 8 of the book: edit the chapter, then `make sync`.
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
    "SinusoidalPositionalEncoding",
    "TokenEmbedding",
    "sinusoidal_positions",
]


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Sines and cosines of each position, from fast to slow (paper, section 3.5).

    Entries 2i and 2i + 1 of row p are the sine and the cosine of p / 10000^(2i / d_model).

    Args:
        length: number of positions, at least 1.
        d_model: width of a row, even.

    Returns:
        The table, float32, shape (length, d_model).

    Raises:
        ValueError: if length is below 1, or d_model is not a positive even number.
    """
    check_numbers(int, 1, length=length, d_model=d_model)
    if d_model % 2:
        raise ValueError(f"sines and cosines come in pairs: d_model {d_model} is not even")
    position = torch.arange(length, dtype=torch.float64)  # (length,); see below for why float64
    # (d_model / 2,)
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.outer(position, frequency)  # (length, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()  # (length, d_model)


class LearnedPositionalEncoding(nn.Module):
    """Adds a trained vector for each position (paper, section 3.5 and Table 3, row E).

    Args:
        d_model: width of the vectors.
        max_length: number of positions; there is nothing beyond them (ValueError in forward).
    """

    table: Tensor  # (max_length, d_model)

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model, max_length=max_length)
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.02)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add row offset + i to position i of x, (batch, length, d_model); the same shape.

        The offset is the position of the first vector: above 0 when a decoder continues.
        """
        end = offset + x.size(-2)
        if offset < 0 or end > len(self.table):  # a slice would be shorter, or from the other end
            raise ValueError(
                f"positions {offset} to {end - 1} are not in 0 to {len(self.table) - 1}"
            )
        return x + self.table[offset:end]


class SinusoidalPositionalEncoding(LearnedPositionalEncoding):
    """Adds fixed sinusoids to the vectors of a sequence (paper, section 3.5).

    The table is no parameter: it is not trained, and not saved with the weights either.

    Args:
        d_model: width of the vectors, even.
        max_length: number of positions; there is nothing beyond them (ValueError in forward).
    """

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        nn.Module.__init__(self)
        self.register_buffer("table", sinusoidal_positions(max_length, d_model), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Follow to(), half() or to_empty(), and compute the table anew: no file brings it back."""
        super()._apply(fn, recurse)
        self.table = sinusoidal_positions(*self.table.shape).to(self.table)
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
