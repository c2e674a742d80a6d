"""The notebooks in a real JupyterLab, as `make lab` opens them: stored outputs are there, and Run All runs.

Every test run takes two chapters. `make labs` takes all: it sets LAB_CHAPTERS, the numbers of chapters, or `all`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest

from tools.chapters import ROOT, Chapter, chapters

pytestmark = pytest.mark.browser
# what `jupyter trust` does, wherever its script stands
SIGN = "from nbformat.sign import TrustNotebookApp; TrustNotebookApp.launch_instance()"
CHAPTER = "06-multi-head-attention.ipynb"
ASKED = os.environ.get("LAB_CHAPTERS", "00 06")
RUN_ALL = chapters([] if ASKED == "all" else ASKED.split())


@pytest.fixture(scope="module")
def lab(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that shows a chapter twice: trusted, and as somebody else's file would be."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / CHAPTER, folder / "notebooks" / "trusted.ipynb")
    for chapter in RUN_ALL:
        shutil.copy(chapter.path, folder / "notebooks")
    notebook = nbformat.read(ROOT / "notebooks" / CHAPTER, as_version=4)
    notebook.metadata["changed"] = True  # trust is a signature of all that stands in the file
    nbformat.write(notebook, folder / "notebooks" / "stranger.ipynb")
    homes = ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "HOME")
    environment = os.environ | {name: str(folder / name.lower()) for name in homes}
    # All cells are drawn, not only those in sight.
    settings = folder / "jupyter_config_dir/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    trusted = [folder / "notebooks" / "trusted.ipynb"]
    trusted += [folder / "notebooks" / chapter.path.name for chapter in RUN_ALL]
    subprocess.run(
        [sys.executable, "-c", SIGN, *trusted], env=environment, check=True, capture_output=True
    )
    log = (folder / "log").open("w")
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    options += ["--IdentityProvider.token=", "--ServerApp.password="]
    options += ["--expose-app-in-browser"]  # so that a test can call its commands
    options += [f"--notebook-dir={folder / 'notebooks'}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            found = re.search(r"http://127\.0\.0\.1:\d+", (folder / "log").read_text())
            if found:
                break
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        else:
            pytest.fail("JupyterLab did not start: " + (folder / "log").read_text()[-2000:])
        yield found[0]
    finally:
        server.kill()  # asked to end, it would wait for its kernels; they end without it
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def page(chromium: Any) -> Any:
    """A page of Chromium."""
    return chromium.new_page()


@pytest.mark.parametrize(("name", "there"), [("trusted", True), ("stranger", False)])
def test_the_diagrams_of_the_stored_outputs_show(
    lab: str, page: Any, name: str, there: bool
) -> None:
    """The second row shows that JupyterLab really takes them out where nobody has trusted the file."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset", timeout=180_000)
    diagram = page.locator(".jp-OutputArea-output figure.tpp-diagram").first
    figure = page.locator(".jp-OutputArea-output figure").first
    figure.wait_for(state="attached", timeout=180_000)
    drawings = page.locator(".jp-OutputArea-output figure svg")
    if there:
        drawings.first.wait_for(state="attached", timeout=180_000)
        assert diagram.count() == 1
    assert (drawings.count() > 0) == there


RUN = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    const hidden = () => panel.content.widgets.filter(cell => cell.inputHidden).map(cell => cell.model.id);
    const before = hidden();
    await jupyterapp.commands.execute("notebook:run-all-cells");
    await new Promise(done => setTimeout(done, 500));
    const all = selector => [...panel.node.querySelectorAll(selector)];
    const outputs = panel.content.widgets.flatMap(cell => cell.model.sharedModel.outputs ?? []);
    return {
        not_run: panel.content.widgets.filter(
            cell => cell.model.type === "code" && cell.model.sharedModel.source && !cell.model.executionCount).length,
        errors: outputs.filter(o => o.output_type === "error" || o.name === "stderr")
            .map(o => JSON.stringify(o).slice(0, 400)),
        hidden: [before.length, before.filter(id => !hidden().includes(id)).length],
        pictures: [outputs.filter(o => o.data?.["image/png"]).length,
                   all(".jp-OutputArea-output img").filter(image => image.naturalWidth > 0).length],
        diagrams: [outputs.filter(o => (o.data?.["text/html"] ?? "").toString().includes("<svg")).length,
                   all(".jp-RenderedHTMLCommon").filter(
                       box => box.closest(".jp-OutputArea-output") && box.querySelector("svg, iframe")).length],
        text: all(".jp-RenderedMarkdown").map(e => {
            const copy = e.cloneNode(true);
            copy.querySelectorAll("code, mjx-container").forEach(part => part.remove());
            return copy.textContent;
        }),
    };
}"""
RAW = re.compile(
    r"\$\$|:::|```|\{[a-z-]+\}`|\\(?:begin|frac|mathrm|text)\b|&lt;|</?(?:div|details|summary)"
)


@pytest.mark.parametrize("chapter", RUN_ALL, ids=str)
def test_run_all(lab: str, page: Any, chapter: Chapter) -> None:
    """No error; text and formulas are set, what was folded stays folded, pictures and diagrams show."""
    page.goto(f"{lab}/lab/tree/{chapter.path.name}?reset", timeout=180_000)
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(state="attached", timeout=180_000)
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
    found = page.evaluate(RUN)
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert found["errors"] == []
    assert found["not_run"] == 0
    folded = sum(
        bool(cell.metadata.get("jupyter", {}).get("source_hidden")) for cell in chapter.cells
    )
    assert found["hidden"] == [folded, 0]
    assert found["pictures"][0] == found["pictures"][1]
    assert found["diagrams"][0] <= found["diagrams"][1]
    assert sum(found["pictures"] + found["diagrams"]) > 0
    raw = [text for text in found["text"] if RAW.search(text)]
    assert len(found["text"]) > 10
    assert raw == []
