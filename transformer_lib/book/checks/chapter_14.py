"""The checks of chapter 14's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 14.1")
def check_teacher_forcing(attempt: Callable[[list[list[int]]], tuple[Tensor, Tensor]]) -> None:
    """Check teacher forcing's two tensors: one sentence, then padding, then the empty sentence."""
    answer = attempt([[5, 6, 7]])
    assert isinstance(answer, tuple), (
        f"return two tensors, target_in and target_out, not {type(answer).__name__}"
    )
    assert len(answer) == 2, (
        f"return two tensors, target_in and target_out, not {len(answer)} things"
    )
    given = expect_tensor(answer[0], (1, 4), "target_in")
    wanted = expect_tensor(answer[1], (1, 4), "target_out")
    swapped = given.tolist() == [[5, 6, 7, 2]] and wanted.tolist() == [[1, 5, 6, 7]]
    assert not swapped, "the two are swapped: the decoder READS <bos> first"
    assert given.tolist() == [[1, 5, 6, 7]], (
        f"the decoder should read <bos> 5 6 7, yours reads {given[0].tolist()}"
    )
    assert wanted.tolist() == [[5, 6, 7, 2]], (
        f"it should say 5 6 7 <eos>, yours says {wanted[0].tolist()}"
    )
    assert given.dtype == wanted.dtype == torch.long, (
        f"ids are integers, yours are {given.dtype} and {wanted.dtype}"
    )
    given, wanted = attempt([[5, 6, 7], [8]])
    other_order = attempt([[8], [5, 6, 7]])
    assert tuple(other_order[0].shape) == (2, 4), (
        "the longest sentence need not come first: the rows are as long as it, plus one"
    )
    assert torch.equal(other_order[1].flip(0), wanted), (
        "rows should keep the order of the sentences"
    )
    assert wanted[1].tolist() != [8, 0, 0, 2], (
        "<eos> comes right after the sentence, the padding after it"
    )
    assert wanted[1].tolist() == [8, 2, 0, 0], (
        f"a short sentence says 8 <eos> <pad> <pad>, yours {wanted[1].tolist()}"
    )
    assert given[1].tolist() != [1, 8, 2, 0], (
        "a short sentence reads <bos> 8 <pad> <pad>, yours <bos> 8 <eos> <pad>: an <eos> there does"
        " no harm, as no question is asked at that position, but make_batch has none"
    )
    assert given[1].tolist() == [1, 8, 0, 0], (
        f"a short sentence reads <bos> 8 <pad> <pad>, yours {given[1].tolist()}"
    )
    given, wanted = attempt([[]])
    empty = given.tolist(), wanted.tolist()
    assert empty == ([[1]], [[2]]), f"the empty sentence reads <bos> and says <eos>, not {empty}"


@diagnostic("Exercise 14.2")
def check_smoothed_loss(attempt: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """Check a smoothed loss, on numbers known by hand: without smoothing, with it, with padding."""

    def loss(logits: Tensor, targets: Tensor, smoothing: float) -> float:
        return float(expect_tensor(attempt(logits, targets, smoothing, 0), (), "the loss"))

    even = loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), 0.0)
    assert abs(even - 2 * 1.3863) > 1e-3, "this is the sum over the tokens: take the mean"
    assert abs(even - 1.3863) < 1e-3, (
        f"4 equal logits give log 4 = 1.3863 a token, yours {even:.4f}: softmax over the last axis?"
    )
    even = loss(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), 0.1)
    assert abs(even - 1.3863) < 1e-3, (
        f"4 equal logits give log 4 = 1.3863 whatever the smoothing, yours {even:.4f}:"
        " do the shares q add up to 1?"
    )
    logits = torch.tensor([[[0.0, math.log(7.0), 0.0, 0.0]]])  # probabilities 0.1, 0.7, 0.1, 0.1
    plain = loss(logits, torch.tensor([[1]]), 0.0)
    assert abs(plain - 0.3567) < 1e-3, (
        f"without smoothing it is -log 0.7 = 0.3567, yours {plain:.4f}"
    )
    smooth = loss(logits, torch.tensor([[1]]), 0.4)
    wrong_only = 0.6 * 0.35667 + 0.4 * 2.30259
    assert abs(smooth - wrong_only) > 1e-3, (
        "the share is spread over the wrong tokens only; equation 14.2 spreads it over all"
    )
    assert abs(smooth - 0.9405) < 1e-3, (
        f"0.6 (-log 0.7) + 0.4 (the mean of all four) = 0.9405, yours {smooth:.4f}"
    )
    padding = torch.tensor([[[9.0, -3.0, 0.0, 5.0]]])  # (1, 1, 4): the logits at a padded position
    padded = torch.cat([logits, padding], dim=1)  # (1, 2, 4)
    got = loss(padded, torch.tensor([[1, 0]]), 0.4)
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
    got = float(attempt(torch.zeros(1, 2, 6), torch.tensor([[0, 5]]), 0.1, 5))
    assert abs(got - math.log(6)) < 1e-3, (
        f"with 6 entries and padding id 5 it is log 6 = {math.log(6):.4f}, yours {got:.4f}: both are arguments"
    )


@diagnostic("Exercise 14.3")
def check_half_peak(attempt: Callable[[int], tuple[int, int]]) -> None:
    """Check where the schedule is at half its peak, by the formula itself."""

    def rate(step: float, warmup: int) -> float:
        return float(min(step**-0.5, step * warmup**-1.5))

    for warmup in (4000, 10):
        answer = attempt(warmup)
        assert isinstance(answer, tuple), (
            f"return a tuple of two steps, not {type(answer).__name__}"
        )
        assert len(answer) == 2, f"return two steps, got {answer}"
        up, down = answer
        assert up > 0, f"steps are counted from 1, yours is {up}"
        assert up < warmup < down, (
            f"one step before the peak at {warmup}, one after it; yours are {up} and {down}"
        )
        half = rate(warmup, warmup) / 2
        of_peak = rate(up, warmup) / half / 2
        assert abs(of_peak - 0.5) < 1e-6, f"at step {up} the rate is {of_peak:.2f} of the peak"
        of_peak = rate(down, warmup) / half / 2
        assert abs(of_peak - 0.5) < 1e-6, (
            f"at step {down} it is {of_peak:.2f} of the peak: it falls with the ROOT of the step"
        )


@diagnostic("Exercise 14.4")
def check_clip(attempt: Callable[[list[Tensor], float], Tensor]) -> None:
    """Check clipping on two parameters whose gradient is (3, 4, 12): 13 long."""

    def make() -> list[Tensor]:
        parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
        return parameters

    def gradients(parameters: list[Tensor]) -> list[float]:
        present = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return [float(value) for gradient in present for value in gradient]

    parameters = make()
    length = float(attempt(parameters, 6.5))
    got = gradients(parameters)
    assert got != [3.0, 4.0, 12.0], (
        "nothing was clipped: change the gradients in place, parameter.grad.mul_(...)"
    )
    assert abs(length - 13) < 1e-4, f"the whole gradient (3, 4, 12) is 13 long, yours {length}"
    off = max(abs(got[0] / got[1] - 0.75), abs(got[2] / got[1] - 3))
    assert off < 1e-3, (
        f"(3, 4, 12) became {got}: another direction. One factor for ALL parameters,"
        " not one for each parameter, nor one for each number"
    )
    assert abs(got[2] - 6) < 1e-3, (
        f"(3, 4, 12) clipped to a length of 6.5 is (1.5, 2, 6), yours {got}"
    )
    parameters = make()
    attempt(parameters, 20.0)
    got = gradients(parameters)
    assert got == [3.0, 4.0, 12.0], f"a gradient that is short enough must stay, yours became {got}"
    parameters = make()
    attempt([torch.zeros(1, requires_grad=True), *parameters], 6.5)  # the first has no gradient
    got = gradients(parameters)
    assert abs(got[2] - 6) < 1e-3, f"a parameter without a gradient must not stop the rest: {got}"
