"""Make the book's novels from Debian's package of Jane Austen's.

    python -m tools.make_novels --packages DIR --output transformer_lib/corpora --page book/data.md

The package holds six novels as R's data: for each a vector of its lines. A paragraph's lines are
joined, so that a line of the files is a paragraph; marks of italics (_) are left out. Written are
austen.train.txt.gz (all but one), austen.test.txt.gz (HELD_OUT), with an empty line between novels,
and austen.json. The same package gives the same bytes. DIR is where the .deb file is, or where
`apt-get download` shall put it; without --packages the files in the output folder are only compared
with their manifest.
"""

import gzip
import json
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.make_data import (
    command_line,
    describe_package,
    fill_tables,
    find_packages,
    package_table,
    sha256,
    table,
)

PACKAGE = "r-cran-janeaustenr"
DATABASE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
YEARS = {  # of publication, in the order of the file
    "SENSE AND SENSIBILITY": 1811,
    "PRIDE AND PREJUDICE": 1813,
    "MANSFIELD PARK": 1814,
    "EMMA": 1815,
    "NORTHANGER ABBEY": 1817,
    "PERSUASION": 1817,
}
HELD_OUT = "PERSUASION"


def unpack(database: bytes) -> Iterator[bytes]:
    """The objects of an R database: each is its size in four bytes, then packed by zlib.

    Raises:
        ValueError: if one has another size than it says.
    """
    while database:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(database[4:])
        if len(content) != (size := int.from_bytes(database[:4], "big")):
            raise ValueError(f"an object of R should have {size} bytes, it has {len(content)}")
        yield content
        database = unpacking.unused_data


def read_strings(content: bytes) -> list[str]:
    """The strings of an R vector of strings, as `serialize` writes it in its format 3.

    Raises:
        ValueError: if it holds anything else.
    """
    # X, three versions, the name of the encoding; the vector's type and its length
    header = struct.Struct(">2s 3i i5s i i")
    mark, version, _, _, _, encoding, kind, count = header.unpack_from(content)
    if (mark, version, encoding, kind & 255) != (b"X\n", 3, b"UTF-8", 16):
        raise ValueError(f"no vector of strings in R's format 3: it begins with {content[:40]!r}")
    place, strings = header.size, []
    for _ in range(count):
        _, length = struct.unpack_from(">2i", content, place)  # its type, its bytes
        place += 8 + length
        strings.append(content[place - length : place].decode("utf-8"))
    return strings


def paragraphs(lines: Sequence[str]) -> list[str]:
    """The paragraphs between empty lines, each on one line, without marks of italics."""
    groups = [list(group) for full, group in groupby(lines, key=bool) if full]
    return [" ".join(" ".join(group).replace("_", "").split()) for group in groups]


def choose(database: bytes) -> dict[str, str]:
    """The text of each split: its novels, a paragraph a line, with an empty line between novels.

    Raises:
        ValueError: if the novels are not those of YEARS.
    """
    novels = [paragraphs(read_strings(content)) for content in unpack(database)]
    by_title = {novel[0].upper(): novel for novel in novels}
    if by_title.keys() != YEARS.keys():
        raise ValueError(f"the novels should be {[*YEARS]}, there are {[*by_title]}")
    texts = {title: "\n".join(by_title[title]) + "\n" for title in YEARS}  # in order of years
    train = "\n".join(text for title, text in texts.items() if title != HELD_OUT)
    return {"train": train, "test": texts[HELD_OUT]}


def make(packages: Path, output: Path) -> None:
    """Write the novels and their manifest."""
    deb = find_packages([PACKAGE], packages)[PACKAGE]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        texts = choose(Path(folder, DATABASE).read_bytes())
    output.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, text in texts.items():
        name = f"austen.{split}.txt.gz"
        (output / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        files[name] = describe(text)
    manifest = {
        "license": "the novels: public domain; the package: MIT",
        "packages": {PACKAGE: describe_package(deb)},
        "files": files,
    }
    (output / "austen.json").write_text(json.dumps(manifest, indent=2) + "\n")


def describe(text: str) -> dict[str, Any]:
    """What the manifest says of an unpacked file."""
    novels = [
        {
            "title": (title := novel.split("\n", 1)[0].upper()),
            "year": YEARS[title],
            "paragraphs": novel.strip("\n").count("\n") + 1,
            "words": len(novel.split()),
            "characters": len(novel),
        }
        for novel in text.split("\n\n")
    ]
    return {"novels": novels, "sha256_of_content": sha256(text.encode())}


def check(output: Path) -> dict[str, Any]:
    """Compare the novels with their manifest and return it.

    Raises:
        ValueError: where they differ.
    """
    manifest: dict[str, Any] = json.loads((output / "austen.json").read_text())
    for name, expected in manifest["files"].items():
        found = describe(gzip.decompress((output / name).read_bytes()).decode())
        if found != expected:
            raise ValueError(f"{name} holds {found}, its manifest says {expected}")
    return manifest


def fill_page(page: str, manifest: dict[str, Any]) -> str:
    """The page with its tables between `<!-- make_novels NAME -->` and `<!-- end -->` anew."""
    novels = [
        (
            novel["title"].title().replace("And", "and"),
            str(novel["year"]),
            f"`{file}`",
            *(f"{novel[count]:,}" for count in ("paragraphs", "words", "characters")),
        )
        for file, described in manifest["files"].items()
        for novel in described["novels"]
    ]
    tables = {
        "packages": package_table(manifest),
        "novels": table(["Novel", "Year", "File", "Paragraphs", "Words", "Characters"], novels),
    }
    return fill_tables(page, "make_novels", tables)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    command_line(__doc__, arguments, make, check, fill_page)


if __name__ == "__main__":
    main()
