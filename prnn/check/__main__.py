"""Check a cell or a recurrent module against its equations, and print a table.

    python -m prnn.check mypackage.cells:lif
    python -m prnn.check prnn.nn.GRU --hidden-size 33
    python -m prnn.check torch.nn:LSTM --dtype bfloat16

Exit status: 0 if every row passed or is not supported, 1 if one failed, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from prnn import importing
from prnn.check import check
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.terminal import put


def find(name: str) -> Any:
    """The object of ``package.module:name`` or ``package.module.name``; UserError where there is none."""
    path, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not all(part.isidentifier() for part in f"{path}.{attribute}".split(".")):
        raise UserError(f"{name!r} names no cell or module: expected package.module:name.")
    return importing.find(path, attribute, f"{name!r} cannot be checked")


def main(argv: list[str] | None = None) -> int:
    """The command ``python -m prnn.check``."""
    parser = argparse.ArgumentParser(prog="python -m prnn.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", help="package.module:name of a cell, a module or a class of modules")
    parser.add_argument("--input-size", type=int, help="of the modules that are made (5)")
    parser.add_argument("--hidden-size", type=int, default=17, help="of the modules that are made (17)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of weights and values (0)")
    failed: list[str] = []

    def command(words: list[str]) -> None:
        arguments = parser.parse_args(words)
        report = check(
            find(arguments.target),
            input_size=arguments.input_size,
            hidden_size=arguments.hidden_size,
            dtype=getattr(torch, arguments.dtype),
            seed=arguments.seed,
        )
        put(str(report))
        failed.extend(report.failed or ([] if report.ok else ["nothing was compared"]))

    status = run_command(argv, parser.format_help, command, "lower --hidden-size", "make it readable")
    return status or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
