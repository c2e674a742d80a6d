"""The checks of chapter 14's exercises."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from transformer_lib.book.checks import diagnostic, expect_tensor

PAD, BOS, EOS = 0, 1, 2


@diagnostic("Exercise 14.1")
def check_teacher_forcing(attempt: Callable[[list[list[int]]], tuple[Tensor, Tensor]]) -> None:
    """Check teacher forcing's two tensors: one sentence, then padding, order, the empty sentence."""
    batches: list[list[list[int]]] = [
        [[5, 6, 7]],
        [[5, 6, 7], [8]],
        [[8], [5, 6, 7], [9, 4]],
        [[]],
        [[3], []],
    ]
    for sentences in batches:
        answer = attempt(sentences)
        assert isinstance(answer, tuple | list), (
            f"return two tensors, target_in and target_out, not {type(answer).__name__}"
        )
        assert len(answer) == 2, f"return two tensors, not {len(answer)}"
        size = (len(sentences), max(map(len, sentences)) + 1)
        given = expect_tensor(answer[0], size, f"target_in of {sentences}")
        wanted = expect_tensor(answer[1], size, f"target_out of {sentences}")
        for name, tensor in (("target_in", given), ("target_out", wanted)):
            assert tensor.dtype == torch.int64, f"ids are int64, {name} is {tensor.dtype}"
        for row, words in enumerate(sentences):
            _judge_shift(words, given[row].tolist(), wanted[row].tolist(), sentences)


def _judge_shift(words: list[int], given: list[int], wanted: list[int], batch: Any) -> None:
    """One row: what is read and what is to be said; the likely mistakes first."""
    pads = [PAD] * (len(given) - len(words) - 1)
    reads, says = [BOS, *words, *pads], [*words, EOS, *pads]
    if (given, wanted) == (reads, says):
        return
    where = f"of {batch}, the sentence {words}"
    assert (given, wanted) != (says, reads), (
        f"{where}: the two are swapped, the decoder READS <bos> first"
    )
    assert given != wanted, (
        f"{where}: both are {given}. What it reads and what it should say are shifted by one"
    )
    if pads:
        assert (given, wanted) != ([*pads, BOS, *words], [*pads, *words, EOS]), (
            f"{where}: the padding stands on the left: {given}"
        )
        assert wanted != [*words, *pads, EOS], (
            f"{where}: <eos> comes right after the words and the padding after it, yours is {wanted}"
        )
        assert given != [BOS, *words, EOS, *pads[1:]], (
            f"{where}: target_in has an <eos>, {given}; it holds <bos>, the words, and padding"
        )
    assert BOS not in wanted, f"{where}: nobody says <bos>, but target_out is {wanted}"
    assert given[0] == BOS, f"{where}: the decoder reads <bos> first, yours reads {given}"
    assert EOS in wanted, f"{where}: it should say <eos> in the end, target_out is {wanted}"
    rest = sorted(words) == sorted(x for x in wanted if x > EOS)
    assert rest, f"{where}: target_out has other words: {wanted}. Keep the order of the sentences"
    raise AssertionError(
        f"{where} reads {reads} and says {says}; yours reads {given}, says {wanted}"
    )


class _NoLoss(TorchFunctionMode):
    """Refuse torch's own losses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("cross_entropy", "nll_loss", "kl_div", "cross_entropy_loss"), (
            f"write the loss out with log_softmax, without torch's {name}"
        )
        return func(*args, **(kwargs or {}))


@diagnostic("Exercise 14.2")
def check_smoothed_loss(attempt: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """Check a smoothed loss: without smoothing, with it, then padding; the mistakes by their numbers."""

    def loss(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int = 0) -> float:
        with _NoLoss():
            got = attempt(logits, targets, smoothing, pad_id)
        return float(expect_tensor(got, (), "the loss"))

    even = loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), 0.0)
    assert abs(even - 2 * 1.3863) > 1e-3, "this is the sum over the tokens: take the mean"
    assert abs(even + 1.3863) > 1e-3, "the sign is wrong: a loss is MINUS the log-probability"
    assert abs(even - 0.25) > 1e-3 and abs(even + 0.25) > 1e-3, "the logarithm is missing"
    assert abs(even - math.log(2)) > 1e-3, "softmax over the positions? It runs over the last axis"
    assert abs(even - 1.3863) < 1e-3, (
        f"4 equal logits cost log 4 = 1.3863 a token, yours {even:.4f}"
    )
    even = loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), 0.1)
    assert abs(even - 1.3863) < 1e-3, (
        f"4 equal logits cost log 4 = 1.3863 whatever the smoothing, yours {even:.4f}:"
        " do the shares q add up to 1?"
    )
    logits = torch.tensor([[[0.0, math.log(7.0), 0.0, 0.0]]])  # probabilities 0.1, 0.7, 0.1, 0.1
    right, every = 0.35667, (0.35667 + 3 * 2.30259) / 4
    plain = loss(logits, torch.tensor([[1]]), 0.0)
    assert abs(plain - every) > 1e-3, (
        "without smoothing this is the mean over ALL tokens: the two shares are swapped"
    )
    assert abs(plain - right) < 1e-3, (
        f"without smoothing it is -log 0.7 = 0.3567, yours {plain:.4f}"
    )
    smooth = loss(logits, torch.tensor([[1]]), 0.4)
    assert abs(smooth - right) > 1e-3, "the smoothing makes no difference: equation 14.2"
    assert abs(smooth - (0.6 * right + 0.4 * 2.30259)) > 1e-3, (
        "the share is spread over the wrong tokens only; equation 14.2 spreads it over all"
    )
    assert abs(smooth - (0.6 * right + 0.4 * 4 * every)) > 1e-3, (
        "the second part is a MEAN over the vocabulary: divide the sum by V"
    )
    assert abs(smooth - 0.9405) < 1e-3, (
        f"0.6 (-log 0.7) + 0.4 (the mean of all four) = 0.9405, yours {smooth:.4f}"
    )
    padding = torch.tensor([[[9.0, -3.0, 0.0, 5.0]]])  # (1, 1, 4): the logits at a padded position
    for order in (0, 1):  # padding behind and before
        rows = [logits, padding] if order == 0 else [padding, logits]
        targets = torch.tensor([[1, 0]] if order == 0 else [[0, 1]])
        got = loss(torch.cat(rows, dim=1), targets, 0.4)
        assert abs(got - 0.9405 / 2) > 1e-3, (
            "the padding is out of the sum, but still counts in the mean"
        )
        assert abs(got - 0.9405) < 1e-3, f"padding changed the loss from 0.9405 to {got:.4f}"
    uneven = torch.cat([logits.expand(1, 2, 4), torch.zeros(1, 2, 4)])  # (2, 2, 4)
    per_token = (2 * 0.9405 + 1.3863) / 3
    got = loss(uneven, torch.tensor([[1, 1], [1, 0]]), 0.4)
    assert abs(got - (0.9405 + 1.3863) / 2) > 1e-3, (
        "this is the mean of the sentences' means: every token should count the same"
    )
    assert abs(got - per_token) < 1e-3, f"three real tokens, mean {per_token:.4f}, yours {got:.4f}"
    for vocab_size, pad_id, shape in ((6, 5, (1, 2)), (9, 3, (4, 7)), (5, 0, (3, 1))):
        logits = torch.randn(*shape, vocab_size)
        targets = torch.randint(0, vocab_size, shape)
        targets[0, 0] = (pad_id + 1) % vocab_size  # at least one real token
        targets[-1, -1] = targets[-1, -1] if shape == (3, 1) else pad_id
        real = targets != pad_id
        log_p = logits.log_softmax(dim=-1)
        surprise = -0.7 * log_p.gather(-1, targets[..., None])[..., 0] - 0.3 * log_p.mean(dim=-1)
        got, expected = loss(logits, targets, 0.3, pad_id), surprise[real].mean().item()
        zero = surprise[targets != 0].mean().item() if (targets != 0).any() else math.nan
        assert pad_id == 0 or abs(expected - zero) < 1e-6 or abs(got - zero) > 1e-5, (
            f"with padding id {pad_id} you leave out the targets 0: the padding id is an argument"
        )
        assert abs(got - expected) < 1e-4, (
            f"{vocab_size} entries, padding id {pad_id}, shape {shape}: it is {expected:.4f},"
            f" yours {got:.4f}"
        )


@diagnostic("Exercise 14.3")
def check_half_peak(attempt: Callable[[int], tuple[int, int]]) -> None:
    """Check where the schedule is at half its peak, by the formula itself."""

    def rate(step: float, warmup: int) -> float:
        return float(min(step**-0.5, step * warmup**-1.5))

    for warmup in (4000, 10, 2, 123_456):
        answer = attempt(warmup)
        assert isinstance(answer, tuple | list), f"return two steps, not {type(answer).__name__}"
        assert len(answer) == 2, f"return two steps, got {answer}"
        up, down = answer
        where = f"with a warm-up of {warmup:,}"
        assert all(isinstance(x, int | float) for x in answer), f"{where}: {answer} are no numbers"
        assert up > 0, f"{where}: steps are counted from 1, yours is {up}"
        assert up < down, f"{where}: the step on the way up comes first, yours are {up} and {down}"
        assert up < warmup < down, (
            f"{where}: one step before the peak and one after it; yours are {up} and {down}"
        )
        peak = rate(warmup, warmup)
        share = rate(up, warmup) / peak
        assert abs(share - 0.5) < 1e-6, (
            f"{where}: at step {up} the rate is {share:.2f} of the peak; it rises in a straight line"
        )
        share = rate(down, warmup) / peak
        assert abs(share - 0.5) < 1e-6, (
            f"{where}: at step {down} it is {share:.2f} of the peak: it falls with the ROOT of the step"
        )


def _gradients(parameters: list[Tensor]) -> list[float]:
    present = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [round(float(value), 5) for gradient in present for value in gradient.flatten()]


@diagnostic("Exercise 14.4", in_place=True)
def check_clip(attempt: Callable[[list[Tensor], float], Tensor]) -> None:
    """Check clipping: a gradient (3, 4, 12), 13 long, then short ones, none, signs and shapes."""

    def make(*gradients: list[Any] | None) -> list[Tensor]:
        parameters = []
        for gradient in gradients:
            value = torch.zeros(1 if gradient is None else torch.tensor(gradient).shape)
            parameters.append(value.requires_grad_())
            parameters[-1].grad = None if gradient is None else torch.tensor(gradient)
        return parameters

    def clip(parameters: list[Tensor], max_norm: float) -> float:
        with mock.patch.object(nn.utils, "clip_grad_norm_", _forbidden):
            length = attempt(parameters, max_norm)
        assert not any(parameter.detach().any() for parameter in parameters), (
            "you changed a parameter: clip its .grad"
        )
        if isinstance(length, Tensor):
            expect_tensor(length, (), "the length")
        return float(length)

    parameters = make([3.0, 4.0], [12.0])
    length, got = clip(parameters, 6.5), _gradients(parameters)
    assert got != [3.0, 4.0, 12.0], (
        "nothing was clipped: change the gradients in place, parameter.grad.mul_(...)"
    )
    off = max(abs(got[0] / got[1] - 0.75), abs(got[2] / got[1] - 3))
    assert off < 1e-3, (
        f"(3, 4, 12) became {got}: another direction. One factor for ALL parameters,"
        " not one for each parameter, nor one for each number"
    )
    assert abs(got[2] - 6) < 1e-3, (
        f"(3, 4, 12) clipped to a length of 6.5 is (1.5, 2, 6), yours {got}; the length of the whole is"
        " the root of the sum of ALL squares"
    )
    assert abs(length - 6.5) > 1e-3, "you return the length after clipping: return that before"
    assert abs(length - 13) < 1e-4, f"the whole gradient (3, 4, 12) is 13 long, yours {length}"
    parameters = make([3.0, 4.0], [12.0])
    length, got = clip(parameters, 20.0), _gradients(parameters)
    assert got == [3.0, 4.0, 12.0], f"a gradient that is short enough must stay, yours became {got}"
    assert abs(length - 13) < 1e-4, f"its length is 13 all the same, yours {length}"
    parameters = make(None, [3.0, 4.0], [12.0])
    clip(parameters, 6.5)
    got = _gradients(parameters)
    assert len(got) == 3, f"a parameter without a gradient should keep none: {got}"
    assert abs(got[2] - 6) < 1e-3, f"a parameter without a gradient must not stop the rest: {got}"
    parameters = make([[-3.0, 0.0], [0.0, -4.0]], [[[12.0]]], [0.0, -84.0])
    length, got = clip(parameters, 1.0), _gradients(parameters)
    assert abs(length - 85) < 1e-3, f"(-3, -4, 12, -84) is 85 long, yours {length}"
    expected = [round(x / 85, 5) for x in (-3, 0, 0, -4, 12, 0, -84)]
    apart = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    assert apart < 1e-4, f"(-3, -4, 12, -84) clipped to 1 is {expected}, yours {got}"
    length = clip(make(None, None), 1.0)
    assert length == 0, f"without any gradient the length is 0, yours {length}"


def _forbidden(*arguments: Any, **more: Any) -> Any:
    raise AssertionError("this is torch's clip_grad_norm_; write out what it does")
