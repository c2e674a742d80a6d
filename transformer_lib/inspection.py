"""Looking inside a model.

Written from chapter 6 of the book: edit the chapter, then `make sync`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from transformer_lib.attention import MultiHeadAttention

__all__ = ["record_attention"]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the attention weights of every MultiHeadAttention in `model` while the context lasts.

    with record_attention(model) as weights:
        model(source, target)

    Only calls of the module itself are seen, not of its method `attend`. While the context lasts, calls return the
    weights even if not asked for.

    Args:
        model: any module that is, or holds, a MultiHeadAttention.

    Yields:
        A dictionary, filled as the model runs: name of the module in `model` ("" for the model itself) -> weights of
        its last call, (batch, heads, queries, keys), detached. In training mode they are the weights after dropout.

    Raises:
        ValueError: if there is no MultiHeadAttention in `model`.
    """
    attentions = {
        name: part for name, part in model.named_modules() if isinstance(part, MultiHeadAttention)
    }
    if not attentions:
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}")
    recorded: dict[str, Tensor] = {}

    def ask(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args[:5], kwargs | {"need_weights": True}  # need_weights would be the sixth

    def keep(name: str) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], None]:
        def hook(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
            recorded[name] = output[1].detach()  # (batch, heads, queries, keys)

        return hook

    handles = []
    try:
        for name, attention in attentions.items():
            handles.append(attention.register_forward_pre_hook(ask, with_kwargs=True))
            handles.append(attention.register_forward_hook(keep(name)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
