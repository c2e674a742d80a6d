"""Loss, learning-rate schedule and the training loop.

Written from chapters 14, 15 of the book: edit the chapter, then `make sync`.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.data import Batch, Example, token_batches
from transformer_lib.transformer import Transformer

__all__ = [
    "Progress",
    "endless_batches",
    "evaluate_loss",
    "learning_rate",
    "make_optimizer",
    "train",
    "translation_loss",
]


def _real_logits(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the logits (real tokens, vocab_size) and the ids (real tokens,) of the real targets."""
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
    logits = model.project(hidden[real])  # (real tokens, vocab_size)
    return logits, wanted[real]


def translation_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of the next token, averaged over the real target tokens (paper, section 5.4).

    Args:
        model: what is trained; its config names the padding id.
        batch: source (batch, source), target_in and target_out (batch, target).
        label_smoothing: share of the probability that is spread evenly over the vocabulary.

    Returns:
        The loss in nats a token, shape (). Logits are made for real tokens only, never for padding.

    Raises:
        ValueError: if target_in and target_out differ in shape, or every target token is padding.
    """
    logits, targets = _real_logits(model, batch)  # (real tokens, vocab_size), (real tokens,)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


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
            # (real tokens, vocab_size), (real tokens,)
            logits, targets = _real_logits(model, batch)
            total += F.cross_entropy(logits, targets, reduction="sum").item()
            count += targets.numel()
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("there is no batch to evaluate on")
    return total / count


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
    """

    step: int
    learning_rate: float
    train_loss: float
    validation_loss: float


def train(
    model: Transformer,
    batches: Iterable[Batch],
    *,
    steps: int,
    warmup_steps: int = 4000,
    cool_down_steps: int = 0,
    label_smoothing: float = 0.1,
    validation: Sequence[Batch] = (),
    report_every: int = 100,
    on_report: Callable[[Progress], None] = lambda progress: None,
) -> list[Progress]:
    """Train a model in place, one step a batch (paper, section 5).

    Args:
        model: what is trained; it is left in eval mode, ready to translate.
        batches: at least as many as steps; endless_batches makes them.
        steps: how many steps to take.
        warmup_steps: where the paper's learning rate peaks.
        cool_down_steps: over this many last steps the rate also falls in a straight line to zero.
        label_smoothing: share of the target spread over the whole vocabulary.
        validation: held-out batches to measure progress on.
        report_every: steps from one report to the next; the last step reports, too.
        on_report: called with each report, to print it, for instance.

    Returns:
        The reports. Without held-out batches their validation_loss is NaN.

    Raises:
        ValueError: if steps, warmup_steps or report_every is below 1, cool_down_steps is not
            between 0 and steps, or there are fewer batches than steps.
        FloatingPointError: if the loss becomes infinite or NaN.
    """
    for name, value in (("steps", steps), ("report_every", report_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= cool_down_steps <= steps:
        raise ValueError(f"cool_down_steps must be from 0 to steps {steps}, got {cool_down_steps}")
    optimizer = make_optimizer(model)
    reports: list[Progress] = []
    losses: list[float] = []
    step = 0
    model.train()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        rate = learning_rate(step, model.config.d_model, warmup_steps)
        if cool_down_steps:
            rate *= min(1.0, (steps + 1 - step) / cool_down_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = translation_loss(model, batch, label_smoothing)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"step {step}, at rate {rate:.2g}, has a loss of {losses[-1]}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % report_every == 0 or step == steps:
            held_out = evaluate_loss(model, validation) if validation else math.nan
            reports.append(Progress(step, rate, sum(losses) / len(losses), held_out))
            losses.clear()
            on_report(reports[-1])
    if step < steps:
        raise ValueError(f"there are only {step} batches for {steps} steps")
    model.eval()
    return reports
