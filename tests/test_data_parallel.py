"""Settings of data parallelism on two and three processes: uneven shares, hooks, ZeRO, and a changing number of them.

Starting processes takes seconds, so a team works through many jobs. Nothing here divides by three.
"""

import time

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from prnn.task import Position, Shard
from prnn.training import checkpoint, step
from prnn.training.compression import Compression
from prnn.training.distributed import World
from prnn.training.exposed import Exposed
from prnn.training.interrupts import SIGNALS
from prnn.training.observe.activity import Activity
from tests.test_distributed import team, words
from tests.training.test_loop import assert_same_bits, losses, records, train
from tests.training.toy_task import ToyTask, toy_config

# One worker runs them all: they share what the processes of a fixture did.
pytestmark = [pytest.mark.slow(seconds=80), pytest.mark.xdist_group("data_parallel")]
CURVE = {"max_steps": 20, "uneven": True, "clip_norm": 0.3}
EXACT = {"max_steps": 20, "dropout": 0.3, "eval_every": 3, "sample_every": 9}  # what the end at step 9 does anyway
POWER = {"comm_hook": "powersgd", "powersgd_start_step": 3}
# The gradient of its sum over 2,400 predictions is beyond float16.
LARGE = {"max_steps": 3, "batch_size": 400, "noise": 300.0, "clip_norm": None}
# What the curve may differ by from a single process's.
HOOKS = {"bf16": 5e-3, "fp16": 1e-4, "powersgd": 5e-2}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    root = tmp_path_factory.mktemp("team")
    statuses, said = team(2, [root / "elastic", *words(**{**CURVE, "max_steps": 6})],
                          [root / "fewer", *words(**{**EXACT, **POWER, "max_steps": 9})])  # fmt: skip
    assert statuses == [0, 0], said
    statuses, said = team(
        3,
        [root / "elastic", "resume", *words(**{**CURVE, "max_steps": 13})],
        [root / "fewer", "resume", *words(**{**EXACT, **POWER})],
        [root / "plain", *words(**CURVE)],
        [root / "micro", *words(micro_batch_size=2, **CURVE)],
        [root / "few", *words(batch_size=2, accumulate=2, **CURVE)],
        [root / "static", *words(batch_size=2, static_graph=True, gradient_as_bucket_view=False, **CURVE)],
        [root / "zero", *words(zero=True, **CURVE)],
        *([root / hook, *words(comm_hook=hook, powersgd_start_step=3, **CURVE)] for hook in HOOKS),
        [root / "large", *words(comm_hook="fp16", **LARGE)],
        [root / "straight", *words(zero=True, **EXACT, **POWER)],
        [root / "cut", *words(zero=True, **{**EXACT, **POWER, "max_steps": 9})],
        [root / "cut", "resume", *words(zero=True, **EXACT, **POWER)],
        [root / "shards", *words(zero=True, checkpoint_format="sharded", **{**EXACT, **POWER, "max_steps": 9})],
        [root / "shards", "resume", *words(zero=True, checkpoint_format="sharded", **EXACT, **POWER)],
    )
    assert statuses == [0, 0, 0], said
    return root, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A single process's runs, by batch size."""
    root = tmp_path_factory.mktemp("alone")
    for batch_size in (2, 8):
        train(root / str(batch_size), batch_size=batch_size, **CURVE)
    train(root / "large", **LARGE)
    return root


@pytest.mark.parametrize(("name", "batch_size"), [("plain", 8), ("micro", 8), ("zero", 8), ("few", 2), ("static", 2)])
def test_the_curve_is_a_single_processs_though_nothing_divides(jobs, alone, name, batch_size):
    root, _ = jobs
    for kind in ("train", "val"):
        mine, theirs = dict(losses(root / name, kind)), dict(losses(alone / str(batch_size), kind))
        assert len(theirs) == (20 if kind == "train" else 4)
        assert mine == pytest.approx(theirs, rel=1e-6)
    assert records(root / name)[-1]["grad_norm"] == pytest.approx(records(alone / str(batch_size))[-1]["grad_norm"])


def test_the_optimizers_state_shared_out_changes_no_bit(jobs):
    root, _ = jobs
    assert_same_bits(root / "plain", root / "zero")


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_changes_the_curve_a_little_and_all_processes_alike(jobs, alone, hook):
    root, said = jobs
    mine, theirs = (dict(losses(run)) for run in (root / hook, alone / "8"))
    assert mine == pytest.approx(theirs, abs=HOOKS[hook])
    assert mine != theirs
    weights = [line for line in said.splitlines() if line.startswith(f"{hook} rank") and " weights " in line]
    assert len(weights) == 3
    assert len({line.split(" weights ")[1] for line in weights}) == 1


def test_float16_holds_the_gradient_of_a_sum_that_is_beyond_its_range(jobs, alone):
    root, _ = jobs
    mine, theirs = (records(run / "large") for run in (root, alone))
    assert theirs[0]["grad_norm"] * 2400 > torch.finfo(torch.float16).max
    assert [r["grad_norm"] for r in mine] == pytest.approx([r["grad_norm"] for r in theirs], rel=3e-3)


def test_the_agreement_that_a_hook_wants_counts_as_exposed(monkeypatch):
    class Two(World):
        def all_sum(self, values):
            return values

    activity, phases = Activity(), []
    task = ToyTask(cfg := toy_config())
    # Without DDP: where its hook is Python, torch hangs now and then when a process gives up its group and lives on.
    stepper = step.Stepper(cfg, task, task.build_model(), World(), activity)
    stepper.world = Two(size=2)

    def slow(predictions):
        phases.append(activity.phase)
        time.sleep(0.3)
        return 1.0

    monkeypatch.setattr(stepper.hook, "wants_mean", True)
    monkeypatch.setattr(stepper.hook, "loss_scale", slow)
    [batch] = next(task.train_batches(Shard(0, 1), Position()))
    assert stepper.run(1, [batch], 0.01, 0.0, [0.0] * len(SIGNALS)).exposed > 0.3
    assert phases == ["agreement"]


def test_what_powersgd_left_out_is_shared_by_another_number_and_dropped_with_other_buckets(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        cfg, world = toy_config(comm_hook="powersgd"), World(size=2, backend="gloo")
        hook = Compression(
            step.wrap(ToyTask(cfg).build_model(), cfg, world), cfg.distributed, world, Exposed(world.device)
        )
        states = [{**hook.state_dict(), "iter": 7, "error": {0: torch.full((3,), float(i))}} for i in (1, 2, 6)]
        assert not hook.load_state_dicts([])
        assert not hook.load_state_dicts([{}, {}])
        assert not hook.load_state_dicts([{**state, "backend": "nccl"} for state in states])
        assert hook.load_state_dicts(states[:2])
        assert hook.state_dict()["error"][0].tolist() == [1.0] * 3  # rank 0's own
        assert hook.load_state_dicts(states)
        assert (hook.state_dict()["iter"], hook.state_dict()["error"][0].tolist()) == (7, [3.0] * 3)
    finally:
        dist.destroy_process_group()


def test_three_processes_resume_to_the_bit_with_dropout_powersgd_and_zero(jobs):
    root, _ = jobs
    assert_same_bits(root / "straight", root / "cut")
    [left_out, *_] = [rank["hook"]["error"][0] for rank in checkpoint.read(root / "cut").state["ranks"]]
    assert left_out.abs().max() > 0


def test_all_processes_write_their_share_and_any_number_of_them_reads_it(jobs):
    root, _ = jobs
    assert_same_bits(root / "straight", root / "shards")
    loaded = checkpoint.read(root / "shards")
    written = [set(safetensors.torch.load_file(path)) for path in sorted(loaded.path.glob("shard-*.safetensors"))]
    assert len(written) == 3
    assert sum(map(len, written)) == len(set.union(*written)) == 3 * len(loaded.model_state)  # Adam has two averages
    assert train(root / "shards", resume=True, **{**EXACT, "max_steps": 22}).step == 22
    assert checkpoint.read(root / "shards").manifest["format"] == checkpoint.FORMAT


def test_two_three_and_one_process_take_turns_at_one_curve(jobs, alone, capsys):
    root, said = jobs
    assert "written by 2 processes, this job has 3" in said
    train(root / "elastic", resume=True, **CURVE)
    assert "written by 3 processes, this job has 1" in capsys.readouterr().out
    assert dict(losses(root / "elastic")) == pytest.approx(dict(losses(alone / "8")), rel=1e-6)
    mine, theirs = dict(losses(root / "elastic", "val")), dict(losses(alone / "8", "val"))
    assert set(mine) - set(theirs) == {6, 13}  # where it was stopped
    assert {step: mine[step] for step in theirs} == pytest.approx(theirs, rel=1e-6)
    mine, theirs = (dict(checkpoint.read(run).model_state) for run in (root / "elastic", alone / "8"))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_what_powersgd_has_left_out_is_not_lost_with_another_number_of_processes(jobs):
    root, said = jobs
    assert "powersgd state is reset" not in said
    assert {rank["hook"]["iter"] for rank in checkpoint.read(root / "fewer").state["ranks"]} == {20}
