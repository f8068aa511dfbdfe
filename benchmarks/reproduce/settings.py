"""The settings that a result depends on, by which a record is current or stale.

The settings themselves are recorded, not a hash of them: the page then names what has changed, and a setting that did
not exist yet counts as its default, so that a new option does not make every record stale.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prnn import config, tasks
from prnn.error_messages import user_error
from prnn.training.run_files import CONFIG

SECTIONS = ("task", "data", "model", "optimizer", "trainer")
# They change where, how fast or how well observed a run is, not what it computes.
NEUTRAL = frozenset(
    {"data.url"}
    | {
        f"trainer.{name}"
        for name in (
            "checkpoint_every", "checkpoint_format", "deterministic", "device", "hang_seconds", "keep_checkpoints",
            "log_every", "peak_tflops", "profile", "progress", "sample_every", "threads",
        )
    }
)  # fmt: skip
Settings = dict[str, Any]  # by dotted name


def resolved(overrides: Sequence[str]) -> Settings:
    """Those of ``prnn-train`` with these overrides, but of ``SECTIONS`` alone and without the ``NEUTRAL`` ones. Raises
    ``UserError`` for an invalid one.
    """
    try:
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            composed = compose(config.MAIN_CONFIG, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise (user_error(error) or error) from None
    config.check(composed, tasks.schemas(composed.task.name))
    return relevant(OmegaConf.to_container(composed, resolve=True))


def relevant(cfg: Any) -> Settings:
    """The same of a whole configuration, as a run directory and a checkpoint have it."""
    found = {key: value for section in SECTIONS for key, value in _flat(cfg[section], section)}
    # As JSON has them: a tuple and a list are the same.
    return json.loads(json.dumps({key: value for key, value in sorted(found.items()) if key not in NEUTRAL}))


def of_run(run_dir: Path) -> Settings:
    """The same of a run directory."""
    return relevant(OmegaConf.to_container(OmegaConf.load(run_dir / CONFIG), resolve=True))


def changes(recorded: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    """What ``today`` has otherwise, such as ``model.hidden_size was 96``."""
    schemas = zip(("task", "data"), tasks.schemas(today["task.name"]), strict=True)
    defaults = relevant(dataclasses.asdict(config.TrainConfig(**{name: schema() for name, schema in schemas})))
    return [
        f"{key} was {config.written(recorded[key]) if key in recorded else 'not there'}"
        for key in sorted({*recorded, *today})
        if recorded.get(key, defaults.get(key)) != today.get(key)
    ]


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}")
    else:
        yield name, value
