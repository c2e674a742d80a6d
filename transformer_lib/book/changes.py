"""What has changed since 2017: chapter 27's rows, each the Transformer of chapter 20's task with one part swapped.

`python -m experiments.27_changes` trains them all; the chapter shows the parts and the recipes.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import (
    AlibiAttention,
    GroupedQueryAttention,
    MultiHeadAttention,
    RotaryAttention,
)
from transformer_lib.book.variations import load_task
from transformer_lib.embeddings import NoPositions
from transformer_lib.layers import FeedForward, GatedFeedForward, RMSNorm
from transformer_lib.pairs import Example, encode_pairs, endless_batches, load_pairs, token_batches
from transformer_lib.training import (
    TrainingSettings,
    backward,
    evaluate_loss,
    make_optimizer,
    train,
    translation_loss,
)
from transformer_lib.transformer import Transformer, TransformerConfig, count_parameters, evaluating

STEPS = 600
MAX_TOKENS = 256

#: The base of all rows: pre-norm, narrow and shallow, and without dropout, since every pair is seen about once.
BASE = TransformerConfig(
    2000, 64, 4, 256, num_encoder_layers=1, num_decoder_layers=1, dropout=0.0, norm_first=True
)
BALANCE = 0.01  # weight of the experts' balance loss (Fedus et al., 2021)


class ActivatedFeedForward(FeedForward):
    """A feed-forward network with another function between its two maps."""

    def __init__(self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(d_model, d_ff)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        output: Tensor = self.outer(self.activation(self.inner(x)))
        return output


def squared_relu(x: Tensor) -> Tensor:
    """max(0, x)^2 (So et al., 2021)."""
    return F.relu(x).square()


class Experts(nn.Module):
    """Several feed-forward networks; a router sends each token to the best few (Shazeer et al., 2017)."""

    def __init__(self, d_model: int, d_ff: int, experts: int = 4, chosen: int = 1) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(d_model, d_ff) for _ in range(experts))
        self.chosen = chosen
        self.balance = torch.zeros(())  # of the last call: 1 if all experts get equally much

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)"""
        tokens = x.flatten(0, -2)  # (tokens, d_model)
        probability = self.router(tokens).softmax(dim=-1)  # (tokens, experts)
        weight, where = probability.topk(self.chosen)  # (tokens, chosen) twice
        if self.chosen > 1:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        output = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            row, rank = (where == index).nonzero(as_tuple=True)  # the tokens that chose it
            output = output.index_add(0, row, weight[row, rank, None] * expert(tokens[row]))
        share = F.one_hot(where, len(self.experts)).float().mean(dim=(0, 1))  # (experts,)
        self.balance = len(self.experts) * (share * probability.mean(dim=0)).sum()
        return output.view(x.shape)


class SoftCapped(Transformer):
    """Logits stay between -30 and 30, smoothly (Gemma 2, 2024)."""

    def project(self, hidden: Tensor) -> Tensor:
        """Vectors (..., d_model) to logits (..., vocab_size)."""
        return 30 * torch.tanh(super().project(hidden) / 30)


class QueryKeyNorm(MultiHeadAttention):
    """Attention that normalizes each head's queries and keys: scores cannot grow with them.

    Henry et al., 2020; with RMSNorm, as in models of today. The arguments are those of the class
    that it is combined with.
    """

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.query_norm, self.key_norm = RMSNorm(self.d_k), RMSNorm(self.d_k)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        query, key = self.query_norm(query), self.key_norm(key)
        return super().attend(query, key, value, attn_mask, is_causal)


class TodaysAttention(QueryKeyNorm, RotaryAttention, GroupedQueryAttention):
    """Three changes at once: each class does its part of `attend` and hands on to the next."""


class NormedGroupedAttention(QueryKeyNorm, GroupedQueryAttention):
    """The same for cross-attention, where a distance between positions says nothing."""


def orthogonalize(x: Tensor) -> Tensor:
    """Five steps of Newton and Schulz: singular values near 1, directions as they were (Jordan, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x if x.size(0) <= x.size(1) else x.mT
    wide = wide / (wide.norm() + 1e-7)  # singular values are at most 1 now
    for _ in range(5):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    step: Tensor = wide if x.size(0) <= x.size(1) else wide.mT
    return step


class Muon(torch.optim.Adam):
    """Orthogonalized momentum for the matrices of both stacks, Adam for all else (Jordan et al., 2024)."""

    def __init__(self, model: Transformer) -> None:
        stacks = [*model.encoder.parameters(), *model.decoder.parameters()]
        matrices = [parameter for parameter in stacks if parameter.dim() == 2]
        known = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in known]
        groups = [{"params": others}, {"params": matrices}]
        super().__init__(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both."""
        group = self.param_groups[1]
        for parameter in group["params"]:
            if parameter.grad is not None:
                kept = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                kept.lerp_(parameter.grad, 0.05)
                update = orthogonalize(parameter.grad.lerp(kept, 0.95))
                as_adam = 0.2 * max(parameter.shape) ** 0.5  # entries as large as Adam's
                parameter.sub_(update, alpha=group["lr"] * as_adam)
                parameter.grad = None  # so Adam leaves it alone
        super().step()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """The paper's Adam, whose matrices also shrink a little at each step (Loshchilov and Hutter, 2019)."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.1, fused=True
    )


def balanced_loss(model: nn.Module, batch: Any, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """translation_loss and, while training, the balance of all Experts, a token."""
    total, count = translation_loss(model, batch, label_smoothing)
    if model.training:
        balances = [part.balance for part in model.modules() if isinstance(part, Experts)]
        total = total + BALANCE * count * torch.stack(balances).sum()
    return total, count


def swap(model: Transformer, suffix: str, make: Callable[[], nn.Module]) -> None:
    """Put a new part wherever a part's name ends so: "norm", "feed_forward", "self_attention"."""
    for name, old in list(model.named_modules()):
        if name.endswith(suffix) and old is not None:
            holder, _, own = name.rpartition(".")
            setattr(model.get_submodule(holder), own, make())


def take_biases(model: nn.Module) -> None:
    """Take the biases of all linear maps and norms away."""
    for part in model.modules():
        if getattr(part, "bias", None) is not None:
            part.register_parameter("bias", None)


def silence(model: Transformer) -> None:
    """Begin with sub-layers that add nothing: their last matrix is zero."""
    for name, parameter in model.named_parameters():
        if name.endswith(("output_projection.weight", "outer.weight")):
            nn.init.zeros_(parameter)


#: Rates as a share of the peak, of the share of training that is done; a third of it is warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "2017": lambda t: min(3 * t, (3 * t) ** -0.5),
    "recipe": lambda t: min(3 * t, (3 * t) ** -0.5 * (1 - t) * 1.5),
    "linear": lambda t: min(3 * t, (1 - t) * 1.5),
    "cosine": lambda t: min(3 * t, 0.5 + 0.5 * math.cos(math.pi * (1.5 * t - 0.5))),
}


@dataclass(frozen=True)
class Recipe:
    """What makes a row: a change of the model, then of how it is trained."""

    change: Callable[[Transformer], None] = lambda model: None
    kind: type[Transformer] = Transformer
    post_norm: bool = False
    begin: Callable[[Transformer], None] = lambda model: None  # after the weights are drawn
    optimizer: Callable[[Transformer], torch.optim.Optimizer] = make_optimizer
    schedule: str = "recipe"
    loss: Callable[..., tuple[Tensor, int]] = translation_loss


D, H, D_FF = BASE.d_model, BASE.num_heads, BASE.d_ff
GATED = round(D_FF * 2 / 3)  # three matrices of it are as large as two of d_ff


def own_positions(kind: Callable[[], nn.Module]) -> Callable[[Transformer], None]:
    """Positions in self-attention instead of at the entrance."""

    def change(model: Transformer) -> None:
        swap(model, "self_attention", kind)
        model.position = NoPositions()  # type: ignore[assignment]

    return change


def todays(model: Transformer) -> None:
    """RMSNorm, SwiGLU, rotary positions, normalized queries and keys, grouped queries, no biases."""
    swap(model, "norm", lambda: RMSNorm(D))
    swap(model, "feed_forward", lambda: GatedFeedForward(D, GATED))
    swap(model, "cross_attention", lambda: NormedGroupedAttention(D, H, 2))
    own_positions(lambda: TodaysAttention(D, H, 2))(model)
    take_biases(model)


ROWS: dict[str, Recipe] = {
    "base": Recipe(),
    "post-norm (2017)": Recipe(post_norm=True),
    "RMSNorm": Recipe(lambda m: swap(m, "norm", lambda: RMSNorm(D))),
    "no biases": Recipe(take_biases),
    "GELU": Recipe(
        lambda m: swap(m, "feed_forward", lambda: ActivatedFeedForward(D, D_FF, F.gelu))
    ),
    "squared ReLU": Recipe(
        lambda m: swap(m, "feed_forward", lambda: ActivatedFeedForward(D, D_FF, squared_relu))
    ),
    "SwiGLU": Recipe(lambda m: swap(m, "feed_forward", lambda: GatedFeedForward(D, GATED))),
    "no positions": Recipe(lambda m: setattr(m, "position", NoPositions())),
    "rotary": Recipe(own_positions(lambda: RotaryAttention(D, H))),
    "ALiBi": Recipe(own_positions(lambda: AlibiAttention(D, H))),
    "grouped queries": Recipe(
        lambda m: swap(m, "_attention", lambda: GroupedQueryAttention(D, H, 2))
    ),
    "query-key norm": Recipe(lambda m: swap(m, "_attention", lambda: QueryKeyNorm(D, H))),
    "soft-capped logits": Recipe(kind=SoftCapped),
    "zero-initialized outputs": Recipe(begin=silence),
    "AdamW": Recipe(optimizer=adamw),
    "Muon": Recipe(optimizer=Muon),
    "no cool-down (2017)": Recipe(schedule="2017"),
    "linear schedule": Recipe(schedule="linear"),
    "cosine schedule": Recipe(schedule="cosine"),
    "1 of 4 experts": Recipe(
        lambda m: swap(m, "feed_forward", lambda: Experts(D, D_FF, 4, 1)), loss=balanced_loss
    ),
    "together, AdamW": Recipe(todays, optimizer=adamw, schedule="cosine"),
    "together, Muon": Recipe(todays, optimizer=Muon, schedule="cosine"),
}


def make_model(name: str, seed: int, config: TransformerConfig = BASE) -> Transformer:
    """One row's model; its weights are drawn from the seed, new parts' in the same way as old ones'."""
    recipe = ROWS[name]
    torch.manual_seed(seed)
    model = recipe.kind(replace(config, norm_first=not recipe.post_norm))
    recipe.change(model)
    for stack in (model.encoder, model.decoder):
        for key, parameter in stack.named_parameters():
            if parameter.dim() > 1:
                of_three = key.split(".")[-2] in (
                    "query_projection",
                    "key_projection",
                    "value_projection",
                )
                nn.init.xavier_uniform_(parameter, gain=0.5**0.5 if of_three else 1.0)
            elif key.endswith("bias"):
                nn.init.zeros_(parameter)
    recipe.begin(model)
    return model


@dataclass
class Task:
    """Short pairs to learn from and to be tested on, and longer ones than any that is learned from."""

    examples: list[Example]
    held_out: list[Any]  # batches
    longer: list[Any]  # batches


def make_task() -> Task:
    """Chapter 20's task, and the validation set's pairs of 13 to 36 target tokens."""
    tokenizer, examples, _, held_out = load_task()
    pairs = encode_pairs(load_pairs("validation"), tokenizer)
    longer = [e for e in pairs if 12 < len(e.target) <= 36 and len(e.source) <= 48]
    return Task(
        examples,
        list(token_batches(held_out, 2048, seed=0)),
        list(token_batches(longer, 2048, seed=0)),
    )


@torch.no_grad()
def loss_by_position(model: Transformer, batches: Iterable[Any]) -> list[float]:
    """Cross-entropy in nats of the target's tokens 1 to 12, 13 to 24 and 25 to 36."""
    total, count = torch.zeros(36), torch.zeros(36)
    with evaluating(model):
        for batch in batches:
            logits = model(batch.source, batch.target_in).transpose(1, 2)
            wanted = batch.target_out[:, :36]
            real = wanted != batch.pad_id  # (batch, target)
            nats = F.cross_entropy(logits[..., :36], wanted, reduction="none") * real
            total[: nats.size(1)] += nats.sum(dim=0)
            count[: nats.size(1)] += real.sum(dim=0)
    return (total.view(3, 12).sum(1) / count.view(3, 12).sum(1)).tolist()


def run_row(name: str, seed: int, steps: int, task: Task) -> dict[str, Any]:
    """Train one row and measure it: the same seed has the same batches in every row."""
    recipe, model = ROWS[name], make_model(name, seed)
    peak = (BASE.d_model * steps / 3) ** -0.5  # the paper's, for a warm-up of a third
    shape = SCHEDULES[recipe.schedule]
    began = time.process_time()
    history = train(
        model,
        endless_batches(task.examples, MAX_TOKENS, seed),
        recipe.loss,
        settings=TrainingSettings(steps, report_every=steps),
        optimizer=recipe.optimizer(model),
        rate=lambda step: peak * shape(min(step, steps - 0.5) / steps),
    )
    seconds = time.process_time() - began
    return {
        "row": name,
        "seed": seed,
        "steps": steps,
        "parameters": count_parameters(model),
        "cpu_seconds": round(seconds, 1),
        "train_loss": round(history[-1].train_loss, 4),
        "loss": round(evaluate_loss(model, task.held_out), 4),
        "longer": [round(x, 4) for x in loss_by_position(model, task.longer)],
    }


def cost_ratios(task: Task, rounds: int = 40) -> dict[str, float]:
    """CPU time of each row's step over the base's: one step of each in turn, the median of all rounds."""
    models = {name: make_model(name, 0).train() for name in ROWS}
    optimizers = {name: ROWS[name].optimizer(model) for name, model in models.items()}
    stream = iter(endless_batches(task.examples, MAX_TOKENS, 0))
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for turn in range(rounds + 2):
        batch, names = next(stream), list(models)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            model = models[name]
            began = time.process_time()
            optimizers[name].zero_grad()
            backward(model, [batch], ROWS[name].loss, 0.1, bfloat16=False)
            optimizers[name].step()
            seconds[name].append(time.process_time() - began)
    return {
        name: round(median(a / b for a, b in zip(found[2:], seconds["base"][2:], strict=True)), 3)
        for name, found in seconds.items()
    }
