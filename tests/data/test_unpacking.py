import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prnn.data.corpora import find_text
from prnn.data.encoding import encode
from prnn.data.unpacking import contents, unpacking
from prnn.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = "".join(f"line {number} of a text, é\n" for number in range(3000)).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("x.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def checked_zstd(content: bytes) -> bytes:
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": checked_zstd,
    "zip": lambda content: zipped({"x.txt": content}),
}


def unpacked(content: bytes) -> list[tuple[str, bytes]]:
    read = []
    for name, stream, _ in contents(io.BytesIO(content), "f"):
        with unpacking(name):
            read.append((name, stream.read()))
    return read


@pytest.mark.parametrize("form", PACKERS)
def test_each_form_is_recognised_by_its_first_bytes_and_read(form: str) -> None:
    name = "f: x.txt" if form == "zip" else "f"
    assert unpacked(PACKERS[form](TEXT)) == [(name, TEXT)]
    assert unpacked(PACKERS[form](b"")) == [(name, b"")]
    if form != "zip":  # streams one after the other are one, as the tools see them
        assert unpacked(PACKERS[form](TEXT) + PACKERS[form](b"more\n")) == [("f", TEXT + b"more\n")]


def test_what_is_not_compressed_is_read_as_it_is() -> None:
    for content in (TEXT, b"", b"PK too", tarred(TEXT)):
        assert unpacked(content) == [("f", content)]
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"  # what other tools write before the text, for themselves
    assert unpacked(skipped + zstd.compress(TEXT)) == [("f", TEXT)]


def test_a_zip_is_its_members_by_name_as_a_folder_is_its_files() -> None:
    content = zipped({"b.txt": b"2\n", "a/": b"", "./a/z.txt": b"1\n", "__MACOSX/a/._z.txt": b"\0", ".x/y.txt": b"3\n"})
    assert unpacked(content) == [("f: ./a/z.txt", b"1\n"), ("f: b.txt", b"2\n")]
    assert unpacked(zipped({})) == []


@pytest.mark.parametrize("form", PACKERS)
def test_a_damaged_file_is_named(form: str) -> None:
    packed = PACKERS[form](TEXT)
    for damaged in (packed[: len(packed) // 2], packed[:-7], packed[:90] + bytes([packed[90] ^ 0xFF]) + packed[91:]):
        with pytest.raises(UserError, match=r"^f(: x.txt)? is damaged: it cannot be unpacked \([^\n]*\)\.$"):
            unpacked(damaged)


@pytest.mark.parametrize("form", PACKERS)
def test_whatever_is_in_a_file_it_is_read_or_refused(form: str) -> None:
    draw, packed = random.Random(form), PACKERS[form](TEXT[:500])
    for _ in range(300):
        damaged = bytearray(packed)
        for _ in range(draw.choice((1, 3))):
            damaged[draw.randrange(4, len(damaged))] = draw.randrange(256)
        try:
            unpacked(bytes(damaged))
        except UserError as error:
            assert str(error).startswith("f") and str(error).endswith(".")


def test_archives_in_archives_and_encrypted_ones_are_refused_by_name() -> None:
    encrypted = bytearray(zipped({"x.txt": TEXT}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.rfind(signature) + flags] |= 1
    rare = bytearray(zipped({"x.txt": TEXT}))
    rare[rare.rfind(b"PK\x01\x02") + 10] = rare[8] = 6
    for content, sentence in (
        (gzip.compress(tarred(TEXT)), "f is tar inside a compressed file: unpack it."),
        (zipped({"x.gz": gzip.compress(TEXT)}), "f: x.gz is gzip inside a compressed file: unpack it."),
        (zipped({"in.zip": zipped({"x": b"x"})}), "f: in.zip is zip inside a compressed file: unpack it."),
        (bytes(encrypted), "f: x.txt is encrypted: unpack the zip."),
        (bytes(rare), "f: x.txt cannot be unpacked (That compression method is not supported): unpack it another way."),
    ):
        with pytest.raises(UserError) as caught:
            unpacked(content)
        assert str(caught.value) == sentence


def test_without_its_package_zstd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr("backports.zstd", raising=False)
    with pytest.raises(UserError, match=r"^f is zstd, which needs the package backports.zstd: pip install 'prnn\[zstd"):
        unpacked(b"\x28\xb5\x2f\xfd\x04\x00")


@pytest.mark.parametrize("form", PACKERS)
@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_a_compressed_text_is_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, level: str
) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plain").write_bytes(TEXT)
    (tmp_path / "packed").write_bytes(PACKERS[form](TEXT))
    for fraction in (1.0, 0.4):
        plain, packed = (
            encode(find_text("", str(tmp_path / name)), level, 50, fraction) for name in ("plain", "packed")
        )
        assert packed[0].digest == plain[0].digest and packed[1].state_dict() == plain[1].state_dict()
        assert (
            0.95 < len(plain[0]) / len(encode(find_text("", str(tmp_path / "plain")), level, 50)[0]) / fraction < 1.05
        )


@pytest.mark.parametrize("member", ["[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"])
def test_a_document_that_is_a_zip_is_no_text(member: str) -> None:
    with pytest.raises(UserError, match="f is a document or a program, not a text: save it as one"):
        unpacked(zipped({member: b"x", "word/document.xml": b"<w:document/>"}))
