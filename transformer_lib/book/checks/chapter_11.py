"""The checks of chapter 11's exercises."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 11.1")
def check_decoder_masks(attempt: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check the two masks of a decoder: shapes, then the memory's, then causality, then padding."""
    source = torch.tensor([[9, 9, 5, 6, 7], [8, 4, 5, 6, 7]])  # (batch, source)
    target = torch.tensor([[9, 4, 5], [4, 5, 6]])  # (batch, target), 9 is padding here
    pair = attempt(source, target, 9)
    assert isinstance(pair, tuple | list), (
        f"return (attn_mask, memory_mask), got {type(pair).__name__}"
    )
    assert len(pair) == 2, f"return (attn_mask, memory_mask), got {len(pair)} values"
    attn_mask = expect_tensor(pair[0], (2, 1, 3, 3), "attn_mask")
    memory_mask = expect_tensor(pair[1], (2, 1, 1, 5), "memory_mask")
    assert attn_mask.dtype == memory_mask.dtype == torch.bool, (
        f"masks are boolean: {attn_mask.dtype}, {memory_mask.dtype}"
    )
    real = [[False, False, True, True, True], [True] * 5]
    assert memory_mask[:, 0, 0].tolist() != [[not word for word in row] for row in real], (
        "memory_mask: True means allowed"
    )
    assert memory_mask[:, 0, 0].tolist() == real, (
        f"memory_mask should follow the SOURCE's padding, got {memory_mask[:, 0, 0]}"
    )
    no_padding = attn_mask[1, 0].tolist()
    assert not no_padding[0][2], (
        "attn_mask, sentence without padding: position 0 sees position 2 (causality)"
    )
    assert no_padding == [[True, False, False], [True, True, False], [True, True, True]], (
        f"attn_mask, sentence without padding: should be causal, got {no_padding}"
    )
    padded = attn_mask[0, 0].tolist()
    assert not any(row[0] for row in padded), (
        f"attn_mask: nobody may see the pad at position 0, got {padded}"
    )
    assert not padded[0][1] and not padded[0][2], (
        f"attn_mask: the pad's own row must not look ahead either, got {padded}"
    )
    assert padded[1:] == [[False, True, False], [False, True, True]], (
        f"attn_mask: causal and without the pad, got {padded}"
    )
    swapped = attempt(target, source, 9)
    assert tuple(expect_tensor(x, x.shape, "the masks").shape for x in swapped) == (
        (2, 1, 5, 5),
        (2, 1, 1, 3),
    ), (
        "with other lengths the masks should have other shapes: do you use the lengths you are given?"
    )
    everywhere = attempt(torch.tensor([[3, 3, 7]]), torch.tensor([[7, 3, 5, 6]]), 3)
    assert everywhere[0][0, 0, 3].tolist() == [True, False, True, True], (
        "with padding id 3, token 3 is padding wherever it stands: nobody may see it"
    )


@diagnostic("Exercise 11.2", in_place=True)
def check_decoder_layer(attempt: Callable[..., Tensor]) -> None:
    """Check a decoder layer: what each attention is given, then each sub-layer alone, then everything."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)  # (batch, target, d_model)
    memory = torch.randn(2, 5, 4, generator=generator)  # (batch, source, d_model)
    calls: list[tuple[str, Tensor, Tensor, Tensor, bool]] = []

    def zero(x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def same(x: Tensor) -> Tensor:
        return x

    def attention(name: str, scale: float) -> Callable[[Tensor, Tensor, Tensor, bool], Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
            if name == "cross":
                assert query.size(1) == x.size(1), (
                    "cross-attention: the TARGET asks, the memory answers"
                )
            calls.append((name, query.clone(), key.clone(), value.clone(), is_causal))
            return scale * F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

        return attend

    def run(
        scale: float, feed_forward: Callable[[Tensor], Tensor], *norms: Callable[[Tensor], Tensor]
    ) -> Tensor:
        look_back, look_across = attention("self", scale), attention("cross", scale)
        # Clones: a solution that works in place is right too, and must not change our x.
        return attempt(x.clone(), memory.clone(), look_back, look_across, feed_forward, *norms)

    quiet = run(0, zero, same, same, same)
    expect_tensor(quiet, (2, 3, 4), "the output")
    names = [call[0] for call in calls]
    assert names == ["self", "cross"], (
        f"call attend once, then attend_across once; you called {names}"
    )
    (_, query, key, value, causal), (_, _, across_key, across_value, across_causal) = calls
    assert all(torch.equal(part, x) for part in (query, key, value)), (
        "self-attention: query, key and value are all x"
    )
    assert causal is True, "self-attention in a decoder must not look ahead: is_causal is True"
    assert torch.equal(across_key, memory), "cross-attention: the keys come from the memory"
    assert torch.equal(across_value, memory), "cross-attention: the values come from the memory too"
    assert across_causal is False, "cross-attention may see the whole source: is_causal is False"
    assert torch.allclose(quiet, x), (
        "all sub-layers give zeros and norms do nothing: x must come out (residuals?)"
    )

    calls.clear()
    output = run(1, zero, same, same, same)
    first = x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert torch.allclose(calls[1][1], first, atol=1e-6), (
        "cross-attention must ask with norm_1(x + attend(...))"
    )
    second = first + F.scaled_dot_product_attention(first, memory, memory)
    assert torch.allclose(output, second, atol=1e-6), (
        "both attentions without feed-forward are off: residuals?"
    )
    fed = run(1, torch.square, same, same, same)
    assert torch.allclose(fed, second + second.square(), atol=1e-5), (
        "the feed-forward sub-layer is off: x + ffn(x)"
    )

    def halve(x: Tensor) -> Tensor:
        return x / 2

    def shift(x: Tensor) -> Tensor:
        return x + 1.0

    def negate(x: Tensor) -> Tensor:
        return -x

    output = run(1, torch.square, halve, shift, negate)
    one = halve(first)
    two = shift(one + F.scaled_dot_product_attention(one, memory, memory))
    assert torch.allclose(output, negate(two + two.square()), atol=1e-5), (
        "without norms all is right, with norms not: norm(x + sublayer(x)), norm_1, norm_2, norm_3 in this order"
    )


@diagnostic("Exercise 11.3")
def check_packed_masks(attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check the masks of packed rows: shapes, one pair, two, three, then padding."""

    def masks(source: list[list[int]], target: list[list[int]]) -> tuple[list[Any], list[Any]]:
        pair = attempt(torch.tensor(source), torch.tensor(target))
        assert isinstance(pair, tuple | list), (
            f"return (attn_mask, memory_mask), not a {type(pair).__name__}"
        )
        assert len(pair) == 2, f"return (attn_mask, memory_mask), got {len(pair)} values"
        rows, asks, answers = len(source), len(target[0]), len(source[0])
        found = []
        for name, mask, keys in (("attn_mask", pair[0], asks), ("memory_mask", pair[1], answers)):
            mask = expect_tensor(mask, (rows, 1, asks, keys), name)
            assert mask.dtype == torch.bool, f"{name} is boolean, got {mask.dtype}"
            found.append([[[int(x) for x in row] for row in one[0]] for one in mask.tolist()])
        return found[0], found[1]

    own, across = masks([[1, 1]], [[1, 1, 1]])
    assert own != [[[1, 1, 1]] * 3], "attn_mask: one pair, and a word sees later ones (causality)"
    assert across != [[[1, 0], [1, 1], [1, 1]]], (
        "memory_mask is causal: the whole source of its own pair is open to every target word"
    )
    assert own == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]], f"one pair: causal, got {own[0]}"
    assert across == [[[1, 1]] * 3], f"one pair, and the whole source is open, got {across[0]}"
    own, across = masks([[1, 2, 2]], [[1, 1, 2]])
    assert own[0][2][:2] != [1, 1], (
        "attn_mask: a word of pair 2 sees pair 1, which stands before it: causality is not enough"
    )
    assert across[0][2][0] == 0, "memory_mask: the target of pair 2 sees the source of pair 1"
    assert across[0][0][1:] == [0, 0], "memory_mask: the target of pair 1 sees the source of pair 2"
    assert own == [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]], f"two pairs, attn_mask is {own[0]}"
    assert across == [[[1, 0, 0], [1, 0, 0], [0, 1, 1]]], f"two pairs, memory_mask is {across[0]}"
    own, across = masks([[1, 2, 3, 3]], [[1, 2, 3]])
    assert own == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]], f"three pairs, attn_mask is {own[0]}"
    assert across == [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]], (
        f"three pairs, memory_mask is {across[0]}"
    )
    own, across = masks([[1, 1, 0], [1, 2, 2]], [[1, 0, 0], [1, 2, 2]])
    assert own[0][1:] == [[0, 0, 0]] * 2, (
        f"attn_mask: padding looks at nothing, not even at padding (0 is no pair), got {own[0]}"
    )
    assert across[0][1:] == [[0, 0, 0]] * 2, (
        f"memory_mask: padding looks at nothing, not even at padding (0 is no pair), got {across[0]}"
    )
    assert across[0][0] == [1, 1, 0], "memory_mask: a word sees the source's padding"
    assert own[1] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]], (
        f"the second row has masks of its own: {own}"
    )
    assert across[1] == [[1, 0, 0], [0, 1, 1], [0, 1, 1]], (
        f"the second row of memory_mask: {across}"
    )


@diagnostic("Exercise 11.4")
def check_diagnose(attempt: Callable[[Callable[[Tensor, Tensor], Tensor]], str]) -> None:
    """Check a diagnosis on a healthy decoder and on three sick ones, two of them in two variants."""

    def look_back(x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(x, x, x, is_causal=True)

    def healthy(x: Tensor, memory: Tensor) -> Tensor:
        x = look_back(x)
        return x + F.scaled_dot_product_attention(x, memory, memory)

    def sees_all(x: Tensor, memory: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return x + F.scaled_dot_product_attention(x, memory, memory)

    def sees_the_next_word(x: Tensor, memory: Tensor) -> Tensor:
        return healthy(x, memory) + 0.01 * F.pad(x[:, 1:], (0, 0, 0, 1))

    def sees_the_last_word(x: Tensor, memory: Tensor) -> Tensor:
        output = healthy(x, memory)
        output[..., -2, :] += 0.1 * x[..., -1, :]  # the last but one, and nobody else
        return output

    def self_attention_twice(x: Tensor, memory: Tensor) -> Tensor:
        return look_back(look_back(x))

    def empty_memory(x: Tensor, memory: Tensor) -> Tensor:
        return healthy(x, torch.zeros_like(memory))

    def causal_memory(x: Tensor, memory: Tensor) -> Tensor:
        x = look_back(x)
        allowed = torch.ones(x.size(1), memory.size(1), dtype=torch.bool).tril()  # (target, source)
        return x + F.scaled_dot_product_attention(x, memory, memory, attn_mask=allowed)

    patients = {
        "healthy": [healthy],
        "future": [sees_all, sees_the_next_word, sees_the_last_word],
        "deaf": [self_attention_twice, empty_memory],
        "causal memory": [causal_memory],
    }
    for expected, decoders in patients.items():
        for decoder in decoders:
            got = attempt(decoder)
            assert got in patients, (
                f"the answer should be one of {', '.join(patients)}, got {got!r}"
            )
            assert got == expected, (
                f"the decoder {decoder.__name__} is {expected!r}, your diagnosis is {got!r}"
            )
