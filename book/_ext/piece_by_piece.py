"""The book's own Sphinx extension: what the site needs and Jupyter Book does not do.

- serves MathJax, styles and scripts from this repository, so that a page loads nothing from another host;
- drops sphinx-thebe, which Jupyter Book always loads and whose script, loaded twice, is an error on every page;
- lets an equation of several lines carry a number;
- fills the `<!-- generated: NAME -->` markers of the pages in book/ from the notebooks and the package:
  `contents` (the chapters and the questions they answer), `chapter-table` (run times and sizes), `api` (the
  package reference), `diagram NAME` (an SVG, inline).

It reads the package with `ast`, so a page can be built where torch is not installed.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.M)
Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


# ---------------------------------------------------------------------------------------------- the chapters


@dataclass
class Chapter:
    """What the pages say of one notebook."""

    path: Path
    title: str = ""
    question: str = ""
    seconds: float | None = None
    code_cells: int = 0
    exercises: int = 0
    kilobytes: float = 0.0
    exports: dict[str, str] = field(default_factory=dict)  # public name -> module

    @classmethod
    def read(cls, path: Path) -> "Chapter":
        notebook = json.loads(path.read_text(encoding="utf-8"))
        seconds = notebook["metadata"].get("book", {}).get("seconds")
        chapter = cls(path, path.stem, seconds=seconds)
        chapter.kilobytes = path.stat().st_size / 1e3
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                heading = re.match(r"# (.+)", source)
                if heading and chapter.title == path.stem:
                    chapter.title = heading.group(1).strip()
                    question = re.search(
                        r"^[-*] \*\*Question:\*\* (.+?)(?=\n[-*] |\n\n|\Z)",
                        source,
                        re.M | re.S,
                    )
                    chapter.question = " ".join(question.group(1).split()) if question else ""
                continue
            chapter.code_cells += cell["cell_type"] == "code"
            chapter.exercises += "exercise" in cell["metadata"].get("tags", [])
            marker = re.match(r"#\| export (\w+)", source)
            if marker:
                chapter.exports |= {
                    name: marker.group(1) for name in defined_names(ast.parse(source))
                }
        return chapter


def defined_names(tree: ast.Module) -> list[str]:
    """Public functions, classes and constants a module's or cell's top level defines, in order."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def chapters() -> list[Chapter]:
    return [Chapter.read(path) for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))]


def contents(to_root: str) -> str:
    """The parts of the book, and of each chapter the question it answers."""
    by_file = {f"notebooks/{chapter.path.stem}": chapter for chapter in chapters()}
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
    """One row a chapter: title, what it adds to the package, measured run time, exercises and size."""
    rows = [
        "| Chapter | Adds to `transformer_lib` | Run time | Exercises | Size |",
        "|---|---|---:|---:|---:|",
    ]
    for chapter in chapters():
        modules = ", ".join(f"`{module}`" for module in dict.fromkeys(chapter.exports.values()))
        seconds = (
            "not measured" if chapter.seconds is None else f"{max(1, round(chapter.seconds))} s"
        )
        link = f"[{chapter.title}]({to_root}notebooks/{chapter.path.name})"
        rows.append(
            f"| {link} | {modules or '–'} | {seconds} | {chapter.exercises} | {chapter.kilobytes:.0f} kB |"
        )
    return "\n".join(rows)


# ------------------------------------------------------------------------------------- the package reference


def escape(text: str) -> str:
    """A docstring's prose as Markdown: only code in backticks keeps a meaning."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>\[\]$|\\^{}])", r"\\\1", part)
        for part in parts
    )


def sections(docstring: str) -> list[tuple[str, str]]:
    """Split a docstring into ("", prose) and ("Args", body), ("Returns", body), ..."""
    parts = re.split(
        r"^(Args|Attributes|Returns|Yields|Raises|Example):[ ]*$", docstring, flags=re.M
    )
    return [("", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]


def docstring_to_markdown(docstring: str) -> str:
    """A Google-style docstring as MyST Markdown: prose, then a definition list for each section."""
    out: list[str] = []
    for name, body in sections(docstring):
        lines = body.strip("\n").splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        lines = [line[indent:].rstrip() for line in lines]
        if not any(lines):
            continue
        if name == "Example":
            out.append("```python\n" + "\n".join(lines) + "\n```")
            continue
        if not name:
            out += [
                escape(" ".join(block.split())) for block in re.split(r"\n\s*\n", "\n".join(lines))
            ]
            continue
        entries: list[str] = []
        for line in filter(None, lines):
            if line.startswith(" ") and entries:
                entries[-1] += " " + line.strip()
            elif name in ("Returns", "Yields") and entries:
                entries[-1] += " " + line
            else:
                entries.append(line)
        items = []
        for entry in entries:
            named = (
                re.match(r"([\w*, ]+?): (.*)", entry) if name not in ("Returns", "Yields") else None
            )
            items.append(
                f"- `{named.group(1)}`: {escape(named.group(2))}" if named else f"- {escape(entry)}"
            )
        label = "**Arguments**" if name == "Args" else f"**{name}**"
        out.append(
            f"{label} {items[0][2:]}"
            if name == "Returns" and len(items) == 1
            else f"{label}\n\n" + "\n".join(items)
        )
    return "\n\n".join(out)


def wrap_signature(head: str, arguments: list[str], tail: str) -> str:
    """One line if it fits a phone held sideways, else one argument a line."""
    line = f"{head}({', '.join(arguments)}){tail}"
    return line if len(line) <= 76 else f"{head}(\n    " + ",\n    ".join(arguments) + f",\n){tail}"


def argument_list(arguments: ast.arguments, *, skip_self: bool) -> list[str]:
    """The arguments as written, one string each."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    out: list[str] = []

    def one(argument: ast.arg, default: ast.expr | None, prefix: str = "") -> str:
        text = (
            prefix
            + argument.arg
            + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
        )
        equals = " = " if argument.annotation else "="
        return text if default is None else text + equals + ast.unparse(default)

    for argument, default in zip(positional, defaults, strict=True):
        out.append(one(argument, default))
    if skip_self and out:
        out = out[1:]
    if arguments.vararg:
        out.append(one(arguments.vararg, None, "*"))
    elif arguments.kwonlyargs:
        out.append("*")
    out += [one(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        out.append(one(arguments.kwarg, None, "**"))
    return out


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def signature(node: ast.stmt, *, method: bool = False) -> str:
    """How a name is called, as the source has it."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
        return wrap_signature(
            node.name, argument_list(node.args, skip_self=method and not static), returns
        )
    if isinstance(node, ast.ClassDef):
        if is_dataclass(node):
            fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
            return wrap_signature(f"class {node.name}", fields, "")
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return wrap_signature(
                    f"class {node.name}", argument_list(item.args, skip_self=True), ""
                )
        return f"class {node.name}"
    text = ast.unparse(node)
    return text if len(text) <= 200 else text[:196] + " ..."


def public_methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    return [item for item in functions if not item.name.startswith("_")]


def api_reference(to_root: str) -> str:
    """The package, module by module, from its source; each name linked to the chapter that builds it."""
    built_in = {
        (module, name): chapter
        for chapter in chapters()
        for name, module in chapter.exports.items()
    }
    out: list[str] = []
    for path in sorted((ROOT / "transformer_lib").glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = defined_names(tree)
        if not public:
            continue
        out.append(f"(api-{path.stem})=\n## `transformer_lib.{path.stem}`")
        for node in tree.body:
            names = [name for name in defined_names(ast.Module([node], [])) if name in public]
            if names:
                out += describe(
                    node, names[0], path.stem, built_in.get((path.stem, names[0])), to_root
                )
    return "\n\n".join(out)


def describe(
    node: ast.stmt, name: str, module: str, chapter: Chapter | None, to_root: str
) -> list[str]:
    """The reference entry of one public name."""
    kind = (
        "class-" if isinstance(node, ast.ClassDef) else ""
    )  # labels ignore case, and Diagram is not diagram
    out = [
        f"(api-{module}-{kind}{name})=\n### {name}",
        f"```python\n{signature(node)}\n```",
    ]
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        out.append(docstring_to_markdown(ast.get_docstring(node) or ""))
    if isinstance(node, ast.ClassDef):
        for method in public_methods(node):
            out.append(f"```python\n{name}.{signature(method, method=True)}\n```")
            out.append(docstring_to_markdown(ast.get_docstring(method) or ""))
    if chapter:
        number = re.match(r"(\d+)\. ", chapter.title)
        label = f"Chapter {number.group(1)}" if number else chapter.title
        out.append(f"Built in [{label}]({to_root}notebooks/{chapter.path.name}).")
    return [part for part in out if part]


# ------------------------------------------------------------------------------------------------- diagrams


def inline_diagram(name: str) -> str:
    """An SVG of the package as part of the page, so that it takes the page's colors and its text stays text."""
    path = ROOT / "transformer_lib" / "book" / "static" / f"{name}.svg"
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
            app.env.note_dependency(
                str(ROOT / "transformer_lib" / "book" / "static" / f"{argument}.svg")
            )
            return inline_diagram(argument)
        for path in [
            *(ROOT / "notebooks").glob("*.ipynb"),
            *(ROOT / "transformer_lib").glob("*.py"),
        ]:
            app.env.note_dependency(str(path))
        return {"contents": contents, "chapter-table": chapter_table, "api": api_reference}[kind](
            "../" * docname.count("/")
        )

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


def setup(app) -> dict[str, bool | str]:
    app.connect("config-inited", add_static_files)
    app.connect("config-inited", lambda app, config: drop_thebe(app), priority=900)
    app.connect("source-read", fill_markers, priority=100)
    app.connect("doctree-read", free_tags)
    app.add_css_file("custom.css")
    app.add_js_file("custom.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
