import gzip
import re
import zipfile
from pathlib import Path

import pytest

from prnn.data import parallel_text
from prnn.data.files import File
from prnn.data.parallel_corpora import DataConfig, digit_reversal, find_pairs
from prnn.data.parallel_text import BOS, EOS, PAD, SPECIAL, UNK, Pair, Symbols, at_most, read_pairs, split
from prnn.data.source import Text
from prnn.errors import UserError


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def of_file(path: Path, source_column: str, target_column: str) -> list[Pair]:
    return read_pairs(Text(str(path), (File.of(path, str(path)),)), source_column, target_column)


# Generated pairs


def test_reversed_digits_are_a_function_of_the_seed_and_of_the_lengths_asked_for() -> None:
    parts = digit_reversal((2000, 300, 300), 10, 15, 10, seed=3)
    assert (
        parts == digit_reversal((2000, 300, 300), 10, 15, 10, seed=3) != digit_reversal((2000, 300, 300), 10, 15, 10, 4)
    )
    for pairs, longest in ((parts.train, 10), (parts.dev, 15), (parts.test, 15)):
        rows = [source.split() for source, _ in pairs]
        assert [target.split() for _, target in pairs] == [row[::-1] for row in rows]
        assert {len(row) for row in rows} == set(range(1, longest + 1))
        assert {digit for row in rows for digit in row} == set("0123456789")
    assert parts.dev != parts.test and [len(p) for p in (parts.train, parts.dev, parts.test)] == [2000, 300, 300]
    assert digit_reversal((5, 0, 0), 10, 15, 50, seed=3).dev == []


# Files


def test_columns_by_number_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "﻿id\ten\tes\r\n1\tgood day \tbuen día\r\n\r\n2\t\tnada\n3\tyes\tsí\n")
    assert of_file(path, "en", "es") == [("good day", "buen día"), ("yes", "sí")]
    assert of_file(path, "3", "1")[:2] == [("es", "id"), ("buen día", "1")]


def test_files_of_a_folder_are_read_one_after_the_other_compressed_or_not(tmp_path: Path) -> None:
    write(tmp_path / "1.tsv", "en\tes\na\tá")
    write(tmp_path / "2.tsv.gz", gzip.compress("es\ten\né\te\n".encode()))
    write(tmp_path / "3.tsv", "")
    with zipfile.ZipFile(tmp_path / "4.zip", "w") as archive:
        archive.writestr("x.tsv", "en\tes\ni\tí\n")
    data = DataConfig(path=str(tmp_path), source_column="en", target_column="es", train_size=None, dev_size=0)
    data.test_size = 0
    assert sorted(find_pairs(data).train) == [("a", "á"), ("e", "é"), ("i", "í")]
    with zipfile.ZipFile(tmp_path / "4.zip", "w") as archive:
        archive.writestr("x.tsv", "en\tes\ni\n")
    with pytest.raises(UserError, match=r"^[^=]*4.zip: x.tsv, line 2: 1 column where 2 are needed"):
        find_pairs(data)


@pytest.mark.parametrize(
    ("content", "columns", "sentence"),
    [
        ("a\tb\n\nonly one\nc\td\n", ("1", "2"), r"line 3: 1 column where 2 are needed \(data.source_column=1"),
        ("a\tb\nc\td\te\n", ("1", "3"), "line 1: 2 columns where 3 are needed"),
        ("en\tes\na\tb\nc\n", ("en", "es"), "line 3: 1 column where 2 are needed"),
        ("en\tes\na\tb\n", ("en", "fr"), "data.target_column=fr is not a column of .*names en, es"),
        ("en\tes\na\tb\n", ("en", "2"), "data.source_column=en and data.target_column=2 must be two numbers, or"),
        ("a\tb\n", ("0", "1"), "data.source_column=0 must be at least 1"),
        ("", ("1", "2"), "is empty: it contains no sentence pair"),
        ("\n \n", ("1", "2"), "is empty"),
        ("en\tes\n", ("en", "es"), "is empty"),
        ("\tb\n", ("1", "2"), "is empty"),
        (b"a\tb\nc\t\xff\n", ("1", "2"), r"line 2 is not UTF-8 \(its byte 3\)"),
        (b"\x04\x22\x4d\x18\x64", ("1", "2"), "x.tsv is lz4: unpack it"),
        ("a\tb\n".encode("utf-16"), ("1", "2"), r"x.tsv is UTF-16 text: convert it \(iconv -f UTF-16 -t UTF-8\)"),
        (gzip.compress(b"\0a\0\t\0b\0\n", mtime=0), ("1", "2"), "x.tsv is UTF-16BE text, judging by its zero bytes"),
        (gzip.compress(gzip.compress(b"a\tb\n", mtime=0), mtime=0), ("1", "2"), "x.tsv is gzip inside a compressed"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(
    tmp_path: Path, content: bytes | str, columns: tuple[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        of_file(write(tmp_path / "x.tsv", content), *columns)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    write(tmp_path / "p.tsv", "a\tb\n")
    for path, sentence in (
        (tmp_path / "missing.tsv", "there is no such file"),
        (tmp_path / "p.tsv" / "x.tsv", "there is no such file"),
        ("~no-such-user/x.tsv", "there is no such file"),
        (tmp_path / ("x" * 300), "cannot be read .File name too long"),
        (tmp_path / "*.tzv", "no file matches this pattern .hidden ones are left out."),
    ):
        with pytest.raises(UserError, match=rf"^data.path={re.escape(str(path))}:? {sentence}[^\n]*\.$"):
            find_pairs(DataConfig(path=str(path)))
    gone = File.of(write(tmp_path / "gone.tsv", "a\tb\n"), "gone.tsv")
    gone.path.unlink()
    with pytest.raises(UserError, match=r"^gone.tsv cannot be read \(No such file"):
        read_pairs(Text("gone.tsv", (gone,)), "1", "2")


def test_a_damaged_gzip_file_is_told(tmp_path: Path) -> None:
    packed = gzip.compress(b"a\tb\n" * 1000)
    for damaged in (packed[:-9], packed[:20] + b"\x00\xff" + packed[22:]):
        with pytest.raises(UserError, match="is damaged: it cannot be unpacked"):
            of_file(write(tmp_path / "x.tsv.gz", damaged), "1", "2")


@pytest.mark.parametrize("content", ["a\tb\nc\td\n", "a\tb\nonly one\n"])
def test_a_file_changed_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    path = write(tmp_path / "x.tsv", content)
    monkeypatch.setattr(parallel_text, "check_text", lambda head, name: write(path, b"a\tb"))
    with pytest.raises(UserError, match="x.tsv has changed while being read: start again when it is complete.$"):
        of_file(path, "1", "2")


def test_long_pairs_are_left_out() -> None:
    pairs = [("a b c", "d"), ("a", "b c d"), ("a b", "c d")]
    assert at_most(pairs, 2) == [("a b", "c d")] and at_most(pairs, None) == pairs
    with pytest.raises(
        UserError, match="data.max_length=1 leaves none of the file's 3 pairs: the shortest has 2 words"
    ):
        at_most(pairs, 1)


def test_what_leaves_nothing_to_train_on_is_named(tmp_path: Path) -> None:
    content = "".join(f"{'a ' * (n % 10)}{n}\t{n}\n" for n in range(100))
    data = DataConfig(path=str(write(tmp_path / "x.tsv", content)), train_size=None, dev_size=10, test_size=10)
    assert len(find_pairs(data).train) == 80
    data.max_length = 2
    with pytest.raises(UserError) as caught:
        find_pairs(data)
    assert str(caught.value) == (
        "data.dev_size=10 and data.test_size=10 leave nothing to train on: the file has 20 pairs of at most "
        "data.max_length=2 words on either side."
    )
    data.max_length, data.dev_size = None, 100
    with pytest.raises(UserError, match="the file has 100 pairs.$"):
        find_pairs(data)
    data.max_length, data.dev_size, data.test_size = 1, 0, 0
    assert len(find_pairs(data).train) == 10
    data.source_column, data.target_column = "2", "1"
    assert find_pairs(data).train[0][1] in map(str, range(0, 100, 10))


def test_the_split_is_fixed_and_keeps_the_pairs_of_a_source_together() -> None:
    pairs = [(f"source {i % 60}", f"target {i}") for i in range(100)]
    parts = split(pairs, (None, 10, 20), seed=1)
    assert parts == split(pairs, (None, 10, 20), seed=1) != split(pairs, (None, 10, 20), seed=2)
    assert (len(parts.dev), len(parts.test)) == (10, 20) and len(parts.train) >= 68
    sources = [{source for source, _ in part} for part in (parts.train, parts.dev, parts.test)]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    assert len(split(pairs, (5, 10, 20), seed=1).train) == 5
    with pytest.raises(UserError, match="data.dev_size=50 and data.test_size=60 leave nothing to train on.* 100 pairs"):
        split(pairs, (None, 50, 60), seed=1)


def test_a_named_corpus_is_looked_for_in_two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    data = DataConfig(name="corpus", file="x.tsv", train_size=None, dev_size=1, test_size=1)
    with pytest.raises(UserError, match="the corpus corpus is neither at .*given.* nor at .*cache.*data=reversal"):
        find_pairs(data)
    for place in ("cache", "given"):
        (tmp_path / place / "corpus").mkdir(parents=True)
        write(tmp_path / place / "corpus" / "x.tsv", f"a\t{place}\nb\t{place}\nc\t{place}\n")
        assert find_pairs(data).train[0][1] == place
    data.sha256 = "00"
    with pytest.raises(UserError, match="is damaged: its sha256 is"):
        find_pairs(data)


def test_verses(data_dir: Path) -> None:
    pairs = of_file(data_dir / "bible-en-es" / "verses.tsv.gz", "kjv_en", "rv1909_es")
    assert len(pairs) > 31_000 and pairs[2] == (
        "And God said, Let there be light: and there was light.", "Y dijo Dios: Sea la luz: y fué la luz.",
    )  # fmt: skip
    assert len(at_most(pairs, 15)) == 5399


# Vocabulary


def test_the_frequent_come_first_and_the_rare_are_unknown() -> None:
    symbols = Symbols.of(["b a a", "A c, c!", "<pad> d"], "word", lowercase=True, size=9, min_count=1)
    # "<pad>" in a text is three tokens, none of them the special one.
    assert symbols.symbols == [*SPECIAL, "a", "c", "!", ",", "<"] and len(symbols) == 9
    assert symbols.encode("A c z").tolist() == [4, 5, UNK]
    assert Symbols.of(["b a a", "a c c"], "word", True, 100, min_count=2).symbols == [*SPECIAL, "a", "c"]
    assert Symbols.of(["A a"], "word", False, 100, 1).symbols[4:] == ["A", "a"]


def test_words_are_spaced_again_and_marks_write_nothing() -> None:
    text = "¿qué dijo moisés? dijo (á israel): ¡sí, señor!"
    symbols = Symbols.of([text], "word", lowercase=True, size=100, min_count=1)
    tokens = symbols.encode(text).tolist()
    assert symbols.decode([BOS, *tokens, EOS, PAD]) == text
    assert symbols.decode([UNK]) == "<unk>"


def test_characters() -> None:
    symbols = Symbols.of(["ab a"], "char", lowercase=True, size=100, min_count=1)
    assert symbols.symbols[4:] == ["a", " ", "b"]
    assert symbols.decode(symbols.encode("BA b")) == "ba b" and symbols.encode("z").tolist() == [UNK]


def test_a_vocabulary_survives_its_state() -> None:
    symbols = Symbols.of(["Ab a"], "char", lowercase=False, size=6, min_count=1)
    again = Symbols.from_state(symbols.state_dict())
    assert again.encode("Ab").tolist() == symbols.encode("Ab").tolist() and again.state_dict() == symbols.state_dict()


def test_a_vocabulary_of_words_knows_its_rules() -> None:
    symbols = Symbols.of(["« 3.14 »"], "word", lowercase=True, size=100, min_count=1)
    state = symbols.state_dict()
    assert Symbols.from_state(state).encode("«3.14»").tolist() == symbols.encode("« 3.14 »").tolist()
    del state["rules"]
    with pytest.raises(UserError, match="the checkpoint's vocabulary was built with the word rules of another version"):
        Symbols.from_state(state)
