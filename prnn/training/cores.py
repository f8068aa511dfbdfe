"""The cores of a host and its processes: how many threads each computes with, and on which cores.

Processes that train together wait for each other at every step, so each is as slow as the unluckiest of them. Two
things make it less so where they compute on CPUs (figures in benchmarks/NOTES.md):

- Each process keeps to cores of its own (``bind``), and no two are ever put on one.
- gloo's thread that reads its sockets does not take the core from another when it wakes (``calm_gloo``). Where it does
  so while a thread of its process is sending, it finds the connection locked and asks again and again until the
  scheduler's next tick, up to 4 ms later.

Of a process that is bound whatever it starts is bound too: threads that write checkpoints, W&B's service.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"
_READER = b"gloo_tcp_loop"  # gloo's name for the thread
_TASKS = Path("/proc/self/task")  # the threads of this process


@cache
def allowed() -> frozenset[int]:
    """The CPUs that the launcher has left to this process and its siblings, before ``bind``."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def available() -> int:
    """How many CPUs this process may use, as it is bound now."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None, local_size: int) -> int:
    """Set torch's intra-op threads and return their number.

    torchrun sets OMP_NUM_THREADS=1 for every process it starts unless the user has set it, which leaves
    cores idle. With ``trainer.threads`` null the cores of the node are therefore shared out among its
    processes; a single process keeps torch's own choice, which obeys OMP_NUM_THREADS.
    """
    if threads is None and local_size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        threads = max(1, len(allowed()) // local_size)
    if threads is not None:
        torch.set_num_threads(threads)
    _try_to_start(torch.get_num_threads() - 1)
    return torch.get_num_threads()


def _try_to_start(threads: int) -> None:
    """Start so many threads at once, and end them; RuntimeError where the system does not let so many be.

    OpenMP starts its own at the first parallel region, and ends the process where it cannot.
    """
    started: list[threading.Thread] = []
    end = threading.Event()
    try:
        for _ in range(threads):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()


def bind(wanted: bool, local_rank: int, local_size: int, threads: int) -> None:
    """Keep this process, and the threads it will start, to its share of the cores; or to all again, if not ``wanted``.

    All processes of the host come to the same answer: none is bound where there are fewer cores than processes, or the
    smallest share has fewer CPUs than ``threads``. All must have been left the same CPUs. The next job of a sweep in
    the same process may decide anew.
    """
    if local_size == 1 or not hasattr(os, "sched_setaffinity"):
        return
    parts = shares(allowed(), local_size, _core)
    mine = parts[local_rank] if wanted and min(map(len, parts)) >= max(1, threads) else set(allowed())
    if mine == os.sched_getaffinity(0):
        return
    for thread in list(_threads()) or [0]:
        with suppress(OSError):  # it has ended, or the system forbids it; all that is lost is some speed
            os.sched_setaffinity(thread, mine)


def shares(cpus: Collection[int], parts: int, core: Callable[[int], tuple[int, str]]) -> list[set[int]]:
    """``cpus`` in ``parts``, whole cores that lie side by side; all empty where there are fewer cores than parts.

    ``core`` tells of a CPU its socket and its core: hyperthreads of one core are not shared out among processes.
    """
    cores: dict[tuple[int, str], set[int]] = {}
    for cpu in sorted(cpus):
        cores.setdefault(core(cpu), set()).add(cpu)
    if len(cores) < parts:
        return [set() for _ in range(parts)]
    ordered = [cores[key] for key in sorted(cores, key=lambda key: (key[0], min(cores[key])))]
    bounds = [len(ordered) * part // parts for part in range(parts + 1)]
    return [set().union(*ordered[begin:end]) for begin, end in pairwise(bounds)]


def _core(cpu: int) -> tuple[int, str]:
    try:
        socket = int(Path(_TOPOLOGY.format(cpu, "physical_package_id")).read_text())
        return socket, Path(_TOPOLOGY.format(cpu, "thread_siblings_list")).read_text().strip()
    except (OSError, ValueError):  # a system that does not say
        return 0, str(cpu)


def _threads() -> Iterator[int]:
    with suppress(OSError):  # a system without /proc
        yield from (int(task.name) for task in _TASKS.iterdir())


def calm_gloo() -> None:
    """Let gloo's reading threads wait until a core is free, if this process is bound; for each new process group."""
    if not hasattr(os, "sched_getaffinity") or os.sched_getaffinity(0) == allowed():
        return
    for thread in _threads():
        with suppress(OSError):  # as above
            name = (_TASKS / str(thread) / "comm").read_bytes().strip()
            if name == _READER and os.sched_getscheduler(thread) == os.SCHED_OTHER:
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
