"""The book's standard: what every chapter holds, whoever wrote it."""

import ast
import re

import pytest
import yaml

from tools.chapters import ROOT, Chapter, chapters, parse_cell, tags
from tools.clocks import clock_fed
from tools.notebooks import repository_url, setup_cell, time_line

CHAPTERS = chapters()
LAST_SECTIONS = ["What goes wrong", "Exercises", "Quiz", "Summary", "The map"]
MYST = re.compile(r"^\s*(`{3,}|:{3,})\{|\{[a-z:-]+\}`|^\([\w-]+\)=\s*$|^\+\+\+", re.MULTILINE)
OTHER_PLACES = re.compile(
    r"https?://|\.\./|['\"]/|torch\.load|pickle|urllib|requests\.|subprocess|os\.environ"
)
EMPTY_WORDS = re.compile(
    r"\b(simply|obviously|trivially|as we all know|needless to say)\b", re.IGNORECASE
)


def without_code(markdown: str) -> str:
    """Markdown without its code spans and fenced blocks."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))


def calls(source: str) -> set[str]:
    """The names of the functions that a piece of code calls."""
    nodes = [
        node.func for node in ast.walk(parse_cell(source, "cell")) if isinstance(node, ast.Call)
    ]
    return {node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in nodes}


def checks_of(chapter: Chapter) -> dict[str, str]:
    """The checks of a chapter's exercises: the label of the exercise -> the name of the function."""
    file = ROOT / "transformer_lib" / "book" / "checks" / f"chapter_{chapter.number:02d}.py"
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        for decorator in getattr(node, "decorator_list", []):
            label = re.fullmatch(
                r"diagnostic\('Exercise (\d+\.\d+)'(?:, in_place=True)?\)", ast.unparse(decorator)
            )
            if label:
                found[label[1]] = node.name
    return found


def can_fail(source: str) -> bool:
    """Whether a cell holds a check that can fail."""
    return bool(re.search(r"^\s*assert ", source, re.MULTILINE)) or "assert_close" in calls(source)


each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=repr)


def test_the_table_of_contents_names_every_chapter_in_order() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    listed = [file for file in files if file.startswith("notebooks/")]
    numbered = [f"notebooks/{chapter}" for chapter in CHAPTERS]
    assert sorted(listed) == numbered
    chapters_in_parts = [file for file in listed if not file.startswith("notebooks/00")]
    assert chapters_in_parts == sorted(chapters_in_parts)
    for file in [*files, toc["root"]]:
        assert any((ROOT / f"{file}{ending}").exists() for ending in (".md", ".ipynb")), (
            f"{file} does not exist"
        )


@each_chapter
def test_the_first_cell_says_what_the_chapter_is(chapter: Chapter) -> None:
    first = chapter.cells[0]
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert re.fullmatch(rf"# {chapter.number}\. \S.+", lines[0]), f"title is {lines[0]!r}"
    labels = re.findall(r"^- \*\*(.+?):\*\* \S", first.source, re.MULTILINE)
    assert labels == ["Question", "You build", "You need", "Time"], f"the first cell has {labels}"


@each_chapter
def test_the_run_time_is_measured_within_budget_and_shown(chapter: Chapter) -> None:
    """In CPU seconds; on a busy machine they hardly change."""
    assert set(chapter.book) <= {"seconds", "budget", "modules"}
    assert chapter.cpu_seconds is not None, "`make execute` has not measured it"
    assert chapter.cpu_seconds <= chapter.budget, f"{chapter.cpu_seconds} CPU-s of {chapter.budget}"
    assert time_line(chapter.cpu_seconds) in chapter.cells[0].source


@each_chapter
def test_no_claim_depends_on_the_clock(chapter: Chapter) -> None:
    """What a cell says of time, it prints: on a busy machine an assert on it would fail."""
    exported = {definition.place for definition in chapter.definitions}  # tests prove these
    trees = {place: tree for place, tree in chapter.trees.items() if place not in exported}
    places = list(trees)
    found = [f"{places[cell]}, line {line}" for cell, line in clock_fed(trees.values())]
    assert not found, f"a clock feeds the asserts of {found}"


def test_no_test_depends_on_the_clock() -> None:
    for folder in ("tests", "transformer_lib"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found = [line for _, line in clock_fed([ast.parse(path.read_text(encoding="utf-8"))])]
            assert not found, f"{path}: a clock feeds what lines {found} assert or raise"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=repr)
def test_a_chapter_fits_one_sitting(chapter: Chapter) -> None:
    """Before "Going deeper" and the exercises; what is folded is not read."""
    sitting = chapter.sitting()
    assert sitting.minutes <= 40, f"{sitting.minutes:.0f} minutes: {sitting}"
    assert sitting.lines <= 400, f"{sitting.lines} lines of code to read"
    assert sitting.longest <= 45, f"a cell of {sitting.longest} lines"


@each_chapter
def test_setup_and_parameters_come_first(chapter: Chapter) -> None:
    cells = chapter.code
    assert [tags(cell) for cell in cells[:2]] == [["setup", "hide-input"], ["parameters"]]
    assert cells[0].source == setup_cell(repository_url())
    assert [tag for cell in cells for tag in tags(cell)].count("parameters") == 1
    assert re.search(r"^SEED = \d+", cells[1].source, re.MULTILINE), "SEED is a parameter"
    assert any("SEED" in cell.source for cell in cells[2:]), "SEED is used"
    for node in parse_cell(cells[1].source, chapter.path.name).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign), (
            "the parameters cell holds assignments only"
        )


@each_chapter
def test_every_import_is_used(chapter: Chapter) -> None:
    """But for those of the setup cell, which is the same everywhere."""
    nodes = [
        node for cell in chapter.code[1:] for node in ast.walk(parse_cell(cell.source, "cell"))
    ]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
    unused = names - {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not unused, f"imported for nothing: {sorted(unused)}"


@each_chapter
def test_the_sections_are_there_in_order(chapter: Chapter) -> None:
    headings = list(chapter.sections)
    if "Going deeper" in headings:  # it may be skipped, and stands behind the body
        after = headings.index("Going deeper")
        assert headings[after - 1 : after + 2] == ["What goes wrong", "Going deeper", "Exercises"]
        del headings[after]
    assert headings[-5:] == LAST_SECTIONS, f"the chapter ends with {headings[-5:]}"
    assert len(headings) >= (6 if chapter.number == 0 else 8), f"only {headings}"


@each_chapter
def test_every_section_that_runs_code_has_a_check_that_can_fail(chapter: Chapter) -> None:
    for heading, cells in chapter.sections.items():
        if heading in ("Exercises", "Quiz", "Summary", "The map"):
            continue
        runs = [cell for cell in cells if cell.cell_type == "code" and cell.outputs]
        computes = [
            cell for cell in runs if not re.match(r"diagram\(|transformer_map\(", cell.source)
        ]
        if computes:
            asserting = [
                cell for cell in cells if cell.cell_type == "code" and can_fail(cell.source)
            ]
            assert asserting, f"section {heading!r} computes something and asserts nothing"


@each_chapter
def test_every_assert_says_what_it_found(chapter: Chapter) -> None:
    for cell in chapter.code:
        for node in ast.walk(parse_cell(cell.source, chapter.path.name)):
            if isinstance(node, ast.Assert):
                assert node.msg is not None, f"no message: {ast.unparse(node)}"
                constant = isinstance(node.test, ast.Constant)
                assert not constant, f"cannot fail: {ast.unparse(node)}"


@each_chapter
def test_exercises_have_hint_stub_check_and_solution(chapter: Chapter) -> None:
    cells = chapter.sections["Exercises"]
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    title = r"^### Exercise (\d+\.\d+) (?:★☆☆|★★☆|★★★) \(\d+ minutes\): \S"
    labels = re.findall(title, markdown, re.MULTILINE)
    expected = [f"{chapter.number}.{k}" for k in range(1, len(labels) + 1)]
    assert labels == expected, f"exercises are numbered {labels}"
    assert len(labels) == len(re.findall(r"^### ", markdown, re.MULTILINE)), (
        "a title is not in the form of the others"
    )
    fewest = 1 if chapter.number == 0 else 3
    assert fewest <= len(labels) <= 5, f"{len(labels)} exercises"
    assert markdown.count("> **Hint.**") >= len(labels), "every exercise has a hint"
    stubs = [cell for cell in cells if "exercise" in tags(cell)]
    checks = checks_of(chapter)
    solutions = [cell for cell in cells if cell.source.startswith("# Solution")]
    assert len(stubs) == len(solutions) == len(labels), "each has a stub and a solution"
    assert list(checks) == labels, f"each has a check, and there are those of {list(checks)}"
    for label, stub, solution in zip(labels, stubs, solutions, strict=True):
        assert "raise NotImplementedError" in stub.source, f"the stub of {label} is to be filled in"
        assert solution.source.startswith(f"# Solution {label}")
        assert "hide-cell" in tags(solution), f"the solution of {label} is folded"
        name = checks[label]
        assert name.startswith("check_"), f"the check of {label} is called check_..., not {name}"
        line = f"from transformer_lib.book.checks.chapter_{chapter.number:02d} import {name}\n"
        assert stub.source.startswith(line), f"the stub of {label} imports {name}"
        assert {name} <= calls(stub.source), f"the stub of {label} calls {name}"
        assert {name} <= calls(solution.source), f"the solution of {label} calls {name}"
        output = "".join(out.get("text", "") for out in stub.outputs)
        assert f"Exercise {label} is still open" in output, f"the stub of {label} prints {output!r}"
        output = "".join(out.get("text", "") for out in solution.outputs)
        assert f"Exercise {label}: every check passed." in output, (
            f"the solution of {label} prints {output!r}"
        )


@each_chapter
def test_the_quiz_explains_every_answer(chapter: Chapter) -> None:
    source = "\n".join(cell.source for cell in chapter.sections["Quiz"])
    quiz = source[source.index("## Quiz") :].split("\n## ")[0]
    questions = re.split(r"^\*\*\d+\. .+\*\*\s*$", quiz, flags=re.MULTILINE)[1:]
    fewest = 1 if chapter.number == 0 else 2
    assert fewest <= len(questions) <= 3, f"{len(questions)} questions"
    for question in questions:
        answers = re.findall(
            r"<details><summary>(.+?)</summary>\n\n(.+?)\n\n</details>", question, re.DOTALL
        )
        assert len(answers) >= 2, f"a question offers answers: {question}"
        assert question.count("<details>") == len(answers), (
            f"an answer is not in the form of the others: {question}"
        )
        for answer, explanation in answers:
            assert len(explanation.split()) >= 5, f"{answer!r} is hardly explained: {explanation!r}"


@each_chapter
def test_the_map_closes_the_chapter(chapter: Chapter) -> None:
    assert chapter.code[-1].source.strip() == f"transformer_map({chapter.number})"


@each_chapter
def test_the_markdown_is_understood_everywhere(chapter: Chapter) -> None:
    markdown = chapter.text
    assert not MYST.search(without_code(markdown)), "MyST syntax shows raw in JupyterLab and Colab"
    assert not re.search(r"<(script|style|iframe|img)", markdown), "HTML that loads or styles"
    numbered = re.findall(r"\\tag\{(.+?)\}", markdown)
    assert numbered == [f"{chapter.number}.{k}" for k in range(1, len(numbered) + 1)], (
        f"equations are {numbered}"
    )
    assert not EMPTY_WORDS.search(without_code(markdown)), EMPTY_WORDS.search(
        without_code(markdown)
    )


@each_chapter
def test_every_link_leads_somewhere(chapter: Chapter) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", chapter.text):
        if not target.startswith(("https://", "http://")):
            assert (chapter.path.parent / target).resolve().exists(), f"link to {target}"


@each_chapter
def test_the_chapter_reads_nothing_from_outside(chapter: Chapter) -> None:
    for cell in chapter.code[1:]:  # the setup cell names where the package is published
        found = OTHER_PLACES.search(cell.source)
        assert found is None, f"{found} in a cell: {cell.source[:200]}"
        forbidden = {"open", "load_state_dict_from_url", "savefig"} & calls(cell.source)
        if not cell.source.startswith("#| export"):
            assert not forbidden, f"{forbidden} in a cell: {cell.source[:200]}"


@each_chapter
def test_outputs_are_stored_and_clean(chapter: Chapter) -> None:
    for cell in chapter.code:
        assert cell.execution_count is not None, f"never run: {cell.source[:80]}"
        for output in cell.outputs:
            assert output.output_type != "error", f"an error: {output.get('evalue')}"
            assert output.get("name") != "stderr", f"a warning: {output.get('text')}"
            data = output.get("data", {})
            assert not any("widget" in kind for kind in data), (
                "a widget loads scripts from elsewhere"
            )
            html = data.get("text/html", "")
            assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", html), (
                "an output loads from another host"
            )


@each_chapter
def test_pictures_are_not_compared_and_text_is(chapter: Chapter) -> None:
    """What nobody compares could say anything: only a picture, a timing or a training goes uncompared."""
    uncompared = [cell for cell in chapter.code if "nbval-ignore-output" in tags(cell)]
    assert len(uncompared) < 0.5 * len([cell for cell in chapter.code if cell.outputs])


def test_every_public_name_is_documented() -> None:
    """Docstrings of the package: one line of what it does, and for functions with arguments, shapes and errors."""
    for path in sorted((ROOT / "transformer_lib").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                docstring = ast.get_docstring(node) or ""
                assert docstring, f"{path.name}: {node.name} has no docstring"
                raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                if raises and path.parent.name != "checks":
                    texts = [
                        ast.get_docstring(inner) or ""
                        for inner in ast.walk(node)
                        if isinstance(inner, ast.FunctionDef | ast.ClassDef)
                    ]
                    assert re.search("Raises:|ValueError", "\n".join(texts)), (
                        f"{path.name}: {node.name} does not say what it raises"
                    )
