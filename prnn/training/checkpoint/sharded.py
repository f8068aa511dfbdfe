"""``trainer.checkpoint_format=sharded``: every rank writes a shard of the checkpoint asynchronously.

A checkpoint is a directory as in ``directory.py``, written under a temporary name, checksummed and renamed when
complete, with

    shard-00001-….safetensors   rank 0's shard of the weights and of the optimizer state, written by
                                torch.distributed.checkpoint; shard-00002 is rank 1's, and so on
    rank_00000.pt               rank 0's local state: RNG states, carried state and so on
    state.pt                    the state common to all ranks
    manifest.json               as in the other format, with the sha256 of every file

Any number of processes can read it. Nothing in it is executed: the only pickles are of plain tensors and numbers, read
with ``weights_only``. All processes must share the file system of the run directory.

``save`` copies this rank's tensors to the CPU, as the next step changes them, and leaves the rest to a thread. torch's
``async_save`` ends before the checksums and the rename, which need another collective.
"""

from __future__ import annotations

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

ENDED_SECONDS = 20.0  # how long a failing job waits for the checkpoint in progress


class Writer:
    """Asynchronous checkpoint writer, one checkpoint at a time; its methods are collectives."""

    def __init__(self, world: World, timeout_seconds: float) -> None:
        self.world = world
        # A separate process group: the thread's collectives must not mix with those of the training steps.
        timeout = timedelta(seconds=timeout_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world.size > 1 else None
        cores.calm_gloo()
        self._held: disk.Held | None = None  # rank 0: the directory being written
        self._pending: tuple[int, Background[str | None]] | None = None  # step, and a future of its error message

    def save(
        self,
        run_dir: Path,
        step: int,
        tensors: dict[str, Tensor],
        local_state: dict[str, Any],
        common: tuple[dict[str, Any], dict[str, Any]] | None,
        on_complete: Callable[[Path], None],
    ) -> None:
        """Start the checkpoint of ``step``: ``tensors`` and ``local_state`` are this rank's, ``common`` is rank 0's
        state and manifest; rank 0 calls ``on_complete`` with the finished directory. Call ``wait`` before the next.
        """
        assert self._pending is None
        temporary = self.world.on_main(lambda: self._begin(run_dir, step))
        staged = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        files = {_rank_file(self.world.rank): _serialised(local_state)}
        if common is not None:
            files[STATE] = _serialised(common[0])
        manifest = common[1] if common is not None else {}
        write = partial(self._write, temporary, step, staged, files, manifest, on_complete)
        self._pending = step, Background(write, "prnn checkpoint")

    def _begin(self, run_dir: Path, step: int) -> Path:
        temporary = directory.begin(run_dir, step)
        self._held = disk.Held(temporary)
        return temporary

    def _check_in_place(self, temporary: Path) -> None:
        """Rank 0: check that the directory was not moved or removed; torch would recreate it with part of the files."""
        if self._held is not None and (lost := self._held.lost()) is not None:
            directory.discard(temporary)
            with suppress(OSError):  # empty directories
                temporary.parent.rmdir()
                temporary.parent.parent.rmdir()
            raise SaveFailed(f"{temporary} is not where it was: {lost}")

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the checkpoint in progress; raises ``AgreedError`` if it could not be written, or was not within
        ``seconds``.
        """
        if self._pending is None:
            return
        (step, writing), self._pending = self._pending, None
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
        on_complete: Callable[[Path], None],
    ) -> str | None:
        """The thread's function; returns an error message on all ranks if any rank fails."""
        digests: dict[str, tuple[str, int]] = {}
        problem = None
        try:
            import torch.distributed.checkpoint as dcp  # its import takes as long as torch's

            # Expected with a single process.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            for name, content in files.items():
                disk.write_synced(temporary / name, content)
            names = [path.name for path in temporary.glob(f"shard-{self.world.rank + 1:05d}-*")]
            digests = {name: directory.digest(temporary / name) for name in (*names, *files)}
        except BaseException as error:  # disk errors, torch's (not an Exception), a lost peer
            problem = _reason(error)
        try:
            problem = self._complete(temporary, step, digests, problem, manifest, on_complete)
        except BaseException as error:  # a lost peer, which the main thread detects by itself
            problem = _reason(error)
        return None if problem is None else str(directory.not_written(temporary, step, problem))

    def _complete(
        self,
        temporary: Path,
        step: int,
        digests: dict[str, tuple[str, int]],
        problem: str | None,
        manifest: dict[str, Any],
        on_complete: Callable[[Path], None],
    ) -> str | None:
        """Rank 0 writes the manifest and renames the directory once all ranks have written; returns the error, if any.

        All ranks return the same.
        """
        gathered: list[Any] = [(digests, problem)]
        if self._group is not None:
            gathered = [None] * self.world.size
            dist.all_gather_object(gathered, (digests, problem), group=self._group)
        problem = next((problem for _, problem in gathered if problem is not None), None)
        outcome = [problem]
        if self.world.is_main:
            try:
                if problem is None:
                    self._check_in_place(temporary)
                    all_files = {name: digest for each, _ in gathered for name, digest in each.items()}
                    _check_shared(temporary, all_files)
                    sums = {name: digest for name, (digest, _) in all_files.items()}
                    on_complete(directory.complete(temporary, step, manifest, sums, directory.SHARDED))
            except BaseException as error:  # broadcast below, as the other ranks wait for it
                outcome = [_reason(error)]
            if outcome[0] is not None:
                directory.discard(temporary)
        if self._group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        return outcome[0]


def share_out(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Partition the names into ``parts`` lists of about equal total size; deterministic, so equal on all ranks."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = totals.index(min(totals))
        lists[least].append(name)
        totals[least] += sizes[name]
    return lists


def open_checkpoint(path: Path, manifest: dict[str, Any]) -> Checkpoint:
    """Verify every file of the directory; raises ``Damaged``.

    Weights and optimizer state are read lazily, by each process those that it needs.
    """
    sums: dict[str, str] = manifest["sha256"]
    for name, digest in sums.items():
        if Path(name).name != name:
            raise Damaged(f"{MANIFEST} names a file outside the checkpoint, {name}")
        try:
            same = directory.digest(path / name)[0] == digest
        except (OSError, ValueError) as error:  # ValueError: not a valid file name
            raise Damaged(f"{name!r} cannot be read ({first_line(error)})") from error
        if not same:
            raise Damaged(f"{name} is corrupt (its sha256 differs from the manifest's)")
    rank_files = list(_rank_files(manifest))
    try:
        state = _deserialised(path / STATE)
        ranks = [_deserialised(path / name) for name in rank_files]
        places: dict[str, str] = {}
        for name in sums:
            if name.endswith(".safetensors"):
                with safe_open(path / name, framework="pt") as file:
                    places.update(dict.fromkeys(file.keys(), name))
    except Exception as error:  # both libraries raise their own exception types
        if is_out_of_memory(error):
            raise
        raise Damaged(f"it cannot be decoded ({first_line(error)})") from error
    if (problem := schema.shares_fault(state, ranks)) is not None:
        raise Damaged(f"it has unexpected content ({problem})")
    plain = {i: values for rank in ranks for i, values in rank.pop("optimizer").items()}
    state["ranks"] = ranks
    state["optimizer"]["state"] = OptimizerState(path, places, plain)
    return Checkpoint(path, manifest, Tensors(path, places, "model."), state)


class Tensors(Mapping[str, Tensor]):
    """The tensors whose names start with ``prefix``, by name without it; each is read from its file on access."""

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
    """The optimizer state by parameter index; tensors are read on access."""

    def __init__(self, path: Path, places: dict[str, str], plain: dict[int, dict[str, Any]]) -> None:
        self._path, self._places, self._plain = path, places, plain

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._plain[number], **Tensors(self._path, self._places, f"optimizer.{number}.")}

    def __contains__(self, number: object) -> bool:
        return number in self._plain  # Mapping's default would read the tensors

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._plain))

    def __len__(self) -> int:
        return len(self._plain)


def _reason(error: BaseException) -> str:
    """A one-line reason: for torch's CheckpointException, the error of the first rank that failed."""
    failures: dict[int, tuple[BaseException, Any]] = getattr(error, "failures", {})
    return next((first_line(cause) for cause, _ in failures.values()), first_line(error))


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def _rank_files(manifest: dict[str, Any]) -> Iterator[str]:
    """The rank files, each of which must be in the manifest."""
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


def _check_shared(directory: Path, files: dict[str, tuple[str, int]]) -> None:
    """Raise ``SaveFailed`` unless rank 0 sees every rank's ``files``, given as name -> (sha256, size)."""
    for name, (_, size) in files.items():
        if not (directory / name).is_file() or (directory / name).stat().st_size != size:
            raise SaveFailed(
                f"{name}, which another process has written, is not there: run_dir must be on a file system that all "
                "processes share, or set trainer.checkpoint_format=file"
            )
