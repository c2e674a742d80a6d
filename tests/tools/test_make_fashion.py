"""The pictures of clothes: how the tool chooses them, and what the shipped file holds."""

import gzip
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tools import make_fashion
from tools.chapters import ROOT
from transformer_lib.vision import FASHION_CLASSES

DATA = ROOT / "transformer_lib" / "corpora"
PAGE = ROOT / "book" / "data.md"


def idx(array: np.ndarray) -> bytes:
    """A gzipped IDX file of bytes."""
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def fashion(folder: Path, of_a_class: int = 4) -> None:
    """The four files, small: random pictures, of every class as many."""
    random = np.random.default_rng(0)
    for name in ("train", "t10k"):
        labels = np.tile(np.arange(10, dtype=np.uint8), of_a_class)
        images = random.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels))


@cache
def shipped() -> dict[str, np.ndarray]:
    """The tensors that come with the package."""
    return load(gzip.decompress((DATA / "fashion.safetensors.gz").read_bytes()))


# Reading and choosing


def test_an_idx_file_is_read(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "some.gz").write_bytes(idx(array))
    read = make_fashion.read_idx(tmp_path / "some.gz")
    assert read.shape == (2, 3, 4)
    assert (read == array).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + bytes(4), "no IDX file of bytes"),
        (b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(4), "holds 4 bytes"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "some.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        make_fashion.read_idx(tmp_path / "some.gz")


def test_shades_are_rounded_to_the_nearest_of_sixteen() -> None:
    every = np.arange(256, dtype=np.uint8)
    rounded = make_fashion.with_few_levels(every)
    assert sorted(set(rounded.tolist())) == list(range(0, 256, 17))
    assert np.abs(rounded.astype(int) - every.astype(int)).max() == 8
    assert (make_fashion.with_few_levels(rounded) == rounded).all()


def test_the_first_of_each_class_are_chosen_and_copies_passed_over() -> None:
    labels = np.tile(np.arange(10, dtype=np.uint8), 3)
    images = np.arange(30, dtype=np.uint8).repeat(4).reshape(30, 2, 2)
    images[10] = images[0]  # the second picture of class 0 repeats the first
    known = {images[1].tobytes()}  # the first of class 1 was seen elsewhere
    chosen, classes = make_fashion.first_of_each_class(images, labels, 2, known)
    assert np.bincount(classes).tolist() == [2] * 10
    assert chosen[:, 0, 0].tolist() == [0, *range(2, 10), *range(11, 20), 20, 21]
    with pytest.raises(ValueError, match=r"3 pictures of each class"):
        make_fashion.first_of_each_class(images, labels, 3, set())


def test_training_leaves_out_what_test_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion(tmp_path)
    for split in ("train", "t10k"):  # the same pictures in both
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(
            (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
        )
    monkeypatch.setattr(make_fashion, "TRAIN_OF_A_CLASS", 2)
    monkeypatch.setattr(make_fashion, "TEST_OF_A_CLASS", 2)
    tensors = make_fashion.choose(tmp_path)
    assert {name: len(tensor) for name, tensor in tensors.items()} == {
        **{"test_images": 20, "test_labels": 20, "train_images": 20, "train_labels": 20}
    }
    splits = [
        {image.tobytes() for image in tensors[f"{split}_images"]} for split in ("train", "test")
    ]
    assert splits[0].isdisjoint(splits[1])


# Writing


def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the tool on a small package without Debian's help; returns the manifest."""
    monkeypatch.setattr(make_fashion, "TRAIN_OF_A_CLASS", 3)
    monkeypatch.setattr(make_fashion, "TEST_OF_A_CLASS", 2)
    monkeypatch.setattr(make_fashion, "find_packages", lambda names, _: {names[0]: Path("a.deb")})
    described = {"version": "1-2", "sha256": "ab"}
    monkeypatch.setattr(make_fashion, "describe_package", lambda _: described)

    def unpack(command: list[Any], check: bool) -> None:
        assert command[:3] == ["dpkg-deb", "-x", Path("a.deb")]
        target = Path(command[3], "usr/share/datasets/fashion-mnist")
        target.mkdir(parents=True)
        fashion(target)

    monkeypatch.setattr(make_fashion.subprocess, "run", unpack)
    make_fashion.main(["--packages", str(folder / "packages"), "--output", str(folder)])
    manifest: dict[str, Any] = json.loads((folder / "fashion.json").read_text())
    return manifest


def test_the_same_package_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert make(one, monkeypatch) == make(other, monkeypatch)
    for name in ("fashion.json", "fashion.safetensors.gz"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / "fashion.safetensors.gz").read_bytes()[4:8] == bytes(4), "no time of creation"


def test_a_changed_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch)
    manifest = json.loads((tmp_path / "fashion.json").read_text())
    manifest["files"]["fashion.safetensors.gz"]["sha256_of_content"] = "0"
    (tmp_path / "fashion.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"fashion\.safetensors\.gz holds .*, its manifest says"):
        make_fashion.main(["--output", str(tmp_path)])


# What is shipped


def test_the_shipped_pictures_are_what_their_manifest_says() -> None:
    manifest = make_fashion.check(DATA)
    assert manifest["license"] == "MIT"
    assert tuple(manifest["classes"]) == FASHION_CLASSES
    assert (DATA / "fashion.safetensors.gz").stat().st_size < 1.5e6
    assert "Zalando SE" in (DATA / "LICENSE.fashion").read_text(encoding="utf-8")


def test_the_shipped_pictures_are_balanced_and_no_two_are_the_same() -> None:
    tensors = shipped()
    assert set(tensors) == {"train_images", "train_labels", "test_images", "test_labels"}
    for split, number in (("train", 600), ("test", 100)):
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        assert images.dtype == labels.dtype == np.uint8
        assert images.shape == (10 * number, 28, 28)
        assert np.bincount(labels).tolist() == [number] * 10
        assert set(np.unique(images).tolist()) == set(range(0, 256, 17))
    every = np.concatenate([tensors["train_images"], tensors["test_images"]])
    assert len({image.tobytes() for image in every}) == len(every) == 7000


def test_the_page_has_the_tables_of_the_manifest() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- make_fashion ") == 2
    assert make_fashion.fill_page(page, make_fashion.check(DATA)) == page
