"""Errors of Hydra and OmegaConf as a one-sentence ``UserError``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from prnn import command_line, config, tasks
from prnn.errors import UserError
from prnn.training.mistakes import unusable

OF_HYDRA = (HydraException, OmegaConfBaseException)  # which ``explain`` explains
TOLD = (UserError, OSError, *OF_HYDRA)  # of which a sentence is made anyway


def explain(error: Exception, overrides: Iterable[str] = ()) -> UserError:
    """An error of Hydra's or OmegaConf's, of several lines, as one sentence; ``overrides`` tell the task."""
    for cause in _causes(error):  # raised within a resolver, say
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError) and isinstance(error, InterpolationResolutionError):
            return unusable(cause)
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        known = f": the known ones are {', '.join(error.options)}" if error.options else ""
        return UserError(f"there is no {group}={name}{known}." if group else f"there is no configuration {name!r}.")
    if isinstance(error, OverrideParseException):
        return command_line.unreadable(str(error.override))
    if found := re.match(r"Ambiguous value for argument '(.*)'\n1\. ", text, re.DOTALL):
        return command_line.several(found[1])
    if found := re.search(r"Could not override '([^']+)'", text):
        return UserError(f"{found[1]} is not a setting{config.suggest(found[1], _known_keys(overrides))}")
    return UserError(" ".join(text.split()))


def not_composed(error: Exception) -> UserError:
    """What Hydra does not catch while it composes: a value that no part of it expects."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"Hydra makes no configuration of the overrides ({reason}): write each as KEY=VALUE.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it. OmegaConf drops ``__cause__``, and ``__context__`` remains."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _known_keys(overrides: Iterable[str]) -> Iterable[str]:
    """Every setting, those of the chosen task included."""
    given = dict(word.partition("=")[::2] for word in overrides)
    try:
        return config.known_keys(tasks.schemas(given.get("task.name") or given.get("task") or "char_lm"))
    except UserError:  # no such task; its own complaint comes later
        return config.known_keys()
