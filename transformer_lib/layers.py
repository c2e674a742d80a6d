"""Spine (to be regenerated from chapters 8 to 11)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention

__all__ = ["DecoderLayer", "EncoderLayer", "FeedForward", "LayerNorm", "ResidualConnection"]


class FeedForward(nn.Module):  # chapter 8
    """max(0, x W_1 + b_1) W_2 + b_2 at every position alike (section 3.3)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.relu(self.inner(x)))  # (..., d_ff) inside, (..., d_model) out


class LayerNorm(nn.Module):  # chapter 9
    """Mean 0 and standard deviation 1 over the features of each position, then a learned gain (weight) and shift (bias)."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ResidualConnection(nn.Module):  # chapter 9
    """LayerNorm(x + Dropout(Sublayer(x))) (post-norm, the paper) or x + Dropout(Sublayer(LayerNorm(x))) (pre-norm, norm_first=True)."""

    def __init__(self, d_model: int, dropout: float = 0.1, norm_first: bool = False) -> None:
        super().__init__()
        self.norm = LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class EncoderLayer(nn.Module):  # chapter 10
    """Self-attention, then the feed-forward network, each in a residual connection (section 3.1)."""

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

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = self.residual_1(x, lambda x: self.self_attention(x, x, x, attn_mask)[0])  # (batch, source, d_model)
        return self.residual_2(x, self.feed_forward)  # (batch, source, d_model)


class DecoderLayer(nn.Module):  # chapter 11
    """Masked self-attention, cross-attention to the memory, feed-forward, each in a residual connection (section 3.1)."""

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
        self, x: Tensor, memory: Tensor, attn_mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """attn_mask restricts self-attention beyond causality, which always holds; memory_mask cross-attention."""
        x = self.residual_1(x, lambda x: self.self_attention(x, x, x, attn_mask, is_causal=True)[0])
        x = self.residual_2(x, lambda x: self.cross_attention(x, memory, memory, memory_mask)[0])
        return self.residual_3(x, self.feed_forward)  # (batch, target, d_model)
