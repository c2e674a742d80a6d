"""Recurrent translators: without and with attention, and against a Transformer; one of them is shipped.

    python benchmarks/recurrent.py                       all of it, with seeds 1, 2 and 3 (two hours and a half)
    python benchmarks/recurrent.py --part same_steps     chapter 3: without and with attention, for the same steps
    python benchmarks/recurrent.py --part longer         chapter 3: the first seed again, for three times the steps
    python benchmarks/recurrent.py --part same_time      chapter 15: recurrent and Transformer, for the same time
    python benchmarks/recurrent.py --part third_of_time  chapter 15: the same, for a third of it
    python benchmarks/recurrent.py --part shipped        chapter 3: a small one with attention, its weights shipped

Writes transformer_lib/book/results/recurrent.json and transformer_lib/pretrained/recurrent. Scores are on the test
pairs, decoded greedily; BLEU also by the number of words in the source. Time is that of one thread on its processor, so
that a busy machine matters less; a step's is measured in turns.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from translators import CONFIG  # the reader's Transformer of chapter 15

from transformer_lib.checkpoint import write_tensors
from transformer_lib.decoding import greedy_decode
from transformer_lib.evaluation import bleu, chrf
from transformer_lib.pairs import (
    Example,
    Pair,
    encode_pairs,
    endless_batches,
    load_pairs,
    make_batch,
    token_batches,
)
from transformer_lib.recurrent import RecurrentConfig, RecurrentTranslator
from transformer_lib.tokenizer import save_tokenizer, train_tokenizer
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import Transformer, count_parameters

PACKAGE = Path(__file__).resolve().parent.parent / "transformer_lib"
OUTPUT = PACKAGE / "book" / "results" / "recurrent.json"
SHIPPED = PACKAGE / "pretrained" / "recurrent"
VOCAB_SIZE = 2000
# A source of 1 to 7 words, 8 to 10, and so on.
BOUNDS = (1, 8, 11, 14, 17)
PARTS = ("same_steps", "longer", "same_time", "third_of_time", "shipped")
NO_ATTENTION, ATTENTION = "without attention", "with attention"


def translate(model: Any, examples: Sequence[Example], tokenizer: Tokenizer) -> list[str]:
    """Decode greedily, 50 sentences at a time."""
    texts: list[str] = []
    for start in range(0, len(examples), 50):
        source = make_batch(examples[start : start + 50]).source
        if isinstance(model, RecurrentTranslator):
            rows = model.greedy(source, 100)
        else:
            rows = greedy_decode(model, source, 100)
        texts += [tokenizer.decode(row) for row in rows]
    return texts


def score(hypotheses: list[str], pairs: Sequence[Pair]) -> dict[str, Any]:
    """BLEU and chrF, and BLEU for each group of source lengths."""
    references = [pair.target for pair in pairs]
    by_length = []
    for low, beyond in itertools.pairwise((*BOUNDS, 10_000)):
        rows = [i for i, pair in enumerate(pairs) if low <= len(pair.source.split()) < beyond]
        group = bleu([hypotheses[i] for i in rows], [references[i] for i in rows])
        by_length.append({"from": low, "sentences": len(rows), "bleu": round(group.score, 2)})
    return {
        "bleu": round(bleu(hypotheses, references).score, 2),
        "chrf": round(chrf(hypotheses, references), 2),
        "by_length": by_length,
    }


class Trial:
    """The data, and what is done to every model alike."""

    def __init__(self) -> None:
        pairs, self.test = load_pairs("train"), load_pairs("test")
        texts = [text for pair in pairs for text in pair[:2]]
        self.tokenizer = train_tokenizer(texts, VOCAB_SIZE)
        self.examples = encode_pairs(pairs, self.tokenizer)
        self.held_out = encode_pairs(self.test, self.tokenizer)
        self.batches = token_batches(self.held_out, 2048, seed=0)

    def run(self, model: Any, name: str, seed: int, steps: int, max_tokens: int) -> dict[str, Any]:
        """Train and score."""
        settings = TrainingSettings(
            steps,
            warmup_steps=steps // 3,
            cool_down_steps=steps - steps // 3,
            max_norm=1.0 if isinstance(model, RecurrentTranslator) else None,
            report_every=steps,
        )
        batches = endless_batches(self.examples, max_tokens, seed)
        start = time.process_time()
        history = train(model, batches, settings=settings, validation=self.batches)
        seconds = time.process_time() - start
        row = {
            "name": name,
            "seed": seed,
            "parameters": count_parameters(model),
            "steps": steps,
            "max_tokens": max_tokens,
            "seconds": round(seconds),
            "loss": round(history[-1].validation_loss, 3),
        }
        row |= score(translate(model, self.held_out, self.tokenizer), self.test)
        print(row, flush=True)
        return row

    def seconds_a_step(self, models: dict[str, tuple[Any, int]], rounds: int) -> dict[str, float]:
        """Median time of a step, the models taking turns; it trains them a little."""
        times: dict[str, list[float]] = {name: [] for name in models}
        streams = {n: endless_batches(self.examples, size, 0) for n, (_, size) in models.items()}
        settings = TrainingSettings(10, warmup_steps=1000)
        for _ in range(rounds):
            for name, (model, _) in models.items():
                start = time.process_time()
                train(model, itertools.islice(streams[name], 10), settings=settings)
                times[name].append((time.process_time() - start) / 10)
        return {name: sorted(seconds)[rounds // 2] for name, seconds in times.items()}


def same_steps(trial: Trial, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Without and with attention: the same batches, steps and rate."""
    rows = []
    for seed, attention in itertools.product(seeds, (False, True)):
        torch.manual_seed(seed)
        model = RecurrentTranslator(RecurrentConfig(VOCAB_SIZE, 256, attention=attention))
        name = ATTENTION if attention else NO_ATTENTION
        rows.append(trial.run(model, name, seed, steps, max_tokens=2048))
    return rows


def same_time(trial: Trial, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """The reader's Transformer, and a recurrent translator of its size for as long."""

    def models() -> dict[str, tuple[Any, int]]:
        recurrent = RecurrentTranslator(RecurrentConfig(VOCAB_SIZE, 192))
        return {"Transformer": (Transformer(CONFIG), 512), "recurrent": (recurrent, 1024)}

    cost = trial.seconds_a_step(models(), rounds=11)
    taken = {name: round(steps * cost["Transformer"] / cost[name]) for name in cost}
    print({"seconds a step": cost, "steps": taken}, flush=True)
    rows = []
    for seed in seeds:
        torch.manual_seed(seed)
        for name, (model, max_tokens) in models().items():
            rows.append(trial.run(model, name, seed, taken[name], max_tokens))
    return rows


def shipped(trial: Trial) -> None:
    """One of half the width and twice the steps, whose weights are small enough to be shipped, as 16-bit numbers."""
    torch.manual_seed(1)
    model = RecurrentTranslator(RecurrentConfig(VOCAB_SIZE, 128))
    trial.run(model, ATTENTION, seed=1, steps=2400, max_tokens=2048)
    weights = {name: x.half() for name, x in model.state_dict().items()}
    model.load_state_dict(weights)  # the score is that of what is shipped
    scores = score(translate(model, trial.held_out, trial.tokenizer), trial.test)
    SHIPPED.mkdir(parents=True, exist_ok=True)
    save_tokenizer(trial.tokenizer, SHIPPED / "tokenizer.json")
    write_tensors(
        SHIPPED / "weights.safetensors",
        weights,
        config=dataclasses.asdict(model.config),
        command="python benchmarks/recurrent.py --part shipped",
        **scores,
    )
    print(scores, flush=True)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1200, help="of same_steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trial = Trial()
    results = json.loads(OUTPUT.read_text("utf-8")) if OUTPUT.exists() else {}
    results["command"] = "python benchmarks/recurrent.py"
    for part in options.part or PARTS:
        if part == "same_steps":
            results[part] = same_steps(trial, options.seeds, options.steps)
        elif part == "longer":
            results[part] = same_steps(trial, options.seeds[:1], 3 * options.steps)
        elif part == "shipped":
            shipped(trial)
        else:
            results[part] = same_time(trial, options.seeds, 2400 if part == "same_time" else 800)
        OUTPUT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
