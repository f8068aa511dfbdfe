"""Which cores the processes of a host compute on, and that gloo's threads let them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prnn.training import cores

ROOT = Path(__file__).resolve().parents[2]

# Each process tells its own cores, and how gloo's reading threads are scheduled.
TELL = """
import json, os, sys
from pathlib import Path
from prnn.config import DistributedConfig, TrainerConfig
from prnn.training import cores, distributed
from prnn.training.sharded import Writer
world = distributed.setup(DistributedConfig(bind_cores=sys.argv[1] == "bound"), TrainerConfig(device="cpu", threads=1))
Writer(Path(sys.argv[2]), world, 60.0)
tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().strip() == "gloo_tcp_loop"]
policies = [os.sched_getscheduler(int(task.name)) for task in tasks]
told = world.gather((sorted(os.sched_getaffinity(0)), policies, os.sched_getscheduler(0)))
if world.is_main:
    print(json.dumps(told))
distributed.leave(0)
"""


def test_threads_are_shared_out_where_torchrun_leaves_them_idle(monkeypatch):
    monkeypatch.setattr(cores, "allowed", lambda: frozenset(range(6)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores.set_threads(None, local_size=2) == 3
    assert cores.set_threads(2, local_size=2) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's word
    assert cores.set_threads(None, local_size=2) == 2


def plain(cpu):
    return 0, str(cpu)


def hyperthreads(cpu):
    """Two sockets of two cores of two threads, numbered as Linux does: the second threads of all cores come last."""
    return cpu % 4 // 2, f"{cpu % 4},{cpu % 4 + 4}"


@pytest.mark.parametrize(
    ("cpus", "parts", "core", "expected"),
    [
        (range(4), 2, plain, [{0, 1}, {2, 3}]),
        (range(5), 2, plain, [{0, 1}, {2, 3, 4}]),
        ({1, 7, 9}, 3, plain, [{1}, {7}, {9}]),
        (range(2), 3, plain, [set(), set(), set()]),
        (range(8), 2, hyperthreads, [{0, 4, 1, 5}, {2, 6, 3, 7}]),
        (range(8), 4, hyperthreads, [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        (range(8), 8, hyperthreads, [set()] * 8),
        ({0, 2, 4, 6}, 2, hyperthreads, [{0, 4}, {2, 6}]),
    ],
)
def test_shares_are_whole_cores_side_by_side(cpus, parts, core, expected):
    assert cores.shares(cpus, parts, core) == expected


@pytest.mark.parametrize(("threads", "bound"), [(1, {2, 3}), (2, {2, 3}), (3, None)])
def test_a_share_smaller_than_the_threads_binds_nothing(monkeypatch, threads, bound):
    monkeypatch.setattr(cores, "allowed", lambda: frozenset(range(4)))
    monkeypatch.setattr(cores, "_core", plain)
    found = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: found.append(cpus))
    cores.bind(1, 2, threads)
    assert found == ([bound] if bound else [])


def test_one_process_keeps_all_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pytest.fail("it was bound"))
    cores.bind(0, 1, 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no processes to cores")
@pytest.mark.parametrize("setting", ["bound", "free"])
def test_two_processes_have_cores_of_their_own_and_calm_readers(tmp_path, setting):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (tmp_path / "tell.py").write_text(TELL)
    done = subprocess.run(
        [*command, str(tmp_path / "tell.py"), setting, str(tmp_path)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (one, readers, own), (other, _, _) = json.loads(done.stdout)
    everything = sorted(os.sched_getaffinity(0))
    if setting == "free" or len(everything) < 2:
        assert one == other == everything
    else:
        assert not set(one) & set(other)
        assert sorted(one + other) == everything
    assert readers == [os.SCHED_BATCH] * 2  # DDP's group, and that of sharded checkpoints
    assert own == os.SCHED_OTHER
