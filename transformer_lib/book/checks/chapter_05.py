"""The checks of chapter 5's exercises."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 5.1")
def check_causal_mask(attempt: Callable[[int], Tensor]) -> None:
    """Check a causal mask: length 1, then the first query, then the diagonal, then everything."""
    mask = expect_tensor(attempt(1), (1, 1), "the mask of one position")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    assert mask.item() is True, (
        "a single position may see itself: is it < where it should be <=, or does your True mean forbidden?"
    )
    mask = expect_tensor(attempt(4), (4, 4), "the mask of four positions")
    assert mask.diagonal().all(), "every position may see itself: is it < where it should be <= ?"
    assert mask[0].tolist() != [True] * 4, (
        "query 0 sees the future: rows are queries, columns are keys (transposed?)"
    )
    for length in (4, 7):
        mask = expect_tensor(attempt(length), (length, length), f"the mask of {length} positions")
        assert mask.tolist() == [[j <= i for j in range(length)] for i in range(length)], (
            f"row i should allow keys 0 to i, got {mask}"
        )


@diagnostic("Exercise 5.2")
def check_attention(attempt: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check masked attention: one key isolates the values, equal keys the averaging, then scale, mask, batch."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    value = torch.randn(5, 2, generator=generator)
    every = torch.ones(3, 5, dtype=torch.bool)

    one = expect_tensor(
        attempt(query, key[:1], value[:1], every[:, :1]),
        (3, 2),
        "the output for 3 queries and 1 key",
    )
    assert torch.isfinite(one).all(), (
        "one allowed key gives NaN: is the mask upside down (True means allowed), "
        "or do you multiply by -inf (0 * inf is NaN)?"
    )
    assert torch.allclose(one, value[:1].expand(3, 2)), (
        "with one key its value must come out: is the softmax over the keys?"
    )
    equal = attempt(query, key[:1].expand(5, 4), value, every)
    assert torch.allclose(equal, value.mean(dim=0).expand(3, 2), atol=1e-6), (
        "with equal keys the mean of all values must come out"
    )

    expected = F.scaled_dot_product_attention(query, key, value)
    unscaled = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    output = attempt(query, key, value, every)
    assert not torch.allclose(output, unscaled, atol=1e-5), (
        "the values are right, but the scores are not divided by sqrt(d_k)"
    )
    assert torch.allclose(output, expected, atol=1e-5), (
        "with every key allowed the output is off: left to suspect are the scale (square root of the query's width), "
        "the softmax's axis (the keys), and a mask upside down (True means allowed)"
    )

    only = torch.zeros(3, 5, dtype=torch.bool)
    only[:, 2] = True
    picked = attempt(query, key, value, only)
    assert torch.isfinite(picked).all(), (
        "a masked score became NaN: use masked_fill, not a product with -inf (0 * inf is NaN)"
    )
    assert torch.allclose(picked, value[2].expand(3, 2), atol=1e-5), (
        "only key 2 is allowed, so value 2 must come out: left to suspect are a mask that is not used, "
        "one applied after the softmax, and one multiplied instead of filled with -inf"
    )
    some = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=some)
    assert torch.allclose(attempt(query, key, value, some), expected, atol=1e-5), (
        "with part of the keys allowed the output is off: is the mask applied before the softmax?"
    )
    batched = attempt(query.expand(6, 3, 4), key.expand(6, 5, 4), value.expand(6, 5, 2), some)
    assert torch.allclose(batched, expected.expand(6, 3, 2), atol=1e-5), (
        "a batch is off: transpose the last two dimensions only; and is the softmax over dim=-1?"
    )
    wide, values = torch.randn(3, 9, generator=generator), torch.randn(3, 9, generator=generator)
    expected_wide = F.scaled_dot_product_attention(wide, wide, values, attn_mask=some[:, :3])
    found = expect_tensor(attempt(wide, wide, values, some[:, :3]), (3, 9), "the output of width 9")
    assert torch.allclose(found, expected_wide, atol=1e-5), (
        "queries of width 4 are right, of width 9 not: the scale is the square root of THEIR width, query.size(-1)"
    )


@diagnostic("Exercise 5.3")
def check_window_mask(attempt: Callable[[int, int], Tensor]) -> None:
    """Check a window mask: radius 0, then both sides, then a window wider than the sentence."""
    mask = expect_tensor(attempt(5, 0), (5, 5), "the mask for length 5")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    assert mask.tolist() == torch.eye(5).bool().tolist(), (
        "radius 0: every position sees itself and nobody else"
    )
    mask = attempt(5, 1)
    assert mask[2, 3] and mask[2, 1], "radius 1: position 2 sees both neighbors, 1 and 3"
    assert not mask[2, 4] and not mask[0, 4], (
        "radius 1: too far away is still allowed (or the window wraps around)"
    )
    assert mask[0, :2].all() and mask[4, 3:].all(), (
        "radius 1: the first positions and the last see themselves and their one neighbor; a slice that begins below 0 "
        "begins at the other end"
    )
    assert mask.sum().item() == 13, (
        f"radius 1, length 5: 13 pairs are allowed, yours allows {mask.sum().item()}"
    )
    assert attempt(5, 9).all(), "a radius beyond the sentence allows everything"
    for length, radius in ((1, 0), (8, 2), (9, 5)):
        mask = expect_tensor(
            attempt(length, radius), (length, length), f"the mask for length {length}"
        )
        right = [[abs(i - j) <= radius for j in range(length)] for i in range(length)]
        assert mask.tolist() == right, (
            f"length {length}, radius {radius} is off: are all sizes used?"
        )


@diagnostic("Exercise 5.4")
def check_leak_detector(attempt: Callable[[Callable[[Tensor], Tensor]], bool]) -> None:
    """Check a leak detector on honest attention, on a leak through the softmax's sum, and on a leak from one position."""

    def causal(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    def open_to_all(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    def masked_too_late(x: Tensor) -> Tensor:
        return (x @ x.T / math.sqrt(x.size(-1))).softmax(dim=-1).tril() @ x

    def peeks_once(x: Tensor) -> Tensor:
        output = causal(x)
        if x.size(0) > 2:
            output[1] = output[1] + 1e-2 * x[2]
        return output

    verdicts = {
        name.__name__: attempt(name) for name in (causal, open_to_all, masked_too_late, peeks_once)
    }
    wrong_types = {
        name: type(verdict).__name__
        for name, verdict in verdicts.items()
        if not isinstance(verdict, bool)
    }
    assert not wrong_types, f"leaks should return True or False, but returned {wrong_types}"
    assert not verdicts["causal"], (
        "causal attention does not leak: position i may depend on position i itself"
    )
    assert verdicts["open_to_all"], "attention without a mask leaks, and you did not see it"
    assert verdicts["masked_too_late"], (
        "masking after the softmax leaks through its sum: compare exactly, not roughly"
    )
    assert verdicts["peeks_once"], (
        "position 1 sees position 2 and nobody else leaks: do you try every position, and is your tolerance small enough?"
    )
