"""Chapter 17: BLEU and chrF against sacrebleu, the bootstrap, FLOPs, and the checks of its exercises."""

import math

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.checks import (
    check_attention_share,
    check_clipped_counts,
    check_paired_bootstrap,
)
from transformer_lib.data import load_pairs
from transformer_lib.evaluation import bleu, bootstrap_interval, chrf, tokenize_13a, training_flops
from transformer_lib.transformer import Transformer, TransformerConfig

WORDS = st.sampled_from(["the", "cat", "sat", "on", "a", ".", ",", "3.5", "10-20", "(x)", "it's", "&amp;", "Ü"])
SENTENCE = st.lists(WORDS, max_size=9).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.text("aZ3.,-'\"&;quotmpl()[]{}<>/@$%~` \n", max_size=40))
def test_words_are_sacrebleus(text: str) -> None:
    assert tokenize_13a(text) == Tokenizer13a()(text).split()


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=5),
)
def test_scores_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    hypotheses, references = [p[0] for p in pairs], [p[1] for p in pairs]
    theirs = sacrebleu.corpus_bleu(hypotheses, [references])
    ours = bleu(hypotheses, references)
    assert ours.score == pytest.approx(theirs.score, abs=1e-6)
    assert ours.precisions == pytest.approx(theirs.precisions, abs=1e-6)
    assert ours.brevity_penalty == pytest.approx(theirs.bp, abs=1e-9)
    assert (ours.hypothesis_length, ours.reference_length) == (theirs.sys_len, theirs.ref_len)
    assert chrf(hypotheses, references) == pytest.approx(
        sacrebleu.corpus_chrf(hypotheses, [references]).score, abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(SENTENCE, SENTENCE, SENTENCE), min_size=1, max_size=4),
)
def test_several_references_are_sacrebleus(rows: list[tuple[str, str, str]]) -> None:
    hypotheses = [row[0] for row in rows]
    streams = [[row[1] for row in rows], [row[2] for row in rows]]
    lists = [list(row[1:]) for row in rows]
    assert bleu(hypotheses, lists).score == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, streams).score, abs=1e-6
    )
    assert chrf(hypotheses, lists) == pytest.approx(
        sacrebleu.corpus_chrf(hypotheses, streams).score, abs=1e-6
    )


def test_the_shipped_test_set_scores_as_sacrebleu_has_it() -> None:
    pairs = load_pairs("test")
    references = [pair.target for pair in pairs]
    # Something near each reference: its words with the third left out.
    hypotheses = [" ".join(t.split()[:2] + t.split()[3:]) for t in references]
    assert bleu(hypotheses, references).score == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references]).score, abs=1e-6
    )
    assert chrf(hypotheses, references) == pytest.approx(
        sacrebleu.corpus_chrf(hypotheses, [references]).score, abs=1e-6
    )
    assert bleu(hypotheses, references, tokenize="none").score == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none").score, abs=1e-6
    )


def test_the_signature_says_how() -> None:
    assert bleu(["a"], ["a"]).signature == (
        "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|by:transformer_lib"
    )
    assert bleu(["a"], [["a", "b"]]).signature.startswith("nrefs:2|")
    assert bleu(["a", "b"], [["a", "b"], "b"]).signature.startswith("nrefs:var|")
    assert "tok:none" in bleu(["a"], ["a"], tokenize="none").signature


@pytest.mark.parametrize("score", [bleu, chrf])
def test_bad_input_is_refused(score: object) -> None:
    for arguments, message in (
        ((["a", "b"], ["a"]), "2 hypotheses and 1 references"),
        (([], []), "0 hypotheses"),
        (("a", ["a"]), "single text"),
        ((["a"], "a"), "single text"),
        ((["a"], [[]]), "hypothesis 0 has no reference"),
    ):
        with pytest.raises(ValueError, match=message):
            score(*arguments)  # type: ignore[operator]
    with pytest.raises(ValueError, match="13a, none, got 'x'"):
        bleu(["a"], ["a"], tokenize="x")


def test_bootstrap_interval() -> None:
    references = [pair.target for pair in load_pairs("test")[:200]]
    hypotheses = [t if i % 2 else " ".join(t.split()[::-1]) for i, t in enumerate(references)]
    score = bleu(hypotheses, references).score
    low, high = bootstrap_interval(hypotheses, references, 300, seed=1)
    assert low < score < high
    assert (low, high) == bootstrap_interval(hypotheses, references, 300, seed=1)
    narrow = bootstrap_interval(hypotheses, references, 300, confidence=0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval(references, references, 20) == pytest.approx((100, 100))
    with pytest.raises(ValueError, match="got 0 and 0.95"):
        bootstrap_interval(hypotheses, references, 0)
    with pytest.raises(ValueError, match="got 10 and 1.0"):
        bootstrap_interval(hypotheses, references, 10, confidence=1.0)


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 4),
    source_length=st.integers(1, 9),
    target_length=st.integers(1, 9),
    layers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_flops_are_what_torch_counts(
    batch: int, source_length: int, target_length: int, layers: tuple[int, int]
) -> None:
    config = TransformerConfig(20, 16, 2, 24, *layers)
    model = Transformer(config)
    for module in model.modules():
        if hasattr(module, "attend"):
            plain = type(module).attend
            module.attend = lambda *x, m=module, plain=plain: plain(m, *x[:5], need_weights=True)
    source = torch.randint(3, 20, (batch, source_length))
    target = torch.randint(3, 20, (batch, target_length))
    with FlopCounterMode(display=False) as counter:
        model(source, target).sum().backward()
    sizes = (source.numel(), target.numel(), source_length, target_length)
    assert training_flops(config, *sizes) == counter.get_total_flops()


def test_flops_of_the_base_model_are_six_a_parameter() -> None:
    config = TransformerConfig.base()
    flops = training_flops(config, 25_000, 25_000, 25, 25)
    parameters = 63_082_496
    assert 0.8 < flops / (6 * parameters * 25_000) < 1.3
    with pytest.raises(ValueError, match=r"got \(0, 1, 1, 1\)"):
        training_flops(config, 0, 1, 1, 1)


# The checks of the exercises ----------------------------------------------------------------------


def test_checks_reject_the_common_mistakes() -> None:
    def unclipped(hypothesis: list[str], reference: list[str], n: int) -> tuple[int, int]:
        runs = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
        known = {tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)}
        return sum(run in known for run in runs), len(runs)

    with pytest.raises(AssertionError, match="clip"):
        check_clipped_counts(unclipped)

    def unpaired(first: torch.Tensor, second: torch.Tensor, resamples: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        draws = [
            x[torch.randint(len(x), (resamples, len(x)), generator=generator)].mean(dim=1)
            for x in (first, second)
        ]
        return (draws[0] > draws[1]).float().mean().item()

    with pytest.raises(AssertionError, match="different sentences"):
        check_paired_bootstrap(unpaired)

    def one_product(length: int, d_model: int, d_ff: int) -> float:
        attention = 2 * length * d_model
        return attention / (attention + 8 * d_model**2 + 4 * d_model * d_ff)

    with pytest.raises(AssertionError, match="two products"):
        check_attention_share(one_product)
    assert math.isfinite(one_product(1, 2, 3))
