"""Chapter 10: no order without positions; the exercises. What both stacks promise: tests/library."""

from collections.abc import Callable
from typing import Any

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


def in_place_mask(mask: Tensor) -> Tensor:
    return mask.logical_not_()[:, 0, 0]


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


def reach(masks: list[Tensor], residual: bool = True, backwards: bool = False) -> Tensor:
    known = torch.eye(len(masks[0]), dtype=torch.bool)
    for mask in reversed(masks) if backwards else masks:
        heard = (mask[:, :, None] & known[None]).any(dim=1)
        known = heard | known if residual else heard
    return known


def reach_by_walking(masks: list[Tensor]) -> Tensor:
    length = len(masks[0])
    found = torch.zeros(length, length, dtype=torch.bool)
    for top in range(length):
        heard = {top}
        for mask in reversed(masks):
            heard |= {j for i in heard for j in range(length) if mask[i, j]}
        found[top, sorted(heard)] = True
    return found


def reach_by_counting(masks: list[Tensor]) -> Tensor:
    paths = torch.eye(len(masks[0]), dtype=torch.int32)
    for mask in masks:
        paths = (mask.int() + torch.eye(len(mask), dtype=torch.int32)) @ paths
    return paths > 0  # so many paths that int32 overflows


def reach_in_place(masks: list[Tensor]) -> Tensor:
    for mask in masks:
        mask.fill_diagonal_(True)
    return reach(masks)


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


def detect(encoder: Callable[[Tensor, Tensor], Tensor], tolerance: float = 1e-5) -> bool:
    """Other content and another amount of padding at once."""
    x, real = 3 * torch.randn(1, 6, 8), torch.arange(6)[None] < 4
    other = F.pad(torch.where(real[..., None], x, 7 * torch.randn(1, 6, 8)), (0, 0, 0, 3))
    more = F.pad(real, (0, 3))
    moved = encoder(x, real[:, None, None])[real] - encoder(other, more[:, None, None])[more]
    return bool(moved.abs().max() <= tolerance)


def detect_alone(encoder: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """A sentence in a batch is what it is alone."""
    x, lengths = torch.randn(3, 7, 8), (7, 4, 2)
    mask = torch.stack([torch.arange(7) < n for n in lengths])[:, None, None]
    together = encoder(x, mask)
    alone = [encoder(x[i : i + 1, :n], mask[i : i + 1, ..., :n])[0] for i, n in enumerate(lengths)]
    return all(torch.allclose(together[i, :n], alone[i], atol=1e-5) for i, n in enumerate(lengths))


def right_layer(
    x: Tensor, attend: Part, feed_forward: Part, norm_1: Part, norm_2: Part, norm_first: bool
) -> Tensor:
    for sublayer, norm in ((attend, norm_1), (feed_forward, norm_2)):
        x = x + sublayer(norm(x)) if norm_first else norm(x + sublayer(x))
    return x


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_10.check_torch_padding_mask: [
        lambda mask: ~mask.squeeze(2).squeeze(1),
        lambda mask: mask.flatten(1) == 0,
    ],
    chapter_10.check_encoder_layer: [right_layer, in_place],
    chapter_10.check_reach: [reach, reach_by_walking],
    chapter_10.check_padding_detector: [detect, detect_alone],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_10.check_torch_padding_mask: [
        (not_inverted, "True means padding"),
        (squeezed, "squeeze"),
        (lambda mask: ~mask, "should have shape"),
        (lambda mask: ~mask[:, 0], "should have shape"),
        (lambda mask: 1 - mask[:, 0, 0].float(), "boolean"),
        (lambda mask: (~mask[:, 0, 0]).sort(dim=-1).values, "either side"),
        (in_place_mask, "in place"),
    ],
    chapter_10.check_encoder_layer: [
        (without_residual, "residual"),
        (always_post, "pre-norm: the norms are off"),
        (upside_down, "wrong way round"),
        (residual_after_norm, "NOT normalized"),
        (norms_swapped, "post-norm: the norms are off"),
        (side_by_side, "must read what attention returned"),
    ],
    chapter_10.check_reach: [
        (lambda masks: torch.stack(masks).any(dim=0), "residual|OR of the masks"),
        (lambda masks: torch.stack(masks).any(dim=0) | torch.eye(len(masks[0])).bool(), "OR"),
        (lambda masks: reach(masks, residual=False), "residual"),
        (lambda masks: reach(masks, backwards=True), "lowest layer comes first"),
        (lambda masks: reach(masks).T, "transposed"),
        (lambda masks: reach(masks).float(), "boolean"),
        (lambda masks: reach(masks[:2]), "3 layers"),
        (reach_by_counting, "overflow"),
        (reach_in_place, "in place"),
    ],
    chapter_10.check_padding_detector: [
        (looks_at_content_only, "AMOUNT"),
        (pads_with_zeros, "other than zeros"),
        (has_no_padding, "have padding"),
        (looks_at_pads_too, "real positions only"),
        (lambda encoder: torch.tensor(True), "True or False"),
        (lambda encoder: detect(encoder, 0.05), "tolerance is too wide"),
    ],
}
