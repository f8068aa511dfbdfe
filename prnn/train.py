"""``prnn-train``: train whatever task Hydra picks.

    python -m prnn.train task=char_lm model.hidden_size=256 trainer.max_steps=500
    python -m prnn.train --multirun optimizer.lr=1e-3,2e-3
    python -m prnn.train resume=latest
    torchrun --standalone --nproc-per-node=2 -m prnn.train task=char_lm

Exit status: 0 done; 2 a mistake in the command or its data; 1 the loss diverged, or another process died; 130 after
Ctrl-C, 143 after SIGTERM and 138 or 140 after SIGUSR1 or SIGUSR2, with a checkpoint to continue from.

A launcher may choose the run directory, in PRNN_RUN_DIR: the same line started again then goes on with the run in it.
"""

from __future__ import annotations

import sys

from prnn import extras

extras.require("prnn-train")

from prnn import importing
from prnn.terminal import prepare_streams


def main() -> int:
    """Run the command line; returns the exit status."""
    prepare_streams()
    from prnn import command_help

    if command_help.is_asked(sys.argv[1:]):  # answered without torch, which takes seconds to import
        return command_help.answer(sys.argv[1:])
    with importing.quickly():
        from prnn import job
    return job.main()


if __name__ == "__main__":
    sys.exit(main())
