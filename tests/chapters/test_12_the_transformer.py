"""The whole model: its configuration, behavior, size, exchange of weights with torch, and greedy decoding."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.book.checks.chapter_12 import (
    check_bert_parameters,
    check_sentence_log_probability,
    check_torch_masks,
)
from transformer_lib.convert import copy_weights, from_torch, to_torch
from transformer_lib.decoding import greedy_decode
from transformer_lib.door import check_same, describe_model
from transformer_lib.embeddings import LearnedPositionalEncoding
from transformer_lib.layers import FeedForward
from transformer_lib.transformer import (
    Transformer,
    TransformerConfig,
    count_parameters,
    evaluating,
)

PAD, BOS, EOS = 0, 1, 2
TINY = TransformerConfig(
    13, d_model=16, num_heads=2, d_ff=24, num_encoder_layers=2, num_decoder_layers=2
)


@pytest.fixture
def model() -> Transformer:
    return Transformer(TINY).eval()


def rows(*lengths: int, width: int | None = None, seed: int = 0) -> Tensor:
    """Random tokens (no special ones), each row of its own length, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(
        3, TINY.vocab_size, (len(lengths), width or max(lengths)), generator=generator
    )
    return tokens.masked_fill(torch.arange(tokens.size(1)) >= torch.tensor(lengths)[:, None], PAD)


def shaken(config: TransformerConfig) -> Transformer:
    """A model in which no parameter is 0 or 1, so that none can be mixed up unnoticed."""
    torch.manual_seed(1)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


# Configuration


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"d_model": 10, "num_heads": 3}, ["10", "3"]),
        ({"d_model": 9, "num_heads": 3}, ["9", "even"]),
        ({"d_model": 16.0}, ["d_model", "16.0"]),
        ({"num_heads": True}, ["num_heads", "True"]),
        ({"d_ff": -1}, ["d_ff", "-1"]),
        ({"num_encoder_layers": 0}, ["num_encoder_layers", "0"]),
        ({"num_decoder_layers": 0}, ["num_decoder_layers", "0"]),
        ({"d_ff": 2**40}, ["d_ff", str(2**40)]),
        ({"d_model": float("nan")}, ["d_model", "nan"]),
        ({"dropout": 1.5}, ["dropout", "1.5"]),
        ({"attention_dropout": -0.1}, ["attention_dropout", "-0.1"]),
        ({"dropout": float("nan")}, ["dropout", "nan"]),
        ({"dropout": "0.1"}, ["dropout", "'0.1'"]),
        ({"max_length": 0}, ["max_length", "0"]),
        ({"pad_id": 13}, ["pad_id", "13"]),
        ({"pad_id": -1}, ["pad_id", "-1"]),
        ({"pad_id": 0.5}, ["pad_id", "0.5"]),
        ({"pad_id": True}, ["pad_id", "True"]),
        ({"norm_first": "no"}, ["norm_first", "'no'"]),
        ({"final_norm": 1}, ["final_norm", "1"]),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        replace(TINY, **change)
    for word in words:
        assert word in str(caught.value)


def test_a_config_is_frozen_and_comparable() -> None:
    with pytest.raises(FrozenInstanceError):
        TINY.d_model = 32  # type: ignore[misc]
    assert replace(TINY, d_ff=24) == TINY != replace(TINY, d_ff=25)


def test_the_presets_are_the_papers() -> None:
    base, big = TransformerConfig.base(), TransformerConfig.big()
    assert (base.d_model, base.num_heads, base.d_ff, base.dropout) == (512, 8, 2048, 0.1)
    assert (big.d_model, big.num_heads, big.d_ff, big.dropout) == (1024, 16, 4096, 0.3)
    assert {
        base.num_encoder_layers,
        base.num_decoder_layers,
        big.num_encoder_layers,
        big.num_decoder_layers,
    } == {6}
    assert base.vocab_size == big.vocab_size == 37_000
    assert not base.norm_first


@pytest.mark.parametrize(
    ("config", "count"),
    [(TransformerConfig.base(), 63_082_496), (TransformerConfig.big(), 214_245_376)],
)
def test_parameter_counts(config: TransformerConfig, count: int) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    assert count_parameters(model) == count
    assert count_parameters(model) == sum(
        tensor.numel() for tensor in model.state_dict().values()
    ), "one shared matrix"


def test_frozen_parameters_do_not_count(model: Transformer) -> None:
    before = count_parameters(model)
    model.embedding.weight.requires_grad_(False)
    assert count_parameters(model) == before - TINY.vocab_size * TINY.d_model


# Behavior


@pytest.mark.parametrize("norm_first", [False, True])
def test_shapes_and_final_norms(norm_first: bool) -> None:
    model = Transformer(replace(TINY, norm_first=norm_first))
    assert model(rows(5, 3), rows(4, 2)).shape == (2, 4, TINY.vocab_size)
    assert (model.encoder.norm is not None) == (model.decoder.norm is not None) == norm_first
    assert Transformer(replace(TINY, final_norm=True)).decoder.norm is not None
    assert Transformer(replace(TINY, norm_first=True, final_norm=False)).encoder.norm is None


@settings(max_examples=15, deadline=None)
@given(
    sources=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    targets=st.lists(st.integers(1, 7), min_size=4, max_size=4),
    extra=st.integers(0, 3),
    norm_first=st.booleans(),
)
def test_a_batch_is_its_rows_and_padding_changes_nothing(
    sources: list[int], targets: list[int], extra: int, norm_first: bool
) -> None:
    targets = targets[: len(sources)]
    model = shaken(replace(TINY, norm_first=norm_first))
    source, target = (
        rows(*sources, width=max(sources) + extra),
        rows(*targets, width=max(targets) + extra, seed=1),
    )
    with torch.no_grad():
        together = model(source, target)
        for row, (s, t) in enumerate(zip(sources, targets, strict=True)):
            alone = model(source[row : row + 1, :s], target[row : row + 1, :t])
            torch.testing.assert_close(together[row, :t], alone[0], atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(position=st.integers(0, 6), token=st.integers(3, 12))
def test_the_future_cannot_be_seen(position: int, token: int) -> None:
    model = shaken(TINY)
    source, target = rows(5, 4), rows(7, 7, seed=1)
    changed = target.clone()
    changed[:, position] = torch.where(target[:, position] == token, 3 + (token - 2) % 10, token)
    with torch.no_grad():
        moved = (
            (model(source, changed) - model(source, target)).abs().amax(dim=-1)
        )  # (batch, target)
    assert (moved[:, :position] < 1e-5).all()
    assert (moved[:, position] > 1e-5).all()


def test_the_source_is_heard_by_every_target_position(model: Transformer) -> None:
    source, target = rows(5), rows(6, seed=1)
    other = source.clone()
    other[0, 2] = 3 + (source[0, 2] - 2) % 10
    with torch.no_grad():
        moved = (model(source, target) - model(other, target)).abs().amax(dim=-1)
    assert (moved > 1e-6).all()


def test_the_pieces_make_the_whole_and_offset_moves_positions(model: Transformer) -> None:
    source, target = rows(5, 3), rows(4, 4, seed=1)
    with torch.no_grad():
        memory = model.encode(source)
        torch.testing.assert_close(
            model.project(model.decode(target, memory, source)), model(source, target)
        )
        torch.testing.assert_close(model.embed(target)[:, 2:], model.embed(target[:, 2:], offset=2))


def test_a_source_of_nothing_but_padding_gives_numbers() -> None:
    model = Transformer(replace(TINY, dropout=0.0))
    model(
        torch.tensor([[5, 6], [PAD, PAD]]), torch.tensor([[BOS, 4], [BOS, 4]])
    ).square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


@pytest.mark.parametrize("own", [False, True])
def test_an_output_map_of_ones_own_is_used_everywhere(model: Transformer, own: bool) -> None:
    if own:
        model.output = nn.Linear(TINY.d_model, TINY.vocab_size)
    source, target = rows(5, 3), rows(4, 4, seed=1)
    hidden = model.decode(target, model.encode(source), source)
    shared = nn.functional.linear(hidden, model.embedding.weight)
    expected = shared if model.output is None else model.output(hidden)
    assert torch.equal(model.project(hidden), expected)
    assert torch.equal(model(source, target), expected)
    assert not torch.equal(shared, expected) or not own
    assert count_parameters(model) == count_parameters(Transformer(TINY)) + own * 13 * 17


def test_a_loss_gets_the_model_and_the_vectors(model: Transformer) -> None:
    source, target = rows(5, 3), rows(4, 4, seed=1)
    asked: list[tuple[nn.Module, Tensor]] = []

    def loss(inner: nn.Module, hidden: Tensor) -> Tensor:
        asked.append((inner, hidden))
        return hidden.sum()

    total = model(source, target, loss)
    ((inner, hidden),) = asked
    assert inner is model
    torch.testing.assert_close(hidden, model.decode(target, model.encode(source), source))
    assert torch.equal(total, hidden.sum())


def test_a_source_of_none_has_no_padding(model: Transformer) -> None:
    source, target = rows(5, 5), rows(4, 4, seed=1)
    memory = model.encode(source)
    hidden = model.decode(target, memory, None)
    torch.testing.assert_close(hidden, model.decode(target, memory, source))


def test_query_key_and_value_begin_as_one_matrix() -> None:
    model = Transformer(TransformerConfig(10, 64, 4, 128, 1, 1))
    for stack in (model.encoder, model.decoder):
        for name, parameter in stack.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif parameter.dim() == 2:
                of_three = name.split(".")[-2] in (
                    "query_projection",
                    "key_projection",
                    "value_projection",
                )
                fan = parameter.size(0) * (3 if of_three else 1) + parameter.size(1)
                bound = (6 / fan) ** 0.5
                assert 0.98 * bound < parameter.abs().max().item() <= bound, name


def test_dropout_falls_on_the_sum_of_token_and_position() -> None:
    model = Transformer(TransformerConfig(10, 64, 4, 128, 1, 1, dropout=0.5)).train()
    embedded = model.embed(torch.full((1, 200), 3))
    assert abs((embedded == 0).float().mean().item() - 0.5) < 0.05


def test_evaluating_gives_each_part_its_own_mode_back(model: Transformer) -> None:
    model.train()
    model.encoder.eval()
    before = {part: part.training for part in model.modules()}

    def fail() -> None:
        with evaluating(model):
            assert not any(part.training for part in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {part: part.training for part in model.modules()} == before


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (torch.full((1, 3), 13), rows(2), ["13", "12"]),
        (rows(3), torch.full((1, 2), -1), ["-1", "12"]),
        (rows(3, width=1025), rows(2), ["1024"]),
        (rows(3), rows(2, width=1025), ["1024"]),
        (rows(3)[:0], rows(2)[:0], ["empty"]),
        (rows(3), rows(2)[:, :0], ["target", "(1, 0)"]),
        (rows(3).float(), rows(2), ["float32"]),
        (rows(3), rows(2).float(), ["float32"]),
        (rows(3)[0], rows(2), ["(3,)"]),
        (rows(3, 3), rows(2), ["together", "(1, 2), (2, 3"]),
        (rows(3), rows(2, 2), ["together", "(2, 2), (1, 3"]),
    ],
)
def test_bad_input_is_refused(
    model: Transformer, source: Tensor, target: Tensor, words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        model(source, target)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("length", [1, 3])  # a mask of one would broadcast
def test_memory_of_another_source_is_refused(model: Transformer, length: int) -> None:
    with pytest.raises(ValueError, match=rf"together.*\(1, 4, 16\), \(1, {length}\)"):
        model.decode(rows(2), model.encode(rows(4)), rows(length))


@pytest.mark.parametrize("seed", range(3))
def test_a_fresh_model_knows_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig.small(500)).eval()
    source, target_in, target_out = torch.randint(3, 500, (3, 16, 10)).unbind()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(
            model(source, target_in).flatten(0, 1), target_out.flatten()
        ).item()
    assert 6.2 < loss < 7.2, f"log(500) is 6.2, the loss {loss}"


# torch.nn.Transformer


def hidden_of_torch(
    module: nn.Transformer, model: Transformer, source: Tensor, target: Tensor
) -> Tensor:
    """The same hidden vectors by torch, whose masks say True where attention is forbidden."""
    padding, length = source == model.config.pad_id, target.size(1)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    source_vectors, target_vectors = model.embed(source), model.embed(target)
    if not module.batch_first:
        source_vectors, target_vectors = (
            source_vectors.transpose(0, 1),
            target_vectors.transpose(0, 1),
        )
    masks = {
        "tgt_mask": future,
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
    }
    hidden = module(source_vectors, target_vectors, tgt_is_causal=True, **masks)
    return hidden if module.batch_first else hidden.transpose(0, 1)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("final_norm", [None, False, True])
def test_to_torch_and_back(norm_first: bool, final_norm: bool | None) -> None:
    model = shaken(
        replace(TINY, norm_first=norm_first, final_norm=final_norm, num_decoder_layers=3)
    )
    source, target = rows(5, 3), rows(4, 6, seed=1)
    module = to_torch(model)
    expected = model.decode(target, model.encode(source), source)
    torch.testing.assert_close(
        hidden_of_torch(module, model, source, target), expected, atol=1e-5, rtol=1e-4
    )
    back = from_torch(module, model.embedding.weight.detach())
    assert back.config == replace(
        model.config, final_norm=norm_first if final_norm is None else final_norm
    )
    for (name, before), after in zip(
        model.state_dict().items(), back.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_from_torch(norm_first: bool, batch_first: bool) -> None:
    torch.manual_seed(2)
    module = nn.Transformer(
        16, 4, 2, 1, 24, dropout=0.3, batch_first=batch_first, norm_first=norm_first
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model = from_torch(module, torch.randn(13, 16), pad_id=PAD, max_length=50).eval()
    assert (
        model.config.dropout,
        model.config.attention_dropout,
        model.config.final_norm,
    ) == (0.3, 0.3, True)
    source, target = rows(5, 3), rows(4, 6, seed=1)
    expected = hidden_of_torch(module, model, source, target)
    torch.testing.assert_close(
        model.decode(target, model.encode(source), source), expected, atol=1e-5, rtol=1e-4
    )


def test_conversion_copies_and_keeps_dtype_and_mode(model: Transformer) -> None:
    module = to_torch(model.double())
    assert not module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
    before = model.encoder.layers[0].feed_forward.inner.weight.detach().clone()
    with torch.no_grad():
        module.encoder.layers[0].linear1.weight.zero_()
    assert torch.equal(model.encoder.layers[0].feed_forward.inner.weight, before)


def test_dropout_goes_where_ours_is() -> None:
    module = to_torch(Transformer(replace(TINY, dropout=0.25, attention_dropout=0.5)))
    for layer in (*module.encoder.layers, *module.decoder.layers):
        assert (
            layer.dropout1.p,
            layer.dropout2.p,
            layer.dropout.p,
            layer.self_attn.dropout,
        ) == (0.25, 0.25, 0.0, 0.5)


def theirs(**change: Any) -> nn.Transformer:
    """A small torch.nn.Transformer, and what is to be unlike: arguments, or parts by their names."""
    sizes = {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    options: dict[str, Any] = {"dim_feedforward": 8, "batch_first": True}
    parts = {name: change.pop(name) for name in list(change) if "." in name}
    module = nn.Transformer(**(sizes | options | change))
    for name, part in parts.items():
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, part)
    return module


class AnotherForward(nn.TransformerEncoderLayer):
    pass


def torch_attention(heads: int = 2, **options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(16, heads, batch_first=True, dropout=0.1, **options)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "gelu"}, ["encoder.layers.0", "gelu"]),
        ({"decoder.layers.0.activation": nn.GELU()}, ["decoder.layers.0 ", "GELU"]),
        ({"layer_norm_eps": 1e-6}, ["norm1", "1e-06"]),
        ({"decoder.layers.0.norm3": nn.LayerNorm(16, 1e-3)}, ["decoder.layers.0.norm3", "0.001"]),
        ({"decoder.norm": nn.RMSNorm(16)}, ["decoder.norm", "RMSNorm"]),
        ({"bias": False}, ["encoder.layers.0.self_attn", "in_proj_weight"]),
        (
            {"decoder.layers.0.multihead_attn": torch_attention(bias=False)},
            ["decoder.layers.0.multihead_attn", "in_proj_weight, add"],
        ),
        (
            {"decoder.layers.0.multihead_attn": torch_attention(kdim=9)},
            ["decoder.layers.0.multihead_attn", "k_proj_weight"],
        ),
        (
            {"encoder.layers.0.self_attn": torch_attention(add_zero_attn=True)},
            ["encoder.layers.0.self_attn", "add_zero_attn True"],
        ),
        (
            {"encoder.layers.0.self_attn": torch_attention(add_bias_kv=True)},
            ["encoder.layers.0.self_attn", "bias_k, bias_v"],
        ),
        ({"custom_encoder": nn.Identity()}, ["encoder ", "Identity"]),
        (
            {"encoder.layers.0": AnotherForward(16, 2, 8, batch_first=True)},
            ["encoder.layers.0 ", "AnotherForward"],
        ),
        ({"encoder.norm": None}, ["alike", "final_norm=True", "final_norm=False"]),
        (
            {"decoder.layers.0.multihead_attn": torch_attention(4)},
            ["alike", "num_heads=2", "num_heads=4"],
        ),
        (
            {"decoder.layers.0": nn.TransformerDecoderLayer(16, 2, 9, batch_first=True)},
            ["alike", "d_ff=8", "d_ff=9"],
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        from_torch(theirs(**change), torch.zeros(5, 16))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_reference_for_carrying_over_can_be_carried_over() -> None:
    assert from_torch(theirs(activation=nn.ReLU()), torch.zeros(5, 16)).config.d_ff == 8
    assert from_torch(theirs(activation=torch.relu), torch.zeros(5, 16)).config.num_heads == 2


@pytest.mark.parametrize("shape", [(5, 17), (5, 1), (5,), (5, 16, 1)])
def test_weights_do_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"weights \[{shape[0]}.*into \[5, 16\]"):
        from_torch(theirs(), torch.zeros(shape))
    to = torch.zeros(5, 16)
    copy_weights([(to, torch.ones(5, 16))])
    assert to.eq(1).all()


class Gelu(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(x)))


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("encoder.layers.0.feed_forward", Gelu(16, 24), "Gelu"),
        ("decoder.layers.1.residual_3.norm", nn.RMSNorm(16), "RMSNorm"),
        ("decoder.layers.0.self_attention", MultiHeadAttention(16, 4), "num_heads 4, now 2"),
        ("decoder.layers.0.self_attention", MultiHeadAttention(16, 2, bias=False), "bias False"),
        ("encoder.norm", nn.LayerNorm(16), "encoder.norm"),
        ("position", LearnedPositionalEncoding(16), "LearnedPositionalEncoding"),
        ("output", nn.Linear(16, 13), "Linear"),
    ],
)
def test_a_replaced_part_does_not_go_to_torch(
    model: Transformer, name: str, part: nn.Module, words: str
) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, part)
    with pytest.raises(ValueError, match=rf"torch's Transformer.*{words}"):
        to_torch(model)


def test_a_description_knows_what_weights_do_not_show(model: Transformer) -> None:
    found = describe_model(model)
    assert asdict(TINY).items() <= found.items()
    assert found == describe_model(Transformer(TINY).train())
    changes: dict[str, Any] = {"num_heads": 4, "dropout": 0.2, "norm_first": True, "pad_id": 1}
    for name, value in changes.items():
        other = describe_model(Transformer(replace(TINY, **{name: value})))
        with pytest.raises(ValueError, match=f"the file does not fit.*{name}"):
            check_same("the file", found, other)
    check_same("the file", found | {"encoder.of another version": 1}, found)
    with pytest.raises(ValueError, match="kind of x 'B', now None"):
        check_same("the file", found | {"kind of x": "B"}, found)


# Greedy decoding


def test_greedy_decoding_takes_the_likeliest_token_each_time(model: Transformer) -> None:
    source = rows(5)
    written: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            token = int(model(source, torch.tensor([[BOS, *written]]))[0, -1].argmax())
            if token == EOS:
                break
            written.append(token)
    assert greedy_decode(model, source, max_new_tokens=6) == [written]


def test_greedy_decoding_of_a_batch_is_that_of_its_rows() -> None:
    for seed in range(3):
        model = Transformer(TINY)
        source = rows(5, 2, 4, seed=seed)
        together = greedy_decode(model, source, max_new_tokens=7)
        assert together == [
            greedy_decode(model, row[None, row != PAD], max_new_tokens=7)[0] for row in source
        ]
        assert model.training, "the mode should come back as it was"


class Scripted(nn.Module):
    """Whatever it is given, it writes these two rows, and counts its steps."""

    config = TINY

    def incremental_decoder(self, source: Tensor) -> "Scripted":
        self.rows, self.steps = torch.tensor([[5, EOS, 6, 6], [7, 8, EOS, 9]]), 0
        return self

    def step(self, tokens: Tensor) -> Tensor:
        self.steps += 1
        return nn.functional.one_hot(self.rows[:, self.steps - 1], TINY.vocab_size).float()

    def keep(self, kept: Tensor) -> None:
        self.rows = self.rows[kept]


def test_greedy_decoding_stops_at_eos_and_leaves_it_out() -> None:
    scripted = Scripted()
    assert greedy_decode(scripted, rows(3, 3), max_new_tokens=4) == [[5], [7, 8]]
    assert scripted.steps == 3, f"all rows had ended after 3 steps, it took {scripted.steps}"


@pytest.mark.parametrize(
    ("source", "steps", "words"),
    [(rows(3)[:0], 3, "empty"), (rows(3), 0, "0"), (rows(3), 1025, "1025")],
)
def test_greedy_decoding_refuses_bad_input(
    model: Transformer, source: Tensor, steps: int, words: str
) -> None:
    model.train()
    with pytest.raises(ValueError, match=words):
        greedy_decode(model, source, max_new_tokens=steps)
    assert model.training


def test_greedy_decoding_may_use_every_position() -> None:
    model = Transformer(replace(TINY, max_length=6))
    assert len(greedy_decode(model, rows(5), max_new_tokens=6, eos_id=99)[0]) == 6


# The exercises' checks


def bert(
    vocab_size: int,
    num_positions: int,
    num_segments: int,
    d_model: int,
    d_ff: int,
    num_layers: int,
    **change: int,
) -> int:
    """The right number of parameters of a BERT, or a popular wrong one."""
    parts = {"matrices": 1, "biases": 1, "network_biases": 1, "norms": 2, "attentions": 1}
    parts |= {"norm": 1, "pooler": 1, "pooler_bias": 1, "positions": 1, "segments": 1}
    parts |= change
    d = d_model
    attention = parts["attentions"] * 4 * (d * d + d * parts["biases"])
    feed_forward = 2 * d * d_ff + (d_ff + d) * parts["biases"] * parts["network_biases"]
    rows = vocab_size * parts["matrices"] + num_positions * parts["positions"]
    rows += num_segments * parts["segments"]
    layers = num_layers * (attention + feed_forward + parts["norms"] * 2 * d)
    return (
        rows * d
        + layers
        + parts["norm"] * 2 * d
        + parts["pooler"] * (d * d + d * parts["pooler_bias"])
    )


def bert_by_modules(
    vocab_size: int, num_positions: int, num_segments: int, d_model: int, d_ff: int, num_layers: int
) -> int:
    with torch.device("meta"):
        parts = [nn.Embedding(n, d_model) for n in (vocab_size, num_positions, num_segments)]
        parts += [nn.LayerNorm(d_model), nn.Linear(d_model, d_model)]
        parts += [nn.TransformerEncoderLayer(d_model, 1, d_ff) for _ in range(num_layers)]
    return count_parameters(nn.ModuleList(parts))


def bert_by_tables(*sizes: int) -> int:
    vocab_size, num_positions, num_segments, d, d_ff, num_layers = sizes
    shapes = [(vocab_size + num_positions + num_segments, d), (2, d), (d + 1, d)]
    for _ in range(num_layers):
        shapes += [(d + 1, d)] * 4 + [(d + 1, d_ff), (d_ff + 1, d), (2, d), (2, d)]
    return sum(rows * columns for rows, columns in shapes)


def wrong_bert(**change: int) -> Callable[..., int]:
    return lambda *sizes: bert(*sizes, **change)


def masks(source: Tensor, target: Tensor, pad_id: int) -> dict[str, Tensor]:
    future = torch.ones(target.size(1), target.size(1), dtype=torch.bool).triu(1)
    return {
        "src_key_padding_mask": source == pad_id,
        "tgt_key_padding_mask": target == pad_id,
        "memory_key_padding_mask": source == pad_id,
        "tgt_mask": future,
    }


def masks_from_torch(source: Tensor, target: Tensor, pad_id: int) -> dict[str, Tensor]:
    names = ("src_key_padding_mask", "memory_key_padding_mask", "tgt_key_padding_mask")
    ids = (source, source, target)
    found = {name: x.eq(pad_id).clone() for name, x in zip(names, ids, strict=True)}
    future = nn.Transformer.generate_square_subsequent_mask(target.size(1))
    return found | {"tgt_mask": future == -torch.inf}


def masks_by_loops(source: Tensor, target: Tensor, pad_id: int) -> dict[str, Tensor]:
    def padding(rows: Tensor) -> Tensor:
        return torch.tensor([[token == pad_id for token in row] for row in rows.tolist()])

    length = target.size(1)
    position = torch.arange(length)
    return {
        "tgt_mask": position[None, :] > position[:, None],
        "src_key_padding_mask": padding(source),
        "memory_key_padding_mask": padding(source),
        "tgt_key_padding_mask": padding(target),
    }


def other_masks(**change: Callable[[Tensor, Tensor, int], Any]) -> Callable[..., dict[str, Any]]:
    def attempt(s: Tensor, t: Tensor, p: int) -> dict[str, Any]:
        return masks(s, t, p) | {name: make(s, t, p) for name, make in change.items()}

    return attempt


def square(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool)


def masks_in_place(source: Tensor, target: Tensor, pad_id: int) -> dict[str, Tensor]:
    found = masks(source, target, pad_id)
    source.masked_fill_(source == pad_id, -1)
    return found


Score = Callable[[Transformer, Tensor, list[int]], Any]


def score(
    model: Transformer,
    source: Tensor,
    sentence: list[int],
    *,
    shift: bool = True,
    end: bool = True,
    over: int = -1,
    by: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The right log-probability, or a popular wrong one."""
    wanted = [*sentence, EOS] if end else sentence
    given = [BOS, *wanted[:-1]] if shift else [*wanted]
    if not wanted:
        return torch.zeros(())
    with evaluating(model):
        logits = model(source, torch.tensor([given]))
    values = by(logits) if by is not None else logits.log_softmax(dim=over)
    return values[0, torch.arange(len(wanted)), torch.tensor(wanted)].sum()


def score_step_by_step(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    total, written = torch.zeros(()), [BOS]
    with evaluating(model):
        for token in (*sentence, EOS):
            logits = model(source, torch.tensor([written]))[0, -1]
            total = total + logits.log_softmax(dim=-1)[token]
            written.append(token)
    return total


def score_by_cross_entropy(model: Transformer, source: Tensor, sentence: list[int]) -> float:
    was = model.training
    model.eval()
    logits = model(source, torch.tensor([[BOS, *sentence]]))[0]
    model.train(was)
    wanted = torch.tensor([*sentence, EOS])
    return -nn.functional.cross_entropy(logits, wanted, reduction="sum").item()


def score_of_what_was_given(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    given = torch.tensor([BOS, *sentence])
    with evaluating(model):
        values = model(source, given[None])[0].log_softmax(dim=-1)
    return values[torch.arange(len(given)), given].sum()


def score_with_dropout(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    wanted = torch.tensor([*sentence, EOS])
    values = model(source, torch.tensor([[BOS, *sentence]]))[0].log_softmax(dim=-1)
    return values[torch.arange(len(wanted)), wanted].sum()


def score_and_leave_in_eval(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    return score(model.eval(), source, sentence)


def score_and_append(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    result = score(model, source, sentence)
    sentence.append(EOS)
    return result


def score_of_the_last(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    with evaluating(model):
        return model(source, torch.tensor([[BOS, *sentence]]))[0, -1].log_softmax(dim=-1)[EOS]


def score_of_each(model: Transformer, source: Tensor, sentence: list[int]) -> Tensor:
    with evaluating(model):
        values = model(source, torch.tensor([[BOS, *sentence]]))[0].log_softmax(dim=-1)
    return values.gather(-1, torch.tensor([*sentence, EOS])[:, None])


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_bert_parameters: [bert, bert_by_modules, bert_by_tables],
    check_torch_masks: [masks, masks_from_torch, masks_by_loops],
    check_sentence_log_probability: [score, score_step_by_step, score_by_cross_entropy],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_bert_parameters: [
        (wrong_bert(matrices=2), "no map to logits"),
        (wrong_bert(positions=0), "learned vector"),
        (wrong_bert(segments=0), "each segment"),
        (wrong_bert(attentions=2, norms=3), "decoder layer"),
        (wrong_bert(biases=0), "have biases"),
        (wrong_bert(network_biases=0), "two biases"),
        (wrong_bert(norms=1), "two norms"),
        (wrong_bert(norms=0), "two norms"),
        (wrong_bert(norm=0), "norm of the sum"),
        (wrong_bert(pooler=0), "pooler is missing"),
        (wrong_bert(pooler_bias=0), "pooler's bias"),
        (wrong_bert(pooler=0, norm=0), "norm of the sum and the pooler"),
        (wrong_bert(norm=2), "one norm too many"),
        (lambda *s: bert(*s[:4], 4 * s[3], s[5]), "does not depend on d_ff"),
        (lambda *s: 109_482_240, "each token"),
        (lambda *s: bert(*s) / 1, "float"),
        (lambda *s: bert(*s) + 4 * (s[3] - 6), "grow with d_model"),
    ],
    check_torch_masks: [
        (lambda *x: {k: ~v for k, v in masks(*x).items()}, "True for padding"),
        (other_masks(memory_key_padding_mask=lambda s, t, p: t == p), "memory"),
        (other_masks(tgt_mask=lambda s, t, p: ~square(t.size(1)).triu(1)), "tgt_mask is ours"),
        (other_masks(tgt_mask=lambda s, t, p: square(t.size(1)).triu(0)), "see itself"),
        (other_masks(tgt_mask=lambda s, t, p: square(t.size(1)).tril(-1)), "upside down"),
        (other_masks(tgt_mask=lambda s, t, p: square(t.size(1)).triu(2)), "forbid the keys after"),
        (other_masks(tgt_mask=lambda s, t, p: square(s.size(1)).triu(1)), "source's length"),
        (
            other_masks(tgt_mask=lambda s, t, p: square(t.size(1)).triu(1).expand(len(t), -1, -1)),
            "one for all sentences",
        ),
        (
            other_masks(
                tgt_mask=lambda s, t, p: nn.Transformer.generate_square_subsequent_mask(t.size(1))
            ),
            "boolean",
        ),
        (lambda s, t, p: masks(s, t, 0), "pad_id"),
        (
            other_masks(tgt_key_padding_mask=lambda s, t, p: t == 0),
            "tgt_key_padding_mask: use pad_id",
        ),
        (other_masks(tgt_key_padding_mask=lambda s, t, p: t <= BOS), "nowhere else"),
        (lambda *x: {k: v.float() for k, v in masks(*x).items()}, "boolean"),
        (lambda *x: {k: v for k, v in masks(*x).items() if k != "tgt_mask"}, "keys"),
        (lambda *x: tuple(masks(*x).values()), "dictionary"),
        (masks_in_place, "in place"),
        (other_masks(src_key_padding_mask=lambda s, t, p: (s == p)[:, None, None]), "shape"),
    ],
    check_sentence_log_probability: [
        (lambda m, s, y: score(m, s, y, end=False), "must also stop"),
        (lambda m, s, y: score(m, s, y, end=bool(y)), "empty sentence"),
        (lambda m, s, y: -score(m, s, y), "the sign"),
        (lambda m, s, y: score(m, s, y).exp(), "logarithm"),
        (lambda m, s, y: score(m, s, y, shift=False), "the answer itself"),
        (lambda m, s, y: score(m, s, y) / (len(y) + 1), "mean over the tokens"),
        (lambda m, s, y: score(m, s, y, by=lambda x: x), "softmax is missing"),
        (lambda m, s, y: score(m, s, y, by=lambda x: x.softmax(dim=-1)), "probabilities added up"),
        (
            lambda m, s, y: score(m, s, y, by=lambda x: x.softmax(dim=-1).log_softmax(dim=-1)),
            "applied twice",
        ),
        (lambda m, s, y: score(m, s, y, over=1), "over the positions"),
        (score_of_what_was_given, "token it was given"),
        (score_with_dropout, "dropout"),
        (score_and_leave_in_eval, "comes back in eval mode"),
        (score_and_append, "in place"),
        (score_of_the_last, "every token counts"),
        (score_of_each, "one number"),
    ],
}
