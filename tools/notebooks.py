"""Run the chapters, and stamp into them what is the same everywhere.

python tools/notebooks.py stamp [--check]     the setup cell and the line with the run time
python tools/notebooks.py execute [05 12]     run with papermill, store outputs and run time in the notebook
python tools/notebooks.py prove [05 12]       run from an empty folder on the installed wheel, with another seed
"""

import argparse
import concurrent.futures
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PROOF = ROOT / "build" / "proof"

# Seconds that a chapter may take on 2 cores without a GPU.
BUDGET = {15: 270}
DEFAULT_BUDGET = 60
# The run time stored in a chapter is held to its budget. A proof may run on a machine that is busy with other things,
# and fails only beyond this many times the budget.
PATIENCE = 2
ALONE = {
    15
}  # these train for minutes and get both cores; the others run two at a time, one thread each

TIME_LINE = re.compile(r"^- \*\*Time:\*\* .*$", re.MULTILINE)

SETUP = """\
# Setup, the same in every chapter: installs the package where it is missing (Colab).
import importlib.util

if importlib.util.find_spec("transformer_lib") is None:
    %pip install --quiet "git+{url}.git"

import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import HTML, Markdown, display
from torch import Tensor, nn

from transformer_lib.book.diagrams import diagram, transformer_map
from transformer_lib.book.style import use_book_style

use_book_style()"""

# Python runs this before anything else in the environment where the chapters are proven.
NO_NETWORK = '''\
"""Refuse every connection that leaves the machine."""

import socket

_connect = socket.socket.connect


def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a chapter must not use the network, but it connects to {address}")
    return _connect(self, address)


def getaddrinfo(host, *arguments, **keywords):
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        raise OSError(f"a chapter must not use the network, but it looks up {host}")
    return _getaddrinfo(host, *arguments, **keywords)


_getaddrinfo = socket.getaddrinfo
socket.socket.connect = connect
socket.socket.connect_ex = connect
socket.getaddrinfo = getaddrinfo
'''


def chapters(numbers: list[str]) -> list[Path]:
    """The notebooks with these numbers, or all of them."""
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]-*.ipynb"))
    missing = set(numbers) - {path.name[:2] for path in paths}
    if missing:
        raise SystemExit(f"there is no chapter {', '.join(sorted(missing))}")
    return [path for path in paths if not numbers or path.name[:2] in numbers]


def number(path: Path) -> int:
    """The chapter's number, from its file name."""
    return int(path.name[:2])


def budget(path: Path) -> int:
    """Seconds that the chapter may take."""
    return BUDGET.get(number(path), DEFAULT_BUDGET)


def repository_url() -> str:
    """Where the book is published: the one place that says so is _config.yml."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"]).rstrip("/")


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    """The cells with a tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def time_line(seconds: float) -> str:
    """The line of a chapter that says how long it runs; rounded up, so that it does not change at every run."""
    step = 5 if seconds < 60 else 10
    return f"- **Time:** runs in about {math.ceil(seconds / step) * step} s on 2 CPU cores, without a GPU."


def stamp(notebook: NotebookNode, url: str) -> None:
    """Write the setup cell, the run time, and the folding of hidden cells into a chapter."""
    for cell in tagged(notebook, "setup"):
        cell.source = SETUP.format(url=url)
        # Twenty lines that a reader need not see each time.
        cell.metadata["tags"] = ["setup", "hide-input"]
    seconds = notebook.metadata.get("book", {}).get("seconds")
    if seconds is not None:
        first = notebook.cells[0]
        first.source = TIME_LINE.sub(time_line(seconds), first.source)
    for tag in ("hide-cell", "hide-input"):  # Jupyter Book folds by tag, JupyterLab by this
        for cell in tagged(notebook, tag):
            cell.metadata["jupyter"] = {"source_hidden": True}


def stamp_all(paths: list[Path], check: bool) -> int:
    """Stamp all chapters, or only say which are not."""
    url = repository_url()
    stale = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        before = nbformat.writes(notebook)
        stamp(notebook, url)
        if nbformat.writes(notebook) != before:
            stale.append(path.name)
            if not check:
                nbformat.write(notebook, path)
    for name in stale:
        print(f"{name}: {'not stamped; `make stamp` does it' if check else 'stamped'}")
    return 1 if stale and check else 0


def run(path: Path, output: Path, python: Path, parameters: dict[str, int], threads: int) -> float:
    """Run a chapter with papermill in an empty folder; returns the seconds it took, raises what it raises."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as no_kernels,
    ):
        # No kernel of the user's may take the place of python's own.
        environment["JUPYTER_DATA_DIR"] = no_kernels
        command = [str(python), "-m", "papermill", str(path), str(output), "--no-progress-bar"]
        command += ["--kernel", "python3", "--cwd", folder]
        command += ["--execution-timeout", str(4 * budget(path))]
        for name, value in parameters.items():
            command += ["-p", name, str(value)]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(
                f"{path.name} failed with {parameters or 'its own parameters'}:\n{done.stderr[-4000:]}"
            )
        left = sorted(file.name for file in Path(folder).iterdir())
        if left:
            raise RuntimeError(f"{path.name} left files behind: {', '.join(left)}")
    return seconds


def on_all(paths: list[Path], job: Callable[[Path, int], None]) -> None:
    """Call job(path, threads) for every chapter: two at a time, but the heavy ones alone with both cores."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda path: job(path, 1), [p for p in paths if number(p) not in ALONE]))
    for path in paths:
        if number(path) in ALONE:
            job(path, 2)


def tidy(notebook: NotebookNode) -> None:
    """Remove from a fresh run what would differ at the next: times, paths, and where a stream was cut."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        whole: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            if whole and output.output_type == "stream" and whole[-1].get("name") == output.name:
                whole[-1].text += output.text
            else:
                whole.append(output)
        if cell.cell_type == "code":
            cell.outputs = whole


def execute(paths: list[Path]) -> int:
    """Run chapters and store their outputs, and the seconds they took, in them."""
    url = repository_url()

    def execute_one(path: Path, threads: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / path.name
            seconds = run(path, output, Path(sys.executable), {}, threads)
            notebook = nbformat.read(output, as_version=4)
        tidy(notebook)
        notebook.metadata["book"] = {"seconds": round(seconds, 1)}
        stamp(notebook, url)
        nbformat.write(notebook, path)
        print(f"{path.name:45s} {seconds:5.0f} s of {budget(path)}", flush=True)

    on_all(paths, execute_one)
    return 0


def installed_wheel() -> Path:
    """Build the wheel and install it where nothing of the repository can be imported; returns that Python.

    The new environment borrows the other packages of the one that runs this, so torch is not downloaded again.
    """
    shutil.rmtree(PROOF, ignore_errors=True)
    PROOF.mkdir(parents=True)
    here = [sys.executable, "-m"]
    quiet = {"check": True, "capture_output": True, "cwd": ROOT}
    subprocess.run([*here, "build", "--wheel", "--no-isolation", "--outdir", str(PROOF)], **quiet)
    subprocess.run([*here, "venv", "--without-pip", str(PROOF / "venv")], **quiet)
    python = PROOF / "venv" / "bin" / "python"
    wheel = next(PROOF.glob("*.whl"))
    subprocess.run(
        [
            *here,
            "pip",
            "--python",
            str(python),
            "install",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        **quiet,
    )
    site = next((PROOF / "venv" / "lib").glob("python3*/site-packages"))
    borrowed = sysconfig.get_path("purelib")  # of the Python that runs this
    (site / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    (site / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    return python


PROBE = """import importlib.util, socket, sys
import transformer_lib
assert transformer_lib.__file__.startswith(sys.prefix), f"not the wheel: {transformer_lib.__file__}"
for name in ("tools", "tests", "benchmarks"):
    assert importlib.util.find_spec(name) is None, f"{name} of the repository can be imported"
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    assert "must not use the network" in str(error), f"the network is not blocked: {error}"
else:
    raise AssertionError("the network is open")
"""


def probe(python: Path) -> None:
    """Prove that the proof is one: a notebook run there sees the wheel, not the repository, and no network."""
    path = PROOF / "00-probe.ipynb"
    cells = [nbformat.v4.new_code_cell(PROBE)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    run(path, PROOF / "probe-output.ipynb", python, {}, threads=1)


def prove(paths: list[Path], seed: int) -> int:
    """Run chapters on the installed wheel with another seed; say how long each took and what failed."""
    python = installed_wheel()
    probe(python)
    failures: list[str] = []

    def prove_one(path: Path, threads: int) -> None:
        try:
            seconds = run(path, PROOF / path.name, python, {"SEED": seed + number(path)}, threads)
            print(f"{path.name:45s} {seconds:5.0f} s of {budget(path)}", flush=True)
            if seconds > PATIENCE * budget(path):
                failures.append(
                    f"{path.name} took {seconds:.0f} s, far more than its {budget(path)} s"
                )
        except RuntimeError as error:
            failures.append(str(error))
            print(f"{path.name:45s} FAILED", flush=True)

    on_all(paths, prove_one)
    print("\n\n".join(failures))
    print(f"{len(paths) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["stamp", "execute", "prove"])
    parser.add_argument("numbers", nargs="*", help="two-digit numbers of the chapters, all if none")
    parser.add_argument(
        "--check",
        action="store_true",
        help="stamp: write nothing, fail if anything is stale",
    )
    parser.add_argument(
        "--seed", type=int, default=1000, help="prove: chapter NN runs with this seed + NN"
    )
    arguments = parser.parse_args()
    paths = chapters(arguments.numbers)
    if arguments.action == "stamp":
        return stamp_all(paths, arguments.check)
    if arguments.action == "execute":
        return execute(paths)
    return prove(paths, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
