"""The configuration: what can be set, of which type, in which range. Knows no torch.

Hydra composes the YAML under ``conf/``; ``check`` merges the result into the dataclasses below
(types, unknown keys) and ``validate`` looks at ranges and at settings that exclude each other.
A task brings the schema of its own two sections, ``task`` and ``data``.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, ValidationError
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from prnn.errors import UserError

# conf/ lies inside the package in a wheel, and beside it in a checkout or an editable install.
_PACKAGE = Path(__file__).resolve().parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "adagrad")
INITS = ("default", "identity")
COMM_HOOKS = ("none", "bf16", "fp16", "powersgd")
SCHEDULES = ("constant", "step", "cosine", "linear", "plateau")
PROFILE = re.compile(r"([1-9]\d*)\+([1-9]\d*)((?:\+(?:memory|stacks))*)")  # trainer.profile


@dataclass
class ModelConfig:
    """The recurrent network."""

    cell: str = "lstm"  # rnn_tanh, rnn_relu, gru or lstm
    hidden_size: int = 128  # H, units of each layer
    num_layers: int = 2  # recurrent layers, one on the other
    dropout: float = 0.0  # probability of zeroing an output between layers, and before the decoder
    embedding_size: int = 128  # width of the learned input embedding; 0 feeds one-hot vectors
    init: str = "default"  # default (torch.nn's), or identity (IRNN; the two rnn cells): biases 0 and the two below
    identity_scale: float = 1.0  # init=identity: weight_hh is this times the identity
    input_std: float = 0.001  # init=identity: weight_ih is drawn from N(0, input_std)
    forget_bias: float | None = None  # lstm: what the forget gate's bias begins with; null: as init has it


@dataclass
class ScheduleConfig:
    """How the learning rate changes: a factor on ``optimizer.lr``."""

    name: str = "constant"  # constant, step, cosine, linear or plateau
    warmup_steps: int = 0  # linear rise from 0 over this many optimizer steps, before any schedule
    gamma: float = 0.5  # step: the factor applied every `every_epochs`; plateau: where validation gets no better
    every_epochs: int = 5  # step: epochs between two applications of gamma
    start_epoch: int = 0  # step: no decay before this epoch
    final_factor: float = 0.1  # cosine, linear: the factor reached at the end (trainer.max_steps or max_epochs)
    patience: int = 1  # plateau: validations in a row that are no better before gamma is applied
    threshold: float = 0.0  # plateau: the part of the lowest loss so far by which a better one is lower
    reload_best: bool = True  # plateau: with gamma, go back to the best model, which checkpoints then hold as well
    min_lr: float = 0.0  # plateau: training ends when the learning rate falls below this


@dataclass
class OptimizerConfig:
    """The optimizer, torch.optim's of the same name."""

    name: str = "adam"  # adam, adamw, sgd, rmsprop or adagrad
    lr: float = 2e-3  # learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw: decay of the two moment averages
    alpha: float = 0.99  # rmsprop: decay of the average of squared gradients
    momentum: float = 0.0  # sgd, rmsprop
    eps: float = 1e-8  # added to the denominator; adam, adamw, rmsprop, adagrad
    weight_decay: float = 0.0  # L2 penalty; decoupled for adamw
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class TrainerConfig:
    """The loop."""

    max_steps: int | None = None  # optimizer steps; null: no bound
    max_epochs: int | None = None  # passes over the training data; null: no bound
    max_seconds: float | None = None  # seconds of training, evaluation not counted; null: no bound
    batch_size: int = 50  # sequences in one optimizer step, over all processes and micro-batches
    batch_tokens: int | None = None  # or its size in tokens, where the task counts them; null: batch_size sequences
    accumulate: int = 1  # micro-batches a process sums up before each optimizer step
    micro_batch_size: int | None = None  # or the most sequences of a micro-batch; null: as many as accumulate leaves
    clip_norm: float | None = 5.0  # largest global gradient norm; null: no clipping
    clip_value: float | None = None  # largest absolute value of a gradient's element; null: none
    precision: str = "float32"  # float32, bfloat16 or float16 (the last two through autocast)
    compile: bool = False  # torch.compile(fullgraph=True) the model
    device: str = "auto"  # auto, cpu or cuda
    threads: int | None = None  # torch's intra-op threads of each process; null: cores / processes on the node
    deterministic: bool = True  # torch.use_deterministic_algorithms
    eval_every: int = 500  # optimizer steps between validations; 0: only at the end
    sample_every: int = 0  # optimizer steps between printed samples; 0: only at the end
    log_every: int = 50  # optimizer steps between records of the training loss
    checkpoint_every: int = 500  # optimizer steps between checkpoints; 0: only at the end
    keep_checkpoints: int = 2  # newest checkpoints kept, besides the best one
    checkpoint_format: str = "file"  # file (rank 0 writes) or sharded (all write, in the background)
    patience: int | None = None  # validations without improvement before stopping early; null: never
    progress: str = "auto"  # auto (a bar on a terminal), on or off
    profile: str | None = None  # START+STEPS, steps to trace (100+5); +memory, +stacks after it record more; null: none
    hang_seconds: float | None = 300.0  # no movement for so long: write stacks (at most timeout_seconds / 2); null: off
    peak_tflops: float | None = None  # TFLOP/s one device can reach, for MFU; null: the data sheet's, where it is known


@dataclass
class DistributedConfig:
    """DistributedDataParallel; used when torchrun (or another launcher) starts several processes."""

    backend: str = "auto"  # auto (nccl with GPUs, else gloo), gloo or nccl
    timeout_seconds: float = 600.0  # how long a collective waits for a lost process before it gives up
    bind_cores: bool = True  # without GPUs: each process keeps to its own share of its host's cores
    bucket_cap_mib: float = 25.0  # gradients travel in buckets of this size, each as soon as it is full
    gradient_as_bucket_view: bool = True  # gradients are views of the buckets, which saves a copy of all of them
    static_graph: bool = False  # promises DDP the same graph at every step; torch crashes with it under micro-batches
    comm_hook: str = "none"  # what gradients travel as: none (float32), bf16, fp16 or powersgd (thin matrices)
    powersgd_rank: int = 1  # powersgd: how thin; more is more exact and slower
    powersgd_start_step: int = 1000  # powersgd: steps of a run whose gradients still travel as float32, 2 at least
    zero: bool = False  # each process keeps the optimizer's state of its share of the parameters only (ZeRO-1)


@dataclass
class LoggerConfig:
    """Views of the record. ``metrics.jsonl`` is always written, by rank 0."""

    wandb: bool = False  # also log to Weights & Biases
    tensorboard: bool = False  # also write TensorBoard event files
    wandb_mode: str = "auto"  # auto (online when logged in, else offline), online, offline or disabled
    project: str = "prnn"  # W&B project
    entity: str | None = None  # W&B team or user; null: the account's default
    name: str | None = None  # W&B run name; null: the run directory's name
    group: str | None = None  # W&B group
    tags: list[str] = field(default_factory=list)  # W&B tags


@dataclass
class TrainConfig:
    """The whole configuration of ``prnn-train``."""

    task: Any = None  # schema: the task's own `Config`
    data: Any = None  # schema: the task's own `DataConfig`
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 1  # seeds weights, data order, dropout and samples
    run_dir: str | None = None  # where everything is written; null: runs/<task>/<start time>
    resume: str | None = None  # a run directory to continue, or `latest`


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
    typed.optimizer.betas = tuple(typed.optimizer.betas)  # type: ignore[assignment]  # OmegaConf gives a list
    validate(typed)
    return typed


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


def known_keys(task_schemas: tuple[type, type] | None = None) -> dict[str, Any]:
    """Dotted key -> type of every setting; those of ``task`` and ``data`` where their schemas are given."""
    return dict(_leaves(TrainConfig, "", dict(zip(("task", "data"), task_schemas or (), strict=False))))


def _leaves(schema: type, prefix: str, sections: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every setting in a dataclass; ``sections`` tells the types of ``task`` and ``data``."""
    for name, hint in typing.get_type_hints(schema).items():
        kind = sections.get(name, hint) if not prefix else hint
        if is_dataclass(kind):
            yield from _leaves(typing.cast(type, kind), f"{prefix}{name}.", sections)
        else:
            yield prefix + name, kind


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
    """What still stands at "???": a merge would quietly put the default in its place."""
    if isinstance(value, dict):
        for name, each in value.items():
            _check_given(each, types_by_key, f"{key}.{name}" if key else str(name))
    elif value == "???":
        raise UserError(f"{key} must be given ({_expected(types_by_key.get(key))}).")


def _explain(error: OmegaConfBaseException, cfg: DictConfig, types_by_key: Mapping[str, Any]) -> str:
    """One sentence for OmegaConf's several lines."""
    key = error.full_key or "configuration"
    if isinstance(error, ConfigKeyError):
        return f"{key} is not a setting{suggest(key, types_by_key)}"
    if isinstance(error, ValidationError):
        field_key = key.split("[")[0]
        value = OmegaConf.select(cfg, field_key, throw_on_resolution_failure=False)
        return f"{field_key}={'null' if value is None else value} must be {_expected(types_by_key.get(field_key))}."
    return f"{key}: {str(error.msg or error).splitlines()[0]}."


def key_value(argument: str, known: Collection[str], command: str, example: str) -> tuple[str, str]:
    """KEY and VALUE of an argument of ``command``; ``UserError`` where it has another form or its key is not known."""
    key, equals, value = argument.partition("=")
    if not equals:
        raise UserError(f"{argument!r} is not KEY=VALUE, such as {example}; --help lists the settings.")
    if key not in known:
        raise UserError(f"{key} is not a setting of {command}{suggest(key, known)}")
    return key, value


def suggest(key: str, known: Iterable[str]) -> str:
    """``; did you mean model.hidden_size?`` for the known dotted key nearest to a wrong one, else ``.``"""
    keys = {*known, *(name.rpartition(".")[0] for name in known if "." in name)}  # settings and their sections
    section, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, {each.rpartition(".")[2] for each in keys}, n=1, cutoff=0.6)
    found = sorted((each for each in keys if near and each.rpartition(".")[2] == near[0]), key=len)
    found.sort(key=lambda each: each.rpartition(".")[0] != section)  # of several, the one in the same section
    return f"; did you mean {found[0]}?" if found else "."


def _expected(kind: Any) -> str:
    """A type, as a person says it."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(_expected(each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list of {len(typing.get_args(kind))} values, each {_expected(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is list:
        return f"a list, each value {_expected(typing.get_args(kind)[0])}"
    return words.get(kind, "of another type")
