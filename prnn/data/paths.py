"""The files that a path of the user's names: one file, the files below a folder, or those that match a pattern."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from prnn.data.files import File
from prnn.errors import UserError

_MAGIC = frozenset("*?[")
_ANY_FOLDERS = "**"


def expanded(path: str) -> Path:
    """The path with ~ and ~NAME expanded; unchanged for an unknown user, as in a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_files(data_path: str) -> list[File]:
    """The files that ``data.path`` names, sorted by path, code point by code point: the same on every machine.

    It is first a file of that very name, else a folder, of which all files are taken, in its subfolders too, else a
    pattern with ``*``, ``?``, ``[...]`` and ``**`` (any number of folders). Hidden files and folders are left out,
    unless the pattern names their dot. Links are followed, but not back to a folder that they are in, and of several
    paths of one file the first is taken.

    Example: ``user_files("corpus/**/*.txt")``.

    Raises ``UserError`` where there is no file, or one that is not regular or not readable.
    """
    if not data_path:
        raise UserError("data.path is an empty text: give a file, a folder, a pattern, or null.")
    path = expanded(data_path)
    name = f"data.path={path}"
    try:
        if path.is_dir():
            files = _matching(path, [_ANY_FOLDERS, "*"], ())
            nothing = " is a folder without files (hidden ones are left out)."
        elif _MAGIC.isdisjoint(str(path)) or os.path.lexists(path):
            return [found(path, name)]
        else:
            files = _matching(Path(path.anchor), list(path.relative_to(path.anchor).parts), ())
            nothing = ": no file matches this pattern (hidden ones are left out)."
        by_file = {os.path.realpath(each): each for each in sorted(set(files), key=str, reverse=True)}
        paths = sorted(by_file.values(), key=str)  # the first of several links to one file
    except (OSError, ValueError) as error:  # a folder without permission, a name too long or with a zero byte
        place = str(getattr(error, "filename", None) or path)
        raise _unreadable(name if place == str(path) else place, error) from None
    if not paths:
        raise UserError(name + nothing)
    return [found(each, str(each)) for each in paths]


def _matching(folder: Path, pattern: list[str], above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """The files below ``folder`` that match ``pattern``, a list of path components; some of them more than once.

    ``above`` identifies the folders on the way to this one.
    """
    name, rest = pattern[0], pattern[1:]
    if _MAGIC.isdisjoint(name):
        below = folder / name
        if rest and below.is_dir():
            yield from _matching(below, rest, above)
        elif not rest and os.path.lexists(below) and not below.is_dir():
            yield below
        return
    with os.scandir(folder) as listing:
        entries = list(listing)
    if name == _ANY_FOLDERS:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        yield from _matching(folder, rest or ["*"], above)
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _matching(folder / entry.name, pattern, (*above, here))
        return
    for entry in entries:
        if fnmatch.fnmatchcase(entry.name, name) and (name.startswith(".") or not entry.name.startswith(".")):
            if rest and entry.is_dir():
                yield from _matching(folder / entry.name, rest, above)
            elif not rest and not entry.is_dir():
                yield folder / entry.name


def found(path: Path, name: str) -> File:
    """The file at ``path``; ``name`` is for messages. Raises ``UserError`` where there is none that can be read."""
    try:
        file = File.of(path, name)
    except (FileNotFoundError, NotADirectoryError):
        what = " is a link to a file that is not there" if path.is_symlink() else ": there is no such file"
        raise UserError(f"{name}{what}.") from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    if not os.access(path, os.R_OK):
        raise UserError(f"{name} cannot be read: check its permissions.")
    return file


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be read ({getattr(error, 'strerror', error)}).")
