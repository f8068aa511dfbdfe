"""Ready cells compile for GPUs, by NVRTC and by nvcc, and no kernel spills; the driver's declarations are CUDA's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import prnn
from benchmarks.sass.disassembly import NoDisassembler
from prnn import native
from prnn.codegen import gpu
from prnn.codegen.build import CSRC, CannotCompile
from prnn.codegen.headers import CUDA_HEADERS
from tests.cuda_build import build, cells
from tests.cuda_build.test_cuda_build import check_loops
from tests.thinned import thinned

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

LOCAL, GRID, SUMS = (gpu.SCHEMES.index(name) for name in ("local", "grid", "sums"))
# One of each kind for an architecture; the record has all of them for all.
SOME = [(90, torch.bfloat16, gpu.KernelKey(GRID, True, 0)), (90, torch.float32, gpu.KernelKey(LOCAL, False, 1))]
SOME += [(80, torch.bfloat16, gpu.KernelKey(GRID, False, 0)), (100, torch.bfloat16, gpu.KernelKey(SUMS, True, 0))]


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("cell", thinned(cells.CELLS))
def test_kernels_compile_and_none_spills(cell: str) -> None:
    try:
        cells.recipe()
    except CannotCompile as reason:
        pytest.skip(str(reason))
    for architecture, dtype, key in SOME:
        made = cells.make(cell, dtype, key, architecture)
        assert made.compiled.spilled_bytes == 0 and made.compiled.registers > 0, made.name
        if architecture == cells.DISASSEMBLED:
            try:
                check_loops(*build.most([cells.loop_of(made)]))
            except NoDisassembler as reason:
                pytest.skip(f"none spills; step loops were not looked at: {reason}")
    try:
        build.nvcc()
    except build.NoCompiler as reason:
        pytest.skip(f"by NVRTC none spills: {reason}")
    assert cells.make(cell, dtype, key, architecture, cells.NVCC).compiled.spilled_bytes == 0


def test_the_record_is_of_these_sources() -> None:
    try:
        assert cells.is_recorded(), "run python -m tests.cuda_build.cells --out benchmarks/results/ptxas"
    except CannotCompile as reason:
        pytest.skip(str(reason))
    assert re.search(r"^- none of \d+ kernels spill", cells.CELLS_RECORD.read_text(), re.MULTILINE)


def test_a_stack_frame_is_no_spill() -> None:
    """Of sine and cosine, which reduce huge arguments in memory."""

    @prnn.cell(gates=1, params={"w": 1.0})
    def waves(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        return {"h": torch.sin(p.w * (gx[0] + gh[0])) * torch.cos(state.h)}

    source = gpu.Source(waves.cell.generated[0], "CellWaves", "waves")
    try:
        compiled, resident = source.fitted(gpu.compiler(90), torch.float32, gpu.KernelKey(LOCAL, True, 0), 90)
    except CannotCompile as reason:
        pytest.skip(str(reason))
    assert compiled.spilled_bytes == 0 and resident > 5


def test_the_headers_of_a_wheel_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CUDA_HEADERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CSRC / name, tmp_path / name)
    monkeypatch.setattr(gpu, "CSRC", tmp_path)
    monkeypatch.setattr(gpu, "FLAGS", ("-std=c++17", f"-I{tmp_path}", f"-I{tmp_path / 'cuda'}"))
    try:
        assert cells.make("leaky", torch.bfloat16, gpu.KernelKey(GRID, True, 0), 90).compiled.image
    except CannotCompile as reason:
        if "there is no NVRTC" not in str(reason):
            raise
        pytest.skip(str(reason))


def test_the_first_compiler_that_knows_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(text: str, architecture: int, flags: object) -> gpu.Compiled:
        raise CannotCompile("it knows no sm_90")

    new = gpu.Compiler("new", lambda text, architecture, flags: gpu.Compiled(b"", 1, 0))
    gpu.compiler.cache_clear()
    monkeypatch.setattr(gpu, "compilers", lambda: [gpu.Compiler("old", old), new])
    assert gpu.compiler(90) is new
    gpu.compiler.cache_clear()
    monkeypatch.setattr(gpu, "compilers", lambda: [gpu.Compiler("old", old)])
    with pytest.raises(CannotCompile, match="^it knows no sm_90$"):
        gpu.compiler(90)
    monkeypatch.setattr(gpu, "compilers", list)
    with pytest.raises(CannotCompile, match="there is no NVRTC"):
        gpu.compiler(90)
    gpu.compiler.cache_clear()


def test_a_mistake_in_the_text_is_a_sentence() -> None:
    try:
        compiler = gpu.compiler(90)
    except CannotCompile as reason:
        pytest.skip(str(reason))
    with pytest.raises(CannotCompile, match="failed: .*error: this declaration"):
        compiler.run("nonsense", 90, ())
    with pytest.raises(CannotCompile, match="sm_999|arch"):
        compiler.run(gpu.PROBE, 999, ())


DECLARATIONS = """
#include <cuda.h>
#include <cstddef>
#include "driver.h"
using namespace prnn::cuda::driver;
#define SAME(ours, theirs) static_assert(sizeof(ours) == sizeof(theirs), "");
SAME(LaunchConfig, CUlaunchConfig)
SAME(LaunchAttribute, CUlaunchAttribute)
static_assert(offsetof(LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream), "");
static_assert(offsetof(LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs), "");
static_assert(offsetof(LaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs), "");
static_assert(offsetof(LaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes), "");
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value), "");
static_assert(LaunchAttribute::kCooperative == CU_LAUNCH_ATTRIBUTE_COOPERATIVE, "");
static_assert(LaunchAttribute::kClusterDimension == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, "");
static_assert(kRegisters == CU_FUNC_ATTRIBUTE_NUM_REGS, "");
static_assert(kMostDynamicSharedBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, "");
static_assert(kNonPortableClusterSize == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, "");
static_assert(kClockRate == CU_DEVICE_ATTRIBUTE_CLOCK_RATE, "");
static_assert(kMultiprocessors == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, "");
static_assert(kCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, "");
static_assert(kCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, "");
static_assert(kMostSharedBytes == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, "");
static_assert(kPortable == CU_MEMHOSTALLOC_PORTABLE && kDeviceMap == CU_MEMHOSTALLOC_DEVICEMAP, "");
static_assert(kRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED, "");
static_assert(sizeof(CUdevice) == sizeof(int) && sizeof(CUdeviceptr) == sizeof(void*), "");
"""


def test_the_drivers_declarations_are_those_of_cuda_h(tmp_path: Path) -> None:
    try:
        include = Path(build.nvcc()).resolve().parents[1] / "include"
    except build.NoCompiler as reason:
        pytest.skip(str(reason))
    folders = [path for path in (include, Path("/usr/local/cuda/include")) if (path / "cuda.h").exists()]
    if not folders:
        pytest.skip("there is no cuda.h beside nvcc")
    (tmp_path / "declarations.cpp").write_text(DECLARATIONS)
    flags = ["-std=c++17", "-fsyntax-only", f"-I{folders[0]}", f"-I{build.CUDA}"]
    done = subprocess.run(["g++", *flags, "declarations.cpp"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
