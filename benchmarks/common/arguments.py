"""argparse types for integers, files and folders."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def at_least(low: int) -> Callable[[str], int]:
    """The ``type`` of an argument that is an integer of at least ``low``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {low}")
        return value

    return read


def file(text: str) -> Path:
    """The ``type`` of a file to write, in a folder that exists."""
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    folder(str(path.parent))  # where it can be written
    return path


def folder(text: str) -> Path:
    """The ``type`` of a folder to write into, which may not exist yet."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("'' is no folder")
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{existing} is a file, and must be a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{existing} cannot be written into")
    return path
