"""Losses, learning-rate schedule, and one training loop for every task.

Written from chapters 14, 15, 22, 23, 25 of the book: edit the chapter, then `make sync`.
"""

import math
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from transformer_lib.checkpoint import (
    average_weights,
    load_checkpoint,
    locked,
    read_tensors,
    save_checkpoint,
    unwrap,
    write_tensors,
)
from transformer_lib.door import check_numbers, check_same
from transformer_lib.transformer import evaluating

__all__ = [
    "Loss",
    "Progress",
    "TrainingSettings",
    "backward",
    "broadcast",
    "cross_entropy_sum",
    "evaluate_loss",
    "has_bfloat16",
    "learning_rate",
    "make_optimizer",
    "mask_tokens",
    "masked_token_loss",
    "next_token_loss",
    "over_ranks",
    "to_device",
    "train",
    "translation_loss",
]


def cross_entropy_sum(
    model: nn.Module, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of model.project(hidden) in nats, summed over the tokens, 512 at a time.

    (tokens, d_model) and the right ids (tokens,) -> (). label_smoothing is the share (ValueError
    if it is none) of the probability that is spread evenly over the vocabulary.
    """
    check_numbers(float, 0, 1, label_smoothing=label_smoothing)
    trained = [p for p in model.parameters() if p.requires_grad and torch.is_grad_enabled()]
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        model.project, hidden, targets, label_smoothing, *trained
    )
    return total


def translation_loss(
    model: nn.Module, batch: Any, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Cross-entropy of the next token in nats, and of how many real tokens it is the sum.

    Logits are made for real tokens only, never for padding (paper, sections 3.1 and 5.4).

    Args:
        model: a Transformer, or another model whose forward takes (source, target, loss).
        batch: source (batch, source), target_in and target_out (batch, target), pad_id.
        label_smoothing: as in cross_entropy_sum.

    Raises:
        ValueError: if model and batch have different padding ids.
    """
    real = batch.target_out != batch.pad_id  # (batch, target)

    def loss(inner: Any, hidden: Tensor) -> Tensor:
        check_same("the batch", {"pad_id": batch.pad_id}, {"pad_id": inner.config.pad_id})
        wanted = batch.target_out[real]  # (real tokens,)
        total: Tensor = cross_entropy_sum(inner, hidden[real], wanted, label_smoothing)
        return total

    return model(batch.source, batch.target_in, loss), int(real.sum())


#: Of a model, a batch and the label smoothing: the sum of what is to become small, and of how many.
Loss = Callable[[nn.Module, Any, float], tuple[Tensor, int]]


def make_optimizer(model: nn.Module) -> torch.optim.Adam:
    """Adam with the paper's settings: beta_1 0.9, beta_2 0.98, epsilon 1e-9 (section 5.3).

    Its learning rate starts at 0, so nothing moves until the schedule sets one, before each step:
    `for group in optimizer.param_groups: group["lr"] = learning_rate(step, d_model)`.
    Move the model to its device first.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=fused)


def learning_rate(step: int, d_model: int, warmup_steps: int = 4000) -> float:
    """d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5) (paper, section 5.3, equation 3).

    Steps count from 1; the peak, (d_model * warmup_steps)^-0.5, is at step warmup_steps.

    Raises:
        ValueError: if one of the three is below 1.
    """
    check_numbers(int, 1, step=step, d_model=d_model, warmup_steps=warmup_steps)
    return float(d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5))


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch on a device: what has a method `to`, or a tuple, list or dictionary of such things."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [to_device(part, device) for part in batch]
    return batch


@torch.no_grad()
def evaluate_loss(model: nn.Module, batches: Iterable[Any], loss: Loss = translation_loss) -> float:
    """The loss without label smoothing and without dropout: nats a token, or whatever is counted.

    Every token counts alike, whichever batch it stands in; e to this power is the perplexity.
    Afterwards each part of the model is in the mode, train or eval, that it was in.

    Raises:
        ValueError: if there is no batch.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model):
        for batch in batches:
            surprise, tokens = loss(model, to_device(batch, device), 0.0)
            total += surprise.item()
            count += tokens
    if count == 0:
        raise ValueError("there is no batch to evaluate on")
    return total / count


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the same for the loop, the command line and the experiments.

    Args:
        steps: how many steps to take in all, those before an interruption counted.
        warmup_steps: where the paper's learning rate peaks.
        cool_down_steps: over this many last steps the rate also falls in a line to nearly 0.
        label_smoothing: share of the target spread over everything else.
        accumulate: how many batches make a step; their tokens count as those of one batch.
        max_norm: a longer gradient is shortened to this length; None leaves it alone.
        bfloat16: matrix products in bfloat16; "auto": where the device has instructions for it.
        report_every, save_every: steps from one to the next; the last step reports and saves, too.
        average: how many of the last saves make the model in the end (paper, section 6.1: 5).
        patience: stop when this many reports in a row were no better than the best, and go back to
            the weights of the best; None never stops.

    Raises:
        ValueError: if a value is out of range.
    """

    steps: int
    warmup_steps: int = 4000
    cool_down_steps: int = 0
    label_smoothing: float = 0.1
    accumulate: int = 1
    max_norm: float | None = None
    bfloat16: bool | str = False
    report_every: int = 100
    save_every: int = 500
    average: int = 1
    patience: int | None = None

    def rate(self, step: int, d_model: int) -> float:
        """The paper's learning rate of a step, with the cool-down at the end."""
        rate = learning_rate(step, d_model, self.warmup_steps)
        left = self.steps + 1 - step
        return rate * min(1.0, left / self.cool_down_steps) if self.cool_down_steps else rate

    def __post_init__(self) -> None:
        counts = ("steps", "warmup_steps", "accumulate", "report_every", "save_every", "average")
        check_numbers(int, 1, **{name: getattr(self, name) for name in counts})
        check_numbers(int, 1, patience=1 if self.patience is None else self.patience)
        check_numbers(int, 0, self.steps, cool_down_steps=self.cool_down_steps)
        check_numbers(float, 0, 1, label_smoothing=self.label_smoothing)
        check_numbers(float, 1e-30, max_norm=1.0 if self.max_norm is None else self.max_norm)
        check_numbers(bool, bfloat16=self.bfloat16 == "auto" or self.bfloat16)


def backward(
    model: nn.Module, batches: Sequence[Any], loss: Loss, label_smoothing: float, bfloat16: bool
) -> tuple[float, int]:
    """Leave the gradient of some batches, as if they were one; mean loss and number of tokens.

    Batches that other processes read at the same time count, too: each token counts alike.
    """
    total, count = 0.0, 0
    for batch in batches:
        kind = next(model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            surprise, tokens = loss(model, batch, label_smoothing)
        surprise.backward()  # adds to the gradients that are there
        total, count = total + surprise.item(), count + tokens
    total, everywhere, ranks = over_ranks(total, count, 1)
    for parameter in model.parameters():
        if parameter.grad is not None:  # DistributedDataParallel leaves the mean over the ranks
            parameter.grad.mul_(ranks / max(everywhere, 1))
    return total / max(everywhere, 1), int(everywhere)


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    step: the number of steps taken.
    learning_rate: that of the last step.
    train_loss: with label smoothing, averaged over the steps since the last report; nats a token.
    validation_loss: on held-out batches, without smoothing and dropout; NaN without such batches.
    score: what the function `score` said, higher is better; NaN without one.
    tokens: how many of them, padding aside, training has learned from.
    seconds: the time that training has taken, interruptions aside.
    """

    step: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    score: float
    tokens: int
    seconds: float


def over_ranks(*numbers: float) -> list[float]:
    """Add up numbers over all processes that train together; as they are where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return list(total.tolist())


def broadcast(model: nn.Module) -> None:
    """Give all processes that train together the weights of the first."""
    if dist.is_available() and dist.is_initialized():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; without them they are slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type != "cpu" or bool(supported())


def _use_bfloat16(wish: bool | str, device: torch.device) -> bool:
    """What the setting means on a device; a warning where it costs time."""
    there = has_bfloat16(device)
    if wish is True and not there:
        warnings.warn("this processor has no instructions for bfloat16: slower", stacklevel=3)
    return there if wish == "auto" else bool(wish)


def _paper_rate(model: nn.Module, settings: TrainingSettings) -> Callable[[int], float]:
    """The paper's learning rate of each step, for a model of this width."""
    width = getattr(getattr(model, "config", None), "d_model", None)
    if width is None:
        raise ValueError("the paper's rate needs model.config.d_model; give another rate=")
    return lambda step: settings.rate(step, width)


def _fingerprint(batch: Any) -> int:
    """Sum up all that a batch holds in 32 bits."""
    if isinstance(batch, Tensor):
        return zlib.crc32(batch.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    parts = getattr(batch, "__dict__", batch)  # those of an object, or of a list or a dictionary
    parts = list(parts.items()) if isinstance(parts, dict) else parts
    if isinstance(parts, Iterable) and not isinstance(parts, str | bytes):
        parts = [_fingerprint(part) for part in parts]
    return zlib.crc32(repr(parts).encode())


class _Run(ExitStack):
    """What training remembers from step to step, and finds again after an interruption.

    Beside the checkpoint stand the weights of the last saves, to be averaged, and of the best report.
    """

    KEPT = ("step", "tokens", "losses", "kept", "best_value", "since_best", "last_batch")
    FREE = ("steps", "report_every", "save_every", "patience")  # may change at an interruption

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
        checkpoint: str | Path | None,
    ) -> None:
        super().__init__()
        self.model, self.optimizer, self.settings = unwrap(model), optimizer, settings
        self.device = next(model.parameters()).device
        self.step, self.tokens, self.last_batch = 0, 0, 0
        self.losses: list[float] = []  # of the steps since the last report
        self.reports: list[Progress] = []
        self.kept: list[int] = []  # the steps of the last saves
        self.best_value, self.since_best = -math.inf, 0
        self.start = time.perf_counter()
        self.first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        self.resumable = checkpoint is not None
        if checkpoint is None:
            self.path = Path(self.enter_context(TemporaryDirectory()), "checkpoint")
        else:
            self.path = Path(checkpoint)
            if self.first:  # of several processes one writes
                self.enter_context(locked(self.path))

    def beside(self, name: str | int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{name}.safetensors")

    def due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def done(self) -> bool:
        patience = self.settings.patience
        impatient = patience is not None and self.since_best >= patience
        return impatient or self.step >= self.settings.steps

    def take(self, stream: Iterator[Any]) -> list[Any]:
        """The batches of the next step."""
        pieces = list(islice(stream, self.settings.accumulate))
        if len(pieces) < self.settings.accumulate:
            there = self.step * self.settings.accumulate + len(pieces)
            wanted = f"{self.settings.steps} steps of {self.settings.accumulate}"
            raise ValueError(f"there are only {there} batches for {wanted}")
        self.step, self.last_batch = self.step + 1, _fingerprint(pieces[-1])
        return [to_device(piece, self.device) for piece in pieces]

    def count(self, mean: float, tokens: int) -> None:
        self.losses.append(mean)
        self.tokens += tokens

    def report(self, rate: float, validation_loss: float, score: float) -> Progress:
        mean, seconds = sum(self.losses) / len(self.losses), time.perf_counter() - self.start
        self.losses.clear()
        self.reports.append(
            Progress(self.step, rate, mean, validation_loss, score, self.tokens, seconds)
        )
        value = -validation_loss if math.isnan(score) else score
        self.since_best += 1
        if self.settings.patience is not None and value > self.best_value:
            self.best_value, self.since_best = value, 0
            if self.first:
                write_tensors(self.beside("best"), self.model.state_dict(), step=self.step)
        return self.reports[-1]

    def save(self) -> None:
        if not self.first:
            return
        if self.settings.average > 1:
            write_tensors(self.beside(self.step), self.model.state_dict(), step=self.step)
            self.kept.append(self.step)
        old, self.kept = self.kept[: -self.settings.average], self.kept[-self.settings.average :]
        if self.resumable:
            notes = {key: getattr(self, key) for key in self.KEPT}
            notes["reports"] = [asdict(report) for report in self.reports]
            notes["elapsed"] = time.perf_counter() - self.start
            settings = asdict(self.settings)
            save_checkpoint(self.path, self.model, self.optimizer, settings=settings, **notes)
        for step in old:
            self.beside(step).unlink(missing_ok=True)

    def resume(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Go on from the checkpoint, if there is one; the batches that it has not seen."""
        stream = iter(batches)
        if not self.resumable or not self.path.exists():
            return stream
        notes = load_checkpoint(self.path, self.model, self.optimizer)
        if "settings" not in notes:
            raise ValueError(f"{self.path} is a checkpoint, but of another loop than train")
        free = dict.fromkeys(self.FREE)
        was, now = notes["settings"] | free, asdict(self.settings) | free
        check_same(f"{self.path}, of other settings,", was, now)
        for key in self.KEPT:
            setattr(self, key, notes[key])
        self.reports = [Progress(**report) for report in notes["reports"]]
        self.start -= notes["elapsed"]
        random_state = torch.get_rng_state()  # in case making batches draws from it
        skipped = deque(islice(stream, self.step * self.settings.accumulate), maxlen=1)
        torch.set_rng_state(random_state)
        if self.first:  # another process has read others
            last = {"last": [_fingerprint(batch) for batch in skipped]}
            check_same(f"{self.path}, of other batches,", {"last": [self.last_batch]}, last)
        return stream

    def finish(self) -> None:
        """Give the model the weights of the best report, or the average of the last saves."""
        if self.first and self.settings.patience is not None and self.best_value > -math.inf:
            self.model.load_state_dict(read_tensors(self.beside("best"))[0])
        elif self.first and len(self.kept) > 1:
            states = [read_tensors(self.beside(step))[0] for step in self.kept]
            self.model.load_state_dict(average_weights(states))
        broadcast(self.model)


def train(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = translation_loss,
    *,
    settings: TrainingSettings,
    optimizer: torch.optim.Optimizer | None = None,
    rate: Callable[[int], float] | None = None,
    validation: Sequence[Any] = (),
    score: Callable[[nn.Module], float] | None = None,
    on_report: Callable[[Progress], None] = lambda progress: None,
    checkpoint: str | Path | None = None,
) -> list[Progress]:
    """Train a model in place, where it is, and leave it in eval mode; its reports (paper, section 5).

    Args:
        batches: at least steps * accumulate of them; they are moved to the model's device.
        loss: of a model, a batch and the label smoothing: the sum that is to become small, and how
            many tokens (pictures, sentences) it is the sum of.
        optimizer, rate: the paper's if None; rate gives the learning rate of a step, from 1 on.
        validation: held-out batches to measure the loss on.
        score: measures the model at each report, by its BLEU, for instance; higher is better.
        checkpoint: a file to save to. If it is there, training goes on from it, given the same
            batches from the beginning: those that it has seen are skipped. `steps`, `report_every`,
            `save_every` and `patience` may be others than before.

    Raises:
        ValueError: if there are too few batches, or the checkpoint is damaged, in use, or of another
            model, other settings or other batches.
        FloatingPointError: if the loss or the gradient becomes infinite or NaN.
        OSError: if a checkpoint cannot be written; the last one is still there.
    """
    if settings.patience is not None and not validation and score is None:
        raise ValueError(f"patience {settings.patience} needs validation batches or a score")
    optimizer = make_optimizer(unwrap(model)) if optimizer is None else optimizer
    rate = _paper_rate(unwrap(model), settings) if rate is None else rate
    bfloat16 = _use_bfloat16(settings.bfloat16, next(model.parameters()).device)
    with _Run(model, optimizer, settings, checkpoint) as run:
        stream = run.resume(batches)
        model.train()
        while not run.done():
            pieces = run.take(stream)  # the batches of the next step
            for group in optimizer.param_groups:
                group["lr"] = rate(run.step)
            optimizer.zero_grad()
            mean, tokens = backward(model, pieces, loss, settings.label_smoothing, bfloat16)
            length = nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm or math.inf)
            if not math.isfinite(mean + length.item()):
                text = f"step {run.step}, at rate {rate(run.step):.2g}, has a loss of {mean:.3g}"
                raise FloatingPointError(f"{text} and a gradient of length {length.item():.3g}")
            optimizer.step()
            run.count(mean, tokens)
            if run.due(settings.report_every):
                held_out = evaluate_loss(model, validation, loss) if validation else math.nan
                points = math.nan if score is None else score(unwrap(model))
                on_report(run.report(rate(run.step), held_out, points))
            if run.due(settings.save_every):
                run.save()
        run.finish()
    model.eval()
    return run.reports


def next_token_loss(
    model: nn.Module, batch: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Cross-entropy of each next token in nats, and of how many tokens it is the sum.

    A batch is ids (batch, length + 1): all but the last are read, all but the first are wanted,
    padding aside.
    """
    wanted = batch[:, 1:]  # (batch, length)
    inner: Any = unwrap(model)
    real = wanted != inner.config.pad_id  # (batch, length)

    def loss(model: nn.Module, hidden: Tensor) -> Tensor:
        return cross_entropy_sum(model, hidden[real], wanted[real], label_smoothing)

    return model(batch[:, :-1], loss), int(real.sum())


def mask_tokens(
    tokens: Tensor,
    mask_id: int,
    share: float = 0.15,
    parts: tuple[float, float] = (0.8, 0.1),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose a share of the tokens, (batch, length): what is shown, and what is wanted there.

    Of the chosen, parts[0] become [MASK], parts[1] some other token, and the rest stay as they are
    (Devlin et al., 2018, section 3.1). Wanted is -100 elsewhere. Ids below 3 are never chosen.
    """
    check_numbers(float, 0, 1, share=share, shown_as_mask_or_other=sum(parts))
    fate, chance = torch.rand((2, *tokens.shape), generator=generator)  # (batch, length) each
    chosen = (chance < share) & (tokens >= 3)
    others = torch.randint(3, mask_id, tokens.shape, generator=generator)
    shown = tokens.masked_fill(chosen & (fate < parts[0]), mask_id)
    is_other = chosen & (fate >= parts[0]) & (fate < sum(parts))
    return torch.where(is_other, others, shown), tokens.masked_fill(~chosen, -100)


def masked_token_loss(
    model: nn.Module, batch: Any, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Cross-entropy of the chosen tokens in nats, and how many they are.

    A batch is what mask_tokens returns: shown and wanted, ids (batch, length), -100 if not chosen.
    """
    shown, wanted = batch
    chosen = wanted != -100  # (batch, length)

    def loss(model: nn.Module, hidden: Tensor) -> Tensor:
        return cross_entropy_sum(model, hidden[chosen], wanted[chosen], label_smoothing)

    return model(shown, loss), int(chosen.sum())


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of project(hidden), of which 512 rows exist at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        project: Callable[[Tensor], Tensor],
        hidden: Tensor,
        targets: Tensor,
        label_smoothing: float,
        *parameters: Tensor,
    ) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)  # for logarithms and sums
        total = hidden.new_zeros((), dtype=exact)
        grads: list[Any] = [torch.zeros_like(hidden), *(None for _ in parameters)]
        for start in range(0, len(targets), 512):
            piece = hidden[start : start + 512].detach().requires_grad_()  # (512, d_model)
            wanted = targets[start : start + 512, None]  # (512, 1)
            with torch.enable_grad():
                # A view, since torch's FlopCounterMode follows no leaf into a module
                logits = project(piece.view_as(piece)).to(exact)  # (512, vocab_size)
            if start == 0:  # all at once: on a graphics card each look waits for what is under way
                least, most, size = int(targets.min()), int(targets.max()), logits.size(-1)
                if least < 0 or most >= size:
                    raise ValueError(f"target ids {least} to {most}, but logits of {size} tokens")
            log_p = logits.detach().log_softmax(dim=-1)
            total -= (1 - label_smoothing) * log_p.gather(1, wanted).sum()
            if label_smoothing:
                total -= label_smoothing / size * log_p.sum()
            if not any(ctx.needs_input_grad):  # evaluation
                continue
            error = log_p.exp_().sub_(label_smoothing / size)  # equation 25.2, in place
            error.scatter_(1, wanted, label_smoothing - 1, reduce="add")
            found = torch.autograd.grad(logits, (piece, *parameters), error, allow_unused=True)
            grads[0][start : start + 512] = found[0]
            for i, grad in enumerate(found[1:], start=1):
                if grad is not None:  # autograd may give one tensor to two parameters: copy it
                    grads[i] = grad.clone() if grads[i] is None else grads[i].add_(grad)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if x is None else x * grad for x in ctx.saved_tensors]
        return (None, found[0], None, None, *found[1:])
