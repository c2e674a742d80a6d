"""Chapter 3: the recurrent translator's behavior, what it refuses and what ships, and what the checks catch."""

import itertools
import json
import math
import warnings
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks import chapter_03
from transformer_lib.checkpoint import read_tensors
from transformer_lib.pairs import Batch, Example, make_batch
from transformer_lib.recurrent import RecurrentConfig, RecurrentTranslator
from transformer_lib.training import TrainingSettings, evaluate_loss, train, translation_loss
from transformer_lib.transformer import count_parameters

each_attention = pytest.mark.parametrize("attention", [False, True], ids=["without", "with"])


# --- the translator


def translator(attention: bool, d_model: int = 8) -> RecurrentTranslator:
    torch.manual_seed(0)
    return RecurrentTranslator(RecurrentConfig(30, d_model, attention=attention))


def batch_of(*lengths: int, seed: int = 0) -> Tensor:
    """Rows of ids, the shorter ones padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, 30, (len(lengths), max(lengths)), generator=generator)
    for row, length in zip(source, lengths, strict=True):
        row[length:] = 0
    return source


@each_attention
def test_shapes_and_parameters(attention: bool) -> None:
    model, source, target = translator(attention), batch_of(5, 3), batch_of(4, 4, seed=1)
    memory = model.encode(source)
    told = model.decode(target, memory, source)
    assert memory.shape == (2, 5, 8)
    assert told.shape == (2, 4, 8)
    assert model.project(told).shape == (2, 4, 30)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert ("similarity" in names) == attention


@each_attention
def test_forward_is_encode_decode_project_or_the_loss(attention: bool) -> None:
    model, source, target = translator(attention), batch_of(5, 3), batch_of(4, 4, seed=1)
    told = model.decode(target, model.encode(source), source)
    assert torch.equal(model(source, target), model.project(told))
    seen: list[Any] = []

    def loss(inner: nn.Module, hidden: Tensor) -> Tensor:
        seen.append(inner)
        return hidden.sum()

    assert torch.equal(model(source, target, loss), told.sum())
    assert seen == [model]


@each_attention
def test_its_loss_is_the_cross_entropy_of_its_logits(attention: bool, batch: Batch) -> None:
    model = translator(attention)
    logits = model(batch.source, batch.target_in)
    expected = F.cross_entropy(
        logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=0, reduction="sum"
    )
    total, count = translation_loss(model, batch)
    torch.testing.assert_close(total, expected)
    assert evaluate_loss(model, [batch]) == pytest.approx(total.item() / count)


def test_the_first_state_is_the_tanh_of_the_summarys_map() -> None:
    model, source = translator(True), batch_of(3)
    with torch.no_grad():
        model.first_state.weight *= 100  # so that tanh matters
    state = model.begin(model.encode(source), source)
    mapped = model.first_state(state.summary)
    torch.testing.assert_close(state.hidden, mapped.tanh())
    assert (mapped - state.hidden).abs().max() > 1


def test_attention_costs_less_than_a_tenth() -> None:
    models = [RecurrentTranslator(RecurrentConfig(2000, 256, attention=a)) for a in (False, True)]
    counts = [count_parameters(model) for model in models]
    assert counts[0] < counts[1] < 1.1 * counts[0]


@each_attention
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), extra=st.integers(1, 4))
def test_padding_and_neighbors_change_nothing(
    attention: bool, lengths: list[int], extra: int
) -> None:
    model, source = translator(attention), batch_of(*lengths)
    target = batch_of(*([4] * len(lengths)), seed=1)
    told = model.decode(target, model.encode(source), source)
    wider = torch.cat([source, source.new_zeros(len(lengths), extra)], dim=1)
    torch.testing.assert_close(model.decode(target, model.encode(wider), wider), told)
    for row, length in enumerate(lengths):
        alone = source[row : row + 1, :length]
        single = model.decode(target[row : row + 1], model.encode(alone), alone)
        torch.testing.assert_close(single[0], told[row])


@each_attention
def test_no_target_token_sees_a_later_one(attention: bool) -> None:
    model, source, target = translator(attention), batch_of(5, 3), batch_of(6, 6, seed=1)
    memory = model.encode(source)
    told = model.decode(target, memory, source)
    for position in range(1, 6):
        changed = target.clone()
        changed[:, position] = (changed[:, position] + 5) % 27 + 3
        again = model.decode(changed, memory, source)
        assert torch.equal(again[:, :position], told[:, :position])
        assert not torch.equal(again[:, position], told[:, position])


def test_without_attention_the_source_is_seen_through_its_summary_only() -> None:
    model, source, target = translator(False), batch_of(5), batch_of(4, seed=1)
    memory = model.encode(source)
    told = model.decode(target, memory, source)
    tampered = memory.clone()
    tampered[:, 1:4] = 9.0  # all but the two ends
    assert torch.equal(model.decode(target, tampered, source), told)
    attending = translator(True)
    memory = attending.encode(source)
    told = attending.decode(target, memory, source)
    tampered = memory.clone()
    tampered[:, 1:4] = 9.0
    assert not torch.allclose(attending.decode(target, tampered, source), told)


def test_alignments_are_weights_on_real_tokens() -> None:
    model, source, target = translator(True), batch_of(5, 2), batch_of(4, 4, seed=1)
    weights = model.align(source, target)
    assert weights.shape == (2, 4, 5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4))
    assert (weights[1, :, 2:] == 0).all()
    with pytest.raises(ValueError, match=r"nothing to align.*attention=False"):
        translator(False).align(source, target)


@each_attention
def test_greedy_writes_the_likeliest_and_stops(attention: bool) -> None:
    model, source = translator(attention), batch_of(5, 3)
    rows = model.greedy(source, 6)
    for row, written in enumerate(rows):
        assert len(written) <= 6
        given_in = torch.tensor([[1, *written]])
        alone = source[row : row + 1]
        likeliest = model.project(model.decode(given_in, model.encode(alone), alone))[0].argmax(-1)
        assert likeliest[: len(written)].tolist() == written
        if len(written) < 6:
            assert likeliest[len(written)] == 2, "it stopped without <eos>"
    first = rows[0][0]
    stopped = model.greedy(source[:1], 6, eos_id=first)
    assert stopped == [[]], "what comes first is <eos> now"
    assert model.greedy(source, 6, bos_id=2) == model.greedy(source, 6, 2, 2), "<bos> is no end"


@each_attention
def test_it_learns_a_pair_by_heart(attention: bool) -> None:
    torch.manual_seed(0)
    model = RecurrentTranslator(RecurrentConfig(30, 32, attention=attention))
    batch = make_batch([Example([5, 6, 7, 2], [9, 8]), Example([6, 5, 2], [4, 4, 3])])
    before = evaluate_loss(model, [batch])
    train(model, [batch] * 120, settings=TrainingSettings(120, 40, label_smoothing=0.0))
    assert evaluate_loss(model, [batch]) < 0.1 < before
    assert model.greedy(batch.source, 8) == [[9, 8], [4, 4, 3]]


@each_attention
def test_it_trains_in_bfloat16(attention: bool, batch: Batch) -> None:
    losses = {}
    for bfloat16 in (False, True):
        model = translator(attention)
        settings = TrainingSettings(3, bfloat16=bfloat16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not every processor has instructions for it
            losses[bfloat16] = train(model, [batch] * 3, settings=settings)[-1].train_loss
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 7}, "even, got 7"),
        ({"d_model": 0}, "d_model must be int from 1"),
        ({"attention": "yes"}, "attention must be bool, got 'yes'"),
        ({"pad_id": 30}, "pad_id must be int from 0 to 29, got 30"),
        ({"pad_id": -1}, "pad_id must be int from 0 to 29, got -1"),
    ],
)
def test_bad_configs_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(30, **arguments)


def test_bad_inputs_are_refused() -> None:
    model, source = translator(True), batch_of(5, 3)
    memory = model.encode(source)
    for rows in ([[4, 5], [0, 0]], [[0, 5]], [[5, 0, 6]]):
        with pytest.raises(ValueError, match="tokens, then padding"):
            model.encode(torch.tensor(rows))
    with pytest.raises(ValueError, match=r"memory \(2, 5, 8\), but source \(2, 4\)"):
        model.decode(source, memory, source[:, :4])
    with pytest.raises(ValueError, match="max_new_tokens must be int from 1 to inf, got 0"):
        model.greedy(source, 0)


# --- what ships


def test_the_shipped_comparison_is_whole() -> None:
    data = resources.files("transformer_lib.book") / "results" / "recurrent.json"
    results = json.loads(data.read_text("utf-8"))
    runs = results["same_steps"]
    assert sorted((run["name"], run["seed"]) for run in runs) == [
        (name, seed) for name in ("with attention", "without attention") for seed in (1, 2, 3)
    ]
    for run in runs:
        assert sum(group["sentences"] for group in run["by_length"]) == 1000
    assert [run["name"] for run in results["longer"]] == ["without attention", "with attention"]
    times = results["same_time"]
    assert sorted((run["name"], run["seed"]) for run in times) == [
        (name, seed) for name in ("Transformer", "recurrent") for seed in (1, 2, 3)
    ]


def test_the_shipped_weights_are_small_and_fit() -> None:
    folder = resources.files("transformer_lib") / "pretrained" / "recurrent"
    weights, notes = read_tensors(str(folder / "weights.safetensors"))
    model = RecurrentTranslator(RecurrentConfig(**notes["config"]))
    model.load_state_dict({name: x.float() for name, x in weights.items()})
    assert {x.dtype for x in weights.values()} == {torch.float16}
    assert notes["command"].startswith("python benchmarks/recurrent.py")
    assert notes["bleu"] > 10


# --- the exercises' checks: right by any way passes, what readers get wrong is refused, and said


def look(state: Any, memory: Any, w_query: Any, w_key: Any, v: Any, real: Any, mistake: str) -> Any:
    mixed = (state @ w_query.T)[:, None] + memory @ w_key.T
    scores = (mixed if mistake == "no tanh" else mixed.tanh()) @ v
    if mistake == "scale":
        scores = scores / len(v) ** 0.5
    if mistake == "no query":
        scores = (memory @ w_key.T).tanh() @ v
    forbidden = {"minus 100": -100.0, "zero": 0.0}.get(mistake, -math.inf)
    if mistake == "axis":
        weights = scores.softmax(dim=0)
    elif mistake == "after":
        weights = scores.softmax(dim=-1) * real
    elif mistake == "one mask":
        weights = scores.masked_fill(~real.all(dim=0), -math.inf).softmax(dim=-1)
    elif mistake == "in place":
        real |= real.new_ones(())
        weights = scores.masked_fill(~real, -math.inf).softmax(dim=-1)
    elif mistake == "upside down":
        weights = scores.masked_fill(real, -1e9).softmax(dim=-1)
    else:
        mask = torch.ones_like(real) if mistake == "none" else real
        weights = scores.masked_fill(~mask, forbidden).softmax(dim=-1)
    context = (weights[:, None] @ (memory.flip(1) if mistake == "flipped" else memory))[:, 0]
    if mistake == "alone":
        return context
    return (weights, context) if mistake == "swapped" else (context, weights)


def look_by_loops(
    state: Any, memory: Any, w_query: Any, w_key: Any, v: Any, real: Any
) -> tuple[Tensor, Tensor]:
    contexts, rows = [], []
    for s, memories, kept in zip(state, memory, real, strict=True):
        scores = [v @ torch.tanh(w_query @ s + w_key @ m) for m in memories]
        top = max(score for score, keep in zip(scores, kept, strict=True) if keep)
        powers = torch.stack(
            [(score - top).exp() * keep for score, keep in zip(scores, kept, strict=True)]
        )
        rows.append(powers / powers.sum())
        contexts.append(rows[-1] @ memories)
    return torch.stack(contexts), torch.stack(rows)


def look_by_log(
    state: Any, memory: Any, w_query: Any, w_key: Any, v: Any, real: Any
) -> tuple[Tensor, Tensor]:
    mixed = F.linear(state, w_query).unsqueeze(1) + F.linear(memory, w_key)
    scores = torch.einsum("bsh,h->bs", mixed.tanh(), v) + real.float().log()
    weights = scores.log_softmax(dim=-1).exp()
    return torch.einsum("bs,bsm->bm", weights, memory), weights


def look_with(mistake: str) -> Callable[..., Any]:
    return lambda *arguments: look(*arguments, mistake)


def luong(states: Any, memory: Any, real: Any, w_context: Any, mistake: str) -> Tensor:
    scores = states @ memory.mT
    if mistake == "scale":
        scores = scores / memory.size(-1) ** 0.5
    axis = 1 if mistake == "axis" else -1
    if mistake == "upside down":
        scores = scores.masked_fill(real[:, None], -1e9)
    elif mistake == "zero":
        scores = scores * real[:, None]
    elif mistake == "target" and real.size(1) == states.size(1):
        scores = scores.masked_fill(~real[:, :, None], -1e9)
    elif mistake not in ("no mask", "after"):
        scores = scores.masked_fill(~real[:, None], -math.inf)
    weights = scores.softmax(dim=axis)
    if mistake == "after":
        weights = weights * real[:, None]
    if mistake == "in place":
        memory *= 2
    context = weights @ memory
    both = [states, context] if mistake == "order" else [context, states]
    linear = torch.cat(both, dim=-1) @ w_context.T
    return linear if mistake == "no tanh" else linear.tanh()


def luong_by_loops(states: Any, memory: Any, real: Any, w_context: Any) -> Tensor:
    answer = torch.empty_like(states)
    for b, t in itertools.product(*map(range, states.shape[:2])):
        kept = memory[b][real[b]]
        context = (kept @ states[b, t]).softmax(dim=0) @ kept
        answer[b, t] = torch.tanh(w_context @ torch.cat([context, states[b, t]]))
    return answer


def luong_by_two_maps(states: Any, memory: Any, real: Any, w_context: Any) -> Tensor:
    d = states.size(-1)
    context = F.scaled_dot_product_attention(states, memory, memory, real[:, None], scale=1.0)
    return torch.tanh(context @ w_context[:, :d].T + states @ w_context[:, d:].T)


def luong_with(mistake: str) -> Callable[..., Tensor]:
    return lambda *arguments: luong(*arguments, mistake)


def crossing(weights: Tensor, strict: bool = True, axis: int = -1, share: float = 1.0) -> float:
    place = weights.argmax(dim=axis).tolist()
    pairs = [(a, b) for i, a in enumerate(place) for b in place[i + 1 :]]
    crossed = sum(a > b if strict else a >= b for a, b in pairs)
    return crossed / max(1, len(pairs)) * share


def crossing_at_once(weights: Tensor) -> Tensor:
    place = weights.argmax(dim=-1)
    i, j = torch.triu_indices(len(place), len(place), 1)
    return (place[i] > place[j]).float().mean().nan_to_num(0.0)


def crossing_of_neighbors(weights: Tensor) -> float:
    place = weights.argmax(dim=-1)
    return (place[:-1] > place[1:]).float().mean().nan_to_num(0.0).item()


def crossing_without_ties(weights: Tensor) -> float:
    place = weights.argmax(dim=-1).tolist()
    pairs = [(a, b) for i, a in enumerate(place) for b in place[i + 1 :] if a != b]
    return sum(a > b for a, b in pairs) / max(1, len(pairs))


def mean_place(weights: Tensor) -> float:
    place = (weights @ torch.arange(float(weights.size(1)))).tolist()
    pairs = [(a, b) for i, a in enumerate(place) for b in place[i + 1 :]]
    return sum(a > b + 1e-6 for a, b in pairs) / max(1, len(pairs))


def uncovered(weights: Tensor, least: float) -> list[int]:
    coverage = {i: float(column.sum()) for i, column in enumerate(weights.unbind(dim=1))}
    return sorted((i for i, c in coverage.items() if c < least), key=coverage.__getitem__)


def uncovered_sorted(weights: Tensor, least: float) -> list[int]:
    values, places = weights.sum(dim=0).sort()
    return places[values < least].tolist()


def uncovered_in_place(weights: Tensor, least: float) -> list[int]:
    for row in weights[1:]:
        weights[0] += row
    return [i for i in weights[0].argsort().tolist() if weights[0, i] < least]


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_03.check_additive_look: [look_with(""), look_by_loops, look_by_log],
    chapter_03.check_luong_attention: [luong_with(""), luong_by_loops, luong_by_two_maps],
    chapter_03.check_word_order: [crossing, crossing_at_once],
    chapter_03.check_uncovered: [uncovered, uncovered_sorted],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_03.check_additive_look: [
        (look_with("no tanh"), "the tanh is missing"),
        (look_with("axis"), r"is the softmax over the source\?"),
        (look_with("none"), "is the mask used"),
        (look_with("after"), "mask before the softmax"),
        (look_with("upside down"), "upside down"),
        (look_with("alone"), "return two things"),
        (look_with("swapped"), "the context should have shape"),
        (look_with("scale"), "no scale"),
        (look_with("no query"), "the state has no say"),
        (look_with("zero"), "padding of row 1"),
        (look_with("minus 100"), "not low enough"),
        (look_with("one mask"), "a mask of its own"),
        (look_with("in place"), "number 6 in place"),
        (look_with("flipped"), "the context is not"),
    ],
    chapter_03.check_luong_attention: [
        (luong_with("no tanh"), "the tanh is missing"),
        (luong_with("order"), "first the context, then the state"),
        (luong_with("axis"), "over the target"),
        (luong_with("no mask"), r"is the mask used\?"),
        (luong_with("upside down"), "is the mask upside down"),
        (luong_with("zero"), "not 0"),
        (luong_with("after"), "not after it"),
        (luong_with("scale"), "not divided by a root"),
        (luong_with("target"), "along the target"),
        (luong_with("in place"), "number 2 in place"),
    ],
    chapter_03.check_word_order: [
        (lambda w: crossing(w) * math.comb(len(w), 2), "a reversed order crosses"),
        (lambda w: crossing(w, strict=False), "do not cross"),
        (lambda w: crossing(w, axis=0), "rows are target words"),
        (mean_place, "MOST, not the mean place"),
        (crossing_of_neighbors, "not only neighbors"),
        (crossing_without_ties, "counts as a pair"),
        (lambda w: 1 - crossing(w), "nothing crosses"),
    ],
    chapter_03.check_uncovered: [
        (
            lambda w, least: [i for i in w.sum(0).argsort().tolist() if w.sum(0)[i] <= least],
            "not less than 2.0",
        ),
        (
            lambda w, least: [i for i, c in enumerate(w.sum(1).tolist()) if c < least],
            "only source word 1",
        ),
        (
            lambda w, least: [i for i, c in enumerate(w.sum(0).tolist()) if c < least],
            "sort by coverage",
        ),
        (lambda w, least: w.sum(0).argsort().tolist(), "none is below"),
        (
            lambda w, least: [i for i in w.mean(0).argsort().tolist() if w.mean(0)[i] < least],
            "no mean",
        ),
        (uncovered_in_place, "in place"),
        (lambda w, least: w.sum(0).argsort(), "not Tensor"),
    ],
}
