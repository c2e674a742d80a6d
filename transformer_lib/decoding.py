"""Spine (to be regenerated from chapters 12 and 16)."""

import torch
from torch import Tensor

from transformer_lib.transformer import Transformer

__all__ = ["greedy_decode"]


@torch.inference_mode()
def greedy_decode(model: Transformer, source: Tensor, max_new_tokens: int, bos_id: int = 1, eos_id: int = 2) -> list[list[int]]:
    """The likeliest next token, again and again; chapter 16 gives it a cache.

    Args:
        source: token ids, (batch, source), right-padded with config.pad_id.
    Returns: one list of ids a row, without <bos>, <eos> and what follows it.
    Puts the model in eval mode for the call and restores the mode.
    """
    training = model.training
    model.eval()
    try:
        memory = model.encode(source)  # (batch, source, d_model)
        target = source.new_full((source.size(0), 1), bos_id)  # (batch, 1)
        finished = torch.zeros(source.size(0), dtype=torch.bool, device=source.device)
        for _ in range(max_new_tokens):
            hidden = model.decode(target, memory, source)  # (batch, length, d_model)
            next_token = model.project(hidden[:, -1]).argmax(dim=-1)  # (batch,)
            target = torch.cat([target, next_token[:, None]], dim=1)  # (batch, length + 1)
            finished |= next_token == eos_id
            if finished.all():
                break
    finally:
        model.train(training)
    rows = target[:, 1:].tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
