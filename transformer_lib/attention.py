"""Spine (to be regenerated from chapters 5 and 6)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MultiHeadAttention", "causal_mask", "padding_mask", "scaled_dot_product_attention"]


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Who may see whom when no position may look ahead (paper, section 3.2.3).

    Args:
        length: number of positions, at least 1.
        device: where the mask is made.

    Returns:
        Boolean, shape (length, length): True on and below the diagonal, so query i may attend to keys 0 to i.

    Raises:
        ValueError: if length is below 1.
    """
    if length < 1:
        raise ValueError(f"a causal mask needs at least one position, got length {length}")
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def padding_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """Which keys are real tokens, shaped so that it broadcasts over heads and queries.

    Args:
        tokens: token ids, integers, shape (batch, length).
        pad_id: the id that fills the short rows.

    Returns:
        Boolean, shape (batch, 1, 1, length): True where the token may be attended to.

    Raises:
        ValueError: if tokens is not a batch of integer rows, or is empty.
    """
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be integers of shape (batch, length), got {tokens.dtype} {tuple(tokens.shape)}")
    if tokens.numel() == 0:
        raise ValueError(f"the batch is empty: tokens has shape {tuple(tokens.shape)}")
    return (tokens != pad_id)[:, None, None, :]  # (batch, 1, 1, length)


def _check_attention_inputs(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> None:
    """Raise a ValueError that names both sides of the first thing that does not fit."""
    ...


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(Q K^T / sqrt(d_k)) V over the last two dimensions (paper, section 3.2.1, equation 1).

    Args:
        query: shape (..., queries, d_k).
        key: shape (..., keys, d_k).
        value: shape (..., keys, d_v).
        attn_mask: boolean, broadcastable to (..., queries, keys), True where attention is allowed.
        dropout_p: probability of dropping an attention weight; 0.0 outside training.
        is_causal: also forbid every key that comes after its query; needs as many queries as keys.
        need_weights: also return the weights, which torch's fused kernel never builds.

    Returns:
        The output, shape (..., queries, d_v), and the weights, shape (..., queries, keys), or None if not asked for.
        A query whose every key is forbidden gets zeros.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    _check_attention_inputs(query, key, value, attn_mask)
    num_queries, num_keys = query.size(-2), key.size(-2)
    if is_causal:
        if num_queries != num_keys:
            raise ValueError(f"is_causal needs as many queries as keys, got {num_queries} and {num_keys}")
        if attn_mask is not None or need_weights:
            allowed = causal_mask(num_keys, key.device)  # (queries, keys)
            attn_mask = allowed if attn_mask is None else attn_mask & allowed
    has_key = None
    if attn_mask is not None:
        has_key = attn_mask.any(dim=-1, keepdim=True)  # (..., queries, 1)
        attn_mask = attn_mask | ~has_key  # a softmax over nothing is NaN: let such a row see all, and zero it below
    weights = None
    if need_weights:
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (..., queries, keys)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        weights = F.dropout(scores.softmax(dim=-1), dropout_p)
        if has_key is not None:
            weights = weights.masked_fill(~has_key, 0.0)
        output = weights @ value  # (..., queries, d_v)
    else:
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal=is_causal and attn_mask is None
        )
    if has_key is not None:
        output = output.masked_fill(~has_key, 0.0)
    return output, weights


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own subspace (paper, section 3.2.2).

    Args:
        d_model: width of the vectors coming in and going out.
        num_heads: number of heads h; each works at width d_k = d_v = d_model / h.
        dropout: probability of dropping an attention weight while training (the paper has none here).
        bias: whether the four linear maps add a bias (torch's do, the paper's do not).

    Raises:
        ValueError: if num_heads does not divide d_model.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not divisible by num_heads {num_heads}")
        self.d_model, self.num_heads, self.d_k = d_model, num_heads, d_model // num_heads
        self.dropout = dropout
        self.query_projection = nn.Linear(d_model, d_model, bias=bias)
        self.key_projection = nn.Linear(d_model, d_model, bias=bias)
        self.value_projection = nn.Linear(d_model, d_model, bias=bias)
        self.output_projection = nn.Linear(d_model, d_model, bias=bias)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, d_model) -> (batch, heads, length, d_k)."""
        return x.unflatten(-1, (self.num_heads, self.d_k)).transpose(1, 2)

    def project_query(self, query: Tensor) -> Tensor:
        """(batch, queries, d_model) -> (batch, heads, queries, d_k)."""
        return self.split_heads(self.query_projection(query))

    def project_key_value(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Two of (batch, keys, d_model) -> two of (batch, heads, keys, d_k)."""
        return self.split_heads(self.key_projection(key)), self.split_heads(self.value_projection(value))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with vectors already projected and split, (batch, heads, length, d_k), and mix the heads with W_O."""
        dropout_p = self.dropout if self.training else 0.0
        heads, weights = scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, need_weights=need_weights
        )  # (batch, heads, queries, d_k)
        joined = heads.transpose(1, 2).flatten(-2)  # (batch, queries, d_model)
        return self.output_projection(joined), weights

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from each query position to the key positions.

        Args:
            query: shape (batch, queries, d_model).
            key, value: shape (batch, keys, d_model).
            attn_mask: boolean, broadcastable to (batch, heads, queries, keys), True where attention is allowed.
            is_causal: also forbid every key that comes after its query.
            need_weights: also return the weights.

        Returns:
            Output (batch, queries, d_model), and weights (batch, heads, queries, keys) or None.

        Raises:
            ValueError: if a shape does not fit.
        """
        key, value = self.project_key_value(key, value)
        return self.attend(self.project_query(query), key, value, attn_mask, is_causal, need_weights)
