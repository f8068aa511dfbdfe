"""Lookup of a text corpus: in the package, in PRNN_DATA, in the cache, by download, or at a path."""

from __future__ import annotations

import hashlib
import lzma
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from prnn.data.encoding import CHUNK_BYTES, Text, cache_dir, replacing
from prnn.data.files import reading, require_regular
from prnn.errors import UserError

EMBEDDED = "shakespeare"
TIMEOUT_SECONDS = 30.0


def find_text(name: str, path: str | None = None, url: str | None = None, sha256: str | None = None) -> Text:
    """The text at ``path`` if given, else the corpus called ``name``.

    A named corpus with a ``url`` is looked up in $PRNN_DATA/<name>/ and in the cache, else downloaded into the cache;
    ``sha256``, if given, is checked each time. Raises ``UserError`` for a missing or damaged file.
    """
    if path is not None:
        file = user_file(path)
        return Text(f"data.path={file}", path=file)
    if name == EMBEDDED and url is None:
        return Text(name, content=embedded())
    if url is None:
        raise UserError(
            f"data.name={name} is not a corpus that comes with prnn: give its data.url, or a text file with data.path."
        )
    file = find_file(name, url, sha256, "take data=shakespeare, which comes with prnn")
    return Text(str(file), path=file)


def embedded() -> bytes:
    """The corpus in the package; its origin is documented in SHAKESPEARE.md."""
    return lzma.decompress(Path(__file__).with_name("shakespeare.txt.xz").read_bytes())


def expanded(path: str) -> Path:
    """The path with ~ and ~NAME expanded; unchanged for an unknown user, as in a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_file(data_path: str) -> Path:
    """The file at ``data.path``; raises ``UserError`` if it is missing, not a file or not readable."""
    path = expanded(data_path)
    try:
        require_regular(path, f"data.path={path}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"data.path={path}: there is no such file.") from None
    except (OSError, ValueError) as error:  # a folder without permission, a name too long or with a zero byte
        raise UserError(f"data.path={path} cannot be read ({getattr(error, 'strerror', error)}).") from None
    if not os.access(path, os.R_OK):
        raise UserError(f"data.path={path} cannot be read: check its permissions.")
    return path


def find_file(name: str, url: str, sha256: str | None, instead: str) -> Path:
    """The file named by ``url``: from $PRNN_DATA/<name>/, else the cache, else downloaded into the cache.

    ``sha256``, if given, is checked each time. Raises ``UserError`` for a missing or damaged file; ``instead`` ends the
    message with the alternative.
    """
    file_name = url.rsplit("/", 1)[-1]
    file, places = look_up(name, file_name, sha256)
    if file is not None:
        return file
    cached = places[-1]
    try:
        _download(url, cached, sha256)
    except (OSError, ValueError, HTTPException) as error:  # ValueError, HTTPException: an invalid address
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the corpus {name} is neither at {places[0]} nor at {cached}, and cannot be downloaded from {url} "
            f"({reason}): put the file in one of the two places, or {instead}."
        ) from error
    return cached


def look_up(name: str, file_name: str, sha256: str | None) -> tuple[Path | None, tuple[Path | str, Path]]:
    """The file in $PRNN_DATA/<name>/ or in the cache, else None; and these two paths, for messages.

    Raises ``UserError`` where its ``sha256`` differs.
    """
    root = os.environ.get("PRNN_DATA")
    places = [Path(root) / name / file_name] if root else []
    cached = cache_dir() / name / file_name
    unset = f"$PRNN_DATA/{name}/{file_name} (PRNN_DATA is not set)"
    for place in [*places, cached]:
        try:
            exists = place.exists()
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error.strerror}).") from None
        if exists:
            require_regular(place, str(place))
            _verify(place, sha256)
            return place, (place, cached)
    return None, (places[0] if places else unset, cached)


def _download(url: str, target: Path, sha256: str | None) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, replacing(target) as file:
        digest = hashlib.sha256()
        while chunk := response.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        if sha256 is not None and digest.hexdigest() != sha256.lower():
            raise UserError(
                f"the file downloaded from {url} is not the right one: its sha256 is {digest.hexdigest()}, data.sha256 "
                f"is {sha256}."
            )


def _verify(file: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with reading(file, str(file)) as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    if (actual := digest.hexdigest()) != sha256.lower():
        raise UserError(
            f"{file} is damaged: its sha256 is {actual}, data.sha256 is {sha256}; delete it and start again."
        )
