"""The view of the gradient through stacks of layers: its numbers against autograd, and in a real browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.gradient_view import gradient_view
from transformer_lib.book.views import View
from transformer_lib.layers import FeedForward

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "transformer_lib" / "book" / "static"
DEPTHS = [2, 8, 32]
DRAWS, WIDTH = 3, 16

OpenPage = Callable[..., Any]
browser = pytest.mark.browser


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,))


WIRINGS: dict[str, Callable[..., Tensor]] = {
    "plain": lambda x, layer: layer(x),
    "residual": lambda x, layer: x + layer(x),
    "post-norm": lambda x, layer: norm(x + layer(x)),
    "pre-norm": lambda x, layer: x + layer(norm(x)),
}


def gradients_of(wiring: Callable[..., Tensor], depth: int) -> Tensor:
    """Size of the gradient at each place, by autograd, (draws, depth + 1)."""
    draws = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        states = [torch.randn(5, WIDTH, requires_grad=True)]
        for _ in range(depth):
            states.append(wiring(states[-1], FeedForward(WIDTH, 2 * WIDTH)))
        loss = (states[-1] * torch.randn_like(states[-1])).sum()
        draws.append(torch.stack([g.norm() for g in torch.autograd.grad(loss, states)]))
    return torch.stack(draws)


@pytest.fixture(scope="module")
def measured() -> dict[str, list[Tensor]]:
    return {
        name: [gradients_of(wiring, depth) for depth in DEPTHS] for name, wiring in WIRINGS.items()
    }


@pytest.fixture(scope="module")
def view(measured: dict[str, list[Tensor]]) -> View:
    return gradient_view(measured, start=("post-norm", 8), caption="Some stacks")


def shares(gradients: Tensor) -> Tensor:
    return gradients / gradients[:, -1:]  # (draws, depth + 1)


def number(text: str) -> float:
    """28, 0.85 or 1.2·10⁻⁶"""
    digits, _, power = text.partition("·10")
    return float(digits) * 10.0 ** int(
        power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0
    )


# ------------------------------------------------------------------------------------------- what Python makes


def test_the_data_are_shares_of_the_gradient_at_the_top(
    measured: dict[str, list[Tensor]], view: View
) -> None:
    assert view.data["depths"] == DEPTHS
    assert view.data["start"] == {"wiring": 2, "depth": 1}
    for told, (name, gradients) in zip(view.data["wirings"], measured.items(), strict=True):
        assert told["name"] == name
        for run, of_depth in zip(told["runs"], gradients, strict=True):
            expected = shares(of_depth.double())
            assert run["mean"] == pytest.approx(expected.mean(dim=0).tolist(), rel=6e-4)
            assert run["low"] == pytest.approx(expected.amin(dim=0).tolist(), rel=6e-4)
            assert run["high"] == pytest.approx(expected.amax(dim=0).tolist(), rel=6e-4)
            assert run["mean"][-1] == 1


@pytest.mark.parametrize(
    ("gradients", "start", "words"),
    [
        ({}, None, ["depths", "[]"]),
        ({"a": []}, None, ["depths", "[]"]),
        ({"a": [torch.ones(2, 1)]}, None, ["depths", "[0]"]),
        ({"a": [torch.ones(2, 5), torch.ones(2, 3)]}, None, ["depths", "[4, 2]"]),
        ({"a": [torch.ones(2, 3)], "b": [torch.ones(2, 4)]}, None, ["'b'", "[2]", "(2, 4)"]),
        ({"a": [torch.ones(2, 3)], "b": [torch.ones(3)]}, None, ["'b'", "[2]", "(3,)"]),
        ({"a": [torch.zeros(2, 3)]}, None, ["'a'", "positive", "0."]),
        ({"a": [torch.full((2, 3), float("nan"))]}, None, ["'a'", "positive", "nan"]),
        ({"a": [torch.ones(0, 3)]}, None, ["'a'", "positive"]),
        ({"a": [torch.ones(2, 3)]}, ("a", 3), ["('a', 3)", "[2]"]),
        ({"a": [torch.ones(2, 3)]}, ("b", 2), ["('b', 2)", "['a']"]),
    ],
)
def test_bad_input_is_refused(gradients: Any, start: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        gradient_view(gradients, start=start)


def test_code_is_small_and_loads_nothing(view: View, loads: Callable[[str], list[str]]) -> None:
    files = [f"{name}.{kind}" for name in ("view", "gradient-view") for kind in ("css", "js")]
    code = "".join((STATIC / name).read_text() for name in files)
    assert not loads(code)
    data = json.dumps(view.data, separators=(",", ":"))
    assert len(view._repr_html_().encode()) - len(data.encode()) < 60_000


def test_nbval_overlooks_how_numbers_are_rounded_and_nothing_else(
    view: View, clean: Callable[[str], str]
) -> None:
    html = view._repr_html_()
    other = html.replace('"mean":[', '"mean":[1.234,')
    assert html != other
    assert clean(html) == clean(other)
    assert clean(html) != clean(html.replace('"name":"plain"', '"name":"planar"'))


# ------------------------------------------------------------------------------------------------ the browser


def choose(page: Any, wiring: str, depth: int) -> None:
    page.get_by_role("radio", name=wiring, exact=True).click()
    page.get_by_role("radio", name=str(depth), exact=True).click()


def rows(page: Any, table: int) -> dict[str, list[float]]:
    """The rows of one of the tables: name -> numbers."""
    cells = page.evaluate(
        "n => [...document.querySelectorAll('.tpp-shares')[n].querySelectorAll('tbody tr')]"
        ".map(r => [...r.children].map(c => c.textContent))",
        table,
    )
    return {name: [number(text) for text in texts] for name, *texts in cells}


@browser
def test_every_number_is_autograds(
    open_page: OpenPage, measured: dict[str, list[Tensor]], view: View
) -> None:
    page = open_page(view)
    for i, depth in enumerate(DEPTHS):
        choose(page, "plain", depth)
        means = {name: shares(of[i]).mean(dim=0).tolist() for name, of in measured.items()}
        shown = rows(page, 0)
        assert list(shown) == list(WIRINGS)
        for name, mean in means.items():
            assert shown[name] == pytest.approx([mean[0], mean[depth // 2], 1], rel=0.051)
        everywhere = rows(page, 1)
        assert list(everywhere) == [*map(str, range(depth, 0, -1)), "0 (bottom)"]
        for place, numbers in enumerate(reversed(everywhere.values())):
            assert numbers == pytest.approx([mean[place] for mean in means.values()], rel=0.051)
        for name, of in measured.items():
            choose(page, name, depth)
            told = page.locator(".tpp-text").text_content()
            bottom = shares(of[i])[:, 0]
            parts = re.fullmatch(
                r"(.*), (\d+) layers: of a gradient of 1 at the top, (\S+) arrives at the bottom "
                r"\((\S+) to (\S+) in single draws\)\.",
                told,
            )
            assert parts, told
            assert (parts[1], int(parts[2])) == (name, depth)
            expected = [bottom.mean().item(), bottom.min().item(), bottom.max().item()]
            assert [number(parts[n]) for n in (3, 4, 5)] == pytest.approx(expected, rel=0.051)


@browser
def test_the_lines_stand_where_the_numbers_are(
    open_page: OpenPage, measured: dict[str, list[Tensor]], view: View
) -> None:
    page = open_page(view)
    choose(page, "residual", 32)
    levels = {
        number("1·" + power) if power != "10⁰" else 1.0: top
        for power, top in page.evaluate(
            "[...document.querySelectorAll('.tpp-levels span')].map(s => [s.textContent, parseFloat(s.style.top)])"
        )
    }
    (one, there), *_, (other, here) = levels.items()
    ten = (there - here) / (torch.tensor(one).log10() - torch.tensor(other).log10()).item()
    paths = page.locator("path.tpp-share").evaluate_all("all => all.map(p => p.getAttribute('d'))")
    for path, of in zip(paths, measured.values(), strict=True):
        points = [[float(x) for x in point.split()] for point in path[1:].split("L")]
        assert [x for x, _ in points] == list(range(33))
        assert all(0 <= y <= 240 for _, y in points), "inside of the plot"
        expected = shares(of[-1]).mean(dim=0).log10() * ten + levels[1.0]
        assert [y for _, y in points] == pytest.approx(expected.tolist(), abs=0.2)
    chosen = page.locator("path.tpp-shown")
    assert chosen.count() == 1
    assert chosen.get_attribute("d") == paths[1]
    dashes = page.locator("path.tpp-share").evaluate_all(
        "all => all.map(p => p.style.strokeDasharray)"
    )
    assert len(set(dashes)) == len(WIRINGS), "color is not the only sign"


@browser
def test_it_starts_where_it_should(open_page: OpenPage, view: View) -> None:
    page = open_page(view)
    assert page.locator(".tpp-text").text_content().startswith("post-norm, 8 layers: ")
    checked = page.locator('[role="radio"][aria-checked="true"]')
    assert checked.all_text_contents() == ["8", "post-norm"]
    assert page.locator(".tpp-text").get_attribute("aria-live") == "polite"
    assert page.locator(".tpp-chosen th").text_content() == "post-norm"


@browser
def test_everything_can_be_done_by_keyboard(open_page: OpenPage, view: View) -> None:
    page = open_page(view)
    for key, told in (
        ("Tab", "post-norm, 8 layers"),
        ("ArrowRight", "post-norm, 32 layers"),
        ("Home", "post-norm, 2 layers"),
        ("Tab", "post-norm, 2 layers"),
        ("ArrowLeft", "residual, 2 layers"),
        ("End", "pre-norm, 2 layers"),
    ):
        page.keyboard.press(key)
        assert page.locator(".tpp-text").text_content().startswith(told), key
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px", "the focus is seen"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("details").get_attribute("open") is not None
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "The gradient at every place"


@browser
@pytest.mark.parametrize("javascript", [True, False], ids=["script", "table"])
def test_axe_finds_nothing(
    open_page: OpenPage,
    axe: Callable[[Any], list[str]],
    theme: str,
    view: View,
    javascript: bool,
    without_script: Callable[[Any, View], None],
) -> None:
    page = open_page(view, style=theme)
    if javascript:
        page.locator("summary").click()
    else:
        without_script(page, view)
        assert page.locator("table").count() == 1
    assert not axe(page)


@browser
def test_a_phone_shows_it_whole(open_page: OpenPage, view: View) -> None:
    page = open_page(view, width=390, has_touch=True, is_mobile=True)
    page.get_by_role("radio", name="32", exact=True).tap()
    page.locator("summary").tap()
    assert page.locator(".tpp-text").text_content().startswith("post-norm, 32 layers")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator(".tpp-view button").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24, box


@browser
@pytest.mark.parametrize("width", [800, 390])
def test_nothing_below_moves(open_page: OpenPage, view: View, width: int) -> None:
    page = open_page(view, width=width)
    places = []
    for name in WIRINGS:
        for depth in DEPTHS:
            choose(page, name, depth)
            places.append(page.locator("#below").bounding_box())
    assert places == places[:1] * len(places)


@browser
def test_views_on_one_page_leave_each_other_alone(open_page: OpenPage, view: View) -> None:
    page = open_page(view, view)
    figures = page.locator("figure.tpp-view")
    before = figures.nth(1).inner_html()
    figures.nth(0).get_by_role("radio", name="32", exact=True).click()
    assert figures.nth(1).inner_html() == before


@browser
def test_without_javascript_the_table_is_there(
    open_page: OpenPage, measured: dict[str, list[Tensor]], view: View
) -> None:
    page = open_page(view, java_script_enabled=False)
    assert page.locator("thead th").all_text_contents() == [
        "wiring",
        *(f"{d} layers" for d in DEPTHS),
    ]
    for row, (name, of) in zip(page.locator("tbody tr").all(), measured.items(), strict=True):
        first, *cells = row.locator("th, td").all_text_contents()
        expected = [shares(gradients)[:, 0].mean().item() for gradients in of]
        assert first == name
        assert [float(cell) for cell in cells] == pytest.approx(expected, rel=0.051)
    assert page.locator("button").count() == 0
