import errno
import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from prnn.data import encoding, files, source
from prnn.data.encoding import HeldTokens, StoredTokens, encode
from prnn.data.files import File, stamp
from prnn.data.source import Text
from prnn.errors import UserError

MIXED = "Où est la bibliothèque?\n«Là-bas», dit-elle — 東京 😀.\n" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is a large one: its tokens stay in a file."""
    monkeypatch.setattr(encoding, "HELD_BYTES", 0)


def write(folder: Path, content: str | bytes, name: str = "text.txt") -> Text:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Text(name, (File.of(path, name),))


def decoded(text: Text, level: str, max_words: int = 10_000) -> str:
    tokens, vocabulary = encode(text, level, max_words)
    return vocabulary.decode(tokens.windows(np.array([0]), len(tokens))[:, 0])


@pytest.mark.parametrize("level", ["char", "byte"])
@pytest.mark.parametrize("content", ["To be, or not to be.\n", MIXED])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
def test_tokens_are_the_text_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, content: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(source, "CHUNK_BYTES", chunk_bytes)
    assert decoded(write(tmp_path, content), level) == content
    assert decoded(Text("memory", content=content.encode()), level) == content


def test_word_tokens_do_not_depend_on_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "the 'quick' brown--fox jumps... o'er\nthe lazy-dog, \"he said\"\n" * 30
    whole, vocabulary = encode(Text("memory", content=content.encode()), "word", 100)
    monkeypatch.setattr(source, "CHUNK_BYTES", 40)
    cut, same = encode(write(tmp_path, content), "word", 100)
    assert same.state_dict() == vocabulary.state_dict()
    np.testing.assert_array_equal(cut.array, whole.array)


@pytest.mark.parametrize("line_break", ["\n", " "])
@pytest.mark.parametrize("chunk_bytes", range(50, 70))
def test_marks_with_a_space_of_their_own_do_not_depend_on_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, line_break: str
) -> None:
    content = line_break.join(["Il dit : « Oui ! » et 3.14 % -5 ?", "मैं हूँ « là » ; non"] * 5)
    whole, vocabulary = encode(Text("memory", content=content.encode()), "word", 100)
    monkeypatch.setattr(source, "CHUNK_BYTES", chunk_bytes)
    cut, same = encode(write(tmp_path, content), "word", 100)
    assert same.state_dict() == vocabulary.state_dict() and "« " in vocabulary.state_dict()["symbols"]
    np.testing.assert_array_equal(cut.array, whole.array)


def test_the_most_frequent_words_are_kept(tmp_path: Path) -> None:
    text = write(tmp_path, "b b b a a a c c d\n")
    _, vocabulary = encode(text, "word", 4)
    assert vocabulary.state_dict()["symbols"] == ["<unk>", "a", "b", "c"]
    assert decoded(text, "word", 4) == "b b b a a a c c <unk> <unk>"


def test_what_takes_long_or_much_memory_is_cached(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write(tmp_path, MIXED)
    for level in ("char", "byte"):
        encode(text, level, 0)
    assert not cache.exists()
    encode(text, "word", 100)
    assert sorted(path.suffix for path in (cache / "tokens").iterdir()) == [".json", ".tokens"]
    monkeypatch.setattr(encoding, "HELD_BYTES", 0)
    for level in ("char", "byte"):
        encode(text, level, 0)
    assert len(list((cache / "tokens").iterdir())) == 6


@pytest.mark.parametrize("level", ["char", "byte"])
def test_a_cached_encoding_is_used_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: None, level: str
) -> None:
    text = write(tmp_path, MIXED)
    assert decoded(text, level) == MIXED
    with monkeypatch.context() as patched:
        patched.setattr(encoding, "_encoded", lambda *arguments: pytest.fail("read again"))
        assert decoded(text, level) == MIXED
    changed = MIXED.replace("Où", "Oú")  # same length
    write(tmp_path, changed)
    os.utime(tmp_path / "text.txt", ns=(1, 1))
    with pytest.raises(UserError, match="text.txt has changed while being read"):
        decoded(Text("text.txt", tuple(replace(file, real="not cached") for file in text.files)), level)
    assert decoded(Text("text.txt", (File.of(tmp_path / "text.txt", "text.txt"),)), level) == changed


@pytest.mark.parametrize("level, held_bytes", [("char", 0), ("word", 0), ("word", 1 << 20)])
@pytest.mark.parametrize("suffix", [".json", ".tokens"])
@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_encoding_is_made_anew(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    held_bytes: int,
    suffix: str,
    damage: str,
) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    text = write(tmp_path, MIXED)
    before = decoded(text, level)
    (victim,) = (cache / "tokens").glob(f"*{suffix}")
    sound = victim.read_bytes()
    middle = len(sound) // 2  # of the description: a symbol of the vocabulary
    flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    victim.write_bytes(flipped if damage == "bit" else sound[:-3])
    assert decoded(text, level) == before and victim.read_bytes() == sound


@pytest.mark.parametrize("level", ["char", "byte", "word"])
@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
@pytest.mark.parametrize("content", ["plain\n" * 20, MIXED])
def test_a_text_changed_while_it_is_trained_on_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, held_bytes: int, content: str
) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    text = write(tmp_path, content)
    tokens, _ = encode(text, level, 10)
    first = np.arange(0, len(tokens), 7)
    before = tokens.windows(first, 9)
    with (tmp_path / "text.txt").open("r+b") as file:  # in place
        file.write(b"\xff\x01" * 9)
        file.truncate(5)
    np.testing.assert_array_equal(tokens.windows(first, 9), before)
    (tmp_path / "text.txt").unlink()
    np.testing.assert_array_equal(tokens.windows(first, 9), before)


@pytest.mark.parametrize("level", ["char", "byte", "word"])
@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_a_text_changed_while_it_is_read_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, level: str, held_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    text = write(tmp_path, MIXED)

    def then_changed(status: os.stat_result) -> tuple[int, int]:
        looked_at = stamp(status)
        (tmp_path / "text.txt").write_bytes(b"\xff")
        return looked_at

    monkeypatch.setattr(files, "stamp", then_changed)
    with pytest.raises(UserError, match=r"^text.txt has changed while being read: start again when it is complete.$"):
        encode(text, level, 10)
    assert not list(cache.rglob("*.*"))  # nor is there a cached encoding of what has been read


def test_windows_are_the_same_from_memory_and_from_a_file(tmp_path: Path, stored: None) -> None:
    content = "".join(map(chr, range(0x100, 0x300)))  # two bytes a token
    tokens, _ = encode(write(tmp_path, content), "char", 0)
    assert isinstance(tokens, StoredTokens) and tokens.dtype == np.uint16
    held = HeldTokens(np.arange(0x200, dtype=np.uint16))
    assert held.digest == tokens.digest and len(held) == len(tokens)
    for first, length, stop in (([0, 3, 500], 12, None), ([5, 98, 200], 4, 100), ([7], 1, 8)):
        found = [each.windows(np.array(first), length, stop) for each in (held, tokens)]
        np.testing.assert_array_equal(*found)
        assert found[0].shape == (length, len(first)) and found[0].dtype == found[1].dtype == np.int64
        end = 0x200 if stop is None else stop
        expected = [[at + step if at + step < end else 0 for at in first] for step in range(length)]
        assert found[0].tolist() == expected


def test_a_cache_file_written_to_while_it_is_read_from_is_told(tmp_path: Path, cache: Path, stored: None) -> None:
    text, first = write(tmp_path, MIXED), np.array([0, 10])
    tokens, _ = encode(text, "char", 0)
    before = tokens.windows(first, 20)
    (path,) = (cache / "tokens").glob("*.tokens")
    os.utime(path, ns=(1, 1))  # touched: its content is the same
    np.testing.assert_array_equal(tokens.windows(first, 20), before)
    sound = path.read_bytes()
    for damaged in (b"", sound[:-1], sound[:100] + b"\0\xff" + sound[102:], sound + b"\0"):
        path.write_bytes(damaged)
        os.utime(path, ns=(2, len(damaged)))
        with pytest.raises(UserError, match="tokens, the encoded text, has changed during training: start aga"):
            tokens.windows(first, 20)
    path.write_bytes(sound)
    replacement = tmp_path / "other"
    replacement.write_bytes(b"another")
    replacement.rename(path)  # under the same name, as another process does that encodes the same text
    np.testing.assert_array_equal(tokens.windows(first, 20), before)


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path, stored: None) -> None:
    for name in ("x" * 251 + ".txt", "é" * 125 + ".txt", b"\xff\xfe.txt".decode(errors="surrogateescape")):
        assert decoded(write(tmp_path, MIXED, name), "char") == MIXED


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert decoded(write(tmp_path, b"\xef\xbb\xbfabc\n"), "char") == "abc\n"


@pytest.mark.parametrize("chunk_bytes", [3, 1 << 20])
@pytest.mark.parametrize(
    "content, offset",
    [
        (b"abcdef\xffgh", 6),
        ("ab€".encode() + b"\xe2\x82(", 5),
        ("abé".encode()[:-1], 2),
        (b"\xef\xbb\xbfab\xffc", 5),
    ],
)
def test_a_file_that_is_not_utf8_is_told_with_the_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr(source, "CHUNK_BYTES", chunk_bytes)
    text = write(tmp_path, content)
    for level in ("char", "word"):
        with pytest.raises(UserError, match=rf"not UTF-8 text \(byte {offset} cannot be read\): use data.level=byte"):
            encode(text, level, 10)
    assert len(encode(text, "byte", 10)[0]) == len(content)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        encode(write(tmp_path, b""), "byte", 10)


def test_a_cache_that_cannot_be_written_is_told_where_it_is_needed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    text = write(tmp_path, "some words\n")
    assert [decoded(text, level) for level in ("char", "byte", "word")] == ["some words\n"] * 3
    monkeypatch.setattr(encoding, "HELD_BYTES", 0)
    for level in ("char", "byte", "word"):
        with pytest.raises(UserError, match="cannot write the encoded text to .* set PRNN_CACHE to a folder with room"):
            encode(text, level, 10)


def test_a_full_disk_leaves_nothing_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, stored: None
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"cannot write the encoded text to .* \(No space left on device\)"):
        encode(write(tmp_path, MIXED), "char", 10)
    assert list((cache / "tokens").iterdir()) == []


@pytest.mark.parametrize("content", ["\ufeff", "  "])
@pytest.mark.parametrize("held_bytes", [0, 100])
def test_a_text_without_a_token_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, held_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    with pytest.raises(UserError, match="text.txt is empty"):
        encode(write(tmp_path, content), "word", 10)


@pytest.mark.parametrize("held_bytes", [0, 100])
def test_what_is_no_utf8_by_its_first_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int) -> None:
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    for content, sentence in (
        (b"\x04\x22\x4d\x18\x64", r"^text.txt is lz4: unpack it.$"),
        (
            "a text".encode("utf-16-le"),
            r"^text.txt is UTF-16LE text, judging by its zero bytes: convert it",
        ),
    ):
        for level in ("char", "word"):
            with pytest.raises(UserError, match=sentence):
                encode(write(tmp_path, content), level, 10)
        assert len(encode(write(tmp_path, content), "byte", 10)[0]) == len(content)


_MEASURE = """
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import numpy as np
from prnn.data.encoding import encode
from prnn.data.corpora import find_text
from prnn.data.sampler import TrainStreams
def peak_kib():  # not getrusage: its figure begins with the parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak_kib()
tokens, _ = encode(find_text("", sys.argv[1]), sys.argv[2], 100)
streams = TrainStreams(tokens, 0, len(tokens), batch_size=50, bptt=50, seed=1)
for index in range(20):
    streams.batch(0, index, slice(None))
print(len(tokens), (peak_kib() - before) // 1024)
"""


@pytest.mark.parametrize("level, opened", [("byte", open), ("char", open), ("word", open), ("byte", gzip.open)])
def test_a_large_file_needs_little_memory(tmp_path: Path, level: str, opened: Callable[..., BinaryIO]) -> None:
    """Peak memory of a process that opens a 96 MiB text and draws 20 batches grows by less than 48 MiB.

    Reading it whole would take 96 MiB at least, and the tokens of characters or words as Python or int64 many times
    that. What is used is a few copies of one chunk, whatever the size of the file.
    """
    block = ("é word and another\n" if level == "char" else "some word and another\n").encode()
    block *= (1 << 20) // len(block)
    path = tmp_path / "big.txt"
    with opened(path, "wb") as file:
        if level == "word":  # one word of 1 MiB in each block: as many bytes to read, fewer to split and count
            block = block[:25_000] + b"x" * (1 << 20) + b"\n"
        for _ in range(96 * (1 << 20) // len(block)):
            file.write(block)
    command = [sys.executable, "-c", _MEASURE, str(path), level]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    count, grown_mib = map(int, result.stdout.split())
    assert count > 400_000
    assert grown_mib < 48
