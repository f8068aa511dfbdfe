"""A cell's kernels for GPUs: their text, the compiler, which is NVRTC or nvcc, and the cache.

NVRTC comes with every CUDA build of torch, so that no toolkit is needed. A kernel is compiled when a plan first needs
it, of one scheme, shape and pass (csrc/cuda/plan.h), with as many fragments of the weights in registers as have room:
with fewer, as long as the compiler spills registers to memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from prnn.codegen import build, nvrtc
from prnn.codegen.build import CSRC, CannotCompile
from prnn.codegen.emit import Emitted
from prnn.codegen.headers import cuda_digest

ELEMENTS = {torch.float32: "float", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}  # as csrc/layer_args.h
SCHEMES, SHAPES = ("local", "grid", "sums", "units"), 3  # csrc/cuda/cuda_cells.h
FLAGS = ("-std=c++17", f"-I{CSRC}", f"-I{CSRC / 'cuda'}")
PROBE = 'extern "C" __global__ void __launch_bounds__(256, 1) prnn_probe() {}\n'
_COMPILE_SECONDS = 300  # a compiler that takes longer hangs


class KernelKey(NamedTuple):
    """Which of a cell's kernels. ``scheme``: the position of its name in ``SCHEMES``."""

    scheme: int
    backward: bool
    shape: int


class Compiled(NamedTuple):
    """A kernel's machine code, and what the compiler said of it."""

    image: bytes
    registers: int
    spilled_bytes: int


class Kernel(NamedTuple):
    """A kernel of the cache: its machine code, and how many fragments of the weights it keeps in registers."""

    image: bytes
    resident: int


class Compiler(NamedTuple):
    """``run(text, architecture, flags)`` compiles a file, or raises CannotCompile. ``name``: with its version."""

    name: str
    run: Callable[[str, int, Sequence[str]], Compiled]


class Source(NamedTuple):
    """A cell, as its kernels for GPUs are made of it. ``struct``: the name of its struct."""

    emitted: Emitted
    struct: str
    name: str

    @property
    def sizes(self) -> list[int]:
        """As csrc/bindings_user_cuda.cpp takes them."""
        e = self.emitted
        return [e.gates, e.saved, e.states, e.params, e.inputs, e.output, int(e.splits_gates)]

    def define(self) -> int:
        """The cell's number in the native library, another one at each call."""
        return torch.ops.prnn_native.cuda_define_cell(self.name, self.sizes)

    def resident(self, dtype: torch.dtype, key: KernelKey) -> int:
        """How many fragments of the weights a thread is first given, for each of its tiles of 16 rows."""
        return torch.ops.prnn_native.cuda_resident(self.sizes, dtype == torch.float32, *key)

    def text(self, dtype: torch.dtype, key: KernelKey, resident: int) -> str:
        """The whole CUDA file of one kernel for tensors of ``dtype``."""
        element, scheme = ELEMENTS[dtype], SCHEMES[key.scheme]
        precision = "exact" if dtype == torch.float32 else "quick"
        pass_of, arguments = ("BackwardPass", "SerialBackward") if key.backward else ("ForwardPass", "Forward")
        float32, backward = (str(value).lower() for value in (dtype == torch.float32, key.backward))
        _, plan, limit, of_forward, of_backward = layout()
        return f"""// A kernel of the cell {self.name}, written by prnn/codegen.
#include "user_cell.cuh"

namespace prnn::cuda {{
static_assert(sizeof(Plan) == {plan} && sizeof(WaitLimit) == {limit}, "as the host has them");
static_assert(sizeof(Directions<Forward>) == {of_forward}, "likewise");
static_assert(sizeof(Directions<SerialBackward>) == {of_backward}, "likewise");

namespace user {{
using {precision}::sigmoid_of;
using {precision}::tanh_of;

{self.emitted.text}
}}  // namespace user

template <>
struct ModelOf<user::{self.struct}> : UserModel<Scheme::{scheme}, {float32}, {backward}, {key.shape}, {resident}> {{}};

using Pass = {pass_of}<user::{self.struct}, {element}, Scheme::{scheme}, {key.shape}>;

extern "C" PRNN_KERNEL(kThreads) prnn_user_kernel(PRNN_OPERAND Plan plan, PRNN_OPERAND WaitLimit limit,
                                                  PRNN_OPERAND Directions<{arguments}> passes, void* workspace) {{
  run_user_kernel<Pass>(plan, limit, passes, workspace);
}}
}}  // namespace prnn::cuda
"""

    def fitted(self, compiler: Compiler, dtype: torch.dtype, key: KernelKey, architecture: int) -> tuple[Compiled, int]:
        """A kernel, and its number of resident fragments: the first of fewer and fewer with which it does not spill."""
        most = self.resident(dtype, key)
        while True:
            found = compiler.run(self.text(dtype, key, most), architecture, flags(dtype))
            if not found.spilled_bytes or most == 0:
                return found, most
            most = max(0, most - max(1, most // 8))  # not by what is spilled: a register may be spilled several times

    def kernel(self, dtype: torch.dtype, key: KernelKey, architecture: int) -> Kernel:
        """A kernel for GPUs of ``architecture`` (90 for sm_90), from the cache or compiled now.

        CannotCompile with the reason if it cannot be.
        """
        headers = cuda_digest(CSRC)
        if headers != layout()[0]:
            raise CannotCompile(
                "the native library was built from other headers than those that are installed: rebuild it"
            )
        with_compiler = compiler(architecture)
        text = self.text(dtype, key, self.resident(dtype, key))
        code = "\n".join(
            line for line in text.splitlines() if not line.startswith("//")
        )  # wherever the function stands
        made_of = f"{with_compiler.name} {FLAGS[0]} {flags(dtype)} sm_{architecture} {headers} {code}"
        file = build.cache() / f"{self.struct}-{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.cubin"

        def make(part: Path, _: Path) -> None:
            found, resident = self.fitted(with_compiler, dtype, key, architecture)
            head = {"resident": resident, "sha256": hashlib.sha256(found.image).hexdigest()}
            part.write_bytes(json.dumps(head).encode() + b"\n" + found.image)

        kernel = _read_kernel(build.produced(file, _is_whole, make))
        if kernel is None:
            raise CannotCompile(f"{file} cannot be read")
        return kernel


def kernel_keys() -> list[KernelKey]:
    """All that there are."""
    return [KernelKey(s, bool(b), n) for s in range(len(SCHEMES)) for b in range(2) for n in range(SHAPES)]


@cache
def layout() -> tuple[str, ...]:
    """The hash of the headers the library was built with, and the sizes of a kernel's arguments there."""
    return tuple(torch.ops.prnn_native.cuda_layout().split())


def flags(dtype: torch.dtype) -> tuple[str, ...]:
    """Divisions and square roots within 2 units in the last place of a float suffice for 16-bit results."""
    return () if dtype == torch.float32 else ("--prec-div=false", "--prec-sqrt=false")


def compilers() -> list[Compiler]:
    """Those that are here, NVRTC first."""
    found = []
    with contextlib.suppress(OSError):
        found.append(Compiler(f"NVRTC {nvrtc.load().version}", by_nvrtc))
    if shutil.which("nvcc"):
        version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
        found.append(Compiler(f"nvcc {''.join(re.findall(r'release ([0-9.]+)', version))}", by_nvcc))
    return found


@cache
def compiler(architecture: int) -> Compiler:
    """The first that can compile for GPUs of an architecture; CannotCompile where none can."""
    reasons = []
    for each in compilers():
        try:
            each.run(PROBE, architecture, ())
            return each
        except CannotCompile as reason:
            reasons.append(str(reason))
    if not reasons:
        raise CannotCompile("there is no NVRTC (libnvrtc.so, which comes with torch's CUDA builds), and no nvcc")
    raise CannotCompile("; ".join(reasons))


def by_nvrtc(text: str, architecture: int, flags: Sequence[str] = ()) -> Compiled:
    includes = f"-I{CSRC / 'cuda' / 'nvrtc'}"
    options = (*FLAGS, *flags, includes, f"-arch=sm_{architecture}", "-default-device", "--ptxas-options=-v")
    return _read(*nvrtc.load().compile(text, options))


def by_nvcc(text: str, architecture: int, flags: Sequence[str] = (), nvcc: str = "nvcc") -> Compiled:
    with tempfile.TemporaryDirectory(prefix="prnn-") as folder:
        file, cubin = Path(folder) / "cell.cu", Path(folder) / "cell.cubin"
        file.write_text(text)
        command = [nvcc, *FLAGS, *flags, f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", str(file)]
        try:
            done = subprocess.run(
                [*command, "-o", str(cubin)], capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise CannotCompile(f"nvcc did not finish within {_COMPILE_SECONDS} s") from None
        except OSError as error:
            raise CannotCompile(f"nvcc does not start: {error.strerror}") from None
        if done.returncode:
            raise CannotCompile(f"nvcc failed with exit status {done.returncode}: {nvrtc.first_error(done.stderr)}")
        return _read(cubin.read_bytes(), done.stderr)


def _read(image: bytes, log: str) -> Compiled:
    """With the registers and the spilled bytes of the one kernel, of which ptxas tells. Its stack frame does not count:
    sin and cos have one, for huge arguments.
    """
    kernel = log[max(log.rfind("Compiling entry function"), 0) :]
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", kernel)
    registers = re.search(r"Used (\d+) registers", kernel)
    if spilled is None or registers is None:
        raise CannotCompile("the compiler did not say how many registers a kernel has")
    return Compiled(image, int(registers[1]), max(map(int, spilled.groups())))


def _read_kernel(file: Path) -> Kernel | None:
    """The content of a file of the cache; None if it is not there, or not whole."""
    try:
        head, _, image = file.read_bytes().partition(b"\n")
        said = json.loads(head)
        return Kernel(image, int(said["resident"])) if said["sha256"] == hashlib.sha256(image).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_whole(file: Path) -> bool:
    return _read_kernel(file) is not None


def load(number: int, source: Source, dtype: torch.dtype, key: KernelKey, device: int) -> None:
    """Make a kernel of the cell ``number`` ready to run; CannotCompile if it cannot be compiled."""
    found = source.kernel(dtype, key, architecture(device))
    of_dtype = list(ELEMENTS).index(dtype)
    torch.ops.prnn_native.cuda_load_kernel(number, device, of_dtype, *key, found.resident, _as_tensor(found.image))


def architecture(device: int) -> int:
    """Of a GPU, 90 for sm_90; the planner knows its limits then. CannotCompile where nothing can be compiled for it."""
    found = _architecture(device)
    if isinstance(found, str):
        raise CannotCompile(found)
    return found


@cache
def _architecture(device: int) -> int | str:
    """Or why nothing can be compiled."""
    try:
        found = torch.ops.prnn_native.cuda_architecture(device)
        probe = compiler(found).run(PROBE, found, ())
        return torch.ops.prnn_native.cuda_architecture(device, _as_tensor(probe.image))
    except (CannotCompile, RuntimeError) as error:  # of a driver that is too old, for example
        return str(error).splitlines()[0]


def _as_tensor(image: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(image), dtype=torch.uint8)
