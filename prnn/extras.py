"""The beginning of a command: the packages it needs beside torch, and Ctrl-C while they are imported."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

# As they are imported; pyproject.toml has the names they are installed by.
TRAIN = ("hydra", "jinja2", "matplotlib", "numpy", "omegaconf", "safetensors", "tqdm", "yaml")

_importing = False  # whether begin_imports has changed what Ctrl-C does


def require(command: str) -> None:
    """End ``command`` with one sentence, before it imports anything, where a package of the extra ``train`` is missing.

    Those imported late, at the end of a run, are asked for as well. Calls ``begin_imports``.
    """
    begin_imports(command)
    missing = [name for name in TRAIN if find_spec(name) is None]
    if missing:
        absent = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        print(f"{command} needs the packages of the extra train: pip install 'prnn[train]' ({absent})", file=sys.stderr)
        raise SystemExit(2)


def begin_imports(command: str) -> None:
    """Let Ctrl-C end the process of ``command`` as it ends any program, until ``end_imports``.

    An exception in the middle of an import prints a traceback, or aborts: not all C extensions stand one.
    """
    global _importing
    program = Path(sys.argv[0])
    is_program = program.name == command or program.parent.name == "prnn"  # prnn-train, or python -m prnn.train
    if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _importing = True


def end_imports() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again: for ``main``, which handles it."""
    global _importing
    if _importing:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _importing = False
