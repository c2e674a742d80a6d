"""The checks of chapter 4's exercises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_lib.book.checks import diagnostic, expect_tensor


@diagnostic("Exercise 4.1")
def check_attention_pooling(attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check attention pooling: one patch, then a query of zeros, then a batch against its pictures, then large scores."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 5, 4, generator=generator)
    query = torch.randn(4, generator=generator)

    answer = attempt(patches[:1, :1], query)
    assert isinstance(answer, tuple | list) and len(answer) == 2, (
        "return two tensors: pooled and weights"
    )
    pooled = expect_tensor(answer[0], (1, 4), "the pooled vector of one picture")
    weights = expect_tensor(answer[1], (1, 1), "the weights of one picture with one patch")
    assert torch.allclose(weights, torch.ones(1, 1)), "the only patch must get all the weight"
    assert torch.allclose(pooled, patches[:1, 0]), "with one patch, that patch must come out"

    pooled, weights = attempt(patches, torch.zeros(4))
    expect_tensor(pooled, (3, 4), "the pooled vectors of three pictures")
    expect_tensor(weights, (3, 5), "the weights of three pictures with five patches")
    assert torch.allclose(weights, torch.full((3, 5), 0.2)), (
        "with a query of zeros each of five patches must get a fifth: is the softmax over the patches (dim=-1 of the scores)?"
    )
    assert torch.allclose(pooled, patches.mean(dim=1), atol=1e-6), (
        "with a query of zeros the average must come out: is the sum over the patches?"
    )

    pooled, weights = attempt(patches, query)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3)), (
        f"the weights of each picture must add up to 1, yours to {weights.sum(dim=-1).tolist()}: is the softmax over the patches?"
    )
    flipped = (-(patches @ query)).softmax(dim=-1)
    assert not torch.allclose(weights, flipped), (
        "the best match gets the least weight: a sign is wrong"
    )
    scaled = (patches @ query / 2).softmax(dim=-1)
    assert not torch.allclose(weights, scaled), (
        "the scores are divided by sqrt(d_model): equation 4.3 leaves the length of the query to training"
    )
    expected = (patches @ query).softmax(dim=-1)
    assert torch.allclose(weights, expected, atol=1e-6), (
        "the weights are off: are the scores q . h ?"
    )
    assert torch.allclose(pooled, (expected[:, :, None] * patches).sum(dim=1), atol=1e-6), (
        "the weights are right, the pooled vectors are not: each patch times its own weight, then the sum over the patches"
    )
    pooled, _ = attempt(patches, 1000 * query)
    assert torch.isfinite(pooled).all(), (
        "large scores overflow: take softmax, or the largest score off first"
    )


@diagnostic("Exercise 4.2")
def check_heat_map(attempt: Callable[[Tensor, int, int, int], Tensor]) -> None:
    """Check a heat map: patches of one pixel isolate the layout, then one row of patches, then the size and the sum."""
    weights = torch.tensor([0.1, 0.2, 0.05, 0.25, 0.3, 0.1])
    layout = expect_tensor(
        attempt(weights, 2, 3, 1), (2, 3), "the map of 2 x 3 patches of one pixel"
    )
    by_columns = weights.reshape(3, 2).T
    assert not torch.allclose(layout, by_columns), (
        "rows and columns are swapped: the patches come one row after another"
    )
    assert torch.allclose(layout, weights.reshape(2, 3)), (
        f"the patches come one row after another, so {weights.reshape(2, 3).tolist()} is wanted, not {layout.tolist()}"
    )
    strip = expect_tensor(
        attempt(weights, 1, 6, 2), (2, 12), "the map of 1 x 6 patches of 2 x 2 pixels"
    )
    tiled = weights.repeat(2)
    assert not torch.allclose(strip[0] / strip[0].sum(), tiled / tiled.sum()), (
        "the whole map is repeated; each patch should be: repeat_interleave, not repeat"
    )
    assert not torch.allclose(strip.sum(), torch.tensor(4.0)), (
        "the map adds up to 4: the weight of a patch is to be shared among its pixels"
    )
    assert torch.allclose(strip.sum(), torch.tensor(1.0)), (
        f"the map should add up to 1, yours adds up to {strip.sum().item():.3g}: how many pixels has a patch?"
    )
    image = expect_tensor(
        attempt(weights, 2, 3, 4), (8, 12), "the map of 2 x 3 patches of 4 x 4 pixels"
    )
    expected = F.interpolate(weights.reshape(1, 1, 2, 3), scale_factor=4)[0, 0] / 16
    assert torch.allclose(image, expected), (
        "every pixel of a patch should have a 16th of its weight"
    )


@diagnostic("Exercise 4.3")
def check_many_queries(attempt: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check pooling with several queries: shapes, one query, then that no query minds the others."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 5, 4, generator=generator)
    queries = torch.randn(3, 4, generator=generator)

    answer = attempt(patches, queries)
    assert isinstance(answer, tuple | list) and len(answer) == 2, (
        "return two tensors: pooled and weights"
    )
    pooled = expect_tensor(answer[0], (2, 3, 4), "the pooled vectors of 2 pictures and 3 queries")
    weights = expect_tensor(answer[1], (2, 3, 5), "the weights of 2 pictures, 3 queries, 5 patches")
    one, _ = attempt(patches, queries[:1])
    alone = (patches @ queries[0]).softmax(dim=-1)
    assert torch.allclose(one[:, 0], (alone[:, :, None] * patches).sum(dim=1), atol=1e-6), (
        "with one query the pooling of equation 4.3 should come out: is the softmax over the patches?"
    )
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 3)), (
        "each query's weights must add up to 1 over the patches: did the queries share one softmax?"
    )
    changed, _ = attempt(patches, torch.cat([queries[:2], -queries[2:]]))
    assert torch.allclose(changed[:, :2], pooled[:, :2], atol=1e-6), (
        "changing the third query moves the first two: the queries compete in your softmax"
    )
    every = queries.expand(2, 3, 4)
    expected = F.scaled_dot_product_attention(every, patches, patches, scale=1.0)
    assert torch.allclose(pooled, expected, atol=1e-5), (
        "each query alone is right, all together are not"
    )


@diagnostic("Exercise 4.4")
def check_contributions(attempt: Callable[[Tensor, Tensor, nn.Linear], Tensor]) -> None:
    """Check contributions: all the weight on one patch, then a patch without weight, then the sum against the scores."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 4, generator=generator)
    weights = torch.randn(2, 5, generator=generator).softmax(dim=-1)
    classes = nn.Linear(4, 3)
    with torch.no_grad():
        classes.weight.copy_(torch.randn(3, 4, generator=generator))
        classes.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
        only = F.one_hot(torch.tensor([2, 0]), 5).float()
        parts = expect_tensor(attempt(only, values, classes), (2, 5, 3), "the contributions")
        assert not torch.allclose(parts[0, 2], classes(values[0, 2])), (
            "the bias is counted with the patch: it belongs to no patch, add it once at the end"
        )
        assert torch.allclose(parts[0, 2], values[0, 2] @ classes.weight.T, atol=1e-5), (
            "a patch with all the weight adds its value times the class weights, (classes, d_model) transposed"
        )
        assert (parts[0, :2] == 0).all(), (
            "a patch without weight adds nothing: is each value times its weight?"
        )
        parts = attempt(weights, values, classes)
        pooled = (weights[:, :, None] * values).sum(dim=1)
        assert torch.allclose(parts.sum(dim=1) + classes.bias, classes(pooled), atol=1e-5), (
            "the contributions of all patches and the bias must add up to the scores of the classes"
        )
        each = weights[:, :, None] * (values @ classes.weight.T)
        assert torch.allclose(parts, each, atol=1e-5), (
            "the sum is right, its terms are not: each patch with its own weight"
        )
