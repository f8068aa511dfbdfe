"""The configuration: settings, types and ranges. Does not import torch.

Hydra composes the YAML under ``conf/``; ``check`` merges the result into dataclasses (types, unknown keys) and
validates ranges and mutually exclusive settings.
"""

from prnn.config.keys import did_you_mean, expected, key_value, known_keys, nearest, suggest, written
from prnn.config.merge import check, literal
from prnn.config.ranges import COUNT, FLOAT, FRACTION, RANGES, SIZE, Ranges, above, check_task, one_of, within
from prnn.config.schema import (
    CONF,
    MAIN_CONFIG,
    PROFILE,
    PYTHON_CELL,
    DistributedConfig,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)

__all__ = [
    "CONF",
    "COUNT",
    "FLOAT",
    "FRACTION",
    "MAIN_CONFIG",
    "PROFILE",
    "PYTHON_CELL",
    "RANGES",
    "SIZE",
    "DistributedConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Ranges",
    "ScheduleConfig",
    "TrainConfig",
    "TrainerConfig",
    "above",
    "check",
    "check_task",
    "did_you_mean",
    "expected",
    "key_value",
    "known_keys",
    "literal",
    "nearest",
    "one_of",
    "suggest",
    "within",
    "written",
]
