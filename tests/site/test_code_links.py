"""Which names in a block of code are links; the pages themselves are looked at in test_site.py."""

import re
import sys

import pytest

from tools.chapters import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from code_links import link_blocks

ENTRIES = {name: f"transformer_lib.module.{name}" for name in ("bleu", "train", "Pair")}


def as_page(*blocks: str) -> str:
    """Blocks of code as the site shows them."""
    from sphinx.highlighting import PygmentsBridge

    highlight = PygmentsBridge("html").highlight_block
    return "".join(
        f'<div class="highlight-ipython3 notranslate">{highlight(block, "ipython3")}</div>'
        for block in blocks
    )


def linked(*blocks: str) -> list[str]:
    """The linked names of blocks, in order."""
    return re.findall(
        r"<a [^>]*><span[^>]*>(\w+)</span></a>", link_blocks(as_page(*blocks), ENTRIES, "api.html")
    )


IMPORTED = "from transformer_lib.module import Pair, bleu, train"


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        ([IMPORTED], ["Pair", "bleu", "train"]),
        ([IMPORTED + "\nbleu(train(Pair))"], ["Pair", "bleu", "train", "bleu", "train", "Pair"]),
        (["from transformer_lib import bleu", "x = bleu + 1"], ["bleu", "bleu"]),
        # another's attribute, keyword, text, comment: the same letters, and not the name
        (["from transformer_lib import bleu", 'x.bleu(bleu=1)  # bleu\ny = "bleu"'], ["bleu"]),
        # not imported, or imported from elsewhere
        (["bleu(1)"], []),
        (["from sacrebleu import bleu", "bleu(1)"], []),
        (["from transformer_lib import bleu as score", "bleu(1)"], []),
        # the cell that defines it, and what follows
        (["#| export module\ndef bleu():\n    return bleu", "bleu()"], ["bleu"]),
        # a name of the reader's own
        (["from transformer_lib import bleu", "bleu = 3", "print(bleu)"], ["bleu"]),
        (["from transformer_lib import bleu", "def bleu(): ...", "bleu()"], ["bleu"]),
        # an argument hides it where it is one, no longer
        (["from transformer_lib import bleu", "def f(bleu):\n    return bleu", "bleu"], ["bleu", "bleu"]),
        (["from transformer_lib import bleu", "%time bleu()\nbleu()"], ["bleu", "bleu"]),
        (["from transformer_lib import bleu", "no Python at all, bleu"], ["bleu"]),
    ],
)  # fmt: skip
def test_a_name_is_a_link_where_it_is_the_packages(blocks: list[str], names: list[str]) -> None:
    assert linked(*blocks) == names


def test_the_tab_key_stops_at_a_name_once() -> None:
    page = link_blocks(as_page(IMPORTED, "bleu(bleu(Pair))"), ENTRIES, "api.html")
    stops = re.findall(r'<a class="tpp-name" href="api.html#transformer_lib.module.(\w+)">', page)
    assert stops == ["Pair", "bleu", "train"]
    assert page.count('tabindex="-1"') == 3
