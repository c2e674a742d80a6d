"""Small pictures of clothes, and attention that pools their patches.

Written from chapter 4 of the book: edit the chapter, then `make sync`.
"""

import gzip
from importlib import resources

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

__all__ = ["FASHION_CLASSES", "AttentionPooling", "load_fashion"]


FASHION_CLASSES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def load_fashion(split: str) -> tuple[Tensor, Tensor]:
    """The pictures of clothes that come with the package, a part of Fashion-MNIST.

    Args:
        split: "train" (6,000 pictures) or "test" (1,000), equally many of each class.

    Returns:
        The pictures, (n, 28, 28), from 0 (black) to 1 (white), and their classes, (n,), which are
        positions in FASHION_CLASSES.

    Raises:
        ValueError: for any other split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}; there are train, test")
    file = resources.files("transformer_lib") / "corpora" / "fashion.safetensors.gz"
    tensors = load_safetensors(gzip.decompress(file.read_bytes()))
    return tensors[f"{split}_images"] / 255, tensors[f"{split}_labels"].long()


class AttentionPooling(nn.Module):
    """Pool the patches of a picture into one vector, by attention with one learned query.

    The query begins at zero, so that a fresh module averages.

    Args:
        d_model: features of a patch, and width of the pooled vector.

    Raises:
        ValueError: if d_model is below 1.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"patches need at least one feature, got d_model {d_model}")
        self.value = nn.Linear(d_model, d_model)
        self.query = nn.Parameter(torch.zeros(d_model))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the softmax-weighted sum of the patches' values (equation 4.3 of the book).

        Args:
            patches: features, (..., patches, d_model); any number of patches from 1 up.

        Returns:
            The pooled vectors, (..., d_model), and the weights, (..., patches), which add up to 1.

        Raises:
            ValueError: if there are no patches, or they have another width.
        """
        d_model = self.query.size(0)
        if patches.dim() < 2 or patches.size(-1) != d_model or patches.size(-2) == 0:
            raise ValueError(
                f"patches must be (..., patches, {d_model}), got {tuple(patches.shape)}"
            )
        scores = patches @ self.query  # (..., patches)
        weights = scores.softmax(dim=-1)  # (..., patches)
        values = self.value(patches)  # (..., patches, d_model)
        return (weights[..., None] * values).sum(dim=-2), weights  # (..., d_model), (..., patches)
