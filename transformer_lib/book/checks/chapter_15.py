"""The checks of chapter 15's exercises."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from transformer_lib.book.checks import diagnostic


@diagnostic("Exercise 15.1")
def check_unigram_loss(attempt: Callable[[list[int], list[int], int], float]) -> None:
    """Check a unigram loss: each likely mistake has a value of its own."""

    def loss(train: list[int], held_out: list[int], vocab_size: int) -> float:
        return float(attempt(train, held_out, vocab_size))

    # Counts of the training tokens, one added: 1, 4, 2 of 7 (vocabulary 3).
    train, held_out = [1, 1, 1, 2], [2, 2, 1, 0]
    expected = -(2 * math.log(2 / 7) + math.log(4 / 7) + math.log(1 / 7)) / 4
    mistakes = {
        expected / math.log(2): "that is in bits: use the natural logarithm",
        -expected: "the sign is wrong: a loss is -ln p",
        4 * expected: "that is the sum: take the mean over the held-out tokens",
        -(2 * math.log(3 / 7) + math.log(2 / 7) + math.log(2 / 7)) / 4: (
            "the counts come from the held-out tokens: the baseline may know the training tokens only"
        ),
        -(3 * math.log(4 / 7) + math.log(2 / 7)) / 4: (
            "the mean is over the training tokens: it should be over the held-out ones"
        ),
        math.log(3): "all tokens have the same probability: are the counts used?",
    }
    answer = loss(train, held_out, 3)
    for value, cause in mistakes.items():
        assert abs(answer - value) > 1e-4, cause
    assert math.isfinite(answer), (
        "a token that was never seen has an infinite loss: add one to each count"
    )
    assert abs(answer - expected) < 1e-4, (
        f"counts 0, 3, 1 become 1, 4, 2 of 7, so the loss is {expected:.3f}, yours is {answer:.3f}: is one added to "
        "each count, and to nothing else?"
    )
    larger = loss([1, 1], [3], 5)
    assert abs(larger - math.log(7)) < 1e-4, (
        f"with 5 entries in the vocabulary a token never seen has p = 1 / (2 + 5), a loss of 1.946, yours is {larger:.3f}"
    )


@diagnostic("Exercise 15.2")
def check_deranged(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check a random assignment of sources: all there, none in place, seeded, random, input untouched."""
    source = (
        torch.arange(1, 7)[:, None].expand(6, 3).clone()
    )  # (batch, source): row i is full of i + 1
    for seed in range(60):
        moved = attempt(source, seed)
        assert isinstance(moved, Tensor) and moved.shape == source.shape, (
            "the shape should stay (batch, source)"
        )
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
    """Check a training step on a model with two numbers, by an optimizer that notes what is done."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.tensor(1.0))
            self.second = nn.Parameter(torch.tensor(2.0))
            self.modes: list[bool] = []

        def forward(self) -> Tensor:
            self.modes.append(self.training)
            return 3 * self.first + 5 * self.second  # the gradients are 3 and 5

    class Watched(torch.optim.SGD):
        def __init__(self, groups: list[dict[str, Any]]) -> None:
            super().__init__(groups, lr=0.5)
            self.done: list[str] = []
            self.rates: list[float] = []
            self.gradients: list[float | None] = []

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.done.append("zero_grad")
            super().zero_grad(set_to_none)

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.done.append("step")
            self.rates = [group["lr"] for group in self.param_groups]
            found = [group["params"][0].grad for group in self.param_groups]
            self.gradients = [None if x is None else x.item() for x in found]
            super().step(closure)

    model = Two().eval()
    optimizer = Watched([{"params": [model.first]}, {"params": [model.second]}])
    value = attempt(model, optimizer, lambda module: module(), 0.1)
    assert isinstance(value, float), (
        f"return the loss as a Python number (.item()), not {type(value).__name__}"
    )
    assert model.modes, "loss_of(model) was never called"
    assert len(model.modes) == 1, f"the loss was computed {len(model.modes)} times: once is enough"
    assert model.modes == [True], "put the model into training mode before the loss is computed"
    assert abs(value - 13.0) < 1e-5, f"the loss before the step is 13, yours is {value}"
    steps = optimizer.done.count("step")
    assert steps == 1, f"optimizer.step() was called {steps} times, once is wanted"
    cleared = None in optimizer.gradients or 0.0 in optimizer.gradients
    assert not cleared or "zero_grad" not in optimizer.done[: optimizer.done.index("step")], (
        "at the step there is no gradient: is backward missing, or are the gradients cleared between backward and step?"
    )
    assert not cleared, "at the step there is no gradient: backward is missing"
    assert optimizer.rates != [0.5, 0.5], (
        "at the step the rate is still the old one, 0.5: set it in the groups, before the step"
    )
    assert optimizer.rates != [0.1, 0.5], (
        "only the first parameter group got the rate: set it in all of optimizer.param_groups"
    )
    assert optimizer.rates == [0.1, 0.1], f"both groups' rate is 0.1, yours are {optimizer.rates}"
    first = model.first.item()
    assert abs(first - 0.7) < 1e-5, f"one step at rate 0.1 takes 1.0 to 0.7, yours is at {first}"
    attempt(model, optimizer, lambda module: module(), 0.05)
    assert optimizer.rates == [0.05, 0.05], (
        f"the second step's rate is 0.05, yours are {optimizer.rates}: use the argument `rate`"
    )
    assert abs(model.first.item() - 0.4) > 1e-5, (
        "the second step uses the gradient of both steps: clear the old one"
    )
    assert abs(model.first.item() - 0.55) < 1e-5, (
        f"the second step, at rate 0.05, takes 0.7 to 0.55, yours is at {model.first.item()}"
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
    assert abs(one("ab ac", "ab cd") - 0.5) < 1e-6, (
        "'ab ac' against 'ab cd' share one word of two and two, 0.5: do you compare words, and not letters?"
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
