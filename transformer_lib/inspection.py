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
    """Keep the weights of every MultiHeadAttention in `model` while the context lasts.

    with record_attention(model) as weights:
        model(source, target)

    What a head returns is a weighted average of the values. So an attention that is given the rows
    of the identity matrix as values returns its weights, whatever way it computes them. The model
    computes what it computes without being watched.

    Args:
        model: any module that is, or holds, a MultiHeadAttention (ValueError if not).

    Yields:
        A dictionary, filled as the model runs: name of the module in `model` ("" for the model
        itself) -> weights of its last call, before dropout, (batch, heads, queries, keys).
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
            training, attention.training = attention.training, False  # no dropout, no random number
            with torch.no_grad():
                recorded[name] = attend(query, key, rows, *masks)
            attention.training = training
            return attend(query, key, value, *masks)

        return watched

    try:
        for part, name in names.items():
            part.attend = watch(name, part)  # type: ignore[method-assign]
        yield recorded
    finally:
        for part in names:
            del part.attend  # the class's own is there again
