"""Chapter 15: the training loop, endless batches, and the checks of its exercises."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice, repeat

import pytest
import torch
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_15 import (
    check_deranged,
    check_overlap_by_length,
    check_training_step,
    check_unigram_loss,
)
from transformer_lib.decoding import greedy_decode
from transformer_lib.pairs import Batch, Example, make_batch, token_batches
from transformer_lib.tokenizer import EOS_ID
from transformer_lib.training import (
    Progress,
    endless_batches,
    evaluate_loss,
    learning_rate,
    train,
    translation_loss,
)
from transformer_lib.transformer import Transformer, TransformerConfig

EXAMPLES = [Example([3 + i, 4 + i, EOS_ID], [4 + i, 3 + i]) for i in range(6)]
BATCH = make_batch(EXAMPLES)


def tiny_model(seed: int = 0) -> Transformer:
    """Two small layers, the same numbers for the same seed."""
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "num_heads": 2, "d_ff": 32}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return Transformer(TransformerConfig(12, **sizes, **layers, dropout=0.0))


def numbers(model: nn.Module) -> Tensor:
    """All parameters in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# Batches without end ----------------------------------------------------------------------------


def test_endless_batches_are_epochs_shuffled_anew() -> None:
    examples = [Example([3 + i, EOS_ID], [3 + i] * (1 + i % 3)) for i in range(9)]
    per_epoch = len(token_batches(examples, 8, seed=0))
    batches = list(islice(endless_batches(examples, 8, seed=1), 3 * per_epoch))
    epochs = [batches[start : start + per_epoch] for start in range(0, len(batches), per_epoch)]
    orders = [[row[0] for batch in epoch for row in batch.source.tolist()] for epoch in epochs]
    for order in orders:
        assert Counter(order) == Counter(range(3, 12))
    assert orders[0] != orders[1] != orders[2]
    again = islice(endless_batches(examples, 8, seed=1), 3 * per_epoch)
    assert all(torch.equal(a.source, b.source) for a, b in zip(batches, again, strict=True))


# The loop ---------------------------------------------------------------------------------------


def test_training_learns_by_heart_and_translates() -> None:
    model = tiny_model()
    before = evaluate_loss(model, [BATCH])
    train(model, repeat(BATCH), steps=200, warmup_steps=100, label_smoothing=0.0)
    assert evaluate_loss(model, [BATCH]) < 0.1 < before
    assert not model.training
    assert greedy_decode(model, BATCH.source, 5) == [target for _, target in EXAMPLES]


def test_training_equals_the_loop_written_out() -> None:
    model, other = tiny_model(), tiny_model()
    batches = token_batches(EXAMPLES, 9, seed=0)
    train(model, batches, steps=2, warmup_steps=7, cool_down_steps=1, label_smoothing=0.2)
    adam = torch.optim.Adam(other.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
    other.train()
    for step, batch in enumerate(batches[:2], start=1):
        adam.param_groups[0]["lr"] = 16**-0.5 * step * 7**-1.5
        adam.zero_grad()
        translation_loss(other, batch, label_smoothing=0.2).backward()
        adam.step()
    torch.testing.assert_close(numbers(model), numbers(other), rtol=1e-4, atol=1e-5)


def test_training_is_the_same_for_the_same_seed() -> None:
    model, again = tiny_model(), tiny_model()
    for some in (model, again):
        train(some, endless_batches(EXAMPLES, 9, seed=3), steps=5)
    assert torch.equal(numbers(model), numbers(again))


def test_reports() -> None:
    seen: list[Progress] = []
    reports = train(
        tiny_model(),
        repeat(BATCH),
        steps=25,
        warmup_steps=5,
        cool_down_steps=10,
        validation=[BATCH],
        report_every=10,
        on_report=seen.append,
    )
    assert reports == seen
    assert [report.step for report in reports] == [10, 20, 25]
    assert reports[0].learning_rate == learning_rate(10, 16, 5)
    assert reports[-1].learning_rate == pytest.approx(learning_rate(25, 16, 5) / 10)
    assert reports[-1].validation_loss < reports[0].validation_loss
    assert reports[0].train_loss > reports[-1].train_loss
    silent = train(tiny_model(), repeat(BATCH), steps=1)
    assert math.isnan(silent[0].validation_loss)


def test_training_takes_no_batch_too_many() -> None:
    batches = iter([BATCH] * 3)
    train(tiny_model(), batches, steps=2)
    assert len(list(batches)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 3, "report_every": 0}, "report_every must be at least 1, got 0"),
        ({"steps": 3, "warmup_steps": 0}, "warmup_steps must be at least 1, got 0"),
        ({"steps": 3, "cool_down_steps": 4}, "steps 3, got 4"),
        ({"steps": 5}, "only 4 batches for 5 steps"),
    ],
)
def test_training_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_model(), [BATCH] * 4, **arguments)


def test_training_stops_when_the_loss_is_no_number() -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 1"):
        train(model, [BATCH], steps=1)


def test_a_missing_shift_shows_in_the_translations() -> None:
    model = tiny_model()
    leaky = Batch(BATCH.source, BATCH.target_out, BATCH.target_out)
    train(model, repeat(leaky), steps=200, warmup_steps=100, label_smoothing=0.0)
    assert evaluate_loss(model, [leaky]) < 0.1
    right = zip(greedy_decode(model, BATCH.source, 5), EXAMPLES, strict=True)
    assert sum(row == target for row, (_, target) in right) <= 1


# The exercises' checks reject the likely mistakes -----------------------------------------------


def unigram(train: list[int], held_out: list[int], size: int, extra: float = 1.0) -> Tensor:
    counts = torch.bincount(torch.tensor(train, dtype=torch.long), minlength=size) + extra
    return -(counts / counts.sum()).log()[torch.tensor(held_out)].mean()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda train, held_out, size: unigram(train, held_out, size, extra=0.0),
        lambda train, held_out, size: unigram(held_out, held_out, size),
        lambda train, held_out, size: unigram(train, held_out, size) / math.log(2),
        lambda train, held_out, size: unigram(train, [*train, *held_out], size),
    ],
)
def test_check_unigram_loss_rejects(wrong: Callable[..., float]) -> None:
    check_unigram_loss(lambda *given: float(unigram(*given)))
    with pytest.raises(AssertionError):
        check_unigram_loss(wrong)


def shuffled(source: Tensor, seed: int) -> Tensor:
    return source[torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shuffled, "keep their own source"),
        (lambda source, seed: source.roll(1, dims=0), "is it random"),
        (lambda source, seed: source.roll(1, dims=1), "keep their own source"),
        (lambda source, seed: source.roll(1), "torn apart|exactly once"),
        (lambda source, seed: source[[1, 0, 1, 0, 1, 0]], "exactly once"),
    ],
)
def test_check_deranged_rejects(wrong: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_deranged(wrong)


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
            group["lr"] = 0.0 if part == "rate" else rate
        if part != "clearing":
            optimizer.zero_grad()
        loss = loss_of(model)
        if part != "backward":
            loss.backward()
        if part == "order":
            optimizer.zero_grad()
        optimizer.step()
        return loss.item()

    return step


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("mode", "training mode"),
        ("groups", "parameter group"),
        ("rate", "has not moved"),
        ("clearing", "clear the old one"),
        ("backward", "has not moved"),
        ("order", "has not moved"),
    ],
)
def test_check_training_step_rejects(part: str, message: str) -> None:
    check_training_step(step_without("nothing"))
    with pytest.raises(AssertionError, match=message):
        check_training_step(step_without(part))


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (by_length(f_score, keep_empty=True), "left out"),
        (by_length(lambda a, b: len(set(a) & set(b)) / len(b)), "a repeated word"),
        (by_length(lambda a, b: 2 * sum(x in b for x in a) / (len(a) + len(b))), "a repeated word"),
        (
            by_length(lambda a, b: (Counter(a) & Counter(b)).total() / len(b)),
            "a repeated word|both",
        ),
    ],
)
def test_check_overlap_by_length_rejects(wrong: Callable[..., object], message: str) -> None:
    check_overlap_by_length(by_length(f_score))
    with pytest.raises(AssertionError, match=message):
        check_overlap_by_length(wrong)
