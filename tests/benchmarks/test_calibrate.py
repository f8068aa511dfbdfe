"""The calibration finds the constants that a made-up result file was made with; its patch; its sentences.

Nothing is timed, no GPU is needed: ``make_plans.cpp`` plans for an H100, the cost model itself says what they "take".
It begins from constants of its own, ``GUESSED``, whatever those of costs.h are at present.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibrate import __main__ as calibrate
from benchmarks.calibrate import cost_model
from benchmarks.calibrate.cost_model import COSTS, ROOT

CUDA = "prnn/csrc/cuda"
# cell, dtype, B, H, directions, tf32
LAYERS = (
    ("lstm", "bfloat16", 16, 768, 1, 0),
    ("lstm", "bfloat16", 16, 512, 2, 0),
    ("lstm", "float32", 8, 96, 1, 0),
    ("lstm", "float16", 24, 64, 1, 0),
    ("gru", "bfloat16", 32, 1024, 1, 0),
    ("gru", "float16", 16, 96, 1, 0),
    ("gru", "float32", 16, 256, 1, 1),
    ("rnn_tanh", "bfloat16", 16, 240, 1, 0),
    ("rnn_relu", "float32", 32, 100, 1, 0),
    ("rnn_relu", "bfloat16", 4, 1152, 1, 0),
)
GUESSED = {
    "tensor_cycles": 6.7,
    "tf32_cycles": 13.4,
    "exact_cycles": 8.0,
    "shared_bytes": 128.0,
    "step_cycles": 120.0,
    "split_cycles": 40.0,
    "rnn_forward_cycles": 90.0,
    "gru_forward_cycles": 230.0,
    "lstm_forward_cycles": 260.0,
    "rnn_backward_cycles": 110.0,
    "gru_backward_cycles": 190.0,
    "lstm_backward_cycles": 220.0,
    "cluster_cycles": 350.0,
    "cluster_bytes": 14.0,
    "grid_microseconds": 0.65,
    "grid_bytes": 40.0,
    "grid_bytes_of_all": 3100.0,
}
# As far from these as a guess may be.
TRUE = {
    "tensor_cycles": 9.1,
    "tf32_cycles": 17.3,
    "exact_cycles": 10.9,
    "shared_bytes": 101.0,
    "step_cycles": 178.0,
    "split_cycles": 71.0,
    "rnn_forward_cycles": 131.0,
    "gru_forward_cycles": 180.0,
    "lstm_forward_cycles": 345.0,
    "rnn_backward_cycles": 83.0,
    "gru_backward_cycles": 262.0,
    "lstm_backward_cycles": 171.0,
    "cluster_cycles": 610.0,
    "cluster_bytes": 9.2,
    "grid_microseconds": 0.97,
    "grid_bytes": 26.0,
    "grid_bytes_of_all": 2150.0,
}
CALL_MICROSECONDS = 14.0


@pytest.fixture(scope="module", autouse=True)
def source(tmp_path_factory):
    """A tree whose cost model has the constants GUESSED; the calibration takes it for the repository."""
    root = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "prnn" / "csrc", root / "prnn" / "csrc")
    costs = root / COSTS
    for name, value in GUESSED.items():
        text, count = re.subn(rf"(double {name} =) [\d.]+;", rf"\1 {value:g};", costs.read_text())
        assert count == 1, name
        costs.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_model, "ROOT", root)
        yield root


def make_plans(folder: Path, questions: list[str], source: Path) -> list[str]:
    """What make_plans.cpp answers, without the device, by the cost model of ``source``."""
    cuda, program = source / CUDA, folder / "make_plans"
    files = [Path(__file__).with_name("make_plans.cpp"), cuda / "planner.cpp", cuda / "plan_text.cpp"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{cuda}"]
    subprocess.run(["g++", *flags, *map(str, files), "-o", str(program)], check=True)
    asked = "\n".join(questions)
    said = subprocess.run([str(program)], input=asked, check=True, capture_output=True, text=True).stdout.splitlines()
    assert json.loads(said[0])["clusters"] == [66, 32, 16, 7] and len(said) == len(questions) + 1
    return said[1:]


def question(cell, dtype, B, H, directions, tf32, backward=0, regime="-", plan="-", multiprocessors=0):
    names = calibrate.CELLS.index(cell), calibrate.DTYPES.index(dtype)
    numbers = (*names, B, H, backward, tf32, directions, multiprocessors)
    return " ".join(map(str, (*numbers, regime, plan)))


def of_every_kind(records):
    """Some of them, in which each cell meets each pass and regime, and so on: the fewer the harder for the fit."""
    random.Random(4).shuffle(records)
    seen, kept = set(), []
    for record, asked in records:
        plan, cell = record["plan"], (record["cell"], record["pass"])
        # The more blocks read at a time, the sooner L2 is what they wait for.
        kinds = {(*cell, plan["row_warps"]), (*cell, plan["regime"], plan["blocks"] * plan["teams"] > 83)}
        kinds |= {(record["dtype"], plan["tf32"], plan["shape"], record["pass"]), (record["directions"],)}
        if not kinds <= seen:
            seen |= kinds
            kept.append((record | {"T": (64, 1024)[len(kept) % 2]}, asked))
    return kept


@pytest.fixture(scope="module")
def plans(tmp_path_factory, source):
    """Records without a time: forty plans of LAYERS, spread over what can be forced; and what asks for each of them."""
    forced = [f"shape={shape},row_warps={rows}" for shape, rows in product(range(3), (1, 2, 4, 8))]
    asked = list(product(LAYERS, (0, 1), calibrate.REGIMES, ["-", *forced]))
    questions = [question(*layer, backward, regime, plan) for layer, backward, regime, plan in asked]
    said = make_plans(tmp_path_factory.mktemp("plans"), questions, source)
    found = {}
    for (layer, backward, regime, plan), question_of, text in zip(asked, questions, said, strict=True):
        if text == "null":
            continue
        cell, dtype, B, H, directions, _ = layer
        record = {"cell": cell, "dtype": dtype, "B": B, "H": H, "directions": directions, "correct": True}
        record |= {"pass": calibrate.PASSES[backward], "forced": f"{regime} {plan}", "plan": json.loads(text)}
        found.setdefault((layer, backward, text), (record | {"clock_mhz": 1755}, question_of))
    return of_every_kind(list(found.values()))


def write(folder: Path, records: list) -> Path:
    found = {"commit": "made up", "gpu": "NVIDIA H100", "device": {"clock_ghz": 1.98}, "measured": records}
    (folder / "check.json").write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def measured(plans, tmp_path_factory):
    """The records with the times that TRUE gives them."""
    program = cost_model.Program(tmp_path_factory.mktemp("program"))
    records = [record for record, _ in plans]
    checked = [calibrate.measurement(record | {"microseconds_per_step": 1}, {}) for record in records]
    steps = program.microseconds([each.line for each in checked], np.array([list(TRUE.values())]))[0]
    return [
        record | {"microseconds_per_step": float(each.launches * (step + CALL_MICROSECONDS / record["T"]))}
        for record, each, step in zip(records, checked, steps, strict=True)
    ]


def rows(printed: str) -> dict[str, list[str]]:
    """Constant -> what stands beside it."""
    table = printed.split("\n\n")[1].splitlines()[2:]
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in table)}


def test_the_records_are_of_every_kind(plans):
    assert list(TRUE) == list(GUESSED) == list(cost_model.constants((ROOT / COSTS).read_text()))
    for key in ("cell", "dtype", "pass"):
        assert len({record[key] for record, _ in plans}) == {"cell": 4, "dtype": 3, "pass": 2}[key]
    assert {record["plan"]["regime"] for record, _ in plans} == set(calibrate.REGIMES)
    assert {record["plan"]["tf32"] for record, _ in plans} == {True, False}
    assert {record["directions"] for record, _ in plans} == {1, 2}


def calibrated(folder: Path, records: list) -> tuple[str, str]:
    """What is printed, and the patch."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert calibrate.main([str(write(folder, records)), "--out", str(folder / "costs.patch")]) == 0
    return said.getvalue(), (folder / "costs.patch").read_text()


@pytest.fixture(scope="module")
def exact(measured, tmp_path_factory):
    return calibrated(tmp_path_factory.mktemp("exact"), measured)


def test_the_constants_are_found_again(exact):
    printed, patch = exact
    found = rows(printed)
    for name, value in TRUE.items():
        assert float(found[name][1]) == pytest.approx(value, rel=0.01), name
    assert float(found["(a call, microseconds)"][1]) == pytest.approx(CALL_MICROSECONDS, rel=0.01)
    assert "55 correct measurements" in printed and "the clock of 55 was sampled" in printed
    assert re.search(r"^after: median error 0.0 %, worst 0.\d %; the quickest regime for (\d+) of \1 ", printed, re.M)
    assert printed.endswith(patch)


def test_what_nothing_depends_on_is_kept(measured, tmp_path):
    printed, _ = calibrated(tmp_path, [record for record in measured if not record["plan"]["tf32"]])
    found = rows(printed)
    kept = {name for name, row in found.items() if row[2] == "kept: nothing measured depends on it"}
    assert kept == {"tf32_cycles"} and found["tf32_cycles"][:2] == ["13.4", "13.4"]


def test_noise_is_told_from_knowledge(measured, tmp_path):
    """With three percent of it: what a step consists of within a tenth; all else within three standard deviations."""
    draw = np.random.default_rng(5)
    noisy = [
        record | {"microseconds_per_step": record["microseconds_per_step"] * np.exp(0.03 * draw.standard_normal())}
        for record in measured
    ]
    printed, _ = calibrated(tmp_path, noisy)
    found = rows(printed)
    for name, value in TRUE.items():
        off = abs(np.log(float(found[name][1]) / value))
        if name in ("exact_cycles", "shared_bytes", "cluster_cycles", "grid_microseconds"):
            assert off < 0.1, printed
        else:
            assert off < 3 * float(found[name][2].split(" %")[0]) / 100, printed
    assert 2 < float(re.search(r"a standard deviation of ([\d.]+) %", printed)[1]) < 4
    assert "poorly determined" in printed


@pytest.mark.parametrize("tool", [["git", "apply"], ["patch", "-p1", "-i"]], ids=["git", "patch"])
def test_the_patch_applies_and_the_patched_model_predicts(exact, plans, measured, source, tmp_path, tool):
    if shutil.which(tool[0]) is None:
        pytest.skip(f"there is no {tool[0]}")
    (tmp_path / "costs.patch").write_text(exact[1])
    shutil.copytree(source / "prnn", tmp_path / "prnn")
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    subprocess.run([*tool, "costs.patch"], cwd=tmp_path, check=True, capture_output=True, env=environment)
    values = cost_model.constants((tmp_path / COSTS).read_text())
    assert values == {name: float(row[1]) for name, row in list(rows(exact[0]).items())[:-1]}
    for text, record in zip(make_plans(tmp_path, [asked for _, asked in plans], tmp_path), measured, strict=True):
        plan = json.loads(text)
        launches = record["directions"] // plan["directions"]
        seen = record["microseconds_per_step"] - launches * CALL_MICROSECONDS / record["T"]
        # What was asked for leaves the number of tiles open, and the patched model may choose another.
        if plan["tiles"] == record["plan"]["tiles"]:
            assert launches * plan["microseconds"] == pytest.approx(seen, rel=0.01)
        else:
            assert launches * plan["microseconds"] < 1.01 * seen


def test_a_calibrated_model_is_left_as_it_is(exact, measured, tmp_path, monkeypatch):
    shutil.copytree(cost_model.ROOT / "prnn", tmp_path / "prnn")
    (tmp_path / "costs.patch").write_text(exact[1])
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    subprocess.run(["git", "apply", "costs.patch"], cwd=tmp_path, check=True, env=environment)
    monkeypatch.setattr(cost_model, "ROOT", tmp_path)
    printed, patch = calibrated(tmp_path, measured)
    assert patch == "" and printed.endswith("The present constants are as good: no patch.\n")


def test_a_patch_keeps_the_columns():
    text = (ROOT / COSTS).read_text()
    present = cost_model.constants(text)
    assert cost_model.patch(text, present) == ""
    lines = cost_model.patch(text, present | {"grid_bytes": 38.251}).splitlines()
    (old,), (new,) = ([line for line in lines[2:] if line[0] == sign] for sign in "-+")
    assert new.startswith("+  double grid_bytes = 38.3;") and old.index("//") == new.index("//")
    assert [cost_model.number(value) for value in (0.04567, 6.7, 128.4, 3117.0, 1.2e-5)] == [
        "0.0457", "6.7", "128", "3120", "0.000012"
    ]  # fmt: skip


def test_a_plan_can_be_forced(source, tmp_path):
    layer = LAYERS[0]
    free, forced, two, no, many = (
        json.loads(text)
        for text in make_plans(
            tmp_path,
            [
                question(*layer),
                question(*layer, plan="shape=1,row_warps=2"),
                question(*layer, regime="grid", plan="tiles=2,directions=1"),
                question(*layer, plan="blocks=500"),
                question("gru", "float32", 16, 256, 1, 1, plan="tf32=0"),
            ],
            source,
        )
    )
    assert free["regime"] == "grid" and (free["teams"], free["blocks"], free["tf32"]) == (2, 48, False)
    assert (forced["shape"], forced["row_warps"]) == (1, 2) and forced["microseconds"] > free["microseconds"]
    assert two["tiles"] == 2 and no is None and many["tf32"] is False


def test_a_plan_within_fewer_multiprocessors(source, tmp_path):
    """Of 132, that have 66, 32, 16 and 7 clusters of 2, 4, 8 and 16 blocks at a time."""
    grids = [question(*LAYERS[0], regime="grid", multiprocessors=most) for most in (0, 132, 133, 60, 20)]
    free, *same, fewer, few = (json.loads(text) for text in make_plans(tmp_path, grids, source))
    assert same == [free, free] and free["teams"] * free["blocks"] > 60 and few is None
    assert fewer["teams"] * fewer["blocks"] <= 60 and fewer["microseconds"] > free["microseconds"]
    # As many teams as there is room for, as the batch has more tiles.
    clusters = [
        question("rnn_tanh", "float32", 4096, 256, 1, 0, multiprocessors=most, regime="cluster", plan=f"blocks={size}")
        for most in (132, 100, 20)
        for size in (2, 4, 8, 16)
    ]
    teams = [json.loads(text)["teams"] for text in make_plans(tmp_path, clusters, source)]
    assert teams == [66, 32, 16, 7, 50, 24, 12, 5, 10, 4, 2, 1]


def test_what_cannot_be_forced_says_so(source, tmp_path):
    wrong = ("shape", "shape=2,warps=1", "blocks=-4", "tiles=9999999999", "tf32=")
    questions = [question(*LAYERS[0], plan=plan) for plan in wrong]
    said = make_plans(tmp_path, [question(*LAYERS[0], regime="mesh"), *questions], source)
    assert said[0] == "PRNN_CUDA_REGIME=mesh: expected block, cluster or grid"
    for plan, line in zip(wrong, said[1:], strict=True):
        assert line.startswith(f"PRNN_CUDA_PLAN={plan}: expected numbers of shape, row_warps, blocks, tiles")


def damaged(record: dict, **changed) -> dict:
    return record | {"plan": record["plan"] | changed}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "check.json cannot be read"),
        ("{", "check.json is not JSON"),
        ("[]", 'has no list "measured"'),
        ('{"measured": 3}', 'has no list "measured"'),
        (lambda records: [*records[:3], {"cell": "lstm"}], r"record 3 of measured is damaged: no 'correct'"),
        (lambda records: [records[0] | {"plan": None}], "record 0 of measured is damaged"),
        (lambda records: [damaged(records[0], shape=7)], "record 0 of measured is damaged: there is no plan"),
        (lambda records: [damaged(records[0], regime="mesh")], "record 0 of measured is damaged: .*mesh"),
        (lambda records: [records[0] | {"microseconds_per_step": 0}], "damaged: 0.0 microseconds a step"),
        (lambda records: [records[0] | {"directions": 3}], "record 0 of measured is damaged: there is no plan"),
        (lambda records: [damaged(records[0], blocks=float("inf"))], "record 0 of measured is damaged: cannot convert"),
        (lambda records: [damaged(records[0], blocks=1e30)], "record 0 of measured is damaged: there is no plan"),
        (lambda records: [records[0] | {"T": 10**400}], "record 0 of measured is damaged: .*too large"),
        pytest.param("[" * 100_000, "check.json is not JSON", id="nested too deeply"),
        (lambda records: records[:5], "5 correct measurements with a plan: 17 constants need at least as many"),
        (lambda records: [each | {"correct": False} for each in records], "0 correct measurements with a plan"),
    ],
)
def test_what_cannot_be_read_says_so(content, says, measured, tmp_path, capsys):
    if callable(content):
        write(tmp_path, content(measured))
    elif content is not None:
        (tmp_path / "check.json").write_text(content)
    assert calibrate.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("calibrate: ") and said.count("\n") == 1 and re.search(says, said)


def test_a_patch_that_cannot_be_written_says_so(measured, tmp_path, capsys):
    assert calibrate.main([str(write(tmp_path, measured)), "--out", str(tmp_path / "no" / "costs.patch")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
