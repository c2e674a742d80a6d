"""The checks of chapter 2's exercises."""

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import LargestTensor, diagnostic, expect_tensor


@diagnostic("Exercise 2.1")
def check_declining_lookup(attempt: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check softmax with 1 in its denominator: shape, one key, mistakes by name, batches, huge, low, forbidden."""
    generator = torch.Generator().manual_seed(0)

    def run(scores: Tensor, value: Tensor) -> Tensor:
        shape = (*scores.shape[:-1], value.size(-1))
        what = f"the output for scores {tuple(scores.shape)} and values {tuple(value.shape)}"
        return expect_tensor(attempt(scores, value), shape, what)

    one = run(torch.zeros(1, 1), torch.tensor([[6.0, -2.0]]))
    assert not torch.allclose(one, torch.tensor([[6.0, -2.0]])), (
        "a single key with score 0 gets weight 1, as in the plain softmax: where is the 1 in the denominator?"
    )
    assert torch.allclose(one, torch.tensor([[3.0, -1.0]])), (
        f"a single key with score 0 should get the weight 1 / (1 + 1), so that half of its value comes out, (3, -1), not {one[0].tolist()}"
    )
    scores, value = torch.randn(3, 4, generator=generator), torch.randn(4, 2, generator=generator)
    exponentials = scores.exp()  # (queries, keys)
    output = run(scores, value)
    shifted = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    mistakes = {
        "the softmax is over the queries: dim=-1 is the axis of the keys": (
            exponentials / (1 + exponentials.sum(dim=-2, keepdim=True))
        )
        @ value,
        "after subtracting the largest score the 1 is no longer 1: e^0 has become e^(-largest)": (
            shifted / (1 + shifted.sum(dim=-1, keepdim=True))
        )
        @ value,
        "the 1 is added after the division: it belongs into the denominator": scores.softmax(dim=-1)
        @ value
        / 2,
        "the sum runs over all queries: each query has a denominator of its own": (
            exponentials / (1 + exponentials.sum())
        )
        @ value,
    }
    for message, wrong in mistakes.items():
        assert not torch.allclose(output, wrong, atol=1e-5), message
    right = exponentials / (1 + exponentials.sum(dim=-1, keepdim=True)) @ value
    assert torch.allclose(output, right, atol=1e-5), (
        f"three queries, four keys: the outputs should be {right.tolist()}, yours are {output.tolist()}"
    )
    scores, value = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 6, 4)
    right = F.pad(scores, (0, 1)).softmax(dim=-1)[..., :-1] @ value
    assert torch.allclose(run(scores, value), right, atol=1e-5), (
        "two leading dimensions are off: count axes from the end"
    )
    high = torch.tensor([[1000.0, 999.0, -1000.0]])
    output = run(high, torch.eye(3))
    assert output.isfinite().all(), (
        "scores of 1000 overflow: subtract the largest score first, or let torch's softmax do it"
    )
    assert torch.allclose(output, high.softmax(dim=-1), atol=1e-5), (
        f"beside a score of 1000 the extra key should not count, the weights should be {high.softmax(dim=-1).tolist()}, yours are {output.tolist()}"
    )
    output = run(torch.tensor([[-1000.0, -1001.0]]), torch.eye(2))
    assert output.isfinite().all(), (
        "scores of -1000 give NaN or infinity: relative to them the 1 is huge. Subtract the largest score or 0, whichever is larger"
    )
    assert output.abs().max() < 1e-6, (
        f"where all scores are -1000 the query should decline, but {output.tolist()} comes out"
    )
    forbidden = torch.tensor([[0.5, -math.inf], [-math.inf, -math.inf]])
    output = run(forbidden, torch.tensor([[2.0], [7.0]]))
    assert output.isfinite().all(), (
        "a query with forbidden keys only gets NaN: with the extra key among the others there is always one that is allowed"
    )
    expected = torch.tensor([[2 / (1 + math.exp(-0.5))], [0.0]])
    assert torch.allclose(output, expected, atol=1e-5), (
        f"with forbidden keys the output should be {expected.flatten().tolist()}, yours is {output.flatten().tolist()}"
    )


def _temperature(scores: Tensor, share: float) -> float:
    """By halving, in double precision."""
    cold, hot = 1e-9, 1e9
    for _ in range(200):
        middle = math.sqrt(cold * hot)
        if (scores.double() / middle).softmax(dim=-1).max() > share:
            cold = middle
        else:
            hot = middle
    return middle


@diagnostic("Exercise 2.2")
def check_temperature(attempt: Callable[[Tensor, float], float]) -> None:
    """Check a search for a temperature: two keys in closed form, larger and smaller gaps, shifts, more keys, shares."""

    def run(scores: list[float], share: float) -> tuple[float, float]:
        tensor = torch.tensor(scores)
        answer = float(attempt(tensor, share))
        assert math.isfinite(answer) and answer > 0, (
            f"scores {scores}, share {share}: a temperature is a positive number, got {answer}"
        )
        return answer, _temperature(tensor, share)

    found, right = run([1.0, 0.0], 0.99)  # 1 / ln 99
    assert abs(found * right - 1) > 0.01, (
        f"for scores 1 and 0 you return {found:.3f}, which is one over the temperature: scores are divided by it"
    )
    assert abs(found / right - 1) < 0.01, (
        f"for scores 1 and 0 and a share of 0.99 the temperature is 1 / ln 99 = {right:.3f}, yours is {found:.3f}"
    )
    for gap in (10.0, 1000.0, 0.001):
        found, right = run([gap, 0.0], 0.99)
        assert abs(found / right - 1) < 0.01, (
            f"a gap of {gap} needs {gap} times the temperature of a gap of 1, {right:.3g}, yours is {found:.3g}: does your interval reach that far?"
        )
    for shift, word in ((500.0, "adding 500 to"), (-3.0, "subtracting 3 from")):
        found, right = run([shift, 1 + shift], 0.99)
        assert abs(found / right - 1) < 0.01, (
            f"{word} all scores should change nothing, the temperature is {right:.3f}, but you return {found:.3f}: do you subtract the largest score, and look for it?"
        )
    found, right = run([1.0, 0.0], 0.75)
    assert abs(found / right - 1) < 0.01, (
        f"for scores 1 and 0 and a share of 0.75 the temperature is {right:.3f}, yours is {found:.3f}: do you use the share?"
    )
    for scores in ([0.2, 1.0, 0.7, -0.4, 0.7], [-7.0, -3.0, -2.5, -9.0]):
        for share in (0.99, 0.5, 0.3):
            found, right = run(scores, share)
            assert abs(found / right - 1) < 0.01, (
                f"scores {scores}, share {share}: the temperature is {right:.3f}, yours is {found:.3f}; do all the keys count?"
            )


@diagnostic("Exercise 2.3")
def check_nearest(attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check wider queries and keys: shapes, then mistakes by name, then that each is made of its own alone, then batches."""
    generator = torch.Generator().manual_seed(0)

    def run(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        pair = attempt(query, key)
        assert isinstance(pair, tuple | list) and len(pair) == 2, (
            f"return two tensors, the new queries and the new keys, not {type(pair).__name__}"
        )
        new_query, new_key = pair
        for name, new, old in (("queries", new_query, query), ("keys", new_key, key)):
            assert isinstance(new, Tensor), f"the new {name} should be a tensor, not {type(new)}"
            assert new.shape[:-1] == old.shape[:-1], (
                f"the new {name} may be wider than {tuple(old.shape)}, but not otherwise different in shape, yours are {tuple(new.shape)}"
            )
        assert new_query.size(-1) == new_key.size(-1), (
            f"new queries and keys should have one width, yours are {new_query.size(-1)} and {new_key.size(-1)} wide: a feature of the key needs a partner in the query"
        )
        return new_query, new_key

    query, key = torch.randn(4, 3, generator=generator), torch.randn(6, 3, generator=generator)
    key *= torch.linspace(0.2, 3, 6)[:, None]  # lengths that differ
    new_query, new_key = run(query, key)
    weights = (new_query @ new_key.mT).softmax(dim=-1)  # (queries, keys)
    product, square = query @ key.T, key.square().sum(dim=-1)
    mistakes = {
        "the weights are those of q.k alone: the length of the keys is still missing": product,
        "long keys are rewarded, they should be punished: mind the sign of |k|^2": product
        + square / 2,
        "the term of the keys is twice too large: the half in front stands before |k|^2, too": product
        - square,
        "q.k is half of what it should be: (q - k)^2 holds it twice, and half of that is once": product
        / 2
        - square / 2,
        "these are the weights of -|q - k|^2, without the half": 2 * product - square,
        "|k| is not squared": product - square.sqrt() / 2,
        "upside down: the nearest key gets the least weight": square / 2 - product,
    }
    for message, scores in mistakes.items():
        assert not torch.allclose(weights, scores.softmax(dim=-1), atol=1e-5), message
    distance = (query[:, None] - key[None]).square().sum(dim=-1)  # (queries, keys)
    right = (-distance / 2).softmax(dim=-1)
    assert torch.allclose(weights, right, atol=1e-4), (
        f"the weights are off: for the first query they should be {right[0].tolist()}, yours are {weights[0].tolist()}"
    )
    other_query, _ = run(query, 2 * key)
    assert torch.allclose(other_query, new_query, atol=1e-5), (
        "with other keys the new queries change: a new query may be made of its own query only"
    )
    _, other_key = run(query[:1] + 1, key)
    assert torch.allclose(other_key, new_key, atol=1e-5), (
        "with other queries the new keys change: a new key may be made of its own key only"
    )
    first_query, first_key = run(query[:2], key[:2])
    assert torch.allclose(first_query, new_query[:2], atol=1e-5), (
        "a new query depends on the queries beside it"
    )
    assert torch.allclose(first_key, new_key[:2], atol=1e-5), (
        "a new key depends on the keys beside it: is the sum over dim=-1?"
    )
    query, key = torch.randn(2, 5, 4, 7), torch.randn(2, 5, 3, 7)
    new_query, new_key = run(query, key)
    distance = (query.unsqueeze(-2) - key.unsqueeze(-3)).square().sum(dim=-1)
    assert torch.allclose(
        (new_query @ new_key.mT).softmax(dim=-1), (-distance / 2).softmax(dim=-1), atol=1e-4
    ), "leading dimensions are off: count axes from the end"


class _Score(float):
    """A number that a weak reference can watch."""


@diagnostic("Exercise 2.4")
def check_one_pass_lookup(attempt: Callable[[Iterator[tuple[float, Tensor]]], Tensor]) -> None:
    """Check a lookup in one pass: one pair, equal, falling, rising, all low and huge scores; then what it keeps."""

    def run(scores: list[float], what: str, width: int = 2) -> tuple[Tensor, Tensor]:
        values = torch.arange(float(width * len(scores))).view(-1, width).square() - 3
        given = values.clone()
        try:
            output = attempt(iter(list(zip(scores, given, strict=True))))
        except OverflowError:
            raise AssertionError(
                f"{what}: an exponential overflows; subtract the largest score so far before exp"
            ) from None
        except ZeroDivisionError:
            raise AssertionError(
                f"{what}: the sum of exponentials is 0; does your largest score start at 0? Start with the first one"
            ) from None
        output = expect_tensor(output, (width,), f"the output for {what}")
        assert torch.equal(given, values), (
            f"{what}: your function changes a value in place; it belongs to the caller, so add up in a tensor of your own"
        )
        return output, torch.tensor(scores, dtype=torch.float64).softmax(dim=0).float() @ values

    def close(output: Tensor, expected: Tensor) -> bool:
        return torch.allclose(output, expected, rtol=1e-4, atol=1e-4)

    output, expected = run([0.5], "one pair")
    assert not output.isnan().any(), (
        "one pair: NaN; mind the start: minus infinity less minus infinity is NaN"
    )
    assert close(output, expected), (
        f"with one pair its value must come out, {expected.tolist()}, not {output.tolist()}"
    )
    output, expected = run([1.0, 1.0, 1.0], "three equal scores", 3)
    assert close(output, expected), (
        f"with equal scores the mean must come out, {expected.tolist()}, not {output.tolist()}: do you divide by the sum of exponentials?"
    )
    output, expected = run([2.0, 1.0, -1.0], "falling scores")
    assert close(output, expected), (
        f"falling scores are off, {output.tolist()} for {expected.tolist()}: each value counts with exp(score - largest)"
    )
    output, expected = run([-1.0, 1.0, 2.0, 0.0], "rising scores")
    assert close(output, expected), (
        f"falling scores are right, rising ones are off, {output.tolist()} for {expected.tolist()}: when a new largest score comes, both sums so far must be multiplied by exp(old largest - new largest)"
    )
    for scores in ([-900.0, -901.0, -899.0], [-2000.0], [-3e5, -2e5]):
        output, expected = run(scores, f"low scores {scores}")
        assert output.isfinite().all() and close(output, expected), (
            f"low scores {scores} are off, {output.tolist()} for {expected.tolist()}: does your largest score start at 0, or at a number that is not low enough? Start with the first one"
        )
    output, expected = run([-2000.0, 1000.0, 1001.0, -3000.0], "huge scores")
    assert not output.isnan().any(), (
        "huge scores: NaN; subtract the largest score so far before every exp"
    )
    assert close(output, expected), (
        f"huge scores are off, {output.tolist()} for {expected.tolist()}"
    )

    alive: list[weakref.ref[Any]] = []
    most = 0

    def stream(length: int) -> Iterator[tuple[float, Tensor]]:
        nonlocal most
        for i in range(length):
            most = max(most, sum(ref() is not None for ref in alive))
            score, value = _Score(math.sin(i)), torch.full((2,), float(i))
            alive.extend((weakref.ref(score), weakref.ref(value)))
            yield score, value
            del score, value

    with LargestTensor() as watch:  # type: ignore[no-untyped-call]
        output = attempt(stream(60))
    assert most <= 12 and watch.numbers <= 24, (
        "your function keeps the pairs it has read, or collects them in a growing tensor: keep the largest score and two sums, and forget each pair"
    )
    expected = torch.tensor([math.sin(i) for i in range(60)]).softmax(dim=0) @ torch.arange(60.0)
    assert close(output, expected.expand(2)), (
        f"sixty pairs are off, {output.tolist()} for {expected.item()}"
    )
