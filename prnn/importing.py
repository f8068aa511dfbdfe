"""Imports: objects named in a setting or on a command line (``mypkg.cells:lif``), and code that waits for a module."""

from __future__ import annotations

import gc
import importlib
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from prnn.errors import UserError

_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def quickly() -> Iterator[None]:
    """The imports of a command. Garbage is not searched for: there is none among half a million objects, and it takes a
    second; nor is what was imported searched later. Ctrl-C ends the process as it ends any program: not all C
    extensions stand an exception in the middle of their import, and some modules swallow it.
    """
    before = signal.getsignal(signal.SIGINT)
    breakable = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if breakable:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        if breakable:
            signal.signal(signal.SIGINT, before)


def find_here(folder: Path, *names: str) -> None:
    """Let the modules of settings' values, such as ``mypkg.cells:lif``, be imported from ``folder``.

    ``python -m`` does so with the current one, a script does not. Nothing is added where no value names a module.
    """
    if any(re.search("[.:]", name) for name in names) and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def folders(package: str) -> list[Path]:
    """The folders of a top-level package, which is not imported; none of what is no package."""
    spec = _spec(package)
    return [Path(each) for each in (spec.submodule_search_locations if spec is not None else None) or ()]


def source(module: str) -> Path | None:
    """The file of a module, found without importing its package; None where there is none."""
    package, *inner = module.split(".")
    for folder in folders(package):
        for path in (folder.joinpath(*inner, "__init__.py"), folder.joinpath(*inner).with_suffix(".py")):
            if path.is_file():
                return path
    spec = _spec(package)
    origin = Path(spec.origin) if spec is not None and spec.has_location and spec.origin and not inner else None
    return origin if origin is not None and origin.suffix == ".py" else None


def _spec(package: str) -> ModuleSpec | None:
    try:
        return find_spec(package)
    except (ImportError, ValueError):
        return None


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


def when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    """Call ``then`` with the module ``name`` once it is imported; at once if it is."""
    if name in sys.modules:
        then(importlib.import_module(name))  # which waits for another thread that is importing it
    else:
        sys.meta_path.insert(0, _Waiting(name, then))


class _Waiting(MetaPathFinder):
    """Finds its module as the other finders do, adds the call to its execution, and is gone after that."""

    def __init__(self, name: str, then: Callable[[ModuleType], object]) -> None:
        self._name, self._then, self._asking = name, then, threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name or getattr(self._asking, "others", False):
            return None
        self._asking.others = True
        try:
            spec = find_spec(name)
        finally:
            self._asking.others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def executed(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._then(module)


class _Loader(Loader):
    """A module's own loader, and the call after it."""

    def __init__(self, loader: Loader, waiting: _Waiting) -> None:
        self._loader, self._waiting = loader, waiting

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._waiting.executed(module)

    def __getattr__(self, name: str) -> Any:  # sources and resources
        return getattr(self._loader, name)
