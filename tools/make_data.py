"""Make the book's translation pairs from Debian's LibreOffice help and interface packages.

    python tools/make_data.py --language de --packages DIR --output transformer_lib/corpora
    python tools/make_data.py --language de --output transformer_lib/corpora --page book/data.md

The help is HTML with the same files and the same paragraph ids in every language, the interface
a set of gettext catalogs whose keys are the English texts. Texts are aligned by file and id, cut
into sentences where both sides have equally many, filtered, and split by help file into train,
validation and test. DIR is where the .deb files are, or where `apt-get download` shall put
them; without --packages the files in the output folder are only compared with their manifest.
Written are LANGUAGE-en.{train,validation,test}.tsv.gz (text, English and origin, with tabs
between them) and LANGUAGE-en.json. The same packages give the same bytes.
"""

import argparse
import gzip
import hashlib
import json
import math
import random
import re
import struct
import subprocess
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lxml import html

HELD_OUT = 1000  # whole sentences in validation, and in test
MAX_OF_A_FILE = 20  # of these from one help file
MIN_SENTENCE_WORDS = 4  # a side, for these
MAX_WORDS = 30  # a side
MAX_LENGTH_RATIO = 2.2  # longer side to shorter, in characters, LENGTH_SLACK added to both
LENGTH_SLACK = 8
MAX_MENU_PATHS = 1000  # "Choose File - Print." is common enough to crowd out the rest
NEAR_DUPLICATE = 0.6  # share of word beginnings in common that makes two texts alike
BEGINNING = 5  # letters of a word that count there: "Zelle" and "Zellen" are the same
EXAMPLE_SEED = 13  # of the pairs shown in the book

# A full stop after one of these, a single letter or a number ends no sentence.
ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        "abb abs allg bspw bzw ca cf dr env etc evtl ex fig ggf inkl mr mrs nr no resp sog tel "
        "usw vgl vs max min",
    )
)
BOUNDARY = re.compile(r"""(?P<end>[.!?]["')]*)\s+(?=["'(]*(?P<next>\w))""")
WORD = re.compile(r"[^\W\d_]+")
# Code, formulas, placeholders: symbols, f(x) but not file(s), COM.NAME and file.odt, /a/path.
CODE = re.compile(
    r"[{}\\<>|=@#^~_$\[\]*§`−×÷≤≥≠→←·∙•]|[%&]\w|::|//|/\w+/|\"\""
    r"|\w\((?![^\W\d_]{1,3}\))|[^\W\d_]{2,}\.\w|(?<!\.)\.\w{3,}"
)
MENU_PATH = re.compile(r"\w\S* [-–▸] ?\w")
SIMPLER = str.maketrans(
    "\u00a0\u202f\u2011‘’‚‛“”„«»", '  -\'\'\'\'"""""', "\u200b\u200c\u2060\ufeff\u00ad"
)


class Pair(NamedTuple):
    """A text, its English, and where the two are from."""

    text: str
    english: str
    origin: str

    @property
    def help_file(self) -> str | None:
        """The help file the pair is from; None for the interface."""
        kind, _, place = self.origin.partition(":")
        return place.partition("#")[0] if kind == "help" else None


# Reading the packages ---------------------------------------------------------------------


def find_packages(names: Iterable[str], directory: Path) -> dict[str, Path]:
    """The .deb of every package in `directory`, fetched with apt-get where there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        if not any(directory.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=directory, check=True)
        candidates = sorted(directory.glob(f"{name}_*.deb"))
        if len(candidates) != 1:
            raise ValueError(
                f"{directory} should hold one version of {name}, not {len(candidates)}"
            )
        found[name] = candidates[0]
    return found


def describe_package(deb: Path) -> dict[str, str]:
    """The version and the checksum of a package."""
    version = subprocess.check_output(["dpkg-deb", "-f", deb, "Version"], text=True).strip()
    return {"version": version, "sha256": sha256(deb.read_bytes())}


def visible_text(element: html.HtmlElement) -> str:
    """The text a reader sees: of several platforms' variants only the default one."""
    if not isinstance(element.tag, str) or element.tag in ("script", "pre"):
        return ""
    if element.tag == "br":
        return " "
    children = list(element)
    if (element.get("class") or "").startswith("switch"):
        children = [
            child for child in children if (child.get("id") or "").startswith("default")
        ] or children
        return visible_text(children[0]) if children else ""
    return (element.text or "") + "".join(
        visible_text(child) + (child.tail or "") for child in children
    )


def read_help_page(page: bytes) -> dict[str, str]:
    """Paragraph id -> text, for every paragraph and heading of a help page's content."""
    paragraphs: dict[str, str] = {}
    for area in html.fromstring(page).xpath("//*[@id='DisplayArea']"):
        for element in area.xpath(
            ".//*[self::p or self::h1 or self::h2 or self::h3 or self::h4 or self::h5][@id]"
        ):
            if "code" not in (element.get("class") or ""):
                paragraphs.setdefault(element.get("id"), tidy(visible_text(element)))
    return paragraphs


def read_help(root: Path, english_root: Path) -> Iterator[Pair]:
    """Paragraph pairs of the files that both folders hold."""
    for path in sorted(root.rglob("*.html")):
        name = path.relative_to(root)
        if not (english_root / name).exists():
            continue
        english = read_help_page((english_root / name).read_bytes())
        for identifier, text in read_help_page(path.read_bytes()).items():
            if identifier in english:
                origin = f"help:{name.with_suffix('')}#{identifier}"
                yield Pair(text, english[identifier], origin)


def read_catalog(catalog: bytes) -> Iterator[tuple[str, str, str]]:
    """Key, English and translation of every message in a compiled gettext catalog (.mo)."""
    magic, _, count, keys_at, values_at = struct.unpack_from("<5I", catalog)
    if magic != 0x950412DE:
        raise ValueError(f"not a little-endian gettext catalog: magic number {magic:#x}")
    for index in range(count):
        message = []
        for table in (keys_at, values_at):
            length, offset = struct.unpack_from("<2I", catalog, table + 8 * index)
            entry = catalog[offset : offset + length].decode()
            message.append(entry.partition("\0")[0])  # the first of several plural forms
        key, divider, english = message[0].partition("\x04")
        if divider:
            yield key, english, message[1]


def read_interface(root: Path) -> Iterator[Pair]:
    """Pairs of every catalog in a folder."""
    for path in sorted(root.glob("*.mo")):
        for key, english, text in read_catalog(path.read_bytes()):
            origin = f"ui:{path.stem}|{' '.join(key.split())}"
            yield Pair(interface_text(text), interface_text(english), origin)


def interface_text(message: str) -> str:
    """What a message looks like in the program: no shortcut's mark, and the product's name."""
    without_marks = re.sub(r"\([~_]\w\)|[~_](?=\w)", "", message)  # "(~F)" in Chinese and Japanese
    return tidy(without_marks.replace("%PRODUCTNAME", "LibreOffice"))


# Sentences --------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """One kind of space, of quotation mark and of ellipsis; no invisible characters."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=«)[\u00a0\u202f]|[\u00a0\u202f](?=»)", "", text)  # as in French
    text = " ".join(re.sub(r"…\.*|\.{3,}", "...", text.translate(SIMPLER)).split())
    return re.sub(r" ([.,])(?= |$)", r"\1", text)  # "the icon ."


def split_sentences(text: str) -> list[str]:
    """Cut after . ! ? before a capital letter or a digit.

    Not after an abbreviation, a single letter or a number.
    """
    sentences, start = [], 0
    for match in BOUNDARY.finditer(text):
        last_word = text[start : match.start()].rpartition(" ")[2].strip("\"'(").casefold()
        stop = match["end"].startswith(".")
        if not (match["next"].isupper() or match["next"].isdigit()):
            continue
        if stop and (
            last_word in ABBREVIATIONS
            or len(last_word.rpartition(".")[2]) == 1
            or last_word.isdigit()
        ):
            continue
        sentences.append(text[start : match.end("end")])
        start = match.end()
    return [*sentences, text[start:]] if text[start:] else sentences


def align_sentences(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Sentence pairs where both sides have equally many sentences, whole paragraphs elsewhere."""
    for pair in pairs:
        texts, english = split_sentences(pair.text), split_sentences(pair.english)
        if len(texts) != len(english) or len(texts) == 1:
            yield pair
            continue
        for number, sides in enumerate(zip(texts, english, strict=True), start=1):
            yield Pair(*sides, f"{pair.origin}.{number}")


def is_whole_sentence(pair: Pair) -> bool:
    """Whether both sides are one sentence, from the capital letter to the final mark."""
    return all(
        side.lstrip("\"'(")[:1].isupper()
        and re.search(r"""[.!?]["')]*$""", side) is not None
        and len(side.split()) >= MIN_SENTENCE_WORDS
        and len(split_sentences(side)) == 1
        for side in (pair.text, pair.english)
    )


# Filters ----------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-case words of letters only."""
    return WORD.findall(text.casefold())


def is_untranslated(pair: Pair) -> bool:
    """Whether the two sides are the same, or the text shares most of its words with the English."""
    mine, english = words(pair.text), set(words(pair.english))
    shared = sum(word in english for word in mine)
    return pair.text.casefold() == pair.english.casefold() or (
        len(mine) >= 3 and shared > 0.6 * len(mine)
    )


def has_odd_length(pair: Pair) -> bool:
    """Whether one side is so much longer than the other that it is hardly its translation."""
    short, long = sorted(len(side) + LENGTH_SLACK for side in (pair.text, pair.english))
    return long > MAX_LENGTH_RATIO * short


def is_mostly_symbols(pair: Pair) -> bool:
    """Whether a side has fewer than three letters, or more other characters than letters."""
    letters = [sum(map(len, words(side))) for side in (pair.text, pair.english)]
    return any(
        n < 3 or 2 * n < len(side.replace(" ", ""))
        for n, side in zip(letters, pair[:2], strict=True)
    )


def digits(text: str) -> list[str]:
    """The digits of a text in alphabetical order: equal on both sides of a translation."""
    return sorted(filter(str.isdigit, text))


def ending(text: str) -> str:
    """The punctuation mark a text ends with, if it is one that ends or opens something."""
    last = text.rstrip("\"')")[-1:]
    return last if last in ".!?:;," else ""


FILTERS: dict[str, Callable[[Pair], bool]] = {
    "code, formula or placeholder": lambda pair: any(CODE.search(side) for side in pair[:2]),
    "mostly symbols": is_mostly_symbols,
    "not translated": is_untranslated,
    f"more than {MAX_WORDS} words": lambda pair: any(
        len(side.split()) > MAX_WORDS for side in pair[:2]
    ),
    "lengths do not match": has_odd_length,
    "numbers do not match": lambda pair: digits(pair.text) != digits(pair.english),
    "final punctuation does not match": lambda pair: ending(pair.text) != ending(pair.english),
}


def is_menu_path(pair: Pair) -> bool:
    """Whether both sides name a way through the menus."""
    return all(MENU_PATH.search(side) for side in pair[:2])


def without_duplicates(pairs: Iterable[Pair]) -> list[Pair]:
    """The first pair of all those that differ in capitals, digits and punctuation only."""
    distinct: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        distinct.setdefault((" ".join(words(pair.text)), " ".join(words(pair.english))), pair)
    return list(distinct.values())


def shuffle_key(place: Iterable[str]) -> str:
    """What to sort by for an order that is random, but the same on every machine."""
    return hashlib.sha256("\t".join(place).encode()).hexdigest()


def with_few_menu_paths(pairs: list[Pair]) -> list[Pair]:
    """The pairs in the same order, with MAX_MENU_PATHS menu paths drawn at random."""
    paths = sorted(filter(is_menu_path, pairs), key=shuffle_key)
    dropped = set(paths[MAX_MENU_PATHS:])
    return [pair for pair in pairs if pair not in dropped]


# Splitting --------------------------------------------------------------------------------


def word_beginnings(text: str) -> frozenset[str]:
    """The first letters of every word, in lower case: what near-duplicates share."""
    return frozenset(word[:BEGINNING] for word in words(text))


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity: of all elements of two sets that are not empty, the share in both."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


class NearDuplicates:
    """Says whether a pair repeats, in either language, a pair added before, entirely or nearly.

    A side does if the share of common word beginnings is at least NEAR_DUPLICATE for it or for
    one of its sentences, or if it holds all words of a side added before in a row. So that few
    texts have to be compared, they are filed by the number of their word beginnings and under
    the rarest of them: sets that similar have one of these in common (prefix filtering).
    """

    def __init__(self, corpus: Iterable[Pair]) -> None:
        sides = (side for pair in corpus for side in pair[:2])
        self.frequency = Counter(start for side in sides for start in word_beginnings(side))
        self.similar: defaultdict[tuple[str, int], set[frozenset[str]]] = defaultdict(set)
        self.contained: defaultdict[str, list[str]] = defaultdict(list)

    def _rarest(self, beginnings: frozenset[str]) -> list[str]:
        """As many of the rarest as a set that is similar enough cannot do without."""
        by_rarity = sorted(beginnings, key=lambda start: (self.frequency[start], start))
        return by_rarity[: len(by_rarity) - math.ceil(NEAR_DUPLICATE * len(by_rarity)) + 1]

    def add(self, pair: Pair) -> None:
        """Remember a pair."""
        for side in pair[:2]:
            beginnings = word_beginnings(side)
            rarest = self._rarest(beginnings)
            for start in rarest:
                self.similar[start, len(beginnings)].add(beginnings)
            self.contained[rarest[0]].append(f" {' '.join(words(side))} ")

    def _has_similar(self, text: str) -> bool:
        beginnings = word_beginnings(text)
        smallest = math.ceil(NEAR_DUPLICATE * len(beginnings))
        largest = math.floor(len(beginnings) / NEAR_DUPLICATE)
        return any(
            similarity(beginnings, other) >= NEAR_DUPLICATE
            for start in self._rarest(beginnings)
            for size in range(smallest, largest + 1)
            for other in self.similar.get((start, size), ())
        )

    def _holds_another(self, text: str) -> bool:
        row = f" {' '.join(words(text))} "
        return any(
            other in row
            for beginning in word_beginnings(text)
            for other in self.contained.get(beginning, ())
        )

    def has(self, pair: Pair) -> bool:
        """Whether a side of a pair, or a sentence of it, nearly repeats a side added before, or holds one."""
        return any(
            self._holds_another(side) or any(map(self._has_similar, {side, *split_sentences(side)}))
            for side in pair[:2]
        )


class Steps(list[dict[str, str | int]]):
    """How many pairs of the help and of the interface each step leaves."""

    def record(self, step: str, pairs: list[Pair]) -> None:
        """Note and print a step's result."""
        of_help = sum(pair.help_file is not None for pair in pairs)
        self.append({"step": step, "help": of_help, "interface": len(pairs) - of_help})
        print(f"{of_help:8,} help {len(pairs) - of_help:8,} interface  {step}")


def clean(paragraphs: list[Pair], steps: Steps) -> list[Pair]:
    """Sentence pairs that are worth training on."""
    steps.record("paragraphs and messages with the same id", paragraphs)
    paragraphs = [pair for pair in paragraphs if pair.text and pair.english]
    steps.record("without: a side is empty", paragraphs)
    pairs = list(align_sentences(paragraphs))
    steps.record("cut into sentences where both sides have equally many", pairs)
    for reason, is_bad in FILTERS.items():
        pairs = [pair for pair in pairs if not is_bad(pair)]
        steps.record(f"without: {reason}", pairs)
    pairs = without_duplicates(pairs)
    steps.record("without: duplicates up to capitals, digits and punctuation", pairs)
    pairs = with_few_menu_paths(pairs)
    steps.record(f"without: menu paths beyond {MAX_MENU_PATHS:,}", pairs)
    return pairs


def draw_sentences(pairs: list[Pair], files: Iterator[str], seen: NearDuplicates) -> list[Pair]:
    """HELD_OUT whole sentences of the next files, none like one that was seen before."""
    by_file: defaultdict[str | None, list[Pair]] = defaultdict(list)
    for pair in filter(is_whole_sentence, pairs):
        by_file[pair.help_file].append(pair)
    drawn: list[Pair] = []
    while len(drawn) < HELD_OUT:
        room = min(MAX_OF_A_FILE, HELD_OUT - len(drawn))
        for pair in sorted(by_file[next(files)], key=shuffle_key)[:room]:
            if not seen.has(pair):
                seen.add(pair)
                drawn.append(pair)
    return drawn


def split(pairs: list[Pair], steps: Steps) -> dict[str, list[Pair]]:
    """Test and validation from help files drawn at random; train from the others.

    Of train only what is like nothing in test and validation is kept.
    """
    remaining = iter(sorted({pair.help_file for pair in pairs if pair.help_file}, key=shuffle_key))
    seen = NearDuplicates(pairs)
    test = draw_sentences(pairs, remaining, seen)
    validation = draw_sentences(pairs, remaining, seen)
    train_files = {None, *remaining}
    train = [pair for pair in pairs if pair.help_file in train_files]
    steps.record("without: help files that test and validation are drawn from", train)
    train = [pair for pair in train if not seen.has(pair)]
    steps.record("without: near-duplicates of test and validation; this is train", train)
    steps.record("validation", validation)
    steps.record("test", test)
    return {"train": train, "validation": validation, "test": test}


# Writing ----------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    """The checksum of some bytes."""
    return hashlib.sha256(content).hexdigest()


def as_lines(pairs: Iterable[Pair]) -> bytes:
    """The content of a shipped file."""
    return "".join("\t".join(pair) + "\n" for pair in pairs).encode()


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a shipped file."""
    return [
        Pair(*line.split("\t")) for line in gzip.decompress(path.read_bytes()).decode().splitlines()
    ]


def make(language: str, packages: Path, output: Path) -> None:
    """Write the three files and the manifest of a language."""
    text, english, interface = (
        f"libreoffice-help-{language}",
        "libreoffice-help-en-us",
        f"libreoffice-l10n-{language}",
    )
    debs = find_packages([text, english, interface], packages)
    with tempfile.TemporaryDirectory() as folder:
        for name, deb in debs.items():
            subprocess.run(["dpkg-deb", "-x", deb, Path(folder, name)], check=True)
        [text_pages] = Path(folder, text).glob("usr/share/libreoffice/help/*/text")
        [english_pages] = Path(folder, english).glob("usr/share/libreoffice/help/*/text")
        [catalogs] = Path(folder, interface).glob("usr/lib/libreoffice/program/resource/*/*")
        paragraphs = [*read_help(text_pages, english_pages), *read_interface(catalogs)]
    steps = Steps()
    splits = split(clean(paragraphs, steps), steps)
    output.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, pairs in splits.items():
        content = as_lines(pairs)
        path = output / f"{language}-en.{name}.tsv.gz"
        path.write_bytes(gzip.compress(content, mtime=0))
        files[path.name] = {"pairs": len(pairs), "sha256_of_text": sha256(content)}
        print(f"{sha256(content)}  {path.name}, uncompressed")
    manifest = {
        "language": language,
        "license": "MPL-2.0",
        "packages": {name: describe_package(deb) for name, deb in debs.items()},
        "steps": steps,
        "files": files,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (output / f"{language}-en.json").write_text(text)


def check(language: str, output: Path) -> dict[str, Any]:
    """Compare the written files with their manifest and return it.

    Raises:
        ValueError: where they differ.
    """
    manifest: dict[str, Any] = json.loads((output / f"{language}-en.json").read_text())
    for name, expected in manifest["files"].items():
        content = gzip.decompress((output / name).read_bytes())
        found = {"pairs": content.count(b"\n"), "sha256_of_text": sha256(content)}
        if found != expected:
            raise ValueError(f"{name} holds {found}, its manifest says {expected}")
    return manifest


# The page of the book ---------------------------------------------------------------------


def table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table, numbers with thousands separators."""
    lines = [header, ["---"] * len(header)]
    for row in rows:
        lines.append([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def package_table(manifest: dict[str, Any]) -> str:
    """The packages that a manifest names."""
    rows = [
        (f"`{name}`", package["version"], f"`{package['sha256']}`")
        for name, package in manifest["packages"].items()
    ]
    return table(["Package", "Version", "SHA-256"], rows)


def fill_tables(page: str, maker: str, tables: dict[str, str]) -> str:
    """The page with each table written anew between `<!-- MAKER NAME -->` and `<!-- end -->`."""

    def fill(match: re.Match[str]) -> str:
        return f"{match['start']}\n\n{tables[match['name']]}\n\n{match['end']}"

    marks = rf"(?P<start><!-- {maker} (?P<name>\w+) -->).*?(?P<end><!-- end -->)"
    return re.sub(marks, fill, page, flags=re.DOTALL)


def fill_page(page: str, language: str, output: Path) -> str:
    """The page with the tables of a language written anew.

    They stand between `<!-- make_data LANGUAGE NAME -->` and `<!-- end -->`, where NAME is
    packages, steps, files or examples. The examples are drawn with a fixed seed.
    """
    manifest = check(language, output)
    steps = [(step["step"], step["help"], step["interface"]) for step in manifest["steps"]]
    files = [
        (f"`{name}`", file["pairs"], f"`{file['sha256_of_text']}`")
        for name, file in manifest["files"].items()
    ]
    pairs = read_pairs(output / f"{language}-en.train.tsv.gz")
    examples = random.Random(EXAMPLE_SEED).sample(pairs, 10)
    tables = {
        "packages": package_table(manifest),
        "steps": table(["Step", "Help", "Interface"], steps),
        "files": table(["File", "Pairs", "SHA-256 of the uncompressed text"], files),
        "examples": table(["Text", "English", "Origin"], map(as_cells, examples)),
    }
    return fill_tables(page, f"make_data {language}", tables)


def as_cells(pair: Pair) -> tuple[str, str, str]:
    """A pair for a table."""
    return pair.text, pair.english, f"`{pair.origin}`".replace("|", "\\|")


def command_line(
    purpose: str | None,
    arguments: list[str] | None,
    make: Callable[[Path, Path], Any],
    check: Callable[[Path], dict[str, Any]],
    fill_page: Callable[[str, dict[str, Any]], str],
) -> None:
    """The command line of the tools that make one kind of data: make it, check it, write its tables."""
    parser = argparse.ArgumentParser(
        description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, help="folder of the .deb file")
    parser.add_argument("--output", type=Path, required=True, help="folder of what is made")
    parser.add_argument("--page", type=Path, help="page whose tables to write as well")
    options = parser.parse_args(arguments)
    if options.packages:
        make(options.packages, options.output)
    manifest = check(options.output)
    if options.page:
        options.page.write_text(fill_page(options.page.read_text(), manifest))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language", default="de", help="as in libreoffice-help-LANGUAGE")
    parser.add_argument("--packages", type=Path, help="folder of the .deb files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pairs")
    parser.add_argument("--page", type=Path, help="page whose tables to write as well")
    options = parser.parse_args(arguments)
    if options.packages:
        make(options.language, options.packages, options.output)
    check(options.language, options.output)
    if options.page:
        page = fill_page(options.page.read_text(), options.language, options.output)
        options.page.write_text(page)


if __name__ == "__main__":
    main()
