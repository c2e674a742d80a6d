"""Small tasks made by chance, on which the chapters try things."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Canvases(NamedTuple):
    """Pictures with one whole object each, somewhere among fragments of others."""

    images: Tensor  # (count, size, size)
    labels: Tensor  # (count,), the class of the whole object
    boxes: Tensor  # (count, 4), where it is: top, left, bottom, right; bottom and right are outside


def make_canvases(
    images: Tensor,
    labels: Tensor,
    count: int,
    size: int,
    generator: torch.Generator,
    *,
    clutter: float = 0.75,
    piece: int = 7,
    pieces_of: Tensor | None = None,
) -> Canvases:
    """Put a random picture at a random place of each canvas, over scattered fragments of others.

    Args:
        images: square pictures, (n, side, side).
        labels: their classes, (n,).
        count: how many canvases to make.
        size: pixels a side of each canvas.
        generator: where the chance comes from.
        clutter: area of all fragments, as a share of the canvas; they may cover each other.
        piece: pixels a side of each fragment.
        pieces_of: square pictures to cut the fragments from, (m, side, side); `images` if None.

    Returns:
        The canvases, with the class and the box of the whole picture.

    Raises:
        ValueError: if pictures are not square, labels do not match them, or sizes do not fit.
    """
    pieces_of = images if pieces_of is None else pieces_of
    for name, some in (("images", images), ("pieces_of", pieces_of)):
        if some.dim() != 3 or some.size(0) == 0 or some.size(1) != some.size(2):
            raise ValueError(f"{name} must be (n, side, side), got {tuple(some.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need as many labels, got {tuple(labels.shape)}")
    side = images.size(1)
    if count < 1 or size < side:
        raise ValueError(f"cannot put pictures of side {side} on {count} canvases of side {size}")
    if not 1 <= piece <= min(size, pieces_of.size(1)) or clutter < 0:
        raise ValueError(
            f"cannot cut pieces of side {piece} from pictures of side {pieces_of.size(1)} "
            f"for canvases of side {size} and clutter {clutter}"
        )
    canvases = torch.zeros(count, size, size)

    def at_random(length: int, room: int) -> tuple[Tensor, Tensor]:
        """A random square on each canvas: indices of its rows and columns, (count, length)."""
        corner = torch.randint(room - length + 1, (2, count, 1), generator=generator)
        rows, columns = corner + torch.arange(length)
        return rows, columns

    def put(rows: Tensor, columns: Tensor, squares: Tensor) -> None:
        every = torch.arange(count)[:, None, None]
        canvases[every, rows[:, :, None], columns[:, None, :]] = squares  # (count, length, length)

    for _ in range(round(clutter * (size / piece) ** 2)):
        chosen = torch.randint(len(pieces_of), (count, 1, 1), generator=generator)
        rows, columns = at_random(piece, pieces_of.size(1))
        put(*at_random(piece, size), pieces_of[chosen, rows[:, :, None], columns[:, None, :]])
    chosen = torch.randint(len(images), (count,), generator=generator)
    rows, columns = at_random(side, size)
    put(rows, columns, images[chosen])
    ends = (rows[:, 0], columns[:, 0], rows[:, -1] + 1, columns[:, -1] + 1)
    return Canvases(canvases, labels[chosen], torch.stack(ends, dim=1))


def mass_in_box(weights: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The share of attention that falls into a box, for square canvases cut into square patches.

    Args:
        weights: (count, patches), row after row; each row adds up to 1.
        boxes: (count, 4): top, left, bottom, right, in pixels, the last two outside of the box.
        size: pixels a side of a canvas.

    Returns:
        (count,), from 0 to 1. A patch that is partly inside counts with the part that is.

    Raises:
        ValueError: if there is not one box for each canvas, or the patches make no square grid.
    """
    if weights.dim() != 2 or boxes.shape != (weights.size(0), 4):
        raise ValueError(
            f"weights (count, patches) need boxes (count, 4), "
            f"got {tuple(weights.shape)} and {tuple(boxes.shape)}"
        )
    side = math.isqrt(weights.size(1))
    if side * side != weights.size(1) or side == 0 or size % side:
        raise ValueError(
            f"{weights.size(1)} patches make no square grid on a canvas of side {size}"
        )
    patch = size // side
    start = torch.arange(side, device=weights.device) * patch  # (side,), first pixel of each patch

    def inside(low: Tensor, high: Tensor) -> Tensor:
        """The part of each row (or column) of patches that is between low and high."""
        overlap = torch.minimum(start + patch, high[:, None]) - torch.maximum(start, low[:, None])
        return overlap.clamp(min=0) / patch  # (count, side)

    rows, columns = inside(boxes[:, 0], boxes[:, 2]), inside(boxes[:, 1], boxes[:, 3])
    share = rows[:, :, None] * columns[:, None, :]  # (count, side, side)
    return (weights * share.flatten(1)).sum(dim=1)
