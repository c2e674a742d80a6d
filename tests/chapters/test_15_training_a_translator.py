"""Chapter 15: the training loop, for every task and in several processes; endless batches; the exercises' checks."""

import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.chapters import ROOT
from transformer_lib import training
from transformer_lib.book.checks.chapter_15 import (
    check_deranged,
    check_overlap_by_length,
    check_training_step,
    check_unigram_loss,
)
from transformer_lib.checkpoint import locked, read_tensors, save_checkpoint, write_tensors
from transformer_lib.decoding import greedy_decode
from transformer_lib.layers import EncoderLayer
from transformer_lib.pairs import Batch, Example, endless_batches, make_batch, token_batches
from transformer_lib.recurrent import RecurrentConfig, RecurrentTranslator
from transformer_lib.tokenizer import EOS_ID
from transformer_lib.training import (
    Progress,
    TrainingSettings,
    evaluate_loss,
    has_bfloat16,
    learning_rate,
    make_optimizer,
    train,
    translation_loss,
)
from transformer_lib.transformer import Encoder, Transformer, TransformerConfig

EXAMPLES = [Example([3 + i, 4 + i, EOS_ID], [4 + i, 3 + i]) for i in range(6)]
BATCH = make_batch(EXAMPLES)


def fresh(seed: int = 0, **sizes: Any) -> Transformer:
    """A small model, the same numbers for the same seed."""
    torch.manual_seed(seed)
    return Transformer(
        TransformerConfig(12, 16, 2, 32, 1, 1, **({"dropout": 0.0, "max_length": 64} | sizes))
    )


def numbers(model: nn.Module) -> Tensor:
    """All parameters in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def batches(seed: int = 3) -> Iterator[Batch]:
    return endless_batches(EXAMPLES, 9, seed)


def stop_at(step: int) -> Callable[[Progress], None]:
    """A report at which the process is interrupted."""

    def on_report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_report


def told(reports: list[Progress]) -> list[str]:
    """What reports say, the time aside."""
    return [repr(replace(report, seconds=0.0)) for report in reports]


# Batches without end ----------------------------------------------------------------------------


def test_endless_batches_are_epochs_shuffled_anew() -> None:
    examples = [Example([3 + i, EOS_ID], [3 + i] * (1 + i % 3)) for i in range(9)]
    per_epoch = len(token_batches(examples, 8, seed=0))
    stream = list(islice(endless_batches(examples, 8, seed=1), 3 * per_epoch))
    epochs = [stream[start : start + per_epoch] for start in range(0, len(stream), per_epoch)]
    orders = [[row[0] for batch in epoch for row in batch.source.tolist()] for epoch in epochs]
    for order in orders:
        assert Counter(order) == Counter(range(3, 12))
    assert orders[0] != orders[1] != orders[2]
    again = islice(endless_batches(examples, 8, seed=1), 3 * per_epoch)
    assert all(torch.equal(a.source, b.source) for a, b in zip(stream, again, strict=True))


def test_endless_batches_refuse_at_once() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        endless_batches([], 8, seed=0)
    with pytest.raises(ValueError, match="needs max_tokens 3, got 2"):
        endless_batches(EXAMPLES, 2, seed=0)


# The loop ---------------------------------------------------------------------------------------


def test_training_learns_by_heart_and_translates() -> None:
    model = fresh()
    before = evaluate_loss(model, [BATCH])
    settings = TrainingSettings(200, warmup_steps=100, label_smoothing=0.0)
    train(model, repeat(BATCH), settings=settings)
    assert evaluate_loss(model, [BATCH]) < 0.1 < before
    assert not model.training
    assert greedy_decode(model, BATCH.source, 5) == [target for _, target in EXAMPLES]


def test_training_equals_the_loop_written_out() -> None:
    model, other = fresh(), fresh()
    stream = token_batches(EXAMPLES, 9, seed=0)
    settings = TrainingSettings(2, warmup_steps=7, cool_down_steps=1, label_smoothing=0.2)
    train(model, stream, settings=settings)
    adam = torch.optim.Adam(other.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
    other.train()
    for step, batch in enumerate(stream[:2], start=1):
        adam.param_groups[0]["lr"] = 16**-0.5 * step * 7**-1.5
        adam.zero_grad()
        total, count = translation_loss(other, batch, label_smoothing=0.2)
        total.backward()
        for parameter in other.parameters():  # Adam makes a whole step even of rounding
            parameter.grad.mul_(1 / count)
        adam.step()
    torch.testing.assert_close(numbers(model), numbers(other), rtol=1e-4, atol=1e-5)


def test_training_is_the_same_for_the_same_seed() -> None:
    model, again = fresh(dropout=0.2), fresh(dropout=0.2)
    for some in (model, again):
        torch.manual_seed(1)
        train(some, batches(), settings=TrainingSettings(5))
    assert torch.equal(numbers(model), numbers(again))


def test_reports() -> None:
    seen: list[Progress] = []
    settings = TrainingSettings(25, warmup_steps=5, cool_down_steps=10, report_every=10)
    reports = train(
        fresh(), repeat(BATCH), settings=settings, validation=[BATCH], on_report=seen.append
    )
    assert reports == seen
    assert [report.step for report in reports] == [10, 20, 25]
    assert reports[0].learning_rate == learning_rate(10, 16, 5) == settings.rate(10, 16)
    assert reports[-1].learning_rate == pytest.approx(learning_rate(25, 16, 5) / 10)
    assert reports[-1].validation_loss < reports[0].validation_loss
    assert reports[0].train_loss > reports[-1].train_loss
    assert [report.tokens for report in reports] == [18 * step for step in (10, 20, 25)]
    silent = train(fresh(), repeat(BATCH), settings=TrainingSettings(1))
    assert math.isnan(silent[0].validation_loss)
    assert math.isnan(silent[0].score)
    scored = train(fresh(), [BATCH], settings=TrainingSettings(1), score=lambda model: 7.5)
    assert scored[0].score == 7.5


def test_a_report_is_the_mean_of_the_steps_since_the_last() -> None:
    def run(every: int) -> list[float]:
        settings = TrainingSettings(6, warmup_steps=2, report_every=every)
        return [p.train_loss for p in train(fresh(), [BATCH] * 6, settings=settings)]

    single, pairs = run(1), run(2)
    assert pairs == pytest.approx([(single[i] + single[i + 1]) / 2 for i in (0, 2, 4)])


def test_training_takes_no_batch_too_many() -> None:
    stream = iter([BATCH] * 5)
    train(fresh(), stream, settings=TrainingSettings(2, accumulate=2))
    assert len(list(stream)) == 1


def test_small_batches_accumulate_to_a_large_one() -> None:
    pieces = [make_batch(EXAMPLES[:3]), make_batch(EXAMPLES[3:4]), make_batch(EXAMPLES[4:])]
    ends = []
    for stream, accumulate in ((pieces * 4, 3), ([BATCH] * 4, 1)):
        model = fresh()
        settings = TrainingSettings(4, accumulate=accumulate, report_every=1)
        history = train(model, stream, settings=settings, **gradient_descent(model))
        assert [report.tokens for report in history] == [18, 36, 54, 72]
        ends.append((numbers(model), [report.train_loss for report in history]))
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-6, rtol=0)
    assert ends[0][1] == pytest.approx(ends[1][1], abs=1e-5)


def gradient_descent(model: nn.Module) -> dict[str, Any]:
    """Plain steps: Adam would make a whole step of a gradient that is only rounding."""
    return {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5),
        "rate": lambda step: 0.1 / step,
    }


def test_max_norm_shortens_the_gradient() -> None:
    model = fresh()
    train(model, [BATCH], settings=TrainingSettings(1, max_norm=0.01))
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_ones_own_optimizer_and_rate() -> None:
    """Also for a model without a width, and for one whose optimizer has several groups."""
    model, rates = fresh(), []
    groups = [
        {"params": model.encoder.parameters()},
        {"params": [*model.decoder.parameters(), *model.embedding.parameters()]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0)

    def rate(step: int) -> float:
        rates.append(step)
        return 1e-3 * step

    before = numbers(model)
    reports = train(
        model, [BATCH] * 3, settings=TrainingSettings(3), optimizer=optimizer, rate=rate
    )
    assert set(rates) == {1, 2, 3}
    assert reports[-1].learning_rate == 3e-3
    assert [group["lr"] for group in optimizer.param_groups] == [3e-3, 3e-3]
    assert (numbers(model) != before).float().mean() > 0.9
    with pytest.raises(ValueError, match="give another rate="):
        train(nn.Linear(2, 2), [BATCH], settings=TrainingSettings(1))


SETTINGS = {
    "steps must be int from 1 to inf, got 0": {"steps": 0},
    "report_every must be .* got 0": {"report_every": 0},
    "save_every must be .* got 1.5": {"save_every": 1.5},
    "warmup_steps must be .* got 0": {"warmup_steps": 0},
    "accumulate must be .* got 0": {"accumulate": 0},
    "average must be .* got 0": {"average": 0},
    "patience must be .* got 0": {"patience": 0},
    "cool_down_steps must be int from 0 to 3, got 4": {"cool_down_steps": 4},
    "label_smoothing must be .* got 1.1": {"label_smoothing": 1.1},
    "max_norm must be .* got -1": {"max_norm": -1},
    "max_norm must be .* got nan": {"max_norm": math.nan},
    "bfloat16 must be bool, got 'yes'": {"bfloat16": "yes"},
}


@pytest.mark.parametrize(("message", "changes"), SETTINGS.items(), ids=str)
def test_settings_refuse(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**({"steps": 3} | changes))


def test_training_refuses() -> None:
    with pytest.raises(ValueError, match="only 4 batches for 5 steps of 1"):
        train(fresh(), [BATCH] * 4, settings=TrainingSettings(5))
    with pytest.raises(ValueError, match="only 5 batches for 3 steps of 2"):
        train(fresh(), [BATCH] * 5, settings=TrainingSettings(3, accumulate=2))
    with pytest.raises(ValueError, match="patience 2 needs validation"):
        train(fresh(), [BATCH], settings=TrainingSettings(1, patience=2))


def test_training_stops_when_the_loss_is_no_number() -> None:
    model = fresh()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 1"):
        train(model, [BATCH], settings=TrainingSettings(1))


class Overflow(torch.autograd.Function):
    """The same numbers, and a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.inf


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("steps", [6, 20])
def test_an_infinite_gradient_stops_before_the_step(
    steps: int, max_norm: float | None, tmp_path: Path
) -> None:
    """The sixth step's, whose loss is finite: the last step, or one of many; every step is saved."""
    model, calls = fresh(), []

    def hook(module: nn.Module, given: object, out: Tensor) -> Tensor:
        calls.append(0)
        return Overflow.apply(out) if len(calls) == 6 else out

    model.encoder.register_forward_hook(hook)
    path = tmp_path / "c.safetensors"
    settings = TrainingSettings(steps, warmup_steps=4, save_every=1, max_norm=max_norm)
    with pytest.raises(FloatingPointError, match="step 6, .* a gradient of length (inf|nan)"):
        train(model, batches(), settings=settings, checkpoint=path)
    tensors, saved = read_tensors(path)
    assert saved["notes"]["step"] == 5
    assert all(x.isfinite().all() for n, x in tensors.items() if n.startswith("model."))
    assert numbers(model).isfinite().all(), "nor has the model itself taken the step"
    again = fresh()
    train(again, batches(), settings=settings, checkpoint=path)
    assert numbers(again).isfinite().all()


def test_a_missing_shift_shows_in_the_translations() -> None:
    model = fresh()
    leaky = Batch(BATCH.source, BATCH.target_out, BATCH.target_out)
    settings = TrainingSettings(200, warmup_steps=100, label_smoothing=0.0)
    train(model, repeat(leaky), settings=settings)
    assert evaluate_loss(model, [leaky]) < 0.1
    right = zip(greedy_decode(model, BATCH.source, 5), EXAMPLES, strict=True)
    assert sum(row == target for row, (_, target) in right) <= 1


# Other tasks, the same loop ---------------------------------------------------------------------


class Reader(nn.Module):
    """An encoder over words, or over patches of a picture, and a map to classes at each place."""

    def __init__(self, entries: int, classes: int, is_causal: bool = False) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(entries, 16), nn.Linear(entries, 16)
        self.position = nn.Parameter(torch.randn(16, 16) / 4)
        self.encoder = Encoder([EncoderLayer(16, 2, 32, 0.0)])
        self.head, self.is_causal = nn.Linear(16, classes), is_causal

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x) if x.is_floating_point() else self.words(x)  # (batch, length, 16)
        x = self.encoder(x + self.position[: x.size(1)], is_causal=self.is_causal)
        return self.head(x)  # (batch, length, classes)


def counting(batch: int, length: int) -> Tensor:
    """Rows that count up from anywhere, modulo 8."""
    return (torch.randint(8, (batch, 1)) + torch.arange(length)) % 8


def cross_entropy(logits: Tensor, wanted: Tensor, smoothing: float) -> tuple[Tensor, int]:
    total = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
    return total, len(wanted)


def next_word(model: nn.Module, batch: Tensor, smoothing: float) -> tuple[Tensor, int]:
    logits = model(batch[:, :-1])
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), smoothing)


def missing_word(
    model: nn.Module, batch: dict[str, Tensor], smoothing: float
) -> tuple[Tensor, int]:
    logits = model(batch["words"].masked_fill(batch["hole"], 8))
    return cross_entropy(logits[batch["hole"]], batch["words"][batch["hole"]], smoothing)


def class_of(
    model: nn.Module, batch: tuple[Tensor, Tensor], smoothing: float
) -> tuple[Tensor, int]:
    return cross_entropy(model(batch[0]).mean(dim=1), batch[1], smoothing)


def holes() -> dict[str, Tensor]:
    return {"words": counting(16, 6), "hole": F.one_hot(torch.randint(6, (16,)), 6) > 0}


def sentences() -> tuple[Tensor, Tensor]:
    words = torch.randint(8, (16, 6))
    return words, (words[:, 0] > words[:, 1]).long()  # does the first word come later?


def pictures() -> tuple[Tensor, Tensor]:
    where = torch.randint(4, (16,))  # the brightest of four patches
    return torch.rand(16, 4, 5) + F.one_hot(where, 4)[..., None], where


@pytest.mark.parametrize(
    ("loss", "make", "sizes", "chance"),
    [
        (next_word, lambda: counting(16, 7), (8, 8, True), math.log(8)),
        (missing_word, holes, (9, 8), math.log(8)),
        (class_of, sentences, (8, 2), math.log(2)),
        (class_of, pictures, (5, 4), math.log(4)),
    ],
    ids=["next word", "missing word", "sentences", "pictures"],
)
def test_one_loop_for_every_task(
    loss: Any, make: Callable[[], Any], sizes: Any, chance: float, tmp_path: Path
) -> None:
    model, held_out = Reader(*sizes), [make() for _ in range(4)]
    stream = [make() for _ in range(300)]
    settings = TrainingSettings(300, label_smoothing=0.0, save_every=100)
    more: dict[str, Any] = {"rate": lambda step: 5e-3, "checkpoint": tmp_path / "c"}
    reports = train(model, stream, loss, settings=settings, validation=held_out, **more)
    assert reports[-1].validation_loss < chance / 3
    assert evaluate_loss(model, held_out, loss) == reports[-1].validation_loss
    again = train(Reader(*sizes), stream, loss, settings=settings, **more)
    assert told(again) == told(reports), "its checkpoint is finished"


def test_a_batch_in_which_nothing_is_asked_is_no_step_into_nothing() -> None:
    model, batch = Reader(9, 8), holes()
    empty = batch | {"hole": torch.zeros_like(batch["hole"])}
    settings = TrainingSettings(2, accumulate=2)
    reports = train(
        model, [empty, batch, empty, empty], missing_word, settings=settings, rate=lambda step: 0.01
    )
    assert reports[-1].tokens == 16
    assert numbers(model).isfinite().all()


@pytest.mark.parametrize("attention", [False, True])
def test_a_recurrent_translator_trains_in_bfloat16(attention: bool) -> None:
    model = RecurrentTranslator(RecurrentConfig(12, 16, attention))
    settings = TrainingSettings(3, bfloat16="auto" if has_bfloat16(torch.device("cpu")) else False)
    assert math.isfinite(train(model, batches(), settings=settings)[-1].train_loss)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = translation_loss(model, BATCH, 0.0)
    assert total.item() / count == pytest.approx(evaluate_loss(model, [BATCH]), rel=0.02)


# Devices, wrappers, processes -------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("wish", [False, True, "auto"])
def test_bfloat16_where_it_is_wished(
    there: bool, wish: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_bfloat16", lambda device: there)
    seen = set()

    def loss(model: Any, batch: Batch, smoothing: float) -> tuple[Tensor, int]:
        seen.add(torch.is_autocast_enabled("cpu"))
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        return translation_loss(model, batch, smoothing)

    settings = TrainingSettings(2, bfloat16=wish)
    if wish is True and not there:
        with pytest.warns(UserWarning, match="no instructions for bfloat16"):
            reports = train(fresh(), repeat(BATCH), loss, settings=settings)
    else:
        reports = train(fresh(), repeat(BATCH), loss, settings=settings)
    assert seen == {wish is True or (wish == "auto" and there)}
    assert math.isfinite(reports[-1].train_loss)


@dataclass
class Recorded:
    """A batch that writes down where it was moved."""

    batch: Batch
    moves: list[torch.device]

    def to(self, device: torch.device) -> Batch:
        self.moves.append(device)
        return self.batch.to(device)


def test_batches_follow_the_model() -> None:
    moves: list[torch.device] = []
    recorded = [Recorded(BATCH, moves) for _ in range(4)]
    settings = TrainingSettings(2, accumulate=2)
    train(fresh(), recorded, settings=settings, validation=recorded[:1])
    assert moves == [torch.device("cpu")] * 5, "four to learn from, one to measure on"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_training_on_a_graphics_card(bfloat16: bool, tmp_path: Path) -> None:
    """Batches on the CPU, the model on the card; interrupted, it goes on with the same bits."""
    settings = TrainingSettings(8, warmup_steps=4, report_every=1, save_every=2, bfloat16=bfloat16)
    ends = []
    for stops in ((), (5,)):
        model = fresh(dropout=0.2).cuda()
        path = tmp_path / str(len(stops))
        for step in stops:
            with pytest.raises(KeyboardInterrupt):
                train(model, batches(), settings=settings, checkpoint=path, on_report=stop_at(step))
            model = fresh(5, dropout=0.2).cuda()
        reports = train(model, batches(), settings=settings, checkpoint=path, validation=[BATCH])
        assert math.isfinite(reports[-1].validation_loss)
        ends.append(numbers(model).cpu())
    assert torch.equal(*ends)


def test_a_compiled_model_has_the_same_loss() -> None:
    torch.compiler.reset()
    found = []
    settings = TrainingSettings(6, warmup_steps=3, report_every=1)
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
        model = fresh()
        reports = train(wrap(model), batches(), settings=settings, validation=[BATCH])
        found.append([(report.train_loss, report.validation_loss) for report in reports])
        assert not model.training
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-4, rtol=0)


# Half the batch each; the second half has fewer examples, hence fewer tokens.
HALVES = [[make_batch(EXAMPLES[i % 2 : 4]), make_batch(EXAMPLES[4:])] for i in range(8)]
WHOLE = [make_batch(EXAMPLES[i % 2 :]) for i in range(8)]

RANK = """
import sys
import torch
import torch.distributed as dist
from tests.chapters.test_15_training_a_translator import HALVES, fresh, gradient_descent
from torch import nn
from transformer_lib.checkpoint import write_tensors
from transformer_lib.training import TrainingSettings, train

rank, accumulate, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
batches = [halves[rank] for halves in HALVES]
for steps in (2, 8 // accumulate):  # the second call goes on from the first one's checkpoint
    model = fresh(seed=rank)  # the wrapper gives all the weights of the first
    settings = TrainingSettings(steps, accumulate=accumulate, average=2, save_every=2, report_every=1)
    wrapped = nn.parallel.DistributedDataParallel(model)
    reports = train(wrapped, batches, settings=settings, checkpoint=f"{folder}/c", **gradient_descent(model))
losses = torch.tensor([report.train_loss for report in reports])
tokens = torch.tensor([report.tokens for report in reports])
write_tensors(f"{folder}/{rank}", dict(model.state_dict()) | {"losses": losses, "tokens": tokens})
dist.destroy_process_group()
"""


def start(script: str, *words: object) -> subprocess.Popen[str]:
    """A Python process in the project's folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", script, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback device is named lo")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(accumulate: int, tmp_path: Path) -> None:
    processes = [start(RANK, rank, accumulate, tmp_path) for rank in (0, 1)]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    ranks = [read_tensors(tmp_path / str(rank))[0] for rank in (0, 1)]
    model = fresh()
    settings = TrainingSettings(
        8 // accumulate, accumulate=accumulate, average=2, save_every=2, report_every=1
    )
    reports = train(model, WHOLE, settings=settings, **gradient_descent(model))
    for rank in ranks:
        assert rank.pop("tokens").tolist() == [report.tokens for report in reports]
        losses = torch.tensor([report.train_loss for report in reports])
        torch.testing.assert_close(rank.pop("losses"), losses, atol=1e-5, rtol=0)
        for name, x in model.state_dict().items():
            torch.testing.assert_close(rank[name], x, atol=1e-6, rtol=0)
    before = numbers(fresh())
    assert (numbers(model) - before).abs().max() > 0.01, "something has been learned at all"


# Interrupted, and gone on with ------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two batches a step": {"accumulate": 2},
    "mean of the last three saves": {"average": 3},
    "patience": {"patience": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_after_any_step_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    settings = TrainingSettings(
        9, warmup_steps=3, save_every=2, report_every=1, max_norm=1.0, **VARIANTS[variant]
    )
    more: dict[str, Any] = {"settings": settings, "validation": [BATCH]}
    whole = fresh(dropout=0.2)
    history = train(whole, batches(), **more)
    for step in range(1, 10):
        path = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt):
            train(fresh(dropout=0.2), batches(), **more, checkpoint=path, on_report=stop_at(step))
        assert path.exists() == (step > 2)
        model = fresh(
            seed=0 if step <= 2 else 7, dropout=0.2
        )  # other weights, other random numbers
        resumed = train(model, batches(), **more, checkpoint=path)
        assert torch.equal(numbers(whole), numbers(model))
        assert told(resumed) == told(history)
        again = train(fresh(7, dropout=0.2), batches(), **more, checkpoint=path)
        assert told(again) == told(history), "it is finished: there is nothing to do"


KILLED = """
import sys
from tests.chapters.test_15_training_a_translator import batches, fresh, numbers
from transformer_lib.checkpoint import write_tensors
from transformer_lib.training import TrainingSettings, train

model = fresh(dropout=0.2)
settings = TrainingSettings(200, warmup_steps=50, report_every=1, save_every=10)
train(model, batches(), settings=settings, checkpoint=sys.argv[1],
      on_report=lambda progress: print(progress.step, flush=True))
write_tensors(sys.argv[1] + ".end", {"numbers": numbers(model)})
"""


def test_a_training_that_is_killed_ends_the_same(tmp_path: Path) -> None:
    """200 steps = about 100, a real SIGKILL, and the rest: identical weights."""
    killed = start(KILLED, tmp_path / "killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) >= 107:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert 100 <= read_tensors(tmp_path / "killed")[1]["notes"]["step"] < 200
    for name in ("killed", "whole"):
        process = start(KILLED, tmp_path / name)
        process.communicate()
        assert process.returncode == 0
    ends = [read_tensors(tmp_path / f"{name}.end")[0]["numbers"] for name in ("killed", "whole")]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "then", [{"steps": 8}, {"report_every": 3}, {"save_every": 5}, {"patience": 5}], ids=str
)
def test_what_may_change_at_an_interruption(then: dict[str, int], tmp_path: Path) -> None:
    first = TrainingSettings(6, warmup_steps=3, report_every=2, save_every=2)
    last = replace(first, **then)
    ends = []
    for stops in (False, True):
        path = tmp_path / str(stops)
        if stops:
            with pytest.raises(KeyboardInterrupt):
                train(
                    fresh(dropout=0.2),
                    batches(),
                    settings=first,
                    checkpoint=path,
                    on_report=stop_at(4),
                )
        model = fresh(dropout=0.2)
        reports = train(model, batches(), settings=last, checkpoint=path, score=lambda model: 0.0)
        assert reports[-1].step == last.steps
        ends.append(numbers(model))
    if "patience" not in then:
        assert torch.equal(*ends)


def test_a_finished_training_goes_on_with_more_steps(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", TrainingSettings(4, warmup_steps=3, save_every=3)
    train(fresh(dropout=0.2), batches(), settings=settings, checkpoint=path)
    model = fresh(7, dropout=0.2)
    train(model, batches(), settings=replace(settings, steps=7), checkpoint=path)
    whole = fresh(dropout=0.2)
    train(whole, batches(), settings=replace(settings, steps=7))
    assert torch.equal(numbers(model), numbers(whole))


def test_batches_that_draw_random_numbers_leave_the_models_alone(tmp_path: Path) -> None:
    """Skipping the batches that were seen draws again; dropout goes on where it was all the same."""

    def drawing() -> Iterator[Batch]:
        while True:
            yield make_batch([Example([3 + int(torch.randint(9, ())), EOS_ID], [4])])

    settings = TrainingSettings(6, warmup_steps=2, report_every=1, save_every=1)
    ends = []
    for stops in (False, True):
        path, model = tmp_path / str(stops), fresh(dropout=0.2)
        torch.manual_seed(1)
        if stops:
            with pytest.raises(KeyboardInterrupt):
                train(model, drawing(), settings=settings, checkpoint=path, on_report=stop_at(3))
            torch.manual_seed(1)
        train(model, drawing(), settings=settings, checkpoint=path)
        ends.append(numbers(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "change",
    [{"num_heads": 8}, {"dropout": 0.3}, {"attention_dropout": 0.5}, {"norm_first": False}],
)
def test_resuming_another_model_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"norm_first": True, "final_norm": True, "num_encoder_layers": 1}
    config = TransformerConfig(12, 16, 4, 32, num_decoder_layers=1, **sizes)
    settings = TrainingSettings(2, save_every=2)
    train(Transformer(config), batches(), settings=settings, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=f"another model or .*does not fit.*{next(iter(change))}"):
        train(
            Transformer(replace(config, **change)),
            batches(),
            settings=settings,
            checkpoint=tmp_path / "c",
        )


@pytest.mark.parametrize(
    "change",
    [{"label_smoothing": 0.2}, {"warmup_steps": 9}, {"accumulate": 2}, {"max_norm": 1.0}],
    ids=str,
)
def test_resuming_with_other_settings_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    settings, path = TrainingSettings(4), tmp_path / "c"
    train(fresh(), batches(), settings=settings, checkpoint=path)
    with pytest.raises(ValueError, match=f"other settings, does not fit.*{next(iter(change))}"):
        train(fresh(), batches(), settings=replace(settings, **change), checkpoint=path)


def test_resuming_with_other_batches_is_refused(tmp_path: Path) -> None:
    """Another seed; other sources with the same targets; too few batches to skip."""
    settings, path = TrainingSettings(4), tmp_path / "c"
    train(fresh(), batches(), settings=settings, checkpoint=path)
    others = [Example([8, 9, EOS_ID], target) for _, target in EXAMPLES]
    for stream in (batches(seed=1), endless_batches(others, 9, 3), islice(batches(), 3)):
        with pytest.raises(ValueError, match="of other batches"):
            train(fresh(), stream, settings=settings, checkpoint=path)


def test_any_kind_of_batch_is_recognized(tmp_path: Path) -> None:
    """Objects, dictionaries and tuples of tensors, numbers and words: by what they hold."""

    class Picture:
        def __init__(self, pixels: Tensor, name: str) -> None:
            self.pixels, self.name = pixels, name

    def loss(model: nn.Module, batch: Any, smoothing: float) -> tuple[Tensor, int]:
        return model(torch.ones(1, 2)).sum(), 1

    def look(seed: int, name: str) -> list[Any]:
        pixels = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
        return [
            Picture(pixels, name),
            {"x": (pixels, name)},
            [torch.tensor(3), pixels.bool(), name],
        ]

    for kind in range(3):
        path = tmp_path / str(kind)

        def run(seed: int, name: str, kind: int = kind, path: Path = path) -> None:
            train(
                nn.Linear(2, 1),
                [look(seed, name)[kind]],
                loss,
                settings=TrainingSettings(1),
                rate=lambda step: 0.1,
                checkpoint=path,
            )

        run(0, "a")
        run(0, "a")
        for seed, name in ((1, "a"), (0, "b")):
            if kind < 2 or name == "b":
                with pytest.raises(ValueError, match="of other batches"):
                    run(seed, name)


def test_what_is_no_checkpoint_of_this_training_is_refused(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", TrainingSettings(4, average=2, save_every=2)
    train(fresh(), batches(), settings=settings, checkpoint=path)
    whole = path.read_bytes()

    def refused(content: bytes, message: str, model: Transformer | None = None) -> None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            train(model or fresh(), batches(), settings=settings, checkpoint=path)
        assert path.read_bytes() == content, "what was there is still there"

    refused(whole[:-1] + bytes([whole[-1] ^ 1]), "damaged")
    refused(whole[: len(whole) // 2], "no whole safetensors file")
    refused(b"", "no whole safetensors file")
    model = fresh()
    save_checkpoint(tmp_path / "other", model, make_optimizer(model), step=4)
    refused((tmp_path / "other").read_bytes(), "another loop than train")
    write_tensors(tmp_path / "weights", model.state_dict())
    refused((tmp_path / "weights").read_bytes(), "no checkpoint")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="another optimizer"):
        train(model, batches(), settings=settings, checkpoint=path, **gradient_descent(model))


def test_two_trainings_do_not_write_to_one_checkpoint(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", TrainingSettings(2)
    with locked(path), pytest.raises(ValueError, match="another training is writing"):
        train(fresh(), batches(), settings=settings, checkpoint=path)
    for _ in range(2):  # a lock ends with the training, however that ends
        with pytest.raises(KeyboardInterrupt):
            train(fresh(), batches(), settings=settings, checkpoint=path, on_report=stop_at(2))
    train(fresh(), batches(), settings=settings, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_folder_is_made_or_refused_before_the_first_step(tmp_path: Path) -> None:
    settings = TrainingSettings(2, report_every=1)
    train(fresh(), batches(), settings=settings, checkpoint=tmp_path / "runs" / "first" / "c")
    assert (tmp_path / "runs" / "first" / "c").exists()
    (tmp_path / "file").touch()
    reports: list[Progress] = []
    with pytest.raises(OSError, match="file"):
        train(
            fresh(),
            batches(),
            settings=settings,
            checkpoint=tmp_path / "file" / "c",
            on_report=reports.append,
        )
    assert reports == []


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "c", TrainingSettings(4, warmup_steps=3, save_every=2)
    whole = fresh(dropout=0.2)
    train(whole, batches(), settings=settings)
    writes = []

    def replace_once(source: str, target: Path) -> None:
        writes.append(target)
        if len(writes) == 2:
            raise OSError("no space left")
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_once)
        with pytest.raises(OSError, match="no space left"):
            train(fresh(dropout=0.2), batches(), settings=settings, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["c"], "no half file is left"
    model = fresh(7, dropout=0.2)
    train(model, batches(), settings=settings, checkpoint=path)
    assert torch.equal(numbers(model), numbers(whole))


def test_sgd_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Another optimizer's state is kept, too: here the momentum."""
    settings = TrainingSettings(6, report_every=1, save_every=2)
    ends = []
    for stops in (False, True):
        path, model = tmp_path / str(stops), fresh(dropout=0.2)
        if stops:
            with pytest.raises(KeyboardInterrupt):
                train(
                    model,
                    batches(),
                    settings=settings,
                    checkpoint=path,
                    on_report=stop_at(5),
                    **gradient_descent(model),
                )
            model = fresh(7, dropout=0.2)
        train(model, batches(), settings=settings, checkpoint=path, **gradient_descent(model))
        ends.append(numbers(model))
    assert torch.equal(*ends)


# What the model is in the end -------------------------------------------------------------------


def test_the_mean_of_the_last_three_saves(tmp_path: Path) -> None:
    model, states = fresh(), []

    def keep(progress: Progress) -> None:
        states.append(numbers(model).clone())

    settings = TrainingSettings(9, warmup_steps=3, report_every=2, save_every=2, average=3)
    train(model, batches(), settings=settings, on_report=keep, checkpoint=tmp_path / "c")
    assert len(states) == 5
    torch.testing.assert_close(numbers(model), torch.stack(states[-3:]).mean(dim=0))
    saves = sorted(file.name for file in tmp_path.iterdir() if file.name != "c")
    assert saves == [f"c.{step}.safetensors" for step in (6, 8, 9)], "older ones are gone"


@pytest.mark.parametrize("checkpoint", [False, True])
def test_patience_stops_and_goes_back_to_the_best(checkpoint: bool, tmp_path: Path) -> None:
    model, states = fresh(), []
    scores = iter([1.0, 3.0, 2.0, 2.5, 9.0])

    def score(given: nn.Module) -> float:
        assert given is model
        states.append(numbers(given).clone())
        return next(scores)

    settings = TrainingSettings(50, warmup_steps=3, report_every=2, save_every=3, patience=2)
    path = tmp_path / "c" if checkpoint else None
    reports = train(model, batches(), settings=settings, score=score, checkpoint=path)
    assert [report.score for report in reports] == [1.0, 3.0, 2.0, 2.5]
    assert torch.equal(numbers(model), states[1])
    assert not torch.equal(states[1], states[-1])


def test_patience_without_a_score_looks_at_the_held_out_loss() -> None:
    model, states, losses = fresh(), [], []

    def keep(progress: Progress) -> None:
        states.append(numbers(model).clone())
        losses.append(progress.validation_loss)

    # What is learned contradicts what is measured, so after some steps it only gets worse.
    held_out = [make_batch([Example(source, target[::-1]) for source, target in EXAMPLES])]
    settings = TrainingSettings(200, warmup_steps=20, report_every=2, patience=3)
    train(model, repeat(BATCH), settings=settings, validation=held_out, on_report=keep)
    best = losses.index(min(losses))
    assert len(losses) == best + 4 < 100
    assert torch.equal(numbers(model), states[best])


# The exercises' checks reject the likely mistakes -----------------------------------------------


def unigram(train: list[int], held_out: list[int], size: int, extra: float = 1.0) -> Tensor:
    counts = torch.bincount(torch.tensor(train, dtype=torch.long), minlength=size) + extra
    return -(counts / counts.sum()).log()[torch.tensor(held_out)].mean()


def unigram_by_counter(train: list[int], held_out: list[int], size: int) -> float:
    counts = Counter(train)
    each = [math.log(len(train) + size) - math.log(counts[token] + 1) for token in held_out]
    return sum(each) / len(each)


def in_place_counts(train: list[int], held_out: list[int], size: int) -> float:
    train += range(size)  # one more of each
    return sum(-math.log(train.count(token) / len(train)) for token in held_out) / len(held_out)


def shuffled(source: Tensor, seed: int) -> Tensor:
    return source[torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))]


def step_without(part: str) -> Callable[..., float]:
    def step(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[..., Tensor],
        rate: float,
    ) -> float:
        if part != "mode":
            model.train()
        for group in optimizer.param_groups[: 1 if part == "groups" else None]:
            group["lr"] = 0.0 if part == "rate" else 0.5 if part == "late" else rate
        if part != "clearing":
            optimizer.zero_grad()
        loss = loss_of(model)
        if part != "backward":
            loss.backward()
        if part == "order":
            optimizer.zero_grad()
        if part != "step":
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = rate
        return loss if part == "number" else loss.item()  # type: ignore[return-value]

    return step


def step_with_group_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Any, rate: float
) -> float:
    """Another right way: gradients are set to zeros, and cleared after the step, too."""
    optimizer.zero_grad(set_to_none=False)
    loss = loss_of(model.train())
    loss.backward()
    for group in optimizer.param_groups:
        group.update(lr=rate)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def deranged(source: Tensor, seed: int) -> Tensor:
    """Draw until no row is in its place."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(len(source))
    while True:
        order = torch.randperm(len(source), generator=generator)
        if not (order == places).any():
            return source[order]


def deranged_in_a_circle(source: Tensor, seed: int) -> Tensor:
    circle = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    moved = source.clone()
    moved[circle] = source[circle.roll(1)]
    return moved


def overlap_of_letters(
    translations: list[str], references: list[str], bounds: list[int]
) -> dict[int, float]:
    return by_length(lambda a, b: f_score([*"".join(a)], [*"".join(b)]))(
        translations, references, bounds
    )


def overlap_by_loops(
    translations: list[str], references: list[str], bounds: list[int]
) -> dict[int, float]:
    sums: dict[int, list[float]] = {}
    for ours, theirs in zip(translations, references, strict=True):
        left, shared = theirs.split(), 0
        for word in ours.split():
            if word in left:
                left.remove(word)
                shared += 1
        bound = [b for b in sorted(bounds) if b <= len(theirs.split())][-1]
        both = len(ours.split()) + len(theirs.split())
        sums.setdefault(bound, []).append(2 * shared / both if both else 1.0)
    return {b: sum(x) / len(x) for b, x in sorted(sums.items())}


def by_length(
    score: Callable[[list[str], list[str]], float], keep_empty: bool = False
) -> Callable[..., dict[int, float]]:
    def attempt(
        translations: list[str], references: list[str], bounds: list[int]
    ) -> dict[int, float]:
        groups: dict[int, list[float]] = {bound: [] for bound in bounds}
        for translation, reference in zip(translations, references, strict=True):
            ours, theirs = translation.split(), reference.split()
            groups[max(b for b in bounds if b <= len(theirs))].append(score(ours, theirs))
        return {b: sum(s) / max(1, len(s)) for b, s in groups.items() if s or keep_empty}

    return attempt


def f_score(ours: list[str], theirs: list[str]) -> float:
    return 2 * (Counter(ours) & Counter(theirs)).total() / max(1, len(ours) + len(theirs))


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_unigram_loss: [lambda *given: float(unigram(*given)), unigram_by_counter],
    check_deranged: [deranged, deranged_in_a_circle],
    check_overlap_by_length: [by_length(f_score), overlap_by_loops],
    check_training_step: [step_without("nothing"), step_with_group_update],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_unigram_loss: [
        (lambda train, held, size: unigram(train, held, size, extra=0.0), "add one to each"),
        (lambda train, held, size: unigram(held, held, size), "come from the held-out"),
        (lambda train, held, size: unigram(train, train, size), "over the training tokens"),
        (lambda train, held, size: unigram(train, held, size) / math.log(2), "bits"),
        (lambda train, held, size: -unigram(train, held, size), "sign"),
        (lambda train, held, size: unigram(train, held, size) * len(held), "the sum"),
        (lambda train, held, size: torch.tensor(float(size)).log(), "same probability"),
        (lambda train, held, size: unigram(train, [*train, *held], size), "is one added"),
        (lambda train, held, size: unigram(train, held, size, extra=0.5), "is one added"),
        (lambda train, held, size: unigram(train, held, max(*train, *held) + 1), "1.946"),
        (in_place_counts, "in place"),
    ],
    check_deranged: [
        (shuffled, "keep their own source"),
        (lambda source, seed: source.roll(1, dims=0), "is it random"),
        (lambda source, seed: source.roll(1, dims=1), "keep their own source"),
        (lambda source, seed: source.roll(1), "torn apart|exactly once"),
        (lambda source, seed: source[[1, 0, 1, 0, 1, 0]], "exactly once"),
        (lambda source, seed: deranged(source, random.randrange(10**6)), "the same seed"),
        (lambda source, seed: source.copy_(deranged(source, seed)), "in place"),
    ],
    check_overlap_by_length: [
        (by_length(f_score, keep_empty=True), "left out"),
        (by_length(lambda a, b: len(set(a) & set(b)) / len(b)), "a repeated word"),
        (overlap_of_letters, "not letters"),
        (by_length(lambda a, b: 2 * sum(x in b for x in a) / (len(a) + len(b))), "a repeated word"),
        (
            by_length(lambda a, b: (Counter(a) & Counter(b)).total() / len(b)),
            "a repeated word|both",
        ),
        (lambda t, r, b: [*by_length(f_score)(t, r, b).values()], "a dictionary"),
        (lambda t, r, b: by_length(f_score)(t, r, [x - 1 for x in b]), "from bound to mean"),
        (lambda t, r, b: by_length(f_score)(t, t, b), "overlap of 0"),
    ],
    check_training_step: [
        (step_without("mode"), "training mode"),
        (step_without("groups"), "parameter group"),
        (step_without("rate"), "both groups' rate"),
        (step_without("late"), "the old one, 0.5"),
        (step_without("clearing"), "clear the old one"),
        (step_without("backward"), "backward is missing|is backward missing"),
        (step_without("order"), "cleared between backward and step"),
        (step_without("step"), "called 0 times"),
        (step_without("number"), "Python number"),
    ],
}
