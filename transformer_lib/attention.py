"""Masks, scaled dot-product attention and multi-head attention, with its key-value cache.

Written from chapters 5, 6, 25, 27 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.door import check_attention, check_numbers, check_tokens
from transformer_lib.embeddings import rotate
from transformer_lib.similarity import masked_softmax, scaled_dot_similarity

__all__ = [
    "AlibiAttention",
    "GroupedQueryAttention",
    "HeadMaps",
    "KeyValueCache",
    "MultiHeadAttention",
    "RotaryAttention",
    "attention_weights",
    "causal_mask",
    "padding_mask",
    "scaled_dot_product_attention",
]


def padding_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """True where a token may be attended to: (batch, length) -> boolean, (batch, 1, 1, length).

    It broadcasts over heads and queries. ValueError if tokens are no ids, or there are none.
    """
    check_tokens("tokens", tokens)
    return (tokens != pad_id)[:, None, None, :]


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Boolean, (length, length): query i may attend to keys 0 to i (paper, section 3.2.3)."""
    check_numbers(int, 1, length=length)
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def attention_weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)), the weights of equation 1 of the paper.

    (..., queries, d_k) and (..., keys, d_k) -> (..., queries, keys); masks as in
    scaled_dot_product_attention.
    """
    scores = scaled_dot_similarity(query, key)  # (..., queries, keys)
    return masked_softmax(scores, _allowed(query, key, attn_mask, is_causal))


def _allowed(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> Tensor | None:
    """Both masks in one, None if everything is allowed."""
    queries, keys = query.size(-2), key.size(-2)
    if not is_causal or queries == 1:  # a single query stands beside the last key: it sees all
        return attn_mask
    causal = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)
    return causal if attn_mask is None else attn_mask & causal


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V (paper, section 3.2.1, equation 1).

    (..., queries, d_k), (..., keys, d_k) and (..., keys, d_v) -> (..., queries, d_v). A query whose
    every key is forbidden gets zeros.

    Args:
        attn_mask: boolean (ValueError), broadcastable to (..., queries, keys), True = allowed.
        dropout_p: probability of dropping an attention weight.
        is_causal: also forbid every key after its query; the last query stands beside the last key.
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


class HeadMaps(nn.Module):
    """The four linear maps of multi-head attention, and the cut into heads.

    Args:
        d_model: width of the vectors coming in and going out.
        num_heads: number of heads h.
        dropout: probability of dropping an attention weight while training (the paper has none).
        bias: whether the four linear maps add a bias (torch's do, the paper's do not).
        d_k: width of a head; d_model / num_heads if None, which must be whole (ValueError).
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
        self.joined: Callable[[Tensor], tuple[Tensor, ...]] | None = None  # the first three, as one

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, heads * d_k) -> (batch, heads, length, d_k)."""
        return x.view(*x.shape[:-1], -1, self.d_k).transpose(1, 2)


class KeyValueCache:
    """Keys and values that attentions have projected before: a stack's, found by attention.

    If it grows (self-attention), those of new positions go behind the old ones; if not
    (cross-attention), the memory's stay as they are.
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


class MultiHeadAttention(HeadMaps):
    """Several attentions side by side, each in its own subspace (paper, section 3.2.2).

    The arguments are those of HeadMaps.
    """

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """What a variant replaces: all heads at once, (batch, heads, length, d_k) in and out."""
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

        (batch, queries, d_model) and twice (batch, keys, d_model) -> (batch, queries, d_model).
        The masks are scaled_dot_product_attention's; a mask has 2 or all 4 dimensions (ValueError).
        With a cache, key and value hold the new positions only.
        """
        check_attention(query, key, value, attn_mask)

        as_one = self.joined if query is key is value else None
        asked, *known = as_one(query) if as_one else [self.query_projection(query)]

        def project() -> tuple[Tensor, Tensor]:  # (batch, heads, keys, d_k) twice
            k, v = known or (self.key_projection(key), self.value_projection(value))
            return self.split_heads(k), self.split_heads(v)

        q = self.split_heads(asked)  # (batch, heads, queries, d_k)
        k, v = project() if cache is None else cache.update(self, project)
        heads = self.attend(q, k, v, attn_mask, is_causal)  # (batch, heads, queries, d_k)
        output: Tensor = self.output_projection(heads.transpose(1, 2).flatten(-2))
        return output  # (batch, queries, d_model)


class RotaryAttention(MultiHeadAttention):
    """Self-attention that turns queries and keys by their positions (Su et al., 2021).

    A score then depends on how far apart the two stand. The arguments are HeadMaps'; d_k is even.
    """

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        at = torch.arange(key.size(-2), device=key.device)  # (keys,); the last query stands there,
        query, key = rotate(query, at[-query.size(-2) :]), rotate(key, at)  # beside the last key
        return super().attend(query, key, value, attn_mask, is_causal)


class AlibiAttention(MultiHeadAttention):
    """Self-attention whose scores fall with the distance, in each head at another slope.

    Press et al., 2022: of h heads, head j, from 1 on, takes away 2^(-8 j / h) a position.
    """

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        heads, queries = query.size(1), query.size(-2)
        at = torch.arange(key.size(-2), device=key.device)  # (keys,)
        distance = (at[-queries:, None] - at).abs()  # (queries, keys)
        slope = 2.0 ** (-8 * torch.arange(1, heads + 1, device=key.device) / heads)  # (heads,)
        scores = scaled_dot_similarity(query, key) - slope[:, None, None] * distance
        weights = masked_softmax(scores, _allowed(query, key, attn_mask, is_causal))
        return F.dropout(weights, self.dropout, self.training) @ value


class GroupedQueryAttention(MultiHeadAttention):
    """Attention of which groups of query heads share one head of keys and one of values.

    Ainslie et al., 2023; with one such head it is Shazeer's multi-query attention, 2019. A cache
    holds num_key_heads instead of num_heads, which they divide (ValueError).
    """

    def __init__(self, d_model: int, num_heads: int, num_key_heads: int) -> None:
        super().__init__(d_model, num_heads)
        check_numbers(int, 1, num_heads, num_key_heads=num_key_heads)
        if num_heads % num_key_heads:
            raise ValueError(f"{num_key_heads} key heads do not divide {num_heads} heads")
        self.key_projection = nn.Linear(d_model, num_key_heads * self.d_k)
        self.value_projection = nn.Linear(d_model, num_key_heads * self.d_k)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        group = query.size(1) // key.size(1)  # heads that share
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        return super().attend(query, key, value, attn_mask, is_causal)
