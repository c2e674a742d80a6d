"""Chapter 11: the decoder layer, the stack, and the checks of the exercises."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention, causal_mask
from transformer_lib.book.checks import chapter_11
from transformer_lib.layers import DecoderLayer, EncoderLayer, LayerNorm
from transformer_lib.transformer import Decoder

D_MODEL, NUM_HEADS, D_FF = 16, 4, 24


def make_decoder(num_layers: int, norm_first: bool, dropout: float = 0.0) -> Decoder:
    """A decoder in eval mode whose norms have gains and shifts of their own, so that a mix-up shows."""
    layers = [
        DecoderLayer(D_MODEL, NUM_HEADS, D_FF, dropout, norm_first) for _ in range(num_layers)
    ]
    decoder = Decoder(layers, LayerNorm(D_MODEL) if norm_first else None).eval()
    for part in decoder.modules():
        if isinstance(part, LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return decoder


@torch.no_grad()
def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    maps = (ours.query_projection, ours.key_projection, ours.value_projection)
    theirs.in_proj_weight.copy_(torch.cat([projection.weight for projection in maps]))
    theirs.in_proj_bias.copy_(torch.cat([projection.bias for projection in maps]))
    theirs.out_proj.load_state_dict(ours.output_projection.state_dict())


def torch_decoder(ours: Decoder, norm_first: bool) -> nn.TransformerDecoder:
    """torch's decoder with our weights."""
    layer = nn.TransformerDecoderLayer(
        D_MODEL, NUM_HEADS, D_FF, 0.0, batch_first=True, norm_first=norm_first
    )
    norm = nn.LayerNorm(D_MODEL) if norm_first else None
    theirs = nn.TransformerDecoder(layer, len(ours.layers), norm).eval()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        copy_attention(mine.self_attention, other.self_attn)
        copy_attention(mine.cross_attention, other.multihead_attn)
        other.linear1.load_state_dict(mine.feed_forward.inner.state_dict())
        other.linear2.load_state_dict(mine.feed_forward.outer.state_dict())
        other.norm1.load_state_dict(mine.residual_1.norm.state_dict())
        other.norm2.load_state_dict(mine.residual_2.norm.state_dict())
        other.norm3.load_state_dict(mine.residual_3.norm.state_dict())
    if norm is not None:
        norm.load_state_dict(ours.norm.state_dict())
    return theirs


def lengths_to_mask(lengths: list[int]) -> Tensor:
    """(batch, length), True where there is a word."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


pairs_of_lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=8)
@given(
    pairs=pairs_of_lengths,
    norm_first=st.booleans(),
    num_layers=st.sampled_from([1, 2, 6]),
    seed=st.integers(0, 999),
)
def test_decoder_equals_torch(
    pairs: list[tuple[int, int]], norm_first: bool, num_layers: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ours = make_decoder(num_layers, norm_first)
    theirs = torch_decoder(ours, norm_first).double()
    ours = ours.double()
    source_real = lengths_to_mask([source for source, _ in pairs])
    target_real = lengths_to_mask([target for _, target in pairs])
    x = torch.randn(*target_real.shape, D_MODEL, dtype=torch.double)  # (batch, target, d_model)
    memory = torch.randn(
        *source_real.shape, D_MODEL, dtype=torch.double
    )  # (batch, source, d_model)
    future = ~causal_mask(x.size(1))
    results = []
    for output_of in (
        lambda x, m: ours(x, m, memory_mask=source_real[:, None, None, :]),
        lambda x, m: theirs(x, m, tgt_mask=future, memory_key_padding_mask=~source_real),
    ):
        leaves = [x.clone().requires_grad_(), memory.clone().requires_grad_()]
        output = output_of(*leaves)[target_real]  # (real positions, d_model)
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours_is, theirs_is in zip(*results, strict=True):
        torch.testing.assert_close(ours_is, theirs_is)


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
    torch.manual_seed(0)
    decoder, x = make_decoder(3, norm_first=False), torch.randn(1, 5, D_MODEL, requires_grad=True)
    output = decoder(x, torch.randn(1, 4, D_MODEL))
    for i in range(5):
        (gradient,) = torch.autograd.grad(output[0, i, 0], x, retain_graph=True)
        length = gradient[0].norm(dim=-1)  # (target,)
        assert (length[i + 1 :] == 0).all()
        assert (length[: i + 1] > 0).all()


def test_a_source_word_moves_every_target_position() -> None:
    torch.manual_seed(1)
    decoder, x, memory = (
        make_decoder(1, norm_first=False),
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


@settings(deadline=None, max_examples=8)
@given(pairs=pairs_of_lengths, norm_first=st.booleans(), seed=st.integers(0, 999))
def test_neither_padding_nor_company_matters(
    pairs: list[tuple[int, int]], norm_first: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    decoder = make_decoder(2, norm_first)
    source_real = lengths_to_mask([source for source, _ in pairs])
    target_real = lengths_to_mask([target for _, target in pairs])
    x, memory = torch.randn(*target_real.shape, D_MODEL), torch.randn(*source_real.shape, D_MODEL)
    allowed = source_real[:, None, None, :]
    output = decoder(x, memory, memory_mask=allowed)
    other_x = torch.where(target_real[..., None], x, 50 * torch.randn_like(x))
    other_memory = torch.where(source_real[..., None], memory, 50 * torch.randn_like(memory))
    other = decoder(other_x, other_memory, memory_mask=allowed)
    torch.testing.assert_close(other[target_real], output[target_real], atol=1e-5, rtol=1e-4)
    for row, (source, target) in enumerate(pairs):
        alone = decoder(x[row : row + 1, :target], memory[row : row + 1, :source])
        torch.testing.assert_close(alone[0], output[row, :target], atol=1e-5, rtol=1e-4)


def test_left_padding_needs_the_mask() -> None:
    torch.manual_seed(2)
    decoder, x, memory = (
        make_decoder(2, norm_first=False),
        torch.randn(1, 4, D_MODEL),
        torch.randn(1, 3, D_MODEL),
    )
    padded = torch.cat([50 * torch.randn(1, 2, D_MODEL), x], dim=1)  # (1, 2 + target, d_model)
    is_word = (torch.arange(6) >= 2)[None, None, None, :]  # (1, 1, 1, 2 + target)
    masked = decoder(padded, memory, attn_mask=is_word)
    torch.testing.assert_close(masked[:, 2:], decoder(x, memory), atol=1e-5, rtol=1e-4)
    assert masked.isfinite().all()
    assert not torch.allclose(decoder(padded, memory)[:, 2:], decoder(x, memory), atol=1e-3)


def test_an_empty_source_gives_finite_numbers_and_gradients() -> None:
    torch.manual_seed(3)
    decoder, x = make_decoder(2, norm_first=False), torch.randn(2, 3, D_MODEL, requires_grad=True)
    nobody = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 4)
    decoder(x, torch.randn(2, 4, D_MODEL), memory_mask=nobody).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_parameters_of_the_base_layer() -> None:
    d_model, d_ff = 512, 2048
    with torch.device("meta"):
        decoder_layer, encoder_layer = (
            DecoderLayer(d_model, 8, d_ff),
            EncoderLayer(d_model, 8, d_ff),
        )
    decoder_size, encoder_size = (
        sum(parameter.numel() for parameter in layer.parameters())
        for layer in (decoder_layer, encoder_layer)
    )
    assert (
        decoder_size
        == 8 * (d_model**2 + d_model) + 2 * d_model * d_ff + d_ff + 7 * d_model
        == 4_204_032
    )
    assert decoder_size - encoder_size == 4 * (d_model**2 + d_model) + 2 * d_model


def test_dropout_stands_on_sub_layer_outputs_only() -> None:
    layer = DecoderLayer(8, 2, 16)
    places = [name for name, part in layer.named_modules() if isinstance(part, nn.Dropout)]
    assert places == ["residual_1.dropout", "residual_2.dropout", "residual_3.dropout"]
    assert layer.self_attention.dropout == layer.cross_attention.dropout == 0.0


def test_dropout_only_while_training() -> None:
    torch.manual_seed(4)
    decoder = make_decoder(1, norm_first=False, dropout=0.5)
    x, memory = torch.randn(1, 4, D_MODEL), torch.randn(1, 3, D_MODEL)
    assert torch.equal(decoder(x, memory), decoder(x, memory))
    decoder.train()
    assert not torch.allclose(decoder(x, memory), decoder(x, memory))


@pytest.mark.parametrize(
    ("x", "memory", "message"),
    [
        ((2, 5, D_MODEL), (2, 7, D_MODEL - 1), r"memory must have .*16.*15"),
        ((2, 5, D_MODEL), (7, D_MODEL), r"memory must have .*\(7, 16\)"),
        ((2, 5, D_MODEL), (3, 7, D_MODEL), "batch of 3, x of 2"),
        ((2, 5, D_MODEL + 1), (2, 7, D_MODEL), r"x must have .*16.*17"),
        ((5, D_MODEL), (2, 7, D_MODEL), r"x must have .*\(5, 16\)"),
    ],
)
def test_wrong_input_is_named(x: tuple[int, ...], memory: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_decoder(1, norm_first=False)(torch.randn(x), torch.randn(memory))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"attn_mask": torch.ones(5, 5)}, "boolean"),
        ({"memory_mask": torch.ones(2, 1, 1, 7, dtype=torch.long)}, "boolean"),
        ({"attn_mask": torch.ones(6, 6, dtype=torch.bool)}, "6"),
        ({"memory_mask": torch.ones(2, 1, 1, 5, dtype=torch.bool)}, "5"),
        ({"memory_mask": torch.ones(3, 1, 1, 7, dtype=torch.bool)}, "3"),
        ({"attn_mask": torch.ones(5, 5, dtype=torch.bool, device="meta")}, "meta"),
        ({"memory_mask": torch.ones(2, 1, 1, 7, dtype=torch.bool, device="meta")}, "meta"),
    ],
)
def test_wrong_masks_are_named(masks: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_decoder(1, norm_first=False)(
            torch.randn(2, 5, D_MODEL), torch.randn(2, 7, D_MODEL), **masks
        )


def test_stacks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Decoder([])
    with pytest.raises(ValueError, match=r"8.*16"):
        Decoder([DecoderLayer(8, 2, 16), DecoderLayer(16, 2, 16)])
    with pytest.raises(ValueError, match=r"8.*16"):
        Decoder([DecoderLayer(8, 2, 16)], LayerNorm(16))
    with pytest.raises(ValueError, match=r"10.*3"):
        DecoderLayer(10, 3, 16)


# The checks of the exercises must reject the likeliest wrong answers, and say why.


def column_of(target: Tensor, token: int) -> Tensor:
    return torch.full_like(target[:, :1], token)


def shifted(target: Tensor, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    both_ends = torch.cat([column_of(target, bos), target, column_of(target, eos)], dim=1)
    return both_ends[:, :-1], both_ends[:, 1:]


def not_shifted(target: Tensor, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    both = torch.cat([column_of(target, bos), target], dim=1)
    return both, both


def end_in_the_input(target: Tensor, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    whole = torch.cat([column_of(target, bos), target, column_of(target, eos)], dim=1)
    return whole[:, [0, 1, 2, 4]], whole[:, 1:]


def whole_sentence(target: Tensor, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    whole = torch.cat([column_of(target, bos), target, column_of(target, eos)], dim=1)
    return whole, whole


def floats(target: Tensor, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    column = torch.ones(len(target), 1)
    return torch.cat([column * bos, target], dim=1), torch.cat([target, column * eos], dim=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (not_shifted, "bos_id is in the answer"),
        (end_in_the_input, "eos_id is in the input"),
        (whole_sentence, "should have shape"),
        (floats, "torch.long"),
        (lambda target, bos, eos: shifted(target, 1, 2), "use bos_id and eos_id"),
    ],
)
def test_check_shift(wrong: Callable[..., tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_11.check_shift(wrong)


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
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
        (build(lambda attend, x: attend(x, x, x, True)[0], right_across), "not a pair"),
        (asks_with_the_input, r"must ask with norm_1\(x"),
        (no_residual, "residuals"),
    ],
)
def test_check_decoder_layer(wrong: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_11.check_decoder_layer(wrong)


def in_place(
    x: Tensor, memory: Tensor, attend: Attend, across: Attend, ffn: Part, *norms: Part
) -> Tensor:
    x += attend(x, x, x, True)
    x = norms[0](x)
    x += across(x, memory, memory, False)
    x = norms[1](x)
    x += ffn(x)
    return norms[2](x)


def test_check_decoder_layer_takes_a_solution_that_works_in_place() -> None:
    chapter_11.check_decoder_layer(in_place)


def memory_mask_of(tokens: Tensor, pad_id: int) -> Tensor:
    return (tokens != pad_id)[:, None, None, :]


def tril(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
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
)
def test_check_decoder_masks(wrong: Callable[..., tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_11.check_decoder_masks(wrong)


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda decoder: "healthy", "'future'.*'healthy'"),
        (lambda decoder: None, "should be one of|returned None"),
        (never_asks_the_memory, "'deaf'.*'healthy'"),
        (roughly, "sees_the_next_word"),
    ],
)
def test_check_diagnose(wrong: Callable[..., str], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        chapter_11.check_diagnose(wrong)


def test_the_causal_mask_is_not_applied_across() -> None:
    """Equal lengths: the first target position must see the last source word all the same."""
    torch.manual_seed(5)
    decoder, x, memory = (
        make_decoder(1, norm_first=False),
        torch.randn(1, 4, D_MODEL),
        torch.randn(1, 4, D_MODEL),
    )
    changed = memory.clone()
    changed[:, -1] += 1.0
    assert not torch.equal(decoder(x, changed)[:, 0], decoder(x, memory)[:, 0])
    assert F.cosine_similarity(decoder(x, memory)[0, 0], decoder(x, changed)[0, 0], dim=0) < 1
