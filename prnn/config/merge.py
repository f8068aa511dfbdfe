"""Conversion of a composed configuration into typed objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, ValidationError
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from prnn.config.keys import expected, known_keys, suggest
from prnn.config.ranges import validate
from prnn.config.schema import TrainConfig
from prnn.errors import UserError


def check(cfg: DictConfig, task_schemas: tuple[type, type]) -> TrainConfig:
    """Convert a composed configuration into typed objects, with ``task_schemas`` for ``task`` and ``data``.

    Raises ``UserError`` for an unknown key, a value that is missing, of the wrong type or out of range, and mutually
    exclusive settings.
    """
    schema = OmegaConf.structured(TrainConfig)
    schema.task, schema.data = (OmegaConf.structured(section) for section in task_schemas)
    types_by_key = known_keys(task_schemas)
    _check_sections(cfg, schema)
    _check_values(OmegaConf.to_container(cfg, resolve=False), types_by_key)
    cfg = _with_whole_numbers(cfg, types_by_key)
    try:
        typed: TrainConfig = OmegaConf.to_object(OmegaConf.merge(schema, cfg))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, cfg, types_by_key)) from None
    if isinstance(typed.optimizer.betas, list):  # OmegaConf converts tuples to lists
        typed.optimizer.betas = tuple(typed.optimizer.betas)
    validate(typed)
    return typed


def literal(value: Any) -> Any:
    """Escape ``${`` in ``value``, and inside containers, so that OmegaConf does not interpolate it.

    For values of a resolved configuration that are inserted into a configuration again.
    """
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _check_sections(cfg: Any, schema: DictConfig, prefix: str = "") -> None:
    """Reject a plain value for a section (``model=3``), which OmegaConf's own message would not name."""
    for name in map(str, schema):
        section = OmegaConf.is_dict(schema._get_node(name))
        if not section or name not in cfg or OmegaConf.is_missing(cfg, name):
            continue
        value = cfg[name]
        if not isinstance(value, DictConfig):
            raise UserError(f"{prefix}{name}={value} must be a section of settings, such as {prefix}{name}.KEY=VALUE.")
        _check_sections(value, schema[name], f"{prefix}{name}.")


def _check_values(value: Any, types_by_key: Mapping[str, Any], key: str = "") -> None:
    """Reject what a merge accepts: "???", which it silently replaces by the default, and integers that overflow a
    float.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(item, types_by_key, f"{key}.{name}" if key else str(name))
    elif value == "???":
        raise UserError(f"{key} must be given ({expected(types_by_key.get(key))}).")
    elif isinstance(value, int) and value.bit_length() > 1023 and "a number" in expected(types_by_key.get(key)):
        raise UserError(f"{key} must be {expected(types_by_key.get(key))}: it has hundreds of digits.")


def _with_whole_numbers(cfg: DictConfig, types_by_key: Mapping[str, Any]) -> DictConfig:
    """The configuration with integers that are written as 1e3, which YAML reads as a float."""
    changed = cfg.copy()
    for key, kind in types_by_key.items():
        if kind in (int, int | None):
            value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False, throw_on_missing=False)
            if isinstance(value, float) and value.is_integer():
                OmegaConf.update(changed, key, int(value))
    return changed


def _explain(error: OmegaConfBaseException, cfg: DictConfig, types_by_key: Mapping[str, Any]) -> str:
    """OmegaConf's multi-line message as one sentence."""
    key = error.full_key or "configuration"
    if isinstance(error, ConfigKeyError):
        return f"{key} is not a setting{suggest(key, types_by_key)}"
    if isinstance(error, ValidationError):
        field_key = key.split("[")[0]
        value = OmegaConf.select(cfg, field_key, throw_on_resolution_failure=False)
        return f"{field_key}={'null' if value is None else value} must be {expected(types_by_key.get(field_key))}."
    reason = str(error.msg or error).splitlines()[0]
    if match := re.search(r"Environment variable '(.*)' not found", reason):
        return f"{key} refers to the environment variable {match[1]}, which is not set."
    return f"{key}: {reason}."
