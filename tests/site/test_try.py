"""The translator in a page: the same tokens as in Python, and what a reader meets in a real browser.

It looks at the built book, as test_site.py does. The equality of all 1,000 test sentences takes a few minutes.
"""

import json
import os
import random
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from torch import nn

from tools.chapters import ROOT
from transformer_lib.book.in_the_browser import (
    EightBits,
    dequantize,
    in_eight_bits,
    main,
    quantize,
    write_page,
    write_scripts,
)
from transformer_lib.decoding import IncrementalDecoder, beam_search
from transformer_lib.inspection import record_attention
from transformer_lib.pairs import load_pairs
from transformer_lib.tokenizer import BOS_ID, EOS_ID, encode_texts, train_tokenizer
from transformer_lib.transformer import Transformer
from transformer_lib.translator import Translator

HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html")).resolve()
SENTENCE = "Klicken Sie auf die Schaltfläche, um das markierte Objekt zu löschen."
WRITTEN = "/^(Written|⚠)/.test(document.querySelector('.tpp-status').textContent)"


@pytest.fixture(scope="module")
def shipped() -> Translator:
    return Translator.from_pretrained("de-en")


@pytest.fixture(scope="module")
def rounded(shipped: Translator) -> Translator:
    """The translator with the page's weights: what the page has to equal."""
    return in_eight_bits(shipped)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [pair.source for pair in load_pairs("test")]


def written_by(translator: Translator, texts: list[str], beam_size: int) -> list[list[int]]:
    """The ids of the translations, as Translator.translate chooses them."""
    rows = encode_texts(translator.tokenizer, [text.strip() for text in texts])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[list[int]] = [[] for _ in rows]
    for start in range(0, len(rows), 32):
        chosen = order[start : start + 32]
        ids = translator._decode([rows[i] for i in chosen], beam_size, 0.6)
        for i, tokens in zip(chosen, ids, strict=True):
            found[i] = tokens
    return found


@pytest.fixture(scope="module")
def reference(rounded: Translator, sentences: list[str]) -> dict[str, list[list[int]]]:
    """What Python writes for all test sentences, from the same weights of 8 bits."""
    return {name: written_by(rounded, sentences, size) for name, size in METHODS.items()}


METHODS = {"greedy": 1, "beam": 4}


@pytest.fixture
def little(tiny: Callable[..., Transformer]) -> Callable[..., Translator]:
    """An untrained translator of another shape than the shipped one's: little(norm_first=True)."""

    def make(**sizes: Any) -> Translator:
        texts = ["Die Maus läuft über das Haus.", "The mouse runs over the house."] * 3
        tokenizer = train_tokenizer(texts, 283)  # a number that is divisible by nothing
        shape = {"d_model": 18, "num_heads": 3, "d_ff": 30, "num_encoder_layers": 1}
        shape |= {"vocab_size": tokenizer.get_vocab_size(), "num_decoder_layers": 3}
        return Translator(tiny(**(shape | sizes)), tokenizer)

    return make


# ------------------------------------------------------------------------------------------------- 8 bits


def test_a_row_is_rounded_to_255_steps_and_vectors_stay() -> None:
    matrix = torch.randn(7, 50) * torch.tensor([1, 10, 0.1, 1e-6, 3, 0, 1])[:, None]
    vector = torch.randn(9)
    found = quantize({"matrix": matrix, "vector": vector})
    eight = found["matrix"]
    assert isinstance(eight, EightBits)
    assert eight.values.dtype == torch.int8
    assert eight.values.abs().amax(dim=1).tolist() == [127, 127, 127, 127, 127, 0, 127]
    back = dequantize(found)
    assert torch.equal(back["vector"], vector)
    worst = (back["matrix"] - matrix).abs().amax(dim=1) / (matrix.abs().amax(dim=1) + 1e-30)
    assert worst.max() <= 0.5 / 127 + 1e-6, f"off by {worst.tolist()} of the largest of a row"
    assert not back["matrix"][5].any(), "a row of zeros stays one"


@pytest.mark.parametrize("weight", [torch.tensor([[1.0, float("nan")]]), torch.ones(2, 2, 2)])
def test_what_has_no_eight_bits_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=re.escape(f"odd of shape {tuple(weight.shape)}")):
        quantize({"odd": weight})


def test_a_page_refuses_other_parts_and_other_tokenizers(
    little: Callable[..., Translator], tmp_path: Path
) -> None:
    """It would compute something else."""
    translator = little()
    translator.model.encoder.layers[0].feed_forward = nn.Identity()
    with pytest.raises(ValueError, match=r"standard parts only.*feed_forward"):
        write_scripts(translator, tmp_path)
    translator = little()
    description = json.loads(translator.tokenizer.to_str())
    description["pre_tokenizer"]["add_prefix_space"] = True
    translator.tokenizer = translator.tokenizer.from_str(json.dumps(description))
    with pytest.raises(ValueError, match=r"train_tokenizer only.*add_prefix_space True, now False"):
        write_scripts(translator, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_eight_bits_cost_at_most_0_3_bleu(
    shipped: Translator, reference: dict[str, list[list[int]]], sentences: list[str]
) -> None:
    """As chapter 17 measures: the 1,000 test sentences, by sacrebleu."""
    targets = [pair.target for pair in load_pairs("test")]
    for name, size in METHODS.items():
        scores = [
            sacrebleu.corpus_bleu(shipped.tokenizer.decode_batch(ids), [targets]).score
            for ids in (written_by(shipped, sentences, size), reference[name])
        ]
        print(f"{name}: BLEU {scores[0]:.2f} with 32 bits, {scores[1]:.2f} with 8")
        assert scores[0] > 30, "the shipped translator translates"
        assert scores[1] >= scores[0] - 0.3, f"{name}: BLEU {scores[0]:.2f} became {scores[1]:.2f}"


def test_all_that_the_page_loads_has_at_most_7_megabytes(
    shipped: Translator, tmp_path: Path
) -> None:
    size = write_scripts(shipped, tmp_path)
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert size == sum(files.values()) <= 7_000_000, files
    for name, content in files.items():
        built = HTML / "_static" / "try" / name
        assert built.read_bytes() == (tmp_path / name).read_bytes(), (
            f"the book's {name} is not what the weights give ({content} bytes): build it again"
        )


# --------------------------------------------------------------------------------- the same as in Python

# What a test asks a page for: `ready` builds the translator of the scripts that the page was given.
READY = """() => {
    const bytes = Uint8Array.from(tppTry.texts.map(atob).join(""), letter => letter.charCodeAt(0));
    const { Transformer, Tokenizer } = tppTranslator;
    globalThis.lab = { model: new Transformer(tppTry.about, bytes), tokenizer: new Tokenizer(tppTry.about) };
}"""
TRANSLATE = """([texts, method]) => {
    const { beamSearch, likeliest, limitOf, writeTokens, written, EOS } = tppTranslator, { model, tokenizer } = lab;
    setTimeout(() => {
        lab.answer = texts.map(text => {
            const source = model.read([...tokenizer.encode(text), EOS]), limit = limitOf(model, source);
            const writing = method === "beam" ? beamSearch(model, source, limit)
                : writeTokens(model, source, limit, likeliest);
            for (let found = writing.next(); ; found = writing.next())
                if (found.done) return written(found.value[0].node);
        });
    });
}"""


def open_lab(chromium: Any, scripts: Path) -> Any:
    """A page that holds the translator of these scripts, and nothing else."""
    page = chromium.new_context().new_page()  # a context each: pages of one share a process
    page.add_script_tag(path=scripts / "translator.js")
    page.evaluate(
        "globalThis.tppTry = { texts: [], model(about) { this.about = about; }, "
        "weights(i, text) { this.texts[i] = text; } }"
    )
    for path in [scripts / "model.js", *scripts.glob("weights-*.js")]:
        page.add_script_tag(path=path)
    page.evaluate(READY)
    return page


@pytest.fixture(scope="module")
def labs(
    chromium: Any, shipped: Translator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Any]]:
    """Two, for two processors."""
    scripts = tmp_path_factory.mktemp("scripts")
    write_scripts(shipped, scripts)
    pages = [open_lab(chromium, scripts) for _ in range(2)]
    yield pages
    for page in pages:
        page.context.close()


def written_in(pages: list[Any], texts: list[str], method: str) -> list[list[int]]:
    """What the pages write, each for its share of the texts."""
    for i, page in enumerate(pages):
        page.evaluate(TRANSLATE, [texts[i :: len(pages)], method])
    found: list[list[int]] = [[] for _ in texts]
    for i, page in enumerate(pages):
        found[i :: len(pages)] = page.evaluate("lab.answer")  # waits until the page is through
    return found


@pytest.mark.browser
def test_the_weights_are_those_of_python(labs: list[Any], rounded: Translator) -> None:
    """To the last bit: a sum of all bits of a tensor, each number's times its place, in 32 bits."""
    found = labs[0].evaluate(
        """() => Object.fromEntries(Object.entries(lab.model.weights).map(([name, weight]) => {
            const bits = new Int32Array(Float32Array.from(weight.data ?? weight).buffer);
            return [name, bits.reduce((sum, x, i) => (sum + Math.imul(x, 2 * i + 1)) | 0, 0)];
        }))"""
    )
    expected = {}
    for name, weight in rounded.model.state_dict().items():
        bits = weight.flatten().view(torch.int32)
        places = 2 * torch.arange(len(bits), dtype=torch.int32) + 1
        expected[name] = int((bits * places).sum(dtype=torch.int32))  # all of it modulo 2^32
    assert found == expected


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_page_writes_the_tokens_that_python_writes(
    labs: list[Any], reference: dict[str, list[list[int]]], sentences: list[str], method: str
) -> None:
    """All 1,000 test sentences."""
    assert len(sentences) == 1000
    found = written_in(labs, sentences, method)
    differing = [i for i in range(1000) if found[i] != reference[method][i]]
    assert not differing, f"{len(differing)} sentences differ, the first: {sentences[differing[0]]}"


@pytest.mark.browser
@pytest.mark.parametrize(
    "sizes", [{"norm_first": True}, {"norm_first": False}, {"final_norm": True}, {"max_length": 30}]
)
def test_an_untrained_model_of_another_shape_writes_what_it_writes_in_python(
    chromium: Any, little: Callable[..., Translator], tmp_path: Path, sizes: dict[str, Any]
) -> None:
    """It never says <eos>, so it also meets the limit; in 64 bits: its probabilities lie close together."""
    translator = little(**sizes)
    write_scripts(translator, tmp_path)
    texts = ["Die Maus läuft.", "Haus über Haus", "x"]
    exact = in_eight_bits(translator)
    exact.model.double()
    page = open_lab(chromium, tmp_path)
    for name, size in METHODS.items():
        expected = written_by(exact, texts, size)
        assert max(map(len, expected)) > 20, "the limit ends them"
        assert written_in([page], texts, name) == expected
    page.context.close()


@pytest.mark.browser
def test_logits_and_attention_are_those_of_python(labs: list[Any], rounded: Translator) -> None:
    """Of the full pass in Python; the page computes one token at a time, and two beginnings at once."""
    [source] = encode_texts(rounded.tokenizer, [SENTENCE])
    source.append(EOS_ID)
    target = [BOS_ID, 999, 271, 1027]
    found = labs[0].evaluate(
        """([ids, target]) => {
            const source = lab.model.read(ids);
            let nodes = [0, 1].map(() => ({ parent: null, token: target[0], length: 0 }));
            const steps = target.map((_, t) => {
                lab.model.step(source, nodes);
                const step = nodes[1];
                nodes = nodes.map(parent => ({ parent, token: target[t + 1], length: t + 1 }));
                return [step.logits, step.decoder, step.cross];
            });
            return JSON.stringify([source.attention, steps], (_, x) => ArrayBuffer.isView(x) ? Array.from(x) : x);
        }""",
        [source, target],
    )
    encoder, steps = json.loads(found)
    exact = in_eight_bits(rounded).model.double()
    with torch.no_grad(), record_attention(exact) as recorded:
        logits = exact(torch.tensor([source]), torch.tensor([target]))[0]
    for t, (ours, decoder, cross) in enumerate(steps):
        assert (torch.tensor(ours, dtype=torch.float64) - logits[t]).abs().max() < 1e-5
        for layer in range(2):
            own = recorded[f"decoder.layers.{layer}.self_attention"][0, :, t, : t + 1]
            other = recorded[f"decoder.layers.{layer}.cross_attention"][0, :, t]
            assert (torch.tensor(decoder[layer], dtype=torch.float64) - own).abs().max() < 1e-9
            assert (torch.tensor(cross[layer], dtype=torch.float64) - other).abs().max() < 1e-9
    for layer, weights in enumerate(encoder):
        own = recorded[f"encoder.layers.{layer}.self_attention"][0]
        assert (torch.tensor(weights, dtype=torch.float64) - own).abs().max() < 1e-9


@pytest.mark.browser
def test_beam_search_finds_the_same_translations_with_the_same_scores(
    labs: list[Any], rounded: Translator, sentences: list[str]
) -> None:
    """Not only the best: in 64 bits, all that it returns, where a limit ends the search, too."""
    exact = in_eight_bits(rounded).model.double()
    for text, limit in [*((text, 60) for text in sentences[:8]), (SENTENCE, 6)]:
        source = [*encode_texts(rounded.tokenizer, [text])[0], EOS_ID]
        found = labs[0].evaluate(
            """([ids, limit]) => {
                const search = tppTranslator.beamSearch(lab.model, lab.model.read(ids), limit);
                for (let found = search.next(); ; found = search.next())
                    if (found.done) return found.value.map(({ node, score }) =>
                        [tppTranslator.written(node), score, node.logProbability]);
            }""",
            [source, limit],
        )
        [expected] = beam_search(exact, torch.tensor([source]), limit)
        assert [tokens for tokens, _, _ in found] == [hypothesis.tokens for hypothesis in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[1:] == pytest.approx(theirs[1:], abs=1e-4), f"score and log p of {text!r}"


# Of each kind: letters with marks in both forms, bytes that are no letter, all sorts of white space, other scripts,
# signs that go together, contractions, what looks like a special token.
ODD = [
    "", " ", "  a  b ", "\t\n x \r\n", "\x1c\x1d x \x1e\x1f", "\x85a\x85", "\xa0a\xa0b", "\ufeffa\ufeff",
    "a\u2009\u3000 b", "\u200b", "\u00ad", "Ä", unicodedata.normalize("NFD", "Größe Ångström é"),
    "\u212b \ufb01 ½ ² Ⅷ ① 12.345,6", "it's I'LL don't 'S 'd", "<eos> <bos></s>", "日本語のテキスト", "한국어",
    "हिन्दी", "العربية", "עברית", "\U0001f469\u200d\U0001f469\u200d\U0001f467 🎈🇩🇪", "a\u0301\u0323", "ẛ̣",
    "—„“”‚‘…", "\x00\x7f\x80", "\U0001d538\U0010ffff\ue000", "x" * 300, "ab " * 100, "\u0130İıſ", "_a_1__", "¬¡®",
]  # fmt: skip


@pytest.mark.browser
def test_the_page_cuts_text_as_python_does(labs: list[Any], rounded: Translator) -> None:
    """Both sides of all training pairs, odd Unicode, and random characters of it; ids to text, too."""
    generator = random.Random(1)
    ranges = [(0, 0x250), (0x300, 0x600), (0x1E00, 0x2100), (0x3000, 0x3100), (0x1F300, 0x1F600)]
    noise = [
        "".join(chr(generator.randrange(*generator.choice(ranges))) for _ in range(12))
        for _ in range(3000)
    ]
    training = [text for pair in load_pairs("train") for text in pair[:2]]
    texts = [*ODD, *noise, *training]
    ids = encode_texts(rounded.tokenizer, [text.strip() for text in texts])
    differing = labs[0].evaluate(
        "([texts, ids]) => texts.flatMap((text, i) => "
        "String(lab.tokenizer.encode(text)) === String(ids[i]) ? [] : [i])",
        [texts, ids],
    )
    assert not differing, f"{len(differing)} differ, the first {texts[differing[0]]!r}"
    rows = [[generator.randrange(6000) for _ in range(9)] for _ in range(3000)] + ids[: len(ODD)]
    back = labs[0].evaluate("rows => rows.map(ids => lab.tokenizer.decode(ids))", rows)
    assert back == rounded.tokenizer.decode_batch(rows)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.4, 0.9), (2.0, 0.3), (1.0, 0.05)]
)
def test_the_next_pieces_are_those_from_which_sample_draws(
    labs: list[Any], temperature: float, top_p: float
) -> None:
    logits = torch.randn(500) * 3
    found = labs[0].evaluate(
        "a => tppTranslator.nextTokens(...a)", [logits.tolist(), temperature, top_p]
    )
    ordered, token = (logits.double() / temperature).sort(descending=True)
    probability = ordered.softmax(dim=-1)
    allowed = probability.cumsum(dim=-1) - probability < top_p
    assert [entry["token"] for entry in found] == token.tolist()
    assert [entry["allowed"] for entry in found] == allowed.tolist()
    torch.testing.assert_close(
        torch.tensor([entry["probability"] for entry in found]).double(),
        probability,
        atol=1e-6,
        rtol=0,
    )
    drawn = labs[0].evaluate(
        "([logits, ...settings]) => [0, 0.5, 0.9999].map(x => tppTranslator.draw(...settings, () => x)(logits))",
        [logits.tolist(), temperature, top_p],
    )
    shares = torch.where(allowed, probability, 0.0)
    places = [int((shares.cumsum(0) / shares.sum() > x).int().argmax()) for x in (0, 0.5, 0.9999)]
    assert drawn == [int(token[place]) for place in places]


# --------------------------------------------------------------------------------------------- the page


class Reader:
    """A page as a reader opens it, with the faults that a browser reports."""

    def __init__(self, chromium: Any, path: Path, **settings: Any) -> None:
        settings = {"viewport": {"width": 1280, "height": 900}} | settings
        self.page = chromium.new_context(reduced_motion="reduce", **settings).new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        page = self.page
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda m: m.type != "error" or self.faults.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        page.goto(path.as_uri(), wait_until="load")

    def loaded(self) -> list[str]:
        """The files of the translator that the page has asked for."""
        return re.findall(r"(?:model|weights-\d+)\.js", " ".join(self.requests))

    def translate(self, text: str | None = None, method: str = "beam") -> str:
        """Type a text and press the button; returns what the page then says."""
        page = self.page
        page.check(f"[name=tpp-method][value={method}]")
        page.evaluate("document.querySelector('.tpp-status').textContent = ''")
        if text is not None:
            page.evaluate("text => { document.querySelector('#tpp-input').value = text; }", text)
        page.click(".tpp-main")
        page.wait_for_function(WRITTEN, timeout=0)
        return str(page.inner_text(".tpp-status"))


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Reader]]:
    """Open a page as a file; at the end no fault must have been reported, nor another host asked."""
    readers: list[Reader] = []

    def opened(path: Path = HTML / "book" / "try.html", **settings: Any) -> Reader:
        readers.append(Reader(chromium, path, **settings))
        return readers[-1]

    yield opened
    for reader in readers:
        reader.page.context.close()
        outside = [url for url in reader.requests if not url.startswith(("file:", "data:"))]
        assert not outside, f"requests to {outside}"
        assert not reader.faults, reader.faults


@pytest.mark.browser
def test_the_weights_wait_for_the_first_click_and_come_once(
    open_page: Callable[..., Reader], rounded: Translator
) -> None:
    reader = open_page()
    reader.page.wait_for_timeout(300)
    assert reader.loaded() == [], "loaded before anybody asked"
    reader.page.evaluate(
        """() => {
            globalThis.seen = [];
            const bar = document.querySelector(".tpp-messages progress");
            new MutationObserver(() => seen.push(bar.value)).observe(bar, { attributes: true });
        }"""
    )
    reader.page.locator(".tpp-examples button").first.click()
    reader.page.wait_for_function(WRITTEN, timeout=0)
    assert reader.page.inner_text(".tpp-output") == rounded.translate([SENTENCE])[0]
    files = [path.name for path in (HTML / "_static" / "try").glob("weights-*.js")]
    assert reader.loaded() == ["model.js", *(f"weights-{i}.js" for i in range(len(files)))]
    seen = reader.page.evaluate("seen")
    assert seen == sorted(seen), "the progress bar goes forth only"
    assert seen[-1] == 1
    assert len(set(seen)) > 4, seen
    reader.translate("Speichern Sie die Datei.")
    assert len(reader.loaded()) == 1 + len(files), "the second translation loads nothing"


@pytest.mark.browser
@pytest.mark.parametrize("method", METHODS)
def test_the_page_shows_what_python_computes(
    open_page: Callable[..., Reader], rounded: Translator, method: str
) -> None:
    """Text, pieces, attention of the chosen head, next pieces, finished translations."""
    reader = open_page()
    page = reader.page
    reader.translate(SENTENCE, method)
    [source] = encode_texts(rounded.tokenizer, [SENTENCE])
    [target] = written_by(rounded, [SENTENCE], METHODS[method])
    assert page.inner_text(".tpp-output") == rounded.tokenizer.decode(target)
    numbers = "chips => chips.map(chip => Number(chip.querySelector('small').textContent))"
    assert page.eval_on_selector_all(".tpp-in .tpp-chip", numbers) == [*source, EOS_ID]
    assert page.eval_on_selector_all(".tpp-out .tpp-chip", numbers) == [*target, EOS_ID]
    page.evaluate(
        "() => { const s = document.querySelector('#tpp-step'); s.value = 3; s.dispatchEvent(new Event('input')); }"
    )
    page.click("[data-head='cross 1 2']")
    with torch.no_grad(), record_attention(rounded.model) as recorded:
        logits = rounded.model(torch.tensor([[*source, EOS_ID]]), torch.tensor([[BOS_ID, *target]]))
    weights = recorded["decoder.layers.1.cross_attention"][0, 2, 2]
    shown = page.eval_on_selector_all(".tpp-keys b", "all => all.map(b => Number(b.textContent))")
    assert (torch.tensor(shown) - weights).abs().max() <= 0.0051
    best = logits[0, 2].softmax(dim=-1).topk(10)
    words = page.eval_on_selector_all(
        ".tpp-next button", "all => all.map(b => b.getAttribute('aria-label'))"
    )
    for word, share, token in zip(words, best.values.tolist(), best.indices.tolist(), strict=True):
        assert word.startswith(rounded.tokenizer.decode([token]).strip()), word
        assert abs(float(re.search(r"([\d.]+) %", word)[1]) - 100 * share) <= 0.51, word
    found = page.eval_on_selector_all(".tpp-results button", "all => all.map(b => b.textContent)")
    assert len(found) == METHODS[method]
    assert found[0].endswith(rounded.tokenizer.decode(target))
    lanes = page.eval_on_selector_all(
        ".tpp-tree button", "all => Math.max(...all.map(b => b.at.lane))"
    )
    assert (lanes >= 4) == (method == "beam"), "four beginnings, and finished ones below"


@pytest.mark.browser
def test_another_piece_may_be_written_and_the_beam_be_followed(
    open_page: Callable[..., Reader], rounded: Translator
) -> None:
    reader = open_page()
    page = reader.page
    reader.translate(SENTENCE)
    before = page.inner_text(".tpp-output")
    page.locator(".tpp-results button").nth(1).click()
    other = page.inner_text(".tpp-output")
    assert other != before
    assert page.locator(".tpp-results button").nth(1).inner_text().endswith(other)
    page.locator(".tpp-results button").first.click()
    page.evaluate(
        "() => { const s = document.querySelector('#tpp-step'); s.value = 3; s.dispatchEvent(new Event('input')); }"
    )
    page.evaluate("document.querySelector('.tpp-status').textContent = ''")
    page.locator(".tpp-next button").nth(1).click()
    page.wait_for_function(WRITTEN, timeout=0)
    ids = [
        int(x)
        for x in page.eval_on_selector_all(
            ".tpp-out .tpp-chip small", "all => all.map(b => b.textContent)"
        )
    ]
    with torch.no_grad():  # greedy decoding, after three tokens that it was given
        decoder = IncrementalDecoder(
            rounded.model, torch.tensor([[*encode_texts(rounded.tokenizer, [SENTENCE])[0], EOS_ID]])
        )
        expected, token = [], BOS_ID
        while token != EOS_ID:
            likeliest = int(decoder.step(torch.tensor([token])).argmax())
            token = ids[len(expected)] if len(expected) < 3 else likeliest
            expected.append(token)
    assert ids == expected
    assert ids[:2] == encode_texts(rounded.tokenizer, [before])[0][:2]
    assert ids[2] != encode_texts(rounded.tokenizer, [before])[0][2]


@pytest.mark.browser
def test_temperature_and_top_p_change_what_could_come_next(
    open_page: Callable[..., Reader],
) -> None:
    reader = open_page()
    page = reader.page
    reader.translate(SENTENCE)
    first = page.locator(".tpp-next b").first
    share = first.inner_text()
    page.focus("#tpp-temperature")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert first.inner_text() != share
    page.focus("#tpp-top-p")
    page.keyboard.press("Home")
    assert page.locator(".tpp-next .tpp-cut").count() == 9
    assert first.inner_text() == "100 %"
    reader.translate(None, "sample")
    assert page.inner_text(".tpp-output") == reader_text(reader, "greedy"), "top-p near 0 is greedy"


def reader_text(reader: Reader, method: str) -> str:
    reader.translate(None, method)
    return str(reader.page.inner_text(".tpp-output"))


@pytest.mark.browser
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["nothing to translate"]),
        (" \n\t", ["nothing to translate"]),
        ("Die Datei ist da. " * 30, ["pieces", "at most 100"]),
        ("x" * 2001, ["2,001 characters", "at most 2,000", "100 pieces"]),
        ("a\ud83d", ["surrogate"]),
    ],
)
def test_what_cannot_be_translated_is_told_with_the_limit(
    open_page: Callable[..., Reader], text: str, words: list[str]
) -> None:
    reader = open_page()
    reader.translate("Speichern Sie die Datei.")
    before = reader.page.inner_text(".tpp-output")
    said = reader.translate(text)
    assert said.startswith("⚠")
    assert all(word in said for word in words), said
    assert reader.page.get_attribute("#tpp-input", "aria-invalid") == "true"
    assert reader.page.get_attribute(".tpp-status", "role") == "status", "it is read out"
    assert reader.page.inner_text(".tpp-output") == before
    assert not reader.translate("Speichern Sie die Datei.").startswith("⚠")
    assert reader.page.get_attribute("#tpp-input", "aria-invalid") is None


PLACES = """() => {
    const boxes = ".tpp-try > *, .tpp-panel, .tpp-panel > *, .tpp-talk > *, .bd-article h2";
    return [...document.querySelectorAll(boxes)].map(e => {
        const { x, y, width, height } = e.getBoundingClientRect();
        return [e.className, x, y + scrollY, width, height].join(" ");
    });
}"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_moves_when_results_come_in(open_page: Callable[..., Reader], width: int) -> None:
    reader = open_page(viewport={"width": width, "height": 844})
    before = reader.page.evaluate(PLACES)
    assert len(before) > 20
    reader.translate(SENTENCE)
    assert reader.page.evaluate(PLACES) == before
    reader.translate(
        "Wenn Sie die Zellen auswählen, deren Inhalt Sie kopieren möchten, drücken Sie die Eingabetaste, und "
        * 2
    )
    assert reader.page.evaluate(PLACES) == before


@pytest.mark.browser
def test_the_keyboard_reaches_everything(open_page: Callable[..., Reader]) -> None:
    reader = open_page()
    page = reader.page
    page.focus("#tpp-input")
    page.keyboard.type("Der Bericht wird gespeichert.")
    page.keyboard.press("Enter")
    page.wait_for_function(WRITTEN, timeout=0)
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    page.focus("#tpp-step")
    step = int(page.input_value("#tpp-step"))
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".tpp-step-text").startswith(f"Step {step + 1} of")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused))
        if seen[-1].startswith("step "):
            break
    for name in (
        "Step on",
        "cross, layer 1, head 0",
        "Attention of the chosen head",
        "tpp-temperature",
        "tpp-top-p",
    ):
        assert name in seen, f"{name} is not among {seen}"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused).startswith(f"step {step}, place 1"), page.evaluate(focused)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused).startswith(f"step {step}, place 2"), page.evaluate(focused)
    page.focus("[data-head='cross 1 0']")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "cross, layer 0, head 1"
    assert page.inner_text(".tpp-title").startswith("cross, layer 0, head 1")
    page.focus(".tpp-tokens")
    page.keyboard.press("ArrowUp")
    assert "looks at" in page.inner_text(".tpp-looks")


@pytest.mark.browser
def test_play_writes_it_again(open_page: Callable[..., Reader]) -> None:
    reader = open_page()
    page = reader.page
    reader.translate("Der Bericht wird gespeichert.")
    whole, nodes = page.inner_text(".tpp-output"), page.locator(".tpp-tree button").count()
    page.click("text=▶ Play")
    assert page.inner_text(".tpp-output") != whole
    assert page.locator(".tpp-tree button").count() < nodes, "the tree grows again"
    page.click("text=Pause")
    page.click(".tpp-out .tpp-chip >> nth=0")
    assert page.inner_text(".tpp-output") == whole


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_with_its_results_is_accessible(
    open_page: Callable[..., Reader], axe: Callable[..., list[str]], scheme: str, width: int
) -> None:
    reader = open_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    reader.translate(SENTENCE)
    reader.page.click("[data-head='encoder 1 3']")
    faults = axe(reader.page)
    assert not faults, "\n".join(faults)
    assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "too wide"


# -------------------------------------------------------------------------------- a page of one's own


@pytest.mark.browser
def test_a_translator_of_ones_own_gets_a_page(
    open_page: Callable[..., Reader],
    little: Callable[..., Translator],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `make try MODEL=folder` runs."""
    translator = little(num_heads=2, max_length=40)
    translator.save(tmp_path / "mine")
    text = 'Die Maus <läuft> & "läuft".'
    arguments = [str(tmp_path / "mine"), "--output", str(tmp_path / "page"), "--source", "Bear's"]
    assert main([*arguments, "--example", text]) == 0
    assert str(tmp_path / "page" / "index.html") in capsys.readouterr().out
    reader = open_page(tmp_path / "page" / "index.html")
    reader.page.locator(".tpp-examples button").first.click()
    reader.page.wait_for_function(WRITTEN, timeout=0)
    exact = in_eight_bits(translator)
    exact.model.double()
    [ids] = written_by(exact, [text], 4)
    assert reader.page.text_content(".tpp-output") == exact.tokenizer.decode(ids).strip()
    assert reader.page.input_value("#tpp-input") == text
    assert "Bear's" in reader.page.inner_text("h1")
    assert "at most 40" in reader.translate("Die Maus läuft. " * 9)


@pytest.mark.browser
def test_a_missing_file_is_named_and_the_next_click_tries_again(
    chromium: Any, little: Callable[..., Translator], tmp_path: Path
) -> None:
    path = write_page(little(), tmp_path)
    shutil.move(tmp_path / "weights-0.js", tmp_path / "gone.js")
    reader = Reader(chromium, path)
    assert "weights-0.js" in reader.translate("Die Maus")
    shutil.move(tmp_path / "gone.js", tmp_path / "weights-0.js")
    assert reader.translate("Die Maus").startswith("Written")
    reader.page.context.close()


def test_make_try_runs_this_command() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "try", "MODEL=my model"], cwd=ROOT, capture_output=True, text=True
    )
    assert '-m transformer_lib.book.in_the_browser "my model" --output build/try' in shown.stdout


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--output", str(tmp_path / "page")]) == 1
    assert f"{tmp_path / 'none'} is no translator" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


@pytest.mark.browser
def test_the_strip_translates_and_leads_to_the_page(
    open_page: Callable[..., Reader], little: Callable[..., Translator], tmp_path: Path
) -> None:
    page_path = write_page(little(), tmp_path)
    text = page_path.read_text(encoding="utf-8")
    strip = '<div class="tpp-try-strip" data-example="Die Maus"></div>'
    page_path.write_text(re.sub(r'<div class="tpp-try".*?</div>', strip, text), encoding="utf-8")
    reader = open_page(page_path)
    reader.page.wait_for_timeout(200)
    assert reader.loaded() == []
    height = "document.querySelector('.tpp-try-strip').offsetHeight"
    before = reader.page.evaluate(height)
    reader.page.click(".tpp-main")
    reader.page.wait_for_function(
        "document.querySelector('.tpp-status').textContent.startsWith('Translated')", timeout=0
    )
    assert reader.page.inner_text(".tpp-strip-result")
    assert reader.page.get_attribute(".tpp-try-strip a", "href").endswith("/book/try.html")
    reader.page.fill("input", "")
    reader.page.press("input", "Enter")
    reader.page.wait_for_function(
        "document.querySelector('.tpp-status').textContent.startsWith('⚠')", timeout=0
    )
    assert reader.page.evaluate(height) >= before
