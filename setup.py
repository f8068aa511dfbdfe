"""Builds the native library where torch and a C++ compiler are; a pure-Python package elsewhere, saying so.

Everything else stands in pyproject.toml. Install with ``pip install --no-build-isolation .``: an isolated build would
not see the torch that is installed. PRNN_NO_NATIVE=1 leaves the native library out.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

# The oldest torch the library runs on: it is written against that version's stable ABI.
TORCH_TARGET = "0x020a000000000000"
SOURCES = ["prnn/csrc/bindings.cpp", *sorted(str(path) for path in Path("prnn/csrc/cpu").glob("*.cpp"))]
HEADERS = sorted(str(path) for path in Path("prnn/csrc").rglob("*.h"))


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


def native() -> dict:
    """setup()'s arguments for the native library."""
    reason = why_not()
    if reason is not None:
        print(f"prnn: building without the native library: {reason}", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class OptionalBuild(BuildExtension):
        """A build that fails leaves a package that works, on torch's kernels, and a sentence about it."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if os.environ.get("PRNN_REQUIRE_NATIVE") == "1":
                    raise
                print(f"prnn: the native library did not build, going on without it: {error}", file=sys.stderr)

    extension = CppExtension(
        "prnn._native",
        SOURCES,
        depends=HEADERS,
        py_limited_api=True,
        extra_compile_args=["-O3", "-g0", "-Wall", "-Wextra", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"],
    )
    # ninja compiles a file on each core: half a minute instead of one, nearly all of it for the instruction sets.
    ninja = shutil.which("ninja") is not None
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=ninja)}}


setup(**native(), options={"bdist_wheel": {"py_limited_api": "cp310"}})
