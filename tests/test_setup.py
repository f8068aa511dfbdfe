"""setup.py: which CUDA toolkit the library is built with, and for which GPUs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import prnn
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
VERSION = "import runpy, sys; sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py', run_name='__main__')"
# Answers as nvcc does, from its own place.
NVCC = """#!/bin/sh
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
--dryrun) echo "#$ _HERE_=$here" >&2; echo "#$ TOP=$here/.." >&2 ;;
esac
"""


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py's functions, on a machine without any toolkit."""
    spec = importlib.util.spec_from_file_location("setup_of_prnn", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.chdir(ROOT)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "PRNN_NO_CUDA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "readlink"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "INSTALLED", tmp_path / "local")
    return module


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def toolkit(folder: Path, release: str = "13.0", headers: bool = True) -> Path:
    script(folder / "bin" / "nvcc", NVCC.format(release=release))
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    return folder


def test_no_toolkit_is_found_where_there_is_none(setup, tmp_path):
    assert setup.cuda_toolkit(13) is None
    toolkit(tmp_path / "local" / "cuda-13.0", headers=False)
    assert setup.cuda_toolkit(13) is None, "a compiler alone does not build the library"


def test_nvcc_may_be_a_wrapper_outside_the_toolkit(setup, tmp_path):
    real = toolkit(tmp_path / "opt" / "nvidia")
    script(tmp_path / "bin" / "nvcc", f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    assert setup.cuda_toolkit(13) == real


def test_nvcc_may_be_a_link_into_the_toolkit(setup, tmp_path):
    real = toolkit(tmp_path / "opt" / "nvidia")
    (tmp_path / "bin" / "nvcc").symlink_to(real / "bin" / "nvcc")
    assert setup.cuda_toolkit(13) == real


def test_what_is_named_comes_before_what_is_found(setup, tmp_path, monkeypatch):
    named, found = toolkit(tmp_path / "named"), toolkit(tmp_path / "local" / "cuda-13.1", "13.1")
    monkeypatch.setenv("PATH", f"{found}/bin", prepend=":")
    assert setup.cuda_toolkit(13) == found
    monkeypatch.setenv("CUDA_PATH", str(named))
    assert setup.cuda_toolkit(13) == named
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert setup.cuda_toolkit(13) == named


def test_the_toolkit_of_torchs_release_is_preferred(setup, tmp_path):
    old, new = (toolkit(tmp_path / "local" / f"cuda-{release}", release) for release in ("12.8", "13.0"))
    (tmp_path / "local" / "cuda").symlink_to(old)
    assert setup.cuda_toolkit(13) == new
    assert setup.cuda_toolkit(12) == old
    assert setup.cuda_toolkit(11) == old, "one of another release is what the sentence about it names"


def test_the_reason_against_cuda_is_one_sentence(setup, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    assert setup.why_no_cuda(None) == "this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no CUDA toolkit" in setup.why_no_cuda(None)
    old = toolkit(tmp_path / "old", "12.8")
    assert setup.why_no_cuda(old) == f"{old} is of CUDA 12.8, torch of 13.0"
    new = toolkit(tmp_path / "new", "13.0")
    assert setup.why_no_cuda(new) is None
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert "sm_80" in setup.why_no_cuda(new)


def test_architectures(setup, tmp_path, monkeypatch):
    import torch

    folder = toolkit(tmp_path / "kit")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert setup.architectures(folder) == ["-gencode=arch=compute_90,code=sm_90"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;10.0")
    assert [flag.rpartition("_")[2] for flag in setup.architectures(folder)] == ["100", "80"]
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [flag.rpartition("_")[2] for flag in setup.architectures(folder)] == ["80", "90", "100", "90"]
    old = toolkit(tmp_path / "old", "12.0")
    assert [flag.rpartition("_")[2] for flag in setup.architectures(old)] == ["80", "90", "90"]


def test_a_ninja_beside_python_is_found_without_activation(tmp_path):
    """The build, told to stop before it compiles, has the folder of its Python on the PATH."""
    done = warm.run_code(f"{VERSION}; import os; print(os.environ['PATH'])", ROOT, {"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"/usr/bin:/bin:{Path(sys.executable).parent}"


@pytest.mark.parametrize(
    ("arguments", "environment", "version"),
    [
        ("'--version'", {}, prnn.__version__ + "+without.native.kernels"),
        ("'--version'", {"PRNN_NO_NATIVE": "1"}, prnn.__version__),
        ("'--version', 'sdist'", {}, prnn.__version__),
    ],
)
def test_a_package_without_native_library_is_seen_by_its_version(arguments, environment, version):
    """The one word of a build that pip shows; where the package is meant to be so, there is nothing to be told."""
    code = VERSION.replace("'--version'", arguments)
    done = warm.run_code(code, ROOT, {"CXX": "no-compiler", "PRNN_REQUIRE_NATIVE": "0"} | environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == version


def test_a_native_library_that_is_required_is_an_error_where_it_cannot_be_built():
    done = warm.run_code(VERSION, ROOT, {"CXX": "no-compiler", "PRNN_REQUIRE_NATIVE": "1"})
    assert done.returncode == 1
    assert done.stderr == "prnn: the native library cannot be built: there is no C++ compiler (no-compiler)\n"


def test_a_build_that_fails_says_what_can_be_done(tmp_path):
    """pip shows what was printed; nothing is installed that does not have what was built for."""
    code = VERSION.replace("'--version'", f"'build_ext', '-b', {str(tmp_path)!r}, '-t', {str(tmp_path)!r}")
    done = warm.run_code(code, ROOT, {"CXX": "false", "PRNN_NO_CUDA": "1"})
    assert done.returncode == 1
    assert "the native library did not build: PRNN_NO_NATIVE=1 installs a package without it" in done.stderr
