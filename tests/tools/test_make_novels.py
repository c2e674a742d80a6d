"""The novels: how the tool reads R's data and joins lines, and what the shipped files hold."""

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tools import make_novels
from tools.chapters import ROOT
from transformer_lib.language_model import load_austen

DATA = ROOT / "transformer_lib" / "corpora"
PAGE = ROOT / "book" / "data.md"


def serialized(strings: list[str]) -> bytes:
    """An R vector of strings, as `serialize` writes it."""
    content = struct.pack(
        ">2s 3i i5s i i", b"X\n", 3, 262657, 197888, 5, b"UTF-8", 16, len(strings)
    )
    for string in strings:
        content += struct.pack(">2i", 262153, len(string.encode())) + string.encode()
    return content


def database(*vectors: list[str]) -> bytes:
    """An R database of such vectors."""
    contents = [serialized(vector) for vector in vectors]
    return b"".join(struct.pack(">I", len(c)) + zlib.compress(c) for c in contents)


def small_novels() -> list[list[str]]:
    return [
        [title.title(), "", "by Jane Austen", "", "It _was_ ", " a truth", "", f"of {title}."]
        for title in reversed(make_novels.YEARS)
    ]


# Reading and joining


def test_strings_are_read_back() -> None:
    strings = ["one", "", "£2 and é"]
    [content] = make_novels.unpack(database(strings))
    assert make_novels.read_strings(content) == strings


def test_other_data_is_refused() -> None:
    content = serialized(["one"])
    with pytest.raises(ValueError, match="no vector of strings"):
        make_novels.read_strings(content.replace(b"UTF-8", b"latin"))
    with pytest.raises(ValueError, match="no vector of strings"):
        make_novels.read_strings(content[:23] + struct.pack(">2i", 13, 1) + content[31:])
    packed = database(["one"])
    with pytest.raises(ValueError, match="should have 99 bytes"):
        list(make_novels.unpack(struct.pack(">I", 99) + packed[4:]))


def test_lines_become_paragraphs() -> None:
    lines = ["CHAPTER 1", "", "", "It _was_ a", "  truth  universally", "", "acknowledged"]
    expected = ["CHAPTER 1", "It was a truth universally", "acknowledged"]
    assert make_novels.paragraphs(lines) == expected


def test_one_novel_is_held_out_and_the_others_are_in_order() -> None:
    texts = make_novels.choose(database(*small_novels()))
    titles = [novel.split("\n")[0].upper() for novel in texts["train"].split("\n\n")]
    assert titles == [title for title in make_novels.YEARS if title != "PERSUASION"]
    assert texts["test"] == "Persuasion\nby Jane Austen\nIt was a truth\nof PERSUASION.\n"
    with pytest.raises(ValueError, match="the novels should be"):
        make_novels.choose(database(*small_novels()[1:]))


# Writing


def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the tool on a small package without Debian's help; returns the manifest."""
    monkeypatch.setattr(make_novels, "find_packages", lambda names, _: {names[0]: Path("a.deb")})
    described = {"version": "1-2", "sha256": "ab"}
    monkeypatch.setattr(make_novels, "describe_package", lambda _: described)

    def unpack(command: list[Any], check: bool) -> None:
        assert command[:3] == ["dpkg-deb", "-x", Path("a.deb")]
        target = Path(command[3], make_novels.DATABASE)
        target.parent.mkdir(parents=True)
        target.write_bytes(database(*small_novels()))

    monkeypatch.setattr(make_novels.subprocess, "run", unpack)
    make_novels.main(["--packages", str(folder / "packages"), "--output", str(folder)])
    manifest: dict[str, Any] = json.loads((folder / "austen.json").read_text())
    return manifest


def test_the_same_package_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert make(one, monkeypatch) == make(other, monkeypatch)
    for name in ("austen.json", "austen.train.txt.gz", "austen.test.txt.gz"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / "austen.train.txt.gz").read_bytes()[4:8] == bytes(4), "no time of creation"


def test_a_changed_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch)
    (tmp_path / "austen.test.txt.gz").write_bytes(gzip.compress(b"Persuasion\nis shorter now.\n"))
    with pytest.raises(ValueError, match=r"austen\.test\.txt\.gz holds .*, its manifest says"):
        make_novels.main(["--output", str(tmp_path)])


# What is shipped


def test_the_shipped_novels_are_what_their_manifest_says() -> None:
    manifest = make_novels.check(DATA)
    novels = [novel for file in manifest["files"].values() for novel in file["novels"]]
    assert {novel["title"]: novel["year"] for novel in novels} == make_novels.YEARS
    assert sum((DATA / name).stat().st_size for name in manifest["files"]) < 1.5e6
    assert "Julia Silge" in (DATA / "LICENSE.austen").read_text(encoding="utf-8")


def test_no_paragraph_of_the_held_out_novel_is_in_the_others() -> None:
    known = {line for novel in load_austen("train") for line in novel.split("\n")}
    [held_out] = load_austen("test")
    long = [line for line in held_out.split("\n") if len(line) > 60]
    assert len(long) > 800
    assert not known & set(long)


def test_the_page_has_the_tables_of_the_manifest() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- make_novels ") == 2
    assert make_novels.fill_page(page, make_novels.check(DATA)) == page
