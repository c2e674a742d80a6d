"""Chapter 27: the two-minute translator's parts, and that its stored ladder holds what it claims."""

import json
from dataclasses import replace
from importlib import import_module, resources
from statistics import mean

import pytest
import torch

from transformer_lib.decoding import IncrementalDecoder
from transformer_lib.pairs import Example, endless_batches, make_batch
from transformer_lib.training import cross_entropy_sum
from transformer_lib.transformer import Transformer, TransformerConfig

speedrun = import_module("experiments.27_speedrun")
RESULTS = resources.files("transformer_lib.book") / "results"
STORED = json.loads((RESULTS / "27_speedrun.json").read_text("utf-8"))
LADDER = speedrun.ladder()
LAST = replace(
    speedrun.tried()[0].recipe, vocab_size=40, d_model=16, d_ff=32, max_tokens=64, steps=30
)
CHAPTER_15 = TransformerConfig(2000, 128, 4, 512, 2, 2, dropout=0.0, norm_first=True)
# A toy language: the translation of token i is token i + 15
SOURCES = [[3 + (7 * i + j * (1 + i % 3)) % 15 for j in range(2 + i % 5)] for i in range(60)]
EXAMPLES = [Example([*row, 2], [token + 15 for token in row]) for row in SOURCES]


def rows_of(rung: str) -> list[dict]:
    """The stored runs of a rung."""
    return [row for key, row in STORED["runs"].items() if key.startswith(f"{rung} |")]


def small_model() -> torch.nn.Module:
    torch.manual_seed(1)
    model = speedrun.SpeedTransformer(LAST)
    model.start_from(speedrun.count(EXAMPLES, LAST.vocab_size, LAST.d_model))
    return model


def test_the_direct_loss_is_the_librarys() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(300, 16, requires_grad=True)  # more than one piece of 256 rows
    weight = torch.randn(40, 16, requires_grad=True)
    bias = torch.randn(40, requires_grad=True)
    targets = torch.randint(40, (300,))
    for smoothing in (0.0, 0.1):
        ours = speedrun._DirectLoss.apply(hidden, weight, bias, targets, smoothing)
        got = torch.autograd.grad(ours, (hidden, weight, bias))
        logits = hidden @ weight.t() + bias
        theirs = torch.nn.functional.cross_entropy(
            logits, targets, reduction="sum", label_smoothing=smoothing
        )
        wanted = torch.autograd.grad(theirs, (hidden, weight, bias))
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_first_rung_is_chapter_15s_model() -> None:
    torch.manual_seed(3)
    ours = speedrun.SpeedTransformer(LADDER[0].recipe)
    torch.manual_seed(3)
    theirs = Transformer(ours.config)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    batch = make_batch(EXAMPLES[:8])
    assert torch.equal(ours(batch.source, batch.target_in), theirs(batch.source, batch.target_in))
    assert ours.config == CHAPTER_15


def test_counting_by_hand() -> None:
    together = torch.tensor([[8.0, 0.0], [0.0, 8.0]])
    gain = speedrun.more_than_chance(together, discount=8.0)  # half is believed
    torch.testing.assert_close(gain, torch.eye(2) * torch.log(torch.tensor(2.0)) / 2)
    assert speedrun.meetings(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), 2).tolist() == [
        [0, 2],
        [1, 0],
    ]
    dense = speedrun.counts_of([[2, 0, 2], [1]], 3).to_dense()
    assert dense.tolist() == [[1, 0, 1], [0, 1, 0]]  # how often in a row does not matter


def test_counts_point_from_a_token_to_its_translation() -> None:
    counts = speedrun.count(EXAMPLES, 40, 16)
    for name in ("source", "output"):
        lengths = getattr(counts, name).norm(dim=1)
        assert (lengths < 1 + 1e-5).all()
    near = (counts.source[3:18] @ counts.output[18:33].t()).argmax(dim=1)  # (15,)
    right = (near == torch.arange(15)).float().mean().item()
    assert right > 0.8, f"{right:.0%} of the source tokens are nearest to their translation"
    torch.testing.assert_close(counts.frequency.exp().sum(), torch.tensor(1.0))


def test_it_writes_with_a_cache_what_it_gives_at_once() -> None:
    model = small_model().eval()
    batch = make_batch(EXAMPLES[:8])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # every part says something
        at_once = model(batch.source, batch.target_in)  # (batch, target, vocab_size)
        decoder = IncrementalDecoder(model, batch.source)
        steps = [decoder.step(batch.target_in[:, i]) for i in range(batch.target_in.size(1))]
    written = torch.stack(steps, dim=1)  # (batch, target, vocab_size)
    real = batch.target_out != batch.pad_id
    torch.testing.assert_close(written[real], at_once[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_it_learns(muon: float) -> None:
    model = small_model()
    batch = make_batch(EXAMPLES)

    def loss() -> float:
        with torch.no_grad():
            hidden = model.decode(batch.target_in, model.encode(batch.source), batch.source)
            real = batch.target_out != batch.pad_id
            total = cross_entropy_sum(model, hidden[real], batch.target_out[real])
            return total.item() / int(real.sum())

    before = loss()
    recipe = replace(LAST, muon=muon)
    speedrun.fit(model, endless_batches(EXAMPLES, recipe.max_tokens, 1), recipe)
    assert next(model.parameters()).dtype == torch.float32
    assert loss() < before - 0.5, f"{before:.2f} became {loss():.2f}"


def test_few_shapes_lose_no_token_of_a_row() -> None:
    whole = make_batch(EXAMPLES[:23])
    few = speedrun.few_shapes(whole)
    assert few.source.shape[0] == few.target_in.shape[0] == 20
    for name in ("source", "target_in", "target_out"):
        before, after = getattr(whole, name), getattr(few, name)
        assert after.size(1) % 4 == 0
        assert torch.equal(after[:, : before.size(1)], before[:20])
        assert (after[:, before.size(1) :] == whole.pad_id).all()
    assert speedrun.few_shapes(make_batch(EXAMPLES[:3])).source.size(0) == 3


def test_muon_moves_in_all_directions_about_alike() -> None:
    torch.manual_seed(1)
    weight, gradient = torch.zeros(8, 24), torch.randn(8, 24) * 10.0 ** -(torch.arange(24.0) ** 0.3)
    muon = speedrun.Muon([weight])
    muon.step({weight.data_ptr(): gradient}, rate=0.5)  # not square: doubled
    stretches, before = torch.linalg.svdvals(weight), torch.linalg.svdvals(gradient)
    assert before.max() > 10 * before.min()
    assert stretches.min() > 0.4, f"{stretches}"
    assert stretches.max() < 1.7, f"{stretches}"


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = replace(LAST, steps=100, warm_up=0.1, cool_down=0.5)
    rates = [speedrun.shape_of_rate(step, recipe) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [pytest.approx(1.0)] * 42
    assert rates[-1] == pytest.approx(0.02)


def test_stored_runs_are_of_todays_recipes() -> None:
    rungs = {rung.name: rung for rung in LADDER + speedrun.tried()}
    for key, row in STORED["runs"].items():
        if key == "costs":
            continue
        recipe = json.loads(json.dumps(speedrun.asdict(rungs[row["rung"]].recipe)))
        assert row["recipe"] == recipe, key
        assert row["steps"] == recipe["steps"], key


def test_no_rung_spends_more_than_the_first() -> None:
    costs = STORED["runs"]["costs"]
    for rung in LADDER + [rung for rung in speedrun.tried() if rung.name in costs]:
        assert costs[rung.name]["steps"] == rung.recipe.steps, rung.name
        spent = costs[rung.name]["spent"]  # in steps of the first
        assert spent < 2400 * 1.03, f"{rung.name} costs {spent} steps of the first"


def test_the_ladder_rises() -> None:
    means = [mean(row["validation"]["bleu"] for row in rows_of(rung.name)) for rung in LADDER]
    assert means == sorted(means), f"{means}"
    assert means[-1] > 24, f"{means}"


def test_the_end_of_the_ladder_holds_over_seeds() -> None:
    last = [row["test"]["bleu"] for row in rows_of(LADDER[-1].name)]
    chapter_15 = json.loads((RESULTS / "translators.json").read_text("utf-8"))["runs"]
    paper = [row["bleu"] for row in chapter_15 if row["name"] == "ours"]
    paper += [row["test"]["bleu"] for row in rows_of(LADDER[0].name)]
    assert len(last) >= 3
    assert len(paper) >= 4
    assert min(last) > max(paper) + 5, f"{last}, {paper}"
    assert max(paper) - min(paper) < 1, f"chapter 15's runs and the first rung agree: {paper}"


def test_the_ladder_is_climbed_by_validation_pairs() -> None:
    shown = {row["rung"] for row in STORED["runs"].values() if "test" in row}
    assert not shown & {rung.name for rung in LADDER[1:-1]}
    # "start beside" was the last rung until one with more steps and without it was as good
    assert shown <= {LADDER[0].name, LADDER[-1].name, "start beside"}
