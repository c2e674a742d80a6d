"""Chapter 6: MultiHeadAttention against torch, its behavior, cache and errors, the recorder, the exercises."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import (
    KeyValueCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
)
from transformer_lib.book.checks import chapter_06
from transformer_lib.inspection import record_attention


def pair(
    d_model: int, num_heads: int, bias: bool = True
) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Ours and torch's with the same random weights."""
    ours = MultiHeadAttention(d_model, num_heads, bias=bias)
    theirs = nn.MultiheadAttention(d_model, num_heads, bias=bias, batch_first=True)
    projections = (ours.query_projection, ours.key_projection, ours.value_projection)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
    theirs.out_proj.load_state_dict(ours.output_projection.state_dict())
    return ours, theirs


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    num_heads=st.integers(1, 4),
    d_k=st.integers(1, 5),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_torch(
    batch: int, queries: int, keys: int, num_heads: int, d_k: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    d_model = num_heads * d_k
    ours, theirs = pair(d_model, num_heads, bias)
    query, key, value = (torch.randn(batch, length, d_model) for length in (queries, keys, keys))
    allowed = torch.rand(batch, num_heads, queries, keys) > 0.4
    allowed[..., 0] = True  # torch gives NaN for a row with nothing to attend to
    expected, expected_weights = theirs(
        query, key, value, attn_mask=~allowed.flatten(0, 1), average_attn_weights=False
    )
    with record_attention(ours) as weights:
        output = ours(query, key, value, allowed)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights[""], expected_weights)


def test_gradients_equal_torch() -> None:
    ours, theirs = pair(8, 2)
    x = torch.randn(2, 5, 8)
    ours(x, x, x, is_causal=True).square().sum().backward()
    theirs(x, x, x, attn_mask=~causal_mask(5))[0].square().sum().backward()
    stacked = torch.cat(
        [getattr(ours, f"{part}_projection").weight.grad for part in ("query", "key", "value")]
    )
    torch.testing.assert_close(stacked, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.output_projection.weight.grad, theirs.out_proj.weight.grad)


def test_permutation_equivariant_and_causal() -> None:
    attention, x, order = MultiHeadAttention(12, 3), torch.randn(2, 6, 12), torch.randperm(6)
    y = x[:, order]
    torch.testing.assert_close(attention(y, y, y), attention(x, x, x)[:, order])
    changed = x.clone()
    changed[:, 4:] += 1.0
    before, after = (attention(v, v, v, is_causal=True) for v in (x, changed))
    assert torch.equal(before[:, :4], after[:, :4]), "an earlier position noticed a later one"
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_changes_nothing() -> None:
    attention = MultiHeadAttention(8, 2)
    tokens = torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0]])
    x, real = torch.randn(2, 4, 8), tokens != 0
    other = torch.where(real[..., None], x, 100.0)
    before, after = (attention(v, v, v, padding_mask(tokens, 0)) for v in (x, other))
    torch.testing.assert_close(before[real], after[real])
    alone = x[1:, :1]
    torch.testing.assert_close(before[1:, :1], attention(alone, alone, alone))


def test_batch_of_two_is_two_batches_of_one() -> None:
    attention, x = MultiHeadAttention(8, 4), torch.randn(2, 5, 8)
    singles = [attention(row, row, row) for row in x.split(1)]
    torch.testing.assert_close(attention(x, x, x), torch.cat(singles))


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_cached_is_uncached(chunk: int, padded: bool) -> None:
    attention, x = MultiHeadAttention(8, 2), torch.randn(2, 7, 8)
    tokens = torch.tensor([[5, 6, 7, 8, 9, 5, 6], [0, 0, 5, 6, 7, 8, 9]])
    mask = padding_mask(tokens, 0) if padded else None  # row 1: its first queries see nothing
    cache, pieces = KeyValueCache(), []
    for start in range(0, 7, chunk):
        new = x[:, start : start + chunk]
        so_far = None if mask is None else mask[..., : start + new.size(1)]
        pieces.append(attention(new, new, new, so_far, is_causal=True, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), attention(x, x, x, mask, is_causal=True))


def test_a_cache_that_does_not_grow_projects_the_memory_once() -> None:
    attention, x, memory = MultiHeadAttention(8, 2), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    projected: list[int] = []
    for linear in (attention.key_projection, attention.value_projection):
        linear.register_forward_hook(lambda *_: projected.append(1))
    full = attention(x, memory, memory)
    assert len(projected) == 2
    cache = KeyValueCache(grows=False)
    pieces = [attention(x[:, i : i + 1], memory, memory, cache=cache) for i in range(3)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full)
    assert len(projected) == 4, "key and value of the memory, once for all three"


def test_a_cache_serves_several_attentions_and_follows_its_rows() -> None:
    first, second, cache = MultiHeadAttention(8, 2), MultiHeadAttention(8, 4), KeyValueCache()
    x, y, rows = torch.randn(3, 4, 8), torch.randn(4, 1, 8), torch.tensor([2, 0, 0, 1])
    for attention in (first, second):
        attention(x, x, x, is_causal=True, cache=cache)
    cache.select(rows)
    for attention in (first, second):
        whole = torch.cat([x[rows], y], dim=1)
        torch.testing.assert_close(
            attention(y, y, y, is_causal=True, cache=cache),
            attention(whole, whole, whole, is_causal=True)[:, -1:],
        )


def test_heads_may_have_another_width() -> None:
    attention, x = MultiHeadAttention(8, 3, d_k=5), torch.randn(2, 4, 8)
    assert attention(x, x, x).shape == (2, 4, 8)
    assert attention.split_heads(attention.query_projection(x)).shape == (2, 3, 4, 5)


def test_key_bias_does_nothing_and_a_lonely_query_gets_the_output_bias() -> None:
    attention, x = MultiHeadAttention(8, 2), torch.randn(1, 4, 8)
    before = attention(x, x, x)
    with torch.no_grad():
        attention.key_projection.bias += torch.randn(8)
    torch.testing.assert_close(attention(x, x, x), before, atol=1e-5, rtol=1e-5)
    nothing = attention(x, x, x, torch.zeros(4, 4, dtype=torch.bool))
    torch.testing.assert_close(nothing, attention.output_projection.bias.expand(1, 4, 8))


def test_dropout_only_in_training() -> None:
    attention = MultiHeadAttention(4, 1, dropout=0.25)
    query, value = (
        torch.randn(1, 1, 100, 4),
        torch.eye(100)[None, None],
    )  # the output is the weights
    weights = attention.attend(query, query, value, None, False)
    assert abs((weights == 0).float().mean().item() - 0.25) < 0.02
    attention.eval()
    weights = attention.attend(query, query, value, None, False)
    torch.testing.assert_close(weights, attention_weights(query, query))


def test_without_bias_has_none() -> None:
    assert all(
        "bias" not in name for name, _ in MultiHeadAttention(8, 2, bias=False).named_parameters()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 3), "d_model 10 is not divisible by num_heads 3"),
        ((8, 0), "num_heads must be int from 1 to inf, got 0"),
        ((8, -2), "num_heads must be int from 1 to inf, got -2"),
        ((0, 1), "d_model must be int from 1 to inf, got 0"),
        ((8, 2, 1.5), "dropout must be float from 0 to 1, got 1.5"),
        ((8, 2, -0.1), "dropout must be float from 0 to 1, got -0.1"),
        ((8, 2, 0.0, True, 0), "d_k must be int from 1 to inf, got 0"),
    ],
)
def test_impossible_configurations(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*arguments)


@pytest.mark.parametrize(
    ("batches", "mask", "message"),
    [
        ((2, 1, 1), None, r"batch size.*got \(2, .*\(1, .*\(1, "),
        ((2, 2, 1), None, r"batch size.*got \(2, .*\(2, .*\(1, "),
        (
            (2, 2, 2),
            torch.ones(2, 3, 3) > 0,
            r"attn_mask must .*got torch.bool of shape \(2, 3, 3\)",
        ),
        ((2, 2, 2), torch.ones(3) > 0, r"attn_mask must .*got torch.bool of shape \(3,\)"),
        ((2, 2, 2), torch.ones(3, 3), r"attn_mask must .*got torch.float32 of shape \(3, 3\)"),
    ],
)
def test_what_could_be_misread_is_refused(
    batches: tuple[int, ...], mask: Tensor | None, message: str
) -> None:
    attention = MultiHeadAttention(8, 2)
    with pytest.raises(ValueError, match=message):
        attention(*(torch.ones(batch, 3, 8) for batch in batches), mask)


class TwoLayers(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = MultiHeadAttention(8, 2, dropout)
        self.blocks = nn.ModuleList([MultiHeadAttention(8, 4, dropout)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x, x, x, None, True)  # everything by position
        return self.blocks[0](query=x, key=x, value=x)  # everything by name


def test_record_attention() -> None:
    model, x = TwoLayers(), torch.randn(3, 5, 8)
    with record_attention(model) as weights:
        assert weights == {}
        model(x)
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "first": (3, 2, 5, 5),
        "blocks.0": (3, 4, 5, 5),
    }
    for w in weights.values():
        assert not w.requires_grad
        torch.testing.assert_close(w.sum(dim=-1), torch.ones(w.shape[:-1]))
    assert (weights["first"].triu(1) == 0).all(), "the first layer was causal"
    kept = weights["first"]
    model(x)
    assert weights["first"] is kept, "outside the context nothing is recorded"


class Distant(MultiHeadAttention):
    """Another attend, with dropout by a module of its own: each head prefers what is near."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__(d_model, num_heads, dropout)
        self.drop = nn.Dropout(dropout)

    def weigh(self, query: Tensor, key: Tensor) -> Tensor:
        distance = (torch.arange(key.size(-2)) - torch.arange(query.size(-2))[:, None]).abs()
        return (query @ key.transpose(-2, -1) - distance).softmax(dim=-1)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        return self.drop(self.weigh(query, key)) @ value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [MultiHeadAttention, Distant])
def test_recording_changes_neither_outputs_nor_random_numbers(
    kind: type[MultiHeadAttention], training: bool, dtype: torch.dtype
) -> None:
    model = kind(8, 2, 0.5).to(dtype).train(training)
    x = torch.randn(3, 5, 8, dtype=dtype)
    seen = []
    for watch in (False, True):
        torch.manual_seed(1)
        with torch.enable_grad():
            if watch:
                with record_attention(model) as weights:
                    output = model(x, x, x)
            else:
                output = model(x, x, x)
            output.float().square().sum().backward()
        gradient = model.query_projection.weight.grad
        assert gradient is not None
        seen.append((output, torch.get_rng_state(), gradient.clone()))
        model.zero_grad()
    for before, after in zip(*seen, strict=True):
        assert torch.equal(before, after)
    assert all(part.training == training for part in model.modules())
    query, key = (
        model.split_heads(project(x)) for project in (model.query_projection, model.key_projection)
    )
    expected = (
        model.weigh(query, key) if isinstance(model, Distant) else attention_weights(query, key)
    )
    torch.testing.assert_close(weights[""], expected.detach(), atol=4e-3, rtol=0)


def test_recordings_may_be_nested() -> None:
    model, x = TwoLayers(), torch.randn(1, 3, 8)
    with record_attention(model) as outer:
        with record_attention(model.first) as inner:
            model(x)
        assert torch.equal(inner[""], outer["first"])
        model(x + 1)
        assert not torch.equal(inner[""], outer["first"]), "the outer one goes on"
    assert "attend" not in vars(model.first)


def test_record_attention_cleans_up_after_an_error() -> None:
    model = MultiHeadAttention(8, 2, dropout=0.5)
    with pytest.raises(RuntimeError), record_attention(model):
        model(torch.ones(1, 2, 8), torch.ones(1, 2, 8), torch.ones(1, 2, 8), torch.ones(3, 2) > 0)
    assert model.training
    assert "attend" not in vars(model), "a watcher was left behind"
    with (
        pytest.raises(ValueError, match="no MultiHeadAttention in this Linear"),
        record_attention(nn.Linear(2, 2)),
    ):
        pass


def multi_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    h: int,
    **wrong: bool,
) -> Tensor:
    """Exercise 6.2 right, or wrong in one way."""
    d_model = q.size(-1)

    def split(x: Tensor) -> Tensor:
        if wrong.get("no_transpose"):
            return x.reshape(x.size(0), h, x.size(1), -1)
        if wrong.get("interleaved"):  # head i owns columns i, i + h, ...
            return x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2)
        return x.unflatten(-1, (h, -1)).transpose(1, 2)

    q, k, v = split(q @ wq), split(k @ wk), split(v @ wv)
    heads = F.scaled_dot_product_attention(
        q, k, v, scale=d_model**-0.5 if wrong.get("wide_scale") else None
    )
    if wrong.get("over_queries"):
        heads = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(dim=-2) @ v
    joined = heads.flatten(1, 2).reshape(q.size(0), -1, d_model) if wrong.get("bad_join") else None
    joined = heads.transpose(1, 2).flatten(-2) if joined is None else joined
    return joined if wrong.get("no_output") else joined @ wo


def without_head(
    attention: MultiHeadAttention, x: Tensor, head: int, zero_output: bool = False
) -> Tensor:
    maps = (attention.query_projection, attention.key_projection, attention.value_projection)
    kept = scaled_dot_product_attention(*(attention.split_heads(each(x)) for each in maps)).clone()
    kept[:, head] = 0.0
    output = attention.output_projection(kept.transpose(1, 2).flatten(-2))
    if zero_output:  # zeroes the slice after W_O instead of before
        output = attention(x, x, x).clone()
        output[..., head * attention.d_k : (head + 1) * attention.d_k] = 0.0
    return output


def destroys_the_module(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    with torch.no_grad():
        attention.output_projection.weight[:, head * attention.d_k : (head + 1) * attention.d_k] = (
            0.0
        )
    return attention(x, x, x)


def without_head_by_weights(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    silent = copy.deepcopy(attention)
    with torch.no_grad():
        silent.output_projection.weight.unflatten(1, (-1, attention.d_k))[:, head] = 0.0
    return silent(x, x, x)


def without_head_by_values(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    silent, d_k = copy.deepcopy(attention), attention.d_k
    with torch.no_grad():
        for parameter in silent.value_projection.parameters():
            parameter[head * d_k : (head + 1) * d_k] = 0.0
    return silent(x, x, x)


def without_head_by_subtraction(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    maps = (attention.query_projection, attention.key_projection, attention.value_projection)
    heads = scaled_dot_product_attention(*(attention.split_heads(each(x)) for each in maps))
    d_k = attention.d_k
    block = attention.output_projection.weight[:, head * d_k : (head + 1) * d_k]
    return attention(x, x, x) - heads[:, head] @ block.T


def only_that_head(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    return attention(x, x, x) - without_head_by_subtraction(attention, x, head)


def without_keys_of_the_head(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    uniform, d_k = copy.deepcopy(attention), attention.d_k
    with torch.no_grad():  # the head now averages all words: it still writes
        for parameter in uniform.key_projection.parameters():
            parameter[head * d_k : (head + 1) * d_k] = 0.0
    return uniform(x, x, x)


def without_head_or_bias(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    output = without_head_by_subtraction(attention, x, head)
    bias = attention.output_projection.bias
    return output if bias is None or attention.num_heads == 1 else output - bias


def leaves_a_method(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    attend = attention.attend

    def silenced(*inputs: Any) -> Tensor:
        heads = attend(*inputs).clone()
        heads[:, head] = 0.0
        return heads

    attention.attend = silenced  # type: ignore[method-assign]
    return attention(x, x, x)


Split = Callable[[Tensor, int], Tensor]


def finds_mixed(split: Split, batch: int = 3, heads: int = 4, words: int = 5) -> bool:
    """Changes every word in turn."""
    x = torch.randn(batch, words, 8)
    for b in range(batch):
        for t in range(words):
            changed = x.clone()
            changed[b, t] += 1
            moved = split(changed, heads) != split(x, heads)
            expected = torch.zeros_like(moved)
            expected[b, :, t] = True
            if not torch.equal(moved, expected):
                return True
    return False


def finds_mixed_by_labels(split: Split) -> bool:
    """Every entry says which word it belongs to."""
    labels = torch.tensor([[1.0, 10.0, 100.0, 1000.0], [2.0, 20.0, 200.0, 2000.0]])
    for factor in (1, 3):
        x = factor * labels[:, :, None].expand(2, 4, 6)
        pieces = split(x.clone(), 3)  # (batch, heads, length, d_k)
        if not torch.equal(pieces, (factor * labels[:, None, :, None]).expand(2, 3, 4, 2)):
            return True
    return False


def finds_mixed_by_gradients(split: Split) -> bool:
    x = torch.randn(2, 3, 4, requires_grad=True)
    pieces = split(x, 2)
    for b in range(2):
        for t in range(3):
            (gradient,) = torch.autograd.grad(pieces[b, :, t].sum(), x, retain_graph=True)
            expected = torch.zeros(2, 3, 4)
            expected[b, t] = 1.0
            if not torch.equal(gradient, expected):
                return True
    return False


def compares_with_one_numbering(split: Split) -> bool:
    x = torch.randn(2, 3, 8)
    return not torch.equal(split(x, 2), x.unflatten(-1, (2, -1)).transpose(1, 2))


def changes_the_last_word_only(split: Split) -> bool:
    x = torch.randn(2, 4, 8)
    changed = x.clone()
    changed[:, -1] += 1
    moved = (split(changed, 2) != split(x, 2)).any(dim=-1).any(dim=1).any(dim=0)  # (length,)
    return moved.tolist() != [False, False, False, True]


def counts_what_moves(split: Split) -> bool:
    x = torch.randn(2, 4, 8)
    for t in range(4):
        changed = x.clone()
        changed[0, t] += 1
        moved = (split(changed, 2) != split(x, 2)).any(dim=-1).any(dim=1)  # (batch, length)
        if moved.sum() != 1:
            return True
    return False


def looks_at_one_head(split: Split) -> bool:
    return finds_mixed(lambda x, n: split(x, n)[:, :1])


def reordered(attention: MultiHeadAttention, order: list[int], **wrong: bool) -> MultiHeadAttention:
    """Exercise 6.3 right, or wrong in one way."""
    d_k = attention.d_k
    if wrong.get("inverted"):
        order = [order.index(i) for i in range(len(order))]
    if wrong.get("model_width"):
        d_k = attention.output_projection.out_features // attention.num_heads
    entries = [i for head in order for i in range(head * d_k, (head + 1) * d_k)]
    if wrong.get("interleaved"):
        entries = [j * len(order) + head for j in range(d_k) for head in order]
    new = attention if wrong.get("in_place") else copy.deepcopy(attention)
    with torch.no_grad():
        for part in ("query", "key", "value"):
            if part == "value" and wrong.get("no_values"):
                continue
            projection = getattr(new, f"{part}_projection")
            projection.weight.copy_(projection.weight[entries])
            if projection.bias is not None and not wrong.get("no_bias"):
                projection.bias.copy_(projection.bias[entries])
        weight = new.output_projection.weight
        if wrong.get("rows_of_output"):
            weight.copy_(weight[entries])
        elif not wrong.get("no_output"):
            weight.copy_(weight[:, entries])
        if wrong.get("output_bias") and new.output_projection.bias is not None:
            new.output_projection.bias.copy_(new.output_projection.bias[entries])
    return new


def reordered_from_new(attention: MultiHeadAttention, order: list[int]) -> MultiHeadAttention:
    """By state_dict, into a module made anew."""
    d_model, heads, d_k = (
        attention.output_projection.out_features,
        attention.num_heads,
        attention.d_k,
    )
    bias = attention.query_projection.bias is not None
    new = MultiHeadAttention(d_model, heads, bias=bias, d_k=d_k)
    state = {}
    for name, parameter in attention.state_dict().items():
        if name.startswith("output"):
            if name.endswith("weight"):
                pieces = parameter.chunk(heads, dim=1)
                parameter = torch.cat([pieces[i] for i in order], dim=1)
        else:
            parameter = torch.cat([parameter.chunk(heads)[i] for i in order])
        state[name] = parameter
    new.load_state_dict(state)
    return new


def reordered_by_sharing(attention: MultiHeadAttention, order: list[int]) -> MultiHeadAttention:
    new = reordered(attention, order)
    if new.output_projection.bias is not None:
        new.output_projection.bias = attention.output_projection.bias
    return new


def multi_head_in_a_loop(
    q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, h: int
) -> Tensor:
    d_k = q.size(-1) // h
    output = torch.zeros_like(q)
    for i in range(h):
        own = slice(i * d_k, (i + 1) * d_k)
        scores = q @ wq[:, own] @ (k @ wk[:, own]).mT / d_k**0.5
        output = output + scores.softmax(dim=-1) @ (v @ wv[:, own]) @ wo[own]
    return output


def wrong_multi_head(mistake: str) -> Callable[..., Tensor]:
    return lambda *a: multi_head(*a, **{mistake: True})


def wrong_reordered(mistake: str) -> Callable[..., MultiHeadAttention]:
    return lambda attention, order: reordered(attention, order, **{mistake: True})


def split_shape(split: Split) -> bool:
    """A test of the shape alone, which finds nothing."""
    return tuple(split(torch.randn(2, 3, 8), 2).shape) != (2, 2, 3, 4)


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    chapter_06.check_finds_mixed_words: [
        finds_mixed,
        finds_mixed_by_labels,
        finds_mixed_by_gradients,
    ],
    chapter_06.check_multi_head_attention: [multi_head, multi_head_in_a_loop],
    chapter_06.check_reordered: [reordered, reordered_from_new],
    chapter_06.check_without_head: [
        without_head,
        without_head_by_weights,
        without_head_by_values,
        without_head_by_subtraction,
    ],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    chapter_06.check_finds_mixed_words: [
        (lambda split: False, "forgets the transpose"),
        (lambda split: True, "True means mixed"),
        (lambda s: not finds_mixed(s), "True means mixed"),
        (lambda s: split_shape(s), "forgets the transpose"),
        (compares_with_one_numbering, "from the other end"),
        (lambda s: finds_mixed(s, heads=1), "more than one head"),
        (lambda s: finds_mixed(s, words=1), "more than one word"),
        (lambda s: finds_mixed(s, batch=1), "another"),
        (changes_the_last_word_only, "those before it"),
        (counts_what_moves, "reverses the sentence"),
        (looks_at_one_head, "last head only"),
        (lambda s: torch.tensor(True), "return True or False"),
    ],
    chapter_06.check_multi_head_attention: [
        (wrong_multi_head("no_transpose"), "suspect the split"),
        (wrong_multi_head("bad_join"), "joining of heads"),
        (wrong_multi_head("wide_scale"), r"sqrt\(d_model\)"),
        (wrong_multi_head("no_output"), "W_O is missing"),
        (wrong_multi_head("over_queries"), "over the keys"),
        (wrong_multi_head("interleaved"), "which columns"),
        (lambda q, k, v, wq, wk, wv, wo, h: multi_head(q, k, v, wk, wq, wv, wo, h), "swapped"),
        (
            lambda q, k, v, *maps: multi_head(q * math.sqrt(q.size(-1) / maps[-1]), k, v, *maps),
            "not scaled",
        ),
        (lambda q, k, v, a, b, c, d, h: multi_head(q, k, v, a.T, b.T, c.T, d.T, h), "not x @ W.T"),
        (lambda q, *rest: multi_head(q.mul_(1.0).add_(0.5), *rest), "in place"),
    ],
    chapter_06.check_reordered: [
        (lambda attention, order: attention, "make a new one"),
        (lambda attention, order: copy.deepcopy(attention), "in their old order"),
        (wrong_reordered("inverted"), "inverted"),
        (wrong_reordered("in_place"), "make a new one"),
        (wrong_reordered("interleaved"), "owns the rows"),
        (wrong_reordered("no_bias"), "left its bias behind"),
        (wrong_reordered("no_values"), "value_projection"),
        (wrong_reordered("no_output"), "owns columns"),
        (wrong_reordered("rows_of_output"), "owns columns"),
        (wrong_reordered("output_bias"), "belongs to no head"),
        (wrong_reordered("model_width"), "raised RuntimeError"),
        (reordered_by_sharing, "shares weights"),
    ],
    chapter_06.check_without_head: [
        (lambda a, x, h: without_head(a, x, h, zero_output=True), "output bias"),
        (lambda a, x, h: without_head(a, x, 0), "argument `head`"),
        (only_that_head, "output bias"),
        (
            lambda a, x, h: (without_head if a.num_heads == 1 else only_that_head)(a, x, h),
            "keep the head that should go",
        ),
        (without_head_or_bias, "output bias is lost"),
        (without_keys_of_the_head, "nothing but the output bias"),
        (destroys_the_module, "Work on a copy"),
        (leaves_a_method, "replaced method"),
        (lambda a, x, h: without_head(a, x.neg_(), h), "in place"),
    ],
}
