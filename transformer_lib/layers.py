"""Feed-forward network, layer norm, residual connection, encoder and decoder layer.

Written from chapters 8, 9, 10, 11, 14 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention

__all__ = [
    "DecoderLayer",
    "Dropout",
    "EncoderLayer",
    "FeedForward",
    "LayerNorm",
    "ResidualConnection",
]


class FeedForward(nn.Module):
    """max(0, x W_1 + b_1) W_2 + b_2, at every position by itself (paper, section 3.3).

    Args:
        d_model: width of the vectors coming in and going out.
        d_ff: width in between, 4 * d_model in the paper.

    Raises:
        ValueError: if one of them is below 1.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        if d_model < 1 or d_ff < 1:
            raise ValueError(f"d_model and d_ff must be at least 1, got {d_model} and {d_ff}")
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two maps and the bend to every position's vector.

        Args:
            x: shape (..., d_model), (batch, length, d_model) as a rule.

        Returns:
            The same shape.

        Raises:
            ValueError: if x has another width than d_model.
        """
        if x.size(-1) != self.inner.in_features:
            raise ValueError(
                f"x has width {x.size(-1)}, "
                f"the feed-forward network d_model {self.inner.in_features}"
            )
        hidden = F.relu(self.inner(x))  # (..., d_ff)
        output: Tensor = self.outer(hidden)  # (..., d_model)
        return output


class LayerNorm(nn.Module):
    """Mean 0 and standard deviation 1 over the features of each position, then a learned gain and shift.

    It normalizes activations, one position at a time: neither weights, nor anything across positions or the batch.
    The paper (section 3.1) puts one around each sub-layer.

    Args:
        d_model: number of features, at least 1.
        eps: added to the variance, under the root, so that equal features do not divide by zero.

    Raises:
        ValueError: if d_model is below 1 or eps is not positive.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        if d_model < 1 or eps <= 0:
            raise ValueError(
                f"d_model must be at least 1 and eps positive, got {d_model} and {eps}"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))  # the gain
        self.bias = nn.Parameter(torch.zeros(d_model))  # the shift

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each position's vector.

        Args:
            x: shape (..., d_model).

        Returns:
            The same shape.

        Raises:
            ValueError: if x has another width than d_model.
        """
        if x.size(-1) != self.weight.numel():
            raise ValueError(
                f"x has width {x.size(-1)}, the layer norm d_model {self.weight.numel()}"
            )
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ResidualConnection(nn.Module):
    """x + Sublayer(x), with dropout and a layer norm (paper, sections 3.1 and 5.4).

    Post-norm, the paper's: LayerNorm(x + Dropout(Sublayer(x))).
    Pre-norm, norm_first=True: x + Dropout(Sublayer(LayerNorm(x))); a stack of these needs one more norm at its end.

    Args:
        d_model: width of x.
        dropout: probability of dropping an entry of the sub-layer's output while training.
        norm_first: pre-norm instead of post-norm.

    Raises:
        ValueError: if d_model is below 1, or dropout is not a probability.
    """

    def __init__(self, d_model: int, dropout: float = 0.1, norm_first: bool = False) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability between 0 and 1, got {dropout}")
        self.norm = LayerNorm(d_model)
        self.dropout = Dropout(dropout)  # new: the cheaper one
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Run the sub-layer and add what it says to x.

        Args:
            x: shape (..., d_model).
            sublayer: a function of one tensor that keeps its shape.

        Returns:
            The same shape as x.

        Raises:
            ValueError: if the sub-layer changes the shape, or x has another width than d_model.
        """
        change = sublayer(self.norm(x) if self.norm_first else x)  # (..., d_model)
        if change.shape != x.shape:
            raise ValueError(
                f"the sub-layer turned shape {tuple(x.shape)} into {tuple(change.shape)}: they cannot be added"
            )
        x = x + self.dropout(change)
        return x if self.norm_first else self.norm(x)


def _check_sequence(name: str, x: Tensor, d_model: int) -> None:
    """Raise a ValueError unless x is a batch of sequences of vectors, d_model wide."""
    if x.dim() != 3 or x.size(-1) != d_model:
        raise ValueError(f"{name} must have shape (batch, length, {d_model}), got {tuple(x.shape)}")


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network, each in a residual connection.

    The encoder's layer of the paper, section 3.1.

    Args:
        d_model: width of the vectors coming in and going out.
        num_heads: number of attention heads; must divide d_model.
        d_ff: inner width of the feed-forward network.
        dropout: probability of dropping an entry of a sub-layer's output while training.
        norm_first: normalize before each sub-layer (pre-norm), not after (post-norm, paper).
        attention_dropout: probability of dropping an attention weight (0.0 in the paper).

    Raises:
        ValueError: if num_heads does not divide d_model.
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
        self.d_model = d_model
        self.self_attention = MultiHeadAttention(d_model, num_heads, attention_dropout)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.residual_1 = ResidualConnection(d_model, dropout, norm_first)
        self.residual_2 = ResidualConnection(d_model, dropout, norm_first)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Let every position hear the others, then digest what it heard.

        Args:
            x: shape (batch, length, d_model).
            attn_mask: boolean, True where attention is allowed, broadcastable to
                (batch, heads, length, length); padding_mask makes (batch, 1, 1, length).

        Returns:
            Shape (batch, length, d_model).

        Raises:
            ValueError: if x or the mask has a shape that does not fit, or the mask is not
                boolean, or on another device.
        """
        _check_sequence("x", x, self.d_model)
        # Both steps keep the shape (batch, length, d_model).
        x = self.residual_1(x, lambda x: self.self_attention(x, x, x, attn_mask)[0])
        x = self.residual_2(x, self.feed_forward)
        return x


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention to the memory, then the feed-forward network.

    Each in a residual connection: the decoder's layer of the paper, section 3.1.

    Args:
        d_model: width of the vectors coming in and going out, and of the memory.
        num_heads: number of heads of either attention; must divide d_model.
        d_ff: inner width of the feed-forward network.
        dropout: probability of dropping an entry of a sub-layer's output while training.
        norm_first: normalize before each sub-layer (pre-norm), not after (post-norm, paper).
        attention_dropout: probability of dropping an attention weight (0.0 in the paper).

    Raises:
        ValueError: if num_heads does not divide d_model.
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
        self.d_model = d_model
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
    ) -> Tensor:
        """Look back at the target so far, look across to the source, then digest.

        Args:
            x: the target, shape (batch, target, d_model).
            memory: the encoder's output, shape (batch, source, d_model).
            attn_mask: boolean, True where self-attention is allowed, broadcastable to
                (batch, heads, target, target); later positions are forbidden in any case.
                Padding on the right needs no mask.
            memory_mask: boolean, True where cross-attention is allowed, broadcastable to
                (batch, heads, target, source); padding_mask makes (batch, 1, 1, source).

        Returns:
            Shape (batch, target, d_model).

        Raises:
            ValueError: if x or memory does not fit in shape, or a mask in shape, type or device.
        """
        _check_sequence("x", x, self.d_model)
        _check_sequence("memory", memory, self.d_model)
        if memory.size(0) != x.size(0):
            raise ValueError(f"memory has a batch of {memory.size(0)}, x of {x.size(0)}")

        # All three steps keep the shape (batch, target, d_model).
        x = self.residual_1(x, lambda x: self.self_attention(x, x, x, attn_mask, is_causal=True)[0])
        x = self.residual_2(x, lambda x: self.cross_attention(x, memory, memory, memory_mask)[0])
        x = self.residual_3(x, self.feed_forward)
        return x


class Dropout(nn.Dropout):
    """torch's dropout with a cheaper draw on a CPU: 16 random bits an entry.

    While training, an entry becomes 0 with probability p, rounded to a multiple of 1 / 65,536, and
    is divided by 1 - p otherwise (paper, section 5.4). In eval mode nothing happens.

    Args:
        p: the probability, from 0 to 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop entries of a tensor of any shape."""
        dropped = round(self.p * 65_536)  # of all 65,536 draws
        if not self.training or input.device.type != "cpu" or dropped in (0, 65_536):
            return super().forward(input)
        count = input.numel()
        draws = torch.empty(count // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
        draws = draws.view(torch.int16)[:count].view(input.shape)  # from -32,768 to 32,767
        mask = (draws >= dropped - 32_768).to(input.dtype)  # 0 or 1
        return input * mask.mul_(65_536 / (65_536 - dropped))
