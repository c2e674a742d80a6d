"""Write transformer_lib from the chapters: a code cell whose first line is `#| export MODULE` goes into that module.

    python -m tools.export_modules            write the modules that changed
    python -m tools.export_modules --check    write nothing; fail if a module is not what the chapters say

A cell may also say `#| export MODULE replaces NAME`, where a later chapter betters an earlier definition.
Exported cells hold definitions only. What they need imported is found in the chapter: any import statement at the top
level of any of its cells. `__main__.py` and the folders of the package are plain source: they are left alone.
"""

import argparse
import builtins
import subprocess
import symtable
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.chapters import NOTEBOOKS, ROOT, Chapter, ChapterError, Definition, chapters

PACKAGE = "transformer_lib"


@dataclass
class Module:
    """All that the chapters export to one module, in the order in which it is written."""

    description: str  # of the chapter that exports to it first
    definitions: list[tuple[Chapter, Definition]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for _, definition in self.definitions for name in definition.names]

    @property
    def public(self) -> list[str]:
        return sorted(name for name in self.names if not name.startswith("_"))


def collect(book: list[Chapter]) -> dict[str, Module]:
    """All modules that the chapters export."""
    modules: dict[str, Module] = {}
    for chapter in book:
        described = dict(chapter.book.get("modules", {}))
        for new in chapter.definitions:
            if new.module not in modules:
                if new.module not in described:
                    raise ChapterError(
                        f"{new.place}: {new.module!r} is a new module; if that is meant, add to the notebook's "
                        f'metadata what it holds: "book": {{"modules": {{"{new.module}": "..."}}}}'
                    )
                modules[new.module] = Module(described.pop(new.module))
            add(chapter, new, modules)
        if described:
            raise ChapterError(
                f"{chapter.path.name}: its metadata describes {', '.join(described)}, "
                "but it is not the first to export that"
            )
    return modules


def add(chapter: Chapter, new: Definition, modules: dict[str, Module]) -> None:
    """Put a definition into its module: at the end, or in the place of the one that it replaces."""
    module = modules[new.module]
    position = len(module.definitions)
    if new.replaces is not None:
        old = [k for k, (_, d) in enumerate(module.definitions) if d.names == [new.replaces]]
        if not old or new.names != [new.replaces]:
            raise ChapterError(
                f"{new.place}: `replaces {new.replaces}` needs one earlier cell of {new.module} that defines just "
                f"{new.replaces}, and must define just that itself"
            )
        position = old[0]
        del module.definitions[position]
    for other_name, other in modules.items():
        for _, definition in other.definitions:
            for name in set(new.names) & set(definition.names):
                if other is module or not name.startswith("_"):
                    raise ChapterError(
                        f"{new.place}: {name} is already exported to {other_name} by {definition.place}; "
                        f"a better version says `#| export {new.module} replaces {name}`"
                    )
    module.definitions.insert(position, (chapter, new))


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
    for chapter, definition in module.definitions:
        for used in free_names(definition.source) - set(module.names) - set(dir(builtins)):
            holders = [other for other, held in modules.items() if used in held.names]
            statement = chapter.imports.get(used, "")
            if statement.startswith(f"from {PACKAGE}.{name} "):
                raise ChapterError(
                    f"{definition.place}: {used} is imported from {name}, but no chapter exports it"
                )
            if statement:
                imports.add(statement)
            elif holders:
                imports.add(f"from {PACKAGE}.{holders[0]} import {used}")
            else:
                raise ChapterError(
                    f"{definition.place}: {used} is used, but neither exported nor imported in the chapter"
                )
    numbers = sorted({chapter.number for chapter, _ in module.definitions})
    where = f"chapter{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    parts = [
        f'"""{module.description}\n\nWritten from {where} of the book: edit the chapter, then `make sync`.\n"""',
        "\n".join(sorted(imports)),
        f"__all__ = {module.public}",
        *(definition.source for _, definition in module.definitions),
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
        command = [sys.executable, "-m", "ruff", *arguments]
        command += ["--stdin-filename", f"{PACKAGE}/{name}.py", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise ChapterError(f"ruff cannot tidy {name}.py: {done.stdout}{done.stderr}")
        source = done.stdout
    return source


def export(notebooks: Path) -> dict[str, str]:
    """File name -> source, for every file of the package that the chapters make."""
    modules = collect(chapters(folder=notebooks))
    sources = {name: write_module(name, modules) for name in modules}
    sources["__init__"] = write_init(modules)
    return {f"{name}.py": tidy(source, name) for name, source in sources.items()}


def stale_files(sources: dict[str, str], package: Path) -> list[str]:
    """What differs between the chapters and the package, one line each."""
    there = {path.name: path.read_text(encoding="utf-8") for path in package.glob("*.py")}
    there.pop("__main__.py", None)
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
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="folder of the chapters")
    parser.add_argument(
        "--package", type=Path, default=ROOT / PACKAGE, help="folder of the package"
    )
    arguments = parser.parse_args()
    try:
        sources = export(arguments.notebooks)
    except ChapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = stale_files(sources, arguments.package)
    # A file that no chapter exports is left alone: deleting is for people.
    for line in stale:
        if arguments.check or "no chapter" in line:
            print(line)
    if arguments.check:
        return 1 if stale else 0
    for name, source in sources.items():
        path = arguments.package / name
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            path.write_text(source, encoding="utf-8")
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
