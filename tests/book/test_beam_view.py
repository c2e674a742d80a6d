"""The view of beam search: every number against the library's own search, and what a reader meets in a browser."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transformer_lib.book.beam_view import Candidate, beam_view, record_beam_search
from transformer_lib.book.views import View
from transformer_lib.decoding import Hypothesis, beam_search, greedy_decode
from transformer_lib.tokenizer import BOS_ID, EOS_ID, train_tokenizer
from transformer_lib.transformer import Transformer, TransformerConfig
from transformer_lib.translator import Translator

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "transformer_lib" / "book" / "static"
TEXT = "Die Klammergröße wird automatisch angepasst."
ALPHAS = [0.0, 0.3, 0.6, 1.0, 2.0]
WIDTHS = [1, 2, 4, 8]
LIMIT = 14

OpenPage = Callable[..., Any]
browser = pytest.mark.browser


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator.from_pretrained("de-en")


@pytest.fixture(scope="module")
def view(translator: Translator) -> View:
    return beam_view(translator, TEXT)


def source_of(translator: Translator, text: str = TEXT) -> Tensor:
    return torch.tensor([[*translator.tokenizer.encode(text).ids, EOS_ID]])


def small(seed: int, vocab_size: int = 9) -> Transformer:
    """A random model whose probabilities are not all alike."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(vocab_size, 16, 2, 32, 1, 1)).eval()
    with torch.no_grad():
        model.embedding.weight *= 1 + seed % 3
    return model


def searched(
    steps: list[list[Candidate]], beam_size: int, limit: int, alpha: float
) -> list[Hypothesis]:
    """What beam search says, from the record alone: equations 16.2 and 16.3."""
    penalty = [((5 + n) / 6) ** alpha for n in range(limit + 1)]
    finished: list[Hypothesis] = []
    for length, step in enumerate(steps, 1):
        kept = [c for c in step if c.fate == "kept"]
        for c in step:
            if c.fate == "finished":
                p = c.log_probability
                finished.append(Hypothesis(c.tokens[:-1], p / penalty[length], p))
        finished.sort(key=lambda found: -found.score)
        bound = kept[0].log_probability / penalty[limit]
        if finished and (length == limit or finished[0].score >= bound):
            return finished[:beam_size]
    return [
        Hypothesis(c.tokens, c.log_probability / penalty[limit], c.log_probability) for c in kept
    ]


def assert_same(ours: list[Hypothesis], theirs: list[Hypothesis]) -> None:
    assert [h.tokens for h in ours] == [h.tokens for h in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=1e-4)


# ------------------------------------------------------------------------------------------- what Python records


@pytest.mark.parametrize("beam_size", [1, 2, 3, 4])
def test_the_record_holds_what_beam_search_finds(beam_size: int) -> None:
    unfinished = 0
    for seed in range(8):
        model, limit = small(seed), 3 + seed
        source = torch.randint(3, 9, (1, 4))
        steps = record_beam_search(model, source, limit, beam_size)
        assert len(steps) == limit
        for alpha in ALPHAS:
            [expected] = beam_search(model, source, limit, beam_size, alpha)
            assert_same(searched(steps, beam_size, limit, alpha), expected)
            unfinished += len(expected[0].tokens) == limit
    assert unfinished or beam_size == 4, "a narrow beam sometimes finds nothing that ends"


@pytest.mark.parametrize("beam_size", WIDTHS)
def test_the_record_of_the_shipped_translator(translator: Translator, beam_size: int) -> None:
    source = source_of(translator)
    steps = record_beam_search(translator.model, source, LIMIT, beam_size)
    for alpha in ALPHAS:
        [expected] = beam_search(translator.model, source, LIMIT, beam_size, alpha)
        assert_same(searched(steps, beam_size, LIMIT, alpha), expected)


def test_candidates_are_the_likeliest_of_all_and_their_fates_follow_from_their_ranks() -> None:
    source, fates = torch.tensor([[3, 4, 5, EOS_ID]]), set()
    for seed in range(4):
        model = small(seed)
        beams: list[list[int]] = [[]]
        for step in record_beam_search(model, source, 6, 3):
            every = {}  # all continuations, without a cache
            for beam in beams:
                with torch.inference_mode():
                    logits = model(source, torch.tensor([[BOS_ID, *beam]]))[0]
                log_p = logits.log_softmax(dim=-1)
                before = sum(log_p[i, token].item() for i, token in enumerate(beam))
                every |= {(*beam, token): before + log_p[-1, token].item() for token in range(9)}
            best = sorted(every.values(), reverse=True)[:6]
            assert [c.log_probability for c in step] == pytest.approx(best, abs=1e-4)
            for c in step:
                assert c.log_probability == pytest.approx(every[tuple(c.tokens)], abs=1e-4)
                assert (c.fate == "finished") == (c.tokens[-1] == EOS_ID)
            open_ones = [c for c in step if c.fate != "finished"]
            assert [c.fate for c in open_ones] == ["kept"] * 3 + ["dropped"] * (len(open_ones) - 3)
            beams = [c.tokens for c in open_ones[:3]]
            fates |= {c.fate for c in step}
    assert fates == {"kept", "finished", "dropped"}


def test_parents_are_the_places_of_what_is_continued() -> None:
    behind = 0
    for seed in range(4):
        steps = record_beam_search(small(seed), torch.tensor([[3, 4, EOS_ID]]), 6, 3)
        for before, step in itertools.pairwise(steps):
            for c in step:
                assert before[c.parent].tokens == c.tokens[:-1]
                assert before[c.parent].fate == "kept"
                behind += any(other.fate == "finished" for other in before[: c.parent])
    assert behind, "some are continued that stand behind a finished one"


def test_a_model_in_training_goes_on_training_and_is_recorded_without_dropout() -> None:
    model, source = small(0), torch.tensor([[3, 4, EOS_ID]])
    quiet = record_beam_search(model, source, 4, 2)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    assert record_beam_search(model.train(), source, 4, 2) == quiet
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beam_size": 3}, ["3", "[1, 2, 4, 8]"]),
        ({"beam_sizes": (4, 0)}, ["beam_size", "0"]),
        ({"length_penalty": 3.0}, ["length_penalty", "3.0"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "0"]),
        ({"max_new_tokens": 100_000}, ["max_new_tokens", "100000"]),
    ],
)
def test_bad_input_is_refused(
    translator: Translator, change: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        beam_view(translator, TEXT, **change)


def test_several_sources_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        record_beam_search(small(0), torch.full((2, 3), 4), 4, 2)


def test_the_data_are_the_record(translator: Translator, view: View) -> None:
    decode = translator.tokenizer.decode
    [greedy] = greedy_decode(translator.model, source_of(translator), LIMIT)
    for tree, size in zip(view.data["trees"], WIDTHS, strict=True):
        steps = record_beam_search(translator.model, source_of(translator), LIMIT, size)
        assert tree["size"] == size
        for shown, step in zip(tree["steps"], steps, strict=True):
            for told, c in zip(shown, step, strict=True):
                assert (told["parent"], told["fate"]) == (c.parent, c.fate)
                assert told["p"] == pytest.approx(c.log_probability, abs=6e-5)
                assert told["text"] == decode(c.tokens).strip()
                assert told["name"].replace("…", "") in (*told["text"].split()[-1:], "<eos>") or (
                    told["text"].endswith(told["name"].replace("…", ""))
                )
                assert told["greedy"] == (c.tokens == [*greedy, EOS_ID][: len(c.tokens)])
    assert view.data["greedy"]["text"] == decode(greedy).strip()
    assert view.data["greedy"]["length"] == len(greedy) + 1


def test_the_same_text_gives_the_same_html(translator: Translator, view: View) -> None:
    assert beam_view(translator, TEXT)._repr_html_() == view._repr_html_()


def test_code_is_small_and_loads_nothing(view: View, loads: Callable[[str], list[str]]) -> None:
    code = "".join((STATIC / f"{n}.{k}").read_text() for n in ("view", "beam-view") for k in ("css", "js"))  # fmt: skip
    assert not loads(code)
    data = json.dumps(view.data, ensure_ascii=False, separators=(",", ":"))
    assert len(view._repr_html_().encode()) - len(data.encode()) < 60_000


def test_nbval_overlooks_how_numbers_are_rounded_and_nothing_else(
    view: View, clean: Callable[[str], str]
) -> None:
    html = view._repr_html_()
    other = re.sub(r'"p":-(\d+)\.\d+', r'"p":-\1.1234', html)
    assert html != other
    assert clean(html) == clean(other)
    assert clean(html) != clean(html.replace('"fate":"kept"', '"fate":"dropped"', 1))
    assert clean(html) != clean(html.replace('"name":"are"', '"name":"is"', 1))


# ------------------------------------------------------------------------------------------------ the browser


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def choose(page: Any, width: int, alpha: float) -> None:
    """Set the beam's width and the length penalty, and go to the end of the search."""
    page.get_by_role("radio", name=f"beam {width}", exact=True).click()
    page.locator(".tpp-slider input").evaluate(
        "(input, tenths) => { input.value = tenths; input.dispatchEvent(new Event('input')); }",
        round(10 * alpha),
    )
    assert page.locator(".tpp-slider output").text_content() == f"{alpha:.1f}"
    page.get_by_role("button", name="Back").press("End")


def found_in(page: Any) -> list[tuple[str, float, int, float]]:
    """The rows of the table of finished translations."""
    rows = page.evaluate(
        "[...document.querySelectorAll('.tpp-found tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    )
    return [(text, number(p), int(length), number(score)) for text, p, length, score in rows]


@browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_winner_and_its_numbers_are_beam_searchs(
    open_page: OpenPage, translator: Translator, view: View, width: int
) -> None:
    page, source, winners = open_page(view), source_of(translator), set()
    for alpha in ALPHAS:
        choose(page, width, alpha)
        [expected] = beam_search(translator.model, source, LIMIT, width, alpha)
        shown = found_in(page)
        for (text, p, length, score), theirs in zip(shown, expected[:4], strict=False):
            assert translator.tokenizer.decode(theirs.tokens) == (
                text.removeprefix("★ ").removesuffix(" (greedy)")
            )
            assert length == len(theirs.tokens) + 1
            assert (p, score) == pytest.approx((theirs.log_probability, theirs.score), abs=0.0056)
        assert shown[0][0].startswith("★ ")
        assert len(shown) >= min(4, len(expected))
        winners.add(shown[0][0])
    assert len(winners) > 1 or width == 1, "the penalty changes the winner"


@browser
def test_the_winner_of_another_sentence_with_nothing_finished(open_page: OpenPage) -> None:
    tokenizer = train_tokenizer(["Die Maus läuft.", "The mouse runs.", "mouse Maus"] * 9, 290)
    torch.manual_seed(3)
    model = Transformer(TransformerConfig(tokenizer.get_vocab_size(), 16, 2, 32, 1, 1))
    untrained = Translator(model, tokenizer)
    page = open_page(beam_view(untrained, "Die Maus", (1, 3), beam_size=3, max_new_tokens=4))
    choose(page, 3, 0.6)
    source = torch.tensor([[*tokenizer.encode("Die Maus").ids, EOS_ID]])
    [expected] = beam_search(model, source, 4, 3)
    assert len(expected[0].tokens) == 4, "nothing ends"
    assert "nothing has ended" in page.locator(".tpp-text").text_content()
    _, p, length, score = found_in(page)[0]
    assert length == 4
    assert (p, score) == pytest.approx(expected[0][:0:-1], abs=0.0056)


@browser
@pytest.mark.parametrize("width", [2, 4])
def test_each_step_shows_its_candidates_with_their_numbers_and_fates(
    open_page: OpenPage, translator: Translator, view: View, width: int
) -> None:
    page = open_page(view)
    page.get_by_role("radio", name=f"beam {width}", exact=True).click()
    steps = record_beam_search(translator.model, source_of(translator), LIMIT, width)
    names = {"kept": "goes on", "finished": "finished", "dropped": "dropped"}
    for number_of_step, step in enumerate(steps[:7], 1):
        nodes = page.locator(f'.tpp-tree [aria-label="step {number_of_step}"] button')
        shown = nodes.evaluate_all(
            "all => all.map(b => [b.getAttribute('aria-label'), b.querySelector('b').textContent, b.offsetTop])"
        )
        assert len(shown) == len(step) == 2 * width
        ranked = [c for c in step if c.fate == "kept"] + [c for c in step if c.fate != "kept"]
        for (label, small_print, _), c in zip(shown, ranked, strict=True):
            assert number(small_print.lstrip("G✕ ")) == pytest.approx(c.log_probability, abs=0.0056)
            assert small_print.lstrip("G✕ ") in label
            assert names[c.fate] in label
            assert ("✕" in small_print) == (c.fate == "dropped")
        tops = [top for *_, top in shown]
        assert tops == sorted(tops), "the likeliest stands at the top"
        lost = page.locator(f'[aria-label="step {number_of_step - 1}"] .tpp-dropped')
        assert not lost.count(), "what has dropped out is gone with the next step"
        page.get_by_role("button", name="Next").click()


@browser
def test_a_box_tells_its_verdict_in_words(open_page: OpenPage, view: View) -> None:
    page = open_page(view)
    text = page.locator(".tpp-text")
    assert text.get_attribute("aria-live") == "polite"
    assert text.text_content().startswith("Step 1: of all continuations, the 4 likeliest")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    third = view.data["trees"][2]["steps"][2]
    kept = [c for c in third if c["fate"] == "kept"]
    dropped = next(c for c in third if c["fate"] == "dropped")
    node = page.locator(".tpp-node.tpp-dropped").first
    node.click()
    told = text.text_content()
    assert told.startswith(f"“{dropped['text']}”: log p {dropped['p']:.2f}".replace("-", "−"))
    last = f"{kept[-1]['p']:.2f}".replace("-", "−")
    assert f"4 that go on are likelier, the last of them with {last}" in told
    assert node.get_attribute("aria-pressed") == "true"
    node.click()
    assert text.text_content().startswith("Step 3: "), "a second click takes it back"
    page.locator('[aria-label="step 3"] .tpp-kept').nth(2).click()
    parent = view.data["trees"][2]["steps"][1][kept[2]["parent"]]
    own = f"(“{kept[2]['name']}” here: {kept[2]['p'] - parent['p']:.2f})".replace("-", "−")
    assert own in text.text_content()
    assert "number 3 of those" in text.text_content()


@browser
def test_it_says_where_greedy_decoding_leaves_the_best_path(
    open_page: OpenPage, translator: Translator, view: View
) -> None:
    page = open_page(view)
    choose(page, 4, 0.6)
    [greedy] = greedy_decode(translator.model, source_of(translator), LIMIT)
    [expected] = beam_search(translator.model, source_of(translator), LIMIT, 4, 0.6)
    best = expected[0].tokens
    leaves = next(i for i in range(len(best)) if best[i] != greedy[i])
    target = torch.tensor([[BOS_ID, *best[:leaves]]])
    with torch.inference_mode():
        log_p = translator.model(source_of(translator), target)[0, -1].log_softmax(dim=-1)
    tokens = [tokens[leaves] for tokens in (greedy, best)]
    taken, better = (
        f"“{translator.tokenizer.decode([t]).strip()}” (−{-log_p[t]:.2f})" for t in tokens
    )
    said = f"Greedy decoding leaves the best path at step {leaves + 1}: it takes {taken}, the best {better}."
    assert page.locator(".tpp-text").text_content().endswith(said)
    on_greedy = page.locator('.tpp-tree [aria-label*="greedy"]').count()
    on_best = page.locator(".tpp-tree .tpp-wins").count()
    assert (on_greedy, on_best) == (len(greedy) + 1, len(best) + 1)
    assert page.locator(".tpp-tree svg path.tpp-best").count() == len(best) + 1
    choose(page, 1, 0.6)
    assert page.locator(".tpp-text").text_content().endswith("Greedy decoding finds the same.")


@browser
def test_everything_can_be_done_by_keyboard(open_page: OpenPage, view: View) -> None:
    page = open_page(view)

    def press(*names: str) -> str:
        for name in names:
            page.keyboard.press(name)
        return str(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
            )
        )

    def text() -> str:
        return str(page.locator(".tpp-text").text_content())

    assert press("Tab") == "beam 4", "one stop for the widths"
    assert press("ArrowLeft") == "beam 2"
    assert "the 2 likeliest" in text()
    assert press("ArrowRight") == "beam 4"
    assert press("Tab") == "length penalty α"
    press("ArrowLeft")
    assert page.locator(".tpp-slider output").text_content() == "0.5"
    press("ArrowRight")
    assert press("Tab") == "Back"
    assert press("ArrowRight", "ArrowRight") == "Back", "the focus stays"
    assert text().startswith("Step 3: ")
    press("ArrowLeft")
    assert text().startswith("Step 2: ")
    press("End")
    assert text().startswith("Step 9: the search stops.")
    press("ArrowRight")
    assert text().startswith("Step 9: "), "no further"
    press("Home", "ArrowLeft")
    assert text().startswith("Step 1: ")
    assert press("Tab", "Enter") == "Next"
    assert text().startswith("Step 2: ")
    assert press("Tab", "Tab") == "The beam as a tree", "the tree can be scrolled"
    first = press("Tab")
    assert first == page.locator('[aria-label="step 2"] button').first.get_attribute("aria-label")
    assert text().startswith("“"), "a box that is reached tells its verdict"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    second = press("ArrowDown")
    assert second != first
    assert press("ArrowUp") == first
    assert press("ArrowLeft").startswith("The −")
    assert press("End") == page.locator('[aria-label="step 1"] button').last.get_attribute("aria-label")  # fmt: skip
    press("Escape")
    assert text().startswith("Step 2: ")


@browser
def test_a_tap_is_enough(open_page: OpenPage, view: View) -> None:
    page = open_page(view, width=390, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Next").tap()
    page.locator('[aria-label="step 2"] button').first.tap()
    assert page.locator(".tpp-text").text_content().startswith("“")


@browser
def test_the_newest_step_is_in_sight(open_page: OpenPage, view: View) -> None:
    page = open_page(view, width=390)
    choose(page, 4, 0.6)
    box = page.locator(".tpp-tree-box").bounding_box()
    node = page.locator('[aria-label="step 9"] button').first.bounding_box()
    assert box["x"] <= node["x"]
    assert node["x"] + node["width"] <= box["x"] + box["width"] + 1


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
        choose(page, 4, 0.6)
        page.locator(".tpp-tree button").first.click()
    else:
        without_script(page, view)
        assert page.locator("table").count() == 2
    assert not axe(page)


@browser
def test_a_phone_shows_it_whole(open_page: OpenPage, view: View) -> None:
    page = open_page(view, width=390)
    choose(page, 8, 0.6)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator(".tpp-view button:visible").all()[::9]:
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24, box


@browser
@pytest.mark.parametrize("width", [800, 390])
def test_nothing_below_moves_from_step_to_step(open_page: OpenPage, view: View, width: int) -> None:
    page = open_page(view, width=width)
    below = page.locator("#below")
    place = below.bounding_box()
    for _ in range(8):
        page.get_by_role("button", name="Next").click()
        page.locator(".tpp-tree button").last.click()
        assert below.bounding_box() == place


@browser
def test_views_on_one_page_leave_each_other_alone(open_page: OpenPage, view: View) -> None:
    page = open_page(view, view)
    figures = page.locator("figure.tpp-view")
    before = figures.nth(1).inner_html()
    figures.nth(0).get_by_role("button", name="Next").click()
    assert figures.nth(1).inner_html() == before
    assert figures.nth(0).inner_html() != before


@browser
def test_without_javascript_the_tables_are_there(
    open_page: OpenPage, translator: Translator, view: View
) -> None:
    page = open_page(view, java_script_enabled=False)
    [expected] = beam_search(translator.model, source_of(translator), LIMIT, 4, 0.6)
    first = page.locator("table").first.locator("tbody tr").first
    text, p, length, score = first.locator("th, td").all_text_contents()
    assert text == translator.tokenizer.decode(expected[0].tokens)
    assert int(length) == len(expected[0].tokens) + 1
    assert (float(p), float(score)) == pytest.approx(expected[0][:0:-1], abs=0.0056)
    assert page.locator("table").nth(1).locator("tbody tr").count() == int(length)
    assert page.locator("button").count() == 0
