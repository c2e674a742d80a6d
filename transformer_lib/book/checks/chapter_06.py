"""The checks of chapter 6's exercises."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.attention import (
    MultiHeadAttention,
    attention_weights,
    scaled_dot_product_attention,
)
from transformer_lib.book.checks import diagnostic, expect_tensor


def _split(x: Tensor, num_heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (num_heads, -1))
    return split.transpose(1, 2)


def _without_transpose(x: Tensor, num_heads: int) -> Tensor:
    return x.reshape(x.size(0), num_heads, x.size(1), -1)


def _sound(x: Tensor, num_heads: int) -> list[Tensor]:
    """Ways to split that mix nothing."""
    return [
        _split(x, num_heads),
        _split(x, num_heads).flip(1),
        x.unflatten(-1, (-1, num_heads)).permute(0, 3, 1, 2),
    ]


def _mixed(x: Tensor, num_heads: int) -> list[Tensor]:
    """Ways to split that mix words, or sentences."""
    right, swapped = _split(x, num_heads), _split(x, num_heads).clone()
    if x.size(1) > 1:  # in the last head only
        swapped[:, -1, :2] = swapped[:, -1, :2].flip(1)
    return [
        _without_transpose(x, num_heads),
        _split(x.flip(1), num_heads),
        _split(x.cumsum(dim=1), num_heads),
        _split(x.flip(1).cumsum(dim=1).flip(1), num_heads),
        _split(x.roll(1, dims=0), num_heads),
        swapped,
        torch.cat([right[:1], right[1:] + right[:1]]),
    ]


def _nth(
    splits: Callable[[Tensor, int], list[Tensor]], i: int, x: Tensor, num_heads: int
) -> Tensor:
    return splits(x, num_heads)[i]


@diagnostic("Exercise 6.1")
def check_finds_mixed_words(attempt: Callable[[Callable[[Tensor, int], Tensor]], bool]) -> None:
    """Check a test of splits: it must pass the sound ones and find each of the mixed ones."""
    what = (
        "splits as the chapter does",
        "numbers the heads from the other end",
        "deals the entries out to the heads in turn",
    )
    for i, words in enumerate(what):
        found = attempt(partial(_nth, _sound, i))
        assert isinstance(found, bool), f"return True or False, not {type(found).__name__}"
        assert not found, (
            f"a split that {words} mixes no words, yet you say it does. Do you compare with one way of numbering? "
            "Ask only where a word's entries go"
            + (", and mind that True means mixed" if i == 0 else "")
        )
    mistakes = (
        "forgets the transpose: try more than one head and more than one word",
        "reverses the sentence: nothing else moves when a word changes, but the wrong place does",
        "lets each word take in those before it: look at all places, and change an early word",
        "lets each word take in those after it: look at all places, and change a late word",
        "gives each sentence the words of another: two sentences should not be the same, nor one alone",
        "exchanges the first two words in the last head only: look at every head and every word",
        "lets the first sentence leak into the others: look at the other sentences, too",
    )
    for i, words in enumerate(mistakes):
        assert attempt(partial(_nth, _mixed, i)), f"your test misses a split that {words}"


@diagnostic("Exercise 6.2")
def check_multi_head_attention(attempt: Callable[..., Tensor]) -> None:
    """Check multi-head attention: one key isolates W_V and W_O, one head the scale, then the split."""
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 5, 5)  # cross-attention
    query, key, value = (torch.randn(2, length, 8, generator=generator) for length in lengths)
    maps = [torch.randn(8, 8, generator=generator) * 0.5 for _ in range(4)]
    w_query, w_key, w_value, w_output = maps

    one_key = expect_tensor(
        attempt(query, key[:, :1], value[:, :1], *maps, 1),
        (2, 3, 8),
        "3 queries, 1 key, 1 head",
    )
    expected = (value[:, :1] @ w_value @ w_output).expand(2, 3, 8)
    no_output = (value[:, :1] @ w_value).expand(2, 3, 8)
    assert not torch.allclose(one_key, no_output, atol=1e-5), (
        "with one key only W_V is seen: W_O is missing"
    )
    assert not torch.allclose(one_key, value[:, :1] @ w_value.T @ w_output.T, atol=1e-5), (
        "x @ W, not x @ W.T"
    )
    assert torch.allclose(one_key, expected, atol=1e-5), (
        "with one key the answer is value @ W_V @ W_O: suspect these two "
        "(and the softmax's axis: over the keys, one key has weight 1)"
    )
    two_heads = attempt(query, key[:, :1], value[:, :1], *maps, 2)
    assert torch.allclose(two_heads, expected, atol=1e-5), (
        "with one key the number of heads cannot matter, but with 2 heads the output differs: "
        "suspect the joining of heads, or which columns belong to head i"
    )

    one_head = attempt(query, key, value, *maps, 1)
    expected = (
        F.scaled_dot_product_attention(query @ w_query, key @ w_key, value @ w_value) @ w_output
    )
    scores, values = query @ w_query @ (key @ w_key).mT, value @ w_value
    mistakes = {
        "the scores are not scaled: divide them by sqrt(d_k)": scores.softmax(dim=-1) @ values,
        "the softmax is over the queries; it belongs over the keys, the last axis": (
            (scores / 8**0.5).softmax(dim=-2) @ values
        ),
        "W_Q and W_K are swapped": F.scaled_dot_product_attention(
            query @ w_key, key @ w_query, values
        ),
    }
    for message, wrong in mistakes.items():
        assert not torch.allclose(one_head, wrong @ w_output, atol=1e-5), message
    assert torch.allclose(one_head, expected, atol=1e-5), (
        "one head with several keys is off: suspect W_Q, W_K, the scale"
    )

    def reference(num_heads: int, scale: float | None = None) -> Tensor:
        pieces = zip(*(m.chunk(num_heads, dim=1) for m in (w_query, w_key, w_value)), strict=True)
        heads = [
            F.scaled_dot_product_attention(query @ q, key @ k, value @ v, scale=scale)
            for q, k, v in pieces
        ]
        return torch.cat(heads, dim=-1) @ w_output

    output = attempt(query, key, value, *maps, 2)
    assert not torch.allclose(output, reference(2, scale=8**-0.5), atol=1e-5), (
        "the scores are divided by sqrt(d_model); each head has width d_k = d_model / num_heads"
    )
    for num_heads in (2, 4, 8):
        output = attempt(query, key, value, *maps, num_heads)
        assert torch.allclose(output, reference(num_heads), atol=1e-5), (
            f"one head is right, {num_heads} are not: suspect the split (is there a transpose between view and attention, "
            "and does head i own columns i * d_k and following?)"
        )
    query, memory = torch.randn(3, 4, 12), torch.randn(3, 6, 12)
    maps = [torch.randn(12, 12) for _ in range(4)]
    pieces = zip(*(m.chunk(3, dim=1) for m in maps[:3]), strict=True)
    heads = [
        F.scaled_dot_product_attention(query @ q, memory @ k, memory @ v) for q, k, v in pieces
    ]
    output = expect_tensor(
        attempt(query, memory, memory, *maps, 3), (3, 4, 12), "3 sentences, 3 heads"
    )
    assert torch.allclose(output, torch.cat(heads, dim=-1) @ maps[3], atol=1e-4), (
        "d_model 8 is right, 12 with 3 heads is not: is a number written out that depends on the sizes?"
    )


@diagnostic("Exercise 6.3")
def check_reordered(attempt: Callable[[MultiHeadAttention, list[int]], nn.Module]) -> None:
    """Check heads in another order: a new module, the same output, each head in its place; biases, none, narrow heads."""
    for sizes, bias in (((12, 3, None), False), ((12, 3, None), True), ((10, 4, 3), True)):
        d_model, num_heads, d_k = sizes
        attention = _random_attention(d_model, num_heads, d_k, bias)
        before, x = copy.deepcopy(attention.state_dict()), torch.randn(2, 5, d_model)
        order = [2, 0, 1, *range(3, num_heads)]  # not its own inverse
        order = order[::-1] if num_heads > 3 else order
        new = attempt(attention, order)
        what = f"{num_heads} heads of width {attention.d_k}, {'with' if bias else 'without'} biases"
        assert isinstance(new, MultiHeadAttention), (
            f"return a MultiHeadAttention, not {type(new).__name__}"
        )
        assert new is not attention, "you return the module that was given: make a new one"
        changed = [name for name, p in attention.state_dict().items() if not p.equal(before[name])]
        assert not changed, (
            f"the given module is not as it was: {', '.join(changed)} changed. Work on a copy"
        )
        assert (new.num_heads, new.d_k) == (num_heads, attention.d_k), (
            f"{what}: the new module has {new.num_heads} heads of width {new.d_k}"
        )
        ours, theirs = _weights(attention, x), _weights(new, x)  # (batch, heads, queries, keys)
        inverse = [order.index(i) for i in range(num_heads)]
        assert not torch.allclose(theirs, ours, atol=1e-5), (
            f"{what}: the heads stand in their old order"
        )
        assert not torch.allclose(theirs, ours[:, inverse], atol=1e-5), (
            f"{what}: the order is inverted: the new head i is the old head order[i], not the other way round"
        )
        if bias:
            with torch.no_grad():
                silent = [copy.deepcopy(module) for module in (attention, new)]
                for module in silent:
                    for part in ("query", "key"):
                        getattr(module, f"{part}_projection").bias.zero_()
                ours_silent, theirs_silent = (_weights(module, x) for module in silent)
            if torch.allclose(theirs_silent, ours_silent[:, order], atol=1e-5):
                assert torch.allclose(theirs, ours[:, order], atol=1e-5), (
                    f"{what}: a head has left its bias behind: the entries of query_projection.bias and key_projection.bias move, too"
                )
        assert torch.allclose(theirs, ours[:, order], atol=1e-5), (
            f"{what}: the weights of the new head i are not those of the old head order[i]. "
            "Head j owns the rows j * d_k to (j + 1) * d_k - 1 of query_projection.weight and of key_projection.weight"
        )
        with torch.no_grad():
            expected, output = attention(x, x, x), new(x, x, x)
            same_values = torch.allclose(
                _values(new, x), _values(attention, x)[:, order], atol=1e-5
            )
        assert same_values, (
            f"{what}: the heads find the right words and fetch the wrong things: value_projection"
            f"{' (its weight, and its bias)' if bias else ''} belongs to the heads, too"
        )
        assert torch.allclose(output, expected, atol=1e-4), (
            f"{what}: each head is in its place, but the output has changed: in output_projection a head owns columns of the weight"
            f"{', and the bias belongs to no head' if bias else ''}"
        )
        with torch.no_grad():
            for parameter in new.parameters():
                parameter.zero_()
        assert all(p.equal(before[name]) for name, p in attention.state_dict().items()), (
            "the new module shares weights with the old one: copy them"
        )


def _random_attention(
    d_model: int, num_heads: int, d_k: int | None = None, bias: bool = True
) -> MultiHeadAttention:
    attention = MultiHeadAttention(d_model, num_heads, bias=bias, d_k=d_k)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.5)
    return attention


@torch.no_grad()
def _weights(attention: MultiHeadAttention, x: Tensor) -> Tensor:
    query = attention.split_heads(attention.query_projection(x))
    return attention_weights(query, attention.split_heads(attention.key_projection(x)))


@torch.no_grad()
def _values(attention: MultiHeadAttention, x: Tensor) -> Tensor:
    return attention.split_heads(attention.value_projection(x))


@diagnostic("Exercise 6.4")
def check_without_head(attempt: Callable[[nn.Module, Tensor, int], Tensor]) -> None:
    """Check the removal of a head: the only head, then each of four, then without biases and of another width."""

    def run(attention: MultiHeadAttention, x: Tensor, head: int) -> Tensor:
        before, training = copy.deepcopy(attention.state_dict()), attention.training
        answer = attempt(attention, x, head)
        what = f"the output without head {head} of {attention.num_heads}"
        output = expect_tensor(answer, tuple(x.shape), what)
        changed = [name for name, p in attention.state_dict().items() if not p.equal(before[name])]
        assert not changed, (
            f"the module is not as it was: {', '.join(changed)} changed. Work on a copy"
        )
        hooks = any(m._forward_hooks or m._forward_pre_hooks for m in attention.modules())
        assert "attend" not in vars(attention) and not hooks and attention.training == training, (
            "the module is not as it was: a hook, a replaced method or its mode is left. Work on a copy"
        )
        return output

    x = torch.randn(2, 5, 8)
    only = _random_attention(8, 1)
    output = run(only, x, 0)
    assert not torch.allclose(output, torch.zeros_like(output)), (
        "without its only head attention still adds its output bias"
    )
    assert torch.allclose(output, only.output_projection.bias.expand(2, 5, 8), atol=1e-5), (
        "without the only head nothing but the output bias should be left"
    )
    for d_model, num_heads, d_k, bias in ((8, 4, None, True), (6, 3, 4, True), (8, 2, None, False)):
        attention, x = _random_attention(d_model, num_heads, d_k, bias), torch.randn(3, 4, d_model)
        width = attention.d_k
        maps = (attention.query_projection, attention.key_projection, attention.value_projection)
        with torch.no_grad():
            full = attention(x, x, x)
            q, k, v = (attention.split_heads(each(x)) for each in maps)
            heads = scaled_dot_product_attention(q, k, v)
            blocks = attention.output_projection.weight.unflatten(1, (num_heads, width))
            written = torch.einsum(
                "bhld,ohd->bhlo", heads, blocks
            )  # (batch, heads, length, d_model)
        missing = [full - run(attention, x, head).detach() for head in range(num_heads)]
        what = f"{num_heads} heads of width {width}, {'with' if bias else 'without'} biases: "
        assert not torch.allclose(missing[0], missing[1], atol=1e-5), (
            what + "head 0 contributes the same as head 1: is the argument `head` used?"
        )
        for head in range(num_heads):
            others = full - written[:, head]  # what should come out
            found = full - missing[head]
            assert not torch.allclose(found, written[:, head], atol=1e-4), (
                what + "you keep the head that should go and drop the others"
            )
            if bias:
                lost = others - attention.output_projection.bias
                assert not torch.allclose(found, lost, atol=1e-4), (
                    what + "the output bias is lost; it belongs to no head"
                )
            assert torch.allclose(found, others, atol=1e-4), (
                what
                + f"without head {head} what is missing is not what this head writes. It owns entries {head * width} to "
                f"{(head + 1) * width - 1} of the joined vector; remove it before W_O, not after, and let the other heads attend as before"
            )
