"""The GPU check with workers that hang, crash, lose their GPU or are slow: the rest is still done, and all is told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import measure, workers
from benchmarks.gpu_check.record import Record
from benchmarks.gpu_check.workers import Group, Item, Result, Supervisor

WORKER = [sys.executable, "-m", "tests.benchmarks.fake_worker"]
ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, groups: Sequence[Sequence[str]], seconds: float = 60, parallel: int = 1) -> dict[str, Result]:
    found: dict[str, Result] = {}
    supervisor = Supervisor(tmp_path / "log.txt", found.__setitem__, time.monotonic() + seconds)
    supervisor.run([Group([Item(name, 2) for name in names], WORKER) for names in groups], parallel)
    return found


def dead(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_the_rest_is_done_whatever_happens_to_one(tmp_path: Path) -> None:
    names = [
        "fine",
        "hangs",
        "after a hang",
        "crashes",
        "after a crash",
        "sticky",
        "after an error",
        "slow",
        "wrong",
        "end",
    ]
    found = run(tmp_path, [names])
    ends = {name: result["status"] for name, result in found.items()}
    assert ends == dict.fromkeys(names, "passed") | {
        "hangs": "hung", "crashes": "died", "sticky": "error", "wrong": "wrong"
    }  # fmt: skip
    assert found["fine"]["name"] == "its own", "a result may have any keys"
    assert found["hangs"]["why"] == "no result after 2 s"
    assert found["crashes"]["why"] == "its process ended with signal 11"
    assert found["sticky"]["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    # Only what cannot go on is given up: those after it share a process again.
    assert found["slow"]["pid"] == found["wrong"]["pid"] == found["end"]["pid"] == found["after an error"]["pid"]
    assert found["after an error"]["pid"] != found["after a crash"]["pid"] != found["after a hang"]["pid"]


def test_groups_side_by_side(tmp_path: Path) -> None:
    found = run(tmp_path, [["hangs a", "b"], ["c"], ["crashes d", "e"]], parallel=3)
    assert {name: result["status"] for name, result in found.items()} == {
        "hangs a": "hung", "b": "passed", "c": "passed", "crashes d": "died", "e": "passed"
    }  # fmt: skip


def test_what_is_left_when_time_is_over_is_told(tmp_path: Path) -> None:
    began = time.monotonic()
    found = run(tmp_path, [["hangs", "b"], ["c"]], seconds=1.5)
    assert time.monotonic() - began < 10
    assert [found[name]["status"] for name in ("hangs", "b", "c")] in (
        ["out of time", "not run", "not run"],
        ["not run"] * 3,  # a worker took longer to start
    )


def test_a_worker_that_never_starts_is_told(tmp_path: Path) -> None:
    found: dict[str, Result] = {}
    supervisor = Supervisor(tmp_path / "log.txt", found.__setitem__, time.monotonic() + 60)
    supervisor.run([Group([Item("a", 2), Item("b", 2)], [sys.executable, "-c", "raise SystemExit(7)"])])
    why = "a worker did not start twice: its process ended with status 7"
    assert [found[name]["why"] for name in "ab"] == [why] * 2


def test_a_crash_at_the_end_is_told(tmp_path: Path) -> None:
    code = "import sys; from tests.benchmarks import fake_worker as w; w.serve(w.work, bool); sys.exit(9)"
    found: dict[str, Result] = {}
    supervisor = Supervisor(tmp_path / "log.txt", found.__setitem__, time.monotonic() + 60)
    supervisor.run([Group([Item("a", 2)], [sys.executable, "-c", code])])
    assert (found["a"]["status"], found["a"]["why"]) == ("died", "its process ended with status 9")


def test_a_worker_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "END_SECONDS", 1.0)
    code = "import time; from tests.benchmarks import fake_worker as w; w.serve(w.work, bool); time.sleep(600)"
    found: dict[str, Result] = {}
    supervisor = Supervisor(tmp_path / "log.txt", found.__setitem__, time.monotonic() + 60)
    supervisor.run([Group([Item(name, 2)], [sys.executable, "-c", code]) for name in "ab"])
    assert [found[name]["status"] for name in "ab"] == ["hung"] * 2
    assert found["a"]["why"] == "its process did not end within 1 s"


def test_results_that_cannot_be_recorded_are_no_success(tmp_path: Path) -> None:
    told: list[str] = []

    def done(name: str, result: Result) -> None:
        if name == "a":
            raise OSError("no space left")
        told.append(name)

    supervisor = Supervisor(tmp_path / "log.txt", done, time.monotonic() + 60)
    with pytest.raises(OSError, match="no space left"):
        supervisor.run([Group([Item(name, 2) for name in names], WORKER) for names in ("ab", "cd")])
    assert told == ["c", "d"]


def test_interrupted_it_ends_at_once_and_the_rest_can_be_resumed(tmp_path: Path) -> None:
    code = f"""
import json, sys, time
from pathlib import Path
from benchmarks.gpu_check.record import Record
from benchmarks.gpu_check.workers import Group, Item, Supervisor
record = Record(Path(sys.argv[1]))
supervisor = Supervisor(
    Path(sys.argv[1]) / "log", lambda n, r: record.add("checks", n, r), time.monotonic() + 100,
    lambda n: record.begin("checks", n),
)
try:
    supervisor.run([Group([Item("hangs", 60), Item("b", 60)], {WORKER}), Group([Item("c", 60)], {WORKER})])
except KeyboardInterrupt:
    record.write()
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    path = tmp_path / "check.json"
    assert wait_until(lambda: path.exists() and json.loads(path.read_text())["running"] == {"checks": ["hangs"]}, 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    found = json.loads(path.read_text())["results"]["checks"]
    assert {name: result["status"] for name, result in found.items()} == {
        "hangs": "out of time", "b": "not run", "c": "not run"
    }  # fmt: skip


def alone(tmp_path: Path, code: str, names: str = "a", seconds: float = 60, verdict: bool = False) -> dict[str, Result]:
    """What a worker with code of its own comes to."""
    found: dict[str, Result] = {}
    supervisor = Supervisor(tmp_path / "log.txt", found.__setitem__, time.monotonic() + seconds)
    command = [sys.executable, "-c", f"import os, sys, time; from tests.benchmarks import fake_worker as w\n{code}"]
    supervisor.run([Group([Item(name, 2) for name in names], command, verdict=verdict)])
    return found


def test_a_tool_that_gave_no_verdict_has_passed_nothing(tmp_path: Path) -> None:
    slow = "w.serve(w.work, bool); time.sleep(600)"
    found = alone(tmp_path, slow, seconds=3, verdict=True)
    assert (found["a"]["status"], found["a"]["name"]) == ("out of time", "its own"), "the figures stay"
    assert alone(tmp_path, slow, seconds=3)["a"]["status"] == "passed"


ODD = """
import json
pipe = int(os.environ["PRNN_WORKER_PIPE"])
for name in json.load(sys.stdin)["items"]:
    os.write(pipe, (json.dumps({"begin": name}) + "\\n").encode())
    os.write(pipe, ((SAID if name == "a" else '{"result": {"status": "passed"}}') + "\\n").encode())
"""


@pytest.mark.parametrize("said", ["garbage", "[1]", '{"result": {"figures": 1}}', '{"result": 3}', '{"begin": "z"}'])
def test_a_worker_that_says_what_is_no_answer_is_told(tmp_path: Path, said: str) -> None:
    found = alone(tmp_path, ODD.replace("SAID", repr(said)), "ab")
    assert (found["a"]["status"], found["b"]["status"]) == ("error", "passed")
    assert said[:20] in str(found["a"]["why"])


def test_a_child_that_holds_the_pipe_holds_nothing_up(tmp_path: Path) -> None:
    began = time.monotonic()
    found = alone(tmp_path, "os.fork() or (time.sleep(600), os._exit(0)); sys.exit(w.serve(w.work, bool))")
    assert found["a"]["status"] == "passed" and time.monotonic() - began < 30


def test_what_json_has_no_numbers_for_is_written_in_words(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.add("measure", "x", {"status": "wrong", "error": float("nan"), "all": [1.5, float("inf")]})
    record.write()
    found = json.loads((tmp_path / "check.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert found["results"]["measure"]["x"] == {"status": "wrong", "error": "nan", "all": [1.5, "inf"]}


def test_killed_at_any_moment_it_leaves_a_file_that_can_be_read_and_no_process(tmp_path: Path) -> None:
    """Killed with SIGKILL at a random moment, as by a machine's time limit."""
    generator = random.Random(5)
    code = f"""
import sys, time
from pathlib import Path
from benchmarks.gpu_check.record import Record
from benchmarks.gpu_check.workers import Group, Item, Supervisor
record = Record(Path(sys.argv[1]))
supervisor = Supervisor(Path(sys.argv[1]) / "log", lambda n, r: record.add("checks", n, r), time.monotonic() + 100)
supervisor.run([Group([Item(f"slow {{i}}", 60) for i in range(500)], {WORKER})])
"""
    for number in range(3):
        out = tmp_path / str(number)
        out.mkdir()
        process = subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT)
        path = out / "check.json"
        assert wait_until(path.exists, 60)
        time.sleep(generator.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = json.loads(path.read_text())["results"]["checks"]
        assert found and all(result["status"] == "passed" for result in found.values())
        for pid in {int(result["pid"]) for result in found.values()}:
            assert wait_until(partial(dead, pid)), "a worker has outlived the check"


def test_what_a_hung_worker_has_started_ends_with_it(tmp_path: Path) -> None:
    run(tmp_path, [[f"leaves {tmp_path / 'pid'}"]])
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(partial(dead, pid))


def test_a_resumed_check_does_what_is_left(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for name, status in (("a", "passed"), ("b", "not run"), ("c", "hung"), ("d", "out of time")):
        record.add("checks", name, {"status": status})
    record.write()
    assert Record(tmp_path, resume=True).open_items("checks", ["a", "b", "c", "d", "e"]) == ["b", "d", "e"]


def test_the_record_has_what_calibrate_reads(tmp_path: Path) -> None:
    record = Record(tmp_path)
    device = {"multiprocessors": 132}
    record.add("measure", "x", {"status": "measured", "microseconds_per_step": 1.5, "device": device, "correct": True})
    record.add("measure", "y", {"status": "does not fit"})
    record.add("plans", "z", {"status": "wrong", "microseconds_per_step": 2.5, "device": device, "correct": False})
    record.write()
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["device"] == device
    assert [r["microseconds_per_step"] for r in found["measured"]] == [1.5, 2.5]  # a wrong result keeps its time


def test_a_part_is_failed_by_one_bad_item_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = gpu_check.parse(["--out", str(tmp_path)])
    check = gpu_check.Check(options, Record(tmp_path), tmp_path)

    def part(statuses: dict[str, str]) -> Callable[[gpu_check.Check], Result]:
        def run(check: gpu_check.Check) -> Result:
            for name, status in statuses.items():
                check.record.add("checks", name, {"status": status})
            return {}

        return run

    for statuses, expected in (({}, "failed"), ({"a": "passed", "b": "does not fit"}, "ok"), ({"c": "hung"}, "failed")):
        monkeypatch.setitem(gpu_check.PARTS, "checks", part(statuses))
        assert gpu_check.run_part(check, "checks")["status"] == expected
    monkeypatch.setitem(gpu_check.PARTS, "checks", lambda check: 1 / 0)
    assert gpu_check.run_part(check, "checks")["why"] == "ZeroDivisionError: division by zero"
    check.end = time.monotonic()
    assert gpu_check.run_part(check, "checks")["status"] == "not run"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "there is nothing to check" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --out DIR"),
        (["--out", "a", "--resume", "b"], "either --out DIR"),
        (["--resume", "nowhere"], "there is no check.json"),
        (["--resume", str(ROOT / "benchmarks" / "results" / "zen4-2core")], "there is no check.json"),
        (["--out", "a", "--parts", "tests"], "expected some of build, checks"),
        (["--out", ""], "'' is no folder"),
        (["--out", "pyproject.toml/a"], "is a file, and must be a folder"),
        (["--out", "a", "--shapes", "("], "no regular expression"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.parse(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_an_earlier_check_is_neither_overwritten_nor_mixed_with_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "check.json"
    for content, good in (
        ({"parts": {"build": {"status": "ok"}}, "results": {"checks": {"a": {"status": "passed"}}}}, True),
        ({"parts": {"build": {}}, "results": {}}, False),
        ({"parts": {}, "results": {"checks": {"a": None}}}, False),
        ({"parts": {}, "results": {"checks": [1]}}, False),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(SystemExit):
            gpu_check.parse(["--out", str(tmp_path)])
        assert "there is a check.json already" in capsys.readouterr().err
        if good:
            assert gpu_check.parse(["--resume", str(tmp_path)]).resume == tmp_path
        else:
            with pytest.raises(SystemExit):
                gpu_check.parse(["--resume", str(tmp_path)])
            assert "is none of a GPU check" in capsys.readouterr().err


def test_results_of_other_sources_or_gpus_are_not_mixed(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.set(commit="abc", gpu="H200")
    assert gpu_check.differs(record, {"commit": "abc-dirty", "gpu": "H200", "torch": "2"}) == ""
    assert "with commit abc, and this is abd" in gpu_check.differs(record, {"commit": "abd", "gpu": "H200"})


def test_names_of_measurements_are_each_once_and_lead_back(tmp_path: Path) -> None:
    names = [*measure.items(), *measure.plan_items()]
    assert len(names) == len(set(names))
    assert {name.split(" | ")[0] for name in names} == {layer.name for layer in measure.LAYERS}
    assert len(measure.LAYERS) == len({layer.name for layer in measure.LAYERS})


def test_a_layers_name_is_forced_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_CUDA_REGIME", "grid")
    monkeypatch.delenv("PRNN_CUDA_PLAN", raising=False)
    with measure.forced("block", "shape=1,row_warps=2"):
        assert (os.environ["PRNN_CUDA_REGIME"], os.environ["PRNN_CUDA_PLAN"]) == ("block", "shape=1,row_warps=2")
    assert os.environ["PRNN_CUDA_REGIME"] == "grid" and "PRNN_CUDA_PLAN" not in os.environ


@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm"])
@pytest.mark.parametrize("directions", [1, 2])
def test_what_is_right_is_torchs(cell: str, directions: int) -> None:
    """The float64 reference of a measurement, against torch.nn with an input projection that is the identity."""
    layer = measure.Layer(cell, "float32", 5, 3, 4, directions)
    problem = measure.Problem(layer, device="cpu")
    G = {"rnn_relu": 1, "gru": 3, "lstm": 4}[cell]
    kind, options = ("RNN", {"nonlinearity": "relu"}) if G == 1 else (cell.upper(), {})
    module = getattr(torch.nn, kind)(directions * G * 4, 4, bidirectional=directions == 2, **options).double()
    with torch.no_grad():
        for d, end in enumerate(("", "_reverse")[:directions]):
            own = torch.eye(directions * G * 4)[d * G * 4 : (d + 1) * G * 4]
            values = (own, problem.weights[d], torch.zeros(G * 4), problem.biases[d])
            for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), values, strict=True):
                module.get_parameter(f"{name}_l0{end}").copy_(value)
    leaves = [x.double().requires_grad_() for x in (problem.gates_x, problem.h0, problem.c0) if x is not None]
    output, state = module(leaves[0], tuple(leaves[1:]) if cell == "lstm" else leaves[1])
    states = dict(zip(("h_n", "c_n"), state if cell == "lstm" else (state,), strict=False))
    names = ("grad_gates_x", "grad_h0", "grad_c0")
    gradients = torch.autograd.grad(output, leaves, problem.grad_output.double())
    for which, expected in (
        ("forward", {"output": output, **states}),
        ("backward", dict(zip(names, gradients, strict=False))),
    ):
        found = problem.right(which)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, rtol=1e-12, atol=1e-12), name
    right = problem.right("forward")
    assert measure.worst(right, right, layer, "forward")["correct"]
    broken = right | {"output": right["output"] * 1.01}
    found = measure.worst(broken, right, layer, "forward")
    assert (found["correct"], found["error_of"]) == (False, "output")
    assert not measure.worst(right | {"h_n": right["h_n"] * torch.nan}, right, layer, "forward")["correct"]
