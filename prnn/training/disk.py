"""Files that survive a crash of the host, and a directory that is still the one it was.

A file that is written is on the disk only after an fsync of it, and its name only after one of its directory.
"""

from __future__ import annotations

import errno
import os
import weakref
from dataclasses import dataclass
from pathlib import Path


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Write ``path`` under another name and rename it: a crash leaves the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_file(path: Path) -> bytes:
    """The content of a file. Raises ``OSError``, also for a pipe or a device."""
    require_file(path)
    return path.read_bytes()


def require_file(path: Path) -> None:
    """Raise ``OSError`` for a pipe or a device: reading it may have no end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def free_name(path: Path) -> Path:
    """``path.other``, or the first of ``path.other-2`` and so on that is not taken: nothing is overwritten."""
    other, number = path.with_name(f"{path.name}.other"), 2
    while os.path.lexists(other):
        other, number = path.with_name(f"{path.name}.other-{number}"), number + 1
    return other


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk, where it can be opened and its file system knows how."""
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
    """Make a directory, and those above it that are missing; their names are on the disk."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


@dataclass(frozen=True)
class Lost:
    """What has become of a directory that is not where it was; ``place`` is where it is now, if that is known."""

    place: Path | None

    def __str__(self) -> str:
        return f"it is now {self.place}" if self.place is not None else "it was deleted, replaced or unmounted"


class Held:
    """A directory held open, which tells whether its path still leads to it; ``close`` or the end lets go of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.close = weakref.finalize(self, os.close, self._handle)

    def lost(self) -> Lost | None:
        """What has become of the directory; None where it is in its place.

        One whose state is unknown for the moment (a network file system that does not answer) counts as in its place.
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
        """Where the directory is now, if the system says so (Linux) and it has not been deleted."""
        try:
            place = Path(f"/proc/self/fd/{self._handle}").readlink()
            return place if os.path.samestat(os.fstat(self._handle), place.stat()) else None
        except OSError:
            return None
