"""Greedy decoding, beam search and sampling, with a cache of keys and values.

Written from chapters 16, 25 of the book: edit the chapter, then `make sync`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import HeadMaps, KeyValueCache
from transformer_lib.door import check_numbers, check_tokens
from transformer_lib.embeddings import TokenEmbedding
from transformer_lib.tokenizer import BOS_ID, EOS_ID
from transformer_lib.transformer import _DRAWN_AS_ONE, evaluating

__all__ = [
    "Hypothesis",
    "IncrementalDecoder",
    "beam_search",
    "by_columns",
    "greedy_decode",
    "sample",
]


def greedy_decode(
    model: nn.Module,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    bos_id: int = BOS_ID,
    eos_id: int = EOS_ID,
) -> list[list[int]]:
    """Write the likeliest next token, again and again, until <eos>.

    Args:
        model: put into eval mode for the call, and back into the mode it was in.
        source: ids, shape (batch, source), padded on the right.
        max_new_tokens: most tokens of a row, <eos> counted; one number, or one for each row.
        bos_id, eos_id: the ids that begin and end a target.

    Returns:
        One list of ids for each row, without <bos>, and without <eos> and what came after it.

    ValueError if max_new_tokens is below 1 or beyond the model's positions, the source is empty or
    not of ids, or the model says NaN.
    """
    return _write(model, source, max_new_tokens, lambda x: x.argmax(dim=-1), bos_id, eos_id)


class IncrementalDecoder:
    """A model that writes token by token, and computes nothing twice.

    Keys and values of written tokens are kept in a cache; those of the source are projected once.
    Everything is computed by the model's own methods encode, decode and project.

    Args:
        model: in eval mode; a Transformer, or another model whose decode takes two caches.
        source: ids, (batch, source), padded on the right, none of them empty (ValueError).
    """

    def __init__(self, model: Any, source: Tensor) -> None:
        self.model, self.memory = model, model.encode(source)  # (rows, source, d_model)
        real = source != model.config.pad_id  # (rows, source)
        if not real.any(dim=1).all():
            raise ValueError("a source row holds nothing but padding")
        self.source = None if real.all() else source  # without padding nothing is masked
        self.cache, self.memory_cache = KeyValueCache(), KeyValueCache(grows=False)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in each row, <bos> first: ids (rows,) -> logits (rows, vocab_size)."""
        caches = self.cache, self.memory_cache
        hidden = self.model.decode(tokens[:, None], self.memory, self.source, *caches)
        logits: Tensor = self.model.project(hidden[:, 0])
        return logits

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row rows[i], of the same sentence, has written."""
        self.cache.select(rows)

    def keep(self, rows: Tensor) -> None:
        """Let row i continue what row rows[i] has written: some rows end, others double."""
        self.cache.select(rows)
        self.memory_cache.select(rows)
        self.memory = self.memory[rows]
        self.source = None if self.source is None else self.source[rows]


@contextmanager
def _writing(model: nn.Module) -> Iterator[None]:
    """The model as it should be while it writes: eval mode, no gradients, weights by columns."""
    with evaluating(model), torch.inference_mode(), by_columns(model):
        yield


def _start(model: nn.Module, source: Tensor) -> Any:
    """What steps through a model: the model's own `incremental_decoder`, if it has one."""
    own = getattr(model, "incremental_decoder", None)
    return IncrementalDecoder(model, source) if own is None else own(source)


def _limits(model: Any, source: Tensor, max_new_tokens: int | Sequence[int]) -> list[int]:
    """The most tokens that each row may get."""
    check_tokens("source", source)
    if not isinstance(max_new_tokens, Sequence):
        max_new_tokens = [max_new_tokens] * len(source)
    limits = list(max_new_tokens)
    if len(limits) != len(source):
        raise ValueError(f"there are {len(limits)} limits for {len(source)} rows")
    for limit in limits:
        check_numbers(int, 1, model.config.max_length, max_new_tokens=limit)
    return limits


def _sound(logits: Tensor) -> Tensor:
    """Refuse a model whose weights are broken, and give its logits in float32."""
    if logits.max().isnan():
        raise ValueError("the model says NaN: its weights hold NaN, or numbers far too large")
    return logits.float()


def _write(
    model: nn.Module,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    choose: Callable[[Tensor], Tensor],
    bos_id: int,
    eos_id: int,
) -> list[list[int]]:
    """Write token after token: choose turns logits (rows, vocab_size) into tokens (rows,)."""
    limits = _limits(model, source, max_new_tokens)
    texts: list[list[int]] = [[] for _ in limits]
    open_rows = list(range(len(limits)))  # the texts that are still being written
    with _writing(model):
        decoder = _start(model, source)
        tokens = source.new_full((len(limits),), bos_id)  # (rows,)
        while open_rows:
            tokens = choose(_sound(decoder.step(tokens)))  # (rows,)
            going_on = []
            for place, token in enumerate(tokens.tolist()):
                text = texts[open_rows[place]]
                if token != eos_id:
                    text.append(token)
                    if len(text) < limits[open_rows[place]]:
                        going_on.append(place)
            if len(going_on) < len(open_rows):  # what is finished costs nothing any more
                open_rows = [open_rows[place] for place in going_on]
                kept = torch.tensor(going_on, dtype=torch.int64, device=source.device)
                tokens = tokens[kept]
                decoder.keep(kept)
    return texts


class Hypothesis(NamedTuple):
    """A translation that beam search has found.

    tokens: its ids, without <bos> and <eos>.
    score: log_probability divided by the length penalty; higher is better.
    log_probability: of all its tokens, <eos> included if it got that far.
    """

    tokens: list[int]
    score: float
    log_probability: float


def _continue(logits: Tensor, total: Tensor, beam_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest continuations of each sentence, best first, two for each beam.

    Logits (rows, vocab_size) and log-probabilities so far (active, beam) -> (active, continuations)
    three times: log-probability, which row it continues, token.
    """
    best, token = logits.topk(each := min(2 * beam_size, logits.size(-1)))  # (rows, each)
    best = best - logits.logsumexp(dim=-1, keepdim=True) + total.view(-1, 1)
    best, token = (x.view(len(total), -1) for x in (best, token))  # (active, beam * each)
    first_row = torch.arange(len(total), device=total.device)[:, None] * total.size(1)
    best, place = best.topk(min(2 * beam_size, best.size(1)))  # (active, continuations) twice
    return best, first_row + place // each, token.gather(1, place)


def _verdict(
    finished: list[Hypothesis], texts: Tensor, total: Tensor, limit: int, penalty: list[float]
) -> list[Hypothesis] | None:
    """The search's result, best first, or None while something unfinished may still win.

    Unfinished are texts (beam, length), of log-probabilities total (beam,), likeliest first.
    """
    finished.sort(key=lambda hypothesis: -hypothesis.score)
    length = texts.size(1)
    # What is unfinished can only get less likely; nobody's penalty exceeds the limit's.
    reachable = total[0].item() / penalty[limit]
    if finished and (length == limit or finished[0].score >= reachable):
        return finished
    if length < limit:
        return None
    rows = zip(texts.tolist(), total.tolist(), strict=True)
    return [Hypothesis(text, p / penalty[length], p) for text, p in rows if p > -math.inf]


def _search(
    decoder: Any,
    limits: list[int],
    beam_size: int,
    penalty: list[float],
    begin: Tensor,
    eos_id: int,
) -> list[list[Hypothesis]]:
    """Beam search for the sentences of a decoder; begin is <bos> for each of them, (rows, 1)."""
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    results: list[list[Hypothesis]] = [[] for _ in limits]
    active = list(range(len(limits)))  # the sentences that are still being written
    # One row a sentence: of beginnings that are all alike, one is enough.
    written = begin  # (rows, length)
    total = torch.zeros(begin.shape, device=begin.device)  # (active, beam)
    for length in range(1, max(limits) + 1):
        logits = _sound(decoder.step(written[:, -1]))  # (rows, vocab_size)
        total, row, token = _continue(logits, total, beam_size)  # (active, continuations) each
        ends = token == eos_id
        for i, rank in ends.nonzero().tolist():
            if (p := total[i, rank].item()) > -math.inf:
                tokens = written[row[i, rank], 1:].tolist()
                finished[active[i]].append(Hypothesis(tokens, p / penalty[length], p))
        going_on = ends.int().argsort(dim=1, stable=True)[:, :beam_size]  # (active, beam)
        total = total.masked_fill(ends, -math.inf).gather(1, going_on)  # (active, beam)
        row, token = row.gather(1, going_on), token.gather(1, going_on)  # (active, beam) twice
        texts = torch.cat([written[row], token[..., None]], dim=2)  # (active, beam, length + 1)
        still = []
        for i, sentence in enumerate(active):
            told = total[i], limits[sentence], penalty
            found = _verdict(finished[sentence], texts[i, :, 1:], *told)
            results[sentence] = (found or [])[:beam_size]
            still += [i] if found is None else []
        if not still:
            break
        if row.numel() == len(written) and len(still) == len(active):
            decoder.reorder(row.flatten())  # the same sentences, the same number of rows
        else:
            decoder.keep(row[still].flatten())
        active = [active[i] for i in still]
        written, total = texts[still].flatten(0, 1), total[still]
    return results


def beam_search(
    model: Any,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    beam_size: int = 4,
    length_penalty: float = 0.6,
    bos_id: int = BOS_ID,
    eos_id: int = EOS_ID,
) -> list[list[Hypothesis]]:
    """Keep the beam_size likeliest beginnings of a translation (paper, section 6.1).

    A finished translation of n tokens, <eos> counted, has the score log p / ((5 + n) / 6)^alpha
    (Wu et al., 2016, section 7). A sentence is done when nothing unfinished can beat its best
    finished one any more.

    Args:
        model, source, max_new_tokens, bos_id, eos_id: as in greedy_decode.
        beam_size: beginnings kept for each sentence; 4 in the paper.
        length_penalty: alpha, from 0 to 10; 0 prefers short translations.

    Returns:
        For each row its hypotheses, best first: the finished ones, at most beam_size, or the
        unfinished ones if none was finished within max_new_tokens.

    ValueError for a beam_size or length_penalty out of range, and for what greedy_decode refuses.
    """
    check_numbers(int, 1, 10_000, beam_size=beam_size)
    check_numbers(float, 0, 10, length_penalty=length_penalty)
    limits = _limits(model, source, max_new_tokens)
    penalty = [((5 + n) / 6) ** length_penalty for n in range(max(limits) + 1)]
    with _writing(model):
        begin = source.new_full((len(limits), 1), bos_id)
        return _search(_start(model, source), limits, beam_size, penalty, begin, eos_id)


def sample(
    model: Any,
    source: Tensor,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    bos_id: int = BOS_ID,
    eos_id: int = EOS_ID,
) -> list[list[int]]:
    """Draw each next token from the model's probabilities; returns what greedy_decode does.

    Args:
        model, source, max_new_tokens, bos_id, eos_id: as in greedy_decode.
        temperature: logits are divided by it, 1e-6 to 1e6; below 1 the likely becomes likelier.
        top_k: draw from the top_k likeliest tokens only (Fan et al., 2018).
        top_p: draw from the fewest tokens that have this probability (Holtzman et al., 2020).
        generator: where the random numbers come from; torch's own if None.

    ValueError for a temperature, top_k or top_p out of range, and for what greedy_decode refuses.
    """
    check_numbers(float, 1e-6, 1e6, temperature=temperature)
    check_numbers(int, 1, 2**31, top_k=1 if top_k is None else top_k)
    check_numbers(float, 1e-30, 1, top_p=1.0 if top_p is None else top_p)

    def choose(logits: Tensor) -> Tensor:
        ordered, token = (logits / temperature).sort(dim=-1, descending=True)  # (rows, vocab_size)
        if top_k is not None:
            ordered[:, top_k:] = -math.inf
        probability = ordered.softmax(dim=-1)  # (rows, vocab_size)
        if top_p is not None:
            before = probability.cumsum(dim=-1) - probability  # of all that are likelier
            probability = probability.masked_fill(before >= top_p, 0.0)
        drawn = torch.multinomial(probability, 1, generator=generator)  # (rows, 1)
        return token.gather(1, drawn)[:, 0]

    return _write(model, source, max_new_tokens, choose, bos_id, eos_id)


def _as_one(maps: list[Any]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Several linear maps of the same vectors in one product; made when it is needed."""

    @cache
    def wide() -> tuple[Tensor, Tensor]:
        weight = torch.cat([m.weight.t() for m in maps], dim=1).t()  # (out of all, in), by columns
        return weight, torch.cat([m.bias for m in maps])

    return lambda x: F.linear(x, *wide()).split([m.out_features for m in maps], dim=-1)


@contextmanager
def by_columns(model: nn.Module) -> Iterator[None]:
    """Wide matrices column after column in memory, to write with, not to train: the same numbers.

    Of self-attention the first three maps are one such matrix; an encoder stays as it is.
    """
    before: list[tuple[Any, str, Any]] = []
    left_out = {*getattr(model, "encoder", nn.Identity()).modules()}
    for part in (part for part in model.modules() if part not in left_out):
        weight: Any = getattr(part, "weight", None)
        is_map = isinstance(part, nn.Linear | TokenEmbedding) and isinstance(weight, nn.Parameter)
        if is_map and weight.size(0) > weight.size(1) and weight.is_contiguous():
            before.append((weight, "data", weight.data))
            weight.data = weight.data.t().contiguous().t()  # (out, in) as before
        if isinstance(part, HeadMaps):
            before.append((part, "joined", part.joined))
            maps: list[Any] = [getattr(part, name, None) for name in _DRAWN_AS_ONE]
            plain = all(type(m) is nn.Linear and m.bias is not None for m in maps)
            plain = plain and not any(m._forward_hooks or m._forward_pre_hooks for m in maps)
            part.joined = _as_one(maps) if plain else None
    try:
        yield
    finally:
        for thing, name, value in before:
            setattr(thing, name, value)
