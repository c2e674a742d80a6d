"""The checks of chapter 20's exercises."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from transformer_lib.attention import KeyValueCache, MultiHeadAttention
from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.book.variations import BASE, make_model
from transformer_lib.transformer import Transformer, count_parameters


@diagnostic("Exercise 20.1")
def check_saved(attempt: Callable[[int, int, int, int], int]) -> None:
    """Check what narrow keys save against models that are built and counted."""
    for key_width, layers, d, heads in ((8, 5, 128, 4), (16, 3, 128, 4), (4, 2, 72, 6)):
        change: dict[str, Any] = {"num_encoder_layers": layers, "num_decoder_layers": layers}
        change |= {"d_model": d, "num_heads": heads}
        full = count_parameters(Transformer(replace(BASE, **change)))
        expected = full - count_parameters(make_model(change | {"key_width": key_width}, seed=0))
        answer = attempt(d, heads, key_width, layers)
        lost = d - heads * key_width  # columns that a map loses
        assert answer != -expected, "this is negative: count what is saved, not what is added"
        assert answer != 3 * layers * 2 * lost * d, (
            "the biases are missing: a column less is d_model weights and a bias less"
        )
        assert answer != 2 * layers * 2 * lost * (d + 1), (
            "a decoder layer has TWO attentions, so a level has three: one is missing"
        )
        assert answer != 3 * layers * lost * (d + 1), (
            "queries AND keys are narrower: two maps of each attention, not one"
        )
        assert answer != 3 * layers * 4 * lost * (d + 1), (
            "values and output keep their width: two maps are narrower, not four"
        )
        assert answer != 3 * layers * 2 * (d // heads - key_width) * (d + 1), (
            "d_k is the width of ONE head: every map loses that for each of its heads"
        )
        assert answer != expected // layers, "this is one level: there are `layers` of them"
        assert answer == expected, (
            f"d_model {d}, {heads} heads, d_k {key_width}, {layers} layers a side: counted {expected:,}, yours {answer:,}"
        )


def _permutation_p(row: Tensor, base: Tensor) -> float:
    """The share of all ways to deal out the runs that differ at least as much as the real one."""
    everything = torch.cat([row, base])
    chosen = torch.combinations(torch.arange(len(everything)), len(row))  # (ways, seeds of the row)
    first = everything[chosen].sum(dim=1)  # (ways,)
    second = everything.sum() - first  # (ways,)
    differences = (first / len(row) - second / len(base)).abs()  # (ways,)
    return float((differences >= differences[0] - 1e-9).double().mean())


@diagnostic("Exercise 20.2")
def check_permutation_p(attempt: Callable[[Tensor, Tensor], float]) -> None:
    """Check a permutation test: a clear difference, ties, a difference downward, unequal sizes."""
    base = torch.tensor([2.0, 2.1, 2.2, 2.3, 2.45], dtype=torch.float64)
    row = torch.tensor([3.0, 3.1, 3.2], dtype=torch.float64)
    answer = attempt(row, base)
    assert answer != 0, "p is never 0: the runs as they were dealt are one of the ways, count them"
    assert not answer > 1, f"return a share of the ways, from 0 to 1, not {answer}"
    expected = _permutation_p(row, base)
    assert abs(answer - expected) < 1e-6, (
        f"three seeds above five: 1 way of 56, p = {expected:.4f}, yours {answer:.4f}"
    )
    below = base.min() - row + row.min() - 1.0  # as far apart, on the other side
    answer = attempt(below, base)
    assert abs(answer - 1) > 1e-6, "a row that is BETTER differs, too: compare absolute differences"
    expected = _permutation_p(below, base)
    assert abs(answer - expected) < 1e-6, f"a row below: p = {expected:.4f}, yours {answer:.4f}"
    same = torch.ones(3, dtype=torch.float64)
    answer = attempt(same, torch.ones(5, dtype=torch.float64))
    assert abs(answer - 1) < 1e-6, (
        f"all runs equal: every way differs at least as much (>=, not >): p = 1, yours {answer}"
    )
    mixed = torch.tensor([2.05, 2.4, 2.25, 2.6], dtype=torch.float64)
    answer, expected = attempt(mixed, base[:3]), _permutation_p(mixed, base[:3])
    assert abs(answer - expected) < 1e-6, (
        f"four seeds against three, mixed: p = {expected:.4f}, yours {answer:.4f}"
        " (differences of MEANS, and as many ways as there are)"
    )


@diagnostic("Exercise 20.3")
def check_seeds_needed(attempt: Callable[[float, float, float, int], float]) -> None:
    """Check the number of seeds: a plain case, a large base, an impossible one."""

    def needed(difference: float, spread: float, limit: float, base_seeds: int) -> float:
        rest = (difference / (limit * spread)) ** 2 - 1 / base_seeds
        return math.floor(1 / rest) + 1 if rest > 0 else math.inf

    answer = attempt(0.1, 0.05, 3.0, 10**9)
    assert answer != 1.5 and answer != 2, (
        "the error falls with the SQUARE ROOT of the seeds, so their number rises with a square"
    )
    assert answer == needed(0.1, 0.05, 3.0, 10**9), (
        "difference 0.1, spread 0.05, limit 3, a base without error: 3 seeds "
        f"(0.1 > 3 * 0.05 / sqrt(3)), yours {answer}"
    )
    answer, expected = attempt(0.06, 0.03, 3.0, 5), needed(0.06, 0.03, 3.0, 5)
    assert answer != 3, "the base has an error of its own: add 1 / base_seeds"
    assert answer != 4, "whole seeds, rounded UP: with 4 the difference is still within the limit"
    assert answer == expected, (
        f"difference 0.06, spread 0.03, limit 3, base 5: {expected} seeds, yours {answer}"
    )
    answer = attempt(0.04, 0.03, 3.0, 5)
    assert answer == math.inf, (
        "difference 0.04, spread 0.03, limit 3: with 5 seeds the base alone has an error of "
        f"3 * 0.03 / sqrt(5) = 0.0402, no row can have enough: math.inf, yours {answer}"
    )
    for limit in (3.0, 2.0):
        answer, expected = attempt(0.07, 0.03, limit, 5), needed(0.07, 0.03, limit, 5)
        assert answer == expected, (
            f"difference 0.07, spread 0.03, limit {limit:g}, base 5: {expected} seeds, yours {answer}"
        )


@diagnostic("Exercise 20.4")
def check_narrow_values(attempt: Callable[[int, int, int], MultiHeadAttention]) -> None:
    """Check an attention with narrow values: its parameters, at full width, by hand, with a cache."""
    for sizes in ((12, 3, 2), (8, 2, 5)):
        _try_narrow_values(attempt, *sizes)


def _try_narrow_values(
    attempt: Callable[[int, int, int], MultiHeadAttention], d_model: int, heads: int, width: int
) -> None:
    torch.manual_seed(0)
    module = attempt(d_model, heads, width)
    x = torch.randn(2, 5, d_model)  # (batch, length, d_model)
    full = MultiHeadAttention(d_model, heads)
    queries_too = count_parameters(full) - 4 * (d_model - heads * width) * (d_model + 1)
    queries_too += d_model - heads * width  # the output's bias keeps its width
    answer = count_parameters(module)
    assert answer != count_parameters(full), "nothing is narrower: replace value_projection"
    expected = 2 * (d_model + 1) * d_model + (2 * d_model + 1) * heads * width + d_model
    assert answer != queries_too, (
        "queries and keys became narrower, too: that is d_k, here only the values change"
    )
    only_map = expected + d_model * (d_model - heads * width)
    assert answer != only_map, (
        "the output projection still takes d_model numbers: it is given heads * value_width"
    )
    assert answer == expected, f"{expected} parameters expected, yours {answer}"
    output = expect_tensor(module(x, x, x), (2, 5, d_model), "the output")
    same = attempt(d_model, heads, d_model // heads)
    same.load_state_dict(full.state_dict())
    torch.testing.assert_close(
        same(x, x, x),
        full(x, x, x),
        msg=lambda text: f"at full width it should equal MultiHeadAttention: {text}",
    )

    def cut(numbers: Tensor) -> Tensor:  # (batch, heads, length, width)
        split: Tensor = numbers.unflatten(-1, (heads, -1))
        return split.transpose(1, 2)

    maps = (module.query_projection, module.key_projection, module.value_projection)
    query, key, value = (cut(part(x)) for part in maps)
    weights = (query @ key.mT / (d_model // heads) ** 0.5).softmax(dim=-1)
    joined = (weights @ value).transpose(1, 2).flatten(-2)  # (batch, length, heads * width)
    torch.testing.assert_close(
        output,
        module.output_projection(joined),
        msg=lambda text: (
            "each head should own value_width NEIGHBORING values, and scores should be divided "
            f"by the root of d_k, not of the value's width: {text}"
        ),
    )
    cache, pieces = KeyValueCache(), []
    whole = module(x, x, x, is_causal=True)
    for i in range(5):
        new = x[:, i : i + 1]
        pieces.append(module(new, new, new, is_causal=True, cache=cache))
        cache.length += 1
    torch.testing.assert_close(
        torch.cat(pieces, dim=1),
        whole,
        msg=lambda text: f"word by word with a cache should equal one causal pass: {text}",
    )
