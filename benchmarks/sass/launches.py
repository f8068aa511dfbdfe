"""What is simulated: the shapes of docs/kernels.md, and the arguments of their launches."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
DTYPES = {"float32": "float", "bfloat16": "Bfloat16", "float16": "Float16"}


@dataclass(frozen=True)
class Case:
    """A layer in one pass, with constraints on its plan."""

    name: str
    cell: str
    dtype: str
    B: int
    H: int
    directions: int = 1
    backward: bool = False
    filter: tuple[tuple[str, str], ...] = ()
    measured: tuple[int, int] | None = None  # instructions and cycles a step of docs/kernels.md
    K: int = -1  # the recurrence of a cell written in Python: H, or 1 (diagonal) or 0 (none); -1 as H
    T: int = 12  # steps of a run, the middle third of which is measured

    @property
    def label(self) -> str:
        return f"{self.name}, {'backward' if self.backward else 'forward'}"


_SHAPES = (
    ("lstm768", "lstm", "bfloat16", 16, 768, 1),
    ("lstm1024", "lstm", "bfloat16", 16, 1024, 1),
    ("gru1024", "gru", "bfloat16", 32, 1024, 1),
    ("rnn100", "rnn_relu", "float32", 32, 100, 1),
    ("rnn1152", "rnn_relu", "bfloat16", 4, 1152, 1),
    ("rnn1760", "rnn_relu", "bfloat16", 16, 1760, 1),
    ("bilstm512", "lstm", "bfloat16", 16, 512, 2),
)
CASES = [Case(*shape, backward=backward) for shape in _SHAPES for backward in (False, True)]
# The kernels profiled on an H200: "A step is bound by overhead instructions" in docs/kernels.md.
_GRID_48 = (("regime", "grid"), ("blocks", "48"), ("shape", "0"), ("row_warps", "1"))
VALIDATION = [
    Case("v-rnn100", "rnn_relu", "float32", 32, 100, 1, False,
         (("regime", "block"), ("shape", "0"), ("row_warps", "8"), ("tiles", "16")), (751, 5260)),
    Case("v-lstm256", "lstm", "bfloat16", 16, 256, 1, False, (("regime", "cluster"),), (433, 5830)),
    Case("v-lstm768", "lstm", "bfloat16", 16, 768, 1, False, _GRID_48, (1035, 8410)),
    Case("v-lstm768", "lstm", "bfloat16", 16, 768, 1, True, _GRID_48, (1854, 15830)),
]  # fmt: skip


@dataclass
class Launch:
    parameters: list[bytes] = field(default_factory=list)
    arrays: dict[str, tuple[int, int]] = field(default_factory=dict)  # address, bytes
    values: dict[str, int] = field(default_factory=dict)
    regime: str = ""

    @property
    def has_product(self) -> bool:
        return self.values.get("product", 1) != 0

    def plan(self) -> str:
        v = self.values
        return (
            f"{self.regime} {v['teams']} x {v['blocks']}, shape {v['shape']}, {v['row_warps']} x {v['k_warps']} warps, "
            f"{v['columns']} columns"
        )


def program(source: Path, folder: Path) -> Path:
    """Compiles launches.cpp against the kernels' headers in ``source``."""
    cuda = source / "prnn" / "csrc" / "cuda"
    built = folder / "launches"
    compiler = os.environ.get("CXX", "g++").split()[0]
    own = source / "benchmarks" / "sass" / "launches.cpp"  # which knows the structs of its checkout
    files = [own if own.exists() else HERE / "launches.cpp", cuda / "planner.cpp", cuda / "timeouts.cpp"]
    command = [compiler, "-std=c++17", "-O0", f"-I{cuda}", *map(str, files), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"launches.cpp does not compile against {cuda}:\n{done.stderr}")
    return built


def launch(built: Path, case: Case) -> Launch:
    command = [
        str(built), case.cell, case.dtype, str(case.B), str(case.H), str(case.directions), str(case.T),
        "backward" if case.backward else "forward", *(f"{key}={value}" for key, value in case.filter),
        *([f"K={case.K}"] if case.K >= 0 else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case.label}: {done.stderr.strip()}")
    found = Launch()
    for line in done.stdout.splitlines():
        kind, *rest = line.split()
        if kind == "parameter":
            found.parameters.append(bytes.fromhex(rest[0]))
        elif kind == "array":
            found.arrays[rest[0]] = int(rest[1]), int(rest[2])
        elif kind == "value":
            found.values[rest[0]] = int(rest[1])
        else:
            found.regime = rest[1]
    return found


def is_kernel(mangled: str, case: Case, shape: int) -> bool:
    """Whether this is a kernel of the case, whatever other template parameters follow the shape."""
    cell = "".join(part.capitalize() for part in case.cell.split("_"))
    # A type in a mangled name: its length and its name, or f for float.
    name = DTYPES[case.dtype]
    element = "Ef" if case.dtype == "float32" else rf"E\w*?{len(name)}{name}E"
    kind = "recurrence_backward" if case.backward else "recurrence_forward"
    return (
        re.search(rf"{kind}\w*{len(cell)}{cell}{element}(Lb[01]E|LNS0_6SchemeE[0-9]E)?Li{shape}E", mangled) is not None
    )


def kernel_of(names: list[str], case: Case, launch: Launch, pattern: str = "") -> str:
    """The kernel of a launch; where there are several, that of its scheme, or the one like ``pattern``."""
    found = [name for name in names if is_kernel(name, case, launch.values["shape"]) and re.search(pattern, name)]
    if len(found) > 1:
        # Former kernels: whether their regime is the grid.
        scheme = launch.values.get("scheme")
        mark = f"Lb{int(launch.regime == 'grid')}ELi" if scheme is None else f"SchemeE{scheme}ELi"
        found = [name for name in found if mark in name]
    if len(found) != 1:
        raise RuntimeError(f"{case.label}: {len(found)} kernels have its cell, elements and shape: {found}")
    return found[0]
