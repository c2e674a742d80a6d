"""Chapter 6: MultiHeadAttention against torch, its behavior, its errors, the recorder, and the exercises' checks."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_lib.attention import (
    MultiHeadAttention,
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
    output, none = ours(query, key, value, allowed)
    with_weights, weights = ours(query, key, value, allowed, need_weights=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(with_weights, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert none is None


def test_gradients_equal_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = pair(8, 2)
    x = torch.randn(2, 5, 8)
    ours(x, x, x, is_causal=True)[0].square().sum().backward()
    theirs(x, x, x, attn_mask=~causal_mask(5))[0].square().sum().backward()
    stacked = torch.cat(
        [getattr(ours, f"{part}_projection").weight.grad for part in ("query", "key", "value")]
    )
    torch.testing.assert_close(stacked, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.output_projection.weight.grad, theirs.out_proj.weight.grad)


def test_permutation_equivariant_and_causal() -> None:
    torch.manual_seed(1)
    attention, x, order = (
        MultiHeadAttention(12, 3),
        torch.randn(2, 6, 12),
        torch.randperm(6),
    )
    torch.testing.assert_close(
        attention(x[:, order], x[:, order], x[:, order])[0], attention(x, x, x)[0][:, order]
    )
    changed = x.clone()
    changed[:, 4:] += 1.0
    before, after = (attention(v, v, v, is_causal=True)[0] for v in (x, changed))
    assert torch.equal(before[:, :4], after[:, :4]), "an earlier position noticed a later one"
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_changes_nothing() -> None:
    torch.manual_seed(2)
    attention = MultiHeadAttention(8, 2)
    tokens = torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0]])
    x, real = torch.randn(2, 4, 8), tokens != 0
    other = torch.where(real[..., None], x, 100.0)
    before, after = (attention(v, v, v, padding_mask(tokens, 0))[0] for v in (x, other))
    torch.testing.assert_close(before[real], after[real])
    torch.testing.assert_close(before[1, :1], attention(x[1:, :1], x[1:, :1], x[1:, :1])[0][0])


def test_batch_of_two_is_two_batches_of_one() -> None:
    torch.manual_seed(3)
    attention, x = MultiHeadAttention(8, 4), torch.randn(2, 5, 8)
    both = attention(x, x, x)[0]
    for i in (0, 1):
        torch.testing.assert_close(
            both[i : i + 1], attention(x[i : i + 1], x[i : i + 1], x[i : i + 1])[0]
        )


def test_projecting_and_attending_apart_is_forward() -> None:
    torch.manual_seed(4)
    attention, x, memory = (
        MultiHeadAttention(8, 2),
        torch.randn(2, 3, 8),
        torch.randn(2, 5, 8),
    )
    key, value = attention.project_key_value(memory, memory)
    assert key.shape == value.shape == (2, 2, 5, 4)
    apart = attention.attend(attention.project_query(x), key, value)[0]
    assert torch.equal(apart, attention(x, memory, memory)[0])


def test_key_bias_does_nothing_and_a_lonely_query_gets_the_output_bias() -> None:
    torch.manual_seed(5)
    attention, x = MultiHeadAttention(8, 2), torch.randn(1, 4, 8)
    before = attention(x, x, x)[0]
    with torch.no_grad():
        attention.key_projection.bias += torch.randn(8)
    torch.testing.assert_close(attention(x, x, x)[0], before, atol=1e-5, rtol=1e-5)
    nothing = attention(x, x, x, torch.zeros(4, 4, dtype=torch.bool))[0]
    torch.testing.assert_close(nothing, attention.output_projection.bias.expand(1, 4, 8))


def test_dropout_only_in_training() -> None:
    torch.manual_seed(6)
    attention, x = MultiHeadAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    weights = attention(x, x, x, need_weights=True)[1]
    assert (weights == 0).any(), "dropout 0.5 should drop some of 72 weights"
    attention.eval()
    weights = attention(x, x, x, need_weights=True)[1]
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 2, 6))


def test_without_bias_has_none() -> None:
    assert all(
        "bias" not in name for name, _ in MultiHeadAttention(8, 2, bias=False).named_parameters()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 3), "d_model 10 is not divisible by num_heads 3"),
        ((8, 0), "at least 1, got 8 and 0"),
        ((8, -2), "at least 1, got 8 and -2"),
        ((0, 1), "at least 1, got 0 and 1"),
        ((8, 2, 1.0), "dropout must be at least 0 and below 1, got 1.0"),
        ((8, 2, -0.1), "got -0.1"),
    ],
)
def test_impossible_configurations(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*arguments)


@pytest.mark.parametrize(
    ("shapes", "mask", "message"),
    [
        (
            ((1, 3, 6), (1, 3, 8), (1, 3, 8)),
            None,
            r"query must have shape .*d_model 8.*got \(1, 3, 6\)",
        ),
        (((1, 3, 8), (3, 8), (1, 3, 8)), None, r"key must have shape .*got \(3, 8\)"),
        (
            ((1, 3, 8), (1, 3, 8), (1, 1, 3, 8)),
            None,
            r"value must have shape .*got \(1, 1, 3, 8\)",
        ),
        (((2, 3, 8), (1, 3, 8), (1, 3, 8)), None, "batch size, got 2, 1 and 1"),
        (((1, 3, 8), (1, 4, 8), (1, 5, 8)), None, "4 keys and 5 values"),
        (
            ((2, 3, 8), (2, 3, 8), (2, 3, 8)),
            (2, 3, 3),
            r"attn_mask must have shape .*got \(2, 3, 3\)",
        ),
        (
            ((2, 3, 8), (2, 3, 8), (2, 3, 8)),
            (3,),
            r"attn_mask must have shape .*got \(3,\)",
        ),
        (((2, 3, 8), (2, 3, 8), (2, 3, 8)), (3, 4), r"\(3, 4\)"),
    ],
)
def test_wrong_shapes(shapes: tuple, mask: tuple | None, message: str) -> None:
    attention = MultiHeadAttention(8, 2)
    attn_mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        attention(*(torch.ones(shape) for shape in shapes), attn_mask)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 8), (2, 2, 3, 4), (2, 2, 3, 4)), r"query must have shape .*got \(2, 3, 8\)"),
        (
            ((2, 2, 3, 4), (2, 3, 2, 4), (2, 2, 3, 4)),
            r"key must have shape .*heads 2.*\(2, 3, 2, 4\)",
        ),
        (
            ((2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 8)),
            r"value must have shape .*d_k 4.*\(2, 2, 3, 8\)",
        ),
        (((2, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), "batch size, got 2, 1 and 1"),
    ],
)
def test_attend_names_wrong_shapes(shapes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(8, 2).attend(*(torch.ones(shape) for shape in shapes))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = (
            MultiHeadAttention(8, 2),
            nn.ModuleList([MultiHeadAttention(8, 4)]),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x, x, x, None, True, False)[0]  # everything by position
        return self.blocks[0](query=x, key=x, value=x, need_weights=False)[0]  # everything by name


def test_record_attention() -> None:
    torch.manual_seed(7)
    model, x = TwoLayers(), torch.randn(3, 5, 8)
    before = model(x)
    with record_attention(model) as weights:
        assert weights == {}
        torch.testing.assert_close(model(x), before)
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "first": (3, 2, 5, 5),
        "blocks.0": (3, 4, 5, 5),
    }
    for w in weights.values():
        assert not w.requires_grad
        torch.testing.assert_close(w.sum(dim=-1), torch.ones(w.shape[:-1]))
    assert (weights["first"].triu(1) == 0).all(), "the first layer was causal"
    assert model.first(x, x, x)[1] is None, "outside the context no weights are built"


def test_record_attention_cleans_up_after_an_error() -> None:
    model = MultiHeadAttention(8, 2)
    with pytest.raises(ValueError, match="query must have shape"), record_attention(model):
        model(torch.ones(1, 2, 3), torch.ones(1, 2, 8), torch.ones(1, 2, 8))
    assert not model._forward_hooks, "a hook was left behind"
    assert not model._forward_pre_hooks, "a hook was left behind"
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
    key, value = attention.project_key_value(x, x)
    heads, _ = scaled_dot_product_attention(attention.project_query(x), key, value)
    kept = heads.clone()
    kept[:, head] = 0.0
    output = attention.output_projection(kept.transpose(1, 2).flatten(-2))
    if zero_output:  # zeroes the slice after W_O instead of before
        output = attention(x, x, x)[0].clone()
        output[..., head * attention.d_k : (head + 1) * attention.d_k] = 0.0
    return output


def destroys_the_module(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
    with torch.no_grad():
        attention.output_projection.weight[:, head * attention.d_k : (head + 1) * attention.d_k] = (
            0.0
        )
    return attention(x, x, x)[0]


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
