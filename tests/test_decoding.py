"""Chapter 16: cached decoding, greedy, beam search, sampling, and the checks of its exercises."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.book.checks.chapter_16 import (
    check_beam_search,
    check_length_penalty,
    check_top_p,
)
from transformer_lib.decoding import (
    Hypothesis,
    IncrementalDecoder,
    beam_search,
    greedy_decode,
    sample,
)
from transformer_lib.transformer import Transformer, TransformerConfig, from_torch

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


def log_probability(model: Transformer, source: Tensor, tokens: list[int], ended: bool) -> float:
    """Of a translation, by the whole model, without a cache."""
    target = torch.tensor([[BOS, *tokens]])
    with torch.inference_mode():
        log_p = model(source, target)[0].log_softmax(dim=-1)
    wanted = [*tokens, EOS] if ended else tokens
    return sum(log_p[i, token].item() for i, token in enumerate(wanted))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    norm_first=st.booleans(),
    beam_size=st.integers(1, 3),
    length=st.integers(1, 12),
)
def test_step_by_step_is_one_pass(seed: int, norm_first: bool, beam_size: int, length: int) -> None:
    model = model_of(seed, norm_first=norm_first)
    target = torch.randint(3, 11, (3 * beam_size, length))
    with torch.inference_mode():
        whole = model(SOURCE.repeat_interleave(beam_size, dim=0), target)
        decoder = IncrementalDecoder(model, SOURCE, length, beam_size)
        steps = torch.stack([decoder.step(column) for column in target.T], dim=1)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=1e-4)


def test_reordered_rows_continue_the_right_past() -> None:
    model = model_of(1)
    target = torch.randint(3, 11, (6, 5))
    rows = torch.tensor([1, 1, 2, 3, 5, 4])
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, SOURCE, 6, beam_size=2)
        for column in target.T:
            decoder.step(column)
        decoder.reorder(rows)
        new = torch.randint(3, 11, (6,))
        stepped = decoder.step(new)
        written = torch.cat([target[rows], new[:, None]], dim=1)
        whole = model(SOURCE.repeat_interleave(2, dim=0), written)[:, -1]
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


def test_a_model_from_torch_is_decoded_too() -> None:
    torch.manual_seed(0)
    theirs = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    model = from_torch(theirs, torch.randn(11, 16)).eval()
    with torch.inference_mode():
        decoder = IncrementalDecoder(model, SOURCE, 3)
        steps = [decoder.step(torch.full((3,), token)) for token in (1, 4, 5)]
        whole = model(SOURCE, torch.tensor([[1, 4, 5]]).expand(3, 3))
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_batch_is_its_rows_one_by_one(seed: int) -> None:
    model = model_of(seed)
    limits = [9, 4, 12]
    greedy = greedy_decode(model, SOURCE, limits)
    beams = beam_search(model, SOURCE, limits, beam_size=3)
    for row, limit, tokens, found in zip(SOURCE, limits, greedy, beams, strict=True):
        alone = row[row != 0][None]
        assert greedy_decode(model, alone, limit) == [tokens]
        assert len(tokens) <= limit
        (again,) = beam_search(model, alone, limit, beam_size=3)
        assert [h.tokens for h in again] == [h.tokens for h in found]


def test_greedy_takes_the_likeliest_each_time() -> None:
    model = model_of(3)
    for row, tokens in zip(SOURCE, greedy_decode(model, SOURCE, 10), strict=True):
        target = torch.tensor([[BOS, *tokens]])
        likeliest = model(row[row != 0][None], target)[0].argmax(dim=-1).tolist()
        assert likeliest[: len(tokens)] == tokens
        assert len(tokens) == 10 or likeliest[len(tokens)] == EOS


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


def test_the_mode_comes_back_and_no_gradient_is_kept() -> None:
    model = model_of(0).train()
    greedy_decode(model, SOURCE, 3)
    beam_search(model, SOURCE, 3)
    assert model.training
    with pytest.raises(ValueError, match="vocabulary"):
        greedy_decode(model, torch.tensor([[99]]), 3)
    assert model.training


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
    ("call", "message"),
    [
        (lambda m: greedy_decode(m, SOURCE, 0), "got 0"),
        (lambda m: greedy_decode(m, SOURCE, 41), "max_length 40, got 41"),
        (lambda m: greedy_decode(m, SOURCE, [3, 4]), "2 limits for 3 rows"),
        (lambda m: greedy_decode(m, SOURCE[0], 3), r"\(batch, source\), got \(5,\)"),
        (lambda m: beam_search(m, SOURCE[0], 3), r"\(batch, source\), got \(5,\)"),
        (lambda m: beam_search(m, SOURCE, 3, beam_size=0), "got 0 and 0.6"),
        (lambda m: beam_search(m, SOURCE, 3, length_penalty=-1.0), "got 4 and -1.0"),
        (lambda m: sample(m, SOURCE, 3, temperature=0.0), "temperature .* got 0.0"),
        (lambda m: sample(m, SOURCE, 3, top_k=0), "top_k .* got 0"),
        (lambda m: sample(m, SOURCE, 3, top_p=1.5), "top_p .* got 1.5"),
        (lambda m: IncrementalDecoder(m, SOURCE, 0), "got 0 and 1"),
        (lambda m: greedy_decode(m, torch.zeros(2, 3, dtype=torch.long), 3), "nothing but padding"),
        (lambda m: IncrementalDecoder(nn.Linear(1, 1), SOURCE, 3), "got Linear"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(model_of(0))  # type: ignore[operator]


# The checks of the exercises ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, n, a: p * ((5 + n) / 6) ** a,
        lambda p, n, a: p / (((5 + n) / 6) * a + 1e-9),
        lambda p, n, a: p / n**a,
    ],
)
def test_check_length_penalty_rejects(wrong: object) -> None:
    with pytest.raises(AssertionError, match="Exercise|penalty|alpha|score"):
        check_length_penalty(wrong)


def test_check_top_p_rejects() -> None:
    def too_few(probability: Tensor, p: float) -> Tensor:
        ordered, order = probability.sort(descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) > p, 0.0)
        return torch.zeros_like(probability).scatter(0, order, ordered)

    def wrong_places(probability: Tensor, p: float) -> Tensor:
        ordered = probability.sort(descending=True).values
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= p, 0.0)
        return ordered / ordered.sum()

    for wrong in (too_few, wrong_places):
        with pytest.raises(AssertionError):
            check_top_p(wrong)


def test_check_beam_search_rejects() -> None:
    def greedy(next_token: object, beam_size: int, end: int, most: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < most:
            row = next_token(tokens)  # type: ignore[operator]
            token = row.index(max(row))
            if token == end:
                break
            tokens.append(token)
        return tokens

    with pytest.raises(AssertionError, match="start 1 survives"):
        check_beam_search(greedy)
