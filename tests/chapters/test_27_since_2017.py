"""Chapter 27: the parts against torch and Hugging Face, the rows of the table, the exercises."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import (
    AlibiAttention,
    GroupedQueryAttention,
    MultiHeadAttention,
    RotaryAttention,
    _allowed,
)
from transformer_lib.book import changes
from transformer_lib.book.changes import BASE, ROWS, SCHEDULES, Experts, QueryKeyNorm, make_model
from transformer_lib.book.checks.chapter_27 import (
    check_cache_bytes,
    check_capped_attention,
    check_complex_rotation,
    check_experts,
)
from transformer_lib.decoding import IncrementalDecoder
from transformer_lib.embeddings import rotate
from transformer_lib.layers import FeedForward, GatedFeedForward, RMSNorm
from transformer_lib.pairs import Batch
from transformer_lib.similarity import masked_softmax, scaled_dot_similarity
from transformer_lib.training import evaluate_loss, translation_loss
from transformer_lib.transformer import count_parameters

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])  # (batch, source)
TARGET = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16]])  # (batch, target)


# The parts, against references


def test_rms_norm_is_torchs_and_gives_its_gradients() -> None:
    ours, theirs = RMSNorm(8, eps=1e-3), nn.RMSNorm(8, eps=1e-3)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 8, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.testing.assert_close(ours(x), theirs(y))
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("wrong", [{"d_model": 0}, {"d_model": 8, "eps": 0.0}])
def test_rms_norm_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="d_model|eps"):
        RMSNorm(**wrong)


def test_the_gated_network_is_llamas() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    theirs = LlamaMLP(LlamaConfig(hidden_size=12, intermediate_size=20, num_attention_heads=2))
    ours = GatedFeedForward(12, 20)
    for mine, other in (("gate", "gate_proj"), ("inner", "up_proj"), ("outer", "down_proj")):
        getattr(ours, mine).load_state_dict(getattr(theirs, other).state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(ValueError, match="d_ff"):
        GatedFeedForward(12, 0)


def test_rotation_is_llamas() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import (
        LlamaRotaryEmbedding,
        apply_rotary_pos_emb,
    )

    config = LlamaConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=64)
    query, key = torch.randn(2, 3, 2, 9, 16)  # (batch, heads, length, d_k) each
    at = torch.arange(9) + 4
    cos, sin = LlamaRotaryEmbedding(config)(query, at[None])
    theirs = apply_rotary_pos_emb(query, key, cos, sin)
    torch.testing.assert_close(rotate(query, at), theirs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotate(key, at), theirs[1], rtol=1e-4, atol=1e-5)


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 16, dtype=torch.float64)
    scores = [
        rotate(q, torch.tensor([m])) @ rotate(k, torch.tensor([m + 3])).T for m in (0, 7, 9000)
    ]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_todays_attention_is_qwen3s() -> None:
    """Normalized, turned, grouped: the same numbers from the same weights."""
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

    config = Qwen3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attention_bias=False,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        attn_implementation="eager",
    )
    theirs = Qwen3Attention(config, layer_idx=0).eval()
    ours = changes.TodaysAttention(32, 4, 2)
    changes.take_biases(ours)
    for mine, other in (
        ("query_projection", "q_proj"),
        ("key_projection", "k_proj"),
        ("value_projection", "v_proj"),
        ("output_projection", "o_proj"),
        ("query_norm", "q_norm"),
        ("key_norm", "k_norm"),
    ):
        if "norm" in other:
            nn.init.uniform_(getattr(theirs, other).weight, 0.5, 2.0)
        getattr(ours, mine).load_state_dict(getattr(theirs, other).state_dict())
    x, at = torch.randn(2, 6, 32), torch.arange(6)[None]
    mask = torch.full((6, 6), -math.inf).triu(1)[None, None]
    rotary = Qwen3RotaryEmbedding(config)(x, at)
    wanted, _ = theirs(x, rotary, mask)
    torch.testing.assert_close(ours(x, x, x, is_causal=True), wanted, rtol=1e-4, atol=1e-5)


def test_alibi_is_blooms() -> None:
    """Bloom adds slope times the key's position; along a row that differs by a constant only."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    heads, length, d_k = 8, 7, 4
    attention = AlibiAttention(heads * d_k, heads)
    query, key, value = torch.randn(3, 2, heads, length, d_k)
    bias = build_alibi_tensor(torch.ones(2, length), heads, torch.float32)
    scores = query @ key.mT / d_k**0.5 + bias.view(2, heads, 1, length)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    wanted = scores.softmax(dim=-1) @ value
    found = attention.attend(query, key, value, None, is_causal=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key_heads", [1, 2, 4, 8])
def test_grouped_attention_is_torchs(key_heads: int) -> None:
    ours = GroupedQueryAttention(32, 8, key_heads)
    x = torch.randn(2, 5, 32)
    maps = (ours.query_projection, ours.key_projection, ours.value_projection)
    query, key, value = (ours.split_heads(part(x)) for part in maps)
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    wanted = ours.output_projection(heads.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(ours(x, x, x, is_causal=True), wanted)
    assert ours.key_projection.out_features == key_heads * 4


@pytest.mark.parametrize("key_heads", [0, 3, 16, 2.0])
def test_grouped_attention_refuses(key_heads: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        GroupedQueryAttention(32, 8, key_heads)


def test_normalized_scores_are_bounded_and_do_not_grow() -> None:
    attention = QueryKeyNorm(32, 4)
    query, key = torch.randn(2, 1, 4, 6, 8)
    value = torch.eye(6).expand(1, 4, 6, 6)
    small, large = (attention.attend(f * query, f * key, value, None, False) for f in (1, 1000))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)
    scores = scaled_dot_similarity(attention.query_norm(query), attention.key_norm(key))
    assert scores.abs().max() <= math.sqrt(8) + 1e-5


def test_muon_is_torchs() -> None:
    """torch computes the five steps in bfloat16: the same but for its rounding, over several steps."""
    model = make_model("base", 1)
    ours = changes.Muon(model)
    matrices = ours.param_groups[1]["params"]
    assert len(matrices) == 3 * 4 + 2 * 2, "the maps of three attentions and two networks"
    twins = [nn.Parameter(p.detach().clone()) for p in matrices]
    theirs = torch.optim.Muon(twins, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    before = [p.detach().clone() for p in matrices]
    for _ in range(3):
        for mine, other in zip(matrices, twins, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for group in ours.param_groups:
            group["lr"] = 0.01
        ours.step()
        theirs.step()
    for mine, other, start in zip(matrices, twins, before, strict=True):
        step, wanted = (mine - start).flatten(), (other - start).flatten()
        assert F.cosine_similarity(step, wanted, dim=0) > 0.999
        assert abs(step.norm() / wanted.norm() - 1) < 0.02


def test_the_rest_of_muon_is_adam() -> None:
    models = make_model("base", 1), make_model("base", 1)
    optimizers = changes.Muon(models[0]), changes.make_optimizer(models[1])
    for model, optimizer in zip(models, optimizers, strict=True):
        model(SOURCE, TARGET).logsumexp(dim=-1).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    torch.testing.assert_close(models[0].embedding.weight, models[1].embedding.weight)
    ours, theirs = (m.encoder.layers[0].feed_forward.inner.weight for m in models)
    assert not torch.allclose(ours, theirs)


def test_adamw_shrinks_matrices_and_nothing_else() -> None:
    model = make_model("base", 1)
    optimizer = changes.adamw(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.99 if parameter.dim() > 1 else 1.0
        torch.testing.assert_close(parameter, factor * before[name])


def test_the_schedules_are_those_of_hugging_face() -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for name in ("linear", "cosine"):
        theirs = get_scheduler(name, optimizer, 100, 300).lr_lambdas[0]
        for step in range(301):
            assert SCHEDULES[name](step / 300) == pytest.approx(theirs(step), abs=1e-9)
    assert SCHEDULES["2017"](1.0) > 0.5, "it never arrives"


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_experts_are_a_weighted_sum_of_the_chosen(chosen: int) -> None:
    part = Experts(6, 5, experts=4, chosen=chosen)
    x = torch.randn(2, 7, 6)
    found = part(x).flatten(0, 1)
    for row, token in enumerate(x.flatten(0, 1)):
        probability = part.router(token).softmax(dim=-1)
        best = probability.argsort(descending=True)[:chosen]
        weight = probability[best] / (probability[best].sum() if chosen > 1 else 1)
        wanted = sum(w * part.experts[int(e)](token) for w, e in zip(weight, best, strict=True))
        torch.testing.assert_close(found[row], wanted)


def test_the_balance_is_one_if_even_and_the_number_of_experts_if_one_takes_all() -> None:
    part = Experts(4, 5, experts=4)
    part.router.weight.data = 50 * torch.eye(4)
    part(torch.eye(4)[None])
    assert part.balance.item() == pytest.approx(1.0)
    part(torch.eye(4)[None, :1].expand(1, 5, 4))
    assert part.balance.item() == pytest.approx(4.0)


def test_the_balance_is_part_of_training_only(batch: Batch) -> None:
    model = make_model("1 of 4 experts", 1)
    plain, count = translation_loss(model.train(), batch)
    total, _ = changes.balanced_loss(model, batch)
    assert total.item() > plain.item() + 0.009 * count * 2
    alone = evaluate_loss(model, [batch], changes.balanced_loss)
    assert alone == pytest.approx(evaluate_loss(model, [batch]))


# The rows


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_is_reproduced_and_writes_with_a_cache_what_it_gives_at_once(name: str) -> None:
    model, again, other = (make_model(name, seed).eval() for seed in (1, 1, 2))
    with torch.no_grad():
        at_once = model(SOURCE, TARGET)  # (batch, target, vocab_size)
        assert torch.equal(again(SOURCE, TARGET), at_once)
        assert not torch.equal(other(SOURCE, TARGET), at_once)
        decoder = IncrementalDecoder(model, SOURCE)
        steps = [decoder.step(TARGET[:, i]) for i in range(TARGET.size(1))]
    torch.testing.assert_close(torch.stack(steps, dim=1), at_once, rtol=1e-4, atol=1e-4)


def test_a_row_changes_what_it_says() -> None:
    base = make_model("base", 1)
    kinds = {
        name: {type(part) for part in make_model(name, 1).modules()}
        - {type(p) for p in base.modules()}
        for name in ROWS
    }
    for name, kind in (
        ("RMSNorm", RMSNorm),
        ("SwiGLU", GatedFeedForward),
        ("rotary", RotaryAttention),
        ("ALiBi", AlibiAttention),
        ("grouped queries", GroupedQueryAttention),
        ("query-key norm", QueryKeyNorm),
    ):
        assert kind in kinds[name], f"{name}: {kinds[name]}"
    assert not any(
        name.endswith("bias") for name, _ in make_model("no biases", 1).named_parameters()
    )
    gated, plain = GatedFeedForward(64, changes.GATED), FeedForward(64, BASE.d_ff)
    assert count_parameters(gated) == pytest.approx(count_parameters(plain), rel=0.02)


# The checks of the exercises: right attempts by different ways, and each mistake named


def cache_bytes(layers: int, heads: int, key_heads: int, d_k: int, length: int, size: int) -> int:
    return 2 * layers * key_heads * d_k * length * size


def cache_by_position(
    layers: int, heads: int, key_heads: int, d_k: int, length: int, size: int
) -> int:
    width = d_k * key_heads
    return sum(size * (width + width) for _ in range(layers)) * length


def experts_counted(d: int, d_ff: int, experts: int, chosen: int) -> tuple[int, int]:
    def count(number: int) -> int:
        networks = [GatedFeedForward(d, d_ff) for _ in range(number)]
        return sum(count_parameters(part) for part in networks) + d * experts

    return count(experts), count(chosen)


def rotated(
    x: Tensor,
    position: Tensor,
    *,
    sign: float = 1.0,
    power: float = 1.0,
    neighbors: bool = False,
    same: bool = False,
) -> Tensor:
    half = x.size(-1) // 2
    angle = torch.outer(position.float(), 10_000.0 ** (-power * torch.arange(half) / half))
    angle = sign * (angle[:1].expand_as(angle) if same else angle)
    halves = (x[..., 0::2], x[..., 1::2]) if neighbors else x.chunk(2, dim=-1)
    turned = torch.complex(*(h.contiguous() for h in halves)) * torch.polar(
        torch.ones_like(angle), angle
    )
    if neighbors:
        return torch.view_as_real(turned).flatten(-2)
    return torch.cat([turned.real, turned.imag], dim=-1)


def by_matrices(x: Tensor, position: Tensor) -> Tensor:
    half = x.size(-1) // 2
    rows = []
    for at in position.tolist():
        matrix = torch.eye(2 * half)
        for i in range(half):
            angle = at * 10_000.0 ** (-i / half)
            matrix[i, i] = matrix[i + half, i + half] = math.cos(angle)
            matrix[i, i + half], matrix[i + half, i] = math.sin(angle), -math.sin(angle)
        rows.append(matrix)
    return (x[..., None, :] @ torch.stack(rows))[..., 0, :]


class Capped(MultiHeadAttention):
    def __init__(self, d_model: int, num_heads: int, cap: float) -> None:
        super().__init__(d_model, num_heads)
        self.cap = cap

    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        scores = self.cap * torch.tanh(scaled_dot_similarity(query, key) / self.cap)
        return masked_softmax(scores, _allowed(query, key, attn_mask, is_causal)) @ value


class CappedByHand(Capped):
    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        scores = query @ key.mT / self.d_k**0.5
        scores = torch.tanh(scores / self.cap) * self.cap
        if is_causal:
            behind = torch.ones_like(scores, dtype=torch.bool).tril(key.size(-2) - query.size(-2))
            scores = scores.masked_fill(~behind, -math.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        return scores.softmax(dim=-1) @ value


class MaskFirst(Capped):
    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        allowed = _allowed(query, key, attn_mask, is_causal)
        scores = scaled_dot_similarity(query, key)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        return (self.cap * torch.tanh(scores / self.cap)).softmax(dim=-1) @ value


class NotScaled(Capped):
    def attend(self, query, key, *rest):  # type: ignore[no-untyped-def]
        return super().attend(query * self.d_k**0.5, key, *rest)


class NoFactor(Capped):
    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        scores = torch.tanh(scaled_dot_similarity(query, key) / self.cap)
        return masked_softmax(scores, _allowed(query, key, attn_mask, is_causal)) @ value


class Clamped(Capped):
    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        scores = scaled_dot_similarity(query, key).clamp(-self.cap, self.cap)
        return masked_softmax(scores, _allowed(query, key, attn_mask, is_causal)) @ value


class NoMask(Capped):
    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        return super().attend(query, key, value, None, is_causal)


class CountsFromZero(Capped):
    def attend(self, query, key, value, attn_mask, is_causal):  # type: ignore[no-untyped-def]
        scores = self.cap * torch.tanh(scaled_dot_similarity(query, key) / self.cap)
        causal = torch.ones_like(scores, dtype=torch.bool).tril()
        allowed = causal if attn_mask is None else causal & attn_mask
        return masked_softmax(scores, allowed if is_causal else attn_mask) @ value


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_cache_bytes: [cache_bytes, cache_by_position],
    check_experts: [
        lambda d, f, e, c: (e * (3 * d * f + d), c * 3 * d * f + d * e),
        experts_counted,
    ],
    check_complex_rotation: [rotated, by_matrices],
    check_capped_attention: [Capped, CappedByHand],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_cache_bytes: [
        (lambda n, h, g, d, t, s: n * g * d * t * s, "keys AND values"),
        (lambda n, h, g, d, t, s: 2 * g * d * t * s, "one layer"),
        (lambda n, h, g, d, t, s: 2 * n * g * d * t, "not bytes"),
        (lambda n, h, g, d, t, s: 2 * n * h * d * t * s, "queries are not kept"),
        (lambda n, h, g, d, t, s: 2 * n * g * d * s, "one position"),
        (lambda n, h, g, d, t, s: 2 * n * d * t * s, "ONE head"),
        (lambda n, h, g, d, t, s: 3 * n * g * d * t * s, "expected"),
    ],
    check_experts: [
        (lambda d, f, e, c: e * 3 * d * f, "two numbers"),
        (lambda d, f, e, c: (e * 3 * d * f, c * 3 * d * f), "router is missing"),
        (lambda d, f, e, c: (e * 2 * d * f + d * e, c * 2 * d * f + d * e), "THREE"),
        (lambda d, f, e, c: (e * (3 * d * f + 2 * f + d) + d * e, 0), "no biases"),
        (lambda d, f, e, c: (e * (3 * d * f + d),) * 2, "chosen experts only"),
        (lambda d, f, e, c: (e * (3 * d * f + d), c * (3 * d * f + d)), "scores ALL"),
        (lambda d, f, e, c: (e * (3 * d * f + d), c * 3 * d * f), "for every token"),
        (lambda d, f, e, c: (e * (3 * d * f + d), 3 * d * f), "of one token|for every"),
    ],
    check_complex_rotation: [
        (lambda x, p: rotated(x, p, sign=-1.0), "backward"),
        (lambda x, p: rotated(x, p, neighbors=True), "partner"),
        (lambda x, p: rotated(x, p, power=0.5), "should turn by"),
        (lambda x, p: rotated(x, p, same=True), "each position"),
        (lambda x, p: rotated(x, p + 1), "position 0"),
        (lambda x, p: torch.complex(*x.chunk(2, dim=-1)), "shape"),
        (lambda x, p: torch.stack(rotated(x, p).chunk(2, dim=-1), dim=-1).flatten(-2), "ORDER"),
    ],
    check_capped_attention: [
        (MaskFirst, "Cap first"),
        (NotScaled, "far above"),
        (NoFactor, "far above"),
        (Clamped, "tanh"),
        (NoMask, "attn_mask"),
        (CountsFromZero, "word by word"),
        (lambda d, h, cap: MultiHeadAttention(d, h), "tanh"),
    ],
}
