"""What the tests share: one tiny model, one batch, one way to copy weights, one seed, one browser."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.convert import attention_partners, copy_weights
from transformer_lib.pairs import Batch, Example, make_batch
from transformer_lib.transformer import Transformer, TransformerConfig


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers for every test, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Callable[..., Transformer]:
    """Make a small Transformer, in eval mode: tiny(), tiny(num_heads=4), tiny(seed=1)."""

    def make(seed: int = 0, **sizes: Any) -> Transformer:
        torch.manual_seed(seed)
        small = {"vocab_size": 23, "d_model": 16, "num_heads": 2, "d_ff": 32, "max_length": 64}
        layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
        return Transformer(TransformerConfig(**(small | layers | sizes))).eval()

    return make


@pytest.fixture
def batch() -> Batch:
    """Two short sentence pairs of the tiny model's vocabulary, both sides with padding."""
    return make_batch([Example([5, 6, 7, 8, 2], [9, 10]), Example([11, 2], [12, 13, 14, 15])])


@pytest.fixture
def copy_attention() -> Callable[[MultiHeadAttention, nn.MultiheadAttention], None]:
    """Give our attention the numbers of torch's."""

    def copy(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
        copy_weights(attention_partners(ours, theirs))

    return copy


def missing_browser() -> str:
    """Why no page can be opened, or nothing."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        return "chromium is not installed (set CHROMIUM to its path)"
    for module in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return ""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser. A process may start playwright once at a time, and its loop must not outlive the file's tests."""
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


@pytest.fixture
def axe() -> Callable[..., list[str]]:
    """Rules of axe-core that a page breaks, each with the first element that does: axe(page), axe(page, rules)."""

    def find(page: Any, rules: list[str] | None = None) -> list[str]:
        from axe_playwright_python.sync_playwright import Axe

        options: dict[str, Any] = {"resultTypes": ["violations"], "preload": False}
        if rules:
            options["runOnly"] = rules
        found = Axe().run(page, options=options).response["violations"]
        return [f"{rule['id']}: {rule['nodes'][0]['html'][:200]}" for rule in found]

    return find
