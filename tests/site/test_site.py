"""The built book as its readers meet it: pages, links, resources, and every page in a real browser.

It looks at `_build/html`, or at the folder that the environment variable BOOK_HTML names. The tests marked `browser`
need Chromium and playwright; without them they are skipped, but under CI (environment variable CI) they fail.
"""

import functools
import gzip
import html
import http.server
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, unquote, urldefrag, urlsplit

import pytest
import yaml

from tools.chapters import ROOT, Chapter, chapters
from tools.export_modules import PACKAGE, collect

HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html")).resolve()
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [
    TOC["root"],
    *(entry["file"] for part in TOC["parts"] for entry in part["chapters"]),
]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
MADE_BY_SPHINX = ["genindex", "search"]
# Loaded by the browser, in contrast to <a href>, which waits for a click.
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "embed": "src",
    "object": "data",
}
LINK_ONLY = {"canonical", "next", "prev", "index", "search", "author", "license"}


def test_setup_lists_only_pages_that_exist() -> None:
    missing = [
        page
        for page in PAGES
        if not any((ROOT / page).with_suffix(suffix).exists() for suffix in (".md", ".ipynb"))
    ]
    assert not missing, f"_toc.yml lists pages without a source: {missing}"
    listed = {Path(page).name for page in PAGES}
    unlisted = [
        path.name for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem not in listed
    ]
    assert not unlisted, f"notebooks that _toc.yml does not list: {unlisted}"


# ------------------------------------------------------------------------------------------- the built files


class Page(HTMLParser):
    """Ids, links and loaded resources of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.classes: set[str] = set()
        self.alt_missing: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif (
            tag == "link"
            and values.get("href")
            and not set(values.get("rel", "").split()) & LINK_ONLY
        ):
            self.loaded.append(values["href"])
        elif values.get(LOADING.get(tag, "")):
            self.loaded.append(values[LOADING[tag]])
        # where a plot's cell says nothing of it (metadata `mystnb.image.alt`), its alt text is its path
        if tag == "img" and ("alt" not in values or values["alt"].endswith(".png")):
            self.alt_missing.append(values.get("src", ""))


@functools.cache
def read_page(path: Path) -> Page:
    return Page(path)


@pytest.fixture(scope="session")
def site() -> Path:
    if not (HTML / "index.html").is_file():
        pytest.fail(
            f"the book is not built: no {HTML / 'index.html'}; run `make book`, or set BOOK_HTML"
        )
    return HTML


def built_pages() -> list[Path]:
    return [
        path
        for path in sorted(HTML.rglob("*.html"))
        if "_static" not in path.relative_to(HTML).parts
    ]


def is_external(url: str) -> bool:
    return bool(urlsplit(url).netloc) or urlsplit(url).scheme in ("http", "https")


def test_every_page_of_the_contents_is_built_and_no_other(site: Path) -> None:
    built = {path.relative_to(site).with_suffix("").as_posix() for path in built_pages()}
    assert built == {*PAGES, *MADE_BY_SPHINX}


def test_the_root_is_a_page_and_not_a_redirect(site: Path) -> None:
    assert 'http-equiv="refresh"' not in (site / "index.html").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_no_error(site: Path, page: str) -> None:
    found = read_page(site / f"{page}.html")
    bad = found.classes & {"traceback", "stderr", "system-message", "problematic"}
    assert not bad, f"{page} shows output of class {bad}"
    assert "<!-- generated:" not in found.text, (
        f"{page} holds a marker that the extension did not fill"
    )
    assert "application/vnd.jupyter.widget" not in found.text, (
        f"{page} stores widget state, which loads from elsewhere"
    )


@pytest.mark.parametrize("page", [*PAGES, *MADE_BY_SPHINX])
def test_links_anchors_and_images_resolve(site: Path, page: str) -> None:
    found = read_page(site / f"{page}.html")
    broken = []
    for url in [*found.links, *found.loaded]:
        if is_external(url) or urlsplit(url).scheme in ("mailto", "data", "javascript"):
            continue
        target, fragment = urldefrag(url)
        path = (
            (found.path.parent / unquote(urlsplit(target).path)).resolve()
            if urlsplit(target).path
            else found.path
        )
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file() or (
            fragment and path.suffix == ".html" and unquote(fragment) not in read_page(path).ids
        ):
            broken.append(url)
    assert not broken, f"{page} links to what is not there: {broken}"
    assert not found.alt_missing, (
        f"{page} has images that no alt text describes: {found.alt_missing}"
    )


@pytest.mark.parametrize("page", [*PAGES, *MADE_BY_SPHINX])
def test_a_page_loads_nothing_from_another_host(site: Path, page: str) -> None:
    outside = [url for url in read_page(site / f"{page}.html").loaded if is_external(url)]
    assert not outside, f"{page} loads {outside}"


def test_style_sheets_load_nothing_from_another_host(site: Path) -> None:
    outside = {}
    for path in (site / "_static").rglob("*.css"):
        urls = re.findall(
            r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)",
            path.read_text(encoding="utf-8"),
        )
        if urls:
            outside[path.name] = urls
    assert not outside, f"style sheets load from elsewhere: {outside}"


@pytest.mark.parametrize("page", CHAPTERS)
def test_launch_buttons_open_this_chapter(site: Path, page: str) -> None:
    repository, branch = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
    account_and_name = urlsplit(repository).path.strip("/")
    source = f"{page}.ipynb"
    assert (ROOT / source).is_file(), f"{source} does not exist"
    links = read_page(site / f"{page}.html").links
    colab = f"https://colab.research.google.com/github/{account_and_name}/blob/{branch}/{source}"
    binder = f"https://mybinder.org/v2/gh/{account_and_name}/{branch}?urlpath=lab/tree/{source}"
    assert colab in links, (
        f"no launch button for {colab}: {[link for link in links if 'colab' in link]}"
    )
    assert binder in links, (
        f"no launch button for {binder}: {[link for link in links if 'binder' in link]}"
    )


def test_mathjax_comes_from_the_site_once_with_its_license(site: Path) -> None:
    for page in PAGES:
        scripts = [
            url
            for url in read_page(site / f"{page}.html").loaded
            if "mathjax" in url.lower() or "mml-chtml" in url
        ]
        assert len(scripts) <= 1, f"{page} loads MathJax {len(scripts)} times: {scripts}"
    assert (site / "_static/es5/LICENSE").is_file()
    assert list((site / "_static/es5/output/chtml/fonts/woff-v2").glob("*.woff"))


# ------------------------------------------------------------------------------------- the generated passages


def api_entries() -> dict[str, set[str]]:
    """Public name -> the cells of the chapters that build or better it."""
    built: dict[str, set[str]] = {}
    for chapter in chapters():
        for definition in chapter.definitions:
            for name in definition.names:
                full = f"{PACKAGE}.{definition.module}.{name}"
                cell = f"cell-{chapter.number:02d}-{chapter.cells[definition.cell].id}"
                built.setdefault(full, set()).add(f"../notebooks/{chapter}.html#{cell}")
    public = {
        f"{PACKAGE}.{m}.{name}" for m, held in collect(chapters()).items() for name in held.public
    }
    return {name: built[name] for name in public}


def test_the_reference_holds_every_public_name_and_links_its_chapters(site: Path) -> None:
    text = read_page(site / "book/api.html").text
    starts = [
        (match.start(), match[1])
        for match in re.finditer(rf'<dt class="sig[^>]* id="({PACKAGE}[^"]*)"', text)
    ]
    entries = api_entries()
    assert entries, "the chapters export something"
    tops = [(start, name) for start, name in starts if name.count(".") == 2]
    assert sorted(name for _, name in tops) == sorted(entries), "public names, and no others"
    for (start, name), (end, _) in itertools.pairwise([*tops, (len(text), "")]):
        section = text[start:end].split("<section")[0]
        links = set(re.findall(r'href="(\.\./notebooks/[^"]+)"', section))
        assert links == entries[name], f"{name} is built in {entries[name]}, the page links {links}"


def test_the_reference_begins_with_a_table_of_the_modules(site: Path) -> None:
    found = read_page(site / "book/api.html")
    table = found.text[found.text.index("<table") : found.text.index("</table>")]
    for name, module in collect(chapters()).items():
        assert f'href="#api-{name.replace("_", "-")}"' in table, f"{name} is not in the table"
        assert len(module.description.split()) > 1


def test_docstrings_are_read_as_such(site: Path) -> None:
    """Sections become lists of fields, `x` becomes code, and a default is as the source has it."""
    text = read_page(site / "book/api.html").text
    assert "Parameters" in text
    assert not re.search(
        r"Args:|`", re.sub(r"<[^>]+>", "", text.partition("<article")[2].partition("</article>")[0])
    )


def test_run_times_come_from_the_notebooks(site: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", read_page(site / "book/how-to-use.html").text)
    assert "not measured" not in text, "a chapter has no run time: run `make execute`"
    for chapter in chapters():
        seconds = max(1, round(chapter.cpu_seconds))
        assert re.search(rf"\b{seconds} s\b", text), f"{chapter}'s {seconds} s are not in the table"


def test_each_term_has_one_chapter_and_the_glossary_links_it(site: Path) -> None:
    terms = yaml.safe_load((ROOT / "book" / "terms.yml").read_text(encoding="utf-8"))
    assert set(terms) <= {chapter.number for chapter in chapters()}
    every = [term.lower() for held in terms.values() for term in held]
    assert len(every) == len(set(every)), "a term has two chapters"
    homes = {term.lower(): number for number, held in terms.items() for term in held}
    text = read_page(site / "book/glossary.html").text
    explained = re.findall(
        r'<dt id="term-[^"]+">(.*?)<a class="headerlink".*?<dd>(.*?)</dd>', text, re.S
    )
    assert len(explained) > 80
    for term, explanation in explained:
        last = re.findall(r'href="\.\./notebooks/(\d\d)-[^"]*"', explanation)[-1]
        assert int(last) == homes[html.unescape(re.sub("<[^>]+>", "", term)).lower()], term


def test_the_page_for_teachers_lists_every_exercise_under_its_stars(site: Path) -> None:
    text = read_page(site / "book/teaching.html").text
    groups = re.findall(r"<summary>(★+)☆* (\d+) exercises</summary>(.*?)</details>", text, re.S)
    assert [len(stars) for stars, _, _ in groups] == [1, 2, 3]
    for stars, count, table in groups:
        rows = re.findall(r"<p>(\d+\.\d+)</p></td>.*?<p>(\d+)</p></td>", table, re.S)
        wanted = [
            tuple(re.findall(r"Exercise (\S+) .*\((\d+) minutes\)", line)[0])
            for chapter in chapters()
            for line in chapter.text.splitlines()
            if line.startswith("### Exercise") and line.count("★") == len(stars)
        ]
        assert rows == wanted
        assert int(count) == len(wanted)


def strong_numbers(element: Any) -> list[str]:
    """Bold texts of at most four words of which one begins with a digit, in the built HTML."""
    texts = [" ".join(strong.text_content().split()) for strong in element.iter("strong", "b")]
    return [
        text
        for text in texts
        if len(text.split()) <= 4
        and not text.endswith(":")
        and any(word.lstrip("-+−±")[:1].isdigit() for word in text.split())
    ]


def test_every_measured_claim_is_listed_with_its_cell(site: Path) -> None:
    """Counted in the pages as they are shown, not in the notebooks from which the list is made."""
    from lxml import html as parser

    listed = parser.parse(str(site / "book/claims.html"))
    sections: dict[str, list[tuple[str, list[str]]]] = {}
    for quote in listed.iter("blockquote"):
        links = [link for link in quote.xpath(".//a/@href") if "#cell-" in link]
        assert len(links) == 1, f"one cell to a claim, not {links}"
        page, _, anchor = links[0].partition("#")
        sections.setdefault(Path(page).stem, []).append((anchor, strong_numbers(quote)))
    total = 0
    for chapter in chapters():
        page = parser.parse(str(site / f"notebooks/{chapter}.html"))
        shown: dict[str, list[str]] = {}
        for output in page.xpath("//div[contains(@class, 'cell_output')]"):
            (anchor,) = output.xpath("ancestor::div[starts-with(@id, 'cell-')]/@id")
            if numbers := strong_numbers(output):
                shown.setdefault(anchor, []).extend(numbers)
        assert dict(sections.get(chapter.path.stem, [])) == shown, chapter
        total += sum(map(len, shown.values()))
    said = read_page(site / "book/claims.html").text
    assert total > 100
    assert f"<strong>{total} numbers</strong>" in said, f"{total} are shown"


@pytest.mark.parametrize("page", ["index.md", "book/how-to-use.md", "book/teaching.md"])
def test_code_on_the_pages_runs(page: str) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S
    )
    assert blocks, f"{page} shows no code"
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_parameters_counted_on_the_paper_page() -> None:
    import torch

    from transformer_lib import DecoderLayer, EncoderLayer

    with torch.device("meta"):
        layers = [EncoderLayer(512, 8, 2048), DecoderLayer(512, 8, 2048)]
    encoder, decoder = (
        6 * sum(parameter.numel() for parameter in layer.parameters()) for layer in layers
    )
    text = (ROOT / "book/paper-and-us.md").read_text(encoding="utf-8")
    for count in (37_000 * 512, encoder, decoder, 37_000 * 512 + encoder + decoder):
        assert f"| {count:,} |" in text, f"the page does not say {count:,}"


@pytest.mark.parametrize("chapter", chapters(), ids=repr)
def test_below_a_title_stands_what_one_wants_to_know(site: Path, chapter: Chapter) -> None:
    text = read_page(site / f"notebooks/{chapter}.html").text
    line = re.search(r'</h1>\s*<p class="tpp-facts">(.*?)</p>', text, re.S)
    assert line, "the line follows the title"
    for fact in (
        f"{round(chapter.sitting().minutes)} minutes to read",
        f"ran in {max(1, round(chapter.cpu_seconds))} s",
        *(f"{name} {chapter.versions[name.lower()]}" for name in ("Python", "NumPy")),
        f"PyTorch {chapter.versions['torch']}",
    ):
        assert fact in line[1], f"{fact!r} is not in {line[1]!r}"
    link = re.search(r'<a href="([^"]+)" download>', line[1])
    assert link, "the line links the notebook"
    offered = (site / "notebooks" / link[1]).read_text(encoding="utf-8")
    assert offered == chapter.path.read_text(encoding="utf-8"), "what is offered is the notebook"


@pytest.mark.parametrize("chapter", chapters(), ids=repr)
def test_names_link_to_the_reference_but_not_where_they_are_defined(
    site: Path, chapter: Chapter
) -> None:
    """And the anchors that the reference links to stand at the cells that define the names."""
    text = read_page(site / f"notebooks/{chapter}.html").text
    links = re.findall(r'<a class="tpp-name" href="([^"]+)"[^>]*><span[^>]*>(\w+)</span></a>', text)
    assert links, "every chapter uses the package"
    wrong = [(url, name) for url, name in links if not url.endswith(f".{name}")]
    assert not wrong, f"links to another name: {wrong}"
    for definition in chapter.definitions:
        anchor = f'id="cell-{chapter.number:02d}-{chapter.cells[definition.cell].id}"'
        block = text.partition(anchor)[2].partition("</pre>")[0]
        plain = html.unescape(re.sub(r"<[^>]+>", "", block.partition("<pre>")[2]))
        assert plain.partition("\n")[2].strip() == definition.source.strip(), f"not at {anchor}"
        linked = {
            name for url, name in re.findall(r'href="([^"]+)"[^>]*><span[^>]*>(\w+)</s', block)
        }
        assert not linked & set(definition.names), f"{linked} link in the cell that defines them"


# ------------------------------------------------------------------------------------------------ the browser


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


# A page of code has thousands of colored words and formulas that take axe minutes: one visible word of each color is
# enough, and MathJax's own elements carry the formula in a hidden copy for screen readers, which axe does not know.
THIN_OUT = """() => {
    document.querySelectorAll("mjx-container").forEach(formula => formula.replaceWith("x"));
    const seen = new Set();
    for (const word of document.querySelectorAll(".highlight pre span[class]"))
        if (seen.has(word.className) || !word.checkVisibility()) word.replaceWith(word.textContent);
        else seen.add(word.className);
    for (const block of document.querySelectorAll(".highlight"))
        if (!block.querySelector("pre span[class]")) block.remove();
}"""
SET_THEME = """theme => {
    document.documentElement.dataset.theme = theme;
    document.documentElement.dataset.mode = theme;
}"""


TOO_WIDE = """() => {
    const html = document.documentElement;
    if (html.scrollWidth <= html.clientWidth) return [];
    const scrolls = "pre *, .pst-scrollable-table-container *, div.math *, .cell_output .output *";
    const name = e => `${e.tagName}.${e.className}: ${e.textContent.replace(/\\s+/g, " ").slice(0, 60)}`;
    return [`the page is ${html.scrollWidth} px wide`].concat(
        [...document.querySelectorAll(".bd-article *")]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.matches(scrolls))
            .slice(0, 5).map(name));
}"""


# The usual bound for a good page; what moves while nobody has clicked is added up.
SHIFT = 0.1
WATCH_SHIFTS = """window.shift = 0;
new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({type: "layout-shift", buffered: true});"""
PAINTED = "performance.getEntriesByName('first-contentful-paint').length > 0"
FIRST_LOAD = 2_000_000  # bytes


def compressed(site: Path, address: str, url: str) -> int:
    """The bytes that travel for a file of the site, where the server compresses."""
    content = (site / unquote(urlsplit(url.removeprefix(address)).path)).read_bytes()
    return min(len(content), len(gzip.compress(content)))


# The width between the margins of tools/pdf.py; a browser calls 96 of its pixels an inch.
PAPER = round((210 - 2 * 18) / 25.4 * 96)
CUT_ON_PAPER = """() => [...document.querySelectorAll(
    ".bd-article pre, .bd-article .output, .bd-article div.math, .pst-scrollable-table-container, .bd-article img")]
    .filter(e => e.checkVisibility() && (e.scrollWidth > e.clientWidth + 1
        || e.getBoundingClientRect().right > innerWidth + 1))
    .map(e => `${e.className || e.tagName}, ${e.scrollWidth} px: ${e.textContent.slice(0, 60)}`)"""


@pytest.mark.browser
@pytest.mark.parametrize("name", [*PAGES, "search"])
def test_page_in_a_browser(
    chromium: Any, axe: Callable[..., list[str]], site: Path, address: str, name: str
) -> None:
    """No outside request, no error, little to load, nothing moves, math rendered, nothing too wide, accessible."""
    faults: list[str] = []
    loaded: set[str] = set()
    held: list[Any] = []
    context = chromium.new_context(
        viewport={"width": 1280, "height": 900},
        color_scheme="light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.on(
        "request",
        lambda r: (
            r.url.startswith((address, "data:", "blob:")) or faults.append(f"request to {r.url}")
        ),
    )
    page.on("response", lambda r: loaded.add(r.url))
    page.on("response", lambda r: r.status < 400 or faults.append(f"status {r.status}: {r.url}"))
    page.on(
        "console",
        lambda message: message.type != "error" or faults.append(f"console: {message.text}"),
    )
    page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    page.add_init_script(WATCH_SHIFTS)
    # On any machine, however fast: the formulas come when the rest of the page is already seen.
    page.route("**/tex-mml-chtml.js*", lambda route: held.append(route))
    try:
        page.goto(f"{address}{name}.html", wait_until="commit")
        page.wait_for_function(PAINTED)
        formulas = any("tex-mml-chtml" in url for url in read_page(site / f"{name}.html").loaded)
        while formulas and not held:  # some ask for it only when they have been painted
            page.wait_for_timeout(50)
        for request in held:
            request.continue_()
        page.wait_for_load_state("load")
        page.evaluate("window.MathJax?.startup?.promise")
        shift = page.evaluate(
            "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(window.shift))))"
        )
        assert shift < SHIFT, f"{name}: what was painted moves, by {shift:.3f} in all"
        bytes_loaded = sum(
            compressed(site, address, url) for url in loaded if url.startswith(address)
        )
        assert 300_000 < bytes_loaded < FIRST_LOAD, (
            f"{name}: {bytes_loaded:,} bytes for the first load"
        )
        if page.locator(".math").count():
            assert page.locator("mjx-container").count(), (
                f"{name}: there is math, and MathJax did not render it"
            )
        bad_math = page.evaluate(
            "[...document.querySelectorAll('mjx-merror')].map(e => e.getAttribute('data-mjx-error'))"
        )
        assert not bad_math, f"{name}: MathJax could not read: {bad_math}"
        page.add_style_tag(content="*, *::before, *::after { transition: none !important; }")
        page.set_viewport_size({"width": 390, "height": 844})
        faults += [f"wider than a phone: {element}" for element in page.evaluate(TOO_WIDE)]
        page.emulate_media(media="print")
        page.set_viewport_size({"width": PAPER, "height": 1000})
        faults += [f"cut on paper: {element}" for element in page.evaluate(CUT_ON_PAPER)]
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.evaluate(THIN_OUT)
        theme = page.evaluate("document.documentElement.dataset.theme")
        assert theme == "light", f"a light system should get a light page, got {theme}"
        faults += [f"light, {fault}" for fault in axe(page)]
        page.evaluate(SET_THEME, "dark")
        faults += [f"dark, {fault}" for fault in axe(page, ["color-contrast"])]
    finally:
        context.close()
    assert not faults, f"{name}:\n" + "\n".join(faults)


# What a reader types -> the chapter that should be among the first three answers.
SEARCHED = {
    "vanishing gradient": 1,
    "additive attention": 2,
    "softmax": 2,
    "key padding": 5,
    "causal mask": 5,
    "self-attention": 5,
    "multi-head attention": 6,
    "positional encoding": 7,
    "weight tying": 8,
    "layer normalization": 9,
    "cross-attention": 11,
    "byte pair encoding": 13,
    "teacher forcing": 14,
    "label smoothing": 14,
    "warmup": 14,
    "beam search": 16,
    "KV cache": 16,
    "BLEU": 17,
    "perplexity": 22,
    "masked language model": 23,
    "mixed precision": 25,
    "fine-tuning": 26,
    "RoPE": 27,
}


@pytest.mark.browser
def test_the_search_finds_the_chapter_of_a_term(chromium: Any, address: str) -> None:
    page = chromium.new_page()
    missed = {}
    try:
        for term, number in SEARCHED.items():
            page.goto(f"{address}search.html?q={quote_plus(term)}")
            page.wait_for_selector(".search-summary:not(:empty)")
            page.wait_for_function(
                "/found|did not match/.test(document.querySelector('.search-summary').textContent)"
            )
            answers = page.locator("ul.search > li > a").evaluate_all(
                "found => found.slice(0, 3).map(link => link.getAttribute('href'))"
            )
            if not any(f"notebooks/{number:02d}-" in answer for answer in answers):
                missed[term] = answers
    finally:
        page.close()
    assert not missed, f"not among the first three answers: {missed}"


@pytest.mark.browser
def test_the_first_screen_shows_picture_translator_and_ways_in(chromium: Any, address: str) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    try:
        page.goto(f"{address}index.html", wait_until="load")
        for selector in (
            ".tpp-first .tpp-diagram",
            ".tpp-try-strip button",
            ".tpp-ways li >> nth=2",
        ):
            box = page.locator(selector).bounding_box()
            assert box["y"] < 760, f"{selector} begins at {box['y']} px"
        assert page.locator(".tpp-ways li").count() == 3
    finally:
        page.close()


@pytest.mark.browser
def test_the_page_follows_the_system_into_the_dark(chromium: Any, address: str) -> None:
    context = chromium.new_context(color_scheme="dark")
    try:
        page = context.new_page()
        page.goto(f"{address}index.html", wait_until="load")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = map(int, re.findall(r"\d+", background)[:3])
        assert max(red, green, blue) < 80, f"a dark system should get a dark page, got {background}"
        diagrams = page.locator(".tpp-diagram")
        assert diagrams.count(), "the landing page shows the Transformer"
        red, green, blue = map(
            int,
            re.findall(r"\d+", diagrams.first.evaluate("e => getComputedStyle(e).color"))[:3],
        )
        assert min(red, green, blue) > 150, "a diagram takes the text's color, light on dark"
    finally:
        context.close()
