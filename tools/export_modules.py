"""Write transformer_lib from the chapters: a code cell whose first line is `#| export MODULE` goes into that module.

    python tools/export_modules.py            write the modules that changed
    python tools/export_modules.py --check    write nothing; fail if a module is not what the chapters say

A cell may also say `#| export MODULE replaces NAME`, where a later chapter betters an earlier definition.
Exported cells hold definitions only. What they need imported is found in the chapter: any import statement at the top
level of any of its cells.
"""

import argparse
import ast
import builtins
import re
import subprocess
import symtable
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "transformer_lib"

# What each module holds: the first line of its docstring. A name that is not here is a typing error.
MODULES = {
    "attention": "Similarities, masks, scaled dot-product attention and multi-head attention.",
    "decoding": "From a trained model to sentences.",
    "embeddings": "Token embeddings and positional encodings.",
    "evaluation": "Scores of translations, and the cost of training in FLOPs.",
    "inspection": "Looking inside a model.",
    "layers": "Feed-forward network, layer norm, residual connection, encoder and decoder layer.",
    "pairs": "Sentence pairs, and batches of them by token count.",
    "recurrent": "Recurrent cells, and a recurrent translator with and without attention.",
    "tokenizer": "Byte-pair encoding with one vocabulary for both languages.",
    "training": "Loss, learning-rate schedule and the training loop.",
    "transformer": "Encoder, decoder and the whole Transformer.",
    "vision": "Small pictures of clothes, and attention that pools their patches.",
}
# Plain source beside the modules. What the pages need and do not explain is plain source too, in the sub-package book.
BY_HAND = ("__main__.py",)

MARKER = re.compile(r"#\| export(?: (?P<module>[a-z_]+))?(?: replaces (?P<replaces>\w+))?$")
ALMOST_A_MARKER = re.compile(r"^\s*#\s*\|?\s*exports?\b", re.MULTILINE)


class ExportError(Exception):
    """Something in a chapter cannot be exported; the message names the notebook and the cell."""


@dataclass
class Definition:
    """One exported cell."""

    place: str  # notebook and cell, for messages
    chapter: int
    module: str
    source: str
    names: list[str]
    imports: dict[str, str]  # every name that the chapter imports -> the statement that imports it


@dataclass
class Module:
    """All that the chapters export to one module, in chapter order."""

    definitions: list[Definition] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for definition in self.definitions for name in definition.names]

    @property
    def public(self) -> list[str]:
        return sorted(name for name in self.names if not name.startswith("_"))


def parse_cell(source: str, place: str) -> ast.Module:
    """Parse a notebook cell; IPython's % and ! lines count as `pass`."""
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))
    except SyntaxError as error:
        raise ExportError(f"{place}: {error.msg} in line {error.lineno}") from None


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Map each name bound by a top-level import to a statement that imports just this name."""
    names = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                single = (
                    ast.Import([alias])
                    if isinstance(node, ast.Import)
                    else ast.ImportFrom(node.module, [alias], 0)
                )
                names[alias.asname or alias.name.partition(".")[0]] = ast.unparse(single)
    return names


def defined_names(tree: ast.Module, place: str) -> list[str]:
    """The names that an exported cell defines; anything but a definition is an error."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and all(
            isinstance(target, ast.Name) for target in node.targets
        ):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        else:
            raise ExportError(
                f"{place}: an exported cell holds definitions only, not `{ast.unparse(node).splitlines()[0]}`"
            )
    if not names:
        raise ExportError(f"{place}: the marker stands over a cell that defines nothing")
    return names


def read_chapter(path: Path) -> list[tuple[Definition, str | None]]:
    """The exported cells of a notebook, each with the name that it replaces, if any."""
    number = re.match(r"(\d\d)-", path.name)
    if number is None:
        raise ExportError(f"{path.name}: a chapter's name starts with two digits and a dash")
    found: list[tuple[Definition, str | None]] = []
    imports: dict[str, str] = {}
    for index, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != "code":
            continue
        place = f"{path.name}, cell {index}"
        first, _, rest = cell.source.partition("\n")
        tree = parse_cell(cell.source, place)
        imports |= imported_names(tree)
        marker = MARKER.match(first.rstrip())
        if marker is None or ALMOST_A_MARKER.search(rest):
            if ALMOST_A_MARKER.search(cell.source):
                raise ExportError(
                    f"{place}: a marker is `#| export MODULE` in the cell's first line, not `{first}`"
                )
            continue
        module = marker["module"]
        if module is None:
            raise ExportError(f"{place}: the marker does not name a module: `{first}`")
        if module not in MODULES:
            raise ExportError(
                f"{place}: there is no module {module!r}; there are {', '.join(MODULES)}"
            )
        names = defined_names(tree, place)
        found.append(
            (
                Definition(place, int(number[1]), module, rest.strip("\n"), names, imports),
                marker["replaces"],
            )
        )
    return found


def collect(notebooks: Path) -> dict[str, Module]:
    """All modules that the chapters in a folder export, in chapter order."""
    modules: dict[str, Module] = {}
    for path in sorted(notebooks.glob("*.ipynb")):
        for new, replaces in read_chapter(path):
            module = modules.setdefault(new.module, Module())
            position = len(module.definitions)
            if replaces is not None:
                old = [d for d in module.definitions if d.names == [replaces]]
                if not old or new.names != [replaces]:
                    raise ExportError(
                        f"{new.place}: `replaces {replaces}` needs one earlier cell of {new.module} that defines just "
                        f"{replaces}, and must define just that itself"
                    )
                position = module.definitions.index(old[0])
                module.definitions.remove(old[0])
            for other_name, other in modules.items():
                for definition in other.definitions:
                    for name in set(new.names) & set(definition.names):
                        if other is module or not name.startswith("_"):
                            raise ExportError(
                                f"{new.place}: {name} is already exported to {other_name} by {definition.place}; "
                                f"a better version says `#| export {new.module} replaces {name}`"
                            )
            module.definitions.insert(position, new)
    return modules


def free_names(source: str) -> set[str]:
    """The names that code uses but does not define: what it has to import."""
    free: set[str] = set()

    def visit(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                free.add(symbol.get_name())
        for child in table.get_children():
            visit(child)

    top = symtable.symtable(source, "module", "exec")
    visit(top)
    free |= {
        symbol.get_name()
        for symbol in top.get_symbols()
        if symbol.is_referenced() and not symbol.is_assigned()
    }
    return free - {
        symbol.get_name()
        for symbol in top.get_symbols()
        if symbol.is_assigned() or symbol.is_namespace()
    }


def write_module(name: str, modules: dict[str, Module]) -> str:
    """The source of one module."""
    module = modules[name]
    imports: set[str] = set()
    for definition in module.definitions:
        for used in free_names(definition.source) - set(module.names) - set(dir(builtins)):
            holders = [other for other, held in modules.items() if used in held.names]
            statement = definition.imports.get(used, "")
            if statement.startswith(f"from {PACKAGE}.{name} "):
                raise ExportError(
                    f"{definition.place}: {used} is imported from {name}, but no chapter exports it"
                )
            if statement:
                imports.add(statement)
            elif holders:
                imports.add(f"from {PACKAGE}.{holders[0]} import {used}")
            else:
                raise ExportError(
                    f"{definition.place}: {used} is used, but neither exported nor imported in the chapter"
                )
    chapters = sorted({definition.chapter for definition in module.definitions})
    where = (
        f"chapter {chapters[0]}"
        if len(chapters) == 1
        else f"chapters {', '.join(map(str, chapters))}"
    )
    parts = [
        f'"""{MODULES[name]}\n\nWritten from {where} of the book: edit the chapter, then `make sync`.\n"""',
        "\n".join(sorted(imports)),
        f"__all__ = {module.public}",
        *(definition.source for definition in module.definitions),
    ]
    return "\n\n\n".join(part for part in parts if part) + "\n"


def write_init(modules: dict[str, Module]) -> str:
    """The package's __init__: the public names of all modules."""
    shown = {name: module.public for name, module in sorted(modules.items()) if module.public}
    imports = [f"from {PACKAGE}.{name} import {', '.join(names)}" for name, names in shown.items()]
    names = sorted(name for names in shown.values() for name in names)
    title = (
        "The Transformer of 'Attention Is All You Need', built piece by piece.\n\n"
        "Every idea comes out of a chapter of the book; this file is written by tools/export_modules.py."
    )
    return f'"""{title}\n"""\n\n' + "\n".join(imports) + f"\n\n__all__ = {names}\n"


def tidy(source: str, name: str) -> str:
    """Sort imports and format as `make test` demands it."""
    for arguments in (
        ["check", "--quiet", "--fix", "--select", "I,RUF022"],
        ["format", "--quiet"],
    ):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *arguments,
            "--stdin-filename",
            f"{PACKAGE}/{name}.py",
            "-",
        ]
        done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise ExportError(f"ruff cannot tidy {name}.py: {done.stdout}{done.stderr}")
        source = done.stdout
    return source


def export(notebooks: Path) -> dict[str, str]:
    """File name -> source, for every file of the package that the chapters make."""
    modules = collect(notebooks)
    sources = {name: write_module(name, modules) for name in modules} | {
        "__init__": write_init(modules)
    }
    return {f"{name}.py": tidy(source, name) for name, source in sources.items()}


def stale_files(sources: dict[str, str], package: Path) -> list[str]:
    """What differs between the chapters and the package, one line each."""
    there = {
        path.name: path.read_text(encoding="utf-8")
        for path in package.glob("*.py")
        if path.name not in BY_HAND
    }
    lines = [f"{name}: no chapter exports it" for name in sorted(there.keys() - sources.keys())]
    lines += [f"{name}: not written yet" for name in sorted(sources.keys() - there.keys())]
    lines += [
        f"{name}: not what the chapters say; `make sync` writes it anew"
        for name in sorted(there.keys() & sources.keys())
        if there[name] != sources[name]
    ]
    return lines


def main() -> int:
    """Write or check the package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail if anything is stale"
    )
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "notebooks", help="folder of the chapters"
    )
    parser.add_argument(
        "--package", type=Path, default=ROOT / PACKAGE, help="folder of the package"
    )
    arguments = parser.parse_args()
    try:
        sources = export(arguments.notebooks)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = stale_files(sources, arguments.package)
    for line in stale:
        print(line)
    if arguments.check:
        return 1 if stale else 0
    for name, source in sources.items():
        path = arguments.package / name
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            path.write_text(source, encoding="utf-8")
            print(f"wrote {name}")
    # A file that no chapter exports is left alone: deleting is for people.
    return 0


if __name__ == "__main__":
    sys.exit(main())
