"""How many multiprocessors plans may use, without a GPU: what the library is asked, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import prnn
from prnn import cuda_plan, native, ops
from prnn.cell_table import CELLS
from prnn.ops import cuda

PLAN = "1.4 grid regime, 2 x 48 blocks"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A GPU of 132 multiprocessors, and how many of them each question to the library was about."""
    numbers: list[int] = []

    def explain(cell: int, dtype: int, B: int, H: int, tf32: bool, device: int, most: int, regime: str, K: int) -> str:
        numbers.append(most)
        return f"{PLAN}\n{PLAN}\n" if 16 * (most or 132) >= H else "\n\n"

    monkeypatch.setattr(native, "cuda_status", lambda: (True, ""))
    monkeypatch.setattr(native, "cuda_cells", lambda: tuple(CELLS))
    monkeypatch.setattr(native, "_CELL_IDS", {name: number for number, name in enumerate(CELLS)})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_plan, "_multiprocessors_of", lambda device: 132)
    monkeypatch.setattr(torch.ops.prnn_native, "cuda_explain", explain, raising=False)
    for name in ("PRNN_CUDA_MAX_SMS", "NCCL_MAX_CTAS", "NCCL_MAX_NCHANNELS", "PRNN_CUDA_REGIME", "PRNN_CUDA_PLAN"):
        monkeypatch.delenv(name, raising=False)
    cuda_plan._plans.cache_clear()
    yield numbers
    cuda_plan._plans.cache_clear()
    prnn.cuda_reserve_sms(None)


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A process group, of two GPUs and NCCL, as far as is asked about it."""
    group = SimpleNamespace(size=2, backends="cpu:gloo,cuda:nccl")
    monkeypatch.setattr(dist, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: group.size)
    monkeypatch.setattr(dist, "get_backend_config", lambda: group.backends)
    return group


def limit() -> int:
    return cuda_plan.multiprocessors(0)[0]


def choice(H: int = 768) -> ops.Choice:
    request = ops.Request("lstm", 9, 16, 64, H, torch.bfloat16, "cuda", False, False, False, 0, True)
    return ops.choose(request)


def test_all_of_a_gpu_by_default(asked: list[int]) -> None:
    assert cuda_plan.multiprocessors(0) == (0, "") and "multiprocessors" not in choice().reason
    assert asked == [0]


def test_a_limit_and_a_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    prnn.cuda_reserve_sms(20)
    assert cuda_plan.multiprocessors(0) == (112, "at most 112 of 132 multiprocessors: cuda_reserve_sms(20)")
    monkeypatch.setenv("PRNN_CUDA_MAX_SMS", "100")
    assert limit() == 100
    prnn.cuda_reserve_sms(40)
    assert limit() == 92
    prnn.cuda_reserve_sms(0)
    assert cuda_plan.multiprocessors(0) == (100, "at most 100 of 132 multiprocessors: PRNN_CUDA_MAX_SMS=100")
    monkeypatch.setenv("PRNN_CUDA_MAX_SMS", "500")
    assert cuda_plan.multiprocessors(0) == (0, "")


def test_room_for_nccl(nccl: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_plan.multiprocessors(0) == (100, "at most 100 of 132 multiprocessors: 32 left to NCCL")
    for variables, expected in (
        ({"NCCL_MAX_NCHANNELS": "24"}, 108),
        ({"NCCL_MAX_CTAS": "16"}, 116),
        ({"NCCL_MAX_NCHANNELS": "8"}, 124),
        ({"NCCL_MAX_NCHANNELS": "many", "NCCL_MAX_CTAS": "-1"}, 100),
        ({"NCCL_MAX_NCHANNELS": "0", "NCCL_MAX_CTAS": "1000"}, 66),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert limit() == expected, variables
    prnn.cuda_reserve_sms(0)
    assert limit() == 0
    prnn.cuda_reserve_sms(2)
    assert limit() == 130
    prnn.cuda_reserve_sms(None)
    nccl.size = 1
    assert limit() == 0
    nccl.size, nccl.backends = 2, "cpu:gloo,cuda:gloo"
    assert limit() == 0


def test_torch_names_backends_as_is_expected() -> None:
    config = dist.distributed_c10d.BackendConfig
    assert "cuda:nccl" in repr(config(dist.Backend("nccl"))) and "cuda:nccl" in str(config(dist.Backend("nccl")))


def test_the_plan_is_made_for_what_is_left(asked: list[int]) -> None:
    assert choice(1760).backend == "cuda"
    prnn.cuda_reserve_sms(32)
    assert choice().reason.endswith(", 1.4 us; at most 100 of 132 multiprocessors: cuda_reserve_sms(32)")
    no_plan = choice(1760)
    assert no_plan.backend == "torch" and asked == [0, 100, 100]
    assert no_plan.reason.endswith("no regime of this GPU; at most 100 of 132 multiprocessors: cuda_reserve_sms(32)")


def test_each_launch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the backward pass of a forward pass before, of what holds at that moment."""
    told: list[object] = []
    for name in ("cuda_recurrence_forward", "cuda_recurrence_backward"):
        monkeypatch.setattr(torch.ops.prnn_native, name, lambda *operands: told.append(operands[-2:]), raising=False)
    cuda.serial_forward(torch.empty(0), None)
    prnn.cuda_reserve_sms(30)
    cuda.serial_backward(None, torch.empty(0), None)
    cuda.serial_backward(None, torch.empty(0), None, regime="grid")
    assert told == [(0, ""), (102, ""), (102, "grid")]


@pytest.mark.parametrize("given", ["0", "-3", "half", "1.5", "\u00b2"])
def test_a_limit_that_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_CUDA_MAX_SMS", given)
    with pytest.raises(ops.BackendError, match=f"^PRNN_CUDA_MAX_SMS={given}: expected the number of multiprocessors"):
        choice()


def test_a_reserve_that_is_none() -> None:
    with pytest.raises(ValueError, match="^cuda_reserve_sms takes a number of multiprocessors, 0 or more, got -1$"):
        prnn.cuda_reserve_sms(-1)
    for given in (True, 1.5, "8"):
        with pytest.raises(TypeError, match="^cuda_reserve_sms takes a number of multiprocessors or None, got "):
            prnn.cuda_reserve_sms(given)
    assert limit() == 0
    prnn.cuda_reserve_sms(132)
    with pytest.raises(ops.BackendError, match="^cuda_reserve_sms\\(132\\) leaves none of the 132 .* of cuda:0$"):
        choice()
