"""The tool that runs and stamps the chapters."""

import sys
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import SETUP, chapters, repository_url, run, stamp, tidy, time_line


def small_notebook() -> nbformat.NotebookNode:
    """A chapter's first cells, and a solution."""
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# 1. A chapter\n\n- **Question:** why?\n- **Time:** stamped"),
        new.new_code_cell("# setup", metadata={"tags": ["setup"]}),
        new.new_code_cell("# Solution 1.1", metadata={"tags": ["hide-cell"]}),
    ]
    return new.new_notebook(cells=cells, metadata={"book": {"seconds": 11.2}})


def test_stamping_writes_setup_time_and_folding_and_is_done_once() -> None:
    notebook = small_notebook()
    stamp(notebook, "https://example.org/book")
    assert notebook.cells[1].source == SETUP.format(url="https://example.org/book")
    assert "git+https://example.org/book.git" in notebook.cells[1].source
    assert "- **Time:** runs in about 15 s on 2 CPU cores" in notebook.cells[0].source
    assert "- **Question:** why?" in notebook.cells[0].source
    assert notebook.cells[2].metadata["jupyter"] == {"source_hidden": True}
    before = nbformat.writes(notebook)
    stamp(notebook, "https://example.org/book")
    assert nbformat.writes(notebook) == before


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, 5), (5.0, 5), (5.1, 10), (61.0, 70), (120.0, 120)]
)
def test_run_times_are_rounded_up(seconds: float, shown: int) -> None:
    assert f"about {shown} s" in time_line(seconds)


def test_tidying_joins_cut_streams_and_drops_what_differs_from_run_to_run() -> None:
    new = nbformat.v4
    cell = new.new_code_cell("print(1)", metadata={"papermill": {"duration": 1}, "tags": []})
    for name, text in (("stdout", "a"), ("stdout", "b\n"), ("stderr", "c")):
        cell.outputs.append(new.new_output("stream", name=name, text=text))
    cell.outputs.append(new.new_output("display_data", data={"text/plain": "d"}))
    cell.outputs.append(new.new_output("stream", name="stdout", text="e"))
    notebook = new.new_notebook(cells=[cell], metadata={"papermill": {"start_time": "now"}})
    tidy(notebook)
    assert [output.get("text", "") for output in cell.outputs] == ["ab\n", "c", "", "e"]
    assert cell.metadata == {}
    assert notebook.metadata == {}


def test_an_unknown_chapter_is_named() -> None:
    with pytest.raises(SystemExit, match="there is no chapter 99"):
        chapters(["99"])
    assert [path.name[:2] for path in chapters(["05", "00"])] == ["00", "05"]


def test_a_chapter_that_fails_or_leaves_files_is_an_error(tmp_path: Path) -> None:
    def notebook_with(source: str) -> Path:
        cell = nbformat.v4.new_code_cell(source)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        path = tmp_path / "01-small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
        return path

    output, python = tmp_path / "output.ipynb", Path(sys.executable)
    with pytest.raises(RuntimeError, match="failed with its own parameters"):
        run(notebook_with("assert 1 == 2, 'no'"), output, python, {}, threads=1)
    with pytest.raises(RuntimeError, match="left files behind: left"):
        run(notebook_with("open('left', 'w').close()"), output, python, {}, threads=1)


def test_one_address_is_stamped_everywhere() -> None:
    assert repository_url().startswith("https://")
    assert not repository_url().endswith("/")
