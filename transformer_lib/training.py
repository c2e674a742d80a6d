"""Loss, learning-rate schedule and the training loop.

Written from chapters 14, 15 of the book: edit the chapter, then `make sync`.
"""

import json
import math
import os
import random
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from transformer_lib.pairs import Batch, Example, token_batches
from transformer_lib.transformer import Transformer

__all__ = [
    "Progress",
    "average_weights",
    "endless_batches",
    "evaluate_loss",
    "learning_rate",
    "load_checkpoint",
    "make_optimizer",
    "read_tensors",
    "save_checkpoint",
    "train",
    "translation_loss",
    "write_tensors",
]


def _real_hidden(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the vectors (real tokens, d_model) and the ids (real tokens,) of the real targets."""
    given, wanted = batch.target_in, batch.target_out  # (batch, target) each
    if given.shape != wanted.shape:
        shapes = f"target_in {tuple(given.shape)} and target_out {tuple(wanted.shape)}"
        raise ValueError(f"{shapes} differ in shape")
    pad_id = model.config.pad_id
    real = wanted != pad_id  # (batch, target)
    if not real.any():
        raise ValueError(
            f"nothing to learn: all {real.numel()} target tokens are padding (id {pad_id})"
        )
    memory = model.encode(batch.source)  # (batch, source, d_model)
    hidden = model.decode(given, memory, batch.source)  # (batch, target, d_model)
    return hidden[real], wanted[real]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Smoothed cross-entropy of hidden @ matrix.T, of which only 512 rows exist at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, label_smoothing: float
    ) -> Tensor:
        (count,), vocab_size = targets.shape, matrix.size(0)
        exact = torch.promote_types(hidden.dtype, torch.float32)  # for losses and probabilities
        low = hidden.dtype  # for the products
        if torch.is_autocast_enabled(hidden.device.type):
            low = torch.get_autocast_dtype(hidden.device.type)
        hidden_low, matrix_low = hidden.to(low), matrix.to(low)
        hidden_grad = torch.empty_like(hidden_low)  # (tokens, d_model)
        matrix_grad = torch.zeros_like(matrix)  # (vocab_size, d_model)
        # The sum of all tokens' mean logits is one product of two vectors, (d_model,) each.
        every = (hidden.to(exact).sum(dim=0) * matrix.to(exact).mean(dim=0)).sum()
        loss = -label_smoothing * every
        for start in range(0, count, 512):
            piece, wanted = hidden_low[start : start + 512], targets[start : start + 512, None]
            logits = F.linear(piece, matrix_low).to(exact)  # (512, vocab_size)
            right = logits.gather(-1, wanted)  # (512, 1)
            largest = logits.amax(dim=-1, keepdim=True)  # (512, 1): no exponential overflows
            grad = logits.sub_(largest).exp_()  # (512, vocab_size), in place from here on
            total = grad.sum(dim=-1, keepdim=True)  # (512, 1)
            log_sum = largest + total.log()
            loss += (log_sum - (1 - label_smoothing) * right).sum()
            # Equation 14.4, divided by the number of tokens
            grad.mul_(1 / (total * count)).sub_(label_smoothing / vocab_size / count)
            share = (label_smoothing - 1) / count
            grad.scatter_add_(-1, wanted, right.new_full(wanted.shape, share))
            grad_low = grad.to(low)
            hidden_grad[start : start + 512] = grad_low @ matrix_low
            matrix_grad += grad_low.T @ piece
        ctx.save_for_backward(hidden_grad.to(hidden.dtype), matrix_grad)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, matrix_grad = ctx.saved_tensors
        return hidden_grad * grad, matrix_grad * grad, None, None


def translation_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of the next token, averaged over the real target tokens (paper, section 5.4).

    Logits are made for real tokens only, never for padding, and for 512 of them at a time.

    Args:
        model: what is trained: a Transformer, or another model with its methods encode and decode,
            a config with the padding id, and embedding.weight, the matrix that makes logits.
        batch: source (batch, source), target_in and target_out (batch, target).
        label_smoothing: share of the probability that is spread evenly over the vocabulary.

    Returns:
        The loss in nats a token, shape ().

    Raises:
        ValueError: if target_in and target_out differ in shape, every target token is padding, or
            label_smoothing is no share.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    hidden, targets = _real_hidden(model, batch)  # (real tokens, d_model), (real tokens,)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, model.embedding.weight, targets, label_smoothing
    )  # ()
    return loss


def make_optimizer(model: Transformer) -> torch.optim.Adam:
    """Make Adam with the paper's settings: beta_1 0.9, beta_2 0.98, epsilon 1e-9 (section 5.3).

    Its learning rate starts at 0, so nothing moves until the schedule sets one, before each step:
    `for group in optimizer.param_groups: group["lr"] = learning_rate(step, d_model)`.

    Args:
        model: whose parameters are to be trained; move it to its device first.

    Returns:
        The optimizer, for all parameters of the model.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=fused)


def learning_rate(step: int, d_model: int, warmup_steps: int = 4000) -> float:
    """Give a step's learning rate: up in a line, then down as 1 / sqrt(step) (paper, section 5.3).

    Args:
        step: number of the step, counted from 1.
        d_model: width of the model; a wider one learns with smaller steps.
        warmup_steps: where the rate peaks, at (d_model * warmup_steps)^-0.5.

    Returns:
        d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5).

    Raises:
        ValueError: if one of the three is below 1.
    """
    for name, value in (("step", step), ("d_model", d_model), ("warmup_steps", warmup_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return float(d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5))


@torch.no_grad()
def evaluate_loss(model: Transformer, batches: Iterable[Batch]) -> float:
    """Cross-entropy in nats a real target token, without label smoothing and without dropout.

    Every token counts alike, whichever batch it stands in; e to this power is the perplexity.

    Args:
        model: put into eval mode for the call; then all of it is put into the mode it was in.
        batches: what to evaluate on; they need not be of one size.

    Returns:
        The mean surprise, a float.

    Raises:
        ValueError: if there is no batch, or a batch is one that translation_loss refuses.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for batch in batches:
            hidden, targets = _real_hidden(model, batch)  # (real tokens, d_model), (real tokens,)
            logits = model.project(hidden)  # (real tokens, vocab_size)
            total += F.cross_entropy(logits, targets, reduction="sum").item()
            count += targets.numel()
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("there is no batch to evaluate on")
    return total / count


def average_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average several states of one model, weight by weight (paper, section 6.1).

    Args:
        states: what `model.state_dict()` gave at several times; copies, since training changes them.

    Returns:
        A state for `model.load_state_dict`.

    Raises:
        ValueError: if there is no state, or two differ in names or shapes.
    """
    if not states:
        raise ValueError("there is nothing to average: no states")
    shapes = [{name: tuple(x.shape) for name, x in state.items()} for state in states]
    for other in shapes[1:]:
        if other != shapes[0]:
            differing = sorted(set(shapes[0].items()) ^ set(other.items()))
            raise ValueError(f"the states are of different models, they differ in {differing[:4]}")
    return {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(first.dtype)
        for name, first in states[0].items()
    }


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Sum up all names and bytes in 32 bits."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], **notes: Any) -> None:
    """Write tensors and notes into one safetensors file: whole, or not at all.

    Args:
        path: the file; an old one of that name is replaced at the very end.
        tensors: names and tensors.
        notes: anything JSON can hold.

    Raises:
        OSError: if the disk is full or the folder cannot be written to; an old file is untouched.
    """
    path = Path(path)
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {"checksum": _checksum(plain), "notes": json.dumps(notes)}
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(safetensors.torch.save(plain, metadata))
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way there
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what write_tensors wrote.

    Args:
        path: the file.

    Returns:
        The tensors and the notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not whole, damaged, or not from write_tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
    if "notes" not in metadata:
        raise ValueError(f"{path} was not written by write_tensors: it has no notes")
    if metadata.get("checksum") != (found := _checksum(tensors)):
        raise ValueError(
            f"{path} is damaged: its checksum is {found}, it should be {metadata.get('checksum')}"
        )
    return tensors, json.loads(metadata["notes"])


def save_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, **notes: Any
) -> None:
    """Save all that is needed to go on training: weights, optimizer and random state, and notes.

    Args:
        path: the file to write.
        model, optimizer: what is being trained, and by what.
        notes: the step and whatever else the loop wants back; anything JSON can hold.

    Raises:
        OSError: see write_tensors.
    """
    tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": x for name, x in state.items()}
    write_tensors(path, tensors | {"random": torch.get_rng_state()}, **notes)


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Bring model, optimizer and torch's random numbers back to where save_checkpoint saw them.

    Args:
        path: the file.
        model, optimizer: of the same shapes as those that were saved.

    Returns:
        The notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or no checkpoint, or belongs to another model.
    """
    tensors, notes = read_tensors(path)
    weights = {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    saved = {name: tuple(x.shape) for name, x in weights.items()}
    if saved != shapes or "random" not in tensors:
        differing = sorted(set(saved.items()) ^ set(shapes.items()))
        raise ValueError(f"{path} belongs to another model; the two differ in {differing[:4]}")
    states: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = x
    model.load_state_dict(weights)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    torch.set_rng_state(tensors["random"])
    return notes


def endless_batches(examples: Sequence[Example], max_tokens: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch of token_batches, each shuffled anew, for as long as anybody asks.

    Args:
        examples: every epoch holds each of them once.
        max_tokens: the most tokens a batch may have on either side, padding counted.
        seed: another seed gives other batches in another order.

    Raises:
        ValueError: see token_batches.
    """
    generator = random.Random(seed)
    while True:
        yield from token_batches(examples, max_tokens, seed=generator.getrandbits(32))


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    step: the number of steps taken.
    learning_rate: that of the last step.
    train_loss: with label smoothing, averaged over the steps since the last report; nats a token.
    validation_loss: on held-out batches, without smoothing and dropout; nats a token.
    source_tokens, target_tokens: how many of them, padding aside, training has seen.
    seconds: the time that training has taken, interruptions aside.
    """

    step: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    source_tokens: int
    target_tokens: int
    seconds: float


def _backward(
    model: Transformer, batches: Sequence[Batch], label_smoothing: float, bfloat16: bool
) -> float:
    """Leave the gradient of some batches, as if they were one, and return the loss."""
    tokens = [int((batch.target_out != model.config.pad_id).sum()) for batch in batches]
    total = 0.0
    for batch, count in zip(batches, tokens, strict=True):
        device = batch.source.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            loss = translation_loss(model, batch, label_smoothing) * (count / sum(tokens))
        loss.backward()
        total += loss.item()
    return total


def train(
    model: Transformer,
    batches: Iterable[Batch],
    *,
    steps: int,
    warmup_steps: int = 4000,
    cool_down_steps: int = 0,
    label_smoothing: float = 0.1,
    accumulate: int = 1,
    max_norm: float | None = None,
    bfloat16: bool = False,
    validation: Sequence[Batch] = (),
    report_every: int = 100,
    on_report: Callable[[Progress], None] = lambda progress: None,
    checkpoint: str | Path | None = None,
    save_every: int = 500,
) -> list[Progress]:
    """Train a model in place (paper, section 5).

    Args:
        model: what is trained; it is left in eval mode, ready to translate.
        batches: at least steps * accumulate of them; endless_batches makes them.
        steps: how many steps to take in all, those before an interruption counted.
        warmup_steps: where the paper's learning rate peaks.
        cool_down_steps: over this many last steps the rate is also multiplied by a factor that falls from 1
            to nearly 0.
        label_smoothing: share of the target spread over the whole vocabulary.
        accumulate: how many batches make a step; their tokens count as those of one batch.
        max_norm: a longer gradient is shortened to this length; None leaves it alone.
        bfloat16: make matrix products in bfloat16, where the device is good at it.
        validation: held-out batches to measure progress on.
        report_every: steps from one report to the next; the last step reports, too.
        on_report: called with each report, to print it, for instance.
        checkpoint: a file to save to. If it is there already, training goes on from it, with the
            same batches from the beginning as before: those that it has seen are skipped.
        save_every: steps from one save to the next; the last step saves, too.

    Returns:
        The reports. Without held-out batches their validation_loss is NaN.

    Raises:
        ValueError: if a number is out of range, there are fewer batches than needed, or the
            checkpoint is damaged or of another model, other settings or other batches.
        FloatingPointError: if the loss becomes infinite or NaN.
        OSError: if a checkpoint cannot be written; the last one is still there.
    """
    numbers = {"steps": steps, "report_every": report_every, "accumulate": accumulate}
    for name, value in (numbers | {"save_every": save_every}).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= cool_down_steps <= steps:
        raise ValueError(f"cool_down_steps must be from 0 to steps {steps}, got {cool_down_steps}")
    settings = numbers | {
        "warmup_steps": warmup_steps,
        "cool_down_steps": cool_down_steps,
        "label_smoothing": label_smoothing,
        "max_norm": max_norm,
        "bfloat16": bfloat16,
    }
    optimizer = make_optimizer(model)
    stream = iter(batches)
    reports: list[Progress] = []
    losses: list[float] = []
    step, seen, elapsed = 0, [0, 0], 0.0
    if checkpoint is not None and Path(checkpoint).exists():
        notes = load_checkpoint(checkpoint, model, optimizer)
        if notes["settings"] != settings:
            raise ValueError(f"{checkpoint} has settings {notes['settings']}, not {settings}")
        step, losses, seen, elapsed = (notes[key] for key in ("step", "losses", "seen", "elapsed"))
        reports = [Progress(**report) for report in notes["reports"]]
        random_state = torch.get_rng_state()  # in case making batches draws from it
        skipped = deque(islice(stream, step * accumulate), maxlen=1)
        torch.set_rng_state(random_state)
        if [_fingerprint(batch) for batch in skipped] != [notes["last_batch"]]:
            raise ValueError(f"{checkpoint} was trained with other batches than these")
    start = time.perf_counter() - elapsed
    model.train()
    for step in range(step + 1, steps + 1):  # noqa: B020
        pieces = list(islice(stream, accumulate))
        if len(pieces) < accumulate:
            there = (step - 1) * accumulate + len(pieces)
            raise ValueError(f"there are only {there} batches for {steps} steps of {accumulate}")
        rate = learning_rate(step, model.config.d_model, warmup_steps)
        if cool_down_steps:
            rate *= min(1.0, (steps + 1 - step) / cool_down_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        losses.append(_backward(model, pieces, label_smoothing, bfloat16))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"step {step}, at rate {rate:.2g}, has a loss of {losses[-1]}")
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        for piece in pieces:
            seen[0] += int((piece.source != model.config.pad_id).sum())
            seen[1] += int((piece.target_out != model.config.pad_id).sum())
        if step % report_every == 0 or step == steps:
            held_out = evaluate_loss(model, validation) if validation else math.nan
            elapsed = time.perf_counter() - start
            mean_loss = sum(losses) / len(losses)
            reports.append(Progress(step, rate, mean_loss, held_out, seen[0], seen[1], elapsed))
            losses.clear()
            on_report(reports[-1])
        if checkpoint is not None and (step % save_every == 0 or step == steps):
            save_checkpoint(
                checkpoint,
                model,
                optimizer,
                step=step,
                settings=settings,
                losses=losses,
                seen=seen,
                elapsed=time.perf_counter() - start,
                reports=[asdict(report) for report in reports],
                last_batch=_fingerprint(pieces[-1]),
            )
    model.eval()
    return reports


def _fingerprint(batch: Batch) -> int:
    """Sum up a batch's target in 32 bits."""
    return zlib.crc32(batch.target_out.cpu().numpy().tobytes())
