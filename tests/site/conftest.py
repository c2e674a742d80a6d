"""What the tests of the site share: one browser, since a process may start playwright once at a time."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


def missing_browser() -> str:
    """Why no page can be opened, or nothing."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        return "chromium is not installed (set CHROMIUM to its path)"
    for module in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return ""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    reason = missing_browser()
    if reason and os.environ.get("CI"):
        pytest.fail(f"CI must open the pages: {reason}")
    if reason:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()
