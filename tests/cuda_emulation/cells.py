"""Cells written in Python on the emulated GPU: prnn's own way from the cell to the launch, with a driver and a compiler
that are stand-ins (``libcuda.cpp``; g++ in the place of NVRTC). Tensors are on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import prnn
from prnn.codegen import gpu
from prnn.ops import backends
from prnn.ops.backends import Choice, Request
from tests.cuda_emulation.build import CSRC, EMULATOR, HERE
from tests.native.build import call, once, vectors
from tests.nn.cells import inputs_of, make, off, results


class EmulatedGpu:
    """The driver and the emulator, in the folder ``emulator``, and what compiles for them into ``folder``. ``source``:
    the headers of the kernels.
    """

    def __init__(self, folder: Path, emulator: Path, source: Path = CSRC) -> None:
        self.folder = folder
        for each in (folder, emulator):
            each.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in (source / "cuda", source, HERE, HERE.parent / "native")]
        self._common = ["g++", "-std=c++17", "-fPIC", "-Wno-unknown-pragmas", *includes]
        self._objects = [str(once(emulator / f"{name}.o", self._emulator(name))) for name in EMULATOR]
        driver = once(emulator / "libcuda.so.1", self._driver)
        # Under its soname the library finds it.
        self.driver = ctypes.CDLL(str(driver))

    def seed(self, seed: int) -> None:
        """Of the schedules of the next launches."""
        self.driver.prnn_emulated(ctypes.c_uint64(seed))

    def launches(self) -> int:
        """So far."""
        return self.driver.prnn_emulated_launches()

    def run(self, text: str, architecture: int, flags: Sequence[str]) -> gpu.Compiled:
        """The compiler (``gpu.Compiler``): the path of a shared object is the image of a module."""
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        kernel = 'extern "C" void prnn_probe() {}\n' if text == gpu.PROBE else f'{text}\n#include "emulated_cell.h"\n'

        def make(unfinished: Path) -> None:
            file = self.folder / f"{name}.cpp"
            file.write_text(kernel)
            command = [*self._common, "-Og", "-shared", "-Wl,-Bsymbolic", str(file), *self._objects]
            call([*command, "-o", str(unfinished)])

        return gpu.Compiled(str(once(self.folder / f"{name}.so", make)).encode() + b"\0", 0, 0)

    def _emulator(self, name: str) -> Callable[[Path], None]:
        command = [*self._common, "-O3", *vectors(), "-Wno-clobbered", "-c", str(HERE / name)]
        return lambda unfinished: call([*command, "-o", str(unfinished)])

    def _driver(self, unfinished: Path) -> None:
        flags = ["-O1", "-shared", "-Wl,-soname,libcuda.so.1"]
        call([*self._common, *flags, str(HERE / "libcuda.cpp"), "-o", str(unfinished), "-ldl"])


@contextlib.contextmanager
def emulated(folder: Path, emulator: Path, source: Path = CSRC) -> Iterator[EmulatedGpu]:
    """Layers of cells written in Python run on the emulated GPU; those in float64 run as their equations."""
    device = EmulatedGpu(folder, emulator, source)
    compiler = gpu.Compiler("emulator", device.run)

    def choose(request: Request) -> Choice:
        return backends.choose(request) if request.dtype == torch.float64 else Choice("cuda", "emulated", "cuda")

    cached = mock.patch.dict("os.environ", {"PRNN_CACHE": str(folder / "cache")})
    with cached, mock.patch("prnn.ops.layer.choose", choose), mock.patch.object(gpu, "compiler", lambda _: compiler):
        yield device


def check(layer: prnn.Recurrent, x: Tensor, state: Any = None, **given: Any) -> dict[str, Tensor]:
    """Results on the emulated GPU; AssertionError unless they agree with those of the equations in float64."""

    def double(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: double(each) for name, each in value.items()}
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    computed = results(layer, x, state, **given)
    right = results(copy.deepcopy(layer).double(), double(x), double(state), **double(given))
    error = off({name: value.double() for name, value in computed.items()}, right)
    assert error < TOLERANCE[x.dtype], f"is off by {error:.2g}"
    return computed


TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}  # of a tensor's norm


def planted(cell: str, heads: int, regime: str, folder: Path, emulator: Path, source: Path) -> None:
    """One layer, whose kernels are made of headers with a mistake."""
    os.environ["PRNN_CUDA_REGIME"] = regime
    with emulated(folder, emulator, source):
        layer = make(cell, 3, 80, heads=heads, bidirectional=True)
        state = {name: torch.rand(2, 5, 80) for name in layer.cell.signature.states}
        given = {"lengths": torch.tensor([9, 9, 3, 0, 8]), "resets": torch.rand(9, 5) < 0.3}
        check(layer, torch.randn(9, 5, 3), state, inputs=inputs_of(layer, 9, 5), **given)


if __name__ == "__main__":
    cell, heads, regime, *folders = sys.argv[1:]
    planted(cell, int(heads), regime, *map(Path, folders))
