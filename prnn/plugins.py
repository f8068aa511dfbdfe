"""Tasks by name, without importing them: prnn's own, those of installed packages, and those named by their module.

A package registers its tasks in the entry-point group ``prnn.tasks``, and its folder ``conf/`` holds their
configurations, ``conf/task/NAME.yaml`` and others::

    [project.entry-points."prnn.tasks"]
    series = "mypkg.series"  # the module, whose TASK is the task, or mypkg.series:NAME
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from prnn import importing
from prnn.errors import UserError

GROUP, DEFAULT = "prnn.tasks", "TASK"
_OWN = Path(__file__).parent / "tasks"


class Place(NamedTuple):
    """The module that defines a task, and the task's name in it."""

    module: str
    attribute: str

    def source(self) -> Path | None:
        """The file of the module, which is not imported; None where there is none."""
        return importing.source(self.module)


def place(name: str) -> Place:
    """The place of the task ``name``: one of ``names()``, or a module, ``mypkg.series`` or ``mypkg.series:NAME``.

    Raises ``UserError`` where there is none, or two packages have one of that name.
    """
    found = _registered().get(name, [])
    if len(found) > 1:
        modules = " and ".join(each.module for each in found)
        raise UserError(f"task.name={name}: {modules} both define a task of this name: uninstall one of the packages.")
    if found:
        return found[0]
    if re.fullmatch(r"(?!\d)\w+(\.(?!\d)\w+)*(:(?!\d)\w+)?", name) and re.search("[.:]", name):
        module, _, attribute = name.partition(":")
        return Place(module, attribute or DEFAULT)
    raise UserError(
        f"there is no task {name!r}: the known tasks are {', '.join(names())}; one of yours is named by its module, as "
        "mypkg.mytask or mymodule:TASK."
    )


def names() -> list[str]:
    """The tasks of prnn and of installed packages, sorted."""
    return sorted(_registered())


def configurations() -> Iterator[tuple[str, Path]]:
    """The packages with tasks, and their folders ``conf/``."""
    for package in sorted({each.module.partition(".")[0] for found in _registered().values() for each in found}):
        if package != "prnn":
            yield from (
                (package, folder / "conf") for folder in importing.folders(package) if (folder / "conf").is_dir()
            )


@cache  # a plugin is registered once
def let_hydra_search() -> None:
    """Add the packages' ``conf/`` to Hydra's search path, after prnn's."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class TaskPackages(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for package, folder in configurations():
                search_path.append(f"{GROUP} of {package}", f"file://{folder}")

    Plugins.instance().register(TaskPackages)


@cache
def _registered() -> dict[str, list[Place]]:
    """Name -> places; a package that is found twice on Python's path counts once."""
    found: dict[str, list[Place]] = {}
    for path in _OWN.glob("*.py"):
        if re.search(rf"^{DEFAULT}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[path.stem] = [Place(f"prnn.tasks.{path.stem}", DEFAULT)]
    for entry in entry_points(group=GROUP):
        places = found.setdefault(entry.name, [])
        place = Place(entry.module, entry.attr or DEFAULT)
        if place not in places:
            places.append(place)
    return found
