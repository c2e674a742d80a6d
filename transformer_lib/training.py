"""Spine (to be regenerated from chapters 14 and 15)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.data import Batch
from transformer_lib.transformer import Transformer

__all__ = ["evaluate_loss", "learning_rate", "make_optimizer", "translation_loss"]


def learning_rate(step: int, d_model: int, warmup_steps: int = 4000) -> float:
    """The learning rate of one step: up in a straight line, then down as 1 / sqrt(step) (paper, section 5.3).

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


def make_optimizer(model: Transformer) -> torch.optim.Adam:
    """Adam with the paper's settings (section 5.3): beta_1 0.9, beta_2 0.98, epsilon 1e-9.

    The learning rate starts at 0, so nothing moves until the schedule sets it: `group["lr"] = learning_rate(step, ...)`
    for each group of `optimizer.param_groups`, before each step.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=fused)


def translation_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of the next target token, averaged over the batch's real target tokens (paper, section 5.4).

    Args:
        model: what is trained; its config names the padding id.
        batch: source (batch, source length), target_in and target_out (batch, target length).
        label_smoothing: share of the target's probability spread evenly over the whole vocabulary.

    Returns:
        The loss in nats a token, shape (). Logits are made for real tokens only, never for padding.

    Raises:
        ValueError: if target_in and target_out differ in shape, or every target token is padding.
    """
    logits, targets = _real_logits(model, batch)  # (real tokens, vocab_size), (real tokens,)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def _real_logits(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of the real target tokens, (real tokens, vocab_size), and these tokens, (real tokens,)."""
    if batch.target_in.shape != batch.target_out.shape:
        raise ValueError(
            f"target_in {tuple(batch.target_in.shape)} and target_out {tuple(batch.target_out.shape)} differ in shape"
        )
    real = batch.target_out != model.config.pad_id  # (batch, target)
    if not real.any():
        raise ValueError(f"nothing to learn: all {real.numel()} target tokens are padding (id {model.config.pad_id})")
    hidden = model.decode(batch.target_in, model.encode(batch.source), batch.source)  # (batch, target, d_model)
    return model.project(hidden[real]), batch.target_out[real]  # (real tokens, vocab_size), (real tokens,)


@torch.no_grad()
def evaluate_loss(model: Transformer, batches: Iterable[Batch]) -> float:
    """Cross-entropy in nats a real target token, without label smoothing and without dropout.

    Every token counts alike, whichever batch it stands in. The mode of the model (train or eval) is put back.

    Raises:
        ValueError: if there is no batch.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for batch in batches:
            logits, targets = _real_logits(model, batch)
            total += F.cross_entropy(logits, targets, reduction="sum").item()
            count += targets.numel()
    finally:
        model.train(training)
    if count == 0:
        raise ValueError("there is no batch to evaluate on")
    return total / count
