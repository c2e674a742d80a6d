"""The package as it is shipped: what is in it, how large it is, how fast it imports."""

import fnmatch
import subprocess
import sys
import tomllib

from tools.export_modules import ROOT

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
    assert megabytes < 15, f"the package ships {megabytes:.1f} MB"


def test_metadata_names_both_licenses_and_only_tested_dependencies() -> None:
    project = PROJECT["project"]
    assert project["license"] == "MIT AND MPL-2.0"
    names = {requirement.partition(">=")[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy", "matplotlib", "tokenizers", "safetensors", "tqdm"}
    pinned = dict(
        line.split("==")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    )
    assert names <= pinned.keys(), "what the package needs is pinned for the book"


def test_importing_adds_little_to_importing_torch() -> None:
    code = "import time, torch; start = time.perf_counter(); import transformer_lib; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    runs = [
        float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for _ in range(3)
    ]
    assert min(runs) < 0.3, f"import transformer_lib takes {runs} s on top of torch"
