"""Similarities of queries and keys, and what they look up.

Written from chapter 2 of the book: edit the chapter, then `make sync`.
"""

import math

import torch
from torch import Tensor, nn

__all__ = [
    "AdditiveSimilarity",
    "BilinearSimilarity",
    "dot_similarity",
    "masked_softmax",
    "scaled_dot_similarity",
    "weighted_lookup",
]


def weighted_lookup(
    scores: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the values, each with the weight that a softmax gives to its key's score.

    Scores (..., queries, keys), values (..., keys, d_v), a mask as in masked_softmax -> the output
    (..., queries, d_v), and the weights (..., queries, keys).
    """
    weights = masked_softmax(scores, mask)  # (..., queries, keys)
    return weights @ value, weights


def masked_softmax(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Turn scores (..., queries, keys) into weights over the keys: positive, and 1 in sum.

    The mask is boolean, broadcasts to the scores, and is True where attention is allowed. A query
    whose every key is forbidden gets zeros.

    Raises:
        ValueError: if the mask is not boolean.
    """
    if mask is None:
        return scores.softmax(dim=-1)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True where allowed, got {mask.dtype}")
    has_key = mask.any(dim=-1, keepdim=True)  # (..., queries, 1)
    # A softmax over nothing is NaN: open such a row, and wipe it afterwards.
    weights = scores.masked_fill(~mask & has_key, -math.inf).softmax(dim=-1)
    return weights.masked_fill(~has_key, 0.0)  # (..., queries, keys)


def dot_similarity(query: Tensor, key: Tensor) -> Tensor:
    """q.k of every query and key, (..., queries, d_k) and (..., keys, d_k) (Luong et al., 2015)."""
    return query @ key.transpose(-2, -1)  # (..., queries, keys)


def scaled_dot_similarity(query: Tensor, key: Tensor) -> Tensor:
    """q.k / sqrt(d_k) of every query and key, shapes as in dot_similarity (paper, section 3.2.1)."""
    return dot_similarity(query / math.sqrt(query.size(-1)), key)  # in float16, q.k may overflow


class BilinearSimilarity(nn.Module):
    """q^T W k of every query and key, query_dim and key_dim wide (Luong et al., 2015)."""

    def __init__(self, query_dim: int, key_dim: int) -> None:
        super().__init__()
        self.query_projection = nn.Linear(query_dim, key_dim, bias=False)  # W

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return dot_similarity(self.query_projection(query), key)


class AdditiveSimilarity(nn.Module):
    """v^T tanh(W_q q + W_k k), with W_q q hidden_dim wide (Bahdanau et al., 2015, A.1.2)."""

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.query_projection = nn.Linear(query_dim, hidden_dim, bias=False)  # W_q
        self.key_projection = nn.Linear(key_dim, hidden_dim, bias=False)  # W_k
        self.to_score = nn.Linear(hidden_dim, 1, bias=False)  # v

    def project_keys(self, key: Tensor) -> Tensor:
        """W_k k, to be computed once, however many queries follow: (..., keys, hidden_dim)."""
        projected: Tensor = self.key_projection(key)
        return projected

    def score(self, query: Tensor, projected_keys: Tensor) -> Tensor:
        """Score keys that project_keys has been given before: (..., queries, keys)."""
        projected_query = self.query_projection(query)  # (..., queries, hidden_dim)
        # Every query meets every key: (..., queries, 1, hidden_dim) + (..., 1, keys, hidden_dim)
        meeting = projected_query.unsqueeze(-2) + projected_keys.unsqueeze(-3)
        scores: Tensor = self.to_score(meeting.tanh())  # (..., queries, keys, 1)
        return scores.squeeze(-1)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.score(query, self.project_keys(key))
