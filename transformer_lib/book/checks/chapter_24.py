"""The checks of chapter 24's exercises."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from transformer_lib.book.checks import diagnostic, expect_tensor
from transformer_lib.vision import VisionTransformer, cut_patches


@diagnostic("Exercise 24.1")
def check_join(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check patches put back: shape, the order of patches, then of pixels, and another size."""
    pictures = torch.arange(2.0 * 6 * 6).view(2, 6, 6)
    patches = cut_patches(pictures, 2)  # (2, 9, 4)
    joined = expect_tensor(attempt(patches, 2), (2, 6, 6), "the pictures")
    assert not torch.equal(joined, patches.reshape(2, 6, 6)), (
        "this only renames the axes: pixels of one patch belong into two rows of the picture"
    )
    assert not torch.equal(joined, pictures.transpose(1, 2)), (
        "the picture is mirrored at its diagonal: rows and columns are swapped everywhere"
    )
    by_columns = cut_patches(pictures, 2).unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)
    swapped = cut_patches(joined, 2)
    assert not torch.equal(swapped, by_columns), (
        "the patches are laid column after column: they come row after row"
    )
    turned = patches.unflatten(2, (2, 2)).transpose(2, 3).flatten(2)
    assert not torch.equal(swapped, turned), (
        "each patch is mirrored at its diagonal: its pixels come row after row"
    )
    assert torch.equal(joined, pictures), (
        "the pictures are not those that were cut: split both axes, put (row of patches, row in the "
        "patch) side by side, and merge"
    )
    other = torch.rand(1, 12, 12)
    again = attempt(cut_patches(other, 4), 4)
    assert again.shape == other.shape and torch.equal(again, other), (
        f"a picture of 9 patches of 4 x 4 does not come back, but one of shape {tuple(again.shape)}: "
        "is a size fixed to 2?"
    )


@diagnostic("Exercise 24.2")
def check_convolution(attempt: Callable[[nn.Linear, int], nn.Conv2d]) -> None:
    """Check a convolution made of a linear map: kind, kernel, stride, bias, and the same vectors."""
    torch.manual_seed(0)
    for channels, patch in ((1, 4), (3, 2)):
        linear = nn.Linear(channels * patch**2, 5)
        before = linear.weight.detach().clone()
        convolution = attempt(linear, channels)
        assert isinstance(convolution, nn.Conv2d), (
            f"return an nn.Conv2d, not {type(convolution).__name__}"
        )
        assert torch.equal(linear.weight, before), "the linear map was changed: it is the caller's"
        wanted = (5, channels, patch, patch)
        found = tuple(convolution.weight.shape)
        assert found == wanted, f"the kernel should be {wanted}, got {found}: patch * patch = " + (
            "in_features / channels"
        )
        stride = convolution.stride
        assert stride == (patch, patch), f"the stride should be the patch's side, got {stride}"
        pictures = torch.rand(2, channels, 4 * patch, 3 * patch)
        expected = linear(cut_patches(pictures, patch))  # (2, patches, 5)
        with torch.no_grad():
            vectors = convolution(pictures).flatten(2).transpose(1, 2)
        vectors = expect_tensor(vectors, tuple(expected.shape), "the vectors of the patches")
        bias = 0 if convolution.bias is None else convolution.bias
        assert not torch.allclose(vectors - bias + linear.bias, expected, atol=1e-5) or (
            torch.allclose(vectors, expected, atol=1e-5)
        ), "the weights are right, the bias is not that of the linear map"
        assert torch.allclose(vectors, expected, atol=1e-5), (
            "the vectors differ: a row of the weights holds channel after channel, and in each row "
            "after row"
        )


@diagnostic("Exercise 24.3")
def check_larger_table(attempt: Callable[[Tensor, int], Tensor]) -> None:
    """Check stretched positions: the class token's row, a constant, rows and columns, and smoothness."""
    # Feature 0 tells the row of the grid, feature 1 the column; the class token is far from both
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    table = torch.stack([rows, columns], dim=-1).flatten(0, 1)  # (9, 2)
    table = torch.cat([torch.tensor([[70.0, 90.0]]), table])
    larger = expect_tensor(attempt(table, 6), (1 + 36, 2), "the larger table")
    assert torch.equal(larger[0], table[0]), (
        f"row 0 is the class token's and no place of the grid: keep it, got {larger[0].tolist()}"
    )
    grid = larger[1:].view(6, 6, 2)
    assert grid.max() <= 2 + 1e-4, (
        "the class token's row has leaked into the grid: take it off before you stretch"
    )
    assert not (torch.allclose(grid[..., 0], grid[:1, :, 0]) and grid[0, 1, 0] != grid[0, 0, 0]), (
        "rows and columns are swapped"
    )
    assert torch.allclose(grid[..., 0], grid[:, :1, 0], atol=1e-4), (
        "places of one row should tell the same row: stretch the grid in two dimensions, not the list"
    )
    assert torch.allclose(grid[..., 1], grid[:1, :, 1], atol=1e-4), (
        "places of one column should tell the same column: stretch in two dimensions, not the list"
    )
    steps = grid[:, 0, 0].diff()
    assert steps.min() >= -1e-4, f"the rows should come in order: {grid[:, 0, 0].tolist()}"
    assert len(grid[:, 0, 0].round(decimals=3).unique()) > 3, (
        f"each vector is only repeated: mode='bilinear' gives what lies between: {grid[:, 0, 0].tolist()}"
    )
    assert torch.allclose(
        grid[:, 0, 0] + grid[:, 0, 0].flip(0), torch.full((6,), 2.0), atol=1e-3
    ), f"the middle should stay the middle: {grid[:, 0, 0].tolist()}"
    same = attempt(table, 3)
    assert torch.allclose(same, table, atol=1e-5), "at the old size the table should stay the same"


@diagnostic("Exercise 24.4")
def check_read_some(attempt: Callable[[VisionTransformer, Tensor, Tensor], Tensor]) -> None:
    """Check reading a part of the patches: all of them, order, places, the class token, what is left out."""
    torch.manual_seed(0)
    model = VisionTransformer(8, 2, 3, d_model=16, num_heads=2, d_ff=32, num_layers=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        images = torch.rand(4, 8, 8)
        everything = torch.arange(16)
        expected = model(images)
        scores = expect_tensor(attempt(model, images, everything), (4, 3), "the scores")
        assert torch.allclose(scores, expected, atol=1e-4), (
            "with all patches kept, the scores should be model(images): is the class token in front, "
            "with row 0 of the table, and is its vector the one that is read?"
        )
        mixed = torch.randperm(16)
        assert torch.allclose(attempt(model, images, mixed), expected, atol=1e-4), (
            "the order of `kept` should not matter: each patch takes its own position with it"
        )
        kept = torch.tensor([2, 5, 6, 9, 15])
        some = expect_tensor(attempt(model, images, kept), (4, 3), "the scores from five patches")
        blank = cut_patches(images, 2)
        hidden = torch.ones(16, dtype=torch.bool)
        hidden[kept] = False
        blank[:, hidden] = 0.0
        painted = blank.view(4, 4, 4, 2, 2).transpose(2, 3).flatten(3).flatten(1, 2)
        assert not torch.allclose(some, model(painted), atol=1e-4), (
            "the other patches are painted black, but the model still reads them: leave them out"
        )
        x = model.embedding(cut_patches(images, 2))[:, kept]
        x = torch.cat([model.class_token.expand(4, 1, -1), x], dim=1)  # type: ignore[union-attr]
        table = model.position.table
        packed = model.classes(model.stack(x + table[:6])[:, 0])
        assert not torch.allclose(some, packed, atol=1e-4), (
            "the kept patches get positions 1, 2, 3, ...: they should keep those of their places"
        )
        off = model.classes(model.stack(x + torch.cat([table[:1], table[kept]]))[:, 0])
        assert not torch.allclose(some, off, atol=1e-4), (
            "positions are off by one: row 0 of the table is the class token's"
        )
        right = model.classes(model.stack(x + torch.cat([table[:1], table[1 + kept]]))[:, 0])
        assert torch.allclose(some, right, atol=1e-4), "the scores from five patches are off"
