"""Make an assignment for nbgrader out of a chapter.

    python -m tools.assignment 05 ~/course/source

writes the notebook 05-self-attention-and-masks.ipynb into a folder of its own there: the chapter without its solutions,
and each exercise as nbgrader wants it: a cell to be filled in, and a locked one that calls the check and gives the
points, one a star.
"""

import argparse
import ast
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.chapters import Chapter, ChapterError, chapters, tags


def nbgrader(grade_id: str, points: int | None) -> NotebookNode:
    """The metadata of a cell: one to be filled in or, with points, one that grades."""
    found = NotebookNode(schema_version=3, grade_id=grade_id, task=False)
    found |= {"solution": points is None, "grade": points is not None, "locked": points is not None}
    if points is not None:
        found["points"] = points
    return found


def split(cell: NotebookNode, label: str, stars: int) -> list[NotebookNode]:
    """An exercise as two cells; nbgrader puts a stub of its own into the first."""
    imports, *_, check = ast.parse(cell.source).body
    if not (isinstance(check, ast.Expr) and isinstance(check.value, ast.Call)):
        raise ChapterError(f"exercise {label} does not end in a call of its check")
    if not (isinstance(imports, ast.ImportFrom) and imports.end_lineno):
        raise ChapterError(f"exercise {label} does not begin by importing its check")
    lines = cell.source.splitlines()[imports.end_lineno : check.lineno - 1]
    (empty,) = (k for k, line in enumerate(lines) if "raise NotImplementedError" in line)
    indent = lines[empty][: len(lines[empty]) - len(lines[empty].lstrip())]
    lines[empty : empty + 1] = [
        f"{indent}### BEGIN SOLUTION",
        lines[empty],
        f"{indent}### END SOLUTION",
    ]
    check.value.keywords.append(ast.keyword("graded", ast.Constant(True)))
    name = label.replace(".", "-")
    cells = []
    for part, source, points in (
        ("answer", "\n".join(lines).strip(), None),
        ("check", f"{ast.unparse(imports)}\n\n{ast.unparse(check)}", stars),
    ):
        new = nbformat.v4.new_code_cell(source, id=f"exercise-{name}-{part}")
        new.metadata["nbgrader"] = nbgrader(f"exercise-{name}-{part}", points)
        cells.append(new)
    return cells


def is_solution(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and cell.source.startswith("# Solution ")


def assignment(chapter: Chapter) -> NotebookNode:
    """The chapter as nbgrader's source: no outputs, no solutions, its exercises split."""
    exercises = iter(chapter.exercises)
    cells: list[NotebookNode] = []
    for cell in chapter.cells:
        if "exercise" in tags(cell):
            exercise = next(exercises)
            cells += split(cell, exercise.label, exercise.stars)
        elif not is_solution(cell):
            new = NotebookNode(cell)
            if cell.cell_type == "code":
                new |= {"outputs": [], "execution_count": None}
            cells.append(new)
    metadata = {"kernelspec": chapter.notebook.metadata["kernelspec"]}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def main() -> int:
    """Read the command line and write the assignments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="+", help="two-digit numbers of the chapters")
    parser.add_argument("source", type=Path, help="the course's folder `source`")
    arguments = parser.parse_args()
    try:
        for chapter in chapters(arguments.numbers):
            made = assignment(chapter)
            path = arguments.source / str(chapter) / chapter.path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(made, path)
            points = sum(exercise.stars for exercise in chapter.exercises)
            print(f"{path}: {len(chapter.exercises)} exercises, {points} points")
    except ChapterError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
