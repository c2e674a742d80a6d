"""Scores of translations.

Written from chapter 17 of the book: edit the chapter, then `make sync`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from transformer_lib.door import check_numbers

__all__ = ["BleuScore", "bleu", "bootstrap_interval", "chrf", "tokenize_13a"]


_SYMBOL = re.compile(r"([!-&(-+/:-@\[-`{-~])")  # ASCII punctuation, but for ' , - .
_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in this order


def tokenize_13a(text: str) -> list[str]:
    """Cut a sentence into words and punctuation marks by the rules of mteval-v13a, WMT's script.

    "1,000", "don't" and "well-known" stay whole; "(yes)." becomes four tokens.
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    text = _SYMBOL.sub(r" \1 ", f" {text} ")
    text = _AFTER_NO_DIGIT.sub(r"\1 \2 ", text)
    text = _BEFORE_NO_DIGIT.sub(r" \1 \2", text)
    return _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text).split()


def _count_ngrams(tokens: Sequence[str], longest: int) -> Counter[Sequence[str]]:
    """How often each run of 1 to `longest` tokens occurs."""
    return Counter(
        tokens[start : start + n]
        for n in range(1, longest + 1)
        for start in range(len(tokens) - n + 1)
    )


def _bleu_counts(
    hypothesis: str, references: list[str], tokenize: Callable[[str], list[str]]
) -> list[int]:
    """Count one sentence: its length, its reference's, 4 numbers of matches, 4 of n-grams."""
    words = tuple(tokenize(hypothesis))
    others = [tuple(tokenize(reference)) for reference in references]
    allowed: Counter[Sequence[str]] = Counter()
    for other in others:
        allowed |= _count_ngrams(other, 4)  # the larger count of the two
    matches = [0] * 4
    for ngram, count in (_count_ngrams(words, 4) & allowed).items():  # the smaller: clipped
        matches[len(ngram) - 1] += count
    closest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    return [len(words), closest, *matches, *(max(len(words) - n, 0) for n in range(4))]


@dataclass(frozen=True)
class BleuScore:
    """BLEU of a set of translations, with the numbers it is made of, each over the whole set."""

    score: float  # from 0 to 100
    precisions: tuple[float, ...]  # in percent, of runs of 1, 2, 3 and 4 tokens
    brevity_penalty: float  # from 0 to 1; 1 if the translations are long enough
    hypothesis_length: int  # in tokens
    reference_length: int
    signature: str  # how it was computed, in sacrebleu's notation


def _paired(
    hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[tuple[str, list[str]]]:
    """Each hypothesis with the list of its references."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("hypotheses and references are lists of sentences, got one string")
    if not 0 < len(hypotheses) == len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses, but references for {len(references)} sentences: "
            "there must be as many, and at least one"
        )
    lists = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    if not all(lists):
        raise ValueError(f"sentence {lists.index([])} has no reference")
    return list(zip(hypotheses, lists, strict=True))


def _bleu_from_counts(counts: Sequence[int]) -> tuple[float, tuple[float, ...], float]:
    """Score, precisions in percent and brevity penalty, from counts summed over sentences."""
    length, reference_length, matches, totals = *counts[:2], counts[2:6], counts[6:]
    brevity_penalty = 1.0
    if length < reference_length:
        brevity_penalty = math.exp(1 - reference_length / length) if length else 0.0
    precisions, share = [0.0] * 4, 1.0
    for n, (match, total) in enumerate(zip(matches, totals, strict=True)):
        if match == 0:
            share /= 2  # smoothing "exp": no match counts as 1/2, the next one as 1/4 ...
        if total and any(matches):
            precisions[n] = 100 * (match or share) / total
    if 0.0 in precisions:
        return 0.0, tuple(precisions), brevity_penalty
    log_mean = sum(math.log(precision) for precision in precisions) / 4
    return brevity_penalty * math.exp(log_mean), tuple(precisions), brevity_penalty


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], list[str]] = tokenize_13a,
) -> BleuScore:
    """Score translations by the runs of words that they share with references.

    BLEU of Papineni et al. (2002), the measure of the paper's Table 2, as sacrebleu computes it by
    default: one score for the whole set, not a mean over sentences.

    Args:
        hypotheses: the translations, one text a sentence.
        references: for each sentence one text, or a list of several.
        tokenize: cuts a text into words.

    Raises:
        ValueError: if there is no sentence, one without a reference, or one side has more.
    """
    pairs = _paired(hypotheses, references)
    sentences = [_bleu_counts(*pair, tokenize) for pair in pairs]
    counts = [sum(column) for column in zip(*sentences, strict=True)]
    numbers = {len(texts) for _, texts in pairs}
    number = numbers.pop() if len(numbers) == 1 else "var"
    cut = tokenize.__name__.removeprefix("tokenize_")
    signature = f"nrefs:{number}|case:mixed|eff:no|tok:{cut}|smooth:exp|version:transformer_lib"
    score, precisions, brevity_penalty = _bleu_from_counts(counts)
    return BleuScore(score, precisions, brevity_penalty, counts[0], counts[1], signature)


def _chrf_counts(hypothesis: str, reference: str) -> list[int]:
    """For runs of 1 to 6 characters: how many the hypothesis has, the reference has, both have."""
    texts = ["".join(text.split()) for text in (hypothesis, reference)]
    ours, wanted = (_count_ngrams(text, 6) for text in texts)
    both = [0] * 6
    for ngram, count in (ours & wanted).items():
        both[len(ngram) - 1] += count
    counts = []
    for n in range(6):
        has, wants = (max(len(text) - n, 0) for text in texts)
        counts += [has if wants else 0, wants, both[n]]  # no run to find: none to be wrong
    return counts


def _chrf_from_counts(counts: Sequence[int]) -> float:
    """F2 of mean precision and mean recall, over the lengths that both sides have."""
    orders = [counts[i : i + 3] for i in range(0, len(counts), 3)]
    present = [(both / has, both / wants) for has, wants, both in orders if has and wants]
    if not any(precision for precision, _ in present):
        return 0.0
    precision, recall = (sum(column) / len(present) for column in zip(*present, strict=True))
    score: float = 100 * 5 * precision * recall / (4 * precision + recall)
    return score


def chrf(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> float:
    """Score translations by the runs of 1 to 6 characters that they share with references.

    chrF2 of Popović (2015), from 0 to 100, as sacrebleu computes it by default: spaces do not
    count, recall weighs more than precision, and of several references the best is taken. Takes
    and refuses what bleu does.
    """
    sentences = [
        max((_chrf_counts(hypothesis, text) for text in texts), key=_chrf_from_counts)
        for hypothesis, texts in _paired(hypotheses, references)
    ]
    return _chrf_from_counts([sum(column) for column in zip(*sentences, strict=True)])


def bootstrap_interval(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Say between which values the BLEU of ever more sentences of this kind would probably lie.

    About `level` of such intervals hold it. (Another test set as small as this one is off by
    chance, too, and its score lies inside less often.) The percentile bootstrap (Koehn, 2004): draw
    as many sentences as there are, with replacement, score them, repeat.

    Args:
        hypotheses, references: as for bleu.
        level: share of the resamples that lie inside, between 0 and 1.
        resamples: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: if level or resamples is out of range, and for what bleu refuses.
    """
    check_numbers(float, 1e-9, 1 - 1e-9, level=level)
    check_numbers(int, 1, resamples=resamples)
    pairs = _paired(hypotheses, references)
    counts = torch.tensor([_bleu_counts(*pair, tokenize_13a) for pair in pairs])  # (sentences, 10)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(resamples):
        drawn = torch.randint(len(pairs), (len(pairs),), generator=generator)  # (sentences,)
        scores.append(_bleu_from_counts(counts[drawn].sum(dim=0).tolist())[0])
    tail = (1 - level) / 2
    lower, upper = torch.tensor(scores).quantile(torch.tensor([tail, 1 - tail])).tolist()
    return lower, upper
