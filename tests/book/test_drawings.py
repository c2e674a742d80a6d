"""The visual language: palette, plot style, diagrams and the map."""

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.textpath import TextPath

from transformer_lib.book.diagrams import diagram, transformer_map
from transformer_lib.book.style import PALETTE, use_book_style

ROOT = Path(__file__).resolve().parents[2]
DRAWINGS = sorted((ROOT / "transformer_lib" / "book" / "static").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
TRANSFORMER_BLOCKS = {
    *("source-tokens", "source-embedding", "source-position", "encoder-stack"),
    *("encoder-self-attention", "encoder-norm-1", "encoder-feed-forward", "encoder-norm-2"),
    *("target-tokens", "target-embedding", "target-position", "decoder-stack"),
    *("decoder-self-attention", "decoder-norm-1", "cross-attention", "decoder-norm-2"),
    *("decoder-feed-forward", "decoder-norm-3"),
    *("output-linear", "softmax", "output-probabilities"),
}
# What an eye that lacks one kind of cones makes of linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
EYES = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# Roles that stand next to each other in the book's pictures.
NEIGHBORS = [
    ("query", "key", "value", "attention", "mask", "output"),
    ("query", "key", "value", "residual"),
    ("attention", "norm", "feed_forward", "residual"),
    ("neutral", "embedding", "position"),
    ("embedding", "norm", "output"),
    ("encoder", "decoder"),
    ("query", "attention", "value", "key", "residual", "feed_forward", "output"),
]

each_drawing = pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)


def read(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def blocks_of(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [group for group in svg.iter(f"{SVG}g") if group.get("class") == "block"]


def linear_rgb(color: str) -> np.ndarray:
    channels = np.array(list(bytes.fromhex(color[1:]))) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """Contrast ratio of the Web Content Accessibility Guidelines."""
    low, high = sorted(
        float(np.array([0.2126, 0.7152, 0.0722]) @ linear_rgb(c)) for c in (one, other)
    )
    return (high + 0.05) / (low + 0.05)


def width_of(text: str, size: float) -> float:
    """Width of a line of text in DejaVu Sans, which is wider than the fonts that readers have."""
    return float(TextPath((0, 0), text, size=size).get_extents().width)


# --- palette and style


def test_palette_has_one_hex_color_per_role() -> None:
    assert len(set(PALETTE.values())) == len(PALETTE) == 14
    for role, color in PALETTE.items():
        assert re.fullmatch(r"#[0-9A-F]{6}", color), f"{role} is {color}"


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("roles", NEIGHBORS, ids="-".join)
def test_neighbors_stay_apart_for_the_color_blind(roles: tuple[str, ...], eye: str) -> None:
    for one, other in itertools.combinations(roles, 2):
        seen = [lab(EYES[eye] @ linear_rgb(PALETTE[role])) for role in (one, other)]
        distance = float(np.linalg.norm(seen[0] - seen[1]))
        assert distance > 14, f"{one} and {other} look {distance:.1f} apart with {eye}"


def test_book_style_is_legible_on_a_phone() -> None:
    with plt.rc_context():
        use_book_style()
        width = plt.rcParams["figure.figsize"][0]
        for kind in ("font", "axes.title", "axes.label", "xtick.label", "legend.font"):
            key = f"{kind}.size" if kind == "font" else f"{kind}size"
            # A phone shows the figure 360 px wide: that many px of text are left of so many points.
            assert plt.rcParams[key] / 72 * 360 / width >= 9, f"{key} is too small"
        assert not plt.rcParams["axes.spines.top"]
        assert not plt.rcParams["axes.spines.right"]
        assert set(plt.rcParams["axes.prop_cycle"].by_key()["color"]) <= set(PALETTE.values())
        assert plt.rcParams["axes.facecolor"] == plt.rcParams["figure.facecolor"] == "white"


def test_the_library_does_without_matplotlib() -> None:
    code = "import sys, transformer_lib; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- the drawings


def test_the_drawings_are_there() -> None:
    assert {path.stem for path in DRAWINGS} >= {
        *("transformer", "scaled-dot-product-attention"),
        *("multi-head-attention", "residual-and-norm"),
    }
    svg = read(ROOT / "transformer_lib" / "book" / "static" / "transformer.svg")
    assert {block.get("id") for block in blocks_of(svg)} == TRANSFORMER_BLOCKS


@each_drawing
def test_a_drawing_scales_stands_alone_and_says_what_it_shows(path: Path) -> None:
    svg = read(path)
    assert svg.tag == f"{SVG}svg"
    assert len(svg.get("viewBox", "").split()) == 4
    assert {"width", "height"}.isdisjoint(svg.attrib), "a fixed size does not fit a phone"
    assert len(svg.findtext(f"{SVG}title", "").split()) > 8, "the title is the alt text"
    for element in svg.iter():
        tag = element.tag.removeprefix(SVG)
        assert tag in {"svg", "g", "title", "rect", "path", "text", "tspan"}, tag
        for name, value in element.attrib.items():
            assert not name.startswith("on"), f"a script: {name}"
            assert "href" not in name, f"a reference: {name}={value}"
            assert "url(" not in value, f"a reference: {name}={value}"
    ids = [element.attrib["id"] for element in svg.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))


@each_drawing
def test_every_block_has_an_id_a_label_and_the_color_of_its_role(path: Path) -> None:
    blocks = blocks_of(read(path))
    assert blocks
    for block in blocks:
        role = PALETTE[block.attrib["data-role"]]
        name = block.attrib["id"]
        label = block.find(f"{SVG}text")
        assert label is not None, f"{name} has no label"
        assert "".join(label.itertext()).strip(), f"{name} has an empty label"
        box = block.find(f"{SVG}rect")
        assert box is not None, f"{name} has no box"
        assert box.get("stroke") == role, f"{name}: {box.get('stroke')} is not {role}"
        tint = "#" + "".join(
            f"{round(255 - (255 - c) * 0.25):02X}" for c in bytes.fromhex(role[1:])
        )
        assert box.get("fill") == (role if "fill-opacity" in box.attrib else tint), name
        if "fill-opacity" not in box.attrib:
            assert contrast(label.attrib["fill"], tint) > 7, f"{name} is hard to read"


@each_drawing
def test_lines_have_the_color_of_their_role(path: Path) -> None:
    svg = read(path)
    inside = {element for block in blocks_of(svg) for element in block.iter()}
    for line in svg.iter(f"{SVG}path"):
        if line not in inside and "stroke" in line.attrib:
            assert line.get("stroke") == PALETTE[line.attrib["data-role"]]


@each_drawing
def test_text_is_large_enough_on_a_phone_and_fits(path: Path) -> None:
    svg = read(path)
    width = float(svg.attrib["viewBox"].split()[2])
    parents = {child: parent for parent in svg.iter() for child in parent}
    for text in svg.iter(f"{SVG}text"):
        size = float(text.get("font-size", svg.attrib["font-size"]))
        assert size * 360 / width >= 13, f"{size} units of {width} are too small at 360 px"
        anchor = text.get("text-anchor", svg.get("text-anchor"))
        assert list(text), "each line of text is a tspan"
        for line in text:
            assert line.text, f"an empty line in {path.stem}"
            long, x = width_of(line.text, size), float(line.attrib["x"])
            left = {"start": x, "middle": x - long / 2, "end": x - long}[anchor or "start"]
            box = parents[text].find(f"{SVG}rect") if parents[text] in blocks_of(svg) else None
            start, end = 0.0, width
            if box is not None:
                start = float(box.attrib["x"])
                end = start + float(box.attrib["width"])
            assert start <= left, f"{line.text!r} leaves its box on the left"
            assert left + long <= end, f"{line.text!r} leaves its box on the right"


# --- diagram


def test_unknown_names_are_refused_with_what_exists() -> None:
    with pytest.raises(ValueError, match=r"'transformr'.*residual-and-norm.*transformer"):
        diagram("transformr")
    for arguments in ({"filled": ["nope"]}, {"faded": ["nope"]}, {"labels": {"nope": ""}}):
        with pytest.raises(ValueError, match=r"'nope' in 'transformer'.*softmax"):
            diagram("transformer", **arguments)


@each_drawing
def test_inline_it_carries_its_alt_text_and_nothing_that_clashes(path: Path) -> None:
    html = diagram(path.stem)._repr_html_()
    assert html == diagram(path.stem)._repr_html_(), "the same call gives the same picture"
    figure = ElementTree.fromstring(html)
    assert (figure.tag, figure.get("class")) == ("figure", "tpp-diagram")
    svg = figure[0]
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == svg.findtext("title")
    for element in svg.iter():
        assert {"id", "class"}.isdisjoint(element.attrib), "must not meet the page's own"
    assert "width: 100%" in svg.attrib["style"]
    assert "stroke-dasharray" not in html, "all blocks are filled"


@settings(deadline=None, max_examples=50)
@given(
    filled=st.sets(st.sampled_from(sorted(TRANSFORMER_BLOCKS))),
    faded=st.sets(st.sampled_from(sorted(TRANSFORMER_BLOCKS))),
    label=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
)
def test_blocks_are_filled_faded_and_labelled_as_asked(
    filled: set[str], faded: set[str], label: str
) -> None:
    shown = diagram("transformer", filled=filled, faded=sorted(faded), labels={"softmax": label})
    groups = {
        g.attrib["data-block"]: g
        for g in ElementTree.fromstring(shown.svg).iter("g")
        if "data-block" in g.attrib
    }
    assert set(groups) == TRANSFORMER_BLOCKS
    for block, group in groups.items():
        box, text = group.find("rect"), group.find("text")
        assert box is not None
        assert text is not None
        assert (box.get("fill") != "none") == (block in filled)
        assert ("stroke-dasharray" in box.attrib) == (block not in filled)
        if block not in filled:
            assert text.get("fill") == "currentColor"
        assert ("opacity" in group.attrib) == (block in faded)
    assert "".join(groups["softmax"].find("text").itertext()) == label


def test_a_label_of_other_height_stays_centered() -> None:
    def lines(label: str) -> list[float]:
        svg = ElementTree.fromstring(diagram("transformer", labels={"softmax": label}).svg)
        text = svg.find(".//g[@data-block='softmax']/text")
        assert text is not None
        return [float(line.attrib["y"]) for line in text]

    one, two = lines("one"), lines("one\ntwo")
    assert one[0] == pytest.approx(sum(two) / 2)
    assert two[1] > two[0]


# --- the map


def filled_blocks(chapter: int) -> set[str]:
    svg = ElementTree.fromstring(transformer_map(chapter).svg)
    groups = [g for g in svg.iter("g") if "data-block" in g.attrib]
    return {g.attrib["data-block"] for g in groups if g.find("rect").get("fill") != "none"}


def test_the_map_fills_from_nothing_to_everything() -> None:
    steps = [filled_blocks(chapter) for chapter in range(27)]
    assert steps[0] == steps[4] == set()
    assert steps[13] == steps[26] == TRANSFORMER_BLOCKS
    for chapter in range(26):
        assert steps[chapter] <= steps[chapter + 1], f"chapter {chapter + 1} loses a block"
    assert steps[5] == {"encoder-self-attention", "decoder-self-attention"}
    assert steps[11] - steps[10] == {"cross-attention", "decoder-stack"}


def test_each_chapter_has_a_map_of_its_own() -> None:
    maps = [transformer_map(chapter)._repr_html_() for chapter in range(4, 16)]
    assert len(set(maps)) == len(maps)
    assert "one head" in maps[1]
    assert "one head" not in maps[2]
    for chapter, drawing in enumerate(maps, start=4):
        assert ("Double outline" in drawing) == (5 <= chapter <= 14)
        assert 'aria-label="Block diagram of the Transformer' in drawing
