"""What chapter 26 shows of runs that take minutes: `python experiments/26_own_task.py`, a few minutes on one core.

Three seeds each, and within a comparison equal steps and equal batches:

- French to English, from nothing and from the shipped German-English translator;
- the shipped translator fine-tuned on 200 messages of PostgreSQL, plainly and with remedies;
- the kind of a text, and lost capitals: from tokens alone, and with one layer of attention;
- Marian's architecture at random weights, computed by Hugging Face and by this library.
"""

import random
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from resumable import Results

from transformer_lib.attention import padding_mask
from transformer_lib.checkpoint import average_weights
from transformer_lib.convert import from_marian, marian_name
from transformer_lib.decoding import beam_search, greedy_decode
from transformer_lib.embeddings import SinusoidalPositionalEncoding, TokenEmbedding
from transformer_lib.evaluation import bleu
from transformer_lib.layers import EncoderLayer, LayerNorm
from transformer_lib.pairs import (
    Batch,
    Pair,
    encode_pairs,
    endless_batches,
    load_pairs,
    read_pairs,
    token_batches,
)
from transformer_lib.tokenizer import encode_texts
from transformer_lib.training import TrainingSettings, evaluate_loss, train
from transformer_lib.transformer import Encoder, Transformer, evaluating
from transformer_lib.translator import Translator

SETTINGS: dict[str, Any] = {
    "seeds": [1, 2, 3],
    "french": {"steps": 300, "max_tokens": 1024, "rate": 1e-3, "warmup": 30, "test": 200},
    "adaptation": {"steps": 60, "max_tokens": 256, "rate": 1e-3, "small_rate": 1e-4, "test": 100},
    "tasks": {"steps": 300, "rows": 32, "rate": 5e-3, "d_model": 64},
    "marian": {"rows": 6, "max_new_tokens": 16, "beam_size": 4},
}
CORPORA = Path(str(resources.files("transformer_lib"))) / "corpora"


def fall(rate: float, steps: int, step: int, warmup: int = 10) -> float:
    """The rate of a step: a few steps up, and in a line down to nearly 0."""
    return rate * min(1.0, step / warmup) * (1 - step / (steps + 1))


# French


def french(results: Results) -> None:
    """From nothing, and from the shipped translator: the same model, tokenizer, batches and steps."""
    told = SETTINGS["french"]
    pairs = read_pairs(CORPORA / "fr-en.sample.tsv.gz")
    # pages that the shipped translator has not read in its own training either
    held_out = {page(pair) for split in ("validation", "test") for pair in load_pairs(split)}
    test = [pair for pair in pairs if page(pair) in held_out][: told["test"]]
    rest = [pair for pair in pairs if page(pair) not in held_out]
    for seed in SETTINGS["seeds"]:
        for start in ("from nothing", "from German"):
            if (run := f"french, {start}, seed {seed}") in results:
                continue
            translator = Translator.from_pretrained()
            torch.manual_seed(seed)
            if start == "from nothing":
                model = Transformer(translator.model.config)
                translator = Translator(model, translator.tokenizer)
            model, tokenizer = translator.model, translator.tokenizer
            examples = [x for x in encode_pairs(rest, tokenizer) if max(map(len, x)) < 60]
            held = token_batches(encode_pairs(test, tokenizer), 1024, 0)
            before = evaluate_loss(model, held)
            reports = train(
                model,
                endless_batches(examples, told["max_tokens"], seed),
                settings=TrainingSettings(told["steps"], report_every=told["steps"] // 6),
                rate=lambda step: fall(told["rate"], told["steps"], step, told["warmup"]),
                validation=held,
            )
            losses = [before, *(report.validation_loss for report in reports)]
            results[run] = {
                "steps": [0, *(report.step for report in reports)],
                "loss": losses,
                "bleu": points(translator, test),
            }
            print(run, results[run], flush=True)


def points(translator: Translator, test: list[Pair]) -> float:
    """BLEU of greedy decoding."""
    found = translator.translate([pair.source for pair in test], beam_size=1)
    return bleu(found, [pair.target for pair in test]).score


def page(pair: Pair) -> str:
    """The help page that a pair is from."""
    return pair.origin.partition("#")[0]


# Fine-tuning


def adaptation(results: Results) -> None:
    """Fine-tune on 200 new pairs; what becomes of them, and of the old ones.

    "stopped" is the plain run at that report where the sum of both losses, on sentences held out
    for the choice, is least; "mixed twice" has as many new batches as the plain run has.
    """
    told = SETTINGS["adaptation"]
    messages = read_pairs(CORPORA / "de-en.messages.tsv.gz")
    translator = Translator.from_pretrained()
    model, tokenizer = translator.model, translator.tokenizer
    shipped = {name: x.clone() for name, x in model.state_dict().items()}
    sides = {"new": messages[300 : 300 + told["test"]], "old": load_pairs("test")[: told["test"]]}
    choice = {"new": messages[200:300], "old": load_pairs("validation")[:100]}
    new, old = (encode_pairs(some, tokenizer) for some in (messages[:200], load_pairs("train")))

    def loss(some: list[Pair]) -> float:
        return evaluate_loss(model, token_batches(encode_pairs(some, tokenizer), 1024, 0))

    def judge(run: str, weights: dict[str, Tensor], **more: int) -> None:
        model.load_state_dict(weights)
        found = {
            side: {"loss": loss(some), "bleu": points(translator, some)}
            for side, some in sides.items()
        }
        results[run] = found | more
        print(run, results[run], flush=True)

    if "adaptation, before" not in results:
        judge("adaptation, before", shipped)
    for seed in SETTINGS["seeds"]:
        for recipe in ("small rate", "mixed", "mixed twice", "plain"):
            if (run := f"adaptation, {recipe}, seed {seed}") in results:
                continue
            model.load_state_dict(shipped)
            kept: list[tuple[float, int, dict[str, Tensor]]] = []

            def keep(model: nn.Module, kept: list[Any] = kept) -> float:
                state = {name: x.clone() for name, x in model.state_dict().items()}
                kept.append((sum(map(loss, choice.values())), 6 * (len(kept) + 1), state))
                return 0.0

            streams = [endless_batches(some, told["max_tokens"], seed) for some in (new, old)]
            turns = streams if recipe.startswith("mixed") else streams[:1]
            steps = told["steps"] * (2 if recipe == "mixed twice" else 1)
            rate = told["small_rate" if recipe == "small rate" else "rate"]
            torch.manual_seed(seed)
            train(
                model,
                (next(turns[step % len(turns)]) for step in range(steps)),
                settings=TrainingSettings(steps, report_every=6),
                rate=lambda step, rate=rate: rate,
                score=keep if recipe == "plain" else None,
            )
            after = {name: x.clone() for name, x in model.state_dict().items()}
            if recipe == "plain":
                averaged = average_weights([shipped, after])
                judge(f"adaptation, averaged, seed {seed}", averaged)
                _, step, best = min(kept, key=lambda report: report[0])
                judge(f"adaptation, stopped, seed {seed}", best, step=step)
            judge(run, after)


# A class for a text, a tag for a word


class Reader(nn.Module):
    """Token ids to scores of two classes, for each token or for the text; see chapter 26."""

    def __init__(self, vocab_size: int, d_model: int, layers: int, per_token: bool) -> None:
        super().__init__()
        self.per_token = per_token
        self.embedding = TokenEmbedding(vocab_size, d_model)
        self.position = SinusoidalPositionalEncoding(d_model)
        stack = [EncoderLayer(d_model, 4, 2 * d_model, norm_first=True) for _ in range(layers)]
        self.encoder = Encoder(stack, LayerNorm(d_model)) if layers else None
        self.head = nn.Linear(d_model, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) -> (batch, length, 2), or (batch, 2)."""
        x, real = self.embedding(tokens), padding_mask(tokens, 0)
        if self.encoder is not None:
            x = self.encoder(self.position(x), real)
        if not self.per_token:
            weight = real[:, 0, 0, :, None].to(x.dtype)  # (batch, length, 1)
            x = (x * weight).sum(dim=1) / weight.sum(dim=1)
        scores: Tensor = self.head(x)
        return scores


def reading_loss(model: nn.Module, batch: Any, label_smoothing: float) -> tuple[Tensor, int]:
    """Cross-entropy where there is something to be said."""
    tokens, labels = batch
    known = labels >= 0
    return F.cross_entropy(model(tokens)[known], labels[known], reduction="sum"), int(known.sum())


def pad(rows: list[list[int]], filler: int) -> Tensor:
    """Rows of one length."""
    return nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], True, filler)


def batches(data: list[tuple[list[int], Any]], size: int, seed: int) -> Iterator[Any]:
    """Epoch after epoch, rows of similar length together."""
    generator = random.Random(seed)
    while True:
        order = sorted(generator.sample(data, len(data)), key=lambda row: len(row[0]))
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        generator.shuffle(groups)
        for group in groups:
            rows, labels = zip(*group, strict=True)
            tags = pad(labels, -1) if isinstance(labels[0], list) else torch.tensor(labels)
            yield pad(rows, 0), tags


def tasks(results: Results) -> None:
    """Help or interface, and capitals: without attention and with one layer of it."""
    told, tokenizer = SETTINGS["tasks"], Translator.from_pretrained().tokenizer
    pairs = load_pairs("train")
    random.Random(0).shuffle(pairs)

    def tagged(text: str) -> tuple[list[int], list[int]]:
        encoding = tokenizer.encode(text.lower())
        tags = [
            int(text[a + 1].isupper()) if text[a] == " " and text[a + 1 : b][:1].isalpha() else -1
            for a, b in encoding.offsets
        ]
        return encoding.ids, tags

    long = [pair.source for pair in pairs if pair.origin[0] == "h"]
    capitals = [row for row in map(tagged, long[:13_000]) if max(row[1]) >= 0]
    kinds = {
        kind: [p.source for p in pairs if p.origin[0] == kind and len(p.source.split()) > 3]
        for kind in "hu"
    }
    few = min(map(len, kinds.values()))
    texts = [(text, label) for label, kind in enumerate("hu") for text in kinds[kind][:few]]
    random.Random(1).shuffle(texts)
    rows = encode_texts(tokenizer, [text for text, _ in texts])
    kind_data = [(row, label) for row, (_, label) in zip(rows, texts, strict=True)]
    for seed in SETTINGS["seeds"]:
        for task, data in (("capitals", capitals), ("kind of text", kind_data)):
            for layers in (0, 1):
                if (run := f"{task}, {layers} layers, seed {seed}") in results:
                    continue
                torch.manual_seed(seed)
                model = Reader(
                    tokenizer.get_vocab_size(), told["d_model"], layers, task == "capitals"
                )
                train(
                    model,
                    batches(data[1000:], told["rows"], seed),
                    reading_loss,
                    settings=TrainingSettings(told["steps"], label_smoothing=0.0),
                    optimizer=torch.optim.Adam(model.parameters()),
                    rate=lambda step: fall(told["rate"], told["steps"], step),
                )
                right = total = 0
                with torch.no_grad(), evaluating(model):
                    for start in range(0, 1000, 100):
                        tokens, labels = next(batches(data[start : start + 100], 100, 0))
                        known = labels >= 0
                        right += int((model(tokens).argmax(dim=-1) == labels)[known].sum())
                        total += int(known.sum())
                ones = [
                    x
                    for _, tags in data[:1000]
                    for x in (tags if isinstance(tags, list) else [tags])
                    if x >= 0
                ]
                share = sum(ones) / len(ones)
                results[run] = {"right": right / total, "majority": max(share, 1 - share)}
                print(run, results[run])


# Marian


def marian_pair(size: dict[str, int], **config: Any) -> tuple[Any, Transformer]:
    """A Marian model of Hugging Face's with random weights, biases and gains too; and ours of it."""
    from transformers import MarianConfig, MarianMTModel

    pad = config["vocab_size"] - 1
    sides = {f"{side}_{name}": x for side in ("encoder", "decoder") for name, x in size.items()}
    config = MarianConfig(
        **sides,
        **config,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=None,
    )
    theirs = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        theirs.final_logits_bias.normal_()
    return theirs, from_marian(config.to_dict(), theirs.state_dict())


def copies(pad: int, length: int, generator: torch.Generator) -> Batch:
    """Sources of random ids, which are to be copied."""
    words = torch.randint(1, pad, (32, length), generator=generator)
    begin, end = torch.full((32, 1), pad), torch.zeros(32, 1, dtype=torch.int64)
    ended = torch.cat([words, end], dim=1)
    return Batch(ended, torch.cat([begin, words], dim=1), ended, pad)


def marian(results: Results) -> None:
    """The same ids through Hugging Face's code and through ours."""
    told = SETTINGS["marian"]
    small = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
    real = {"layers": 6, "attention_heads": 8, "ffn_dim": 2048}
    models = {
        "trained to copy": (
            small,
            {"vocab_size": 24, "d_model": 32, "max_position_embeddings": 64},
        ),
        "of the real size": (
            real,
            {"vocab_size": 58_101, "d_model": 512, "max_position_embeddings": 512},
        ),
    }
    for name, (size, config) in models.items():
        if (run := f"marian, {name}") in results:
            continue
        torch.manual_seed(1)
        theirs, ours = marian_pair(size, **config)
        pad = config["vocab_size"] - 1
        generator = torch.Generator().manual_seed(1)
        if name == "trained to copy":
            train(
                ours,
                (copies(pad, 3 + step % 6, generator) for step in range(600)),
                settings=TrainingSettings(600, label_smoothing=0.0),
                rate=lambda step: fall(3e-3, 600, step),
            )
            given = dict(theirs.state_dict())
            for mine, weight in ours.state_dict().items():
                given[marian_name(mine)].copy_(weight.view_as(given[marian_name(mine)]))
            theirs.load_state_dict(given)
        source = torch.full((told["rows"], 9), pad)
        for row in range(told["rows"]):
            length = 3 + row
            source[row, :length] = torch.randint(1, pad, (length,), generator=generator)
            source[row, length] = 0
        target = torch.randint(1, pad, (told["rows"], 5), generator=generator)
        target[:, 0] = pad
        real_words = (source != pad).long()
        with torch.no_grad():
            expected = theirs(source, attention_mask=real_words, decoder_input_ids=target).logits
            logits = ours(source, target)
        how = {"max_new_tokens": told["max_new_tokens"], "bad_words_ids": [[pad]]}
        how |= {"attention_mask": real_words, "do_sample": False, "length_penalty": 0.0}
        written = [
            theirs.generate(source, num_beams=beams, **how) for beams in (1, told["beam_size"])
        ]
        most, ends = told["max_new_tokens"], {"bos_id": pad, "eos_id": 0}
        mine = [
            greedy_decode(ours, source, most, **ends),
            [h[0].tokens for h in beam_search(ours, source, most, told["beam_size"], 0.0, **ends)],
        ]
        equal = [
            sum(one == until_end(other, pad) for one, other in zip(some, others, strict=True))
            for some, others in zip(mine, written, strict=True)
        ]
        results[run] = {
            "parameters": sum(p.numel() for p in ours.parameters()),
            "largest": expected[..., :-1].abs().max().item(),
            "apart": (logits - expected)[..., :-1].abs().max().item(),
            "rows": told["rows"],
            "greedy": equal[0],
            "beam": equal[1],
            "lengths": [len(tokens) for tokens in mine[1]],
        }
        print(run, results[run], flush=True)


def until_end(row: Tensor, pad: int) -> list[int]:
    """What Hugging Face has written in a row, without the start, the end and padding."""
    ids = row.tolist()[1:]
    ids = ids[: ids.index(0)] if 0 in ids else ids
    return [token for token in ids if token != pad]


def main() -> None:
    """Run what has not been run yet."""
    results = Results("own_task", "python experiments/26_own_task.py", **SETTINGS)
    tasks(results)
    marian(results)
    french(results)
    adaptation(results)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
