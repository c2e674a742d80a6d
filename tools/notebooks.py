"""Run the chapters, and stamp into them what is the same everywhere.

python -m tools.notebooks stamp [--check]     the setup cell and the line with the run time
python -m tools.notebooks execute [05 12]     run with papermill, store outputs and run time in the notebook
python -m tools.notebooks prove [05 12]       run from an empty folder on the installed wheel, with another seed
    --python COLAB/bin/python                 on that Python's packages; the setup cell puts in the wheel
"""

import argparse
import concurrent.futures
import importlib.metadata
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import yaml

from tools.chapters import ROOT, Chapter, ChapterError, chapters, tags
from tools.release import version

PROOF = ROOT / "build" / "proof"

# What is stored in a chapter is held to its budget by a test. A proof fails only beyond this many times
# the budget: where two processes share a core, each needs more CPU seconds for the same work.
PATIENCE = 2

TIME_LINE = re.compile(r"^- \*\*Time:\*\* .*$", re.MULTILINE)

SETUP = """\
# Setup, the same in every chapter: installs the package where it is missing (Colab).
import importlib.util

if importlib.util.find_spec("transformer_lib") is None:
    %pip install --quiet "git+{url}.git@v{version}"

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

# What a chapter's numbers may depend on, beside Python.
MEASURED_WITH = ["numpy", "torch"]

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


def repository_url() -> str:
    """Where the book is published: the one place that says so is _config.yml."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"]).rstrip("/")


def setup_cell(url: str) -> str:
    """The first cell of every chapter; it installs this version, whatever may come after."""
    return SETUP.format(url=url, version=version())


def time_line(seconds: float) -> str:
    """The line of a chapter that says how long it runs; rounded up, so that it does not change at every run."""
    step = 5 if seconds < 60 else 10
    return f"- **Time:** runs in about {math.ceil(seconds / step) * step} s on one CPU core, without a GPU."


def stamp(chapter: Chapter, url: str) -> None:
    """Write the setup cell, the run time, and the folding of hidden cells into a chapter."""
    for cell in chapter.tagged("setup"):
        cell.source = setup_cell(url)
        # Twenty lines that a reader need not see each time.
        cell.metadata["tags"] = ["setup", "hide-input"]
    if chapter.cpu_seconds is not None:
        first = chapter.cells[0]
        first.source = TIME_LINE.sub(time_line(chapter.cpu_seconds), first.source)
    for tag in ("hide-cell", "hide-input"):  # Jupyter Book folds by tag, JupyterLab by this
        for cell in chapter.tagged(tag):
            cell.metadata["jupyter"] = {"source_hidden": True}


def stamp_all(book: list[Chapter], check: bool) -> int:
    """Stamp all chapters, or only say which are not."""
    url = repository_url()
    stale = []
    for chapter in book:
        before = nbformat.writes(chapter.notebook)
        stamp(chapter, url)
        if nbformat.writes(chapter.notebook) != before:
            stale.append(chapter.path.name)
            if not check:
                chapter.write()
    for name in stale:
        print(f"{name}: {'not stamped; `make stamp` does it' if check else 'stamped'}")
    return 1 if stale and check else 0


def run(chapter: Chapter, output: Path, python: Path, parameters: dict[str, int]) -> float:
    """Run a chapter with papermill in an empty folder; returns the CPU seconds it took, raises what it raises."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # One thread: two wait for each other on a busy machine, and waiting costs CPU seconds, too.
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as no_kernels,
        tempfile.TemporaryFile("w+") as log,
    ):
        # No kernel of the user's may take the place of python's own.
        environment["JUPYTER_DATA_DIR"] = no_kernels
        command = [str(python), "-m", "papermill", str(chapter.path), str(output)]
        command += ["--no-progress-bar", "--kernel", "python3", "--cwd", folder]
        # Only what hangs is stopped by the clock: how long a chapter takes, a busy machine would decide.
        command += ["--execution-timeout", str(round(20 * chapter.budget))]
        for name, value in parameters.items():
            command += ["-p", name, str(value)]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # the kernel, which papermill waits for, counts
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(
                f"{chapter.path.name} failed with {parameters or 'its own parameters'}:\n{log.read()[-4000:]}"
            )
        left = sorted(file.name for file in Path(folder).iterdir())
        if left:
            raise RuntimeError(f"{chapter.path.name} left files behind: {', '.join(left)}")
    return usage.ru_utime + usage.ru_stime


def on_all(book: list[Chapter], job: Callable[[Chapter], None]) -> None:
    """Do a job for every chapter, two at a time, the longest first."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(job, sorted(book, key=lambda chapter: -chapter.budget)))


def report(chapter: Chapter, seconds: float) -> None:
    print(f"{chapter.path.name:45s} {seconds:5.0f} CPU-s of {chapter.budget}", flush=True)


def tidy(chapter: Chapter) -> None:
    """Remove from a fresh run what would differ at the next: times, paths, and where a stream was cut."""
    chapter.notebook.metadata.pop("papermill", None)
    for cell in chapter.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not tags(cell):
            cell.metadata.pop("tags", None)
        whole: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if whole and output.output_type == "stream" and whole[-1].get("name") == output.name:
                whole[-1].text += output.text
            else:
                whole.append(output)
        if cell.cell_type == "code":
            cell.outputs = whole


def versions() -> dict[str, str]:
    """The versions that an execution uses, without what they were built for (+cpu)."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in MEASURED_WITH}


def execute(book: list[Chapter]) -> int:
    """Run chapters and store their outputs, the seconds they took and the versions used, in them."""
    url = repository_url()

    def execute_one(chapter: Chapter) -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / chapter.path.name
            seconds = run(chapter, output, Path(sys.executable), {})
            chapter.notebook = nbformat.read(output, as_version=4)
        tidy(chapter)
        chapter.book["seconds"] = round(seconds, 1)
        chapter.notebook.metadata["versions"] = versions()
        stamp(chapter, url)
        chapter.write()
        report(chapter, seconds)

    on_all(book, execute_one)
    return 0


def empty_environment(base: Path) -> tuple[Path, Path]:
    """Build the wheel, and an environment where nothing of the repository can be imported; returns Python and wheel.

    The new environment borrows the packages of the Python `base`, so torch is not downloaded again.
    """
    shutil.rmtree(PROOF, ignore_errors=True)
    PROOF.mkdir(parents=True)
    quiet = {"check": True, "capture_output": True, "cwd": ROOT}
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(PROOF)]
    subprocess.run(build, **quiet)
    subprocess.run([str(base), "-m", "venv", "--without-pip", str(PROOF / "venv")], **quiet)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    borrowed = subprocess.run([str(base), "-c", ask], **quiet, text=True).stdout
    site = next((PROOF / "venv" / "lib").glob("python3*/site-packages"))
    (site / "borrowed.pth").write_text(borrowed, encoding="utf-8")
    (site / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    return PROOF / "venv" / "bin" / "python", next(PROOF.glob("*.whl"))


def install(python: Path, wheel: Path) -> None:
    """Put the wheel there, and nothing else."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    # The borrowed packages know the repository's own, of the same version: it must not count as installed.
    command += ["--no-index", "--ignore-installed", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)


VERSIONS = "{d.name: d.version for d in importlib.metadata.distributions()}"
BEFORE = f"""import importlib.metadata
versions = {VERSIONS}
assert "transformer-piece-by-piece" not in versions, "this Python has the package already: take it out there"
"""
AFTER = f"""changed = set({VERSIONS}.items()) - set(versions.items())
assert {{name for name, _ in changed}} == {{"transformer-piece-by-piece"}}, f"the setup cell installed {{changed}}"
"""


def install_by_the_setup_cell(python: Path, wheel: Path) -> None:
    """Run the setup cell as Colab does, with the wheel for the address: it may change no other package."""
    address = f"git+{repository_url()}.git@v{version()}"
    cell = setup_cell(repository_url())
    assert address in cell
    run_cells(python, "00-setup.ipynb", [BEFORE, cell.replace(address, str(wheel)), AFTER])


PROBE = """import importlib.util, socket, sys
import transformer_lib
assert transformer_lib.__file__.startswith(sys.prefix), f"not the wheel: {transformer_lib.__file__}"
for name in ("tools", "benchmarks"):
    assert importlib.util.find_spec(name) is None, f"{name} of the repository can be imported"
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    assert "must not use the network" in str(error), f"the network is not blocked: {error}"
else:
    raise AssertionError("the network is open")
"""


def run_cells(python: Path, name: str, sources: list[str]) -> None:
    """Run a notebook of these cells where the chapters are proven."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), PROOF / name)
    run(Chapter(PROOF / name), PROOF / f"output-{name}", python, {})


def prove(book: list[Chapter], seed: int, base: str) -> int:
    """Run chapters on the installed wheel with another seed; say how long each took and what failed."""
    python, wheel = empty_environment(Path(base or sys.executable))
    (install_by_the_setup_cell if base else install)(python, wheel)
    # The proof is one: a notebook run there sees the wheel, not the repository, and no network.
    run_cells(python, "00-probe.ipynb", [PROBE])
    failures: list[str] = []

    def prove_one(chapter: Chapter) -> None:
        name, parameters = chapter.path.name, {"SEED": seed + chapter.number}
        try:
            seconds = run(chapter, PROOF / name, python, parameters)
            report(chapter, seconds)
            if seconds > PATIENCE * chapter.budget:
                failures.append(f"{name} took {seconds:.0f} CPU-s, far over its {chapter.budget}")
        except RuntimeError as error:
            failures.append(str(error))
            print(f"{name:45s} FAILED", flush=True)

    on_all(book, prove_one)
    print("\n\n".join(failures))
    print(f"{len(book) - len(failures)} passed, {len(failures)} failed")
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
    parser.add_argument(
        "--python", default="", help="prove: a Python of yours with torch and papermill, as Colab's"
    )
    arguments = parser.parse_args()
    try:
        book = chapters(arguments.numbers)
    except ChapterError as error:
        parser.error(str(error))
    if arguments.action == "stamp":
        return stamp_all(book, arguments.check)
    if arguments.action == "execute":
        return execute(book)
    return prove(book, arguments.seed, arguments.python)


if __name__ == "__main__":
    sys.exit(main())
