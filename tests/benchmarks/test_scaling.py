"""The scaling study: the models by hand, the fit on points with known constants, the arithmetic, and what is rendered.

Nothing is timed; tests/benchmarks/test_scaling_runs.py has the trainings.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace

import pytest

from benchmarks import report
from benchmarks.common.files import ROOT
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import alpha_beta, small_batch
from benchmarks.scaling import page as scaling_page
from benchmarks.scaling import picture as scaling_picture
from benchmarks.scaling.allreduce import FITTED, SIZES
from benchmarks.scaling.alpha_beta import Link, Stage
from benchmarks.scaling.nccl_model import WAYS, Cluster, assumptions
from prnn.errors import UserError


def test_ring_and_tree_by_hand():
    link = Link(alpha=2.0, beta=0.5)
    assert link.ring(1, 100) == 0 and link.tree(1, 100) == 0
    assert link.ring(2, 100) == 2 * 2.0 + 100 * 0.5
    assert link.ring(4, 100) == 6 * 2.0 + 1.5 * 100 * 0.5
    assert link.tree(2, 100) == 2 * 2.0 + 200 * 0.5
    assert link.tree(5, 100) == 6 * 2.0 + 200 * 0.5  # three levels hold five
    assert link.tree(1024, 8) < link.ring(1024, 8) and link.tree(1024, 1e9) > link.ring(1024, 1e9)


def points(link: Link, among=(2,), sizes=SIZES, noise=0.0):
    draw = random.Random(1)
    return [(n, s, link.ring(n, s) * draw.uniform(1 - noise, 1 + noise)) for n in among for s in sizes]


def test_the_fit_finds_the_constants_again():
    true = Link(50e-6, 0.3e-9)
    exact = alpha_beta.fit(points(true))
    assert exact.alpha == pytest.approx(true.alpha) and exact.beta == pytest.approx(true.beta)
    noisy = alpha_beta.fit(points(true, among=(2, 3), noise=0.1))
    assert noisy.alpha == pytest.approx(true.alpha, rel=0.1) and noisy.beta == pytest.approx(true.beta, rel=0.1)


def test_no_constant_is_negative_and_one_point_is_not_enough():
    falling = [(2, 1024, 1.0), (2, 4096, 0.5)]
    link = alpha_beta.fit(falling)
    assert link.beta == 0 and 0.25 <= link.alpha <= 0.5
    with pytest.raises(ValueError, match="two different points"):
        alpha_beta.fit([(2, 1024, 1.0), (2, 1024, 2.0)])


def test_errors_are_relative_and_without_sign():
    link = Link(1.0, 0.0)  # 2 for two processes
    assert alpha_beta.errors(link, [(2, 1, 2.0), (2, 1, 1.0), (2, 1, 4.0)]) == {"points": 3, "median": 0.5, "max": 1.0}


def measured_points(link: Link, oversubscription: float = 1.0):
    def spread(n: int, seconds: float):
        return dict.fromkeys(("median", "min", "max"), 1e3 * seconds * (oversubscription if n > 2 else 1))

    return [
        {"processes": n, "bytes": s, "oversubscribed": n > 2, "milliseconds": spread(n, seconds)}
        for n, s, seconds in points(link, among=(2, 3, 4))
    ]


def test_the_error_is_that_of_points_the_fit_has_not_seen():
    found = measured_points(Link(50e-6, 0.3e-9))
    spoilt = [p for p in found if p["processes"] == 2 and p["bytes"] not in FITTED]
    for p in spoilt:
        p["milliseconds"] = {"median": 2 * p["milliseconds"]["median"], "min": 0.0, "max": 0.0}
    fit = scaling.fitted(found, cores=2)
    assert fit["alpha_us"] == pytest.approx(50, rel=1e-3) and fit["beta_ns"] == pytest.approx(0.3, rel=1e-3)
    assert fit["fit"]["max"] < 1e-3 and fit["fit"]["points"] == len(FITTED)
    two, three, _ = fit["held_out"]
    assert two["points"] == len(spoilt) == len(SIZES) - len(FITTED)
    assert two["median"] == pytest.approx(0.5, abs=1e-3) and not two["oversubscribed"]
    assert three["points"] == len(SIZES) and three["oversubscribed"] and three["max"] < 1e-3


def test_processes_that_share_cores_take_longer_in_proportion():
    fit = scaling.fitted(measured_points(Link(50e-6, 0.3e-9), oversubscription=1.5), cores=2)
    three = fit["held_out"][1]
    assert three["median"] == pytest.approx(1 / 3, abs=1e-3) and three["shared_cores"]["max"] < 1e-3
    assert "shared_cores" not in fit["held_out"][0]


def test_a_bucket_is_sent_when_its_last_gradient_is_there():
    stages = [Stage(1.0, (10, 30)), Stage(2.0, (20, 20)), Stage(3.0, (5,))]
    assert alpha_beta.buckets(stages, cap=40) == [(1.0, 40), (3.0, 40), (6.0, 5)]
    assert alpha_beta.buckets(stages, cap=50) == [(3.0, 60), (6.0, 25)]
    assert alpha_beta.buckets(stages, cap=1000) == [(6.0, 85)]
    assert alpha_beta.buckets([], cap=1) == []


def test_what_is_exposed_is_what_the_backward_pass_does_not_cover():
    stages = [Stage(1.0, (40,)), Stage(2.0, (40,)), Stage(3.0, (5,))]
    seconds = {40: 1.5, 5: 0.25}
    # Sent 1 to 2.5, 3 to 4.5, 6 to 6.25; the pass ends at 6.
    assert alpha_beta.exposed(stages, 40, seconds.__getitem__) == pytest.approx(0.25)
    # Sent 1 to 5, 5 to 9, 9 to 9.25: they queue.
    assert alpha_beta.exposed(stages, 40, {40: 4.0, 5: 0.25}.__getitem__) == pytest.approx(3.25)
    # A single recurrent layer hides nothing, however long its pass is.
    assert alpha_beta.exposed([Stage(100.0, (10, 10, 20))], 40, lambda size: 7.0) == pytest.approx(7.0)


def test_the_cluster_by_hand():
    ways = {f"{way.algorithm} {way.protocol}": way for way in WAYS}
    cluster = Cluster(node=8, nvlink_gb=100, network_gb=50)
    ring, tree = ways["ring Simple"], ways["tree LL128"]
    assert cluster.seconds(ring, 8, 8e8) == pytest.approx((8.4 + 14 * 3.4) / 1e6 + 2 * 7 / 8 * 8e8 / 100e9)
    # 16 GPUs on 2 nodes: 30 hops, 4 of them over the network.
    assert cluster.seconds(ring, 16, 8e8) == pytest.approx((8.4 + 26 * 3.4 + 4 * 14.0) / 1e6 + 30 / 16 * 8e8 / 50e9)
    expected = (14.0 + 2 * (7 * 1.25 + 7 * 8.5)) / 1e6 + 2 * 8e8 / (50e9 * 0.92 * 120 / 128)
    assert cluster.seconds(tree, 1024, 8e8) == pytest.approx(expected)
    assert cluster.all_reduce(1, 100)[0] == 0
    assert cluster.all_reduce(1024, 56)[1] == "tree, LL" and cluster.all_reduce(16, 1 << 30)[1] == "ring, Simple"
    assert all(each["source"] for each in assumptions(cluster))


def test_a_limit_of_a_protocol_is_a_limit():
    way = next(way for way in WAYS if way.most_gb[1] < 20)
    slow, fast = (Cluster(network_gb=gb, nvlink_gb=1e6).seconds(way, 16, 1e9) for gb in (360, 3600))
    assert slow == pytest.approx(fast)
    assert Cluster().seconds(replace(way, most_gb=(9, 9)), 16, 1e9) > slow


NET = small_batch.Net("rnn_relu", 100, 2, 10)
TABLE = {batch: (1.0 + batch / 8, 2.0 + batch / 8) for batch in small_batch.BATCHES}


def test_a_product_per_step_by_hand():
    gpu = small_batch.Gpu(bandwidth=1e9, peak=1e12, launch_us=3.0)
    # 10,000 weights of 2 bytes: 20 us to read; 2 x 10,000 x 5,000 operations: 100 us.
    assert small_batch.product_us(NET, 1, gpu) == pytest.approx(6 + 20) == small_batch.product_us(NET, 900, gpu)
    assert small_batch.product_us(NET, 5000, gpu) == pytest.approx(6 + 100)
    assert small_batch.product_us(replace(NET, cell="lstm"), 1, gpu) == pytest.approx(6 + 80)


def test_a_training_step_is_its_layers_and_what_is_exposed():
    forward, stages = small_batch.step_seconds(NET, 4, (1.0, 2.0))
    products = small_batch.whole_sequence_us(NET, 4)
    assert forward == pytest.approx(2 * (10 * 1.0 + products / 4) / 1e6)
    assert [stage.seconds for stage in stages] == [pytest.approx((10 * 2.0 + products * 3 / 4) / 1e6)] * 2
    assert sum(stages[0].sizes) == 4 * (2 * 100 * 100 + 2 * 100)
    alone = small_batch.scaled(NET, 4, (1.0, 2.0), 1, Cluster())
    many = small_batch.scaled(NET, 4, (1.0, 2.0), 1024, Cluster())
    assert alone["exposed_ms"] == 0 and many["step_ms"] - alone["step_ms"] == pytest.approx(many["exposed_ms"])


def test_strong_scaling_divides_one_batch_and_has_one_measure():
    net = small_batch.study(NET, TABLE, Cluster())
    for rows in net["strong"].values():
        assert all(row["gpus"] * row["batch"] == net["global_batch"] for row in rows)
        assert (rows[0]["batch"], rows[-1]["batch"], rows[-1]["gpus"]) == (256, 4, 1024)
    everything = [row["efficiency"] for rows in net["strong"].values() for row in rows]
    assert max(everything) == 1.0 and min(everything) > 0
    flat = [row["step_ms"] - row["exposed_ms"] for row in net["strong"]["product per step"]]
    assert flat[-1] > 0.8 * flat[0]  # sixty-fourth of the batch, and hardly quicker
    assert net["weak"]["persistent"]["4"][0]["efficiency"] == 1.0 and net["status"] == "predicted"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, to build the kernels' cost model")
def test_the_persistent_steps_are_those_of_the_kernels_page():
    page = (ROOT / "docs" / "kernels.md").read_text()
    told = re.findall(r"\| RNN relu bf16 H1152 B4 T1024 \| (?:for|back)ward .*\| ([\d.]+) \|", page)
    found = small_batch.persistent_us(small_batch.NETS[0], [4, 64])
    assert [f"{us:.2f}" for us in found[4]] == told and found[64] > found[4]


def test_without_a_compiler_there_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no g\\+\\+ here"):
        small_batch.persistent_us(NET, [4])


def row(scaling_name: str, processes: int, median: float | None = None, **changed):
    spread = {"median": 10.0, "min": 9.0, "max": 11.0}
    return {
        "scaling": scaling_name, "processes": processes, "windows": 9, "tokens_per_second": spread, "step_ms": spread,
        "exposed_comm": {"median": 0.05, "min": 0.01, "max": 0.1} if processes > 1 else None,
        "exposed_ms": 0.5 if processes > 1 else None, "oversubscribed": False,
        **({} if median is None else {"efficiency": {"median": median, "min": median - 0.1, "max": median + 0.1}}),
        **changed,
    }  # fmt: skip


@pytest.fixture
def record():
    link = Link(50e-6, 0.3e-9)
    rows = [row("1", 1), row("weak", 2, 0.95), row("strong", 2, 0.7), row("weak", 4, 0.5, oversubscribed=True)]
    task = {
        "task": "char_lm", "settings": ["task=char_lm"], "data": "shakespeare", "gradient_bytes": 1 << 20,
        "check": {"loss": 1e-7, "grad_norm": 2e-6}, "overlap": "one bucket", "window_steps": 15, "rows": rows,
        "goal": 0.9, "met": True,
    }  # fmt: skip
    task["projection"] = scaling.projected(task, link)
    where = {"processor": "one", "torch": "2", "load": 0.1, "commit": "abc", "threads": 1}
    found = measured_points(link)
    gpu = {"status": "predicted", "assumptions": assumptions(Cluster()), "cluster": {}, "most": 1024}
    gpu["nets"] = [small_batch.study(NET, TABLE, Cluster())]
    return json.loads(json.dumps({
        "benchmark": "scaling", "machine": where, "repeats": 3, "windows": 3, "cores": 2, "tasks": [task],
        "points": found, "fit": scaling.fitted(found, 2), "gpu": gpu,
    }))  # fmt: skip


def test_the_projection_adds_the_all_reduces_to_the_step():
    link, task = Link(1e-3, 0.0), {"gradient_bytes": 100, "rows": [row("1", 1)]}  # a step of 10 ms
    rows = {each["processes"]: each for each in scaling.projected(task, link, most=4)}
    assert list(rows) == [1, 2, 4] and rows[1]["ring"] == {"exposed_ms": 0.0, "efficiency": 1.0}
    # Gradients and agreement, 2 (n - 1) messages of 1 ms each.
    assert rows[4]["ring"] == {"exposed_ms": 12.0, "efficiency": pytest.approx(10 / 22, abs=1e-4)}
    assert rows[4]["tree"]["exposed_ms"] == 8.0


def test_the_page_says_what_is_measured_projected_and_predicted(record):
    page = scaling_page.render(record, "benchmarks/results/m/scaling.json", "benchmarks/results/m/scaling.png")
    assert "| weak | 2 | 10 | 10.00 | 0.50 ms, 5.0% | 0.950 (0.850 to 1.050) |" in page
    assert "| weak | 4 (more than cores) |" in page and "Weak scaling, target 0.9: met." in page
    assert "alpha 50.0 us, beta 0.300 ns a byte" in page and "| 3 (more than cores) | 9 | 0% | 0% |" in page
    assert "efficiency 0.951 by the model, 0.950 measured" in page
    assert page.index("## Measured") < page.index("### Projected") < page.index("## Predicted for GPUs")
    assert "](../benchmarks/results/m/scaling_projection.png)" in page and "NCCL 2.20.3" in page
    only = scaling_page.render({"machine": record["machine"], "gpu": record["gpu"]}, "s.json", "s.png")
    assert "## Measured" not in only and "## Predicted for GPUs" in only
    tables = [line for line in page.splitlines() if line.startswith("|")]
    widths = {
        line.replace(r"\|", "").count("|") for line in tables if "persistent, 4 each" in line or "1,024 |" in line
    }
    assert len(tables) > 40 and widths


def test_the_report_renders_the_file_and_the_folder(record, tmp_path, monkeypatch):
    source = tmp_path / "scaling.json"
    source.write_text(json.dumps(record))
    arguments = ["--markdown", str(tmp_path / "page.md"), "--png", str(tmp_path / "scaling.png")]
    monkeypatch.setattr("sys.argv", ["report", str(source), *arguments])
    report.main()
    assert "# Scaling" in (tmp_path / "page.md").read_text()
    for name in ("scaling.png", "scaling_projection.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    assert "### gloo's all-reduce" in report.markdown(report.load(tmp_path))
    alone = {"machine": record["machine"], "gpu": record["gpu"]}
    assert scaling_picture.draw(alone, tmp_path / "x" / "p.png") == [tmp_path / "x" / "p_projection.png"]


def test_the_document_is_what_the_record_says():
    """If not: the command that stands at its top."""
    page = ROOT / "docs" / "scaling.md"
    if not page.exists():
        pytest.skip("docs/scaling.md has not been generated yet")
    source = re.search(r"Generated from (\S+) by .* --png (\S+)`", page.read_text().replace("\n", " "))
    assert source is not None
    found = json.loads((ROOT / source.group(1)).read_text())
    assert page.read_text() == scaling_page.render(found, source.group(1), source.group(2))


def test_wandb_has_the_efficiencies_and_the_pictures(record, tmp_path):
    wandb = pytest.importorskip("wandb")
    picture = scaling_picture.draw({"machine": {}, "gpu": record["gpu"]}, tmp_path / "scaling.png")
    scaling.to_wandb(record, picture, tmp_path)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("files/media/images/scaling_projection*.png"))
    wandb.teardown()  # its other process writes the rest of the file when it ends
    (log,) = run.glob("*.wandb")
    assert b"efficiency/char_lm/weak/2" in log.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", "2,4"], "--processes must be 1 and then larger numbers in order"),
        (["--processes", "1"], "--processes must be 1 and then larger"),
        (["--processes", "1,3,2"], "--processes must be 1 and then larger"),
        (["--processes", "1,x"], "'1,x' must be numbers of processes"),
        (["--processes", "1,40"], "--processes 40 is more than a batch has sequences"),
        (["--tasks", "char_lm,sums"], "--tasks char_lm,sums: sums is none of char_lm, irnn_mnist"),
        (["--repeats", "3", "--windows", "2"], "--repeats 3 --windows 2: their product must be at least 7"),
        (["--repeats", "-3", "--windows", "-3"], "their product must be at least 7"),
        (["--wandb"], "--wandb needs --out"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        scaling.parse(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said


def test_a_projection_alone_leaves_what_was_measured(record, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "predictions", lambda: {"status": "predicted", "new": True})
    options = scaling.parse(["--projection-only", "--out", str(tmp_path)])
    assert "tasks" not in scaling.study(options)  # there is nothing yet
    (tmp_path / "scaling.json").write_text(json.dumps(record))
    assert scaling.study(options) == record | {"gpu": {"status": "predicted", "new": True}}
    for content, says in (("{", "is not JSON"), ("[]", "is no record"), ('{"tasks": 3}', "is no record")):
        (tmp_path / "scaling.json").write_text(content)
        with pytest.raises(UserError, match=f"scaling.json {says}"):
            scaling.study(options)
