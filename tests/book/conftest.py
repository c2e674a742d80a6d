"""A real browser for the views, which opens them from a file."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transformer_lib.book.views import View


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    there = [importlib.util.find_spec(name) for name in ("playwright", "axe_playwright_python")]
    if not path or None in there:
        if os.environ.get("CI"):
            pytest.fail("CI must open the views: Chromium, playwright and axe are needed")
        pytest.skip("Chromium, playwright and axe are needed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a file with some views; at the end nothing was loaded, and no script has failed."""
    faults: list[str] = []
    contexts = []

    def open_views(*views: View, width: int = 800, style: str = "", **options: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Views</title>'
            '<meta name="viewport" content="width=device-width"></head>'
            f'<body style="{style}"><main><h1>Views</h1>'
            + "".join(view._repr_html_() for view in views)
            + "<p id='below'>What comes below.</p></main></body></html>",
            encoding="utf-8",
        )
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url == path.as_uri() or faults.append(f"loads {r.url}"))
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        page.goto(path.as_uri(), wait_until="load")
        return page

    yield open_views
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture(params=["background: white; color: #222", "background: #121212; color: #ced6dd"])
def theme(request: pytest.FixtureRequest) -> str:
    """The style of a light page, and of a dark one."""
    style: str = request.param
    return style


@pytest.fixture
def axe() -> Callable[[Any], list[str]]:
    """What axe-core finds wrong with a page."""

    def find(page: Any) -> list[str]:
        from axe_playwright_python.sync_playwright import Axe

        options = {"resultTypes": ["violations"], "preload": False}
        found = Axe().run(page, options=options).response["violations"]
        return [f"{rule['id']}: {rule['nodes'][0]['html'][:200]}" for rule in found]

    return find
