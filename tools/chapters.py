"""The one reader of the notebooks: what the exporter, the runner, the site and the tests know of a chapter.

A chapter is notebooks/NN-title.ipynb. What differs from chapter to chapter stands in the notebook's own metadata:

    "book": {
      "seconds": 31.1,     CPU seconds that it took, written by `make execute`
      "budget": 270,       CPU seconds that it may take; 60 if it does not say
      "modules": {"attention": "Masks and attention."}     what the modules hold that it is the first to export to
    },
    "versions": {"torch": "2.13.0", ...}     with which the outputs were made, written by `make execute`
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"

MARKER = re.compile(r"#\| export(?: (?P<module>[a-z_]+))?(?: replaces (?P<replaces>\w+))?$")
ALMOST_A_MARKER = re.compile(r"^\s*#\s*\|?\s*exports?\b", re.MULTILINE)
QUESTION = re.compile(r"^- \*\*Question:\*\* (.+?)(?=\n- |\n\n|\Z)", re.MULTILINE | re.DOTALL)
END_OF_BODY = re.compile(r"^## (Going deeper|Exercises)\b", re.MULTILINE)
EXERCISE = re.compile(r"^### Exercise (\d+\.\d+) (★+)☆* \((\d+) minutes\): (.+)$", re.MULTILINE)
FOLDED = {"hide-cell", "hide-input", "remove-cell"}


class ChapterError(Exception):
    """Something in a chapter is wrong; the message names the notebook and the cell."""


@dataclass(frozen=True)
class Definition:
    """One exported cell."""

    place: str  # notebook and cell, for messages
    cell: int  # its index in the notebook
    module: str
    replaces: str | None  # the earlier definition that this one betters
    source: str  # without the marker
    names: list[str]


@dataclass(frozen=True)
class Sitting:
    """How much there is to read before "Going deeper" and the exercises; what is folded is not read."""

    words: int
    lines: int  # of code
    longest: int  # lines of the longest cell
    figures: int

    @property
    def minutes(self) -> float:
        return self.words / 200 + self.lines / 20 + self.figures / 2


@dataclass(frozen=True)
class Exercise:
    """What the heading of an exercise says."""

    label: str  # as in 5.1
    stars: int  # 1 to 3
    minutes: int
    title: str


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def parse_cell(source: str, place: str) -> ast.Module:
    """Parse a notebook cell; IPython's % and ! lines count as `pass`."""
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))
    except SyntaxError as error:
        raise ChapterError(f"{place}: {error.msg} in line {error.lineno}") from None


def defined_names(tree: ast.Module, place: str) -> list[str]:
    """The names that an exported cell defines; anything but a definition is an error."""
    names: list[str] = []
    for node in tree.body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and all(
            isinstance(target, ast.Name) for target in targets
        ):
            names += [target.id for target in targets]
        else:
            line = ast.unparse(node).splitlines()[0]
            raise ChapterError(f"{place}: an exported cell holds definitions only, not `{line}`")
    if not names:
        raise ChapterError(f"{place}: the marker stands over a cell that defines nothing")
    return names


class Chapter:
    """One notebook."""

    def __init__(self, path: Path) -> None:
        if not re.match(r"\d\d-", path.name):
            raise ChapterError(f"{path.name}: a chapter's name starts with two digits and a dash")
        self.path = path
        self.number = int(path.name[:2])
        self.notebook = nbformat.read(path, as_version=4)

    def __repr__(self) -> str:
        return self.path.stem

    def write(self) -> None:
        nbformat.write(self.notebook, self.path)

    # What its metadata says

    @property
    def book(self) -> dict:
        return self.notebook.metadata.setdefault("book", NotebookNode())

    @property
    def budget(self) -> float:
        """CPU seconds that it may take."""
        return self.book.get("budget", 60)

    @property
    def cpu_seconds(self) -> float | None:
        """CPU seconds that it took."""
        return self.book.get("seconds")

    @property
    def versions(self) -> dict[str, str]:
        """What its outputs were made with: of Python, and of the packages."""
        python = self.notebook.metadata.get("language_info", {}).get("version")
        found = {"python": python, **self.notebook.metadata.get("versions", {})}
        return {name: version for name, version in found.items() if version}

    # What is in it

    @property
    def cells(self) -> list[NotebookNode]:
        return self.notebook.cells

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @property
    def text(self) -> str:
        """All its Markdown."""
        return "\n\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")

    def tagged(self, tag: str) -> list[NotebookNode]:
        return [cell for cell in self.cells if tag in tags(cell)]

    @property
    def title(self) -> str:
        """Its heading, with the number."""
        return self.cells[0].source.partition("\n")[0].removeprefix("# ").strip()

    @property
    def question(self) -> str:
        found = QUESTION.search(self.cells[0].source)
        return " ".join(found[1].split()) if found else ""

    @property
    def exercises(self) -> list[Exercise]:
        return [
            Exercise(label, len(stars), int(minutes), title.strip())
            for label, stars, minutes, title in EXERCISE.findall(self.text)
        ]

    @cached_property
    def sections(self) -> dict[str, list[NotebookNode]]:
        """The cells under each `## ` heading; a cell with several headings belongs to each."""
        found: dict[str, list[NotebookNode]] = {}
        current = ""
        for cell in self.cells:
            headings = []
            if cell.cell_type == "markdown":
                headings = re.findall(r"^## (.+)$", cell.source, re.MULTILINE)
            for heading in headings:
                current = heading.strip()
                found[current] = [cell]
            if current and not headings:
                found[current].append(cell)
        return found

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Every code cell, parsed, by its place."""
        return {
            place: parse_cell(cell.source, place)
            for index, cell in enumerate(self.cells)
            if cell.cell_type == "code"
            for place in [f"{self.path.name}, cell {index}"]
        }

    @cached_property
    def definitions(self) -> list[Definition]:
        """The exported cells."""
        found = []
        code = [(index, cell) for index, cell in enumerate(self.cells) if cell.cell_type == "code"]
        for (index, cell), (place, tree) in zip(code, self.trees.items(), strict=True):
            first, _, rest = cell.source.partition("\n")
            marker = MARKER.match(first.rstrip())
            if marker is None or ALMOST_A_MARKER.search(rest):
                if ALMOST_A_MARKER.search(cell.source):
                    raise ChapterError(
                        f"{place}: a marker is `#| export MODULE` in the cell's first line, not `{first}`"
                    )
                continue
            if marker["module"] is None:
                raise ChapterError(f"{place}: the marker does not name a module: `{first}`")
            names = defined_names(tree, place)
            found.append(
                Definition(
                    place, index, marker["module"], marker["replaces"], rest.strip("\n"), names
                )
            )
        return found

    @cached_property
    def imports(self) -> dict[str, str]:
        """Every name that a top-level import of any cell binds -> a statement that imports just this name."""
        names = {}
        for tree in self.trees.values():
            for node in tree.body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    for alias in node.names:
                        single = ast.Import([alias])
                        if isinstance(node, ast.ImportFrom):
                            single = ast.ImportFrom(node.module, [alias], 0)
                        names[alias.asname or alias.name.partition(".")[0]] = ast.unparse(single)
        return names

    def sitting(self) -> Sitting:
        """What a reader reads in one go."""
        words = figures = 0
        lines = [0]
        for cell in self.cells:
            if cell.cell_type == "markdown":
                end = END_OF_BODY.search(cell.source)
                words += len(cell.source[: end.start() if end else None].split())
                if end:
                    break
            elif not FOLDED & set(tags(cell)):
                lines.append(sum(bool(line.strip()) for line in cell.source.splitlines()))
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                svg = "image/svg+xml" in data or "<svg" in data.get("text/html", "")
                figures += svg or "image/png" in data
                words += len(data.get("text/markdown", "").split())
        return Sitting(words, sum(lines), max(lines), figures)


def chapters(numbers: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Chapter]:
    """The chapters with these two-digit numbers, or all of them, in order."""
    paths = sorted(folder.glob("*.ipynb"))
    missing = set(numbers) - {path.name[:2] for path in paths}
    if missing:
        raise ChapterError(f"there is no chapter {', '.join(sorted(missing))}")
    return [Chapter(path) for path in paths if not numbers or path.name[:2] in numbers]
