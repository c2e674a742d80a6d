"""Chapter 14: the loss and its pieces, schedule, dropout, bfloat16 attention, evaluation, checkpoints."""

import errno
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.attention import attention_weights, scaled_dot_product_attention
from transformer_lib.book.checks.chapter_14 import (
    check_clip,
    check_half_peak,
    check_smoothed_loss,
    check_teacher_forcing,
)
from transformer_lib.checkpoint import (
    average_weights,
    load_checkpoint,
    locked,
    read_tensors,
    save_checkpoint,
    unwrap,
    write_tensors,
)
from transformer_lib.layers import Dropout, FeedForward, ResidualConnection
from transformer_lib.pairs import Batch, make_batch
from transformer_lib.training import (
    cross_entropy_sum,
    evaluate_loss,
    learning_rate,
    make_optimizer,
    to_device,
    translation_loss,
)
from transformer_lib.transformer import Transformer, TransformerConfig

PAD, BOS, EOS = 0, 1, 2
CONFIG = TransformerConfig(
    11, d_model=16, num_heads=2, d_ff=24, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.fixture
def model() -> Transformer:
    return Transformer(CONFIG).eval()


def batch_of(*lengths: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 11, (length,), generator=generator).tolist() for length in lengths]
    return make_batch([([*row, EOS], row[::-1]) for row in rows])


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor | None]:
    inputs = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))


# The loss


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    smoothing=st.floats(0.0, 0.9),
    extra=st.integers(0, 4),
)
def test_the_loss_is_a_sum_over_real_tokens(
    lengths: list[int], smoothing: float, extra: int
) -> None:
    torch.manual_seed(1)
    model = Transformer(CONFIG).eval()
    batch = batch_of(*lengths)
    batch = Batch(
        batch.source, F.pad(batch.target_in, (0, extra)), F.pad(batch.target_out, (0, extra))
    )
    expected = F.cross_entropy(
        model(batch.source, batch.target_in).flatten(0, 1),
        batch.target_out.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
        reduction="sum",
    )
    total, count = translation_loss(model, batch, smoothing)
    assert count == sum(length + 1 for length in lengths)
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    if smoothing == 0.0:
        assert total.item() == translation_loss(model, batch)[0].item()


def test_no_logits_are_made_for_padding_nor_more_than_512_at_once(model: Transformer) -> None:
    rows: list[int] = []
    project = model.project

    def listening(hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return project(hidden)

    model.project = listening  # type: ignore[method-assign]
    batch = batch_of(1, 9, 2)
    translation_loss(model, batch)
    evaluate_loss(model, [batch])
    assert rows == [2 + 10 + 3] * 2
    rows.clear()
    cross_entropy_sum(model, torch.randn(1100, 16), torch.randint(0, 11, (1100,)))
    assert rows == [512, 512, 76]


def test_another_padding_id_is_respected_and_must_be_the_models() -> None:
    model = Transformer(TransformerConfig(11, 16, 2, 24, 1, 1, pad_id=10)).eval()
    ids = torch.tensor([[5, 2]]), torch.tensor([[1, 4]]), torch.tensor([[4, 2]])
    short = translation_loss(model, Batch(*ids, pad_id=10))
    padded = translation_loss(model, Batch(*(F.pad(x, (0, 1), value=10) for x in ids), pad_id=10))
    torch.testing.assert_close(short, padded)
    with pytest.raises(ValueError, match="pad_id 0, now 10"):
        translation_loss(model, Batch(*ids))


def test_whatever_wraps_the_model_wraps_the_loss(model: Transformer) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.calls = model, 0

        def forward(self, *arguments: Any) -> Tensor:
            self.calls += 1
            return self.module(*arguments)

    wrapper, batch = Wrapper(), batch_of(3, 5)
    torch.testing.assert_close(translation_loss(wrapper, batch), translation_loss(model, batch))
    assert wrapper.calls == 1


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_label_smoothing_is_a_share(model: Transformer, smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"label_smoothing .*{smoothing}"):
        translation_loss(model, batch_of(3), smoothing)


def test_sums_divided_once_are_the_gradient_of_the_large_batch(model: Transformer) -> None:
    pieces, whole = [batch_of(2, 2), batch_of(7, 5, seed=1)], []
    for name in ("source", "target_in", "target_out"):
        rows = [getattr(piece, name) for piece in pieces]
        whole.append(torch.cat([F.pad(x, (0, 8 - x.size(1))) for x in rows]))
    total, count = translation_loss(model, Batch(*whole), 0.1)
    expected = gradients(total / count, model)
    counts = []
    for piece in pieces:
        total, count = translation_loss(model, piece, 0.1)
        total.backward()
        counts.append(count)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad / sum(counts), gradient, atol=1e-5, rtol=1e-3)


# The loss in pieces


class SumOfTwo(nn.Module):
    """An output map of two matrices: autograd hands both the same gradient tensor."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.randn(vocab_size, d_model)) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.one + self.two)


OUTPUTS: dict[str, Callable[[], nn.Module | None]] = {
    "shared": lambda: None,
    "own, with bias": lambda: nn.Linear(16, 11),
    "two layers": lambda: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 11)),
    "sum of two": lambda: SumOfTwo(16, 11),
}


def both_losses(model: Transformer, hidden: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """In pieces, and by plain autograd."""
    targets = torch.randint(0, 11, (len(hidden),))
    logits = model.project(hidden)
    exact = torch.promote_types(logits.dtype, torch.float32)
    plain = F.cross_entropy(logits.to(exact), targets, reduction="sum", label_smoothing=smoothing)
    return cross_entropy_sum(model, hidden, targets, smoothing), plain


@pytest.mark.parametrize("frozen", ["nothing", "output map", "all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_gradient_in_pieces_is_plain_autograds(
    model: Transformer, output: str, smoothing: float, frozen: str
) -> None:
    model.output = OUTPUTS[output]()
    model.double()
    if frozen == "all":
        model.requires_grad_(False)
    elif frozen == "output map":
        (model.embedding if model.output is None else model.output).requires_grad_(False)
    for count in (1, 512, 513, 1100):
        hidden = torch.randn(count, 16, dtype=torch.float64, requires_grad=True)
        before = hidden.detach().clone()
        ours, theirs = both_losses(model, hidden, smoothing)
        torch.testing.assert_close(ours, theirs)
        inputs = [hidden, *(p for p in model.parameters() if p.requires_grad)]
        found = torch.autograd.grad(2.5 * ours, inputs, allow_unused=True)
        expected = torch.autograd.grad(2.5 * theirs, inputs, allow_unused=True)
        for gradient, other in zip(found, expected, strict=True):
            assert (gradient is None) == (other is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, other)
        assert torch.equal(hidden, before), "the loss must leave its input alone"


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_in_pieces_under_autocast(
    model: Transformer, output: str, smoothing: float
) -> None:
    model.output = OUTPUTS[output]()
    hidden = torch.randn(1100, 16, requires_grad=True)
    inputs = [
        hidden,
        *([model.embedding.weight] if model.output is None else model.output.parameters()),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both_losses(model, hidden, smoothing)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    found, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    for gradient, other in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() <= 0.02 * other.norm()


@pytest.mark.parametrize("output", OUTPUTS)
def test_without_gradients_the_loss_computes_none(model: Transformer, output: str) -> None:
    model.output = OUTPUTS[output]()
    hidden, targets = torch.randn(1100, 16), torch.randint(0, 11, (1100,))
    with FlopCounterMode(display=False) as there_and_back:
        trained = cross_entropy_sum(model, hidden, targets)
    with FlopCounterMode(display=False) as there, torch.no_grad():
        evaluated = cross_entropy_sum(model, hidden, targets)
    assert trained.requires_grad
    assert not evaluated.requires_grad
    assert torch.equal(trained, evaluated)
    assert there_and_back.get_total_flops() == 3 * there.get_total_flops()


def test_a_step_in_bfloat16_is_near_and_its_gradients_are_float32(model: Transformer) -> None:
    batch = batch_of(3, 5)
    exact, _ = translation_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = translation_loss(model, batch)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    for gradient in gradients(rounded, model):
        assert gradient is not None
        assert gradient.dtype == torch.float32


def test_large_scores_stay_finite(model: Transformer) -> None:
    hidden = torch.full((3, 16), 1e4, requires_grad=True)
    loss = cross_entropy_sum(model, hidden, torch.tensor([1, 2, 3]), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


# Evaluation


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_counts_tokens_and_puts_each_mode_back(
    model: Transformer, training: bool
) -> None:
    model.train(training)
    model.encoder.eval()
    both, single = batch_of(2, 6), [batch_of(2), batch_of(6, seed=1)]
    values = [evaluate_loss(model, [both]) for _ in range(2)]
    assert values[0] == values[1], "dropout should be off"
    assert model.training is model.decoder.training is training
    assert not model.encoder.training
    parts = [evaluate_loss(model, [batch]) for batch in single]
    assert evaluate_loss(model, iter(single)) == pytest.approx(
        (3 * parts[0] + 7 * parts[1]) / 10, abs=1e-5
    )
    total, count = translation_loss(model.eval(), both)
    assert values[0] == pytest.approx(total.item() / count, abs=1e-5)


def test_evaluation_puts_the_mode_back_after_an_error_and_keeps_no_graph(
    model: Transformer,
) -> None:
    model.train()
    ids = torch.tensor([[99]]), torch.tensor([[1]]), torch.tensor([[2]])
    with pytest.raises((ValueError, IndexError)):
        evaluate_loss(model, [Batch(*ids)])
    assert model.training
    evaluate_loss(model, [batch_of(3)])
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="no batch"):
        evaluate_loss(model, [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_evaluation_of_a_16_bit_model_sums_in_float32(dtype: torch.dtype) -> None:
    model = Transformer(TransformerConfig(500, 16, 2, 16, 1, 1)).eval().to(dtype)
    ids = torch.randint(3, 500, (300, 40))  # 12,000 tokens of about 8 nats: more than 65,504
    batch = Batch(ids[:, :5].clone(), ids, ids.roll(-1, 1))
    with torch.no_grad():
        logits = model(batch.source, batch.target_in).float().flatten(0, 1)
        expected = F.cross_entropy(logits, batch.target_out.flatten()).item()
    assert expected * batch.target_out.numel() > 65_504
    assert evaluate_loss(model, [batch]) == pytest.approx(expected, rel=1e-3)


def test_evaluation_takes_any_loss_and_any_batches() -> None:
    model = nn.Linear(2, 1)

    def loss(model: nn.Module, batch: Any, label_smoothing: float) -> tuple[Tensor, int]:
        assert label_smoothing == 0.0
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])

    batches = [{"x": torch.randn(n, 2), "y": torch.randn(n, 1)} for n in (1, 4)]
    x, y = (torch.cat([batch[key] for batch in batches]) for key in "xy")
    expected = (model(x) - y).square().mean().item()
    assert evaluate_loss(model, batches, loss) == pytest.approx(expected)


def test_a_batch_of_any_kind_is_moved() -> None:
    nested = {"x": torch.ones(2), "rows": [torch.ones(1), (torch.ones(3), "text")], "n": 3}
    moved = to_device(nested, torch.device("meta"))
    assert moved["x"].is_meta
    assert moved["rows"][1][0].is_meta
    assert (moved["rows"][1][1], moved["n"]) == ("text", 3)
    assert isinstance(to_device(batch_of(2), torch.device("cpu")), Batch)


# Schedule and optimizer


@given(st.integers(1, 10**6), st.integers(1, 4096), st.integers(1, 10**5))
def test_the_schedule_rises_to_its_peak_and_falls(step: int, d_model: int, warmup: int) -> None:
    rate, peak = learning_rate(step, d_model, warmup), learning_rate(warmup, d_model, warmup)
    assert 0 < rate <= peak * (1 + 1e-12)
    assert peak == pytest.approx((d_model * warmup) ** -0.5)
    rising = learning_rate(step + 1, d_model, warmup) > rate
    assert rising == (step < warmup)


def test_the_papers_schedule() -> None:
    assert learning_rate(4000, 512) == pytest.approx(6.9877e-4, rel=1e-4)
    assert learning_rate(1, 512) == pytest.approx(6.9877e-4 / 4000, rel=1e-4)
    assert learning_rate(100_000, 512) == pytest.approx(512**-0.5 * 100_000**-0.5)


@pytest.mark.parametrize("values", [(0, 512, 4000), (-1, 512, 4000), (1, 0, 4000), (1, 512, 0)])
def test_the_schedule_counts_from_one(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"from 1 .*got {min(values)}"):
        learning_rate(*values)


def test_the_optimizer_is_the_papers_and_waits_for_a_rate(model: Transformer) -> None:
    optimizer = make_optimizer(model)
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        0.0,
        (0.9, 0.98),
        1e-9,
        0,
    )
    assert len(group["params"]) == len(list(model.parameters()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    translation_loss(model, batch_of(3))[0].backward()
    optimizer.step()
    assert all(
        torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    ), "the rate is 0"


def test_a_few_steps_learn(model: Transformer) -> None:
    optimizer, batch = make_optimizer(model), batch_of(4, 6, 3)
    before = evaluate_loss(model, [batch])
    for step in range(1, 41):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, CONFIG.d_model, warmup_steps=400)
        optimizer.zero_grad()
        total, count = translation_loss(model, batch, label_smoothing=0.1)
        (total / count).backward()
        optimizer.step()
    assert evaluate_loss(model, [batch]) < 0.7 * before


# Dropout


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_dropout_drops_the_share_and_keeps_the_mean(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    dropped = Dropout(p)(torch.ones(400, 500))
    zeros = (dropped == 0).float().mean().item()
    assert abs(zeros - p) < 6 * (p * (1 - p) / 200_000) ** 0.5 + 1 / 65_536
    kept = dropped[dropped != 0]
    if kept.numel():
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=0.02, atol=0)


def test_dropout_is_independent_from_entry_to_entry() -> None:
    zeros = (Dropout(0.5)(torch.ones(1001, 999)) == 0).float().flatten()
    for distance in (1, 2, 3, 4, 5, 999):
        both = (zeros[distance:] * zeros[:-distance]).mean().item()
        assert abs(both - 0.25) < 0.003, f"neighbors {distance} apart go together: {both}"


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5, 7)])
def test_dropout_takes_every_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_dropout_obeys_the_seed_the_mode_and_the_extremes() -> None:
    ones = torch.ones(100, 100)
    torch.manual_seed(3)
    first = Dropout(0.3)(ones)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.3)(ones))
    assert not torch.equal(first, Dropout(0.3)(ones))
    assert torch.equal(Dropout(0.3).eval()(ones), ones)
    assert torch.equal(Dropout(0.0)(ones), ones)
    assert torch.equal(Dropout(1.0)(ones), torch.zeros(100, 100))


def test_the_residual_connection_drops_cheaply() -> None:
    assert type(ResidualConnection(8).dropout) is Dropout


# Attention in bfloat16


@pytest.mark.parametrize("length", [5, 128, 129])
@pytest.mark.parametrize("is_causal", [False, True])
def test_bfloat16_attention_is_near_float32(length: int, is_causal: bool) -> None:
    heads = torch.randn(3, 2, 2, length, 8)
    mask = torch.rand(2, 1, 1, length) > 0.3
    mask[0] = False  # nothing to attend to
    exact = scaled_dot_product_attention(*heads, mask, is_causal=is_causal)
    rounded = scaled_dot_product_attention(*heads.bfloat16(), mask, is_causal=is_causal)
    assert rounded.dtype == torch.bfloat16
    assert not rounded[0].any()
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "length", "fused"),
    [(torch.bfloat16, 128, False), (torch.bfloat16, 129, True), (torch.float32, 5, True)],
)
def test_only_short_bfloat16_goes_without_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int, fused: bool
) -> None:
    calls: list[int] = []
    kernel = F.scaled_dot_product_attention

    def listening(*arguments: Any, **more: Any) -> Tensor:
        calls.append(1)
        return kernel(*arguments, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", listening)
    query, key, value = torch.randn(3, 1, 2, length, 8, dtype=dtype)
    output = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert bool(calls) is fused
    expected = attention_weights(query.float(), key.float(), is_causal=True) @ value.float()
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


# Averaging


def test_average_weights_is_the_mean() -> None:
    states = [{"w": torch.full((2, 3), float(i)), "n": torch.tensor(i)} for i in (1, 2, 6)]
    mean = average_weights(states)
    assert torch.equal(mean["w"], torch.full((2, 3), 3.0))
    assert mean["n"].dtype == torch.int64
    assert torch.equal(states[0]["w"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "number_of_states .*got 0"),
        ([{"w": torch.ones(2)}, {"w": torch.ones(3)}], r"weight w .*\(2,\).*now .*\(3,\)"),
        (
            [{"w": torch.ones(2)}, {"w": torch.ones(2), "more": torch.ones(1)}],
            "weight more None, now",
        ),
    ],
)
def test_average_weights_refuses(states: list[dict[str, Tensor]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        average_weights(states)


# Files


def test_write_tensors_keeps_dtypes_scalars_and_notes(tmp_path: Path) -> None:
    shared = torch.ones(4)
    tensors = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "view": torch.arange(6.0).view(2, 3).T,
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.ones(1)),
        "shared": shared,
        "shared, too": shared,
        "part of it": shared[1:],
    }
    write_tensors(tmp_path / "x", tensors, text="ü", numbers=[1, 2.5, None])
    found, notes = read_tensors(tmp_path / "x")
    assert notes == {"text": "ü", "numbers": [1, 2.5, None]}
    assert found.keys() == tensors.keys()
    for name, x in found.items():
        assert x.dtype == tensors[name].dtype
        assert torch.equal(x, tensors[name])


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor(7)}, step=3, text="ü")
    whole = path.read_bytes()
    for place, bit in product(range(len(whole)), range(8)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged|no whole safetensors file"):
            read_tensors(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no whole safetensors file"):
            read_tensors(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        read_tensors(tmp_path / "none")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, function: str
) -> None:
    path = tmp_path / "c.safetensors"
    write_tensors(path, {"x": torch.ones(2)}, step=1)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        write_tensors(path, {"x": torch.zeros(2)}, step=2)
    tensors, notes = read_tensors(path)
    assert notes == {"step": 1}
    assert torch.equal(tensors["x"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_two_writers_at_once_always_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_tensors(path, {"x": torch.zeros(20_000)})
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_tensors(path, {"x": torch.full((20_000,), float(number))})
        except BaseException as error:
            failures.append(error)

    writers = [Thread(target=write, args=(number,)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(read_tensors(path)[0]["x"].unique()) == 1
    assert not failures
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="Windows has no such lock")
    path = tmp_path / "new" / "c.safetensors"
    lock = f"import os; from transformer_lib.checkpoint import locked; locked({str(path)!r}).__enter__()"

    def other_process() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"{lock}; os._exit(7)"]  # it ends as a killed one does
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with locked(path):
        refused = other_process()
        assert refused.returncode == 1
        assert "another training is writing to" in refused.stderr
    assert other_process().returncode == 7
    with (
        locked(path),
        pytest.raises(ValueError, match=r"writing to .*c\.safetensors"),
        locked(path),
    ):
        pass
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))]
)
def test_unwrap_finds_the_model(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Linear(2, 2)
    assert unwrap(wrap(model)) is model
    assert unwrap(model) is model


# Checkpoints


def trained(kind: type[torch.optim.Optimizer] | None = None) -> tuple[Transformer, Any]:
    """Two steps of a model, by the paper's Adam or another optimizer."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    optimizer = make_optimizer(model) if kind is None else kind(model.parameters(), lr=0.01)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(2):
        optimizer.zero_grad()
        translation_loss(model, batch_of(3, 5))[0].backward()
        optimizer.step()
    return model, optimizer


def assert_same_state(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    one, other = ours.state_dict(), theirs.state_dict()
    assert one["state"].keys() == other["state"].keys()
    for index, entries in one["state"].items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][index][name]))
    for group, again in zip(one["param_groups"], other["param_groups"], strict=True):
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} == again


def test_a_checkpoint_brings_back_everything(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained()
    save_checkpoint(path, model, optimizer, step=2, text="ü")
    expected_draw = torch.rand(3)
    other = Transformer(CONFIG)
    other_optimizer = make_optimizer(other)
    notes = load_checkpoint(path, torch.compile(other), other_optimizer)
    assert notes == {"step": 2, "text": "ü"}
    assert torch.equal(torch.rand(3), expected_draw)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert_same_state(optimizer, other_optimizer)


def test_a_model_with_tied_weights_comes_back(tmp_path: Path) -> None:
    def tied() -> Transformer:
        model = Transformer(CONFIG)
        model.output = nn.Linear(16, 11)
        model.output.weight = model.embedding.weight
        return model

    model, other = tied(), tied()
    save_checkpoint(tmp_path / "c", model, make_optimizer(model))
    load_checkpoint(tmp_path / "c", other, make_optimizer(other))
    assert torch.equal(model.embedding.weight, other.embedding.weight)
    assert isinstance(other.output, nn.Linear)
    assert other.output.weight is other.embedding.weight


class GeluFeedForward(FeedForward):
    """The same weights, another activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


def gelu(model: Transformer) -> None:
    model.encoder.layers[0].feed_forward = GeluFeedForward(16, 24)


SIZES = {"vocab_size": 11, "d_model": 16, "num_heads": 4, "d_ff": 24, "num_encoder_layers": 1}
SIZES |= {"num_decoder_layers": 1, "norm_first": True, "final_norm": True}


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 8},
        {"dropout": 0.3},
        {"attention_dropout": 0.5},
        {"norm_first": False},
        {"pad_id": 3},
        {"d_model": 32},
        {"dtype": torch.bfloat16},
        {"swap": gelu},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    model = Transformer(TransformerConfig(**SIZES))  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "c", model, make_optimizer(model))
    sizes = {k: v for k, v in change.items() if k not in ("dtype", "swap")}
    other = Transformer(TransformerConfig(**(SIZES | sizes)))  # type: ignore[arg-type]
    other.to(change.get("dtype", torch.float32))
    change.get("swap", lambda model: None)(other)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    with pytest.raises(ValueError, match="another model.*now"):
        load_checkpoint(tmp_path / "c", other, make_optimizer(other))
    for name, x in other.state_dict().items():
        assert torch.equal(x, before[name]), name


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    write_tensors(tmp_path / "c", model.state_dict(), step=2)
    with pytest.raises(ValueError, match=r"no checkpoint: it holds \['step'\]"):
        load_checkpoint(tmp_path / "c", model, optimizer)


def two_groups(model: nn.Module, first: int = 4) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": parameters[:first], "lr": 0.02, "weight_decay": 0.3},
        {"params": parameters[first:], "lr": 0.01, "betas": (0.8, 0.9)},
    ]
    return torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    ("saved", "loaded", "words"),
    [
        (torch.optim.SGD, torch.optim.Adam, "'SGD', now 'Adam'"),
        (torch.optim.Adam, torch.optim.AdamW, "'Adam', now 'AdamW'"),
        (two_groups, torch.optim.AdamW, r"groups \[4, \d+\], now \[\d+\]"),
        (two_groups, lambda p: two_groups(Transformer(CONFIG), 5), r"\[4, \d+\], now \[5, \d+\]"),
    ],
)
def test_another_optimizer_is_refused_and_nothing_changes(
    tmp_path: Path, saved: Any, loaded: Any, words: str
) -> None:
    model, _ = trained()
    optimizer = saved(model) if saved is two_groups else saved(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path / "c", model, optimizer)
    other = Transformer(CONFIG)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    with pytest.raises(ValueError, match=f"another optimizer.*{words}"):
        load_checkpoint(tmp_path / "c", other, loaded(other.parameters()))
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())


def test_several_groups_come_back_each_with_its_own_settings(tmp_path: Path) -> None:
    model, _ = trained()
    optimizer = two_groups(model)
    translation_loss(model, batch_of(3))[0].backward()
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.005
    save_checkpoint(tmp_path / "c", model, optimizer)
    other = Transformer(CONFIG)
    fresh = two_groups(other)
    load_checkpoint(tmp_path / "c", other, fresh)
    assert_same_state(optimizer, fresh)
    assert [group["lr"] for group in fresh.param_groups] == [0.02, 0.005]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: StepLR(o, 2, gamma=0.1),
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: LambdaLR(o, lambda step: 1 / (1 + step)),
    ],
    ids=["StepLR", "CosineAnnealingLR", "LambdaLR"],
)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_torchs_schedules_go_on_alike(
    tmp_path: Path,
    kind: type[torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], LRScheduler],
) -> None:
    def make() -> tuple[nn.Linear, Any, LRScheduler]:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]
        return model, optimizer, schedule(optimizer)

    def steps(count: int, model: nn.Linear, optimizer: Any, plan: LRScheduler) -> list[float]:
        rates = []
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            plan.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    model, optimizer, plan = make()
    steps(3, model, optimizer, plan)
    save_checkpoint(tmp_path / "c", model, optimizer, plan=plan.state_dict())
    other, fresh, again = make()
    again.load_state_dict(load_checkpoint(tmp_path / "c", other, fresh)["plan"])
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != 0.1
    assert steps(5, model, optimizer, plan) == steps(5, other, fresh, again)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_a_checkpoint_brings_back_the_random_numbers_of_the_graphics_card(tmp_path: Path) -> None:
    model = Transformer(CONFIG).cuda()
    save_checkpoint(tmp_path / "c", model, make_optimizer(model))
    expected = torch.rand(3, device="cuda")
    load_checkpoint(tmp_path / "c", model, make_optimizer(model))
    assert torch.equal(torch.rand(3, device="cuda"), expected)


# The exercises' checks


def shift(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    batch = make_batch([([EOS], sentence) for sentence in sentences])
    return batch.target_in, batch.target_out


def test_check_teacher_forcing() -> None:
    check_teacher_forcing(shift)
    wrong: list[tuple[Callable[[list[list[int]]], tuple[Tensor, Tensor]], str]] = [
        (lambda s: shift(s)[::-1], "swapped"),
        (lambda s: (shift(s)[0], shift(s)[0]), "say 5 6 7 <eos>"),
        (
            lambda s: (
                shift(s)[0],
                torch.tensor([[*r, *[PAD] * (max(map(len, s)) - len(r)), EOS] for r in s]),
            ),
            "<eos> comes",
        ),
        (lambda s: tuple(x[:, 1:] for x in shift(s)), "shape"),
    ]
    for attempt, words in wrong:
        with pytest.raises(AssertionError, match=words):
            check_teacher_forcing(attempt)

    def slices(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, sentences))
        rows = [[BOS, *s, EOS, *[PAD] * (longest - len(s))] for s in sentences]
        return torch.tensor(rows)[:, :-1], torch.tensor(rows)[:, 1:]

    with pytest.raises(AssertionError, match="no question is asked"):
        check_teacher_forcing(slices)


def smoothed(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    return F.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=pad_id, label_smoothing=smoothing
    )


def test_check_smoothed_loss() -> None:
    check_smoothed_loss(smoothed)

    def everywhere(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), targets, label_smoothing=smoothing)

    def counted(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        total = F.cross_entropy(
            logits.transpose(1, 2),
            targets,
            ignore_index=pad_id,
            label_smoothing=smoothing,
            reduction="sum",
        )
        return total / targets.numel()

    def summed(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        return smoothed(logits, targets, smoothing, pad_id) * (targets != pad_id).sum()

    def of_sentences(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        rows = zip(logits.split(1), targets.split(1), strict=True)
        return torch.stack(
            [smoothed(row, wanted, smoothing, pad_id) for row, wanted in rows]
        ).mean()

    def wrong_ones(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        vocab_size = logits.size(-1)
        return smoothed(logits, targets, smoothing * vocab_size / (vocab_size - 1), pad_id)

    def another_axis(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        log_probabilities = logits.log_softmax(dim=1)
        return F.nll_loss(log_probabilities.flatten(0, 1), targets.flatten(), ignore_index=pad_id)

    def too_little(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        return (1 - smoothing) * smoothed(logits, targets, 0.0, pad_id)

    def forgotten(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        return smoothed(logits, targets, 0.0, pad_id)

    for attempt, words in (
        (everywhere, "padding changed"),
        (counted, "still counts in the mean"),
        (summed, "sum over the tokens"),
        (another_axis, "softmax over the last axis"),
        (too_little, "add up to 1"),
        (of_sentences, "sentences' means"),
        (wrong_ones, "wrong tokens only"),
        (forgotten, "0.9405"),
    ):
        with pytest.raises(AssertionError, match=words):
            check_smoothed_loss(attempt)


def test_check_half_peak() -> None:
    check_half_peak(lambda warmup: (warmup // 2, 4 * warmup))
    wrong: list[tuple[Callable[[int], tuple[int, int]], str]] = [
        (lambda warmup: (warmup // 2, 2 * warmup), "ROOT"),
        (lambda warmup: (warmup // 5, 4 * warmup), "of the peak"),
        (lambda warmup: (4 * warmup, warmup // 2), "one step before the peak"),
        (lambda warmup: (0, 4 * warmup), "counted from 1"),
        (lambda warmup: [warmup // 2, 4 * warmup], "tuple of two steps, not list"),  # type: ignore
    ]
    for attempt, words in wrong:
        with pytest.raises(AssertionError, match=words):
            check_half_peak(attempt)


def test_check_clip() -> None:
    def clip(parameters: list[Tensor], max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def each(parameters: list[Tensor], max_norm: float) -> Tensor:
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        return torch.tensor(13.0)

    def always(parameters: list[Tensor], max_norm: float) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        length = torch.cat(gradients).norm()
        for gradient in gradients:
            gradient.mul_(max_norm / length)
        return length

    def by_value(parameters: list[Tensor], max_norm: float) -> Tensor:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.clamp_(-max_norm, max_norm)
        return torch.tensor(13.0)

    def nothing(parameters: list[Tensor], max_norm: float) -> Tensor:
        return torch.tensor(13.0)

    def no_gradient_forgotten(parameters: list[Tensor], max_norm: float) -> Tensor:
        assert all(parameter.grad is not None for parameter in parameters), "grad is None"
        return clip(parameters, max_norm)

    check_clip(clip)
    assert math.isclose(13.0, math.hypot(3, 4, 12))
    for attempt, words in (
        (each, "direction"),
        (always, "must stay"),
        (by_value, "direction"),
        (nothing, "nothing was clipped"),
        (no_gradient_forgotten, "grad is None"),
    ):
        with pytest.raises(AssertionError, match=words):
            check_clip(attempt)


def test_dropout_counts_its_draws_exactly() -> None:
    """Of 65,536 draws the last one keeps an entry: about 15 of a million, each as large as it must be."""
    dropout = Dropout(65_535 / 65_536).train()
    kept = dropout(torch.ones(1_000_000))
    assert set(kept.unique().tolist()) == {0.0, 65_536.0}
    assert 1 <= int((kept > 0).sum()) <= 50


def test_a_target_outside_the_vocabulary_is_named(tiny: Callable[..., Transformer]) -> None:
    model, ids = tiny(vocab_size=23), torch.tensor([[5, 6, 2]])
    with pytest.raises(ValueError, match="target id 40, but logits of 23"):
        translation_loss(model, Batch(ids, ids, torch.tensor([[6, 40, 2]])))
