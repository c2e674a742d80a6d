"""Small pictures of clothes, and attention that pools their patches.

Written from chapters 4, 24 of the book: edit the chapter, then `make sync`.
"""

import gzip
from collections.abc import Iterable
from importlib import resources

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from transformer_lib.door import check_numbers
from transformer_lib.embeddings import LearnedPositionalEncoding
from transformer_lib.layers import Dropout, EncoderLayer, LayerNorm
from transformer_lib.transformer import Stack

__all__ = [
    "FASHION_CLASSES",
    "AttentionPooling",
    "VisionTransformer",
    "attention_rollout",
    "cut_patches",
    "load_fashion",
]


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


def cut_patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut pictures into square patches, row after row, and lay each out flat.

    (batch, height, width) if gray, or (batch, channels, height, width) -> (batch, patches,
    channels * patch_size^2). Both sides must be multiples of patch_size.
    """
    images = images[:, None] if images.dim() == 3 else images
    # (batch, channels, rows, patch_size, columns, patch_size)
    cut = images.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size))
    patches: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return patches


class VisionTransformer(nn.Module):
    """Pictures in, scores of classes out: an encoder of patches (Dosovitskiy et al., 2020).

    Pre-norm, learned positions, and in front the class token, from which the answer is read.

    Args:
        image_size, patch_size: sides of the square pictures and patches, in pixels.
        num_classes, num_layers, channels: in an answer, in the stack, of a pixel (1 if gray).
        d_model, num_heads, d_ff, dropout: as in EncoderLayer.
        class_token: False reads the answer from the average over the patches.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_classes: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_layers: int,
        dropout: float = 0.1,
        channels: int = 1,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embedding = nn.Linear(channels * patch_size**2, d_model)
        length = (image_size // patch_size) ** 2 + class_token
        self.class_token = nn.Parameter(torch.randn(d_model) * 0.02) if class_token else None
        self.position = LearnedPositionalEncoding(d_model, length)
        self.dropout = Dropout(dropout)
        sizes = (d_model, num_heads, d_ff, dropout, True)  # True: pre-norm
        self.stack = Stack([EncoderLayer(*sizes) for _ in range(num_layers)], LayerNorm(d_model))
        self.classes = nn.Linear(d_model, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures as in cut_patches -> scores, (batch, num_classes)."""
        x = self.embedding(cut_patches(images, self.patch_size))  # (batch, patches, d_model)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        x = self.stack(self.dropout(self.position(x)))  # (batch, patches + 1, d_model)
        scores: Tensor = self.classes(x.mean(dim=1) if self.class_token is None else x[:, 0])
        return scores


def attention_rollout(weights: Iterable[Tensor]) -> Tensor:
    """How much of each input vector reaches each vector at the top (Abnar & Zuidema, 2020).

    Weights of each layer, the first one first, (batch, heads, length, length), as record_attention
    gives them -> (batch, length, length), each row adding up to 1.
    """
    means = [layer.mean(dim=1) for layer in weights]  # (batch, length, length) each
    identity = torch.eye(means[0].size(-1), device=means[0].device)  # the residual connection
    rollout = identity.expand_as(means[0])
    for mean in means:
        rollout = (mean + identity) / 2 @ rollout
    return rollout
