"""Objects of modules that are named in a setting or on a command line: ``mypkg.cells:lif``."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from prnn.errors import UserError

_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def add_to_path(folder: Path) -> None:
    """Let modules be imported from ``folder``, as ``python -m`` does with the current one; a script's does not."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def find(module: str, attribute: str, given: str) -> Any:
    """The object ``attribute``, dotted perhaps, of ``module``, which is imported.

    Raises ``UserError`` where there is none, or the module cannot be imported; ``given`` begins the sentence.
    """
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{given}: {_reason(module, error)}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{given}: the module {module} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def _reason(module: str, error: BaseException) -> str:
    """Why ``module`` was not imported."""
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name!r} in the current directory or elsewhere on Python's path (PYTHONPATH)"
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(("<", __file__, *_INSTALLED))]
    frame = (users or frames)[-1]  # not the line of a package that it calls
    message = " ".join(str(error).split()).rstrip(".")
    return f"importing {module} raised {type(error).__name__} ({Path(frame.filename).name}:{frame.lineno}): {message}"
