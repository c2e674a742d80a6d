"""Make the book's small pictures from Debian's package of Fashion-MNIST.

    python -m tools.make_fashion --packages DIR --output transformer_lib/corpora --page book/data.md

Of each of the ten classes the first TRAIN_OF_A_CLASS training and TEST_OF_A_CLASS test pictures are
taken, in the order of the files, and their 256 shades of gray are rounded to LEVELS, which packs
into less than half of the bytes. A training picture that is then the same as a test picture, or as
an earlier one, is passed over. Written are fashion.safetensors.gz (uint8 tensors train_images,
train_labels, test_images, test_labels) and fashion.json. The same package gives the same tensors.
DIR is where the .deb file is, or where `apt-get download` shall put it; without --packages the file
in the output folder is only compared with its manifest.
"""

import gzip
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from tools.make_data import (
    command_line,
    describe_package,
    fill_tables,
    find_packages,
    package_table,
    sha256,
    table,
)
from transformer_lib.vision import FASHION_CLASSES

PACKAGE = "dataset-fashion-mnist"
TRAIN_OF_A_CLASS = 600
TEST_OF_A_CLASS = 100
LEVELS = 16  # shades of gray that are kept


def read_idx(path: Path) -> np.ndarray:
    """The array of a gzipped IDX file of bytes.

    Raises:
        ValueError: if it holds anything else, or not as much as it says.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is no IDX file of bytes: it begins with {content[:4]!r}")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    start = 4 + 4 * len(shape)
    if len(content) - start != shape.prod(dtype=np.int64):
        raise ValueError(f"{path.name} says {shape}, but holds {len(content) - start} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def with_few_levels(images: np.ndarray) -> np.ndarray:
    """The nearest of LEVELS evenly spaced shades from 0 to 255."""
    step = 255 // (LEVELS - 1)
    return ((images.astype(np.int64) + step // 2) // step * step).astype(np.uint8)


def first_of_each_class(
    images: np.ndarray, labels: np.ndarray, number: int, known: set[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """The first `number` pictures of each class that are not in `known`, which gains them.

    Raises:
        ValueError: if a class has fewer.
    """
    left = dict.fromkeys(range(len(FASHION_CLASSES)), number)
    chosen = []
    for index, label in enumerate(labels.tolist()):
        content = images[index].tobytes()
        if left[label] and content not in known:
            known.add(content)
            left[label] -= 1
            chosen.append(index)
    if any(left.values()):
        raise ValueError(f"{number} pictures of each class are wanted, still missing are {left}")
    return images[chosen], labels[chosen]


def choose(folder: Path) -> dict[str, np.ndarray]:
    """The four tensors, out of the folder with the four files of Fashion-MNIST."""
    tensors = {}
    known: set[bytes] = set()
    # Test first: it is training that leaves out what both have.
    for split, name, number in (
        ("test", "t10k", TEST_OF_A_CLASS),
        ("train", "train", TRAIN_OF_A_CLASS),
    ):
        images = with_few_levels(read_idx(folder / f"{name}-images-idx3-ubyte.gz"))
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
        chosen = first_of_each_class(images, labels, number, known)
        tensors[f"{split}_images"], tensors[f"{split}_labels"] = chosen
    return tensors


def make(packages: Path, output: Path) -> None:
    """Write the pictures and their manifest."""
    deb = find_packages([PACKAGE], packages)[PACKAGE]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        tensors = choose(Path(folder, "usr/share/datasets/fashion-mnist"))
    content = save(tensors)
    output.mkdir(parents=True, exist_ok=True)
    (output / "fashion.safetensors.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    manifest = {
        "license": "MIT",
        "packages": {PACKAGE: describe_package(deb)},
        "classes": FASHION_CLASSES,
        "levels": LEVELS,
        "files": {"fashion.safetensors.gz": describe(content)},
    }
    (output / "fashion.json").write_text(json.dumps(manifest, indent=2) + "\n")


def describe(content: bytes) -> dict[str, Any]:
    """What the manifest says of the unpacked file."""
    shapes = {name: list(tensor.shape) for name, tensor in sorted(load(content).items())}
    return {"shapes": shapes, "sha256_of_content": sha256(content)}


def check(output: Path) -> dict[str, Any]:
    """Compare the pictures with their manifest and return it.

    Raises:
        ValueError: where they differ.
    """
    manifest: dict[str, Any] = json.loads((output / "fashion.json").read_text())
    for name, expected in manifest["files"].items():
        found = describe(gzip.decompress((output / name).read_bytes()))
        if found != expected:
            raise ValueError(f"{name} holds {found}, its manifest says {expected}")
    return manifest


def fill_page(page: str, manifest: dict[str, Any]) -> str:
    """The page with its tables between `<!-- make_fashion NAME -->` and `<!-- end -->` anew."""
    [file] = manifest["files"].values()
    tensors = [
        (f"`{name}`", " × ".join(f"{size:,}" for size in shape))
        for name, shape in file["shapes"].items()
    ]
    tables = {
        "packages": package_table(manifest),
        "tensors": table(["Tensor", "Shape"], tensors),
    }
    return fill_tables(page, "make_fashion", tables)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command_line(__doc__, arguments, make, check, fill_page)


if __name__ == "__main__":
    main()
