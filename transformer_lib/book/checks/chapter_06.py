"""The checks of chapter 6's exercises."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.attention import MultiHeadAttention
from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 6.1")
def check_join_heads(attempt: Callable[[Tensor], Tensor]) -> None:
    """Check the joining of heads: one word, then one head, then all, entry by entry."""
    one_word = expect_tensor(
        attempt(torch.arange(6.0).view(1, 3, 1, 2)), (1, 1, 6), "3 heads of width 2, one word"
    )
    assert one_word.flatten().tolist() == [0, 1, 2, 3, 4, 5], (
        f"one word: head 0's entries first, got {one_word.flatten()}"
    )
    one_head = expect_tensor(
        attempt(torch.arange(6.0).view(1, 1, 3, 2)), (1, 3, 2), "one head of width 2, 3 words"
    )
    assert one_head.flatten().tolist() == [0, 1, 2, 3, 4, 5], (
        f"one head is the whole word: got {one_head.tolist()}"
    )
    # the number says where an entry belongs: hundreds batch, tens word, ones entry
    whole = (
        100 * torch.arange(2.0)[:, None, None] + 10 * torch.arange(3.0)[:, None] + torch.arange(4.0)
    )
    heads = torch.stack([whole[..., :2], whole[..., 2:]], dim=1)  # (batch, heads, length, d_k)
    joined = expect_tensor(attempt(heads), (2, 3, 4), "2 sentences, 2 heads, 3 words, width 4")
    assert not torch.equal(joined, heads.reshape(2, 3, 4)), (
        "the shape is right, but words are mixed up: word 1 begins with "
        f"{joined[0, 1, 0]:.0f}, which belongs to word {joined[0, 1, 0] // 10:.0f}. Transpose before you join"
    )
    swapped = torch.cat([whole[..., 2:], whole[..., :2]], dim=-1)
    assert not torch.equal(joined, swapped), (
        "the heads are joined in the wrong order: head 0 comes first"
    )
    interleaved = heads.permute(0, 2, 3, 1).flatten(-2)
    assert not torch.equal(joined, interleaved), (
        "the heads' entries alternate: heads must come before d_k when you join"
    )
    assert torch.equal(joined, whole), (
        f"some entries are in the wrong place: {joined.tolist()} should be {whole.tolist()}"
    )


@diagnostic("Exercise 6.2")
def check_multi_head_attention(attempt: Callable[..., Tensor]) -> None:
    """Check multi-head attention: one key isolates W_V and W_O, one head the scale, then the split."""
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 5, 5)  # cross-attention
    query, key, value = (torch.randn(2, length, 8, generator=generator) for length in lengths)
    maps = [torch.randn(8, 8, generator=generator) * 0.5 for _ in range(4)]
    w_query, w_key, w_value, w_output = maps

    one_key = expect_tensor(
        attempt(query, key[:, :1], value[:, :1], *maps, 1), (2, 3, 8), "3 queries, 1 key, 1 head"
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
    assert torch.allclose(one_head, expected, atol=1e-5), (
        "one head with several keys is off: suspect W_Q, W_K (swapped?), the scale, the softmax's axis"
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


@diagnostic("Exercise 6.3")
def check_attention_cost(attempt: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    """Check a cost formula against torch's own module and torch's own counter."""

    def counted(queries: int, keys: int, d_model: int, num_heads: int) -> tuple[int, int]:
        reference = nn.MultiheadAttention(d_model, num_heads, batch_first=True)
        x, memory = torch.zeros(1, queries, d_model), torch.zeros(1, keys, d_model)
        with FlopCounterMode(display=False) as counter:
            reference(x, memory, memory)
        return sum(p.numel() for p in reference.parameters()), counter.get_total_flops() // 2

    answer = attempt(6, 6, 8, 2)
    assert isinstance(answer, tuple) and len(answer) == 2, (
        f"return (parameters, multiply_adds), not {answer!r}"
    )
    parameters, operations = counted(6, 6, 8, 2)
    assert answer[0] != parameters - 4 * 8, (
        f"{answer[0]} parameters are the matrices alone: add the four biases"
    )
    assert answer[0] == parameters, (
        f"self-attention, d_model 8: torch has {parameters} parameters, you say {answer[0]}"
    )
    assert answer[1] != 2 * operations, (
        f"{answer[1]} are floating-point operations: a multiply-add counts once here"
    )
    assert answer[1] == operations, (
        f"6 words, d_model 8, 2 heads: torch counts {operations} multiply-adds, you say {answer[1]}"
    )
    assert attempt(6, 6, 8, 4) == answer, "with 4 heads instead of 2 the bill should be the same"
    for sizes in ((3, 10, 16, 4), (10, 3, 16, 4)):
        expected, answer = counted(*sizes), attempt(*sizes)
        assert answer == expected, (
            f"{sizes[0]} queries, {sizes[1]} keys: torch counts {expected}, you say {answer}"
        )


@diagnostic("Exercise 6.4")
def check_without_head(attempt: Callable[[nn.Module, Tensor, int], Tensor]) -> None:
    """Check the removal of a head: the only head, then one of four, then all four in turn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=generator)

    def make(num_heads: int) -> MultiHeadAttention:
        attention = MultiHeadAttention(8, num_heads)
        for parameter in attention.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        return attention

    only = make(1)
    output = expect_tensor(attempt(only, x, 0), (2, 5, 8), "the output without the only head")
    assert not torch.allclose(output, torch.zeros_like(output)), (
        "without its only head attention still adds its output bias"
    )
    assert torch.allclose(output, only.output_projection.bias.expand(2, 5, 8), atol=1e-5), (
        "without the only head nothing but the output bias should be left"
    )

    four = make(4)
    before = copy.deepcopy(four.state_dict())
    full = four(x, x, x)
    parts = [full - attempt(four, x, head) for head in range(4)]  # what each head contributes
    changed = [
        name
        for name, parameter in four.state_dict().items()
        if not torch.equal(parameter, before[name])
    ]
    assert not changed, f"the module is not as it was: {', '.join(changed)} changed. Work on a copy"
    for head, part in enumerate(parts):
        # A head whose values are all zero writes nothing: the same question asked in another way.
        silent = copy.deepcopy(four)
        rows = slice(2 * head, 2 * head + 2)
        silent.value_projection.weight.data[rows] = 0.0
        silent.value_projection.bias.data[rows] = 0.0
        expected = full - silent(x, x, x)
        others = [
            torch.allclose(part, parts[other], atol=1e-5) for other in range(4) if other != head
        ]
        assert not any(others), (
            f"head {head} contributes the same as another head: is the argument `head` used?"
        )
        assert torch.allclose(part, expected, atol=1e-4), (
            f"head {head} of 4: what is missing is not what this head writes. It owns entries {2 * head} and {2 * head + 1} "
            "of the joined vector; remove it before W_O, not after"
        )
