"""The benchmarks' own arithmetic; the peers are not needed."""

import math

import pytest
import torch

from benchmarks.speed import attend, in_turns, ratio, table
from benchmarks.translators import CONFIG, TorchTranslator
from benchmarks.tried import BASE, VARIANTS
from tools.chapters import ROOT
from transformer_lib.pairs import encode_pairs, load_pairs, token_batches
from transformer_lib.recurrent import RecurrentConfig, RecurrentTranslator
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.transformer import count_parameters


def test_every_function_runs_once_a_round_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    times = in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4)
    assert sorted(calls) == sorted("abc" * 5)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 15, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1, "the order should change"


def test_ratio_compares_round_by_round() -> None:
    times = {"slow": [2.0, 4.0, 6.0, 8.0], "fast": [1.0, 2.0, 3.0, 4.0]}
    assert ratio(times, "fast", "slow") == (2.0, 2.0, 2.0)
    assert ratio(times, "slow", "slow")[0] == 1.0
    text = table(times, "slow", lambda name, seconds: f"{seconds:.1f} s")
    assert "| fast | 2500.0 | 2.00 [2.00-2.00] | 2.5 s |" in text


@pytest.mark.parametrize("kind", ["transformer_lib", "torch's fused kernel", "naive"])
def test_attention_is_measured(kind: str) -> None:
    seconds, megabytes = attend(kind, 64)
    assert seconds > 0
    assert megabytes >= 0


def test_torchs_rival_has_the_same_size_and_becomes_ours() -> None:
    torch.manual_seed(0)
    rival = TorchTranslator(CONFIG).eval()
    ours = rival.as_ours().eval()
    assert count_parameters(rival) == count_parameters(ours)
    source, target = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0]]), torch.randint(3, 2000, (2, 6))
    with torch.no_grad():
        hidden = rival.decode(target, rival.encode(source), source)
        torch.testing.assert_close(
            rival.project(hidden), ours(source, target), atol=1e-4, rtol=1e-4
        )


def test_variants_change_what_there_is_to_change() -> None:
    for name, changed in VARIANTS.items():
        assert set(changed) <= set(BASE), name
        assert all(BASE[key] != value for key, value in changed.items()), name
    assert math.isclose(BASE["warmup_steps"] + BASE["cool_down_steps"], BASE["steps"])


def test_recurrent_scores_add_up_over_the_groups_of_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from benchmarks.recurrent import BOUNDS, NO_ATTENTION, Trial, score

    pairs = load_pairs("test")[:60]
    perfect = score([pair.target for pair in pairs], pairs)
    assert perfect["bleu"] == perfect["chrf"] == 100.0
    assert [group["from"] for group in perfect["by_length"]] == list(BOUNDS)
    assert sum(group["sentences"] for group in perfect["by_length"]) == 60

    trial = Trial.__new__(Trial)  # without the training pairs
    trial.test = pairs[:20]
    trial.tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], 400)
    trial.examples = trial.held_out = encode_pairs(trial.test, trial.tokenizer)
    trial.batches = token_batches(trial.held_out, 512, seed=0)
    model = RecurrentTranslator(RecurrentConfig(400, 16, attention=False))
    row = trial.run(model, NO_ATTENTION, seed=1, steps=3, max_tokens=256)
    assert row["parameters"] == count_parameters(model)
    assert 0 < row["loss"] < 10
    cost = trial.seconds_a_step({"one": (model, 256)}, rounds=1)
    assert cost["one"] > 0
