"""Run a row of ``reproductions.py`` over seeds, and record the results next to the published ones.

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce char_rnn --seeds 3
    python -m benchmarks.reproduce char_rnn --seeds 4,5 trainer.max_epochs=10    # with overrides: a line of its own
    PRNN_BACKEND=torch python -m benchmarks.reproduce char_rnn                   # torch's kernels: likewise

Every seed is a run of ``python -m prnn.train`` under runs/reproduce/, one after the other. Ctrl-C stops with a
checkpoint; the same command resumes from there, and repeats no seed as long as neither the code nor the machine has
changed. A seed that diverges or fails is recorded as such, and the others are run.

``--restarts K``: a seed that misses a goal is run again with another seed (1,000,000 higher each time), up to K times;
the last one counts, and the number of restarts is recorded.

The outcome is appended to benchmarks/results/reproductions.json, and docs/reproductions.md is regenerated; with
``--out FILE`` it is written to that file only.

Exit status: 0 done, even if a goal is missed; 2 for a usage error; 128 + the signal that stopped it.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reproduce import page as reproductions_page
from benchmarks.reproduce import records, reproductions
from benchmarks.reproduce.seeds import MISTAKE, Place, Stopped
from benchmarks.reproduce.sweep import RESTART, Sweep
from prnn.errors import UserError
from prnn.training.interrupts import Interrupts

OURS = ("seed", "run_dir", "resume", "experiment")  # overrides that this command chooses itself


def parse_seeds(text: str) -> list[int]:
    """``3``: seeds 1 to 3. ``4,7``: those two. ``4,``: that one."""
    try:
        seeds = [int(part) for part in text.split(",") if part] if "," in text else list(range(1, int(text) + 1))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or max(seeds) >= RESTART or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of seeds, such as 10, or different seeds below {RESTART:,}, such as 1,2,3"
        )
    return seeds


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="a row of --list")
    parser.add_argument("overrides", nargs="*", help="further overrides of prnn-train, such as trainer.max_epochs=10")
    parser.add_argument("--seeds", type=parse_seeds, default=[1, 2, 3], help="how many, or which: 10, or 1,2,3 (3)")
    parser.add_argument("--restarts", type=int, default=0, metavar="K", help="further tries of a seed that misses (0)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--list", action="store_true", help="the rows, and what each needs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON to append to, instead of the repository's")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return options
    if options.name not in reproductions.ROWS:
        known = ", ".join(reproductions.ROWS)
        parser.error(f"{options.name or 'no name'} is not a reproduction: name one of {known}")
    if options.restarts < 0:
        parser.error(f"--restarts {options.restarts} must be at least 0")
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
            print(f"  {row.name:20} {row.title}\n  {'':20} needs {row.needs}")


def show_plan(sweep: Sweep, wanted: Sequence[int]) -> None:
    overrides = [*sweep.row.overrides, *sweep.overrides]
    for seed in wanted:
        place = Place(sweep.folder, seed)
        done = place.outcome()
        print(
            done.status if done else "to run", shlex.join(["python", "-m", "prnn.train", *place.arguments(overrides)])
        )


@contextmanager
def recorded(sweep: Sweep, command: str, requested: int, out: Path | None) -> Iterator[None]:
    """Record the completed seeds, however the sweep ends."""
    try:
        yield
    finally:
        path = out or records.RECORDS
        if not sweep.tried:
            print("no seed has come to its end: nothing is recorded")
        elif records.append(path, sweep.record(command, requested)):
            print(f"recorded in {path}")
            if out is None:
                reproductions_page.write(path, reproductions_page.PAGE)
                print(f"regenerated: {reproductions_page.PAGE}")
        else:
            print(f"{path} has it already")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(arguments)
    if options.list:
        show_list()
        return 0
    sweep = Sweep(reproductions.ROWS[options.name], options.overrides, options.restarts)
    if options.dry_run:
        show_plan(sweep, options.seeds)
        return 0
    command = shlex.join(["python", "-m", "benchmarks.reproduce", *arguments])
    with Interrupts() as interrupts:
        try:
            records.load(options.out or records.RECORDS)  # fail on an unreadable file before hours of training
            with recorded(sweep, command, len(options.seeds), options.out):
                sweep.train(options.seeds, interrupts, lambda line: print(line, flush=True))
        except (Stopped, KeyboardInterrupt):
            print("stopped: the same command goes on from here", file=sys.stderr)
            return 128 + next(iter(interrupts.received), signal.SIGTERM)
        except UserError as error:
            print(f"reproduce: {error}", file=sys.stderr)
            return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
