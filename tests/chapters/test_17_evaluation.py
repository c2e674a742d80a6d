"""BLEU and chrF against sacrebleu, the bootstrap, and FLOPs against torch's counter."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sacrebleu
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.book.checks.chapter_17 import (
    check_brevity_penalty,
    check_clipped_matches,
    check_layer_flops,
    check_paired_bootstrap,
)
from transformer_lib.costs import training_flops
from transformer_lib.evaluation import bleu, bootstrap_interval, chrf, tokenize_13a
from transformer_lib.pairs import Example, make_batch
from transformer_lib.training import translation_loss
from transformer_lib.transformer import Transformer, TransformerConfig

# Few words, so that n-grams meet; marks that the tokenizer treats apart; entities; odd spaces.
WORDS = [
    *("a", "a", "b", "b", "c", "d", "the", "cat", "1,000", "3.5", "well-known", "don't", "(yes)"),
    *("&quot;hi&quot;", "&amp;lt;", "x-\n", ".", ",", "..", "1.,2", "7-8", "-", "<skipped>", "&"),
    *("\u00a0", "\u00fcber", "\u4f60\u597d", "%", "\n"),
]
sentences = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
    st.text(alphabet=" .,-1a&;:'\"/\n\t\u00e4()lt", max_size=30),
)


def in_sacrebleus_order(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """One list a sentence -> one list a reference, None where there is no further one."""
    most = max(len(texts) for texts in references)
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


@settings(max_examples=300, deadline=None)
@given(st.one_of(sentences, st.text(max_size=40)))
@example("a..b ...c 1,2 ,3. 4- -5 6-7")
@example("x-\n")
def test_tokens_are_sacrebleus(text: str) -> None:
    assert tokenize_13a(text) == Tokenizer13a()(text.rstrip()).split()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=5
    )
)
@example([("", ["a b c d"])])
@example([("a b c d", [""])])
@example([("a b c", ["a b c"])])
@example([("a b c d", ["a c b d", "a b c", "d c b a a"])])
@example([("the the the the", ["the cat", "the the cat"])])
def test_bleu_and_chrf_are_sacrebleus(pairs: list[tuple[str, list[str]]]) -> None:
    hypotheses, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    theirs_order = in_sacrebleus_order(references)
    metric = BLEU()
    theirs = metric.corpus_score(hypotheses, theirs_order)
    ours = bleu(hypotheses, references)
    assert ours.score == pytest.approx(theirs.score, abs=1e-6)
    assert ours.precisions == pytest.approx(theirs.precisions, abs=1e-6)
    assert ours.brevity_penalty == pytest.approx(theirs.bp, abs=1e-9)
    assert (ours.hypothesis_length, ours.reference_length) == (theirs.sys_len, theirs.ref_len)
    signature = str(metric.get_signature())
    assert ours.signature.split("|version:")[0] == signature.split("|version:")[0]
    their_chrf = CHRF().corpus_score(hypotheses, theirs_order)
    assert chrf(hypotheses, references) == pytest.approx(their_chrf.score, abs=1e-6)


def test_one_reference_may_come_without_a_list() -> None:
    hypotheses, references = ["a b c d e", "x y"], ["a b c d f", "y x"]
    assert bleu(hypotheses, references) == bleu(hypotheses, [[text] for text in references])
    assert chrf(hypotheses, references) == chrf(hypotheses, [[text] for text in references])


def test_another_tokenizer_is_used_and_named() -> None:
    hypotheses, references = ["Yes, it is (a test)."], ["Yes, this is (a test)."]
    score = bleu(hypotheses, references, tokenize=str.split)
    theirs = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none")
    assert score.score == pytest.approx(theirs.score, abs=1e-6)
    assert "|tok:split|" in score.signature


def test_the_order_of_the_sentences_does_not_matter_and_the_best_is_100() -> None:
    references = ["one two three four five .", "six seven eight nine ten !", "a b c d"]
    hypotheses = ["one two three four six .", "six eight nine ten !", "a b d c"]
    assert bleu(references, references).score == pytest.approx(100)
    assert chrf(references, references) == pytest.approx(100)
    assert bleu(hypotheses[::-1], references[::-1]) == bleu(hypotheses, references)


@pytest.mark.parametrize("score", [bleu, chrf, bootstrap_interval])
def test_bad_input_is_refused(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="2 hypotheses, but references for 1"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 hypotheses"):
        score([], [])
    with pytest.raises(ValueError, match="sentence 1 has no reference"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="one string"):
        score("a", ["a"])
    with pytest.raises(ValueError, match="one string"):
        score(["a"], "a")


def noisy_pairs(number: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """References of random words, and hypotheses in which some words are others."""
    generator = random.Random(seed)
    words = [f"word{i}" for i in range(50)]
    references = [generator.choices(words, k=generator.randint(4, 15)) for _ in range(number)]
    hypotheses = [
        [word if generator.random() < 0.7 else generator.choice(words) for word in reference]
        for reference in references
    ]
    return [" ".join(text) for text in hypotheses], [" ".join(text) for text in references]


def test_the_interval_is_sacrebleus_but_for_the_draws() -> None:
    hypotheses, references = noisy_pairs(300)
    lower, upper = bootstrap_interval(hypotheses, references, seed=1)
    theirs = BLEU().corpus_score(hypotheses, [references], n_bootstrap=1000)
    assert lower < theirs.score < upper
    assert (upper - lower) / 2 == pytest.approx(theirs._ci, rel=0.15)
    assert bootstrap_interval(hypotheses, references, seed=1) == (lower, upper)
    assert bootstrap_interval(hypotheses, references, seed=2) != (lower, upper)
    narrow = bootstrap_interval(hypotheses, references, level=0.5, seed=1)
    assert lower < narrow[0] < narrow[1] < upper


def test_a_single_sentence_has_an_interval_of_no_width() -> None:
    lower, upper = bootstrap_interval(["a b c d e"], ["a b c d f"], resamples=5)
    score = bleu(["a b c d e"], ["a b c d f"]).score
    assert lower == upper == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize(("level", "resamples"), [(0.0, 10), (1.0, 10), (math.nan, 10), (0.9, 0)])
def test_a_bad_level_or_number_of_resamples_is_refused(level: float, resamples: int) -> None:
    with pytest.raises(ValueError, match="level must be" if resamples else "resamples must be"):
        bootstrap_interval(["a"], ["a"], level=level, resamples=resamples)


@pytest.mark.parametrize("lengths", [[(5, 5), (5, 5)], [(3, 7), (9, 2), (1, 4)]])
@pytest.mark.parametrize("norm_first", [False, True])
def test_flops_are_what_torch_counts(lengths: list[tuple[int, int]], norm_first: bool) -> None:
    config = TransformerConfig(
        50, d_model=16, num_heads=4, d_ff=24, num_encoder_layers=2, num_decoder_layers=3,
        norm_first=norm_first,
    )  # fmt: skip
    batch = make_batch([Example([5] * (m - 1) + [2], [6] * (n - 1)) for m, n in lengths])
    model = Transformer(config)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        translation_loss(model, batch)[0].backward()
    expected = training_flops(
        config,
        sentences=len(lengths),
        source_length=max(m for m, _ in lengths),
        target_length=max(n for _, n in lengths),
        target_tokens=sum(n for _, n in lengths),
    )
    assert counter.get_total_flops() == expected


def test_flops_of_the_base_model_are_near_six_a_parameter_and_token() -> None:
    config = TransformerConfig.base()
    flops = training_flops(config, 1000, 25, 25)
    matrices = 6 * (4 * 512**2 + 2 * 512 * 2048) + 6 * (8 * 512**2 + 2 * 512 * 2048) + 37_000 * 512
    assert flops / (6 * 25_000 * matrices) == pytest.approx(1.0, abs=0.03)
    assert math.isclose(training_flops(config, 2000, 25, 25), 2 * flops)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2, 3, 4, 9), (2, 3, 4, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be int from 1 to"):
        training_flops(TransformerConfig.small(100), *sizes)


# The checks of the exercises: each mistake is named


def clipped(hypothesis: list[str], references: list[list[str]], n: int) -> tuple[int, int]:
    runs = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
    left: Counter[tuple[str, ...]] = Counter()
    for words in references:
        left |= Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return (Counter(runs) & left).total(), len(runs)


def in_the_sum_of_references(
    hypothesis: list[str], references: list[list[str]], n: int
) -> tuple[int, int]:
    return clipped(hypothesis, [[word for words in references for word in words]], n)


def unclipped(hypothesis: list[str], references: list[list[str]], n: int) -> tuple[int, int]:
    return sum(word in references[0] for word in hypothesis), len(hypothesis)


def as_a_set(hypothesis: list[str], references: list[list[str]], n: int) -> tuple[int, int]:
    return len(set(hypothesis) & set(references[0])), len(hypothesis)


def penalty(lengths: list[int], references: list[list[int]], ties: int = 1) -> float:
    wanted = sum(
        min(choices, key=lambda choice: (abs(choice - length), ties * choice))
        for length, choices in zip(lengths, references, strict=True)
    )
    return min(1.0, math.exp(1 - wanted / sum(lengths))) if sum(lengths) else 0.0


def clipped_by_removing(
    hypothesis: list[str], references: list[list[str]], n: int
) -> tuple[int, int]:
    """Strike out what has been used, in the reference that has the run most often."""

    def runs(words: list[str]) -> list[tuple[str, ...]]:
        return list(zip(*(words[k:] for k in range(n)), strict=False))

    matches = 0
    for run in set(runs(hypothesis)):
        most = max(runs(words).count(run) for words in references)
        matches += min(runs(hypothesis).count(run), most)
    return matches, len(runs(hypothesis))


def penalty_by_loop(lengths: list[int], references: list[list[int]]) -> float:
    wanted = 0
    for length, choices in zip(lengths, references, strict=True):
        wanted += sorted((abs(choice - length), choice) for choice in choices)[0][1]
    ours = sum(lengths)
    if ours == 0:
        return 0.0
    return 1.0 if ours >= wanted else math.exp(1 - wanted / ours)


def bootstrap(
    *,
    paired: bool = True,
    replacement: bool = True,
    rows: int | None = None,
    divide: bool = True,
    seeded: bool = True,
    ties: bool = False,
    whole: bool = True,
    again: bool = False,
) -> Callable[..., float]:
    """A paired bootstrap with one thing wrong, or nothing."""

    def attempt(first, second, score, resamples, seed):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed if seeded else 0)

        def draw(size: int) -> torch.Tensor:
            if again:
                generator.manual_seed(seed)
            if not replacement:
                return torch.randperm(size, generator=generator)
            return torch.randint(size, (rows or size,), generator=generator)

        wins = 0
        for _ in range(resamples):
            chosen = draw(len(first))
            other = chosen if paired else draw(len(first))
            ours, theirs = first[chosen], second[other]
            one, two = (score(x.sum(dim=0) if whole else x) for x in (ours, theirs))
            wins += one >= two if ties else one > two
        return wins / resamples if divide else wins

    return attempt


def bootstrap_by_counts(first, second, score, resamples, seed) -> float:  # type: ignore[no-untyped-def]
    """How often each sentence was drawn, as the weights of a product."""
    rng, wins = random.Random(seed), []
    for _ in range(resamples):
        drawn = Counter(rng.choices(range(len(first)), k=len(first)))
        times = torch.tensor([float(drawn[i]) for i in range(len(first))])
        wins.append(score(times @ first) > score(times @ second))
    return sum(wins) / len(wins)


def layer_flops(
    factor: int = 2, matrices: int = 4, networks: int = 2, products: int = 2
) -> Callable[[int, int, int], int]:
    def attempt(length: int, d: int, d_ff: int) -> int:
        return factor * length * (matrices * d * d + networks * d * d_ff + products * length * d)

    return attempt


def flops_by_shapes(length: int, d_model: int, d_ff: int) -> int:
    products = [(length, d_model, d_model)] * 4 + [(length, d_model, length)] * 2
    products += [(length, d_model, d_ff), (length, d_ff, d_model)]
    return sum(2 * rows * inner * columns for rows, inner, columns in products)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_clipped_matches: [clipped, clipped_by_removing],
    check_brevity_penalty: [penalty, penalty_by_loop],
    check_paired_bootstrap: [bootstrap(), bootstrap_by_counts],
    check_layer_flops: [layer_flops(), flops_by_shapes],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_clipped_matches: [
        (unclipped, "clip"),
        (as_a_set, "a set forgets"),
        (in_the_sum_of_references, "the most, not three"),
        (lambda h, r, n: clipped(h, r, 1), "runs of 2"),
        (lambda h, r, n: (clipped(h, r, n)[0], len(h) - n + 1 or 1), "no run of 2"),
        (lambda h, r, n: clipped(h, r[:1], n), "two in the other"),
        (lambda h, r, n: clipped(h, r, n)[0], "return .matches, runs."),
    ],
    check_brevity_penalty: [
        (lambda h, r: math.exp(1 - r[0][0] / max(h[0], 1)), "no bonus"),
        (lambda h, r: math.exp(1 - h[0] / r[0][0]), "upside down"),
        (lambda h, r: min(1.0, math.exp(1 - h[0] / r[0][0])), "upside down"),
        (lambda h, r: min(1, h[0] / r[0][0]), "the ratio itself"),
        (
            lambda h, r: sum(penalty([a], [b]) for a, b in zip(h, r, strict=True)) / len(h),
            "add up first",
        ),
        (lambda h, r: penalty(h, [[min(choices)] for choices in r]), "the closest is 12"),
        (lambda h, r: penalty(h, [[max(choices)] for choices in r]), "the closest is 7"),
        (lambda h, r: penalty(h, r, ties=-1), "the shorter"),
        (lambda h, r: penalty(h, r) if sum(h) else 1.0, "no words at all"),
    ],
    check_paired_bootstrap: [
        (bootstrap(paired=False), "SAME drawn sentences"),
        (bootstrap(replacement=False), "WITH replacement"),
        (bootstrap(rows=10), "takes 50 rows"),
        (bootstrap(divide=False), "not their number"),
        (bootstrap(seeded=False), "another seed"),
        (bootstrap(ties=True), "strictly better"),
        (bootstrap(whole=False), "summed over the drawn"),
        (bootstrap(again=True), "anew each time"),
        (lambda a, b, *rest: bootstrap()(b, a, *rest), "the first is better"),
    ],
    check_layer_flops: [
        (layer_flops(1), "multiply-adds"),
        (layer_flops(6), "forward only"),
        (layer_flops(products=0), "attention itself"),
        (layer_flops(products=1), "TWO products"),
        (layer_flops(matrices=3), "FOUR matrices"),
        (layer_flops(networks=1), "TWO matrices"),
        (layer_flops(matrices=5), "torch counts"),
    ],
}
