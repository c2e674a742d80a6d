"""The checks of chapter 10's exercises."""

from collections.abc import Callable

import torch
from torch import Tensor

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 10.1")
def check_torch_padding_mask(attempt: Callable[[Tensor], Tensor]) -> None:
    """Check a mask for torch: shape and type, then its meaning, then a batch of one."""
    words = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    ours = words[:, None, None, :]  # (batch, 1, 1, length)
    mask = expect_tensor(attempt(ours), (2, 5), "torch's mask")
    assert mask.dtype == torch.bool, f"the mask should be boolean, yours is {mask.dtype}"
    assert not torch.equal(mask, ours[:, 0, 0]), (
        "the shape is right; but in torch's mask True means padding"
    )
    assert mask.tolist() == [[False] * 3 + [True] * 2, [False] * 5], (
        f"only positions 3 and 4 of row 0 are padding, got {mask}"
    )
    longer = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.bool)[:, None, None, :]
    assert attempt(longer).tolist() == [[False, True], [True, False], [False, False]], (
        f"padding may stand on either side, in any row, got {attempt(longer).tolist()}"
    )
    expect_tensor(
        attempt(ours[:1, ..., :1]),
        (1, 1),
        "the mask of one sentence of one word (squeeze removes too much)",
    )


@diagnostic("Exercise 10.2", in_place=True)
def check_encoder_layer(attempt: Callable[..., Tensor]) -> None:
    """Check an encoder layer: each part alone, then all of them, in both norm orders."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)  # (batch, length, d_model)
    shape = (2, 3, 4)

    def zero(x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def same(x: Tensor) -> Tensor:
        return x

    def mix(x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True).expand_as(x) + 1.0

    def square(x: Tensor) -> Tensor:
        return x.square()

    def halve(x: Tensor) -> Tensor:
        return x / 2

    def cube(x: Tensor) -> Tensor:
        return x**3

    for norm_first in (False, True):
        order = "pre-norm" if norm_first else "post-norm"
        nothing = expect_tensor(
            attempt(x.clone(), zero, zero, same, same, norm_first), shape, f"{order}: the output"
        )
        assert torch.allclose(nothing, x), (
            f"{order}, both sub-layers give zeros, norms do nothing: x must come out (residuals?)"
        )
        only_mix = attempt(x.clone(), mix, zero, same, same, norm_first)
        assert not torch.allclose(only_mix, mix(x)), (
            f"{order}: the residual around attention is missing"
        )
        assert torch.allclose(only_mix, x + mix(x)), (
            f"{order}: with attention alone and no norms, x + attend(x) must come out"
        )
        only_square = attempt(x.clone(), zero, square, same, same, norm_first)
        assert not torch.allclose(only_square, square(x)), (
            f"{order}: the residual around the feed-forward network is missing"
        )
        assert torch.allclose(only_square, x + square(x)), (
            f"{order}: with the feed-forward network alone, x + ffn(x) must come out"
        )
        mixed = x + mix(x)
        both = attempt(x.clone(), mix, square, same, same, norm_first)
        assert not torch.allclose(both, x + mix(x) + square(x)), (
            f"{order}: the feed-forward network must read what attention returned"
        )
        assert torch.allclose(both, mixed + square(mixed)), (
            f"{order}: both sub-layers without norms are off: attention first"
        )

    post = halve(x + mix(x))
    post = cube(post + square(post))
    pre = x + mix(halve(x))
    pre = pre + square(cube(pre))
    got_post, got_pre = (
        attempt(x.clone(), mix, square, halve, cube, False),
        attempt(x.clone(), mix, square, halve, cube, True),
    )
    assert not torch.allclose(got_post, pre), (
        "norm_first is the wrong way round: False is post-norm, the paper's order"
    )
    assert torch.allclose(got_post, post), (
        "post-norm: the norms are off. It is norm(x + sublayer(x)), norm_1 for attention, norm_2 for the other"
    )
    assert torch.allclose(got_pre, pre), (
        "pre-norm: the norms are off. x + sublayer(norm(x)): the residual adds the x that was NOT normalized"
    )


@diagnostic("Exercise 10.3")
def check_reach(attempt: Callable[[list[Tensor]], Tensor]) -> None:
    """Check a reach: one layer, its residual, then two layers, in this order, then many."""

    def reach(*layers: list[list[int]]) -> list[list[int]]:
        masks = [torch.tensor(layer, dtype=torch.bool) for layer in layers]
        found = attempt(masks)
        found = expect_tensor(found, masks[0].shape, "the reach")
        assert found.dtype == torch.bool, f"the reach is boolean, got {found.dtype}"
        return [[int(x) for x in row] for row in found.tolist()]

    left = [[1, 0, 0], [1, 1, 0], [0, 1, 1]]  # each hears itself and the one before it
    one = reach(left)
    assert one != [list(column) for column in zip(*left, strict=True)], (
        "rows are outputs, columns are inputs: yours is transposed"
    )
    assert one == left, f"one layer: who hears whom is the mask itself, got {one}"
    deaf = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]  # nobody hears itself
    assert reach(deaf) == left, (
        "a mask without its diagonal: by the residual connection every output depends on its own input"
    )
    two = reach(left, left)
    assert two[2] != [0, 1, 1], (
        "two layers: position 2 hears 1 in layer 2, and 1 has heard 0 in layer 1. An OR of the masks does not see that"
    )
    assert two == [[1, 0, 0], [1, 1, 0], [1, 1, 1]], f"two such layers reach {two}"
    first, second = [[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert reach(first, second) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]], (
        "layer 1 brings 0 to 1, layer 2 brings 1 to 2, so output 2 depends on input 0: the lowest layer comes first, is "
        "the product the wrong way round?"
    )
    assert reach(second, first) == [[1, 0, 0], [1, 1, 0], [0, 1, 1]], (
        "layer 1 brings 1 to 2, only then layer 2 brings 0 to 1: output 2 does not depend on input 0"
    )
    nobody = [[0, 0, 0]] * 3
    assert reach(nobody) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "nobody attends: each knows itself"
    length = 9
    chain = [[int(j in (i - 1, i)) for j in range(length)] for i in range(length)]
    for depth in (3, 8, 300):
        expected = [[int(i - depth <= j <= i) for j in range(length)] for i in range(length)]
        assert reach(*[chain] * depth) == expected, (
            f"{depth} layers carry what is known {min(depth, 8)} positions further (do your numbers overflow?)"
        )


@diagnostic("Exercise 10.4")
def check_padding_detector(
    attempt: Callable[[Callable[[Tensor, Tensor], Tensor]], bool],
) -> None:
    """Check a padding detector on an honest encoder and on four faulty ones."""

    def average(x: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, 0, 0, :, None].to(x.dtype)  # (batch, length, 1)
        return x + (x * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)

    def honest(x: Tensor, mask: Tensor) -> Tensor:
        return average(average(x, mask), mask)

    def forgets_the_mask(x: Tensor, mask: Tensor) -> Tensor:
        return honest(x, torch.ones_like(mask))

    def masks_once(x: Tensor, mask: Tensor) -> Tensor:
        return average(average(x, mask), torch.ones_like(mask))

    def upside_down(x: Tensor, mask: Tensor) -> Tensor:
        return honest(x, ~mask)

    def counts_the_pads(x: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, 0, 0, :, None].to(x.dtype)  # (batch, length, 1)
        return x + (x * real).sum(dim=1, keepdim=True) / x.size(1)

    def gently(encoder: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def gentle(x: Tensor, mask: Tensor) -> Tensor:
            return x + 0.01 * (encoder(x, mask) - x)

        gentle.__name__ = f"{encoder.__name__} gently"
        return gentle

    faulty = (forgets_the_mask, masks_once, upside_down, counts_the_pads)
    gentle = [gently(encoder) for encoder in (honest, *faulty)]
    encoders = (honest, *faulty, *gentle)
    verdicts = {encoder.__name__: attempt(encoder) for encoder in encoders}
    kinds = {
        name: type(verdict).__name__
        for name, verdict in verdicts.items()
        if not isinstance(verdict, bool)
    }
    assert not kinds, f"the detector should return True or False, but returned {kinds}"
    assert verdicts["honest"], (
        "the honest encoder was accused: compare real positions only, and allow for rounding"
    )
    assert not verdicts["forgets_the_mask"], (
        "an encoder without any mask went unnoticed: does your test batch have padding?"
    )
    assert not verdicts["upside_down"], (
        "an encoder with the mask upside down went unnoticed: fill the pads with something other than zeros"
    )
    assert not verdicts["masks_once"], (
        "an encoder that masks once only went unnoticed: change the pads' content"
    )
    assert not verdicts["counts_the_pads"], (
        "an encoder that divides by the padded length went unnoticed: change the AMOUNT"
    )
    assert verdicts["honest gently"], "an honest encoder was accused: allow for rounding"
    unnoticed = [encoder.__name__ for encoder in gentle[1:] if verdicts[encoder.__name__]]
    assert not unnoticed, (
        f"loud faults are found, the same at a hundredth of the strength are not ({', '.join(unnoticed)}): the "
        "tolerance is too wide"
    )
