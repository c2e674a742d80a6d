"""The checks of chapter 27's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.attention import KeyValueCache, MultiHeadAttention
from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.embeddings import rotate


@diagnostic("Exercise 27.1")
def check_cache_bytes(attempt: Callable[[int, int, int, int, int, int], int]) -> None:
    """Check the bytes of a cache: each factor that can be forgotten."""
    for layers, heads, key_heads, d_k, length, size in (
        (3, 12, 6, 10, 7, 4),
        (32, 32, 8, 128, 4096, 2),
    ):
        answer = attempt(layers, heads, key_heads, d_k, length, size)
        one = layers * key_heads * d_k * length * size
        assert answer != one, "keys AND values are kept: twice as much"
        assert answer != 2 * one // layers, "this is one layer: each layer keeps its own"
        assert answer != 2 * one // size, "these are numbers, not bytes: each takes `size` bytes"
        assert answer != 2 * one * heads // key_heads, (
            "queries are not kept: what counts is the heads of keys and values, key_heads"
        )
        assert answer != 2 * one // length, "this is one position: all `length` of them are kept"
        assert answer != 2 * one // key_heads, "d_k is the width of ONE head, there are key_heads"
        assert answer == 2 * one, f"{2 * one:,} bytes expected, yours {answer:,}"


@diagnostic("Exercise 27.2")
def check_experts(attempt: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    """Check all weights of a mixture of gated experts, and those that one token uses."""
    for d, d_ff, experts, chosen in ((10, 30, 8, 2), (64, 172, 4, 1)):
        both = attempt(d, d_ff, experts, chosen)
        assert isinstance(both, tuple | list) and len(both) == 2, (
            f"return two numbers, not {both!r}"
        )
        total, active = both
        one, router = 3 * d * d_ff, d * experts
        assert total != experts * one, "the router is missing: it maps d_model numbers to `experts`"
        assert total != experts * 2 * d * d_ff + router, (
            "a gated network has THREE matrices: gate, inner and outer"
        )
        assert total != experts * (one + 2 * d_ff + d) + router, (
            "gated networks have no biases here"
        )
        assert total == experts * one + router, (
            f"in all {experts * one + router:,} weights expected, yours {total:,}"
        )
        assert active != total, "a token goes through the chosen experts only"
        assert active != chosen * one + d * chosen, (
            "the router scores ALL experts before it can choose: all of it is used"
        )
        assert active != chosen * one, "the router is used for every token, too"
        assert active == chosen * one + router, (
            f"of one token {chosen * one + router:,} weights expected, yours {active:,}"
        )


@diagnostic("Exercise 27.3")
def check_complex_rotation(attempt: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check a rotation: position 0, the layout of pairs, direction, speed of each pair."""
    torch.manual_seed(0)
    x, position = torch.randn(2, 3, 5, 8), torch.arange(5) + 2  # (batch, heads, length, d_k)
    still = torch.zeros(5, dtype=torch.int64)
    first = expect_tensor(attempt(x, still), x.shape, "the turned vectors")
    assert not first.is_complex(), "view the result as real numbers again, (..., d_k)"
    assert first.dtype == x.dtype, f"x is {x.dtype}, the result should be too, not {first.dtype}"
    torch.testing.assert_close(
        first,
        x,
        msg=lambda text: (
            "at position 0 nothing turns; if the numbers are only in another ORDER, put the "
            f"real parts in front of the imaginary ones: {text}"
        ),
    )
    for i in range(4):
        unit = torch.zeros(1, 8)
        unit[0, i] = 1.0
        turned = attempt(unit, torch.tensor([1]))[0]
        where = sorted(turned.abs().topk(2).indices.tolist())
        angle = 10_000.0 ** (-i / 4)
        if abs(math.sin(angle)) > 1e-3 and turned.abs().sort().values[-2] > 1e-6:
            assert where == [i, i + 4], f"feature {i} turns into {where}: its partner is {i + 4}"
        assert turned[i + 4] >= -1e-9, "it turns backward: the angle is +position * frequency"
        found = math.atan2(turned[i + 4].item(), turned[i].item())
        assert abs(found - angle) < 1e-4, (
            f"pair {i} of 4 should turn by 10000^(-{i}/4) = {angle:.4f} a position, turns by {found:.4f}"
        )
    torch.testing.assert_close(
        attempt(x, position),
        rotate(x, position),
        msg=lambda text: f"each position should turn by its own number: {text}",
    )


@diagnostic("Exercise 27.4")
def check_capped_attention(attempt: Callable[[int, int, float], MultiHeadAttention]) -> None:
    """Check attention with capped scores: wide cap, narrow cap, masks, with a cache."""
    for d_model, heads in ((12, 3), (16, 2)):
        _try_capped_attention(attempt, d_model, heads)


def _try_capped_attention(
    attempt: Callable[[int, int, float], MultiHeadAttention], d_model: int, heads: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, d_model)  # (batch, length, d_model)
    plain = MultiHeadAttention(d_model, heads)
    for part in (plain.query_projection, plain.key_projection):
        part.weight.data *= 4  # scores that a cap of 2 changes

    def same(cap: float) -> MultiHeadAttention:
        module = attempt(d_model, heads, cap)
        module.load_state_dict(plain.state_dict())
        return module.eval()

    wide, narrow = same(1e4), same(2.0)
    torch.testing.assert_close(
        expect_tensor(wide(x, x, x), (2, 5, d_model), "the output"),
        plain(x, x, x),
        rtol=1e-3,
        atol=1e-4,
        msg=lambda text: (
            "with a cap far above all scores it should be plain attention "
            f"(is each score divided by sqrt(d_k), and the tanh multiplied by the cap?): {text}"
        ),
    )
    causal = narrow(x, x, x, is_causal=True)
    changed = x.clone()
    changed[:, -1] += 1.0
    later = narrow(changed, changed, changed, is_causal=True)
    assert torch.allclose(causal[:, :-1], later[:, :-1], atol=1e-5), (
        "the future is seen: a forbidden score of -inf was capped, too. Cap first, then mask"
    )
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[..., 3:] = False
    torch.testing.assert_close(
        narrow(x, x, x, mask),
        narrow(x, x[:, :3], x[:, :3]),
        msg=lambda text: f"attn_mask is not respected: {text}",
    )
    query, key, value = (
        plain.split_heads(part(x))
        for part in (plain.query_projection, plain.key_projection, plain.value_projection)
    )
    scores = query @ key.mT / plain.d_k**0.5
    found = (2.0 * torch.tanh(scores / 2.0)).softmax(dim=-1) @ value
    torch.testing.assert_close(
        narrow(x, x, x),
        plain.output_projection(found.transpose(1, 2).flatten(-2)),
        msg=lambda text: (
            "scores, after the division by sqrt(d_k), should become cap * tanh(score / cap), "
            f"before the softmax: {text}"
        ),
    )
    cache, pieces = KeyValueCache(), []
    for i in range(5):
        new = x[:, i : i + 1]
        pieces.append(narrow(new, new, new, is_causal=True, cache=cache))
    torch.testing.assert_close(
        torch.cat(pieces, dim=1),
        causal,
        msg=lambda text: f"word by word with a cache should equal one causal pass: {text}",
    )
