import bz2
import gzip
import lzma
import os
import random
import socket
import zipfile
from pathlib import Path

import pytest

from prnn.data.corpora import find_text
from prnn.data.encoding import encode
from prnn.data.files import HEAD_BYTES, File, check_text
from prnn.data.mnist import load
from prnn.data.paths import user_files
from prnn.errors import UserError


def told(head: bytes) -> str:
    try:
        check_text(head[:HEAD_BYTES], "x.txt")
    except UserError as error:
        return str(error)
    return ""


# What is no regular file


def irregular(folder: Path) -> dict[Path, str]:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(folder / "socket"))
    (folder / "link").symlink_to(folder / "pipe")
    return {
        folder / "pipe": "a pipe",
        folder / "link": "a pipe",
        folder / "socket": "a socket",
        Path("/dev/zero"): "a device",
        Path("/proc/self/status"): "a file of /proc, which the kernel generates on each read",
        Path("/sys/kernel/uevent_seqnum"): "a file of /sys, which the kernel generates on each read",
    }


def test_only_a_regular_file_is_read_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for path, kind in irregular(tmp_path).items():
        if not path.exists():
            continue
        sentence = rf"^data.path={path} is {kind}, but data are read more than once: save it to a file\.$"
        with pytest.raises(UserError, match=sentence):
            user_files(str(path))
        with pytest.raises(UserError, match=f"^{path} is {kind}"):
            File.of(path, str(path))
    (tmp_path / "x.txt").write_text("a text")
    file = File.of(tmp_path / "x.txt", "x")
    (tmp_path / "pipe").rename(tmp_path / "x.txt")  # it became one since it was looked at
    with pytest.raises(UserError, match="^x has changed"), file.reading():
        pass


def test_a_pipe_of_the_shell_is_called_by_its_name() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(UserError, match=f"^data.path=/dev/fd/{reader} is a pipe, but "):
            user_files(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


def test_a_file_behind_a_descriptor_is_one(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n")
    with (tmp_path / "text.txt").open() as file:
        tokens, _ = encode(find_text("", path=f"/dev/fd/{file.fileno()}"), "char", 0)
    assert len(tokens) == 10


def test_named_data_are_regular_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_DATA", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    os.mkfifo(tmp_path / "corpus" / "x.txt")
    os.mkfifo(tmp_path / "corpus" / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match="corpus/x.txt is a pipe"):
        find_text("corpus", url="http://127.0.0.1:9/x.txt", sha256="00")
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz is a pipe"):
        load("corpus", "http://127.0.0.1:9")


# What changes


def test_a_change_is_told_whatever_comes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a text")
    sentence = "^x has changed while being read: start again when it is complete.$"
    file = File.of(path, "x")
    with pytest.raises(UserError, match=sentence), file.reading():
        path.write_text("another text")
    with pytest.raises(UserError, match=sentence), file.reading():
        pytest.fail("it has changed already")
    with pytest.raises(UserError, match=sentence), File.of(path, "x").reading():
        os.utime(path, ns=(1, 1))
        raise IndexError("of what is not there any more")
    with File.of(path, "x").reading() as opened:  # replaced: what is open stays what it is
        (tmp_path / "new").write_text("new")
        (tmp_path / "new").rename(path)
        assert opened.read() == b"another text"


# What the first bytes tell


def test_packed_files_are_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x.txt", "a text")
    for content, form in (
        (gzip.compress(b"a text", mtime=0), "gzip"),
        (bz2.compress(b"a text"), "bzip2"),
        (lzma.compress(b"a text"), "xz"),
        ((tmp_path / "x.zip").read_bytes(), "zip"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "zstd"),
        (b"\x04\x22\x4d\x18\x64", "lz4"),
        (b"7z\xbc\xaf\x27\x1c\x00", "7z"),
        (b"a.txt" + bytes(252) + b"ustar\x0000", "tar"),
    ):
        assert told(content) == f"x.txt is {form}: unpack it."
    assert told(bytes(5000)) == "x.txt is not a text: most of its first bytes are zero."
    assert told(b"BZh is no beginning of bzip2 alone") == told(b"PK too") == ""


ENGLISH = "To be, or not to be, that is the question.\n"
TEXTS = (ENGLISH, ENGLISH * 2000, "हैं और भी दुनिया में\n" * 50, "Быть или не быть\n" * 50, "สวัสดีชาวโลกทั้งหลาย\n" * 50)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", ["16", "32"])
def test_utf16_and_utf32_are_told_with_a_mark_and_without(text: str, width: str) -> None:
    for order in ("LE", "BE"):
        name = f"UTF-{width}"
        assert told(("\ufeff" + text).encode(name + order)) == (
            f"x.txt is {name} text: convert it (iconv -f {name} -t UTF-8)."
        )
        assert told(text.encode(name + order)) == (
            f"x.txt is {name}{order} text, judging by its zero bytes: convert it (iconv -f {name}{order} -t UTF-8)."
        )


@pytest.mark.parametrize("text", TEXTS)
def test_utf8_is_none_of_them(text: str) -> None:
    draw = random.Random(1)
    scattered = bytearray(text.encode())
    for _ in range(len(scattered) // 20):
        scattered[draw.randrange(len(scattered))] = 0
    names = "\0".join(draw.choice(("a", "bc", "def", "ghij")) for _ in range(500))  # as find -print0 writes them
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode(), bytes(scattered), names.encode(), b""):
        assert told(content) == ""
