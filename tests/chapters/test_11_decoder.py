"""Chapter 11: what a decoder may know; the exercises. What both stacks promise: tests/library."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer_lib.book.checks import chapter_11
from transformer_lib.layers import DecoderLayer, LayerNorm
from transformer_lib.transformer import Decoder

D_MODEL, NUM_HEADS, D_FF = 16, 4, 24


def make_decoder(num_layers: int, norm_first: bool = False) -> Decoder:
    sizes = (D_MODEL, NUM_HEADS, D_FF, 0.0, norm_first)
    norm = LayerNorm(D_MODEL) if norm_first else None
    return Decoder([DecoderLayer(*sizes) for _ in range(num_layers)], norm)


@settings(deadline=None, max_examples=8)
@given(target=st.integers(2, 7), norm_first=st.booleans(), seed=st.integers(0, 999))
def test_a_target_word_moves_nothing_before_it(target: int, norm_first: bool, seed: int) -> None:
    torch.manual_seed(seed)
    decoder, x, memory = (
        make_decoder(2, norm_first),
        torch.randn(2, target, D_MODEL),
        torch.randn(2, 4, D_MODEL),
    )
    before = decoder(x, memory)
    for i in range(target):
        changed = x.clone()
        changed[:, i] = torch.randn(2, D_MODEL)
        moved = (decoder(changed, memory) - before).abs().amax(dim=(0, 2))
        assert (moved[:i] == 0).all(), f"position {i} moved an earlier one: {moved}"
        assert (moved[i:] > 0).all(), f"position {i} did not reach a later one: {moved}"


def test_gradients_to_the_future_are_exactly_zero() -> None:
    decoder, x = make_decoder(3), torch.randn(1, 5, D_MODEL, requires_grad=True)
    output = decoder(x, torch.randn(1, 4, D_MODEL))
    for i in range(5):
        (gradient,) = torch.autograd.grad(output[0, i, 0], x, retain_graph=True)
        length = gradient[0].norm(dim=-1)  # (target,)
        assert (length[i + 1 :] == 0).all()
        assert (length[: i + 1] > 0).all()


def test_a_source_word_moves_every_target_position() -> None:
    decoder, x, memory = (
        make_decoder(1),
        torch.randn(1, 5, D_MODEL),
        torch.randn(1, 4, D_MODEL),
    )
    before = decoder(x, memory)
    for j in range(4):
        changed = memory.clone()
        changed[:, j] = torch.randn(D_MODEL)
        assert ((decoder(x, changed) - before).abs().amax(dim=-1) > 0).all()


@settings(deadline=None, max_examples=8)
@given(target=st.integers(1, 6), norm_first=st.booleans(), seed=st.integers(0, 999))
def test_all_at_once_is_one_prefix_after_another(target: int, norm_first: bool, seed: int) -> None:
    torch.manual_seed(seed)
    decoder, x, memory = (
        make_decoder(2, norm_first),
        torch.randn(2, target, D_MODEL),
        torch.randn(2, 3, D_MODEL),
    )
    steps = [decoder(x[:, : i + 1], memory)[:, -1] for i in range(target)]
    torch.testing.assert_close(torch.stack(steps, dim=1), decoder(x, memory), atol=1e-5, rtol=1e-4)


def test_left_padding_needs_the_mask() -> None:
    decoder, x, memory = (
        make_decoder(2),
        torch.randn(1, 4, D_MODEL),
        torch.randn(1, 3, D_MODEL),
    )
    padded = torch.cat([50 * torch.randn(1, 2, D_MODEL), x], dim=1)  # (1, 2 + target, d_model)
    is_word = (torch.arange(6) >= 2)[None, None, None, :]  # (1, 1, 1, 2 + target)
    masked = decoder(padded, memory, attn_mask=is_word)
    torch.testing.assert_close(masked[:, 2:], decoder(x, memory), atol=1e-5, rtol=1e-4)
    assert masked.isfinite().all()
    assert not torch.allclose(decoder(padded, memory)[:, 2:], decoder(x, memory), atol=1e-3)


def test_the_causal_mask_is_not_applied_across() -> None:
    """Equal lengths: the first target position must see the last source word all the same."""
    decoder, x, memory = (
        make_decoder(1),
        torch.randn(1, 4, D_MODEL),
        torch.randn(1, 4, D_MODEL),
    )
    changed = memory.clone()
    changed[:, -1] += 1.0
    assert not torch.equal(decoder(x, changed)[:, 0], decoder(x, memory)[:, 0])


# The checks of the exercises must reject the likeliest wrong answers, and say why.


Part = Callable[[Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def build(
    look_back: Callable[..., Tensor], look_across: Callable[..., Tensor], order: str = "123"
) -> Callable[..., Tensor]:
    """A decoder layer that is right but for what it is given."""

    def layer(
        x: Tensor, memory: Tensor, attend: Attend, across: Attend, ffn: Part, *norms: Part
    ) -> Tensor:
        first, second, third = (norms[int(number) - 1] for number in order)
        x = first(x + look_back(attend, x))
        x = second(x + look_across(across, x, memory))
        return third(x + ffn(x))

    return layer


def right_back(attend: Attend, x: Tensor) -> Tensor:
    return attend(x, x, x, True)


def right_across(attend: Attend, x: Tensor, memory: Tensor) -> Tensor:
    return attend(x, memory, memory, False)


def asks_with_the_input(
    x: Tensor, memory: Tensor, attend: Attend, across: Attend, ffn: Part, *norms: Part
) -> Tensor:
    first = norms[0](x + attend(x, x, x, True))
    second = norms[1](first + across(x, memory, memory, False))
    return norms[2](second + ffn(second))


def no_residual(
    x: Tensor, memory: Tensor, attend: Attend, across: Attend, ffn: Part, *norms: Part
) -> Tensor:
    x = norms[0](attend(x, x, x, True))
    x = norms[1](across(x, memory, memory, False))
    return norms[2](x + ffn(x))


def in_place(
    x: Tensor, memory: Tensor, attend: Attend, across: Attend, ffn: Part, *norms: Part
) -> Tensor:
    x += attend(x, x, x, True)
    x = norms[0](x)
    x += across(x, memory, memory, False)
    x = norms[1](x)
    x += ffn(x)
    return norms[2](x)


def memory_mask_of(tokens: Tensor, pad_id: int) -> Tensor:
    return (tokens != pad_id)[:, None, None, :]


def tril(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def never_asks_the_memory(decoder: Callable[[Tensor, Tensor], Tensor]) -> str:
    x, memory = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
    before, changed = decoder(x, memory), x.clone()
    changed[:, -1] += 1.0
    return "healthy" if torch.equal(decoder(changed, memory)[:, :-1], before[:, :-1]) else "future"


def roughly(decoder: Callable[[Tensor, Tensor], Tensor]) -> str:
    x, memory = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
    before, changed = decoder(x, memory), x.clone()
    changed[:, -1] += 1.0
    if not torch.allclose(decoder(changed, memory)[:, :-1], before[:, :-1], atol=0.1):
        return "future"
    return "healthy" if not torch.allclose(decoder(x, memory + 1.0), before) else "deaf"


def packed(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    asks = target[:, None, :, None]
    own, across = asks == target[:, None, None], asks == source[:, None, None]
    return own & tril(target.size(1)) & (asks > 0), across & (asks > 0)


def packed_by_loops(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    own = torch.zeros(len(target), 1, target.size(1), target.size(1), dtype=torch.bool)
    across = torch.zeros(len(target), 1, target.size(1), source.size(1), dtype=torch.bool)
    for row in range(len(target)):
        for i, pair in enumerate(target[row].tolist()):
            if pair:
                own[row, 0, i, : i + 1] = target[row, : i + 1] == pair
                across[row, 0, i] = source[row] == pair
    return own, across


def causal_across(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    own, across = packed(source, target)
    return own, across & torch.ones_like(across).tril()


def pads_to_pads(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    asks = target[:, None, :, None]
    return (asks == target[:, None, None]) & tril(target.size(1)), asks == source[:, None, None]


def earlier_pairs_too(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return tril(target.size(1)) & (target > 0)[:, None, :, None], packed(source, target)[1]


def two_pairs_only(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return packed(source.clamp(max=2), target.clamp(max=2))


def in_place_pairs(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    target[target == 0] = -1
    return packed(source, target.clamp(min=0))


def masks_by_where(source: Tensor, target: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    length = torch.arange(target.size(1))
    own = (length[:, None] >= length)[None, None] & target.ne(pad_id)[:, None, None]
    return own, source.ne(pad_id).unsqueeze(1).unsqueeze(1)


def masks_by_loops(source: Tensor, target: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    own = [
        [[[j <= i and t != pad_id for j, t in enumerate(row)] for i in range(len(row))]]
        for row in target.tolist()
    ]
    return torch.tensor(own), torch.tensor([[[[t != pad_id for t in r]]] for r in source.tolist()])


def doctor(decoder: Callable[[Tensor, Tensor], Tensor]) -> str:
    """By gradients."""
    x = torch.randn(1, 4, 8, requires_grad=True)
    memory = torch.randn(1, 6, 8, requires_grad=True)
    output = decoder(x, memory)
    for i in range(3):
        (gradient,) = torch.autograd.grad(output[0, i].sum(), x, retain_graph=True)
        if gradient[0, i + 1 :].abs().max() > 0:
            return "future"
    first = torch.autograd.grad(output[0, 0].sum(), memory, retain_graph=True, allow_unused=True)[0]
    if first is None or first.abs().max() == 0:
        return "deaf"
    return "causal memory" if first[0, -1].abs().max() == 0 else "healthy"


def doctor_by_nudges(decoder: Callable[[Tensor, Tensor], Tensor]) -> str:
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    before = decoder(x, memory)
    for i in range(1, 5):
        other = torch.cat([x[:, :i], torch.randn(2, 5 - i, 8)], dim=1)
        if (decoder(other, memory)[:, :i] != before[:, :i]).any():
            return "future"
    if (decoder(x, torch.randn(2, 7, 8)) == before).all():
        return "deaf"
    other = torch.cat([memory[:, :-1], torch.randn(2, 1, 8)], dim=1)
    return "causal memory" if (decoder(x, other)[:, 0] == before[:, 0]).all() else "healthy"


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_11.check_decoder_layer: [build(right_back, right_across), in_place],
    chapter_11.check_decoder_masks: [masks_by_where, masks_by_loops],
    chapter_11.check_diagnose: [doctor, doctor_by_nudges],
    chapter_11.check_packed_masks: [packed, packed_by_loops],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_11.check_decoder_layer: [
        (build(lambda attend, x: attend(x, x, x, False), right_across), "must not look ahead"),
        (
            build(right_back, lambda attend, x, memory: attend(x, x, x, False)),
            "keys come from the memory",
        ),
        (
            build(right_back, lambda attend, x, memory: attend(x, memory, x, False)),
            "values come from the memory|cannot use|raised",
        ),
        (
            build(right_back, lambda attend, x, memory: attend(memory, x, x, False)),
            "TARGET asks",
        ),
        (
            build(right_back, lambda attend, x, memory: attend(x, memory, memory, True)),
            "raised|whole source",
        ),
        (build(right_back, right_across, "213"), "norm_1, norm_2, norm_3"),
        (
            build(lambda attend, x: attend(x, x, x, True)[0], right_across),
            r"must ask with norm_1\(x",
        ),
        (asks_with_the_input, r"must ask with norm_1\(x"),
        (no_residual, "residuals"),
    ],
    chapter_11.check_decoder_masks: [
        (
            lambda s, t, p: (memory_mask_of(t, p) & tril(3), memory_mask_of(t, p)),
            "memory_mask should have shape",
        ),
        (
            lambda s, t, p: (memory_mask_of(t, p) & tril(3), ~memory_mask_of(s, p)),
            "True means allowed",
        ),
        (
            lambda s, t, p: (tril(3).expand(2, 1, 3, 3), memory_mask_of(s, p)),
            "nobody may see the pad",
        ),
        (
            lambda s, t, p: (memory_mask_of(t, p).expand(2, 1, 3, 3), memory_mask_of(s, p)),
            "causality",
        ),
        (lambda s, t, p: (memory_mask_of(t, p) | tril(3), memory_mask_of(s, p)), "causality"),
        (
            lambda s, t, p: (memory_mask_of(t, p).mT & tril(3), memory_mask_of(s, p)),
            "nobody may see the pad",
        ),
        (
            lambda s, t, p: (memory_mask_of(t, 0) & tril(3), memory_mask_of(s, 0)),
            "SOURCE's padding",
        ),
        (lambda s, t, p: (memory_mask_of(t, 0) & tril(3), memory_mask_of(s, p)), "see the pad"),
        (
            lambda s, t, p: (
                memory_mask_of(t, p) & (tril(3) | (t == p)[:, None, :, None]),
                memory_mask_of(s, p),
            ),
            "must not look ahead",
        ),
    ],
    chapter_11.check_diagnose: [
        (lambda decoder: "healthy", "'future'.*'healthy'"),
        (lambda decoder: None, "should be one of|returned None"),
        (never_asks_the_memory, "'deaf'.*'healthy'"),
        (roughly, "sees_the_next_word"),
        (lambda decoder: "Healthy", "should be one of"),
    ],
    chapter_11.check_packed_masks: [
        (lambda s, t: tuple(mask[:, 0] for mask in packed(s, t)), "should have shape"),
        (lambda s, t: tuple(mask.mT for mask in packed(s, t)), "should have shape|causality"),
        (lambda s, t: tuple(mask.long() for mask in packed(s, t)), "is boolean"),
        (lambda s, t: tuple(~mask for mask in packed(s, t)), "one pair"),
        (lambda s, t: (packed(s, t)[0], packed(s, t)[0]), "should have shape"),
        (
            lambda s, t: ((t[:, None, :, None] == t[:, None, None]), packed(s, t)[1]),
            "causality",
        ),
        (causal_across, "memory_mask is causal"),
        (earlier_pairs_too, "causality is not enough"),
        (
            lambda s, t: (packed(s, t)[0], memory_mask_of(s, 0) & (t > 0)[:, None, :, None]),
            "source of",
        ),
        (two_pairs_only, "three pairs"),
        (pads_to_pads, "padding looks at nothing"),
        (
            lambda s, t: tuple(mask[:1].expand(len(s), -1, -1, -1) for mask in packed(s, t)),
            "second row",
        ),
        (lambda s, t: packed(s, t)[0], "not a Tensor"),
        (in_place_pairs, "in place"),
    ],
}
