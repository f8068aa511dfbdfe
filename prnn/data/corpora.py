"""Lookup of a text corpus: in the package, in PRNN_DATA, in the cache, by download, or at a path."""

from __future__ import annotations

import hashlib
import lzma
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from prnn.data.encoding import cache_dir, replacing
from prnn.data.files import File
from prnn.data.paths import expanded, found, user_files
from prnn.data.source import CHUNK_BYTES, Text
from prnn.errors import UserError

EMBEDDED = "shakespeare"
TIMEOUT_SECONDS = 30.0


def find_text(name: str, path: str | None = None, url: str | None = None, sha256: str | None = None) -> Text:
    """The text at ``path`` (a file, a folder or a pattern) if given, else the corpus called ``name``.

    A named corpus with a ``url`` is looked up in $PRNN_DATA/<name>/ and in the cache, else downloaded into the cache;
    ``sha256``, if given, is checked each time. Raises ``UserError`` for a missing or damaged file.
    """
    if path is not None:
        return Text(f"data.path={expanded(path)}", tuple(user_files(path)))
    if name == EMBEDDED and url is None:
        return Text(name, content=embedded())
    if url is None:
        raise UserError(
            f"data.name={name} is not a corpus that comes with prnn: give its data.url, or a text of yours with "
            "data.path."
        )
    file = find_file(name, url, sha256, "take data=shakespeare, which comes with prnn")
    return Text(file.name, (file,))


def embedded() -> bytes:
    """The corpus in the package; its origin is documented in SHAKESPEARE.md."""
    return lzma.decompress(Path(__file__).with_name("shakespeare.txt.xz").read_bytes())


def find_file(name: str, url: str, sha256: str | None, instead: str) -> File:
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
    return found(cached, str(cached))


def look_up(name: str, file_name: str, sha256: str | None) -> tuple[File | None, tuple[Path | str, Path]]:
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
            file = found(place, str(place))
            _verify(file, sha256)
            return file, (place, cached)
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


def _verify(file: File, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with file.reading() as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    if (actual := digest.hexdigest()) != sha256.lower():
        raise UserError(
            f"{file.name} is damaged: its sha256 is {actual}, data.sha256 is {sha256}; delete it and start again."
        )
