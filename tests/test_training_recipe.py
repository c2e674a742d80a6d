"""The training recipe: loss over real tokens, smoothing, schedule, optimizer, evaluation."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer_lib.book.checks.chapter_14 import (
    check_clip,
    check_half_peak,
    check_smoothed_loss,
    check_teacher_forcing,
)
from transformer_lib.pairs import Batch, make_batch
from transformer_lib.training import evaluate_loss, learning_rate, make_optimizer, translation_loss
from transformer_lib.transformer import Transformer, TransformerConfig

PAD, BOS, EOS = 0, 1, 2
CONFIG = TransformerConfig(
    11, d_model=16, num_heads=2, d_ff=24, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).eval()


def batch_of(*lengths: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 11, (length,), generator=generator).tolist() for length in lengths]
    return make_batch([([*row, EOS], row[::-1]) for row in rows])


# The loss


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    smoothing=st.floats(0.0, 0.9),
    extra=st.integers(0, 4),
)
def test_the_loss_is_a_mean_over_real_tokens(
    lengths: list[int], smoothing: float, extra: int
) -> None:
    torch.manual_seed(1)
    model = Transformer(CONFIG).eval()
    batch = batch_of(*lengths)
    batch = Batch(
        batch.source, F.pad(batch.target_in, (0, extra)), F.pad(batch.target_out, (0, extra))
    )
    logits = model(batch.source, batch.target_in)
    expected = F.cross_entropy(
        logits.flatten(0, 1),
        batch.target_out.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(
        translation_loss(model, batch, smoothing), expected, atol=1e-5, rtol=1e-4
    )


def test_the_paper_smooths_by_a_tenth(model: Transformer) -> None:
    batch = batch_of(3, 5)
    assert (
        translation_loss(model, batch).item()
        == translation_loss(model, batch, label_smoothing=0.1).item()
    )
    assert (
        translation_loss(model, batch).item()
        != translation_loss(model, batch, label_smoothing=0.0).item()
    )


def test_no_logits_are_made_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    linear = F.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.size(0) == CONFIG.vocab_size:
            rows.append(x.shape[:-1].numel())
        return linear(x, weight, bias)

    batch = batch_of(1, 9, 2)
    monkeypatch.setattr(F, "linear", counting)
    translation_loss(Transformer(CONFIG), batch)
    evaluate_loss(Transformer(CONFIG), [batch])
    assert rows == [2 + 10 + 3] * 2


def test_another_padding_id_is_respected() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(11, 16, 2, 24, 1, 1, pad_id=10)).eval()
    short = Batch(torch.tensor([[5, 2]]), torch.tensor([[1, 4]]), torch.tensor([[4, 2]]))
    padded = Batch(
        torch.tensor([[5, 2, 10]]), torch.tensor([[1, 4, 10]]), torch.tensor([[4, 2, 10]])
    )
    torch.testing.assert_close(translation_loss(model, short), translation_loss(model, padded))


def test_bad_batches_are_refused(model: Transformer) -> None:
    batch = batch_of(3)
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(1, 3\)"):
        translation_loss(model, Batch(batch.source, batch.target_in, batch.target_out[:, :3]))
    with pytest.raises(ValueError, match="4 target tokens are padding"):
        translation_loss(
            model, Batch(batch.source, batch.target_in, torch.zeros_like(batch.target_out))
        )
    with pytest.raises(ValueError, match="no batch"):
        evaluate_loss(model, [])


def test_accumulated_gradients_are_those_of_the_large_batch(model: Transformer) -> None:
    pieces = [batch_of(2, 2), batch_of(7, 5, seed=1)]
    whole = Batch(
        *(
            torch.cat(
                [
                    F.pad(getattr(piece, name), (0, 8 - getattr(piece, name).size(1)))
                    for piece in pieces
                ]
            )
            for name in ("source", "target_in", "target_out")
        )
    )
    tokens = [int((piece.target_out != PAD).sum()) for piece in pieces]
    translation_loss(model, whole).backward()
    expected = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    for piece, count in zip(pieces, tokens, strict=True):
        (translation_loss(model, piece) * count / sum(tokens)).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)


# Evaluation


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_counts_tokens_and_puts_the_mode_back(
    model: Transformer, training: bool
) -> None:
    model.train(training)
    both, single = batch_of(2, 6), [batch_of(2), batch_of(6, seed=1)]
    values = [evaluate_loss(model, [both]) for _ in range(2)]
    assert values[0] == values[1], "dropout should be off"
    assert model.training is training
    parts = [evaluate_loss(model, [batch]) for batch in single]
    assert evaluate_loss(model, iter(single)) == pytest.approx(
        (3 * parts[0] + 7 * parts[1]) / 10, abs=1e-5
    )
    model.eval()
    assert values[0] == pytest.approx(
        translation_loss(model, both, label_smoothing=0.0).item(), abs=1e-5
    )


def test_evaluation_puts_the_mode_back_after_an_error_and_keeps_no_graph(
    model: Transformer,
) -> None:
    model.train()
    with pytest.raises(ValueError, match="vocabulary"):
        evaluate_loss(
            model, [Batch(torch.tensor([[99]]), torch.tensor([[1]]), torch.tensor([[2]]))]
        )
    assert model.training
    evaluate_loss(model, [batch_of(3)])
    assert all(parameter.grad is None for parameter in model.parameters())


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
    with pytest.raises(ValueError, match=rf"at least 1, got {min(values)}"):
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
    translation_loss(model, batch_of(3)).backward()
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
        translation_loss(model, batch).backward()
        optimizer.step()
    assert evaluate_loss(model, [batch]) < 0.7 * before


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
