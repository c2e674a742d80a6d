"""Palette, plot style, diagrams and pictures of attention.

Written from chapters 0, 4, 5, 6 of the book: edit the chapter, then `make sync`.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention

__all__ = [
    "PALETTE",
    "Diagram",
    "diagram",
    "plot_attention",
    "plot_heat_map",
    "record_attention",
    "transformer_map",
    "use_book_style",
]


PALETTE = {
    "query": "#0072B2",
    "key": "#E69F00",
    "value": "#009E73",
    "attention": "#D55E00",
    "mask": "#333333",
    "residual": "#CC79A7",
    "norm": "#F0E442",
    "feed_forward": "#56B4E9",
    "embedding": "#882255",
    "position": "#999933",
    "output": "#332288",
    "encoder": "#7B6FD0",
    "decoder": "#8A4B14",
    "neutral": "#757575",
}


def use_book_style() -> None:
    """Give matplotlib the book's look: legible on a phone, safe for the color-blind."""
    roles = ("query", "attention", "value", "key", "residual", "feed_forward", "output")
    cycle = [PALETTE[role] for role in roles]
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 120,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.facecolor": "white",
            "axes.titlesize": 13,
            "axes.labelsize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=cycle),
            "axes.axisbelow": True,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "legend.fontsize": 12,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "image.cmap": "Blues",
            "image.aspect": "auto",
        }
    )


@dataclass(frozen=True)
class Diagram:
    """One of the book's diagrams, shown inline by a notebook."""

    name: str
    svg: str
    caption: str = ""

    def _repr_html_(self) -> str:
        caption = f'<figcaption style="color: inherit">{escape(self.caption)}</figcaption>'
        inside = self.svg + (caption if self.caption else "")
        return (
            '<figure class="tpp-diagram" style="margin: 1em 0; text-align: center">'
            f"{inside}</figure>"
        )

    def __repr__(self) -> str:
        return f"Diagram({self.name!r})"


def diagram(
    name: str,
    *,
    filled: Collection[str] | None = None,
    faded: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Diagram:
    """Show a diagram of the book inline.

    Args:
        name: of the drawing, such as "transformer".
        filled: ids of the blocks to fill; the others are dashed outlines. None fills all.
        faded: ids of the blocks to draw pale.
        labels: block id -> text that replaces its label; "\\n" starts a new line.

    Returns:
        The drawing, which a notebook shows if it is a cell's last expression.

    Raises:
        ValueError: for a drawing or a block that does not exist; the message lists what there is.
    """
    return _draw(name, filled, faded, labels or {})


def _draw(
    name: str,
    filled: Collection[str] | None,
    faded: Collection[str],
    labels: Mapping[str, str],
    emphasized: Collection[str] = (),
    caption: str = "",
) -> Diagram:
    """Read a drawing and set its blocks: filled or outlined, faded, emphasized, relabelled."""
    files = {
        file.name: file for file in resources.files("transformer_lib").joinpath("static").iterdir()
    }
    if f"{name}.svg" not in files:
        names = sorted(file.removesuffix(".svg") for file in files if file.endswith(".svg"))
        raise ValueError(f"no diagram {name!r}; there are {', '.join(names)}")
    svg = ElementTree.fromstring(files[f"{name}.svg"].read_text(encoding="utf-8"))
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]  # inline SVG needs no namespace
    blocks = {
        group.attrib["id"]: group
        for group in svg.iter("g")
        if "block" in group.get("class", "").split()
    }
    for block in (*(filled or ()), *faded, *emphasized, *labels):
        if block not in blocks:
            raise ValueError(f"no block {block!r} in {name!r}; there are {', '.join(blocks)}")

    for block, group in blocks.items():
        if filled is not None and block not in filled:
            for part in group.iter():
                if part.tag in ("rect", "path"):
                    part.attrib |= {
                        "fill": "none",
                        "stroke": "currentColor",
                        "stroke-dasharray": "4 3",
                    }
                elif part.tag == "text":
                    part.set("fill", "currentColor")
        if block in emphasized:
            _emphasize(group)
        if block in faded:
            group.set("opacity", "0.35")
        if block in labels:
            _relabel(next(group.iter("text")), labels[block].split("\n"))
        # Two diagrams on one page must not share an id, nor meet the page's own classes.
        group.set("data-block", group.attrib.pop("id"))
        group.attrib.pop("class")

    alt = f"{svg.findtext('title')} {caption}".rstrip()
    width = float(svg.attrib["viewBox"].split()[2])
    svg.attrib |= {"role": "img", "aria-label": alt}
    svg.set("style", f"width: 100%; max-width: {1.3 * width:.0f}px; height: auto")
    return Diagram(name, ElementTree.tostring(svg, encoding="unicode"), caption)


def _emphasize(group: ElementTree.Element) -> None:
    """Draw a second outline inside the first, in the color of the label."""
    box = next(group.iter("rect")).attrib
    inset = {"x": 3.5, "y": 3.5, "width": -7, "height": -7, "rx": -3}
    ring = {side: f"{float(box[side]) + change:g}" for side, change in inset.items()}
    color = next(group.iter("text")).get("fill", "currentColor")
    ElementTree.SubElement(
        group, "rect", ring | {"fill": "none", "stroke": color, "stroke-width": "2"}
    )


def _relabel(text: ElementTree.Element, lines: list[str]) -> None:
    """Replace a label: line by line, or centered where the old lines were."""
    old = list(text)
    if len(lines) != len(old):
        middle = sum(float(line.attrib["y"]) for line in old) / len(old)
        for line in old:
            text.remove(line)
        first = middle - 17 * (len(lines) - 1) / 2
        for number in range(len(lines)):
            ElementTree.SubElement(
                text, "tspan", x=old[0].attrib["x"], y=f"{first + 17 * number:g}"
            )
    for line, content in zip(text, lines, strict=True):
        line.text = content


# What each chapter adds to the map of the Transformer.
_BUILT_IN = {
    5: ("encoder-self-attention", "decoder-self-attention"),
    6: ("encoder-self-attention", "decoder-self-attention"),
    7: ("source-position", "target-position"),
    8: (
        "source-embedding",
        "target-embedding",
        "encoder-feed-forward",
        "decoder-feed-forward",
        "output-linear",
    ),
    9: ("encoder-norm-1", "encoder-norm-2", "decoder-norm-1", "decoder-norm-2", "decoder-norm-3"),
    10: ("encoder-stack",),
    11: ("cross-attention", "decoder-stack"),
    12: ("softmax", "output-probabilities"),
    13: ("source-tokens", "target-tokens"),
}
_EMPHASIZED = {
    12: ("encoder-stack", "decoder-stack", "output-linear", "softmax", "output-probabilities"),
    14: ("target-tokens", "softmax", "output-probabilities"),
}


def transformer_map(chapter: int) -> Diagram:
    """Show the Transformer's block diagram with what has been built up to `chapter` filled.

    Args:
        chapter: 0 to 26; what it builds itself has a double outline.

    Returns:
        The diagram, with a caption that says what filled and dashed mean.

    Raises:
        ValueError: for a chapter that the book does not have.
    """
    if not 0 <= chapter <= 26:
        raise ValueError(f"chapter {chapter} does not exist: the book has chapters 0 to 26")
    filled = [block for built, blocks in _BUILT_IN.items() if built <= chapter for block in blocks]
    emphasized = _EMPHASIZED.get(chapter, _BUILT_IN.get(chapter, ()))
    labels = {}
    if chapter == 5:  # the same two blocks as in chapter 6, there with all their heads
        labels = {"encoder-self-attention": "Self-attention\none head"}
        labels["decoder-self-attention"] = "Masked\nself-attention\none head"
    caption = "Dashed: still to be built."
    if filled:
        caption = "Filled: built so far." + (
            " Double outline: in this chapter." if emphasized else ""
        )
        caption += " Dashed: still to come." if chapter < 13 else ""
    return _draw("transformer", filled, (), labels, emphasized, caption)


def plot_heat_map(
    image: Tensor,
    weights: Tensor | None = None,
    box: Tensor | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw a picture, the attention over its patches as orange on top, and a box in blue.

    Args:
        image: (height, width), from 0 (black) to 1 (white).
        weights: one for each patch, (patch rows, patch columns); the largest is drawn fully orange.
        box: top, left, bottom and right of a rectangle, in pixels, the last two outside of it.
        ax: where to draw; a new figure if None.
        title: what stands above the picture.

    Returns:
        The axes that were drawn on.

    Raises:
        ValueError: if image or weights is no matrix, or the patches do not divide the image.
    """
    if image.dim() != 2:
        raise ValueError(f"image must be (height, width), got {tuple(image.shape)}")
    height, width = image.shape
    if weights is not None and (
        weights.dim() != 2 or height % weights.size(0) or width % weights.size(1)
    ):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not divide "
            f"an image of shape {tuple(image.shape)} into patches"
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(3.2, 3.5))
    picture = image.detach().cpu().float().numpy()  # (height, width)
    # Pixels are squares with whole numbers at their edges, so that a box lies between pixels.
    edges = (0, width, height, 0)
    ax.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, extent=edges, aspect="equal")
    if weights is not None:
        heat = (weights / weights.max()).detach().cpu().float().numpy()  # (rows, columns)
        red, green, blue, _ = to_rgba(PALETTE["attention"])
        over = [[(red, green, blue, 0.75 * value) for value in row] for row in heat.tolist()]
        ax.imshow(over, extent=edges, aspect="equal", interpolation="nearest")
    if box is not None:
        top, left, bottom, right = box.tolist()
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, linewidth=2)
        frame.set_edgecolor(PALETTE["feed_forward"])
        ax.add_patch(frame)
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def plot_attention(
    weights: Tensor,
    query_labels: list[str],
    key_labels: list[str],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw attention weights as a heat map: one row for each query, one column for each key.

    Args:
        weights: shape (queries, keys), each entry between 0 and 1.
        query_labels: one label for each row.
        key_labels: one label for each column.
        ax: where to draw; a new figure if None.
        title: what stands above the picture.

    Returns:
        The axes that were drawn on.

    Raises:
        ValueError: if weights is not a matrix with one label for each row and column.
    """
    if tuple(weights.shape) != (len(query_labels), len(key_labels)):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} need as many labels, "
            f"got {len(query_labels)} for the queries and {len(key_labels)} for the keys"
        )
    if ax is None:
        side = 0.45 * max(len(query_labels), len(key_labels)) + 1.6  # inches: room for the labels
        _, ax = plt.subplots(figsize=(min(side, 7.0), min(side, 7.0)))
    values = weights.detach().cpu().float().numpy()  # (queries, keys)
    ax.imshow(values, cmap=plt.rcParams["image.cmap"], vmin=0.0, vmax=1.0)
    ax.set_xticks(
        range(len(key_labels)), key_labels, rotation=60, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(query_labels)), query_labels)
    ax.set_xlabel("key: listened to")
    ax.set_ylabel("query: listens")
    ax.set_title(title)
    ax.grid(False)
    if max(values.shape) <= 8:  # few enough to be read
        for i, row in enumerate(values.tolist()):
            for j, weight in enumerate(row):
                color = "white" if weight > 0.5 else "black"
                number = f"{weight:.2f}".removeprefix("0")
                ax.text(j, i, number, ha="center", va="center", fontsize=10, color=color)
    return ax


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the attention weights of every MultiHeadAttention in `model` while the context lasts.

    with record_attention(model) as weights:
        model(source, target)

    Only calls of the module itself are seen, not of its method `attend`. While the context lasts, calls return the
    weights even if not asked for.

    Args:
        model: any module that is, or holds, a MultiHeadAttention.

    Yields:
        A dictionary, filled as the model runs: name of the module in `model` ("" for the model itself) -> weights of
        its last call, (batch, heads, queries, keys), detached. In training mode they are the weights after dropout.

    Raises:
        ValueError: if there is no MultiHeadAttention in `model`.
    """
    attentions = {
        name: part for name, part in model.named_modules() if isinstance(part, MultiHeadAttention)
    }
    if not attentions:
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}")
    recorded: dict[str, Tensor] = {}

    def ask(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args[:5], kwargs | {"need_weights": True}  # need_weights would be the sixth

    def keep(name: str) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], None]:
        def hook(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
            recorded[name] = output[1].detach()  # (batch, heads, queries, keys)

        return hook

    handles = []
    try:
        for name, attention in attentions.items():
            handles.append(attention.register_forward_pre_hook(ask, with_kwargs=True))
            handles.append(attention.register_forward_hook(keep(name)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
