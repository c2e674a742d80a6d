"""What the book claims to have measured, read from the notebooks.

A claim is what a cell has printed as text with a number in bold: at most four words, one of which begins with a digit.
With it go the cell, what is asserted there, and what it takes to measure again: the seed and the command.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

from tools.chapters import ROOT, Chapter, parse_cell, tags

RESULTS = ROOT / "transformer_lib" / "book" / "results"
BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*")
NUMBER = re.compile(r"(?<!\S)[-+−±]?\d")
WORDS = 4


@dataclass(frozen=True)
class Stored:
    """Runs that are too long for a chapter, and stored with the book."""

    file: str
    command: str
    seeds: list[int]


@dataclass(frozen=True)
class Claim:
    """One output with numbers in bold."""

    cell: int  # its index in the notebook
    text: str  # Markdown; of a table only the rows with such numbers
    numbers: list[str]
    asserts: list[
        str
    ]  # the conditions, of this cell and of those that follow it without text between
    stored: list[Stored]  # where the numbers come from, if the cell did not measure them itself


def bold_numbers(markdown: str) -> list[str]:
    """The numbers in bold."""
    found = [match[1] for match in BOLD.finditer(markdown)]
    return [b for b in found if NUMBER.search(b) and len(b.split()) <= WORDS and b[-1] != ":"]


def printed(cell: NotebookNode) -> list[str]:
    """The Markdown that a cell put out."""
    return [
        output.data["text/markdown"]
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]


def with_numbers(markdown: str) -> str:
    """The paragraphs with a bold number; of tables the head and such rows."""
    kept = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            lines = [line for k, line in enumerate(lines) if k < 2 or bold_numbers(line)]
        if bold_numbers("\n".join(lines)):
            kept.append("\n".join(lines))
    return "\n\n".join(kept)


def asserts(cell: NotebookNode) -> list[str]:
    """The conditions that a cell asserts, as code; none for an exercise."""
    if cell.cell_type != "code" or "exercise" in tags(cell):
        return []
    tree = parse_cell(cell.source, "a cell")
    return [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def asserts_from(chapter: Chapter, index: int) -> list[str]:
    """The conditions of a cell and of the code cells after it, up to the next text."""
    cells = itertools.takewhile(lambda cell: cell.cell_type == "code", chapter.cells[index:])
    return [condition for cell in cells for condition in asserts(cell)]


def seed(chapter: Chapter) -> int:
    """The seed of a chapter's parameters."""
    found = re.search(r"^SEED = (\d+)", chapter.tagged("parameters")[0].source, re.M)
    assert found is not None
    return int(found[1])


def seeds_in(held: Any) -> set[int]:
    """All seeds that stored results name, at any depth."""
    if isinstance(held, list):
        return set().union(*map(seeds_in, held))
    if not isinstance(held, dict):
        return set()
    here = {held[key] for key in ("seed",) if isinstance(held.get(key), int)}
    several = held.get("seeds", [])
    here |= {s for s in several if isinstance(s, int)} if isinstance(several, list) else set()
    return here.union(*map(seeds_in, held.values()))


def read_stored(name: str) -> Stored:
    held = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return Stored(name, held["command"], sorted(seeds_in(held)))


def stored_results(source: str) -> list[str]:
    """The stored results that a piece of code names."""
    names = re.findall(r"([\w]+\.json)\b", source)
    return [name for name in dict.fromkeys(names) if (RESULTS / name).is_file()]


def assigned(tree: ast.Module) -> set[str]:
    """What the top level of a cell assigns to."""
    return {
        node.id
        for statement in tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def claims(chapter: Chapter) -> Iterator[Claim]:
    """All claims of a chapter, in order."""
    holders: dict[str, list[str]] = {}  # name -> the stored results that a cell put into it
    for index, cell in enumerate(chapter.cells):
        if cell.cell_type != "code":
            continue
        tree = parse_cell(cell.source, f"{chapter}, cell {index}")
        files = stored_results(cell.source)
        holders |= dict.fromkeys(assigned(tree), files) if files else {}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        files += [file for name in sorted(used & holders.keys()) for file in holders[name]]
        text = "\n\n".join(filter(None, map(with_numbers, printed(cell))))
        if text:
            stored = [read_stored(name) for name in dict.fromkeys(files)]
            yield Claim(index, text, bold_numbers(text), asserts_from(chapter, index), stored)


def all_asserts(chapter: Chapter) -> dict[int, list[str]]:
    """Every cell that asserts something -> its conditions."""
    found = {index: asserts(cell) for index, cell in enumerate(chapter.cells)}
    return {index: conditions for index, conditions in found.items() if conditions}
