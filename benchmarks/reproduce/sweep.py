"""A row of ``reproductions.py`` over seeds: its runs, and their record."""

from __future__ import annotations

import hashlib
import os
import shlex
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.common.files import ROOT
from benchmarks.reproduce import records, seeds
from benchmarks.reproduce.reproductions import SOURCES
from benchmarks.reproduce.rows import Figure, Row
from benchmarks.reproduce.seeds import FINISHED, Place, Run, Stopped
from prnn.errors import UserError
from prnn.training.interrupts import Interrupts

RUNS = Path("runs") / "reproduce"
RESTART = 1_000_000  # from a seed to the next one tried in its place
SWITCHES = ("PRNN_BACKEND", "PRNN_CPU_ISA", "PRNN_NO_NATIVE", "OMP_NUM_THREADS")  # they change speed, or bits


class Sweep:
    """A row over seeds: what has been run, before or now."""

    def __init__(self, row: Row, overrides: Sequence[str], restarts: int) -> None:
        self.row, self.overrides, self.restarts = row, list(overrides), restarts
        self.machine = {key: value for key, value in machine.describe().items() if key != "commit"}
        self.environment = {name: os.environ[name] for name in SWITCHES if name in os.environ}
        self.code, self.commit = code_digest(), commit()
        self.folder = RUNS / row.name / self._identity()
        self.tried: list[list[Run]] = []  # of each seed: its run, and the restarts

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
        """The folder of a seed's attempts."""
        return (Place(self.folder, seed + RESTART * number) for number in range(self.restarts + 1))

    def train(self, wanted: Sequence[int], interrupts: Interrupts, say: Callable[[str], None]) -> None:
        """Run each seed, and its restarts. Raises what ``seeds.run`` raises."""
        for seed in wanted:
            attempts: list[Run] = []
            for place in self.places(seed):
                done = place.outcome()
                if done is None:
                    if interrupts.received:
                        raise Stopped
                    if code_digest() != self.code:
                        raise UserError("prnn/ or conf/ changed during the sweep: start it again with the new code.")
                    say(f"seed {place.seed}: training; tail -f {place.log}")
                    done = seeds.run(place, [*self.row.overrides, *self.overrides], interrupts)
                say(f"seed {place.seed}: {self._told(done)}")
                attempts.append(done)
                if not self._missed(done):
                    break
            self.tried.append(attempts)

    def _figures(self, run: Run) -> dict[str, float | None]:
        """By key; none of a run that has not come to its end."""
        if run.summary is None:
            return {}
        try:
            return {figure.key: figure.of(run.summary) for figure in self.row.figures}
        except KeyError as missing:
            raise UserError(
                f"{self.row.name}: summary.json of seed {run.seed} under {self.folder} has no {missing}: its log may "
                "say why (a package that is missing?); else mend the key in benchmarks/reproduce/reproductions.py."
            ) from None

    def _missed(self, run: Run) -> bool:
        return run.status != FINISHED or self.row.missed(self._figures(run))

    def _told(self, run: Run) -> str:
        if run.summary is None:
            return f"{run.status}: {run.message}"
        figures = ", ".join(
            f"{figure.what} {records.number(value)}" + ("" if figure.reached(value) else " (missed)")
            for figure, value in zip(self.row.figures, self._figures(run).values(), strict=True)
        )
        taken = f"{run.summary['steps']:,} steps in {run.summary['seconds']:,.0f} s"
        return f"{figures}; {taken}, {run.summary['tokens_per_second']:,.0f} {run.summary['unit']}/s"

    def record(self, command: str, requested: int) -> dict[str, Any]:
        """What is written down; ``requested`` is the number of seeds."""
        last = [attempts[-1] for attempts in self.tried]
        summaries = [run.summary for run in last if run.summary is not None]
        return {
            "name": self.row.name,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": self.commit,
            "code": self.code,
            "command": command,
            "trains": shlex.join(["python", "-m", "prnn.train", *self.row.overrides, *self.overrides, "seed=SEED"]),
            "overrides": self.overrides,
            "environment": self.environment,
            "machine": {**self.machine, "device": summaries[0]["device"] if summaries else None},
            "seeds_asked": requested,
            "restarts_allowed": self.restarts,
            "figures": [self._outcome(figure, [self._figures(run).get(figure.key) for run in last])
                        for figure in self.row.figures],
            **{key: spread([summary[key] for summary in summaries])
               for key in ("steps", "seconds", "tokens_per_second")},
            "unit": summaries[0]["unit"] if summaries else None,
            "threads": summaries[0]["threads"] if summaries else None,
            "seeds": [self._seed(attempts) for attempts in self.tried],
        }  # fmt: skip

    def _outcome(self, figure: Figure, values: list[float | None]) -> dict[str, Any]:
        finite = [value for value in values if value is not None]
        published = [
            {
                "value": each.value,
                "note": each.note,
                "source": each.source,
                "address": SOURCES[each.source][1],
            }
            for each in figure.published
        ]
        return {
            "key": figure.key,
            "what": figure.what,
            "better": figure.better,
            "published": published,
            "goal": figure.goal,
            "ours": spread(finite),
            "seeds": len(values),
            "reached": sum(figure.reached(value) for value in values),
        }

    def _seed(self, attempts: list[Run]) -> dict[str, Any]:
        return {
            "seed": attempts[0].seed,
            "status": attempts[-1].status,
            "reached": not self._missed(attempts[-1]),
            "restarts": len(attempts) - 1,
            "attempts": [self._attempt(run) for run in attempts],
        }

    def _attempt(self, run: Run) -> dict[str, Any]:
        if run.summary is None:
            return {"seed": run.seed, "status": run.status, "message": run.message}
        kept = ("best_step", "stopped_by", "steps", "seconds", "tokens_per_second", "parameters", "processes")
        kept_figures = {"figures": self._figures(run), **{key: run.summary[key] for key in kept}}
        return {"seed": run.seed, "status": run.status, **kept_figures}


def spread(values: Sequence[float]) -> dict[str, float | None] | None:
    """Mean, minimum, maximum and, for two or more, the sample standard deviation; None without values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    summary = {"mean": statistics.fmean(values), "min": min(values), "max": max(values), "std": deviation}
    return {key: None if value is None else float(f"{value:.9g}") for key, value in summary.items()}


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
