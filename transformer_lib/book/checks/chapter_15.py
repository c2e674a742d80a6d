"""The checks of chapter 15's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from transformer_lib.book.checks import diagnostic


@diagnostic("Exercise 15.1")
def check_unigram_loss(attempt: Callable[[list[int], list[int], int], float]) -> None:
    """Check a unigram loss: no counts, counts, tokens never seen, which list is which."""

    def close(train: list[int], held_out: list[int], vocab_size: int, expected: float) -> bool:
        return abs(float(attempt(train, held_out, vocab_size)) - expected) < 1e-4

    expected = -math.log(3 / 5)
    assert not close([1, 1], [1], 3, expected / math.log(2)), (
        "that is in bits: use the natural logarithm"
    )
    assert close([1, 1], [1], 3, expected), (
        f"token 1 seen twice, 3 tokens in all: p = (2 + 1) / (2 + 3), so {expected:.3f}, yours is {attempt([1, 1], [1], 3):.3f}"
    )
    assert close([1, 1], [2], 3, -math.log(1 / 5)), "a token that was never seen has p = 1 / 5 here"
    assert close([1, 1], [2], 5, math.log(7)), (
        "with 5 entries a token never seen has p = 1 / (2 + 5)"
    )
    assert close([1, 1], [1, 1, 2, 2], 3, 0.5 * (expected + math.log(5))), (
        "the mean is over the held-out tokens; the counts come from the training tokens only"
    )


@diagnostic("Exercise 15.2")
def check_deranged(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check a random assignment of sources: all there, none in place, seeded, random, input untouched."""
    source = (
        torch.arange(1, 7)[:, None].expand(6, 3).clone()
    )  # (batch, source): row i is full of i + 1
    before = source.clone()
    for seed in range(60):
        moved = attempt(source, seed)
        assert isinstance(moved, Tensor) and moved.shape == source.shape, (
            "the shape should stay (batch, source)"
        )
        assert torch.equal(source, before), "the tensor that came in was changed: return a new one"
        assert moved[:, 0].sort().values.tolist() == [1, 2, 3, 4, 5, 6], (
            "every source should be used exactly once"
        )
        assert (moved == moved[:, :1]).all(), "sources were torn apart: move whole rows"
        kept = (moved[:, 0] == source[:, 0]).sum().item()
        assert kept == 0, f"with seed {seed}, {kept} rows keep their own source"
    assert torch.equal(attempt(source, 3), attempt(source, 3)), (
        "the same seed should give the same assignment"
    )
    different = {tuple(attempt(source, seed)[:, 0].tolist()) for seed in range(60)}
    assert len(different) > 5, f"60 seeds give only {len(different)} assignments: is it random?"


@diagnostic("Exercise 15.3")
def check_training_step(attempt: Callable[..., float]) -> None:
    """Check a training step on a model with one number: the value, rate, groups, old gradients, mode."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.tensor(1.0))
            self.second = nn.Parameter(torch.tensor(2.0))
            self.modes: list[bool] = []

        def forward(self) -> Tensor:
            self.modes.append(self.training)
            return 3 * self.first + 5 * self.second  # the gradients are 3 and 5

    model = Two().eval()
    optimizer = torch.optim.SGD([{"params": [model.first]}, {"params": [model.second]}], lr=0.0)
    value = attempt(model, optimizer, lambda module: module(), 0.1)
    assert isinstance(value, float), (
        f"return the loss as a Python number (.item()), not {type(value).__name__}"
    )
    assert abs(value - 13.0) < 1e-5, f"the loss before the step is 13, yours is {value}"
    assert model.modes == [True], (
        "put the model into training mode before the loss is computed, and compute it once"
    )
    first, second = model.first.item(), model.second.item()
    assert first != 1.0, (
        "the first parameter has not moved: is backward, step or the rate missing, is the rate set after "
        "the step, or are the gradients cleared between backward and step?"
    )
    assert second != 2.0, (
        "only the first parameter group got the rate: set it in all of optimizer.param_groups"
    )
    assert abs(first - 0.7) < 1e-5, f"one step at rate 0.1 takes 1.0 to 0.7, yours is at {first}"
    attempt(model, optimizer, lambda module: module(), 0.1)
    assert abs(model.first.item() - 0.1) > 1e-5, (
        "the second step uses the gradient of both steps: clear the old one"
    )
    assert abs(model.first.item() - 0.4) < 1e-5, (
        f"the second step takes 0.7 to 0.4, yours is at {model.first.item()}"
    )
    attempt(model, optimizer, lambda module: module(), 0.0)
    assert abs(model.first.item() - 0.4) < 1e-5, (
        "at rate 0 nothing should move: is the rate set before the step?"
    )


@diagnostic("Exercise 15.4")
def check_overlap_by_length(
    attempt: Callable[[list[str], list[str], list[int]], dict[int, float]],
) -> None:
    """Check overlap by length: one pair, repeated words, the bounds, empty groups and translations."""

    def one(translation: str, reference: str) -> float:
        return float(attempt([translation], [reference], [1])[1])

    answer = attempt(["a b"], ["a b"], [1])
    assert isinstance(answer, dict) and list(answer) == [1], (
        f"return a dictionary from bound to mean, not {answer!r}"
    )
    assert abs(one("a b", "a b") - 1.0) < 1e-6, "equal texts have an overlap of 1"
    assert one("a b", "c d") == 0.0, "texts without a common word have an overlap of 0"
    assert abs(one("a a a a", "a b") - 2 / 6) < 1e-6, (
        "'a a a a' against 'a b': one word is shared, 2 * 1 / (4 + 2); a repeated word counts only as often as both have it"
    )
    assert abs(one("a", "a b c") - 0.5) < 1e-6, (
        "'a' against 'a b c': 2 * 1 / (1 + 3): count the words of both texts"
    )
    assert one("", "a b") == 0.0, "an empty translation has an overlap of 0"
    answer = attempt(["a", "x", "a b c"], ["a", "a b", "a b c"], [1, 3, 9])
    assert 9 not in answer, "a group without a sentence should be left out"
    answer_by_reference = attempt(["a b c d"], ["a"], [1, 3])
    assert list(answer_by_reference) == [1], (
        "a reference of 1 word belongs to group 1, however long the translation is"
    )
    assert abs(answer[1] - 0.5) < 1e-6, (
        f"references of 1 and 2 words are in group 1, with mean 0.5, yours is {answer[1]}"
    )
    assert abs(answer[3] - 1.0) < 1e-6, (
        "a reference of 3 words belongs to group 3: the bound is included"
    )
