"""The compiler and the cache of compiled cells, each case in processes of its own."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import prnn
from prnn import native
from prnn.codegen import build, generate
from prnn.errors import UserError
from tests.nn.cells import slstm

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler"),
]

PROGRAM = """
import torch, prnn

@prnn.cell(gates=1, params={"decay": 0.5})
def leaky(gx, gh, state, p, inputs):
    return {"h": p.decay * state.h + torch.tanh(gx[0] + gh[0])}

layer, x = prnn.Recurrent(leaky, 3, 5), torch.ones(4, 2, 3)
output, _ = layer(x)
layer(x)
print(prnn.explain(layer, x).splitlines()[1])
with prnn.backend("reference"):
    torch.testing.assert_close(output, layer(x)[0])
"""
BY_KERNELS, BY_LOOP = (
    "layer 0: cpu (native kernels",
    "layer 0: torch, its equations under autograd (it was not compiled: ",
)


def start(tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    settings = os.environ | {"PRNN_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        [sys.executable, str(script)], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(tmp_path: Path, **environment: str) -> tuple[str, str]:
    process = start(tmp_path, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def compiler(tmp_path: Path, before: str = "", instead: str | None = None) -> str:
    """A compiler that notes each of its calls."""
    script = tmp_path / "compiler"
    command = 'exec c++ "$@"' if instead is None else instead
    script.write_text(f"#!/bin/sh\necho call >> {tmp_path}/calls\n{before}\n{command}\n")
    script.chmod(0o755)
    return str(script)


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().split()) if (tmp_path / "calls").exists() else 0


@pytest.mark.slow(seconds=15)
def test_processes_share_what_one_compiles(tmp_path: Path) -> None:
    cxx = compiler(tmp_path, before="sleep 1")
    pair = [start(tmp_path, CXX=cxx) for _ in range(2)]
    for process in pair:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and BY_KERNELS in output, errors
    assert calls(tmp_path) == 1
    output, errors = run(tmp_path, CXX="no-such-compiler")  # a hit needs none
    assert BY_KERNELS in output and not errors
    kernel = next((tmp_path / "cache" / "cells").glob("*.so"))
    kernel.write_bytes(kernel.read_bytes()[:1000])  # damaged: compiled once more
    output, errors = run(tmp_path, CXX=cxx)
    assert BY_KERNELS in output and calls(tmp_path) == 2, errors


@pytest.mark.slow(seconds=10)
def test_a_killed_compilation_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    process = start(tmp_path, CXX=compiler(tmp_path, before="sleep 600"))
    while calls(tmp_path) == 0:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    output, errors = run(tmp_path)
    assert BY_KERNELS in output and not errors


@pytest.mark.parametrize(
    ("cxx", "instead", "reason"),
    [
        ("no-such-compiler", None, r"there is no C\+\+ compiler \(no-such-compiler; CXX names another\)"),
        (None, "exit 3", "failed with exit status 3"),
        (None, "echo 'x.cpp:1: error: expected a miracle' >&2; exit 1", "x.cpp:1: error: expected a miracle"),
        (None, "exit 0", "No such file or directory"),
        (None, "echo 'No space left on device' >&2; exit 1", "No space left on device"),
    ],
    ids=["none", "fails", "error", "writes-nothing", "full"],
)
@pytest.mark.filterwarnings("ignore:prnn. the cache of compiled cells")
def test_without_a_compiler_that_works_the_loop_runs_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cxx: str | None, instead: str | None, reason: str
) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", cxx or compiler(tmp_path, instead=instead))

    @prnn.cell(gates=1)
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.cos(gx[0] + gh[0])}

    layer, x = prnn.Recurrent(cell, 2, 3), torch.zeros(2, 1, 2)
    with pytest.warns(UserWarning, match=f"the cell cell runs as a Python loop: it was not compiled: .*{reason}"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert "torch, its equations under autograd (it was not compiled: " in prnn.explain(layer, x)
    with pytest.raises(UserError, match="has no kernel for torch.float32: it was not compiled"):
        layer.compile_native()
    assert not list((tmp_path / "cache").rglob("*.so")) and not list((tmp_path / "cache").rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))

    @prnn.cell(gates=1)
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.sin(gx[0] + gh[0])}

    layer, x = prnn.Recurrent(cell, 2, 3), torch.zeros(2, 1, 2)
    with pytest.warns(UserWarning, match="the cache of compiled cells .*PRNN_CACHE names another folder"):
        assert "native kernels" in prnn.explain(layer, x)


def test_other_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @prnn.cell(gates=1)
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + gh[0])}

    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    with monkeypatch.context() as other:
        other.setattr(native, "headers", lambda: "0123456789abcdef")
        with pytest.raises(build.CannotCompile, match="was built from other headers than those that are installed"):
            build.compiled(cell.source, "Cell")
    other_version = cell.source.replace("PRNN_HEADERS,", '"another",')
    with pytest.raises(RuntimeError, match="was compiled for another version of prnn"):
        native.load_cell(build.compiled(other_version, "Cell"))
    with pytest.raises(RuntimeError, match="does not load"):
        native.load_cell(tmp_path / "nothing.so")


def test_the_source_is_readable() -> None:
    @prnn.cell(gates=1, params={"decay": 0.5})
    def leaky(gx, gh, state, p, inputs):
        drive = gx[0] + gh[0]
        return {"h": torch.sigmoid(p.decay) * state.h + torch.tanh(drive) * torch.sin(drive)}

    assert "const V drive = gates_x[0] + gates_h[0];" in leaky.source
    assert "//     drive = gx[0] + gh[0]" in leaky.source


@pytest.mark.slow(seconds=10)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are of x86-64")
@pytest.mark.parametrize("isa", native.INSTRUCTION_SETS)
def test_every_instruction_set_compiles(isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    monkeypatch.setenv("PRNN_CXXFLAGS", "-O0 -Wall -Wextra -Werror")
    monkeypatch.setattr(build, "instruction_set", lambda dtype: isa)
    emitted, _ = generate(slstm.function, slstm.signature, "Cell")
    for dtype in (torch.float32, torch.bfloat16):
        if (isa, dtype) != ("avx512_bf16", torch.float32):  # of bfloat16 alone
            assert build.compiled(build.source(emitted, "Cell", "slstm", dtype), "Cell").exists()
