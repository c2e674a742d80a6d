"""What counts as a claim, and what is said of it."""

import json
from pathlib import Path

import nbformat
import pytest

from tools.chapters import Chapter, chapters
from tools.claims import RESULTS, all_asserts, bold_numbers, claims, seed, seeds_in


@pytest.mark.parametrize(
    ("markdown", "numbers"),
    [
        ("from **0.97** to **4e-06**, **95% to 97%**", ["0.97", "4e-06", "95% to 97%"]),
        ("**BLEU 37.0**, **3,200 times**, **-7 M**", ["BLEU 37.0", "3,200 times", "-7 M"]),
        ("| **1 head** | 2.3 |", ["1 head"]),
        ("0.97, **top-p 0.8:** a text", []),
        ("**NaN from float16** is no number, nor is **bold**", []),
        ("**a sentence that is translated, 44 words long**", []),
    ],
)
def test_bold_numbers(markdown: str, numbers: list[str]) -> None:
    assert bold_numbers(markdown) == numbers


def notebook(tmp_path: Path, cells: list[tuple[str, str | None]]) -> Chapter:
    """A chapter of code cells (source, Markdown output) and, where a source begins with #, of text."""
    made = []
    for source, output in cells:
        if source.startswith("# "):
            made.append(nbformat.v4.new_markdown_cell(source))
            continue
        cell = nbformat.v4.new_code_cell(source)
        if output is not None:
            data = {"text/markdown": output, "text/plain": "..."}
            cell.outputs = [nbformat.v4.new_output("display_data", data)]
        made.append(cell)
    path = tmp_path / "07-toy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return Chapter(path)


def test_a_claim_knows_its_cell_its_asserts_and_its_stored_runs(tmp_path: Path) -> None:
    table = "| row | value |\n|---|---|\n| a | **7** |\n| b | 8 |\n\nNothing bold.\n\nBut **9** is."
    chapter = notebook(
        tmp_path,
        [
            ("# 7. Toy", None),
            ("x = 1\nassert x > 0, 'positive'", None),
            ("print_it(x)", "It is **1**."),
            ("assert x == 1", None),
            ("# Next", None),
            ("assert x < 2", None),
            ('runs = json.loads((folder / "heads.json").read_text())', "No number here."),
            ("show(runs)", table),
            ("show(x)", "Again **1**."),
        ],
    )
    first, second, third = claims(chapter)
    assert (first.cell, first.text, first.numbers) == (2, "It is **1**.", ["1"])
    assert first.asserts == ["x == 1"], "of the cell itself and those after it, up to the next text"
    assert first.stored == third.stored == []
    assert second.text == "| row | value |\n|---|---|\n| a | **7** |\n\nBut **9** is."
    held = json.loads((RESULTS / "heads.json").read_text(encoding="utf-8"))
    assert [stored.command for stored in second.stored] == [held["command"]]
    assert all_asserts(chapter) == {1: ["x > 0"], 3: ["x == 1"], 5: ["x < 2"]}


def test_seeds_are_found_at_any_depth() -> None:
    held = {"settings": {"seeds": [1, 2]}, "runs": [{"seed": 7, "loss": 3}, {"x": {"seed": 5}}]}
    assert seeds_in(held) == {1, 2, 5, 7}


def test_every_chapter_has_a_seed_and_every_stored_run_a_command_and_seeds() -> None:
    for chapter in chapters():
        assert f"SEED = {seed(chapter)}\n" in chapter.tagged("parameters")[0].source + "\n"
    for path in RESULTS.glob("*.json"):
        held = json.loads(path.read_text(encoding="utf-8"))
        assert held["command"].startswith("python ")
        assert seeds_in(held), f"{path.name} names no seed"
