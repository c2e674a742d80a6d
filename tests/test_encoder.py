"""Chapter 10: the encoder layer, the stack, and the checks of the exercises."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention, padding_mask
from transformer_lib.book.checks import chapter_10
from transformer_lib.layers import EncoderLayer, LayerNorm
from transformer_lib.transformer import Encoder

D_MODEL, NUM_HEADS, D_FF = 16, 4, 24


def make_encoder(num_layers: int, norm_first: bool, dropout: float = 0.0) -> Encoder:
    """An encoder in eval mode whose norms have gains and shifts of their own, so that a mix-up shows."""
    layers = [
        EncoderLayer(D_MODEL, NUM_HEADS, D_FF, dropout, norm_first) for _ in range(num_layers)
    ]
    encoder = Encoder(layers, LayerNorm(D_MODEL) if norm_first else None).eval()
    for part in encoder.modules():
        if isinstance(part, LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return encoder


def packed(attention: MultiHeadAttention, what: str) -> Tensor:
    """Weights or biases of the three projections, stacked as torch does."""
    maps = (
        attention.query_projection,
        attention.key_projection,
        attention.value_projection,
    )
    return torch.cat([getattr(projection, what) for projection in maps])


@torch.no_grad()
def torch_encoder(ours: Encoder, norm_first: bool) -> nn.TransformerEncoder:
    """torch's encoder with our weights."""
    layer = nn.TransformerEncoderLayer(
        D_MODEL, NUM_HEADS, D_FF, 0.0, batch_first=True, norm_first=norm_first
    )
    norm = nn.LayerNorm(D_MODEL) if norm_first else None
    theirs = nn.TransformerEncoder(layer, len(ours.layers), norm, enable_nested_tensor=False).eval()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        other.self_attn.in_proj_weight.copy_(packed(mine.self_attention, "weight"))
        other.self_attn.in_proj_bias.copy_(packed(mine.self_attention, "bias"))
        other.self_attn.out_proj.load_state_dict(mine.self_attention.output_projection.state_dict())
        other.linear1.load_state_dict(mine.feed_forward.inner.state_dict())
        other.linear2.load_state_dict(mine.feed_forward.outer.state_dict())
        other.norm1.load_state_dict(mine.residual_1.norm.state_dict())
        other.norm2.load_state_dict(mine.residual_2.norm.state_dict())
    if norm is not None:
        norm.load_state_dict(ours.norm.state_dict())
    return theirs


def lengths_to_mask(lengths: list[int]) -> Tensor:
    """(batch, length), True where there is a word."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


some_lengths = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@settings(deadline=None, max_examples=8)
@given(
    lengths=some_lengths,
    norm_first=st.booleans(),
    num_layers=st.sampled_from([1, 2, 6]),
    seed=st.integers(0, 999),
)
def test_encoder_equals_torch(
    lengths: list[int], norm_first: bool, num_layers: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ours = make_encoder(num_layers, norm_first)
    theirs = torch_encoder(ours, norm_first).double()
    ours = ours.double()
    real = lengths_to_mask(lengths)
    x = torch.randn(*real.shape, D_MODEL, dtype=torch.double)  # (batch, length, d_model)
    gradients = []
    for output_of in (
        lambda x: ours(x, real[:, None, None, :]),
        lambda x: theirs(x, src_key_padding_mask=~real),
    ):
        leaf = x.clone().requires_grad_()
        output = output_of(leaf)[real]  # (real positions, d_model)
        output.square().sum().backward()
        gradients.append((output.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_encoder_layer_takes_a_mask_over_pairs() -> None:
    torch.manual_seed(0)
    ours = make_encoder(1, norm_first=False)
    theirs = torch_encoder(ours, norm_first=False)
    x, pairs = torch.randn(2, 5, D_MODEL), torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(ours(x, pairs), theirs(x, mask=~pairs))


@settings(deadline=None, max_examples=8)
@given(
    lengths=some_lengths,
    extra=st.integers(0, 4),
    norm_first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_neither_content_nor_amount_of_padding_nor_company_matters(
    lengths: list[int], extra: int, norm_first: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    encoder, real = make_encoder(2, norm_first), lengths_to_mask(lengths)
    x = torch.randn(*real.shape, D_MODEL)  # (batch, length, d_model)
    memory = encoder(x, real[:, None, None, :])
    other = torch.where(real[..., None], x, torch.randn_like(x) * 50)
    other = torch.cat(
        [other, torch.randn(len(lengths), extra, D_MODEL)], dim=1
    )  # (batch, length + extra, d_model)
    wider = torch.cat(
        [real, torch.zeros(len(lengths), extra, dtype=torch.bool)], dim=1
    )  # (batch, length + extra)
    torch.testing.assert_close(
        encoder(other, wider[:, None, None, :])[wider], memory[real], atol=1e-5, rtol=1e-4
    )
    for row, in_batch, length in zip(x, memory, lengths, strict=True):
        torch.testing.assert_close(
            encoder(row[None, :length])[0], in_batch[:length], atol=1e-5, rtol=1e-4
        )


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(6)), norm_first=st.booleans())
def test_without_positions_the_encoder_is_equivariant(order: list[int], norm_first: bool) -> None:
    torch.manual_seed(1)
    encoder, x = make_encoder(3, norm_first), torch.randn(2, 6, D_MODEL)
    torch.testing.assert_close(encoder(x[:, order]), encoder(x)[:, order], atol=1e-5, rtol=1e-4)


def test_an_empty_sentence_gives_finite_numbers_and_gradients() -> None:
    torch.manual_seed(2)
    encoder, x = (
        make_encoder(2, norm_first=False),
        torch.randn(2, 3, D_MODEL, requires_grad=True),
    )
    tokens = torch.tensor([[5, 6, 7], [0, 0, 0]])
    encoder(x, padding_mask(tokens, pad_id=0)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_parameters_of_the_base_layer() -> None:
    d_model, d_ff = 512, 2048
    with torch.device("meta"):
        layer = EncoderLayer(d_model, 8, d_ff)
    counted = sum(parameter.numel() for parameter in layer.parameters())
    assert (
        counted
        == 4 * (d_model**2 + d_model) + 2 * d_model * d_ff + d_ff + d_model + 4 * d_model
        == 3_152_384
    )


def test_dropout_stands_on_sub_layer_outputs_only() -> None:
    places = [
        name
        for name, part in EncoderLayer(8, 2, 16).named_modules()
        if isinstance(part, nn.Dropout)
    ]
    assert places == ["residual_1.dropout", "residual_2.dropout"]
    assert EncoderLayer(8, 2, 16).self_attention.dropout == 0.0
    assert EncoderLayer(8, 2, 16, attention_dropout=0.3).self_attention.dropout == 0.3


def test_dropout_only_while_training() -> None:
    torch.manual_seed(3)
    encoder, x = make_encoder(1, norm_first=False, dropout=0.5), torch.randn(1, 4, D_MODEL)
    assert torch.equal(encoder(x), encoder(x))
    encoder.train()
    assert not torch.allclose(encoder(x), encoder(x))


@pytest.mark.parametrize("shape", [(5, D_MODEL), (2, 5, D_MODEL + 1), (1, 2, 5, D_MODEL)])
def test_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{D_MODEL}.*got \({shape[0]}"):
        make_encoder(1, norm_first=False)(torch.randn(shape))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 1, 1, 5), "boolean"),
        (torch.ones(2, 1, 1, 5, dtype=torch.long), "boolean"),
        (torch.ones(2, 1, 1, 6, dtype=torch.bool), "6"),
        (torch.ones(3, 1, 1, 5, dtype=torch.bool), "3"),
        (torch.ones(2, 1, 1, 5, dtype=torch.bool, device="meta"), "meta"),
    ],
)
def test_wrong_masks_are_named(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_encoder(1, norm_first=False)(torch.randn(2, 5, D_MODEL), mask)


def test_stacks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Encoder([])
    with pytest.raises(ValueError, match=r"8.*16"):
        Encoder([EncoderLayer(8, 2, 16), EncoderLayer(16, 2, 16)])
    with pytest.raises(ValueError, match=r"8.*16"):
        Encoder([EncoderLayer(8, 2, 16)], LayerNorm(16))
    with pytest.raises(ValueError, match=r"10.*3"):
        EncoderLayer(10, 3, 16)


def test_layers_may_come_from_a_generator() -> None:
    encoder = Encoder(EncoderLayer(8, 2, 16) for _ in range(3))
    assert len(encoder.layers) == 3


# The checks of the exercises must reject the likeliest wrong answers, and say why.


def not_inverted(mask: Tensor) -> Tensor:
    return mask[:, 0, 0]


def squeezed(mask: Tensor) -> Tensor:
    return ~mask.squeeze()


@pytest.mark.parametrize(
    ("wrong", "message"), [(not_inverted, "True means padding"), (squeezed, "squeeze")]
)
def test_check_torch_padding_mask(wrong: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_10.check_torch_padding_mask(wrong)


Part = Callable[[Tensor], Tensor]


def without_residual(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    return norm_2(ffn(norm_1(attend(x))))


def always_post(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    x = norm_1(x + attend(x))
    return norm_2(x + ffn(x))


def upside_down(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    if not norm_first:
        x = x + attend(norm_1(x))
        return x + ffn(norm_2(x))
    return always_post(x, attend, ffn, norm_1, norm_2, norm_first)


def residual_after_norm(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    if not norm_first:
        return always_post(x, attend, ffn, norm_1, norm_2, norm_first)
    x = norm_1(x)
    x = x + attend(x)
    x = norm_2(x)
    return x + ffn(x)


def norms_swapped(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    return always_post(x, attend, ffn, norm_2, norm_1, norm_first)


def side_by_side(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    return x + attend(x) + ffn(x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (without_residual, "residual"),
        (always_post, "pre-norm: the norms are off"),
        (upside_down, "wrong way round"),
        (residual_after_norm, "NOT normalized"),
        (norms_swapped, "post-norm: the norms are off"),
        (side_by_side, "must read what attention returned"),
    ],
)
def test_check_encoder_layer(wrong: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_10.check_encoder_layer(wrong)


def in_place(
    x: Tensor, attend: Part, ffn: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    if norm_first:
        x += attend(norm_1(x))
        x += ffn(norm_2(x))
        return x
    x += attend(x)
    x = norm_1(x)
    x += ffn(x)
    return norm_2(x)


def test_check_encoder_layer_takes_a_solution_that_works_in_place() -> None:
    chapter_10.check_encoder_layer(in_place)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d_model, d_ff: d_ff, "ALONE"),
        (lambda d_model, d_ff: 2 * d_model + d_ff, "belong to attention"),
        (lambda d_model, d_ff: d_ff - 2 * d_model, "at least 1"),
        (lambda d_model, d_ff: float(d_ff - 2 * d_model), "whole number"),
        (lambda d_model, d_ff: max(1, d_ff - 2 * d_model) + 1, "not the smallest"),
        (lambda d_model, d_ff: 2 * d_model, "still cheaper|not the smallest"),
    ],
)
def test_check_crossing(wrong: Callable[[int, int], int], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_10.check_crossing(wrong)


def looks_at_content_only(encoder: Callable[[Tensor, Tensor], Tensor]) -> bool:
    x, real = torch.randn(1, 5, 8), torch.arange(5)[None] < 3
    mask = real[:, None, None, :]
    other = torch.where(real[..., None], x, x + 10)
    return torch.allclose(encoder(x, mask)[real], encoder(other, mask)[real], atol=1e-5)


def has_no_padding(encoder: Callable[[Tensor, Tensor], Tensor]) -> bool:
    x, mask = torch.randn(1, 5, 8), torch.ones(1, 1, 1, 5, dtype=torch.bool)
    return torch.allclose(encoder(x, mask), encoder(x, mask))


def looks_at_pads_too(encoder: Callable[[Tensor, Tensor], Tensor]) -> bool:
    x, mask = torch.randn(1, 5, 8), (torch.arange(5) < 3)[None, None, None]
    return torch.allclose(encoder(x, mask), encoder(x + 10 * ~mask[:, 0, 0, :, None], mask))


def pads_with_zeros(encoder: Callable[[Tensor, Tensor], Tensor]) -> bool:
    x, mask = torch.randn(1, 3, 8), torch.ones(1, 1, 1, 3, dtype=torch.bool)
    fewer, more = (
        encoder(F.pad(x, (0, 0, 0, pads)), F.pad(mask, (0, pads)))[:, :3] for pads in (1, 2)
    )
    return torch.allclose(fewer, more, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (looks_at_content_only, "AMOUNT"),
        (pads_with_zeros, "other than zeros"),
        (has_no_padding, "have padding"),
        (looks_at_pads_too, "real positions only"),
        (lambda encoder: torch.tensor(True), "True or False"),
    ],
)
def test_check_padding_detector(wrong: Callable[..., bool], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_10.check_padding_detector(wrong)
