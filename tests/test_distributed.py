"""Two processes on gloo: the same curve as one, one run directory, and whatever befalls one rank stops both.

Starting two processes takes seconds, so a pair works through several jobs, one after the other.
"""

import gc
import signal
import threading
import time
import warnings
import weakref
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from prnn import train as train_command
from prnn.config import DistributedConfig, TrainerConfig
from prnn.error_messages import PeerLost
from prnn.errors import AgreedError, UserError
from prnn.ops import BackendError
from prnn.training import checkpoint, distributed, evaluate, step
from prnn.training.interrupts import SIGNALS, Interrupts
from prnn.training.observe.activity import Activity
from tests import warm
from tests.training import toy_task
from tests.training.observe.test_record import wandb_ids
from tests.training.test_loop import assert_same_bits, losses, records, train

# One worker runs them all: they share what the processes of a fixture did.
pytestmark = [pytest.mark.slow(seconds=120), pytest.mark.xdist_group("distributed")]
STEPS = {"max_steps": 16, "dropout": 0.3, "log_every": 3}
# What rank 0 is at, and for long, while rank 1 waits and gets the signal.
SLOW = {
    "in_sample": {"signal_at": 15, "sample_seconds": 40.0},
    "in_test": {"signal_at": 15, "test_seconds": 40.0},
    "in_save": {"signal_at": 9, "save_seconds": 1.5},
}


def words(**settings):
    return [f"{key}={value!r}" for key, value in settings.items()]


def pair(*jobs):
    return team(2, *jobs)


def team(size, *jobs):
    """Run the jobs, lists of toy_task's arguments, on so many processes; their exit statuses and all they said."""
    arguments = [word for job in jobs for word in ("--", *map(str, job))][1:]
    return warm.run("tests.training.toy_task", [(arguments, environment) for environment in warm.ranks(size)])


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """What the first pair did: its run directories, by name, and its output."""
    root = tmp_path_factory.mktemp("pair")
    statuses, said = pair(
        [root / "micro", *words(max_steps=50, uneven=True, clip_norm=0.3, accumulate=2)],
        [root / "straight", *words(**STEPS)],
        [root / "curve", *words(max_steps=50, uneven=True, clip_norm=0.3, eval_every=10, wandb=True)],
        [root / "nan", *words(nan_at=7, nan_rank=1)],
        [root / "term", *words(signal_at=8, nan_rank=1, signal=int(signal.SIGTERM), **STEPS)],
        [root / "in_eval", *words(signal_at=8, nan_rank=1, signal=int(signal.SIGUSR1), signal_in_eval=True, **STEPS)],
        [root / "alone", *words(signal_at=3, nan_rank=1, signal_in_eval=True, eval_seconds=4.0, **STEPS)],
        *([root / name, *words(nan_rank=1, signal_delay=0.7, **{**STEPS, **SLOW[name]})] for name in SLOW),
        [root / "seconds", *words(max_steps=None, max_seconds=0.05)],
    )
    assert statuses == [1, 1], said  # the worst of its jobs: the one that met NaN
    return root, said


@pytest.mark.parametrize("name", ["curve", "micro"])
def test_the_curve_at_equal_global_batch_is_a_single_processs(jobs, tmp_path, name):
    root, _ = jobs
    train(tmp_path, max_steps=50, uneven=True, clip_norm=0.3, eval_every=10)
    for kind in ("train", "val"):
        [mine, theirs] = [dict(losses(run_dir, kind)) for run_dir in (root / name, tmp_path)]
        shared = mine.keys() & theirs.keys()
        assert len(shared) >= (50 if kind == "train" else 5)
        assert [mine[step] for step in shared] == pytest.approx([theirs[step] for step in shared], abs=1e-4)
    assert records(root / name)[0]["tokens"] == records(tmp_path)[0]["tokens"]


def test_one_run_directory_one_wandb_run_and_only_rank_0_speaks(jobs):
    root, said = jobs
    steps = [step for step, _ in losses(root / "curve")]
    assert steps == list(range(1, 51))
    assert len(wandb_ids(root / "curve")) == 1
    assert len(list((root / "curve" / "wandb").glob("offline-run-*"))) == 1
    assert {path.name for path in root.iterdir()} == {
        "curve", "micro", "straight", "nan", "term", "in_eval", "alone", "seconds", *SLOW,
    }  # fmt: skip
    assert said.count("step 1  epoch 0") == 8 + len(SLOW)


def test_a_logger_is_imported_only_when_asked_for_and_only_on_rank_0(jobs):
    _, said = jobs
    for rank in (0, 1):
        assert f"straight rank {rank} imported []," in said
    assert "curve rank 0 imported ['wandb']," in said
    assert "curve rank 1 imported []," in said


def test_nan_on_one_rank_stops_both_before_the_update(jobs):
    root, said = jobs
    for rank in (0, 1):
        assert f"nan rank {rank}: the loss is not finite at step 8" in said
    assert checkpoint.read(root / "nan").step == 5


@pytest.mark.parametrize(("name", "number"), [("term", signal.SIGTERM), ("in_eval", signal.SIGUSR1)])
def test_a_signal_to_one_rank_stops_both_at_the_same_step(jobs, name, number):
    root, said = jobs
    last = 9 if name == "term" else 10
    for rank in (0, 1):
        assert f"{name} rank {rank}: signal {int(number)} {last}\n" in said
    assert checkpoint.read(root / name).step == last


def test_a_signal_to_a_rank_without_validation_data_stops_the_one_that_reads_it(jobs):
    root, said = jobs
    for rank in (0, 1):
        assert f"alone rank {rank}: signal {int(signal.SIGTERM)} 5\n" in said
    [evaluated] = [int(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "alone rank 0 imported" in line]
    assert 0 < evaluated < 20  # rank 0 heard of it in the middle
    assert checkpoint.read(root / "alone").step == 5


@pytest.mark.parametrize("name", SLOW)
def test_a_signal_to_a_rank_that_waits_for_rank_0_stops_both_at_once(jobs, name):
    root, said = jobs
    last = 10 if name == "in_save" else 16
    for rank in (0, 1):
        assert f"{name} rank {rank}: signal {int(signal.SIGTERM)} {last}\n" in said
    assert checkpoint.read(root / name).step == last
    [line] = [line for line in said.splitlines() if f"{name} rank 0 sampled and tested for" in line]
    assert float(line.split()[-2]) < 20  # of 40


def test_during_a_long_validation_the_ranks_meet_long_before_a_collective_times_out(monkeypatch):
    clock, met = [0.0], [0.0]  # of the rank that reads: now, and when it met the other
    monkeypatch.setattr("time.monotonic", lambda: clock[-1])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.append(clock[-1] + seconds))

    class Two(distributed.World):
        def all_sum(self, values):  # the other rank has had no data from the beginning
            met.append(clock[-1])
            return [values[0] + 1, *values[1:]]

        def gather(self, value):
            return [value, ({}, 0, [0.0] * len(SIGNALS))]

    cfg = toy_task.toy_config(eval_seconds=20.0, timeout_seconds=4.0)
    task = toy_task.ToyTask(cfg)
    model = task.build_model()
    figures = evaluate.evaluate(cfg, task, model, Two(size=2), Interrupts(), Activity())
    assert task.evaluated == 20
    assert max(b - a for a, b in pairwise(met)) <= cfg.distributed.timeout_seconds / 2
    alone = evaluate.evaluate(cfg, task, model, distributed.World(), Interrupts(), Activity())
    assert alone == figures


def test_ddp_does_not_send_buffers_at_every_step(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with warnings.catch_warnings(action="error"):
            world = distributed.World(size=2, backend="gloo")
            net = step.wrap(torch.nn.BatchNorm1d(2), toy_task.toy_config(), world)
        assert not net.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()


def test_a_lost_peer_does_not_promise_a_checkpoint():
    assert "the last checkpoint, if one was written" in str(PeerLost("Connection closed by peer"))
    assert "a word ...);" in str(PeerLost("a word " * 100))  # not cut within one
    assert "ed by peer)" in str(PeerLost(f"[gloo/transport/tcp/pair.cc:547] {'x' * 100} closed by peer"))
    assert PeerLost("")


def test_a_limit_in_seconds_ends_all_ranks_at_the_same_step(jobs):
    _, said = jobs
    [first, second] = [
        line.rsplit(" ", 1)[1] for line in said.splitlines() if line.startswith("seconds rank") and ":" in line
    ]
    assert first == second


def test_kill_9_of_one_rank_and_resume_gives_the_same_bits(jobs, tmp_path):
    root, _ = jobs
    statuses, said = pair([tmp_path / "cut", *words(signal_at=12, nan_rank=1, signal=int(signal.SIGKILL), **STEPS)])
    assert statuses == [1, -signal.SIGKILL]
    assert "another process of this job was lost" in said
    assert checkpoint.read(tmp_path / "cut").step == 10
    statuses, said = pair(
        [tmp_path / "cut", "resume", *words(**STEPS)],
        [root / "term", "resume", *words(**STEPS)],
        [root / "in_eval", "resume", *words(**STEPS)],
        *([root / name, "resume", *words(**STEPS)] for name in SLOW),
    )
    assert statuses == [0, 0], said
    for run_dir in (tmp_path / "cut", root / "term", root / "in_eval", *(root / name for name in SLOW)):
        assert_same_bits(root / "straight", run_dir)


def test_a_run_of_two_processes_goes_on_with_one_and_says_so(jobs, tmp_path, capsys):
    root, _ = jobs
    train(root / "straight", resume=True, **{**STEPS, "max_steps": 18})
    assert "written by 2 processes, this job has 1" in capsys.readouterr().out
    assert checkpoint.read(root / "straight").step == 18


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_restarted_job_does_not_find_the_addresses_of_its_former_life(monkeypatch, nodes):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, store, **settings: stores.append(store))
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    environment = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2 // nodes}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        distributed.setup(DistributedConfig(bind_cores=False), TrainerConfig(threads=1, device="cpu"))
    stores[0].set("address", "127.0.0.1:7")
    assert stores[0].get("address") == b"127.0.0.1:7"  # the server has it by now
    # The agents of several nodes do not count the same restarts: their processes would never meet.
    assert stores[1].check(["address"]) == (nodes == 2)


def test_a_backend_that_refuses_rank_0_alone_is_no_agreed_error(monkeypatch):
    """The others do not come upon it: rank 0 must not wait for them on its way out."""
    task = toy_task.ToyTask(cfg := toy_task.toy_config())

    def refuse(*arguments):
        raise BackendError("the backend 'cpu' was forced, but it does not run this")

    monkeypatch.setattr(task, "sample", refuse)
    with pytest.raises(UserError, match="unset PRNN_BACKEND") as told:
        evaluate.sample(cfg, task, task.build_model(), distributed.World(), Interrupts(), 1)
    assert not isinstance(told.value, AgreedError)


def test_settings_this_machine_cannot_follow_are_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.device=cuda"):
        distributed.setup(DistributedConfig(), TrainerConfig(device="cuda"))
    with pytest.raises(UserError, match="nccl needs GPUs"):
        distributed.choose_backend("nccl", distributed.CPU)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UserError, match="RANK=first"):
        distributed.environment()
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():  # without LOCAL_RANK
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"process 3 of 2 on this host \(LOCAL_RANK"):
        distributed.environment()


@pytest.mark.parametrize(("rank", "status", "waits"), [("0", 2, 0), ("1", 2, 1), ("1", 0, 0)])
def test_where_all_give_up_before_they_have_met_rank_0_speaks_first(monkeypatch, rank, status, waits):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.leave(status)
    assert len(slept) == waits


def test_what_holds_the_group_in_a_cycle_is_freed_before_it_is_given_up(monkeypatch):
    class Net:
        def __init__(self):
            self.itself = self

    gone = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: gone.append(alive() is None))
    gc.disable()  # or it might be freed before its time
    try:
        alive = weakref.ref(Net())
        distributed.leave(0)
    finally:
        gc.enable()
    assert gone == [True]


def test_nothing_holds_the_network_of_a_job_that_has_ended(jobs):
    _, said = jobs
    assert said.count("no network is left") == 2  # one of the jobs met NaN, in the middle of a step


def test_a_rank_without_validation_data_moves_as_long_as_the_others_do(monkeypatch):
    moved, met = [], []

    class Two(distributed.World):
        def all_sum(self, values):  # the other rank is through at the third meeting
            met.append(1)
            return [values[0] + (len(met) == 3), *values[1:]]

        def gather(self, value):
            return [value, ({"loss": 3.0}, 2, [0.0] * len(SIGNALS))]

    monkeypatch.setattr(Activity, "move", lambda self: moved.append(1))
    cfg = toy_task.toy_config(eval_seconds=1.0)  # all of it is rank 0's
    task = toy_task.ToyTask(cfg)
    figures = evaluate.evaluate(cfg, task, task.build_model(), Two(rank=1, size=2), Interrupts(), Activity())
    assert figures == {"loss": 1.5} and len(moved) == 3


def test_a_ctrl_c_that_another_process_passed_on_may_come_here_too():
    with Interrupts(speak=False) as interrupts:
        passing = threading.Thread(target=interrupts.pass_on, args=(signal.SIGINT,))
        passing.start()
        passing.join()
        time.sleep(0.01)  # the signal reaches the main thread
        assert signal.SIGINT in interrupts.received
        signal.raise_signal(signal.SIGINT)  # the same Ctrl-C, a little later
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # a second one


def test_hydra_s_mistakes_too_are_left_to_rank_0_to_tell(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["prnn-train", "modle.x=3"])
    assert (train_command.main(), slept) == (2, [distributed.REPORT_SECONDS])


def test_torchrun_s_report_of_a_failure_ends_with_our_sentence(tmp_path, monkeypatch, capsys):
    """As torchrun's agent reads the file of a process, and formats it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    monkeypatch.setattr("sys.argv", ["prnn-train", "modle.x=3"])
    assert train_command.main() == 2
    sentence = capsys.readouterr().err.strip()
    assert sentence.startswith("prnn: modle.x is not a setting")
    said = str(ChildFailedError("prnn.train", {0: ProcessFailure(0, 1234, 2, str(path))}))
    assert said.splitlines()[-2].strip() == f"traceback : {sentence}"
