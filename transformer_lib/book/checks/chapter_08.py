"""The checks of chapter 8's exercises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 8.1")
def check_embedding(attempt: Callable[..., Tensor]) -> None:
    """One feature first, where the factor is 1 and only rows can be wrong; then wider."""
    column = torch.tensor([[10.0], [20.0], [30.0], [40.0]])  # (vocab_size 4, d_model 1)
    single = expect_tensor(
        attempt(torch.tensor([2]), column), (1, 1), "the embedding of one token, d_model 1,"
    )
    assert single.item() == 30.0, (
        f"token 2 should get row 2, which holds 30, not {single.item():g} "
        "(for d_model 1 the factor is 1)"
    )
    tokens = torch.tensor([[0, 2, 2], [1, 0, 1]])
    rows = expect_tensor(
        attempt(tokens, column), (2, 3, 1), "the embedding of a (2, 3) batch, d_model 1,"
    )
    assert torch.equal(rows, column[tokens]), (
        f"a batch gets the wrong rows: {rows.flatten().tolist()}"
    )
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(8))
    wide = expect_tensor(
        attempt(tokens, weight), (2, 3, 16), "the embedding of a (2, 3) batch, d_model 16,"
    )
    factors = wide / weight[tokens]  # (2, 3, 16)
    factor = factors.mean().item()
    assert factors.sub(factor).abs().max() < 1e-3, (
        "the rows are right for d_model 1, but mixed up for d_model 16"
    )
    assert abs(factor - 4) < 1e-3, (
        f"the rows are right; for d_model 16 the factor should be 4, not {factor:.3g}"
    )


@diagnostic("Exercise 8.2")
def check_feed_forward(attempt: Callable[..., Tensor]) -> None:
    """Biases alone, then one number through one hidden feature, then a batch."""
    zeros = (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 2))
    attempted = attempt(torch.ones(1, 1, 2), *zeros, torch.tensor([1.0, -2.0]))
    out = expect_tensor(attempted, (1, 1, 2), "the output")
    assert out[0, 0, 0].item() == 1, (
        f"with all else zero the output should be b_2 = (1, -2), not {out.flatten().tolist()}"
    )
    assert out[0, 0, 1].item() != 0, (
        "with all else zero the output should be b_2 = (1, -2): nothing is cut off at the end"
    )
    assert out.flatten().tolist() == [1.0, -2.0], (
        f"with all else zero the output should be b_2 = (1, -2), not {out}"
    )

    def one(x: float, bias: float = 0.0) -> float:
        """One feature in, one hidden, one out: max(0, x + bias) * -3."""
        w_1, w_2 = torch.ones(1, 1), torch.full((1, 1), -3.0)
        return attempt(
            torch.full((1, 1, 1), x), w_1, torch.full((1,), bias), w_2, torch.zeros(1)
        ).item()

    assert abs(one(2.0) + 6) < 1e-5, (
        f"x 2, W_1 1, W_2 -3, no biases: should be -6, not {one(2.0):g}"
    )
    assert one(-2.0) == 0, (
        f"x -2 gives a negative hidden feature, which counts as 0; your output is {one(-2.0):g}"
    )
    assert abs(one(-2.0, 3.0) + 3) < 1e-5, (
        f"x -2, b_1 3: b_1 is added before the bend, so -3, not {one(-2.0, 3.0):g}"
    )
    generator = torch.Generator().manual_seed(8)
    shapes = ((2, 3, 4), (4, 5), (5,), (5, 4), (4,))
    x, w_1, b_1, w_2, b_2 = (torch.randn(shape, generator=generator) for shape in shapes)
    attempted = attempt(x, w_1, b_1, w_2, b_2)
    out = expect_tensor(attempted, (2, 3, 4), "the output of a (2, 3, 4) batch, d_ff 5,")
    for feature in range(4):
        expected = b_2[feature].item()
        for i in range(5):
            match = b_1[i].item() + sum(x[1, 2, j].item() * w_1[j, i].item() for j in range(4))
            expected += max(0.0, match) * w_2[i, feature].item()
        got = out[1, 2, feature].item()
        assert abs(got - expected) < 1e-4, (
            f"right for width 1, wrong for d_model 4, d_ff 5: {got:.4g}, not {expected:.4g}"
        )


@diagnostic("Exercise 8.3")
def check_parameter_counts(attempt: Callable[..., tuple[int, int, int]]) -> None:
    """Sizes of which only one part is there; then numbers counted by hand."""
    counts = attempt(10, 1, 1, 0)
    assert len(counts) == 3, (
        f"three numbers are asked for: embedding, attention, feed-forward; got {len(counts)}"
    )
    assert counts[1] == counts[2] == 0, (
        f"without layers there is no attention and no feed-forward network: {counts}"
    )
    assert counts[0] == 10, (
        f"10 tokens of width 1: one shared matrix holds 10 numbers, not {counts[0]}"
    )
    _, attention, feed_forward = attempt(10, 3, 2, 1)
    assert attention != 108, (
        "108 leaves the biases out: each of the four maps of an attention has 3"
    )
    assert attention != 96, "96 counts one attention a layer: a decoder layer has two"
    assert attention != 72, "72 leaves the biases out and counts one attention in a decoder layer"
    assert attention == 144, (
        f"d_model 3, one layer each: 3 attentions of 4 (9 + 3) numbers make 144, not {attention}"
    )
    assert feed_forward != 24, "24 leaves the biases out: there are 2 + 3 of them in each network"
    assert feed_forward == 34, (
        f"d_model 3, d_ff 2, one layer each: 2 (6 + 2 + 6 + 3) make 34, not {feed_forward}"
    )
    base = attempt(37_000, 512, 2048, 6)
    assert tuple(base) == (18_944_000, 18_911_232, 25_196_544), (
        f"right for one layer; the base model comes out as {base}"
    )


@diagnostic("Exercise 8.4")
def check_embedding_gradient(attempt: Callable[..., Tensor]) -> None:
    """Width 1 isolates which rows get what; then a repeated token; then the factor."""
    ones = torch.ones(1, 2, 1)
    attempted = attempt(torch.tensor([[1, 3]]), ones, 5)
    once = expect_tensor(attempted, (5, 1), "the gradient for 5 tokens, d_model 1,").flatten()
    assert once.tolist() == [0, 1, 0, 1, 0], (
        f"tokens 1 and 3 were read: their rows get 1, the others 0, not {once.tolist()}"
    )
    twice = attempt(torch.tensor([[3, 3]]), torch.tensor([[[1.0], [10.0]]]), 5).flatten()
    assert twice[3] not in (1, 10), (
        "token 3 was read twice, but only one of the two gradients has arrived: they overwrite"
    )
    assert twice.tolist() == [0, 0, 0, 11, 0], (
        f"token 3 was read twice, with 1 and 10: its row gets 11, not {twice[3]:g}"
    )
    attempted = attempt(torch.tensor([[0]]), torch.ones(1, 1, 16), 2)
    wide = expect_tensor(attempted, (2, 16), "the gradient for d_model 16")
    factor = wide[0].mean().item()
    assert abs(factor - 4) < 1e-3, (
        f"the forward factor is 4 for d_model 16, so the gradient's is too, not {factor:.3g}"
    )
    generator = torch.Generator().manual_seed(8)
    tokens = torch.randint(6, (2, 7), generator=generator)
    upstream = torch.randn(2, 7, 4, generator=generator)
    weight = torch.zeros(6, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(F.embedding(tokens, weight) * 2, weight, upstream)
    got = expect_tensor(
        attempt(tokens, upstream, 6), (6, 4), "the gradient of a (2, 7) batch, d_model 4,"
    )
    gap = (got - expected).abs().max().item()
    assert gap < 1e-5, f"right for one row of tokens; a batch of two is off by {gap:.3g}"


@diagnostic("Exercise 8.5")
def check_maximum(attempt: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Shapes; points that need one feature after the other; then points far out, and a grid."""
    answer = attempt()
    assert isinstance(answer, tuple | list), (
        f"a tuple of four tensors is asked for, not {type(answer).__name__}"
    )
    assert len(answer) == 4, "four tensors are asked for: w_1, b_1, w_2, b_2"
    for value, shape, name in zip(
        answer, ((2, 3), (3,), (3, 2), (2,)), ("w_1", "b_1", "w_2", "b_2"), strict=True
    ):
        expect_tensor(value, shape, name)
    w_1, b_1, w_2, b_2 = (value.double() for value in answer)

    def network(a: float, b: float) -> list[float]:
        x = torch.tensor([a, b], dtype=torch.float64)
        out = torch.clamp(x @ w_1 + b_1, min=0) @ w_2 + b_2
        return [round(value, 4) for value in out.tolist()]

    assert network(0, 0) == [0, 0], (
        f"(0, 0) should give (0, 0), not {network(0, 0)}: look at the biases"
    )
    assert network(1, 3) == [3, 3], (
        f"(1, 3) should give (3, 3), not {network(1, 3)}: here b is the larger"
    )
    assert network(3, 1) == [3, 3], (
        f"(3, 1) should give (3, 3), not {network(3, 1)}: right where b is larger, wrong where a is"
    )
    negative = network(-3, -1)
    assert negative == [-1, -1], (
        f"(-3, -1) should give (-1, -1), not {negative}: b is lost when it is negative"
    )
    reach = 1000 + 2 * round(b_1.abs().max().item())  # farther out than the biases
    far = network(-2 * reach, -reach)
    assert far == [-reach, -reach], (
        f"({-2 * reach}, {-reach}) should give ({-reach}, {-reach}), not {far}: "
        "a bias only moves the bend further out; carry b past it in two features"
    )
    for a in range(-4, 5):
        for b in range(-4, 5):
            assert network(a, b) == [max(a, b)] * 2, (
                f"({a}, {b}) should give {max(a, b)} twice, not {network(a, b)}"
            )
