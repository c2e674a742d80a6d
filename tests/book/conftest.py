"""What the tests of the views share: a page with some of them, and what must hold of each."""

import configparser
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.chapters import ROOT
from transformer_lib.book.views import View


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
def clean() -> Callable[[str], str]:
    """What nbval compares of an output, by tests/nbval.cfg."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "tests" / "nbval.cfg")

    def by_nbval(html: str) -> str:
        for section in config.sections():
            html = re.sub(config[section]["regex"], config[section]["replace"], html)
        return html

    return by_nbval


@pytest.fixture
def loads() -> Callable[[str], list[str]]:
    """What a piece of code would load from elsewhere."""
    return re.compile(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(|import\(").findall


@pytest.fixture
def without_script() -> Callable[[Any, View], None]:
    """Show a view on a page as it is where scripts do not run."""

    def show(page: Any, view: View) -> None:
        page.evaluate(
            "html => { document.querySelector('figure').outerHTML = html.replace(/<script.*?<\\/script>/gs, ''); }",
            view._repr_html_(),
        )

    return show
