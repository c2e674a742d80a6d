"""Make the two files of chapter 26: a reader's own pairs, and messages from another world.

    python -m tools.make_samples --packages DIR --output transformer_lib/corpora

fr-en.sample.tsv.gz holds French-English pairs of LibreOffice, made as tools/make_data.py makes the
German ones, but in one file, as readers have theirs: help pages drawn at random, whole, and the
interface's texts. de-en.messages.tsv.gz holds messages of the PostgreSQL server, none nearly like
another. DIR is where the .deb files are, or where `apt-get download` shall put them; without
--packages the files are only compared with their manifest, samples.json.
"""

import argparse
import gettext
import gzip
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.make_data import (
    FILTERS,
    NearDuplicates,
    Pair,
    Steps,
    as_lines,
    clean,
    describe_package,
    find_packages,
    read_help,
    read_interface,
    sha256,
    shuffle_key,
    tidy,
)

FRENCH_PAIRS = 18_000  # about, since a help page is taken whole
MESSAGES = 800
MESSAGE_WORDS = 4  # a side, at least
FRENCH = ("libreoffice-help-fr", "libreoffice-help-en-us", "libreoffice-l10n-fr")


def unpack(debs: dict[str, Path], folder: str) -> None:
    """Unpack each package into a folder of its name."""
    for name, deb in debs.items():
        subprocess.run(["dpkg-deb", "-x", deb, Path(folder, name)], check=True)


def french(folder: Path) -> list[Pair]:
    """French-English pairs, a part of the help pages and all that belongs to the interface."""
    text, english, interface = FRENCH
    [text_pages] = (folder / text).glob("usr/share/libreoffice/help/*/text")
    [english_pages] = (folder / english).glob("usr/share/libreoffice/help/*/text")
    [catalogs] = (folder / interface).glob("usr/lib/libreoffice/program/resource/*/*")
    paragraphs = [*read_help(text_pages, english_pages), *read_interface(catalogs)]
    pairs = clean(paragraphs, Steps())
    pages = sorted({pair.help_file for pair in pairs if pair.help_file}, key=shuffle_key)
    counts = {page: sum(pair.help_file == page for pair in pairs) for page in pages}
    taken: set[str] = set()
    wanted = FRENCH_PAIRS * 3 // 4  # the rest is from the interface
    while wanted > 0:
        page = pages.pop(0)  # make_data.py draws its test pages from this end, too
        taken.add(page)
        wanted -= counts[page]
    interface_pairs = sorted((p for p in pairs if p.help_file is None), key=shuffle_key)
    of_interface = set(interface_pairs[: FRENCH_PAIRS // 4])
    chosen = [pair for pair in pairs if pair.help_file in taken or pair in of_interface]
    return sorted(chosen, key=shuffle_key)  # as in no file of a reader's: without an order


def messages(folder: Path) -> Iterator[Pair]:
    """German-English messages of a PostgreSQL server, none nearly like another, in random order."""
    [catalog] = (folder / "postgresql-15").glob("usr/share/locale/de/LC_MESSAGES/postgres-15.mo")
    with catalog.open("rb") as file:
        texts = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    pairs = [
        Pair(tidy(german), tidy(english), "pg:postgres")
        for english, german in texts.items()
        if isinstance(english, str) and german
    ]
    for is_bad in FILTERS.values():
        pairs = [pair for pair in pairs if not is_bad(pair)]
    pairs = [pair for pair in pairs if min(len(x.split()) for x in pair[:2]) >= MESSAGE_WORDS]
    seen = NearDuplicates(pairs)
    for pair in sorted(pairs, key=shuffle_key):
        if not seen.has(pair):
            seen.add(pair)
            yield pair


def make(packages: Path, output: Path) -> None:
    """Write both files and their manifest."""
    debs = find_packages([*FRENCH, "postgresql-15"], packages)
    with tempfile.TemporaryDirectory() as folder:
        unpack(debs, folder)
        found = {
            "fr-en.sample.tsv.gz": french(Path(folder)),
            "de-en.messages.tsv.gz": [*messages(Path(folder))][:MESSAGES],
        }
    files = {}
    for name, pairs in found.items():
        content = as_lines(pairs)
        (output / name).write_bytes(gzip.compress(content, mtime=0))
        files[name] = {"pairs": len(pairs), "sha256_of_text": sha256(content)}
        print(f"{len(pairs):,} pairs in {name}")
    described = {name: describe_package(deb) for name, deb in debs.items()}
    manifest = {"packages": described, "files": files}
    (output / "samples.json").write_text(json.dumps(manifest, indent=2) + "\n")


def check(output: Path) -> dict[str, Any]:
    """Compare the written files with their manifest and return it.

    Raises:
        ValueError: where they differ.
    """
    manifest: dict[str, Any] = json.loads((output / "samples.json").read_text())
    for name, expected in manifest["files"].items():
        content = gzip.decompress((output / name).read_bytes())
        found = {"pairs": content.count(b"\n"), "sha256_of_text": sha256(content)}
        if found != expected:
            raise ValueError(f"{name} holds {found}, its manifest says {expected}")
    return manifest


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.packages:
        make(options.packages, options.output)
    check(options.output)


if __name__ == "__main__":
    main()
