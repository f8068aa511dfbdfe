"""Installed distributions, and what they need."""

from __future__ import annotations

import importlib.metadata as metadata
import re


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required_by(*distributions: str) -> set[str]:
    """The names of these distributions, and of those that they need, as far as they are installed."""
    found, pending = set(), list(distributions)
    while pending:
        name = normalized(pending.pop())
        if name in found:
            continue
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # it is for another platform
            continue
        found.add(name)
        pending += [re.match(r"[\w.-]+", each)[0] for each in asked if "extra ==" not in each]
    return found
