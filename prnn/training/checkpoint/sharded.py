"""``trainer.checkpoint_format=sharded``: every process writes a part of the checkpoint, while training goes on.

A checkpoint is a directory as ``directory.py`` has it, written beside its final name, checksummed and renamed when it
is whole, with

    shard-00001-….safetensors   the tensors of rank 0: some of the weights, and the optimizer's state of some of them,
                                written by torch.distributed.checkpoint; shard-00002 those of rank 1, and so on
    rank_00000.pt               random numbers, carried state and the rest that is rank 0's own
    state.pt                    what is the same on all ranks
    manifest.json               as ever, with the sha256 of every file

Any number of processes can read it. Nothing in it is executed: there is no pickle but those of plain tensors and
numbers, which are read with ``weights_only``. All processes must see the run directory.

``save`` copies to the CPU what this process is to write, which the next step changes, and leaves the rest to a thread.
torch's own ``async_save`` ends before the checksums and the rename, for which the processes must meet once more.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from prnn.error_messages import is_out_of_memory
from prnn.errors import AgreedError
from prnn.training import cores, disk
from prnn.training.background import Background
from prnn.training.checkpoint import directory, schema
from prnn.training.checkpoint.content import Checkpoint
from prnn.training.checkpoint.directory import MANIFEST, STATE, Damaged, SaveFailed, first_line
from prnn.training.distributed import World

ENDED_SECONDS = 20.0  # how long a job that fails waits for the checkpoint that it is writing


class Writer:
    """Writes one checkpoint after the other, in a thread; all ranks call its methods together."""

    def __init__(self, world: World, timeout_seconds: float) -> None:
        self.world = world
        # A group of its own: the thread's messages must not mix with those of the steps meanwhile.
        timeout = timedelta(seconds=timeout_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world.size > 1 else None
        cores.calm_gloo()
        self._held: disk.Held | None = None  # rank 0: the directory that is being written
        self._begun: tuple[int, Background[str | None]] | None = None  # the step, and what went wrong with it

    def save(
        self,
        run_dir: Path,
        step: int,
        tensors: dict[str, Tensor],
        own: dict[str, Any],
        common: tuple[dict[str, Any], dict[str, Any]] | None,
        then: Callable[[Path], None],
    ) -> None:
        """Begin the checkpoint of ``step``: ``tensors`` and ``own`` are this rank's, ``common`` rank 0's state and
        manifest; rank 0 calls ``then`` with the finished directory. To be waited for before the next.
        """
        assert self._begun is None
        temporary = self.world.on_main(lambda: self._begin(run_dir, step))
        staged = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        files = {_rank_file(self.world.rank): _serialised(own)}
        if common is not None:
            files[STATE] = _serialised(common[0])
        manifest = common[1] if common is not None else {}
        write = partial(self._write, temporary, step, staged, files, manifest, then)
        self._begun = step, Background(write, "prnn checkpoint")

    def _begin(self, run_dir: Path, step: int) -> Path:
        temporary = directory.begin(run_dir, step)
        self._held = disk.Held(temporary)
        return temporary

    def _check_in_place(self, temporary: Path) -> None:
        """Rank 0: torch makes a directory that has gone anew, with all above it, and a part of the files in it."""
        if self._held is not None and (lost := self._held.lost()) is not None:
            directory.discard(temporary)
            with suppress(OSError):  # they hold nothing
                temporary.parent.rmdir()
                temporary.parent.parent.rmdir()
            raise SaveFailed(f"{temporary} is not where it was: {lost}")

    def wait(self, seconds: float | None = None) -> None:
        """Until the checkpoint that was begun is there; raises ``AgreedError`` where it could not be written, or is
        not after ``seconds``.
        """
        if self._begun is None:
            return
        (step, writing), self._begun = self._begun, None
        try:
            problem = writing.result(seconds)
        except TimeoutError:
            problem = f"the checkpoint of step {step} was not written within {seconds:g} s, and is given up."
        if problem is not None:
            raise AgreedError(problem)

    def _write(
        self,
        temporary: Path,
        step: int,
        tensors: dict[str, Tensor],
        files: dict[str, bytes],
        manifest: dict[str, Any],
        then: Callable[[Path], None],
    ) -> str | None:
        """The thread. Whatever fails on one rank, all ranks hear of it: returns a sentence about it."""
        digests: dict[str, tuple[str, int]] = {}
        problem = None
        try:
            import torch.distributed.checkpoint as dcp  # takes as long as all of torch

            # Said of a single process, which is what is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            for name, content in files.items():
                disk.write_synced(temporary / name, content)
            names = [path.name for path in temporary.glob(f"shard-{self.world.rank + 1:05d}-*")]
            digests = {name: _digest(temporary / name) for name in (*names, *files)}
        except BaseException as error:  # of the disk, of torch (no Exception), of a peer that is gone
            problem = _reason(error)
        try:
            problem = self._complete(temporary, step, digests, problem, manifest, then)
        except BaseException as error:  # a peer is gone, as the main thread will find out by itself
            problem = _reason(error)
        return None if problem is None else str(directory.not_written(temporary, step, problem))

    def _complete(
        self,
        temporary: Path,
        step: int,
        digests: dict[str, tuple[str, int]],
        problem: str | None,
        manifest: dict[str, Any],
        then: Callable[[Path], None],
    ) -> str | None:
        """Rank 0 writes the manifest and gives the directory its name, if all have written; returns what went wrong."""
        everyone: list[Any] = [(digests, problem)]
        if self._group is not None:
            everyone = [None] * self.world.size
            dist.all_gather_object(everyone, (digests, problem), group=self._group)
        problem = next((problem for _, problem in everyone if problem is not None), None)
        box = [problem]
        if self.world.is_main:
            try:
                if problem is None:
                    self._check_in_place(temporary)
                    found = {name: digest for each, _ in everyone for name, digest in each.items()}
                    _check_shared(temporary, found)
                    sums = {name: digest for name, (digest, _) in found.items()}
                    then(directory.complete(temporary, step, manifest, sums, directory.SHARDED))
            except BaseException as error:  # the others wait for the outcome
                box = [_reason(error)]
            if box[0] is not None:
                directory.discard(temporary)
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


def share_out(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """The names in ``parts`` lists of about one total size; the same on every process that asks."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = totals.index(min(totals))
        lists[least].append(name)
        totals[least] += sizes[name]
    return lists


def open_checkpoint(path: Path, manifest: dict[str, Any]) -> Checkpoint:
    """Verify every file of the directory; raises ``Damaged``.

    Weights and the optimizer's state are read on access, by each process those that it needs.
    """
    sums: dict[str, str] = manifest["sha256"]
    for name, digest in sums.items():
        if Path(name).name != name:
            raise Damaged(f"{MANIFEST} names a file elsewhere, {name}")
        try:
            same = _digest(path / name)[0] == digest
        except (OSError, ValueError) as error:  # the latter of a name that no file can have
            raise Damaged(f"{name!r} cannot be read ({first_line(error)})") from error
        if not same:
            raise Damaged(f"{name} is not as it was written (its sha256 differs from the manifest's)")
    rank_files = list(_rank_files(manifest))
    try:
        state = _deserialised(path / STATE)
        ranks = [_deserialised(path / name) for name in rank_files]
        places: dict[str, str] = {}
        for name in sums:
            if name.endswith(".safetensors"):
                with safe_open(path / name, framework="pt") as file:
                    places.update(dict.fromkeys(file.keys(), name))
    except Exception as error:  # both libraries raise errors of their own
        if is_out_of_memory(error):
            raise
        raise Damaged(f"it cannot be decoded ({first_line(error)})") from error
    if (problem := schema.shares_fault(state, ranks)) is not None:
        raise Damaged(f"it is not what it should be ({problem})")
    plain = {i: values for rank in ranks for i, values in rank.pop("optimizer").items()}
    state["ranks"] = ranks
    state["optimizer"]["state"] = OptimizerState(path, places, plain)
    return Checkpoint(path, manifest, Tensors(path, places, "model."), state)


class Tensors(Mapping[str, Tensor]):
    """The tensors whose names begin with ``prefix``, without it; read from the files one by one."""

    def __init__(self, path: Path, places: dict[str, str], prefix: str) -> None:
        self._path, self._prefix = path, prefix
        self._places = {name: place for name, place in places.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        full = self._prefix + name
        with safe_open(self._path / self._places[full], framework="pt") as file:
            return file.get_tensor(full)

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in sorted(self._places))

    def __len__(self) -> int:
        return len(self._places)


class OptimizerState(Mapping[int, dict[str, Any]]):
    """The optimizer's state by parameter number; tensors are read on access."""

    def __init__(self, path: Path, places: dict[str, str], plain: dict[int, dict[str, Any]]) -> None:
        self._path, self._places, self._plain = path, places, plain

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._plain[number], **Tensors(self._path, self._places, f"optimizer.{number}.")}

    def __contains__(self, number: object) -> bool:
        return number in self._plain  # Mapping's own would read the tensors

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._plain))

    def __len__(self) -> int:
        return len(self._plain)


def _reason(error: BaseException) -> str:
    """What went wrong, for a sentence: of torch's CheckpointException, what the first of the ranks has met."""
    failures: dict[int, tuple[BaseException, Any]] = getattr(error, "failures", {})
    return next((first_line(own) for own, _ in failures.values()), first_line(error))


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def _rank_files(manifest: dict[str, Any]) -> Iterator[str]:
    """The files of all processes, which the manifest must vouch for."""
    for rank in range(manifest["processes"]):
        if _rank_file(rank) not in manifest["sha256"]:
            raise Damaged(f"{MANIFEST} has no sha256 of {_rank_file(rank)}")
        yield _rank_file(rank)


def _serialised(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _deserialised(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _digest(path: Path) -> tuple[str, int]:
    """The file's sha256 and size."""
    disk.require_file(path)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _check_shared(directory: Path, found: dict[str, tuple[str, int]]) -> None:
    for name, (_, size) in found.items():
        if not (directory / name).is_file() or (directory / name).stat().st_size != size:
            raise SaveFailed(
                f"{name}, which another process has written, is not there: run_dir must be on a disk that all "
                "processes share, or set trainer.checkpoint_format=file"
            )
