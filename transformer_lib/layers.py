"""Feed-forward network, layer norm, residual connection, encoder and decoder layer.

Written from chapters 8, 9, 10, 11, 25, 27 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import KeyValueCache, MultiHeadAttention
from transformer_lib.door import check_numbers

__all__ = [
    "DecoderLayer",
    "Dropout",
    "EncoderLayer",
    "FeedForward",
    "GatedFeedForward",
    "LayerNorm",
    "RMSNorm",
    "ResidualConnection",
]


class FeedForward(nn.Module):
    """max(0, x W_1 + b_1) W_2 + b_2, at every position by itself (paper, section 3.3).

    Between the two maps a vector is d_ff wide: 4 * d_model in the paper.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model, d_ff=d_ff)
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        hidden = F.relu(self.inner(x))  # (..., d_ff)
        output: Tensor = self.outer(hidden)  # (..., d_model)
        return output


class LayerNorm(nn.Module):
    """Mean 0 and standard deviation 1 over the features of each position, then a gain and a shift.

    It normalizes activations, one position at a time: neither weights, nor anything across
    positions or the batch (paper, section 3.1). eps, added to the variance, keeps equal features
    from dividing by zero.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model)
        check_numbers(float, 1e-30, eps=eps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))  # the gain
        self.bias = nn.Parameter(torch.zeros(d_model))  # the shift

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ResidualConnection(nn.Module):
    """x + Sublayer(x), with dropout and a layer norm (paper, sections 3.1 and 5.4).

    Post-norm, the paper's: LayerNorm(x + Dropout(Sublayer(x))).
    Pre-norm, norm_first=True: x + Dropout(Sublayer(LayerNorm(x))); a stack of these needs one more
    norm at its end.

    Args:
        d_model: width of x.
        dropout: probability of dropping an entry of the sub-layer's output while training.
        norm_first: pre-norm instead of post-norm.
    """

    def __init__(self, d_model: int, dropout: float = 0.1, norm_first: bool = False) -> None:
        super().__init__()
        check_numbers(float, 0, 1, dropout=dropout)
        self.norm = LayerNorm(d_model)
        self.dropout = Dropout(dropout)  # new: the cheaper one
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """(..., d_model) -> (..., d_model); the sub-layer is a function that keeps the shape."""
        entering = self.norm(x) if self.norm_first else x
        x = x + self.dropout(sublayer(entering))
        return x if self.norm_first else self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network, each in a residual connection (section 3.1).

    Args:
        d_model: width of the vectors coming in and going out.
        num_heads: number of attention heads; must divide d_model.
        d_ff: inner width of the feed-forward network.
        dropout, norm_first: as in ResidualConnection.
        attention_dropout: probability of dropping an attention weight (0.0 in the paper).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float = 0.1,
        norm_first: bool = False,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, num_heads, attention_dropout)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.residual_1 = ResidualConnection(d_model, dropout, norm_first)
        self.residual_2 = ResidualConnection(d_model, dropout, norm_first)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(batch, length, d_model), the same shape; the rest is MultiHeadAttention's."""
        own = self.self_attention
        x = self.residual_1(x, lambda x: own(x, x, x, attn_mask, is_causal, cache))
        x = self.residual_2(x, self.feed_forward)
        return x


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention to the memory, then the feed-forward network.

    Each in a residual connection (section 3.1). The arguments are EncoderLayer's.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float = 0.1,
        norm_first: bool = False,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, num_heads, attention_dropout)
        self.cross_attention = MultiHeadAttention(d_model, num_heads, attention_dropout)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.residual_1 = ResidualConnection(d_model, dropout, norm_first)
        self.residual_2 = ResidualConnection(d_model, dropout, norm_first)
        self.residual_3 = ResidualConnection(d_model, dropout, norm_first)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        attn_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory_cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Target (batch, target, d_model), memory (batch, source, d_model) -> the target's shape.

        attn_mask and cache are for self-attention, where no later position is seen in any case;
        memory_mask and memory_cache, one that does not grow, for cross-attention.
        """
        own, cross = self.self_attention, self.cross_attention
        x = self.residual_1(x, lambda x: own(x, x, x, attn_mask, is_causal=True, cache=cache))
        x = self.residual_2(x, lambda x: cross(x, memory, memory, memory_mask, cache=memory_cache))
        x = self.residual_3(x, self.feed_forward)
        return x


class Dropout(nn.Dropout):
    """torch's dropout with a cheaper draw on a CPU: 16 random bits an entry.

    While training, an entry becomes 0 with probability p, rounded to a multiple of 1 / 65,536, and
    is divided by 1 - p otherwise (paper, section 5.4). In eval mode nothing happens.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop entries of a tensor of any shape."""
        if not self.training:
            return input
        dropped = round(self.p * 65_536)  # of all 65,536 draws
        if input.device.type != "cpu" or dropped in (0, 65_536):
            return super().forward(input)
        count = input.numel()
        draws = torch.empty(count // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
        draws = draws.view(torch.int16)[:count].view(input.shape)  # from -32,768 to 32,767
        mask = (draws >= dropped - 32_768).to(input.dtype)  # 0 or 1
        return input * mask.mul_(65_536 / (65_536 - dropped))


class RMSNorm(nn.Module):
    """Root mean square 1 over the features of each position, then a gain.

    Zhang and Sennrich, 2019: a LayerNorm without mean and shift. eps is added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model)
        check_numbers(float, 1e-30, eps=eps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))  # the gain

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class GatedFeedForward(nn.Module):
    """(silu(x W_1) * (x W_3)) W_2, SwiGLU: one map says how much of the other goes on.

    Shazeer, 2020; no biases. With 2/3 of a FeedForward's d_ff it has as many weights.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model, d_ff=d_ff)
        self.gate = nn.Linear(d_model, d_ff, bias=False)  # W_1
        self.inner = nn.Linear(d_model, d_ff, bias=False)  # W_3
        self.outer = nn.Linear(d_ff, d_model, bias=False)  # W_2

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        hidden = F.silu(self.gate(x)) * self.inner(x)  # (..., d_ff)
        output: Tensor = self.outer(hidden)  # (..., d_model)
        return output
