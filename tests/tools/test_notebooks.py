"""The tool that runs and stamps the chapters."""

import json
import sys
from pathlib import Path

import nbformat
import pytest

from tools import notebooks
from tools.chapters import Chapter
from tools.notebooks import on_all, repository_url, run, setup_cell, stamp, tidy, time_line
from tools.release import version

new = nbformat.v4
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}


def chapter_of(
    folder: Path, *cells: nbformat.NotebookNode, name: str = "01-small.ipynb", **metadata: object
) -> Chapter:
    """A chapter with these cells, read from a file."""
    nbformat.write(new.new_notebook(cells=list(cells), metadata=KERNEL | metadata), folder / name)
    return Chapter(folder / name)


def small_chapter(folder: Path) -> Chapter:
    """A chapter's first cells, and a solution."""
    cells = [
        new.new_markdown_cell("# 1. A chapter\n\n- **Question:** why?\n- **Time:** stamped"),
        new.new_code_cell("# setup", metadata={"tags": ["setup"]}),
        new.new_code_cell("# Solution 1.1", metadata={"tags": ["hide-cell"]}),
    ]
    return chapter_of(folder, *cells, book={"seconds": 22.4})


def test_stamping_writes_setup_time_and_folding_and_is_done_once(tmp_path: Path) -> None:
    chapter = small_chapter(tmp_path)
    stamp(chapter, "https://example.org/book")
    assert chapter.cells[1].source == setup_cell("https://example.org/book")
    assert f"git+https://example.org/book.git@v{version()}" in chapter.cells[1].source
    assert "- **Time:** runs in about 25 s on one CPU core" in chapter.cells[0].source
    assert "- **Question:** why?" in chapter.cells[0].source
    assert chapter.cells[2].metadata["jupyter"] == {"source_hidden": True}
    before = nbformat.writes(chapter.notebook)
    stamp(chapter, "https://example.org/book")
    assert nbformat.writes(chapter.notebook) == before


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, 5), (5.0, 5), (5.1, 10), (61.0, 70), (120.0, 120)]
)
def test_run_times_are_rounded_up(seconds: float, shown: int) -> None:
    assert f"about {shown} s" in time_line(seconds)


def test_tidying_joins_cut_streams_and_drops_what_differs_from_run_to_run(tmp_path: Path) -> None:
    cell = new.new_code_cell("print(1)", metadata={"papermill": {"duration": 1}, "tags": []})
    for name, text in (("stdout", "a"), ("stdout", "b\n"), ("stderr", "c")):
        cell.outputs.append(new.new_output("stream", name=name, text=text))
    cell.outputs.append(new.new_output("display_data", data={"text/plain": "d"}))
    cell.outputs.append(new.new_output("stream", name="stdout", text="e"))
    chapter = chapter_of(tmp_path, cell, papermill={"start_time": "now"})
    tidy(chapter)
    assert [output.get("text", "") for output in chapter.cells[0].outputs] == ["ab\n", "c", "", "e"]
    assert chapter.cells[0].metadata == {}
    assert chapter.notebook.metadata == KERNEL


def test_a_chapter_that_fails_or_leaves_files_is_an_error(tmp_path: Path) -> None:
    output, python = tmp_path / "output.ipynb", Path(sys.executable)
    for source, message in (
        ("assert 1 == 2, 'no'", "failed with its own parameters"),
        ("open('left', 'w').close()", "left files behind: left"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(chapter_of(tmp_path, new.new_code_cell(source)), output, python, {})


BUSY = """
import resource
while sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) < 5:
    pass
"""


def test_the_cpu_seconds_of_the_kernel_count(tmp_path: Path) -> None:
    chapter = chapter_of(tmp_path, new.new_code_cell(BUSY))
    assert run(chapter, tmp_path / "output.ipynb", Path(sys.executable), {}) > 5


def test_the_longest_chapters_begin_first(tmp_path: Path) -> None:
    book = [
        chapter_of(tmp_path, name=f"{number:02d}-x.ipynb", book={"budget": budget})
        for number, budget in enumerate((60, 270, 60, 150))
    ]
    done: list[int] = []
    on_all(book, lambda chapter: done.append(chapter.number))
    assert sorted(done[:2]) == [1, 3]
    assert sorted(done[2:]) == [0, 2]


def test_a_proof_fails_beyond_the_budget_and_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    took = {"01-fast.ipynb": 119.0, "02-slow.ipynb": 121.0, "03-large.ipynb": 99.0}

    def fake_run(chapter: Chapter, output: Path, python: Path, parameters: dict[str, int]) -> float:
        assert parameters == {"SEED": 500 + chapter.number}
        if chapter.path.name not in took:
            raise RuntimeError(f"{chapter.path.name} failed")
        return took[chapter.path.name]

    monkeypatch.setattr(notebooks, "empty_environment", lambda base: (base, Path("a.whl")))
    for name in ("install", "install_by_the_setup_cell", "run_cells"):
        monkeypatch.setattr(notebooks, name, lambda *arguments: None)
    monkeypatch.setattr(notebooks, "run", fake_run)
    names = [*took, "04-wrong.ipynb"]
    book = [
        chapter_of(tmp_path, name=name, book={"budget": 100} if "03" in name else {})
        for name in names
    ]
    assert notebooks.prove([book[0], book[2]], seed=500, base="") == 0
    assert notebooks.prove(book, seed=500, base="") == 1
    said = capsys.readouterr().out
    assert "02-slow.ipynb took 121 CPU-s, far over its 60" in said
    assert "04-wrong.ipynb failed" in said
    assert "2 passed, 2 failed" in said


def test_executing_stores_the_outputs_and_the_seconds_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_run(chapter: Chapter, output: Path, python: Path, parameters: dict[str, int]) -> float:
        notebook = nbformat.from_dict(json.loads(nbformat.writes(chapter.notebook)))
        notebook.cells[0].source = "ran"
        nbformat.write(notebook, output)
        return 12.34

    monkeypatch.setattr(notebooks, "run", fake_run)
    book = {"budget": 270, "modules": {"attention": "Attention."}, "seconds": 1.0}
    chapter = chapter_of(tmp_path, new.new_code_cell("1"), book=book)
    notebooks.execute([chapter])
    stored = Chapter(chapter.path)
    assert stored.cells[0].source == "ran"
    assert stored.book == book | {"seconds": 12.3}


def test_one_address_is_stamped_everywhere() -> None:
    assert repository_url().startswith("https://")
    assert not repository_url().endswith("/")
