"""Looking inside a model: its attention.

Written from chapter 6 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention

__all__ = ["record_attention"]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep a model's attention weights while the context lasts; it computes what it did before.

    with record_attention(model) as weights:
        model(source, target)

    Yields:
        A dictionary, filled as the model runs: name of each MultiHeadAttention ("" if it is the
        model; ValueError if there is none) -> the last weights, before dropout: what `attend` makes
        of the identity matrix as values, (batch, heads, queries, keys).
    """
    names = {
        part: name for name, part in model.named_modules() if isinstance(part, MultiHeadAttention)
    }
    if not names:
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}")
    recorded: dict[str, Tensor] = {}

    def watch(name: str, attention: MultiHeadAttention) -> Callable[..., Tensor]:
        attend = attention.attend

        def watched(query: Tensor, key: Tensor, value: Tensor, *masks: Any) -> Tensor:
            identity = torch.eye(key.size(2), dtype=value.dtype, device=value.device)
            rows = identity.expand(*value.shape[:2], -1, -1)  # (batch, heads, keys, keys)
            training = {part: part.training for part in attention.modules()}
            attention.eval()  # no dropout, so no random number is drawn either
            try:
                with torch.no_grad():
                    recorded[name] = attend(query, key, rows, *masks)
            finally:
                for part, mode in training.items():
                    part.training = mode
            return attend(query, key, value, *masks)

        return watched

    before = {part: vars(part).get("attend") for part in names}  # somebody may be watching already
    try:
        for part, name in names.items():
            part.attend = watch(name, part)  # type: ignore[method-assign]
        yield recorded
    finally:
        for part, attend in before.items():
            del part.attend  # the class's own is there again
            if attend:
                part.attend = attend  # type: ignore[method-assign]
