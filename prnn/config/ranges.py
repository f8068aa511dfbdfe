"""Validation: the ranges of settings, and settings that exclude each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any

from prnn.cell_table import CELLS
from prnn.config.schema import COMM_HOOKS, INITS, OPTIMIZERS, PROFILE, PYTHON_CELL, SCHEDULES, TrainConfig
from prnn.errors import UserError

Range = tuple[Callable[[Any], bool], str]  # a predicate, and the expected values in words
Ranges = Mapping[str, Range]  # of settings by name: RANGES below, and of a task's Config and DataConfig


def one_of(*names: str) -> Range:
    """One of ``names``."""
    return lambda value: value in names, "one of " + ", ".join(names)


def within(low: float, high: float) -> Range:
    """From ``low`` to ``high``, both included."""
    limit = f"{high:,}" if isinstance(high, int) else f"{high:g}"
    return lambda value: low <= value <= high, f"at least {low} and at most {limit}"


def above(low: float, high: float) -> Range:
    """Above ``low``, and at most ``high``."""
    return lambda value: low < value <= high, f"above {low} and at most {high:,g}"


# Upper bounds set by limits other than memory.
COUNT = 2**53  # integers up to here are exact in JSON and in float64, which the loop uses
FLOAT = 1e38  # float32 ends a little above, and torch refuses a larger scalar in the middle of a step
SIZE = 1 << 24  # units of a layer: the size of its weights in bytes fits in 64 bits
LAYERS = 1000  # modules, built one by one
THREADS = 1024  # the cores of the largest hosts; libgomp exits the process if the system has no more threads
TIMEOUT_SECONDS = 1_000_000  # poll(2), used by sockets, is limited to 2^31 milliseconds: 24 days
WAIT_SECONDS = 1e9  # Python's locks are limited to 9.2e9 seconds
BUCKET_MIB = 1_000_000.0  # DDP counts a bucket's bytes in 64 bits

_COUNTED, _COUNTED_FROM_0 = within(1, COUNT), within(0, COUNT)
_FLOAT: Range = (lambda value: -FLOAT <= value <= FLOAT, f"a number from -{FLOAT:g} to {FLOAT:g}")
_NOT_NEGATIVE = within(0, FLOAT)
_POSITIVE: Range = (lambda value: 0 < value < math.inf, "above 0")
FRACTION: Range = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_NOT_EMPTY: Range = (lambda value: value.strip() != "", "a non-empty text")


def _is_beta(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


# All fields except booleans and free texts; null, where the schema allows it, is always in range.
RANGES: Ranges = {
    "model.cell": (
        lambda value: value in CELLS or PYTHON_CELL.fullmatch(value) is not None,
        f"one of {', '.join(CELLS)}, or module:name of a cell written in Python, such as mypkg.cells:lif",
    ),
    "model.hidden_size": within(1, SIZE),
    "model.num_layers": within(1, LAYERS),
    "model.heads": within(1, SIZE),
    "model.dropout": FRACTION,
    "model.embedding_size": within(0, SIZE),
    "model.init": one_of(*INITS),
    "model.identity_scale": _FLOAT,
    "model.input_std": _NOT_NEGATIVE,
    "model.forget_bias": _FLOAT,
    "optimizer.name": one_of(*OPTIMIZERS),
    "optimizer.lr": above(0, FLOAT),
    "optimizer.betas": (
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_beta, value)),
        "two numbers at least 0 and below 1",
    ),
    "logger.tags": (
        lambda value: isinstance(value, list) and all(isinstance(tag, str) for tag in value),
        "a list of texts",
    ),
    "optimizer.alpha": FRACTION,
    "optimizer.momentum": FRACTION,
    "optimizer.eps": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.schedule.name": one_of(*SCHEDULES),
    "optimizer.schedule.warmup_steps": _COUNTED_FROM_0,
    "optimizer.schedule.gamma": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "optimizer.schedule.every_epochs": _COUNTED,
    "optimizer.schedule.start_epoch": _COUNTED_FROM_0,
    "optimizer.schedule.final_factor": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "optimizer.schedule.patience": _COUNTED,
    "optimizer.schedule.threshold": FRACTION,
    "optimizer.schedule.min_lr": _NOT_NEGATIVE,
    "trainer.max_steps": _COUNTED,
    "trainer.max_epochs": _COUNTED,
    "trainer.max_seconds": _POSITIVE,
    "trainer.batch_size": _COUNTED,
    "trainer.batch_tokens": _COUNTED,
    "trainer.accumulate": _COUNTED,
    "trainer.micro_batch_size": _COUNTED,
    "trainer.clip_norm": above(0, FLOAT),
    "trainer.clip_value": above(0, FLOAT),
    "trainer.precision": one_of("float32", "bfloat16", "float16"),
    "trainer.device": one_of("auto", "cpu", "cuda"),
    "trainer.threads": within(1, THREADS),
    "trainer.eval_every": _COUNTED_FROM_0,
    "trainer.sample_every": _COUNTED_FROM_0,
    "trainer.log_every": _COUNTED,
    "trainer.checkpoint_every": _COUNTED_FROM_0,
    "trainer.keep_checkpoints": _COUNTED,
    "trainer.checkpoint_format": one_of("file", "sharded"),
    "trainer.patience": _COUNTED,
    "trainer.progress": one_of("auto", "on", "off", "quiet"),
    "trainer.profile": (
        lambda value: PROFILE.fullmatch(value) is not None,
        "START+STEPS, such as 100+5, with +memory or +stacks after it if wanted",
    ),
    "trainer.hang_seconds": above(0, WAIT_SECONDS),
    "trainer.peak_tflops": _POSITIVE,
    "distributed.backend": one_of("auto", "gloo", "nccl"),
    "distributed.timeout_seconds": above(0, TIMEOUT_SECONDS),
    "distributed.bucket_cap_mib": above(0, BUCKET_MIB),
    "distributed.comm_hook": one_of(*COMM_HOOKS),
    "distributed.powersgd_rank": within(1, SIZE),
    "distributed.powersgd_start_step": within(2, COUNT),
    "logger.wandb_mode": one_of("auto", "online", "offline", "disabled"),
    "logger.project": _NOT_EMPTY,
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "run_dir": _NOT_EMPTY,
    "resume": _NOT_EMPTY,
}


def _conflicts(cfg: TrainConfig) -> Iterator[str]:
    """One sentence for each pair of settings that exclude each other."""
    model, trainer, schedule = cfg.model, cfg.trainer, cfg.optimizer.schedule
    if model.init == "identity" and model.cell in CELLS.keys() - {"rnn_relu", "rnn_tanh"}:
        yield (
            f"model.init=identity is for model.cell=rnn_relu, rnn_tanh or a cell in Python, not {model.cell}: set "
            "model.init=default."
        )
    if model.forget_bias is not None and model.cell != "lstm":
        yield f"model.forget_bias={model.forget_bias} is for model.cell=lstm, not {model.cell}: set it to null."
    if not model.bias_hh and model.cell not in CELLS:
        yield (
            f"model.bias_hh=false is for built-in cells, not model.cell={model.cell}, which has its own: set "
            "it to true."
        )
    if model.heads > 1 and model.cell in CELLS:
        yield f"model.heads={model.heads} is for cells written in Python, not model.cell={model.cell}: set it to 1."
    if model.hidden_size % model.heads:
        yield f"model.heads={model.heads} must divide model.hidden_size={model.hidden_size}."
    if trainer.max_steps is None and trainer.max_epochs is None and trainer.max_seconds is None:
        yield "training would never end: set trainer.max_steps, trainer.max_epochs or trainer.max_seconds."
    if trainer.batch_tokens is not None and not getattr(cfg.task, "counts_tokens", False):
        yield (
            f"trainer.batch_tokens={trainer.batch_tokens} is not supported by task={cfg.task.name}, whose batches are "
            "not counted in tokens: set it to null, and trainer.batch_size to the number of sequences."
        )
    micro, accumulate = trainer.micro_batch_size, trainer.accumulate
    if micro is not None and accumulate > 1:
        yield (
            f"trainer.micro_batch_size={micro} and trainer.accumulate={accumulate} both set the number of "
            "micro-batches: reset one of them (micro_batch_size=null or accumulate=1)."
        )
    if (
        schedule.name == "plateau"
        and schedule.reload_best
        and (cfg.distributed.zero or trainer.checkpoint_format == "sharded")
    ):
        setting = "distributed.zero=true" if cfg.distributed.zero else "trainer.checkpoint_format=sharded"
        yield (
            f"optimizer.schedule.reload_best=true keeps all of the best model on every process, which {setting} is "
            "meant to avoid: reset one of them."
        )
    if cfg.distributed.static_graph and (accumulate > 1 or micro is not None):
        setting = f"accumulate={accumulate}" if micro is None else f"micro_batch_size={micro}"
        yield (
            f"distributed.static_graph=true excludes trainer.{setting}: torch's DDP crashes with a static graph under "
            "no_sync(); reset one of them (static_graph=false, or accumulate=1 and micro_batch_size=null)."
        )
    if trainer.precision == "float16" and trainer.device != "cuda":
        yield (
            f"trainer.precision=float16 needs trainer.device=cuda, not {trainer.device}; "
            "on a CPU use float32 or bfloat16."
        )
    if trainer.max_steps is not None and schedule.warmup_steps >= trainer.max_steps and schedule.warmup_steps > 0:
        yield (
            f"optimizer.schedule.warmup_steps={schedule.warmup_steps} must be below "
            f"trainer.max_steps={trainer.max_steps}."
        )
    if trainer.patience is not None and trainer.eval_every == 0:
        yield f"trainer.patience={trainer.patience} counts validations, so trainer.eval_every must be above 0."
    first_step = cfg.optimizer.lr / (1 - cfg.optimizer.betas[0])  # Adam's factor at the first step
    if cfg.optimizer.name in ("adam", "adamw") and first_step > FLOAT:
        yield (
            f"optimizer.lr={cfg.optimizer.lr} is too large for optimizer.name={cfg.optimizer.name}, which divides it "
            f"by 1 - betas[0]: the quotient must be at most {FLOAT:g}."
        )
    if schedule.name == "plateau":
        if trainer.eval_every == 0:
            yield "optimizer.schedule.name=plateau counts validations, so trainer.eval_every must be above 0."
        if schedule.gamma == 1:
            yield "optimizer.schedule.gamma=1 must be below 1 for optimizer.schedule.name=plateau."
        if schedule.min_lr > cfg.optimizer.lr:
            yield (
                f"optimizer.schedule.min_lr={schedule.min_lr} must be at most optimizer.lr={cfg.optimizer.lr}: "
                "training would end before it begins."
            )


def check_ranges(section: Any, ranges: Ranges, prefix: str = "") -> None:
    """Raise ``UserError`` for the first value of ``section`` out of its range; null is in every range.

    The keys of ``ranges`` are dotted; ``prefix`` is the section's own key (``"task."``).
    """
    for key, (holds, expected) in ranges.items():
        value = reduce(getattr, key.split("."), section)
        if value is not None and not holds(value):
            raise UserError(f"{prefix}{key}={value} must be {expected}.")


def validate(cfg: TrainConfig) -> None:
    """Raise ``UserError`` for the first value out of its range and for settings that exclude each other."""
    check_ranges(cfg, RANGES)
    for sentence in _conflicts(cfg):
        raise UserError(sentence)
    check_task(cfg)


def check_task(cfg: TrainConfig) -> None:
    """Raise ``UserError`` for a setting of the task or its data that is out of range, and for what they exclude."""
    for name, section in (("task.", cfg.task), ("data.", cfg.data)):
        check_ranges(section, getattr(section, "RANGES", {}), name)
        if hasattr(section, "validate"):
            section.validate(cfg)
