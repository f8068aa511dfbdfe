"""A process that tells its own cores, and how gloo's reading threads are scheduled: rank 0 writes what all have told.

As ``sys.argv``: bound or free, and the file.
"""

import json
import os
import sys
from pathlib import Path

from prnn.config import DistributedConfig, TrainerConfig
from prnn.training import cores, distributed
from prnn.training.checkpoint.sharded import Writer


def main() -> int:
    setting, file = sys.argv[1:]
    config = DistributedConfig(bind_cores=setting == "bound")
    world = distributed.setup(config, TrainerConfig(device="cpu", threads=1))
    Writer(world, 60.0)  # has a group of its own
    names = {thread: Path(f"/proc/{thread}/comm").read_text().strip() for thread in cores._threads()}
    policies = [os.sched_getscheduler(thread) for thread, name in names.items() if name == "gloo_tcp_loop"]
    told = world.gather((sorted(os.sched_getaffinity(0)), policies, os.sched_getscheduler(0)))
    if world.is_main:
        Path(file).write_text(json.dumps(told))
    distributed.leave(0)
    return 0
