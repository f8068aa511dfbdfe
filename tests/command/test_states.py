"""The state of a run after its end, and the message of a resume at its limit."""

import signal
from pathlib import Path

import pytest

from prnn import job
from prnn.tasks.char_lm import CharLM
from prnn.training import checkpoint
from prnn.training.observe import run_state
from tests.command.small import runs

pytestmark = pytest.mark.slow(seconds=5)


@pytest.fixture
def at_loss(monkeypatch):
    """Let something happen each time that the model computes a loss."""

    def at_loss(act):
        loss = CharLM.loss

        def acting(*arguments, **settings):
            act()
            return loss(*arguments, **settings)

        monkeypatch.setattr(CharLM, "loss", acting)

    return at_loss


def state():
    [path] = runs()
    return str(run_state.read(path))


def test_a_run_that_reached_a_limit_is_done_and_says_so_again(call):
    assert call()[0] == 0
    assert state() == "done (max_steps)"
    [path] = runs()
    status, out, err = call(f"resume={path.name}", small=False)
    assert status == 0 and "done at step 6 (max_steps)" in out
    told = "prnn: the run had already reached trainer.max_steps=6; to go on, give another, as in"
    assert err == f"{told} resume={path} trainer.max_steps=12\n"
    status, out, err = call("resume=char_lm", "trainer.max_steps=8", small=False)
    assert (status, err) == (0, "") and "done at step 8" in out and len(runs()) == 1


def test_a_run_that_a_signal_stopped_names_it(call, at_loss):
    at_loss(lambda: signal.raise_signal(signal.SIGTERM))
    assert call()[0] == 143
    assert state() == "stopped (SIGTERM)" and checkpoint.listing(runs()[0])


def test_a_run_that_ctrl_c_stopped_twice_has_no_checkpoint_to_speak_of(call, at_loss):
    at_loss(lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    status, _, err = call()
    assert status == 130 and err.endswith("\nprnn: stopped at once.\n")
    assert state() == "stopped (SIGINT twice, without a checkpoint)"


def test_earlier_checkpoints_are_only_spoken_of_where_there_are_some(call, monkeypatch):
    assert call("run_dir=mine")[0] == 0

    def fit(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "fit", fit)
    intact = "\nprnn: stopped at once; earlier checkpoints are intact.\n"
    assert call("resume=mine", small=False)[::2] == (130, intact)
    assert call("run_dir=other")[::2] == (130, "\nprnn: stopped at once.\n")


def test_a_run_that_failed_says_why(call):
    assert call("optimizer=sgd", "optimizer.lr=1e38")[0] == 1
    assert state().startswith("failed (the loss is not finite at step ")


def test_a_sweep_ends_with_a_table_also_where_a_job_fails(call):
    status, out, err = call("--multirun", "optimizer=sgd", "optimizer.lr=0.5,1e38", "trainer.max_steps=3")
    assert status == 1 and "the loss is not finite" in err
    [sweep] = Path("runs/multirun").iterdir()
    head, first, second = out.splitlines()[-3:]
    assert head.split() == ["job", "overrides", "state", "best", "loss", "steps", "time"]
    assert first.split()[:4] == ["0", "optimizer.lr=0.5", "done", "(max_steps)"]
    assert second.split()[:3] == ["1", "optimizer.lr=1e+38", "failed"], sweep


def test_the_best_job_of_a_sweep_is_named(call):
    status, out, _ = call("--multirun", "run_dir=sweep", "optimizer.lr=1e-9,0.05")
    best = next(line for line in out.splitlines() if line.startswith("* "))
    assert status == 0 and best.split()[1:3] == ["1", "optimizer.lr=0.05"]
    assert out.splitlines()[-1].startswith("best: sweep/1, validation loss ")
