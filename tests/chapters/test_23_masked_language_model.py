"""Chapter 23: the masked language model, its gaps, its loss, what is shipped, and the exercises."""

import ast
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.chapters import chapters
from transformer_lib.attention import KeyValueCache
from transformer_lib.book.checks import chapter_23
from transformer_lib.checkpoint import read_tensors
from transformer_lib.decoding import greedy_decode
from transformer_lib.language_model import (
    LanguageModelConfig,
    MaskedLanguageModel,
    encode_stream,
    fill_in,
    load_austen,
    load_language_model,
)
from transformer_lib.tokenizer import BOS_ID, EOS_ID, encode_texts
from transformer_lib.training import (
    TrainingSettings,
    evaluate_loss,
    mask_tokens,
    masked_token_loss,
    train,
)

SMALL = LanguageModelConfig(30, 16, 2, 32, num_layers=2, dropout=0.1, max_length=24)


@pytest.fixture
def model() -> MaskedLanguageModel:
    torch.manual_seed(0)
    return MaskedLanguageModel(SMALL).eval()


# --- the model


def test_every_place_sees_every_other(model: MaskedLanguageModel) -> None:
    tokens = torch.randint(3, 29, (3, 10))
    before = model(tokens)
    for place in range(10):
        changed = tokens.clone()
        changed[:, place] = 3 + (changed[:, place] - 2) % 26
        assert (model(changed) - before).abs().amax(dim=(0, 2)).min() > 0


def test_padding_and_neighbors_change_nothing(model: MaskedLanguageModel) -> None:
    tokens = torch.randint(3, 29, (4, 9))
    padded = F.pad(tokens, (0, 5))
    torch.testing.assert_close(model(padded)[:, :9], model(tokens))
    torch.testing.assert_close(model(tokens), torch.cat([model(row[None]) for row in tokens]))


def test_a_token_knows_its_side(model: MaskedLanguageModel) -> None:
    ids = torch.tensor([[BOS_ID, 5, EOS_ID, 6, EOS_ID, 7], [BOS_ID, 5, 6, 7, 8, 9]])
    side = model.embed(ids) - model.embedding(ids) - model.position.table[:6]
    a, b = model.segment.weight
    expected = torch.stack([torch.stack([a, a, a, b, b, b]), torch.stack([a] * 6)])
    torch.testing.assert_close(side, expected)


def test_it_does_not_go_on_writing(model: MaskedLanguageModel) -> None:
    with pytest.raises(ValueError, match="reads a text whole"):
        model.read(torch.tensor([[5, 6]]), KeyValueCache())
    with pytest.raises(ValueError, match="reads a text whole"):
        greedy_decode(model, torch.tensor([[5, 6]]), 3)
    with pytest.raises(ValueError, match="tokens must be token ids"):
        model(torch.ones(3, dtype=torch.long))


def test_a_part_may_be_swapped_and_the_loss_follows(model: MaskedLanguageModel) -> None:
    model.output = nn.Linear(16, 30)
    batch = mask_tokens(torch.randint(3, 29, (4, 12)), model.mask_id, 0.5)
    total, count = masked_token_loss(model, batch)
    logits, wanted = model(batch[0]).flatten(0, 1), batch[1].flatten()
    expected = F.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert count == int((wanted != -100).sum())
    [grad] = torch.autograd.grad(total, [model.segment.weight])
    [wanted_grad] = torch.autograd.grad(expected, [model.segment.weight])
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-5)


# --- gaps


@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 1.0])
@pytest.mark.parametrize("parts", [(0.8, 0.1), (1.0, 0.0), (0.0, 0.0), (0.5, 0.5)])
def test_the_shares_are_those_asked_for(share: float, parts: tuple[float, float]) -> None:
    tokens = torch.randint(0, 999, (200, 200))
    generator = torch.Generator().manual_seed(0)
    shown, wanted = mask_tokens(tokens, 999, share, parts, generator)
    chosen = wanted != -100
    can_be = tokens >= 3
    assert not chosen[~can_be].any()
    assert chosen[can_be].float().mean().item() == pytest.approx(share, abs=0.01)
    assert torch.equal(wanted[chosen], tokens[chosen])
    assert torch.equal(shown[~chosen], tokens[~chosen])
    if share:
        masked = (shown == 999)[chosen].float().mean().item()
        other = ((shown != 999) & (shown != tokens))[chosen].float().mean().item()
        assert masked == pytest.approx(parts[0], abs=0.02)
        assert other == pytest.approx(parts[1], abs=0.02)
        assert shown[chosen].min() >= 3


def test_gaps_follow_their_generator() -> None:
    tokens = torch.randint(3, 29, (5, 40))
    first, again, other = (
        mask_tokens(tokens, 29, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    with pytest.raises(ValueError, match="share"):
        mask_tokens(tokens, 29, 15.0)
    with pytest.raises(ValueError, match="shown_as_mask_or_other"):
        mask_tokens(tokens, 29, 0.15, (0.8, 0.3))


def test_it_learns_to_fill_gaps_from_both_sides() -> None:
    torch.manual_seed(0)
    model = MaskedLanguageModel(LanguageModelConfig(13, 32, 2, 64, 2, dropout=0.0, max_length=3))

    def gaps() -> Any:
        while True:  # the middle is the sum of both sides: neither side alone tells it
            sides = torch.randint(3, 7, (32, 2))
            rows = torch.stack([sides[:, 0], sides.sum(dim=1) - 3, sides[:, 1]], dim=1)
            wanted = rows.clone()
            wanted[:, [0, 2]] = -100
            yield rows.index_fill(1, torch.tensor([1]), model.mask_id), wanted

    settings = TrainingSettings(250, label_smoothing=0.0, report_every=250)
    train(model, gaps(), masked_token_loss, settings=settings, rate=lambda step: 3e-3)
    batches = gaps()
    assert evaluate_loss(model, [next(batches) for _ in range(3)], masked_token_loss) < 0.3


# --- what is shipped


def notes_of_shipped() -> tuple[int, dict[str, Any]]:
    file = resources.files("transformer_lib") / "pretrained" / "austen-masked"
    with resources.as_file(file / "weights.safetensors") as path:
        return Path(path).stat().st_size, read_tensors(path)[1]


def test_the_shipped_model_says_how_it_came_to_be() -> None:
    size, notes = notes_of_shipped()
    training = notes["training"]
    assert size < 3e6
    assert training["command"] == "python -m experiments.23_masked"
    assert training["log"][-1]["step"] == training["settings"]["steps"]


def test_the_shipped_model_has_the_score_of_its_notes() -> None:
    _, notes = notes_of_shipped()
    model, tokenizer = load_language_model("austen-masked")
    assert isinstance(model, MaskedLanguageModel)
    length = notes["training"]["window"]
    windows = encode_stream(tokenizer, load_austen("test")).unfold(0, length, length)
    wanted = torch.full_like(windows, -100)
    wanted[:, 3::8] = windows[:, 3::8]
    shown = windows.masked_fill(wanted >= 0, model.mask_id)
    batch = F.pad(shown, (1, 0), value=BOS_ID), F.pad(wanted, (1, 0), value=-100)
    batches = list(zip(*(part.split(64) for part in batch), strict=True))
    found = evaluate_loss(model, batches, masked_token_loss)
    assert found == pytest.approx(notes["training"]["nats_a_gap_on_persuasion"], abs=2e-3)


def test_gaps_of_a_sentence_are_filled() -> None:
    model, tokenizer = load_language_model("austen-masked")
    assert isinstance(model, MaskedLanguageModel)
    guesses = fill_in(model, tokenizer, "She was ___ glad to ___.", 3)
    rows = encode_texts(tokenizer, ["She was", " glad to", "."])
    ids = [BOS_ID, *rows[0], model.mask_id, *rows[1], model.mask_id, *rows[2]]
    p = model(torch.tensor([ids]))[0].softmax(dim=-1)
    for place, guess in zip((1 + len(rows[0]), len(ids) - 1 - len(rows[2])), guesses, strict=True):
        best = p[place].topk(3)
        assert guess == [
            (tokenizer.decode([i]), pytest.approx(x))
            for i, x in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    assert fill_in(model, tokenizer, "No gap.") == []


def test_stored_results_are_of_the_code_that_the_chapter_shows() -> None:
    file = resources.files("transformer_lib.book") / "results" / "masked.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    (chapter,) = chapters(["23"])
    code = "\n\n".join(cell.source for cell in chapter.tagged("masked"))
    fingerprint = hashlib.sha256(ast.dump(ast.parse(code)).encode()).hexdigest()[:16]
    assert stored["settings"]["code"] == fingerprint
    assert stored["command"] == "python -m experiments.23_masked"
    expected = {
        f"{name}, seed {seed}"
        for name in stored["settings"]["variants"]
        for seed in stored["settings"]["seeds"]
    }
    assert set(stored["runs"]) == expected


# --- exercise 23.1

Pack = tuple[list[int], list[int]]


def pack(first: list[int], second: list[int], length: int) -> Pack:
    ids = [1, *first, 2, *second, 2]
    sides = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    return ids + [0] * (length - len(ids)), sides + [0] * (length - len(ids))


def pack_by_counting(first: list[int], second: list[int], length: int) -> Pack:
    ids, sides = [0] * length, [0] * length
    for i, token in enumerate([1, *first, 2, *second, 2]):
        ids[i], sides[i] = token, int(i > len(first) + 1)
    return ids, sides


def pack_as_tensors(first: list[int], second: list[int], length: int) -> Any:
    ids, sides = pack(first, second, length)
    return torch.tensor(ids), torch.tensor(sides)


# --- exercise 23.2


def by_isin(tokens: Tensor, word_of: Tensor, chosen: list[int], mask_id: int) -> Any:
    hidden = torch.isin(word_of, torch.tensor(chosen))
    return tokens.masked_fill(hidden, mask_id), tokens.masked_fill(~hidden, -100)


def by_loop(tokens: Tensor, word_of: Tensor, chosen: list[int], mask_id: int) -> Any:
    shown, wanted = tokens.clone(), torch.full_like(tokens, -100)
    for i, word in enumerate(word_of.tolist()):
        if word in chosen:
            shown[i], wanted[i] = mask_id, tokens[i]
    return shown, wanted


def first_piece_only(tokens: Tensor, word_of: Tensor, chosen: list[int], mask_id: int) -> Any:
    first = torch.tensor([i == 0 or w != word_of[i - 1] for i, w in enumerate(word_of)])
    hidden = torch.isin(word_of, torch.tensor(chosen)) & first
    return tokens.masked_fill(hidden, mask_id), tokens.masked_fill(~hidden, -100)


def same_ids_too(tokens: Tensor, word_of: Tensor, chosen: list[int], mask_id: int) -> Any:
    ids = tokens[torch.isin(word_of, torch.tensor(chosen))]
    hidden = torch.isin(tokens, ids)
    return tokens.masked_fill(hidden, mask_id), tokens.masked_fill(~hidden, -100)


def in_place(tokens: Tensor, word_of: Tensor, chosen: list[int], mask_id: int) -> Any:
    shown, wanted = by_isin(tokens, word_of, chosen, mask_id)
    return tokens.copy_(shown), wanted


# --- exercise 23.3


def rows_of(model: Any, tokens: Tensor, first: int = 1) -> Tensor:
    places = torch.arange(first, len(tokens))
    rows = tokens.repeat(len(places), 1)
    rows[places - first, places] = model.mask_id
    log_p = model(rows)[places - first, places].log_softmax(dim=-1)
    return log_p.gather(1, tokens[first:, None])


def score_by_loop(model: Any, tokens: Tensor) -> float:
    total = 0.0
    for place in range(1, len(tokens)):
        row = tokens[None].clone()
        row[0, place] = model.mask_id
        total += model(row)[0, place].softmax(dim=-1)[tokens[place]].log().item()
    return total


def score_shown(model: Any, tokens: Tensor) -> float:
    log_p = model(tokens[None])[0].log_softmax(dim=-1)
    return log_p.gather(1, tokens[:, None])[1:].sum().item()


def score_at_once(model: Any, tokens: Tensor) -> float:
    row = tokens.clone()
    row[1:] = model.mask_id
    log_p = model(row[None])[0].log_softmax(dim=-1)
    return log_p.gather(1, tokens[:, None])[1:].sum().item()


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_23.check_pack: [pack, pack_by_counting, pack_as_tensors],
    chapter_23.check_whole_words: [by_isin, by_loop],
    chapter_23.check_score: [lambda m, t: rows_of(m, t).sum().item(), score_by_loop],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_23.check_pack: [
        (lambda a, b, n: pack(a, b, n)[0], "ids and sides"),
        (lambda a, b, n: ([*a, 2, *b, 2, 0], [0] * n), "begins with"),
        (lambda a, b, n: ([1, *a, 2, *b], [0] * n), "behind each"),
        (lambda a, b, n: ([1, *a, 2, *b, 2], pack(a, b, n)[1]), "padding included"),
        (
            lambda a, b, n: (
                pack(a, b, n)[0],
                [0] * (len(a) + 1) + [1] * (len(b) + 2) + [0] * (n - len(a) - len(b) - 3),
            ),
            "first .SEP. ends the first",
        ),
        (
            lambda a, b, n: (
                pack(a, b, n)[0],
                [0] * (len(a) + 2) + [1] * len(b) + [0] * (n - len(a) - len(b) - 2),
            ),
            "have side 1",
        ),
        (
            lambda a, b, n: (pack(a, b, n)[0], [0] * (len(a) + 2) + [1] * (n - len(a) - 2)),
            "padding has side 0",
        ),
    ],
    chapter_23.check_whole_words: [
        (first_piece_only, "all pieces"),
        (same_ids_too, "only words"),
        (in_place, "in place"),
        (lambda t, w, c, m: (by_isin(t, w, c, m)[0], t), "-100 is wanted"),
        (lambda t, w, c, m: (by_isin(t, w, c, m)[0], torch.full_like(t, -100)), "stood there"),
        (lambda t, w, c, m: by_isin(t, w, [*c, -1], m), "special tokens"),
        (lambda t, w, c, m: by_isin(t, w, c, m)[0], "shown and wanted"),
    ],
    chapter_23.check_score: [
        (lambda m, t: -score_by_loop(m, t), "wrong sign"),
        (lambda m, t: rows_of(m, t, 0).sum().item(), "first token"),
        (lambda m, t: rows_of(m, t).mean().item(), "the mean"),
        (lambda m, t: rows_of(m, t).exp().prod().item(), "product"),
        (score_shown, "nothing was hidden"),
        (score_at_once, "all were hidden at once"),
        (lambda m, t: rows_of(m, t[:-1]).sum().item(), "the score should be"),
    ],
}
