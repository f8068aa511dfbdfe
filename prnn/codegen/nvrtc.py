"""NVRTC, CUDA's run-time compiler, as a library of C functions: that of torch's CUDA build, or of a toolkit."""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from prnn.codegen.build import CannotCompile

_MAJORS = (13, 12)  # of CUDA


class Nvrtc:
    """The library; ``version`` such as "13.0". OSError where it is not one."""

    def __init__(self, file: str) -> None:
        if Path(file).is_absolute():  # which NVRTC opens by their name alone
            for builtins in sorted(Path(file).parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(file)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, text: str, options: Sequence[str]) -> tuple[bytes, str]:
        """Machine code and what the compiler said; CannotCompile with its first error where it fails."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"cell.cu", 0, None, None)
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), given)
            log = self._text("nvrtcGetProgramLog", program).decode(errors="replace").rstrip("\0")
            if failed:
                raise CannotCompile(f"NVRTC {self.version} failed: {first_error(log)}")
            return self._text("nvrtcGetCUBIN", program), log
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(name, program, text)
        return text.raw

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            raise CannotCompile(f"NVRTC {self.version}: {name} failed with error {result}")


def first_error(log: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line for line in log.splitlines() if "error" in line] or log.splitlines() or ["no message"]
    return lines[0].strip()


@cache
def load() -> Nvrtc:
    """The first library of ``candidates`` that loads; OSError where none does."""
    for file in candidates():
        try:
            return Nvrtc(file)
        except (OSError, AttributeError):
            continue
    raise OSError("there is no NVRTC (libnvrtc.so, which comes with torch's CUDA builds)")


def candidates() -> Iterator[str]:
    """Beside torch, in NVIDIA's packages, where the loader looks; first of the CUDA release torch was built with."""
    built = (torch.version.cuda or "").split(".")[0]
    majors = sorted(_MAJORS, key=lambda major: str(major) != built)
    packages = [Path(torch.__file__).parent.parent, Path(sysconfig.get_path("purelib")), *map(Path, sys.path)]
    for major in majors:
        folders = [Path(torch.__file__).parent / "lib"]
        for root in packages:
            folders += [root / "nvidia" / f"cu{major}" / "lib", root / "nvidia" / "cuda_nvrtc" / "lib"]
        for folder in dict.fromkeys(folders):
            if (file := folder / f"libnvrtc.so.{major}").exists():
                yield str(file)
        yield f"libnvrtc.so.{major}"
