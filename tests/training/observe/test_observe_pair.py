"""What two processes on gloo show of each other: communication beside computing, a straggler, a hang."""

import json
from itertools import pairwise

import pytest

from tests.test_distributed import pair, words
from tests.training.observe.test_observe import PHASES, events, phases
from tests.training.test_loop import records

# One worker runs them all: they share what the processes of a fixture did.
pytestmark = [pytest.mark.slow(seconds=40), pytest.mark.xdist_group("observe_pair")]
COMPUTING = ("aten::mm", "aten::addmm", "aten::sigmoid_backward", "aten::tanh_backward")  # of the backward pass


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    root = tmp_path_factory.mktemp("observed")
    common = {"eval_every": 0, "checkpoint_every": 0}
    statuses, said = pair(
        [root / "trace", *words(max_steps=6, profile="3+4", layers=4, hidden_size=256, bucket_cap_mib=0.25, **common)],
        [root / "slow", *words(max_steps=8, log_every=4, slow_seconds=0.2, nan_rank=1, **common)],
        [
            root / "hang",
            *words(max_steps=4, sleep_at=2, sleep_seconds=6.0, nan_rank=1, hang_seconds=2.0, log_every=9, **common),
        ],
    )
    assert statuses == [0, 0], said
    return root, said


def test_gradients_travel_while_others_are_computed(jobs):
    together = 0
    for rank in (0, 1):
        path = jobs[0] / "trace" / "profile" / f"rank_{rank}_steps_3-6.json.gz"
        assert phases(path) == 4 * PHASES
        found = events(path)
        sent = [(begin, end) for name, begin, end in found if name == "gloo:all_reduce"]
        for first, last in {(begin, end) for name, begin, end in found if name == "backward"}:
            buckets = [(a, b) for a, b in sent if first <= a < last]
            computed = [begin for name, begin, _ in found if name in COMPUTING and first <= begin < last]
            assert len(buckets) > 4
            assert min(buckets)[0] < max(computed)  # the first leaves long before the pass is over
            together += any(a < begin < b for a, b in buckets for begin in computed)
    assert together > 0  # of 8; the machine may be too busy to compute and send at once every time


def test_a_straggler_is_named_by_its_computing_while_all_steps_are_equally_long(jobs):
    root, said = jobs
    before, record = records(root / "slow", "ranks")
    assert (before["step"], before["straggler"]) == (4, 1)
    fast, slow = record["ranks"]
    assert record["step"] == 8 and record["straggler"] == 1
    assert fast["step_ms"]["p50"] >= 200 and slow["step_ms"]["p50"] >= 200
    assert slow["compute_ms"]["p50"] >= 200 > fast["compute_ms"]["p50"] + 50
    assert fast["exposed_comm"] > 0.5 > slow["exposed_comm"]
    assert all(fast["step_ms"][a] <= fast["step_ms"][b] for a, b in pairwise(("min", "p50", "p95", "max")))
    assert said.count("step 4  rank 1 on ") >= 1 and "step 8  rank" not in said  # told once
    train = records(root / "slow")[-1]
    assert train["exposed_comm"] == pytest.approx((fast["exposed_comm"] + slow["exposed_comm"]) / 2, abs=1e-3)


def test_of_a_hang_every_rank_tells_where_it_stands(jobs):
    root, said = jobs
    waits, sleeps = [(root / "hang" / "hang" / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert "rank 1 on " in sleeps and "at step 3, data" in sleeps and "in fall_asleep" in sleeps
    assert "rank 0 on " in waits and "fall_asleep" not in waits and "at step 3, " in waits
    for rank in (0, 1):
        assert f"prnn [rank {rank}]: no progress for " in said
        beat = json.loads((root / "hang" / "heartbeat" / f"rank_{rank}.json").read_text())
        assert (beat["rank"], beat["step"], beat["phase"]) == (rank, 4, "finished")
