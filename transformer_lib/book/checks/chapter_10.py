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
    expect_tensor(
        attempt(ours[:1, ..., :1]),
        (1, 1),
        "the mask of one sentence of one word (squeeze removes too much)",
    )


@diagnostic("Exercise 10.2")
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
def check_crossing(attempt: Callable[[int, int], int]) -> None:
    """Check the crossing by trying the lengths around it, for usual and unusual shapes."""

    def attention_wins(n: int, d_model: int, d_ff: int) -> bool:
        return 8 * n * d_model**2 + 4 * n**2 * d_model >= 4 * n * d_model * d_ff

    base = attempt(512, 2048)
    assert isinstance(base, int), f"a length is a whole number (int), got {type(base).__name__}"
    assert base != 2048, (
        "at 2,048 the pairs ALONE cost as much as the feed-forward network: the maps count too"
    )
    assert base != 3072, (
        "at 3,072 the pairs cost as much as all the rest: here the maps belong to attention"
    )
    for d_model, d_ff in (
        (512, 2048),
        (1024, 4096),
        (300, 901),
        (7, 100),
        (256, 512),
        (256, 128),
    ):
        n = attempt(d_model, d_ff)
        assert n >= 1, f"d_model {d_model}, d_ff {d_ff}: a length is at least 1, got {n}"
        assert attention_wins(n, d_model, d_ff), (
            f"d_model {d_model}, d_ff {d_ff}: at length {n} attention is still cheaper"
        )
        assert n == 1 or not attention_wins(n - 1, d_model, d_ff), (
            f"d_model {d_model}, d_ff {d_ff}: {n} is not the smallest"
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

    encoders = (honest, forgets_the_mask, masks_once, upside_down, counts_the_pads)
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
