"""Names in code are links: from each use of a public name of the package to its entry in the reference.

Nothing runs in the browser: the links are put into the pages when they are built. Python says what a name means, so a
name is a link only where it is the package's: after it was imported from there or defined in an exported cell, and not
in the cell that defines it, nor where a cell uses the same word for something of its own.
"""

import ast
import html
import re

from docutils import nodes

from tools.chapters import MARKER, ChapterError, chapters, parse_cell
from tools.export_modules import PACKAGE, collect

REFERENCE = "book/api"
BLOCK = re.compile(
    r'(?P<before><div class="highlight-(?:ipython3|python) [^>]*><div class="highlight"><pre>)(?P<code>.*?)(?=</pre>)',
    re.S,
)
TAG = re.compile(r"<[^>]+>")
# A name that is nobody's attribute (after a point) and no keyword of a call (before a =).
NAME = re.compile(
    r'(?P<point><span class="o">\.</span>)?<span class="n[cfn]?">(?P<name>\w+)</span>(?!<span class="o">=</span>)'
)


def reference_entries() -> dict[str, str]:
    """Public name -> the anchor of its entry in the reference."""
    return {
        name: f"{PACKAGE}.{module}.{name}"
        for module, held in collect(chapters()).items()
        for name in held.public
    }


def bound_names(tree: ast.AST) -> set[str]:
    """All names that a piece of code gives a meaning to, at any depth; imports left out."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
    return bound


def imported_names(tree: ast.AST) -> dict[str, bool]:
    """Name that an import binds -> whether it comes from the package under its own name."""
    return {
        alias.asname or alias.name: alias.asname is None
        and isinstance(node, ast.ImportFrom)
        and (node.module or "").partition(".")[0] == PACKAGE
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


class Names:
    """What the public names mean on one page, from block of code to block of code."""

    def __init__(self, entries: dict[str, str]) -> None:
        self.entries = entries
        self.known: set[str] = set()

    def read(self, source: str) -> set[str]:
        """The names to link in the next block of the page."""
        try:
            tree = parse_cell(source, "a block of code")
        except ChapterError:
            return set()  # not Python
        for name, ours in imported_names(tree).items():
            self.known = self.known | {name} if ours else self.known - {name}
        own = bound_names(tree)
        linked = (self.known - own) & self.entries.keys()
        if MARKER.match(source.partition("\n")[0].rstrip()):
            self.known |= own & self.entries.keys()
        else:  # at its top level alone does a cell change what a name means further down
            flat = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            self.known -= {n.id for n in flat if not isinstance(n.ctx, ast.Load)}
            self.known -= {getattr(node, "name", "") for node in tree.body}
        return linked


def link_blocks(body: str, entries: dict[str, str], reference: str) -> str:
    """The HTML of a page with the names in its blocks of code linked."""
    names = Names(entries)
    seen: set[str] = set()

    def link_block(block: re.Match[str]) -> str:
        linked = names.read(html.unescape(TAG.sub("", block["code"])))

        def link(match: re.Match[str]) -> str:
            name = match["name"]
            if match["point"] or name not in linked:
                return match[0]
            # With the tab key one stops at a name once on a page, not at each of its uses.
            skip = ' tabindex="-1"' if name in seen else ""
            seen.add(name)
            href = f"{reference}#{entries[name]}"
            return f'<a class="tpp-name" href="{href}"{skip}>{match[0]}</a>'

        return block["before"] + NAME.sub(link, block["code"])

    return BLOCK.sub(link_block, body)


def link_blocks_of_page(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    if doctree is not None and pagename != REFERENCE:
        reference = app.builder.get_relative_uri(pagename, REFERENCE)
        context["body"] = link_blocks(context["body"], app.tpp_entries, reference)


def link_words(app, doctree, docname: str) -> None:
    """In the text a `name` is a link if it could be no ordinary word: it has a capital or an underscore."""
    if app.builder.format != "html" or docname == REFERENCE:
        return
    reference = app.builder.get_relative_uri(docname, REFERENCE)
    for node in list(doctree.findall(nodes.literal)):
        name = node.astext().removesuffix("()")
        if name not in app.tpp_entries or (name.islower() and "_" not in name):
            continue
        around = node.parent
        while around is not None and not isinstance(around, nodes.reference | nodes.title):
            around = around.parent
        if around is None:
            uri = f"{reference}#{app.tpp_entries[name]}"
            link = nodes.reference("", "", internal=True, refuri=uri, classes=["tpp-name"])
            node.replace_self(link)
            link += node


def setup(app) -> dict[str, bool | str]:
    app.tpp_entries = reference_entries()
    app.connect("doctree-resolved", link_words)
    app.connect("html-page-context", link_blocks_of_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
