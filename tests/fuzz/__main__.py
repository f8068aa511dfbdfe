"""``python -m tests.fuzz TARGET --seconds 600``: fuzz one target; ``--seed N --trials 1`` repeats one trial."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tests.fuzz.driver import run

NOT_TARGETS = ("__init__", "__main__", "child", "draw", "driver", "rounding", "sanitized")
TARGETS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in NOT_TARGETS and not path.stem.startswith("test_")
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args()
    trials = args.trials if args.trials or args.seconds else 100
    done = run(importlib.import_module(f"tests.fuzz.{args.target}"), args.seed, trials, args.seconds)
    print(f"{args.target}: {done} trials from seed {args.seed}, no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
