"""A composed configuration becomes typed objects."""

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
    """Turn a composed configuration into typed objects, with ``task`` and ``data`` of the given two schemas.

    Raises ``UserError``: an unknown key, a value of the wrong type, a value missing or out of range, settings that
    exclude each other.
    """
    schema = OmegaConf.structured(TrainConfig)
    schema.task, schema.data = (OmegaConf.structured(section) for section in task_schemas)
    types_by_key = known_keys(task_schemas)
    _check_sections(cfg, schema)
    _check_given(OmegaConf.to_container(cfg, resolve=False), types_by_key)
    try:
        typed: TrainConfig = OmegaConf.to_object(OmegaConf.merge(schema, cfg))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, cfg, types_by_key)) from None
    if isinstance(typed.optimizer.betas, list):  # as OmegaConf gives it
        typed.optimizer.betas = tuple(typed.optimizer.betas)
    validate(typed)
    return typed


def literal(value: Any) -> Any:
    """``value`` so that OmegaConf, which takes ``${`` for an interpolation, gives it back as it is; in containers too.

    For what is put into a configuration once more after its interpolations were resolved.
    """
    if isinstance(value, dict):
        return {key: literal(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [literal(each) for each in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _check_sections(cfg: Any, schema: DictConfig, prefix: str = "") -> None:
    """A section given as a plain value (``model=3``): OmegaConf's own message would not name it."""
    for name in map(str, schema):
        section = OmegaConf.is_dict(schema._get_node(name))
        if not section or name not in cfg or OmegaConf.is_missing(cfg, name):
            continue
        value = cfg[name]
        if not isinstance(value, DictConfig):
            raise UserError(f"{prefix}{name}={value} must be a section of settings, such as {prefix}{name}.KEY=VALUE.")
        _check_sections(value, schema[name], f"{prefix}{name}.")


def _check_given(value: Any, types_by_key: Mapping[str, Any], key: str = "") -> None:
    """What a merge would not refuse by itself: "???", in whose place it would quietly put the default, and an integer
    that no float can hold.
    """
    if isinstance(value, dict):
        for name, each in value.items():
            _check_given(each, types_by_key, f"{key}.{name}" if key else str(name))
    elif value == "???":
        raise UserError(f"{key} must be given ({expected(types_by_key.get(key))}).")
    elif isinstance(value, int) and value.bit_length() > 1023 and "a number" in expected(types_by_key.get(key)):
        raise UserError(f"{key} must be {expected(types_by_key.get(key))}: it has hundreds of digits.")


def _explain(error: OmegaConfBaseException, cfg: DictConfig, types_by_key: Mapping[str, Any]) -> str:
    """One sentence for OmegaConf's several lines."""
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
