"""Cells written in Python on the emulated GPU: prnn's own way from the cell to the launch, with a driver and a compiler
that are stand-ins (``libcuda.cpp``; g++ in the place of NVRTC). Tensors are on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from prnn.codegen import gpu
from prnn.ops import backends
from prnn.ops.backends import Choice, Request
from tests.cuda_emulation.build import CSRC, EMULATOR, HERE
from tests.native.build import call, once, vectors


class EmulatedGpu:
    """The driver, and what compiles for it into ``folder``; ``source``: the headers of the kernels."""

    def __init__(self, folder: Path, source: Path = CSRC) -> None:
        self.folder, self.source = folder, source
        folder.mkdir(parents=True, exist_ok=True)
        self._includes = [f"-I{path}" for path in (source / "cuda", source, HERE, HERE.parent / "native")]
        self._common = ["g++", "-std=c++17", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *self._includes]
        self._objects = [str(once(folder / f"{name}.o", self._emulator(name))) for name in EMULATOR]
        driver = once(folder / "libcuda.so.1", self._driver)
        # Under its soname the library finds it.
        self.driver = ctypes.CDLL(str(driver), mode=ctypes.RTLD_GLOBAL)
        self.compiled = 0

    def seed(self, seed: int) -> None:
        """Of the schedules of the next launches."""
        self.driver.prnn_emulated(ctypes.c_uint64(seed))

    def launches(self) -> int:
        """So far."""
        return self.driver.prnn_emulated_launches()

    def run(self, text: str, architecture: int) -> gpu.Compiled:
        """The compiler (``gpu.Compiler``): the path of a shared object is the image of a module."""
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        kernel = 'extern "C" void prnn_probe() {}\n' if text == gpu.PROBE else f'{text}\n#include "emulated_cell.h"\n'

        def make(unfinished: Path) -> None:
            self.compiled += 1
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
def emulated(folder: Path, source: Path = CSRC) -> Iterator[EmulatedGpu]:
    """Layers of cells written in Python run on the emulated GPU; those in float64 run as their equations."""
    device = EmulatedGpu(folder / "emulated", source)
    compiler = gpu.Compiler("emulator", device.run)

    def choose(request: Request) -> Choice:
        return backends.choose(request) if request.dtype == torch.float64 else Choice("cuda", "emulated", "cuda")

    cached = mock.patch.dict("os.environ", {"PRNN_CACHE": str(folder / "cache")})
    with cached, mock.patch("prnn.ops.layer.choose", choose), mock.patch.object(gpu, "compiler", lambda: compiler):
        yield device
