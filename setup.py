"""Builds the native library where torch and a C++ compiler are; elsewhere a pure-Python package, whose version says so.

Everything else stands in pyproject.toml. Install with ``pip install --no-build-isolation .``: an isolated build does
not see the torch that is installed. PRNN_NO_NATIVE=1 leaves the native library out, PRNN_REQUIRE_NATIVE=1 makes an
error of what it cannot be built for; PRNN_CXXFLAGS holds further flags for the C++ compiler, of a sanitizer for
example.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

# The oldest torch the library runs on: it is written against that version's stable ABI.
TORCH_TARGET = "0x020a000000000000"
# Of a build that succeeds, pip and uv show the version alone.
WITHOUT_NATIVE = "+without.native.kernels"
CSRC = Path("prnn/csrc")
BINDINGS = [str(CSRC / f"{name}.cpp") for name in ("bindings", "bindings_memory", "user_cells")]
BINDINGS += [str(CSRC / f"{name}.cpp") for name in ("bindings_cuda", "bindings_user_cuda")]
# Of csrc/cuda what needs no toolkit: cells written in Python are compiled for a GPU later on.
SOURCES = [*BINDINGS, *sorted(map(str, [*(CSRC / "cpu").glob("*.cpp"), *(CSRC / "cuda").glob("*.cpp")]))]
CUDA_SOURCES = [str(CSRC / "bindings_cuda_memory.cpp"), *sorted(map(str, (CSRC / "cuda").glob("*.cu")))]
HEADERS = sorted(str(path) for pattern in ("*.h", "*.cuh") for path in CSRC.rglob(pattern))
# Ampere, Hopper, Blackwell, and the CUDA that first knew them; for others the driver compiles the PTX of Hopper.
CUDA_ARCHITECTURES = {"80": (11, 0), "90": (12, 0), "100": (12, 8)}
CUDA_PTX = "90"
INSTALLED = Path("/usr/local")  # where toolkits are installed


def why_not() -> str | None:
    """Why the native library cannot be built; None where it can."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed (or the build is isolated: use pip install --no-build-isolation)"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    return None


def why_no_cuda(toolkit: Path | None) -> str | None:
    """The reason for a library without CUDA kernels; a GPU need not be there."""
    import torch

    if os.environ.get("PRNN_NO_CUDA") == "1":
        return "PRNN_NO_CUDA=1"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if toolkit is None:
        return "there is no CUDA toolkit (bin/nvcc and include/cuda_runtime.h); CUDA_HOME says where one is"
    release = nvcc_release(toolkit / "bin" / "nvcc")
    if release[0] != int(torch.version.cuda.split(".")[0]):
        return f"{toolkit} is of CUDA {release[0]}.{release[1]}, torch of {torch.version.cuda}"
    wanted = wanted_architectures()
    return "the CUDA kernels need sm_80 or later" if wanted and not usable(wanted) else None


def cuda_toolkit(major: int) -> Path | None:
    """The folder of a CUDA toolkit, of release ``major`` if there is one; None without any.

    torch takes the folder above that of the nvcc on the PATH, which may be a wrapper outside the toolkit
    (/usr/local/bin/nvcc): only where the headers stand too can the library be built.
    """
    candidates = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        candidates += [Path(nvcc).parents[1], Path(nvcc).resolve().parents[1]]
        output = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        candidates += [Path(top) for top in re.findall(r"TOP=(.+)", output.stderr + output.stdout)]
    candidates += [INSTALLED / "cuda", *sorted(INSTALLED.glob("cuda-*"), reverse=True)]
    toolkits = [c for c in candidates if (c / "bin/nvcc").exists() and (c / "include/cuda_runtime.h").exists()]
    matching = [toolkit for toolkit in toolkits if nvcc_release(toolkit / "bin/nvcc")[0] == major]
    return next((toolkit.resolve() for toolkit in matching or toolkits), None)


def nvcc_release(nvcc: Path) -> tuple[int, int]:
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def wanted_architectures() -> list[str]:
    """Those TORCH_CUDA_ARCH_LIST names, else those of the GPUs that are here: 8.0, 9.0, ..."""
    import torch

    listed = re.findall(r"\d+\.\d+a?", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    devices = range(torch.cuda.device_count())
    return listed or ["{}.{}".format(*torch.cuda.get_device_capability(i)) for i in devices]


def usable(architectures: list[str]) -> list[str]:
    return sorted({name.replace(".", "") for name in architectures if int(name.split(".")[0]) >= 8})


def architectures(toolkit: Path) -> list[str]:
    """nvcc's flags: what TORCH_CUDA_ARCH_LIST asks for, else the GPUs that are here, else all we know of."""
    found = usable(wanted_architectures())
    if found:
        return [f"-gencode=arch=compute_{name},code=sm_{name}" for name in found]
    release = nvcc_release(toolkit / "bin" / "nvcc")
    known = [name for name, since in CUDA_ARCHITECTURES.items() if release >= since]
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in known]
    return [*flags, f"-gencode=arch=compute_{CUDA_PTX},code=compute_{CUDA_PTX}"]


def package() -> dict:
    """setup()'s arguments: the version, and the native library where it is to be built."""
    version = re.search(r'^__version__ = "(.+)"$', Path("prnn/__init__.py").read_text(), re.MULTILINE)[1]
    if os.environ.get("PRNN_NO_NATIVE") == "1":
        return {"version": version}
    reason = why_not()
    if reason is None:
        return {"version": version, **native()}
    if "sdist" in sys.argv:  # it holds the sources, wherever it is made
        return {"version": version}
    if os.environ.get("PRNN_REQUIRE_NATIVE") == "1":
        sys.exit(f"prnn: the native library cannot be built: {reason}")
    print(f"prnn: building without the native library: {reason}", file=sys.stderr)
    return {"version": version + WITHOUT_NATIVE}


def native() -> dict:
    """setup()'s arguments for the native library."""
    import torch

    toolkit = cuda_toolkit(int(torch.version.cuda.split(".")[0])) if torch.version.cuda else None
    no_cuda = why_no_cuda(toolkit)
    if no_cuda is None:
        os.environ["CUDA_HOME"] = str(toolkit)  # torch reads it when cpp_extension is imported
    # A ninja of a virtual environment that is not activated stands beside its Python.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension):
        """A build that fails ends with what the user can do about it."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                without = "" if no_cuda else "PRNN_NO_CUDA=1 builds it without the CUDA kernels, "
                remedy = f"{without}PRNN_NO_NATIVE=1 installs a package without it, which is slower"
                raise RuntimeError(f"prnn: the native library did not build: {remedy}") from error

    # Kernels compiled later on, for cells written in Python, must be of the same headers.
    codegen = runpy.run_path("prnn/codegen/headers.py")
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f'-DPRNN_HEADERS="{codegen["digest"](CSRC)}"']
    defines += [f'-DPRNN_CUDA_HEADERS="{codegen["cuda_digest"](CSRC)}"']
    defines += [] if no_cuda else ["-DUSE_CUDA"]
    # Of -O3 what the kernels need, in half the compiler's time: loops over gates are unrolled, or their arrays would be
    # in memory (a tenth of the speed), and the memories' plain loops vectorised (half of it).
    optimize = ["-O2", "-fpeel-loops", "-ftree-vectorize"]
    flags = [*optimize, "-g0", "-Wall", "-Wextra", *defines, *os.environ.get("PRNN_CXXFLAGS", "").split()]
    if no_cuda:
        print(f"prnn: building without the CUDA kernels: {no_cuda}", file=sys.stderr)
    else:
        flags = {"cxx": flags, "nvcc": ["-O3", *defines, *architectures(toolkit)]}
    extension = (CppExtension if no_cuda else CUDAExtension)(
        "prnn._native",
        SOURCES if no_cuda else SOURCES + CUDA_SOURCES,
        depends=HEADERS,
        libraries=["stdc++"],  # before torch's, which have some of its symbols too, without their versions
        py_limited_api=True,
        extra_compile_args=flags,
    )
    # ninja compiles a file on each core: half a minute instead of one, nearly all of it for the instruction sets.
    ninja = shutil.which("ninja") is not None
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build.with_options(use_ninja=ninja)}}


if __name__ == "__main__":  # for setuptools' build backend too; the tests look at the functions alone
    setup(**package(), options={"bdist_wheel": {"py_limited_api": "cp310"}})
