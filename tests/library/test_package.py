"""The package as it is shipped: what is in it, how large it is, what importing it loads."""

import ast
import fnmatch
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import transformer_lib
from tools.chapters import ROOT, chapters
from tools.export_modules import collect

PACKAGE = ROOT / "transformer_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_package_is_shipped() -> None:
    setup = PROJECT["tool"]["setuptools"]
    folders = ["/".join(package.split(".")[1:]) for package in setup["packages"]]
    patterns = [
        "/".join([*package.split(".")[1:], pattern])
        for package, its_patterns in setup["package-data"].items()
        for pattern in its_patterns
    ] + [f"{folder}/*.py".removeprefix("/") for folder in folders]
    files = [
        path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        assert any(
            fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")
            for pattern in patterns
        ), name
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    assert megabytes <= 40, f"the package ships {megabytes:.1f} MB"


def test_metadata_names_both_licenses_and_only_tested_dependencies() -> None:
    project = PROJECT["project"]
    assert project["license"] == "MIT AND MPL-2.0"
    names = {requirement.partition(">=")[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy", "matplotlib", "tokenizers", "safetensors", "tqdm"}
    pinned = dict(
        line.split("==", 1)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    )
    assert names <= pinned.keys(), "what the package needs is pinned for the book"


def test_the_package_shows_the_public_names_of_all_its_modules() -> None:
    modules = collect(chapters())
    public = {name for module in modules.values() for name in module.public}
    assert set(transformer_lib.__all__) == public
    assert all(hasattr(transformer_lib, name) for name in public)


def test_importing_the_package_loads_neither_matplotlib_nor_the_compiler() -> None:
    heavy = ("matplotlib", "IPython", "torch._dynamo", "transformer_lib.book")
    code = f"import sys, transformer_lib; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == "[]", f"import transformer_lib loads {loaded.stdout}"


def lines_by_kind(path: Path) -> Counter[str]:
    """How many lines of a module are refusals, docstrings, imports or comments; the rest is the idea."""
    lines = path.read_text(encoding="utf-8").splitlines()
    kinds = ["comment" if line.lstrip().startswith("#") else "idea" for line in lines]

    def mark(node: ast.stmt, kind: str) -> None:
        kinds[node.lineno - 1 : node.end_lineno] = [kind] * len(
            kinds[node.lineno - 1 : node.end_lineno]
        )

    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("check"):
            mark(node, "refusal")
        if isinstance(node, ast.If) and all(isinstance(inner, ast.Raise) for inner in node.body):
            mark(node, "idea" if node.orelse else "refusal")
        if isinstance(node, ast.Import | ast.ImportFrom):
            mark(node, "import")
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            mark(node, "import")
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            mark(node.body[0], "docstring")
    return Counter(kind for kind, line in zip(kinds, lines, strict=True) if line.strip())


def test_ideas_come_first() -> None:
    modules = [path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    count = sum((lines_by_kind(path) for path in modules), Counter())
    total = sum(count.values())
    assert count["idea"] >= 0.6 * total, count
    assert count["refusal"] <= 0.06 * total, count
    assert total <= 4200, count
