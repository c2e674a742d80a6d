"""The notebooks in a real JupyterLab, as `make lab` opens them: the diagrams of the stored outputs are there."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import nbformat
import pytest

from tools.chapters import ROOT

pytestmark = pytest.mark.browser
# what `jupyter trust` does, wherever its script stands
SIGN = "from nbformat.sign import TrustNotebookApp; TrustNotebookApp.launch_instance()"
CHAPTER = "06-multi-head-attention.ipynb"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that shows a chapter twice: trusted, and as somebody else's file would be."""
    pytest.importorskip("playwright")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / CHAPTER, folder / "notebooks" / "trusted.ipynb")
    notebook = nbformat.read(ROOT / "notebooks" / CHAPTER, as_version=4)
    notebook.metadata["changed"] = True  # trust is a signature of all that stands in the file
    nbformat.write(notebook, folder / "notebooks" / "stranger.ipynb")
    homes = ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "HOME")
    environment = os.environ | {name: str(folder / name.lower()) for name in homes}
    trusted = str(folder / "notebooks" / "trusted.ipynb")
    subprocess.run(
        [sys.executable, "-c", SIGN, trusted], env=environment, check=True, capture_output=True
    )
    log = (folder / "log").open("w")
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    options += ["--IdentityProvider.token=", "--ServerApp.password="]
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


@pytest.mark.parametrize(("name", "there"), [("trusted", True), ("stranger", False)])
def test_the_diagrams_of_the_stored_outputs_show(lab: str, name: str, there: bool) -> None:
    """The second row shows that JupyterLab really takes them out where nobody has trusted the file."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.goto(f"{lab}/lab/tree/{name}.ipynb?reset", timeout=180_000)
        diagram = page.locator(".jp-OutputArea-output figure.tpp-diagram").first
        figure = page.locator(".jp-OutputArea-output figure").first
        figure.wait_for(state="attached", timeout=180_000)
        drawings = page.locator(".jp-OutputArea-output figure svg")
        if there:
            drawings.first.wait_for(state="attached", timeout=180_000)
            assert diagram.count() == 1
        assert (drawings.count() > 0) == there
        browser.close()
