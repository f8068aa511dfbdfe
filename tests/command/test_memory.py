"""Memory that is not there: one sentence, status 2, and what was saved stays."""

import pytest

from prnn.training import checkpoint
from prnn.training.step import Stepper
from tests.command.small import runs


def test_a_model_that_does_not_fit_leaves_nothing(call):
    status, out, err = call("model.hidden_size=1000000")
    assert (status, out) == (2, "")
    assert err.startswith("prnn: the memory is not enough for ") and err.count("\n") == 1
    assert "iB more: lower model.hidden_size=1000000 or trainer.batch_size=4 or task.bptt=10" in err
    assert not runs()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("prnn: not enough memory: you tried to allocate 8192000000 bytes (7812.5 MiB)"),
        MemoryError("Unable to allocate 7.63 GiB for an array with shape (10,) and data type float64"),
    ],
    ids=["native", "numpy"],
)
def test_the_checkpoint_so_far_stays_and_is_named(call, monkeypatch, error):
    run = Stepper.run

    def fails_at_the_fifth(self, step, *rest):
        if step == 5:
            raise error
        return run(self, step, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(Stepper, "run", fails_at_the_fifth)
        status, _, err = call()
    [path] = runs()
    assert status == 2
    *_, last = err.splitlines()
    assert last.startswith("prnn: the memory is not enough for 7.6")
    assert last.endswith(f"; the checkpoint of step 3 stays, and resume={path} goes on from it.")
    assert "Traceback" not in err
    assert checkpoint.read(path).step == 3
    assert call(f"resume={path}", small=False)[0] == 0
