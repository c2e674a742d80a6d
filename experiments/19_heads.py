"""What the heads of translators do, and what is left without them.

    python experiments/19_heads.py

The shipped translator: BLEU and chrF of greedy translations with each head, sub-layer and layer cut, and with more
and more heads cut. Three small translators, which differ in their seed alone: where each kind of head is, the loss with
more and more heads cut, and how attention, gradient times input and deletion rank the source. About 12 minutes on one
core. Writes transformer_lib/book/results/heads.json, which chapter 19 shows.
"""

import random
from collections.abc import Iterable

import torch
from resumable import Results
from tokenizers import Tokenizer
from torch import Tensor

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.evaluation import bleu, chrf
from transformer_lib.inspection import (
    cut_heads,
    cut_sublayers,
    deletion_effect,
    gradient_times_input,
    record_attention,
    score_heads,
)
from transformer_lib.pairs import (
    Example,
    encode_pairs,
    endless_batches,
    load_pairs,
    make_batch,
    token_batches,
)
from transformer_lib.tokenizer import train_tokenizer
from transformer_lib.training import TrainingSettings, evaluate_loss, train
from transformer_lib.transformer import Transformer, TransformerConfig
from transformer_lib.translator import Translator

SENTENCES = 200  # translated, from the validation pairs
CHOOSING = 100  # other validation sentences, on which the order of cutting is chosen
SEEDS = (1, 2, 3)
STEPS, MAX_TOKENS, VOCABULARY = 600, 1024, 2000
Head = tuple[str, int]


def all_heads(model: Transformer) -> list[Head]:
    """Every head of a model: name of its attention, and its number there."""
    parts = model.named_modules()
    attentions = [(name, part) for name, part in parts if isinstance(part, MultiHeadAttention)]
    return [(name, number) for name, part in attentions for number in range(part.num_heads)]


def grouped(heads: Iterable[Head]) -> dict[str, list[int]]:
    """Heads as cut_heads takes them."""
    found: dict[str, list[int]] = {}
    for name, number in heads:
        found.setdefault(name, []).append(number)
    return found


def loss_without(model: Transformer, heads: Iterable[Head], examples: list[Example]) -> float:
    with torch.no_grad(), cut_heads(model, grouped(heads)):
        return evaluate_loss(model, token_batches(examples, 2048, seed=0))


def order_of_need(model: Transformer, examples: list[Example]) -> list[Head]:
    """All heads, the one whose loss hurts least first, each cut alone."""
    return sorted(all_heads(model), key=lambda head: loss_without(model, [head], examples))


def shipped_translator(results: Results) -> None:
    """BLEU and chrF of the shipped translator, cut in every way."""
    translator = Translator.from_pretrained("de-en")
    pairs = load_pairs("validation")
    random.Random(19).shuffle(pairs)
    pairs, others = pairs[:SENTENCES], pairs[SENTENCES : SENTENCES + CHOOSING]
    model, texts = translator.model, [pair.source for pair in pairs]
    references = [pair.target for pair in pairs]
    stacks = (("encoder", model.encoder), ("decoder", model.decoder))
    layers = {
        f"{side}.layers.{n}": layer
        for side, stack in stacks
        for n, layer in enumerate(stack.layers)
    }
    inner = ("self_attention", "cross_attention", "feed_forward")
    sublayers = {
        name: [f"{name}.{part}" for part in inner if hasattr(layer, part)]
        for name, layer in layers.items()
    }
    cuts: dict[str, tuple[list[Head], list[str]]] = {"intact": ([], [])}
    cuts |= {f"{name} {number}": ([(name, number)], []) for name, number in all_heads(model)}
    cuts |= {part: ([], [part]) for parts in sublayers.values() for part in parts}
    cuts |= {name: ([], parts) for name, parts in sublayers.items()}
    cuts["encoder"] = (
        [],
        [part for name, parts in sublayers.items() if "encoder" in name for part in parts],
    )
    if "order" not in results:
        results["order"] = order_of_need(model, encode_pairs(others, translator.tokenizer))
    order = [(name, number) for name, number in results["order"]]
    cuts |= {f"least needed {count}": (order[:count], []) for count in range(2, len(order) + 1, 2)}
    cuts |= {f"most needed {count}": (order[-count:], []) for count in (2, 4, 6, 8)}
    for name, (heads, parts) in cuts.items():
        if name in results:
            continue
        with cut_heads(model, grouped(heads)), cut_sublayers(model, parts):
            written = translator.translate(texts, beam_size=1)
        score = round(bleu(written, references).score, 2)
        results[name] = {"bleu": score, "chrf": round(chrf(written, references), 2)}
        print(f"{name:40s} {score}", flush=True)


def shifted(ids: Tensor, by: int) -> Tensor:
    """True where a key stands `by` tokens after a query, both of them real: (batch, length, length)."""
    length = ids.size(1)
    there = torch.ones(length, length).triu(by).tril(by).bool()
    real = ids != 0
    return there & real[:, None] & real[:, :, None]


def ranks(values: Tensor) -> Tensor:
    return values.argsort(dim=-1).argsort(dim=-1).float()


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's, of each row."""
    return torch.stack(
        [
            torch.corrcoef(torch.stack(pair))[0, 1]
            for pair in zip(ranks(one), ranks(other), strict=True)
        ]
    )


def explained(model: Transformer, examples: list[Example], seed: int) -> dict[str, float]:
    """Mean rank correlation of each two ways to say which source tokens mattered for a target token."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {}
    for example in examples:
        batch = make_batch([example])
        with torch.no_grad(), record_attention(model) as weights:
            model(batch.source, batch.target_in)
        cross = [w[0] for name, w in weights.items() if "cross" in name]  # (heads, target, source)
        with torch.no_grad():
            deletion = deletion_effect(model, batch)
        measures = {
            "attention": torch.cat(cross).mean(dim=0)[:, :-1],  # (target, source) without <eos>
            "gradient times input": gradient_times_input(model, batch)[:, :-1].abs(),
            "deletion": deletion[:, :-1].abs(),
        }
        order = torch.randperm(len(example.source) - 1, generator=generator)
        measures["shuffled attention"] = measures["attention"][:, order]
        names = list(measures)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                rows = rank_correlation(measures[one], measures[other])
                found.setdefault(f"{one}, {other}", []).append(rows)
    return {pair: round(torch.cat(rows).mean().item(), 3) for pair, rows in found.items()}


def small_translators(results: Results) -> None:
    """Three of them, another seed each: jobs of the heads, cutting, explaining."""
    pairs, held_out = load_pairs("train"), load_pairs("validation")
    random.Random(19).shuffle(held_out)
    tokenizer: Tokenizer | None = None
    for seed in SEEDS:
        if f"small {seed}" in results:
            continue
        if tokenizer is None:
            tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], VOCABULARY)
        torch.manual_seed(seed)
        model = Transformer(
            TransformerConfig(VOCABULARY, 128, 4, 512, 2, 2, dropout=0.0, norm_first=True)
        )
        batches = endless_batches(encode_pairs(pairs, tokenizer), MAX_TOKENS, seed)
        settings = TrainingSettings(STEPS, warmup_steps=200, cool_down_steps=400)
        train(model, batches, settings=settings)
        choosing = encode_pairs(held_out[SENTENCES : SENTENCES + CHOOSING], tokenizer)
        judging = encode_pairs(held_out[:CHOOSING], tokenizer)
        batch = make_batch(judging)
        with torch.no_grad(), record_attention(model) as weights:
            model(batch.source, batch.target_in)
        previous = {
            name: score_heads(w, shifted(batch.source, -1)).tolist()
            for name, w in weights.items()
            if name.startswith("encoder")
        }
        order = order_of_need(model, choosing)
        random_order = random.Random(seed).sample(order, len(order))
        curves = {
            name: [
                round(loss_without(model, heads[:count], judging), 4)
                for count in range(0, len(order) + 1, 2)
            ]
            for name, heads in {
                "least needed first": order,
                "random": random_order,
                "most needed first": order[::-1],
            }.items()
        }
        alone = {
            f"{name} {number}": round(loss_without(model, [(name, number)], judging), 4)
            for name, number in order
        }
        some = [example for example in judging if 6 <= len(example.source) <= 25][:40]
        results[f"small {seed}"] = {
            "previous": {name: [round(x, 3) for x in row] for name, row in previous.items()},
            "alone": alone,
            "curves": curves,
            "rank correlation": explained(model, some, seed),
        }
        print(f"small {seed}: loss {curves['random'][0]}", flush=True)


def main() -> None:
    results = Results(
        "heads",
        "python experiments/19_heads.py",
        sentences=SENTENCES,
        choosing=CHOOSING,
        seeds=SEEDS,
        steps=STEPS,
        max_tokens=MAX_TOKENS,
        vocabulary=VOCABULARY,
    )
    shipped_translator(results)
    small_translators(results)


if __name__ == "__main__":
    main()
