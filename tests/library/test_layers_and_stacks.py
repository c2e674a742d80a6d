"""What encoder and decoder have in common, layer and stack: equality with torch, padding, caches, swapped parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import KeyValueCache, MultiHeadAttention, causal_mask
from transformer_lib.convert import attention_partners, copy_weights
from transformer_lib.layers import DecoderLayer, EncoderLayer, LayerNorm
from transformer_lib.transformer import Decoder, Encoder, Stack

D_MODEL, NUM_HEADS, D_FF = 16, 4, 24
LAYERS: dict[str, Any] = {"encoder": EncoderLayer, "decoder": DecoderLayer}
STACKS: dict[str, type[Stack]] = {"encoder": Encoder, "decoder": Decoder}

both = pytest.mark.parametrize("kind", ["encoder", "decoder"])
# (source, target) of each row of a batch; the encoder reads the target, too: it has the padding
pairs_of_lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)


def make(kind: str, num_layers: int, norm_first: bool = False, dropout: float = 0.0) -> Stack:
    """A stack in eval mode whose norms have gains and shifts of their own, so that a mix-up shows."""
    sizes = (D_MODEL, NUM_HEADS, D_FF, dropout, norm_first)
    layers = [LAYERS[kind](*sizes) for _ in range(num_layers)]
    stack = STACKS[kind](layers, LayerNorm(D_MODEL) if norm_first else None).eval()
    for part in stack.modules():
        if isinstance(part, LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return stack


def torch_twin(kind: str, ours: Any, norm_first: bool) -> nn.Module:
    """torch's stack with our weights."""
    sizes: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    norm = nn.LayerNorm(D_MODEL) if norm_first else None
    theirs: Any
    if kind == "encoder":
        layer = nn.TransformerEncoderLayer(D_MODEL, NUM_HEADS, D_FF, **sizes)
        theirs = nn.TransformerEncoder(layer, len(ours.layers), norm, enable_nested_tensor=False)
    else:
        layer = nn.TransformerDecoderLayer(D_MODEL, NUM_HEADS, D_FF, **sizes)
        theirs = nn.TransformerDecoder(layer, len(ours.layers), norm)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        partners = attention_partners(mine.self_attention, other.self_attn)
        if kind == "decoder":
            partners += attention_partners(mine.cross_attention, other.multihead_attn)
            other.norm3.load_state_dict(mine.residual_3.norm.state_dict())
        copy_weights([(to, source) for source, to in partners])
        other.linear1.load_state_dict(mine.feed_forward.inner.state_dict())
        other.linear2.load_state_dict(mine.feed_forward.outer.state_dict())
        other.norm1.load_state_dict(mine.residual_1.norm.state_dict())
        other.norm2.load_state_dict(mine.residual_2.norm.state_dict())
    if norm is not None:
        norm.load_state_dict(ours.norm.state_dict())
    return theirs.eval()


def lengths_to_mask(lengths: list[int]) -> Tensor:
    """(batch, length), True where there is a word."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def run(
    kind: str, stack: nn.Module, x: Tensor, memory: Tensor, real: Tensor, source_real: Tensor
) -> Tensor:
    """Our stack on a padded batch; masks are (batch, length). The encoder takes no memory."""
    if kind == "encoder":
        return stack(x, real[:, None, None, :])
    return stack(x, memory, memory_mask=source_real[:, None, None, :])


@both
@settings(deadline=None, max_examples=8)
@given(
    pairs=pairs_of_lengths,
    norm_first=st.booleans(),
    num_layers=st.sampled_from([1, 2, 6]),
    seed=st.integers(0, 999),
)
def test_equals_torch(
    kind: str, pairs: list[tuple[int, int]], norm_first: bool, num_layers: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ours = make(kind, num_layers, norm_first)
    theirs = torch_twin(kind, ours, norm_first).double()
    ours = ours.double()
    source_real, real = (lengths_to_mask(list(lengths)) for lengths in zip(*pairs, strict=True))
    inputs = [torch.randn(*mask.shape, D_MODEL).double() for mask in (real, source_real)]

    def theirs_on(x: Tensor, memory: Tensor) -> Tensor:
        if kind == "encoder":
            return theirs(x, src_key_padding_mask=~real)
        future = ~causal_mask(x.size(1))
        return theirs(x, memory, tgt_mask=future, memory_key_padding_mask=~source_real)

    results = []
    for output_of in (lambda x, m: run(kind, ours, x, m, real, source_real), theirs_on):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = output_of(*leaves)[real]  # (real positions, d_model)
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(results[0]) == (2 if kind == "encoder" else 3)
    for ours_is, theirs_is in zip(*results, strict=True):
        torch.testing.assert_close(ours_is, theirs_is)


@pytest.mark.parametrize("mask", ["pairs", "is_causal"])
def test_encoder_under_a_mask_over_pairs_equals_torch(mask: str) -> None:
    ours = make("encoder", 1)
    theirs = torch_twin("encoder", ours, norm_first=False)
    x, pairs = torch.randn(2, 5, D_MODEL), causal_mask(5)
    output = ours(x, pairs) if mask == "pairs" else ours(x, is_causal=True)
    torch.testing.assert_close(output, theirs(x, mask=~pairs))


@both
@settings(deadline=None, max_examples=8)
@given(
    pairs=pairs_of_lengths,
    extra=st.integers(0, 4),
    norm_first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_neither_content_nor_amount_of_padding_nor_company_matters(
    kind: str, pairs: list[tuple[int, int]], extra: int, norm_first: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    stack = make(kind, 2, norm_first)
    source_real, real = (lengths_to_mask(list(lengths)) for lengths in zip(*pairs, strict=True))
    x, memory = torch.randn(*real.shape, D_MODEL), torch.randn(*source_real.shape, D_MODEL)
    output = run(kind, stack, x, memory, real, source_real)

    def repad(vectors: Tensor, is_word: Tensor) -> Tensor:
        other = torch.where(is_word[..., None], vectors, 50 * torch.randn_like(vectors))
        return torch.cat([other, torch.randn(len(pairs), extra, D_MODEL)], dim=1)

    wider, source_wider = (
        nn.functional.pad(mask, (0, extra), value=False) for mask in (real, source_real)
    )
    other = run(kind, stack, repad(x, real), repad(memory, source_real), wider, source_wider)
    torch.testing.assert_close(other[wider], output[real], atol=1e-5, rtol=1e-4)
    for row, (source, target) in enumerate(pairs):
        words, answers = x[row : row + 1, :target], memory[row : row + 1, :source]
        alone = stack(words) if kind == "encoder" else stack(words, answers)
        torch.testing.assert_close(alone[0], output[row, :target], atol=1e-5, rtol=1e-4)


@both
def test_nothing_to_listen_to_gives_finite_numbers_and_gradients(kind: str) -> None:
    stack, x = make(kind, 2), torch.randn(2, 3, D_MODEL, requires_grad=True)
    nobody = torch.tensor([[True] * 3, [False] * 3])  # (batch, length)
    run(kind, stack, x, torch.randn(2, 3, D_MODEL), nobody, nobody).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in stack.parameters())


def step_by_step(
    kind: str, module: nn.Module, pieces: tuple[Tensor, ...], memory: Tensor
) -> Tensor:
    """One piece after another, each attention with what it has kept of those before."""
    cache, memory_cache = KeyValueCache(), KeyValueCache(grows=False)
    caches = {"cache": cache} | ({"memory_cache": memory_cache} if kind == "decoder" else {})
    given = (memory,) if kind == "decoder" else (None, True)  # the encoder is told to be causal
    return torch.cat([module(piece, *given, **caches) for piece in pieces], dim=1)


@both
@settings(deadline=None, max_examples=10)
@given(
    pieces=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    norm_first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_cached_equals_the_full_pass_at_every_position(
    kind: str, pieces: list[int], norm_first: bool, seed: int
) -> None:
    """The encoder layer, causal and with a cache, is the layer of a decoder-only model."""
    torch.manual_seed(seed)
    stack = make(kind, 2, norm_first)
    x, memory = torch.randn(2, sum(pieces), D_MODEL), torch.randn(2, 3, D_MODEL)
    for module in (stack, stack.layers[0]):
        full = module(x, is_causal=True) if kind == "encoder" else module(x, memory)
        parts = step_by_step(kind, module, x.split(pieces, dim=1), memory)
        torch.testing.assert_close(parts, full, atol=1e-5, rtol=1e-4)


@both
def test_with_a_cache_nothing_is_projected_twice(kind: str) -> None:
    layer, projected = make(kind, 1).layers[0], {"self_attention": 0, "cross_attention": 0}
    for name, part in layer.named_modules():
        if isinstance(part, MultiHeadAttention):

            def count(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                projected[name] += inputs[0].size(1)

            part.key_projection.register_forward_pre_hook(count)
    step_by_step(
        kind, layer, torch.randn(2, 5, D_MODEL).split(1, dim=1), torch.randn(2, 3, D_MODEL)
    )
    assert projected == {"self_attention": 5, "cross_attention": 3 if kind == "decoder" else 0}


class Sharper(MultiHeadAttention):
    """Attention with scores twice as large: what a variant looks like."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *masks: Any) -> Tensor:
        return super().attend(2 * query, key, value, *masks)


def swap_norm(layer: Any) -> None:
    layer.residual_1.norm = nn.RMSNorm(D_MODEL)


def swap_feed_forward(layer: Any) -> None:
    layer.feed_forward = nn.Sequential(
        nn.Linear(D_MODEL, D_FF), nn.GELU(), nn.Linear(D_FF, D_MODEL)
    )


def swap_self_attention(layer: Any) -> None:
    layer.self_attention = Sharper(D_MODEL, NUM_HEADS, bias=False)


def by_hand(layer: Any, x: Tensor, memory: Tensor) -> Tensor:
    """Equation 11.1, or 10.1 under a causal mask, from the layer's parts."""
    x = layer.residual_1.norm(x + layer.self_attention(x, x, x, is_causal=True))
    norms = [layer.residual_2.norm]
    if hasattr(layer, "cross_attention"):
        x = norms.pop()(x + layer.cross_attention(x, memory, memory))
        norms = [layer.residual_3.norm]
    return norms.pop()(x + layer.feed_forward(x))


@both
@pytest.mark.parametrize("swap", [swap_norm, swap_feed_forward, swap_self_attention])
def test_a_part_of_ones_own_is_used_with_and_without_a_cache(
    kind: str, swap: Callable[[Any], None]
) -> None:
    layer, x, memory = (
        make(kind, 1).layers[0],
        torch.randn(2, 5, D_MODEL),
        torch.randn(2, 3, D_MODEL),
    )
    given = {"is_causal": True} if kind == "encoder" else {"memory": memory}
    before = layer(x, **given)
    torch.testing.assert_close(before, by_hand(layer, x, memory))
    swap(layer)
    after = layer(x, **given)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, by_hand(layer, x, memory))
    parts = step_by_step(kind, layer, x.split(1, dim=1), memory)
    torch.testing.assert_close(parts, after, atol=1e-5, rtol=1e-4)


def test_a_stack_takes_any_layers_and_any_norm() -> None:
    x = torch.randn(2, 3, 8)
    first, second, norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.RMSNorm(8)
    torch.testing.assert_close(Stack([first, second], norm)(x), norm(second(first(x))))
    encoder = Encoder(EncoderLayer(8, 2, 16) for _ in range(3))  # from a generator
    assert len(encoder.layers) == 3


@pytest.mark.parametrize(
    ("kind", "attentions", "parameters"), [("encoder", 1, 3_152_384), ("decoder", 2, 4_204_032)]
)
def test_parameters_of_the_base_layer(kind: str, attentions: int, parameters: int) -> None:
    d_model, d_ff = 512, 2048
    with torch.device("meta"):
        layer = LAYERS[kind](d_model, 8, d_ff)
    attention, feed_forward = 4 * (d_model**2 + d_model), 2 * d_model * d_ff + d_ff + d_model
    norms = 2 * (attentions + 1) * d_model
    counted = sum(parameter.numel() for parameter in layer.parameters())
    assert counted == attentions * attention + feed_forward + norms == parameters


@both
def test_dropout_stands_on_sub_layer_outputs_only(kind: str) -> None:
    layer = LAYERS[kind](8, 2, 16, dropout=0.2)
    places = {n: part.p for n, part in layer.named_modules() if isinstance(part, nn.Dropout)}
    count = 2 if kind == "encoder" else 3
    assert places == {f"residual_{number + 1}.dropout": 0.2 for number in range(count)}


@both
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_dropout_reaches_every_attention(kind: str, dropout: float) -> None:
    given = {"attention_dropout": dropout} if dropout else {}  # 0 if nothing is said
    layer = LAYERS[kind](8, 2, 16, **given)
    found = [part.dropout for part in layer.modules() if isinstance(part, MultiHeadAttention)]
    assert found == [dropout] * (1 if kind == "encoder" else 2)


@both
def test_dropout_only_while_training(kind: str) -> None:
    stack, x, memory = (
        make(kind, 1, dropout=0.5),
        torch.randn(1, 4, D_MODEL),
        torch.randn(1, 3, D_MODEL),
    )
    given = () if kind == "encoder" else (memory,)
    assert torch.equal(stack(x, *given), stack(x, *given))
    stack.train()
    assert not torch.allclose(stack(x, *given), stack(x, *given))


def allow(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


@both
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"attn_mask": torch.ones(5, 5)}, ValueError, "boolean"),
        ({"attn_mask": torch.ones(2, 1, 1, 5, dtype=torch.long)}, ValueError, "boolean"),
        ({"attn_mask": allow(2, 5, 5)}, ValueError, r"\(2, 5, 5\)"),
        ({"attn_mask": allow(6, 6)}, RuntimeError, "6"),
        ({"attn_mask": allow(3, 1, 1, 5)}, RuntimeError, "3"),
        ({"x": torch.randn(2, 5, D_MODEL + 1)}, RuntimeError, "10x17"),
    ],
)
def test_bad_input_is_named(
    kind: str, bad: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    given = {"x": torch.randn(2, 5, D_MODEL)} | bad
    if kind == "decoder":
        given["memory"] = torch.randn(2, 7, D_MODEL)
    with pytest.raises(error, match=message):
        make(kind, 1)(**given)


@pytest.mark.parametrize(
    ("memory", "memory_mask", "error", "message"),
    [
        ((3, 7, D_MODEL), None, ValueError, r"same batch size.*got \(2, .*\(3, .*\(3, "),
        ((1, 7, D_MODEL), None, ValueError, r"same batch size.*got \(2, .*\(1, .*\(1, "),
        ((2, 7, D_MODEL - 1), None, RuntimeError, "14x15"),
        ((2, 7, D_MODEL), torch.ones(2, 1, 1, 7), ValueError, "boolean"),
        ((2, 7, D_MODEL), allow(2, 1, 1, 5), RuntimeError, "5"),
    ],
)
def test_a_memory_that_does_not_fit_is_named(
    memory: tuple[int, ...], memory_mask: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make("decoder", 1)(torch.randn(2, 5, D_MODEL), torch.randn(memory), None, memory_mask)


@both
def test_what_cannot_be_built(kind: str) -> None:
    with pytest.raises(ValueError, match="number_of_layers .* got 0"):
        STACKS[kind]([])
    with pytest.raises(ValueError, match=r"10.*3"):
        LAYERS[kind](10, 3, 16)
    with pytest.raises(ValueError, match=r"dropout .* got 1\.5"):
        LAYERS[kind](8, 2, 16, dropout=1.5)
