"""Chapter 14: the loss, schedule, evaluation, averaging, checkpoints, and the exercises."""

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
from transformer_lib.layers import FeedForward
from transformer_lib.pairs import Batch, make_batch
from transformer_lib.training import (
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


def test_no_logits_are_made_for_padding(model: Transformer) -> None:
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

Ids = list[list[int]]


def shift(sentences: Ids) -> tuple[Tensor, Tensor]:
    batch = make_batch([([EOS], sentence) for sentence in sentences])
    return batch.target_in, batch.target_out


def shift_by_hand(sentences: Ids) -> tuple[Tensor, Tensor]:
    size = (len(sentences), max(map(len, sentences)) + 1)
    given, wanted = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    given[:, 0] = BOS
    for row, words in enumerate(sentences):
        given[row, 1 : len(words) + 1] = torch.tensor(words, dtype=torch.long)
        wanted[row, : len(words)] = torch.tensor(words, dtype=torch.long)
        wanted[row, len(words)] = EOS
    return given, wanted


def filled(rows: Ids, left: bool = False) -> Tensor:
    longest = max(map(len, rows))
    pads = [[PAD] * (longest - len(row)) for row in rows]
    return torch.tensor([p + r if left else r + p for r, p in zip(rows, pads, strict=True)])


def eos_at_the_end(sentences: Ids) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sentences))
    rows = [[*s, *[PAD] * (longest - len(s)), EOS] for s in sentences]
    return shift(sentences)[0], torch.tensor(rows)


def slices(sentences: Ids) -> tuple[Tensor, Tensor]:
    rows = filled([[BOS, *s, EOS] for s in sentences])
    return rows[:, :-1], rows[:, 1:]


def padded_left(sentences: Ids) -> tuple[Tensor, Tensor]:
    return filled([[BOS, *s] for s in sentences], True), filled(
        [[*s, EOS] for s in sentences], True
    )


def sorts(sentences: Ids) -> tuple[Tensor, Tensor]:
    sentences.sort(key=len, reverse=True)
    return shift(sentences)


def appends(sentences: Ids) -> tuple[Tensor, Tensor]:
    given = filled([[BOS, *s] for s in sentences])
    for sentence in sentences:
        sentence.append(EOS)
    return given, filled(sentences)


def without_bos(sentences: Ids) -> tuple[Tensor, Tensor]:
    rows = filled([[*s, EOS] for s in sentences])
    return F.pad(rows[:, :-1], (0, 1)), rows


def smoothed_loss(
    *,
    axis: int = -1,
    spread: str = "all",
    padding: str = "out",
    pad: int | None = None,
    mean: str = "tokens",
    sign: float = -1.0,
    log: bool = True,
    swapped: bool = False,
    in_place: bool = False,
) -> Callable[[Tensor, Tensor, float, int], Tensor]:
    """A loss with one thing wrong, or nothing."""

    def attempt(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        log_p = logits.log_softmax(dim=axis) if log else logits.softmax(dim=axis)
        if in_place:
            logits.copy_(log_p)
        own = sign * log_p.gather(-1, targets[..., None])[..., 0]
        every = sign * log_p.sum(dim=-1)
        size = logits.size(-1)
        if spread == "wrong":
            every = (every - own) / (size - 1)
        elif spread == "all":
            every = every / size
        elif spread == "none":
            every = own
        elif spread == "missing":
            every = torch.zeros_like(own)
        share = 1 - smoothing if swapped else smoothing
        each = (1 - share) * own + share * every
        real = targets != (pad_id if pad is None else pad)
        if padding == "in":
            return each.mean()
        if padding == "counted":
            return (each * real).mean()
        if mean == "sum":
            return each[real].sum()
        if mean == "sentences":
            return ((each * real).sum(dim=1) / real.sum(dim=1)).mean()
        if mean == "one number":
            return each[real].mean()[None]
        return each[real].mean()

    return attempt


def by_torch(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    rows = logits.transpose(1, 2)
    return F.cross_entropy(rows, targets, ignore_index=pad_id, label_smoothing=smoothing)


def by_nll(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    log_p = logits.log_softmax(dim=-1)
    right = F.nll_loss(log_p.transpose(1, 2), targets, ignore_index=pad_id)
    return (1 - smoothing) * right - smoothing * log_p[targets != pad_id].mean()


def dense(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    size = logits.size(-1)
    q = F.one_hot(targets, size) * (1 - smoothing) + smoothing / size
    each = -(q * logits.log_softmax(dim=-1)).sum(dim=-1)
    real = (targets != pad_id).float()
    return (each * real).sum() / real.sum()


def searched(warmup: int) -> tuple[int, int]:
    """By trying steps, doubling and halving."""

    def rate(step: int) -> float:
        return min(step**-0.5, step * warmup**-1.5)

    def first(low: int, high: int, there: Callable[[int], bool]) -> int:
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if there(middle) else (middle + 1, high)
        return low

    half = rate(warmup) / 2
    up = first(1, warmup, lambda step: rate(step) >= half * (1 - 1e-12))
    return up, first(warmup, 100 * warmup, lambda step: rate(step) <= half * (1 + 1e-12))


def clipping(
    *,
    short: bool = True,
    each: bool = False,
    power: float = 2.0,
    after: bool = False,
    weights: bool = False,
    skip: bool = True,
    squared: bool = False,
) -> Callable[[list[Tensor], float], Tensor]:
    """Clipping with one thing wrong, or nothing."""

    def attempt(parameters: list[Tensor], max_norm: float) -> Tensor:
        grads = [p.grad for p in parameters if p.grad is not None or not skip]
        if not grads:
            return torch.tensor(0.0)
        lengths = torch.stack([g.norm(power) for g in grads])
        length = lengths.square().sum() if squared else lengths.norm(power)
        for grad, own in zip(grads, lengths, strict=True):
            size = own if each else length
            if not short or size > max_norm:
                grad.mul_(max_norm / size)
        if weights:
            with torch.no_grad():
                for p in parameters:
                    p.add_(1.0)
        return length.clamp(max=max_norm) if after else length

    return attempt


def by_value(parameters: list[Tensor], max_norm: float) -> Tensor:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.clamp_(-max_norm, max_norm)
    return torch.tensor(13.0)


def not_in_place(parameters: list[Tensor], max_norm: float) -> Tensor:
    grads = [p.grad for p in parameters if p.grad is not None]
    length = torch.cat([g.flatten() for g in grads]).norm()
    grads = [g * max_norm / length for g in grads]
    return length


def as_one_vector(parameters: list[Tensor], max_norm: float) -> Tensor:
    grads = [p.grad.flatten() for p in parameters if p.grad is not None]
    length = torch.cat([torch.zeros(1), *grads]).norm()
    for p in parameters:
        if p.grad is not None:
            p.grad = p.grad * min(1.0, max_norm / float(length))
    return length


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_teacher_forcing: [shift, shift_by_hand, lambda s: list(shift(s))],
    check_smoothed_loss: [smoothed_loss(), dense],
    check_half_peak: [lambda w: (w // 2, 4 * w), lambda w: [w / 2, 4.0 * w], searched],
    check_clip: [clipping(), as_one_vector],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_teacher_forcing: [
        (lambda s: shift(s)[::-1], "swapped"),
        (lambda s: (shift(s)[0], shift(s)[0]), "shifted by one"),
        (lambda s: (shift(s)[1], shift(s)[1]), "shifted by one"),
        (eos_at_the_end, "comes right after"),
        (slices, "target_in has an <eos>"),
        (padded_left, "on the left"),
        (sorts, "in place"),
        (appends, "in place"),
        (without_bos, "reads <bos> first"),
        (lambda s: tuple(x[:, 1:] for x in shift(s)), "should have shape"),
        (lambda s: tuple(x[:, :-1] for x in shift(s)), "should have shape"),
        (lambda s: shift([s[0]] * len(s)), "should have shape|other words|says <eos>|should say"),
        (lambda s: tuple(x.flip(0) for x in shift(s)), "order of the sentences|comes right|yours"),
        (lambda s: tuple(x.float() for x in shift(s)), "int64"),
        (lambda s: tuple(x.tolist() for x in shift(s)), "should be a tensor"),
        (lambda s: shift(s)[0], "two tensors"),
        (lambda s: shift([[x + (x == 6) for x in row] for row in s]), "other words"),
        (lambda s: None, "returned None"),
        (lambda s: torch.tensor(s), "two tensors|raised ValueError"),
    ],
    check_smoothed_loss: [
        (smoothed_loss(mean="sum"), "sum over the tokens"),
        (smoothed_loss(sign=1.0), "MINUS"),
        (smoothed_loss(log=False), "logarithm"),
        (smoothed_loss(axis=1), "last axis"),
        (smoothed_loss(spread="wrong"), "wrong tokens only"),
        (smoothed_loss(spread="none"), "no difference"),
        (smoothed_loss(spread="missing"), "add up to 1"),
        (smoothed_loss(spread="sum"), "add up to 1"),
        (smoothed_loss(swapped=True), "swapped"),
        (smoothed_loss(padding="in"), "padding changed"),
        (smoothed_loss(padding="counted"), "still counts"),
        (smoothed_loss(pad=0), "padding id is an argument"),
        (smoothed_loss(mean="sentences"), "sentences' means"),
        (smoothed_loss(mean="one number"), r"should have shape \(\)"),
        (smoothed_loss(in_place=True), "in place"),
        (by_torch, "cross_entropy"),
        (by_nll, "nll_loss"),
        (lambda *arguments: None, "returned None|should be a tensor"),
    ],
    check_half_peak: [
        (lambda w: (w // 2, 2 * w), "ROOT"),
        (lambda w: (w // 2, int(w * 2**0.5)), "ROOT"),
        (lambda w: (w // 4, 4 * w), "straight line"),
        (lambda w: (4 * w, w // 2), "comes first"),
        (lambda w: (0, 4 * w), "counted from 1"),
        (lambda w: (2000, 16000), "with a warm-up of 10"),
        (lambda w: (w // 2, w // 2 + 1), "one after it"),
        (lambda w: w // 2, "two steps"),
        (lambda w: (w // 2, 4 * w, w), "two steps"),
        (lambda w: None, "returned None"),
    ],
    check_clip: [
        (clipping(short=False), "short enough must stay"),
        (clipping(each=True), "direction"),
        (clipping(power=1.0), "sum of ALL squares"),
        (clipping(power=math.inf), "sum of ALL squares"),
        (clipping(squared=True), "sum of ALL squares"),
        (clipping(after=True), "return that before"),
        (clipping(weights=True), "changed a parameter"),
        (clipping(skip=False), "raised AttributeError"),
        (by_value, "direction"),
        (not_in_place, "nothing was clipped"),
        (lambda parameters, most: torch.tensor(13.0), "nothing was clipped"),
        (lambda p, most: torch.nn.utils.clip_grad_norm_(p, most), "clip_grad_norm_"),
        (lambda p, most: (clipping()(p, most), None)[1], "returned None"),
    ],
}
