"""The configuration: settings, types and ranges. Does not import torch.

Hydra composes the YAML under ``conf/``; ``check`` merges the result into dataclasses (types, unknown keys) and
validates ranges and mutually exclusive settings.
"""

from prnn.config.keys import key_value, known_keys, suggest
from prnn.config.merge import check, literal
from prnn.config.ranges import COUNT, FLOAT, RANGES, SIZE, check_ranges, within
from prnn.config.schema import (
    CONF,
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
    "PROFILE",
    "PYTHON_CELL",
    "RANGES",
    "SIZE",
    "DistributedConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "TrainerConfig",
    "check",
    "check_ranges",
    "key_value",
    "known_keys",
    "literal",
    "suggest",
    "within",
]
