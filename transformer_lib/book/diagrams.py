"""The book's drawings, shown inline with chosen blocks filled."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources


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
        file.name: file
        for file in resources.files("transformer_lib.book").joinpath("static").iterdir()
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
        chapter: its number; what it builds itself has a double outline.

    Returns:
        The diagram, with a caption that says what filled and dashed mean.
    """
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
