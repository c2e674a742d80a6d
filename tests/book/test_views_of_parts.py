"""The views of a softmax, of masks and of positions: every number that they show against torch, in a real browser."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transformer_lib.attention import attention_weights, causal_mask
from transformer_lib.book.views import View, mask_view, position_view, scale_view, temperature_view
from transformer_lib.embeddings import sinusoidal_positions

STATIC = Path(__file__).resolve().parents[2] / "transformer_lib" / "book" / "static"
OpenPage = Callable[..., Any]
Axe = Callable[[Any], list[str]]
browser = pytest.mark.browser
WORDS = ["the", "cat", "sat", "down", "<pad>"]
COLORS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
NASTY = ["</script>", "<b>&amp;", "$x$"]


def views() -> dict[str, View]:
    """One of each, with numbers of its own at every call."""
    query, key = torch.randn(2, len(WORDS), 6)
    return {
        "temperature": temperature_view(torch.randn(3), NASTY, colors=COLORS, caption="A caption"),
        "scale": scale_view(torch.randn(512), torch.randn(8, 512)),
        "mask": mask_view(WORDS, query, key),
        "position": position_view(32),
    }


KINDS = ["temperature", "scale", "mask", "position"]


def move(page: Any, label: str, place: int) -> None:
    """Move a slider as a reader does: its events come, too."""
    page.get_by_role("slider", name=label, exact=True).evaluate(
        "(input, place) => { input.value = place; input.dispatchEvent(new Event('input')); }", place
    )


def texts(page: Any, selector: str) -> list[str]:
    found: list[str] = page.locator(selector).all_inner_texts()
    return found


def told(page: Any) -> str:
    return str(page.locator("[aria-live]").inner_text())


# ------------------------------------------------------------------------------------------- what Python makes


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_small_and_loads_nothing(kind: str, loads: Callable[[str], list[str]]) -> None:
    view = views()[kind]
    html = view._repr_html_()
    assert len(html.encode()) < 60_000
    assert not loads(html)
    assert view.kind in repr(view)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: temperature_view(torch.randn(3), ["a", "b"]), ["(3,)", "2 keys"]),
        (lambda: temperature_view(torch.randn(1, 2), ["a", "b"]), ["(1, 2)", "2 keys"]),
        (lambda: temperature_view(torch.randn(0), []), ["(0,)", "0 keys"]),
        (lambda: temperature_view(torch.tensor([0, math.nan]), ["a", "b"]), ["finite", "nan"]),
        (
            lambda: temperature_view(torch.randn(2), ["a", "b"], colors=COLORS),
            ["(2, 3)", "(3, 3)"],
        ),
        (lambda: scale_view(torch.randn(4), torch.randn(3, 5)), ["(4,)", "(3, 5)"]),
        (lambda: scale_view(torch.randn(2, 4), torch.randn(3, 4)), ["(2, 4)", "(3, 4)"]),
        (lambda: scale_view(torch.randn(0), torch.randn(3, 0)), ["(0,)", "(3, 0)"]),
        (lambda: mask_view(WORDS, torch.randn(4, 2), torch.randn(4, 2)), ["5 words", "(4, 2)"]),
        (lambda: mask_view(WORDS, torch.randn(5, 2), torch.randn(5, 3)), ["(5, 2)", "(5, 3)"]),
        (lambda: mask_view(["a", "b"], torch.randn(2, 2), torch.randn(2, 2)), ["<pad>", "'b'"]),
        (lambda: mask_view(["<pad>"], torch.randn(1, 2), torch.randn(1, 2)), ["['<pad>']"]),
        (lambda: mask_view(["a b", "<pad>"], torch.randn(2, 2), torch.randn(2, 2)), ["'a b'"]),
        (lambda: position_view(7), ["even", "7"]),
        (lambda: position_view(0), ["0"]),
        (lambda: position_view(1024), ["512", "1024"]),
    ],
)
def test_what_does_not_fit_is_refused_by_a_message_that_names_it(
    make: Callable[[], View], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        make()


# ---------------------------------------------------------------------------------------- softmax, in the browser


def bars(page: Any, chart: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, weights and the lengths of the bars, as parts of the longest possible, of a chart."""
    rows = page.evaluate(
        """chart => [...document.querySelectorAll('.tpp-bars')[chart].querySelectorAll('tbody tr')].map(row => [
          Number(row.children[1].textContent), Number(row.children[3].textContent),
          row.querySelector('i').getBoundingClientRect().width / row.querySelector('.tpp-bar').clientWidth])""",
        chart,
    )
    scores, weights, lengths = torch.tensor(rows, dtype=torch.float64).T
    return scores, weights, lengths


def check_chart(page: Any, chart: int, expected: Tensor) -> None:
    """Against torch's softmax of the scores (keys,), and its derivative by autograd."""
    scores, weights, lengths = bars(page, chart)
    of_torch = expected.softmax(dim=-1)
    assert (scores - expected).abs().max() < 0.0052
    assert (weights - of_torch).abs().max() < 0.0052
    assert (lengths - of_torch).abs().max() < 0.05, "the bars are as long as the weights say"
    derivative = torch.autograd.functional.jacobian(lambda s: s.softmax(dim=-1), expected)
    sentence = texts(page, ".tpp-told span")[chart]
    largest, steepest = re.findall(r"(?<= )\d[\d.e-]*\d", sentence)[-2:]
    assert float(largest) == pytest.approx(of_torch.max().item(), abs=0.0052)
    assert float(steepest) == pytest.approx(derivative.abs().max().item(), rel=0.6, abs=0.0006)
    if derivative.abs().max() > 0.01:
        assert float(steepest) == pytest.approx(derivative.abs().max().item(), abs=0.0006)


@browser
def test_a_temperature_gives_torchs_softmax_derivative_and_mixture(open_page: OpenPage) -> None:
    scores = torch.randn(3, dtype=torch.float64)
    page = open_page(temperature_view(scores, ["red", "yellow", "blue"], colors=COLORS))
    check_chart(page, 0, scores)  # T = 1 at the start
    for place in range(0, 61, 6):
        move(page, "temperature", place)
        temperature = 10 ** (1 - place / 20)
        assert texts(page, "output") == [f"T = {temperature:.2g}"]
        check_chart(page, 0, scores / temperature)
        mixture = (scores / temperature).softmax(dim=-1) @ COLORS.double()
        shown = re.findall(r"\d\.\d+", page.locator(".tpp-mixture").inner_text())
        assert (torch.tensor([float(part) for part in shown]) - mixture).abs().max() < 0.0052
        painted = page.locator(".tpp-swatch").evaluate("s => getComputedStyle(s).backgroundColor")
        parts = torch.tensor([float(part) for part in re.findall(r"\d+", painted)])
        assert (parts - 255 * mixture).abs().max() < 0.6


@browser
def test_a_width_gives_torchs_softmax_with_and_without_the_scale(open_page: OpenPage) -> None:
    query, key = torch.randn(100, dtype=torch.float64), torch.randn(5, 100, dtype=torch.float64)
    page = open_page(scale_view(query, key))
    assert texts(page, ".tpp-bars caption") == ["q·k", "q·k / √d_k"]
    for place, width in enumerate((1, 2, 4, 8, 16, 32, 64)):
        move(page, "width", place)
        assert texts(page, "output") == [f"d_k = {width}"]
        dot = key[:, :width] @ query[:width]
        check_chart(page, 0, dot)
        check_chart(page, 1, dot / math.sqrt(width))
    assert page.get_by_role("slider").get_attribute("max") == "6", "no width beyond the query's"


@browser
def test_a_saturated_softmax_shows_how_little_passes(open_page: OpenPage) -> None:
    page = open_page(temperature_view(torch.tensor([0.5, 0.0, 0.0]), ["a", "b", "c"]))
    move(page, "temperature", 60)  # T = 0.01: the scores are 50, 0 and 0
    assert "a has the largest weight, 1.00; the largest derivative is 4e-22." in told(page)
    assert 2 * math.exp(-50) == pytest.approx(4e-22, rel=0.05)


# ------------------------------------------------------------------------------------------ masks, in the browser


def vector(word: str, width: int) -> list[float]:
    """The query, then the key, of a word that mask_view has not been given: of width numbers in all."""
    seed = 0
    for letter in word:
        seed = (seed * 31 + ord(letter)) % 2**32
    entries = []
    for _ in range(width):
        seed = (seed * 1664525 + 1013904223) % 2**32
        entries.append((seed >> 24) / 64 - 2)
    return entries


def matrix(page: Any) -> list[list[str]]:
    """The cells as they are seen."""
    cells: list[list[str]] = page.evaluate(
        """[...document.querySelectorAll('.tpp-matrix tbody tr')].map(row => [...row.querySelectorAll('td')].map(
             cell => (cell.querySelector('[aria-hidden]') || cell).textContent))"""
    )
    return cells


@browser
@pytest.mark.parametrize("sentence", ["the cat sat", "the dog , the dög", "cat " * 12, "  ", "🎈"])
def test_every_mask_over_a_typed_sentence_is_torchs(open_page: OpenPage, sentence: str) -> None:
    query, key = torch.randn(2, len(WORDS), 6)
    page = open_page(mask_view(WORDS, query, key))
    page.get_by_role("textbox", name="sentence").fill(sentence)
    typed = sentence.split()[:10]
    known = {word: torch.cat([query[i], key[i]]) for i, word in enumerate(WORDS)}
    for pads in ("none", "at the end", "in front"):
        page.get_by_role("radiogroup", name="padding").get_by_text(pads, exact=True).click()
        filling = [] if pads == "none" else ["<pad>"] * 3
        words = filling + typed if pads == "in front" else typed + filling
        assert texts(page, ".tpp-matrix tbody button") == words
        assert page.locator(".tpp-matrix thead span").all_text_contents() == words
        if not words:
            assert told(page) == "Type some words."
            continue
        both = [known[w] if w in known else torch.tensor(vector(w, 12)) for w in words]
        queries, keys = torch.stack(both).double().chunk(2, dim=-1)
        real = torch.tensor([word != "<pad>" for word in words])
        everything = torch.ones(len(words), len(words), dtype=torch.bool)
        masks = {
            "none": everything,
            "padding": everything & real,
            "causal": causal_mask(len(words)),
            "both": causal_mask(len(words)) & real,
        }
        for name, mask in masks.items():
            page.get_by_role("radiogroup", name="mask").get_by_text(name, exact=True).click()
            page.get_by_role("radiogroup", name="numbers").get_by_text("weights in %").click()
            cells = matrix(page)
            assert [[cell != "×" for cell in row] for row in cells] == mask.tolist()
            shown = torch.tensor([[float(c.replace("×", "0")) for c in row] for row in cells])
            assert (shown - 100 * attention_weights(queries, keys, mask)).abs().max() < 0.51
            page.get_by_role("radiogroup", name="numbers").get_by_text("scores").click()
            shown = torch.tensor(
                [[float(c.replace("−∞", "-inf")) for c in r] for r in matrix(page)]
            )
            scores = (queries @ keys.T / 6**0.5).masked_fill(~mask, -math.inf)
            torch.testing.assert_close(shown.double(), scores, atol=0.051, rtol=0)


@browser
def test_a_row_tells_in_words_what_it_may_see(open_page: OpenPage) -> None:
    query, key = torch.randn(2, len(WORDS), 6)
    page = open_page(mask_view(WORDS, query, key))
    assert told(page).startswith("Choose a word")
    page.locator(".tpp-matrix tbody button").nth(2).click()
    assert told(page) == (
        'Position 2, "sat", may look at "the", "cat", "sat". Not at "down": it comes later. '
        "Not at 3 <pad>: padding."
    )
    page.get_by_role("radiogroup", name="mask").get_by_text("padding").click()
    assert told(page) == (
        'Position 2, "sat", may look at "the", "cat", "sat", "down". Not at 3 <pad>: padding.'
    )
    page.get_by_role("radiogroup", name="mask").get_by_text("causal").click()
    assert told(page) == (
        'Position 2, "sat", may look at "the", "cat", "sat". '
        'Not at "down", "<pad>", "<pad>", "<pad>": they come later.'
    )
    page.get_by_role("radiogroup", name="padding").get_by_text("in front").click()
    page.get_by_role("radiogroup", name="mask").get_by_text("both").click()
    page.locator(".tpp-matrix tbody tr").nth(1).locator("td").first.click()  # a cell is enough
    assert told(page) == (
        'Position 1, "<pad>", may look at nothing: all its weights are 0. '
        'Not at "the", "cat", "sat", "down": they come later. Not at 3 <pad>: padding.'
    )
    page.locator(".tpp-matrix tbody button").nth(1).click()
    assert told(page).startswith("Choose a word"), "a second click takes it back"


# -------------------------------------------------------------------------------------- positions, in the browser


@browser
@pytest.mark.parametrize("d_model", [2, 32, 512])
def test_every_number_of_a_position_is_torchs(open_page: OpenPage, d_model: int) -> None:
    page = open_page(position_view(d_model))
    table = sinusoidal_positions(101, d_model, torch.float64)
    for p, pair, k in ((0, 0, 0), (60, d_model // 2 - 1, 40), (7, d_model // 4, 5), (31, 0, 40)):
        pair = min(pair, d_model // 2 - 1)
        for name, place in (("position p", p), ("pair i", pair), ("offset k", k)):
            move(page, name, place)
        assert texts(page, "output") == [str(p), str(pair), str(k)]
        assert told(page).startswith(f"Pair {pair}, entries {2 * pair} and {2 * pair + 1}, ")
        cells = torch.tensor([float(cell) for cell in texts(page, ".tpp-pair tbody td")])
        here, there = table[p, 2 * pair : 2 * pair + 2], table[p + k, 2 * pair : 2 * pair + 2]
        assert (cells.view(3, 2) - torch.stack([here, there, there])).abs().max() < 0.00052
        assert texts(page, ".tpp-pair tbody th") == [f"row {p}", "turned", f"row {p + k}"]
        frequency = 10_000 ** (-2 * pair / d_model)
        *_, wave, _, degrees, _, _, product = re.findall(r"-?\d+(?:\.\d+)?", told(page))
        assert float(wave) == pytest.approx(2 * math.pi / frequency, abs=0.051)
        assert float(degrees) == pytest.approx(math.degrees(frequency * k), abs=0.051)
        assert float(product) == pytest.approx((table[p] @ table[p + k]).item(), abs=0.0051)
        # The hands of the clock: the sine to the right, the cosine up.
        for kind, pair_of_row in (("tpp-here", here), ("tpp-there", there)):
            ends = page.evaluate(
                "k => [...document.querySelectorAll(`.tpp-clock line.${k}`)].map(l => "
                "['x1', 'y1', 'x2', 'y2'].map(n => Number(l.getAttribute(n))))",
                kind,
            )
            assert len(ends) == (kind == "tpp-here" or k > 0)
            for x1, y1, x2, y2 in ends:
                hand = torch.tensor([x2 - x1, y1 - y2], dtype=torch.float64)
                torch.testing.assert_close(hand / 44, pair_of_row)


@browser
def test_the_names_at_the_clock_lie_on_nothing(open_page: OpenPage) -> None:
    page = open_page(position_view(32))
    # together, far apart, to the right, to the left, on top, and no second hand
    for p, pair, k in ((10, 8, 4), (0, 4, 10), (5, 2, 20), (30, 3, 1), (10, 0, 1), (8, 2, 0)):
        for name, place in (("position p", p), ("pair i", pair), ("offset k", k)):
            move(page, name, place)
        boxes = page.locator(".tpp-clock text").evaluate_all(
            "names => names.filter(n => n.textContent).map(n => n.getBBox())"
            ".map(b => [b.x, b.y, b.x + b.width, b.y + b.height])"
        )
        assert boxes, f"no name at p {p}, pair {pair}, k {k}"
        for left, top, right, bottom in boxes:
            near = min(max(65, left), right) - 65, min(max(65, top + 3), bottom - 3) - 65
            assert math.hypot(*near) > 44, f"a name across the rim: p {p}, pair {pair}, k {k}"
        overlap = len(boxes) == 2 and all(
            boxes[0][i] < boxes[1][i + 2] and boxes[1][i] < boxes[0][i + 2] for i in (0, 1)
        )
        assert not overlap, f"one name on the other: p {p}, pair {pair}, k {k}"


@browser
def test_the_waves_and_the_dot_products_are_drawn_where_torch_says(open_page: OpenPage) -> None:
    page = open_page(position_view(32))
    move(page, "pair i", 3)
    move(page, "offset k", 9)
    table = sinusoidal_positions(101, 32, torch.float64)
    curves = {"sine": table[:, 6], "cosine": table[:, 7], "product": table[0] @ table[:41].T}
    drawn = page.locator(".tpp-plots path").evaluate_all(
        "paths => paths.map(p => p.getAttribute('d'))"
    )
    for name, path in zip(curves, drawn, strict=True):
        points = torch.tensor([[float(x) for x in p.split()] for p in path[1:].split("L")])
        x, y = points[::4].double().T  # every fourth is a whole number
        expected = curves[name]
        assert len(x) == len(expected)
        for of_plot, truth in (
            (x, torch.arange(len(x))),
            (-y, expected),
        ):  # up to where 0 and 1 are
            straight = (truth - truth.min()) / (truth.max() - truth.min())
            there = (of_plot - of_plot.min()) / (of_plot.max() - of_plot.min())
            assert (straight - there).abs().max() < 0.003, name
    places = page.evaluate(
        "[...document.querySelectorAll('.tpp-plots circle')].map(c => [c.getAttribute('cx'), c.getAttribute('cy')])"
    )
    x, y = torch.tensor([[float(part) for part in place] for place in places]).T
    at = [[float(v) for v in drawn[i][1:].split("L")[4 * n].split()] for i, n in
          ((0, 10), (1, 10), (0, 19), (1, 19), (2, 9))]  # fmt: skip
    assert (torch.stack([x, y], dim=-1) - torch.tensor(at)).abs().max() < 0.06, "dots lie on curves"


@browser
def test_the_dot_product_depends_on_the_offset_alone(open_page: OpenPage) -> None:
    page = open_page(position_view(64))
    products = set()
    for p in (0, 13, 60):
        move(page, "position p", p)
        products.add(re.findall(r"= (-?\d+\.\d+)", told(page))[0])
    assert len(products) == 1
    move(page, "offset k", 5)
    assert re.findall(r"= (-?\d+\.\d+)", told(page))[0] not in products


# --------------------------------------------------------------------------------------- what each of them promises


@browser
@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_done_by_keyboard(open_page: OpenPage, kind: str) -> None:
    page = open_page(views()[kind])
    stops, names = page.locator("input:visible, [role=radiogroup], .tpp-matrix tbody").count(), []
    for _ in range(stops):
        before = told(page)
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px", "the focus is seen"
        focused = page.evaluate(
            "(({tagName, type, ariaLabel, textContent}) => [tagName, type, ariaLabel || textContent])"
            "(document.activeElement)"
        )
        names.append(focused[2])
        if focused[1] == "range":
            page.keyboard.press("ArrowRight")
            assert told(page) != before, "an arrow moves the slider"
            value = page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
            assert value in texts(page, "output"), "and what stands beside it is read aloud"
        elif focused[1] == "text":
            page.keyboard.press("End")
            page.keyboard.type(" cat")
            assert texts(page, ".tpp-matrix tbody button").count("cat") == 2
        elif page.evaluate("document.activeElement.getAttribute('role')") == "radio":
            page.keyboard.press("Home")
            page.keyboard.press("ArrowRight")
            checked = page.evaluate(
                "[...document.activeElement.parentNode.children].map("
                "b => [b === document.activeElement, b.ariaChecked])"
            )
            assert checked[:2] == [[False, "false"], [True, "true"]], "the second is chosen"
        else:
            page.keyboard.press("ArrowDown")
            assert told(page).startswith('Position 1, "cat", may look at')
            page.keyboard.press("Enter")
            assert told(page).startswith("Choose a word")
    assert len(set(names)) == stops, names
    page.keyboard.press("Tab")
    again = page.evaluate(
        "[document.body, document.querySelector('figure input')].includes(document.activeElement)"
    )
    assert again, "there is no other stop"


@browser
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [800, 390])
def test_it_fits_the_screen_and_nothing_below_moves(
    open_page: OpenPage, kind: str, width: int
) -> None:
    page = open_page(views()[kind], width=width, style="font-family: sans-serif")
    shifts = page.evaluate(
        "new Promise(done => { new PerformanceObserver(list => done(list.getEntries().length))"
        ".observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(0), 300); })"
    )
    assert shifts == 0, "the table gives way to the view before anything is painted"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.locator(".tpp-view button, .tpp-view input").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24, box
    below = page.locator("#below").bounding_box()
    for name in page.get_by_role("slider").evaluate_all("s => s.map(i => i.ariaLabel)"):
        for place in (0, 5, 1000):
            move(page, name, place)
            assert page.locator("#below").bounding_box() == below, (name, place)
    for group, choice in (
        (("mask", "both"), ("mask", "none"), ("numbers", "scores")) if kind == "mask" else ()
    ):
        page.get_by_role("radiogroup", name=group).get_by_text(choice).click()
        page.locator(".tpp-matrix tbody button").nth(1).click()
        assert page.locator("#below").bounding_box() == below, (group, choice)


@browser
@pytest.mark.parametrize("javascript", [True, False], ids=["script", "table"])
def test_axe_finds_nothing(open_page: OpenPage, axe: Axe, theme: str, javascript: bool) -> None:
    shown = list(views().values())
    page = open_page(*shown, style=theme)
    if javascript:
        page.locator(".tpp-matrix tbody button").nth(1).click()
    else:
        page.evaluate(
            "html => { document.querySelector('main').innerHTML = html; }",
            "<h1>Views</h1>" + "".join(view.fallback for view in shown),
        )
        assert page.locator("table").count() == len(shown)
    assert not axe(page)


@browser
def test_without_javascript_a_table_of_torchs_numbers_is_there(open_page: OpenPage) -> None:
    scores, (query, key) = torch.randn(3).double(), torch.randn(2, len(WORDS), 6)
    wide_query, wide_keys = torch.randn(16).double(), torch.randn(4, 16).double()
    given = [
        temperature_view(scores, ["a", "b", "c"]),
        scale_view(wide_query, wide_keys),
        mask_view(WORDS, query, key),
        position_view(32),
    ]
    page = open_page(*given, java_script_enabled=False)
    assert page.locator("input, button").count() == 0
    softmaxes = [(scores / float(t)).softmax(dim=-1) for t in (10, 1, 0.1, 0.01)]
    dots = {width: wide_keys[:, :width] @ wide_query[:width] for width in (1, 2, 4, 8, 16)}
    widths = [*dots.values(), *(dot / math.sqrt(width) for width, dot in dots.items())]
    order = [0, 1, 2, 3, 4, 4, 4]
    mask = causal_mask(7) & torch.tensor([True] * 4 + [False] * 3)
    masked = attention_weights(query[order].double(), key[order].double(), mask)
    rows = sinusoidal_positions(101, 32, torch.float64)
    offsets = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40])
    products = torch.stack([rows[p] @ rows[p + offsets].T / 16 for p in (0, 20, 60)])
    truths = [torch.stack(softmaxes), torch.stack(widths).softmax(dim=-1), masked, products]
    for table, truth in zip(page.locator("table").all(), truths, strict=True):
        cells = table.locator("tbody td").all_inner_texts()
        shown = torch.tensor([float(cell.replace("×", "0")) for cell in cells])
        assert (shown.view(truth.shape) - 100 * truth).abs().max() <= 0.56
        if truth is masked:
            forbidden = torch.tensor([cell == "×" for cell in cells]).view(7, 7)
            assert torch.equal(forbidden, ~mask)


@browser
def test_views_on_one_page_leave_each_other_alone(open_page: OpenPage) -> None:
    page = open_page(*views().values(), position_view(16))
    figures = page.locator("figure.tpp-view")
    before = [figure.inner_html() for figure in figures.all()]
    last = figures.last.get_by_role("slider", name="offset k")
    last.press("ArrowRight")
    after = [figure.inner_html() for figure in figures.all()]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True] * 4 + [False]
    assert page.evaluate("document.querySelectorAll('[id]').length") == 1, "no ids that could meet"


def test_the_data_are_no_script_and_hold_the_words_as_they_are() -> None:
    html = views()["temperature"]._repr_html_()
    [data] = re.findall(r'<script type="application/json">(.*?)</script>', html, re.S)
    assert json.loads(data)["keys"] == NASTY
