"""Things to be looked at and played with: in the book, in JupyterLab, in Colab, from a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from transformer_lib.embeddings import sinusoidal_positions
from transformer_lib.inspection import record_attention
from transformer_lib.similarity import masked_softmax, scaled_dot_similarity
from transformer_lib.tokenizer import BOS_ID, EOS_ID, check_texts, encode_texts
from transformer_lib.transformer import evaluating
from transformer_lib.translator import Translator

Weights = Tensor | Sequence[Tensor]
Tokens = Sequence[str]


@dataclass(frozen=True)
class AttentionGroup:
    """Attention of one kind: layers[layer][head] holds thousandths, each query's keys in turn."""

    name: str
    queries: list[str]
    keys: list[str]
    layers: list[list[list[int]]]

    @classmethod
    def read(cls, name: str, weights: Weights, queries: Tokens, keys: Tokens) -> "AttentionGroup":
        """Round the weights; ValueError if they do not fit the tokens, or are no weights."""
        check_texts(queries)
        check_texts(keys)
        of = f" of {name!r}" if name else ""
        if isinstance(weights, Tensor) and weights.dim() < 4:
            weights = [weights]
        layers = [layer.detach().float().cpu() for layer in weights]
        for layer in layers:  # (heads, queries, keys)
            if layer.dim() != 3 or layer.shape[1:] != (len(queries), len(keys)) or 0 in layer.shape:
                raise ValueError(
                    f"weights{of} of shape {tuple(layer.shape)} a layer do not fit {len(queries)} "
                    f"queries and {len(keys)} keys: they should be (heads, queries, keys)"
                )
            if not (layer.min() >= 0 and layer.max() < 1.001):  # NaN is refused, too
                raise ValueError(
                    f"weights{of} should lie between 0 and 1, "
                    f"they go from {layer.min():.3g} to {layer.max():.3g}"
                )
        if not layers:
            raise ValueError(f"weights{of} have no layer")
        rounded = [(1000 * layer).round().int().flatten(1).tolist() for layer in layers]
        return cls(name, _visible(queries), _visible(keys), rounded)


@dataclass(frozen=True)
class View:
    """Something interactive, which a notebook shows if it is a cell's last expression.

    Args:
        kind: whose script it is: static/KIND-view.js has `build(data)`, which makes the element that
            is shown, of the parts in static/view.js; static/KIND-view.css is its style, if there is one.
        data: what `build` is given, for JSON.
        fallback: HTML that stays where scripts do not run.
        contents: what it shows, in words, for repr.
        caption: what stands below.
    """

    kind: str
    data: dict[str, Any]
    fallback: str
    contents: str
    caption: str = ""

    def _repr_html_(self) -> str:
        script = "\n".join(
            [_static("view.js"), _static(f"{self.kind}-view.js"), f'showAll("{self.kind}", build);']
        )
        data = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        data = data.replace("<", "\\u003c")  # a token "</script>" must not end the script
        return (
            f'<figure class="tpp-view mathjax_ignore tex2jax_ignore" data-kind="{self.kind}" '
            f'style="margin: 1em 0">\n<div class="tpp-static">\n{self.fallback}\n</div>\n'
            + (f"<figcaption>{escape(self.caption)}</figcaption>\n" if self.caption else "")
            + f"<style>\n{_static('view.css')}{_static(f'{self.kind}-view.css')}</style>\n"
            f'<script type="application/json">{data}</script>\n'
            f'<script>\n(() => {{\n"use strict";\n{script}\n}})();\n</script>\n</figure>'
        )

    def __repr__(self) -> str:
        return f"View({self.kind!r}: {self.contents})"


def _static(name: str) -> str:
    """A file of static/, "" if there is none."""
    path = resources.files("transformer_lib.book") / "static" / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def shaded_table(
    title: str, columns: Tokens, rows: Tokens, weights: Sequence[Sequence[int | None]]
) -> str:
    """The HTML of a table of weights, given in thousandths, shown in percent and shaded; None: "×"."""
    heads = "".join(f'<th scope="col" style="{_UPRIGHT}">{escape(name)}</th>' for name in columns)
    lines = ""
    for name, of_row in zip(rows, weights, strict=True):
        cells = "".join(_shaded_cell(weight) for weight in of_row)
        lines += f'<tr><th scope="row" style="padding:2px; text-align:right">{escape(name)}</th>{cells}</tr>\n'
    return _table(title, "11px; text-align: center", f"<td></td>{heads}", lines)


def _table(title: str, style: str, heads: str, lines: str) -> str:
    """A table below its title, in a region that scrolls by itself; the style begins with the size of its letters."""
    return (
        f'<div tabindex="0" role="region" aria-label="{escape(title)}" style="overflow-x: auto">\n'
        f"{escape(title)}\n"
        f'<table style="border-collapse: collapse; font-size: {style}">\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>"
    )


def plain_table(title: str, columns: Tokens, rows: Sequence[Tokens]) -> str:
    """The HTML of a table of words and numbers; each row begins with its name."""
    heads = "".join(f'<th scope="col" style="{_CELL}">{escape(name)}</th>' for name in columns)
    lines = ""
    for name, *cells in rows:
        lines += f'<tr><th scope="row" style="{_CELL}">{escape(name)}</th>'
        lines += "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in cells) + "</tr>\n"
    return _table(title, "12px; margin: 0 0 1em", heads, lines)


_CELL = "padding:2px 8px; text-align:left; vertical-align:top; font-weight:400"
_UPRIGHT = "padding:2px; writing-mode:vertical-rl; white-space:nowrap; text-align:right"


def _shaded_cell(weight: int | None) -> str:
    """A cell in percent, shaded as view.js does it."""
    if weight is None:
        return '<td style="padding:2px">×</td>'
    color = f";background-color:rgba(213, 94, 0, {0.55 * max(0, weight / 1000) ** 0.6:.2f})"
    return f'<td style="padding:2px{color if weight >= 5 else ""}">{round(weight / 10)}</td>'


def _visible(tokens: Tokens) -> list[str]:
    """Tokens as they are shown: white space that would not be seen has signs."""
    shown = []
    for token in tokens:
        token = token.replace("\n", "⏎").replace("\t", "⇥")
        shown.append(token if token.strip() else token.replace(" ", "␣") or "∅")
    return shown


def temperature_view(
    scores: Tensor, keys: Tokens, *, colors: Tensor | None = None, caption: str = ""
) -> View:
    """Move the temperature of a softmax: the weights, and how much of a gradient they let through.

    Args:
        scores: of one query and each key, (keys,).
        keys: their names.
        colors: red, green and blue of each key, (keys, 3), from 0 to 1: then the mixture is shown, too.
        caption: what stands below.

    Raises:
        ValueError: if scores, names and colors do not fit, or a score is not finite.
    """
    temperatures = [10 ** (1 - step / 20) for step in range(61)]  # from 10 to 0.01
    if colors is not None and colors.shape != (len(keys), 3):
        raise ValueError(
            f"{len(keys)} keys need colors ({len(keys)}, 3), got {tuple(colors.shape)}"
        )
    return _softmax_view(
        "temperature",
        [f"T = {temperature:.2g}" for temperature in temperatures],
        {"": torch.stack([scores.detach().double() / t for t in temperatures])},
        keys,
        start=20,
        colors=None if colors is None else colors.tolist(),
        caption=caption,
    )


def scale_view(query: Tensor, key: Tensor, *, caption: str = "") -> View:
    """Make a query and its keys wider: the softmax of their dot products with and without the scale.

    Args:
        query: (d_k,).
        key: (keys, d_k). Of both, the first 1, 2, 4, 8, ... entries are used.
        caption: what stands below.

    Raises:
        ValueError: if the widths are not the same, or an entry is not finite.
    """
    if query.dim() != 1 or key.dim() != 2 or query.shape != key.shape[1:] or not len(query):
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} do not fit: they should be "
            "(d_k,) and (keys, d_k)"
        )
    widths = [2**power for power in range(len(query).bit_length())]
    dot = (query.detach().double() * key.detach().double()).cumsum(dim=-1).T  # (d_k, keys)
    dot = dot[[width - 1 for width in widths]]  # (widths, keys)
    scale = torch.tensor(widths, dtype=torch.float64).sqrt()[:, None]  # (widths, 1)
    return _softmax_view(
        "width",
        [f"d_k = {width}" for width in widths],
        {"q·k": dot, "q·k / √d_k": dot / scale},
        [f"key {j}" for j in range(len(key))],
        start=min(2, len(widths) - 1),
        caption=caption,
    )


def _softmax_view(
    slider: str,
    steps: list[str],
    scores: dict[str, Tensor],
    keys: Tokens,
    *,
    start: int,
    caption: str,
    colors: list[list[float]] | None = None,
) -> View:
    """Bars of the softmax of scores, (steps, keys) under each title; a slider goes over the steps."""
    check_texts(keys)
    for title, of_title in scores.items():
        if of_title.shape != (len(steps), len(keys)) or not len(keys):
            raise ValueError(f"scores {tuple(of_title.shape[1:])} do not fit {len(keys)} keys")
        if not of_title.isfinite().all():
            raise ValueError(f"scores{title and ' ' + title} should be finite, got {of_title[0]}")
    shown = sorted({start, *range(0, len(steps), max(1, (len(steps) - 1) // 3))})
    rows = {
        f"{title and title + ', '}{steps[i]}": of[i] for title, of in scores.items() for i in shown
    }
    return View(
        "softmax",
        {
            "slider": slider,
            "steps": steps,
            "start": start,
            "keys": _visible(keys),
            "colors": colors,
            "charts": [
                {"title": title, "scores": [[round(x, 4) for x in row] for row in of.tolist()]}
                for title, of in scores.items()
            ],
        },
        shaded_table(
            f"the softmax by {slider}, in percent", _visible(keys), list(rows), _thousandths(rows)
        ),
        f"the softmax of {len(keys)} scores, {steps[0]} to {steps[-1]}",
        caption,
    )


def _thousandths(rows: Mapping[str, Tensor]) -> list[list[int]]:
    return [(1000 * scores.softmax(dim=-1)).round().int().tolist() for scores in rows.values()]


PAD = "<pad>"


def mask_view(words: Tokens, query: Tensor, key: Tensor, *, caption: str = "") -> View:
    """Type a sentence, fill it up with padding, and see what masks forbid.

    Args:
        words: what it knows. The last is "<pad>", the others are the sentence that it begins with.
        query: of each word, (words, d_k).
        key: of each word, (words, d_k). Other words get queries and keys at random, always the same.
        caption: what stands below.

    Raises:
        ValueError: if the words do not fit queries and keys, or the last is not "<pad>".
    """
    check_texts(words)
    if query.dim() != 2 or query.shape != key.shape or len(query) != len(words):
        raise ValueError(
            f"{len(words)} words do not fit queries {tuple(query.shape)} and keys "
            f"{tuple(key.shape)}: they should be (words, d_k)"
        )
    if list(words[-1:]) != [PAD] or PAD in words[:-1]:
        raise ValueError(f"the last word, and no other, should be {PAD!r}: {list(words)}")
    if len(words) < 2 or any(word.split() != [word] for word in words):
        raise ValueError(f"words should be some, without white space: {list(words)}")
    query, key = query.detach().double(), key.detach().double()
    pads = 3
    order = [*range(len(words) - 1), *[len(words) - 1] * pads]
    real = torch.tensor([words[i] != PAD for i in order])
    mask = real & torch.ones(len(order), len(order), dtype=torch.bool).tril()
    weights = masked_softmax(scaled_dot_similarity(query[order], key[order]), mask)
    names = [words[i] for i in order]
    return View(
        "mask",
        {
            "words": list(words),
            "query": [[round(x, 4) for x in row] for row in query.tolist()],
            "key": [[round(x, 4) for x in row] for row in key.tolist()],
            "pads": pads,
        },
        shaded_table(
            "padding and causal mask, weights in percent: each row looks at the columns, × is forbidden",
            names,
            names,
            [
                [int(w) if may else None for w, may in zip(*row, strict=True)]
                for row in zip((1000 * weights).round().tolist(), mask.tolist(), strict=True)
            ],
        ),
        f"masks over {' '.join(names)}",
        caption,
    )


def position_view(d_model: int = 32, *, caption: str = "") -> View:
    """Move a position, a pair of entries and an offset: waves, a rotation, and a dot product.

    Raises:
        ValueError: if d_model is not an even number from 2 to 512.
    """
    if not 2 <= d_model <= 512 or d_model % 2:
        raise ValueError(f"d_model should be an even number from 2 to 512, got {d_model}")
    positions, offsets = 60, 40  # the largest of each
    rows = sinusoidal_positions(positions + offsets + 1, d_model, torch.float64)
    shown = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]
    cosines = {
        p: 1000 * (rows[p] @ rows[[p + k for k in shown]].T) * 2 / d_model for p in (0, 20, 60)
    }
    return View(
        "position",
        {"d_model": d_model, "positions": positions, "offsets": offsets},
        shaded_table(
            f"dot product of rows p and p + k, in percent of {d_model // 2}: the same wherever p is",
            [f"k = {k}" for k in shown],
            [f"p = {p}" for p in cosines],
            [row.round().int().tolist() for row in cosines.values()],
        ),
        f"positions 0 to {positions + offsets} in {d_model} dimensions",
        caption,
    )


def attention_view(
    weights: Weights | Mapping[str, Weights],
    queries: Tokens | Mapping[str, Tokens],
    keys: Tokens | Mapping[str, Tokens] | None = None,
    *,
    start: tuple[Any, ...] | None = None,
    caption: str = "",
) -> View:
    """Show attention weights: choose a head, point at a token, see where it looks.

    Args:
        weights: (layers, heads, queries, keys), (heads, queries, keys), or a list of the latter, one
            a layer, where layers differ in their heads. Or a dictionary: name of a group -> such weights.
        queries: the tokens that look. Of several groups: name -> tokens.
        keys: the tokens that are looked at; the queries if None.
        start: layer and head to be shown first, counted from 0 like all of the view's numbers, of
            several groups (group, layer, head). By default the first.
        caption: what stands below.

    Returns:
        The view, in a notebook; without JavaScript a table of the head shown first.

    Raises:
        ValueError: if the weights' shape does not fit the tokens, a weight is not between 0 and 1,
            or there is no such start.
    """
    keys = queries if keys is None else keys
    if not isinstance(weights, Mapping):
        weights, queries, keys = {"": weights}, {"": queries}, {"": keys}  # type: ignore[dict-item]
        start = start and ("", *start)
    if not isinstance(queries, Mapping) or not isinstance(keys, Mapping):
        raise ValueError(f"weights have the groups {list(weights)}, queries and keys have none")
    if not (weights.keys() == queries.keys() == keys.keys()) or not weights:
        raise ValueError(
            f"weights have the groups {list(weights)}, queries {list(queries)}, keys {list(keys)}"
        )
    groups = [
        AttentionGroup.read(name, weights[name], queries[name], keys[name]) for name in weights
    ]
    number, layer, head = _find(groups, start)
    shown = groups[number]
    width, flat = len(shown.keys), shown.layers[layer][head]
    kinds = [
        f"{group.name or 'attention'} of {len(group.queries)} to {len(group.keys)} tokens, "
        f"heads of its layers: {[len(heads) for heads in group.layers]}"
        for group in groups
    ]
    return View(
        "attention",
        {
            "start": {"group": number, "layer": layer, "head": head},
            "groups": [asdict(group) for group in groups],
        },
        shaded_table(
            f"{shown.name + ', ' if shown.name else ''}layer {layer}, head {head}, in percent: "
            "each row looks at the columns",
            shown.keys,
            shown.queries,
            [flat[i : i + width] for i in range(0, len(flat), width)],
        ),
        "; ".join(kinds),
        caption,
    )


def _find(groups: list[AttentionGroup], start: tuple[Any, ...] | None) -> tuple[int, int, int]:
    """Numbers of group, layer and head; ValueError if there is none such."""
    if start is None:
        return 0, 0, 0
    there = {
        (group.name, layer, head): (number, layer, head)
        for number, group in enumerate(groups)
        for layer, heads in enumerate(group.layers)
        for head in range(len(heads))
    }
    if tuple(start) not in there:
        wanted = tuple(part for part in start if part != "")  # a single group has no name
        sizes = {group.name: [len(heads) for heads in group.layers] for group in groups}
        raise ValueError(f"there is no start {wanted}; the heads of each group's layers: {sizes}")
    return there[tuple(start)]


def model_view(
    model: nn.Module,
    source: Tensor,
    target: Tensor,
    source_tokens: Tokens,
    target_tokens: Tokens,
    written: Tokens | None = None,
    *,
    start: tuple[str, int, int] | None = None,
    caption: str = "",
) -> View:
    """Show the attention of an encoder-decoder model while it reads one pair.

    Args:
        model: one with `encoder` and `decoder`, built from MultiHeadAttention.
        source: ids (1, source).
        target: ids that the decoder reads, <bos> first, (1, target).
        source_tokens: a name for each source id.
        target_tokens: a name for each target id.
        written: a name for each position of the target in cross-attention, where the next token is
            chosen; the target_tokens if None.
        start: as in attention_view, such as ("cross", 1, 0).
        caption: what stands below.

    Returns:
        The view, of the groups "encoder", "decoder" and "cross".

    Raises:
        ValueError: if the tokens do not fit the ids, or the model has no MultiHeadAttention.
    """
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), record_attention(model) as recorded:
        model(source.to(device), target.to(device))
    weights: dict[str, list[Tensor]] = {"encoder": [], "decoder": [], "cross": []}
    for name, of_layer in recorded.items():  # (1, heads, queries, keys)
        group = "cross" if "cross" in name.split(".")[-1] else name.split(".")[0]
        weights.setdefault(group, []).append(of_layer[0])
    written = target_tokens if written is None else written
    return attention_view(
        weights,
        {"encoder": source_tokens, "decoder": target_tokens, "cross": written},
        {"encoder": source_tokens, "decoder": target_tokens, "cross": source_tokens},
        start=start,
        caption=caption,
    )


def translation_view(
    translator: Translator,
    text: str,
    translation: str | None = None,
    *,
    start: tuple[str, int, int] = ("cross", 0, 0),
) -> View:
    """Show the attention of a translator while it translates a text.

    In cross-attention, a position of the decoder has the name of the token that is written there;
    in the decoder's own, of the token that is read there, one place later.

    Args:
        translator: any of the library's, whatever its layers and heads.
        text: what to translate.
        translation: what the decoder shall write; the translator's own translation if None.
        start: the group "encoder", "decoder" or "cross", the layer and the head to be shown first.

    Returns:
        The view; a token that goes on with the word before it begins with "…".

    Raises:
        ValueError: if the text is too long for the model, or there is no such start.
    """
    if translation is None:
        [translation] = translator.translate([text])
    source, target = encode_texts(translator.tokenizer, [text.strip(), translation.strip()])
    source_names, target_names = (_names(translator.tokenizer, ids) for ids in (source, target))
    caption = f"“{text.strip()}” → “{translation.strip()}”"
    caption += " (decoder: the tokens that it reads; cross: the tokens that it writes)"
    return model_view(
        translator.model,
        torch.tensor([[*source, EOS_ID]]),
        torch.tensor([[BOS_ID, *target]]),
        [*source_names, "<eos>"],
        ["<bos>", *target_names],
        [*target_names, "<eos>"],
        start=start,
        caption=caption,
    )


def _names(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Text of each token, without the space before it, with "…" inside of a word."""
    names: list[str] = []
    before = " "
    for token_id in ids:
        text = tokenizer.decode([token_id])
        if "\ufffd" in text:  # some bytes of a letter
            text = tokenizer.id_to_token(token_id) or text
        inside = before[-1].isalnum() and text[:1].isalnum()
        names.append("…" + text if inside else text.strip() or text)
        before = text or " "
    return names
