"""What can be set: the sections of the configuration with their fields, types and defaults.

A task brings the schema of its own two sections, ``task`` and ``data``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# conf/ lies inside the package in a wheel, and beside it in a checkout or an editable install.
_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "adagrad")
INITS = ("default", "identity")
COMM_HOOKS = ("none", "bf16", "fp16", "powersgd")
SCHEDULES = ("constant", "step", "cosine", "linear", "plateau")
PROFILE = re.compile(r"([1-9]\d{0,14})\+([1-9]\d{0,14})((?:\+(?:memory|stacks))*)", re.ASCII)  # trainer.profile


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
