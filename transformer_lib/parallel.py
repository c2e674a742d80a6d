"""Many processes that train one model: a copy in each, or a shard.

Written from chapter 25 of the book: edit the chapter, then `make sync`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transformer_lib.layers import DecoderLayer, EncoderLayer
from transformer_lib.training import Loss, over_ranks, translation_loss

__all__ = ["data_parallel", "fully_sharded", "joined", "place", "share"]


def place() -> tuple[int, int]:
    """Rank of this process among those that train together, and how many they are; alone (0, 1)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def joined(device: torch.device | str = "cpu") -> Iterator[torch.device]:
    """Meet the processes that torchrun has started with this one; without torchrun, stay alone.

    Gives this process's device: of several graphics cards ("cuda") each takes its own.
    """
    device = torch.device(device)
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        time.sleep(0.1)  # gloo's threads let go of tensors; once Python ends, that hangs or aborts
        dist.destroy_process_group()


def _cut(batch: Any, rows: slice) -> Any:
    """Some rows of all tensors that a batch holds."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {name: _cut(part, rows) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [_cut(part, rows) for part in batch]
    if is_dataclass(batch):
        part = copy(batch)  # without its checks: a share may be empty
        vars(part).update(_cut(vars(batch), rows))
        return part
    return batch


def _has_rows(batch: Any) -> bool:
    if isinstance(batch, Tensor):
        return len(batch) > 0
    parts = vars(batch) if is_dataclass(batch) else batch
    parts = list(parts.values()) if isinstance(parts, dict) else parts
    return all(_has_rows(part) for part in parts) if isinstance(parts, tuple | list) else True


def data_parallel(model: nn.Module) -> nn.Module:
    """A copy in each process: begins with rank 0's weights, and has the mean of all gradients."""
    return nn.parallel.DistributedDataParallel(model) if place()[1] > 1 else model


def share(loss: Loss = translation_loss) -> Loss:
    """A loss of which each of n processes reads its rows: r, r + n, r + 2n, ... of each batch.

    A batch is a tensor, or a dataclass, dictionary, tuple or list of them, rows first.
    """

    def own(model: nn.Module, batch: Any, label_smoothing: float) -> tuple[Tensor, int]:
        rank, ranks = place()
        if ranks == 1:
            return loss(model, batch, label_smoothing)
        rows = _cut(batch, slice(rank, None, ranks))
        some = _has_rows(rows)
        rows = rows if some else _cut(batch, slice(0, 1))  # to take part, with zero
        if not torch.is_grad_enabled():  # evaluation: everybody learns the sum
            total, count = loss(model, rows, label_smoothing)
            found = over_ranks(total.item() * some, count * some)
            return total.new_tensor(found[0]), int(found[1])
        seed = int(torch.randint(2**62, ()))  # the same in all
        with torch.random.fork_rng():
            torch.manual_seed(seed + rank)  # but each drops units of its own
            total, count = loss(model, rows, label_smoothing)
        return total * some, count * some

    return own


def fully_sharded(model: nn.Module) -> nn.Module:
    """A shard in each process of every weight, gradient and optimizer state; gathered layer by layer.

    Changes the model itself. Make the optimizer afterwards, and call the model, not its methods.
    """
    from torch.distributed.fsdp import fully_shard  # not needed by most, and takes a second

    for part in model.modules():
        if isinstance(part, EncoderLayer | DecoderLayer):
            fully_shard(part)
    fully_shard(model)
    return model
