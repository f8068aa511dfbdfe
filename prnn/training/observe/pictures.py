"""Figures as PNG files: safe saving during training, and validated lookup inside a run directory."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prnn.terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES, MOST_PIXELS = 16 << 20, 1 << 24  # limits when reading a picture back: ours have a tenth of that
_HEADER = struct.Struct(">8s4x4sII")  # of a PNG: the signature, and the first chunk with width and height
_log = logging.getLogger(__name__)


def save(run_dir: Path, name: str, draw: Callable[[], Figure]) -> bool:
    """Write ``name``.png at 120 dpi; on failure, warn and return False."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs that it builds its font cache
    path = run_dir / f"{name}.png"
    # Titles contain directory names and labels words of a corpus, possibly with `$`; a matplotlibrc may enable TeX.
    as_text: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}
    try:
        import matplotlib

        with matplotlib.rc_context(as_text), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draw().savefig(path, dpi=120)
    except Exception as error:  # from the file system, matplotlib, or the task's drawing
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        _log.warning("%s cannot be written (%s)", path, reason)
        return False
    if any("missing from font" in str(each.message) for each in caught):
        _log.warning("%s: glyphs missing from matplotlib's font are boxes; rcParams['font.family'] sets another", path)
    return True


def existing(record: dict[str, Any], run_dir: Path) -> dict[str, Path]:
    """The picture files that a record of a run names, by picture name.

    Files that are missing, outside the run directory, not a PNG, or larger than the limits are left out: an untrusted
    record must not display or upload other files of this machine, or exhaust its memory.
    """
    files = record.get("files") if record["kind"] == "pictures" else None
    places = {str(name): _inside(run_dir, file) for name, file in (files or {}).items()}
    return {name: path for name, path in places.items() if path is not None}


def _inside(run_dir: Path, name: str) -> Path | None:
    try:
        path = (run_dir / name).resolve(strict=True)
        if path.is_relative_to(run_dir.resolve()) and path.is_file() and path.stat().st_size <= MOST_BYTES:
            with path.open("rb") as file:
                signature, chunk, width, height = _HEADER.unpack(file.read(_HEADER.size))
            is_png = (signature, chunk) == (b"\x89PNG\r\n\x1a\n", b"IHDR")
            if is_png and 0 < width * height <= MOST_PIXELS:
                return path
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError, struct.error):  # NUL in the name, a symlink loop, a truncated file
        pass
    # Escaped here: prnn-report has no escaping log handler.
    _log.warning("picture %s is left out: it cannot be read as a PNG of this run", visible(name[:200]))
    return None
