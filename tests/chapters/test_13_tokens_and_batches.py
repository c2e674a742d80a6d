"""Chapter 13: the tokenizer, the files of pairs, and batches by token count."""

import codecs
import gzip
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from torch import Tensor

from transformer_lib import pairs
from transformer_lib.book.checks.chapter_13 import (
    check_groups,
    check_padding_share,
    check_shown_at_once,
    check_token_bytes,
)
from transformer_lib.pairs import (
    Batch,
    Example,
    LazyBatches,
    Pair,
    encode_pairs,
    load_pairs,
    make_batch,
    read_pairs,
    token_batches,
)
from transformer_lib.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    encode_texts,
    load_tokenizer,
    parse_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

VALIDATION = load_pairs("validation")
TOKENIZER = train_tokenizer([text for pair in VALIDATION for text in pair[:2]], vocab_size=600)

ids = st.lists(st.integers(3, 99), max_size=12)
example_lists = st.lists(st.builds(lambda s, t: Example([*s, EOS_ID], t), ids, ids), min_size=1)
texts = st.text(st.characters(exclude_categories=["Cs"]))  # all but lone halves of a character


# The tokenizer ----------------------------------------------------------------------------------


def test_special_tokens_have_the_first_ids() -> None:
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == [PAD_ID, BOS_ID, EOS_ID]
    assert (PAD_ID, BOS_ID, EOS_ID) == (0, 1, 2)
    assert TOKENIZER.get_vocab_size() == 600


@given(texts)
@example("<eos>")
@example("a<bos>b")
@example("<pad><pad> <eos> ")
@example("👩‍🚀")
@example("e\u0301é")
@example("\x00\r\n")
def test_every_text_comes_back_composed_and_is_never_special(text: str) -> None:
    (found,) = encode_texts(TOKENIZER, [text])
    assert found == TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(found) == unicodedata.normalize("NFC", text)
    assert all(token_id > EOS_ID for token_id in found)


def test_decomposed_letters_are_the_composed_ones(tmp_path: Path) -> None:
    whole = [pair.source for pair in VALIDATION[:200]]
    apart = [unicodedata.normalize("NFD", text) for text in whole]
    assert whole != apart
    assert encode_texts(TOKENIZER, apart) == encode_texts(TOKENIZER, whole)
    assert train_tokenizer(apart, 400).get_vocab() == train_tokenizer(whole, 400).get_vocab()
    save_tokenizer(TOKENIZER, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert encode_texts(loaded, apart) == encode_texts(TOKENIZER, whole)


@pytest.mark.parametrize("text", ["ein \ud800 Satz", "\udfff", None, b"bytes"])
def test_what_is_no_text_is_named(text: Any) -> None:
    for call in (
        lambda: train_tokenizer(["gut", text], 300),
        lambda: encode_texts(TOKENIZER, ["gut", text]),
        lambda: encode_pairs([Pair("gut", "good"), Pair("x", text)], TOKENIZER),
    ):
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            call()
    with pytest.raises(ValueError, match="'one text'"):
        encode_texts(TOKENIZER, "one text")


def test_training_twice_gives_the_same_vocabulary() -> None:
    some = [pair.source for pair in VALIDATION[:200]]
    assert train_tokenizer(some, 400).get_vocab() == train_tokenizer(iter(some), 400).get_vocab()


def test_a_vocabulary_without_room_and_no_text() -> None:
    assert train_tokenizer(["aa aa"], 259).get_vocab_size() == 259
    with pytest.raises(ValueError, match=r"vocab_size .*259 .*258"):
        train_tokenizer(["aa aa"], 258)
    with pytest.raises(ValueError, match="none"):
        train_tokenizer([], 300)
    with pytest.raises(ValueError, match="single text 'one string"):
        train_tokenizer("one string is not many texts", 300)


# Files ------------------------------------------------------------------------------------------


def test_shipped_pairs() -> None:
    assert len(VALIDATION) == len(load_pairs("test")) == 1000
    assert all(pair.source and pair.target and pair.origin for pair in VALIDATION)
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        load_pairs("dev")


def test_reads_what_people_have(tmp_path: Path) -> None:
    expected = [Pair("Schön", "Nice"), Pair("Tür", "door", "me")]
    text = "Schön\tNice\nTür\tdoor\tme"
    for name, content in {
        "plain.tsv": text.encode(),
        "last-break.tsv": text.encode() + b"\n",
        "windows.tsv": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n",
        "packed.tsv.gz": gzip.compress(text.encode()),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_pairs(tmp_path / name) == expected, name
    assert read_pairs(str(tmp_path / "plain.tsv")) == expected
    with pytest.raises(FileNotFoundError):
        read_pairs(tmp_path / "nothing.tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nc\n", "line 2.*got 1"),
        (b"a\tb\n\nc\td\n", "line 2.*got 1"),
        (b"a\tb\tc\td\n", "line 1.*got 4"),
        (b"a\tb\n\tb\n", "line 2: the source is empty"),
        (b"a\t \n", "line 1: the target is empty"),
        (b"a\tb\na\t\xfc\n", "line 2: byte 3 is not UTF-8"),
        (b"", "is empty"),
    ],
)
def test_a_broken_file_names_itself_and_the_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"mine.tsv.*{message}"):
        read_pairs(path)


@pytest.mark.parametrize(
    "content", [b"a\tb\n", gzip.compress(b"a\tb\n" * 99)[:-12]], ids=["not gzip", "cut short"]
)
def test_a_broken_gzip_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.tsv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.tsv\.gz is not a whole gzip file"):
        read_pairs(tmp_path / "mine.tsv.gz")


# Encoding ---------------------------------------------------------------------------------------


def test_examples_spell_their_pairs() -> None:
    for pair, (source, target) in zip(VALIDATION, encode_pairs(VALIDATION, TOKENIZER), strict=True):
        assert source[-1] == EOS_ID
        assert TOKENIZER.decode(source[:-1]) == pair.source
        assert TOKENIZER.decode(target) == pair.target


def test_encoding_refuses_what_would_be_silent() -> None:
    forgetful = Tokenizer.from_str(TOKENIZER.to_str())
    with pytest.raises(ValueError, match=r"'a <eos>' became <eos>.*encode_special_tokens"):
        encode_pairs([Pair("b", "a <eos>")], forgetful)
    with pytest.raises(ValueError, match="no tokens"):
        encode_pairs([Pair("", "a")], TOKENIZER)
    forgetful.encode_special_tokens = True
    assert encode_pairs([Pair("b", "a <eos>")], forgetful)


# Batches ----------------------------------------------------------------------------------------


def rows(batch_rows: Tensor) -> list[list[int]]:
    """The rows without their padding, after checking that it is on the right only."""
    found = []
    for row in batch_rows.tolist():
        length = sum(token_id != PAD_ID for token_id in row)
        assert PAD_ID not in row[:length], row
        found.append(row[:length])
    return found


@given(example_lists)
def test_a_batch_holds_its_examples(examples: list[Example]) -> None:
    batch = make_batch(examples)
    assert batch.target_in.shape == batch.target_out.shape
    assert rows(batch.source) == [source for source, _ in examples]
    assert rows(batch.target_in) == [[BOS_ID, *target] for _, target in examples]
    assert rows(batch.target_out) == [[*target, EOS_ID] for _, target in examples]
    for ids_of_side in (batch.source, batch.target_in):  # no column of padding alone
        assert (ids_of_side != PAD_ID).any(dim=0).all()
        assert ids_of_side.dtype == torch.long


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "at least one"),
        ([Example([2], [5]), Example([], [5])], r"example 1 .*: \[\], \[5\]"),
        ([Example([5, 2], [7, 0])], r"example 0 .*: \[5, 2\], \[7, 0\]"),
        ([Example([-3, 2], [7])], r"example 0 .*: \[-3, 2\]"),
        ([Example([5, 2], [5]), Example([5], [5])], r"example 1 .* end of the source.*: \[5\]"),
        ([Example([5, 2], [5, 2, 6])], r"example 0 .*no other special.*\[5, 2, 6\]"),
        ([Example([5, 2, 6, 2], [5])], r"example 0 .*no other special.*\[5, 2, 6, 2\]"),
        ([Example([5, 2], [1, 6])], r"example 0 .*no other special.*\[1, 6\]"),
    ],
)
def test_a_batch_refuses(examples: list[Example], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_batch(examples)


def test_an_example_may_be_empty_but_for_its_ends() -> None:
    batch = make_batch([Example([EOS_ID], [])])
    assert batch.source.tolist() == batch.target_out.tolist() == [[EOS_ID]]
    assert batch.target_in.tolist() == [[BOS_ID]]


SOURCE, TARGET = torch.tensor([[5, 6, 2], [7, 2, 0]]), torch.tensor([[1, 5], [1, 6]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_out": torch.tensor([[5, 2], [2, -100]])}, "target_out holds -100"),
        ({"source": SOURCE - 1}, "source holds -1"),
        ({"target_in": TARGET - 2, "pad_id": -1}, "target_in holds -1"),
        ({"source": SOURCE[:1]}, r"fit together.*\(1, 3\).*\(2, 2\)"),
        ({"target_in": TARGET[:, :1]}, r"fit together.*\(2, 1\).*\(2, 2\)"),
        ({"target_out": torch.zeros_like(TARGET)}, r"all targets are padding \(id 0\)"),
        ({"target_out": torch.full_like(TARGET, 9), "pad_id": 9}, r"padding \(id 9\)"),
        ({"source": SOURCE.float()}, r"source .*float32 of shape \(2, 3\)"),
        ({"target_in": TARGET.bool()}, "target_in .*bool"),
        ({"source": SOURCE[:0]}, r"source .*none empty.*\(0, 3\)"),
        ({"source": SOURCE[0]}, r"source .*\(3,\)"),
        ({"source": torch.tensor(3)}, r"source .*\(\)"),
    ],
)
def test_a_batch_of_ones_own_is_looked_at(change: dict[str, Any], words: str) -> None:
    whole: dict[str, Any] = {"source": SOURCE, "target_in": TARGET, "target_out": TARGET}
    Batch(**whole)
    with pytest.raises(ValueError, match=words):
        Batch(**whole | change)


def test_a_batch_moves_whole() -> None:
    batch = Batch(SOURCE, TARGET, TARGET + 3, pad_id=3)
    moved = batch.to("meta")
    assert moved.pad_id == 3
    assert {x.device.type for x in (moved.source, moved.target_in, moved.target_out)} == {"meta"}
    assert (moved.source.shape, moved.target_out.shape) == (SOURCE.shape, TARGET.shape)
    assert batch.source is SOURCE


def test_batches_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(examples: list[Example]) -> Batch:
        made.append(len(examples))
        return make_batch(examples)

    monkeypatch.setattr(pairs, "make_batch", counted)
    examples = encode_pairs(VALIDATION[:200], TOKENIZER)
    batches = token_batches(examples, 500, seed=0)
    part = batches[2:7:2]
    assert isinstance(part, LazyBatches)
    assert (len(part), len(batches), made) == (3, len(batches.groups), [])
    assert torch.equal(part[1].source, batches[4].source)
    assert torch.equal(batches[-1].source, batches[len(batches) - 1].source)
    assert len(made) == 4
    made.clear()
    rows_of_all = sum(len(batch.source) for batch in batches)
    assert rows_of_all == sum(made) == 200
    with pytest.raises(IndexError):
        batches[len(batches)]


@settings(max_examples=50)
@given(example_lists, st.integers(13, 60), st.integers(0, 5))
def test_an_epoch_holds_every_example_once(
    examples: list[Example], max_tokens: int, seed: int
) -> None:
    batches = token_batches(examples, max_tokens, seed)
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for batch in batches:
        assert max(batch.source.numel(), batch.target_in.numel()) <= max_tokens
        for source, target in zip(rows(batch.source), rows(batch.target_out), strict=True):
            found[tuple(source), tuple(target[:-1])] += 1
    assert found == Counter((tuple(source), tuple(target)) for source, target in examples)
    again = token_batches(examples, max_tokens, seed)
    assert all(torch.equal(a.source, b.source) for a, b in zip(batches, again, strict=True))


def test_batches_are_full_alike_and_in_no_order() -> None:
    examples = encode_pairs(VALIDATION, TOKENIZER)
    batches = token_batches(examples, 1000, seed=0)
    sizes = [max(batch.source.numel(), batch.target_in.numel()) for batch in batches]
    assert sorted(sizes)[len(sizes) // 5] > 850
    targets = [batch.target_in for batch in batches]
    assert sum((ids == PAD_ID).sum().item() for ids in targets) < 0.05 * sum(
        ids.numel() for ids in targets
    )
    widths = torch.tensor(
        [[ids.size(1), place] for place, ids in enumerate(targets)], dtype=torch.float
    )
    assert abs(torch.corrcoef(widths.T)[0, 1].item()) < 0.6  # sorted batches would have 1
    other = token_batches(examples, 1000, seed=1)
    assert [batch.source.shape for batch in batches] != [batch.source.shape for batch in other]


def test_what_does_not_fit_is_an_error() -> None:
    examples = [Example([5, 2], [5]), Example([5, 2], [5, 6, 7, 8])]  # with <bos>, 5 tokens
    assert len(token_batches(examples, 5, seed=0)) == 2
    with pytest.raises(ValueError, match=r"example 1 needs max_tokens 5, got 4"):
        token_batches(examples, 4, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        token_batches([], 4, seed=0)


# The exercises' checks ----------------------------------------------------------------------------

SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in SHOWN]


def token_bytes(token: str, others: list[int] = OTHERS, first: int = 256) -> bytes:
    table = {byte: byte for byte in SHOWN}
    table |= {first + number: byte for number, byte in enumerate(others)}
    return bytes(table[ord(character)] for character in token)


def token_bytes_by_arithmetic(token: str) -> bytes:
    found = bytearray()
    for number in map(ord, token):
        if number >= 323:
            number = 173
        elif number >= 289:
            number += 127 - 289
        elif number >= 256:
            number -= 256
        found.append(number)
    return bytes(found)


def token_bytes_by_counting(token: str) -> bytes:
    found, others = {}, 0
    for byte in range(256):
        if 32 < byte < 127 or 160 < byte < 173 or byte > 173:
            found[chr(byte)] = byte
        else:
            found[chr(256 + others)] = byte
            others += 1
    return b"".join(found[character].to_bytes() for character in token)


def shown_at_once(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    shown: list[str] = []
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end]).rstrip("\N{REPLACEMENT CHARACTER}")
        shown.append(whole[len("".join(shown)) :])
    return shown


def shown_by_bytes(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token_bytes(tokenizer.id_to_token(i))) for i in ids]


def shown_when_all_is_whole(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    shown, waiting = [], []
    for i in ids:
        waiting.append(i)
        text = tokenizer.decode(waiting)
        if "\N{REPLACEMENT CHARACTER}" in text:
            shown.append("")
        else:
            shown.append(text)
            waiting = []
    return shown


def shown_and_emptied(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    shown = shown_at_once(tokenizer, ids)
    ids.clear()
    return shown


def shown_without_what_waits(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    parts = [tokenizer.decode([i]) for i in ids]
    return ["" if "\N{REPLACEMENT CHARACTER}" in part else part for part in parts]


def padding(lengths: list[int], size: int) -> float:
    groups = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)


def padding_counted(lengths: list[int], size: int) -> float:
    pads = positions = 0
    for start in range(0, len(lengths), size):
        widest = max(lengths[start : start + size])
        for length in lengths[start : start + size]:
            pads += widest - length
            positions += widest
    return pads / positions


def average_of_shares(lengths: list[int], size: int) -> float:
    groups = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    return sum(1 - sum(group) / (len(group) * max(group)) for group in groups) / len(groups)


def last_batch_full(lengths: list[int], size: int) -> float:
    groups = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    return 1 - sum(lengths) / sum(size * max(group) for group in groups)


def without_the_last(lengths: list[int], size: int) -> float:
    whole = len(lengths) // size * size or len(lengths)
    return padding(lengths[:whole], size)


def sorts_in_place(lengths: list[int], size: int) -> float:
    lengths.sort()
    return padding(lengths, size)


def as_wide_as_the_longest_so_far(lengths: list[int], size: int) -> float:
    positions = sum(max(lengths[: i // size * size + size]) for i in range(len(lengths)))
    return 1 - sum(lengths) / positions


def as_wide_as_the_longest(lengths: list[int], size: int) -> float:
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def by_length(lengths: list[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def groups_by(
    order: Callable[[list[int]], list[int]] = by_length,
    *,
    count_padding: bool = True,
    keep_last: bool = True,
    first_adds: bool = False,
    refuses: bool = True,
    loses: bool = False,
) -> Callable[..., list[list[int]]]:
    def attempt(lengths: list[int], max_tokens: int) -> list[list[int]]:
        if max(lengths) > max_tokens and refuses:
            raise ValueError("too long")
        groups: list[list[int]] = []
        group: list[int] = []
        for index in order(lengths):
            new = [lengths[i] for i in ([*group] if first_adds else [*group, index])]
            if group and (len(new) * max(new) if count_padding else sum(new)) > max_tokens:
                groups.append(group)
                group = []
                if loses:
                    continue
            group.append(index)
        return [*groups, group] if keep_last else groups

    return attempt


def groups_from_the_longest(lengths: list[int], max_tokens: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > max_tokens:
            raise ValueError(f"{lengths[index]} is more than {max_tokens}")
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > max_tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def groups_sorted_in_place(lengths: list[int], max_tokens: int) -> list[list[int]]:
    lengths.sort()
    return groups_by(lambda n: list(range(len(n))))(lengths, max_tokens)


def groups_of_equal_lengths(lengths: list[int], max_tokens: int) -> list[list[int]]:
    groups = []
    for length in sorted(set(lengths)):
        room = max_tokens // length
        if not room:
            raise ValueError(length)
        same = [i for i, n in enumerate(lengths) if n == length]
        groups += [same[start : start + room] for start in range(0, len(same), room)]
    return groups


def groups_of_lengths(lengths: list[int], max_tokens: int) -> list[list[int]]:
    return [[lengths[i] for i in group] for group in groups_by()(lengths, max_tokens)]


def groups_with_an_empty_one(lengths: list[int], max_tokens: int) -> list[list[int]]:
    return [[], *groups_by()(lengths, max_tokens)]


# Keeping a tokenizer ------------------------------------------------------------------------------


def test_a_tokenizer_comes_back_and_a_foreign_file_does_not(tmp_path: Path) -> None:
    texts = ["Öffnet das Dokument.", "Opens the document.", "<eos> is a text"]
    tokenizer = train_tokenizer(texts, 300)
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    loaded = load_tokenizer(path)
    assert encode_texts(loaded, texts) == encode_texts(tokenizer, texts)
    assert loaded.decode_batch(encode_texts(loaded, texts)) == texts
    whole = path.read_text("utf-8")
    for content in ("", "{}", "not json", whole[: len(whole) // 2], "\ud800"):
        path.write_text(content, "utf-8", "surrogatepass")
        with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
            load_tokenizer(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(path)
    path.write_text(whole.replace('"<eos>"', '"</s>"'), "utf-8")
    with pytest.raises(ValueError, match=r"\[0, 1, None\], they should be 0, 1, 2"):
        load_tokenizer(path)
    with pytest.raises(ValueError, match=r"\[None, None, None\], they should be 0, 1, 2"):
        parse_tokenizer('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "a file")
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "none.json")


# The attempts at the exercises, which test_attempts.py hands to the checks.

RIGHT: dict[Any, list[Any]] = {
    check_token_bytes: [token_bytes, token_bytes_by_arithmetic, token_bytes_by_counting],
    check_shown_at_once: [shown_at_once, shown_by_bytes],
    check_padding_share: [padding, padding_counted],
    check_groups: [groups_by(), groups_from_the_longest],
}
WRONG: dict[Any, list[tuple[Any, str]]] = {
    check_token_bytes: [
        (lambda t: t.encode(), "UTF-8 of the token"),
        (lambda t: t.replace("Ġ", " ").encode(), "UTF-8 of the token"),
        (lambda t: t.replace("Ġ", " ").encode("latin-1", "replace"), "0 to 32"),
        (lambda t: bytes(ord(c) % 256 for c in t), "counted through"),
        (lambda t: t.replace("Ġ", " "), "return bytes"),
        (lambda t: list(token_bytes(t)), "return bytes"),
        (lambda t: ByteLevel().decode([t]).encode(), "half a character"),
        (lambda t: token_bytes(t, [b for b in OTHERS if b != 173]), "raised KeyError"),
        (lambda t: token_bytes(t, OTHERS, 257), "raised KeyError|byte 32"),
        (lambda t: token_bytes(t[:1]), "letters"),
    ],
    check_shown_at_once: [
        (lambda t, ids: [t.decode([i]) for i in ids], "replacement mark"),
        (lambda t, ids: [s for s in shown_at_once(t, ids) if s], "unfinished"),
        (shown_without_what_waits, "never shown"),
        (shown_when_all_is_whole, "shown at once"),
        (lambda t, ids: [*[""] * (len(ids) - 1), t.decode(ids)][-len(ids) :], "shows"),
        (
            lambda t, ids: [t.decode(ids[: k + 1]).rstrip("\ufffd") for k in range(len(ids))],
            "twice",
        ),
        (lambda t, ids: [s.strip() for s in shown_at_once(t, ids)], "space is lost"),
        (shown_and_emptied, "in place"),
        (lambda t, ids: t.decode(ids), "list of strings"),
    ],
    check_padding_share: [
        (average_of_shares, "average"),
        (last_batch_full, "last batch"),
        (without_the_last, "left out|last batch"),
        (lambda n, size: padding(sorted(n), size), "do not sort"),
        (sorts_in_place, "in place"),
        (as_wide_as_the_longest, "as wide as its own"),
        (as_wide_as_the_longest_so_far, "not of all so far"),
        (lambda n, size: 1 - padding(n, size), "real tokens"),
        (lambda n, size: padding(n, size) / (1 - padding(n, size)), "all positions"),
        (lambda n, size: 1.0, "2 of 6"),
    ],
    check_groups: [
        (groups_by(count_padding=False), "only real tokens"),
        (groups_by(keep_last=False), "last group"),
        (groups_by(loses=True), "did not fit"),
        (groups_by(first_adds=True), "before you add"),
        (groups_by(refuses=False), "raise a ValueError"),
        (groups_by(lambda n: list(range(len(n)))), "similar lengths"),
        (groups_sorted_in_place, "in place"),
        (groups_of_equal_lengths, "filled up"),
        (lambda n, limit: [[i] for i in range(len(n))], "filled up"),
        (groups_of_lengths, "not their lengths"),
        (groups_with_an_empty_one, "empty group"),
        (lambda n, limit: [*groups_by()(n, limit), [0]], "two groups"),
    ],
}
