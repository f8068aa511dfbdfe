"""Builds the native library where torch and a C++ compiler are; a pure-Python package elsewhere, saying so.

Everything else stands in pyproject.toml. Install with ``pip install --no-build-isolation .``: an isolated build would
not see the torch that is installed. PRNN_NO_NATIVE=1 leaves the native library out.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

# The oldest torch the library runs on: it is written against that version's stable ABI.
TORCH_TARGET = "0x020a000000000000"
CSRC = Path("prnn/csrc")
SOURCES = ["prnn/csrc/bindings.cpp", "prnn/csrc/bindings_memory.cpp", *sorted(map(str, (CSRC / "cpu").glob("*.cpp")))]
CUDA_BINDINGS = ["prnn/csrc/bindings_cuda.cpp", "prnn/csrc/bindings_cuda_memory.cpp"]
CUDA_SOURCES = [*CUDA_BINDINGS, *sorted(map(str, (CSRC / "cuda").glob("*.c*[pu]")))]
HEADERS = sorted(str(path) for pattern in ("*.h", "*.cuh") for path in CSRC.rglob(pattern))
# Ampere, Hopper, Blackwell, and the CUDA that first knew them; for others the driver compiles the PTX of Hopper.
CUDA_ARCHITECTURES = {"80": (11, 0), "90": (12, 0), "100": (12, 8)}
CUDA_PTX = "90"


def why_not() -> str | None:
    """The reason for a pure-Python package; None where the native library can be built."""
    if os.environ.get("PRNN_NO_NATIVE") == "1":
        return "PRNN_NO_NATIVE=1"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed (or the build is isolated: use pip install --no-build-isolation)"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    return None


def why_no_cuda() -> str | None:
    """The reason for a library without CUDA kernels; a GPU need not be there."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if os.environ.get("PRNN_NO_CUDA") == "1":
        return "PRNN_NO_CUDA=1"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
    if CUDA_HOME is None or not nvcc.exists():
        return "there is no CUDA toolkit (nvcc)"
    release = nvcc_release(nvcc)
    if release[0] != int(torch.version.cuda.split(".")[0]):
        return f"{nvcc} is of CUDA {release[0]}.{release[1]}, torch of {torch.version.cuda}"
    wanted = wanted_architectures()
    return "the CUDA kernels need sm_80 or later" if wanted and not usable(wanted) else None


def nvcc_release(nvcc: Path) -> tuple[int, int]:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def wanted_architectures() -> list[str]:
    """Those TORCH_CUDA_ARCH_LIST names, else those of the GPUs that are here: 8.0, 9.0, ..."""
    import torch

    listed = re.findall(r"\d+\.\d+a?", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    devices = range(torch.cuda.device_count())
    return listed or ["{}.{}".format(*torch.cuda.get_device_capability(i)) for i in devices]


def usable(architectures: list[str]) -> list[str]:
    return sorted({name.replace(".", "") for name in architectures if int(name.split(".")[0]) >= 8})


def architectures() -> list[str]:
    """nvcc's flags: what TORCH_CUDA_ARCH_LIST asks for, else the GPUs that are here, else all we know of."""
    from torch.utils.cpp_extension import CUDA_HOME

    found = usable(wanted_architectures())
    if found:
        return [f"-gencode=arch=compute_{name},code=sm_{name}" for name in found]
    release = nvcc_release(Path(CUDA_HOME) / "bin" / "nvcc")
    known = [name for name, since in CUDA_ARCHITECTURES.items() if release >= since]
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in known]
    return [*flags, f"-gencode=arch=compute_{CUDA_PTX},code=compute_{CUDA_PTX}"]


def native() -> dict:
    """setup()'s arguments for the native library."""
    reason = why_not()
    if reason is not None:
        print(f"prnn: building without the native library: {reason}", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    no_cuda = why_no_cuda()

    class OptionalBuild(BuildExtension):
        """A build that fails leaves a package that works, on torch's kernels, and a sentence about it."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if os.environ.get("PRNN_REQUIRE_NATIVE") == "1":
                    raise
                hint = "" if no_cuda else " (PRNN_NO_CUDA=1 builds it without the CUDA kernels)"
                print(f"prnn: the native library did not build, going on without it{hint}: {error}", file=sys.stderr)

    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *([] if no_cuda else ["-DUSE_CUDA"])]
    flags = ["-O3", "-g0", "-Wall", "-Wextra", *defines]
    if no_cuda:
        print(f"prnn: building without the CUDA kernels: {no_cuda}", file=sys.stderr)
    else:
        flags = {"cxx": flags, "nvcc": ["-O3", *defines, *architectures()]}
    extension = (CppExtension if no_cuda else CUDAExtension)(
        "prnn._native",
        SOURCES if no_cuda else SOURCES + CUDA_SOURCES,
        depends=HEADERS,
        py_limited_api=True,
        extra_compile_args=flags,
    )
    # ninja compiles a file on each core: half a minute instead of one, nearly all of it for the instruction sets.
    ninja = shutil.which("ninja") is not None
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=ninja)}}


setup(**native(), options={"bdist_wheel": {"py_limited_api": "cp310"}})
