"""Tensors in files, checkpoints, and averages of them.

Written from chapters 14, 15 of the book: edit the chapter, then `make sync`.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from transformer_lib.door import check_same, describe_model

__all__ = [
    "average_weights",
    "load_checkpoint",
    "locked",
    "read_tensors",
    "save_checkpoint",
    "unwrap",
    "write_tensors",
]


def _checksum(tensors: Mapping[str, Tensor], notes: str) -> str:
    """Sum up all names, bytes and notes in 32 bits."""
    crc = zlib.crc32(notes.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], **notes: Any) -> None:
    """Write tensors and notes into one safetensors file: whole, or not at all.

    Args:
        path: the file; an old one of that name is replaced at the very end.
        tensors: names and tensors.
        notes: anything JSON can hold.

    Raises:
        OSError: if the disk is full or the folder cannot be written to; an old file is untouched.
    """
    path = Path(path)
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    text = json.dumps(notes)
    content = safetensors.torch.save(plain, {"checksum": _checksum(plain, text), "notes": text})
    handle, partial = tempfile.mkstemp(".part", f"{path.name}.", path.parent)  # a name of its own
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way there
        os.chmod(partial, 0o644)  # mkstemp's files are for the owner only
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what write_tensors wrote.

    Args:
        path: the file.

    Returns:
        The tensors and the notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not whole, damaged, or not from write_tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
    if "notes" not in metadata:
        raise ValueError(f"{path} was not written by write_tensors: it has no notes")
    if metadata.get("checksum") != (found := _checksum(tensors, metadata["notes"])):
        raise ValueError(
            f"{path} is damaged: its checksum is {found}, it should be {metadata.get('checksum')}"
        )
    return tensors, json.loads(metadata["notes"])


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
            lock.unlink(missing_ok=True)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, inside torch.compile's or DistributedDataParallel's wrapper."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def save_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, **notes: Any
) -> None:
    """Save all that is needed to go on training: weights, optimizer, random state, and notes.

    Args:
        path: the file to write.
        model, optimizer: what is being trained, and by what.
        notes: the step and whatever else the loop wants back; anything JSON can hold.

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
    kept = {"kind": type(optimizer).__name__, "groups": state["param_groups"], "numbers": numbers}
    write_tensors(path, tensors, notes=notes, optimizer=kept, model=describe_model(model))


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Bring model, optimizer and torch's random numbers back to where save_checkpoint saw them.

    Args:
        path: the file.
        model, optimizer: of the same kind and sizes as those that were saved.

    Returns:
        The notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or no checkpoint, or of another model or optimizer.
    """
    model = unwrap(model)
    tensors, saved = read_tensors(path)
    if not {"notes", "optimizer", "model"} <= saved.keys() or "random" not in tensors:
        raise ValueError(f"{path} is no checkpoint: it holds {sorted(saved)} only")
    now = json.loads(json.dumps(describe_model(model)))  # tuples are lists in a file
    check_same(f"{path}, another model,", saved["model"], now)
    check_same(
        f"{path}, another optimizer,",
        {"kind": saved["optimizer"]["kind"], "groups": len(saved["optimizer"]["groups"])},
        {"kind": type(optimizer).__name__, "groups": len(optimizer.param_groups)},
    )
    weights = {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    if shapes != (found := {name: tuple(x.shape) for name, x in weights.items()}):
        raise ValueError(
            f"{path} is of another model: {sorted(set(found.items()) ^ set(shapes.items()))[:4]}"
        )
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


def average_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average several states of one model, weight by weight (paper, section 6.1).

    Args:
        states: what `model.state_dict()` gave at several times; copies, since training changes them.

    Returns:
        A state for `model.load_state_dict`.

    Raises:
        ValueError: if there is no state, or two differ in names or shapes.
    """
    if not states:
        raise ValueError("there is nothing to average: no states")
    shapes = [{name: tuple(x.shape) for name, x in state.items()} for state in states]
    for other in shapes[1:]:
        if other != shapes[0]:
            differing = sorted(set(shapes[0].items()) ^ set(other.items()))
            raise ValueError(f"the states are of different models, they differ in {differing[:4]}")
    return {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(first.dtype)
        for name, first in states[0].items()
    }
