import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prnn.data import encoding
from prnn.data.encoding import Text, encode
from prnn.errors import UserError

MIXED = "Où est la bibliothèque?\n«Là-bas», dit-elle — 東京 😀.\n" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, content: str | bytes, name: str = "text.txt") -> Text:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Text(name, path=path)


def decoded(text: Text, level: str, max_words: int = 10_000) -> str:
    tokens, vocabulary = encode(text, level, max_words)
    return vocabulary.decode(tokens.take(np.arange(len(tokens))))


@pytest.mark.parametrize("level", ["char", "byte"])
@pytest.mark.parametrize("content", ["To be, or not to be.\n", MIXED])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
def test_tokens_are_the_text_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, content: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_BYTES", chunk_bytes)
    assert decoded(write(tmp_path, content), level) == content
    assert decoded(Text("memory", content=content.encode()), level) == content


def test_word_tokens_do_not_depend_on_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "the 'quick' brown--fox jumps... o'er\nthe lazy-dog, \"he said\"\n" * 30
    whole, vocabulary = encode(Text("memory", content=content.encode()), "word", 100)
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 40)
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
    monkeypatch.setattr(encoding, "CHUNK_BYTES", chunk_bytes)
    cut, same = encode(write(tmp_path, content), "word", 100)
    assert same.state_dict() == vocabulary.state_dict() and "« " in vocabulary.state_dict()["symbols"]
    np.testing.assert_array_equal(cut.array, whole.array)


def test_the_most_frequent_words_are_kept(tmp_path: Path) -> None:
    text = write(tmp_path, "b b b a a a c c d\n")
    _, vocabulary = encode(text, "word", 4)
    assert vocabulary.state_dict()["symbols"] == ["<unk>", "a", "b", "c"]
    assert decoded(text, "word", 4) == "b b b a a a c c <unk> <unk>"


def test_an_ascii_file_is_read_in_place_and_others_through_a_cache(tmp_path: Path, cache: Path) -> None:
    encode(write(tmp_path, "plain\n"), "char", 0)
    encode(write(tmp_path, MIXED), "byte", 0)
    assert not cache.exists()
    encode(write(tmp_path, MIXED), "char", 0)
    assert sorted(path.suffix for path in (cache / "tokens").iterdir()) == [".json", ".tokens"]


def test_a_cached_encoding_is_used_until_the_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write(tmp_path, MIXED)
    assert decoded(text, "char") == MIXED
    with monkeypatch.context() as patched:
        patched.setattr(Text, "decoded", lambda self: pytest.fail("read again"))
        assert decoded(text, "char") == MIXED
    changed = MIXED.replace("Où", "Oú")  # same length
    write(tmp_path, changed)
    os.utime(tmp_path / "text.txt", ns=(1, 1))
    assert decoded(text, "char") == changed


@pytest.mark.parametrize("suffix", [".json", ".tokens"])
def test_a_cached_encoding_cut_short_is_made_anew(tmp_path: Path, cache: Path, suffix: str) -> None:
    text = write(tmp_path, MIXED)
    encode(text, "char", 0)
    (victim,) = (cache / "tokens").glob(f"*{suffix}")
    victim.write_bytes(victim.read_bytes()[:-3])
    assert decoded(text, "char") == MIXED


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
    monkeypatch.setattr(encoding, "CHUNK_BYTES", chunk_bytes)
    text = write(tmp_path, content)
    for level in ("char", "word"):
        with pytest.raises(UserError, match=rf"not UTF-8 text \(byte {offset} cannot be read\): use data.level=byte"):
            encode(text, level, 10)
    assert len(encode(text, "byte", 10)[0]) == len(content)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        encode(write(tmp_path, b""), "byte", 10)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the encoded text to .* set PRNN_CACHE"):
        encode(write(tmp_path, MIXED), "char", 10)


_MEASURE = """
import sys
from pathlib import Path
import numpy as np
from prnn.data.encoding import Text, encode
from prnn.data.sampler import TrainStreams
def peak_kib():  # not getrusage: its figure begins with the parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak_kib()
tokens, _ = encode(Text("big", path=Path(sys.argv[1])), sys.argv[2], 100)
streams = TrainStreams(tokens, 0, len(tokens), batch_size=50, bptt=50, seed=1)
for index in range(20):
    streams.batch(0, index, slice(None))
print(len(tokens), (peak_kib() - before) // 1024)
"""


@pytest.mark.parametrize("level", ["byte", "char", "word"])
def test_a_large_file_needs_little_memory(tmp_path: Path, level: str) -> None:
    """Peak memory of a process that opens a 96 MiB text and draws 20 batches grows by less than 48 MiB.

    Reading it whole would take 96 MiB at least, and the tokens of characters or words as Python or int64 many times
    that. What is used is a few copies of one chunk, whatever the size of the file.
    """
    block = ("é word and another\n" if level == "char" else "some word and another\n").encode()
    block *= (1 << 20) // len(block)
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        if level == "word":  # one word of 1 MiB in each block: as many bytes to read, fewer to split and count
            block = block[:25_000] + b"x" * (1 << 20) + b"\n"
        for _ in range(96 * (1 << 20) // len(block)):
            file.write(block)
    command = [sys.executable, "-c", _MEASURE, str(path), level]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    count, grown_mib = map(int, result.stdout.split())
    assert count > 400_000
    assert grown_mib < 48
