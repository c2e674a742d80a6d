"""The gradient on its way down through a stack of layers."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from transformer_lib.book.views import View, plain_table
from transformer_lib.tokenizer import check_texts


def gradient_view(
    gradients: Mapping[str, Sequence[Tensor]],
    *,
    start: tuple[str, int] | None = None,
    caption: str = "",
) -> View:
    """Choose a depth and a wiring: how much of the gradient at the top arrives at each layer.

    Args:
        gradients: name of a wiring -> of each depth, sizes of the gradient before the first layer
            and after each, (draws, depth + 1). All wirings have the same depths.
        start: wiring and depth to be shown first; by default the first, at the greatest depth.
        caption: what stands below.

    Returns:
        The view. Sizes are divided by the last, that at the top, and averaged over the draws.

    Raises:
        ValueError: if the depths differ, a gradient is not positive and finite, or there is no such
            start.
    """
    check_texts(list(gradients))
    depths = [tensor.size(-1) - 1 for tensor in next(iter(gradients.values()), [])]
    if not depths or depths != sorted(set(depths)) or depths[0] < 1:
        raise ValueError(f"depths should rise from 1 or more, got {depths}")
    wirings, rows = [], []
    for name, of_depths in gradients.items():
        shapes = [tuple(tensor.shape) for tensor in of_depths]
        if [shape[1:] for shape in shapes] != [(depth + 1,) for depth in depths]:
            raise ValueError(
                f"{name!r} should be (draws, depth + 1) of depths {depths}, got {shapes}"
            )
        runs = []
        for tensor in of_depths:
            if not (tensor.numel() and tensor.isfinite().all() and (tensor > 0).all()):
                raise ValueError(f"gradients of {name!r} should be positive, got {tensor}")
            sizes = tensor.detach().double().cpu()
            shares = sizes / sizes[:, -1:]  # (draws, depth + 1)
            parts = {
                "mean": shares.mean(dim=0),
                "low": shares.amin(dim=0),
                "high": shares.amax(dim=0),
            }
            runs.append(
                {part: [float(f"{x:.4g}") for x in of.tolist()] for part, of in parts.items()}
            )
        rows.append([name, *(f"{run['mean'][0]:.2g}" for run in runs)])
        wirings.append({"name": name, "runs": runs})
    names = list(gradients)
    wiring, depth = start or (names[0], depths[-1])
    if wiring not in names or depth not in depths:
        raise ValueError(f"there is no start {(wiring, depth)}: wirings {names}, depths {depths}")
    at = depths.index(depth)
    return View(
        "gradient",
        {"start": {"wiring": names.index(wiring), "depth": at}, "depths": depths, "wirings": wirings},
        plain_table(
            "share of the gradient at the top that arrives at the bottom",
            ["wiring", *(f"{depth} layers" for depth in depths)],
            rows,
        ),
        f"{names} at depths {depths}",
        caption,
    )  # fmt: skip
