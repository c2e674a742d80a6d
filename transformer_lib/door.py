"""What public entry points refuse: numbers, masks and token ids that torch would take silently.

Written from chapters 0, 5, 6, 12 of the book: edit the chapter, then `make sync`.
"""

import math
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["check_attention", "check_numbers", "check_same", "check_tokens", "describe_model"]


def check_numbers(
    kind: type, low: float = -math.inf, high: float = math.inf, **values: object
) -> None:
    """Refuse values that are no numbers of this kind (int, float or bool) from low to high.

    float takes whole numbers, too. The values go by their names: check_numbers(int, 1, length=3).

    Raises:
        ValueError: naming the first such value, and what it should be.
    """
    for name, value in values.items():
        kinds = (int, float) if kind is float else kind
        is_number = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
        if not is_number or not low <= value <= high:  # type: ignore[operator]
            limits = "" if kind is bool else f" from {low} to {high}"
            raise ValueError(f"{name} must be {kind.__name__}{limits}, got {value!r}")


def check_tokens(name: str, tokens: Tensor) -> None:
    """Refuse with a ValueError what is no batch of rows of token ids, or an empty one."""
    if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32) or not tokens.numel():
        raise ValueError(
            f"{name} must be token ids, int64 or int32, of shape (batch, length), none empty, "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )


def check_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> None:
    """Refuse with a ValueError batches that do not match, and a mask that could be misread."""
    are_rows = query.ndim == key.ndim == value.ndim == 3
    if not are_rows or not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(
            "query, key and value must be (batch, length, width), the same batch size for all three, "
            f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    # of three dimensions, is the first batch or heads?
    if attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.dim() not in (2, 4)):
        raise ValueError(
            "attn_mask must be boolean, True where attention is allowed, of shape (queries, keys) "
            "or (batch, heads, queries, keys), "
            f"got {attn_mask.dtype} of shape {tuple(attn_mask.shape)}"
        )


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What a model computes, its weights aside: its config, the kind of each part, their settings.

    Two models with the same weights but another number of heads, activation or dropout differ in
    it. Settings are the numbers and names that the modules of torch and of this package keep, and
    which parameters they have.
    """
    config = getattr(model, "config", None)
    found = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    for name, part in model.named_modules():
        kind = type(part)
        found[f"kind of {name or 'the model'}"] = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__.startswith(("torch.nn", "transformer_lib")):
            found |= {
                f"{name}.{key}": value
                for key, value in vars(part).items()
                if isinstance(value, int | float | str) and key != "training" and key[0] != "_"
            } | {f"{name}.{key}": p is not None for key, p in part._parameters.items()}
    return found


def check_same(what: str, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse with a ValueError that names both values what is not as it was.

    A setting that only one of the two knows does not count: another version of torch may have more.
    """
    known = {key for key in was.keys() | now.keys() if key.startswith("kind of")}
    differing = [k for k in known | (was.keys() & now.keys()) if was.get(k) != now.get(k)]
    if differing:
        values = [f"{key} {was.get(key)!r}, now {now.get(key)!r}" for key in sorted(differing)]
        raise ValueError(f"{what} does not fit: it has {'; '.join(values[:4])}")
