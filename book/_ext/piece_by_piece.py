"""The book's own Sphinx extension: what the site needs and Jupyter Book does not do.

- serves MathJax, styles and scripts from this repository, so that a page loads nothing from another host;
- drops sphinx-thebe, which Jupyter Book always loads and whose script, loaded twice, is an error on every page;
- keeps a page from moving while it loads: its colors from the start, the size of every image;
- lets an equation of several lines carry a number;
- puts a line below a chapter's title, with how long it is to read and to run, with which versions, and the notebook;
- gives each code cell of a chapter an anchor, so that other pages can link to it;
- puts the terms of book/terms.yml into the index, by which the search finds them, and links the glossary to them;
- fills the `<!-- generated: NAME -->` markers of the pages in book/ from the notebooks and the package:
  `contents` (the chapters and the questions they answer), `chapter-table` (run times and sizes), `exercise-table` (by
  difficulty), `api` (the package reference, by autodoc), `claims` (what was measured, where and how),
  `diagram NAME` (an SVG, inline);
- writes the scripts by which the shipped translator runs in a page, its weights in 8 bits, and gives them to the pages
  that have a `<div class="tpp-try">` or a `<div class="tpp-try-strip">`.
"""

import re
import sys
import zlib
from functools import cache
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.chapters import Chapter, chapters  # noqa: E402
from tools.claims import Stored, all_asserts, claims, seed  # noqa: E402
from tools.export_modules import PACKAGE, collect  # noqa: E402

MARKER = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.M)
STATIC = ROOT / PACKAGE / "book" / "static"


# ---------------------------------------------------------------------------------------------- the chapters


@cache
def book() -> list[Chapter]:
    return chapters()


def exported_names(chapter: Chapter) -> dict[str, int]:
    """The full public names that a chapter exports -> the index of the cell that does."""
    return {
        f"{PACKAGE}.{definition.module}.{name}": definition.cell
        for definition in chapter.definitions
        for name in definition.names
        if not name.startswith("_")
    }


def contents(to_root: str) -> str:
    """The parts of the book, and of each chapter the question it answers."""
    by_file = {f"notebooks/{chapter}": chapter for chapter in book()}
    out: list[str] = []
    for part in yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]:
        found = [by_file[entry["file"]] for entry in part["chapters"] if entry["file"] in by_file]
        if found and re.match("[IVX]+[.] ", part["caption"]):
            out.append(f"### {part['caption']}")
            out.append(
                "\n".join(
                    f"- [{c.title}]({to_root}notebooks/{c.path.name})  \n  {c.question}"
                    for c in found
                )
            )
    return "\n\n".join(out)


def chapter_table(to_root: str) -> str:
    """One row a chapter: title, what it adds to the package, run time, exercises and size."""
    rows = [
        f"| Chapter | Adds to `{PACKAGE}` | Run time | Exercises | Size |",
        "|---|---|---:|---:|---:|",
    ]
    for chapter in book():
        modules = dict.fromkeys(f"`{name.split('.')[1]}`" for name in exported_names(chapter))
        seconds = chapter.cpu_seconds
        time = "not measured" if seconds is None else f"{max(1, round(seconds))} s"
        link = f"[{chapter.title}]({to_root}notebooks/{chapter.path.name})"
        exercises = len(chapter.tagged("exercise"))
        size = chapter.path.stat().st_size / 1e3
        rows.append(
            f"| {link} | {', '.join(modules) or '–'} | {time} | {exercises} | {size:.0f} kB |"
        )
    return "\n".join(rows)


def exercise_table(to_root: str) -> str:
    """The exercises by difficulty, with their minutes."""
    parts = []
    for stars in (1, 2, 3):
        rows = [
            f"| {e.label} | [{e.title}]({to_root}notebooks/{chapter.path.name}) | {e.minutes} |"
            for chapter in book()
            for e in chapter.exercises
            if e.stars == stars
        ]
        shown = "★" * stars + "☆" * (3 - stars)
        head = f"<details><summary>{shown} {len(rows)} exercises</summary>"
        parts += [
            head,
            "\n".join(["| | Exercise | Minutes |", "|---|---|---:|", *rows]),
            "</details>",
        ]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------- the package reference


def api(to_root: str) -> str:
    """A table of the modules, then each of them by autodoc."""
    modules = sorted(collect(book()).items())
    rows = ["| Module | What it holds |", "|---|---|"]
    rows += [f"| [`{name}`](api-{name}) | {module.description} |" for name, module in modules]
    parts = ["\n".join(rows)]
    for name, module in modules:
        directives = [f".. automodule:: {PACKAGE}.{name}\n   :members:\n   :undoc-members:"]
        # Constants have no docstring, so automodule passes over them.
        constants = [constant for constant in module.public if constant.isupper()]
        directives += [f".. autodata:: {PACKAGE}.{name}.{constant}" for constant in constants]
        parts += [f"(api-{name})=\n## `{name}`", "```{eval-rst}", *directives, "```"]
    return "\n\n".join(parts)


def fields_stand_in_the_docstring(app, what: str, name: str, member, skip: bool, options) -> bool:
    """Of a class autodoc lists the methods only."""
    return skip or (what == "class" and not callable(member) and not isinstance(member, property))


def say_where_built(app, what: str, name: str, member, options, lines: list[str]) -> None:
    """Of a module only the first line, of a constant not what its type says; under each name, its chapters."""
    if what in ("module", "data"):
        del lines[what == "module" :]
    found = [chapter for chapter in book() if name in exported_names(chapter)]
    links = [f":ref:`chapter {c.number} <{cell_label(c, exported_names(c)[name])}>`" for c in found]
    if links:
        lines += ["", f"Built in {' and '.join(links)}.", ""]


# ------------------------------------------------------------------------------------- the pages of chapters


def cell_label(chapter: Chapter, index: int) -> str:
    """The label of a cell, for links from other pages, and its anchor on its own page."""
    return f"cell-{chapter.number:02d}-{chapter.cells[index].id}".lower()


def facts_line(chapter: Chapter) -> str:
    """What one wants to know before one begins."""
    names = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy"}
    versions = chapter.versions
    run = ", ".join(f"{name} {versions[key]}" for key, name in names.items() if key in versions)
    seconds = "" if chapter.cpu_seconds is None else f" in {max(1, round(chapter.cpu_seconds))} s"
    exercises = sum(exercise.minutes for exercise in chapter.exercises)
    facts = [
        f"{chapter.sitting().minutes:.0f} minutes to read",
        f"{exercises} minutes of exercises",
        f"ran{seconds} with {run}" if run else "never run",
        f'<a href="../_sources/notebooks/{chapter.path.name}" download>download the notebook</a>',
    ]
    return '<p class="tpp-facts">' + " · ".join(f"<span>{fact}</span>" for fact in facts) + "</p>"


@cache
def terms() -> dict[int, list[str]]:
    """Chapter -> the terms that it explains."""
    return yaml.safe_load((ROOT / "book" / "terms.yml").read_text(encoding="utf-8"))


def link_glossary(app, doctree) -> None:
    """After each explanation of the glossary the chapter that says more."""
    if app.env.docname != "book/glossary":
        return
    app.env.note_dependency(str(ROOT / "book" / "terms.yml"))
    homes = {term.lower(): number for number, held in terms().items() for term in held}
    for item in doctree.findall(nodes.definition_list_item):
        number = homes[next(iter(item.findall(nodes.term))).astext().lower()]
        chapter = book()[number]
        text = f"Chapter\u00a0{number}"
        link = addnodes.pending_xref(
            "",
            nodes.inline("", text),
            refdomain="std",
            reftype="doc",
            reftarget=f"/notebooks/{chapter}",
            refexplicit=True,
            refdoc=app.env.docname,
        )
        list(item.findall(nodes.paragraph))[-1].extend([nodes.Text(" "), link])


def prepare_chapter(app, doctree) -> None:
    """The line below the title, the chapter's terms for the index, and an anchor for each code cell."""
    found = [chapter for chapter in book() if f"notebooks/{chapter}" == app.env.docname]
    if not found:
        return
    chapter = found[0]
    title = next(iter(doctree.findall(nodes.title)))
    line = nodes.raw("", facts_line(chapter), format="html")
    title.parent.insert(title.parent.index(title) + 1, line)
    app.env.note_dependency(str(ROOT / "book" / "terms.yml"))
    entries = [
        ("single", term, title.parent["ids"][0], "main", None)
        for term in terms().get(chapter.number, [])
    ]
    title.parent.insert(0, addnodes.index(entries=entries))
    standard = app.env.get_domain("std")
    for node in doctree.findall(nodes.container):
        if "cell" in node["classes"]:
            label = cell_label(chapter, node["cell_index"])
            node["ids"].append(label)
            standard.anonlabels[label] = app.env.docname, label


# ------------------------------------------------------------------------------------------------ the claims


def in_code(conditions: list[str]) -> str:
    return ", ".join(f"`{condition}`" for condition in conditions)


def stored_line(stored: Stored) -> str:
    seeds = ", ".join(map(str, stored.seeds))
    return f"`{stored.command}` (seeds {seeds})"


def claims_of(chapter: Chapter, to_root: str) -> str:
    """What a chapter claims, and everything that it asserts."""

    def cell(index: int) -> str:
        return f"{{ref}}`cell {index} <{cell_label(chapter, index)}>`"

    number = f"{chapter.number:02d}"
    parts = [
        f"## {chapter.title}",
        f"[Read it]({to_root}notebooks/{chapter.path.name}). Seed {seed(chapter)}. "
        f'To measure again: `make execute CHAPTERS="{number}"`.',
    ]
    for claim in claims(chapter):
        facts = [cell(claim.cell)]
        if claim.asserts:
            facts.append(f"asserted: {in_code(claim.asserts)}")
        facts += [f"stored runs: {stored_line(stored)}" for stored in claim.stored]
        text = re.sub(r"\]\((?=\d\d-)", f"]({to_root}notebooks/", claim.text)
        quote = f"{text}\n\n{' · '.join(facts)}"
        parts.append("\n".join(f"> {line}".rstrip() for line in quote.splitlines()))
    found = all_asserts(chapter)
    count = sum(map(len, found.values()))
    parts += [
        f"<details><summary>All {count} asserts of chapter {chapter.number}</summary>",
        "\n".join(f"- {cell(index)}: {in_code(held)}" for index, held in found.items()),
        "</details>",
    ]
    return "\n\n".join(parts)


def claims_page(to_root: str) -> str:
    """Every chapter's claims, after how many there are."""
    every = [claim for chapter in book() for claim in claims(chapter)]
    numbers = sum(len(claim.numbers) for claim in every)
    count = sum(len(held) for chapter in book() for held in all_asserts(chapter).values())
    total = f"**{numbers} numbers** in {len(every)} outputs, and {count:,} asserts."
    return "\n\n".join([total, *(claims_of(chapter, to_root) for chapter in book())])


# ------------------------------------------------------------------------------------------------- diagrams


def inline_diagram(name: str) -> str:
    """An SVG of the package as part of the page, so that it takes the page's colors and its text stays text."""
    path = STATIC / f"{name}.svg"
    svg = re.sub(
        r"<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE.*?>",
        "",
        path.read_text(encoding="utf-8"),
        flags=re.S,
    )
    lines = [
        line for line in svg.splitlines() if line.strip()
    ]  # a blank line would end the block of HTML
    return '<div class="tpp-diagram">\n' + "\n".join(lines) + "\n</div>"


# ------------------------------------------------------------------------------------------------ the events


def fill_markers(app, docname: str, source: list[str]) -> None:
    """Replace the markers of a page by what they stand for, and rebuild the page when that changes."""
    if not docname.startswith(("index", "book/")):
        return

    def generated(match: re.Match[str]) -> str:
        kind, argument = match.groups()
        if kind == "diagram":
            app.env.note_dependency(str(STATIC / f"{argument}.svg"))
            return inline_diagram(argument)
        for path in (Path(__file__), *(chapter.path for chapter in book())):
            app.env.note_dependency(str(path))
        passages = {
            "contents": contents,
            "chapter-table": chapter_table,
            "exercise-table": exercise_table,
            "api": api,
            "claims": claims_page,
        }
        return passages[kind]("../" * docname.count("/"))

    source[0] = MARKER.sub(generated, source[0])


def free_tags(app, doctree) -> None:
    r"""Put \tag outside: Sphinx wraps equations of several lines in `split`, where MathJax refuses a tag."""
    for node in doctree.findall(nodes.math_block):
        text = node.astext()
        tags = re.findall(r"\\tag\{[^}]*\}", text)
        if len(tags) == 1 and "\\\\" in text:
            body = text.replace(tags[0], "").strip()
            node.children = [nodes.Text(rf"\[\begin{{split}}{body}\end{{split}}{tags[0]}\]")]
            node["nowrap"] = True


def add_static_files(app, config) -> None:
    """Our own styles on every page; MathJax in a folder of its own, else Jupyter Book would load it twice."""
    config.html_static_path += [
        str(ROOT / "book" / "_static"),
        str(ROOT / "book" / "mathjax"),
    ]


def run_the_translator(app, pagename, templatename, context, doctree) -> None:
    """On the pages that have a place for it; the weights are not among these files: a click loads them."""
    if 'class="tpp-try' in context.get("body", ""):
        app.add_css_file("try/try.css")
        app.add_js_file("try/translator.js", loading_method="defer")
        app.add_js_file("try/try.js", loading_method="defer")


def write_the_translator(app) -> None:
    """Round the shipped weights to 8 bits, once a build, before a page asks for the scripts."""
    if app.builder.format == "html":
        from transformer_lib.book.in_the_browser import write_scripts
        from transformer_lib.translator import Translator

        write_scripts(Translator.from_pretrained(), Path(app.outdir) / "_static" / "try")


def drop_thebe(app) -> None:
    """Remove sphinx-thebe's listeners and style sheet."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            item for item in listeners if not item.handler.__module__.startswith("sphinx_thebe")
        ]
    app.registry.css_files[:] = [item for item in app.registry.css_files if "thebe" not in item[0]]


# The theme knows light and dark only when all else is loaded; until then nothing would have a color or a border.
COLORS_AT_ONCE = """if (document.documentElement.dataset.theme === "auto")
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";"""


def give_sizes(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Say how large each plot is, so that its place is free before it has come."""

    sources = {name: Path(app.srcdir) / source for source, name in app.builder.images.items()}

    def with_size(match: re.Match[str]) -> str:
        start = sources[match[1]].read_bytes()[:24]
        width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
        return f'{match[0]} width="{width}" height="{height}"'

    if "body" in context:
        context["body"] = re.sub(
            r'<img(?![^>]*(?: width=| style="))[^>]* src="[^"]*_images/([^"]+\.png)"',
            with_size,
            context["body"],
        )


def setup(app) -> dict[str, bool | int | str]:
    app.connect("config-inited", add_static_files)
    app.connect("config-inited", lambda app, config: drop_thebe(app), priority=900)
    app.connect("builder-inited", write_the_translator)
    app.connect("html-page-context", run_the_translator)
    app.connect("source-read", fill_markers, priority=100)
    app.connect("doctree-read", free_tags)
    app.connect("doctree-read", prepare_chapter)
    app.connect("doctree-read", link_glossary)
    app.connect("autodoc-skip-member", fields_stand_in_the_docstring)
    app.connect("autodoc-process-docstring", say_where_built, priority=900)  # after napoleon
    app.add_css_file("custom.css")
    app.connect("html-page-context", give_sizes)
    app.add_js_file(None, body=COLORS_AT_ONCE)
    app.add_js_file("custom.js", loading_method="defer")
    # What an older version of this file has read would stay in the index
    mine = zlib.crc32(Path(__file__).read_bytes())
    return {
        "version": "1",
        "env_version": mine,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
