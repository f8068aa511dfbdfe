"""The CPU affinity and scheduling policy of a process, and the policies of gloo's reader threads.

``sys.argv``: "bound" or "free", and the JSON file into which rank 0 writes those of all ranks.
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
    gathered = world.gather((sorted(os.sched_getaffinity(0)), policies, os.sched_getscheduler(0)))
    if world.is_main:
        Path(file).write_text(json.dumps(gathered))
    distributed.leave(0)
    return 0
