"""The translation pairs: how the tool reads, cuts, filters and splits, and what the files hold."""

import re
import struct
from functools import cache
from pathlib import Path

import pytest

from tools import make_data
from tools.chapters import ROOT
from tools.make_data import CODE, FILTERS, NearDuplicates, Pair, Steps

DATA = ROOT / "transformer_lib" / "corpora"
PAGE = ROOT / "book" / "data.md"


def help_page(body: str) -> bytes:
    """A page of the help around some HTML."""
    footer = "<footer><p id='debug'>Title is: Fields</p></footer>"
    return f"<html><body><div id='DisplayArea'>{body}</div>{footer}</body></html>".encode()


def catalog(messages: dict[str, str]) -> bytes:
    """A compiled gettext catalog."""
    keys = [key.encode() for key in messages]
    values = [value.encode() for value in messages.values()]
    table_at = 28
    position = table_at + 16 * len(messages)
    tables, texts = b"", b""
    for content in [*keys, *values]:
        tables += struct.pack("<2I", len(content), position + len(texts))
        texts += content + b"\0"
    header = struct.pack(
        "<7I", 0x950412DE, 0, len(messages), table_at, table_at + 8 * len(messages), 0, 0
    )
    return header + tables + texts


def in_help(text: str, english: str, file: str = "a", identifier: str = "p1") -> Pair:
    """A pair of a help file."""
    return Pair(text, english, f"help:{file}#{identifier}")


# Reading


def test_of_the_platforms_variants_the_default_one_is_read() -> None:
    page = help_page(
        "<p id='p1'>Press <span class='switchinline'>"
        "<span hidden='true' id='MACx' class='MAC'>Command</span>"
        "<span hidden='true' id='defaultx'>Ctrl</span></span>+F9.</p>"
    )
    assert make_data.read_help_page(page) == {"p1": "Press Ctrl+F9."}


def test_where_there_is_no_default_variant_the_first_one_is_read() -> None:
    page = help_page(
        "<p id='p1'>The <span class='switchinline'><span hidden='true' class='WRITER'>table"
        "</span><span hidden='true' class='CALC'>sheet</span></span> is full.</p>"
    )
    assert make_data.read_help_page(page) == {"p1": "The table is full."}


def test_code_and_what_surrounds_a_help_page_is_not_read() -> None:
    page = help_page(
        "<h1 id='h1'>Fields</h1><p id='p1' class='code'>Dim a</p><pre id='p2'>Dim b</pre>"
        "<p id='p3'>One<br>two</p><p>no id</p>"
    )
    assert make_data.read_help_page(page) == {"h1": "Fields", "p3": "One two"}


def test_help_is_aligned_by_file_and_paragraph(tmp_path: Path) -> None:
    for language, body in {
        "de": "<p id='p2'>Zwei</p><p id='p1'>Eins</p><p id='p3'>Drei</p>",
        "en": "<p id='p1'>One</p><p id='p2'>Two</p>",
    }.items():
        (tmp_path / language / "guide").mkdir(parents=True)
        (tmp_path / language / "guide" / "main.html").write_bytes(help_page(body))
    (tmp_path / "de" / "only.html").write_bytes(help_page("<p id='p1'>Eins</p>"))
    assert list(make_data.read_help(tmp_path / "de", tmp_path / "en")) == [
        Pair("Zwei", "Two", "help:guide/main#p2"),
        Pair("Eins", "One", "help:guide/main#p1"),
    ]


def test_interface_texts_lose_context_shortcut_plural_and_product_name(
    tmp_path: Path,
) -> None:
    messages = {
        "": "Language: de",
        "page|print\x04Print _all": "_Alle drucken",
        "STR_A\x04~File": "~Datei",
        "STR_J\x04Sounds like (_Japanese)": "Ähnlich (_japanisch)",
        "STR_K\x04~File": "ファイル(~F)",
        "STR_B\x04About %PRODUCTNAME": "Info zu %PRODUCTNAME",
        "STR_C\x04%1 page\0%1 pages": "%1 Seite\0%1 Seiten",
    }
    (tmp_path / "sw.mo").write_bytes(catalog(messages))
    pairs = list(make_data.read_interface(tmp_path))
    assert pairs == [
        Pair("Alle drucken", "Print all", "ui:sw|page|print"),
        Pair("Datei", "File", "ui:sw|STR_A"),
        Pair("Ähnlich (japanisch)", "Sounds like (Japanese)", "ui:sw|STR_J"),
        Pair("ファイル", "File", "ui:sw|STR_K"),
        Pair("Info zu LibreOffice", "About LibreOffice", "ui:sw|STR_B"),
        Pair("%1 Seite", "%1 page", "ui:sw|STR_C"),
    ]
    assert [pair.help_file for pair in pairs] == [None] * len(pairs)


def test_another_file_is_not_taken_for_a_catalog() -> None:
    with pytest.raises(ValueError, match="magic number 0x0"):
        list(make_data.read_catalog(bytes(28)))


# Sentences


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("„Ja“ und »Nein«", '"Ja" und "Nein"'),
        ("«\u00a0Oui\u00a0» !", '"Oui" !'),
        ("Options…", "Options..."),
        ("Rahmen…. Neu", "Rahmen... Neu"),
        ("user’s  so\u00adft\u200b\n hyphen", "user's soft hyphen"),
        ("Click the icon .", "Click the icon."),
        ("1/2 ... ersetzen", "1/2 ... ersetzen"),
    ],
)
def test_tidy(text: str, tidy: str) -> None:
    assert make_data.tidy(text) == tidy


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Click OK. The dialog closes.", ["Click OK.", "The dialog closes."]),
        ('Say "Yes." Then go.', ['Say "Yes."', "Then go."]),
        ("Really? Yes! Good.", ["Really?", "Yes!", "Good."]),
        ("Dateien, z. B. Bilder, und d. h. Texte.", None),
        ("Use units, e.g. Inches or cm.", None),
        ("Wählen Sie Bilder, Texte usw. Das geht.", None),
        ("Den 2. Januar eingeben.", None),
        ("Version 7.4 is out.", None),
        ("Choose Options... and go.", None),
        ("", []),
    ],
)
def test_split_sentences(text: str, sentences: list[str] | None) -> None:
    assert make_data.split_sentences(text) == ([text] if sentences is None else sentences)


def test_paragraphs_are_cut_only_where_both_sides_have_equally_many_sentences() -> None:
    equal = in_help("Eins ist da. Zwei auch.", "One is here. So is two.")
    unequal = in_help("Eins ist da, zwei auch.", "One is here. So is two.")
    assert list(make_data.align_sentences([equal, unequal])) == [
        in_help("Eins ist da.", "One is here.", identifier="p1.1"),
        in_help("Zwei auch.", "So is two.", identifier="p1.2"),
        unequal,
    ]


@pytest.mark.parametrize(
    ("english", "whole"),
    [
        ("Click the red button.", True),
        ('"Fields" is not selected.', True),
        ("Click the red button", False),
        ("click the red button.", False),
        ("Click it now.", False),
        ("Click it now. Then wait.", False),
    ],
)
def test_is_whole_sentence(english: str, whole: bool) -> None:
    pair = in_help("Klicken Sie auf den Knopf.", english)
    assert make_data.is_whole_sentence(pair) == whole


# Filters


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ("=SUM(A1)", True),
        ("LEFT(text) is called", True),
        ("the file(s)", False),
        ("%1 pages", True),
        ("90 % of it, 5% more", False),
        ("Open a.odt or file.odt", True),
        ("Choose ... and click", False),
        ("z.B. so", False),
        ("see https://example.org", True),
        ("in /usr/lib", True),
        ("On/Off", False),
        ("Q & A", False),
        ("my_name", True),
    ],
)
def test_code(text: str, is_code: bool) -> None:
    assert bool(CODE.search(text)) == is_code


@pytest.mark.parametrize(
    ("reason", "text", "english"),
    [
        ("code, formula or placeholder", "Der Wert von a = b", "The value"),
        ("mostly symbols", "1, 2, 3 und 4, 5, 6", "1, 2, 3 and 4, 5, 6"),
        ("mostly symbols", "A4", "A4"),
        ("not translated", "Suspend", "Suspend"),
        ("not translated", "The row is not full", "The row is not too full"),
        ("more than 30 words", "wort " * 31, "word"),
        ("lengths do not match", "Klicken Sie auf Tabellen im linken Teil.", "Click it."),
        ("numbers do not match", "Im Jahr 2001", "In the year 2002"),
        ("final punctuation does not match", "Zahl:", "Number"),
    ],
)
def test_filter_drops_what_it_is_for(reason: str, text: str, english: str) -> None:
    assert FILTERS[reason](in_help(text, english))


def test_filters_keep_a_good_pair() -> None:
    pair = in_help("Klicken Sie 2 Mal auf Datei – Neu.", "Click File - New 2 times.")
    assert [reason for reason, is_bad in FILTERS.items() if is_bad(pair)] == []


def test_duplicates_differ_in_capitals_digits_and_punctuation_only() -> None:
    first, same, other = (
        in_help("Ebene 1", "Level 1"),
        in_help("ebene 2:", "level 2:"),
        in_help("Ebene 1", "Layer 1"),
    )
    assert make_data.without_duplicates([first, same, other]) == [first, other]


def test_menu_paths_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_data, "MAX_MENU_PATHS", 3)
    paths = [in_help(f"Wählen Sie A – B – C{n}", f"Choose A - B - C{n}") for n in range(9)]
    other = in_help("Ein Drag-and-Drop", "A drag-and-drop")
    kept = make_data.with_few_menu_paths([*paths[:5], other, *paths[5:]])
    assert len(kept) == 4, f"3 menu paths and another pair should be left, not {kept}"
    assert other in kept
    assert kept == make_data.with_few_menu_paths([*paths[:5], other, *paths[5:]])


# Near-duplicates and splits

SENTENCE = in_help("Die gelöschte Zelle wird nicht gedruckt.", "A deleted cell is not printed.")


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Die gelöschten Zellen werden nicht gedruckt!", "Something else entirely"),
        ("etwas ganz anderes", "the deleted cell is not printed"),
        (
            "Siehe da: Die gelöschte Zelle wird nicht gedruckt, und so weiter und so fort",
            "x",
        ),
        (
            "Ganz anders hier und auch noch länger. Gelöschte Zelle wird nicht gedruckt.",
            "x",
        ),
    ],
)
def test_near_duplicate_of_either_side_is_found(text: str, english: str) -> None:
    near = in_help(text, english)
    found = NearDuplicates([SENTENCE, near])
    assert not found.has(near)
    found.add(SENTENCE)
    assert found.has(near)


def test_a_sentence_of_the_same_kind_is_no_near_duplicate() -> None:
    found = NearDuplicates([SENTENCE])
    found.add(SENTENCE)
    assert not found.has(in_help("Die Tabelle wird nicht kopiert.", "A table is not copied."))


def test_near_duplicates_are_those_of_comparing_all_with_all() -> None:
    """The index is only a shortcut: it finds what comparing every two texts finds."""
    pairs = read("train")[20_000:20_400]  # neighbors, so alike
    added = pairs[::10]
    index = NearDuplicates(pairs)
    for pair in added:
        index.add(pair)
    others = [side for pair in added for side in pair[:2]]
    other_sets = [make_data.word_beginnings(other) for other in others]
    other_rows = [f" {' '.join(make_data.words(other))} " for other in others]

    def is_alike(text: str) -> bool:
        parts = map(make_data.word_beginnings, {text, *make_data.split_sentences(text)})
        row = f" {' '.join(make_data.words(text))} "
        return any(other in row for other in other_rows) or any(
            len(part & other) / len(part | other) >= make_data.NEAR_DUPLICATE
            for part in parts
            for other in other_sets
        )

    expected = [pair for pair in pairs if is_alike(pair.text) or is_alike(pair.english)]
    assert len(expected) > len(added), "no text was like another one, so nothing was compared"
    assert [pair for pair in pairs if index.has(pair)] == expected


def test_split_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_data, "HELD_OUT", 12)
    monkeypatch.setattr(make_data, "MAX_OF_A_FILE", 2)
    pairs = []
    for number in range(200):
        a, b, c, d = (
            f"{chr(97 + (number * k) % 26)}{chr(97 + number // 8)}wort" for k in (1, 3, 5, 7)
        )
        pairs.append(
            in_help(
                f"X{a} {b} {c} {d}.",
                f"Y{d} {a} {c} {b}.",
                f"file{number // 4}",
                f"p{number}",
            )
        )
    pairs.append(Pair("Datei", "File", "ui:sw|a"))
    pairs.append(Pair(*pairs[0][:2], "ui:sw|b"))
    splits = make_data.split(pairs, Steps())
    files = {name: {pair.help_file for pair in split} for name, split in splits.items()}
    assert not files["test"] & files["validation"]
    assert not files["train"] & (files["test"] | files["validation"])
    assert [len(splits[name]) for name in ("test", "validation")] == [12, 12]
    assert Pair("Datei", "File", "ui:sw|a") in splits["train"]


# The shipped files


@cache
def read(split: str) -> list[Pair]:
    """The pairs of a shipped file."""
    return make_data.read_pairs(DATA / f"de-en.{split}.tsv.gz")


@cache
def manifest() -> dict:
    """The shipped manifest, after comparing the files with it."""
    return make_data.check("de", DATA)


def test_shipped_files_are_those_of_the_manifest() -> None:
    for split in ("train", "validation", "test"):
        assert manifest()["files"][f"de-en.{split}.tsv.gz"]["pairs"] == len(read(split))
    assert sum(file.stat().st_size for file in DATA.glob("de-en.*")) < 3_000_000


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    for file in DATA.glob("de-en.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "de-en.test.tsv.gz").write_bytes((DATA / "de-en.validation.tsv.gz").read_bytes())
    with pytest.raises(ValueError, match=r"de-en\.test\.tsv\.gz"):
        make_data.check("de", tmp_path)


def test_shipped_test_and_validation_are_whole_sentences_of_the_help() -> None:
    for split in ("validation", "test"):
        assert len(read(split)) == 1000
        for pair in read(split):
            assert make_data.is_whole_sentence(pair), pair
            assert pair.help_file, f"{split} should hold help only, not {pair}"


def test_shipped_pairs_pass_every_filter_once() -> None:
    pairs = [pair for split in ("train", "validation", "test") for pair in read(split)]
    for pair in pairs:
        failed = [reason for reason, is_bad in FILTERS.items() if is_bad(pair)]
        assert not failed, f"{pair}: {failed}"
        assert all(side and side == " ".join(side.split()) for side in pair[:2]), pair
        assert re.fullmatch(r"help:[^#]+#\S+|ui:\w+\|.+", pair.origin), pair
    assert make_data.without_duplicates(pairs) == pairs


def test_no_help_file_is_in_two_shipped_splits() -> None:
    files = [{pair.help_file for pair in read(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, files)) == len(set.union(*files))


def test_shipped_splits_do_not_leak() -> None:
    """No pair repeats a held-out one, in German or English, entirely or nearly."""
    everything = [pair for split in ("train", "validation", "test") for pair in read(split)]
    held_out = NearDuplicates(everything)
    for pair in read("test"):
        assert not held_out.has(pair), f"test repeats itself: {pair}"
        held_out.add(pair)
    for pair in read("validation"):
        assert not held_out.has(pair), f"validation repeats test or itself: {pair}"
        held_out.add(pair)
    leaks = [pair for pair in read("train") if held_out.has(pair)]
    assert not leaks, f"{len(leaks)} training pairs repeat held-out ones, such as {leaks[:3]}"


def test_shipped_splits_share_no_side() -> None:
    """The same without the tool's own index: letters only, lower case."""

    def plain(pair: Pair) -> list[str]:
        return ["".join(filter(str.isalpha, side.lower())) for side in pair[:2]]

    seen: dict[str, str] = {}
    for split in ("test", "validation", "train"):
        sides = [side for pair in read(split) for side in plain(pair)]
        repeated = [side for side in sides if seen.get(side, split) != split]
        assert not repeated, f"{split} repeats {repeated[:3]}"
        seen |= dict.fromkeys(sides, split)


def test_license_and_attribution_are_beside_the_data() -> None:
    assert (DATA / "LICENSE").read_text().startswith("Mozilla Public License Version 2.0")
    readme = (DATA / "README.md").read_text()
    assert all(name in readme for name in manifest()["packages"])


def test_the_page_shows_what_the_manifest_says() -> None:
    page = PAGE.read_text()
    blocks = re.findall(r"<!-- make_data de (\w+) -->", page)
    assert sorted(blocks) == ["examples", "files", "packages", "steps"]
    assert make_data.fill_page(page, "de", DATA) == page, (
        "run python tools/make_data.py --output transformer_lib/corpora --page book/data.md"
    )
