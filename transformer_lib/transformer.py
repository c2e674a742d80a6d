"""Encoder, decoder and the whole Transformer.

Written from chapters 10, 11, 12 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import padding_mask
from transformer_lib.embeddings import SinusoidalPositionalEncoding, TokenEmbedding
from transformer_lib.layers import DecoderLayer, EncoderLayer, LayerNorm

__all__ = [
    "Decoder",
    "Encoder",
    "Transformer",
    "TransformerConfig",
    "count_parameters",
    "from_torch",
    "to_torch",
]


class Encoder(nn.Module):
    """A stack of encoder layers, and perhaps a last norm (paper, section 3.1).

    Args:
        layers: the layers in the order in which they run, at least one; the paper has 6.
        norm: applied to the last layer's output; pre-norm stacks need it.

    Raises:
        ValueError: if there is no layer, or not all have the same width.
    """

    def __init__(self, layers: Iterable[EncoderLayer], norm: LayerNorm | None = None) -> None:
        super().__init__()
        stack = list(layers)
        if not stack:
            raise ValueError("an encoder needs at least one layer, got 0")
        widths = [layer.d_model for layer in stack] + (
            [] if norm is None else [norm.weight.numel()]
        )
        if len(set(widths)) > 1:
            raise ValueError(f"all layers and the norm must have one width, got {widths}")
        self.layers = nn.ModuleList(stack)
        self.norm = norm

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Turn vectors that know their word into vectors that know their sentence: the memory.

        Args:
            x: shape (batch, source, d_model).
            attn_mask: boolean, True where attention is allowed, broadcastable to
                (batch, heads, source, source).

        Returns:
            The memory, shape (batch, source, d_model).

        Raises:
            ValueError: if x or the mask does not fit.
        """
        for layer in self.layers:
            x = layer(x, attn_mask)  # (batch, source, d_model)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers that all read the same memory (paper, section 3.1).

    Args:
        layers: the layers in the order in which they run, at least one; the paper has 6.
        norm: applied to the last layer's output; pre-norm stacks need it.

    Raises:
        ValueError: if there is no layer, or not all have the same width.
    """

    def __init__(self, layers: Iterable[DecoderLayer], norm: LayerNorm | None = None) -> None:
        super().__init__()
        stack = list(layers)
        if not stack:
            raise ValueError("a decoder needs at least one layer, got 0")
        widths = [layer.d_model for layer in stack] + (
            [] if norm is None else [norm.weight.numel()]
        )
        if len(set(widths)) > 1:
            raise ValueError(f"all layers and the norm must have one width, got {widths}")
        self.layers = nn.ModuleList(stack)
        self.norm = norm

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        attn_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Turn each target position into the vector from which its next word is predicted.

        Args:
            x: the target, shape (batch, target, d_model).
            memory: the encoder's output, shape (batch, source, d_model).
            attn_mask: boolean, True where self-attention is allowed, broadcastable to
                (batch, heads, target, target); later positions are forbidden in any case.
            memory_mask: boolean, True where cross-attention is allowed, broadcastable to
                (batch, heads, target, source).

        Returns:
            Shape (batch, target, d_model).

        Raises:
            ValueError: if x or memory does not fit in shape, or a mask in shape, type or device.
        """
        for layer in self.layers:
            x = layer(x, memory, attn_mask, memory_mask)  # (batch, target, d_model)
        return x if self.norm is None else self.norm(x)


@dataclass(frozen=True)
class TransformerConfig:
    """The numbers that make a Transformer; the defaults are the paper's base model (its Table 3).

    Args:
        vocab_size: entries of the vocabulary that source and target share.
        d_model: width of the vectors between the layers; even: sines and cosines come in pairs.
        num_heads: heads of each attention; has to divide d_model.
        d_ff: inner width of the feed-forward networks.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dropout: probability of dropping an entry of a sub-layer's output, or of an embedding with
            its position.
        attention_dropout: probability of dropping an attention weight; the paper has none.
        norm_first: normalize before each sub-layer (pre-norm) and not after the sum (post-norm, as
            in the paper).
        final_norm: one more norm after each stack; None means as norm_first: pre-norm needs one.
        max_length: longest sequence, in tokens.
        pad_id: the id that fills up short rows.

    Raises:
        ValueError: if a value is out of range, or two of them do not fit together.
    """

    vocab_size: int
    d_model: int = 512
    num_heads: int = 8
    d_ff: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    norm_first: bool = False
    final_norm: bool | None = None
    max_length: int = 1024
    pad_id: int = 0

    def __post_init__(self) -> None:
        widths = ("vocab_size", "d_model", "num_heads", "d_ff")
        for name in (*widths, "num_encoder_layers", "num_decoder_layers", "max_length"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
        for name in ("dropout", "attention_dropout"):
            share = getattr(self, name)
            if not isinstance(share, int | float) or not 0.0 <= share < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share!r}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by num_heads {self.num_heads}"
            )
        if self.d_model % 2:
            raise ValueError(f"sines and cosines come in pairs: d_model {self.d_model} is not even")
        if not isinstance(self.pad_id, int) or not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(
                f"pad_id {self.pad_id!r} is not in a vocabulary of {self.vocab_size} entries"
            )

    @classmethod
    def base(cls, vocab_size: int = 37_000) -> "TransformerConfig":
        """The paper's base model, by default with its vocabulary of about 37,000 entries."""
        return cls(vocab_size)

    @classmethod
    def big(cls, vocab_size: int = 37_000) -> "TransformerConfig":
        """The paper's big model: twice as wide, with more dropout."""
        return cls(vocab_size, d_model=1024, num_heads=16, d_ff=4096, dropout=0.3)

    @classmethod
    def small(cls, vocab_size: int) -> "TransformerConfig":
        """Small enough to be trained on a laptop: two layers a side, 128 wide."""
        return cls(
            vocab_size,
            d_model=128,
            num_heads=4,
            d_ff=512,
            num_encoder_layers=2,
            num_decoder_layers=2,
        )


_DRAWN_AS_ONE = ("query_projection", "key_projection", "value_projection")


class Transformer(nn.Module):
    """Token ids in, logits for the next token out (paper, figure 1 and section 3).

    Both embeddings and the map to logits share one matrix (section 3.4). Rows are padded on the
    right with `config.pad_id`; no position, of source or target, ever listens to the padding of
    the source.

    Args:
        config: the sizes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.position = SinusoidalPositionalEncoding(c.d_model, c.max_length)
        self.dropout = nn.Dropout(c.dropout)
        sizes = (c.d_model, c.num_heads, c.d_ff, c.dropout, c.norm_first, c.attention_dropout)
        encoder_layers = [EncoderLayer(*sizes) for _ in range(c.num_encoder_layers)]
        decoder_layers = [DecoderLayer(*sizes) for _ in range(c.num_decoder_layers)]
        has_norm = c.norm_first if c.final_norm is None else c.final_norm
        self.encoder = Encoder(encoder_layers, LayerNorm(c.d_model) if has_norm else None)
        self.decoder = Decoder(decoder_layers, LayerNorm(c.d_model) if has_norm else None)
        for stack in (self.encoder, self.decoder):
            for name, parameter in stack.named_parameters():
                if parameter.dim() > 1:
                    # Query, key and value count as one matrix of 3 d_model outputs, as in torch.
                    of_three = name.split(".")[-2] in _DRAWN_AS_ONE
                    nn.init.xavier_uniform_(parameter, gain=0.5**0.5 if of_three else 1.0)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)

    def embed(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """Turn token ids into vectors, with their positions.

        Args:
            tokens: the ids, shape (batch, length).
            offset: position of the first of them.

        Returns:
            Shape (batch, length, d_model).

        Raises:
            ValueError: if there are no tokens, too many, or ids that are not in the vocabulary.
        """
        positioned = self.position(self.embedding(tokens), offset)  # (batch, length, d_model)
        embedded: Tensor = self.dropout(positioned)
        return embedded

    def encode(self, source: Tensor) -> Tensor:
        """Read the source into the memory.

        Args:
            source: ids, shape (batch, source).

        Returns:
            The memory, shape (batch, source, d_model).

        Raises:
            ValueError: if source is empty, too long, not of integers, or holds ids outside the
                vocabulary.
        """
        allowed = padding_mask(source, self.config.pad_id)  # (batch, 1, 1, source)
        memory: Tensor = self.encoder(self.embed(source), allowed)  # (batch, source, d_model)
        return memory

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Say what follows each target token, as a vector.

        Args:
            target: the ids so far, <bos> first, shape (batch, target).
            memory: what encode made of the source, shape (batch, source, d_model).
            source: the ids of the source, shape (batch, source): they tell which memory is padding.

        Returns:
            Shape (batch, target, d_model).

        Raises:
            ValueError: if the three do not fit together, or target is not fit to be embedded.
        """
        if target.dim() != 2 or target.size(1) == 0:
            raise ValueError(
                f"target must be (batch, target) with at least <bos>, got {tuple(target.shape)}"
            )
        if memory.shape[:2] != source.shape or target.size(0) != source.size(0):
            raise ValueError(
                f"target {tuple(target.shape)}, memory {tuple(memory.shape)} and source "
                f"{tuple(source.shape)} do not belong together: they should be (batch, target), "
                "(batch, source, d_model) and (batch, source)"
            )
        allowed = padding_mask(source, self.config.pad_id)  # (batch, 1, 1, source)
        x = self.embed(target)  # (batch, target, d_model)
        hidden: Tensor = self.decoder(x, memory, memory_mask=allowed)  # (batch, target, d_model)
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Map vectors to logits with the embedding matrix.

        Args:
            hidden: vectors, shape (..., d_model).

        Returns:
            Logits, shape (..., vocab_size).
        """
        return self.embedding.project(hidden)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Give the logits of what follows each target token.

        Args:
            source: ids, shape (batch, source).
            target: ids, <bos> first, shape (batch, target).

        Returns:
            Shape (batch, target, vocab_size); position t has seen the source and target tokens 0
            to t.

        Raises:
            ValueError: if the ids are not fit to be embedded, or the batch sizes differ.
        """
        memory = self.encode(source)  # (batch, source, d_model)
        return self.project(self.decode(target, memory, source))  # (batch, target, vocab_size)


def count_parameters(module: nn.Module) -> int:
    """Count the numbers that training changes; a shared matrix counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


_TorchLayer = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer


def _partners(ours: Transformer, theirs: nn.Transformer) -> list[tuple[Tensor, Tensor]]:
    """List the tensors of our stacks, each with the tensor of torch's that means the same."""
    pairs: list[tuple[Any, Any]] = []  # modules with a weight and a bias each
    tensors: list[tuple[Tensor, Tensor]] = []
    stacks: list[tuple[Any, Any]] = [(ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)]
    for stack, torch_stack in stacks:
        if stack.norm is not None:
            pairs.append((stack.norm, torch_stack.norm))
        for layer, torch_layer in zip(stack.layers, torch_stack.layers, strict=True):
            attentions = [(layer.self_attention, torch_layer.self_attn)]
            pairs.append((layer.residual_1.norm, torch_layer.norm1))
            pairs.append((layer.residual_2.norm, torch_layer.norm2))
            pairs.append((layer.feed_forward.inner, torch_layer.linear1))
            pairs.append((layer.feed_forward.outer, torch_layer.linear2))
            if isinstance(layer, DecoderLayer):
                attentions.append((layer.cross_attention, torch_layer.multihead_attn))
                pairs.append((layer.residual_3.norm, torch_layer.norm3))
            for attention, torch_attention in attentions:
                pairs.append((attention.output_projection, torch_attention.out_proj))
                projections = (
                    attention.query_projection,
                    attention.key_projection,
                    attention.value_projection,
                )
                # three views each, of (d_model, d_model) and of (d_model,)
                weights = torch_attention.in_proj_weight.chunk(3)
                biases = torch_attention.in_proj_bias.chunk(3)
                for projection, weight, bias in zip(projections, weights, biases, strict=True):
                    tensors += [(projection.weight, weight), (projection.bias, bias)]
    for module, torch_module in pairs:
        tensors += [(module.weight, torch_module.weight), (module.bias, torch_module.bias)]
    return tensors


def from_torch(
    module: nn.Transformer, embedding: Tensor, max_length: int = 1024, pad_id: int = 0
) -> Transformer:
    """Make a Transformer that computes what a torch.nn.Transformer computes.

    torch's module has no embeddings: the matrix that both sides and the output share is given
    beside it. torch also drops inside the feed-forward network while training, ours does not: the
    two are equal in eval mode.

    Args:
        module: two stacks, with ReLU, biases, and torch's default epsilon of 1e-5.
        embedding: weights, shape (vocab_size, d_model); forward multiplies them by sqrt(d_model).
        max_length: longest sequence, in tokens.
        pad_id: the id that fills up short rows.

    Returns:
        A model of its own: the numbers are copied. In training mode, as fresh models are.

    Raises:
        ValueError: if the module has something that ours has not, or the embedding does not fit it.
    """
    for stack, kind in (
        (module.encoder, nn.TransformerEncoder),
        (module.decoder, nn.TransformerDecoder),
    ):
        if not isinstance(stack, kind):
            raise ValueError(f"the stacks must be torch's own {kind.__name__}, got {type(stack)}")
    layers: list[_TorchLayer] = [*module.encoder.layers, *module.decoder.layers]
    settings = {_settings(layer) for layer in layers}
    if len(settings) != 1:
        raise ValueError(
            "the layers must be alike, got (heads, d_ff, dropout, attention dropout, pre-norm) "
            f"{settings}"
        )
    num_heads, d_ff, dropout, attention_dropout, norm_first = settings.pop()
    norms = [module.encoder.norm, module.decoder.norm]
    if (norms[0] is None) != (norms[1] is None):
        raise ValueError(f"both stacks must end with a norm, or neither, got {norms}")
    for norm in filter(None, norms):
        _check_norm(norm)
    if embedding.dim() != 2 or embedding.size(1) != module.d_model:
        raise ValueError(
            f"embedding {tuple(embedding.shape)} should be (vocab_size, d_model {module.d_model})"
        )
    config = TransformerConfig(
        vocab_size=embedding.size(0),
        d_model=module.d_model,
        num_heads=num_heads,
        d_ff=d_ff,
        num_encoder_layers=len(module.encoder.layers),
        num_decoder_layers=len(module.decoder.layers),
        dropout=dropout,
        attention_dropout=attention_dropout,
        norm_first=norm_first,
        final_norm=norms[0] is not None,
        max_length=max_length,
        pad_id=pad_id,
    )
    model = Transformer(config).to(embedding)  # the embedding's device and dtype
    with torch.no_grad():
        model.embedding.weight.copy_(embedding)
        for ours, theirs in _partners(model, module):
            ours.copy_(theirs)
    return model


def to_torch(model: Transformer) -> nn.Transformer:
    """Make a torch.nn.Transformer that computes what the two stacks of `model` compute.

    The embedding stays behind, as torch's module has none. torch's masks say True where attention
    is forbidden.

    Args:
        model: the model whose numbers are copied.

    Returns:
        torch's module, batch first, in the mode, on the device and of the dtype of `model`.
    """
    c = model.config
    sizes = (c.d_model, c.num_heads, c.d_ff, c.dropout)

    def final_norm() -> nn.LayerNorm | None:
        return None if model.encoder.norm is None else nn.LayerNorm(c.d_model)

    encoder_layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=c.norm_first)
    decoder_layer = nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=c.norm_first)
    module = nn.Transformer(
        c.d_model,
        c.num_heads,
        batch_first=True,
        custom_encoder=nn.TransformerEncoder(
            encoder_layer, c.num_encoder_layers, final_norm(), enable_nested_tensor=False
        ),
        custom_decoder=nn.TransformerDecoder(decoder_layer, c.num_decoder_layers, final_norm()),
    ).to(model.embedding.weight)  # our device and dtype
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = c.attention_dropout
        elif isinstance(part, _TorchLayer):
            part.dropout.p = 0.0  # inside the feed-forward network
    with torch.no_grad():
        for ours, theirs in _partners(model, module):
            theirs.copy_(ours)
    return module.train(model.training)


def _settings(layer: _TorchLayer) -> tuple[int, int, float, float, bool]:
    """Read heads, d_ff, both dropouts and pre-norm of torch's layer; refuse what ours has not."""
    activation = layer.activation
    if activation not in (F.relu, torch.relu) and not isinstance(activation, nn.ReLU):
        name = getattr(activation, "__name__", activation)
        raise ValueError(f"only the activation relu can be carried over, got {name}")
    attentions, norms = [layer.self_attn], [layer.norm1, layer.norm2]
    if isinstance(layer, nn.TransformerDecoderLayer):
        attentions.append(layer.multihead_attn)
        norms.append(layer.norm3)
    if layer.linear1.bias is None or any(part.in_proj_bias is None for part in attentions):
        raise ValueError("a model without biases cannot be carried over, got bias=False")
    for norm in norms:
        _check_norm(norm)
    heads = {part.num_heads for part in attentions}
    attention_dropout = {part.dropout for part in attentions}
    if len(heads) != 1 or len(attention_dropout) != 1:
        raise ValueError(
            f"a layer's attentions must be alike, got heads {heads}, dropout {attention_dropout}"
        )
    sizes = (heads.pop(), layer.linear1.out_features)
    return (*sizes, layer.dropout1.p, attention_dropout.pop(), layer.norm_first)


def _check_norm(norm: nn.Module) -> None:
    """Refuse a norm of torch that is not a LayerNorm with gain, shift and epsilon 1e-5."""
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        raise ValueError(f"only a LayerNorm with weight and bias can be carried over, got {norm}")
    if norm.eps != 1e-5:
        raise ValueError(f"only the layer norm epsilon 1e-05 can be carried over, got {norm.eps}")
