"""The command line: `python -m transformer_lib`."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transformer_lib import __main__ as command_line
from transformer_lib.pairs import encode_pairs, endless_batches, load_pairs
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import Progress, TrainingSettings, train
from transformer_lib.transformer import Transformer, TransformerConfig
from transformer_lib.translator import Translator

PAIRS = load_pairs("validation")[:60]
TOKENIZER = train_tokenizer([text for pair in PAIRS for text in pair[:2]], 400)
EXAMPLES = encode_pairs(PAIRS, TOKENIZER)
CONFIG = TransformerConfig(400, 16, 2, 32, 1, 1, dropout=0.2, norm_first=True)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator that has learned a little, saved."""
    where = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    settings = TrainingSettings(60, warmup_steps=30)
    train(model, endless_batches(EXAMPLES, 256, 0), settings=settings)
    Translator(model, TOKENIZER, {"why": "a test"}).save(where)
    return where


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`python -m transformer_lib` as a process of its own."""
    command = [sys.executable, "-m", "transformer_lib", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, input=stdin, capture_output=True, env=environment)


def test_translate_answers_line_by_line(folder: Path) -> None:
    lines = [pair.source for pair in PAIRS[:3]]
    text = "\n".join([lines[0], "", lines[1], "Wort " * 1500, "", lines[2]])
    stdin = text.encode() + b"\nkaputt \xff\xfe\nEnde ohne Zeilenende"
    done = run("translate", "--model", str(folder), stdin=stdin)
    out = done.stdout.decode().split("\n")
    assert out.pop() == ""
    assert len(out) == 8
    expected = Translator.from_pretrained(folder).translate(lines)
    assert [out[0], out[2], out[5]] == expected
    assert out[1] == out[3] == out[4] == out[6] == ""
    errors = done.stderr.decode()
    assert "line 4 is left empty" in errors
    assert "line 7 is left empty: 'utf-8' codec can't decode" in errors
    assert done.returncode == 1


def test_evaluate_prints_one_json_object(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{p.source}\t{p.target}\n" for p in PAIRS[:5]), "utf-8")
    done = run("evaluate", "--model", str(folder), "--pairs", str(path), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == ["bleu", "chrf", "sentences", "signature", "seconds"]
    assert report["sentences"] == 5
    assert "tok:13a" in report["signature"]


def test_train_resume_and_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{p.source}\t{p.target}\n" for p in PAIRS), "utf-8")
    small = "--vocab-size 400 --d-model 16 --num-heads 2 --d-ff 32 --encoder-layers 1 "
    small += "--decoder-layers 1 --steps 30 --warmup-steps 10 --cool-down-steps 10 "
    small += "--report-every 10 --save-every 10 --max-tokens 256"
    words = ["train", "--pairs", str(pairs), *small.split()]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command_line.main([*words, "--output", str(whole)]) == 0
    assert "step     30" in capsys.readouterr().err

    real = command_line.train

    def train_then_interrupt(model: Transformer, stream: object, **settings: object) -> object:
        def on_report(progress: Progress) -> None:
            if progress.step == 20:
                raise KeyboardInterrupt

        return real(model, stream, **(settings | {"on_report": on_report}))

    monkeypatch.setattr(command_line, "train", train_then_interrupt)
    assert command_line.main([*words, "--output", str(parts)]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(command_line, "train", real)
    assert command_line.main([*words, "--output", str(parts)]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert command_line.main([*words, "--output", str(parts), "--resume"]) == 0
    both = [Translator.from_pretrained(folder) for folder in (whole, parts)]
    assert torch.equal(weights(both[0].model), weights(both[1].model))

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hallo\n")))
    assert command_line.main(["translate", "--model", str(parts)]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--model", "nowhere"], "nowhere is no translator"),
        (["evaluate", "--pairs", "nowhere.tsv"], "No such file"),
        (["train", "--output", "x", "--resume"], "nothing to resume"),
        (["train", "--output", "x", "--d-model", "10", "--num-heads", "3"], "not divisible"),
        (["translate", "--model", "nowhere"], "nowhere is no translator"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.main(words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "a command that fails leaves nothing behind"


@pytest.mark.parametrize("command", ["train", "translate", "evaluate"])
def test_help_reads_well(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "usage: python -m transformer_lib" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for option in ("--beam-size", "--model") if command != "train" else ("--resume", "--steps"):
        assert option in text
