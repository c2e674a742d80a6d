"""The interactive view of attention: its data against torch, and what a reader meets in a real browser.

The tests marked `browser` need Chromium and playwright; without them they are skipped, but under CI they fail.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transformer_lib.book.views import (
    View,
    attention_view,
    model_view,
    scale_view,
    translation_view,
)
from transformer_lib.inspection import record_attention
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.transformer import Transformer
from transformer_lib.translator import Translator

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "transformer_lib" / "book" / "static"
NASTY = ["</script>", "<!--", "<b>&amp;", '"', "'", "$x$", "", " ", "\n", "ä​", "🎈"]


def random_weights(*shape: int) -> Tensor:
    return torch.randn(*shape).mul(2).softmax(dim=-1)


def data_of(view: View) -> dict[str, Any]:
    """What the view's script is given."""
    [data] = re.findall(r'<script type="application/json">(.*?)</script>', view._repr_html_(), re.S)
    held: dict[str, Any] = json.loads(data)
    return held


def weights_of(group: dict[str, Any]) -> list[Tensor]:
    """(heads, queries, keys) of each layer, as the script sees them."""
    shape = (-1, len(group["queries"]), len(group["keys"]))
    return [torch.tensor(layer).view(shape) / 1000 for layer in group["layers"]]


@pytest.fixture
def translator(tiny: Callable[..., Transformer]) -> Translator:
    """An untrained one whose numbers of layers and heads are not the shipped one's."""
    tokenizer = train_tokenizer(["Die Maus läuft.", "The mouse runs.", "mouse Maus"] * 9, 290)
    sizes = {"num_heads": 8, "num_encoder_layers": 1, "num_decoder_layers": 3}
    return Translator(tiny(vocab_size=tokenizer.get_vocab_size(), **sizes), tokenizer)


# ------------------------------------------------------------------------------------------- what Python makes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_data_are_the_weights_rounded_to_thousandths(dtype: torch.dtype) -> None:
    weights = random_weights(2, 3, 4, 5).to(dtype).requires_grad_()
    [group] = data_of(attention_view(weights, list("abcd"), list("vwxyz")))["groups"]
    assert (torch.stack(weights_of(group)) - weights).abs().max() <= 0.0005 + 1e-6
    assert (group["queries"], group["keys"]) == (list("abcd"), list("vwxyz"))


def test_one_layer_may_be_given_without_its_dimension_and_layers_may_differ_in_heads() -> None:
    weights = random_weights(3, 4, 4)
    one = data_of(attention_view(weights, list("abcd")))
    assert one == data_of(attention_view(weights[None], list("abcd"), list("abcd")))
    [group] = data_of(attention_view([weights, weights[:1]], list("abcd")))["groups"]
    assert [len(layer) for layer in group["layers"]] == [3, 1]


def test_groups_keep_their_names_order_and_tokens() -> None:
    weights = {"mine": random_weights(1, 2, 3), "theirs": random_weights(2, 2, 2, 2)}
    queries = {"theirs": ["a", "b"], "mine": ["c", "d"]}
    keys = {"mine": ["x", "y", "z"], "theirs": ["u", "v"]}
    view = attention_view(weights, queries, keys, start=("theirs", 1, 0))
    data = data_of(view)
    assert [(g["name"], g["queries"], g["keys"]) for g in data["groups"]] == [
        ("mine", ["c", "d"], ["x", "y", "z"]),
        ("theirs", ["a", "b"], ["u", "v"]),
    ]
    assert data["start"] == {"group": 1, "layer": 1, "head": 0}
    assert "mine of 2 to 3 tokens, heads of its layers: [1]; theirs" in repr(view)


@pytest.mark.parametrize(
    ("weights", "queries", "keys", "words"),
    [
        (torch.ones(1, 4, 4), ["a"] * 3, None, ["(1, 4, 4)", "3 queries", "3 keys"]),
        (torch.ones(2, 1, 4, 3), ["a"] * 3, ["b"] * 4, ["(1, 4, 3)", "3 queries", "4 keys"]),
        (torch.ones(4, 4), ["a"] * 4, None, ["(4, 4)", "4 queries"]),
        (torch.ones(1, 1, 1, 4, 4), ["a"] * 4, None, ["(1, 1, 4, 4)"]),
        (torch.ones(0, 1, 2, 2), ["a"] * 2, None, ["no layer"]),
        (torch.ones(1, 0, 0), [], None, ["(1, 0, 0)", "0 queries"]),
        (torch.ones(1, 2, 2), "ab", None, ["'ab'"]),
        (torch.randn(1, 2, 2) - 5, ["a"] * 2, None, ["between 0 and 1", "-"]),
        (torch.full((1, 2, 2), float("nan")), ["a"] * 2, None, ["between 0 and 1", "nan"]),
        ({"x": torch.ones(1, 2, 2)}, ["a"] * 2, None, ["'x'", "have none"]),
        ({"x": torch.ones(1, 2, 2)}, {"y": ["a"] * 2}, None, ["'x'", "'y'"]),
        ({"x": torch.ones(1, 2, 2)}, {"x": ["a"] * 3}, None, ["'x'", "(1, 2, 2)", "3 queries"]),
        ({}, {}, {}, ["[]"]),
    ],
)
def test_what_does_not_fit_is_refused_by_a_message_that_names_both(
    weights: Any, queries: Any, keys: Any, words: list[str]
) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        attention_view(weights, queries, keys)


def test_a_start_that_is_not_there_is_refused_and_the_message_says_what_is() -> None:
    with pytest.raises(ValueError, match=r"no start \(2, 0\).*\[3, 3\]"):
        attention_view(random_weights(2, 3, 2, 2), ["a", "b"], start=(2, 0))


def test_the_same_weights_give_the_same_html() -> None:
    weights = random_weights(2, 2, 3, 3)
    one, other = (attention_view(weights, list("abc"))._repr_html_() for _ in range(2))
    assert one == other


def test_the_table_shows_the_start_in_percent() -> None:
    weights = random_weights(2, 2, 3, 4)
    html = attention_view(weights, list("abc"), list("wxyz"), start=(1, 0))._repr_html_()
    table = html[html.index("<table") : html.index("</table>")]
    cells = [int(number) for number in re.findall(r"<td[^>]*>(\d+)</td>", table)]
    assert (torch.tensor(cells).view(3, 4) - 100 * weights[1, 0]).abs().max() <= 0.56
    assert re.findall(r"<th [^>]*>(.*?)</th>", table) == [*"wxyz", *"abc"]
    assert "layer 1, head 0" in html


def test_code_and_data_are_small_and_load_nothing(loads: Callable[[str], list[str]]) -> None:
    files = [f"{name}.{kind}" for name in ("view", "attention-view") for kind in ("css", "js")]
    code = "".join((STATIC / name).read_text() for name in files)
    assert len(code.encode()) < 20_000
    assert not loads(code)
    groups = {"encoder": 3, "decoder": 2, "cross": 2}
    weights = {name: random_weights(layers, 4, 20, 20) for name, layers in groups.items()}
    tokens = {name: ["Maustaste"] * 20 for name in groups}
    view = attention_view(weights, tokens)
    assert len(json.dumps(data_of(view), separators=(",", ":"))) < 60_000
    assert len(view._repr_html_().encode()) < 100_000, "with code and table"


def test_nbval_overlooks_how_weights_are_rounded_and_nothing_else(
    clean: Callable[[str], str],
) -> None:
    weights, others = random_weights(2, 2, 3, 3), random_weights(2, 2, 3, 3)
    one, other, renamed = (
        clean(attention_view(shown, list(tokens))._repr_html_())
        for shown, tokens in ((weights, "abc"), (others, "abc"), (weights, "abd"))
    )
    assert one == other != renamed
    one, other, longer = (
        clean(scale_view(torch.randn(d_k), torch.randn(3, d_k))._repr_html_()) for d_k in (4, 4, 8)
    )
    assert one == other != longer


def test_the_chapters_hold_the_views_as_they_are_now() -> None:
    kinds = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                html = "".join(output.get("data", {}).get("text/html", ""))
                if not html.startswith('<figure class="tpp-view'):
                    continue
                [kind] = re.findall(r'^<figure class="tpp-view[^>]* data-kind="(\w+)"', html)
                now = View(kind, {}, "", "")._repr_html_()
                for part in now[now.index("<style>") :].split("{}", 1):  # around the data
                    assert part in html, f"{path.name}: run it again, the {kind} view has changed"
                kinds.add(kind)
    assert kinds >= {"attention", "softmax", "mask", "position"}, kinds


def test_a_translation_has_three_groups_with_the_models_own_weights(translator: Translator) -> None:
    view = translation_view(translator, "Die Maus läuft.", "The mouse runs.")
    groups = {group["name"]: group for group in data_of(view)["groups"]}
    assert list(groups) == ["encoder", "decoder", "cross"]
    ids = [translator.tokenizer.encode(text).ids for text in ("Die Maus läuft.", "The mouse runs.")]
    with record_attention(translator.model) as recorded, torch.no_grad():
        translator.model(torch.tensor([[*ids[0], 2]]), torch.tensor([[1, *ids[1]]]))
    for name, of_layer in recorded.items():
        stack, _, layer, kind = name.split(".")
        group = groups["cross" if kind == "cross_attention" else stack]
        assert (weights_of(group)[int(layer)] - of_layer[0]).abs().max() <= 0.0005 + 1e-6, name
    assert len(groups["encoder"]["layers"]) == 1
    assert len(groups["cross"]["layers"]) == len(groups["decoder"]["layers"]) == 3
    assert groups["cross"]["keys"] == groups["encoder"]["keys"]
    assert groups["encoder"]["keys"][-1] == groups["cross"]["queries"][-1] == "<eos>"
    assert groups["decoder"]["queries"] == ["<bos>", *groups["cross"]["queries"][:-1]]
    assert "".join(groups["encoder"]["keys"][:-1]).replace("…", "") == "DieMausläuft."


def test_of_a_translation_the_translator_writes_itself() -> None:
    translator = Translator.from_pretrained()
    [written] = translator.translate(["Öffnen Sie die Tabelle."])
    view = translation_view(translator, "Öffnen Sie die Tabelle.", start=("cross", 1, 2))
    assert written in view.caption
    assert data_of(view)["start"] == {"group": 2, "layer": 1, "head": 2}
    *_, cross = data_of(view)["groups"]
    table = cross["queries"].index("table")
    seen = [weights[:, table].argmax(dim=-1) for weights in weights_of(cross)]
    assert any(cross["keys"][key] == "Tabelle" for heads in seen for key in heads)


def test_a_model_in_training_is_looked_at_without_dropout_and_goes_on_training(
    tiny: Callable[..., Transformer],
) -> None:
    model, ids = tiny(dropout=0.5, attention_dropout=0.5), torch.tensor([[5, 6, 7]])
    quiet = model_view(model, ids, ids, list("abc"), list("xyz"))
    assert model_view(model.train(), ids, ids, list("abc"), list("xyz")) == quiet
    assert all(part.training for part in model.modules())
    with pytest.raises(ValueError, match=r"'encoder'.*\(2, 3, 3\).*2 queries"):
        model_view(model, ids, ids, list("ab"), list("xyz"))


# ------------------------------------------------------------------------------------------------ the browser


OpenPage = Callable[..., Any]
Axe = Callable[[Any], list[str]]
browser = pytest.mark.browser
TOKEN = ".tpp-tokens > div:nth-of-type({side}) button:nth-of-type({number})"
NUMBERS = "n => [...document.querySelectorAll(`.tpp-tokens > div:nth-of-type(${n}) b`)].map(b => b.textContent)"


def token(page: Any, side: int, number: int) -> Any:
    """The button of a query (side 0) or key (side 1)."""
    return page.locator(TOKEN.format(side=side + 1, number=number + 1))


def numbers(page: Any, side: int) -> Tensor:
    """What stands beside the queries (side 0) or keys (side 1); nothing is 0."""
    return torch.tensor([float(number or 0) for number in page.evaluate(NUMBERS, side + 1)])


@browser
def test_every_number_of_every_head_is_torchs(open_page: OpenPage) -> None:
    layers = {"encoder": (1, 3, 3), "cross": (2, 4, 3)}  # layers, queries, keys
    weights = {name: random_weights(n, 2, q, k) for name, (n, q, k) in layers.items()}
    queries = {"encoder": list("abc"), "cross": list("wxyz")}
    page = open_page(attention_view(weights, queries, {name: list("abc") for name in layers}))
    for name, of_group in weights.items():
        page.get_by_role("radio", name=name, exact=True).click()
        for layer, of_layer in enumerate(of_group):
            for head, of_head in enumerate(of_layer):
                page.get_by_role("radio", name=f"layer {layer}, head {head}").click()
                assert page.locator(".tpp-title").text_content() == (
                    f"{name}, layer {layer}, head {head}"
                )
                for side, rows in enumerate((of_head, of_head.T)):
                    for number, row in enumerate(rows):
                        token(page, side, number).hover()
                        assert (numbers(page, 1 - side) - row).abs().max() < 0.0056
                        assert not numbers(page, side).any(), "its own side has no numbers"


@browser
def test_the_thumbnails_show_the_weights(open_page: OpenPage) -> None:
    weights = random_weights(2, 3, 4, 5)
    page = open_page(attention_view(weights, list("abcd"), list("vwxyz")))
    alphas = page.evaluate(
        "[...document.querySelectorAll('.tpp-heads canvas')].map(c => "
        "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3))"
    )
    shown = (torch.tensor(alphas) / 255).view(2, 3, 4, 5)
    assert (shown - weights**0.6).abs().max() < 0.02


@browser
def test_a_token_is_shown_in_words_and_by_lines(open_page: OpenPage) -> None:
    weights = torch.tensor([[0.81, 0.15, 0.04, 0.0], [0.0, 0.0, 0.0, 0.0]])[None]
    page = open_page(attention_view(weights, ["Maus", "."], ["mouse", "the", ".", "the"]))
    text, lines = page.locator(".tpp-text"), page.locator(".tpp-tokens line")
    assert lines.count() == 3, "without a token all lines are there, but those of no weight"
    token(page, 0, 0).hover()
    assert text.text_content() == '"Maus" looks at: "mouse" 0.81, "the" (1) 0.15, "." 0.04'
    assert text.get_attribute("aria-live") == "polite"
    token(page, 1, 0).hover()
    assert text.text_content() == '"mouse" is looked at by: "Maus" 0.81'
    assert lines.count() == 1
    token(page, 0, 1).click()
    assert text.text_content() == '"." looks at: nothing'
    page.mouse.move(1, 1)
    assert text.text_content() == '"." looks at: nothing', "a click stays"
    token(page, 0, 0).hover()
    page.keyboard.press("ArrowRight")
    assert text.text_content() == '"the" (1) is looked at by: "Maus" 0.15', "a key counts, too"
    page.keyboard.press("Escape")
    assert lines.count() == 3, "Escape takes it back"
    token(page, 0, 1).click()
    token(page, 0, 1).click()
    page.mouse.move(1, 1)
    assert lines.count() == 3, "a second click takes it back"


@browser
def test_everything_can_be_done_by_keyboard(open_page: OpenPage) -> None:
    weights = {"one": [random_weights(3, 4, 5), random_weights(1, 4, 5)]}
    weights["two"] = [random_weights(2, 4, 5)]
    queries, keys = ({name: list(words) for name in weights} for words in ("abcd", "vwxyz"))
    page = open_page(attention_view(weights, queries, keys))

    def press(*names: str) -> str:
        for name in names:
            page.keyboard.press(name)
        return str(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || "
                "document.activeElement.querySelector('span')?.textContent || "
                "document.activeElement.textContent"
            )
        )

    def text(selector: str) -> str:
        return str(page.locator(selector).text_content())

    assert press("Tab") == "one", "one stop for the groups"
    assert press("Tab") == "layer 0, head 0", "one for the heads"
    assert press("ArrowRight", "ArrowRight", "ArrowRight") == "layer 0, head 2", "no further"
    assert press("ArrowDown") == "layer 1, head 0", "this layer has only one"
    assert text(".tpp-title") == "one, layer 1, head 0"
    assert press("ArrowUp", "End") == "layer 0, head 2"
    assert press("Home") == "layer 0, head 0"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px", "the focus is seen"

    assert press("Tab") == "a", "and one for the tokens"
    assert text(".tpp-text").startswith('"a" looks at: ')
    assert press("ArrowDown", "ArrowDown") == "c"
    assert press("ArrowRight") == "x"
    assert text(".tpp-text").startswith('"x" is looked at by: ')
    assert press("End") == "z"
    assert press("ArrowLeft") == "d", "there are fewer queries"
    press("Escape")
    assert text(".tpp-text").startswith("Point at a token")
    press("Enter")
    assert text(".tpp-text").startswith('"d" looks at: '), "Enter is a click"

    assert press("Shift+Tab") == "layer 0, head 0"
    press("ArrowRight")
    assert text(".tpp-text").startswith('"d" looks at: '), "the token stays, the head changes"
    assert (numbers(page, 1) - weights["one"][0][1, 3]).abs().max() < 0.0056
    assert press("Shift+Tab", "ArrowRight") == "two"
    assert text(".tpp-title") == "two, layer 0, head 1"
    checked = page.locator('[role="radio"][aria-checked="true"]')
    assert checked.count() == 2, "one group and one head are chosen"


@browser
def test_a_tap_is_enough(open_page: OpenPage) -> None:
    view = attention_view(random_weights(1, 3, 3), list("abc"))
    page = open_page(view, width=390, has_touch=True, is_mobile=True)
    token(page, 0, 1).tap()
    assert page.locator(".tpp-text").text_content().startswith('"b" looks at: ')


@browser
def test_views_on_one_page_leave_each_other_alone(open_page: OpenPage) -> None:
    weights = random_weights(1, 2, 3, 3)
    view = attention_view(weights, list("abc"))
    page = open_page(view, view, attention_view(weights, list("xyz")))
    figures = page.locator("figure.tpp-view")
    before = [figures.nth(i).inner_html() for i in range(3)]
    figures.nth(1).get_by_role("radio", name="layer 0, head 1").click()
    figures.nth(1).locator(".tpp-tokens button").first.click()
    after = [figures.nth(i).inner_html() for i in range(3)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]
    assert page.evaluate("document.querySelectorAll('[id]').length") == 1, "no ids that could meet"


@browser
def test_any_token_is_shown_as_it_is(open_page: OpenPage) -> None:
    page = open_page(attention_view(random_weights(1, len(NASTY), len(NASTY)), NASTY))
    shown = page.locator(".tpp-tokens > div:first-child span").all_text_contents()
    assert shown == [{"": "∅", " ": "␣", "\n": "⏎"}.get(word, word) for word in NASTY]
    assert page.locator("#below").text_content() == "What comes below."


@browser
@pytest.mark.parametrize("javascript", [True, False], ids=["script", "table"])
def test_axe_finds_nothing(
    open_page: OpenPage,
    axe: Axe,
    theme: str,
    javascript: bool,
    without_script: Callable[[Any, View], None],
) -> None:
    groups = {"encoder": random_weights(2, 12, 20, 20), "cross": torch.eye(20)[None]}
    tokens = {name: [f"w{i}" for i in range(20)] for name in groups}
    view = attention_view(groups, tokens, start=("cross", 0, 0), caption="A caption")
    page = open_page(view, style=theme)
    if javascript:
        token(page, 0, 0).click()
        for number in range(20):  # every density of the color that a token can have
            page.evaluate(
                "([i, a]) => { const b = document.querySelectorAll('.tpp-tokens > div:last-child button')[i];"
                "b.style.backgroundColor = `rgba(213, 94, 0, ${0.55 * (a / 20) ** 0.6})`; }",
                [number, number + 1],
            )
    else:
        without_script(page, view)
        assert page.locator("table").count() == 1
    assert not axe(page)


@browser
def test_a_phone_shows_it_whole(open_page: OpenPage) -> None:
    words = ["Benutzeroberflächenelement"] * 12
    views = [attention_view(random_weights(2, heads, 12, 12), words) for heads in (4, 16)]
    page = open_page(*views, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator(".tpp-view button:visible").all()[::5]:
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24, box


@browser
@pytest.mark.parametrize("width", [800, 390])
def test_nothing_below_moves(open_page: OpenPage, width: int) -> None:
    weights = {"long": random_weights(1, 2, 9, 9), "short": random_weights(1, 2, 2, 2)}
    tokens = {"long": [f"word{i}" for i in range(9)], "short": ["a", "b"]}
    page = open_page(attention_view(weights, tokens), width=width)
    shifts = page.evaluate(
        "new Promise(done => { new PerformanceObserver(list => done(list.getEntries().length))"
        ".observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(0), 300); })"
    )
    assert shifts == 0, "the table gives way to the view before anything is painted"
    places = [page.locator("#below").bounding_box()]
    for action in (
        lambda: token(page, 0, 3).click(),
        lambda: token(page, 1, 8).hover(),
        lambda: page.get_by_role("radio", name="short", exact=True).click(),
        lambda: token(page, 0, 1).click(),
    ):
        action()
        places.append(page.locator("#below").bounding_box())
    assert places == places[:1] * 5


@browser
def test_without_javascript_the_table_is_there(open_page: OpenPage) -> None:
    weights = random_weights(1, 3, 3)
    page = open_page(attention_view(weights, list("abc")), java_script_enabled=False)
    cells = [int(cell) for cell in page.locator("td:not(:empty)").all_text_contents()]
    assert (torch.tensor(cells).view(3, 3) - 100 * weights[0]).abs().max() <= 0.56
    assert page.locator("button").count() == 0
