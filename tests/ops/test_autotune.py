"""The choice of a GPU's kernels by time, without a GPU: the planner's answers and the times are made up."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import prnn
from prnn import cuda_plan, native, ops
from prnn.cell_table import CELLS
from prnn.ops import autotune, backends, operator

GRID, CLUSTER = "2.0 grid regime", "3.0 cluster regime"


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A GPU whose clock says ``us``, or raises what stands there; ``calls`` are the names that were timed,
    ``plans`` those of each regime, forward and backward.
    """
    answers = SimpleNamespace(
        us={"cuda": 300.0, "cuda:cluster": 200.0, "cudnn": 400.0, "stepwise": 4000.0}, calls=[], capturing=False,
        plans={"": [GRID, GRID], "block": ["", ""], "cluster": [CLUSTER, CLUSTER], "grid": [GRID, GRID]},
    )  # fmt: skip

    def clock(device: int, call: Any) -> float:
        answers.calls.append(call.args[0])
        answer = answers.us[call.args[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def explain(*arguments: Any) -> str:
        return "\n".join([*answers.plans[arguments[-2]], ""])

    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    for name in ("PRNN_CUDA_BENCHMARK", "PRNN_CUDA_REGIME", "PRNN_CUDA_PLAN", "PRNN_CUDA_MAX_SMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native, "cuda_status", lambda: (True, ""))
    monkeypatch.setattr(native, "cuda_cells", lambda: tuple(CELLS))
    monkeypatch.setattr(native, "cuda_fault", lambda: None)
    monkeypatch.setattr(native, "digest", lambda: "0123")
    monkeypatch.setattr(native, "_CELL_IDS", {name: number for number, name in enumerate(CELLS)})
    monkeypatch.setattr(backends, "_CUDNN", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: answers.capturing)
    monkeypatch.setattr(torch.ops.prnn_native, "cuda_explain", explain, raising=False)
    monkeypatch.setattr(autotune, "_name", lambda device: "A GPU")
    monkeypatch.setattr(autotune, "_on_device", clock)
    monkeypatch.setattr(autotune, "_enabled", True)
    torch.use_deterministic_algorithms(False)  # conftest.py turns it on, and undoes this
    another_process()
    cuda_plan._plans.cache_clear()
    yield answers
    another_process()
    cuda_plan._plans.cache_clear()


def another_process() -> None:
    autotune._known.clear()
    backends._quickest.cache_clear()
    autotune._warn.cache_clear()


def request(T: int = 1000, B: int = 16, H: int = 768, gradients: bool = True, **fields: Any) -> ops.Request:
    given = ops.Request("lstm", T, B, 64, H, torch.bfloat16, "cuda", False, False, False, 0, gradients, plain=True)
    return given._replace(**fields)


def the_file(folder: Path) -> Path:
    (file,) = (folder / "cuda_benchmark").glob("*.json")
    return file


@pytest.mark.parametrize(
    ("name", "backend", "plan"),
    [
        ("cuda", "cuda", "; grid regime, 2 us a step expected; backward: grid regime, 2 us"),
        ("cuda:cluster", "cuda", "; cluster regime, 3 us a step expected; backward: cluster regime, 3 us"),
        ("cudnn", "torch", ""),
    ],
)
def test_the_quickest_wins_and_is_remembered(gpu: SimpleNamespace, name: str, backend: str, plan: str) -> None:
    gpu.us[name] = 50.4
    choice = ops.choose(request())
    assert (choice.backend, choice.implementation) == (backend, name)
    others = ", ".join(f"{each} {gpu.us[each]:.0f}" for each in ("cuda:cluster", "cuda", "cudnn") if each != name)
    assert choice.reason == f"timed, us for 64 steps and back: {name} 50, {others}{plan}"
    assert str(choice).startswith(f"{backend} (" if backend == "cuda" else "torch, the whole layer in cuDNN (")
    # The grid is the planner's choice, and a block alone has no plan.
    assert gpu.calls == ["cuda", "cuda:cluster", "cudnn"]
    assert ops.choose(request()) == choice and len(gpu.calls) == 3


def test_off_unless_asked_for(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_enabled", None)
    by_the_planner = ops.choose(request())
    assert by_the_planner.implementation == "cuda" and "timed" not in by_the_planner.reason and gpu.calls == []
    monkeypatch.setenv("PRNN_CUDA_BENCHMARK", "1")
    assert ops.choose(request()).implementation == "cuda:cluster"
    prnn.cuda_benchmark(False)
    assert ops.choose(request()) == by_the_planner
    prnn.cuda_benchmark()
    monkeypatch.setenv("PRNN_CUDA_BENCHMARK", "0")
    assert ops.choose(request()).implementation == "cuda:cluster"


def test_switches_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="^cuda_benchmark takes True or False, got int$"):
        prnn.cuda_benchmark(1)
    monkeypatch.setattr(autotune, "_enabled", None)
    monkeypatch.setenv("PRNN_CUDA_BENCHMARK", "yes")
    with pytest.raises(ops.BackendError, match="^PRNN_CUDA_BENCHMARK=yes: expected 1 or 0$"):
        ops.choose(request())


def test_what_layers_are_told_apart_by(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ops.choose(request(T=64))
    for same in (request(T=100_000), request(I=9), request(T=100)):
        assert ops.choose(same) == first
    assert len(gpu.calls) == 3
    others = [{"T": 63}, {"B": 17}, {"H": 512}, {"directions": 2}, {"gradients": False}, {"cell": "gru"}]
    others += [{"dtype": torch.float32}, {"lengths": True}]
    for count, fields in enumerate(others, 2):
        ops.choose(request(**fields))
        assert len(gpu.calls) == 3 * count, fields
    assert gpu.calls[-1] == "stepwise"  # torch's, where there are lengths
    monkeypatch.setattr(cuda_plan, "_reserved", 32)
    monkeypatch.setattr(cuda_plan, "_multiprocessors_of", lambda device: 132)
    assert "at most 100 of 132 multiprocessors" in ops.choose(request()).reason and len(gpu.calls) == 30
    monkeypatch.setattr(cuda_plan, "_reserved", None)
    with torch.backends.cudnn.flags(enabled=False):  # torch's own tests forbid assignments
        assert "stepwise" in ops.choose(request(T=64)).reason and len(gpu.calls) == 30  # as with lengths
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # undone by conftest.py
    ops.choose(request(dtype=torch.float32))
    assert len(gpu.calls) == 33
    for T, steps in ((1, 1), (2, 2), (3, 2), (63, 32), (64, 64), (65, 64)):
        assert steps == autotune.Layer.of("lstm", torch.float32, T, 1, 1, 1, True, False, 0, 0, ()).T


def test_a_regime_without_a_plan_for_the_backward_pass(gpu: SimpleNamespace) -> None:
    gpu.plans["cluster"][1] = ""
    assert ops.choose(request()).implementation == "cuda" and gpu.calls == ["cuda", "cudnn"]
    assert ops.choose(request(gradients=False)).implementation == "cuda:cluster"


def test_a_layer_without_a_plan_is_torchs(gpu: SimpleNamespace) -> None:
    gpu.plans[""][1] = ""
    choice = ops.choose(request())
    assert choice.implementation == "cudnn" and "fit into no regime" in choice.reason and gpu.calls == []


def test_a_layer_without_a_step_or_a_sample_is_not_timed(gpu: SimpleNamespace) -> None:
    assert {ops.choose(request(**{size: 0})).implementation for size in ("T", "B")} == {"cuda"} and not gpu.calls


def test_another_process_reads_the_times(gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [ops.choose(request()), ops.choose(request(B=4))]
    assert len(gpu.calls) == 6 and [path.suffix for path in (tmp_path / "cuda_benchmark").iterdir() if path.suffix] == [
        ".json"
    ]
    another_process()
    gpu.us["cuda"] = 1.0
    assert [ops.choose(request()), ops.choose(request(B=4))] == choices and len(gpu.calls) == 6
    written = json.loads(the_file(tmp_path).read_text())
    assert (written["gpu"], written["library"], written["torch"]) == ("A GPU", "0123", torch.__version__)
    warnings.simplefilter("error")  # each has a file of its own
    for of, name, value in (
        (native, "digest", lambda: "4567"),
        (torch, "__version__", "99.0"),
        (autotune, "_name", lambda device: "Another GPU"),
    ):
        with monkeypatch.context() as other:
            another_process()
            other.setattr(of, name, value)
            before = len(gpu.calls)
            assert ops.choose(request()).implementation == "cuda" and len(gpu.calls) == before + 3, name


def test_the_first_of_two_processes_decides_for_both(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = autotune.Layer.of(
        "lstm", torch.bfloat16, 64, 16, 768, 1, True, False, 0, 0, ("cuda", "cuda:cluster", "cudnn")
    )
    file, clock = autotune._file("A GPU"), autotune._on_device

    def slow_clock(*arguments: Any) -> float:
        autotune._keep(file, layer, {"cuda": 10.0, "cuda:cluster": 20.0, "cudnn": 30.0})
        autotune._keep(file, layer._replace(B=1), {"cuda": 1.0, "cuda:cluster": 2.0, "cudnn": 3.0})
        return clock(*arguments)

    monkeypatch.setattr(autotune, "_on_device", slow_clock)
    assert ops.choose(request()).implementation == "cuda" and len(gpu.calls) == 3
    assert len(autotune._read(file, "A GPU")) == 2


def _foreign(content: dict[str, Any]) -> str:
    return json.dumps(content | {"gpu": "Another GPU"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "",
        lambda content: json.dumps(content)[:-9],
        lambda content: "[]",
        lambda content: json.dumps({name: value for name, value in content.items() if name != "layers"}),
        lambda content: json.dumps(content | {"layers": [1]}),
        lambda content: json.dumps(content | {"layers": {"a": 3}}),
        lambda content: json.dumps(content).replace("200.0", '"fast"'),
        lambda content: json.dumps(content).replace("200.0", "NaN"),
        lambda content: json.dumps(content).replace("200.0", "-1"),
        _foreign,
    ],
    ids=["empty", "cut", "list", "none", "layers", "layer", "word", "nan", "negative", "foreign"],
)
def test_a_damaged_or_foreign_file_is_left_out_of_account(
    gpu: SimpleNamespace, tmp_path: Path, damage: Callable[[dict[str, Any]], str]
) -> None:
    choice = ops.choose(request())
    file = the_file(tmp_path)
    file.write_text(damage(json.loads(file.read_text())))
    another_process()
    with pytest.warns(UserWarning) as warned:
        assert ops.choose(request()) == choice and len(gpu.calls) == 6
    assert [str(each.message).startswith(f"prnn: {file}, the times of layers") for each in warned] == [True]
    another_process()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.choose(request()) == choice and len(gpu.calls) == 6  # it was replaced


def test_times_of_other_candidates_do_not_count(gpu: SimpleNamespace, tmp_path: Path) -> None:
    ops.choose(request())
    file = the_file(tmp_path)
    file.write_text(file.read_text().replace('"cudnn": 400.0', '"cuda:mesh": 4.0'))
    another_process()
    assert ops.choose(request()).implementation == "cuda:cluster" and len(gpu.calls) == 6


def test_a_cache_that_cannot_be_written(gpu: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "cuda_benchmark").write_text("a file")
    with pytest.warns(UserWarning) as warned:
        assert ops.choose(request()).implementation == "cuda:cluster"
    (warning,) = warned
    assert "cuda_benchmark, for the times of layers on this GPU, cannot be used (" in str(warning.message)
    assert ops.choose(request()).implementation == "cuda:cluster" and len(gpu.calls) == 3


def test_what_is_forced_wins(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "cuda"):
        with ops.backend(name):
            assert ops.choose(request()).backend == name
    for name, value in (("PRNN_CUDA_REGIME", "grid"), ("PRNN_CUDA_PLAN", "blocks=48")):
        with monkeypatch.context() as forced:
            forced.setenv(name, value)
            assert ops.choose(request()).implementation == "cuda"
    torch.use_deterministic_algorithms(True)
    assert ops.choose(request()).implementation == "cuda"
    assert gpu.calls == []


def test_a_candidate_that_fails_is_left_out_and_shown(gpu: SimpleNamespace, tmp_path: Path) -> None:
    gpu.us["cuda:cluster"] = torch.OutOfMemoryError("CUDA out of memory\nand more")
    choice = ops.choose(request())
    assert choice.implementation == "cuda"
    assert ": cuda 300, cudnn 400; cuda:cluster failed: CUDA out of memory; grid regime" in choice.reason
    assert ops.choose(request()) == choice and len(gpu.calls) == 3
    assert not (tmp_path / "cuda_benchmark").exists()  # another process tries again
    another_process()
    gpu.us |= dict.fromkeys(("cuda", "cudnn"), RuntimeError())
    assert ops.choose(request()).reason.startswith("grid regime") and len(gpu.calls) == 6
    ops.choose(request())
    assert len(gpu.calls) == 6


def test_a_candidate_that_loses_the_gpu_is_an_error(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cuda_fault", lambda: "block 7 waited")
    gpu.us["cuda:cluster"] = RuntimeError("block 7 waited")
    with pytest.raises(RuntimeError, match="^block 7 waited$"):
        ops.choose(request())


def test_nothing_is_timed_while_a_graph_is_captured(gpu: SimpleNamespace) -> None:
    gpu.capturing = True
    assert ops.choose(request()).implementation == "cuda" and gpu.calls == []
    gpu.capturing = False
    assert ops.choose(request()).implementation == "cuda:cluster"
    gpu.capturing = True
    assert ops.choose(request()).implementation == "cuda:cluster" and len(gpu.calls) == 3


def test_nothing_is_timed_for_a_tracer(gpu: SimpleNamespace) -> None:
    assert ops.choose(request(plain=False)).implementation == "cuda" and gpu.calls == []
    with FakeTensorMode():
        x, *weights = (torch.empty(shape, device="cuda") for shape in ((9, 2, 3), (20, 3), (20, 5)))
    seen = [ops.Request.of(x, ops.Weights(*weights), "lstm").plain]
    y = torch.empty(2)
    assert not operator.traced(y, y)

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(not operator.traced(x, y))
        return x + 1

    make_fx(look)(y)
    torch.vmap(look)(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(look, y, check_trace=False)
    torch.compile(look, backend="eager", fullgraph=False)(y)
    assert len(seen) >= 5 and not any(seen)


def test_tensors_of_a_gpu_are_plain() -> None:
    x = SimpleNamespace(shape=(9, 2, 3), is_cpu=False, is_cuda=True, is_meta=False, dtype=torch.float32)
    x.device, x.requires_grad = SimpleNamespace(type="cuda", index=1), False
    weights = ops.Weights(torch.empty(20, 3), torch.empty(20, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "_PLAIN", (SimpleNamespace, torch.Tensor))
        found = ops.Request.of(x, weights, "lstm", directions=2)
    assert (found.plain, found.directions, found.device) == (True, 2, 1)
    assert not ops.Request.of(torch.empty(9, 2, 3), weights, "lstm").plain


def test_a_layer_says_how_many_directions_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, choose = [], ops.layer.__globals__["choose"]
    for where, name in ((ops.layer.__globals__, "choose"), (vars(ops), "choose")):
        monkeypatch.setitem(where, name, lambda asked: (seen.append(asked.directions), choose(asked))[1])
    module, x = prnn.LSTM(3, 5, bidirectional=True), torch.zeros(9, 2, 3)
    module(x)
    prnn.explain(module, x)
    prnn.LSTM(3, 5)(x)
    assert seen == [2, 2, 2, 1]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_timed(monkeypatch: pytest.MonkeyPatch, cell: str, directions: int, gradients: bool) -> None:
    """On a CPU, by what runs there: each direction, and back where gradients are wanted; nobody notices."""
    passes: list[tuple[str, bool]] = []

    def noted(implementation: operator.Implementation) -> operator.Implementation:
        def forward(*given: Any) -> Any:
            passes.append(("forward", given[2]))
            assert given[3] == gradients and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            return implementation.forward(*given)

        def backward(*given: Any) -> Any:
            passes.append(("backward", given[4]))
            grads = implementation.backward(*given)
            assert grads.x.isfinite().all() and grads.weight_hh.isfinite().all()
            return grads

        return implementation._replace(forward=forward, backward=backward)

    names = ("stepwise", "cpu") if native.status()[0] else ("stepwise",)
    layer = autotune.Layer("", cell, torch.float32, 4, 3, 5, directions, gradients, False, 0, names)
    monkeypatch.setattr(operator, "IMPLEMENTATIONS", {name: noted(operator.IMPLEMENTATIONS[name]) for name in names})
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        calls = autotune._calls(layer, torch.device("cpu"))
        timed = autotune.measure(calls, lambda call: (call(), 1.0)[1])
    assert timed == autotune.Timed(dict.fromkeys(names, 1.0), {})
    one = [("forward", False), *([("backward", False)] if gradients else [])]
    other = [(name, True) for name, _ in one] if directions == 2 else []
    assert passes == [*one, *other, *(one if len(names) == 2 else [])]
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    if not native.cuda_status()[0]:
        pytest.skip(native.cuda_status()[1])
    torch.use_deterministic_algorithms(False)
    layer, x = prnn.LSTM(32, 64, bidirectional=True).cuda(), torch.randn(100, 4, 32, device="cuda")
    right, before = layer(x)[0], torch.cuda.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(autotune, "_enabled", True)
        torch.testing.assert_close(layer(x)[0], right, rtol=1e-4, atol=1e-4)
        assert "timed, us for 64 steps and back: " in prnn.explain(layer, x)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert the_file(tmp_path).exists()
