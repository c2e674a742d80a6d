"""Ours and torch.nn.Transformer of the same size, on the same batches.

    python benchmarks/translators.py --seeds 1 2 3

Same seeds, same steps, same loss and schedule. Scores are on the test pairs, decoded greedily.
Writes transformer_lib/book/results/translators.json, which chapter 15 shows.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer_lib.attention import padding_mask
from transformer_lib.convert import from_torch
from transformer_lib.embeddings import SinusoidalPositionalEncoding, TokenEmbedding
from transformer_lib.evaluation import bleu, chrf
from transformer_lib.pairs import encode_pairs, endless_batches, load_pairs, token_batches
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import TrainingSettings, train
from transformer_lib.transformer import (
    _DRAWN_AS_ONE,
    Transformer,
    TransformerConfig,
    count_parameters,
)
from transformer_lib.translator import Translator

OUTPUT = (
    Path(__file__).resolve().parent.parent
    / "transformer_lib"
    / "book"
    / "results"
    / "translators.json"
)
CONFIG = TransformerConfig(
    2000,
    d_model=128,
    num_heads=4,
    d_ff=512,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout=0.0,
    norm_first=True,
)


# Ours draws the three matrices as one of shape (3 d_model, d_model), as torch does: what if each is drawn by itself?
ONE_BY_ONE = "ours, query, key and value drawn one by one"


class TorchTranslator(nn.Module):
    """torch.nn.Transformer between our embeddings, with the methods that the loss asks for."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.position = SinusoidalPositionalEncoding(c.d_model, c.max_length)
        self.core = nn.Transformer(
            c.d_model,
            c.num_heads,
            c.num_encoder_layers,
            c.num_decoder_layers,
            c.d_ff,
            c.dropout,
            batch_first=True,
            norm_first=c.norm_first,
        )

    def encode(self, source: Tensor) -> Tensor:
        x = self.position(self.embedding(source))
        return self.core.encoder(x, src_key_padding_mask=source == self.config.pad_id)

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        x = self.position(self.embedding(target))
        future = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        return self.core.decoder(
            x,
            memory,
            tgt_mask=future,
            tgt_is_causal=True,
            memory_key_padding_mask=~padding_mask(source, self.config.pad_id)[:, 0, 0],
        )

    def project(self, hidden: Tensor) -> Tensor:
        return self.embedding.project(hidden)

    def forward(
        self, source: Tensor, target: Tensor, loss: Callable[[nn.Module, Tensor], Tensor]
    ) -> Tensor:
        return loss(self, self.decode(target, self.encode(source), source))

    def as_ours(self) -> Transformer:
        """The same function as a model of our package, to be decoded by it."""
        return from_torch(self.core, self.embedding.weight, self.config.max_length)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", help="train just the translators of this name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs, held_out = load_pairs("train"), load_pairs("test")
    tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], CONFIG.vocab_size)
    examples = encode_pairs(pairs, tokenizer)
    held_out_batches = token_batches(encode_pairs(held_out, tokenizer), 2048, seed=0)
    references = [pair.target for pair in held_out]
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        models: dict[str, Any] = {"ours": Transformer(CONFIG)}
        torch.manual_seed(seed)
        models["torch.nn.Transformer"] = TorchTranslator(CONFIG)
        torch.manual_seed(seed)
        models[ONE_BY_ONE] = Transformer(CONFIG)
        with torch.no_grad():
            for name, parameter in models[ONE_BY_ONE].named_parameters():
                if name.split(".")[-2] in _DRAWN_AS_ONE:
                    parameter *= 2**0.5
        for name, model in models.items():
            if options.only and name not in options.only:
                continue
            history = train(
                model,
                endless_batches(examples, 512, seed),
                settings=TrainingSettings(
                    options.steps,
                    warmup_steps=options.steps // 3,
                    cool_down_steps=2 * options.steps // 3,
                    report_every=options.steps,
                ),
                validation=held_out_batches,
            )
            sources = [pair.source for pair in held_out]
            ours = model.as_ours() if isinstance(model, TorchTranslator) else model
            hypotheses = Translator(ours.eval(), tokenizer).translate(sources, beam_size=1)
            rows.append(
                {
                    "name": name,
                    "seed": seed,
                    "parameters": count_parameters(model),
                    "steps": options.steps,
                    "loss": round(history[-1].validation_loss, 3),
                    "bleu": round(bleu(hypotheses, references).score, 2),
                    "chrf": round(chrf(hypotheses, references), 2),
                }
            )
            print(rows[-1], flush=True)
    if options.only is None:
        command = f"python benchmarks/translators.py --seeds {' '.join(map(str, options.seeds))}"
        OUTPUT.write_text(json.dumps({"command": command, "runs": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
