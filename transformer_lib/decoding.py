"""From a trained model to sentences.

Written from chapter 12 of the book: edit the chapter, then `make sync`.
"""

import torch
from torch import Tensor

from transformer_lib.transformer import Transformer

__all__ = ["greedy_decode"]


@torch.inference_mode()
def greedy_decode(
    model: Transformer, source: Tensor, max_new_tokens: int, bos_id: int = 1, eos_id: int = 2
) -> list[list[int]]:
    """Write the likeliest next token, again and again, until <eos>.

    Every step runs the decoder over everything written so far; chapter 16 gives it a cache.

    Args:
        model: put into eval mode for the call, and back into the mode it was in.
        source: ids, shape (batch, source), padded on the right.
        max_new_tokens: how many tokens a row may get at most.
        bos_id: the id that begins a target.
        eos_id: the id that ends one.

    Returns:
        One list of ids for each row, without <bos>, and without <eos> and what came after it.

    Raises:
        ValueError: if max_new_tokens is below 1 or beyond the model's positions, or the source is
            empty or not of ids.
    """
    if not 1 <= max_new_tokens <= model.config.max_length:
        raise ValueError(
            f"max_new_tokens must be at least 1 and at most max_length {model.config.max_length}, "
            f"got {max_new_tokens}"
        )
    was_training = model.training
    model.eval()
    try:
        memory = model.encode(source)  # (batch, source, d_model)
        target = source.new_full((source.size(0), 1), bos_id)  # (batch, 1)
        finished = torch.zeros(source.size(0), dtype=torch.bool, device=source.device)  # (batch,)
        for _ in range(max_new_tokens):
            hidden = model.decode(target, memory, source)[:, -1]  # (batch, d_model)
            next_token = model.project(hidden).argmax(dim=-1)  # (batch,)
            target = torch.cat([target, next_token[:, None]], dim=1)  # (batch, length + 1)
            finished |= next_token == eos_id
            if finished.all():
                break
    finally:
        model.train(was_training)
    rows: list[list[int]] = target[:, 1:].tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
