"""A cell's kernels for GPUs: their text, the compiler, which is NVRTC or nvcc, and the cache.

NVRTC comes with every CUDA build of torch, so that no toolkit is needed. A kernel is compiled when the planner first
asks for it, of one scheme, shape and pass (csrc/cuda/plan.h), with as many fragments of the weights in registers as
there is room for: with fewer, as long as the compiler spills registers to memory.

Shapes: G gates; a fragment is 16 x 16 weights.
"""

from __future__ import annotations

import hashlib
import json
import math
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

ELEMENTS = {torch.float32: "float", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
SCHEMES, SHAPES = ("local", "grid", "sums", "units"), 3  # csrc/cuda/cuda_cells.h
INCLUDES = (CSRC, CSRC / "cuda")
PROBE = 'extern "C" __global__ void __launch_bounds__(256, 1) prnn_probe() {}\n'


class Which(NamedTuple):
    """One of a cell's kernels. ``scheme``: a number of ``SCHEMES``."""

    scheme: int
    backward: bool
    shape: int


def every() -> list[Which]:
    """All that there are, in the order of a table of the library's."""
    return [Which(s, bool(b), n) for s in range(len(SCHEMES)) for b in range(2) for n in range(SHAPES)]


class Compiled(NamedTuple):
    """A kernel's machine code, and what the compiler said of it."""

    image: bytes
    registers: int
    spilled_bytes: int


class Kernel(NamedTuple):
    """A kernel as it is loaded: with so many fragments of the weights in registers."""

    image: bytes
    resident: int
    registers: int


def source(emitted: Emitted, struct: str, name: str, dtype: torch.dtype, which: Which, resident: int) -> str:
    """The whole CUDA file of one kernel of a cell for tensors of ``dtype``."""
    element, scheme = ELEMENTS[dtype], SCHEMES[which.scheme]
    precision = "exact" if dtype == torch.float32 else "quick"
    pass_of, arguments = ("BackwardPass", "SerialBackward") if which.backward else ("ForwardPass", "Forward")
    float32, backward = (str(value).lower() for value in (dtype == torch.float32, which.backward))
    _, plan, limit, forward, of_backward = layout()
    return f"""// A kernel of the cell {name}, written by prnn/codegen.
#include "user_cell.cuh"

namespace prnn::cuda {{
static_assert(sizeof(Plan) == {plan} && sizeof(WaitLimit) == {limit}, "as the host has them");
static_assert(sizeof(Directions<Forward>) == {forward}, "likewise");
static_assert(sizeof(Directions<SerialBackward>) == {of_backward}, "likewise");

namespace user {{
using {precision}::sigmoid_of;
using {precision}::tanh_of;

{emitted.text}
}}  // namespace user

template <>
struct ModelOf<user::{struct}> : UserModel<Scheme::{scheme}, {float32}, {backward}, {which.shape}, {resident}> {{}};

using Pass = {pass_of}<user::{struct}, {element}, Scheme::{scheme}, {which.shape}>;

extern "C" PRNN_KERNEL(kThreads) prnn_user_kernel(PRNN_OPERAND Plan plan, PRNN_OPERAND WaitLimit limit,
                                                  PRNN_OPERAND Directions<{arguments}> passes, void* workspace) {{
  run_user_kernel<Pass>(plan, limit, passes, workspace);
}}
}}  // namespace prnn::cuda
"""


@cache
def layout() -> tuple[str, ...]:
    """The hash of the headers the library was built with, and the sizes of a kernel's arguments there."""
    return tuple(torch.ops.prnn_native.cuda_layout().split())


def resident(emitted: Emitted, dtype: torch.dtype, which: Which) -> int:
    """How many fragments of the weights a thread is first given, for each of its tiles of 16 rows.

    By what else it has in its 255 registers: accumulators, state that is on its way, an item's values and addresses.
    """
    scheme, G, words = SCHEMES[which.scheme], emitted.gates, 8 if dtype == torch.float32 else 4
    if scheme == "units":
        return 0
    columns = (2, 8, 2)[which.shape] if words == 8 else (8, 16, 8)[which.shape]
    groups = (4, 4, 6)[which.shape] if scheme == "sums" else (1, 1, 2)[which.shape]
    tiles = groups if which.backward else G * groups
    sums = tiles * 2 * columns if words == 8 else tiles * 4 * math.ceil(columns / 8)
    flight = 32 if scheme == "grid" else 8 * math.ceil(columns / 8)
    values = emitted.states + emitted.saved + emitted.inputs
    item = 2 * values + 3 * G + emitted.params + 12 if which.backward else values + G + 10
    free = 255 - _OTHER_REGISTERS - sums - flight - item * (2 if scheme == "local" else 1)
    return max(0, free // (tiles * words))


_OTHER_REGISTERS = 64  # which the built-in cells' kernels have besides


class Compiler(NamedTuple):
    """``run(text, architecture, flags)`` compiles a file, or raises CannotCompile. ``name``: with its version."""

    name: str
    run: Callable[[str, int, Sequence[str]], Compiled]


def flags(dtype: torch.dtype) -> tuple[str, ...]:
    """Divisions and square roots within 2 units in the last place of a float suffice for 16-bit results."""
    return () if dtype == torch.float32 else ("--prec-div=false", "--prec-sqrt=false")


@cache
def compiler() -> Compiler:
    """NVRTC, else nvcc; CannotCompile where there is neither."""
    try:
        library = nvrtc.load()
    except OSError as error:
        found = shutil.which("nvcc")
        if found is None:
            raise CannotCompile(f"there is no compiler for GPUs: {error}; and no nvcc on the PATH") from None
        version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        return Compiler(f"nvcc {''.join(re.findall(r'release ([0-9.]+)', version))}", by_nvcc)
    return Compiler(f"nvrtc {library.version}", by_nvrtc)


FLAGS = ("-std=c++17", *(f"-I{path}" for path in INCLUDES))


def by_nvrtc(text: str, architecture: int, flags: Sequence[str] = ()) -> Compiled:
    options = (
        *FLAGS,
        *flags,
        f"-I{CSRC / 'cuda' / 'nvrtc'}",
        f"-arch=sm_{architecture}",
        "-default-device",
        "--ptxas-options=-v",
    )
    return _read(*nvrtc.load().compile(text, options))


def by_nvcc(text: str, architecture: int, flags: Sequence[str] = (), nvcc: str = "nvcc") -> Compiled:
    with tempfile.TemporaryDirectory(prefix="prnn-") as folder:
        file, cubin = Path(folder) / "cell.cu", Path(folder) / "cell.cubin"
        file.write_text(text)
        command = [
            nvcc,
            *FLAGS,
            *flags,
            f"-arch=sm_{architecture}",
            "-Xptxas",
            "-v",
            "-cubin",
            str(file),
            "-o",
            str(cubin),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise CannotCompile(f"nvcc failed with exit status {done.returncode}: {nvrtc.first_error(done.stderr)}")
        return _read(cubin.read_bytes(), done.stderr)


def _read(image: bytes, log: str) -> Compiled:
    """With the registers and the bytes in local memory of the one kernel, of which ptxas tells."""
    kernel = log[max(log.rfind("Compiling entry function"), 0) :]
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", kernel)
    registers = re.search(r"Used (\d+) registers", kernel)
    spilled = max(map(int, stack.groups())) if stack else 0
    return Compiled(image, int(registers[1]) if registers else 0, spilled)


def kernel(emitted: Emitted, struct: str, name: str, dtype: torch.dtype, which: Which, architecture: int) -> Kernel:
    """A kernel for GPUs of ``architecture`` (90 for sm_90), from the cache or compiled now.

    CannotCompile with the reason if it cannot be.
    """
    headers = cuda_digest(CSRC)
    if headers != layout()[0]:
        raise CannotCompile("the native library was built from other headers than those that are installed: rebuild it")
    with_compiler, first = compiler(), resident(emitted, dtype, which)
    text = source(emitted, struct, name, dtype, which, first)
    code = "\n".join(line for line in text.splitlines() if not line.startswith("//"))  # wherever the function stands
    key = f"{with_compiler.name} {FLAGS[0]} {flags(dtype)} sm_{architecture} {headers} {code}"
    file = build.cache() / f"{struct}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"

    def make(part: Path, _: Path) -> None:
        found, most = fitted(with_compiler, emitted, struct, name, dtype, which, architecture)
        head = {"resident": most, "registers": found.registers, "bytes": len(found.image)}
        part.write_bytes(json.dumps(head).encode() + b"\n" + found.image)

    kernel = _read_kernel(build.produced(file, _is_whole, make))
    assert kernel is not None
    return kernel


def fitted(
    compiler: Compiler, emitted: Emitted, struct: str, name: str, dtype: torch.dtype, which: Which, architecture: int
) -> tuple[Compiled, int]:
    """A kernel that does not spill, unless it does with nothing resident, and the number of its resident fragments."""
    most = resident(emitted, dtype, which)
    while True:
        found = compiler.run(source(emitted, struct, name, dtype, which, most), architecture, flags(dtype))
        if not found.spilled_bytes or most == 0:
            return found, most
        most = max(0, most - max(1, most // 8))  # not by what is spilled: a register may be spilled several times


def _read_kernel(file: Path) -> Kernel | None:
    """The content of a file of the cache; None if it is not there, or not whole."""
    try:
        head, _, image = file.read_bytes().partition(b"\n")
        said = json.loads(head)
        return Kernel(image, said["resident"], said["registers"]) if said["bytes"] == len(image) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_whole(file: Path) -> bool:
    return _read_kernel(file) is not None


class CellOnGpu:
    """A cell for tensors of one dtype on GPUs of one architecture; ``number`` is its in the native library."""

    def __init__(self, emitted: Emitted, struct: str, name: str, dtype: torch.dtype, architecture: int) -> None:
        self._of = (emitted, struct, name, dtype)
        self._architecture = architecture
        e = emitted
        sizes = [e.gates, e.saved, e.states, e.params, e.inputs, e.output, int(e.splits_gates)]
        table = [resident(emitted, dtype, which) for which in every()]
        self.number: int = torch.ops.prnn_native.cuda_define_cell(name, sizes, table)

    def load(self, which: Which, device: int) -> None:
        """Make a kernel ready to run; CannotCompile if it cannot be compiled."""
        found = kernel(*self._of, which, self._architecture)
        torch.ops.prnn_native.cuda_load_kernel(self.number, device, *which, found.resident, _as_tensor(found.image))


def architecture(device: int) -> int:
    """Of a GPU, 90 for sm_90; the planner knows its limits then. CannotCompile where nothing can be compiled for it."""
    found = _architecture(device)
    if isinstance(found, str):
        raise CannotCompile(found)
    return found


@cache
def _architecture(device: int) -> int | str:
    """Or why nothing can be compiled."""
    found = torch.ops.prnn_native.cuda_architecture(device)
    try:
        probe = compiler().run(PROBE, found, ())
    except CannotCompile as error:
        return str(error)
    return torch.ops.prnn_native.cuda_architecture(device, _as_tensor(probe.image))


def _as_tensor(image: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(image), dtype=torch.uint8)


def wanted(error: RuntimeError) -> Which | None:
    """The kernel for want of which the library could not run a cell (csrc/cuda/user_kernels.h)."""
    found = re.search(r"prnn wants kernel (\d) (\d) (\d)", str(error))
    return None if found is None else Which(int(found[1]), found[2] == "1", int(found[3]))
