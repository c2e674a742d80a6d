"""Chapter 6: MultiHeadAttention against torch, its behavior, cache and errors, the recorder, the exercises."""

from collections.abc import Callable

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


def cost(queries: int, keys: int, d_model: int, num_heads: int) -> tuple[int, int]:
    return 4 * d_model**2 + 4 * d_model, 2 * (
        queries + keys
    ) * d_model**2 + 2 * queries * keys * d_model


RIGHT = {
    chapter_06.check_join_heads: lambda x: x.transpose(1, 2).flatten(-2),
    chapter_06.check_multi_head_attention: multi_head,
    chapter_06.check_attention_cost: cost,
    chapter_06.check_without_head: without_head,
}
WRONG = [
    (
        chapter_06.check_join_heads,
        lambda x: x.reshape(x.size(0), x.size(2), -1),
        "Transpose before you join",
    ),
    (
        chapter_06.check_join_heads,
        lambda x: x.permute(0, 2, 3, 1).flatten(-2),
        "head 0's entries first",
    ),
    (
        chapter_06.check_join_heads,
        lambda x: x.flip(1).transpose(1, 2).flatten(-2),
        "head 0's entries first",
    ),
    (
        chapter_06.check_multi_head_attention,
        lambda *a: multi_head(*a, no_transpose=True),
        "several keys|suspect the split",
    ),
    (
        chapter_06.check_multi_head_attention,
        lambda *a: multi_head(*a, bad_join=True),
        "joining of heads",
    ),
    (
        chapter_06.check_multi_head_attention,
        lambda *a: multi_head(*a, wide_scale=True),
        r"sqrt\(d_model\)",
    ),
    (
        chapter_06.check_multi_head_attention,
        lambda *a: multi_head(*a, no_output=True),
        "W_O is missing",
    ),
    (
        chapter_06.check_multi_head_attention,
        lambda *a: multi_head(*a, over_queries=True),
        "the softmax's axis: over the keys",
    ),
    (
        chapter_06.check_multi_head_attention,
        lambda *a: multi_head(*a, interleaved=True),
        "which columns belong to head i",
    ),
    (
        chapter_06.check_attention_cost,
        lambda n, m, d, h: (4 * d * d, cost(n, m, d, h)[1]),
        "add the four biases",
    ),
    (
        chapter_06.check_attention_cost,
        lambda n, m, d, h: (cost(n, m, d, h)[0], 2 * cost(n, m, d, h)[1]),
        "counts once",
    ),
    (
        chapter_06.check_attention_cost,
        lambda n, m, d, h: cost(n, n, d, h),
        "3 queries, 10 keys",
    ),
    (
        chapter_06.check_without_head,
        lambda a, x, h: without_head(a, x, h, zero_output=True),
        "output bias|before W_O",
    ),
    (chapter_06.check_without_head, lambda a, x, h: without_head(a, x, 0), "argument `head`"),
    (chapter_06.check_without_head, destroys_the_module, "Work on a copy"),
]


@pytest.mark.parametrize("check", RIGHT)
def test_checks_accept_the_right_answer(
    check: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    check(RIGHT[check])
    assert "every check passed" in capsys.readouterr().out


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_checks_reject_likely_mistakes(check: Callable, answer: Callable, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(answer)
