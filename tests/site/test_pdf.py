"""The book on paper, by the tool of `make pdf`: formulas and code can be read, and links stay in their chapter."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tools.chapters import ROOT, chapters, tags

pytestmark = pytest.mark.browser
HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html")).resolve()
TWO_CHAPTERS = """<article>
<span id="document-one"></span><section id="one"><h2>One</h2>
<section id="deeper"><h3>Deeper into one</h3></section></section>
<span id="document-two"></span><section id="two" style="break-before: page"><h2>Two</h2><a href="#deeper">down</a>
<a href="index.html#one">up</a><section id="deeper"><h3>Deeper into two</h3></section></section>
</article>"""


@pytest.fixture
def print_page(tmp_path: Path) -> Any:
    """Print a file as `make pdf` does, and read it with pypdf."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")) and not os.environ.get("CI"):
        pytest.skip("chromium is not installed (set CHROMIUM to its path)")
    pypdf = pytest.importorskip("pypdf")

    def do(page: Path) -> Any:
        pdf = tmp_path / "page.pdf"
        command = [sys.executable, "-m", "tools.pdf", str(page), str(pdf)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return pypdf.PdfReader(pdf)

    return do


def titles(outline: list[Any]) -> list[str]:
    """All entries of an outline, whatever their level."""
    found: list[str] = []
    for entry in outline:
        found += titles(entry) if isinstance(entry, list) else [entry.title]
    return found


def squeezed(text: str) -> str:
    """Text without spaces and line ends, and with fi as two letters."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


@pytest.mark.parametrize(
    ("number", "section", "formula"),
    [
        ("05", "Query, key, value", "Attention(Q, K, V) = softmax(QK⊤√dk)V (5.2)"),
        ("17", "Counting what matches", "BP = min(1, e1−r/h) (17.2)"),
    ],
)
def test_a_chapter_on_paper(print_page: Any, number: str, section: str, formula: str) -> None:
    """A formula is set and no longer TeX; every line of code that is not folded is there to its last character."""
    (chapter,) = chapters([number])
    paper = print_page(HTML / "notebooks" / f"{chapter}.html")
    text = squeezed("".join(page.extract_text() for page in paper.pages))
    assert squeezed(formula) in text
    lines = [
        line
        for cell in chapter.cells
        if cell.cell_type == "code" and not any(tag.startswith("hide") for tag in tags(cell))
        for line in cell.source.splitlines()
    ]
    assert max(map(len, lines)) > 90, "a line that could be cut"
    assert [line for line in lines if squeezed(line) not in text] == []
    assert any(section in title for title in titles(paper.outline))
    assert not re.search("Skiptomaincontent|Ctrl", text), "no buttons on paper"


def test_links_on_one_page_stay_in_their_chapter(print_page: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(TWO_CHAPTERS, encoding="utf-8")
    paper = print_page(tmp_path / "index.html")
    places = paper.named_destinations
    targets = [
        paper.get_destination_page_number(places[link.get_object()["/Dest"]])
        for link in paper.pages[1]["/Annots"]
    ]
    assert targets == [1, 0], "down leads into chapter two, up to chapter one"
