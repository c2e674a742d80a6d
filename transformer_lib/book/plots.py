"""Pictures of attention."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from torch import Tensor

from transformer_lib.book.style import PALETTE


def plot_heat_map(
    image: Tensor,
    weights: Tensor | None = None,
    box: Tensor | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw a picture, the attention over its patches as orange on top, and a box in blue.

    Args:
        image: (height, width), from 0 (black) to 1 (white).
        weights: one for each patch, (patch rows, patch columns); the largest is drawn fully orange.
        box: top, left, bottom and right of a rectangle, in pixels, the last two outside of it.
        ax: where to draw; a new figure if None.
        title: what stands above the picture.

    Returns:
        The axes that were drawn on.

    Raises:
        ValueError: if image or weights is no matrix, or the patches do not divide the image.
    """
    if image.dim() != 2:
        raise ValueError(f"image must be (height, width), got {tuple(image.shape)}")
    height, width = image.shape
    if weights is not None and (
        weights.dim() != 2 or height % weights.size(0) or width % weights.size(1)
    ):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not divide "
            f"an image of shape {tuple(image.shape)} into patches"
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(3.2, 3.5))
    picture = image.detach().cpu().float().numpy()  # (height, width)
    # Pixels are squares with whole numbers at their edges, so that a box lies between pixels.
    edges = (0, width, height, 0)
    ax.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, extent=edges, aspect="equal")
    if weights is not None:
        heat = (weights / weights.max()).detach().cpu().float().numpy()  # (rows, columns)
        red, green, blue, _ = to_rgba(PALETTE["attention"])
        over = [[(red, green, blue, 0.75 * value) for value in row] for row in heat.tolist()]
        ax.imshow(over, extent=edges, aspect="equal", interpolation="nearest")
    if box is not None:
        top, left, bottom, right = box.tolist()
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, linewidth=2)
        frame.set_edgecolor(PALETTE["feed_forward"])
        ax.add_patch(frame)
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def plot_attention(
    weights: Tensor,
    query_labels: list[str],
    key_labels: list[str],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw attention weights as a heat map: one row for each query, one column for each key.

    A small matrix has its numbers in the cells; a weight of exactly 0 leaves its cell empty.

    Args:
        weights: shape (queries, keys), each entry between 0 and 1.
        query_labels: one label for each row.
        key_labels: one label for each column.
        ax: where to draw; a new figure if None.
        title: what stands above the picture.

    Returns:
        The axes that were drawn on.

    Raises:
        ValueError: if weights is not a matrix with one label for each row and column.
    """
    if tuple(weights.shape) != (len(query_labels), len(key_labels)):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} need as many labels, "
            f"got {len(query_labels)} for the queries and {len(key_labels)} for the keys"
        )
    if ax is None:
        side = 0.45 * max(len(query_labels), len(key_labels)) + 1.6  # inches: room for the labels
        _, ax = plt.subplots(figsize=(min(side, 7.0), min(side, 7.0)))
    values = weights.detach().cpu().float().numpy()  # (queries, keys)
    ax.imshow(values, cmap=plt.rcParams["image.cmap"], vmin=0.0, vmax=1.0)
    ax.set_xticks(
        range(len(key_labels)), key_labels, rotation=60, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(query_labels)), query_labels)
    ax.set_xlabel("key: listened to")
    ax.set_ylabel("query: listens")
    ax.set_title(title)
    ax.grid(False)
    if max(values.shape) <= 8:  # few enough to be read
        for i, row in enumerate(values.tolist()):
            for j, weight in enumerate(row):
                if weight == 0:  # forbidden, not merely small: an empty cell
                    continue
                color = "white" if weight > 0.72 else "black"  # whichever has more contrast
                number = f"{weight:.2f}".removeprefix("0")
                ax.text(j, i, number, ha="center", va="center", fontsize=10, color=color)
    return ax
