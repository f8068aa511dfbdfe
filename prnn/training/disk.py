"""Durable file writes, and detection of directories that were moved or replaced.

A file's content is durable only after an fsync of the file, its name only after an fsync of its directory.
"""

from __future__ import annotations

import errno
import os
import weakref
from dataclasses import dataclass
from pathlib import Path


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and fsync it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Write ``path`` atomically, by a rename: a crash leaves the complete old file or the complete new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_file(path: Path) -> bytes:
    """The content of a regular file. Raises ``OSError``, also for a pipe or a device."""
    require_file(path)
    return path.read_bytes()


def require_file(path: Path) -> None:
    """Raise ``OSError`` for a pipe or a device: reading it may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def free_name(path: Path) -> Path:
    """The first unused name among ``path.other``, ``path.other-2``, and so on: nothing is overwritten."""
    other, number = path.with_name(f"{path.name}.other"), 2
    while os.path.lexists(other):
        other, number = path.with_name(f"{path.name}.other-{number}"), number + 1
    return other


def sync_directory(path: Path) -> None:
    """Fsync a directory, where it can be opened and its file system supports that."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


@dataclass(frozen=True)
class Lost:
    """A directory that is no longer at its path; ``place`` is its new path, if known."""

    place: Path | None

    def __str__(self) -> str:
        return f"it is now {self.place}" if self.place is not None else "it was deleted, replaced or unmounted"


class Held:
    """An open directory handle that detects when its path no longer refers to it; closed by ``close`` or when freed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.close = weakref.finalize(self, os.close, self._handle)

    def lost(self) -> Lost | None:
        """Where the directory has gone; None if it is still at its path.

        A directory that cannot be checked at the moment (a network file system that does not respond) counts as there.
        """
        try:
            if os.path.samestat(os.fstat(self._handle), self.path.stat()):
                return None
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return None
        return Lost(self._place())

    def _place(self) -> Path | None:
        """The directory's current path, if the system provides it (Linux) and it has not been deleted."""
        try:
            place = Path(f"/proc/self/fd/{self._handle}").readlink()
            return place if os.path.samestat(os.fstat(self._handle), place.stat()) else None
        except OSError:
            return None
