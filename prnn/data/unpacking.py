"""Compressed files, read as what they hold: gzip, bzip2, xz, Zstandard and zip, recognised by their first bytes.

Everything is unpacked as it is read, in constant memory and without temporary files.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, cast

from prnn.data.files import MAGIC_BYTES, packed
from prnn.errors import UserError

# Members of what is a zip too: documents of Office, LibreOffice and e-books, and programs of Java.
_NO_TEXTS = {"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"}
_ENCRYPTED = 1  # the bit of a zip member's flags
# zlib.error: damaged data of gzip and zip; RuntimeError, NotImplementedError: zip's encryption and rare methods. The
# others come of a zip's damaged headers.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, ValueError, struct.error, IndexError)


class Content(NamedTuple):
    """What is to be read of a file: itself, what has been compressed, or a member of a zip."""

    name: str  # for messages
    stream: BinaryIO  # seeks forward quickly, backward only where the file is not compressed
    size: int | None  # in bytes; None: known only after reading


def contents(file: BinaryIO, name: str) -> Iterator[Content]:
    """The contents of an open file; each must have been read before the next is asked for.

    A zip's members are sorted by name; folders and hidden members are left out. ``name`` is for messages. Raises
    ``UserError`` for a file that cannot be unpacked: damaged, encrypted, or an archive in another; streams raise theirs
    in ``unpacking``.
    """
    form = packed(file.read(MAGIC_BYTES))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with unpacking(name):
        if form == "zip":
            yield from _members(file, name)
        elif form is not None and form in _OPENERS:
            yield Content(name, _plain(_OPENERS[form](file, name), name), None)
        else:
            yield Content(name, file, size)


def _members(file: BinaryIO, name: str) -> Iterator[Content]:
    with zipfile.ZipFile(file) as archive:
        if not _NO_TEXTS.isdisjoint(archive.namelist()):
            raise UserError(f"{name} is a document or a program, not a text: save it as one.")
        for member in sorted(archive.infolist(), key=lambda each: each.filename):
            of_member = f"{name}: {member.filename}"
            hidden = any(part.startswith(".") and part != "." for part in member.filename.split("/"))
            if hidden or member.is_dir():
                continue
            if member.flag_bits & _ENCRYPTED:
                raise UserError(f"{of_member} is encrypted: unpack the zip.")
            with unpacking(of_member), archive.open(member) as opened:
                stream = _plain(cast(BinaryIO, opened), of_member)
                yield Content(of_member, stream, member.file_size)


def _plain(stream: BinaryIO, name: str) -> BinaryIO:
    if (form := packed(stream.read(MAGIC_BYTES))) is not None:
        raise UserError(f"{name} is {form} inside a compressed file: unpack it.")
    stream.seek(0)
    return stream


@contextmanager
def unpacking(name: str) -> Iterator[None]:
    """Raises what goes wrong while a file or a stream of ``contents`` is read as ``UserError``; ``name`` is for it."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(f"{name} cannot be unpacked ({str(error).rstrip('.')}): unpack it another way.") from None
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None
        raise _damaged(name, error) from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # of whichever module it has come from
            raise _damaged(name, error) from None
        raise


def _damaged(name: str, error: Exception) -> UserError:
    reason = str(error).rstrip(".") or type(error).__name__
    return UserError(f"{name} is damaged: it cannot be unpacked ({reason}).")


def _open_zstd(file: BinaryIO, name: str) -> BinaryIO:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise UserError(
            f"{name} is zstd, which needs the package backports.zstd: pip install 'prnn[zstd]', or unpack it."
        ) from None
    return cast(BinaryIO, zstd.ZstdFile(file))


_OPENERS: dict[str, Callable[[BinaryIO, str], BinaryIO]] = {
    "gzip": lambda file, name: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    "bzip2": lambda file, name: cast(BinaryIO, bz2.BZ2File(file)),
    "xz": lambda file, name: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
    "zstd": _open_zstd,
}
