"""A translator that runs in a page: its weights in 8 bits, as scripts that a page loads even from a file.

`python -m transformer_lib.book.in_the_browser MODEL --output FOLDER` writes a folder with a page that translates.
"""

import argparse
import base64
import html
import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from transformer_lib.door import check_same, describe_model
from transformer_lib.transformer import Transformer
from transformer_lib.translator import Translator

LIMIT = 100  # tokens of a text on the page, <eos> counted: more would not be seen in its pictures
PIECE = 720_000  # bytes of weights in a script; divisible by 3, so that base64 leaves no gap
STATIC = resources.files("transformer_lib.book") / "static"


@dataclass(frozen=True)
class EightBits:
    """A matrix: values (rows, columns) of int8, times the scale of their row, (rows,)."""

    values: Tensor
    scale: Tensor


def quantize(weights: Mapping[str, Tensor]) -> dict[str, Tensor | EightBits]:
    """Round each row of a matrix to 255 steps, from -127 to 127; vectors stay as they are.

    Raises:
        ValueError: for weights that are not finite, or have more than two dimensions.
    """
    found: dict[str, Tensor | EightBits] = {}
    for name, weight in weights.items():
        weight = weight.detach().float().cpu()
        if weight.dim() not in (1, 2) or not weight.isfinite().all():
            raise ValueError(
                f"{name} of shape {tuple(weight.shape)} cannot be written in 8 bits: it should be "
                "a finite vector or matrix"
            )
        if weight.dim() == 1:
            found[name] = weight
            continue
        largest = weight.abs().amax(dim=1)  # (rows,)
        scale = torch.where(largest > 0, largest / 127, 1.0)
        found[name] = EightBits((weight / scale[:, None]).round().to(torch.int8), scale)
    return found


def dequantize(quantized: Mapping[str, Tensor | EightBits]) -> dict[str, Tensor]:
    """The weights, in float32, that a page computes with."""
    return {
        name: x.values * x.scale[:, None] if isinstance(x, EightBits) else x
        for name, x in quantized.items()
    }


def in_eight_bits(translator: Translator) -> Translator:
    """A copy whose weights are those that a page computes with."""
    model = deepcopy(translator.model)
    model.load_state_dict(dequantize(quantize(model.state_dict())))
    return Translator(model, deepcopy(translator.tokenizer), translator.training)


def _tokenizer_for_a_page(translator: Translator) -> dict[str, list[str]]:
    """Tokens in the order of their ids, and merges; ValueError for another kind of tokenizer."""
    found = json.loads(translator.tokenizer.to_str())
    model, cut = found["model"], found["pre_tokenizer"] or {}
    kind = {
        "model": model["type"],
        "pre_tokenizer": cut.get("type"),
        "add_prefix_space": cut.get("add_prefix_space"),
        "use_regex": cut.get("use_regex", True),
        "ignore_merges": model.get("ignore_merges", False),
        "post_processor": found["post_processor"],
    }
    known = {
        "model": "BPE",
        "pre_tokenizer": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": True,
        "ignore_merges": False,
        "post_processor": None,
    }
    check_same("a page knows the tokenizers of train_tokenizer only; this one", kind, known)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {"tokens": sorted(model["vocab"], key=model["vocab"].__getitem__), "merges": merges}


def write_scripts(translator: Translator, folder: str | Path) -> int:
    """Write all that a page needs in order to translate, as scripts and a style sheet.

    The page loads translator.js, try.js and try.css; try.js loads model.js and the weights when it
    is asked for a first translation. Browsers let a page that is a file load scripts only.

    Returns:
        The bytes written.

    Raises:
        ValueError: for a model with other parts than the standard ones, another kind of tokenizer,
            or what quantize refuses.
    """
    model = translator.model
    standard = describe_model(Transformer(model.config))
    check_same("a page knows the standard parts only; this model", describe_model(model), standard)
    quantized = quantize(model.state_dict())
    floats, integers, tensors = b"", b"", []
    for name, x in quantized.items():
        values = x.values if isinstance(x, EightBits) else x
        tensors.append([name, list(values.shape)])
        floats += (x.scale if isinstance(x, EightBits) else x).numpy().astype("<f4").tobytes()
        integers += x.values.numpy().tobytes() if isinstance(x, EightBits) else b""
    content = floats + integers
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    about = {
        "config": asdict(model.config),
        "limit": min(LIMIT, model.config.max_length),
        "tensors": tensors,
        "bytes": len(content),
        "pieces": len(pieces),
        **_tokenizer_for_a_page(translator),
    }
    texts = {"model.js": f"tppTry.model({json.dumps(about, ensure_ascii=False)});\n"}
    for number, piece in enumerate(pieces):
        text = base64.b64encode(piece).decode()
        texts[f"weights-{number}.js"] = f'tppTry.weights({number}, "{text}");\n'
    for name in ("translator.js", "try.js", "try.css"):
        texts[name] = (STATIC / name).read_text(encoding="utf-8")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sum(len(text.encode()) for text in texts.values())


def write_page(
    translator: Translator,
    folder: str | Path,
    source: str = "Source",
    target: str = "Translation",
    examples: Sequence[str] = (),
) -> Path:
    """Write a page that translates into a folder, with all that it loads; returns its path.

    Args:
        translator: any of the library's with the standard parts.
        folder: made if it is not there.
        source, target: what the two languages are called.
        examples: texts to be translated by a click.

    Raises:
        ValueError: see write_scripts.
    """
    write_scripts(translator, folder)
    page = (STATIC / "try.html").read_text(encoding="utf-8")
    words = {"SOURCE": source, "TARGET": target, "EXAMPLES": json.dumps(list(examples))}
    for name, text in words.items():
        page = page.replace(f"[{name}]", html.escape(text))
    path = Path(folder) / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 1 after telling what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m transformer_lib.book.in_the_browser")
    parser.description = "Write a folder with a page that translates, by a translator of your own."
    parser.add_argument("model", help="a folder that `train` has written, or de-en")
    parser.add_argument("--output", default="try", help="the folder to write (%(default)s)")
    parser.add_argument("--source", default="Source", help="what the source's language is called")
    parser.add_argument("--target", default="Translation", help="what the target's is called")
    parser.add_argument("--example", action="append", default=[], help="a text to try; repeatable")
    chosen = parser.parse_args(arguments)
    try:
        translator = Translator.from_pretrained(chosen.model)
        names = chosen.source, chosen.target
        path = write_page(translator, chosen.output, *names, chosen.example)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"The page: {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
