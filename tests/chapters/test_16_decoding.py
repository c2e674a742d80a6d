"""Chapter 16: cached decoding, greedy, beam search, sampling, and the checks of its exercises."""

import heapq
import itertools
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_16 import check_beam_search, check_stop, check_top_p
from transformer_lib.convert import from_torch
from transformer_lib.decoding import (
    Hypothesis,
    IncrementalDecoder,
    beam_search,
    greedy_decode,
    sample,
)
from transformer_lib.recurrent import RecurrentConfig, RecurrentTranslator
from transformer_lib.transformer import Transformer, TransformerConfig

BOS, EOS = 1, 2
SOURCE = torch.tensor([[3, 4, 5, 6, EOS], [7, 8, EOS, 0, 0], [5, EOS, 0, 0, 0]])


def model_of(
    seed: int, vocab_size: int = 11, sharpness: float = 2.0, **sizes: object
) -> Transformer:
    """A small random model whose probabilities are not all alike."""
    torch.manual_seed(seed)
    config = {"d_model": 16, "num_heads": 2, "d_ff": 32, "num_encoder_layers": 1}
    config |= {"num_decoder_layers": 2, "max_length": 40} | sizes
    model = Transformer(TransformerConfig(vocab_size, **config)).eval()
    with torch.no_grad():
        model.embedding.weight *= sharpness
    return model


def log_probability(model: nn.Module, source: Tensor, tokens: list[int], ended: bool) -> float:
    """Of a translation, by the whole model, without a cache."""
    target = torch.tensor([[BOS, *tokens]])
    with torch.inference_mode():
        log_p = model(source, target)[0].log_softmax(dim=-1)
    wanted = [*tokens, EOS] if ended else tokens
    return sum(log_p[i, token].item() for i, token in enumerate(wanted))


def uncached(model: nn.Module, source: Tensor, most: int) -> list[int]:
    """Chapter 12's loop for one sentence: the whole decoder anew for each token."""
    tokens: list[int] = []
    while len(tokens) < most:
        token = int(model(source, torch.tensor([[BOS, *tokens]]))[0, -1].argmax())
        if token == EOS:
            break
        tokens.append(token)
    return tokens


def all_ways(model: nn.Module, source: Tensor, most: Any = 4) -> list[list[list[int]]]:
    """What greedy decoding, beam search and sampling write."""
    found = beam_search(model, source, most, beam_size=3)
    drawn = sample(model, source, most, generator=torch.Generator().manual_seed(0))
    return [greedy_decode(model, source, most), [h[0].tokens for h in found], drawn]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), norm_first=st.booleans(), length=st.integers(1, 12))
def test_step_by_step_is_one_pass(seed: int, norm_first: bool, length: int) -> None:
    model = model_of(seed, norm_first=norm_first)
    target = torch.randint(3, 11, (3, length))
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, SOURCE)
        steps = torch.stack([decoder.step(column) for column in target.T], dim=1)
        whole = model(SOURCE, target)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=1e-4)


def test_rows_that_double_end_or_change_places_continue_the_right_past() -> None:
    model = model_of(1)
    source = SOURCE
    written = torch.randint(3, 11, (3, 4))
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, source)
        for column in written.T:
            decoder.step(column)
        for way, rows in (
            (decoder.keep, [0, 0, 1, 1, 2, 2]),
            (decoder.reorder, [1, 0, 2, 2, 5, 4]),
            (decoder.keep, [5, 4, 1, 1]),
        ):
            way(torch.tensor(rows))
            if way == decoder.keep:
                source = source[rows]
            new = torch.randint(3, 11, (len(rows),))
            written = torch.cat([written[rows], new[:, None]], dim=1)
            whole = model(source, written)[:, -1]
            torch.testing.assert_close(decoder.step(new), whole, atol=1e-4, rtol=1e-4)


def test_a_model_from_torch_is_decoded_too() -> None:
    theirs = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    model = from_torch(theirs, torch.randn(11, 16)).eval()
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, SOURCE)
        steps = [decoder.step(torch.full((3,), token)) for token in (1, 4, 5)]
        whole = model(SOURCE, torch.tensor([[1, 4, 5]]).expand(3, 3))
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_batch_is_its_rows_one_by_one_and_greedy_is_the_uncached_loop(seed: int) -> None:
    model = model_of(seed)
    limits = [9, 4, 12]
    greedy = greedy_decode(model, SOURCE, limits)
    beams = beam_search(model, SOURCE, limits, beam_size=3)
    for row, limit, tokens, found in zip(SOURCE, limits, greedy, beams, strict=True):
        alone = row[row != 0][None]
        assert greedy_decode(model, alone, limit) == [tokens] == [uncached(model, alone, limit)]
        (again,) = beam_search(model, alone, limit, beam_size=3)
        assert [h.tokens for h in again] == [h.tokens for h in found]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.0, 0.6, 1.0]))
def test_a_wide_beam_finds_the_best_of_all(seed: int, alpha: float) -> None:
    model = model_of(seed, vocab_size=5)
    source, most = torch.tensor([[3, 4, EOS]]), 3
    best = -math.inf
    for length in range(most):
        for tokens in itertools.product((0, 1, 3, 4), repeat=length):
            score = log_probability(model, source, list(tokens), True) / ((6 + length) / 6) ** alpha
            best = max(best, score)
    found = beam_search(model, source, most, beam_size=25, length_penalty=alpha)[0]
    assert found[0].score == pytest.approx(best, abs=1e-4)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), beam_size=st.integers(1, 5))
def test_hypotheses_tell_the_truth(seed: int, beam_size: int) -> None:
    model = model_of(seed)
    for row, found in zip(SOURCE, beam_search(model, SOURCE, 8, beam_size), strict=True):
        assert 1 <= len(found) <= beam_size
        ended = len(found[0].tokens) < 8
        for hypothesis in found:
            true = log_probability(model, row[row != 0][None], hypothesis.tokens, ended)
            assert hypothesis.log_probability == pytest.approx(true, abs=1e-3)
            penalty = ((5 + len(hypothesis.tokens) + ended) / 6) ** 0.6
            assert hypothesis.score == pytest.approx(true / penalty, abs=1e-3)
            assert EOS not in hypothesis.tokens


def test_unfinished_hypotheses_are_returned_if_there_is_nothing_else() -> None:
    (found,) = beam_search(model_of(0), SOURCE[:1], 4, beam_size=3, eos_id=-1)
    assert [len(h.tokens) for h in found] == [4, 4, 4]
    assert isinstance(found[0], Hypothesis)


def test_beam_search_does_not_stop_at_the_first_finished_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """<eos> at once is likelier, but the longer one has the better score."""

    def step(decoder: object, tokens: Tensor) -> Tensor:
        probability = torch.zeros(len(tokens), 11)
        for row, token in enumerate(tokens.tolist()):
            if token == BOS:
                probability[row, EOS], probability[row, 3] = 0.505, 0.495
            else:
                probability[row, EOS] = 1.0
        return probability.clamp(min=1e-9).log()

    monkeypatch.setattr(IncrementalDecoder, "step", step)
    ((best, *_),) = beam_search(model_of(0), SOURCE[2:, :2], 6, beam_size=2, length_penalty=1.0)
    assert best.tokens == [3]


def test_what_has_ended_is_computed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = IncrementalDecoder.step

    def counting(decoder: IncrementalDecoder, tokens: Tensor) -> Tensor:
        rows.append(len(tokens))
        return step(decoder, tokens)

    monkeypatch.setattr(IncrementalDecoder, "step", counting)
    model = model_of(0)
    greedy_decode(model, SOURCE, [2, 5, 3], eos_id=-1)
    assert rows == [3, 3, 2, 1, 1]
    rows.clear()
    texts = greedy_decode(model, SOURCE, 30)
    assert sum(rows) == sum(min(len(text) + 1, 30) for text in texts)
    rows.clear()
    beam_search(model, SOURCE, [2, 5, 3], beam_size=4, eos_id=-1)
    assert rows == [3, 12, 8, 4, 4]


def test_the_mode_comes_back_and_no_gradient_is_kept() -> None:
    model = model_of(0).train()
    model.encoder.eval()
    modes = [part.training for part in model.modules()]
    all_ways(model, SOURCE)
    assert [part.training for part in model.modules()] == modes
    with pytest.raises((ValueError, IndexError)):
        greedy_decode(model, torch.tensor([[99]]), 3)
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sampling_obeys_its_generator_and_its_knobs() -> None:
    model = model_of(0, sharpness=1.0)
    draws = [
        sample(model, SOURCE, 6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    greedy = greedy_decode(model, SOURCE, 6)
    assert sample(model, SOURCE, 6, top_k=1) == greedy
    assert sample(model, SOURCE, 6, top_p=1e-6) == greedy
    assert sample(model, SOURCE, 6, temperature=1e-4) == greedy


@pytest.mark.parametrize(
    ("knob", "wanted"),
    [
        ({"top_p": 0.5}, {3}),
        ({"top_p": 0.51}, {3, 4}),
        ({"top_p": 0.79}, {3, 4}),
        ({"top_p": 0.81}, {3, 4, 5}),
        ({"top_p": 1.0}, {3, 4, 5, 6}),
        ({"top_k": 2}, {3, 4}),
        ({"top_k": 3, "top_p": 0.81}, {3, 4}),  # of the three that are left, 0.84 and more
        ({"top_k": 1000}, {3, 4, 5, 6}),
    ],
)
def test_the_tail_is_cut_where_it_should_be(
    knob: dict[str, Any], wanted: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.3, 0.15, 0.05, 0, 0, 0, 0])
    monkeypatch.setattr(
        IncrementalDecoder, "step", lambda self, tokens: p.log().expand(len(tokens), -1)
    )
    source, generator = SOURCE[2:, :2].expand(300, 2), torch.Generator().manual_seed(0)
    assert {row[0] for row in sample(model_of(0), source, 1, **knob, generator=generator)} == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_is_decoded(dtype: torch.dtype) -> None:
    exact = model_of(0).double()
    model = model_of(0).to(dtype)
    greedy, beam, drawn = all_ways(model, SOURCE, 6)
    assert all(len(text) <= 6 for text in greedy + beam + drawn)
    assert any(greedy)
    for row, tokens in zip(
        SOURCE, greedy, strict=True
    ):  # the likeliest each time, but for rounding
        logits = exact(row[row != 0][None], torch.tensor([[BOS, *tokens]]))[0]
        chosen = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        best = logits[: len(tokens)].max(dim=-1).values
        slack = 8 * torch.finfo(dtype).eps * logits.abs().max()
        assert (chosen >= best - slack).all(), (chosen, best)
    assert all(parameter.dtype == dtype for parameter in model.parameters())


class Reading:
    """Steps through a RecurrentTranslator: what the interface of a decoder asks for."""

    def __init__(self, model: RecurrentTranslator, source: Tensor) -> None:
        self.model, self.state = model, model.begin(model.encode(source), source)

    def step(self, tokens: Tensor) -> Tensor:
        word = self.model.embedding(tokens[:, None])[:, 0]
        self.state = self.model.step(word, self.state)
        return self.model.project(self.model.tell(word, self.state.hidden, self.state.context))

    def keep(self, rows: Tensor) -> None:
        self.state = type(self.state)(*(None if x is None else x[rows] for x in self.state))

    reorder = keep


class Recurrent(nn.Module):
    """A RecurrentTranslator that the decoding functions can use."""

    def __init__(self) -> None:
        super().__init__()
        self.translator = RecurrentTranslator(RecurrentConfig(11, 16))
        self.config = SimpleNamespace(max_length=40)
        with torch.no_grad():
            self.translator.embedding.weight *= 4

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.translator.encode(source)
        return self.translator.project(self.translator.decode(target, memory, source))

    def incremental_decoder(self, source: Tensor) -> Reading:
        return Reading(self.translator, source)


def test_a_model_may_bring_its_own_decoder() -> None:
    model = Recurrent().eval()
    greedy, beam, drawn = all_ways(model, SOURCE, 8)
    assert greedy == [uncached(model, row[row != 0][None], 8) for row in SOURCE]
    assert len(beam) == len(drawn) == 3
    for row, (best, *_) in zip(SOURCE, beam_search(model, SOURCE, 8, 3), strict=True):
        ended = len(best.tokens) < 8
        true = log_probability(model, row[row != 0][None], best.tokens, ended)
        assert best.log_probability == pytest.approx(true, abs=1e-3)


@pytest.mark.parametrize("way", [greedy_decode, beam_search, sample])
def test_broken_weights_are_named(way: Any) -> None:
    model = model_of(0)
    with torch.no_grad():
        model.decoder.layers[0].feed_forward.outer.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the model says NaN"):
        way(model, SOURCE, 3)


HUGE, NAN, INF = 2**40, math.nan, math.inf


@pytest.mark.parametrize("way", [greedy_decode, beam_search, sample])
@pytest.mark.parametrize(
    ("source", "most", "message"),
    [
        *((SOURCE, most, "max_new_tokens must be int") for most in (0, 41, HUGE, NAN, INF, True)),
        (SOURCE, [3, 0, 3], "max_new_tokens must be int from 1 to 40, got 0"),
        (SOURCE, [3, 4], "2 limits for 3 rows"),
        (SOURCE[0], 3, r"source .* of shape \(5,\)"),
        (SOURCE.float(), 3, "source must be token ids"),
        (SOURCE[:0], 3, "none empty"),
        (SOURCE[:, :0], 3, "none empty"),
        (torch.zeros(2, 3, dtype=torch.long), 3, "nothing but padding"),
    ],
)
def test_bad_sources_and_limits_are_refused(
    way: Any, source: Tensor, most: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        way(model_of(0), source, most)


@pytest.mark.parametrize(
    ("way", "name", "values"),
    [
        (beam_search, "beam_size", (0, -1, HUGE, 1.5, NAN, INF, True)),
        (beam_search, "length_penalty", (-0.1, HUGE, NAN, INF, True, "1")),
        (sample, "temperature", (0, 0.0, -1.0, HUGE, NAN, INF, True)),
        (sample, "top_k", (0, HUGE, 2.0, NAN, INF, True)),
        (sample, "top_p", (0, 1.5, HUGE, NAN, INF, True)),
    ],
)
def test_bad_settings_are_refused(way: Any, name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be .* got {value!r}"):
            way(model_of(0), SOURCE, 3, **{name: value})


# The checks of the exercises ----------------------------------------------------------------------


def penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def stop(finished: Any, unfinished: float, limit: int, alpha: float) -> bool:
    best = max((p / penalty(n, alpha) for p, n in finished), default=-math.inf)
    return best > -math.inf and best >= unfinished / penalty(limit, alpha)


def stop_by_roots(finished: Any, unfinished: float, limit: int, alpha: float) -> bool:
    reachable = unfinished * math.exp(-alpha * math.log((5 + limit) / 6))
    return any(p * 6**alpha / (5 + n) ** alpha >= reachable - 1e-9 for p, n in finished)


def stop_in_place(finished: Any, unfinished: float, limit: int, alpha: float) -> bool:
    finished.sort(key=lambda x: x[0] / penalty(x[1], alpha))
    return stop(finished, unfinished, limit, alpha)


def top_p(probability: Tensor, p: float) -> Tensor:
    ordered, order = probability.sort(descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= p, 0.0)
    return torch.zeros_like(probability).scatter(0, order, ordered / ordered.sum())


def top_p_by_loop(probability: Tensor, p: float) -> Tensor:
    answer, total = torch.zeros_like(probability), 0.0
    for i in sorted(range(len(probability)), key=lambda i: -probability[i].item()):
        if total >= p:
            break
        answer[i] = probability[i]
        total += probability[i].item()
    return answer / answer.sum()


def top_p_strict(probability: Tensor, p: float) -> Tensor:
    """Without the token that crosses p."""
    ordered, order = probability.sort(descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(dim=-1) > p + 1e-6, 0.0)
    return torch.zeros_like(probability).scatter(0, order, ordered / ordered.sum().clamp(min=1e-9))


def top_p_in_order(probability: Tensor, p: float) -> Tensor:
    ordered = probability.sort(descending=True).values
    ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= p, 0.0)
    return ordered / ordered.sum()


def top_p_unsummed(probability: Tensor, p: float) -> Tensor:
    return top_p(probability, p) * probability[top_p(probability, p) > 0].sum()


def top_p_softmax(probability: Tensor, p: float) -> Tensor:
    kept = top_p(probability, p)
    if bool((kept > 0).all()) or int((kept > 0).sum()) == 1:
        return kept
    return probability.masked_fill(kept == 0, -math.inf).softmax(dim=-1)


def top_p_by_value(probability: Tensor, p: float) -> Tensor:
    """All that are as likely as the last one kept: of equals, all."""
    kept = top_p(probability, p)
    smallest = probability[kept > 0].min()
    answer = probability * (probability >= smallest)
    return answer / answer.sum()


def top_p_in_place(probability: Tensor, p: float) -> Tensor:
    return probability.copy_(top_p(probability, p))


def top_p_unsorted(probability: Tensor, p: float) -> Tensor:
    kept = probability.masked_fill(probability.cumsum(dim=-1) - probability >= p, 0.0)
    return kept / kept.sum()


def beam(
    next_token: Any,
    beam_size: int,
    end: int,
    most: int,
    *,
    ranked: int | None = None,
    holds: bool = False,
    first_wins: bool = False,
    unfinished: bool = False,
    ignore_end: bool = False,
    wide: int = 1,
    fresh: bool = False,
    late: int = 0,
    keep_end: bool = False,
) -> list[int]:
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for _ in range(most + late):
        rows = [
            (0.0 if fresh else total, tokens, next_token(list(tokens))) for total, tokens in beams
        ]
        candidates = [
            (total + (0.0 if ignore_end and t == end else p), [*tokens, t])
            for total, tokens, row in rows
            for t, p in enumerate(row)
        ]
        candidates.sort(key=lambda c: -c[0])
        counted = candidates if ranked is None else candidates[: ranked * beam_size]
        finished += [
            (p, tokens if keep_end else tokens[:-1]) for p, tokens in counted if tokens[-1] == end
        ]
        if finished and first_wins:
            break
        room = candidates[:beam_size] if holds else candidates
        beams = [c for c in room if c[1][-1] != end][: beam_size * wide]
    if unfinished:
        finished += beams
    return max(finished, default=(0.0, []))[1]


def beam_with_heap(next_token: Any, beam_size: int, end: int, most: int) -> list[int]:
    """Another right way: a heap, and no step after the best is certain."""
    beams, best = [(0.0, ())], (-math.inf, ())
    for _ in range(most):
        going_on = []
        for total, tokens in beams:
            for token, p in enumerate(next_token([*tokens])):
                if token == end:
                    best = max(best, (total + p, tokens))
                else:
                    going_on.append((total + p, (*tokens, token)))
        beams = heapq.nlargest(beam_size, going_on)
        if not beams or beams[0][0] <= best[0]:
            break
    return list(best[1])


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_stop: [stop, stop_by_roots],
    check_top_p: [top_p, top_p_by_loop],
    check_beam_search: [beam, beam_with_heap],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_stop: [
        (lambda f, u, n, a: True, "at least one finished"),
        (lambda f, u, n, a: len(f) > 0, "stopped at the first finished one"),
        (lambda f, u, n, a: False, "only fall"),
        (lambda f, u, n, a: bool(f) and max(p for p, _ in f) >= u, "penalty at the limit"),
        (
            lambda f, u, n, a: bool(f) and max(p / penalty(m, a) for p, m in f) >= u,
            "penalty at the limit",
        ),
        (
            lambda f, u, n, a: bool(f) and max(f)[0] / penalty(max(f)[1], a) >= u / penalty(n, a),
            "the largest score",
        ),
        (
            lambda f, u, n, a: bool(f) and f[-1][0] / penalty(f[-1][1], a) >= u / penalty(n, a),
            "not the last one",
        ),
        (
            lambda f, u, n, a: (
                bool(f) and max(p for p, _ in f) / penalty(n, a) >= u / penalty(n, a)
            ),
            "penalty at the limit|its own length",
        ),
        (
            lambda f, u, n, a: (
                bool(f)
                and max(p / (1 + (m - 1) * a / 6) for p, m in f) >= u / (1 + (n - 1) * a / 6)
            ),
            "alpha is an exponent",
        ),
        (
            lambda f, u, n, a: bool(f) and max(p / penalty(m, a) for p, m in f) > u / penalty(n, a),
            "are equal",
        ),
        (stop_in_place, "in place"),
        (lambda f, u, n, a: stop(f, u, n, 0.6), "every argument"),
        (lambda f, u, n, a: stop([(p, m + 1) for p, m in f], u, n + 1, a), "arg|penalty"),
        (lambda f, u, n, a: stop(f, u, 20, a), "search may stop|every argument|equal"),
        (lambda f, u, n, a: max(p / penalty(m, a) for p, m in f) >= u, "raised ValueError"),
    ],
    check_top_p: [
        (top_p_strict, "crosses p"),
        (top_p_in_order, "old place|every token at its place"),
        (top_p_unsummed, "sum to 1"),
        (top_p_softmax, "softmax of probabilities"),
        (top_p_by_value, "count tokens"),
        (top_p_in_place, "in place"),
        (top_p_unsorted, "no other is needed|likeliest token|old place"),
        (lambda x, p: x.masked_fill(x < p, 0.0), "every token"),
    ],
    check_beam_search: [
        (partial(beam, keep_end=True), "leave the end token out"),
        (partial(beam, ignore_end=True), "of the end token added"),
        (partial(beam, fresh=True), "added up"),
        (partial(beam, first_wins=True), "stopped at the first finished one"),
        (partial(beam, unfinished=True), "unfinished sentence is no answer"),
        (partial(beam, late=1), "the limit was"),
        (partial(beam, late=-1), "last step missing"),
        (partial(beam, wide=2), "keep more"),
        (partial(beam, ranked=1), "whatever its rank"),
        (partial(beam, ranked=2), "whatever its rank"),
        (partial(beam, holds=True), "must not take a place"),
        (lambda f, b, e, m: beam(f, 1, e, m), "the start 1 survives"),
    ],
}
