"""Assignments for nbgrader: what they hold, and that it grades them rightly, where it is installed."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools.assignment import assignment, main
from tools.chapters import ROOT, Chapter, chapters

CHAPTERS = chapters()


RIGHT = """def my_causal_mask(length):
    places = torch.arange(length)
    return places[:, None] >= places"""


def graded(notebook: nbformat.NotebookNode, part: str) -> dict[str, nbformat.NotebookNode]:
    """The cells that nbgrader looks at: `answer` or `check` -> by exercise."""
    cells = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    ids = {cell.metadata["nbgrader"]["grade_id"]: cell for cell in cells}
    return {
        name.split("-", 1)[1].removesuffix(f"-{part}"): c
        for name, c in ids.items()
        if name.endswith(part)
    }


@pytest.mark.parametrize("chapter", CHAPTERS, ids=repr)
def test_every_exercise_is_a_cell_to_fill_in_and_a_locked_check(chapter: Chapter) -> None:
    made = assignment(chapter)
    nbformat.validate(made)
    answers, checks = graded(made, "answer"), graded(made, "check")
    assert list(answers) == list(checks) == [e.label.replace(".", "-") for e in chapter.exercises]
    for exercise, answer, check in zip(
        chapter.exercises, answers.values(), checks.values(), strict=True
    ):
        is_answer, is_check = answer.metadata["nbgrader"], check.metadata["nbgrader"]
        assert (is_answer["solution"], is_answer["grade"], is_answer["locked"]) == (
            True,
            False,
            False,
        )
        assert (is_check["solution"], is_check["grade"], is_check["locked"]) == (False, True, True)
        assert is_check["points"] == exercise.stars
        assert answer.source.count("### BEGIN SOLUTION") == 1
        assert "check_" not in answer.source, "the student's cell cannot change the check"
        assert check.source.endswith("graded=True)")
    everything = "\n".join(cell.source for cell in made.cells)
    assert "# Solution " not in everything
    assert not any(cell.get("outputs") for cell in made.cells)


def test_a_graded_check_fails_for_what_is_open_or_wrong_and_passes_for_what_is_right() -> None:
    (chapter,) = [chapter for chapter in CHAPTERS if chapter.number == 5]
    made = assignment(chapter)
    answer, check = graded(made, "answer")["5-1"].source, graded(made, "check")["5-1"].source
    start = "import torch\nfrom torch import Tensor\n"
    stub = "def my_causal_mask(length):\n    return torch.ones(length, length, dtype=torch.bool)"
    with pytest.raises(AssertionError, match=r"5\.1 is still open"):
        exec(f"{start}{answer}\n{check}", {})
    with pytest.raises(AssertionError, match="future"):
        exec(f"{start}{stub}\n{check}", {})
    exec(f"{start}{RIGHT}\n{check}", {})


def test_an_unknown_chapter_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["assignment", "99", "somewhere"])
    with pytest.raises(SystemExit):
        main()
    assert "99" in capsys.readouterr().err


@pytest.mark.slow
def test_nbgrader_gives_the_points_that_are_earned(tmp_path: Path) -> None:
    pytest.importorskip("nbgrader", reason="nbgrader is not part of the book's environment")
    name = "05-self-attention-and-masks"

    def run(*command: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    (tmp_path / "nbgrader_config.py").write_text(
        'c = get_config()\nc.CourseDirectory.course_id = "transformers"\n', encoding="utf-8"
    )
    run("tools.assignment", "05", "source")
    run("nbgrader", "generate_assignment", name)
    handed_out = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", as_version=4)
    assert "NotImplementedError()" in graded(handed_out, "answer")["5-1"].source
    for student, answer in (("ada", RIGHT), ("ben", RIGHT.replace(">=", "<="))):
        graded(handed_out, "answer")["5-1"].source = answer
        graded(handed_out, "check")["5-4"].source = "pass"  # in vain
        path = tmp_path / "submitted" / student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(handed_out, path)
    run("nbgrader", "autograde", name, "--create")
    run("nbgrader", "export")
    with (tmp_path / "grades.csv").open(encoding="utf-8") as file:
        scores = {row["student_id"]: float(row["raw_score"]) for row in csv.DictReader(file)}
    assert scores == {"ada": 1.0, "ben": 0.0}
