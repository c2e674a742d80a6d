"""The checks of chapter 2's exercises."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 2.1")
def check_length_mask(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check a mask of lengths: type and shape, then which side is allowed, then the edge, then an empty sentence."""
    value = attempt(torch.tensor([2, 4, 1]), 4)
    assert tuple(value.shape) != (3, 4), (
        "the mask has shape (batch, keys): between them the queries need an axis of length 1, "
        "or it is taken for (queries, keys)"
    )
    mask = expect_tensor(value, (3, 1, 4), "the mask for lengths 2, 4, 1")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    allowed = mask[:, 0].tolist()
    real = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert allowed != [[not word for word in row] for row in real], (
        "upside down: True means allowed, and the real words are allowed"
    )
    assert allowed[1] == [True] * 4 or allowed[0] != [True, False, False, False], (
        "one word too few: key j is real if j < length (the first key is number 0)"
    )
    assert allowed[0] != [True, True, True, False], (
        "one word too many: key j is real if j < length (the first key is number 0)"
    )
    assert allowed == real, f"lengths 2, 4, 1 should allow {real}, yours allows {allowed}"
    assert not attempt(torch.tensor([0, 3]), 3)[0].any(), "an empty sentence allows nothing"


@diagnostic("Exercise 2.2")
def check_temperature(attempt: Callable[[Tensor, float], float]) -> None:
    """Check a search for a temperature: two keys in closed form, scores ten times as large, shifted, then more keys."""
    two = float(attempt(torch.tensor([1.0, 0.0]), 0.99))
    right = 1 / math.log(99)  # from 1 / (1 + exp(-1 / T)) = 0.99
    assert math.isfinite(two) and two > 0, f"a temperature is a positive number, got {two}"
    assert abs(two * right - 1) > 0.01, (
        f"for scores 1 and 0 you return {two:.3f}, which is one over the temperature: "
        "scores are divided by it"
    )
    assert abs(two / right - 1) < 0.01, (
        f"for scores 1 and 0 and a share of 0.99 the temperature is 1 / ln 99 = {right:.3f}, yours is {two:.3f}"
    )
    ten = float(attempt(torch.tensor([10.0, 0.0]), 0.99))
    assert abs(ten / (10 * right) - 1) < 0.01, (
        f"scores ten times as large need a temperature ten times as high, {10 * right:.2f}, yours is {ten:.2f}: "
        "does your interval reach that far?"
    )
    shifted = float(attempt(torch.tensor([501.0, 500.0]), 0.99))
    assert abs(shifted / right - 1) < 0.02, (
        f"adding 500 to both scores should change nothing, but you return {shifted:.3f}: do you subtract the largest?"
    )
    for share in (0.5, 0.99):
        scores = torch.tensor([0.2, 1.0, 0.7, -0.4, 0.7])
        temperature = float(attempt(scores, share))
        found = (scores / temperature).softmax(dim=-1).max().item()
        assert abs(found - share) < 0.002, (
            f"five keys, share {share}: at your temperature {temperature:.3f} the best key gets {found:.3f}; "
            "do all the keys count, and does the share?"
        )


@diagnostic("Exercise 2.3")
def check_additive_similarity(
    attempt: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Check the additive score: its shape, then where tanh and v stand, then all numbers, then a batch."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 2, generator=generator), torch.randn(5, 4, generator=generator)
    w_query, w_key = torch.randn(2, 6, generator=generator), torch.randn(4, 6, generator=generator)
    v = torch.randn(6, generator=generator)
    scores = attempt(query, key, w_query, w_key, v)
    assert tuple(scores.shape) != (5, 3), (
        "the scores are transposed: rows are queries, columns are keys"
    )
    assert tuple(scores.shape) != (3, 5, 6), (
        "there is still a vector for each pair: v should turn it into a number"
    )
    scores = expect_tensor(scores, (3, 5), "the scores of 3 queries and 5 keys")
    added = (query @ w_query)[:, None] + (key @ w_key)[None]  # (queries, keys, hidden)
    mistakes = {
        "the tanh is missing: without it the softmax does not hear the query": added @ v,
        "the tanh is missing, and so is v": added.sum(dim=-1),
        "v is missing: you add up the hidden units as they are": added.tanh().sum(dim=-1),
        "the tanh stands outside: it belongs before v": (added @ v).tanh(),
        "the tanh comes before the sum: add first, or the softmax does not hear the query": (
            (query @ w_query).tanh()[:, None] + (key @ w_key).tanh()[None]
        )
        @ v,
    }
    for message, wrong in mistakes.items():
        assert not torch.allclose(scores, wrong, atol=1e-5), message
    assert torch.allclose(scores, added.tanh() @ v, atol=1e-5), (
        "the shape is right, the numbers are not: left to suspect are the maps (query with w_query, key with w_key)"
    )
    batched = attempt(query.expand(7, 3, 2), key.expand(7, 5, 4), w_query, w_key, v)
    assert tuple(batched.shape) == (7, 3, 5) and torch.allclose(
        batched, scores.expand(7, 3, 5), atol=1e-5
    ), "a batch is off: count the new axes from the end, with unsqueeze(-2) and unsqueeze(-3)"


@diagnostic("Exercise 2.4")
def check_one_pass_lookup(attempt: Callable[[Iterator[tuple[float, Tensor]]], Tensor]) -> None:
    """Check a lookup in one pass: one pair, equal scores, falling scores, rising scores, then huge ones."""

    def run(scores: list[float], what: str) -> tuple[Tensor, Tensor]:
        values = torch.arange(2.0 * len(scores)).view(-1, 2).square()
        try:
            output = attempt(iter(list(zip(scores, values.clone(), strict=True))))
        except OverflowError:
            raise AssertionError(
                f"{what}: an exponential overflows; subtract the largest score so far before exp"
            ) from None
        expected = torch.tensor(scores).softmax(dim=0) @ values
        output = expect_tensor(output, (2,), f"the output for {what}")
        assert not output.isnan().any(), (
            f"{what}: NaN; subtract the largest score so far, and mind the start: "
            "minus infinity less minus infinity is NaN"
        )
        return output, expected

    output, expected = run([0.5], "one pair")
    assert torch.allclose(output, expected), (
        f"with one pair its value must come out, {expected}, not {output}"
    )
    output, expected = run([1.0, 1.0, 1.0], "three equal scores")
    assert torch.allclose(output, expected), (
        f"with equal scores the mean must come out, {expected}, not {output}: do you divide by the sum of exponentials?"
    )
    output, expected = run([2.0, 1.0, -1.0], "falling scores")
    assert torch.allclose(output, expected), (
        f"falling scores are off, {output} for {expected}: each value counts with exp(score - largest)"
    )
    output, expected = run([-1.0, 1.0, 2.0, 0.0], "rising scores")
    assert torch.allclose(output, expected), (
        f"falling scores are right, rising ones are off, {output} for {expected}: when a new largest score comes, "
        "both sums so far must be multiplied by exp(old largest - new largest)"
    )
    output, expected = run([-2000.0, 1000.0, 1001.0, -3000.0], "huge scores")
    assert torch.allclose(output, expected), f"huge scores are off, {output} for {expected}"
