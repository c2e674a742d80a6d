"""`python -m transformer_lib`: what it does, what it refuses, and what it leaves behind."""

import io
import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer_lib import __main__ as command_line
from transformer_lib.checkpoint import locked
from transformer_lib.evaluation import bleu
from transformer_lib.pairs import load_pairs
from transformer_lib.tokenizer import encode_texts, save_tokenizer, train_tokenizer
from transformer_lib.training import Progress, TrainingSettings
from transformer_lib.transformer import Transformer, TransformerConfig
from transformer_lib.translator import Translator

main = command_line.main
PAIRS = sorted(load_pairs("validation"), key=lambda pair: len(pair.source + pair.target))[:40]
SIZES = "--vocab-size 300 --d-model 16 --num-heads 2 --d-ff 32 --num-encoder-layers 1"
SMALL = f"{SIZES} --num-decoder-layers 1 --warmup-steps 4 --max-tokens 256 --max-length 64 --bleu-sentences 4".split()
Read = Callable[[], tuple[str, str]]


def write_pairs(path: Path, pairs: list[Any] = PAIRS) -> str:
    path.write_text("".join(f"{p[0]}\t{p[1]}\n" for p in pairs), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with pairs.tsv in it."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.tsv")
    return tmp_path


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    """What the command has written since: standard output and standard error."""
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator of random weights, of 64 positions."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair[:2]], 300)
    torch.manual_seed(0)
    config = TransformerConfig(tokenizer.get_vocab_size(), 16, 2, 32, 1, 1, max_length=64)
    Translator(Transformer(config).eval(), tokenizer).save(folder)
    return folder


def say(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def train(*words: str, steps: int = 2) -> int:
    """Train a tiny model on pairs.tsv into x."""
    every = ["--steps", str(steps), "--report-every", "1", "--save-every", "1"]
    return main(["train", "--pairs", "pairs.tsv", "--output", "x", *SMALL, *every, *words])


def refused(read: Read) -> str:
    """The one line that says why."""
    out, line = read()
    assert out == ""
    assert line.startswith("error: ")
    assert line.count("\n") == 1, line
    return line


def weights(folder: str | Path) -> torch.Tensor:
    parameters = Translator.from_pretrained(folder).model.parameters()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def process(*words: str, stdin: bytes = b"", **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "transformer_lib", *words]
    pipe = subprocess.PIPE
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    # A shell that runs the tests in the background has taught them to ignore Ctrl-C.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, preexec_fn=heed)


# Train -------------------------------------------------------------------------------------------


def test_train_translate_evaluate(here: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("--validation", "pairs.tsv", steps=3) == 0
    assert "step      3  train" in read()[1]
    assert {path.name for path in (here / "x").iterdir()} == {
        "checkpoint.safetensors",
        "log.jsonl",
        "weights.safetensors",
    }
    translator = Translator.from_pretrained(here / "x")
    lines = [json.loads(line) for line in (here / "x/log.jsonl").read_text().splitlines()]
    assert lines == translator.training["history"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert translator.training["options"]["d_model"] == 16
    greedy = translator.translate([pair.source for pair in PAIRS[:4]], beam_size=1)
    assert lines[-1]["score"] == bleu(greedy, [pair.target for pair in PAIRS[:4]]).score
    say(monkeypatch, PAIRS[0].source.encode() + b"\n")
    assert main(["translate", "--model", "x"]) == 0
    assert read()[0].rstrip("\n") == " ".join(
        translator.translate([PAIRS[0].source])[0].splitlines()
    )
    write_pairs(here / "few.tsv", PAIRS[:4])
    assert main(["evaluate", "--model", "x", "--pairs", "few.tsv", "--json"]) == 0
    report = json.loads(read()[0])
    assert list(report) == ["bleu", "chrf", "sentences", "signature", "seconds"]
    assert report["sentences"] == 4


def test_defaults_are_valid_and_every_field_has_one() -> None:
    options = vars(command_line.build_parser().parse_args(["train"]))
    config = asdict(TransformerConfig(4000, 256, 4, 512, 3, 3, norm_first=True))
    settings = asdict(TrainingSettings(10_000, 1000, report_every=250, save_every=250))
    del config["pad_id"]
    assert {name: options[name] for name in config} == config
    assert {name: options[name] for name in settings} == settings


def test_every_option_reaches_config_and_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spy(model: Any, batches: Any, **how: Any) -> None:
        seen.update(how, model=model)

    monkeypatch.setattr(command_line, "train", spy)
    config = {"d_model": 8, "num_heads": 4, "d_ff": 12, "num_encoder_layers": 2, "dropout": 0.2}
    config |= {"num_decoder_layers": 3, "attention_dropout": 0.3, "max_length": 300}
    settings = {"steps": 9, "warmup_steps": 8, "cool_down_steps": 7, "label_smoothing": 0.25}
    settings |= {"accumulate": 2, "max_norm": 0.5, "report_every": 3, "save_every": 4}
    settings |= {"average": 2, "patience": 6}
    words = [f"--{k.replace('_', '-')}={x}" for k, x in (config | settings).items()]
    words += ["--norm-first", "--final-norm", "no", "--bfloat16", "auto", "--vocab-size", "280"]
    words += ["--pairs", "pairs.tsv", "--validation", "pairs.tsv", "--output", "x"]
    assert main(["train", *words]) == 0
    found = asdict(seen["model"].config)
    assert found == config | {
        "norm_first": True, "final_norm": False, "pad_id": 0, "vocab_size": 280,
    }  # fmt: skip
    assert asdict(seen["settings"]) == settings | {"bfloat16": "auto"}
    assert len(seen["validation"]) > 0


def test_the_seed_reaches_weights_dropout_and_batches(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    first: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []
    real = command_line.endless_batches

    def batches(examples: Any, max_tokens: int, seed: int) -> Any:
        seeds.append(seed)
        return real(examples, max_tokens, seed)

    def spy(model: Any, batches: Any, **how: Any) -> None:
        first.append(model.embedding.weight.detach().clone())
        drawn.append(torch.rand(4))  # what dropout would have drawn

    monkeypatch.setattr(command_line, "endless_batches", batches)
    monkeypatch.setattr(command_line, "train", spy)
    for folder, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        torch.rand(len(seeds) + 1)  # what came before does not matter
        assert train("--output", folder, "--seed", seed) == 0
    assert seeds == [7, 7, 8]
    for numbers in (first, drawn):
        assert torch.equal(numbers[0], numbers[1])
        assert not torch.equal(numbers[0], numbers[2])


def test_the_validation_split_is_the_one_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(split: str) -> Any:
        asked.append(split)
        return PAIRS

    monkeypatch.setattr(command_line, "load_pairs", load)
    assert main(["train", "--output", "x", *SMALL, "--steps", "1"]) == 0
    assert asked == ["train", "validation"]


def test_early_stopping_keeps_the_best(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 3.0, 2.0, 2.0, 2.0])
    kept: list[torch.Tensor] = []

    class Score:
        score = 0.0

    def fake(found: list[str], wanted: list[str]) -> Score:
        assert (len(found), wanted) == (4, [pair.target for pair in PAIRS[:4]])
        Score.score = next(scores)
        return Score()

    real = command_line.train

    def watch(model: Any, batches: Any, on_report: Any, **how: Any) -> Any:
        def keep(report: Progress) -> None:
            kept.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            on_report(report)

        return real(model, batches, on_report=keep, **how)

    monkeypatch.setattr(command_line, "bleu", fake)
    monkeypatch.setattr(command_line, "train", watch)
    assert train("--validation", "pairs.tsv", "--patience", "2", steps=9) == 0
    assert len(kept) == 4
    assert torch.equal(weights("x"), kept[1])


def test_interrupted_training_goes_on_to_the_same_end(
    here: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--output", "whole", "--save-every", "2", steps=5) == 0
    real = command_line.train

    def interrupt_at(step: int) -> None:
        def interrupted(model: Any, batches: Any, on_report: Any, **how: Any) -> Any:
            def stop(report: Progress) -> None:
                on_report(report)
                if report.step == step:
                    raise KeyboardInterrupt

            return real(model, batches, on_report=stop, **how)

        monkeypatch.setattr(command_line, "train", interrupted)

    interrupt_at(1)
    assert train("--save-every", "2", steps=5) == 130
    assert "nothing was saved yet" in read()[1]
    interrupt_at(3)
    assert train("--save-every", "2", steps=5) == 130
    assert "--resume goes on" in read()[1]
    monkeypatch.setattr(command_line, "train", real)
    assert train("--save-every", "2", steps=5) == 2
    assert "x holds a training already; --resume goes on with it" in refused(read)
    assert train("--save-every", "2", "--resume", steps=5) == 0
    assert torch.equal(weights("whole"), weights("x"))
    logs = [(here / folder / "log.jsonl").read_text().splitlines() for folder in ("whole", "x")]
    steps, losses = (
        [[json.loads(line)[key] for line in log] for log in logs] for key in ("step", "train_loss")
    )
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5]
    assert losses[0] == losses[1]


def test_ctrl_c_before_anything_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("read_pairs", "train"):
        monkeypatch.setattr(command_line, name, interrupt)
        assert train("--output", "a/b") == 130
        assert not (here / "a").exists()
        monkeypatch.undo()
        monkeypatch.chdir(here)


def test_a_translator_is_not_overwritten(here: Path, model_folder: Path, read: Read) -> None:
    before = (model_folder / "weights.safetensors").read_bytes()
    assert train("--output", str(model_folder)) == 2
    assert "holds a translator already" in refused(read)
    assert [path.name for path in model_folder.iterdir()] == ["weights.safetensors"]
    assert (model_folder / "weights.safetensors").read_bytes() == before


def test_a_second_training_on_a_folder_is_refused(here: Path, read: Read) -> None:
    with locked(here / "x" / "log.jsonl"):
        assert train() == 2
        assert "another training is writing to x" in refused(read)
    assert train() == 0


def test_a_tokenizer_of_ones_own(here: Path, model_folder: Path, read: Read) -> None:
    tokenizer = Translator.from_pretrained(model_folder).tokenizer
    save_tokenizer(tokenizer, here / "tokenizer.json")
    for name, given in (("a", "tokenizer.json"), ("b", str(model_folder))):
        assert train("--output", name, "--tokenizer", given) == 0
        assert Translator.from_pretrained(name).tokenizer.to_str() == tokenizer.to_str()
    read()
    for given, message in (("nowhere", "No such file"), ("pairs.tsv", "no tokenizer")):
        assert train("--tokenizer", given) == 2
        assert message in refused(read)


# A file of options -------------------------------------------------------------------------------


def test_options_from_a_file_and_those_in_words_win(here: Path) -> None:
    Path("run.toml").write_text(
        '\ufeffpairs = "pairs.tsv"\noutput = "x"\nd-model = 24\nnum_heads = 2\nvocab-size = 300\n'
        'd_ff = 8\nmax-norm = 1\npatience = "none"\nbfloat16 = false\nsteps = 5\nseed = 3\n',
        encoding="utf-8",
    )
    assert main(["train", "--config", "run.toml", "--steps", "1", "--d-model=16"]) == 0
    told = Translator.from_pretrained("x").training["options"]
    wanted = {"d_model": 16, "num_heads": 2, "d_ff": 8, "steps": 1, "seed": 3, "max_norm": 1.0}
    assert {name: told[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encoder-layers = 3", "run.toml: there is no option encoder-layers"),
        ("[train]\nd_model = 16", "there is no option train"),
        ('config = "other.toml"', "there is no option config"),
        ('d_model = "256"', "--d-model has a value of the wrong type, '256'"),
        ("d-model = 2.5", "--d-model: needs int between -2^31 and 2^31, got '2.5'"),
        ("d_model = true", "--d-model: needs int"),
        ("d_model = [16]", "--d-model: needs int"),
        ("pairs = 5", "pairs has a value of the wrong type, 5"),
        ("resume = 1", "--resume: needs yes or no, got '1'"),
        ('bfloat16 = "perhaps"', "bfloat16 has a value of the wrong type, 'perhaps'"),
        ("dropout = nan", "--dropout: needs float"),
        ("dropout = 1.5", "--dropout must be float from 0 to 1, got 1.5"),
        ("d_model = ", "run.toml is no TOML"),
    ],
)
def test_a_file_of_options_is_refused(here: Path, read: Read, line: str, message: str) -> None:
    Path("run.toml").write_text(line)
    assert main(["train", "--config", "run.toml", "--output", "x"]) == 2
    assert message in refused(read)
    assert not Path("x").exists()


# What is refused, at once ------------------------------------------------------------------------

NUMBERS = [name for name, (kind, *_) in command_line.TRAIN.items() if not {int, float}.isdisjoint(
    {kind, *getattr(kind, "__args__", ())})]  # fmt: skip
MAY_BE_ZERO = {"seed", "bleu_sentences", "cool_down_steps", "label_smoothing"}
MAY_BE_ZERO |= {"dropout", "attention_dropout"}


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", str(2**40), "1e400", "many", ""])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_refused_by_name(here: Path, read: Read, name: str, value: str) -> None:
    if value == "0" and name in MAY_BE_ZERO:
        return
    option = f"--{name.replace('_', '-')}"
    words = ["--pairs", "pairs.tsv", "--output", "a/x"]
    assert main(["train", *words, option, value]) == 2
    line = refused(read)
    assert option in line
    assert (value or "''") in line.replace(".0", "")
    assert not Path("a").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-1", str(2**40)])
@pytest.mark.parametrize("option", ["--beam-size", "--batch-size", "--length-penalty"])
@pytest.mark.parametrize("command", ["translate", "evaluate"])
def test_search_numbers_are_refused_before_reading(
    command: str, option: str, value: str, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(Translator, "from_pretrained", fail)
    monkeypatch.setattr(sys, "stdin", None)
    for wrong in (value, *(["0"] if option != "--length-penalty" else [])):
        assert main([command, option, wrong]) == 2
        line = refused(read)
        assert option in line
        assert wrong in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", ""], "--output: needs a name, got ''"),
        (["--output", "pairs.tsv/x"], "pairs.tsv"),
        (["--output", "/proc/nowhere/x"], "/proc/nowhere"),
        (["--pairs", ""], "--pairs: needs a name, got ''"),
        (["--pairs", "nowhere.tsv"], "nowhere.tsv"),
        (["--pairs", "."], "Is a directory: '.'"),
        (["--validation", ""], "--validation: needs a name"),
        (["--validation", "nowhere.tsv"], "nowhere.tsv"),
        (["--pairs", "bad.tsv"], "bad.tsv, line 2: byte 3 is not UTF-8"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--device", "abacus"], "there is no device 'abacus' here"),
        (["--device", "meta"], "there is no device 'meta' here"),
        (
            ["--d-model", "10", "--num-heads", "3"],
            "--d-model 10 must be even, and divisible by --num",
        ),
        (["--vocab-size", "100"], "--vocab-size must be int from 259 to inf, got 100"),
        (["--patience", "2"], "patience 2 needs validation batches or a score"),
        (["--resume"], "there is nothing to resume: no file a/x/checkpoint.safetensors"),
        (["--encoder-layers", "3"], "unrecognized arguments: --encoder-layers 3"),
        (["--bfloat16", "maybe"], "--bfloat16: needs auto or yes or no, got 'maybe'"),
    ],
)
def test_refusals_name_what_is_wrong_and_leave_nothing(
    here: Path, read: Read, words: list[str], message: str
) -> None:
    Path("bad.tsv").write_bytes(b"ein\tone\nx\t\xff\n")
    assert main(["train", "--pairs", "pairs.tsv", "--output", "a/x", *words]) == 2
    assert message in refused(read)
    assert not Path("a").exists()
    assert sorted(path.name for path in here.iterdir()) == ["bad.tsv", "pairs.tsv"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card here")
@pytest.mark.parametrize("command", ["train", "translate", "evaluate"])
def test_a_device_that_is_not_there_is_refused(here: Path, read: Read, command: str) -> None:
    words = ["--output", "x"] if command == "train" else []
    assert main([command, *words, "--device", "cuda"]) == 2
    assert "there is no device 'cuda' here" in refused(read)


@pytest.mark.parametrize("long", ["source", "target"])
@pytest.mark.parametrize("split", ["--pairs", "--validation"])
@pytest.mark.parametrize("limit", ["--max-length", "--max-tokens"])
def test_a_long_pair_is_named_before_training(
    here: Path, read: Read, long: str, split: str, limit: str
) -> None:
    sides = {"source": "ein", "target": "one"} | {long: "wort " * 300}
    write_pairs(here / "long.tsv", [*PAIRS[:6], tuple(sides.values())])
    other = {"--max-length": "4000", "--max-tokens": "4000"} | {limit: "200"}
    words = [split, "long.tsv", *(word for item in other.items() for word in item)]
    assert train(*words) == 2
    line = refused(read)
    assert "long.tsv, line 7: " in line
    assert f"tokens, {limit} is 200" in line
    assert not Path("x").exists()
    assert train("--max-length", "4000", "--max-tokens", "4000", steps=1) == 0
    read()
    assert train(*words, "--resume") == 2
    assert "long.tsv, line 7" in refused(read)


@pytest.mark.parametrize("command", ["translate", "evaluate"])
@pytest.mark.parametrize(
    ("model", "message"), [("", "--model: needs a name, got ''"), ("nowhere", "is no translator")]
)
def test_a_model_that_is_not_there(command: str, model: str, message: str, read: Read) -> None:
    assert main([command, "--model", model]) == 2
    assert message in refused(read)


@pytest.mark.parametrize("beam_size", ["1", "3"])
@pytest.mark.parametrize("command", ["translate", "evaluate"])
def test_weights_that_are_no_numbers(
    here: Path,
    model_folder: Path,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    beam_size: str,
) -> None:
    translator = Translator.from_pretrained(model_folder)
    with torch.no_grad():
        translator.model.decoder.layers[0].feed_forward.outer.bias[0] = float("nan")
    translator.save("broken")
    say(monkeypatch, b"Hallo\n")
    write_pairs(here / "pairs.tsv", [("Hallo", "Hello")])
    words = ["--pairs", "pairs.tsv"] if command == "evaluate" else []
    assert main([command, "--model", "broken", "--beam-size", beam_size, *words]) == 2
    assert "NaN" in refused(read)


def test_too_little_memory_is_said(here: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 409600000000 bytes"

    def fail(config: TransformerConfig) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(command_line, "Transformer", fail)
    assert train() == 2
    assert message in refused(read)
    assert not Path("x").exists()
    message = "a fault of the program"
    with pytest.raises(RuntimeError, match="a fault"):
        train()


# Translate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["translate", "evaluate"])
def test_search_options_reach_the_translator(
    here: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def translate(
        self: Any, texts: Any, beam_size: int, length_penalty: float, batch_size: int
    ) -> list[str]:
        seen.append((beam_size, length_penalty, batch_size))
        return list(texts)

    # What follows "texts" in the signature are the options.
    monkeypatch.setattr(Translator, "translate", translate)
    say(monkeypatch, b"Hallo\n")
    words = ["--beam-size", "2", "--length-penalty", "1.5", "--batch-size", "7"]
    assert main([command, *words]) == 0
    assert seen == [(2, 1.5, 7)]


def test_translate_answers_line_by_line(
    model_folder: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator.from_pretrained(model_folder)
    lines = ["Datei öffnen", "Klicken Sie auf OK.", "Neue Seite"]
    expected = [" ".join(text.splitlines()) for text in translator.translate(lines)]
    content = f"\ufeff{lines[0]}\r\n\n{lines[1]}\n{'Wort ' * 90}\n".encode()
    content += b"kaputt \xff\nhalb \xed\xa0\x80\n" + lines[2].encode()
    for batch_size in ("1", "32"):
        say(monkeypatch, content)
        words = ["--model", str(model_folder), "--batch-size", batch_size]
        assert main(["translate", *words]) == 1
        out, errors = read()
        assert out.split("\n") == [expected[0], "", expected[1], "", "", "", expected[2], ""]
        assert [line[:6] for line in errors.splitlines()] == ["line 4", "line 5", "line 6"]
        assert "the model has 64 positions" in errors
        assert errors.count("codec can't decode") == 2


def test_composed_and_decomposed_letters_are_the_same(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Wählen Sie die Größe.\n"
    answers = []
    for form in ("NFC", "NFD"):
        say(monkeypatch, unicodedata.normalize(form, text).encode())  # type: ignore[arg-type]
        assert main(["translate", "--beam-size", "1"]) == 0
        answers.append(read()[0])
    assert answers[0] == answers[1]
    assert answers[0].strip()


@pytest.fixture(scope="module")
def arrow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator that says an arrow, whatever it reads."""
    folder = tmp_path_factory.mktemp("models") / "arrow"
    tokenizer = train_tokenizer(["→ “x” ż"] * 9, 300)
    ((arrow, *_),) = encode_texts(tokenizer, ["→"])
    config = TransformerConfig(tokenizer.get_vocab_size(), 16, 2, 16, 1, 1, norm_first=True)
    model = Transformer(config).eval()
    with torch.no_grad():
        norm, wanted = model.decoder.norm, model.embedding.weight[arrow].mul_(9)
        assert norm is not None
        norm.weight.zero_()  # type: ignore[operator, union-attr]
        norm.bias.copy_(wanted)  # type: ignore[operator, union-attr]
    Translator(model, tokenizer).save(folder)
    return folder


def test_output_is_utf_8_whatever_the_locale(arrow_folder: Path) -> None:
    words = ("translate", "--model", str(arrow_folder), "--beam-size", "1")
    runs = [
        process(*words, PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C")
        for encoding in ("utf-8", "cp1252")
    ]
    outs = [run.communicate(b"x\ny\n")[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outs[0] == outs[1]
    assert outs[0].count("→".encode()) > 2
    assert outs[0].count(b"\n") == 2


def test_a_closed_input_is_an_empty_one(
    model_folder: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["translate", "--model", str(model_folder)]) == 0
    assert read() == ("", "")


def test_a_reader_that_goes_away_is_no_error(arrow_folder: Path) -> None:
    run = process("translate", "--model", str(arrow_folder), "--batch-size", "1")
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    run.stdin.write(b"x\n" * 20)
    run.stdin.close()
    assert run.stderr.read() == b""
    assert run.wait() == 141


def test_a_real_ctrl_c_ends_quietly(arrow_folder: Path) -> None:
    run = process("translate", "--model", str(arrow_folder), "--batch-size", "1")
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write(b"x\n")
    run.stdin.flush()
    assert run.stdout.readline()
    run.send_signal(signal.SIGINT)
    assert run.communicate()[1] == b"interrupted: by Ctrl-C\n"
    assert run.returncode == 130


@pytest.mark.parametrize("command", ["train", "translate", "evaluate"])
def test_help_tells_every_option(command: str, read: Read) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = read()[0]
    assert "usage: python -m transformer_lib" in text
    assert all(command_line.NAMES[name] in text for name in command_line.COMMANDS[command][1])
    untold = [name for name, (*_, told) in command_line.COMMANDS[command][1].items() if not told]
    assert untold == [], "the docstring of the dataclass says what a field is"


def test_the_versions_of_what_is_installed_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    number = torch.__version__.split("+")[0]  # how it was built: in the metadata only sometimes
    assert f"torch {number}" in said
    assert "transformer-piece-by-piece " in said
    assert "python 3." in said
