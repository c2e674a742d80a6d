"""The rows of chapter 20's table: the Transformer of one small task, each row changed in one way.

`run_row("1 head", seed=1)` trains and scores one; `python -m experiments.20_variations` does them all.
"""

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.convert import UnscaledEmbedding
from transformer_lib.embeddings import LearnedPositionalEncoding
from transformer_lib.evaluation import bleu, bootstrap_interval, chrf
from transformer_lib.layers import DecoderLayer, EncoderLayer
from transformer_lib.pairs import (
    Example,
    Pair,
    encode_pairs,
    endless_batches,
    load_pairs,
    token_batches,
)
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters
from transformer_lib.translator import Translator

VOCAB_SIZE = 2000
LONGEST = 12  # tokens on either side
HELD_OUT = 1000
STEPS = 600
MAX_TOKENS = 512

#: The base of all rows. Pre-norm, since at so few steps post-norm has hardly begun to translate.
BASE = TransformerConfig(
    VOCAB_SIZE,
    128,
    4,
    512,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout=0.1,
    norm_first=True,
)

#: Each row's group in the paper's Table 3, and what it changes: a number of the config, a part, a setting.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("", {}),
    "1 head": ("A", {"num_heads": 1}),
    "2 heads": ("A", {"num_heads": 2}),
    "8 heads": ("A", {"num_heads": 8}),
    "16 heads": ("A", {"num_heads": 16}),
    "d_k 8": ("B", {"key_width": 8}),
    "d_k 16": ("B", {"key_width": 16}),
    "1 layer": ("C", {"num_encoder_layers": 1, "num_decoder_layers": 1}),
    "3 layers": ("C", {"num_encoder_layers": 3, "num_decoder_layers": 3}),
    "d_model 64": ("C", {"d_model": 64}),
    "d_model 256": ("C", {"d_model": 256}),
    "d_ff 256": ("C", {"d_ff": 256}),
    "d_ff 1024": ("C", {"d_ff": 1024}),
    "dropout 0": ("D", {"dropout": 0.0}),
    "dropout 0.2": ("D", {"dropout": 0.2}),
    "label smoothing 0": ("D", {"label_smoothing": 0.0}),
    "label smoothing 0.2": ("D", {"label_smoothing": 0.2}),
    "learned positions": ("E", {"learned_positions": True}),
    "post-norm": ("+", {"norm_first": False}),
    "no weight sharing": ("+", {"shared": False}),
    "no sqrt(d_model)": ("+", {"scaled": False}),
    "no warm-up": ("+", {"warm_up": False}),
    "post-norm, no warm-up": ("+", {"norm_first": False, "warm_up": False}),
    "post-norm, a third of the rate": ("+", {"norm_first": False, "rate_factor": 1 / 3}),
}


class NarrowKeys(MultiHeadAttention):
    """Attention whose queries and keys are narrower than its values (paper, Table 3, row B)."""

    def __init__(self, d_model: int, num_heads: int, key_width: int) -> None:
        super().__init__(d_model, num_heads)
        self.query_projection = nn.Linear(d_model, num_heads * key_width)
        self.key_projection = nn.Linear(d_model, num_heads * key_width)
        for name in ("query_projection", "key_projection", "value_projection", "output_projection"):
            projection: nn.Linear = getattr(self, name)
            nn.init.xavier_uniform_(projection.weight, gain=1.0 if "output" in name else 0.5**0.5)
            nn.init.zeros_(projection.bias)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, length, heads * width) -> (batch, heads, length, width), whatever the width."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))  # (batch, length, heads, width)
        return heads.transpose(1, 2)


def make_model(change: dict[str, Any], seed: int) -> Transformer:
    """The base model with one row's change; its weights are drawn from the seed."""
    torch.manual_seed(seed)
    numbers = {name: value for name, value in change.items() if hasattr(BASE, name)}
    config = replace(BASE, **numbers)
    model = Transformer(config)
    if "key_width" in change:
        sizes = (config.d_model, config.num_heads, change["key_width"])
        for layer in (*model.encoder.layers, *model.decoder.layers):
            assert isinstance(layer, EncoderLayer | DecoderLayer)
            layer.self_attention = NarrowKeys(*sizes)
            if isinstance(layer, DecoderLayer):
                layer.cross_attention = NarrowKeys(*sizes)
    if change.get("learned_positions"):
        learned = LearnedPositionalEncoding(config.d_model, config.max_length)
        model.position = learned  # type: ignore[assignment]
    if not change.get("shared", True):
        model.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(model.output.weight, std=config.d_model**-0.5)  # as the shared one
    if not change.get("scaled", True):
        model.embedding = UnscaledEmbedding(config.vocab_size, config.d_model)
    return model


def load_task() -> tuple[Any, list[Example], list[Pair], list[Example]]:
    """Tokenizer, examples to learn from, and held-out pairs with their examples.

    Short pairs only, on which so small a model learns to translate within a minute. The held-out
    ones are the validation set's short pairs, filled up to 1,000 with pairs of the training set
    whose source no other pair has; those are taken out of it.
    """
    pairs, held_out = load_pairs("train"), load_pairs("validation")
    tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], VOCAB_SIZE)

    def short(chosen: list[Pair]) -> list[tuple[Pair, Example]]:
        both = zip(chosen, encode_pairs(chosen, tokenizer), strict=True)
        return [(p, e) for p, e in both if max(len(e.source), len(e.target)) <= LONGEST]

    learned, kept = short(pairs), short(held_out)
    times: dict[str, int] = {}
    for pair, _ in learned:
        times[pair.source] = times.get(pair.source, 0) + 1
    alone = [item for item in learned if times[item[0].source] == 1]
    more = alone[:: len(alone) // (HELD_OUT - len(kept))][: HELD_OUT - len(kept)]
    taken = {pair.source for pair, _ in more}
    kept += more
    examples = [example for pair, example in learned if pair.source not in taken]
    return tokenizer, examples, [pair for pair, _ in kept], [example for _, example in kept]


def run_row(
    name: str, seed: int, steps: int = STEPS, pairs: int | None = None, task: Any = None
) -> dict[str, Any]:
    """Train one row and score it on the held-out pairs.

    Args:
        name: one of ROWS.
        seed: of the weights, the dropout and the order of the batches.
        steps: how many to take; the schedule is stretched with them.
        pairs: learn from about so many pairs only, evenly chosen; None means all of them.
        task: what load_task gives, if it is there already.
    """
    tokenizer, examples, held_out, held_out_examples = load_task() if task is None else task
    change = ROWS[name][1]
    model = make_model(change, seed)
    warmup = steps // 3
    settings = TrainingSettings(
        steps=steps,
        warmup_steps=warmup,
        cool_down_steps=steps - warmup,
        label_smoothing=change.get("label_smoothing", 0.1),
        report_every=steps,
    )
    d_model = model.config.d_model
    factor: float = change.get("rate_factor", 1.0)

    def rate(step: int) -> float:
        rising = min(1.0, step / warmup)
        warm = 1.0 if change.get("warm_up", True) else rising
        return factor * settings.rate(step, d_model) / warm

    began = time.process_time()
    history = train(
        model,
        endless_batches(examples[:: len(examples) // pairs if pairs else 1], MAX_TOKENS, seed),
        settings=settings,
        rate=rate,
        validation=token_batches(held_out_examples, 2048, seed=0),
    )
    seconds = time.process_time() - began
    references = [pair.target for pair in held_out]
    written = Translator(model, tokenizer).translate([p.source for p in held_out], beam_size=1)
    loss = history[-1].validation_loss
    return {
        "steps": steps,
        "pairs": len(examples) if pairs is None else pairs,
        "parameters": count_parameters(model),
        "tokens": history[-1].tokens,
        "cpu_seconds": round(seconds, 1),
        "train_loss": round(history[-1].train_loss, 4),
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 3),
        "bleu": round(bleu(written, references).score, 2),
        "bleu_interval": [round(x, 2) for x in bootstrap_interval(written, references)],
        "chrf": round(chrf(written, references), 2),
        "first": written[:3],
    }
