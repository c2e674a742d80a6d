"""Similarities, masks, scaled dot-product attention and multi-head attention.

Written from chapters 2, 5, 6, 14 of the book: edit the chapter, then `make sync`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AdditiveSimilarity",
    "BilinearSimilarity",
    "MultiHeadAttention",
    "causal_mask",
    "dot_similarity",
    "padding_mask",
    "scaled_dot_product_attention",
    "scaled_dot_similarity",
    "weighted_lookup",
]


def _check_pair(query: Tensor, key: Tensor, query_dim: int, key_dim: int) -> None:
    """Raise a ValueError that names both values unless these queries can meet these keys."""
    if query.dim() < 2 or key.dim() < 2:
        raise ValueError(
            "query and key need at least 2 dimensions (length, width), "
            f"got {query.dim()} and {key.dim()}"
        )
    if query.shape[:-2] != key.shape[:-2]:
        raise ValueError(
            "query and key must agree in all but the last two dimensions, "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if (query.size(-1), key.size(-1)) != (query_dim, key_dim):
        raise ValueError(
            f"query and key must be {query_dim} and {key_dim} wide, "
            f"got {query.size(-1)} and {key.size(-1)}"
        )
    if query.dtype != key.dtype or not query.is_floating_point():
        raise ValueError(
            f"query and key must have one floating-point dtype, got {query.dtype} and {key.dtype}"
        )


def _check_mask(name: str, mask: Tensor, scores_shape: Sequence[int], least_dims: int = 1) -> None:
    """Raise a ValueError that names both values unless the mask is boolean and fits the scores."""
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{name} must be boolean, True where attention is allowed, got {mask.dtype}"
        )
    fits = least_dims <= mask.dim() <= len(scores_shape) and all(
        have in (1, want)
        for have, want in zip(reversed(mask.shape), reversed(scores_shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} does not broadcast to the shape of the scores, "
            f"{tuple(scores_shape)}"
        )


def _check_lookup(scores: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Raise a ValueError that names both values unless scores, values and mask go together."""
    if scores.dim() < 2 or value.dim() < 2:
        raise ValueError(
            "scores and value need at least 2 dimensions, (queries, keys) and (keys, d_v), "
            f"got {scores.dim()} and {value.dim()}"
        )
    if scores.shape[:-2] != value.shape[:-2]:
        raise ValueError(
            "scores and value must agree in all but the last two dimensions, "
            f"got {tuple(scores.shape)} and {tuple(value.shape)}"
        )
    if scores.size(-1) != value.size(-2):
        raise ValueError(
            f"each key needs one value, got {scores.size(-1)} keys and {value.size(-2)} values"
        )
    if scores.dtype != value.dtype or not scores.is_floating_point():
        raise ValueError(
            "scores and value must have one floating-point dtype, "
            f"got {scores.dtype} and {value.dtype}"
        )
    if mask is not None:
        _check_mask("mask", mask, scores.shape)


def weighted_lookup(
    scores: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Turn scores into weights with a softmax over the keys, and average the values with them.

    Args:
        scores: how well each key fits each query, shape (..., queries, keys).
        value: one for each key, shape (..., keys, d_v).
        mask: boolean, broadcastable to (..., queries, keys), True where attention is allowed.

    Returns:
        The output, shape (..., queries, d_v), and the weights, shape (..., queries, keys). Each
        row of weights adds up to 1; a query whose every key is forbidden gets zeros in both.

    Raises:
        ValueError: if shapes or dtypes do not fit together.
    """
    _check_lookup(scores, value, mask)
    if mask is None:
        weights = scores.softmax(dim=-1)  # (..., queries, keys)
    else:
        has_key = mask.any(dim=-1, keepdim=True)  # (..., queries, 1)
        # A softmax over nothing is NaN: open such a row, and wipe it afterwards.
        closed = ~mask & has_key  # (..., queries, keys)
        weights = scores.masked_fill(closed, float("-inf")).softmax(dim=-1)
        weights = weights.masked_fill(~has_key, 0.0)  # (..., queries, keys)
    return weights @ value, weights  # (..., queries, d_v), (..., queries, keys)


def dot_similarity(query: Tensor, key: Tensor) -> Tensor:
    """Score every key by its dot product with every query (Luong et al., 2015, score "dot").

    Args:
        query: shape (..., queries, d_k).
        key: shape (..., keys, d_k).

    Returns:
        The scores, shape (..., queries, keys).

    Raises:
        ValueError: if query and key differ in width, dtype or leading dimensions.
    """
    _check_pair(query, key, query.size(-1), query.size(-1))
    return query @ key.transpose(-2, -1)  # (..., queries, keys)


def scaled_dot_similarity(query: Tensor, key: Tensor) -> Tensor:
    """Score every key by its dot product with every query over sqrt(d_k) (paper, section 3.2.1).

    Args:
        query: shape (..., queries, d_k).
        key: shape (..., keys, d_k).

    Returns:
        The scores, shape (..., queries, keys).

    Raises:
        ValueError: if query and key differ in width, dtype or leading dimensions.
    """
    return dot_similarity(query, key) / math.sqrt(query.size(-1))  # (..., queries, keys)


class BilinearSimilarity(nn.Module):
    """Score q^T W k with a learned matrix W (Luong et al., 2015, score "general").

    Args:
        query_dim: width of a query.
        key_dim: width of a key; it may differ from query_dim.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(self, query_dim: int, key_dim: int) -> None:
        super().__init__()
        if query_dim < 1 or key_dim < 1:
            raise ValueError(
                f"query_dim and key_dim must be at least 1, got {query_dim} and {key_dim}"
            )
        self.query_dim, self.key_dim = query_dim, key_dim
        self.query_projection = nn.Linear(query_dim, key_dim, bias=False)  # W

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Score every key for every query.

        Args:
            query: shape (..., queries, query_dim).
            key: shape (..., keys, key_dim).

        Returns:
            The scores, shape (..., queries, keys).

        Raises:
            ValueError: if a width is not the module's, or dtypes or leading dimensions differ.
        """
        _check_pair(query, key, self.query_dim, self.key_dim)
        return dot_similarity(self.query_projection(query), key)  # (..., queries, keys)


class AdditiveSimilarity(nn.Module):
    """Score v^T tanh(W_q q + W_k k) (Bahdanau et al., 2015, appendix A.1.2).

    Args:
        query_dim: width of a query.
        key_dim: width of a key; it may differ from query_dim.
        hidden_dim: width in which query and key are added.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        super().__init__()
        if min(query_dim, key_dim, hidden_dim) < 1:
            raise ValueError(
                "query_dim, key_dim and hidden_dim must be at least 1, "
                f"got {query_dim}, {key_dim} and {hidden_dim}"
            )
        self.query_dim, self.key_dim, self.hidden_dim = query_dim, key_dim, hidden_dim
        self.query_projection = nn.Linear(query_dim, hidden_dim, bias=False)  # W_q
        self.key_projection = nn.Linear(key_dim, hidden_dim, bias=False)  # W_k
        self.to_score = nn.Linear(hidden_dim, 1, bias=False)  # v

    def project_keys(self, key: Tensor) -> Tensor:
        """(..., keys, key_dim) -> (..., keys, hidden_dim): once, however many queries follow."""
        projected: Tensor = self.key_projection(key)
        return projected

    def score(self, query: Tensor, projected_keys: Tensor) -> Tensor:
        """Score keys that project_keys has been given before.

        Args:
            query: shape (..., queries, query_dim).
            projected_keys: shape (..., keys, hidden_dim).

        Returns:
            The scores, shape (..., queries, keys).

        Raises:
            ValueError: if a width is not the module's, or dtypes or leading dimensions differ.
        """
        _check_pair(query, projected_keys, self.query_dim, self.hidden_dim)
        projected_query = self.query_projection(query)  # (..., queries, hidden_dim)
        # Every query meets every key: (..., queries, 1, hidden_dim) + (..., 1, keys, hidden_dim)
        meeting = projected_query.unsqueeze(-2) + projected_keys.unsqueeze(-3)
        scores: Tensor = self.to_score(meeting.tanh())  # (..., queries, keys, 1)
        return scores.squeeze(-1)  # (..., queries, keys)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Score every key for every query.

        Args:
            query: shape (..., queries, query_dim).
            key: shape (..., keys, key_dim).

        Returns:
            The scores, shape (..., queries, keys).

        Raises:
            ValueError: if a width is not the module's, or dtypes or leading dimensions differ.
        """
        _check_pair(query, key, self.query_dim, self.key_dim)
        return self.score(query, self.project_keys(key))


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
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, the query on {query.device}")
    scores_shape = (*query.shape[:-1], key.size(-2))  # (..., queries, keys)
    _check_mask("attn_mask", attn_mask, scores_shape, least_dims=2)


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
