"""Chapters 1 and 3: the cells against torch's, the recurrent translator's behavior, and what the checks catch."""

import json
import math
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks import chapter_01, chapter_03
from transformer_lib.pairs import Example, make_batch
from transformer_lib.recurrent import (
    GRUCell,
    LSTMCell,
    RecurrentConfig,
    RecurrentTranslator,
    RNNCell,
)
from transformer_lib.training import read_tensors, train, translation_loss

sizes = st.integers(1, 5)
each_attention = pytest.mark.parametrize("attention", [False, True], ids=["without", "with"])


# --- the cells


@settings(max_examples=30, deadline=None)
@given(batch=sizes, input_size=sizes, hidden_size=sizes, seed=sizes)
def test_cells_are_torchs(batch: int, input_size: int, hidden_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, hidden = torch.randn(batch, input_size), torch.randn(batch, hidden_size)
    memory = torch.randn(batch, hidden_size)
    for ours, theirs in ((RNNCell, nn.RNNCell), (GRUCell, nn.GRUCell)):
        cell, other = ours(input_size, hidden_size), theirs(input_size, hidden_size)
        cell.load_state_dict(other.state_dict())
        torch.testing.assert_close(cell(x, hidden), other(x, hidden))
    cell, other = LSTMCell(input_size, hidden_size), nn.LSTMCell(input_size, hidden_size)
    cell.load_state_dict(other.state_dict())
    for one, two in zip(cell(x, (hidden, memory)), other(x, (hidden, memory)), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(RNNCell, nn.RNNCell), (LSTMCell, nn.LSTMCell), (GRUCell, nn.GRUCell)]
)
def test_cells_are_drawn_as_torchs(ours: type[nn.Module], theirs: type[nn.Module]) -> None:
    torch.manual_seed(5)
    cell = ours(3, 4)
    torch.manual_seed(5)
    other = theirs(3, 4)
    for name, parameter in other.named_parameters():
        assert torch.equal(dict(cell.named_parameters())[name], parameter), name


@pytest.mark.parametrize("cell", [RNNCell, LSTMCell, GRUCell])
def test_cells_refuse_what_does_not_fit(cell: type[nn.Module]) -> None:
    def state(*shape: int) -> Any:
        return (
            (torch.zeros(*shape), torch.zeros(*shape)) if cell is LSTMCell else torch.zeros(*shape)
        )

    for input_size, hidden_size in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match=rf"{input_size} and {hidden_size}"):
            cell(input_size, hidden_size)
    with pytest.raises(ValueError, match=r"input_size 3\), got \(2, 4\)"):
        cell(3, 5)(torch.zeros(2, 4), state(2, 5))
    with pytest.raises(ValueError, match=r"input_size 3\), got \(3,\)"):
        cell(3, 5)(torch.zeros(3), state(1, 5))
    with pytest.raises(ValueError, match=r"\(2, hidden_size 5\), got \(2, 4\)"):
        cell(3, 5)(torch.zeros(2, 3), state(2, 4))
    if cell is LSTMCell:
        with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 4\)"):
            cell(3, 5)(torch.zeros(2, 3), (torch.zeros(2, 5), torch.zeros(2, 4)))


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


def test_attention_costs_less_than_a_tenth() -> None:
    counts = [
        sum(
            p.numel()
            for p in RecurrentTranslator(RecurrentConfig(2000, 256, attention=a)).parameters()
        )
        for a in (False, True)
    ]
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
    with pytest.raises(ValueError, match="at least 1, got 0"):
        model.greedy(source, 0)


@each_attention
def test_it_learns_a_pair_by_heart(attention: bool) -> None:
    torch.manual_seed(0)
    model = RecurrentTranslator(RecurrentConfig(30, 32, attention=attention))
    batch = make_batch([Example([5, 6, 7, 2], [9, 8]), Example([6, 5, 2], [4, 4, 3])])
    before = translation_loss(model, batch, 0.0).item()
    train(model, [batch] * 120, steps=120, warmup_steps=40, label_smoothing=0.0)
    assert translation_loss(model, batch, 0.0).item() < 0.1 < before
    assert model.greedy(batch.source, 8) == [[9, 8], [4, 4, 3]]


def test_bad_configs_and_inputs_are_refused() -> None:
    for arguments, message in (
        ({"d_model": 7}, "even, got 7"),
        ({"d_model": 0}, "even, got 0"),
        ({"pad_id": 30}, "pad_id 30 is not in a vocabulary of 30"),
        ({"pad_id": -1}, "pad_id -1"),
    ):
        with pytest.raises(ValueError, match=message):
            RecurrentConfig(30, **arguments)
    model, source = translator(True), batch_of(5, 3)
    memory = model.encode(source)
    with pytest.raises(ValueError, match="row 1 of the source is nothing but padding"):
        model.encode(torch.tensor([[4, 5], [0, 0]]))
    with pytest.raises(ValueError, match=r"\(2, 5, 8\) and source \(2, 4\)"):
        model.begin(memory, source[:, :4])
    with pytest.raises(ValueError, match=r"\(3, 8\).*2 rows"):
        model.step(torch.zeros(3, 8), model.begin(memory, source))
    with pytest.raises(ValueError, match="padded on the right"):
        model.encode(torch.tensor([[0, 5, 6]]))


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


# --- the exercises' checks


def read_without_tanh(inputs: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
    return inputs @ w_ih.T + bias


def reader(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loop around a step that may be wrong."""

    def read(inputs: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
        hidden, states = torch.zeros(inputs.size(0), w_hh.size(0)), []
        for x in inputs.unbind(dim=1):
            hidden = step(x @ w_ih.T + bias, hidden, w_hh)
            states.append(hidden)
        return torch.stack(states, dim=1)

    return read


def gru(from_input: Tensor, from_hidden: Tensor, hidden: Tensor, mistake: str) -> Tensor:
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
        from_input.chunk(3, dim=-1),
        from_hidden.chunk(3, dim=-1),
    )
    if mistake == "order":
        reset_x, update_x, reset_h, update_h = update_x, reset_x, update_h, reset_h
    update, reset = (update_x + update_h).sigmoid(), (reset_x + reset_h).sigmoid()
    new = new_x + reset * new_h
    if mistake == "reset all":
        new = reset * (new_x + new_h)
    if mistake != "no tanh":
        new = new.tanh()
    if mistake == "swapped":
        update = 1 - update
    if mistake == "input gates only":
        update = update_x.sigmoid()
        return (1 - update) * torch.tanh(new_x + reset_x.sigmoid() * new_h) + update * hidden
    return (1 - update) * new + update * hidden


def gru_with(mistake: str) -> Callable[..., Tensor]:
    return lambda *arguments: gru(*arguments, mistake)


def look(state: Any, memory: Any, w_query: Any, w_key: Any, v: Any, real: Any, mistake: str) -> Any:
    mixed = (state @ w_query.T)[:, None] + memory @ w_key.T
    scores = (mixed if mistake == "no tanh" else mixed.tanh()) @ v
    if mistake == "axis":
        weights = scores.softmax(dim=0)
    elif mistake == "after":
        weights = scores.softmax(dim=-1) * real
    else:
        mask = {"none": torch.ones_like(real), "upside down": ~real}.get(mistake, real)
        if mistake == "upside down" and real.all():
            mask = real
        weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    if mistake == "alone":
        return (weights[:, None] @ memory)[:, 0]
    return (weights[:, None] @ memory)[:, 0], weights


def look_with(mistake: str) -> Callable[..., Any]:
    return lambda *arguments: look(*arguments, mistake)


def luong(states: Any, memory: Any, real: Any, w_context: Any, mistake: str) -> Tensor:
    scores = states @ memory.mT
    axis = 1 if mistake == "axis" else -1
    mask = ~real if mistake == "upside down" else real
    if mistake != "no mask":
        scores = scores.masked_fill(~mask[:, None], -math.inf)
    context = scores.softmax(dim=axis) @ memory
    both = [states, context] if mistake == "order" else [context, states]
    linear = torch.cat(both, dim=-1) @ w_context.T
    return linear if mistake == "no tanh" else linear.tanh()


def luong_with(mistake: str) -> Callable[..., Tensor]:
    return lambda *arguments: luong(*arguments, mistake)


def crossing(weights: Tensor, strict: bool = True, axis: int = -1, share: float = 1.0) -> float:
    place = weights.argmax(dim=axis).tolist()
    pairs = [(a, b) for i, a in enumerate(place) for b in place[i + 1 :]]
    crossed = sum(a > b if strict else a >= b for a, b in pairs)
    return crossed / max(1, len(pairs)) * share


def mean_place(weights: Tensor) -> float:
    place = (weights @ torch.arange(float(weights.size(1)))).tolist()
    pairs = [(a, b) for i, a in enumerate(place) for b in place[i + 1 :]]
    return sum(a > b + 1e-6 for a, b in pairs) / max(1, len(pairs))


WRONG: list[tuple[Callable[..., None], Callable[..., Any], str]] = [
    (chapter_01.check_read_sequence, read_without_tanh, "the tanh is missing"),
    (
        chapter_01.check_read_sequence,
        reader(lambda x, h, w: torch.tanh(x)),
        "does not know the first",
    ),
    (
        chapter_01.check_read_sequence,
        reader(lambda x, h, w: torch.tanh(x + h @ w)),
        "weight_hh is transposed",
    ),
    (
        chapter_01.check_read_sequence,
        lambda *a: reader(lambda x, h, w: torch.tanh(x + h @ w.T))(*a).mT,
        "should have shape",
    ),
    (chapter_01.check_gru_update, gru_with("swapped"), "z is the share of the old state"),
    (chapter_01.check_gru_update, gru_with("no tanh"), "the tanh of the new content is missing"),
    (chapter_01.check_gru_update, gru_with("reset all"), "should hide the state, not the input"),
    (chapter_01.check_gru_update, gru_with("input gates only"), "do both maps go into the gates"),
    (chapter_01.check_gru_update, gru_with("order"), "reset and update have changed places"),
    (chapter_01.check_forget_bias, lambda steps: 0.5 ** (1 / steps), "is it the gate itself?"),
    (chapter_01.check_forget_bias, lambda steps: 0.0, "must be more than half open"),
    (chapter_01.check_forget_bias, lambda steps: math.log(steps), "is left after 10 steps"),
    (
        chapter_01.check_last_states,
        lambda states, lengths: states[:, -1],
        "you took the last column",
    ),
    (
        chapter_01.check_last_states,
        lambda states, lengths: states[torch.arange(2), lengths.clamp(max=3)],
        "off by one",
    ),
    (
        chapter_01.check_last_states,
        lambda states, lengths: states[torch.arange(2), lengths - 2],
        "off by one",
    ),
    (chapter_03.check_additive_look, look_with("no tanh"), "the tanh is missing"),
    (chapter_03.check_additive_look, look_with("axis"), "is the softmax over the source?"),
    (chapter_03.check_additive_look, look_with("none"), "is the mask used"),
    (chapter_03.check_additive_look, look_with("after"), "mask before the softmax"),
    (chapter_03.check_additive_look, look_with("upside down"), "True where a token is real"),
    (chapter_03.check_additive_look, look_with("alone"), "return two things"),
    (chapter_03.check_luong_attention, luong_with("no tanh"), "the tanh is missing"),
    (chapter_03.check_luong_attention, luong_with("order"), "first the context, then the state"),
    (chapter_03.check_luong_attention, luong_with("axis"), "put side by side"),
    (
        chapter_03.check_luong_attention,
        luong_with("no mask"),
        "is the mask used before the softmax",
    ),
    (chapter_03.check_luong_attention, luong_with("upside down"), "is the mask upside down"),
    (
        chapter_03.check_word_order,
        lambda w: crossing(w) * math.comb(len(w), 2),
        "a reversed order crosses",
    ),
    (chapter_03.check_word_order, lambda w: crossing(w, strict=False), "do not cross"),
    (chapter_03.check_word_order, lambda w: crossing(w, axis=0), "rows are target words"),
    (chapter_03.check_word_order, mean_place, "MOST, not the mean place"),
    (
        chapter_03.check_uncovered,
        lambda w, least: [i for i in w.sum(0).argsort().tolist() if w.sum(0)[i] <= least],
        "not less than 2.0",
    ),
    (
        chapter_03.check_uncovered,
        lambda w, least: [i for i, c in enumerate(w.sum(1).tolist()) if c < least],
        "only source word 1",
    ),
    (
        chapter_03.check_uncovered,
        lambda w, least: [i for i, c in enumerate(w.sum(0).tolist()) if c < least],
        "sort by coverage",
    ),
    (chapter_03.check_uncovered, lambda w, least: w.sum(0).argsort().tolist(), "none is below"),
]


@pytest.mark.parametrize(
    ("check", "attempt", "message"), WRONG, ids=[f"{c.__name__}: {m}" for c, _, m in WRONG]
)
def test_a_wrong_solution_is_told_why(
    check: Callable[..., None], attempt: Callable[..., Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check(attempt)
