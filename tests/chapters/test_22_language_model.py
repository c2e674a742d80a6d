"""Chapter 22: the language model, its text, its surprise, GPT-2's weights, and the exercises."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.book.checks import chapter_22
from transformer_lib.checkpoint import read_tensors, write_tensors
from transformer_lib.convert import from_gpt2
from transformer_lib.decoding import beam_search, greedy_decode, sample
from transformer_lib.inspection import record_attention
from transformer_lib.language_model import (
    LanguageModel,
    LanguageModelConfig,
    encode_stream,
    load_austen,
    load_language_model,
    surprise,
    text_windows,
)
from transformer_lib.tokenizer import EOS_ID, encode_texts, train_tokenizer
from transformer_lib.training import TrainingSettings, evaluate_loss, next_token_loss, train

SMALL = LanguageModelConfig(30, 16, 2, 32, num_layers=2, dropout=0.1, max_length=24)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(SMALL).eval()
    for parameter in model.parameters():  # far from the small beginnings: logits that differ
        nn.init.normal_(parameter, std=0.3)
    return model


# --- the model


def test_no_position_sees_a_later_token(model: LanguageModel) -> None:
    tokens = torch.randint(3, 30, (3, 10))
    before = model(tokens)
    for place in range(10):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 30
        moved = (model(changed) - before).abs().amax(dim=(0, 2))
        assert moved[:place].eq(0).all()
        assert moved[place] > 0


def test_rows_do_not_see_each_other(model: LanguageModel) -> None:
    tokens = torch.randint(3, 30, (4, 9))
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone)


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [3, 1, 8], [12]])
def test_reading_with_a_cache_is_reading_at_once(model: LanguageModel, pieces: list[int]) -> None:
    from transformer_lib.attention import KeyValueCache

    tokens, cache = torch.randint(3, 30, (2, 12)), KeyValueCache()
    read = torch.cat([model.read(piece, cache) for piece in tokens.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(read, model.read(tokens))
    assert cache.length == 12


class GeluFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


def swap_feed_forward(model: LanguageModel) -> None:
    for layer in model.stack.layers:
        layer.feed_forward = GeluFeedForward()


def swap_output(model: LanguageModel) -> None:
    model.output = nn.Linear(16, 30)


@pytest.mark.parametrize("swap", [lambda model: None, swap_feed_forward, swap_output])
def test_a_part_may_be_swapped_and_decoding_and_training_follow(
    model: LanguageModel, swap: Callable[[LanguageModel], None]
) -> None:
    swap(model)
    prompt = torch.randint(3, 30, (3, 6))
    written = greedy_decode(model, prompt, 10, eos_id=-1)
    whole = prompt
    for _ in range(10):
        whole = torch.cat([whole, model(whole)[:, -1:].argmax(dim=-1)], dim=1)
    assert written == whole[:, 6:].tolist()
    batch = torch.randint(3, 30, (4, 9))
    total, count = next_token_loss(model, batch)
    logits = model(batch[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
    assert count == 32
    torch.testing.assert_close(total, expected)
    grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(grads, wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_that_end_leave_the_others_alone(model: LanguageModel) -> None:
    prompt = torch.randint(3, 30, (5, 4))
    endless = greedy_decode(model, prompt, 12, eos_id=-1)
    end = endless[0][3]
    ended = greedy_decode(model, prompt, 12, eos_id=end)
    assert ended == [row[: row.index(end)] if end in row else row for row in endless]
    limits = [1, 5, 12, 3, 2]
    some = greedy_decode(model, prompt, limits, eos_id=-1)
    assert some == [row[:limit] for row, limit in zip(endless, limits, strict=True)]


def test_beam_search_goes_on_from_a_prompt(model: LanguageModel) -> None:
    prompt = torch.randint(3, 30, (2, 5))
    for row, found in zip(prompt, beam_search(model, prompt, 4, 3, eos_id=-1), strict=True):
        for hypothesis in found:
            whole = torch.cat([row, torch.tensor(hypothesis.tokens)])[None]
            log_p = model(whole[:, :-1]).log_softmax(dim=-1)[0, 4:]
            cost = log_p.gather(1, whole[0, 5:, None]).sum().item()
            assert hypothesis.log_probability == pytest.approx(cost, abs=1e-3)


def test_sampling_draws_what_the_model_says(model: LanguageModel) -> None:
    prompt = torch.tensor([[5, 9, 4]])
    p = model(prompt)[0, -1].softmax(dim=-1)
    drawn = sample(
        model, prompt.expand(4000, 3), 1, generator=torch.Generator().manual_seed(0), eos_id=-1
    )
    share = torch.bincount(torch.tensor(drawn).flatten(), minlength=30) / 4000
    assert (share - p).abs().max() < 0.03


def test_attention_can_be_read(model: LanguageModel) -> None:
    with record_attention(model) as weights:
        model(torch.randint(3, 30, (2, 7)))
    assert len(weights) == 2
    for recorded in weights.values():
        assert recorded.triu(1).eq(0).all()


def test_bad_input_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="prompt ends with padding"):
        greedy_decode(model, torch.tensor([[5, 6], [7, 0]]), 3)
    with pytest.raises(ValueError, match="positions 0 to 24 asked for"):
        model(torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="positions 24 to 24"):
        greedy_decode(model, torch.full((1, 20), 5), 10, eos_id=-1)
    with pytest.raises(ValueError, match="token ids run from"):
        model(torch.tensor([[30]]))
    with pytest.raises(ValueError, match="tokens must be token ids"):
        model(torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="num_layers"):
        LanguageModelConfig(30, num_layers=0)
    with pytest.raises(ValueError, match="pad_id"):
        LanguageModelConfig(30, pad_id=30)
    with pytest.raises(ValueError, match="not divisible"):
        LanguageModel(LanguageModelConfig(30, 16, 3, 32))


def test_gpt2_smallest_has_its_number_of_weights() -> None:
    with torch.device("meta"):
        model = LanguageModel(LanguageModelConfig(50_257))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


# --- the loss, windows, surprise


def test_padding_is_neither_learned_nor_counted(model: LanguageModel) -> None:
    rows = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
    total, count = next_token_loss(model, rows)
    one, other = next_token_loss(model, rows[:1]), next_token_loss(model, rows[1:, :2])
    assert count == one[1] + other[1] == 4
    torch.testing.assert_close(total, one[0] + other[0])


def test_it_learns_a_song_by_heart() -> None:
    torch.manual_seed(0)
    song = torch.tensor([5, 6, 7, 5, 6, 8, 9, 10] * 40)
    model = LanguageModel(LanguageModelConfig(12, 32, 2, 64, 2, dropout=0.0, max_length=16))
    settings = TrainingSettings(60, label_smoothing=0.0, report_every=60)
    train(
        model,
        text_windows(song, 16, 8, 0),
        next_token_loss,
        settings=settings,
        rate=lambda step: 5e-3,
    )
    assert greedy_decode(model, song[None, :8], 8, eos_id=-1) == [song[:8].tolist()]


@pytest.mark.parametrize(("size", "length", "batch"), [(100, 7, 3), (64, 16, 100), (21, 10, 1)])
def test_an_epoch_of_windows_reads_each_token_once(size: int, length: int, batch: int) -> None:
    row = torch.arange(size)
    for seed in range(5):
        stream = text_windows(row, length, batch, seed)
        for _ in range(3):  # epochs
            wanted: list[int] = []
            while len(wanted) < size - 2 * length:
                some = next(stream)
                assert some.shape[1] == length + 1
                assert (some[:, 1:] == some[:, :-1] + 1).all()
                wanted += some[:, 1:].flatten().tolist()
            assert len(set(wanted)) == len(wanted)


def test_windows_follow_their_seed() -> None:
    row = torch.arange(500)
    first, again, other = (list(islice(text_windows(row, 8, 4, s), 5)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    with pytest.raises(ValueError, match="length"):
        text_windows(row, 251, 4, 0)
    with pytest.raises(ValueError, match="batch_size"):
        text_windows(row, 8, 0, 0)


@pytest.mark.parametrize("size", [2, 10, 25, 26, 37, 60])
@pytest.mark.parametrize("length", [None, 1, 8])
def test_surprise_is_the_cost_behind_a_long_enough_past(
    model: LanguageModel, size: int, length: int | None
) -> None:
    tokens = torch.randint(3, 30, (size,))
    found = surprise(model.train(), tokens, length, batch_size=3)
    assert model.training
    model.eval()
    window = min(length or 24, size - 1)
    assert found.shape == (size - 1,)
    for i, nats in enumerate(found.tolist()):
        possible = [
            -model(tokens[None, start : i + 1])[0, -1].log_softmax(dim=-1)[tokens[i + 1]].item()
            for start in range(max(0, i + 1 - window), max(0, i - window // 2) + 1)
        ]
        assert min(abs(nats - other) for other in possible) < 1e-4


def test_surprise_is_the_evaluated_loss_of_one_window(model: LanguageModel) -> None:
    tokens = torch.randint(3, 30, (25,))
    loss = evaluate_loss(model, [tokens[None]], next_token_loss)
    assert surprise(model, tokens).mean().item() == pytest.approx(loss, abs=1e-5)


def test_texts_become_one_stream() -> None:
    tokenizer = train_tokenizer(["a"], 259)
    stream = encode_stream(tokenizer, ["ab", "c"]).tolist()
    a, b, c = (encode_texts(tokenizer, [x])[0][0] for x in "abc")
    assert stream == [a, b, EOS_ID, c, EOS_ID]


def test_the_novels() -> None:
    assert [novel.split("\n")[0].upper() for novel in load_austen("train")][1] == (
        "PRIDE AND PREJUDICE"
    )
    [held_out] = load_austen("test")
    assert held_out.startswith("Persuasion\n")
    with pytest.raises(ValueError, match="no split 'validation'"):
        load_austen("validation")


# --- what is shipped


def test_the_shipped_model_says_how_it_came_to_be() -> None:
    from importlib import resources

    file = resources.files("transformer_lib") / "pretrained" / "austen" / "weights.safetensors"
    with resources.as_file(file) as path:
        assert path.stat().st_size < 4e6
        _, notes = read_tensors(path)
    training = notes["training"]
    assert training["command"] == "python experiments/22_language_model.py"
    assert training["log"][-1]["step"] == training["settings"]["steps"]


@pytest.mark.slow
def test_the_shipped_model_has_the_score_of_its_notes() -> None:
    from importlib import resources

    file = resources.files("transformer_lib") / "pretrained" / "austen" / "weights.safetensors"
    with resources.as_file(file) as path:
        _, notes = read_tensors(path)
    model, tokenizer = load_language_model()
    [novel] = load_austen("test")
    bits = surprise(model, encode_stream(tokenizer, [novel])).sum().item() / math.log(2)
    expected = notes["training"]["bits_a_character_on_persuasion"]
    assert bits / len(novel) == pytest.approx(expected, abs=2e-3)


def test_a_model_of_a_file_is_loaded(model: LanguageModel, tmp_path: Any) -> None:
    tokenizer = train_tokenizer(["a"], 259)
    config = {"vocab_size": 30, "d_model": 16, "num_heads": 2, "d_ff": 32, "num_layers": 2}
    config |= {"max_length": 24}
    file = tmp_path / "mine.safetensors"
    write_tensors(file, model.state_dict(), config=config, tokenizer=tokenizer.to_str())
    loaded, _ = load_language_model(file)
    tokens = torch.randint(3, 30, (2, 7))
    assert torch.equal(loaded(tokens), model(tokens))


# --- GPT-2


@pytest.fixture
def gpt2() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60, n_positions=32, n_embd=24, n_layer=3, n_head=3, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # norms and biases, too
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_gpt2_gives_the_logits_of_hugging_face(gpt2: Any) -> None:
    ours = from_gpt2(gpt2).eval()
    tokens = torch.randint(0, 60, (3, 20))
    torch.testing.assert_close(ours(tokens), gpt2(tokens).logits, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in gpt2.parameters())
    assert ours.config.max_length == 32


@torch.no_grad()
def test_gpt2_writes_the_text_of_hugging_face(gpt2: Any) -> None:
    ours = from_gpt2(gpt2)
    prompt = torch.randint(0, 60, (2, 6))
    theirs = gpt2.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert greedy_decode(ours, prompt, 12, eos_id=-1) == theirs[:, 6:].tolist()


def test_gpt2_goes_on_learning_as_hugging_face(gpt2: Any) -> None:
    ours = from_gpt2(gpt2).eval()
    tokens = torch.randint(0, 60, (2, 9))
    total, count = next_token_loss(ours, tokens)
    (total / count).backward()
    gpt2(tokens, labels=tokens).loss.backward()
    grad = ours.stack.layers[1].feed_forward.inner.weight.grad
    expected = gpt2.transformer.h[1].mlp.c_fc.weight.grad.t()
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("activation_function", "relu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("layer_norm_epsilon", 1e-3),
    ],
)
def test_another_gpt2_is_refused(gpt2: Any, setting: str, value: object) -> None:
    setattr(gpt2.config, setting, value)
    with pytest.raises(ValueError, match=setting):
        from_gpt2(gpt2)


# --- exercise 22.1


# --- exercise 22.2


def by_unfold(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    windows = tokens.unfold(0, length + 1, length)
    return windows[:, :-1], windows[:, 1:]


def by_loop(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    starts = range(0, len(tokens) - length, length)
    read = torch.stack([tokens[i : i + length] for i in starts])
    return read, torch.stack([tokens[i + 1 : i + length + 1] for i in starts])


def without_shift(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    read, _ = by_unfold(tokens, length)
    return read, read


def backward(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    read, wanted = by_unfold(tokens, length)
    return wanted, read


def with_a_gap(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    windows = tokens.unfold(0, length + 1, length + 1)
    return windows[:, :-1], windows[:, 1:]


def shift_inside(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    read, _ = by_unfold(tokens, length)
    return read, read.roll(-1, dims=1)


def one_too_few(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    read, wanted = by_unfold(tokens, length)
    return read[:-1], wanted[:-1]


def from_the_second(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    padded = torch.cat([tokens[1:], tokens[-1:] + 1])
    return by_unfold(padded, length)


# --- exercise 22.3

Shorter = dict[str, float]


def by_loop_over_all(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    total = sum(counts.values())
    if not total:
        return shorter
    found, freed = {}, 0.0
    for c in shorter:
        taken = min(discount, counts.get(c, 0))
        found[c], freed = (counts.get(c, 0) - taken) / total, freed + taken / total
    return {c: found[c] + freed * shorter[c] for c in shorter}


def in_one_line(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    n = counts.total() or 1
    freed = discount * len(counts) / n if counts else 1.0
    return {c: max(counts[c] - discount, 0) / n + freed * p for c, p in shorter.items()}


def without_max(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    n = counts.total()
    return {c: (counts[c] - discount) / n for c in shorter}


def nothing_handed_out(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    return {c: max(counts[c] - discount, 0) / counts.total() for c in shorter}


def discount_once(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    n = counts.total()
    return {c: max(counts[c] - discount, 0) / n + discount / n * p for c, p in shorter.items()}


def handed_out_evenly(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    n, freed = counts.total(), discount * len(counts) / counts.total()
    return {c: max(counts[c] - discount, 0) / n + freed / len(shorter) for c in shorter}


def no_unseen_history(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    n = counts.total()
    freed = discount * len(counts) / n
    return {c: max(counts[c] - discount, 0) / n + freed * p for c, p in shorter.items()}


def always_half(counts: Counter, shorter: Shorter, discount: float) -> Shorter:
    return in_one_line(counts, shorter, 0.5)


# --- exercise 22.4


def by_table(text: list[str], source: list[str]) -> list[str]:
    best, end, before = 0, 0, [0] * (len(source) + 1)
    for i, word in enumerate(text):
        now = [0] * (len(source) + 1)
        for j, other in enumerate(source):
            if word == other:
                now[j + 1] = before[j] + 1
                if now[j + 1] > best:
                    best, end = now[j + 1], i + 1
        before = now
    return text[end - best : end]


def by_string_search(text: list[str], source: list[str]) -> list[str]:
    whole = f" {' '.join(source)} "
    for n in range(len(text), 0, -1):
        for i in range(len(text) - n + 1):
            if f" {' '.join(text[i : i + n])} " in whole:
                return text[i : i + n]
    return []


def common_words(text: list[str], source: list[str]) -> list[str]:
    return [word for word in text if word in source]


def parts_of_words(text: list[str], source: list[str]) -> list[str]:
    whole = " ".join(source)
    for n in range(len(text), 0, -1):
        for i in range(len(text) - n + 1):
            if " ".join(text[i : i + n]) in whole:
                return text[i : i + n]
    return []


def last_of_equals(text: list[str], source: list[str]) -> list[str]:
    found: list[str] = []
    for i in range(len(text)):
        for j in range(i + 1, len(text) + 1):
            run = text[i:j]
            if by_string_search(run, source) == run and len(run) >= len(found):
                found = run
    return found


def stops_before_the_end(text: list[str], source: list[str]) -> list[str]:
    return by_table(text[:-1], source) if text[-1] == "w" else by_table(text, source)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_22.check_yardsticks: [
        lambda n, t, w, c: (math.exp(n / t), math.exp(n / w), n / math.log(2) / c),
        lambda n, t, w, c: (
            2 ** (n * math.log2(math.e) / t),
            math.pow(math.e, n / w),
            math.log2(math.exp(n / c)),
        ),
    ],
    chapter_22.check_windows: [by_unfold, by_loop],
    chapter_22.check_discounting: [by_loop_over_all, in_one_line],
    chapter_22.check_longest_copy: [by_table, by_string_search],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_22.check_yardsticks: [
        (lambda n, t, w, c: (2 ** (n / t), math.exp(n / w), n / math.log(2) / c), "not 2"),
        (lambda n, t, w, c: (n / t, math.exp(n / w), n / math.log(2) / c), "mean loss"),
        (
            lambda n, t, w, c: (math.exp(n / t), math.exp(n / t) * t / w, n / math.log(2) / c),
            "costs add up",
        ),
        (lambda n, t, w, c: (math.exp(n / t), math.exp(n / w), n / c), "ln 2"),
        (
            lambda n, t, w, c: (math.exp(n / t), math.exp(n / w), n * math.log(2) / c),
            "more bits than nats",
        ),
        (lambda n, t, w, c: (math.exp(n / t), math.exp(n / w), n / math.log(2) / t), "per token"),
        (lambda n, t, w, c: math.exp(n / t), "three numbers"),
    ],
    chapter_22.check_windows: [
        (without_shift, "shift it by one"),
        (backward, "the other way"),
        (with_a_gap, "fills no window|never wanted"),
        (shift_inside, "the one behind it"),
        (one_too_few, "fills no window"),
        (from_the_second, "begin with the first token"),
        (lambda tokens, length: tokens, "read and wanted"),
    ],
    chapter_22.check_discounting: [
        (without_max, "never seen: max"),
        (nothing_handed_out, "what the shorter history gives"),
        (discount_once, "each DIFFERENT"),
        (handed_out_evenly, "in proportion"),
        (no_unseen_history, "ZeroDivisionError"),
        (always_half, "use `discount`"),
        (lambda counts, shorter, discount: dict.fromkeys(counts, 1.0), "every character"),
    ],
    chapter_22.check_longest_copy: [
        (common_words, "without a gap|should be"),
        (parts_of_words, "whole words"),
        (last_of_equals, "the first in `text`"),
        (stops_before_the_end, "end of both"),
        (lambda text, source: by_table(text, source) or None, "list of words|returned None"),
        (lambda text, source: " ".join(by_table(text, source)), "list of words"),
        (lambda text, source: len(by_table(text, source)), "list of words"),
    ],
}
