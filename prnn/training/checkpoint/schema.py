"""The schema of a checkpoint, as types that ``prnn.config.structure.fault`` checks the loaded data against.

Keys that only newer checkpoints have are in classes with ``total=False``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from prnn.config.structure import Count, Finite, Positive, Rule, fault
from prnn.task import ROWS, Position
from prnn.training.progress import Progress

Section = dict[str, Any] | None


class Sections(TypedDict, total=False):
    """The sections of the job's configuration that are compared with another job's."""

    model: Section
    task: Section
    data: Section
    distributed: Section


class Needed(TypedDict):
    format: int
    step: Count
    sha256: dict[str, str]
    config: Sections


class AnyManifest(Needed, total=False):
    task: dict[str, Any]
    val_loss: float | None


class Manifest(AnyManifest, total=False):
    """``manifest.json``."""

    processes: Positive


class ShardedManifest(AnyManifest):
    """``manifest.json`` of a sharded checkpoint, with files of each rank."""

    processes: Positive


class OptimizerSettings(TypedDict):
    name: str
    momentum: Finite


class Job(Sections):
    """The parts of the job's configuration that a resume needs."""

    optimizer: OptimizerSettings
    trainer: dict[str, Any]
    seed: Count


class Share(TypedDict):
    """``rank_00000.pt`` of a sharded checkpoint, as far as merging needs it."""

    optimizer: dict[Count, dict[str, Any]]


class Common(TypedDict):
    """``state.pt`` of a sharded checkpoint."""

    optimizer: dict[str, Any]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _is_writable(tensor: Tensor) -> bool:
    """Whether a tensor can be updated in place: no overlapping elements, and not a negated or conjugated view."""
    taken = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < taken:
            return False
        taken += stride * (size - 1)
    return _is_plain(tensor) and not tensor.is_neg() and not tensor.is_conj()


def _is_carried(state: Any) -> bool:
    """Whether a state is None, or tensors [L, B, H], nested in tuples and dictionaries, with a common B."""
    return len(_rows(state)) <= 1


def _rows(state: Any) -> set[int]:
    if state is None:
        return set()
    if isinstance(state, Tensor):
        if not (_is_plain(state) and state.is_floating_point() and state.dim() > ROWS):
            raise ValueError
        return {state.shape[ROWS]}
    if not isinstance(state, tuple | dict):
        raise TypeError
    return set().union(*map(_rows, state.values() if isinstance(state, dict) else state))


def _sets_numpy(state: list[Any]) -> bool:
    np.random.RandomState().set_state(("MT19937", *state))
    return True


# A generator's state is loaded into a scratch generator: that checks more than its type does.
PythonState = Annotated[tuple[Any, ...], Rule(lambda s: random.Random().setstate(s) is None, "Python's random state")]
TorchState = Annotated[Tensor, Rule(lambda s: torch.Generator().set_state(s) is not None, "torch's random state")]
NumpyState = Annotated[list[Any], Rule(_sets_numpy, "NumPy's random state")]
Plain = Annotated[Tensor, Rule(_is_writable, "a dense tensor without overlapping elements")]
Carried = Annotated[Any, Rule(_is_carried, "a carried state: tensors [L, B, H] with a common B")]


class Generators(TypedDict):
    python: PythonState
    torch: TorchState


class PowerSGD(TypedDict, total=False):
    """The communication hook's state: complete for PowerSGD, empty for the others."""

    backend: str
    iter: Count
    rng: NumpyState
    error: dict[Count, Plain]
    p: dict[Count, Plain]
    q: dict[Count, Plain]


class RankBase(TypedDict):
    rng: Generators
    carried: list[Carried]


class Rank(RankBase, total=False):
    """The rank-local state."""

    hook: Annotated[PowerSGD, Rule(lambda hook: not hook or len(hook) == 6, "empty, or all of PowerSGD's state")]


class Scaler(TypedDict, total=False):
    """The state of ``torch.amp.GradScaler``: empty except for float16."""

    scale: Finite
    growth_factor: Finite
    backoff_factor: Finite
    growth_interval: Positive
    _growth_tracker: Count


class Group(TypedDict):
    lr: Finite


class Optimizer(TypedDict):
    state: Annotated[Any, Rule(lambda state: isinstance(state, Mapping), "a dictionary")]
    param_groups: Annotated[list[Group], Rule(len, "at least one parameter group")]


class Kept(TypedDict):
    model: dict[str, Plain]
    optimizer: dict[Count, dict[str, Any]]


class Mark(TypedDict):
    """The extent of ``metrics.jsonl`` at the checkpoint."""

    records: Count
    bytes: Count
    crc32: Count


class StateBase(TypedDict):
    optimizer: Optimizer
    scaler: Annotated[Scaler, Rule(lambda scaler: len(scaler) in (0, 5), "empty, or all of GradScaler's state")]
    position: Annotated[Position, Rule(lambda each: len(each) == 2 and min(each.values()) >= 0, "epoch and index")]
    steps_per_epoch: Count
    progress: Progress
    ranks: Annotated[list[Rank], Rule(len, "of at least one process")]


class State(StateBase, total=False):
    """``state.pt``; for a sharded checkpoint, merged with the rank files."""

    kept: Kept | None
    fingerprint: str  # of the task's data
    wandb_id: str | None
    record: Mark | None


def manifest_fault(manifest: Any, sharded: bool) -> str | None:
    """The first fault of ``manifest.json``; None where there is none."""
    return fault(manifest, ShardedManifest if sharded else Manifest, "manifest")


def state_fault(manifest: dict[str, Any], state: Any) -> str | None:
    """The first fault of the state to resume from; None where there is none."""
    problem = fault(manifest["config"], Job, "config") or fault(state, State, "state")
    if problem is not None:
        return problem
    step, processes = state["progress"]["step"], len(state["ranks"])
    if step != manifest["step"]:
        return f"state.progress.step must be {manifest['step']}, got {step}"
    if processes != manifest.get("processes", processes):
        return f"state.ranks must be of {manifest['processes']} processes, got {processes}"
    first, *others = (_outline(rank) for rank in state["ranks"])
    return None if all(each == first for each in others) else "state.ranks must be alike, but differ"


def _outline(rank: dict[str, Any]) -> Any:
    """What must match across ranks: the shapes of the hook's buckets and of the carried tensors, except rows."""
    hook = rank.get("hook", {})
    buckets = {part: {key: tensor.shape for key, tensor in hook[part].items()} for part in ("error", "p", "q") if hook}
    # A micro-batch without rows has no carried state.
    return buckets, {repr(_shape(state)) for state in rank["carried"] if state is not None}


def _shape(state: Any) -> Any:
    if isinstance(state, Tensor):
        return (*state.shape[:ROWS], *state.shape[ROWS + 1 :]), state.dtype
    if isinstance(state, dict):
        return {name: _shape(part) for name, part in state.items()}
    return None if state is None else tuple(map(_shape, state))


def shares_fault(state: Any, ranks: list[Any]) -> str | None:
    """The first fault of a sharded checkpoint's files before they are merged; None where there is none."""
    problems = (fault(rank, Share, f"rank_{i:05d}") for i, rank in enumerate(ranks))
    return fault(state, Common, "state") or next((problem for problem in problems if problem is not None), None)


def weights_fault(weights: Mapping[str, Any], like: Mapping[str, Tensor], where: str) -> str | None:
    """The first fault of weights to be loaded into ``like``, a model's state dict; None where there is none."""
    if weights.keys() != like.keys():
        [name, *_] = sorted(weights.keys() ^ like.keys())
        return f"{where} {'lacks' if name in like else 'holds'} {name}"
    problems = (fault(weights[name], _like(tensor, True), f"{where}.{name}") for name, tensor in like.items())
    return next((problem for problem in problems if problem is not None), None)


def optimizer_fault(state: Any, like: Mapping[str, Any], shape: torch.Size, where: str) -> str | None:
    """The first fault of the optimizer state of a parameter of ``shape``; ``like`` is that of another parameter."""
    if (problem := fault(state, dict[str, Any], where)) is not None:
        return problem
    for key, example in like.items():
        if key not in state:
            return f"{where} lacks {key}"
        if not isinstance(example, Tensor):
            continue
        hint: Any = _like(example.new_empty(shape, device="meta")) if example.dim() else _like(example) | Finite
        if (problem := fault(state[key], hint, f"{where}.{key}")) is not None:
            return problem
    return None


def _like(tensor: Tensor, finite: bool = False) -> Any:
    """The type of tensors that can be copied to ``tensor``. It holds no reference to it: typing caches types."""
    shape, dtype = tensor.shape, tensor.dtype
    rules = [
        Rule(lambda each: each.shape == shape, f"of shape {list(shape)}"),
        Rule(lambda each: each.is_floating_point() == dtype.is_floating_point, f"of {dtype}"),
        Rule(lambda each: not finite or each.to(dtype).isfinite().all(), "of finite numbers"),
    ]
    return Annotated[(Plain, *rules)]
