"""Chapter 19: scores, cuts, pruning, the stream, the lens, deletion and gradients; the exercises."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention, padding_mask
from transformer_lib.book.checks import chapter_19
from transformer_lib.inspection import (
    cut_heads,
    cut_sublayers,
    deletion_effect,
    gradient_times_input,
    logit_lens,
    prune_heads,
    record_attention,
    record_stream,
    score_heads,
)
from transformer_lib.pairs import Batch, Example, make_batch
from transformer_lib.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(20, 16, 4, 24, 2, 2, dropout=0.0, norm_first=True, max_length=32)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(CONFIG).eval()
    for name, parameter in made.named_parameters():
        if "projection.bias" in name:
            nn.init.normal_(parameter)
    return made


@pytest.fixture
def batch() -> Batch:
    return make_batch([Example([5, 6, 7, 8, 2], [9, 10, 11]), Example([5, 9, 2], [12])])


def test_a_score_is_the_share_of_the_wanted_keys_over_the_asking_queries() -> None:
    weights = torch.rand(2, 3, 4, 5).softmax(dim=-1)
    wanted = torch.rand(2, 4, 5) > 0.5
    wanted[1, 2] = False
    by_hand = [
        [
            weights[b, h, q][wanted[b, q]].sum()
            for b in range(2)
            for q in range(4)
            if wanted[b, q].any()
        ]
        for h in range(3)
    ]
    expected = torch.tensor([sum(rows) / len(rows) for rows in by_hand])
    torch.testing.assert_close(score_heads(weights, wanted), expected)


@pytest.mark.parametrize(
    "wanted",
    [torch.ones(4, 5).bool(), torch.ones(2, 4, 5), torch.zeros(2, 4, 5).bool()],
)
def test_a_rule_of_another_shape_or_type_or_for_nothing_is_refused(wanted: Tensor) -> None:
    with pytest.raises(ValueError, match="wanted must be boolean"):
        score_heads(torch.rand(2, 3, 4, 5), wanted)


def test_a_cut_head_writes_nothing_and_comes_back(model: Transformer, batch: Batch) -> None:
    before = model(batch.source, batch.target_in)
    name = "decoder.layers.1.cross_attention"
    with cut_heads(model, {name: [1, 3]}):
        cut = model(batch.source, batch.target_in)
    attention = model.get_submodule(name)
    weight = attention.output_projection.weight
    with torch.no_grad():
        kept = weight.clone()
        weight[:, 4:8] = 0.0
        weight[:, 12:16] = 0.0
        by_weights = model(batch.source, batch.target_in)
        weight.copy_(kept)
    torch.testing.assert_close(cut, by_weights)
    assert not torch.allclose(cut, before, atol=1e-3)
    assert torch.equal(model(batch.source, batch.target_in), before)


def test_hooks_are_gone_after_an_error(model: Transformer, batch: Batch) -> None:
    before = model(batch.source, batch.target_in)
    name = "encoder.layers.0.self_attention"
    for manager in (
        cut_heads(model, {name: [0]}),
        cut_sublayers(model, [name]),
        record_stream(model),
    ):
        with pytest.raises(KeyError), manager:
            raise KeyError
    with pytest.raises(ValueError, match="head must be int from 0 to 3, got 4"):  # noqa: SIM117
        with cut_heads(model, {"decoder.layers.0.self_attention": [1], name: [4]}):
            pass
    assert torch.equal(model(batch.source, batch.target_in), before)


def test_a_layer_without_sublayers_is_its_residual(model: Transformer, batch: Batch) -> None:
    parts = [
        f"encoder.layers.{n}.{part}" for n in (0, 1) for part in ("self_attention", "feed_forward")
    ]
    with cut_sublayers(model, parts):
        memory = model.encode(batch.source)
    torch.testing.assert_close(memory, model.encoder.norm(model.embed(batch.source)))


def test_pruned_equals_cut_and_leaves_the_original_alone() -> None:
    for bias, heads in ((True, [0, 2]), (False, [3])):
        attention, x = MultiHeadAttention(16, 4, bias=bias), torch.randn(2, 5, 16)
        pruned = prune_heads(attention, heads)
        with cut_heads(attention, {"": heads}):
            cut = attention(x, x, x, is_causal=True)
        torch.testing.assert_close(pruned(x, x, x, is_causal=True), cut)
        left = 4 - len(heads)
        assert pruned.query_projection.weight.shape == (4 * left, 16)
        assert pruned.output_projection.weight.shape == (16, 4 * left)
        assert attention.num_heads == 4
        assert attention.query_projection.weight.shape == (16, 16)
    with pytest.raises(ValueError, match="heads_left"):
        prune_heads(MultiHeadAttention(16, 4), range(4))
    with pytest.raises(ValueError, match="head must be"):
        prune_heads(MultiHeadAttention(16, 4), [-1])


def test_a_model_with_pruned_heads_decodes_as_it_reads(model: Transformer, batch: Batch) -> None:
    layer = model.encoder.layers[0]
    with cut_heads(model, {"encoder.layers.0.self_attention": [1]}):
        expected = model(batch.source, batch.target_in)
    layer.self_attention = prune_heads(layer.self_attention, [1])
    torch.testing.assert_close(model(batch.source, batch.target_in), expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_last_look_through_the_lens_is_the_model(norm_first: bool, batch: Batch) -> None:
    torch.manual_seed(1)
    other = Transformer(TransformerConfig(20, 16, 4, 24, 2, 3, 0.0, norm_first=norm_first)).eval()
    lens = logit_lens(other, batch.source, batch.target_in)
    assert next(iter(lens)) == "embedding"
    assert len(lens) == 1 + 3 * 3
    torch.testing.assert_close(lens["layers.2.residual_3"], other(batch.source, batch.target_in))
    with record_stream(other) as stream:
        memory = other.encode(batch.source)
    if not norm_first:
        assert torch.equal(stream["encoder.layers.1.residual_2"], memory)


def one_sentence() -> Batch:
    return make_batch([Example([5, 6, 7, 8, 2], [9, 10, 11])])


def test_deletion_is_the_loss_of_the_shorter_sentence(model: Transformer, batch: Batch) -> None:
    single = one_sentence()
    with torch.no_grad():
        effect = deletion_effect(model, single)
        assert effect.shape == (4, 5)
        whole, shorter = (
            model(torch.tensor([source]), single.target_in).log_softmax(dim=-1)[0]
            for source in ([5, 6, 7, 8, 2], [5, 6, 8, 2])
        )
    for t, token in enumerate(single.target_out[0].tolist()):
        assert effect[t, 2].item() == pytest.approx((whole - shorter)[t, token].item(), abs=1e-5)
    for measure in (deletion_effect, gradient_times_input):
        with pytest.raises(ValueError, match="sentences 1, now 2"):
            measure(model, batch)


def test_the_gradient_is_the_slope_along_the_embedding(model: Transformer) -> None:
    model.double()
    single, small = one_sentence(), 1e-5
    found = gradient_times_input(model, single)

    def told(scale: float) -> Tensor:
        x = model.embed(single.source)
        x = x - (1 - scale) * torch.eye(5, dtype=x.dtype)[1, :, None] * model.embedding(
            single.source
        )
        memory = model.encoder(x, padding_mask(single.source, 0))
        logits = model.project(model.decode(single.target_in, memory, single.source))
        return logits.log_softmax(dim=-1).gather(-1, single.target_out[..., None])[0, :, 0]

    with torch.no_grad():
        slope = (told(1 + small) - told(1 - small)) / (2 * small)
    torch.testing.assert_close(found[:, 1], slope, atol=1e-6, rtol=1e-4)


def test_recording_works_inside_a_cut(model: Transformer, batch: Batch) -> None:
    with (
        record_attention(model) as weights,
        cut_heads(model, {"encoder.layers.0.self_attention": [0]}),
    ):
        model(batch.source, batch.target_in)
    assert len(weights) == 6


# The checks of the exercises take right answers of any kind, and say what is wrong with others.


def entropy(weights: Tensor) -> Tensor:
    return -torch.xlogy(weights, weights).sum(dim=-1)  # (batch, heads, queries)


def looked_at_by_loops(weights: Tensor, real: Tensor) -> Tensor:
    heads = []
    for h in range(weights.size(1)):
        counts = [
            math.exp(-sum(a * math.log(a) for a in weights[b, h, q].tolist() if a > 0))
            for b in range(weights.size(0))
            for q in range(weights.size(2))
            if real[b, q]
        ]
        heads.append(sum(counts) / len(counts))
    return torch.tensor(heads)


def looked_at_by_clamping(weights: Tensor, real: Tensor) -> Tensor:
    rows = -(weights * weights.clamp(min=1e-12).log()).sum(dim=-1)
    return rows.exp().transpose(0, 1)[:, real].mean(dim=-1)


Links = set[tuple[int, int]]


def aer_by_loop(proposed: Links, sure: Links, possible: Links) -> float:
    good = sum((link in sure) + (link in possible or link in sure) for link in proposed)
    return 1 - good / (len(proposed) + len(sure))


def aer_in_one_line(a: Links, s: Links, p: Links) -> float:
    return 1.0 - (len(a & s) + len(a & (p | s))) / (len(a) + len(s))


Loss = Callable[[Tensor], Tensor]


def gates_by_backward(loss_of: Loss, heads: int) -> Tensor:
    gates = nn.Parameter(torch.ones(heads))
    loss_of(gates).backward()
    assert gates.grad is not None
    return gates.grad.neg()


def gates_by_function(loss_of: Loss, heads: int) -> Tensor:
    gradient: Tensor = torch.autograd.functional.jacobian(loss_of, torch.ones(heads))  # type: ignore[no-untyped-call]
    return -gradient


def gates_from(point: float, sign: float) -> Callable[[Loss, int], Tensor]:
    def attempt(loss_of: Loss, heads: int) -> Tensor:
        gates = torch.full((heads,), point, requires_grad=True)
        loss_of(gates).backward()
        assert gates.grad is not None
        return sign * gates.grad

    return attempt


def gates_one_by_one(loss_of: Loss, heads: int) -> Tensor:
    whole = loss_of(torch.ones(heads))
    return torch.stack([loss_of(1 - row) - whole for row in torch.eye(heads)])


def mixed(of_heads: Tensor) -> Tensor:
    """One layer of rollout."""
    return (of_heads.mean(dim=0) + torch.eye(of_heads.size(-1))) / 2


def rollout_by_recursion(weights: Sequence[Tensor]) -> Tensor:
    *lower, top = weights
    return mixed(top) @ rollout_by_recursion(lower) if lower else mixed(top)


def rollout_at_once(weights: Sequence[Tensor]) -> Tensor:
    layers = [mixed(of_heads) for of_heads in reversed(weights)]
    return torch.linalg.multi_dot(layers) if len(layers) > 1 else layers[0]


def rolled(
    weights: Sequence[Tensor], layer: Callable[[Tensor], Tensor], upward: bool = True
) -> Tensor:
    total = torch.eye(weights[0].size(-1))
    for of_heads in weights:
        total = layer(of_heads) @ total if upward else total @ layer(of_heads)
    return total


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_19.check_tokens_looked_at: [looked_at_by_loops, looked_at_by_clamping],
    chapter_19.check_alignment_error_rate: [aer_by_loop, aer_in_one_line],
    chapter_19.check_gate_estimate: [gates_by_backward, gates_by_function],
    chapter_19.check_rollout: [rollout_by_recursion, rollout_at_once],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_19.check_tokens_looked_at: [
        (lambda w, real: -(w * w.log()).sum(-1).exp().mean(dim=(0, 2)), "NaN"),
        (lambda w, real: entropy(w).mean(dim=(0, 2)), "entropy itself"),
        (lambda w, real: (-entropy(w)).exp().mean(dim=(0, 2)), "sign"),
        (lambda w, real: entropy(w).mean(dim=(0, 2)).exp(), "first the exponential"),
        (lambda w, real: entropy(w).exp().mean(dim=(0, 2)), "padding counts"),
        (lambda w, real: entropy(w).exp(), "should have shape"),
    ],
    chapter_19.check_alignment_error_rate: [
        (lambda a, s, p: 1 - aer_in_one_line(a, s, p), "agreement"),
        (lambda a, s, p: 1 - 2 * len(a & s) / (len(a) + len(s)), r"count A & P"),
        (lambda a, s, p: 1 - 2 * len(a & (p | s)) / (len(a) + len(p | s)), "0.4|denominator"),
        (lambda a, s, p: 1 - (len(a & s) + len(a & p)) / (len(a) + len(s)), "leave the sure"),
        (lambda a, s, p: 1 - len(a & s) / (len(a) + len(s)), "should be 0"),
        (lambda a, s, p: 1 - len(a & s) / len(a), "0.4"),
    ],
    chapter_19.check_gate_estimate: [
        (gates_from(1.0, 1.0), "sign"),
        (gates_from(0.0, -1.0), "all 1"),
        (gates_one_by_one, "all 1|one evaluation"),
        (lambda loss_of, heads: gates_by_backward(loss_of, heads).abs(), "negative rise"),
        (lambda loss_of, heads: gates_by_backward(loss_of, heads).sum(), "should have shape"),
        (lambda loss_of, heads: gates_by_backward(loss_of, heads) / heads, "should be"),
    ],
    chapter_19.check_rollout: [
        (lambda w: rolled(w, lambda x: x.mean(dim=0)), "residual"),
        (lambda w: rolled(w, lambda x: x.mean(dim=0) + torch.eye(3)), "half and half"),
        (lambda w: rolled(w, lambda x: (x.sum(dim=0) + torch.eye(3)) / 2), "take the mean"),
        (lambda w: rolled(w, mixed, upward=False), "order"),
        (lambda w: torch.stack([mixed(x) for x in w]).mean(dim=0), "no mean over layers"),
        (lambda w: rolled(w, lambda x: (x[0] + torch.eye(3)) / 2), "mean over heads"),
    ],
}
