"""The book's own Sphinx extension: what the site needs and Jupyter Book does not do.

- serves MathJax, styles and scripts from this repository, so that a page loads nothing from another host;
- drops sphinx-thebe, which Jupyter Book always loads and whose script, loaded twice, is an error on every page;
- keeps a page from moving while it loads: its colors from the start, the size of every image;
- lets an equation of several lines carry a number;
- fills the `<!-- generated: NAME -->` markers of the pages in book/ from the notebooks and the package:
  `contents` (the chapters and the questions they answer), `chapter-table` (run times and sizes), `api` (the
  package reference, by autodoc), `diagram NAME` (an SVG, inline).
"""

import re
import sys
from functools import cache
from pathlib import Path

import yaml
from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.chapters import Chapter, chapters  # noqa: E402
from tools.export_modules import PACKAGE, collect  # noqa: E402

MARKER = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.M)
STATIC = ROOT / PACKAGE / "book" / "static"


# ---------------------------------------------------------------------------------------------- the chapters


@cache
def book() -> list[Chapter]:
    return chapters()


def exported_names(chapter: Chapter) -> list[str]:
    """The full public names that a chapter exports."""
    return [
        f"{PACKAGE}.{definition.module}.{name}"
        for definition in chapter.definitions
        for name in definition.names
        if not name.startswith("_")
    ]


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
    links = [f":doc:`chapter {chapter.number} </notebooks/{chapter}>`" for chapter in found]
    if links:
        lines += ["", f"Built in {' and '.join(links)}.", ""]


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
        passages = {"contents": contents, "chapter-table": chapter_table, "api": api}
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


def setup(app) -> dict[str, bool | str]:
    app.connect("config-inited", add_static_files)
    app.connect("config-inited", lambda app, config: drop_thebe(app), priority=900)
    app.connect("source-read", fill_markers, priority=100)
    app.connect("doctree-read", free_tags)
    app.connect("autodoc-skip-member", fields_stand_in_the_docstring)
    app.connect("autodoc-process-docstring", say_where_built, priority=900)  # after napoleon
    app.add_css_file("custom.css")
    app.connect("html-page-context", give_sizes)
    app.add_js_file(None, body=COLORS_AT_ONCE)
    app.add_js_file("custom.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
