"""The table of the jobs of a sweep, from their directories: they may have run in other processes."""

from __future__ import annotations

from pathlib import Path

from prnn.errors import UserError
from prnn.manage import listing, text
from prnn.manage.text import Table
from prnn.reporting.numbers import duration, exact
from prnn.training import run_dir, run_names


def summary(folder: Path) -> list[str]:
    """The lines of the table of the jobs in ``folder``, and of the best of them; none where there are no jobs."""
    found = run_names.discover(folder)
    jobs = [listing.entry(found[name], name) for name in sorted(found, key=run_names.natural)]
    if not jobs:
        return []
    swept = _swept([_overrides(job.path) for job in jobs])
    done = [job for job in jobs if job.loss is not None]
    comparable = len({job.task for job in jobs}) == 1  # losses of different tasks are not
    best = min(done, key=lambda job: job.loss or 0.0, default=None) if comparable and len(done) > 1 else None
    rows = [
        [
            "*" if job is best else "",
            job.name,
            overrides,
            str(job.state),
            text.loss(job.loss),
            exact(job.steps),
            duration(job.seconds),
        ]
        for job, overrides in zip(jobs, swept, strict=True)
    ]
    table = Table(["", "job", "overrides", "state", "best loss", "steps", "time"], rows)
    lines = text.lines(table, text.terminal_width(), ("best loss", "steps", "time"), shortened="state")
    if best is not None:
        lines.append(f"best: {run_dir.name_of(best.path, Path.cwd())}, validation loss {text.loss(best.loss)}")
    return lines


def _overrides(path: Path) -> list[str]:
    try:
        return run_dir.overrides(path)
    except UserError:
        return []


def _swept(overrides: list[list[str]]) -> list[str]:
    """The overrides of each job that not all jobs have."""
    common = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    return [" ".join(each for each in job if each not in common) for job in overrides]
