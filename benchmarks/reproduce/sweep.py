"""A row of ``reproductions.py`` over seeds: its runs, and their entries in the records."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.common.files import ROOT
from benchmarks.reproduce import parked, records, seeds, settings
from benchmarks.reproduce.records import Entry, Series
from benchmarks.reproduce.rows import Row
from benchmarks.reproduce.seeds import DIVERGED, FAILED, FINISHED, Limits, Place, Run, Stopped
from prnn.errors import UserError

RUNS = Path("runs") / "reproduce"
RESTART = 1_000_000  # from a seed to the next one tried in its place
SWITCHES = ("PRNN_BACKEND", "PRNN_CPU_ISA", "PRNN_NO_NATIVE", "OMP_NUM_THREADS")  # they change speed, or bits
KEPT = (
    "best_step", "stopped_by", "steps", "seconds", "tokens_per_second", "unit", "parameters", "processes", "threads",
    "best_val_loss",
)  # fmt: skip
Say = Callable[[str], None]


class Sweep:
    """A row with some overrides: its runs, and its series in the records under ``folder``.

    ``restarts``: a seed whose best validation loss is above ``restart_above``, or that diverges or fails, is run again
    with another seed, up to so many times. Validation decides, never the test.
    ``resume``: what is recorded with today's settings is not run again, and a parked run is continued.
    """

    def __init__(
        self,
        row: Row,
        overrides: Sequence[str] = (),
        folder: Path = records.FOLDER,
        restarts: int = 0,
        restart_above: float = 0.0,
        resume: bool = False,
    ) -> None:
        self.row, self.overrides, self.folder = row, list(overrides), folder
        self.restarts, self.restart_above, self.resume = restarts, restart_above, resume
        self.machine = machine.describe()
        self.environment = {name: os.environ[name] for name in SWITCHES if name in os.environ}
        self.settings = settings.resolved(self.arguments)
        self.code, self.commit = code_digest(), commit()
        self.runs = RUNS / row.name / self._identity()
        # Of the row itself alone: where its runs are kept with the records while they are under way.
        self.parking = folder / row.name if not records.variant(self._series()) else None

    @property
    def arguments(self) -> list[str]:
        return [*self.row.overrides, *self.overrides]

    def _identity(self) -> str:
        """The settings by which two runs of a seed are considered the same."""
        parts = [
            *self.row.overrides,
            "",
            *self.overrides,
            repr(self.environment),
            *(str(self.machine[key]) for key in ("processor", "torch", "native")),
        ]
        return hashlib.sha256("\n".join([self.code, *parts]).encode()).hexdigest()[:12]

    def places(self, seed: int) -> Iterator[Place]:
        """The folders of a seed's attempts."""
        return (Place(self.runs, seed + RESTART * number) for number in range(self.restarts + 1))

    def recorded(self, seed: int) -> bool:
        """Whether the records have the seed with today's settings and metrics, finished or diverged."""
        mine, wanted = records.identity(self._series()), {figure.key for figure in self.row.figures}
        return any(
            records.identity(each) == mine
            and not settings.changes(each["settings"], self.settings)
            and any(
                entry["seed"] == seed
                and (entry["status"] == DIVERGED or (entry["status"] == FINISHED and wanted <= entry["figures"].keys()))
                for entry in each["seeds"]
            )
            for each in records.load(self.folder, self.row.name)
        )

    def train(self, seed: int, limits: Limits, say: Say) -> None:
        """Run a seed, with its restarts, and record it. Raises what ``seeds.run`` raises."""
        with Place(self.runs, seed).claim():
            attempts: list[Run] = []
            for place in self.places(seed):
                done = place.outcome()
                if done is None:
                    done = self._run(place, limits, say)
                say(f"{self.row.name}: seed {place.seed}: {self._told(done)}")
                attempts.append(done)
                if not self._restarts(done):
                    break
            if settings.changes(self.settings, settings.resolved(self.arguments)):
                raise UserError(f"the settings changed while seed {seed} ran: it is not recorded.")
            records.add(self.folder, self._series(), self._entry(seed, attempts))
            if self.parking and attempts[-1].status != FAILED:
                parked.remove(self.parking, seed)

    def _run(self, place: Place, limits: Limits, say: Say) -> Run:
        if limits.reached():
            raise Stopped
        if code_digest() != self.code:
            raise UserError("prnn/ or conf/ changed during the sweep: start it again with the new code.")
        if self.parking and self.resume and (step := parked.restore(self.parking, place, self.settings)):
            say(f"{self.row.name}: seed {place.seed}: goes on from step {step:,}, parked under {self.parking}")
        say(f"{self.row.name}: seed {place.seed}: training; tail -f {place.log}")
        try:
            return seeds.run(place, self.arguments, limits)
        except Stopped:
            if self.parking and self.resume and self.row.minutes >= parked.FROM_MINUTES:
                say(f"{self.row.name}: seed {place.seed}: {parked.keep(self.parking, place, self._segment())}")
            raise

    def _figures(self, run: Run) -> dict[str, float | None]:
        """By key; none of a run that has not come to its end."""
        if run.summary is None:
            return {}
        try:
            return {figure.key: figure.of(run.summary) for figure in self.row.figures}
        except KeyError as missing:
            raise UserError(
                f"{self.row.name}: summary.json of seed {run.seed} under {self.runs} has no {missing}: its log may "
                "say why (a package that is missing?); else mend the key in benchmarks/reproduce/reproductions.py."
            ) from None

    def _restarts(self, run: Run) -> bool:
        """Whether another seed is tried in place of this one; a loss that is not a number is not below the limit."""
        if self.restarts == 0:
            return False
        loss = run.summary["best_val_loss"] if run.summary is not None else None
        return run.status != FINISHED or loss is None or not loss <= self.restart_above

    def _told(self, run: Run) -> str:
        if run.summary is None:
            return f"{run.status}: {run.message}"
        figures = ", ".join(
            f"{figure.what} {records.number(value)}" + ("" if figure.reached(value) else " (missed)")
            for figure, value in zip(self.row.figures, self._figures(run).values(), strict=True)
        )
        taken = f"{run.summary['steps']:,} steps in {run.summary['seconds']:,.0f} s"
        return f"{figures}; {taken}, {run.summary['tokens_per_second']:,.0f} {run.summary['unit']}/s"

    def _series(self) -> Series:
        """The series without its seeds."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return {
            "name": self.row.name,
            "overrides": self.overrides,
            "environment": self.environment,
            "device": "cpu" if "trainer.device=cpu" in self.overrides else gpu,
            # What is reached in a given time depends on the processor.
            "processor": self.machine["processor"] if self.row.alone else None,
            "restarts": {"most": self.restarts, "above": self.restart_above} if self.restarts else None,
            "settings": self.settings,
        }

    def _entry(self, seed: int, attempts: Sequence[Run]) -> Entry:
        """What is recorded of a seed: its last attempt, with the attempts before it, each under the seed it had (the
        n-th restart adds n times ``RESTART``), and where and when it was run, in several segments if it was parked.
        """
        *before, last = map(self._attempt, attempts)
        earlier = parked.segments(self.parking, seed) if self.parking else []
        return {
            **last,
            "seed": seed,
            **({"restarted": before} if before else {}),
            **({"segments": earlier} if earlier else {}),
            **self._segment(),
            "load": self.machine["load"],
        }

    def _segment(self) -> dict[str, Any]:
        """Where and when a run was, or a part of it."""
        return {
            "processor": self.machine["processor"],
            "torch": self.machine["torch"],
            "commit": self.commit,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _attempt(self, run: Run) -> Entry:
        if run.summary is None:
            return {"seed": run.seed, "status": run.status, "message": run.message}
        signatures = {"signatures": run.summary["signatures"]} if "signatures" in run.summary else {}
        kept = {key: run.summary[key] for key in KEPT}
        return {"seed": run.seed, "status": run.status, "figures": self._figures(run), **signatures, **kept}


def code_digest() -> str:
    """A digest of everything that training depends on: the package, its kernels' source and its configuration."""
    kinds = (".py", ".cpp", ".h", ".cu", ".cuh", ".yaml", ".xz")
    paths = [path for top in ("prnn", "conf") for path in (ROOT / top).rglob("*") if path.suffix in kinds]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """The checkout's commit, with ``+`` if files that training depends on have changed; None without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "prnn", "conf") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
