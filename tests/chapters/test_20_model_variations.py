"""Chapter 20: the rows' models and task; the exercises."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer_lib.attention import KeyValueCache, MultiHeadAttention
from transformer_lib.book.checks.chapter_20 import (
    check_narrow_values,
    check_permutation_p,
    check_saved,
    check_seeds_needed,
)
from transformer_lib.book.variations import BASE, ROWS, NarrowKeys, make_model
from transformer_lib.decoding import IncrementalDecoder
from transformer_lib.transformer import Transformer, count_parameters

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])  # (batch, source)
TARGET = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16]])  # (batch, target)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_is_reproduced_by_its_seed(name: str) -> None:
    models = [make_model(ROWS[name][1], seed).eval() for seed in (1, 1, 2)]
    first, again, other = (model(SOURCE, TARGET) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_writes_with_a_cache_what_it_gives_at_once(name: str) -> None:
    model = make_model(ROWS[name][1], 1).eval()
    with torch.no_grad():
        at_once = model(SOURCE, TARGET)  # (batch, target, vocab_size)
        decoder = IncrementalDecoder(model, SOURCE)
        steps = [decoder.step(TARGET[:, i]) for i in range(TARGET.size(1))]
    written = torch.stack(steps, dim=1)  # (batch, target, vocab_size)
    torch.testing.assert_close(
        written.log_softmax(-1), at_once.log_softmax(-1), rtol=1e-4, atol=1e-4
    )


def test_each_row_changes_one_thing() -> None:
    for name, (group, change) in ROWS.items():
        if name == "base":
            assert not change
        elif ", " not in name and "layer" not in name:
            assert len(change) == 1, f"{name}: {change}"
        assert group in ("", "A", "B", "C", "D", "E", "+")


def test_rows_of_group_a_cost_the_same() -> None:
    sizes = {count_parameters(make_model(c, 1)) for g, c in ROWS.values() if g in ("", "A")}
    assert len(sizes) == 1


def test_narrow_keys_at_full_width_are_the_librarys_attention() -> None:
    full, narrow = MultiHeadAttention(16, 4), NarrowKeys(16, 4, 4)
    narrow.load_state_dict(full.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(narrow(x, x, x, is_causal=True), full(x, x, x, is_causal=True))


def test_an_unscaled_embedding_is_the_other_divided_by_the_root() -> None:
    model, plain = make_model({"scaled": False}, 1), Transformer(BASE)
    plain.load_state_dict(model.state_dict())
    wanted = plain.embedding(SOURCE) / math.sqrt(BASE.d_model)
    torch.testing.assert_close(model.embedding(SOURCE), wanted)
    hidden = torch.randn(2, BASE.d_model)
    torch.testing.assert_close(model.project(hidden), plain.project(hidden))


# The checks of the exercises: right attempts by different ways, and each mistake named


def saved(d: int, heads: int, d_k: int, layers: int) -> int:
    return 3 * layers * 2 * (d - heads * d_k) * (d + 1)


def saved_by_building(d: int, heads: int, d_k: int, layers: int) -> int:
    wide = MultiHeadAttention(d, heads)
    return 3 * layers * (count_parameters(wide) - count_parameters(NarrowKeys(d, heads, d_k)))


def saved_as_matrices(d: int, heads: int, d_k: int, layers: int) -> int:
    def maps(width: int) -> int:
        return width * d + width

    encoder, decoder = layers, 2 * layers
    return (encoder + decoder) * 2 * (maps(d) - maps(heads * d_k))


def permutation_p(row: Tensor, base: Tensor, *, strict: bool = False, sums: bool = False) -> float:
    runs = torch.cat([row, base])
    gaps = []
    for chosen in combinations(range(len(runs)), len(row)):
        inside = torch.zeros(len(runs), dtype=torch.bool)
        inside[list(chosen)] = True
        first, second = runs[inside], runs[~inside]
        gap = first.sum() - second.sum() if sums else first.mean() - second.mean()
        gaps.append(abs(gap.item()))
    real = gaps[0]  # combinations begin with the runs as they are
    hits = sum(gap > real + 1e-12 if strict else gap >= real - 1e-12 for gap in gaps)
    return hits / len(gaps)


def by_shuffling(row: Tensor, base: Tensor) -> float:
    """Over all orders, of which each way has equally many; by index, without means of subsets."""
    runs = torch.cat([row, base])
    chosen = torch.combinations(torch.arange(len(runs)), len(row))
    shares = torch.full((len(chosen), len(runs)), -1 / len(base), dtype=torch.float64)
    shares.scatter_(1, chosen, 1 / len(row))
    gaps = (shares @ runs).abs()
    return (gaps >= gaps[0] - 1e-12).double().mean().item()


def one_sided(row: Tensor, base: Tensor) -> float:
    runs, real = torch.cat([row, base]), row.mean() - base.mean()
    chosen = torch.combinations(torch.arange(len(runs)), len(row))
    first = runs[chosen].mean(dim=1)
    second = (runs.sum() - len(row) * first) / len(base)
    return (first - second >= real - 1e-12).double().mean().item()


def a_few_shuffles(row: Tensor, base: Tensor) -> float:
    runs, real = torch.cat([row, base]), (row.mean() - base.mean()).abs()
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        mixed = runs[torch.randperm(len(runs), generator=generator)]
        hits += (mixed[: len(row)].mean() - mixed[len(row) :].mean()).abs() >= real - 1e-12
    return max(int(hits), 1) / 50


def seeds_needed(difference: float, spread: float, limit: float, base_seeds: int) -> float:
    rest = (difference / (limit * spread)) ** 2 - 1 / base_seeds
    return math.ceil(1 / rest) if rest > 0 else math.inf


def seeds_by_trying(difference: float, spread: float, limit: float, base_seeds: int) -> float:
    for seeds in range(1, 100_000):
        if difference > limit * spread * math.sqrt(1 / seeds + 1 / base_seeds):
            return seeds
    return math.inf


class NarrowValues(MultiHeadAttention):
    def __init__(self, d_model: int, num_heads: int, value_width: int) -> None:
        super().__init__(d_model, num_heads)
        self.value_projection = nn.Linear(d_model, num_heads * value_width)
        self.output_projection = nn.Linear(num_heads * value_width, d_model)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class OwnForward(NarrowValues):
    """The same, with a forward of its own."""

    def forward(  # type: ignore[no-untyped-def]
        self, query, key, value, attn_mask=None, is_causal=False, cache: KeyValueCache | None = None
    ) -> Tensor:
        def cut(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], self.num_heads, -1).permute(0, 2, 1, 3)

        def project() -> tuple[Tensor, Tensor]:
            return cut(self.key_projection(key)), cut(self.value_projection(value))

        keys, values = project() if cache is None else cache.update(self, project)
        queries = cut(self.query_projection(query))
        heads = self.attend(queries, keys, values, attn_mask, is_causal)
        joined = heads.permute(0, 2, 1, 3).reshape(*query.shape[:2], -1)
        return self.output_projection(joined)


class OldSplit(NarrowValues):
    split_heads = MultiHeadAttention.split_heads


class StridedSplit(NarrowValues):
    """Gives a head every third number, not its neighbors."""

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.num_heads)).movedim(-1, 1)


class OldOutput(NarrowValues):
    def __init__(self, d_model: int, num_heads: int, value_width: int) -> None:
        super().__init__(d_model, num_heads, value_width)
        self.output_projection = nn.Linear(d_model, d_model)


class NarrowScale(NarrowValues):
    """Divides by the root of the value's width."""

    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        query = query * (query.size(-1) / value.size(-1)) ** 0.5
        return super().attend(query, key, value, attn_mask, is_causal)


class NoCache(OwnForward):
    def forward(self, query, key, value, attn_mask=None, is_causal=False, cache=None) -> Tensor:  # type: ignore[no-untyped-def]
        return super().forward(query, key, value, attn_mask, is_causal)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_saved: [saved, saved_by_building, saved_as_matrices],
    check_permutation_p: [permutation_p, by_shuffling],
    check_seeds_needed: [seeds_needed, seeds_by_trying],
    check_narrow_values: [NarrowValues, OwnForward],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_saved: [
        (lambda d, h, k, n: -saved(d, h, k, n), "negative"),
        (lambda d, h, k, n: 6 * n * (d - h * k) * d, "biases"),
        (lambda d, h, k, n: 4 * n * (d - h * k) * (d + 1), "TWO attentions"),
        (lambda d, h, k, n: 3 * n * (d - h * k) * (d + 1), "queries AND keys"),
        (lambda d, h, k, n: 12 * n * (d - h * k) * (d + 1), "two maps are narrower"),
        (lambda d, h, k, n: 6 * n * (d // h - k) * (d + 1), "ONE head"),
        (lambda d, h, k, n: 6 * (d - h * k) * (d + 1), "one level"),
        (lambda d, h, k, n: 6 * n * h * k * (d + 1) // 2, "counted"),
    ],
    check_permutation_p: [
        (one_sided, "absolute"),
        (lambda row, base: permutation_p(row, base, strict=True), "p is never 0"),
        (lambda row, base: max(permutation_p(row, base, strict=True), 1 / 56), ">="),
        (lambda row, base: 112 * permutation_p(row, base), "a share of the ways"),
        (lambda row, base: permutation_p(row, base, sums=True), "MEANS|1 way of 56"),
        (a_few_shuffles, "1 way of 56"),
    ],
    check_seeds_needed: [
        (lambda d, s, t, b: math.ceil(t * s / d), "SQUARE ROOT"),
        (lambda d, s, t, b: math.ceil((t * s / d) ** 2), "error of its own"),
        (lambda d, s, t, b: round(1 / ((d / (t * s)) ** 2 - 1 / b)), "SQUARE ROOT|3 seeds"),
        (lambda d, s, t, b: math.ceil(1 / abs((d / (t * s)) ** 2 - 1 / b)), "math.inf"),
        (lambda d, s, t, b: math.ceil((s / d) ** 2), "3 seeds"),
        (
            lambda d, s, t, b: seeds_needed(d, s, t, b) - (3 < seeds_needed(d, s, t, b) < 99),
            "rounded UP",
        ),
    ],
    check_narrow_values: [
        (lambda d, h, w: MultiHeadAttention(d, h), "nothing is narrower"),
        (lambda d, h, w: MultiHeadAttention(d, h, d_k=w), "queries and keys became narrower"),
        (OldOutput, "is given heads"),
        (OldSplit, "raised|shape|cannot"),
        (StridedSplit, "full width|NEIGHBORING"),
        (NarrowScale, "full width|NEIGHBORING"),
        (NoCache, "word by word"),
    ],
}
