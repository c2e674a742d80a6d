"""Masks, scaled dot-product attention and multi-head attention, with its key-value cache.

Written from chapters 5, 6, 14 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.door import check_attention, check_numbers, check_tokens
from transformer_lib.similarity import masked_softmax, scaled_dot_similarity

__all__ = [
    "KeyValueCache",
    "MultiHeadAttention",
    "attention_weights",
    "causal_mask",
    "padding_mask",
    "scaled_dot_product_attention",
]


def padding_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """Which keys are real tokens, shaped so that it broadcasts over heads and queries.

    Args:
        tokens: token ids, shape (batch, length).
        pad_id: the id that fills the short rows.

    Returns:
        Boolean, shape (batch, 1, 1, length): True where the token may be attended to.

    Raises:
        ValueError: if tokens is no batch of rows of token ids, or empty.
    """
    check_tokens("tokens", tokens)
    return (tokens != pad_id)[:, None, None, :]


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Who may see whom when no position may look ahead (paper, section 3.2.3).

    Args:
        length: number of positions, at least 1 (ValueError).
        device: where the mask is made.

    Returns:
        Boolean, shape (length, length): query i may attend to keys 0 to i.
    """
    check_numbers(int, 1, length=length)
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _allowed(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> Tensor | None:
    """One mask for both, None if all is allowed; the last query stands where the last key stands."""
    if not is_causal or query.size(-2) == 1:
        return attn_mask
    causal = causal_mask(key.size(-2), key.device)[-query.size(-2) :]  # (queries, keys)
    return causal if attn_mask is None else attn_mask & causal


def attention_weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)), the weights of equation 1 of the paper.

    (..., queries, d_k) and (..., keys, d_k) -> (..., queries, keys); the masks as in
    scaled_dot_product_attention.
    """
    allowed = _allowed(query, key, attn_mask, is_causal)
    return masked_softmax(scaled_dot_similarity(query, key), allowed)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V (paper, section 3.2.1, equation 1).

    (..., queries, d_k), (..., keys, d_k) and (..., keys, d_v) -> (..., queries, d_v). attn_mask
    broadcasts to (..., queries, keys), True where attention is allowed; is_causal also forbids
    every key after its query, where the last query stands beside the last key; dropout_p is the
    share of weights to drop. A query whose every key is forbidden gets zeros.

    Raises:
        ValueError: if attn_mask is not boolean.
    """
    if attn_mask is not None and attn_mask.dtype != torch.bool:  # torch would add numbers
        raise ValueError(f"attn_mask must be boolean, True where allowed, got {attn_mask.dtype}")
    # new: the fused kernel is slow for short sequences of bfloat16 on a CPU
    if key.size(-2) <= 128 and key.dtype == torch.bfloat16 and key.device.type == "cpu":
        weights = attention_weights(query, key, attn_mask, is_causal)  # (..., queries, keys)
        return F.dropout(weights, dropout_p) @ value
    if is_causal and attn_mask is None and query.size(-2) == key.size(-2):
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p, is_causal=True)
    allowed = _allowed(query, key, attn_mask, is_causal)
    return F.scaled_dot_product_attention(query, key, value, allowed, dropout_p)


class KeyValueCache:
    """Keys and values that attentions have projected before, so that nothing is projected twice.

    One serves all the attentions of a stack: each finds its own.

    Args:
        grows: True for self-attention, whose keys are all positions so far: those of new positions
            are put behind the old ones. False for cross-attention, whose memory stays the same.
    """

    def __init__(self, grows: bool = True) -> None:
        self.grows = grows
        self.length = 0  # positions read so far; whoever reads more of them says so
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # (batch, heads, length, d_k) twice

    def update(
        self, attention: nn.Module, project: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions; `project` makes those of the new ones."""
        if attention not in self.kept:
            self.kept[attention] = project()
        elif self.grows:
            pairs = zip(self.kept[attention], project(), strict=True)
            key, value = (torch.cat(pair, dim=2) for pair in pairs)
            self.kept[attention] = key, value
        return self.kept[attention]

    def select(self, rows: Tensor) -> None:
        """Let row i go on with what row rows[i] has kept; rows are indices, shape (new batch,)."""
        for attention, (key, value) in self.kept.items():
            self.kept[attention] = key.index_select(0, rows), value.index_select(0, rows)


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own subspace (paper, section 3.2.2).

    Args:
        d_model: width of the vectors coming in and going out.
        num_heads: number of heads h.
        dropout: probability of dropping an attention weight while training (the paper has none).
        bias: whether the four linear maps add a bias (torch's do, the paper's do not).
        d_k: width of a head, d_model / num_heads if None.

    Raises:
        ValueError: if num_heads does not divide d_model and d_k is None, or a number is out of range.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        d_k: int | None = None,
    ) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model, num_heads=num_heads, d_k=1 if d_k is None else d_k)
        check_numbers(float, 0, 1, dropout=dropout)
        if d_k is None and d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not divisible by num_heads {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.d_k = d_model // num_heads if d_k is None else d_k
        width = num_heads * self.d_k  # of all heads together
        self.query_projection = nn.Linear(d_model, width, bias=bias)  # W_Q of all heads
        self.key_projection = nn.Linear(d_model, width, bias=bias)  # W_K
        self.value_projection = nn.Linear(d_model, width, bias=bias)  # W_V
        self.output_projection = nn.Linear(width, d_model, bias=bias)  # W_O

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, heads * d_k) -> (batch, heads, length, d_k)."""
        return x.unflatten(-1, (-1, self.d_k)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """What a variant replaces (ALiBi, rotary, ...): all four (batch, heads, length, d_k)."""
        dropout_p = self.dropout if self.training else 0.0
        return scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend from each query position to the key positions.

        Args:
            query: shape (batch, queries, d_model).
            key, value: shape (batch, keys, d_model); with a cache, of the new positions only.
            attn_mask: boolean, True where attention is allowed, of shape (queries, keys) or
                broadcastable to (batch, heads, queries, keys) with all four dimensions.
            is_causal: also forbid every key that comes after its query.
            cache: keys and values of earlier calls.

        Returns:
            Shape (batch, queries, d_model).
        """
        check_attention(query, key, value, attn_mask)

        def project() -> tuple[Tensor, Tensor]:  # (batch, heads, keys, d_k) twice
            key_heads = self.split_heads(self.key_projection(key))
            return key_heads, self.split_heads(self.value_projection(value))

        q = self.split_heads(self.query_projection(query))  # (batch, heads, queries, d_k)
        k, v = project() if cache is None else cache.update(self, project)
        heads = self.attend(q, k, v, attn_mask, is_causal)  # (batch, heads, queries, d_k)
        output: Tensor = self.output_projection(heads.transpose(1, 2).flatten(-2))
        return output  # (batch, queries, d_model)
