"""Looking inside a model: where it attends, what its parts are worth, what ails it.

Written from chapters 6, 19, 21 of the book: edit the chapter, then `make sync`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention, padding_mask
from transformer_lib.decoding import IncrementalDecoder
from transformer_lib.door import check_numbers, check_same
from transformer_lib.layers import ResidualConnection
from transformer_lib.pairs import Batch
from transformer_lib.transformer import Transformer, evaluating

__all__ = [
    "Diagnosis",
    "Finding",
    "another_token",
    "cut_heads",
    "cut_sublayers",
    "deletion_effect",
    "diagnose",
    "diagnose_training",
    "gradient_times_input",
    "influence",
    "logit_lens",
    "prune_heads",
    "record_attention",
    "record_stream",
    "score_heads",
]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep a model's attention weights while the context lasts; it computes what it did before.

    with record_attention(model) as weights:
        model(source, target)

    Yields:
        A dictionary, filled as the model runs: name of each MultiHeadAttention ("" if it is the
        model; ValueError if there is none) -> the last weights, before dropout: what `attend` makes
        of the identity matrix as values, (batch, heads, queries, keys).
    """
    names = {
        part: name for name, part in model.named_modules() if isinstance(part, MultiHeadAttention)
    }
    if not names:
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}")
    recorded: dict[str, Tensor] = {}

    def watch(name: str, attention: MultiHeadAttention) -> Callable[..., Tensor]:
        attend = attention.attend

        def watched(query: Tensor, key: Tensor, value: Tensor, *masks: Any) -> Tensor:
            identity = torch.eye(key.size(2), dtype=value.dtype, device=value.device)
            rows = identity.expand(*value.shape[:2], -1, -1)  # (batch, heads, keys, keys)
            training = {part: part.training for part in attention.modules()}
            attention.eval()  # no dropout, so no random number is drawn either
            try:
                with torch.no_grad():
                    recorded[name] = attend(query, key, rows, *masks)
            finally:
                for part, mode in training.items():
                    part.training = mode
            return attend(query, key, value, *masks)

        return watched

    before = {part: vars(part).get("attend") for part in names}  # somebody may be watching already
    try:
        for part, name in names.items():
            part.attend = watch(name, part)  # type: ignore[method-assign]
        yield recorded
    finally:
        for part, attend in before.items():
            del part.attend  # the class's own is there again
            if attend:
                part.attend = attend  # type: ignore[method-assign]


def score_heads(weights: Tensor, wanted: Tensor) -> Tensor:
    """Share of each head's attention that falls where a rule wants it.

    A query for which nothing is wanted does not count: the first token has no previous one.

    Args:
        weights: (batch, heads, queries, keys), as record_attention gives them.
        wanted: boolean, (batch, queries, keys): where a head of this kind would look.

    Returns:
        (heads,), from 0 to 1.

    Raises:
        ValueError: if wanted has another shape or type, or wants nothing at all.
    """
    if wanted.dtype != torch.bool or wanted.shape != weights[:, 0].shape or not wanted.any():
        raise ValueError(
            f"wanted must be boolean, {tuple(weights[:, 0].shape)}, and somewhere True, "
            f"got {wanted.dtype} of shape {tuple(wanted.shape)}"
        )
    asking = wanted.any(dim=-1)  # (batch, queries)
    share = (weights * wanted[:, None]).sum(dim=-1)  # (batch, heads, queries)
    return (share * asking[:, None]).sum(dim=(0, 2)) / asking.sum()


def _through(gate: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """What reaches W_O: (batch, queries, heads * d_k), some of it closed."""
    return (inputs[0] * gate.to(inputs[0]),)


@contextmanager
def cut_heads(model: nn.Module, heads: Mapping[str, Iterable[int]]) -> Iterator[None]:
    """Let some heads write nothing while the context lasts.

    with cut_heads(model, {"encoder.layers.0.self_attention": [2]}):
        model(source, target)

    Args:
        model: any that is built of MultiHeadAttention.
        heads: name of an attention, as in record_attention -> numbers of its heads, from 0
            (ValueError if there is no such head).
    """
    hooks = []
    try:
        for name, numbers in heads.items():
            attention: Any = model.get_submodule(name)
            open_heads = torch.ones(attention.num_heads, 1)
            for number in numbers:
                check_numbers(int, 0, attention.num_heads - 1, head=number)
                open_heads[number] = 0.0
            gate = open_heads.expand(-1, attention.d_k).flatten()  # (heads * d_k,)
            close = partial(_through, gate)
            hooks.append(attention.output_projection.register_forward_pre_hook(close))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def cut_sublayers(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let parts write zeros while the context lasts: attentions, feed-forward networks.

    Of a pre-norm layer whose every sub-layer is cut, only the residual connection is left.

    Args:
        model: any whose parts give one tensor each.
        names: of the parts, such as "decoder.layers.1.feed_forward".
    """
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def record_stream(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep what flows between a model's sub-layers while the context lasts.

    Yields:
        A dictionary, filled as the model runs: name of each ResidualConnection -> what left it
        last, (batch, length, d_model).
    """
    recorded: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            recorded[name] = output

        return keep

    hooks = [
        part.register_forward_hook(watch(name))
        for name, part in model.named_modules()
        if isinstance(part, ResidualConnection)
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def logit_lens(model: Transformer, source: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What the decoder would say if it stopped early (nostalgebraist, 2020).

    Args:
        model: in eval mode, or dropout blurs the lens.
        source: ids, (batch, source).
        target: ids, (batch, target), <bos> first.

    Returns:
        "embedding", then the name of each of the decoder's ResidualConnections -> logits, (batch,
        target, vocab_size), made by the stack's last norm, if it has one, and the model's own map.
    """
    with record_stream(model.decoder) as stream:
        model(source, target)
    states = {"embedding": model.embed(target), **stream}
    norm = model.decoder.norm or nn.Identity()
    return {name: model.project(norm(x)) for name, x in states.items()}


def deletion_effect(model: Transformer, batch: Batch) -> Tensor:
    """How much less likely each written token gets when a source token is left out.

    A batch of one sentence (ValueError) -> (target, source), in nats; below 0: likelier without.
    """
    check_same("the batch", {"sentences": 1}, {"sentences": len(batch.source)})
    length = batch.source.size(1)
    others = [[i for i in range(length) if i != gone] for gone in range(length)]
    rows = {"whole": batch.source, "shorter": batch.source[0, torch.tensor(others)]}
    told = {}
    for name, source in rows.items():  # (rows, source)
        target, written = (x.expand(len(source), -1) for x in (batch.target_in, batch.target_out))
        chosen = model(source, target).log_softmax(dim=-1).gather(-1, written[..., None])
        told[name] = chosen[..., 0]  # (rows, target)
    lost: Tensor = (told["whole"] - told["shorter"]).T  # (target, source)
    return lost


def gradient_times_input(model: Transformer, batch: Batch) -> Tensor:
    """Gradient of each written token's log probability, times each source token's embedding.

    To first order, what taking that embedding away would cost; in eval mode, of one sentence
    (ValueError): (target, source).
    """
    check_same("the batch", {"sentences": 1}, {"sentences": len(batch.source)})
    count = batch.target_in.size(1)
    source, target = (x.expand(count, -1) for x in (batch.source, batch.target_in))
    x = model.embed(source).detach().requires_grad_()  # (target, source, d_model): a row a token
    memory = model.encoder(x, padding_mask(source, model.config.pad_id))
    logits = model.project(model.decode(target, memory, source))  # (target, target, vocab_size)
    every = torch.arange(count)
    told = logits.log_softmax(dim=-1)[every, every, batch.target_out[0]].sum()
    (gradient,) = torch.autograd.grad(told, x)
    product: Tensor = gradient * model.embedding(source)  # (target, source, d_model)
    return product.sum(dim=-1).detach()


def prune_heads(attention: MultiHeadAttention, heads: Iterable[int]) -> MultiHeadAttention:
    """Copy an attention without some of its heads: what cut_heads computes, with less to compute.

    Each head takes d_k rows of W_Q, W_K and W_V and d_k columns of W_O with it; d_model stays.
    ValueError if no head is left, or there is no such head.
    """
    gone = set(heads)
    check_numbers(int, 1, heads_left=attention.num_heads - len(gone))
    for number in gone:
        check_numbers(int, 0, attention.num_heads - 1, head=number)
    kept = [number for number in range(attention.num_heads) if number not in gone]
    pruned = deepcopy(attention)
    pruned.num_heads = len(kept)
    for part in ("query_projection", "key_projection", "value_projection", "output_projection"):
        linear = getattr(pruned, part)
        side = 1 if part == "output_projection" else 0  # columns of W_O, rows of the others
        blocks = linear.weight.detach().unflatten(side, (-1, attention.d_k))
        chosen = blocks.index_select(side, torch.tensor(kept, device=blocks.device))
        linear.weight = nn.Parameter(chosen.flatten(side, side + 1))
        linear.out_features, linear.in_features = linear.weight.shape
        if side == 0 and linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach().view(-1, attention.d_k)[kept].flatten())
    return pruned


def another_token(tokens: Tensor, pad_id: int | None = None) -> Tensor:
    """In place of each token the next larger one that occurs in the batch: same shape, none alike.

    Padding stays padding. ValueError if fewer than two different tokens occur.
    """
    kinds = tokens.unique()
    kinds = kinds if pad_id is None else kinds[kinds != pad_id]
    if len(kinds) < 2:
        raise ValueError(
            f"two different tokens are needed to tell them apart, got {kinds.tolist()}"
        )
    place = torch.searchsorted(kinds, tokens).clamp(max=len(kinds) - 1)
    changed: Tensor = kinds.roll(-1)[place]
    return changed if pad_id is None else changed.where(tokens != pad_id, tokens)


@torch.no_grad()
def influence(logits: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """How far each position's logits move when one token is replaced by another.

    The function takes ids like tokens, (batch, length), and gives logits (batch, positions,
    vocab_size). The result, (length, positions), has a row for each replaced token: the largest
    move in the batch, in standard deviations of all logits; 0 where nothing arrives.
    """
    before, other = logits(tokens), another_token(tokens)
    rows = []
    for place in range(tokens.size(1)):
        changed = tokens.clone()
        changed[:, place] = other[:, place]
        rows.append((logits(changed) - before).abs().amax(dim=(0, 2)) / before.std())
    return torch.stack(rows)  # (length, positions)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model.

    name: of the fault; seen: what was measured; cause: where it most likely comes from; chapter:
    where to read about it.
    """

    name: str
    seen: str
    cause: str
    chapter: int

    def __str__(self) -> str:
        return (
            f"{self.name}\n   seen:  {self.seen}\n   cause: {self.cause} (chapter {self.chapter})"
        )


class Diagnosis(list[Finding]):
    """What diagnose has found, the likeliest root first; empty if nothing is wrong.

    checked: the names of the checks that could be made.
    """

    def __init__(self, findings: Iterable[Finding], checked: Iterable[str]) -> None:
        super().__init__(findings)
        self.checked = list(checked)

    def __repr__(self) -> str:
        lines = [f"{place}. {finding}" for place, finding in enumerate(self, start=1)]
        verdict = f"{len(self)} found, mend the first and ask again" if self else "nothing found"
        return "\n".join([*lines, f"{verdict}; checked: {', '.join(self.checked)}"])


@dataclass
class _Patient:
    """What diagnose was given, and how far the logits move when something about it changes."""

    model: nn.Module
    batch: Any
    function: Callable[..., Tensor]
    by_cache: Callable[..., Tensor] | None
    loss: Any
    attention: Callable[..., Tensor] | None
    d_k: int
    causal: bool
    absolute: bool
    eos_id: int | None

    def __post_init__(self) -> None:
        self.source: Tensor | None = getattr(self.batch, "source", None)  # (batch, source)
        self.target: Tensor = self.batch.target_in  # (batch, target)
        self.wanted: Any = getattr(self.batch, "target_out", None)  # (batch, target)
        self.pad_id: int = self.batch.pad_id
        self.real = self.target != self.pad_id  # (batch, target)

    def logits(self, source: Tensor | None = None, target: Tensor | None = None) -> Tensor:
        """(batch, target, vocab_size), of the batch or with one of the two changed."""
        source = self.source if source is None else source
        given = [source, self.target if target is None else target]
        answer: Tensor = self.function(*(tokens for tokens in given if tokens is not None))
        return answer

    def moved(self, one: Tensor, other: Tensor) -> float:
        """The largest difference of logits at a real position of the batch."""
        length = self.real.size(1)
        return _gap(one[:, :length][self.real], other[:, :length][self.real])

    def noise(self, logits: Tensor) -> float:
        """What rounding alone may move: a kernel sums another length in another order."""
        return min(100 * torch.finfo(logits.dtype).eps, 0.1)

    def full_rows(self, tokens: Tensor) -> Tensor:
        """The indices of at most 8 of the longest rows."""
        length = (tokens != self.pad_id).sum(dim=1)
        return (length == length.max()).nonzero()[:8, 0]


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors of logits, in standard deviations of the second."""
    return ((one - other).abs().max() / other.std()).item()


def _look_around(p: _Patient) -> Iterator[Finding]:
    rows = p.full_rows(p.target)
    source = None if p.source is None else p.source[rows]
    target = p.target[rows][:, : int(p.real.sum(dim=1).max())]
    reach = influence(lambda tokens: p.logits(source, tokens), target)  # (replaced, position)
    later, earlier = torch.tril(reach, -1), torch.triu(reach, 1)  # where a later one arrives, ...
    pairs = max(reach.size(0) * (reach.size(0) - 1) // 2, 1)
    leaks, arrives = int((later > 1e-5).sum()), int((earlier > 0).sum())
    seen = f"of {pairs} pairs, a later token moves an earlier position in {leaks}, "
    seen += f"an earlier token a later position in {arrives}"
    if p.causal and leaks and not arrives:
        cause = "causal mask True where forbidden: this book and F.scaled_dot... allow where True"
        yield Finding("mask polarity swapped", seen, cause, 5)
    elif p.causal and leaks:
        yield Finding("sees the future", seen, "the causal mask is missing, or not applied", 5)
    elif arrives < 0.75 * pairs or (not p.causal and leaks < 0.75 * pairs):
        cause = "a mask forbids too much, or view without transpose when splitting heads"
        yield Finding("does not look around", seen, cause, 6)


def _look_padding(p: _Patient) -> Iterator[Finding]:
    usual = p.logits()
    more = p.logits(None, F.pad(p.target, (0, 3), value=p.pad_id))
    gap, heard, side = p.moved(more, usual), 1.0, "target"
    if p.source is not None:
        longer = F.pad(p.source, (0, 3), value=p.pad_id)
        more = p.logits(longer)
        gap_source = p.moved(more, usual)
        heard = p.moved(p.logits(another_token(longer, p.pad_id)), more)
        gap, side = (gap_source, "source") if gap_source > gap else (gap, side)
    seen = f"three more padding tokens behind the {side} move the logits by {gap:.4f} standard deviations"
    if gap > p.noise(usual) and not heard:
        seen += ", another source by 0"
        yield Finding("mask polarity swapped", seen, "padding mask True where forbidden", 5)
    elif gap > p.noise(usual):
        yield Finding(
            "padding is heard", seen, "the padding mask is missing, or on the wrong axis", 5
        )
    elif not heard:
        seen = "the logits are the same whatever the source"
        yield Finding(
            "deaf to the source", seen, "no cross-attention, or a mask that hides all", 11
        )


def _look_attention(
    name: str, attend: Callable[..., Tensor], heads: int, d_k: int, like: Tensor, *masks: Any
) -> Iterator[Finding]:
    query = torch.randn(2, heads, 3, d_k, generator=torch.Generator().manual_seed(0)).to(like)
    key = torch.cat([query, -query], dim=2)  # (batch, heads, keys, d_k)
    ones = attend(query, key, torch.ones_like(key), *masks)  # an average of ones is one
    if (ones - 1).abs().max() > 0.02:
        seen = f"{name}: averages of ones run from {ones.min():.2f} to {ones.max():.2f}"
        yield Finding(
            "softmax over the wrong axis", seen, "weights should sum to 1 over the keys", 5
        )
        return
    one = torch.full_like(
        query[:, :, :1], d_k**-0.25
    )  # (batch, heads, 1, d_k); one . one = sqrt(d_k)
    first = torch.cat([torch.ones_like(one), torch.zeros_like(one)], dim=2)  # values of two keys
    two_keys = torch.cat([one, torch.zeros_like(one)], dim=2)
    answers = (attend(q, two_keys, first, *masks) for q in (one, one / 2))
    at_one, at_half = (answer.float().logit().mean() for answer in answers)
    factor = 2 * (at_one - at_half).item() / d_k**0.5  # what scores are multiplied by
    if abs(factor * d_k**0.5 - 1) > 0.05:
        seen = f"{name}: scores are multiplied by {factor:.3f}, 1/sqrt({d_k}) is {d_k**-0.5:.3f}"
        yield Finding("no scaling", seen, "scores not divided by sqrt(d_k), d_k of one head", 2)


def _look_parts(p: _Patient) -> Iterator[Finding]:
    if p.attention is not None:
        yield from _look_attention("attention", p.attention, 2, p.d_k, next(p.model.parameters()))
    for name, part in p.model.named_modules():
        if not isinstance(part, MultiHeadAttention):
            continue
        like, d_k = part.query_projection.weight, part.d_k
        place = torch.arange(6.0)[None, :, None].expand(1, 6, part.num_heads * d_k).to(like)
        split = part.split_heads(place)  # (1, heads, length, d_k), the number of the position in it
        if not (split == place[:, None, :, :1]).all():
            seen = f"{name}: row 1 of head 0 holds position {split[0, 0, 1, 0]:.0f}"
            yield Finding(
                "heads split by view", seen, "view(b, heads, n, d_k) needs a transpose", 6
            )
            return
        found = list(_look_attention(name, part.attend, part.num_heads, d_k, like, None, False))
        yield from found
        if found:
            return


def _look_repeat(p: _Patient) -> Iterator[Finding]:
    gap = p.moved(p.logits(), p.logits())
    with evaluating(p.model):
        still = p.moved(p.logits(), p.logits())
    seen = f"two equal calls differ by {max(gap, still):.2f} standard deviations of the logits"
    if still > 0:
        cause = (
            "dropout that knows no mode: F.dropout and F.scaled_dot_product_attention need training"
        )
        yield Finding("dropout in eval mode", seen, cause, 14)
    elif gap > 0:
        yield Finding("eval() forgotten", seen, "dropout is on: no_grad does not end it", 14)


def _look_finite(p: _Patient) -> Iterator[Finding]:
    empty = (p.target if p.source is None else p.source).clone()
    empty[0] = p.pad_id
    padding_only = [None, empty] if p.source is None else [empty, None]
    as_it_is = p.logits().isfinite().all()
    if as_it_is and p.logits(*padding_only).isfinite().all():
        return
    broken: list[str] = []

    def watch(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.is_nested and not output.isfinite().all():
            broken.append(f"{name or 'the model'} ({type(part).__name__}, {output.dtype})")

    hooks = [part.register_forward_hook(partial(watch, n)) for n, part in p.model.named_modules()]
    p.logits(*(padding_only if as_it_is else ()))
    for hook in hooks:
        hook.remove()
    sick = [name for name, weight in p.model.named_parameters() if not weight.isfinite().all()]
    seen = f"first not finite in {broken[0] if broken else 'the logits'}"
    if sick:
        cause = f"an earlier step broke {sick[0]}: weights that are NaN stay NaN"
        yield Finding("NaN in the weights", seen, cause, 21)
    elif as_it_is:
        cause = "softmax over nothing but -inf: a row with nothing to attend to should give zeros"
        yield Finding("NaN from a fully masked row", seen + ", of a row of padding", cause, 5)
    elif "float16" in seen and "bfloat16" not in seen:
        yield Finding("NaN from float16", seen, "float16 ends at 65,504: use bfloat16", 25)
    else:
        yield Finding("NaN", seen, "a row that is fully masked, or a number far too large", 21)


def _look_positions(p: _Patient) -> Iterator[Finding]:
    rows = p.full_rows(p.target if p.source is None else p.source)
    source, target = None if p.source is None else p.source[rows], p.target[rows]
    side, tokens = ("target", target) if source is None else ("source", source)
    tokens = tokens[:, : int((tokens != p.pad_id).sum(dim=1).max())]
    turned = tokens.roll(1, dims=1)  # the last word first: another sentence of the same words
    gap = 1.0
    if source is not None and not turned.equal(tokens):
        gap = _gap(p.logits(turned, target), p.logits(tokens, target))
    elif not p.causal and not turned.equal(tokens):
        gap = _gap(p.logits(None, turned), p.logits(None, tokens).roll(1, dims=1))
    if gap > 1e-5 and p.causal and p.absolute:  # one word over and over: only its position differs
        same = p.logits(source, torch.full_like(target, int(target[0, -1])))
        gap, side = _gap(same, same[:, :1]), "target"
    if gap < 1e-5:
        seen = f"the same words of the {side} in another order move the logits by {gap:.6f}"
        yield Finding("positions forgotten", seen, "no positional encoding on this side", 7)


def _look_cache(p: _Patient) -> Iterator[Finding]:
    def cached(source: Tensor | None, target: Tensor) -> Tensor:
        if p.by_cache is not None:
            written: Tensor = p.by_cache(*(x for x in (source, target) if x is not None))
            return written
        decoder = IncrementalDecoder(p.model, source)  # type: ignore[arg-type]
        return torch.stack([decoder.step(tokens) for tokens in target.unbind(dim=1)], dim=1)

    full, written = p.logits(), cached(p.source, p.target)  # (batch, target, vocab_size)
    gap = p.moved(written, full)
    if gap <= p.noise(full):
        return
    far = ((written - full).abs().amax(dim=-1) * p.real).amax(dim=0) / full.std()  # (target,)
    step = int((far > p.noise(full)).nonzero()[0])
    seen = (
        f"from step {step} on, cached and full logits differ by up to {gap:.2f} standard deviations"
    )
    same = cached(p.source, torch.full_like(p.target, int(p.target[p.real][-1])))
    if _gap(same, same[:, :1]) < 1e-5:  # one word over and over: each step stands at position 0
        cause = "the new token needs the number of tokens in the cache as its position"
        yield Finding("positions wrong in cached decoding", seen, cause, 16)
    else:
        yield Finding(
            "cached decoding differs", seen, "what the cache keeps, or which mask it needs", 16
        )


def _look_batch(p: _Patient) -> Iterator[Finding]:
    follows = p.real[:, 1:] & (p.wanted[:, 1:] != p.pad_id)  # (batch, target - 1)
    right = (p.target[:, 1:] == p.wanted[:, :-1])[follows].float().mean().item()
    same = (p.target == p.wanted)[p.real].float().mean().item()
    if right < 1:
        seen = (
            f"target_in continues target_out at {right:.0%} of the places, equals it at {same:.0%}"
        )
        yield Finding("target not shifted", seen, "what is said at t should be read at t + 1", 14)
    last = p.wanted.gather(1, (p.wanted != p.pad_id).sum(dim=1, keepdim=True) - 1)[:, 0]  # (batch,)
    # Whatever ends a sentence, it should be the same everywhere
    several = p.source is not None and len(last.unique()) > 1
    if several if p.eos_id is None else (last != p.eos_id).any():
        seen = f"the {len(last)} rows end with {len(last.unique())} different tokens"
        yield Finding(
            "no end token", seen, "target_out should end with <eos>: none learns to stop", 14
        )


def _look_loss(p: _Patient) -> Iterator[Finding]:
    found = p.loss(p.batch)
    value = (found[0] / found[1]).item() if isinstance(found, tuple) else float(found)
    logits, real = (
        p.logits().transpose(1, 2).float(),
        p.wanted != p.pad_id,
    )  # (batch, vocab, target)

    def surprise(logits: Tensor, wanted: Tensor) -> Tensor:  # (batch, target)
        return F.cross_entropy(logits, wanted, reduction="none")

    each = surprise(logits, p.wanted)  # (batch, target)
    right, count = each[real].mean().item(), real.sum(dim=1)
    guesses = {
        "padding counted in the loss": each.mean(),
        "padding counted in the sum of the loss": each.sum() / real.sum(),
        "loss averaged by rows": ((each * real).sum(dim=1) / count).mean(),
        "target not shifted in the loss": surprise(logits, p.target)[p.real].mean(),
        "target shifted twice": surprise(logits[:, :, :-1], p.wanted[:, 1:])[real[:, 1:]].mean(),
    }
    if abs(value - right) > 1e-3 * right:
        name, guess = min(guesses.items(), key=lambda pair: abs(pair[1].item() - value))
        exact = abs(guess.item() - value) <= 1e-3 * right
        seen = f"the loss is {value:.3f}, of the real tokens it is {right:.3f}"
        cause = "the loss is that number to three digits" if exact else "smoothing, or another mean"
        yield Finding(name if exact else "another loss", seen, cause, 14)


def _look_trained(p: _Patient) -> Iterator[Finding]:
    wanted, real = p.wanted, p.wanted != p.pad_id

    def loss(source: Tensor | None) -> float:
        return F.cross_entropy(p.logits(source)[real].float(), wanted[real]).item()

    usual, chance = loss(None), math.log(p.logits().size(-1))
    if usual > chance:
        seen = f"{usual:.2f} nats a token, and knowing nothing costs {chance:.2f}"
        cause = "ids that mean other words than in training, or other weights"
        yield Finding("vocabularies swapped", seen, cause, 13)
    elif p.source is not None and (other := loss(p.source.roll(1, dims=0))) < 1.05 * usual:
        seen = f"{usual:.2f} nats a token with its own source, {other:.2f} with another row's"
        cause = "it has become a language model: rate, warm-up, too little data, cross-attention"
        yield Finding("the source does not help", seen, cause, 14)


def diagnose(
    model: nn.Module,
    batch: Any,
    *,
    logits: Callable[..., Tensor] | None = None,
    cached: Callable[..., Tensor] | None = None,
    loss: Callable[[Any], Any] | None = None,
    attention: Callable[..., Tensor] | None = None,
    d_k: int = 64,
    causal: bool = True,
    absolute: bool = True,
    eos_id: int | None = None,
    trained: bool = False,
) -> Diagnosis:
    """Find what is wrong with a model, by its behavior alone: an empty list if nothing is.

    Args:
        model: as it is used for prediction, in eval mode: a Transformer, or another with `logits`.
        batch: target_in (batch, target), pad_id, and where there are such things source
            (batch, source) and target_out (batch, target); some rows with padding show more.
        logits: (batch, target, vocab_size), of source and target_in, or of target_in alone.
        cached: the same logits, written token by token with a cache.
        loss: of the batch, without smoothing: the mean, or the sum and the number of tokens.
        attention: of query, key and value, each (batch, heads, length, d_k), without a mask.
        causal: whether a position must not see later ones; False for an encoder alone.
        absolute: whether positions are added to the words; False for rotary or relative ones.
        eos_id: what should end every row of target_out.
        trained: whether the loss should be better than chance already.
    """
    p = _Patient(
        *(model, batch, model if logits is None else logits, cached, loss),
        *(attention, d_k, causal, absolute, eos_id),
    )
    known = p.wanted is not None
    looks: list[tuple[str, Callable[[_Patient], Iterable[Finding]], bool]] = [
        ("finite", _look_finite, True),
        ("attention", _look_parts, True),
        ("who hears whom", _look_around, True),
        ("padding and source", _look_padding, True),
        ("positions", _look_positions, True),
        ("cache", _look_cache, cached is not None or (logits is None and hasattr(model, "decode"))),
        ("batch", _look_batch, known and causal),
        ("loss", _look_loss, known and loss is not None),
        ("training", _look_trained, known and trained),
    ]
    with torch.no_grad():
        findings, checked = list(_look_repeat(p)), ["two equal calls"]
        with evaluating(model):
            for name, look, possible in looks:
                if any(finding.name.startswith(("NaN", "dropout")) for finding in findings):
                    break  # whatever comes now would compare noise
                if possible:
                    findings.extend(look(p))
                    checked.append(name)
    return Diagnosis(findings, checked)


def _overfit(run: Any, batch: Any, rates: Iterable[float]) -> float:
    """The loss of a batch after a step at each of the rates, on this batch alone."""
    for rate in rates:
        run.model.zero_grad()
        run.backward([batch])
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.step()
    return float(run.backward([batch]))


def _look_rate(start: Callable[[], Any], batch: Any, steps: int) -> Iterator[Finding]:
    words = batch.target_out[batch.target_out != batch.pad_id]
    share = words.unique(return_counts=True)[1] / len(words)
    chance = -float((share * share.log()).sum())  # the loss of who knows the frequencies only
    rate, up = start().rate, [step / steps for step in range(1, steps + 1)]
    peak = max(rate(step) for step in range(1, 10_001))

    def reached(rates: Iterable[float]) -> float:  # below 1: more than the frequencies is learned
        return _overfit(start(), batch, rates) / chance

    gently = reached(peak * part for part in up)
    seen = f"{steps} steps on one batch, up to a rate of {peak:.2g}, end at {gently:.2f} times "
    seen += "the loss of mere word frequencies"
    if gently > 0.97:
        tenth = reached(0.1 * peak * part for part in up)
        seen += f"; at a tenth of the rate at {tenth:.2f}"
        if tenth < 0.97:
            yield Finding("learning rate too high", seen, "the peak of the schedule", 14)
        else:
            yield Finding("does not learn", seen, "the model, the loss, or the optimizer", 21)
    elif rate(1) > peak / 2 and (own := reached(map(rate, range(1, steps + 1)))) > 0.97:
        seen += f"; with the schedule's own first rates at {own:.2f}"
        yield Finding("no warm-up", seen, "post-norm needs small first steps", 14)


def _look_accumulation(run: Any, whole: Any, parts: Sequence[Any]) -> Iterator[Finding]:
    run.model.eval()  # dropout would differ from call to call

    def gradient(*batches: Any) -> Tensor:
        run.model.zero_grad()
        run.backward(list(batches))
        return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])

    right, found = gradient(whole), gradient(*parts)
    by_part = torch.stack([gradient(part) for part in parts])  # (parts, parameters)
    guesses = {
        "accumulation normalized by batches": by_part.mean(dim=0),
        "accumulated gradient never divided": by_part.sum(dim=0),
    }
    off = (found - right).norm() / right.norm()
    if off > 1e-3:
        name = min(guesses, key=lambda guess: float((guesses[guess] - found).norm()))
        seen = f"the gradient of {len(parts)} parts is {off:.1%} off that of the whole batch"
        yield Finding(name, seen, "divide once, by all tokens of all parts", 14)


def _look_resume(start: Callable[[], Any], batch: Any) -> Iterator[Finding]:
    run, resumed = start(), start()
    rate = max(run.rate(step) for step in range(1, 10_001)) / 10
    _overfit(run, batch, [rate] * 3)
    resumed.load(run.save())
    before = nn.utils.parameters_to_vector(run.model.parameters()).clone()
    after = []
    for each in (run, resumed):
        _overfit(each, batch, [rate])
        after.append(nn.utils.parameters_to_vector(each.model.parameters()))
    off = ((after[1] - after[0]).norm() / (after[0] - before).norm()).item()
    if off > 1e-2:
        seen = f"the step after loading is {off:.0%} off the one that would have been"
        yield Finding("checkpoint without optimizer state", seen, "Adam's averages begin anew", 14)


def diagnose_training(
    start: Callable[[], Any], batch: Any, parts: Sequence[Any] = (), steps: int = 24
) -> Diagnosis:
    """Find what is wrong with a training run, by its first steps on one batch.

    Args:
        start: makes a run anew, without dropout: model, optimizer, rate(step) from step 1 on,
            backward(batches), which leaves the gradient of some batches as if they were one and
            returns their loss; if there are checkpoints, save() and load(what save gave).
        batch: has target_out and pad_id, and is small enough to be learned by heart.
        parts: batches that together are this one, with unequal numbers of tokens.
        steps: how many steps a trial takes.
    """
    findings, checked = list(_look_rate(start, batch, steps)), ["rate"]
    if parts:
        findings.extend(_look_accumulation(start(), batch, parts))
        checked.append("accumulation")
    if hasattr(start(), "save"):
        findings.extend(_look_resume(start, batch))
        checked.append("checkpoint")
    return Diagnosis(findings, checked)
