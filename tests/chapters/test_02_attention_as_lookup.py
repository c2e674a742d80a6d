"""Chapter 2: the four similarities and the lookup, against the equations and torch."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer_lib.attention import attention_weights, scaled_dot_product_attention
from transformer_lib.book.checks import chapter_02
from transformer_lib.similarity import (
    AdditiveSimilarity,
    BilinearSimilarity,
    dot_similarity,
    masked_softmax,
    scaled_dot_similarity,
    weighted_lookup,
)

SVG = "{http://www.w3.org/2000/svg}"
sizes = st.integers(1, 5)


def random(*shape: int) -> Tensor:
    """A tensor in double precision, so that equality is not a matter of tolerance."""
    return torch.randn(*shape, dtype=torch.float64)


# --- the similarities


@settings(max_examples=40, deadline=None)
@given(lead=st.lists(sizes, max_size=2), queries=sizes, keys=sizes, d_k=sizes, seed=sizes)
def test_dot_and_scaled_dot_are_sums_of_products(
    lead: list[int], queries: int, keys: int, d_k: int, seed: int
) -> None:
    torch.manual_seed(seed)
    query, key = random(*lead, queries, d_k), random(*lead, keys, d_k)
    expected = torch.einsum("...qd,...kd->...qk", query, key)
    torch.testing.assert_close(dot_similarity(query, key), expected)
    torch.testing.assert_close(scaled_dot_similarity(query, key), expected / d_k**0.5)


@settings(max_examples=40, deadline=None)
@given(lead=st.lists(sizes, max_size=2), queries=sizes, keys=sizes, widths=st.tuples(sizes, sizes))
def test_bilinear_is_its_equation_pair_by_pair(
    lead: list[int], queries: int, keys: int, widths: tuple[int, int]
) -> None:
    query, key = random(*lead, queries, widths[0]), random(*lead, keys, widths[1])
    similarity = BilinearSimilarity(*widths).double()
    matrix = similarity.query_projection.weight.T  # (query_dim, key_dim)
    expected = torch.einsum("...qi,ij,...kj->...qk", query, matrix, key)
    torch.testing.assert_close(similarity(query, key), expected)
    assert sum(p.numel() for p in similarity.parameters()) == widths[0] * widths[1]


@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(sizes, max_size=2),
    queries=sizes,
    keys=sizes,
    widths=st.tuples(sizes, sizes, sizes),
)
def test_additive_is_its_equation_pair_by_pair(
    lead: list[int], queries: int, keys: int, widths: tuple[int, int, int]
) -> None:
    query, key = random(*lead, queries, widths[0]), random(*lead, keys, widths[1])
    similarity = AdditiveSimilarity(*widths).double()
    scores = similarity(query, key)
    assert scores.shape == (*lead, queries, keys)
    w_query, w_key = similarity.query_projection.weight, similarity.key_projection.weight
    v = similarity.to_score.weight[0]  # (hidden_dim,)
    for i in range(queries):
        for j in range(keys):
            hidden = torch.tanh(query[..., i, :] @ w_query.T + key[..., j, :] @ w_key.T)
            torch.testing.assert_close(scores[..., i, j], hidden @ v)
    assert sum(p.numel() for p in similarity.parameters()) == widths[2] * (sum(widths[:2]) + 1)


def test_additive_scores_keys_that_were_projected_once() -> None:
    similarity = AdditiveSimilarity(3, 4, 5)
    query, key = torch.randn(2, 6, 3), torch.randn(2, 7, 4)
    projected = similarity.project_keys(key)
    one_by_one = [similarity.score(query[:, i : i + 1], projected) for i in range(6)]
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), similarity(query, key))


@pytest.mark.parametrize("similarity", [BilinearSimilarity(3, 4), AdditiveSimilarity(3, 4, 5)])
def test_every_parameter_of_a_similarity_learns(similarity: torch.nn.Module) -> None:
    output, _ = weighted_lookup(
        similarity(torch.randn(2, 6, 3), torch.randn(2, 7, 4)), torch.randn(2, 7, 2)
    )
    output.square().sum().backward()
    for name, parameter in similarity.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{name} gets a gradient of zero"


@pytest.mark.parametrize("similarity", [dot_similarity, scaled_dot_similarity])
def test_dot_products_need_one_width(similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="2x3 and 4x2"):
        similarity(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.parametrize("similarity", [BilinearSimilarity(3, 4), AdditiveSimilarity(3, 4, 5)])
def test_learned_similarities_need_their_widths(similarity: torch.nn.Module) -> None:
    for query, key in ((4, 4), (3, 3)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            similarity(torch.ones(2, query), torch.ones(2, key))


def test_scaled_scores_of_float16_do_not_overflow() -> None:
    long = torch.full((1, 64), 40.0, dtype=torch.float16)  # their product, 102,400, is no float16
    assert dot_similarity(long, long).isinf().all()
    assert scaled_dot_similarity(long, long).item() == 12_800


# --- the lookup


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(sizes, max_size=2),
    queries=sizes,
    keys=sizes,
    d_k=sizes,
    d_v=sizes,
    seed=st.integers(0, 1000),
)
def test_lookup_of_scaled_dots_is_torchs_attention(
    lead: list[int], queries: int, keys: int, d_k: int, d_v: int, seed: int
) -> None:
    torch.manual_seed(seed)
    query, key = random(*lead, queries, d_k), random(*lead, keys, d_k)
    value = random(*lead, keys, d_v)
    mask = torch.rand(*lead, queries, keys) > 0.5
    scores = scaled_dot_similarity(query, key)
    output, weights = weighted_lookup(scores, value)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))

    output, weights = weighted_lookup(scores, value, mask)  # some rows may allow nothing
    torch.testing.assert_close(output, scaled_dot_product_attention(query, key, value, mask))
    torch.testing.assert_close(weights, attention_weights(query, key, mask))
    assert (weights[~mask] == 0).all()


def test_nothing_allowed_gives_zeros_forward_and_backward() -> None:
    scores = torch.randn(2, 3, 4, requires_grad=True)
    value = torch.randn(2, 4, 5, requires_grad=True)
    mask = torch.ones(2, 1, 4, dtype=torch.bool)
    mask[1] = False
    output, weights = weighted_lookup(scores, value, mask)
    output.square().sum().backward()
    assert scores.grad is not None
    assert value.grad is not None
    for name, x in (("output", output), ("weights", weights), ("scores", scores.grad)):
        assert (x[1] == 0).all(), f"{name}: {x[1]}"
        assert (x[0] != 0).any(), f"{name} of the other sentence: {x[0]}"
    assert (value.grad[1] == 0).all()


@pytest.mark.parametrize("shape", [(4,), (3, 1), (3, 4), (1, 1, 4), (2, 1, 4), (2, 3, 1)])
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    scores, value = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    mask = torch.rand(shape) > 0.5
    output, weights = weighted_lookup(scores, value, mask)
    expected, expected_weights = weighted_lookup(scores, value, mask.expand(2, 3, 4))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_huge_scores_stay_finite() -> None:
    output, weights = weighted_lookup(torch.tensor([[1e4, -1e4, 9e3]]), torch.eye(3))
    assert output.tolist() == weights.tolist() == [[1.0, 0.0, 0.0]]


def test_the_softmax_of_the_lookup_is_masked_softmax() -> None:
    scores, mask = torch.randn(2, 3, 4), torch.rand(2, 3, 4) > 0.5
    torch.testing.assert_close(masked_softmax(scores), scores.softmax(dim=-1))
    for allowed in (None, mask):
        _, weights = weighted_lookup(scores, torch.randn(2, 4, 5), allowed)
        assert torch.equal(weights, masked_softmax(scores, allowed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_masks_of_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"mask must be boolean, True where allowed, got {dtype}"):
        weighted_lookup(torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 4, dtype=dtype))


@pytest.mark.parametrize(
    ("keys", "mask"), [(3, None), (4, (4, 3)), (4, (3, 5))], ids=["values", "mask", "keys of mask"]
)
def test_what_does_not_fit_the_scores_is_refused(keys: int, mask: tuple[int, int] | None) -> None:
    allowed = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="must match|cannot be multiplied"):
        weighted_lookup(torch.ones(3, 4), torch.ones(keys, 5), allowed)


# --- the drawings say what the code says


def test_the_weights_in_the_drawing_are_the_softmax_of_its_scores() -> None:
    drawing = resources.files("transformer_lib.book") / "static" / "retrieval.svg"
    root = ElementTree.fromstring(drawing.read_text("utf-8"))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    shown = [float(text.replace("−", "-")) for text in texts if re.fullmatch(r"[−\d]\d?", text)]
    weights = [float(text) for text in texts if text.startswith(".")]
    assert len(shown) == len(weights) == 4
    expected = torch.tensor(shown).softmax(dim=0).tolist()
    assert weights == [round(weight, 2) for weight in expected]


# --- the checks of the exercises


def declining(scores: Tensor, value: Tensor) -> Tensor:
    return F.pad(scores, (0, 1)).softmax(dim=-1)[..., :-1] @ value


def declining_by_hand(scores: Tensor, value: Tensor) -> Tensor:
    largest = scores.amax(dim=-1, keepdim=True).clamp(min=0)
    exponentials = (scores - largest).exp()
    return exponentials / (exponentials.sum(dim=-1, keepdim=True) + (-largest).exp()) @ value


def declining_with_a_key(scores: Tensor, value: Tensor) -> Tensor:
    scores = torch.cat([torch.zeros_like(scores[..., :1]), scores], dim=-1)
    value = torch.cat([torch.zeros_like(value[..., :1, :]), value], dim=-2)
    return weighted_lookup(scores, value)[0]


def declining_naive(scores: Tensor, value: Tensor) -> Tensor:
    exponentials = scores.exp()
    return exponentials / (1 + exponentials.sum(dim=-1, keepdim=True)) @ value


def declining_shifted(scores: Tensor, value: Tensor) -> Tensor:
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exponentials / (1 + exponentials.sum(dim=-1, keepdim=True)) @ value


def declining_below_zero(scores: Tensor, value: Tensor) -> Tensor:
    largest = scores.amax(dim=-1, keepdim=True)  # not clamped: e^(-largest) may be infinite
    exponentials = (scores - largest).exp()
    weights = exponentials / (exponentials.sum(dim=-1, keepdim=True) + (-largest).exp())
    return weights @ value


def declining_by_sigmoid(scores: Tensor, value: Tensor) -> Tensor:
    return scores.softmax(dim=-1) * scores.logsumexp(dim=-1, keepdim=True).sigmoid() @ value


def declining_over_queries(scores: Tensor, value: Tensor) -> Tensor:
    exponentials = scores.exp()
    return exponentials / (1 + exponentials.sum(dim=-2, keepdim=True)) @ value


def declining_in_place(scores: Tensor, value: Tensor) -> Tensor:
    largest = scores.amax(dim=-1, keepdim=True).clamp(min=0)
    scores -= largest
    return scores.exp() / (scores.exp().sum(dim=-1, keepdim=True) + (-largest).exp()) @ value


def temperature(scores: Tensor, share: float) -> float:
    cold, hot = 1e-6, 1e6
    for _ in range(100):
        middle = (cold * hot) ** 0.5
        sharp = (scores / middle).softmax(dim=-1).max() > share
        cold, hot = (middle, hot) if sharp else (cold, middle)
    return middle


def temperature_by_newton_like_steps(scores: Tensor, share: float) -> Tensor:
    gaps = scores.max() - scores.double()  # on the inverse temperature, whose share only grows
    inverse, step = torch.tensor(0.0).double(), 1e6
    for _ in range(60):
        if 1 / (-gaps * (inverse + step)).exp().sum() < share:
            inverse = inverse + step
        step /= 2
    return 1 / inverse


def temperature_by_scan(scores: Tensor, share: float) -> float:
    grid = torch.logspace(-6, 6, 6001, dtype=torch.float64)
    best = (scores / grid[:, None]).softmax(dim=-1).amax(dim=-1)
    return grid[(best - share).abs().argmin()].item()


def temperature_by_naive_exp(scores: Tensor, share: float) -> float:
    def best(t: float) -> float:
        exponentials = (scores / t).exp()
        return (exponentials / exponentials.sum()).max().item()

    sharp = (t for t in torch.logspace(-6, 6, 6000).tolist() if best(t) > share)
    return max(sharp, default=1e-3)


def temperature_of_the_first_two(scores: Tensor, share: float) -> float:
    best, second = scores.topk(2).values.tolist()
    return (best - second) / math.log(share / (1 - share)) if share > 0.5 else 0.1


def temperature_in_place(scores: Tensor, share: float) -> float:
    scores -= scores.max().clone()
    return temperature(scores, share)


def temperature_of_key_0(scores: Tensor, share: float) -> float:
    cold, hot = 1e-6, 1e6
    for _ in range(100):
        middle = (cold * hot) ** 0.5
        sharp = (scores / middle).softmax(dim=-1)[0] > share
        cold, hot = (middle, hot) if sharp else (cold, middle)
    return middle


def nearest(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    half_square = key.square().sum(dim=-1, keepdim=True) / 2
    return F.pad(query, (0, 1), value=1.0), torch.cat([key, -half_square], dim=-1)


def nearest_by_both_squares(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    of_query = (query * query).sum(dim=-1, keepdim=True)
    of_key = (key * key).sum(dim=-1, keepdim=True)
    one_q, one_k = torch.ones_like(of_query), torch.ones_like(of_key)
    return (
        torch.cat([query, -of_query / 2, one_q], dim=-1),
        torch.cat([key, one_k, -of_key / 2], dim=-1),
    )


def nearest_square_by_square(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.cat([2 * query, torch.full_like(query, -0.5)], dim=-1),
        torch.cat([key / 2, key**2], dim=-1),
    )


def nearest_with(
    extra: Callable[[Tensor], Tensor], scale: float = 1.0
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A solution with another last feature of the key."""

    def attempt(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(scale * query, (0, 1), value=1.0), torch.cat([key, extra(key)], dim=-1)

    return attempt


def square(key: Tensor) -> Tensor:
    return key.square().sum(dim=-1, keepdim=True)


def nearest_for_one_batch(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    half_square = key.square().sum(dim=1, keepdim=True) / 2
    if key.dim() > 2:
        half_square = half_square.mean(dim=-1, keepdim=True).expand(*key.shape[:-1], 1)
    return F.pad(query, (0, 1), value=1.0), torch.cat([key, -half_square], dim=-1)


def nearest_of_the_mean(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    middle = key.mean(dim=-2, keepdim=True)  # distances do not change with the origin
    return nearest(query - middle, key - middle)


def nearest_in_place(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    new = nearest(query, key)
    key.neg_()
    return new


Pairs = Iterator[tuple[float, Tensor]]


def one_pass(pairs: Pairs) -> Tensor:
    largest, weighted = next(pairs)
    total = 1.0
    for score, value in pairs:
        new = max(largest, score)
        repair, weight = math.exp(largest - new), math.exp(score - new)
        total, weighted, largest = repair * total + weight, repair * weighted + weight * value, new
    return weighted / total


def one_pass_by_the_running_mean(pairs: Pairs) -> Tensor:
    """Keeps log(sum of exponentials) and the answer so far."""
    log_sum, answer = -math.inf, torch.tensor(0.0)
    for score, value in pairs:
        new = torch.logaddexp(torch.tensor(log_sum).double(), torch.tensor(score).double()).item()
        answer = answer + (value - answer) * math.exp(score - new)
        log_sum = new
    return answer


def one_pass_with_branches(pairs: Pairs) -> Tensor:
    largest: float | None = None
    for score, value in pairs:
        if largest is None:
            largest, total, weighted = score, 1.0, value.clone()
        elif score > largest:
            repair = math.exp(largest - score)
            total, weighted = total * repair + 1, weighted * repair + value
            largest = score
        else:
            total += math.exp(score - largest)
            weighted += math.exp(score - largest) * value
    return weighted / total


def one_pass_from(start: float) -> Callable[[Pairs], Tensor]:
    def attempt(pairs: Pairs) -> Tensor:
        largest, total, weighted = start, 0.0, 0.0
        for score, value in pairs:
            new = max(largest, score)
            repair, weight = math.exp(largest - new), math.exp(score - new)
            total, weighted = repair * total + weight, repair * weighted + weight * value
            largest = new
        return weighted / total

    return attempt


def one_pass_without_largest(pairs: Pairs) -> Tensor:
    total, weighted = 0.0, 0.0
    for score, value in pairs:
        total, weighted = total + math.exp(score), weighted + math.exp(score) * value
    return weighted / total


def one_pass_without_repair(pairs: Pairs) -> Tensor:
    largest, weighted = next(pairs)
    total = 1.0
    for score, value in pairs:
        largest = max(largest, score)
        total += math.exp(score - largest)
        weighted = weighted + math.exp(score - largest) * value
    return weighted / total


def one_pass_half_repaired(pairs: Pairs) -> Tensor:
    largest, weighted = next(pairs)
    total = 1.0
    for score, value in pairs:
        new = max(largest, score)
        repair, weight = math.exp(largest - new), math.exp(score - new)
        total, weighted, largest = total + weight, repair * weighted + weight * value, new
    return weighted / total


def one_pass_from_minus_infinity(pairs: Pairs) -> Tensor:
    largest, total, weighted = torch.tensor(-math.inf), 0.0, 0.0
    for score, value in pairs:
        repair = (largest - largest.clamp(min=largest.item())).exp().item()
        largest = largest.clamp(min=score)
        weight = (score - largest).exp().item()
        total, weighted = repair * total + weight, repair * weighted + weight * value
    return weighted / total


def one_pass_sum(pairs: Pairs) -> Tensor:
    return torch.stack([math.exp(score) * value for score, value in pairs]).sum(dim=0)


def one_pass_mean(pairs: Pairs) -> Tensor:
    return torch.stack([value for _, value in pairs]).mean(dim=0)


def one_pass_by_lists(pairs: Pairs) -> Tensor:
    scores, values = zip(*pairs, strict=True)
    return torch.tensor(scores).softmax(dim=0) @ torch.stack(values)


def one_pass_by_growing_tensors(pairs: Pairs) -> Tensor:
    score, value = next(pairs)
    scores, values = torch.tensor([score]), value[None].clone()
    for score, value in pairs:
        scores = torch.cat([scores, torch.tensor([score])])
        values = torch.cat([values, value[None]])
    return scores.softmax(dim=0) @ values


def one_pass_in_place(pairs: Pairs) -> Tensor:
    largest, weighted = next(pairs)  # the caller's own tensor
    total = 1.0
    for score, value in pairs:
        new = max(largest, score)
        weighted *= math.exp(largest - new)
        weighted += math.exp(score - new) * value
        total, largest = total * math.exp(largest - new) + math.exp(score - new), new
    return weighted / total


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_02.check_declining_lookup: [declining, declining_by_hand, declining_with_a_key],
    chapter_02.check_temperature: [
        temperature,
        temperature_by_newton_like_steps,
        temperature_by_scan,
    ],
    chapter_02.check_nearest: [nearest, nearest_by_both_squares, nearest_square_by_square],
    chapter_02.check_one_pass_lookup: [
        one_pass,
        one_pass_by_the_running_mean,
        one_pass_with_branches,
    ],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_02.check_declining_lookup: [
        (lambda s, v: s.softmax(-1) @ v, "1 in the denominator"),
        (lambda s, v: s.softmax(-1) @ v / 2, "after the division"),
        (lambda s, v: s.sigmoid() @ v, "three queries, four keys"),
        (declining_naive, "1000 overflow"),
        (declining_shifted, "no longer 1"),
        (declining_over_queries, "over the queries"),
        (declining_below_zero, "forbidden keys only gets NaN"),
        (declining_by_sigmoid, "forbidden keys only gets NaN"),
        (declining_in_place, "in place"),
        (lambda s, v: declining(s, v)[0], "should have shape"),
        (lambda s, v: s.exp() / (1 + s.exp().sum()) @ v, "denominator of its own"),
        (
            lambda s, v: declining(s, v) if s.dim() == 2 else declining(s.mT.mT.flip(0), v),
            "leading dimensions",
        ),
    ],
    chapter_02.check_temperature: [
        (lambda s, p: 1 / temperature(s, p), "one over the temperature"),
        (lambda s, p: 0.0, "positive number, got 0"),
        (lambda s, p: 0.5, "yours is 0.500"),
        (lambda s, p: 1 / math.log(99), "reach that far"),
        (lambda s, p: min(temperature(s, p), 1.0), "reach that far"),
        (lambda s, p: max(temperature(s, p), 0.01), "reach that far"),
        (temperature_by_naive_exp, "subtract the largest"),
        (temperature_of_key_0, "look for it"),
        (temperature_of_the_first_two, "do all the keys count"),
        (lambda s, p: temperature(s, 0.99), "use the share"),
        (temperature_in_place, "in place"),
    ],
    chapter_02.check_nearest: [
        (lambda q, k: (q, k), "q.k alone"),
        (nearest_with(lambda k: square(k) / 2), "mind the sign"),
        (nearest_with(lambda k: -square(k)), "twice too large"),
        (nearest_with(lambda k: -square(k), 2.0), "without the half"),
        (nearest_with(lambda k: -square(k) / 2, 0.5), "half of what"),
        (nearest_with(lambda k: -square(k).sqrt() / 2), "not squared"),
        (nearest_with(lambda k: square(k) / 2, -1.0), "upside down"),
        (lambda q, k: (q, nearest(q, k)[1]), "one width"),
        (lambda q, k: torch.cdist(q, k), "return two tensors"),
        (
            lambda q, k: (
                F.pad(q, (0, 1), value=1.0),
                F.pad(k, (0, 1), value=-k.square().sum() / 2),
            ),
            "q.k alone",
        ),
        (lambda q, k: (torch.eye(len(q)), -torch.cdist(q, k).square().T / 2), "made of its own"),
        (nearest_of_the_mean, "of its own query only"),
        (nearest_for_one_batch, "leading dimensions"),
        (nearest_in_place, "in place"),
    ],
    chapter_02.check_one_pass_lookup: [
        (one_pass_sum, "its value must come out"),
        (one_pass_mean, "falling scores are off"),
        (one_pass_without_largest, "largest score"),
        (one_pass_without_repair, "rising ones are off"),
        (one_pass_half_repaired, "rising ones are off"),
        (one_pass_from_minus_infinity, "mind the start"),
        (one_pass_from(0.0), "start at 0"),
        (one_pass_from(-1e3), "not low enough"),
        (one_pass_by_lists, "keeps the pairs"),
        (one_pass_by_growing_tensors, "growing tensor"),
        (one_pass_in_place, "in place"),
        (lambda pairs: one_pass(pairs) * 2, "one pair its value"),
        (lambda pairs: pairs[0], "raised TypeError"),
    ],
}
