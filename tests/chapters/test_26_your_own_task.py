"""Marian's weights in our Transformer, the files of chapter 26, and the checks of its exercises."""

import json
import random
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tools.make_samples import check as check_samples
from transformer_lib.book.checks.chapter_26 import (
    check_between,
    check_columns,
    check_grow,
    check_split,
)
from transformer_lib.convert import (
    ActivatedFeedForward,
    MarianPositionalEncoding,
    from_marian,
    marian_name,
)
from transformer_lib.decoding import beam_search, greedy_decode
from transformer_lib.inspection import diagnose
from transformer_lib.pairs import Batch, load_pairs, read_pairs
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import Transformer

CORPORA = Path(str(resources.files("transformer_lib"))) / "corpora"
VOCABULARY = 24
PAD = VOCABULARY - 1

# Marian


def marian(seed: int = 0, activation: str = "swish", noise: float = 0.2) -> tuple[Any, Transformer]:
    """Hugging Face's Marian with random weights, gains and biases too, and ours made of it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        activation_function=activation,
        max_position_embeddings=64,
        scale_embedding=True,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        eos_token_id=0,
        forced_eos_token_id=None,
    )
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * noise)
        theirs.final_logits_bias.normal_()
    return theirs, from_marian(config.to_dict(), theirs.state_dict())


def sources(seed: int = 0) -> Tensor:
    """Rows of several lengths, each with its end and padding behind it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, PAD, (6, 9), generator=generator)
    for row, length in enumerate((8, 3, 5, 7, 6, 4)):
        rows[row, length], rows[row, length + 1 :] = 0, PAD
    return rows


def written(theirs: Any, source: Tensor, beams: int) -> list[list[int]]:
    """What Hugging Face writes, without the start, the end and padding."""
    found = theirs.generate(
        source,
        attention_mask=(source != PAD).long(),
        max_new_tokens=14,
        num_beams=beams,
        do_sample=False,
        bad_words_ids=[[PAD]],
        **({"length_penalty": 0.0} if beams > 1 else {}),
    )
    rows = [row[1:] for row in found.tolist()]
    rows = [row[: row.index(0)] if 0 in row else row for row in rows]
    return [[token for token in row if token != PAD] for row in rows]


@pytest.mark.parametrize("activation", ["swish", "relu", "gelu"])
@pytest.mark.parametrize("seed", range(3))
def test_the_logits_are_marians(seed: int, activation: str) -> None:
    theirs, ours = marian(seed, activation)
    source = sources(seed)
    target = torch.randint(1, PAD, (6, 7))
    target[:, 0] = PAD
    with torch.no_grad():
        expected = theirs(
            source, attention_mask=(source != PAD).long(), decoder_input_ids=target
        ).logits
        logits = ours(source, target)
    assert expected[..., :PAD].std() > 1, "logits that are all alike would prove nothing"
    torch.testing.assert_close(logits[..., :PAD], expected[..., :PAD], atol=1e-4, rtol=1e-4)
    assert (logits[..., PAD] < -9_000).all(), "padding may never be written"


@pytest.mark.parametrize("seed", range(3))
def test_greedy_decoding_is_marians(seed: int) -> None:
    theirs, ours = marian(seed)
    source = sources(seed)
    found = greedy_decode(ours, source, 14, bos_id=PAD, eos_id=0)
    assert found == written(theirs, source, beams=1)


@pytest.mark.parametrize("seed", range(2))
def test_beam_search_is_marians_where_sentences_end(seed: int) -> None:
    """Trained here to copy the source, and given back to Hugging Face under Marian's names."""
    theirs, ours = marian(seed, noise=0.05)
    generator = torch.Generator().manual_seed(seed)

    def copies(length: int) -> Batch:
        words = torch.randint(1, PAD, (32, length), generator=generator)
        begin, end = torch.full((32, 1), PAD), torch.zeros(32, 1, dtype=torch.int64)
        ended = torch.cat([words, end], dim=1)
        return Batch(ended, torch.cat([begin, words], dim=1), ended, PAD)

    train(
        ours,
        (copies(3 + step % 6) for step in range(600)),
        settings=TrainingSettings(600, label_smoothing=0.0),
        rate=lambda step: 3e-3 * min(1.0, step / 10) * (1 - step / 601),
    )
    given = dict(theirs.state_dict())
    for name, weight in ours.state_dict().items():
        given[marian_name(name)].copy_(weight.view_as(given[marian_name(name)]))
    theirs.load_state_dict(given)
    source = sources(seed)
    found = beam_search(ours, source, 14, 4, 0.0, bos_id=PAD, eos_id=0)
    tokens = [hypotheses[0].tokens for hypotheses in found]
    assert tokens == written(theirs, source, beams=4)
    assert len({len(row) for row in tokens}) > 1, f"sentences should end by themselves: {tokens}"


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search_is_marians_without_an_end(beams: int) -> None:
    theirs, _ = marian(3)
    theirs.final_logits_bias[0, 0] = -50.0
    ours = from_marian(theirs.config.to_dict(), theirs.state_dict())
    source = sources()
    found = beam_search(ours, source, 14, beams, 0.0, bos_id=PAD, eos_id=0)
    assert [hypotheses[0].tokens for hypotheses in found] == written(theirs, source, beams)


def test_the_positions_are_marians_also_in_another_dtype() -> None:
    theirs, ours = marian()
    expected = theirs.model.encoder.embed_positions.weight
    assert isinstance(ours.position, MarianPositionalEncoding)
    torch.testing.assert_close(ours.position.table, expected)
    torch.testing.assert_close(ours.double().position.table, expected.double())
    torch.testing.assert_close(ours.float().position.table, expected)


def test_a_marian_model_behaves(capsys: pytest.CaptureFixture[str]) -> None:
    _, ours = marian()
    target = torch.randint(1, PAD, (6, 6))
    begin = torch.full((6, 1), PAD)
    batch = Batch(sources(), torch.cat([begin, target[:, :-1]], dim=1), target, PAD)
    assert not [f for f in diagnose(ours, batch) if f.chapter not in (14,)]  # targets have no end


def test_config_and_weights_that_do_not_fit_are_refused() -> None:
    theirs, _ = marian()
    config, weights = theirs.config.to_dict(), dict(theirs.state_dict())
    for change, word in (
        ({"normalize_before": True}, "normalize_before"),
        ({"scale_embedding": False}, "scale_embedding"),
        ({"decoder_ffn_dim": 64}, "ffn_dim"),
        ({"activation_function": "tanh"}, "tanh"),
    ):
        with pytest.raises(ValueError, match=word):
            from_marian(config | change, weights)
    with pytest.raises(KeyError, match="fc1"):
        from_marian(config, {n: w for n, w in weights.items() if "fc1" not in n})
    shared = "model.shared.weight"
    with pytest.raises(ValueError, match=r"\[23, 32\]"):
        from_marian(config, weights | {shared: weights[shared][1:]})
    with pytest.raises(ValueError, match="silu"):
        ActivatedFeedForward(4, 8, "softplus")


# The files


def test_the_files_are_what_their_manifest_says(tmp_path: Path) -> None:
    manifest = check_samples(CORPORA)
    assert set(manifest["files"]) == {"fr-en.sample.tsv.gz", "de-en.messages.tsv.gz"}
    for name in manifest["files"]:
        (tmp_path / name).write_bytes((CORPORA / name).read_bytes())
    name = "fr-en.sample.tsv.gz"
    manifest["files"][name]["pairs"] += 1
    (tmp_path / "samples.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=name):
        check_samples(tmp_path)


def test_the_messages_are_new_and_not_alike() -> None:
    messages = read_pairs(CORPORA / "de-en.messages.tsv.gz")
    known = {pair.source for pair in load_pairs("train")}
    assert not known & {pair.source for pair in messages}
    assert len({pair.target.casefold() for pair in messages}) == len(messages) == 800


def test_the_stored_runs_are_there() -> None:
    file = Path(str(resources.files("transformer_lib"))) / "book" / "results" / "own_task.json"
    stored = json.loads(file.read_text())
    assert stored["command"] == "python experiments/26_own_task.py"
    assert stored["settings"]["seeds"] == [1, 2, 3]
    assert len(stored["runs"]) == 12 + 6 + 1 + 18 + 2


# The exercises


def split(
    pairs: list[Any],
    group: Callable[[Any], str],
    wanted: int,
    seed: int,
    *,
    order: Callable[..., Any] = sorted,
    shuffle: bool = True,
) -> tuple[list[Any], list[Any]]:
    names = list(order({group(pair) for pair in pairs}))
    if shuffle:
        random.Random(seed).shuffle(names)
    taken: set[str] = set()
    for name in names:
        if sum(group(pair) in taken for pair in pairs) >= wanted:
            break
        taken.add(name)
    return [p for p in pairs if group(p) not in taken], [p for p in pairs if group(p) in taken]


def split_by_loop(
    pairs: list[Any], group: Callable[[Any], str], wanted: int, seed: int
) -> tuple[list[Any], list[Any]]:
    by_group: dict[str, list[Any]] = {}
    for pair in pairs:
        by_group.setdefault(group(pair), []).append(pair)
    names = random.Random(seed).sample(sorted(by_group), len(by_group))
    count, taken = 0, []
    while count < wanted:
        taken.append(names.pop())
        count += len(by_group[taken[-1]])
    test = [pair for pair in pairs if group(pair) in taken]
    return [pair for pair in pairs if pair not in test], test


def split_pairs(
    pairs: list[Any], group: Any, wanted: int, seed: int
) -> tuple[list[Any], list[Any]]:
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    return shuffled[wanted:], shuffled[:wanted]


def split_in_place(pairs: list[Any], group: Any, wanted: int, seed: int) -> Any:
    random.Random(seed).shuffle(pairs)
    return split(pairs, group, wanted, seed)


def between_by_hand(
    before: dict[str, Tensor], after: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    return {n: (1 - share) * x + share * after[n] for n, x in before.items()}


def between_in_place(
    before: dict[str, Tensor], after: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    for name in before:
        before[name].lerp_(after[name], share)
    return before


def grow_in_a_loop(weight: Tensor, pieces: list[list[int]]) -> Tensor:
    grown = weight.new_empty(len(weight) + len(pieces), weight.size(1))
    grown[: len(weight)] = weight
    for place, ids in enumerate(pieces):
        grown[len(weight) + place] = sum(weight[i] for i in ids) / len(ids)
    return grown


def rows(weight: Tensor, pieces: list[list[int]], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([reduce(weight[ids]) for ids in pieces])


def columns_in_loops(queries: int, keys: int, farthest: int) -> Tensor:
    found = torch.zeros(queries, keys, dtype=torch.int64)
    for i in range(queries):
        for j in range(keys):
            distance = j - (i + keys - queries)
            found[i, j] = max(-farthest, min(farthest, distance)) + farthest
    return found


def columns(queries: int, keys: int, farthest: int, shift: int, sign: int = 1) -> Tensor:
    distance = sign * (torch.arange(keys) - torch.arange(queries)[:, None] - shift)
    return distance.clamp(-farthest, farthest) + farthest


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_split: [split, split_by_loop],
    check_between: [between_by_hand, lambda b, a, s: {n: torch.lerp(b[n], a[n], s) for n in a}],
    check_grow: [grow_in_a_loop, lambda w, p: torch.cat([w, rows(w, p, lambda x: x.mean(dim=0))])],
    check_columns: [columns_in_loops, lambda q, k, f: columns(q, k, f, k - q)],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_split: [
        (split_pairs, "both sides"),
        (split_in_place, "in place"),
        (lambda p, g, w, s: split(p, g, w, s, shuffle=False), "seed"),
        (lambda p, g, w, s: split(p, g, w, 0), "seed"),
        (lambda p, g, w, s: split(p, g, w - 5, s), "at least"),
        (lambda p, g, w, s: split(p, g, w + 5, s), "enough"),
        (lambda p, g, w, s: split(p, g, w, s)[1], "two lists"),
        (lambda p, g, w, s: split(p, g, w, s)[::-1], "enough"),
        (lambda p, g, w, s: split(p, g, w, s, order=lambda _: dict.fromkeys(map(g, p))), "sort"),
    ],
    check_between: [
        (between_in_place, "in place"),
        (lambda b, a, s: between_by_hand(a, b, s), "wrong way"),
        (lambda b, a, s: between_by_hand(b, a, 0.5), "mean"),
        (lambda b, a, s: {n: x.float() for n, x in between_by_hand(b, a, s).items()}, "float64"),
        (lambda b, a, s: b | {"a": torch.lerp(b["a"], a["a"], s)}, "all weights"),
        (lambda b, a, s: list(between_by_hand(b, a, s).values()), "dictionary"),
        (lambda b, a, s: between_by_hand(b, a, s) if s else b, "shares memory"),
    ],
    check_grow: [
        (lambda w, p: rows(w, p, lambda x: x.mean(dim=0)), "shape"),
        (lambda w, p: torch.cat([rows(w, p, lambda x: x.mean(dim=0)), w]), "first"),
        (lambda w, p: torch.cat([w, rows(w, p, lambda x: x.sum(dim=0))]), "sum"),
        (lambda w, p: torch.cat([w, w.mean(dim=0).expand(len(p), -1)]), "all rows"),
        (lambda w, p: torch.cat([w, rows(w, p, lambda x: x[0])]), "mean of rows"),
        (lambda w, p: torch.cat([w, rows(w, p, torch.mean)]), "RuntimeError"),
        (lambda w, p: torch.cat([w, torch.randn(len(p), w.size(1))]), "mean of rows"),
    ],
    check_columns: [
        (lambda q, k, f: columns(q, k, f, 0), "beside the last key"),
        (lambda q, k, f: columns(q, k, f, k - q, -1), "sign"),
        (lambda q, k, f: columns(q, k, f, k - q) - f, "from 0"),
        (lambda q, k, f: columns(q, k, f, k - q).float(), "int64"),
        (lambda q, k, f: columns(q, k, 99, k - q) - 99 + f, "clip"),
        (lambda q, k, f: columns(q, k, f, k - q).mT, "sign"),
        (lambda q, k, f: (columns(q, k, 99, k - q) - 99 + f).clamp(0, f), "4, 5, 6"),
    ],
}
