"""Chapter 10: no order without positions; the exercises. What both stacks promise: tests/library."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer_lib.book.checks import chapter_10
from transformer_lib.layers import EncoderLayer
from transformer_lib.transformer import Encoder


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(6)), norm_first=st.booleans())
def test_without_positions_the_encoder_is_equivariant(order: list[int], norm_first: bool) -> None:
    torch.manual_seed(1)
    encoder = Encoder([EncoderLayer(16, 4, 24, 0.0, norm_first) for _ in range(3)])
    x = torch.randn(2, 6, 16)  # (batch, length, d_model)
    torch.testing.assert_close(encoder(x[:, order]), encoder(x)[:, order], atol=1e-5, rtol=1e-4)


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
