"""The checks of chapter 8's exercises."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_lib.book.checks import LargestTensor, diagnostic, expect_tensor


@diagnostic("Exercise 8.1")
def check_sentence_vectors(attempt: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Width 1 isolates which words count and the divisor; then the factor, padding ids, empty sentences."""
    column = torch.tensor([[10.0], [20.0], [40.0], [80.0]])  # (vocab_size 4, d_model 1)

    def run(tokens: Tensor, weight: Tensor, pad_id: int) -> Tensor:
        answer = attempt(tokens, weight, pad_id)
        shape = (tokens.size(0), weight.size(1))
        return expect_tensor(answer, shape, f"the vectors for a {tuple(tokens.shape)} batch")

    whole = run(torch.tensor([[1, 2], [3, 1]]), column, 0)
    assert whole.flatten().tolist() == [30.0, 50.0], (
        f"without padding, d_model 1 (the factor is 1): the means of 20, 40 and of 80, 20 are 30 and 50, not {whole.flatten().tolist()}"
    )
    padded = run(torch.tensor([[1, 2, 0, 0], [3, 1, 1, 0]]), column, 0).flatten()
    assert padded[0] not in (20, 40), (
        f"20, 40 and two pads: the mean of the real words is 30, yours is {padded[0]:g}. The vector of the padding is added in"
    )
    assert padded[0] != 15 and padded[1] != 30, (
        f"20, 40 and two pads: the mean of the real words is 30, yours is {padded[0]:g}. Divide by the number of real words, not by the length"
    )
    assert padded[0] != 60, "20, 40 and two pads give 60: this is the sum, the mean is 30"
    assert padded.tolist() == [30.0, 40.0], (
        f"20, 40 and two pads, and 80, 20, 20 and one pad: the means are 30 and 40, yours are {padded.tolist()}. A word that occurs twice counts twice"
    )
    other = run(torch.tensor([[1, 2, 3, 3], [0, 3, 3, 3]]), column, 3).flatten()
    assert other.tolist() == [30.0, 10.0], (
        f"with pad_id 3 the words 1, 2 and the word 0 are real: the means are 30 and 10, yours are {other.tolist()}. Is the padding id written out?"
    )
    before = run(torch.tensor([[0, 0, 1, 2]]), column, 0).flatten()
    assert before.tolist() == [30.0], (
        f"padding may stand in front: the mean is 30, yours is {before.tolist()}"
    )
    empty = run(torch.tensor([[2, 2], [1, 2]]), column, 2).flatten()
    assert not empty.isnan().any(), "a sentence of nothing but padding gives NaN: 0 divided by 0"
    assert empty.tolist() == [0.0, 20.0], (
        f"a sentence of nothing but padding should give 0, and its neighbor 20, not {empty.tolist()}"
    )
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(9, 16, generator=generator)
    tokens = torch.randint(9, (5, 7), generator=generator)
    wide = run(tokens, weight, 4)
    right = torch.stack([weight[row[row != 4]].mean(dim=0) for row in tokens])
    factor = (wide / right).mean().item()
    assert (wide / right - factor).abs().max() < 1e-3, (
        "right for d_model 1, mixed up for d_model 16: over which axis do you add up?"
    )
    assert abs(factor - 4) < 1e-3, (
        f"the means are right; for d_model 16 the factor should be 4, not {factor:.3g}"
    )


@diagnostic("Exercise 8.2")
def check_embedding_gradient(attempt: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Width 1 isolates which rows get what; then a repeated token, the factor, a batch; then what is forbidden."""

    def run(tokens: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
        shape = (vocab_size, upstream.size(-1))
        answer = attempt(tokens, upstream, vocab_size)
        return expect_tensor(answer, shape, f"the gradient for {vocab_size} tokens")

    once = run(torch.tensor([[1, 3]]), torch.ones(1, 2, 1), 5).flatten()
    assert once.tolist() == [0, 1, 0, 1, 0], (
        f"tokens 1 and 3 were read: their rows get 1, the others 0, not {once.tolist()}"
    )
    twice = run(torch.tensor([[3, 3]]), torch.tensor([[[1.0], [10.0]]]), 5).flatten()
    assert twice[3] not in (1, 10), (
        "token 3 was read twice, but only one of the two gradients has arrived: they overwrite"
    )
    assert twice[3] != 5.5, (
        "token 3 was read twice, with 1 and 10: its row gets the sum, not the mean"
    )
    assert twice.tolist() == [0, 0, 0, 11, 0], (
        f"token 3 was read twice, with 1 and 10: its row gets 11, not {twice[3]:g}"
    )
    for d_model, right in ((16, 4.0), (9, 3.0)):
        wide = run(torch.tensor([[0]]), torch.ones(1, 1, d_model), 2)
        factor = wide[0].mean().item()
        assert abs(factor - right) < 1e-3, (
            f"the forward factor is {right:g} for d_model {d_model}, so the gradient's is too, not {factor:.3g}"
        )
    generator = torch.Generator().manual_seed(8)
    tokens = torch.randint(6, (2, 7), generator=generator)
    upstream = torch.randn(2, 7, 4, generator=generator)
    weight = torch.zeros(6, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(F.embedding(tokens, weight) * 2, weight, upstream)
    gap = (run(tokens, upstream, 6) - expected).abs().max().item()
    assert gap < 1e-5, f"right for one row of tokens; a batch of two is off by {gap:.3g}"

    tokens, upstream = torch.randint(5000, (2, 7)), torch.randn(2, 7, 2)
    with torch.inference_mode(), LargestTensor() as watch:  # type: ignore[no-untyped-call]  # in which autograd does not work
        try:
            attempt(tokens.clone(), upstream.clone(), 5000)
        except RuntimeError as error:
            raise AssertionError(
                f"right, but not without help: autograd is switched off here, and then your function fails ({error})"
            ) from None
    assert watch.numbers <= 4 * 5000, (
        f"right, but 14 tokens of 5000 make a tensor of {watch.numbers:,} numbers: that is a one-hot matrix"
    )


@diagnostic("Exercise 8.3")
def check_memory(attempt: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
    """Check a memory: shapes, keys at right angles, keys that are near each other, then many."""

    def recall(key: Tensor, value: Tensor) -> Tensor:
        answer = attempt(key, value)
        assert isinstance(answer, tuple | list) and len(answer) == 4, (
            f"four tensors are asked for, w_1, b_1, w_2, b_2, not {type(answer).__name__}"
        )
        (n, d), d_v = key.shape, value.size(1)
        shapes = {"w_1": (d, n), "b_1": (n,), "w_2": (n, d_v), "b_2": (d_v,)}
        w_1, b_1, w_2, b_2 = (
            expect_tensor(x, shape, f"{name} for {n} keys of width {d} and values of width {d_v}")
            for x, (name, shape) in zip(answer, shapes.items(), strict=True)
        )
        return torch.clamp(key @ w_1 + b_1, min=0) @ w_2 + b_2  # (n, d_v)

    def near(output: Tensor, value: Tensor) -> bool:
        return bool((output - value).abs().max() < 1e-3)

    value = torch.tensor([[1.0, -2.0, 5.0], [0.5, 3.0, -4.0]])
    output = recall(torch.eye(3)[:2], value)
    assert not near(output, torch.zeros(2, 3)), (
        "nothing comes out: not even the right key passes the bend. Its match is 1, so the bias must be above -1"
    )
    assert near(output, value), (
        f"keys at right angles: the values {value.tolist()} should come out, not {output.tolist()}"
    )
    for cosine in (0.6, 0.95, -0.8):
        key = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
        output = recall(key, value)
        ratio = (output / value).mean().item()
        assert not (ratio < 0.99 and near(output, ratio * value)), (
            f"keys with cosine {cosine}: the right value comes out, but only {ratio:.2f} times as loud. What is left of the match, 1, after the bias?"
        )
        assert near(output, value), (
            f"keys with cosine {cosine}: the first key returns {[round(x, 3) for x in output[0].tolist()]}, its value is {value[0].tolist()}. Does the other key answer, too?"
        )
    generator = torch.Generator().manual_seed(8)
    for n, d, d_v in ((6, 3, 4), (3, 8, 1), (12, 4, 2)):
        key = F.normalize(torch.randn(n, d, generator=generator), dim=-1)
        while (key @ key.T - torch.eye(n)).max() > 0.95:
            key = F.normalize(torch.randn(n, d, generator=generator), dim=-1)
        value = torch.randn(n, d_v, generator=generator)
        off = (recall(key, value) - value).abs().max().item()
        assert off < 1e-3, (
            f"{n} keys of width {d}: a value is off by {off:.2g}; two keys were right. Each key has neighbors of its own"
        )


@diagnostic("Exercise 8.4")
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

    assert not any(value.requires_grad for value in answer), (
        "your tensors ask for a gradient: no training is needed here"
    )
    first, second = network(3, 1)
    assert first == second, (
        f"(3, 1) should give the same number twice, not {first} and {second}: w_2 needs two equal columns"
    )
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
