"""Looking inside a model: its attention.

Written from chapters 6, 19 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention, padding_mask
from transformer_lib.door import check_numbers, check_same
from transformer_lib.layers import ResidualConnection
from transformer_lib.pairs import Batch
from transformer_lib.transformer import Transformer

__all__ = [
    "cut_heads",
    "cut_sublayers",
    "deletion_effect",
    "gradient_times_input",
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
