"""The reader of the notebooks."""

from pathlib import Path

import nbformat
import pytest

from tools.chapters import Chapter, ChapterError, Sitting, chapters

new = nbformat.v4


def chapter_of(folder: Path, *cells: nbformat.NotebookNode, **book: object) -> Chapter:
    """A chapter with these cells, read from a file."""
    path = folder / "07-small.ipynb"
    nbformat.write(new.new_notebook(cells=list(cells), metadata={"book": book}), path)
    return Chapter(path)


def code(source: str, *tags: str, **data: str) -> nbformat.NotebookNode:
    """A code cell; data are mime types of its one output, with _ for /."""
    outputs = [
        new.new_output("display_data", data={kind.replace("_", "/"): x}) for kind, x in data.items()
    ]
    return new.new_code_cell(source, metadata={"tags": list(tags)}, outputs=outputs)


def test_what_the_first_cell_and_the_metadata_say(tmp_path: Path) -> None:
    first = new.new_markdown_cell(
        "# 7. A title\n\nText.\n\n- **Question:** why\n  so?\n- **You build:** it"
    )
    chapter = chapter_of(tmp_path, first, seconds=90.0, budget=270)
    assert (chapter.number, chapter.title, chapter.question) == (7, "7. A title", "why so?")
    assert (chapter.cpu_seconds, chapter.budget) == (90.0, 270)
    plain = chapter_of(tmp_path, first)
    assert (plain.cpu_seconds, plain.budget) == (None, 60)


def test_cells_by_section_and_tag(tmp_path: Path) -> None:
    one, two = code("1", "hide-cell"), code("2")
    heading = new.new_markdown_cell
    chapter = chapter_of(
        tmp_path, heading("# 7. A"), heading("## B"), one, heading("## C\n\n## D"), two
    )
    assert list(chapter.sections) == ["B", "C", "D"]
    assert [len(cells) for cells in chapter.sections.values()] == [2, 1, 2]
    assert [cell.source for cell in chapter.code] == ["1", "2"]
    assert [cell.source for cell in chapter.tagged("hide-cell")] == ["1"]
    assert chapter.text == "# 7. A\n\n## B\n\n## C\n\n## D"


def test_definitions_and_imports(tmp_path: Path) -> None:
    chapter = chapter_of(
        tmp_path,
        code("%matplotlib inline\nimport os.path\nfrom torch import nn as n, Tensor"),
        code("#| export layers replaces f\ndef f():\n    return 1"),
        code("def g(): ..."),
    )
    (found,) = chapter.definitions
    assert (found.place, found.module) == ("07-small.ipynb, cell 1", "layers")
    assert (found.replaces, found.names) == ("f", ["f"])
    assert found.source == "def f():\n    return 1"
    assert chapter.imports == {
        "os": "import os.path",
        "n": "from torch import nn as n",
        "Tensor": "from torch import Tensor",
    }


def test_a_sitting_is_what_is_read_before_going_deeper(tmp_path: Path) -> None:
    before = [
        new.new_markdown_cell("one two"),
        code("a\n\nb", image_png="x"),
        code("x = 1\n" * 9, "hide-input", text_html="<svg>", text_markdown="three four"),
        code("c"),
        new.new_markdown_cell("five\n\n## Going deeper\n\nmore words"),
    ]
    chapter = chapter_of(tmp_path, *before, code("d\n" * 99, image_png="x"))
    assert chapter.sitting() == Sitting(words=5, lines=3, longest=2, figures=2)
    assert Sitting(words=2000, lines=400, longest=9, figures=10).minutes == 35


def test_chapters_are_chosen_by_number_and_wrong_ones_named(tmp_path: Path) -> None:
    assert [chapter.path.name[:2] for chapter in chapters(["05", "00"])] == ["00", "05"]
    with pytest.raises(ChapterError, match="there is no chapter 99"):
        chapters(["99"])
    nbformat.write(new.new_notebook(), tmp_path / "title.ipynb")
    with pytest.raises(ChapterError, match="title.ipynb: a chapter's name starts with two digits"):
        chapters(folder=tmp_path)
