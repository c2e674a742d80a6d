"""From cell to module: the round trip, and a clear error for each way to get it wrong."""

from pathlib import Path

import nbformat
import pytest

from tools.chapters import NOTEBOOKS, ROOT, ChapterError
from tools.export_modules import PACKAGE, export, main, stale_files

IMPORTS = "import math\nimport torch\nfrom torch import Tensor, nn\nimport torch.nn.functional as F"


def write_chapter(folder: Path, name: str, *cells: str, **modules: str) -> None:
    """Write a notebook with a Markdown cell and these code cells, and what its metadata says of modules."""
    notebook = nbformat.v4.new_notebook(metadata={"book": {"modules": modules}})
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# A chapter\n\n`#| export attention` is the marker.")
    ]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, folder / name)


def run_module(source: str) -> dict[str, object]:
    """Run a generated module and return its names."""
    names: dict[str, object] = {}
    exec(compile(source, "module", "exec"), names)
    return names


def test_round_trip(tmp_path: Path) -> None:
    write_chapter(
        tmp_path,
        "05-first.ipynb",
        IMPORTS,
        "#| export attention\ndef half(x: float) -> float:\n"
        "    # why: a comment survives\n    return math.floor(x) / _TWO",
        "#| export attention\n_TWO = 2",
        "naive = 1  # not exported",
        attention="What it holds.",
    )
    write_chapter(
        tmp_path,
        "06-second.ipynb",
        IMPORTS,
        "#| export layers\ndef quarter(x: float) -> float:\n    return half(half(x))",
        layers="Layers.",
    )
    sources = export(tmp_path)
    assert sorted(sources) == ["__init__.py", "attention.py", "layers.py"]
    attention = sources["attention.py"]
    assert '__all__ = ["half"]' in attention, "private names are not public"
    assert "# why: a comment survives" in attention
    assert "import math" in attention
    assert "import torch" not in attention, "only what is used is imported"
    assert "naive" not in attention
    assert "#|" not in attention, "the marker stays in the chapter"
    assert "chapter 5" in attention
    assert attention.startswith('"""What it holds.')
    assert run_module(attention)["half"](5.9) == 2.5  # type: ignore[operator]
    assert "from transformer_lib.attention import half" in sources["layers.py"]
    assert "from transformer_lib.attention import half" in sources["__init__.py"]
    assert sources == export(tmp_path), "the same chapters give the same package"


def test_imports_inside_functions_annotations_and_classes_are_found(tmp_path: Path) -> None:
    cell = (
        "#| export layers\nclass Norm(nn.Module):\n    def forward(self, x: Tensor) -> Tensor:\n"
        "        return F.relu(sum(math.sqrt(n) * x for n in (1, 2)))"
    )
    write_chapter(tmp_path, "09-norm.ipynb", "%matplotlib inline\n" + IMPORTS, cell, layers="x")
    source = export(tmp_path)["layers.py"]
    for line in (
        "import math",
        "import torch.nn.functional as F",
        "from torch import Tensor, nn",
    ):
        assert line in source, f"{line!r} is missing in:\n{source}"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("#| export\nx = 1", "does not name a module"),
        ("#|export attention\nx = 1", "a marker is `#| export MODULE`"),
        ("# | export attention\nx = 1", "a marker is `#| export MODULE`"),
        ("#| exports attention\nx = 1", "a marker is `#| export MODULE`"),
        ("#| export attention please\nx = 1", "a marker is `#| export MODULE`"),
        ("x = 1\n#| export attention\ny = 2", "a marker is `#| export MODULE`"),
        ("#| export atention\nx = 1", '"modules": {"atention": "..."}'),
        ("#| export attention", "defines nothing"),
        ("#| export attention\nprint(1)", "definitions only"),
        ("#| export attention\nimport os\nx = 1", "definitions only"),
        ("#| export attention\ndef f(:\n    pass", "line 2"),
        ("#| export attention\ndef f():\n    return missing_name", "missing_name is used"),
        (
            "#| export attention replaces f\ndef f():\n    return 1",
            "needs one earlier cell",
        ),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, cell: str, message: str) -> None:
    modules = {"attention": "Attention."} if "attention" in cell else {}
    write_chapter(tmp_path, "05-first.ipynb", cell, **modules)
    with pytest.raises(ChapterError, match="05-first.ipynb, cell 1") as error:
        export(tmp_path)
    assert message in str(error.value)


def test_a_name_exported_twice_is_an_error_in_one_module_and_across_modules(
    tmp_path: Path,
) -> None:
    cell = "#| export {}\ndef f():\n    return 1"
    for module in ("attention", "layers"):
        write_chapter(tmp_path, "05-first.ipynb", cell.format("attention"), attention="x")
        modules = {"layers": "x"} if module == "layers" else {}
        write_chapter(tmp_path, "06-second.ipynb", cell.format(module), **modules)
        with pytest.raises(
            ChapterError,
            match="f is already exported to attention by 05-first.ipynb, cell 1",
        ):
            export(tmp_path)


def test_a_later_chapter_may_replace_a_definition_if_it_says_so(tmp_path: Path) -> None:
    write_chapter(
        tmp_path,
        "05-first.ipynb",
        "#| export attention\ndef f():\n    return 1",
        "#| export attention\ndef g():\n    return f()",
        attention="x",
    )
    write_chapter(
        tmp_path,
        "06-second.ipynb",
        "#| export attention replaces f\ndef f():\n    return 2",
    )
    source = export(tmp_path)["attention.py"]
    assert source.count("def f(") == 1
    assert run_module(source)["g"]() == 2  # type: ignore[operator]
    assert "chapters 5, 6" in source


def test_a_name_imported_from_its_own_module_must_be_exported(tmp_path: Path) -> None:
    write_chapter(
        tmp_path,
        "06-second.ipynb",
        "from transformer_lib.attention import lost",
        "#| export attention\ndef f():\n    return lost",
        attention="x",
    )
    with pytest.raises(
        ChapterError, match="lost is imported from attention, but no chapter exports it"
    ):
        export(tmp_path)


@pytest.mark.parametrize("second", ["x = 1", "#| export attention\ny = 1"])
def test_a_module_is_described_where_it_is_first_exported_and_nowhere_else(
    tmp_path: Path, second: str
) -> None:
    write_chapter(tmp_path, "05-first.ipynb", "#| export attention\nx = 1", attention="x")
    write_chapter(tmp_path, "06-second.ipynb", second, attention="x")
    with pytest.raises(ChapterError, match="06-second.ipynb: its metadata describes attention"):
        export(tmp_path)


def test_stale_missing_and_orphaned_files_are_reported(tmp_path: Path) -> None:
    sources = {"attention.py": "new", "layers.py": "same"}
    (tmp_path / "attention.py").write_text("edited by hand")
    (tmp_path / "layers.py").write_text("same")
    (tmp_path / "orphan.py").write_text("def public(): ...")
    for plain in ("__main__.py", "book/style.py"):  # no chapter makes these
        (tmp_path / plain).parent.mkdir(exist_ok=True)
        (tmp_path / plain).write_text("pass")
    lines = stale_files(sources | {"data.py": "x"}, tmp_path)
    assert [line.split(":")[0] for line in lines] == [
        "orphan.py",
        "data.py",
        "attention.py",
    ]
    assert "no chapter exports it" in lines[0]


def test_check_fails_on_a_stale_module_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chapter(tmp_path, "05-first.ipynb", "#| export attention\nx = 1", attention="x")
    package = tmp_path / "package"
    package.mkdir()
    command = ["export_modules.py", "--notebooks", str(tmp_path), "--package", str(package)]
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    assert main() == 1
    assert list(package.iterdir()) == []
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    assert main() == 0
    (package / "__main__.py").write_text("plain = 1\n")
    assert main() == 0
    (package / "attention.py").write_text((package / "attention.py").read_text() + "\ny = 2\n")
    assert main() == 1


def test_the_package_is_what_the_chapters_say() -> None:
    assert stale_files(export(NOTEBOOKS), ROOT / PACKAGE) == []
