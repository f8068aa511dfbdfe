"""The schema of the configuration: sections, fields, types and defaults.

The sections ``task`` and ``data`` have the schemas of the task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# conf/ is inside the package in a wheel, and beside it in a checkout or an editable install.
_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
MAIN_CONFIG = "train"  # the file of it that all others are composed into

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "adagrad")
INITS = ("default", "identity")
COMM_HOOKS = ("none", "bf16", "fp16", "powersgd")
SCHEDULES = ("constant", "step", "cosine", "linear", "plateau")
# model.cell of a cell written in Python: module:name, both dotted perhaps
PYTHON_CELL = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
PROFILE = re.compile(r"([1-9]\d{0,14})\+([1-9]\d{0,14})((?:\+(?:memory|stacks))*)", re.ASCII)  # trainer.profile


@dataclass
class ModelConfig:
    """The recurrent network."""

    cell: str = "lstm"  # rnn_tanh, rnn_relu, gru, lstm, or module:name of a cell written in Python (docs/cells.md)
    hidden_size: int = 128  # H, units of each layer
    num_layers: int = 2  # stacked recurrent layers
    heads: int = 1  # a cell written in Python: diagonal blocks of weight_hh; units of other blocks do not meet
    dropout: float = 0.0  # probability of zeroing an output between layers, and before the decoder
    embedding_size: int = 128  # width of the learned input embedding; 0 feeds one-hot vectors
    init: str = "default"  # default (torch.nn's), or identity (IRNN; cells of one gate): biases 0 and the two below
    identity_scale: float = 1.0  # init=identity: weight_hh is this times the identity
    input_std: float = 0.001  # init=identity: weight_ih is drawn from N(0, input_std)
    forget_bias: float | None = None  # lstm: initial bias of the forget gate; null: that of init
    bias_hh: bool = True  # torch.nn's second bias; false: fixed at 0, as in Keras' RNN and LSTM and most papers


@dataclass
class ScheduleConfig:
    """How the learning rate changes: a factor on ``optimizer.lr``."""

    name: str = "constant"  # constant, step, cosine, linear or plateau
    warmup_steps: int = 0  # linear rise from 0 over this many optimizer steps, before any schedule
    gamma: float = 0.5  # step: the factor applied every `every_epochs`; plateau: when validation stops improving
    every_epochs: int = 5  # step: epochs between two applications of gamma
    start_epoch: int = 0  # step: no decay before this epoch
    final_factor: float = 0.1  # cosine, linear: the factor at the end: of max_steps or max_epochs, else of max_seconds
    patience: int = 1  # plateau: consecutive validations without improvement before gamma is applied
    threshold: float = 0.0  # plateau: minimum relative improvement over the lowest loss so far
    reload_best: bool = True  # plateau: with gamma, reload the best model, which checkpoints then contain as well
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
    """The training loop."""

    max_steps: int | None = None  # optimizer steps; null: no bound
    max_epochs: int | None = None  # epochs, passes over the training data; null: no bound
    max_seconds: float | None = None  # seconds of training without evaluation; null: no bound
    batch_size: int = 50  # sequences in one optimizer step, over all processes and micro-batches
    batch_tokens: int | None = None  # or its size in tokens, if the task supports it; null: batch_size sequences
    accumulate: int = 1  # gradient accumulation: micro-batches of a process in each optimizer step
    micro_batch_size: int | None = None  # or the maximum sequences of a micro-batch; null: determined by accumulate
    clip_norm: float | None = 5.0  # maximum global gradient norm; null: no clipping
    clip_value: float | None = None  # maximum absolute value of a gradient element; null: no clipping
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
    progress: str = "auto"  # auto (a bar on a terminal), on, off, or quiet: warnings and the last line only
    profile: str | None = None  # START+STEPS, steps to trace (100+5); +memory, +stacks record more; null: none
    hang_seconds: float | None = 300.0  # stalled for so long: dump stacks (at most timeout_seconds / 2); null: off
    peak_tflops: float | None = None  # peak TFLOP/s of one device, for MFU; null: the data sheet's, if known


@dataclass
class DistributedConfig:
    """DistributedDataParallel; used when torchrun (or another launcher) starts several processes."""

    backend: str = "auto"  # auto (nccl with GPUs, else gloo), gloo or nccl
    timeout_seconds: float = 600.0  # timeout of collectives, after which a lost process is an error
    bind_cores: bool = True  # without GPUs: pin each process to its share of the host's cores
    bucket_cap_mib: float = 25.0  # size of the buckets in which gradients are reduced, each as soon as it is full
    gradient_as_bucket_view: bool = True  # gradients are views of the buckets, which saves a copy of all gradients
    static_graph: bool = False  # asserts the same graph at every step; torch crashes with it under micro-batches
    comm_hook: str = "none"  # compression of gradients: none (float32), bf16, fp16 or powersgd (low rank)
    powersgd_rank: int = 1  # powersgd: the rank; higher is more exact and slower
    powersgd_start_step: int = 1000  # powersgd: first steps of a run without compression, at least 2
    zero: bool = False  # shard the optimizer state over processes (ZeRO-1)


@dataclass
class LoggerConfig:
    """Loggers besides the record. ``metrics.jsonl`` is always written, by rank 0."""

    wandb: bool = False  # also log to Weights & Biases
    tensorboard: bool = False  # also write TensorBoard event files
    wandb_mode: str = "auto"  # auto (online when logged in, else offline), online, offline or disabled
    project: str = "prnn"  # W&B project
    entity: str | None = None  # W&B team or user; null: the account's default
    name: str | None = None  # W&B run name; null: the run directory's name
    group: str | None = None  # W&B group; null: the sweep that the run belongs to, if any
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
    run_dir: str | None = None  # output directory; null: runs/<task>/<start time>
    resume: str | None = None  # a run directory to continue, or `latest`
