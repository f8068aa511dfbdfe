"""CPU threads and CPU affinity of the processes of a host.

Synchronous data-parallel processes wait for each other at every step, so all run at the pace of the slowest. Two
measures reduce this jitter on CPUs (figures in benchmarks/NOTES.md):

- Each process is bound to a disjoint set of cores (``bind``).
- gloo's socket reader thread does not preempt other threads when it wakes (``calm_gloo``). If it preempts a thread of
  its process that is sending, it finds the connection locked and spins until the scheduler's next tick, up to 4 ms
  later.

Threads and child processes inherit the affinity: checkpoint writers, W&B's service.
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
_READER = b"gloo_tcp_loop"  # the name gloo gives the thread
_TASKS = Path("/proc/self/task")  # the threads of this process


@cache
def allowed() -> frozenset[int]:
    """The CPU affinity set by the launcher, shared by this process and its siblings, before ``bind``."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def available() -> int:
    """The number of CPUs in this process's current affinity mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None, local_size: int) -> int:
    """Set torch's intra-op threads and return their number.

    torchrun sets OMP_NUM_THREADS=1 for every process it starts unless the user has set it, which leaves
    cores idle. With ``trainer.threads`` null the cores of the node are therefore divided among its
    processes; a single process keeps torch's default, which follows OMP_NUM_THREADS.
    """
    if threads is None and local_size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        threads = max(1, len(allowed()) // local_size)
    if threads is not None:
        torch.set_num_threads(threads)
    _try_to_start(torch.get_num_threads() - 1)
    return torch.get_num_threads()


def _try_to_start(threads: int) -> None:
    """Start this many threads at once and join them; RuntimeError if the system's thread limit is below that.

    OpenMP starts its threads at the first parallel region, and aborts the process if it cannot.
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
    """Bind this process and its future threads to its share of the cores; unbind it if not ``wanted``.

    All processes of the host decide alike: none is bound if there are fewer cores than processes, or if the smallest
    share has fewer CPUs than ``threads``. All must have been given the same CPUs. The next job of a sweep in the same
    process may change the binding.
    """
    if local_size == 1 or not hasattr(os, "sched_setaffinity"):
        return
    parts = shares(allowed(), local_size, _core)
    local_cpus = parts[local_rank] if wanted and min(map(len, parts)) >= max(1, threads) else set(allowed())
    if local_cpus == os.sched_getaffinity(0):
        return
    for thread in list(_threads()) or [0]:
        with suppress(OSError):  # the thread has ended, or it is not permitted: only speed is lost
            os.sched_setaffinity(thread, local_cpus)


def shares(cpus: Collection[int], parts: int, core: Callable[[int], tuple[int, str]]) -> list[set[int]]:
    """Partition ``cpus`` into ``parts`` of adjacent whole cores; all empty if there are fewer cores than parts.

    ``core`` maps a CPU to its socket and core: hyperthreads of one core go to the same process.
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
    except (OSError, ValueError):  # no topology in sysfs
        return 0, str(cpu)


def _threads() -> Iterator[int]:
    with suppress(OSError):  # no /proc
        yield from (int(task.name) for task in _TASKS.iterdir())


def calm_gloo() -> None:
    """Set gloo's reader threads to SCHED_BATCH if this process is bound; to be called for each new process group."""
    if not hasattr(os, "sched_getaffinity") or os.sched_getaffinity(0) == allowed():
        return
    for thread in _threads():
        with suppress(OSError):  # as above
            name = (_TASKS / str(thread) / "comm").read_bytes().strip()
            if name == _READER and os.sched_getscheduler(thread) == os.SCHED_OTHER:
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
