"""`python -m transformer_lib`: train, translate, evaluate."""

import argparse
import inspect
import io
import json
import os
import platform
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn
from tqdm import tqdm

from transformer_lib.checkpoint import locked, read_tensors
from transformer_lib.door import check_numbers
from transformer_lib.evaluation import bleu, chrf
from transformer_lib.pairs import (
    encode_pairs,
    endless_batches,
    load_pairs,
    read_pairs,
    token_batches,
)
from transformer_lib.parallel import data_parallel, joined, place, share
from transformer_lib.tokenizer import encode_texts, load_tokenizer, train_tokenizer
from transformer_lib.training import Progress, TrainingSettings, train
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters
from transformer_lib.translator import Translator

Option = tuple[Any, Any, str]  # its type, what holds if it is not given, and what it is


def _options(thing: Any, defaults: dict[str, Any]) -> dict[str, Option]:
    """Options out of what a dataclass takes, in the words of its docstring."""
    text, kinds = inspect.getdoc(thing) or "", get_type_hints(thing)
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.+(?:\n {8}.+)*)", text, re.MULTILINE)
    texts = {
        name: " ".join(words.split()).rstrip(".")
        for names, words in entries
        for name in names.split(", ")
    }
    return {name: (kinds[name], default, texts.get(name, "")) for name, default in defaults.items()}


PAIRS = "a file with a pair a line, source and target divided by a tab, .gz or not; without it, the"
# For an hour or two on a laptop: chapter 15 says why these and not the paper's.
SIZES = asdict(TransformerConfig(4000, 256, 4, 512, 3, 3, norm_first=True))
RECIPE = asdict(TrainingSettings(10_000, 1000, report_every=250, save_every=250))
del SIZES["pad_id"]  # which is no option
DEVICE = {"device": (str, "cpu", "where to compute: cpu, cuda, cuda:1, mps, ...")}
TRAIN: dict[str, Option] = {
    "config": (str, None, "a TOML file with options, such as `d-model = 256`; those here win"),
    "output": (str, None, "the folder for the translator, its checkpoint and its log"),
    "pairs": (str, None, f"{PAIRS} German-English pairs shipped"),
    "validation": (str, None, "held-out pairs, in the same form"),
    "tokenizer": (str, None, "a tokenizer's file, or a translator's folder; else a new one"),
    "resume": (bool, False, "go on with the training in the output folder"),
    **DEVICE,
    "seed": (int, 1, "of weights, dropout and batches"),
    "max_tokens": (int, 1024, "tokens that a batch has at most on a side"),
    "bleu_sentences": (int, 100, "validation pairs to translate at each report; 0 for none"),
    **_options(TransformerConfig, SIZES),
    **_options(TrainingSettings, RECIPE),
}
TRANSLATE: dict[str, Option] = {
    "model": (str, "de-en", "de-en, or a folder that train has written"),
    **DEVICE,
    "beam_size": (int, 4, "translations in the running at a time; 1 is greedy decoding"),
    "length_penalty": (float, 0.6, "alpha of the beam search, from 0 to 10"),
    "batch_size": (int, 32, "sentences at once, as long as they are short"),
}
EVALUATE: dict[str, Option] = {
    "pairs": (str, None, f"{PAIRS} test pairs shipped"),
    **TRANSLATE,
    "json": (bool, False, "print one JSON object"),
}
NAMES = {name: f"--{name.replace('_', '-')}" for name in TRAIN | EVALUATE}


def _words(kind: Any) -> dict[str, Any]:
    """The words that an option of some type takes, and what they stand for."""
    kinds = get_args(kind) or (kind,)
    words: dict[str, Any] = {"auto": "auto"} if {bool, str} <= {*kinds} else {}
    words |= {"yes": True, "no": False} if bool in kinds else {}
    return words | ({"none": None} if type(None) in kinds else {})


def _value(kind: Any, word: str) -> Any:
    """A word of the command line as what an option's type says."""
    words, numbers = _words(kind), {int, float} & {kind, *get_args(kind)}
    if word in words or (kind is str and word.strip()):
        return words.get(word, word)
    for number in numbers:
        with suppress(ValueError):
            if abs(value := number(word)) < 2**31:  # neither infinite nor NaN
                return value
    wanted = " or ".join([*words, *(f"{x.__name__} between -2^31 and 2^31" for x in numbers)])
    raise argparse.ArgumentTypeError(f"needs {wanted or 'a name'}, got {word!r}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)  # one line, without the usage


def _versions() -> str:
    """What a report of a fault needs."""
    packages = ("transformer-piece-by-piece", "torch", "numpy", "tokenizers", "safetensors")
    lines = [f"{name} {version(name)}" for name in packages]
    return "\n".join([*lines, f"python {platform.python_version()}, {platform.platform()}"])


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands train, translate and evaluate, and their options."""
    parser = _Parser(prog="python -m transformer_lib", description="Train, use and score.")
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (_, options, about) in COMMANDS.items():
        added = commands.add_parser(command, help=about, description=about, allow_abbrev=False)
        for name, (kind, default, text) in options.items():
            words = _words(kind)
            shown = next((word for word, x in words.items() if x is default), default)
            added.add_argument(
                NAMES[name],
                type=partial(_value, kind),
                default=default,
                help=text + ("" if shown is None else f" (default: {shown})"),
                nargs="?" if "yes" in words else None,
                const="yes" if "yes" in words else None,  # the option alone
                metavar="|".join(words) if "yes" in words else None,
            )
    return parser


def _read_config(file: str) -> list[str]:
    """Options of train from a TOML file, named as here or with underscores, as words."""
    try:
        content = tomllib.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is no TOML: {error}") from None
    found = []
    for key, value in content.items():
        if (name := key.replace("-", "_")) not in TRAIN.keys() - {"config"}:
            raise ValueError(f"{file}: there is no option {key}")
        kind, is_text = TRAIN[name][0], isinstance(value, str)
        if is_text != (kind is str or (is_text and value in _words(kind))):
            raise ValueError(f"{file}: {key} has a value of the wrong type, {value!r}")
        found.append(f"{NAMES[name]}={('no', 'yes')[value] if isinstance(value, bool) else value}")
    return found


def _device(name: str) -> torch.device:
    try:
        torch.zeros(1, device=name).item()
    except Exception:  # each kind of device that is missing fails in its own way
        raise ValueError(f"there is no device {name!r} here") from None
    return torch.device(name)


@contextmanager
def _reserved(folder: Path, resume: bool) -> Iterator[Path]:
    """A folder that no other training writes to meanwhile; one that stays empty goes again."""
    if place()[0]:  # of several processes the first sees to it
        yield folder / "checkpoint.safetensors"
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    checkpoint, weights = folder / "checkpoint.safetensors", folder / "weights.safetensors"
    try:
        with locked(folder / "log.jsonl"):
            if resume and not checkpoint.exists():
                raise ValueError(f"there is nothing to resume: no file {checkpoint}")
            if checkpoint.exists() and not resume:
                raise ValueError(f"{folder} holds a training already; --resume goes on with it")
            if weights.exists() and not resume:
                raise ValueError(f"{folder} holds a translator already; choose another folder")
            yield checkpoint
    finally:
        with suppress(OSError):
            for path in new:
                path.rmdir()


def _train(options: argparse.Namespace) -> int:
    told = vars(options)
    settings = TrainingSettings(**{name: told[name] for name in RECIPE})
    config = TransformerConfig(**{name: told[name] for name in SIZES})
    check_numbers(int, 1, max_tokens=options.max_tokens)
    check_numbers(int, 0, seed=options.seed, bleu_sentences=options.bleu_sentences)
    if options.output is None:
        raise ValueError("train needs an --output")
    folder = Path(options.output)
    with joined(_device(options.device)) as device, _reserved(folder, options.resume) as checkpoint:
        first = place()[0] == 0
        files = {"train": options.pairs, "validation": options.validation}
        if options.pairs and not options.validation:
            del files["validation"]  # the shipped pairs are another's
        pairs = {key: read_pairs(file) if file else load_pairs(key) for key, file in files.items()}
        if options.tokenizer is None:
            texts = [text for pair in pairs["train"] for text in pair[:2]]
            tokenizer = train_tokenizer(texts, options.vocab_size)
        elif Path(options.tokenizer).is_dir():
            tokenizer = Translator.from_pretrained(options.tokenizer).tokenizer
        else:
            tokenizer = load_tokenizer(options.tokenizer)
        most = min(config.max_length, options.max_tokens)
        examples = {key: encode_pairs(some, tokenizer) for key, some in pairs.items()}
        for key, some in examples.items():
            for number, (source, target) in enumerate(some, start=1):
                if (length := max(len(source), len(target) + 1)) > most:
                    where = files[key] or f"the {key} pairs shipped"
                    limit = "max_length" if most == config.max_length else "max_tokens"
                    raise ValueError(f"{where}, line {number}: {length} tokens, {limit} is {most}")
        torch.manual_seed(options.seed)
        model = Transformer(replace(config, vocab_size=tokenizer.get_vocab_size())).to(device)
        translator = Translator(model, tokenizer, {"options": told, "history": []})
        held_out = examples.get("validation", [])
        batches = token_batches(held_out, options.max_tokens, seed=0) if held_out else ()
        scored = pairs.get("validation", [])[: options.bleu_sentences]

        def score(model: nn.Module) -> float:
            found = translator.translate([pair.source for pair in scored], beam_size=1)
            return bleu(found, [pair.target for pair in scored]).score

        def keep(report: Progress) -> None:
            if not first:
                return
            said = f"step {report.step:6d}  train {report.train_loss:.3f}"
            said += f"  validation {report.validation_loss:.3f}" if batches else ""
            tqdm.write(said + (f"  BLEU {report.score:.2f}" if scored else ""), file=sys.stderr)
            plain = {name: x if x == x else None for name, x in asdict(report).items()}  # no NaN
            translator.training["history"].append(plain)
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                print(json.dumps(plain), file=log)

        if first:
            (folder / "log.jsonl").unlink(missing_ok=True)
        earlier = read_tensors(checkpoint)[1].get("notes", {}) if options.resume else {}
        for report in earlier.get("reports", []):  # those after the last save come again
            keep(Progress(**report))
        stream = endless_batches(examples["train"], options.max_tokens, options.seed)
        how: Any = {"validation": batches, "on_report": keep, "score": score if scored else None}
        try:
            total, hidden = settings.steps * settings.accumulate, None if first else True
            with tqdm(stream, total=total, disable=hidden) as counted:
                how |= {"loss": share(), "settings": settings, "checkpoint": checkpoint}
                train(data_parallel(model), counted, **how)
        except KeyboardInterrupt:
            said = "--resume goes on" if checkpoint.exists() else "nothing was saved yet"
            raise KeyboardInterrupt(said) from None
        if first:
            translator.save(folder)
            print(f"{count_parameters(model):,} parameters are in {folder}", file=sys.stderr)
    return 0


def _translator(options: argparse.Namespace) -> tuple[Translator, tuple[int, float, int]]:
    check_numbers(int, 1, beam_size=options.beam_size, batch_size=options.batch_size)
    check_numbers(float, 0, 100, length_penalty=options.length_penalty)
    translator = Translator.from_pretrained(options.model)
    translator.model.to(_device(options.device))
    return translator, (options.beam_size, options.length_penalty, options.batch_size)


def _translate(options: argparse.Namespace) -> int:
    translator, search = _translator(options)
    positions = translator.model.config.max_length
    lines_in = sys.stdin.buffer if sys.stdin else io.BytesIO()  # None: closed
    at_once = 1 if lines_in.isatty() else options.batch_size  # a person waits for the answer
    numbered, failed = enumerate(lines_in, start=1), 0
    while lines := list(islice(numbered, at_once)):
        texts = []
        for number, line in lines:
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if (length := len(encode_texts(translator.tokenizer, [text])[0]) + 1) > positions:
                    raise ValueError(f"{length} tokens, the model has {positions} positions")
            except ValueError as error:  # a UnicodeDecodeError is one, too
                failed += 1
                print(f"line {number} is left empty: {error}", file=sys.stderr)
                text = ""
            texts.append(text)
        for translation in translator.translate(texts, *search):
            print(" ".join(translation.splitlines()))  # a line in, a line out
        sys.stdout.flush()
    return 1 if failed else 0


def _evaluate(options: argparse.Namespace) -> int:
    translator, search = _translator(options)
    pairs = read_pairs(options.pairs) if options.pairs else load_pairs("test")
    sources, references, _ = zip(*pairs, strict=True)
    start = time.perf_counter()
    hypotheses, seconds = translator.translate(sources, *search), time.perf_counter() - start
    score = bleu(hypotheses, references)
    report: Any = {"bleu": round(score.score, 2), "chrf": round(chrf(hypotheses, references), 2)}
    report |= {"sentences": len(pairs), "signature": score.signature, "seconds": round(seconds, 1)}
    lines = [f"{name:9} {x}" for name, x in report.items()]
    print(json.dumps(report) if options.json else "\n".join(lines))
    return 0


COMMANDS = {
    "train": (_train, TRAIN, "train on pairs of sentences; stopped, it goes on with --resume"),
    "translate": (_translate, TRANSLATE, "translate standard input, a sentence a line"),
    "evaluate": (_evaluate, EVALUATE, "translate a file of pairs and print BLEU and chrF"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m transformer_lib`, with these words or the process's own; give its exit status.

    1: lines were left empty; 2: anything else is wrong; 130: Ctrl-C; 141: nobody reads the output.

    Raises:
        RuntimeError: if it is a fault of the program, not a lack of memory.
    """
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(encoding="utf-8")  # whatever the locale
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        options = build_parser().parse_args(words)
        if getattr(options, "config", None):
            words[1:1] = _read_config(options.config)  # what comes later wins
            options = build_parser().parse_args(words)
        status = COMMANDS[options.command][0](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # nothing is left to be written at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split()) or "out of memory"
        if isinstance(error, RuntimeError) and "memory" not in said:
            raise
        said = re.sub(r"^\w+(?= must )|\w+_\w+", lambda word: NAMES.get(word[0], word[0]), said)
        print("error:", said, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("interrupted:", *(error.args or ["by Ctrl-C"]), file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
