"""benchmarks/gpu_build.py with made-up processes: when a library is built, how, and what is said where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_build
from benchmarks.common.killable import running, wait_for
from prnn import native


def answer(*architectures: str, why: str = "") -> tuple[int, str]:
    return 0, json.dumps({"architectures": architectures, "why": why}) + "\nsome warning\n"


BROKEN = (-11, "Segmentation fault\n")
BUILT = (0, "building\n")
UNSERVED = answer("9.0", why="the library does not serve sm_9.0: no kernel image")


class Commands:
    """Answers commands one after the other, and keeps them."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers, self.calls = list(answers), []

    def __call__(self, command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
        self.calls.append((command[1:], environment, seconds))
        return self.answers.pop(0)


def prepared(commands: Commands, tmp_path: Path) -> gpu_build.Built:
    found = gpu_build.prepare(tmp_path / "log.txt", 300.0, commands)
    assert not commands.answers, "not all was asked"
    return found


def test_a_library_that_serves_is_not_built_again(tmp_path):
    commands = Commands(answer("9.0", "9.0"))
    found = prepared(commands, tmp_path)
    assert (found.ok, found.prebuilt, found.architectures, found.why) == (True, True, ["9.0"], "")
    command, environment, _ = commands.calls[0]
    assert "--probe" in command and environment["PRNN_NO_NATIVE"] == "0" and environment["PRNN_CUDA_REGIME"] == ""


def test_a_library_without_kernels_for_the_gpu_is_built_for_it_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 12.0+PTX")  # as containers set it
    commands = Commands(UNSERVED, BUILT, answer("9.0"))
    found = prepared(commands, tmp_path)
    assert (found.ok, found.prebuilt, found.architectures, found.why) == (True, False, ["9.0"], "")
    command, environment, seconds = commands.calls[1]
    assert command == ["setup.py", "build_ext", "--inplace", "--force"] and seconds == 300
    assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0" and environment["PRNN_REQUIRE_NATIVE"] == "1"
    assert environment["MAX_JOBS"] == str(len(os.sched_getaffinity(0)))
    assert environment["PRNN_NO_NATIVE"] == environment["PRNN_NO_CUDA"] == "0"


def test_a_library_that_crashes_is_built_again(tmp_path):
    commands = Commands(BROKEN, answer("8.0", "9.0", why="left out"), BUILT, answer("8.0", "9.0"))
    assert prepared(commands, tmp_path).ok
    assert commands.calls[1][1]["PRNN_NO_NATIVE"] == "1"
    assert commands.calls[2][1]["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0"


def test_a_build_that_leaves_the_cuda_kernels_out_is_not_ok(tmp_path):
    left_out = answer("9.0", why="the library has no CUDA kernels: built without CUDA")
    found = prepared(Commands(UNSERVED, BUILT, left_out), tmp_path)
    assert not found.ok and not found.prebuilt and found.why == "the library has no CUDA kernels: built without CUDA"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (
            [UNSERVED, (1, "one\nx.cu(3): error: no\nninja stopped\n")],
            "the build ended with status 1: x.cu(3): error: no",
        ),
        ([UNSERVED, (124, "[3/20]\n")], "the build ran out of time: [3/20]"),
        ([UNSERVED, BUILT, BROKEN], "loading the library and asking it about the GPU ended with signal 11"),
        ([answer(why="torch 2.13 sees no CUDA device")] * 2, "torch 2.13 sees no CUDA device"),
        ([BROKEN, (124, "")], "loading the library and asking it about the GPU ran out of time"),
        ([answer("7.5", why="no")], "the CUDA kernels need sm_80 or later, and this GPU is of 7.5"),
    ],
)
def test_what_fails_is_said_in_one_sentence(tmp_path, answers, why):
    found = prepared(Commands(*answers), tmp_path)
    assert not found.ok and found.why == why and "\n" not in found.why


CELLS = ("rnn_relu", "rnn_tanh", "gru", "lstm")


def gpu(monkeypatch: pytest.MonkeyPatch, explain: Callable[..., str]) -> None:
    """Two GPUs of sm_90, and a library with CUDA kernels that explains itself so."""
    operators = type("Operators", (), {"cuda_explain": staticmethod(explain)})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(native, "cuda_status", lambda: (True, ""))
    monkeypatch.setattr(native, "cuda_cells", lambda: CELLS)
    monkeypatch.setattr(native, "cell_id", CELLS.index)
    monkeypatch.setattr(torch.ops, "prnn_native", operators, raising=False)


def test_the_library_is_asked_about_every_gpu_cell_and_type(monkeypatch):
    asked = set()

    def explain(cell, dtype, B, H, tf32, device):
        asked.add((cell, dtype, device))
        return "1 block regime\n2 block regime\n"

    gpu(monkeypatch, explain)
    assert gpu_build.probe() == {"architectures": ["9.0", "9.0"], "why": ""}
    assert len(asked) == 4 * 3 * 2


def test_a_library_without_a_kernel_image_does_not_serve(monkeypatch):
    def explain(cell, dtype, B, H, tf32, device):
        if device == 1 and cell == 2:
            raise RuntimeError("prnn: no kernel image is available for execution on the device\nstack")
        return "1 block\n2 block\n"

    gpu(monkeypatch, explain)
    assert gpu_build.probe()["why"].startswith("the library does not serve sm_9.0: prnn: no kernel image")
    gpu(monkeypatch, lambda *shape: "\n\n")
    assert "no plan" in gpu_build.probe()["why"]
    monkeypatch.setattr(native, "cuda_status", lambda: (False, "not built"))
    assert gpu_build.probe()["why"] == "the library has no CUDA kernels: not built"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_builds_nothing(tmp_path):
    found = gpu_build.prepare(tmp_path / "log.txt")
    assert not found.ok and found.why.startswith(f"torch {torch.__version__} ")
    assert "setup.py" not in (tmp_path / "log.txt").read_text()


def test_a_command_at_its_limit_ends_with_what_it_started(tmp_path):
    run = gpu_build.logged(tmp_path / "log.txt")
    assert run(["sh", "-c", "echo first"], {}, 60.0) == (0, "first\n")
    status, said = run(["sh", "-c", "sleep 600 & echo $!; wait"], {}, 1.0)
    assert status == 124
    wait_for(lambda: not running(int(said)), "the end of what the command had started")
    assert "first" in (tmp_path / "log.txt").read_text()
    late = gpu_build.logged(tmp_path / "log.txt", until=time.monotonic() + 1)
    assert late(["sleep", "600"], {}, 60.0)[0] == 124


def test_a_command_does_not_outlive_who_wants_it(tmp_path):
    code = f"""
from pathlib import Path
from benchmarks.gpu_build import logged
logged(Path({str(tmp_path / "log.txt")!r}))(["sh", "-c", "echo $$; exec sleep 600"], {{}}, 60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=gpu_build.ROOT)
    said = tmp_path / "log.txt"
    wait_for(lambda: said.exists() and said.read_text().count("\n") > 1, "the command's first words")
    process.kill()
    process.wait()
    wait_for(lambda: not running(int(said.read_text().split()[-1])), "the end of the command")


def test_micro_is_compiled_for_the_architecture(tmp_path):
    compiler = tmp_path / "nvcc"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" >"$last"\n')
    compiler.chmod(0o755)
    call = gpu_build.logged(tmp_path / "log.txt")
    program = gpu_build.compile_micro(call, tmp_path, compiler, "9.0")
    assert "-gencode=arch=compute_90,code=sm_90" in program.read_text()
    compiler.write_text("#!/bin/sh\necho 'micro.cu(1): error'\nexit 2\n")
    with pytest.raises(RuntimeError, match="nvcc ended with status 2 at micro.cu: micro.cu\\(1\\): error"):
        gpu_build.compile_micro(call, tmp_path, compiler, "9.0")
    with pytest.raises(RuntimeError, match="missing does not start: No such file"):
        gpu_build.compile_micro(call, tmp_path, tmp_path / "missing", "9.0")


def test_what_micro_said_before_it_was_stopped_is_kept():
    said = '{"name": "device", "multiprocessors": 132}\n{"name": "l2_load", "ns": 150.5}\n{"name": "grid_ba'
    assert gpu_build.micro_lines(said)[1] == {"name": "l2_load", "ns": 150.5}
    assert [line["name"] for line in gpu_build.micro_lines(said)] == ["device", "l2_load"]
