"""Scores of translations, and the cost of training in FLOPs.

Written from chapter 17 of the book: edit the chapter, then `make sync`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer_lib.transformer import TransformerConfig

__all__ = ["BleuScore", "bleu", "bootstrap_interval", "chrf", "tokenize_13a", "training_flops"]


_SPLITS = (  # the rules of mteval-v13a, in their order
    (re.compile(r"([!-&(-+:-@/\[-`{-~])"), r" \1 "),  # symbols, not ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a dot or comma after what is no digit
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # and before what is no digit
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a hyphen after a digit
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenize_13a(text: str) -> list[str]:
    """Split a text into words as the script mteval-v13a does, and sacrebleu by default.

    Args:
        text: a sentence, as people write it.

    Returns:
        Its words and punctuation marks.
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    return text.split()


@dataclass(frozen=True)
class BleuScore:
    """What `bleu` finds.

    score: from 0 to 100.
    precisions: of runs of 1, 2, 3 and 4 words, in percent.
    brevity_penalty: 1 if the translations are long enough, less if not.
    hypothesis_length, reference_length: in words, of all sentences.
    signature: how it was computed, as sacrebleu writes it.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_length: int
    reference_length: int
    signature: str


def _ngrams(units: Sequence[str] | str, n: int) -> Counter[tuple[str, ...]]:
    """Count the runs of n units."""
    return Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))


def _with_references(
    hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[tuple[str, list[str]]]:
    """Put each hypothesis beside the list of its references."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("hypotheses and references are lists of texts, got a single text")
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"each hypothesis needs its references, got {len(hypotheses)} hypotheses and "
            f"{len(references)} references"
        )
    lists = [[each] if isinstance(each, str) else list(each) for each in references]
    if not all(lists):
        raise ValueError(f"hypothesis {lists.index([])} has no reference")
    return list(zip(hypotheses, lists, strict=True))


def _bleu_counts(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    tokenize: Callable[[str], list[str]],
) -> Tensor:
    """Per sentence: 4 numbers of clipped matches, 4 of n-grams, 2 lengths; (sentences, 10)."""
    rows = []
    for hypothesis, texts in _with_references(hypotheses, references):
        ours, theirs = tokenize(hypothesis), [tokenize(text) for text in texts]
        matches, totals = [], []
        for n in (1, 2, 3, 4):
            counts, most = _ngrams(ours, n), Counter[tuple[str, ...]]()
            for other in theirs:
                most |= _ngrams(other, n)  # the larger of both counts
            matches.append((counts & most).total())
            totals.append(counts.total())
        nearest = min((abs(len(other) - len(ours)), len(other)) for other in theirs)[1]
        rows.append([*matches, *totals, len(ours), nearest])
    return torch.tensor(rows, dtype=torch.float64)


def _bleu_of(counts: Tensor) -> tuple[float, tuple[float, ...], float]:
    """Score, precisions and brevity penalty of summed counts, (10,)."""
    matches, totals = counts[:4].tolist(), counts[4:8].tolist()
    length, wanted = counts[8:].tolist()
    brevity = 1.0
    if length < wanted:
        brevity = math.exp(1 - wanted / length) if length else 0.0
    precisions = [0.0] * 4
    if not any(matches):
        return 0.0, tuple(precisions), brevity
    missing = 1.0
    for index, (match, total) in enumerate(zip(matches, totals, strict=True)):
        if match == 0 and total > 0:
            missing /= 2
        precisions[index] = 100 * (match or missing) / total if total else 0.0
    if min(precisions) == 0.0:
        return 0.0, tuple(precisions), brevity
    mean = math.exp(sum(map(math.log, precisions)) / 4)
    return brevity * mean, tuple(precisions), brevity


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    tokenize: str = "13a",
) -> BleuScore:
    """Score translations by the runs of words they share with references (Papineni et al., 2002).

    Args:
        hypotheses: the translations.
        references: for each of them a text, or a list of texts.
        tokenize: "13a" for texts as people write them; "none" for texts already cut into words,
            with spaces between.

    Returns:
        The score of all of them together, equal to sacrebleu's with its defaults.

    Raises:
        ValueError: if there are no hypotheses, not as many references, a hypothesis without any,
            a single text in place of a list, or another way to tokenize.
    """
    ways: dict[str, Callable[[str], list[str]]] = {"13a": tokenize_13a, "none": str.split}
    if tokenize not in ways:
        raise ValueError(f"tokenize must be one of {', '.join(ways)}, got {tokenize!r}")
    counts = _bleu_counts(hypotheses, references, ways[tokenize])  # (sentences, 10)
    score, precisions, brevity = _bleu_of(counts.sum(dim=0))
    numbers = sorted({1 if isinstance(each, str) else len(each) for each in references})
    signature = f"nrefs:{numbers[0] if len(numbers) == 1 else 'var'}|case:mixed|eff:no"
    signature += f"|tok:{tokenize}|smooth:exp|by:transformer_lib"
    length, wanted = (int(value) for value in counts[:, 8:].sum(dim=0))
    return BleuScore(score, precisions, brevity, length, wanted, signature)


def _chrf_of(counts: Tensor) -> float:
    """chrF of counts, (6, 3): n-grams of the hypothesis, of the reference, of both."""
    counts = counts[(counts[:, :2] > 0).all(dim=1)]  # lengths that both sides have
    if not len(counts):
        return 0.0
    precision, recall = (counts[:, 2:] / counts[:, :2]).mean(dim=0).tolist()
    if precision + recall == 0:
        return 0.0
    return float(100 * 5 * precision * recall / (4 * precision + recall))


def chrf(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> float:
    """Score translations by the runs of 1 to 6 letters they share with references (Popović, 2015).

    Args:
        hypotheses: the translations.
        references: for each of them a text, or a list of texts, of which the nearest counts.

    Returns:
        chrF2 of all of them together, from 0 to 100, equal to sacrebleu's with its defaults.

    Raises:
        ValueError: as for bleu.
    """
    total = torch.zeros(6, 3, dtype=torch.float64)
    for hypothesis, texts in _with_references(hypotheses, references):
        letters = "".join(hypothesis.split())
        options = []
        for text in texts:
            wanted = "".join(text.split())
            rows = []
            for n in range(1, 7):
                ours, theirs = _ngrams(letters, n), _ngrams(wanted, n)
                # Where the reference has no run so long, the hypothesis cannot be wrong.
                count = ours.total() if theirs else 0
                rows.append([count, theirs.total(), (ours & theirs).total()])
            options.append(torch.tensor(rows, dtype=torch.float64))
        total += max(options, key=_chrf_of)
    return _chrf_of(total)


def bootstrap_interval(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Estimate how far BLEU would vary between test sets like this one (Koehn, 2004).

    Args:
        hypotheses, references: as for bleu.
        resamples: how often a test set is drawn from the sentences, with replacement.
        confidence: share of the resamples' scores that lie in the interval.
        seed: of the draws.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: if resamples is below 1, confidence not between 0 and 1, or as for bleu.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "resamples must be at least 1 and confidence between 0 and 1, "
            f"got {resamples} and {confidence}"
        )
    counts = _bleu_counts(hypotheses, references, tokenize_13a)  # (sentences, 10)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(counts), (resamples, len(counts)), generator=generator)
    times = torch.zeros(resamples, len(counts), dtype=counts.dtype)  # (resamples, sentences)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    scores = torch.tensor([_bleu_of(row)[0] for row in times @ counts])  # (resamples,)
    tail = (1 - confidence) / 2
    low, high = scores.quantile(torch.tensor([tail, 1 - tail])).tolist()
    return low, high


def training_flops(
    config: TransformerConfig,
    source_tokens: int,
    target_tokens: int,
    source_length: float,
    target_length: float,
) -> float:
    """Operations in the matrix products of training, forward and backward.

    A multiplication and an addition are two operations; backward takes twice forward. What is not
    a matrix product (norms, softmax, dropout, the optimizer) is left out: it is little.

    Args:
        config: the model.
        source_tokens, target_tokens: positions that were computed in all, <bos> or <eos> counted.
        source_length, target_length: positions that one of them attends to.

    Returns:
        The number of floating-point operations. (Not per second: that is FLOP/s.)

    Raises:
        ValueError: if a number is below 1.
    """
    numbers = (source_tokens, target_tokens, source_length, target_length)
    if min(numbers) < 1:
        raise ValueError(f"all numbers of tokens must be at least 1, got {numbers}")
    d_model, d_ff = config.d_model, config.d_ff
    matrix = 2 * d_model * d_model  # one position, one projection
    feed_forward = 2 * 2 * d_model * d_ff
    encoder_layer = 4 * matrix + 4 * source_length * d_model + feed_forward
    decoder_layer = 4 * matrix + 4 * target_length * d_model  # self-attention
    decoder_layer += 2 * matrix + 4 * source_length * d_model + feed_forward  # cross-attention
    memory = 2 * matrix  # keys and values of the memory: once for each source position
    forward = source_tokens * config.num_encoder_layers * encoder_layer
    forward += config.num_decoder_layers * (target_tokens * decoder_layer + source_tokens * memory)
    forward += target_tokens * 2 * d_model * config.vocab_size
    return float(3 * forward)
