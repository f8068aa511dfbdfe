"""``python -m tests.several JOBS``: several runs of ``prnn.train``, one after the other, each in a process of its own.

They are forked from one that has imported everything: for most of a small run's time a new process imports torch.
``JOBS`` is JSON: of each run, the environment variables and the overrides. The exit status is the worst.
"""

from __future__ import annotations

import json
import os
import sys

from prnn import train


def run(environment: dict[str, str], overrides: list[str]) -> int:
    """The exit status of a run."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.environ.update(environment)
    sys.argv[1:] = overrides
    sys.exit(train.main())


if __name__ == "__main__":
    sys.exit(max(abs(run(*job)) for job in json.loads(sys.argv[1])))
