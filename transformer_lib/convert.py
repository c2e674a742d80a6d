"""Weights to and from other implementations: torch.nn.Transformer.

Written from chapter 12 of the book: edit the chapter, then `make sync`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.door import check_same, describe_model
from transformer_lib.transformer import Transformer, TransformerConfig

__all__ = ["attention_partners", "copy_weights", "from_torch", "to_torch", "transformer_partners"]


def attention_partners(
    ours: MultiHeadAttention, theirs: nn.MultiheadAttention
) -> list[tuple[Tensor, Tensor]]:
    """List our tensors, each with the one of torch's attention (or the part of it) that means the same."""
    pairs = [
        (ours.output_projection.weight, theirs.out_proj.weight),
        (ours.output_projection.bias, theirs.out_proj.bias),
    ]
    projections = (ours.query_projection, ours.key_projection, ours.value_projection)
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)  # views
    for projection, weight, bias in zip(projections, weights, biases, strict=True):
        pairs += [(projection.weight, weight), (projection.bias, bias)]
    return pairs


def transformer_partners(ours: Transformer, theirs: nn.Transformer) -> list[tuple[Tensor, Tensor]]:
    """List the tensors of our stacks, each with the tensor of torch's that means the same."""
    modules: list[tuple[Any, Any]] = []  # with a weight and a bias each
    tensors: list[tuple[Tensor, Tensor]] = []
    stacks: list[tuple[Any, Any]] = [(ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)]
    for stack, torch_stack in stacks:
        if stack.norm is not None:
            modules.append((stack.norm, torch_stack.norm))
        for layer, torch_layer in zip(stack.layers, torch_stack.layers, strict=True):
            tensors += attention_partners(layer.self_attention, torch_layer.self_attn)
            if hasattr(layer, "cross_attention"):
                tensors += attention_partners(layer.cross_attention, torch_layer.multihead_attn)
                modules.append((layer.residual_3.norm, torch_layer.norm3))
            modules.append((layer.residual_1.norm, torch_layer.norm1))
            modules.append((layer.residual_2.norm, torch_layer.norm2))
            modules.append((layer.feed_forward.inner, torch_layer.linear1))
            modules.append((layer.feed_forward.outer, torch_layer.linear2))
    for module, torch_module in modules:
        tensors += [(module.weight, torch_module.weight), (module.bias, torch_module.bias)]
    return tensors


@torch.no_grad()
def copy_weights(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy the second tensor of each pair into the first."""
    for to, source in pairs:
        to.copy_(source)


_TORCH_PARTS = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.MultiheadAttention),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    *(nn.Linear, nn.Dropout, nn.LayerNorm, nn.ModuleList, nn.ReLU),
)


def check_torch(module: nn.Transformer) -> None:
    """Refuse with a ValueError a torch.nn.Transformer with a part that our Transformer has not."""
    for name, part in module.named_modules():
        wrong = "" if isinstance(part, _TORCH_PARTS) else f"an unknown part, {type(part).__name__}"
        if isinstance(part, nn.MultiheadAttention):
            if part.in_proj_bias is None or part.in_proj_weight is None:
                wrong = "no biases, or keys of another width (bias, kdim, vdim)"
            if part.bias_k is not None or part.add_zero_attn:
                wrong = "added keys (add_bias_kv, add_zero_attn)"
        elif isinstance(part, nn.LayerNorm) and (part.eps != 1e-5 or part.bias is None):
            wrong = f"a layer norm with epsilon {part.eps} and bias {part.bias is not None}"
        elif isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            activation = part.activation
            if activation not in (F.relu, torch.relu) and not isinstance(activation, nn.ReLU):
                wrong = f"the activation {getattr(activation, '__name__', activation)}"
        if wrong:
            raise ValueError(f"this cannot be carried over: {name or 'the module'} has {wrong}")


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
    check_torch(module)
    settings = {
        (
            attention.num_heads,
            layer.linear1.out_features,
            layer.dropout1.p,
            attention.dropout,
            layer.norm_first,
        )
        for layer in [*module.encoder.layers, *module.decoder.layers]
        for attention in layer.modules()
        if isinstance(attention, nn.MultiheadAttention)
    }
    norms = {stack.norm is not None for stack in (module.encoder, module.decoder)}
    if len(settings) != 1 or len(norms) != 1:
        raise ValueError(
            "the layers must be alike, got (heads, d_ff, dropout, attention dropout, pre-norm) "
            f"{settings} and final norms {norms}"
        )
    num_heads, d_ff, dropout, attention_dropout, norm_first = settings.pop()
    config = TransformerConfig(
        embedding.size(0),
        module.d_model,
        num_heads,
        d_ff,
        len(module.encoder.layers),
        len(module.decoder.layers),
        dropout,
        attention_dropout,
        norm_first,
        final_norm=norms.pop(),
        max_length=max_length,
        pad_id=pad_id,
    )
    if embedding.shape != (config.vocab_size, config.d_model):
        raise ValueError(
            f"embedding {tuple(embedding.shape)} should be (vocab_size, d_model {module.d_model})"
        )
    model = Transformer(config).to(embedding)  # the embedding's device and dtype
    copy_weights([(model.embedding.weight, embedding), *transformer_partners(model, module)])
    return model


def to_torch(model: Transformer) -> nn.Transformer:
    """Make a torch.nn.Transformer that computes what the two stacks of `model` compute.

    The embedding stays behind, as torch's module has none. torch's masks say True where attention
    is forbidden.

    Args:
        model: the model whose numbers are copied.

    Returns:
        torch's module, batch first, in the mode, on the device and of the dtype of `model`.

    Raises:
        ValueError: if a part of the model has been replaced by another kind.
    """
    c = model.config
    check_same("torch's Transformer", describe_model(model), describe_model(Transformer(c)))
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
        elif isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            part.dropout.p = 0.0  # inside the feed-forward network
    copy_weights([(theirs, ours) for ours, theirs in transformer_partners(model, module)])
    return module.train(model.training)
