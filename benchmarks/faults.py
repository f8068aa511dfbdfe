"""Fault injection on the file system: a disk that is full, becomes read-only, or loses unsynced data.

    python -m benchmarks.faults [--moments 60] [--seed 1] [--out benchmarks/results/MACHINE]

Small runs of ``prnn.train`` on a tmpfs and on a loop-mounted ext4, with both checkpoint formats and one and two
processes. At a random moment the disk is filled except for a random number of bytes (temporarily, or until the run has
ended), becomes read-only (an ext4 error with ``errors=remount-ro``), or becomes read-only as the processes are killed:
unsynced data is lost, as in a crash of the host. Then the disk is repaired and freed, and the run is resumed.

A run must never exit with status 0 without its last checkpoint, print a traceback, or hang, and its newest checkpoint
must be valid. Once resumed, it must end bitwise equal to an undisturbed run, including its record, unless the resume
has reported a gap in the record. The same holds for a run without a checkpoint yet, and for one that is restarted with
the same command because its configuration had not been written. Prints a line for each moment; the exit status is 1 on
any violation. Needs Linux, and root for the mounts.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, files, machine
from benchmarks.resilience import Record, differences, newest, unfinished
from prnn import train
from prnn.training import checkpoint
from prnn.training.run_files import BEAT, OVERRIDES

STEPS, INTERVAL = 40, 10
TIMEOUT_SECONDS = 300.0  # timeout of any wait, for a busy machine
SETTINGS = [
    "task=char_lm", "task.bptt=8", "task.sample_length=20", "task.eval_tokens=200", "model.hidden_size=48",
    "model.num_layers=1", "model.embedding_size=8", "model.dropout=0.2", "trainer.batch_size=4", "trainer.threads=1",
    "trainer.device=cpu", "trainer.log_every=1", f"trainer.checkpoint_every={INTERVAL}", "trainer.eval_every=20",
    "trainer.sample_every=20", "trainer.progress=off", f"trainer.max_steps={STEPS}", "trainer.keep_checkpoints=2",
    "distributed.timeout_seconds=60",
]  # fmt: skip
DISK_MIB = 24
RECORD_ALONE = {"metrics.jsonl", "samples.txt"}  # may differ if the resume has reported a gap in the record


@dataclass(frozen=True)
class Moment:
    """One injected fault: its kind, the kind of run, and the time."""

    disk: str  # tmpfs or ext4
    fault: str  # full, full for a while, read-only or crash
    checkpoint_format: str
    processes: int
    when: str  # starting, training or saving
    step: int
    fraction: float  # of the time within ``when``
    left: int  # free bytes on a full disk


@dataclass
class Outcome:
    """How the run ended, and how it was resumed."""

    status: int  # of rank 0; negative: the signal that killed it
    kept: int  # the step of the newest valid checkpoint; 0: none
    resumed: bool  # False: restarted from scratch
    gap_told: bool
    faults: list[str]


def draw(moments: int, seed: int) -> list[Moment]:
    """Draw the moments, in order; deterministic for a seed."""
    dice = random.Random(seed)
    drawn = []
    for _ in range(moments):
        disk = dice.choice(["tmpfs", "ext4", "ext4"])
        faults = ["full", "full for a while"] if disk == "tmpfs" else ["full", "full for a while", "read-only", "crash"]
        drawn.append(Moment(
            disk, dice.choice(faults), dice.choice(["file", "sharded"]), dice.choice([1, 2]),
            dice.choices(["starting", "training", "saving"], [1, 3, 4])[0], dice.randrange(1, STEPS), dice.random(),
            dice.choice([0, 0, 512, 4096, 20_000, 60_000, 150_000]),
        ))  # fmt: skip
    return drawn


class Disk:
    """A small file system, mounted at ``place``."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.place, self._image = kind, folder / "disk", folder / "image"
        self.place.mkdir()
        if kind == "ext4":
            with self._image.open("wb") as file:
                file.truncate(DISK_MIB << 20)
            _sh("mkfs.ext4", "-q", "-F", str(self._image))
        self.mount()

    def mount(self) -> None:
        if self.kind == "tmpfs":
            _sh("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.place))
        else:
            _sh("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.place))

    def unmount(self) -> None:
        _sh("umount", str(self.place))

    def fill(self, left: int) -> None:
        """Fill the disk except for about ``left`` bytes."""
        with (self.place / "balloon").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 9):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            os.fsync(file.fileno())
            file.truncate(max(0, file.tell() - left))

    def free(self) -> None:
        (self.place / "balloon").unlink(missing_ok=True)

    def break_off(self) -> None:
        """Trigger a file-system error: from now on no write reaches the disk."""
        device = subprocess.check_output(["findmnt", "-no", "SOURCE", str(self.place)], text=True).strip()
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("faults\n")

    def repair(self) -> None:
        """Check and remount the file system, as a restart of the host does."""
        self.unmount()
        subprocess.run(["fsck.ext4", "-y", str(self._image)], stdout=subprocess.DEVNULL, check=False)
        self.mount()


class Job:
    """A run of one or two processes, forked from this one, as importing torch dominates the startup time."""

    def __init__(self, overrides: list[str], processes: int, folder: Path) -> None:
        self.log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.began = time.monotonic()
        self.statuses: dict[int, int] = {}  # by process
        self.pids = [self._fork(overrides, rank, processes, port) for rank in range(processes)]

    def _fork(self, overrides: list[str], rank: int, processes: int, port: int) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if processes > 1:
                places = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in places.items()})
                os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
            os.chdir(self.log.parent)
            sys.argv = ["prnn-train", *overrides]
            status = train.main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def running(self) -> bool:
        """Whether any process is running; collects the exit statuses of the others."""
        for pid in self.pids:
            if pid not in self.statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self.pids)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.running()  # collects the statuses of those that have ended
        running = [pid for pid in self.pids if pid not in self.statuses]
        for pid in running:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in running:
                os.kill(pid, signal.SIGCONT)

    def wait(self) -> int:
        """Rank 0's exit status; a hanging process is killed, with status -9."""
        with contextlib.suppress(TimeoutError):
            _until(lambda: not self.running())
        self.kill()
        return self.statuses[self.pids[0]]

    def kill(self) -> None:
        for pid in self.pids:
            if pid not in self.statuses:
                os.kill(pid, signal.SIGKILL)
                self.statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def disturb(moment: Moment, straight: Path, start_seconds: float, folder: Path) -> Outcome:
    """Inject one fault into a run, and resume the run."""
    disk = Disk(moment.disk, folder)
    try:
        return _disturb(moment, straight, start_seconds, folder, disk)
    finally:
        disk.unmount()


def _disturb(moment: Moment, straight: Path, start_seconds: float, folder: Path, disk: Disk) -> Outcome:
    run_dir = disk.place / "run"
    command = [*_settings(moment), f"run_dir={run_dir}"]
    job = Job(command, moment.processes, folder)
    _await(moment, job, run_dir, start_seconds)
    if moment.fault.startswith("full"):
        with job.paused():  # on a busy machine the run could be over before the disk is full
            disk.fill(moment.left)
        if moment.fault == "full for a while":
            reached = Record(run_dir).last()[0]
            more = 1 + int(moment.fraction * INTERVAL)
            with contextlib.suppress(TimeoutError):
                _until(lambda: not job.running() or _step(run_dir) >= reached + more)
            disk.free()
    else:
        disk.break_off()
    if moment.fault == "crash":
        job.kill()
    status = job.wait()
    text, faults = job.log.read_text(errors="replace"), []
    if moment.fault == "crash" or moment.fault == "read-only":
        disk.repair()
    disk.free()
    kept, damaged = newest(run_dir)
    if damaged:
        faults.append(f"{damaged} damaged checkpoints")
    if status == 0 and kept != STEPS:
        faults.append("status 0 without the last checkpoint")
    if status == -signal.SIGKILL and moment.fault != "crash":
        faults.append("it hung")
    outcome = Outcome(status, kept, False, False, faults + _forbidden(text))
    # A run that was interrupted before it had written its configuration is restarted with the same command.
    outcome.resumed = (run_dir / OVERRIDES).is_file()
    again = Job([f"resume={run_dir}"] if outcome.resumed else command, moment.processes, folder)
    after = again.wait()
    text = again.log.read_text(errors="replace")[len(text) :]
    outcome.gap_told = "has a gap" in text
    outcome.faults += _forbidden(text)
    if after != 0:
        outcome.faults.append(f"the resumed run ended with status {after}")
    different = [part for part in differences(straight, run_dir) if not (outcome.gap_told and part in RECORD_ALONE)]
    outcome.faults += [f"not the same: {part}" for part in different]
    if list(checkpoint.folder(run_dir).glob(".step_*")):
        outcome.faults.append("an unfinished checkpoint is left")
    return outcome


def _settings(moment: Moment) -> list[str]:
    return [*SETTINGS, f"trainer.checkpoint_format={moment.checkpoint_format}"]


def _step(run_dir: Path) -> int:
    """The step of rank 0's heartbeat."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((run_dir / BEAT).read_text())["step"])
    return 0


def _await(moment: Moment, job: Job, run_dir: Path, start_seconds: float) -> None:
    """Wait for the moment, or the end of the run."""
    if moment.when == "starting":
        time.sleep(moment.fraction * start_seconds)
        return
    record = Record(run_dir)
    _until(lambda: not job.running() or record.last()[0] >= moment.step, 0.001)
    if moment.when == "saving":
        before = unfinished(run_dir)
        _until(lambda: not job.running() or bool(unfinished(run_dir) - before), 0.0005)
        time.sleep(0.01 * moment.fraction)
    else:
        time.sleep(0.05 * moment.fraction)


def _forbidden(text: str) -> list[str]:
    """The forbidden strings in a log."""
    return [f"the log has {what!r}" for what in ("Traceback", "Exception in thread", "Logging error") if what in text]


def measure(moments: list[Moment], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run each kind undisturbed, then with the faults; returns the result."""
    straight: dict[tuple[str, int], tuple[Path, float]] = {}
    outcomes = []
    for number, moment in enumerate(moments, 1):
        kind = moment.checkpoint_format, moment.processes
        if kind not in straight:
            parent = folder / f"straight_{kind[0]}_{kind[1]}"
            parent.mkdir()
            job = Job([*_settings(moment), f"run_dir={parent / 'run'}"], moment.processes, parent)
            _until(lambda parent=parent, job=job: not job.running() or _step(parent / "run") > 0)  # type: ignore[misc]
            straight[kind] = parent / "run", time.monotonic() - job.began
            if job.wait() != 0:
                raise SystemExit(f"the undisturbed run has failed:\n{job.log.read_text()}")
        with tempfile.TemporaryDirectory(dir=folder) as place:
            outcome = disturb(moment, *straight[kind], Path(place))
            if outcome.faults:
                print(Path(place, "log").read_text()[-3000:], file=sys.stderr)
        outcomes.append(outcome)
        wrong = f"; FAULT: {'; '.join(outcome.faults)}" if outcome.faults else ""
        say(
            f"{number:3}  {moment.disk:5} {moment.fault:16} {moment.when:8} {moment.checkpoint_format:7} x "
            f"{moment.processes}: status {outcome.status}, checkpoint of step {outcome.kept}"
            f"{', gap reported' if outcome.gap_told else ''}{wrong}"
        )
    faults = [f"moment {n}: {fault}" for n, outcome in enumerate(outcomes, 1) for fault in outcome.faults]
    return {
        "machine": machine.describe(),
        "settings": SETTINGS,
        "faults": faults,
        "by_fault": dict(Counter(moment.fault for moment in moments)),
        "by_status": dict(Counter(str(outcome.status) for outcome in outcomes)),
        "resumed": sum(outcome.resumed for outcome in outcomes),
        "gaps_told": sum(outcome.gap_told for outcome in outcomes),
        "each": [{**asdict(moment), **asdict(outcome)} for moment, outcome in zip(moments, outcomes, strict=True)],
    }


def cannot_run(folder: Path) -> str | None:
    """Why this machine cannot mount these disks; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting a disk needs Linux and root"
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        disk = Disk("ext4", place)
        disk.unmount()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no disk can be mounted here ({error})"
    return None


def _sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _until(happened: Callable[[], Any], every: float = 0.01) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(every)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run only this moment, counted from 1")
    parser.add_argument("--out", type=arguments.folder, help="a folder for faults.json")
    options = parser.parse_args()
    moments = draw(options.moments, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if (reason := cannot_run(Path(folder))) is not None:
            raise SystemExit(f"benchmarks.faults: {reason}")
        chosen = moments if options.only is None else moments[options.only - 1 : options.only]
        result = measure(chosen, Path(folder), lambda line: print(line, flush=True))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        files.write(options.out / "faults.json", json.dumps({"seed": options.seed, **result}, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("faults", "by_fault", "by_status", "resumed", "gaps_told")}))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
