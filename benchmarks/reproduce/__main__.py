"""Run rows of ``reproductions.py`` over seeds, and record the results next to the published ones.

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce char_rnn
    python -m benchmarks.reproduce char_rnn --seeds 4,5 trainer.max_epochs=10    # with overrides: a line of its own
    PRNN_BACKEND=torch python -m benchmarks.reproduce char_rnn                   # torch's kernels: likewise
    python -m benchmarks.reproduce --all --budget 2h --resume                    # all rows, the shortest first

Every seed is a run of ``python -m prnn.train`` under runs/reproduce/, one after the other. Ctrl-C stops with a
checkpoint; the same command resumes from there, and repeats no seed as long as neither the code nor the machine has
changed. A seed that diverges or fails is recorded as such, and the others are run.

``--resume``: what is recorded with today's settings is not run again, on whatever machine it was run. A run of a row
that takes half an hour or more is kept under benchmarks/results/reproductions/ROW/ when it is stopped, where its last
and its best checkpoint are less than a megabyte, and goes on from there in another checkout.

``--all``: the rows from the shortest to the longest, on one thread at the lowest priority; several such commands at
once share the work. Rows whose figures are speeds, or what is reached in a given time, need the machine for themselves
and are left to be run by name.

``--restarts K --restart-above LOSS``: a seed whose best validation loss is above LOSS is run again with another seed
(1,000,000 higher each time), up to K times; the last one counts, and the others are recorded. It is refused for rows
that validate on their test data.

Every seed is recorded in benchmarks/results/reproductions/NAME.json as it ends, and docs/reproductions.md is
regenerated at the end; with ``--out FOLDER`` it is recorded in that folder only.

Exit status: 0 done, even if a goal is missed; 2 for a usage error; 128 + the signal that stopped it (SIGTERM's at the
end of the budget).
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce import page as reproductions_page
from benchmarks.reproduce import records, reproductions
from benchmarks.reproduce.rows import Row
from benchmarks.reproduce.seeds import MISTAKE, Busy, Limits, Place, Stopped
from benchmarks.reproduce.sweep import RESTART, Sweep
from prnn.errors import UserError
from prnn.training.interrupts import Interrupts

OURS = ("seed", "run_dir", "resume", "experiment")  # overrides that this command chooses itself
UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_seeds(text: str) -> list[int]:
    """``3``: seeds 1 to 3. ``4,7``: those two. ``4,``: that one."""
    try:
        numbers = [int(part) for part in text.split(",") if part]
    except ValueError:
        numbers = []
    seeds = numbers if "," in text else list(range(1, min(numbers[0], RESTART) + 1)) if numbers else []
    if not seeds or min(seeds) < 0 or max(seeds) >= RESTART or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of seeds, such as 10, or different seeds below {RESTART:,}, such as 1,2,3"
        )
    return seeds


def parse_budget(text: str) -> float:
    """Seconds of ``90m``, ``2h`` or ``1.5h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a time such as 90m or 2h")
    return float(match[1]) * UNITS[match[2]]


def parse_loss(text: str) -> float:
    """A finite number."""
    try:
        loss = float(text)
    except ValueError:
        loss = math.nan
    if not math.isfinite(loss):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, a validation loss")
    return loss


def parse_folder(text: str) -> Path:
    """A folder that is there or can be made."""
    if not text or (Path(text).exists() and not Path(text).is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} must be a folder")
    return Path(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", help="a row of --list")
    add("overrides", nargs="*", help="further overrides of prnn-train, such as trainer.max_epochs=10")
    add("--all", action="store_true", help="every row instead of one")
    add("--seeds", type=parse_seeds, help="how many, or which: 10, or 1,2,3 (those of the row)")
    add("--budget", type=parse_budget, metavar="TIME", help="stop after this time, such as 90m or 2h")
    add("--resume", action="store_true", help="go on from the records and the parked checkpoints")
    add("--restarts", type=int, default=0, metavar="K", help="further tries of a seed (0)")
    add("--restart-above", type=parse_loss, metavar="LOSS", help="of a seed whose validation loss is above this")
    add("--dry-run", action="store_true", help="print what would be run")
    add("--list", action="store_true", help="the rows, and what each needs")
    add("--out", type=parse_folder, metavar="FOLDER", help="the folder to record in, instead of the repository's")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return options
    if options.all and options.name:
        parser.error(f"--all runs every row as it is: leave out {options.name}")
    if not options.all and options.name not in reproductions.ROWS:
        known = ", ".join(reproductions.ROWS)
        given = f"{options.name} is not a reproduction" if options.name else "which row"
        parser.error(f"{given}: name one of {known}, or give --all")
    if options.restarts < 0:
        parser.error(f"--restarts {options.restarts} must be at least 0")
    if (options.restarts > 0) != (options.restart_above is not None):
        parser.error("--restarts and --restart-above need each other: how often, and above which validation loss")
    for override in options.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if "=" not in override or key in OURS:
            why = "is chosen by the row or by --seeds" if key in OURS else "cannot be read: write it as KEY=VALUE"
            parser.error(f"{override} {why}")
    return options


def show_list() -> None:
    for group in reproductions.GROUPS:
        print(f"{group.title}")
        for row in group.rows:
            print(f"  {row.name:20} {row.title}\n  {'':20} {len(row.seeds)} seeds, each {row.needs}")


def show_plan(sweep: Sweep, wanted: Sequence[int]) -> None:
    for seed in wanted:
        place = Place(sweep.runs, seed)
        done = place.outcome()
        recorded = sweep.resume and sweep.recorded(seed)
        status = "recorded" if recorded else done.status if done else "to run"
        print(status, shlex.join(["python", "-m", "prnn.train", *place.arguments(sweep.arguments)]))


def chosen(options: argparse.Namespace) -> list[Row]:
    if not options.all:
        return [reproductions.ROWS[options.name]]
    rows = sorted(reproductions.ROWS.values(), key=lambda row: row.minutes)
    return [row for row in rows if not row.alone]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    if options.list:
        show_list()
        return 0
    if options.all:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.nice(19)
    with Interrupts() as interrupts:
        limits = Limits(interrupts, options.budget)
        try:
            status = run(options, limits)
        except (Stopped, KeyboardInterrupt):
            print("stopped: the same command goes on from here", file=sys.stderr)
            status = 128 + next(iter(limits.signals()), signal.SIGTERM)
    if options.out is None and not options.dry_run:
        try:
            reproductions_page.write()
        except UserError as error:
            print(f"reproduce: {error}", file=sys.stderr)
            return status or MISTAKE
    return status


def run(options: argparse.Namespace, limits: Limits) -> int:
    """Run the rows; a row that cannot be run does not keep the others from it. Raises ``Stopped``."""
    status = 0
    for row in chosen(options):
        try:
            run_row(row, options, limits)
        except UserError as error:
            print(f"reproduce: {row.name}: {error}", file=sys.stderr)
            if not (options.all and isinstance(error, Busy)):  # the other job does it
                status = MISTAKE
    return status


def restarts_refused(sweep: Sweep) -> str | None:
    """Why a seed of the row cannot be restarted by its validation loss, if that is so."""
    if sweep.settings["task.name"] == "irnn_mnist" and not sweep.settings["data.validation"]:
        return "--restarts would go by the test images, on which the row validates: set data.validation."
    return None


def run_row(row: Row, options: argparse.Namespace, limits: Limits) -> None:
    folder = options.out or records.FOLDER
    sweep = Sweep(row, options.overrides, folder, options.restarts, options.restart_above or 0.0, options.resume)
    wanted = options.seeds or row.seeds
    if options.dry_run:
        show_plan(sweep, wanted)
        return
    if options.restarts and (why := restarts_refused(sweep)):
        raise UserError(why)
    records.prepare(folder, row.name)  # fail before hours of training, not after them
    busy: Busy | None = None
    for seed in wanted:
        if options.resume and sweep.recorded(seed):
            continue
        try:
            sweep.train(seed, limits, lambda line: print(line, flush=True))
        except Busy as error:
            busy = error
            continue
    if busy is not None:
        raise busy


if __name__ == "__main__":
    sys.exit(main())
