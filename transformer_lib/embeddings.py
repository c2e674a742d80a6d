"""Token embeddings and positional encodings.

Written from chapters 7, 8 of the book: edit the chapter, then `make sync`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    if length < 1:
        raise ValueError(f"there must be at least one position, got length {length}")
    if d_model < 2 or d_model % 2:
        raise ValueError(
            f"sines and cosines come in pairs: d_model must be positive and even, got {d_model}"
        )
    position = torch.arange(length, dtype=torch.float64)  # (length,); see below for why float64
    # (d_model / 2,)
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.outer(position, frequency)  # (length, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()  # (length, d_model)


def _rows_for(x: Tensor, table: Tensor, offset: int) -> Tensor:
    """The rows of `table` for x, (batch, length, d_model), from position `offset` on."""
    max_length, d_model = table.shape
    if x.dim() < 2 or x.size(-1) != d_model:
        raise ValueError(
            f"x must have shape (batch, length, d_model {d_model}), got {tuple(x.shape)}"
        )
    if offset < 0 or offset + x.size(-2) > max_length:
        raise ValueError(
            f"{x.size(-2)} positions from {offset} on do not fit "
            f"a positional encoding of {max_length} positions"
        )
    return table[offset : offset + x.size(-2)]  # (length, d_model)


class SinusoidalPositionalEncoding(nn.Module):
    """Adds fixed sinusoids to the vectors of a sequence (paper, section 3.5).

    The table is no parameter: it is not trained, and not saved with the weights either.

    Args:
        d_model: width of the vectors, even.
        max_length: number of positions in the table.

    Raises:
        ValueError: if max_length is below 1, or d_model is not a positive even number.
    """

    table: Tensor

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_positions(max_length, d_model), persistent=False)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add row offset + i of the table to position i of x.

        Args:
            x: shape (batch, length, d_model).
            offset: position of the first vector; above 0 when a decoder continues its sentence.

        Returns:
            Shape (batch, length, d_model).

        Raises:
            ValueError: if x has another width, or a position lies outside the table.
        """
        return x + _rows_for(x, self.table, offset)


class LearnedPositionalEncoding(nn.Module):
    """Adds a trained vector for each position (paper, section 3.5 and Table 3, row E).

    Args:
        d_model: width of the vectors.
        max_length: number of positions in the table; there is nothing beyond it.

    Raises:
        ValueError: if d_model or max_length is below 1.
    """

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__()
        if d_model < 1 or max_length < 1:
            raise ValueError(
                f"d_model and max_length must be at least 1, got {d_model} and {max_length}"
            )
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.02)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add row offset + i of the table to position i of x.

        Args:
            x: shape (batch, length, d_model).
            offset: position of the first vector; above 0 when a decoder continues its sentence.

        Returns:
            Shape (batch, length, d_model).

        Raises:
            ValueError: if x has another width, or a position lies outside the table.
        """
        return x + _rows_for(x, self.table, offset)


class TokenEmbedding(nn.Module):
    """Token ids to vectors, and vectors to logits with the same matrix (paper, section 3.4).

    The matrix, `weight`, has shape (vocab_size, d_model) and begins normal with standard
    deviation d_model^-0.5: so logits of normalized vectors begin with standard deviation 1,
    and so do the embeddings, times sqrt(d_model).

    Args:
        vocab_size: number of different tokens; ids run from 0 to vocab_size - 1.
        d_model: width of the vectors.

    Raises:
        ValueError: if one of them is below 1.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        if vocab_size < 1 or d_model < 1:
            raise ValueError(
                f"vocab_size and d_model must be at least 1, got {vocab_size} and {d_model}"
            )
        self.vocab_size, self.d_model = vocab_size, d_model
        self.weight = nn.Parameter(torch.randn(vocab_size, d_model) * d_model**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up the tokens' rows, times sqrt(d_model).

        Args:
            tokens: ids, int64 or int32, shape (batch, length) or any other.

        Returns:
            Vectors, shape (batch, length, d_model): one dimension more than tokens.

        Raises:
            ValueError: if tokens are not integers, there are none, or one is outside the
                vocabulary. (On a GPU it is torch that stops at an id outside the vocabulary:
                looking at the ids first would make the GPU wait.)
        """
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"token ids must be int64 or int32, got {tokens.dtype}")
        if tokens.numel() == 0:
            raise ValueError(f"there are no tokens: their shape is {tuple(tokens.shape)}")
        try:
            rows = F.embedding(tokens, self.weight)  # (batch, length, d_model)
        except IndexError:
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(
                f"token ids run from {low} to {high}, "
                f"the vocabulary from 0 to {self.vocab_size - 1}"
            ) from None
        return rows * math.sqrt(self.d_model)

    def project(self, x: Tensor) -> Tensor:
        """Logit of every token: the dot product of x with its row, without the factor.

        Args:
            x: shape (..., d_model).

        Returns:
            Logits, shape (..., vocab_size).

        Raises:
            ValueError: if x has another width than d_model.
        """
        if x.size(-1) != self.d_model:
            raise ValueError(f"x has width {x.size(-1)}, the embedding d_model {self.d_model}")
        return F.linear(x, self.weight)  # (..., vocab_size)
