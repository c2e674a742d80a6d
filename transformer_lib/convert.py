"""Weights to and from other implementations: torch.nn.Transformer, GPT-2, Marian.

Written from chapters 12, 22, 26 of the book: edit the chapter, then `make sync`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.door import check_same, describe_model
from transformer_lib.embeddings import SinusoidalPositionalEncoding, TokenEmbedding
from transformer_lib.language_model import LanguageModel, LanguageModelConfig
from transformer_lib.layers import FeedForward
from transformer_lib.transformer import Transformer, TransformerConfig

__all__ = [
    "MARIAN_NAMES",
    "MARIAN_SETTINGS",
    "ActivatedFeedForward",
    "MarianEmbedding",
    "MarianPositionalEncoding",
    "UnscaledEmbedding",
    "attention_partners",
    "check_torch",
    "copy_weights",
    "from_gpt2",
    "from_marian",
    "from_torch",
    "gpt2_partners",
    "marian_name",
    "to_torch",
    "transformer_partners",
]


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


@torch.no_grad()
def copy_weights(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy the second tensor of each pair into the first, of the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    for to, source in pairs:
        if to.shape != source.shape:  # torch would broadcast
            raise ValueError(f"weights {[*source.shape]} do not fit into {[*to.shape]}")
        to.copy_(source)


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


def from_torch(
    module: nn.Transformer, embedding: Tensor, max_length: int = 1024, pad_id: int = 0
) -> Transformer:
    """Make a Transformer that computes what a torch.nn.Transformer computes, in eval mode.

    (In training torch also drops inside the feed-forward network.) torch's module has no embeddings:
    the matrix that both sides and the output share is given beside it, (vocab_size, d_model), and
    multiplied by sqrt(d_model) in forward. The numbers are copied; the model is in training mode.

    Raises:
        ValueError: if the module has something that ours has not, or the embedding does not fit it.
    """
    check_torch(module)
    configs = {
        TransformerConfig(
            vocab_size=len(embedding),
            d_model=module.d_model,
            num_heads=attention.num_heads,
            d_ff=layer.linear1.out_features,
            num_encoder_layers=len(module.encoder.layers),
            num_decoder_layers=len(module.decoder.layers),
            dropout=layer.dropout1.p,
            attention_dropout=attention.dropout,
            norm_first=layer.norm_first,
            final_norm=stack.norm is not None,
            max_length=max_length,
            pad_id=pad_id,
        )
        for stack in (module.encoder, module.decoder)
        for layer in stack.layers
        for attention in layer.modules()
        if isinstance(attention, nn.MultiheadAttention)
    }
    if len(configs) != 1:
        raise ValueError(f"all layers must be alike, these are of several models: {configs}")
    model = Transformer(configs.pop()).to(embedding)  # the embedding's device and dtype
    copy_weights([(model.embedding.weight, embedding), *transformer_partners(model, module)])
    return model


def to_torch(model: Transformer) -> nn.Transformer:
    """Make a torch.nn.Transformer that computes what the two stacks of `model` compute.

    The embedding stays behind, as torch's module has none. torch's masks say True where attention
    is forbidden. What is returned is batch first, of the model's mode, device and dtype.

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


def check_torch(module: nn.Module) -> None:
    """Refuse with a ValueError, by name, a part that torch's own Transformer with ReLU has not."""

    def describe(part: nn.Module) -> str:
        words = [name for name, _ in part.named_parameters(recurse=False)]
        for name in ("eps", "add_zero_attn", "activation"):
            if hasattr(part, name):
                value = getattr(part, name)
                words.append(f"{name} {getattr(value, '__name__', value)}")
        return f"{part.__module__}.{type(part).__name__}: {', '.join(words)}"

    torchs = [nn.Transformer(2, 2, 1, 1, 2, 0.0, a, batch_first=True) for a in (F.relu, nn.ReLU())]
    known = {describe(part) for its in torchs for part in its.modules()}
    for name, part in module.named_modules():
        if describe(part) not in known:
            raise ValueError(f"{name or 'the module'} cannot be carried over: {describe(part)}")


class UnscaledEmbedding(TokenEmbedding):
    """TokenEmbedding without the factor sqrt(d_model)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up the rows: (batch, length) -> (batch, length, d_model)."""
        return super().forward(tokens) / math.sqrt(self.weight.size(1))


class ActivatedFeedForward(FeedForward):
    """FeedForward with another activation, by its name in Hugging Face's configs (ValueError)."""

    ACTIVATIONS: ClassVar[dict[str, Callable[..., Tensor]]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "swish": F.silu,
    }

    def __init__(self, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__(d_model, d_ff)
        if activation not in self.ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is none of {', '.join(self.ACTIVATIONS)}")
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        output: Tensor = self.outer(self.ACTIVATIONS[self.activation](self.inner(x)))
        return output


def gpt2_partners(ours: LanguageModel, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """List our tensors, each with the one of Hugging Face's GPT2Model that means the same."""
    pairs = [(ours.embedding.weight, theirs.wte.weight), (ours.position.table, theirs.wpe.weight)]
    layers: list[Any] = list(ours.stack.layers)
    norms: list[tuple[Any, Any]] = [(ours.stack.norm, theirs.ln_f)]
    for layer, block in zip(layers, theirs.h, strict=True):
        norms += [(layer.residual_1.norm, block.ln_1), (layer.residual_2.norm, block.ln_2)]
        attention = layer.self_attention
        projections = (
            attention.query_projection,
            attention.key_projection,
            attention.value_projection,
        )
        weights = block.attn.c_attn.weight.t().chunk(3)  # Conv1D has (in, out), Linear (out, in)
        for projection, weight, bias in zip(
            projections, weights, block.attn.c_attn.bias.chunk(3), strict=True
        ):
            pairs += [(projection.weight, weight), (projection.bias, bias)]
        for linear, conv in (
            (attention.output_projection, block.attn.c_proj),
            (layer.feed_forward.inner, block.mlp.c_fc),
            (layer.feed_forward.outer, block.mlp.c_proj),
        ):
            pairs += [(linear.weight, conv.weight.t()), (linear.bias, conv.bias)]
    for norm, its in norms:
        pairs += [(norm.weight, its.weight), (norm.bias, its.bias)]
    return pairs


def from_gpt2(module: Any) -> LanguageModel:
    """Make a LanguageModel that computes what Hugging Face's GPT2LMHeadModel computes, in eval mode.

    (In training GPT-2 also drops attention weights.) The numbers are copied; the model is in
    training mode. It has no padding; its last id, the end of a text, takes the place of <bos> and <eos>.

    ValueError if the module is set to something that ours has not.
    """
    c = module.config
    expected = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    check_same("a GPT-2", expected, {name: getattr(c, name) for name in expected})
    d_ff = c.n_inner or 4 * c.n_embd
    config = LanguageModelConfig(
        c.vocab_size, c.n_embd, c.n_head, d_ff, c.n_layer, c.resid_pdrop, c.n_positions, pad_id=-1
    )
    model = LanguageModel(config)
    model.embedding = UnscaledEmbedding(c.vocab_size, c.n_embd)
    for layer in model.stack.layers:
        layer.feed_forward = ActivatedFeedForward(c.n_embd, d_ff, "gelu_new")
    model.to(module.transformer.wte.weight)  # its device and dtype
    copy_weights(gpt2_partners(model, module.transformer))
    return model


class MarianPositionalEncoding(SinusoidalPositionalEncoding):
    """Sinusoids in Marian's order: all sines, then all cosines."""

    def __init__(self, d_model: int, max_length: int = 1024) -> None:
        super().__init__(d_model, max_length)
        self._sort()

    def _sort(self) -> None:
        self.table = torch.cat([self.table[:, 0::2], self.table[:, 1::2]], dim=1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Follow to() and the like, which make the table anew."""
        super()._apply(fn, recurse)
        self._sort()
        return self


class MarianEmbedding(TokenEmbedding):
    """The shared matrix with a bias for the logits."""

    bias: Tensor  # (vocab_size,)

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)
        self.register_buffer("bias", torch.zeros(vocab_size))

    def project(self, x: Tensor) -> Tensor:
        """Logits: (..., d_model) -> (..., vocab_size)."""
        return F.linear(x, self.weight, self.bias)


MARIAN_NAMES = {  # ours -> theirs
    "embedding.weight": "model.shared.weight",
    "embedding.bias": "final_logits_bias",
    "encoder.layers": "model.encoder.layers",
    "decoder.layers": "model.decoder.layers",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "query_projection": "q_proj",
    "key_projection": "k_proj",
    "value_projection": "v_proj",
    "output_projection": "out_proj",
    "feed_forward.inner": "fc1",
    "feed_forward.outer": "fc2",
    "residual_1.norm": "self_attn_layer_norm",
    "residual_2.norm": "encoder_attn_layer_norm",  # in the decoder: an encoder's second is its last
    "residual_3.norm": "final_layer_norm",
}
MARIAN_SETTINGS = {  # what a config must say, if it says anything
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "static_position_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
}


def marian_name(name: str) -> str:
    """What Marian calls a weight of ours: encoder.layers.0.feed_forward.inner.bias, for instance."""
    if name.startswith("encoder"):
        name = name.replace("residual_2", "residual_3")
    for ours, theirs in MARIAN_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def from_marian(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Transformer:
    """Make a Transformer of a Marian model, its config.json and its weights by name.

    It is in eval mode. Padding is never written: its logit is -10,000. For decoding give bos_id
    config["pad_token_id"] and eos_id config["eos_token_id"]; a source ends in the latter.

    ValueError if the config says what ours has not, or a weight is of another shape.
        KeyError: if a weight is missing.
    """
    check_same("Marian", MARIAN_SETTINGS, {n: config.get(n, x) for n, x in MARIAN_SETTINGS.items()})
    encoder, decoder = (
        {n: config[f"{side}_{n}"] for n in ("attention_heads", "ffn_dim")}
        for side in ("encoder", "decoder")
    )
    check_same("Marian's decoder, beside its encoder,", encoder, decoder)
    model = Transformer(
        c := TransformerConfig(
            vocab_size=config["vocab_size"],
            d_model=config["d_model"],
            num_heads=config["encoder_attention_heads"],
            d_ff=config["encoder_ffn_dim"],
            num_encoder_layers=config["encoder_layers"],
            num_decoder_layers=config["decoder_layers"],
            dropout=config["dropout"],
            attention_dropout=config["attention_dropout"],
            max_length=config["max_position_embeddings"],
            pad_id=config["pad_token_id"],
        )
    )
    model.embedding = MarianEmbedding(c.vocab_size, c.d_model)
    model.position = MarianPositionalEncoding(c.d_model, c.max_length)
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        layer.feed_forward = ActivatedFeedForward(c.d_model, c.d_ff, config["activation_function"])
    tensors = {name: weights[marian_name(name)] for name in model.state_dict()}
    tensors["embedding.bias"] = tensors["embedding.bias"].flatten()  # theirs is (1, vocab_size)
    copy_weights([(x, tensors[name]) for name, x in model.state_dict().items()])
    model.embedding.bias[c.pad_id] = -10_000.0
    return model.eval()
