"""What the CUDA kernels must do on a GPU, as plain functions: pytest runs them (test_gpu.py), and so does
``python -m benchmarks.gpu_check`` where there is no pytest. They need torch alone, and a GPU.

``CHECKS`` has them all by name, whatever GPU there is or none; what a check is about may not fit into a regime of the
GPU, and it then raises ``DoesNotFit``. It returns figures (compare.py), or raises ``Wrong``. The checks of one
``group`` belong into one process.

By hand, also with a CPU's kernels in place of the CUDA ones (targets.py):

    python -m tests.gpu.checks [cuda | cpu | torch | stand-in] [NAMES BEGIN WITH ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

import prnn
from prnn.cell_table import CELLS
from prnn.ops import BackendError, Request, backend, choose
from tests.gpu import memory_checks, recurrence_checks
from tests.gpu.compare import Figures, Wrong, require
from tests.gpu.targets import CUDA, CUDNN, KINDS, TARGETS, DoesNotFit, Target, prepare

__all__ = ["CHECKS", "Check", "DoesNotFit", "Wrong", "checks", "group", "prepare"]


class Check(NamedTuple):
    """A function, and the group of those that belong into one process with it."""

    function: Callable[[], Figures | None]
    group: str

    def __call__(self) -> Figures:
        prepare()
        return self.function() or {}


def a_graph_can_be_captured(regime: str) -> None:
    """CUDA graphs: captured once, replayed on other input."""
    CUDA.needs("gru", "float32", 8, 64, regime)
    torch.manual_seed(2)
    model = prnn.GRU(16, 64).cuda()
    still = torch.randn(10, 8, 16, device="cuda")
    with CUDA.forced(regime), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(still)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(still)[0]
        for _ in range(3):
            x = torch.randn_like(still)
            right = model(x)[0]
            still.copy_(x)
            graph.replay()
            require(torch.equal(captured, right), "a replay gave other bits")


def streams_are_respected(regime: str) -> None:
    """Work queued on a side stream waits for what that stream does."""
    CUDA.needs("lstm", "float32", 8, 64, regime)
    torch.manual_seed(3)
    model = prnn.LSTM(16, 64).cuda()
    x = torch.randn(20, 8, 16, device="cuda")
    with CUDA.forced(regime), torch.no_grad():
        right = model(x * 3)[0]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            late = torch.zeros_like(x)
            torch.cuda._sleep(50_000_000)  # some 30 ms: a kernel that did not wait would see the zeros
            late.copy_(x)
            found = model(late * 3)[0]
        torch.cuda.current_stream().wait_stream(side)
        require(torch.equal(found, right), "the work on a side stream did not wait")


def every_device_works() -> None:
    for device in range(torch.cuda.device_count()):
        model = prnn.RNN(8, 32).to(f"cuda:{device}")
        with backend("cuda"):
            output, _ = model(torch.randn(4, 2, 8, device=f"cuda:{device}"))
        require(output.device.index == device and bool(output.isfinite().all()), f"device {device}")


def what_does_not_fit_says_so() -> None:
    request = Request("lstm", 4, 2, 8, 40_000, torch.float32, "cuda", False, False, False, 0, False)
    try:
        with backend("cuda"):
            choose(request)
    except BackendError as error:
        require("40000 units fit into no regime" in str(error), str(error))
    else:
        raise Wrong("40,000 units were accepted")
    model = prnn.LSTM(8, 32).cuda()
    explained = prnn.explain(model, torch.randn(4, 2, 8, device="cuda"))
    require("cuda (block regime" in explained, explained)


def a_compiled_module_is_the_same(target: Target) -> None:
    torch.manual_seed(4)
    model = prnn.LSTM(8, 32).to(target.device)
    x = torch.randn(6, 3, 8, device=target.device)
    with target.forced(None):
        right = model(x)[0]
        right.sum().backward()
        wanted = model.weight_hh_l0.grad.clone()
        model.zero_grad()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = compiled(x)[0]
        found.sum().backward()
        require(torch.equal(found, right), "the compiled module gave other bits")
        require(torch.equal(model.weight_hh_l0.grad, wanted), "the compiled module's gradient has other bits")
        more = torch.randn(6, 5, 8, device=target.device)
        require(torch.equal(compiled(more)[0], model(more)[0]), "another batch")


def every_regime_is_there() -> Figures:
    """Clusters need sm_90; nothing else may be missing without notice. How many layers fit into each."""
    counts: Figures = {}
    for regime in CUDA.regimes:
        sizes = product(CELLS, KINDS, recurrence_checks.SIZES)
        counts[str(regime)] = sum(
            CUDA.refusal(cell, kind, size[1], size[2], regime) is None for cell, kind, size in sizes if kind != "tf32"
        )
    expected = [name for name in counts if name != "cluster" or torch.cuda.get_device_capability() >= (9, 0)]
    missing = [name for name in expected if counts[name] < 20]
    if missing:
        raise Wrong(f"hardly a layer fits into: {', '.join(missing)} ({counts})", counts)
    return counts


def checks(target: Target = CUDA) -> dict[str, Check]:
    """All checks of a target, by name. Asks no GPU anything."""
    found = {name: Check(function, group) for name, group, function in recurrence_checks.checks(target)}
    if target.name == "cuda":
        for regime in target.regimes:
            found[f"graph {regime}"] = Check(partial(a_graph_can_be_captured, regime), f"graph {regime}")
            found[f"streams {regime}"] = Check(partial(streams_are_respected, regime), f"streams {regime}")
        for cell in CELLS:
            cudnns = partial(recurrence_checks.modules_are_torchs, CUDNN, cell)
            found[f"{cell} modules cudnn"] = Check(cudnns, "modules cudnn")
        found["regimes"] = Check(every_regime_is_there, "limits")
        found["limits"] = Check(what_does_not_fit_says_so, "limits")
        found["devices"] = Check(every_device_works, "devices")
    if target.backend is not None:
        found["compile"] = Check(partial(a_compiled_module_is_the_same, target), "compile")
        found |= {name: Check(function, "memories") for name, function in memory_checks.checks(target)}
    return found


CHECKS = checks(CUDA)


def group(name: str) -> str:
    """Which checks belong into one process with this one: those of one cell and regime, or of one subject."""
    return CHECKS[name].group


def main(arguments: list[str]) -> int:
    """Runs a target's checks one after the other; 1 if one is wrong, 2 if none was run."""
    name, *beginnings = arguments or ["cuda"]
    if name not in TARGETS:
        print(f"{name}: expected one of {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    target = TARGETS[name]
    if target.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU; cpu, torch and stand-in try the checks without one", file=sys.stderr)
        return 2
    chosen = {name: check for name, check in checks(target).items() if name.startswith(tuple(beginnings or [""]))}
    if not chosen:
        print(f"no check's name begins with {' or '.join(beginnings)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    failed = 0
    for name, check in chosen.items():
        began = time.monotonic()
        try:
            said = str(check())
        except DoesNotFit as error:
            said = f"does not fit: {error}"
        except Exception as error:  # one check's failure must not hide the others
            failed += 1
            said = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name} ({time.monotonic() - began:.2f} s): {said}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
