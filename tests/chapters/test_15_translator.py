"""Chapter 15: the Translator."""

import copy
import os
import pickle
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.checkpoint import read_tensors, write_tensors
from transformer_lib.door import describe_model
from transformer_lib.embeddings import LearnedPositionalEncoding
from transformer_lib.evaluation import bleu, chrf
from transformer_lib.pairs import encode_pairs, endless_batches, load_pairs
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import Transformer, TransformerConfig
from transformer_lib.translator import Translator

PAIRS = load_pairs("validation")[:60]
TEXTS = [pair.source for pair in PAIRS]
TOKENIZER = train_tokenizer([text for pair in PAIRS for text in pair[:2]], 400)
CONFIG = TransformerConfig(400, 16, 2, 32, 1, 1, dropout=0.2, norm_first=True)


def fresh(**sizes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(CONFIG, **sizes)).eval()


def same_tokenizer() -> Tokenizer:
    """A copy, as loaded from a file: what one test sets, another does not see."""
    return Tokenizer.from_str(TOKENIZER.to_str())


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator that has learned a little, saved."""
    where = tmp_path_factory.mktemp("models") / "tiny"
    model = fresh()
    stream = endless_batches(encode_pairs(PAIRS, TOKENIZER), 256, 0)
    train(model, stream, settings=TrainingSettings(60, warmup_steps=30))
    Translator(model, TOKENIZER, {"why": "a test"}).save(where)
    return where


# Text in, text out ------------------------------------------------------------------------------


def test_translations_keep_order_and_do_not_depend_on_the_batch(folder: Path) -> None:
    translator = Translator.from_pretrained(folder)
    texts = [*TEXTS[:9], "", "   "]
    for beam_size in (1, 3):
        together = translator.translate(texts, beam_size=beam_size)
        for batch_size in (1, 4):
            assert translator.translate(texts, beam_size, batch_size=batch_size) == together
        assert together[-2:] == ["", ""]
        assert together[:1] == translator.translate([f"  {texts[0]}\n"], beam_size=beam_size)
    assert translator.translate([]) == []


def test_a_translation_ends_50_tokens_after_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or where the model's positions end (paper, section 6.1). This model never says <eos>."""
    model = fresh(max_length=100)
    model.output = nn.Linear(16, 400)
    with torch.no_grad():
        model.output.bias[2] = -1e9
    translator, found = Translator(model, same_tokenizer()), []
    decode = translator._decode

    def spy(*given: Any) -> list[list[int]]:
        found.append(decode(*given))
        return found[-1]

    monkeypatch.setattr(translator, "_decode", spy)
    for text in ("ja", TEXTS[0]):
        source = len(TOKENIZER.encode(text).ids) + 1
        for beam_size in (1, 2):
            translator.translate([text], beam_size)
            assert len(found[-1][0]) == min(source + 50, 100)
    assert len(TOKENIZER.encode("ja").ids) + 51 < 100 < source + 50, "one limit each"


def test_one_long_sentence_does_not_make_short_ones_long() -> None:
    """31 short ones and a long one: the same answers, for what they take apart (and no 3 times)."""
    translator = Translator.from_pretrained()
    short, long = ["Klicken Sie auf OK."] * 31, ["x " * 60]

    def cost(texts: list[str]) -> tuple[list[str], int]:
        with FlopCounterMode(display=False) as counter:
            found = translator.translate(texts)
        return found, counter.get_total_flops()

    (few, first), (one, second), (both, together) = cost(short), cost(long), cost(short + long)
    assert both == few + one
    assert 0 < together < 1.1 * (first + second)


def test_letters_in_two_pieces_are_the_same_text(folder: Path) -> None:
    translator = Translator.from_pretrained(folder)
    texts = [text for text in TEXTS if not text.isascii()][:5]
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    assert apart != texts
    assert translator.translate(apart) == translator.translate(texts)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda translator: pickle.loads(pickle.dumps(translator))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_translates_as_the_original(
    again: Callable[[Translator], Translator], folder: Path
) -> None:
    """Also "<eos>" inside a text, which the tokenizer's own copy would take for the special token."""
    translator = Translator.from_pretrained(folder)
    other, texts = again(translator), [*TEXTS[:2], "das Zeichen <eos> und <pad>"]
    assert other.translate(texts) == translator.translate(texts)
    assert other.training == translator.training


def test_a_translator_refuses(folder: Path) -> None:
    translator = Translator.from_pretrained(folder)
    with pytest.raises(ValueError, match="list of texts"):
        translator.translate("Ein Satz.")
    with pytest.raises(ValueError, match="surrogate"):
        translator.translate(["gut", "ein \ud800 Satz"])
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens, the model has 1024 positions"):
        translator.translate(["a", "Wort " * 1500])
    for given in ({"beam_size": 0}, {"batch_size": 0}, {"beam_size": 1.5}, {"length_penalty": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} must be"):
            translator.translate(["a"], **given)


@pytest.mark.parametrize("change", [{"vocab_size": 500}, {"pad_id": 5}], ids=str)
def test_a_model_of_another_tokenizer_is_refused(change: dict[str, int]) -> None:
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{name} {value}, .*{400 if name == 'vocab_size' else 0}"):
        Translator(fresh(**change), same_tokenizer())


@pytest.mark.parametrize("beam_size", [1, 4])
def test_weights_that_are_nan_are_said_to_be(beam_size: int) -> None:
    model = fresh()
    with torch.no_grad():
        model.decoder.layers[0].feed_forward.outer.bias[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        Translator(model, same_tokenizer()).translate(["ein Satz"], beam_size)


# In a file and back -----------------------------------------------------------------------------


def test_a_translator_comes_back_the_same(folder: Path) -> None:
    translator = Translator.from_pretrained(folder)
    assert [file.name for file in folder.iterdir()] == ["weights.safetensors"]
    assert translator.training == {"why": "a test"}
    assert translator.model.config == CONFIG
    assert not translator.model.training
    assert translator.tokenizer.to_str() == TOKENIZER.to_str()
    assert translator.translate(TEXTS[:7]) == Translator.from_pretrained(folder).translate(
        TEXTS[:7]
    )


def test_half_precision_halves_the_file(folder: Path, tmp_path: Path) -> None:
    translator = Translator.from_pretrained(folder)
    translator.save(tmp_path / "half", torch.float16)
    sizes = []
    for path in (folder, tmp_path / "half"):
        tensors, _ = read_tensors(path / "weights.safetensors")
        sizes.append(sum(x.nbytes for x in tensors.values()))
    assert sizes[1] == sizes[0] / 2
    half = Translator.from_pretrained(tmp_path / "half")
    assert half.model.embedding.weight.dtype == torch.float32
    torch.testing.assert_close(weights(half.model), weights(translator.model), atol=1e-3, rtol=1e-3)


class Swapped(Transformer):
    """A Transformer with learned positions and an output map of its own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.position = LearnedPositionalEncoding(config.d_model, config.max_length)
        self.output = nn.Linear(config.d_model, config.vocab_size)


def test_a_swapped_part_needs_a_model_that_has_it(tmp_path: Path) -> None:
    translator = Translator(Swapped(CONFIG).eval(), same_tokenizer())
    translator.save(tmp_path)
    with pytest.raises(ValueError, match="model with other parts, does not fit"):
        Translator.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model with other parts, does not fit"):
        Translator.from_pretrained(tmp_path, model=fresh())
    loaded = Translator.from_pretrained(tmp_path, model=Swapped(CONFIG))
    assert not loaded.model.training
    assert torch.equal(weights(loaded.model), weights(translator.model))
    assert loaded.translate(TEXTS[:3]) == translator.translate(TEXTS[:3])


def test_a_save_that_fails_leaves_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator.from_pretrained(folder)
    translator.save(tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()

    def full(*given: object) -> None:
        raise OSError("no space left")

    other = Translator(fresh(), same_tokenizer(), {"why": "another"})
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="no space left"):
                other.save(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
        assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert Translator.from_pretrained(tmp_path).training == {"why": "a test"}


def test_what_is_no_translator_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no translator: there is no file"):
        Translator.from_pretrained("nowhere")
    file = tmp_path / "weights.safetensors"
    content = (folder / file.name).read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged"):
        Translator.from_pretrained(tmp_path)
    tensors, notes = read_tensors(folder / file.name)
    write_tensors(file, tensors)
    with pytest.raises(ValueError, match="holds no translator"):
        Translator.from_pretrained(tmp_path)
    write_tensors(file, tensors, **(notes | {"tokenizer": "{}"}))
    with pytest.raises(ValueError, match="is no tokenizer"):
        Translator.from_pretrained(tmp_path)
    write_tensors(file, tensors, **(notes | {"config": asdict(replace(CONFIG, num_heads=4))}))
    with pytest.raises(ValueError, match="num_heads 2, .*4"):
        Translator.from_pretrained(tmp_path)
    assert notes["model"] == describe_model(fresh()), "what the file says of the model"


def test_a_folder_of_ones_own_comes_before_the_one_shipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Translator.from_pretrained("de-en").model.config.vocab_size == 6000
    Translator.from_pretrained(folder).save("de-en")
    assert Translator.from_pretrained("de-en").training == {"why": "a test"}


def test_the_shipped_translator_is_what_its_notes_say() -> None:
    """The score that the notes claim is recomputed from the weights in chapter 15 and here."""
    translator = Translator.from_pretrained()
    claimed = translator.training["scores"]["test"]
    pairs = load_pairs("test")
    found = translator.translate([pair.source for pair in pairs])
    wanted = [pair.target for pair in pairs]
    assert bleu(found, wanted).score == pytest.approx(claimed["bleu"], abs=0.3)
    assert chrf(found, wanted) == pytest.approx(claimed["chrf"], abs=0.3)


def test_a_compiled_model_is_saved_as_the_model_that_it_is(tmp_path: Path) -> None:
    tokenizer = same_tokenizer()
    translator = Translator(fresh(vocab_size=tokenizer.get_vocab_size()), tokenizer)
    Translator(torch.compile(translator.model), tokenizer).save(tmp_path)
    again = Translator.from_pretrained(tmp_path)
    assert again.translate(["ein satz"]) == translator.translate(["ein satz"])
