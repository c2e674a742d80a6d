"""The two-minute translator: what can a fixed amount of computing buy on the shipped pairs?

python -m experiments.27_speedrun

Every rung of the ladder may compute as much as chapter 15's live run: 2,400 steps of its recipe, which take about 110
seconds on two idle cores. A cheaper token buys more steps. Interrupted, it goes on where it stopped. Writes
transformer_lib/book/results/27_speedrun.json. `make speedrun` trains the last rung once, and prints the ladder.
"""

import argparse
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from experiments.resumable import Results
from transformer_lib.attention import KeyValueCache, MultiHeadAttention, padding_mask
from transformer_lib.evaluation import bleu
from transformer_lib.pairs import (
    Batch,
    Example,
    encode_pairs,
    endless_batches,
    load_pairs,
    token_batches,
)
from transformer_lib.tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer
from transformer_lib.training import TrainingSettings, evaluate_loss, train
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters
from transformer_lib.translator import Translator


@dataclass(frozen=True)
class Recipe:
    """All that makes a run, seed aside; the defaults are chapter 15's live run.

    steps: how many; each recipe has as many as cost what the first one's 2,400 cost.
    max_tokens: a batch's size on either side, padding counted.
    autocast: products in bfloat16, all else in float32.
    half: everything in bfloat16, except for the weights that the optimizer keeps; a direct loss.
    rate: the highest learning rate; None is the paper's, with chapter 15's warm-up and cool-down.
    warm_up, cool_down: shares of the steps in which the rate rises to its peak and falls to 0.
    label_smoothing: as in chapter 14.
    counted: start from counts: which tokens meet in pairs, which follow which, how often each is.
    distance: cross-attention scores each distance of target and source position, at first by
        -0.2 a position: a translation runs beside its source. Learned from there.
    position: how loud the positions are beside the embeddings.
    muon: the learning rate of Muon, for the matrices of the layers; 0 is Adam for them, too.
    """

    steps: int = 2400
    vocab_size: int = 2000
    max_tokens: int = 512
    d_model: int = 128
    d_ff: int = 512
    encoder_layers: int = 2
    decoder_layers: int = 2
    autocast: bool = False
    half: bool = False
    rate: float | None = None
    warm_up: float = 0.1
    cool_down: float = 0.7
    label_smoothing: float = 0.1
    beta_2: float = 0.98
    counted: bool = False
    distance: bool = False
    position: float = 1.0
    muon: float = 0.0


def counts_of(rows: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Which tokens stand in which row: zeros and ones, (rows, vocab_size), sparse."""
    kinds = [sorted(set(row)) for row in rows]
    starts = torch.tensor([0] + [len(row) for row in kinds]).cumsum(0)
    columns = torch.tensor([token for row in kinds for token in row])
    ones, shape = torch.ones(len(columns)), (len(rows), vocab_size)
    with warnings.catch_warnings(action="ignore"):  # torch: sparse rows are in beta state
        return torch.sparse_csr_tensor(starts, columns, ones, shape, check_invariants=False)


def more_than_chance(together: Tensor, discount: float) -> Tensor:
    """How much oftener two tokens meet than by chance, as a logarithm, 0 if they do not: (V, V).

    Of few meetings less is believed.
    """
    rows, columns = together.sum(dim=1), together.sum(dim=0)
    by_chance = torch.outer(rows, columns) / together.sum()
    gain = (together / by_chance.clamp(min=1e-9)).clamp(min=1).log()
    return gain * together / (together + discount)


def meetings(left: Tensor, right: Tensor, size: int) -> Tensor:
    """How often left[i] is one token while right[i] is another: (size, size)."""
    return torch.bincount(left * size + right, minlength=size * size).float().view(size, size)


class Counts(NamedTuple):
    """What counting the pairs tells before any training: vectors of length 1, and log frequencies.

    A product of `source`, `last` or `before` of one token with `output` of another comes near to
    how much oftener than by chance the other is in the translation of the one, or follows it, or
    follows it as the next but one. Each (vocab_size, d_model), frequency (vocab_size,).
    """

    source: Tensor
    last: Tensor
    before: Tensor
    output: Tensor
    frequency: Tensor


def count(examples: Sequence[Example], vocab_size: int, d_model: int) -> Counts:
    """Count, and factor the counts: three tables on the left, one, the output's, on the right."""
    source = counts_of([row[:-1] for row, _ in examples], vocab_size)
    target = counts_of([row for _, row in examples], vocab_size)
    in_pairs = (source.t().to_sparse_csr() @ target).to_dense()  # (source token, target token)
    read = torch.tensor([token for _, row in examples for token in [PAD_ID, BOS_ID, *row]])
    said = torch.tensor([token for _, row in examples for token in [PAD_ID, *row, EOS_ID]])
    inside = said != PAD_ID
    before = read.roll(1)
    follows = meetings(read[inside], said[inside], vocab_size)
    next_but_one = meetings(before[inside], said[inside], vocab_size)
    gains = [more_than_chance(x, 2.0) for x in (in_pairs, follows, next_but_one)]
    left, size, right = torch.svd_lowrank(torch.cat(gains), q=d_model, niter=2)
    turn = nn.init.orthogonal_(torch.empty(d_model, d_model))  # so that no feature is special
    left, right = (F.normalize(x * size.sqrt() @ turn) for x in (left, right))
    frequency = torch.bincount(said[inside], minlength=vocab_size) + 0.1
    return Counts(*left.split(vocab_size), right, (frequency / frequency.sum()).log())


class QuickAttention(MultiHeadAttention):
    """Attention of short sentences: a forbidden key costs a large number, nothing is looked up."""

    distances: Tensor | None  # scores (heads, 65) of the distances -32 to 32
    first = 0  # the position of the first query

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """As MultiHeadAttention's."""
        scores = (query * self.d_k**-0.5) @ key.transpose(-1, -2)  # (batch, heads, queries, keys)
        queries, keys = scores.shape[-2:]
        if is_causal and queries > 1:
            scores = scores + torch.full((queries, keys), -1e4, dtype=scores.dtype).triu(1)
        if attn_mask is not None:
            scores = scores + (attn_mask.to(scores.dtype) - 1) * 1e4
        if self.distances is not None:
            rows = torch.arange(self.first, self.first + queries)
            distance = (torch.arange(keys) - rows[:, None]).clamp(-32, 32)  # (queries, keys)
            scores = scores + self.distances[:, distance + 32]
        return scores.softmax(dim=-1) @ value


class SpeedTransformer(Transformer):
    """Our Transformer with a recipe's parts in it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(
            TransformerConfig(
                recipe.vocab_size,
                d_model=recipe.d_model,
                num_heads=4,
                d_ff=recipe.d_ff,
                num_encoder_layers=recipe.encoder_layers,
                num_decoder_layers=recipe.decoder_layers,
                dropout=0.0,
                norm_first=True,
            )
        )
        self.recipe = recipe
        self.crossing = [layer.cross_attention for layer in self.decoder.layers]
        if recipe.half:
            for part in self.modules():
                if isinstance(part, MultiHeadAttention):
                    part.__class__ = QuickAttention
                    part.distances = None
        if recipe.distance:
            far = torch.arange(-32, 33).abs()
            for attention in self.crossing:
                attention.distances = nn.Parameter(-0.2 * far.repeat(4, 1))
        self.tables: nn.ParameterDict | None = None
        self.bias = nn.Parameter(torch.zeros(recipe.vocab_size)) if recipe.half else None

    @torch.no_grad()
    def start_from(self, counts: Counts) -> None:
        """Begin as a model that knows what counting tells, and nothing else.

        The decoder's stream holds what follows the last two tokens, cross-attention adds what the
        source's tokens translate to, unchanged, and the other sub-layers add nothing yet.
        """
        self.embedding.weight.copy_(counts.output)
        self.bias.copy_(counts.frequency)
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(getattr(counts, name)) for name in ("source", "last", "before")}
        )
        for attention in self.crossing:
            nn.init.eye_(attention.value_projection.weight)
            nn.init.eye_(attention.output_projection.weight)
        for layer in [*self.encoder.layers, *self.decoder.layers]:
            nn.init.zeros_(layer.feed_forward.outer.weight)
            nn.init.zeros_(layer.self_attention.output_projection.weight)

    def project(self, hidden: Tensor) -> Tensor:
        """As Transformer's, with a bias."""
        logits = super().project(hidden)
        return logits if self.bias is None else logits + self.bias

    def placed(self, x: Tensor, first: int = 0) -> Tensor:
        """Vectors of tokens, of length about 1, with their positions (batch, length, d_model)."""
        where = self.position.table[first : first + x.size(1)]  # (length, d_model)
        return x * self.config.d_model**0.5 + where * self.recipe.position

    def encode(self, source: Tensor) -> Tensor:
        """As Transformer's, with a table of its own."""
        if self.tables is None:
            return super().encode(source)
        x = self.placed(F.embedding(source, self.tables["source"]))  # (batch, source, d_model)
        return self.encoder(x, padding_mask(source, self.config.pad_id))

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        source: Tensor | None,
        cache: KeyValueCache | None = None,
        memory_cache: KeyValueCache | None = None,
    ) -> Tensor:
        """As Transformer's, with tables of its own for the last token and the one before it."""
        first = 0 if cache is None else cache.length
        for attention in self.crossing:
            attention.first = first
        if self.tables is None:
            return super().decode(target, memory, source, cache, memory_cache)
        tokens = target[:, None, :, None]  # in a cache they are kept as keys and values are
        if cache is not None:
            tokens = cache.update(self.embedding, lambda: (tokens, tokens))[0]
        before = F.pad(tokens[:, 0, :, 0], (1, 0))[:, -target.size(1) - 1 : -1]
        x = (
            F.embedding(target, self.tables["last"])
            + F.embedding(before, self.tables["before"]) / 2
        )
        x = self.placed(x, first)  # (batch, target, d_model)
        allowed = None if source is None else padding_mask(source, self.config.pad_id)
        hidden = self.decoder(x, memory, None, allowed, cache, memory_cache)
        if cache is not None:
            cache.length += target.size(1)
        return hidden


class _DirectLoss(torch.autograd.Function):
    """Cross-entropy with its gradient written out, 128 rows at a time: p - q, and two products."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
    ) -> Tensor:
        missing = -len(targets) % 128  # rows of zeros that make the last piece full, too
        rows, wanted = F.pad(hidden, (0, 0, 0, missing)), F.pad(targets, (0, missing))[:, None]
        to_rows, to_weight = torch.empty_like(rows), torch.zeros_like(weight)
        to_bias, total = torch.zeros(len(bias)), torch.zeros(())
        even = smoothing / len(weight)  # what smoothing gives to every token
        for start in range(0, len(rows), 128):
            piece, ids = rows[start : start + 128], wanted[start : start + 128]
            real = min(128, len(targets) - start)
            logits = torch.addmm(bias, piece, weight.t())  # (128, vocab_size)
            p = logits.softmax(dim=-1, dtype=torch.float32)
            total -= p.gather(1, ids)[:real].log().sum()
            p -= even
            p.scatter_add_(1, ids, torch.full(ids.shape, smoothing - 1))
            p[real:] = 0.0
            to_bias += p.sum(dim=0)
            p = p.to(hidden.dtype)
            to_rows[start : start + 128] = p @ weight
            to_weight.addmm_(p.t(), piece)
        ctx.save_for_backward(to_rows[: len(targets)], to_weight, to_bias.to(bias.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(x * grad.to(x.dtype) for x in ctx.saved_tensors), None, None)


class Muon:
    """Momentum, made nearly orthogonal: matrices of one shape at once (Jordan et al., 2024).

    Four steps, with the first four polynomials of the Polar Express (Amsel et al., 2025).
    """

    POLYNOMIALS = (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    )

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.groups: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.t()
            self.groups.setdefault(wide.shape, []).append(wide)
        self.momentum = {s: torch.zeros(len(g), *s) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, gradients: dict[int, Tensor], rate: float) -> None:
        """Move each matrix, given the gradients by the matrices' data pointers."""
        for shape, matrices in self.groups.items():
            grads = [gradients[m.data_ptr()] for m in matrices]
            now = torch.stack([g if g.shape == shape else g.t() for g in grads]).float()
            momentum = self.momentum[shape].lerp_(now, 0.05)
            x = F.normalize(now.lerp(momentum, 0.95).flatten(1), dim=1).view_as(now) / 1.01
            x = x.bfloat16()
            for a, b, c in self.POLYNOMIALS:
                square = x @ x.mT
                x = a / 1.01 * x + (b / 1.01**3 * square + c / 1.01**5 * square @ square) @ x
            for matrix, step in zip(matrices, x.float(), strict=True):
                matrix.sub_(step, alpha=rate * (2.0 if shape[0] != shape[1] else 1.0))


def shape_of_rate(step: int, recipe: Recipe) -> float:
    """Up in a line, level, down in a line to almost 0: a factor from 0 to 1."""
    up = step / (recipe.warm_up * recipe.steps)
    down = (1 - (step - 1) / recipe.steps) / recipe.cool_down
    return min(1.0, up, down)


# oneDNN, torch's library for such products, keeps what it has compiled: here room for all of it.
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "20000"


def few_shapes(batch: Batch) -> Batch:
    """Rows and lengths in fours: a product in bfloat16 is compiled once for each shape."""
    rows = max(1, len(batch.source) // 4) * 4

    def even(ids: Tensor) -> Tensor:
        return F.pad(ids[:rows], (0, -ids.size(1) % 4), value=PAD_ID)

    return Batch(even(batch.source), even(batch.target_in), even(batch.target_out))


def learn(model: SpeedTransformer, batches: Iterator[Any], recipe: Recipe) -> None:
    """Train in bfloat16; the optimizers move copies of the weights in float32."""
    began = time.process_time()
    kept = [p.detach().clone() for p in model.parameters()]  # float32
    names = [name for name, _ in model.named_parameters()]
    model.bfloat16()
    weights = list(model.parameters())
    in_layers = [
        recipe.muon > 0
        and p.dim() == 2
        and name.startswith(("encoder", "decoder"))
        and "distances" not in name
        for name, p in zip(names, kept, strict=True)
    ]
    muon = Muon([p for p, inside in zip(kept, in_layers, strict=True) if inside])
    rest = [p.requires_grad_() for p, inside in zip(kept, in_layers, strict=True) if not inside]
    adam = torch.optim.Adam(rest, lr=0.0, betas=(0.9, recipe.beta_2), eps=1e-9, fused=True)
    for step in range(1, recipe.steps + 1):
        batch = few_shapes(next(batches))
        real = batch.target_out != batch.pad_id  # (batch, target)
        targets = batch.target_out[real]  # (real tokens,)
        hidden = model.decode(batch.target_in, model.encode(batch.source), batch.source)[real]
        loss = _DirectLoss.apply(
            hidden, model.embedding.weight, model.bias, targets, recipe.label_smoothing
        )
        (loss / len(targets)).backward()
        factor = shape_of_rate(step, recipe)
        gradients = {}
        for copy, weight, inside in zip(kept, weights, in_layers, strict=True):
            gradients[copy.data_ptr()] = weight.grad
            if not inside:
                copy.grad = weight.grad.float()
            weight.grad = None
        adam.param_groups[0]["lr"] = recipe.rate * factor
        adam.step()
        muon.step(gradients, recipe.muon * factor)
        with torch.no_grad():
            for copy, weight in zip(kept, weights, strict=True):
                weight.copy_(copy)
        if step % 150 == 0:
            print(f"step {step}: {(time.process_time() - began) / step * 1e3:.0f} ms", flush=True)
    model.float()
    with torch.no_grad():
        for copy, weight in zip(kept, model.parameters(), strict=True):
            weight.copy_(copy)


def fit(model: SpeedTransformer, batches: Iterator[Any], recipe: Recipe) -> None:
    """Train a model as its recipe has it: by the library's loop, or in half the bits."""
    if recipe.half:
        learn(model, batches, recipe)
        return
    settings = TrainingSettings(
        recipe.steps,
        warmup_steps=max(1, recipe.steps // 3),
        cool_down_steps=recipe.steps * 2 // 3,
        label_smoothing=recipe.label_smoothing,
        bfloat16=recipe.autocast,
        report_every=max(1, recipe.steps // 8),
    )
    train(model, batches, settings=settings)


def load(vocab_size: int) -> tuple[Tokenizer, list[Example]]:
    """The tokenizer and the training pairs: made before the clock starts, for every rung alike."""
    pairs = load_pairs("train")
    tokenizer = train_tokenizer([text for pair in pairs for text in pair[:2]], vocab_size)
    return tokenizer, encode_pairs(pairs, tokenizer)


def run(
    recipe: Recipe, seed: int, task: tuple[Tokenizer, list[Example]]
) -> tuple[dict[str, Any], Translator]:
    """Train by a recipe; what it cost, and the translator."""
    tokenizer, examples = task
    start, wall = time.process_time(), time.perf_counter()
    torch.manual_seed(seed)
    model = SpeedTransformer(recipe)
    if recipe.counted:
        model.start_from(count(examples, recipe.vocab_size, recipe.d_model))
    fit(model, endless_batches(examples, recipe.max_tokens, seed), recipe)
    cost = {
        "parameters": count_parameters(model),
        "steps": recipe.steps,
        "cpu_seconds": round(time.process_time() - start, 1),
        "seconds": round(time.perf_counter() - wall, 1),
    }
    return cost, Translator(model.eval(), tokenizer)


def score(translator: Translator, split: str) -> dict[str, float]:
    """Loss and BLEU of greedy translations of the validation or the test pairs."""
    pairs = load_pairs(split)
    batches = token_batches(encode_pairs(pairs, translator.tokenizer), max_tokens=2048, seed=0)
    written = translator.translate([pair.source for pair in pairs], beam_size=1)
    points = bleu(written, [pair.target for pair in pairs]).score
    return {"loss": round(evaluate_loss(translator.model, batches), 3), "bleu": round(points, 2)}


class Rung(NamedTuple):
    """One more change, on top of all rungs before it."""

    name: str
    why: str
    recipe: Recipe


def ladder() -> list[Rung]:
    """The records, oldest first. Steps: as many as cost 2,400 of the first (see `measure`)."""
    first = Recipe()
    lean = replace(first, half=True, rate=0.003, warm_up=1 / 3, cool_down=2 / 3, steps=3150)
    large = replace(lean, vocab_size=4000, max_tokens=1024, warm_up=0.1, cool_down=0.7, steps=1720)
    counted = replace(large, counted=True, steps=1670)
    return [
        Rung("the paper's recipe", "chapter 15's live run", first),
        Rung("half the bits", "bfloat16 all through, and the loss's gradient written out", lean),
        Rung("larger pieces", "4,000 tokens, 1,024 a batch: more text for a product", large),
        Rung("count first", "what counting can tell need not be learned by gradients", counted),
    ]


def tried() -> list[Rung]:
    """Changes of the last rung that did not pay."""
    last = ladder()[-1].recipe
    beside = replace(last, distance=True, position=0.25, steps=1580)
    return [
        Rung("start beside", "a translation runs beside its source", beside),
        Rung("Muon", "it costs a seventh of a step", replace(last, muon=0.02, steps=1440)),
    ]


def results() -> Results:
    """What is there by now: read anew each time, since another process may have written."""
    clock = "2,400 steps of the first rung"
    return Results("27_speedrun", "python -m experiments.27_speedrun", clock=clock)


def record(name: str, seed: int) -> None:
    """Run one rung with one seed, if it is not there, and write it down."""
    key = f"{name} | seed {seed}"
    if key in results():
        return
    rung = {rung.name: rung for rung in ladder() + tried()}[name]
    cost, translator = run(rung.recipe, seed, load(rung.recipe.vocab_size))
    row = {"rung": name, "why": rung.why, "seed": seed, "recipe": asdict(rung.recipe), **cost}
    row["validation"] = score(translator, "validation")
    if name in (ladder()[0].name, ladder()[-1].name):  # the others are never shown the test set
        row["test"] = score(translator, "test")
    results()[key] = row
    print(key, row, flush=True)


def measure(rounds: int = 10, seed: int = 1) -> dict[str, Any]:
    """What a step of each rung costs, and what its model knows before the first step.

    The rungs take turns, a few steps each, so that all of them meet the same busy machine. The
    first four rounds are thrown away: in them products are compiled for shapes not met before.
    """
    rungs = ladder() + tried()
    tasks = {size: load(size) for size in {rung.recipe.vocab_size for rung in rungs}}
    measured: dict[str, Any] = {}
    running = {}
    for rung in rungs:
        recipe = rung.recipe
        tokenizer, examples = tasks[recipe.vocab_size]
        torch.manual_seed(seed)
        start = time.process_time()
        model = SpeedTransformer(recipe)
        if recipe.counted:
            model.start_from(count(examples, recipe.vocab_size, recipe.d_model))
        before = time.process_time() - start
        held_out = token_batches(encode_pairs(load_pairs("validation"), tokenizer), 2048, seed=0)
        measured[rung.name] = {
            "tried": rung in tried(),
            "steps": recipe.steps,
            "before": round(before, 1),
            "loss_before": round(evaluate_loss(model, held_out), 3),
            "milliseconds": [],
        }
        # Other batches for each: what one has compiled for their shapes is not another's gain
        running[rung.name] = (
            model,
            endless_batches(examples, recipe.max_tokens, seed + len(running)),
        )
    for number in range(rounds):
        for rung in rungs:
            model, batches = running[rung.name]
            few = replace(rung.recipe, steps=6 if rung.recipe.max_tokens > 512 else 10)
            start = time.process_time()
            fit(model, batches, few)
            if number >= 4:
                spent = (time.process_time() - start) / few.steps
                measured[rung.name]["milliseconds"].append(round(spent * 1e3, 1))
    first = measured[rungs[0].name]["milliseconds"]
    for row in measured.values():
        times = [own / base for own, base in zip(row["milliseconds"], first, strict=True)]
        row["of_the_first"] = round(median(times), 3)
        # In steps of the first rung, of which 2,400 may be spent
        row["spent"] = round(
            row["steps"] * row["of_the_first"] + 1e3 * row["before"] / median(first)
        )
    return measured


def race(seed: int) -> None:
    """Train the last rung once, as fast as this machine can; say how far it came."""
    rung = ladder()[-1]
    task = load(rung.recipe.vocab_size)
    cost, translator = run(rung.recipe, seed, task)
    ours = score(translator, "validation")["bleu"]
    print(
        f"\n{cost['seconds']:.0f} seconds on {torch.get_num_threads()} threads: BLEU {ours:.1f}\n"
    )
    print("validation   steps   rung")
    there = results()
    for rung in ladder():
        rows = [there[key] for key in there.notes["runs"] if key.startswith(f"{rung.name} |")]
        if rows:
            points = sum(row["validation"]["bleu"] for row in rows) / len(rows)
            print(f"{points:10.1f} {rung.recipe.steps:7,d}   {rung.name}: {rung.why}")
    print("\nA better recipe for the same cost? Add a rung to experiments/27_speedrun.py.")


def main() -> None:
    """Run what is not there yet, on one thread; or one rung with one seed; or race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rung", help="run this one alone")
    parser.add_argument("--measure", action="store_true", help="only measure the steps' costs")
    parser.add_argument("--race", action="store_true", help="the last rung on two threads, now")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(2 if options.race else 1)
    if options.race:
        race(options.seed)
        return
    if options.rung:
        record(options.rung, options.seed)
        return
    if "costs" not in results():
        results()["costs"] = measure()
    if options.measure:
        return
    for seed in (1, 2, 3):
        for rung in ladder() + tried():
            record(rung.name, seed)


if __name__ == "__main__":
    main()
