"""What the commands need beside torch: the packages of the extra ``train``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# As they are imported; pyproject.toml has the names they are installed by.
TRAIN = ("hydra", "jinja2", "matplotlib", "numpy", "omegaconf", "safetensors", "tqdm", "yaml")


def require(command: str) -> None:
    """End ``command`` with one sentence, before it imports anything, where a package of the extra ``train`` is missing.

    Those imported late, at the end of a run, are asked for as well.
    """
    missing = [name for name in TRAIN if find_spec(name) is None]
    if missing:
        absent = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        print(f"{command} needs the packages of the extra train: pip install 'prnn[train]' ({absent})", file=sys.stderr)
        raise SystemExit(2)
