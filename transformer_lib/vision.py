"""Small pictures of clothes, and attention that pools their patches.

Written from chapter 4 of the book: edit the chapter, then `make sync`.
"""

import gzip
from importlib import resources

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from transformer_lib.door import check_numbers

__all__ = ["FASHION_CLASSES", "AttentionPooling", "load_fashion"]


FASHION_CLASSES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def load_fashion(split: str) -> tuple[Tensor, Tensor]:
    """The pictures of clothes that come with the package, a part of Fashion-MNIST.

    "train" (6,000) or "test" (1,000) -> the pictures, (n, 28, 28), from 0 (black) to 1 (white), and
    their classes, (n,), positions in FASHION_CLASSES; equally many of each.

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

    A patch has d_model features. The query begins at zero, so that a fresh module averages.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        check_numbers(int, 1, d_model=d_model)
        self.value = nn.Linear(d_model, d_model)
        self.query = nn.Parameter(torch.zeros(d_model))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax-weighted sum of the patches' values (equation 4.3 of the book).

        (..., patches, d_model) -> (..., d_model), and the weights (..., patches).
        """
        scores = patches @ self.query  # (..., patches)
        weights = scores.softmax(dim=-1)  # (..., patches)
        values = self.value(patches)  # (..., patches, d_model)
        return (weights[..., None] * values).sum(dim=-2), weights  # (..., d_model), (..., patches)
