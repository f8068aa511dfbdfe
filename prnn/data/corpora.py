"""Finding a text: shipped with the package, in PRNN_DATA, in the cache, downloaded, or a path of the user's."""

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

    A named corpus with a ``url`` is looked for in $PRNN_DATA/<name>/, then in the cache, then downloaded into the
    cache; ``sha256``, if given, is checked each time. Raises ``UserError`` for what is missing or damaged.
    """
    if path is not None:
        file = user_file(path)
        return Text(f"data.path={file}", path=file)
    if name == EMBEDDED and url is None:
        return Text(name, content=embedded())
    if url is None:
        raise UserError(f"data.name={name} is no corpus prnn ships: give its data.url, or a text file with data.path.")
    file = find_file(name, url, sha256, "take data=shakespeare, which comes with prnn")
    return Text(str(file), path=file)


def embedded() -> bytes:
    """The corpus in the package; SHAKESPEARE.md tells its origin."""
    return lzma.decompress(Path(__file__).with_name("shakespeare.txt.xz").read_bytes())


def expanded(given: str) -> Path:
    """The path with ~ and ~NAME as a user's home; as it stands where there is no such user, as in a shell."""
    try:
        return Path(given).expanduser()
    except RuntimeError:
        return Path(given)


def user_file(given: str) -> Path:
    """The file that ``data.path`` gives; raises ``UserError`` where it is missing, no file or not for us to read."""
    path = expanded(given)
    try:
        require_regular(path, f"data.path={path}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"data.path={path}: there is no such file.") from None
    except (OSError, ValueError) as error:  # a folder we may not enter, a name too long, one with a zero byte
        raise UserError(f"data.path={path} cannot be read ({getattr(error, 'strerror', error)}).") from None
    if not os.access(path, os.R_OK):
        raise UserError(f"data.path={path} cannot be read: check its permissions.")
    return path


def find_file(name: str, url: str, sha256: str | None, instead: str) -> Path:
    """The file ``url`` names: from $PRNN_DATA/<name>/, else the cache, else downloaded into the cache.

    ``sha256``, if given, is checked each time. Raises ``UserError`` for what is missing or damaged; ``instead`` ends
    the sentence: what to do without the file.
    """
    file_name = url.rsplit("/", 1)[-1]
    found, places = look_up(name, file_name, sha256)
    if found is not None:
        return found
    cached = places[-1]
    try:
        _download(url, cached, sha256)
    except (OSError, ValueError, HTTPException) as error:  # ValueError, HTTPException: no such address can be
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the corpus {name} is neither at {places[0]} nor at {cached}, and cannot be downloaded from {url} "
            f"({reason}): put the file in one of the two places, or {instead}."
        ) from error
    return cached


def look_up(name: str, file_name: str, sha256: str | None) -> tuple[Path | None, tuple[Path | str, Path]]:
    """The file as it lies in $PRNN_DATA/<name>/ or in the cache, if it does; and those two places, to name them.

    Raises ``UserError`` where it is not the file ``sha256`` is of.
    """
    folder = os.environ.get("PRNN_DATA")
    places = [Path(folder) / name / file_name] if folder else []
    cached = cache_dir() / name / file_name
    unset = f"$PRNN_DATA/{name}/{file_name} (PRNN_DATA is not set)"
    for place in [*places, cached]:
        try:
            is_there = place.exists()
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error.strerror}).") from None
        if is_there:
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
                f"what {url} sent is not the right file: its sha256 is {digest.hexdigest()}, data.sha256 is {sha256}."
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
