"""Chapter 15: resuming a training, the Translator, and the command line."""

import io
import json
import os
import signal
import subprocess
import sys
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer_lib import __main__ as command_line
from transformer_lib.decoding import Translator
from transformer_lib.pairs import encode_pairs, load_pairs, make_batch
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import Progress, endless_batches, read_tensors, train, write_tensors
from transformer_lib.transformer import Transformer, TransformerConfig

PAIRS = load_pairs("validation")[:60]
TOKENIZER = train_tokenizer([text for pair in PAIRS for text in pair[:2]], 400)
EXAMPLES = encode_pairs(PAIRS, TOKENIZER)
CONFIG = TransformerConfig(400, 16, 2, 32, 1, 1, dropout=0.2, norm_first=True)


def fresh(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(CONFIG)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def batches(seed: int = 0) -> object:
    return endless_batches(EXAMPLES, 256, seed)


# The loop ----------------------------------------------------------------------------------------


def test_small_batches_accumulate_to_a_large_one() -> None:
    pieces = [make_batch(EXAMPLES[:3]), make_batch(EXAMPLES[3:4]), make_batch(EXAMPLES[4:12])]
    config = TransformerConfig(400, 16, 2, 32, 1, 1, dropout=0.0)
    models = []
    for stream, accumulate in ((pieces, 3), ([make_batch(EXAMPLES[:12])], 1)):
        torch.manual_seed(0)
        models.append(Transformer(config))
        history = train(models[-1], stream, steps=1, warmup_steps=1, accumulate=accumulate)
        assert history[0].target_tokens == sum(len(target) + 1 for _, target in EXAMPLES[:12])
        assert history[0].source_tokens == sum(len(source) for source, _ in EXAMPLES[:12])
    # Adam's first step has the sign of the gradient: compare where the gradient is not tiny.
    difference = (weights(models[0]) - weights(models[1])).abs()
    assert (difference > 1e-4).float().mean() < 0.01, f"{difference.max()}"


def test_too_few_batches_for_the_pieces() -> None:
    with pytest.raises(ValueError, match="only 5 batches for 3 steps of 2"):
        train(fresh(), [make_batch(EXAMPLES[:2])] * 5, steps=3, accumulate=2)


def test_max_norm_shortens_the_gradient() -> None:
    model = fresh()
    train(model, repeat(make_batch(EXAMPLES[:4])), steps=1, max_norm=0.01)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 12, "warmup_steps": 4, "report_every": 5, "save_every": 4}
    settings["validation"] = [make_batch(EXAMPLES[:3])]
    whole = fresh()
    history = train(whole, batches(), **settings)

    class Killed(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 10:
            raise Killed

    path = tmp_path / "c.safetensors"
    for on_report in (stop, lambda progress: None):
        model = fresh()
        try:
            resumed = train(model, batches(), **settings, checkpoint=path, on_report=on_report)
        except Killed:
            assert read_tensors(path)[1]["step"] == 8
    assert torch.equal(weights(whole), weights(model))
    assert [p.train_loss for p in resumed] == [p.train_loss for p in history]
    assert [p.target_tokens for p in resumed] == [p.target_tokens for p in history]
    again = train(fresh(5), batches(), **settings, checkpoint=path)  # finished: nothing to do
    assert again == resumed


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    train(fresh(), batches(), steps=4, checkpoint=path)
    with pytest.raises(ValueError, match="settings"):
        train(fresh(), batches(), steps=5, checkpoint=path)
    with pytest.raises(ValueError, match="other batches"):
        train(fresh(), batches(seed=1), steps=4, checkpoint=path)


KILLED = """
import sys, torch
from tests.chapters.test_15_translator import batches, fresh, weights
from transformer_lib.training import train, write_tensors
model = fresh()
def report(progress):
    print(progress.step, flush=True)
train(model, batches(), steps=200, warmup_steps=50, report_every=1, on_report=report,
      checkpoint=sys.argv[1], save_every=10)
write_tensors(sys.argv[1] + ".end", {"weights": weights(model)})
"""


def test_a_training_that_is_killed_ends_the_same(tmp_path: Path) -> None:
    """200 steps = about 100, a real SIGKILL, and the rest: identical weights."""
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / name)]
        return subprocess.Popen(
            command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True
        )

    killed = start("killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) >= 107:
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    assert killed.returncode == -signal.SIGKILL
    assert 100 <= read_tensors(tmp_path / "killed")[1]["step"] < 200
    for name in ("killed", "whole"):
        process = start(name)
        process.communicate()
        assert process.returncode == 0
    ends = [read_tensors(tmp_path / f"{name}.end")[0]["weights"] for name in ("killed", "whole")]
    assert torch.equal(*ends)


# The translator ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator that has learned a little, saved."""
    where = tmp_path_factory.mktemp("models") / "tiny"
    model = fresh()
    train(model, batches(), steps=60, warmup_steps=30)
    Translator(model, TOKENIZER, {"why": "a test"}).save(where)
    return where


def test_a_translator_comes_back_the_same(folder: Path) -> None:
    translator = Translator.from_pretrained(folder)
    assert translator.training == {"why": "a test"}
    assert translator.model.config == CONFIG
    assert not translator.model.training
    texts = [pair.source for pair in PAIRS[:7]]
    assert translator.translate(texts) == Translator.from_pretrained(folder).translate(texts)


def test_translations_keep_order_and_do_not_depend_on_the_batch(folder: Path) -> None:
    translator = Translator.from_pretrained(folder)
    texts = [pair.source for pair in PAIRS[:9]] + ["", "   "]
    for beam_size in (1, 3):
        together = translator.translate(texts, beam_size=beam_size)
        for batch_size in (1, 4):
            assert translator.translate(texts, beam_size, batch_size=batch_size) == together
        assert together[-2:] == ["", ""]
    assert translator.translate([]) == []


def test_half_precision_halves_the_file(folder: Path, tmp_path: Path) -> None:
    translator = Translator.from_pretrained(folder)
    translator.save(tmp_path / "half", torch.float16)
    sizes = [(f / "weights.safetensors").stat().st_size for f in (folder, tmp_path / "half")]
    assert sizes[1] < 0.75 * sizes[0]
    half = Translator.from_pretrained(tmp_path / "half")
    assert half.model.embedding.weight.dtype == torch.float32
    torch.testing.assert_close(weights(half.model), weights(translator.model), atol=1e-3, rtol=1e-3)


def test_a_translator_refuses(folder: Path, tmp_path: Path) -> None:
    translator = Translator.from_pretrained(folder)
    with pytest.raises(ValueError, match="list of texts"):
        translator.translate("Ein Satz.")
    with pytest.raises(ValueError, match="got 0 and 32"):
        translator.translate(["a"], beam_size=0)
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens, the model has 1024 positions"):
        translator.translate(["a", "Wort " * 1500])
    with pytest.raises(ValueError, match="400 tokens, the model's vocabulary 500"):
        Translator(Transformer(TransformerConfig(500, 16, 2, 32, 1, 1)), TOKENIZER)
    with pytest.raises(ValueError, match="nowhere is no translator: there is no file"):
        Translator.from_pretrained("nowhere")


def test_the_wrong_vocabulary_is_noticed(folder: Path, tmp_path: Path) -> None:
    other = train_tokenizer([pair.target for pair in PAIRS], 400)
    translator = Translator.from_pretrained(folder)
    translator.save(tmp_path / "mixed")
    other.save(str(tmp_path / "mixed" / "tokenizer.json"))
    with pytest.raises(ValueError, match="another vocabulary"):
        Translator.from_pretrained(tmp_path / "mixed")
    tensors, _ = read_tensors(folder / "weights.safetensors")
    translator.save(tmp_path / "bare")
    write_tensors(tmp_path / "bare" / "weights.safetensors", tensors)
    with pytest.raises(ValueError, match="another vocabulary"):
        Translator.from_pretrained(tmp_path / "bare")


def test_the_shipped_translator_is_what_its_notes_say() -> None:
    """The score that the notes claim is recomputed from the weights in chapter 15 and here."""
    from transformer_lib.evaluation import bleu, chrf

    translator = Translator.from_pretrained()
    claimed = translator.training["scores"]["test"]
    pairs = load_pairs("test")
    found = translator.translate([pair.source for pair in pairs])
    wanted = [pair.target for pair in pairs]
    assert bleu(found, wanted).score == pytest.approx(claimed["bleu"], abs=0.3)
    assert chrf(found, wanted) == pytest.approx(claimed["chrf"], abs=0.3)


# The command line --------------------------------------------------------------------------------


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
