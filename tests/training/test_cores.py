"""Which cores the processes of a host compute on, and that gloo's threads let them."""

import json
import os
import subprocess
import sys
import threading

import pytest

from prnn import error_messages
from prnn.training import cores
from tests import warm


def test_threads_that_cannot_be_started_are_an_error_before_openmp_ends_the_process(monkeypatch):
    start, running = threading.Thread.start, []

    def limited(thread):
        if len(running) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)
        running.append(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert cores.set_threads(3, local_size=1) == 3
    running.clear()
    with pytest.raises(RuntimeError) as caught:
        cores.set_threads(4, local_size=1)
    assert not any(thread.is_alive() for thread in running)
    assert "trainer.threads" in str(error_messages.out_of_memory(caught.value))


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
        ({0, 1, 2, 4, 5, 6}, 2, hyperthreads, [{0, 4}, {1, 5, 2, 6}]),
    ],
)
def test_shares_are_whole_cores_side_by_side(cpus, parts, core, expected):
    assert cores.shares(cpus, parts, core) == expected


@pytest.fixture
def masks(monkeypatch):
    """The masks that this process gives itself, the last one last; it is allowed CPUs 0 to 4."""
    found = [set(range(5))]
    monkeypatch.setattr(cores, "allowed", lambda: frozenset(range(5)))
    monkeypatch.setattr(cores, "_core", plain)
    monkeypatch.setattr(cores, "_threads", lambda: iter([7]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: found[-1])
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: found.append(cpus))
    return found


# The smallest share has two.
@pytest.mark.parametrize(("rank", "threads", "bound"), [(0, 2, {0, 1}), (1, 2, {2, 3, 4}), (0, 3, None), (1, 3, None)])
def test_none_is_bound_where_the_threads_of_one_do_not_fit(masks, rank, threads, bound):
    cores.bind(True, rank, 2, threads)
    assert masks[1:] == ([bound] if bound else [])


def test_the_next_job_of_a_sweep_is_not_left_bound(masks):
    for wanted, threads in [(True, 1), (True, 1), (False, 1), (True, 1), (True, 3)]:
        cores.bind(wanted, 0, 2, threads)
    assert masks[1:] == [{0, 1}, set(range(5)), {0, 1}, set(range(5))]


def test_a_system_that_forbids_it_costs_nothing_else(masks, monkeypatch):
    def forbid(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbid)
    cores.bind(True, 0, 2, 1)


def test_one_process_keeps_all_cores(masks):
    cores.bind(True, 0, 1, 1)
    assert len(masks) == 1


def forbidden():
    """Why this system does not let processes be bound and scheduled; None where it does."""
    probe = "import os; c = os.sched_getaffinity(0); os.sched_setaffinity(0, {min(c)})"
    probe += "; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("setting", ["bound", "free"])
def test_two_processes_have_cores_of_their_own_and_calm_readers(tmp_path, setting):
    if (reason := forbidden()) is not None:
        pytest.skip(f"this system binds no processes: {reason}")
    file = tmp_path / "affinity.json"
    statuses, said = warm.run("tests.training.affinity", [([setting, str(file)], env) for env in warm.ranks(2)])
    assert statuses == [0, 0], said
    everything, before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    expected = cores.shares(everything, 2, cores._core) if setting == "bound" else [set(), set()]
    for (mine, readers, own), share in zip(json.loads(file.read_text()), expected, strict=True):
        assert set(mine) == (share or everything)
        # Of DDP's group, and of sharded checkpoints'.
        assert readers == [os.SCHED_BATCH if share and before == os.SCHED_OTHER else before] * 2
        assert own == before
