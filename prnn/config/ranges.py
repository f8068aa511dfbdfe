"""Which values hold, and which settings exclude each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

from prnn.config.schema import CELLS, COMM_HOOKS, INITS, OPTIMIZERS, PROFILE, SCHEDULES, TrainConfig
from prnn.errors import UserError

Range = tuple[Callable[[Any], bool], str]  # does the value hold?, and how to say what is expected


def _one_of(*names: str) -> Range:
    return lambda value: value in names, "one of " + ", ".join(names)


def _at_least(low: int) -> Range:
    return lambda value: low <= value < math.inf, f"at least {low}"


_POSITIVE: Range = (lambda value: 0 < value < math.inf, "above 0")
_FRACTION: Range = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_NOT_EMPTY: Range = (lambda value: value.strip() != "", "a non-empty text")

# Every field but switches and free texts; null, where the schema allows it, is always in range.
RANGES: dict[str, Range] = {
    "model.cell": _one_of(*CELLS),
    "model.hidden_size": _at_least(1),
    "model.num_layers": _at_least(1),
    "model.dropout": _FRACTION,
    "model.embedding_size": _at_least(0),
    "model.init": _one_of(*INITS),
    "model.identity_scale": (lambda value: -math.inf < value < math.inf, "a finite number"),
    "model.input_std": _at_least(0),
    "model.forget_bias": (lambda value: -math.inf < value < math.inf, "a finite number"),
    "optimizer.name": _one_of(*OPTIMIZERS),
    "optimizer.lr": _POSITIVE,
    "optimizer.betas": (lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers at least 0 and below 1"),
    "optimizer.alpha": _FRACTION,
    "optimizer.momentum": _FRACTION,
    "optimizer.eps": _at_least(0),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.schedule.name": _one_of(*SCHEDULES),
    "optimizer.schedule.warmup_steps": _at_least(0),
    "optimizer.schedule.gamma": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "optimizer.schedule.every_epochs": _at_least(1),
    "optimizer.schedule.start_epoch": _at_least(0),
    "optimizer.schedule.final_factor": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "optimizer.schedule.patience": _at_least(1),
    "optimizer.schedule.threshold": _FRACTION,
    "optimizer.schedule.min_lr": _at_least(0),
    "trainer.max_steps": _at_least(1),
    "trainer.max_epochs": _at_least(1),
    "trainer.max_seconds": _POSITIVE,
    "trainer.batch_size": _at_least(1),
    "trainer.batch_tokens": _at_least(1),
    "trainer.accumulate": _at_least(1),
    "trainer.micro_batch_size": _at_least(1),
    "trainer.clip_norm": _POSITIVE,
    "trainer.clip_value": _POSITIVE,
    "trainer.precision": _one_of("float32", "bfloat16", "float16"),
    "trainer.device": _one_of("auto", "cpu", "cuda"),
    "trainer.threads": _at_least(1),
    "trainer.eval_every": _at_least(0),
    "trainer.sample_every": _at_least(0),
    "trainer.log_every": _at_least(1),
    "trainer.checkpoint_every": _at_least(0),
    "trainer.keep_checkpoints": _at_least(1),
    "trainer.checkpoint_format": _one_of("file", "sharded"),
    "trainer.patience": _at_least(1),
    "trainer.progress": _one_of("auto", "on", "off"),
    "trainer.profile": (
        lambda value: PROFILE.fullmatch(value) is not None,
        "START+STEPS, such as 100+5, with +memory or +stacks after it if wanted",
    ),
    "trainer.hang_seconds": _POSITIVE,
    "trainer.peak_tflops": _POSITIVE,
    "distributed.backend": _one_of("auto", "gloo", "nccl"),
    "distributed.timeout_seconds": _POSITIVE,
    "distributed.bucket_cap_mib": _POSITIVE,
    "distributed.comm_hook": _one_of(*COMM_HOOKS),
    "distributed.powersgd_rank": _at_least(1),
    "distributed.powersgd_start_step": _at_least(2),
    "logger.wandb_mode": _one_of("auto", "online", "offline", "disabled"),
    "logger.project": _NOT_EMPTY,
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "run_dir": _NOT_EMPTY,
    "resume": _NOT_EMPTY,
}


def _conflicts(cfg: TrainConfig) -> Iterator[str]:
    """One sentence for each pair of settings that exclude each other."""
    model, trainer, schedule = cfg.model, cfg.trainer, cfg.optimizer.schedule
    if model.init == "identity" and not model.cell.startswith("rnn"):
        yield f"model.init=identity is for model.cell=rnn_relu or rnn_tanh, not {model.cell}: set model.init=default."
    if model.forget_bias is not None and model.cell != "lstm":
        yield f"model.forget_bias={model.forget_bias} is for model.cell=lstm, not {model.cell}: set it to null."
    if trainer.max_steps is None and trainer.max_epochs is None and trainer.max_seconds is None:
        yield "training has no end: set trainer.max_steps, trainer.max_epochs or trainer.max_seconds."
    if trainer.batch_tokens is not None and not getattr(cfg.task, "counts_tokens", False):
        yield (
            f"trainer.batch_tokens={trainer.batch_tokens} is for tasks that count tokens, as task={cfg.task.name} does "
            "not: set it to null, and trainer.batch_size to the number of sequences."
        )
    micro, accumulate = trainer.micro_batch_size, trainer.accumulate
    if micro is not None and accumulate > 1:
        yield (
            f"trainer.micro_batch_size={micro} and trainer.accumulate={accumulate} both say how many micro-batches "
            "there are: set one of them back (micro_batch_size=null or accumulate=1)."
        )
    if (
        schedule.name == "plateau"
        and schedule.reload_best
        and (cfg.distributed.zero or trainer.checkpoint_format == "sharded")
    ):
        given = "distributed.zero=true" if cfg.distributed.zero else "trainer.checkpoint_format=sharded"
        yield (
            f"optimizer.schedule.reload_best=true keeps all of the best model on every process, which {given} is meant "
            "to avoid: set one of them back."
        )
    if cfg.distributed.static_graph and (accumulate > 1 or micro is not None):
        given = f"accumulate={accumulate}" if micro is None else f"micro_batch_size={micro}"
        yield (
            f"distributed.static_graph=true excludes trainer.{given}: torch's DDP crashes when a static graph meets "
            "no_sync(); set one of them back (static_graph=false, or accumulate=1 and micro_batch_size=null)."
        )
    if trainer.precision == "float16" and trainer.device != "cuda":
        yield (
            f"trainer.precision=float16 needs trainer.device=cuda, not {trainer.device}; "
            "on a CPU use float32 or bfloat16."
        )
    if schedule.name in ("cosine", "linear") and trainer.max_steps is None and trainer.max_epochs is None:
        yield (
            f"optimizer.schedule.name={schedule.name} must know where training ends: "
            "set trainer.max_steps or trainer.max_epochs."
        )
    if trainer.max_steps is not None and schedule.warmup_steps >= trainer.max_steps and schedule.warmup_steps > 0:
        yield (
            f"optimizer.schedule.warmup_steps={schedule.warmup_steps} must be below "
            f"trainer.max_steps={trainer.max_steps}."
        )
    if trainer.patience is not None and trainer.eval_every == 0:
        yield f"trainer.patience={trainer.patience} counts validations, so trainer.eval_every must be above 0."
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


def validate(cfg: TrainConfig) -> None:
    """Raise ``UserError`` for the first value out of its range and for settings that exclude each other."""
    for key, (holds, expected) in RANGES.items():
        value = reduce(getattr, key.split("."), cfg)
        if value is not None and not holds(value):
            raise UserError(f"{key}={value} must be {expected}.")
    for sentence in _conflicts(cfg):
        raise UserError(sentence)
    for section in (cfg.task, cfg.data):
        if hasattr(section, "validate"):
            section.validate(cfg)
