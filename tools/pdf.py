"""Print the whole book as one PDF with Chromium: `make pdf`, or `python -m tools.pdf FROM.html TO.pdf`.

Sphinx's `singlehtml` puts all pages on one, in the order of the contents. Chromium prints it as it stands on the
screen, in the print style of book/_static/custom.css: what is folded stays folded, formulas and plots are the site's.
"""

import os
import shutil
import sys
from pathlib import Path

# On one page, many chapters have a section `exercises`: each gets an id of its own, and the links within follow.
# Names of the package link to index.html#name, which would open the browser; the same page is #name.
ONE_PAGE = """() => {
    const taken = new Set();
    document.querySelectorAll("article a[href^='index.html#']").forEach(a => a.setAttribute("href", a.hash));
    document.querySelectorAll("article [id^='document-'] + section").forEach((chapter, number) => {
        for (const element of [chapter, ...chapter.querySelectorAll(":not(svg *)[id]")]) {
            const [before, after] = [element.id, `${element.id}-${number}`];
            if (!before || !taken.has(before)) { taken.add(before); continue; }
            element.id = after;
            for (const link of chapter.querySelectorAll("a"))
                if (link.getAttribute("href") === "#" + before) link.setAttribute("href", "#" + after);
        }
    });
}"""
FOOTER = """<div style="width: 100%; font: 9px sans-serif; color: #555; text-align: center">
  <span class="pageNumber"></span></div>"""


def chromium() -> str:
    """Where Chromium is."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        raise SystemExit(
            "Chromium is needed to print the book: install it, or set CHROMIUM to its path"
        )
    return found


def print_pdf(page_file: Path, pdf: Path) -> None:
    """Print a page of HTML with its formulas, an outline and page numbers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(color_scheme="light", reduced_motion="reduce")
        page.set_default_timeout(0)  # the whole book takes a while
        page.goto(page_file.resolve().as_uri(), wait_until="load")
        page.evaluate("window.MathJax?.startup?.promise")
        page.evaluate(ONE_PAGE)
        page.pdf(
            path=str(pdf),
            format="A4",
            margin={"top": "16mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            outline=True,
            tagged=True,
        )
        browser.close()


def main() -> int:
    """Print FROM.html to TO.pdf."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print_pdf(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"The book on paper: {Path(sys.argv[2]).resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
