"""Masks, scaled dot-product attention and multi-head attention.

Written from chapters 5, 6, 14 of the book: edit the chapter, then `make sync`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MultiHeadAttention", "causal_mask", "padding_mask", "scaled_dot_product_attention"]


def padding_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """Which keys are real tokens, shaped so that it broadcasts over heads and queries.

    Args:
        tokens: token ids, integers, shape (batch, length).
        pad_id: the id that fills the short rows.

    Returns:
        Boolean, shape (batch, 1, 1, length): True where the token may be attended to.

    Raises:
        ValueError: if tokens is not a batch of rows of integers, or is empty.
    """
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(
            "tokens must be integers of shape (batch, length), "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if tokens.numel() == 0:
        raise ValueError(f"the batch is empty: tokens has shape {tuple(tokens.shape)}")
    return (tokens != pad_id)[:, None, None, :]  # (batch, 1, 1, length)


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Who may see whom when no position may look ahead (paper, section 3.2.3).

    Args:
        length: number of positions, at least 1.
        device: where the mask is made.

    Returns:
        Boolean, shape (length, length): True on and below the diagonal, so that query i
        may attend to keys 0 to i.

    Raises:
        ValueError: if length is below 1.
    """
    if length < 1:
        raise ValueError(f"a causal mask needs at least one position, got length {length}")
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _check_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> None:
    """Raise a ValueError that names both sides of the first thing that does not fit."""
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise ValueError(
            f"query, key and value need at least 2 dimensions (length, width), "
            f"got {query.dim()}, {key.dim()} and {value.dim()}"
        )
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(
            "query, key and value must agree in all but the last two dimensions, "
            f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if query.size(-1) != key.size(-1):
        raise ValueError(
            f"query and key must be equally wide, got {query.size(-1)} and {key.size(-1)}"
        )
    if key.size(-2) != value.size(-2):
        raise ValueError(
            f"each key needs one value, got {key.size(-2)} keys and {value.size(-2)} values"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            "query, key and value must have one dtype, "
            f"got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    if not query.is_floating_point():
        raise ValueError(f"query, key and value must be floating point, got {query.dtype}")
    if not query.device == key.device == value.device:
        raise ValueError(
            "query, key and value must be on one device, "
            f"got {query.device}, {key.device} and {value.device}"
        )
    if attn_mask is None:
        return
    if attn_mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask must be boolean, True where attention is allowed, got {attn_mask.dtype}"
        )
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, the query on {query.device}")
    scores_shape = (*query.shape[:-1], key.size(-2))  # (..., queries, keys)
    fits = 2 <= attn_mask.dim() <= len(scores_shape) and all(
        have in (1, want)
        for have, want in zip(reversed(attn_mask.shape), reversed(scores_shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"attn_mask of shape {tuple(attn_mask.shape)} "
            f"does not broadcast to the shape of the scores, {scores_shape}"
        )


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
    """Compute softmax(Q K^T / sqrt(d_k)) V (paper, section 3.2.1, equation 1).

    Args:
        query: shape (..., queries, d_k).
        key: shape (..., keys, d_k).
        value: shape (..., keys, d_v).
        attn_mask: boolean, broadcastable to (..., queries, keys), True where attention
            is allowed.
        dropout_p: probability of dropping an attention weight; 0.0 outside training.
        is_causal: also forbid every key that comes after its query; needs as many queries
            as keys.
        need_weights: also return the weights (after dropout), which the fused kernel never
            builds.

    Returns:
        The output, shape (..., queries, d_v), and the weights, shape (..., queries, keys),
        or None if not asked for. A query whose every key is forbidden gets zeros.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or is_causal is asked
            for with unequal lengths.
    """
    _check_attention(query, key, value, attn_mask)
    if is_causal and query.size(-2) != key.size(-2):
        raise ValueError(
            f"is_causal needs as many queries as keys, got {query.size(-2)} and {key.size(-2)}"
        )
    # new: the fused kernel is slow for short sequences of bfloat16 on a CPU
    short = key.size(-2) <= 128 and key.dtype == torch.bfloat16 and key.device.type == "cpu"
    plain = need_weights or short
    if is_causal and (plain or attn_mask is not None):
        causal = causal_mask(key.size(-2), key.device)  # (queries, keys)
        attn_mask = causal if attn_mask is None else attn_mask & causal
    has_key = None
    if attn_mask is not None:
        has_key = attn_mask.any(dim=-1, keepdim=True)  # (..., queries, 1)
        # A softmax over nothing is NaN: open such a row, and wipe it below.
        attn_mask = attn_mask | ~has_key  # (..., queries, keys)
    weights = None
    if plain:
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (..., queries, keys)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        weights = F.dropout(scores.softmax(dim=-1), dropout_p)
        if has_key is not None:
            weights = weights.masked_fill(~has_key, 0.0)
        output = weights @ value  # (..., queries, d_v)
    else:
        causal_kernel = is_causal and attn_mask is None  # no matrix of length x length is ever made
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, causal_kernel
        )
    if has_key is not None:
        output = output.masked_fill(~has_key, 0.0)
    return output, weights if need_weights else None


def _check_sequences(query: Tensor, key: Tensor, value: Tensor, d_model: int) -> None:
    """Raise a ValueError that names both values unless the three are (batch, length, d_model) and go together."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 3 or x.size(-1) != d_model:
            raise ValueError(
                f"{name} must have shape (batch, length, d_model {d_model}), got {tuple(x.shape)}"
            )
    if not query.size(0) == key.size(0) == value.size(0):
        raise ValueError(
            f"query, key and value must have the same batch size, "
            f"got {query.size(0)}, {key.size(0)} and {value.size(0)}"
        )
    if key.size(1) != value.size(1):
        raise ValueError(
            f"there must be one value for each key, got {key.size(1)} keys and {value.size(1)} values"
        )


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own subspace (paper, section 3.2.2).

    Args:
        d_model: width of the vectors coming in and going out.
        num_heads: number of heads h; each works at width d_k = d_v = d_model / h.
        dropout: probability of dropping an attention weight while training (the paper has none here).
        bias: whether the four linear maps add a bias (torch's do, the paper's do not).

    Raises:
        ValueError: if d_model or num_heads is below 1, num_heads does not divide d_model, or dropout is no probability.
    """

    def __init__(
        self, d_model: int, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        if d_model < 1 or num_heads < 1:
            raise ValueError(
                f"d_model and num_heads must be at least 1, got {d_model} and {num_heads}"
            )
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not divisible by num_heads {num_heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.d_model, self.num_heads, self.d_k = d_model, num_heads, d_model // num_heads
        self.dropout = dropout
        self.query_projection = nn.Linear(d_model, d_model, bias=bias)  # W_Q of all heads
        self.key_projection = nn.Linear(d_model, d_model, bias=bias)  # W_K
        self.value_projection = nn.Linear(d_model, d_model, bias=bias)  # W_V
        self.output_projection = nn.Linear(d_model, d_model, bias=bias)  # W_O

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, d_model) -> (batch, heads, length, d_k)."""
        return x.view(x.size(0), x.size(1), self.num_heads, self.d_k).transpose(1, 2)

    def project_query(self, query: Tensor) -> Tensor:
        """(batch, queries, d_model) -> (batch, heads, queries, d_k)."""
        return self.split_heads(self.query_projection(query))

    def project_key_value(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Two of (batch, keys, d_model) -> two of (batch, heads, keys, d_k)."""
        key, value = self.key_projection(key), self.value_projection(value)
        return self.split_heads(key), self.split_heads(value)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with vectors already projected and split, and join the heads with W_O.

        Args:
            query: shape (batch, heads, queries, d_k).
            key, value: shape (batch, heads, keys, d_k).
            attn_mask, is_causal, need_weights: as in forward.

        Returns:
            As forward.

        Raises:
            ValueError: if a shape does not fit.
        """
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.dim() != 4 or (x.size(1), x.size(3)) != (self.num_heads, self.d_k):
                raise ValueError(
                    f"{name} must have shape (batch, heads {self.num_heads}, length, "
                    f"d_k {self.d_k}), got {tuple(x.shape)}"
                )
        if not query.size(0) == key.size(0) == value.size(0):
            raise ValueError(
                f"query, key and value must have the same batch size, "
                f"got {query.size(0)}, {key.size(0)} and {value.size(0)}"
            )
        # 3 dimensions: is the first batch or heads?
        if attn_mask is not None and attn_mask.dim() not in (2, 4):
            raise ValueError(
                f"attn_mask must have shape (queries, keys) or (batch, heads, queries, keys), "
                f"got {tuple(attn_mask.shape)}"
            )
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
            attn_mask: boolean, True where attention is allowed, of shape (queries, keys) or broadcastable to
                (batch, heads, queries, keys) with all four dimensions.
            is_causal: also forbid every key that comes after its query; needs as many queries as keys.
            need_weights: also return the weights.

        Returns:
            Output (batch, queries, d_model), and weights (batch, heads, queries, keys) or None.

        Raises:
            ValueError: if a shape does not fit.
        """
        _check_sequences(query, key, value, self.d_model)
        query, (key, value) = self.project_query(query), self.project_key_value(key, value)
        return self.attend(query, key, value, attn_mask, is_causal, need_weights)
