"""Tensors in files, checkpoints, and averages of them.

Written from chapter 14 of the book: edit the chapter, then `make sync`.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch as st
import torch
from torch import Tensor, nn

from transformer_lib.door import check_numbers, check_same, describe_model

__all__ = [
    "average_weights",
    "load_checkpoint",
    "locked",
    "read_tensors",
    "save_checkpoint",
    "unwrap",
    "write_tensors",
]


def _kinds(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What two states of one model have in common: names, dtypes and shapes."""
    return {f"kind of weight {name}": f"{x.dtype} {tuple(x.shape)}" for name, x in state.items()}


def average_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average several states of one model, weight by weight (paper, section 6.1).

    A state is a copy of what `model.state_dict()` gave at some time; so is the result.

    Raises:
        ValueError: if there is no state, or two differ in names, dtypes or shapes.
    """
    check_numbers(int, 1, number_of_states=len(states))
    for state in states:
        check_same("a state of another model", _kinds(states[0]), _kinds(state))
    return {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(first.dtype)
        for name, first in states[0].items()
    }


def _sum_up(tensors: Mapping[str, Tensor], notes: str) -> str:
    """All names, bytes and notes in 32 bits: the checksum."""
    crc = zlib.crc32(notes.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], **notes: Any) -> None:
    """Write tensors, and notes that JSON can hold, into one safetensors file: whole, or not at all.

    Raises:
        OSError: if the disk is full or the folder cannot be written to; an old file is untouched.
    """
    path = Path(path)
    plain = {  # copies: safetensors takes no two tensors that share memory
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    text = json.dumps(notes)
    content = st.save(plain, {"checksum": _sum_up(plain, text), "notes": text})
    handle, partial = tempfile.mkstemp(".part", f"{path.name}.", path.parent)  # a name of its own
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way there
        os.chmod(partial, 0o644)  # mkstemp's files are for the owner only
        os.replace(partial, path)
    except BaseException:  # also Ctrl+C
        Path(partial).unlink(missing_ok=True)
        raise


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what write_tensors wrote: the tensors and the notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not whole, damaged, or not from write_tensors.
    """
    content = Path(path).read_bytes()  # at once: a writer may replace the file meanwhile
    try:
        tensors = st.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    notes = metadata.get("notes", "")
    was, now = {"checksum": metadata.get("checksum")}, {"checksum": _sum_up(tensors, notes)}
    check_same(f"{path} is damaged, or was not written by write_tensors: it", was, now)
    return tensors, json.loads(notes)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Make the file's folder, and let no other process lock the same file meanwhile (ValueError).

    A lock ends with its process, however that ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with lock.open("w") as file:
        with suppress(ImportError):  # Windows has no such lock
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"another training is writing to {path}") from None
        try:
            yield
        finally:
            with suppress(OSError):  # Windows deletes no open file
                lock.unlink()


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, inside torch.compile's or DistributedDataParallel's wrapper."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _describe(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What must be the same where a training goes on, as it comes back from a file."""
    found = describe_model(model) | {"kind of optimizer": type(optimizer).__name__}
    found["kind of groups"] = [len(group["params"]) for group in optimizer.param_groups]
    found |= _kinds(model.state_dict())
    return dict(json.loads(json.dumps(found)))  # tuples are lists in a file


def save_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, **notes: Any
) -> None:
    """Save all that is needed to go on training: weights, optimizer, random state, and notes.

    The notes are the step and whatever else the loop wants back; anything JSON can hold.

    Raises:
        OSError: see write_tensors.
    """
    model, state = unwrap(model), optimizer.state_dict()
    tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
    numbers: dict[str, Any] = {}  # an optimizer may keep some
    for index, entries in state["state"].items():
        for name, x in entries.items():
            (tensors if isinstance(x, Tensor) else numbers)[f"optimizer.{index}.{name}"] = x
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    kept = {"groups": state["param_groups"], "numbers": numbers}
    write_tensors(path, tensors, notes=notes, optimizer=kept, of=_describe(model, optimizer))


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Bring model, optimizer and random numbers back to where they were saved; give the notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or no checkpoint, or of another model or optimizer.
    """
    model = unwrap(model)
    tensors, saved = read_tensors(path)
    if not {"notes", "optimizer", "of"} <= saved.keys():
        raise ValueError(f"{path} is no checkpoint: it holds {sorted(saved)} only")
    now = _describe(model, optimizer)
    check_same(f"{path}, of another model or another optimizer,", saved["of"], now)
    weights = {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}
    states: dict[int, dict[str, Any]] = {}
    for name, x in [*tensors.items(), *saved["optimizer"]["numbers"].items()]:
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = x
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": states, "param_groups": saved["optimizer"]["groups"]})
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return dict(saved["notes"])
