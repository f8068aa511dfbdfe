"""Pictures: drawn where no text is a formula and no failure ends a run, and found again only inside the run."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from prnn.terminal import visible

MOST_BYTES, MOST_PIXELS = 16 << 20, 1 << 24  # of a picture that is read again: ours have a tenth
_HEADER = struct.Struct(">8s4x4sII")  # of a PNG: its signature, and the first block with width and height
_log = logging.getLogger(__name__)


def save(run_dir: Path, name: str, draw: Callable[[], Figure]) -> bool:
    """Write ``name``.png, a picture of a hundred and twenty dots per inch; where that fails, warn and return False."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache
    path = run_dir / f"{name}.png"
    # Titles hold directory names and labels words of a corpus, with `$` in them; a matplotlibrc may want TeX.
    as_text: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}
    try:
        with matplotlib.rc_context(as_text), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draw().savefig(path, dpi=120)
    except Exception as error:  # of the file system, of matplotlib, of what a task draws
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        _log.warning("%s cannot be written (%s)", path, reason)
        return False
    if any("missing from font" in str(each.message) for each in caught):
        _log.warning("%s: characters that matplotlib's font lacks are boxes; rcParams['font.family'] sets others", path)
    return True


def found(record: dict[str, Any], run_dir: Path) -> dict[str, Path]:
    """The pictures that a record of a run names, and the files they are in.

    A file is left out that is gone, that does not lie inside the run directory, that is no PNG, or that is larger than
    a picture of ours: a record from elsewhere must not show, or upload, another file of this machine, or fill its
    memory.
    """
    files = record.get("files") if record["kind"] == "pictures" else None
    places = {str(name): _inside(run_dir, file) for name, file in (files or {}).items()}
    return {name: path for name, path in places.items() if path is not None}


def _inside(run_dir: Path, name: str) -> Path | None:
    try:
        path = (run_dir / name).resolve(strict=True)
        if path.is_relative_to(run_dir.resolve()) and path.is_file() and path.stat().st_size <= MOST_BYTES:
            with path.open("rb") as file:
                signature, block, width, height = _HEADER.unpack(file.read(_HEADER.size))
            whole = (signature, block) == (b"\x89PNG\r\n\x1a\n", b"IHDR")
            if whole and 0 < width * height <= MOST_PIXELS:
                return path
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError, struct.error):  # NUL in the name, a loop of links, a file cut short
        pass
    # Visible: a report has no handler of prnn's own.
    _log.warning("picture %s is left out: it cannot be read as a PNG of this run", visible(name[:200]))
    return None
