"""What was tried for the translator: variants of half the reader's training in chapter 15, each changed in one way.

    python benchmarks/tried.py                        all variants with seed 1, two at a time, a thread each
    python benchmarks/tried.py --only "dropout 0.1"   one of them

Writes transformer_lib/book/results/tried.json, which chapter 15 shows: scores on the validation pairs, greedy decoding.
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch

from transformer_lib.evaluation import bleu, chrf
from transformer_lib.pairs import Pair, encode_pairs, endless_batches, load_pairs, token_batches
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters
from transformer_lib.translator import Translator

OUTPUT = (
    Path(__file__).resolve().parent.parent / "transformer_lib" / "book" / "results" / "tried.json"
)

# The reader's run, as chapter 15's parameters have it, with half the steps.
BASE: dict[str, Any] = {
    "vocab_size": 2000,
    "d_model": 128,
    "d_ff": 512,
    "layers": 2,
    "dropout": 0.0,
    "norm_first": True,
    "steps": 1200,
    "warmup_steps": 400,
    "cool_down_steps": 800,
    "max_tokens": 512,
    "label_smoothing": 0.1,
    "interface": True,
    "both_directions": False,
    "average": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "the reader's run, half as long": {},
    "vocabulary 1,000": {"vocab_size": 1000},
    "vocabulary 4,000": {"vocab_size": 4000},
    "vocabulary 8,000": {"vocab_size": 8000},
    "dropout 0.1": {"dropout": 0.1},
    "post-norm": {"norm_first": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "no cool-down": {"cool_down_steps": 0},
    "no cool-down, mean of 5 last states": {"cool_down_steps": 0, "average": 5},
    "without the interface's texts": {"interface": False},
    "both directions at once": {"both_directions": True},
    "3 + 3 layers, width 256, a third of the steps": {
        "d_model": 256,
        "layers": 3,
        "steps": 400,
        "warmup_steps": 133,
        "cool_down_steps": 267,
    },
}


def run(name: str, seed: int) -> dict[str, Any]:
    """Train one variant and score it."""
    settings = BASE | VARIANTS[name]
    pairs, held_out = load_pairs("train"), load_pairs("validation")
    if not settings["interface"]:
        pairs = [pair for pair in pairs if not pair.origin.startswith("ui:")]
    texts = [text for pair in pairs for text in pair[:2]]
    tokenizer = train_tokenizer(texts, settings["vocab_size"])
    if settings["both_directions"]:  # a word in front of the source says that German is wanted
        pairs = pairs + [Pair(f"German: {pair.target}", pair.source) for pair in pairs]
    torch.manual_seed(seed)
    model = Transformer(
        TransformerConfig(
            settings["vocab_size"],
            d_model=settings["d_model"],
            num_heads=4,
            d_ff=settings["d_ff"],
            num_encoder_layers=settings["layers"],
            num_decoder_layers=settings["layers"],
            dropout=settings["dropout"],
            norm_first=settings["norm_first"],
        )
    )
    names = ("steps", "warmup_steps", "cool_down_steps", "label_smoothing", "average")
    history = train(
        model,
        endless_batches(encode_pairs(pairs, tokenizer), settings["max_tokens"], seed),
        settings=TrainingSettings(**{key: settings[key] for key in names}, save_every=100),
        validation=token_batches(encode_pairs(held_out, tokenizer), 2048, seed=0),
    )
    hypotheses = Translator(model, tokenizer).translate(
        [pair.source for pair in held_out], beam_size=1
    )
    references = [pair.target for pair in held_out]
    return {
        "name": name,
        "changed": VARIANTS[name],
        "seed": seed,
        "parameters": count_parameters(model),
        "steps": settings["steps"],
        "validation_loss": round(history[-1].validation_loss, 3),
        "bleu": round(bleu(hypotheses, references).score, 2),
        "chrf": round(chrf(hypotheses, references), 2),
    }


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=VARIANTS, action="append", help="run just these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    old = json.loads(OUTPUT.read_text("utf-8"))["runs"] if OUTPUT.exists() else []
    names = options.only or list(VARIANTS)
    with multiprocessing.Pool(options.processes, torch.set_num_threads, (1,)) as pool:
        rows = [pool.apply_async(run, (name, options.seed)) for name in names]
        for row in (future.get() for future in rows):
            print(row, flush=True)
            key = (row["name"], row["seed"])
            old = [other for other in old if (other["name"], other["seed"]) != key] + [row]
    order = list(VARIANTS)
    old.sort(key=lambda row: (row["seed"], order.index(row["name"])))
    content = {"command": "python benchmarks/tried.py", "base": BASE, "runs": old}
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
