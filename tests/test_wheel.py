"""`make wheel`: an sdist, and of it a wheel that brings the native kernels to where no compiler is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_packaging import ROOT, SHIPPED
from tests.wheel import check

pytest.importorskip("auditwheel")


@pytest.mark.slow(seconds=60)
def test_wheel_runs_where_torch_alone_is(tmp_path: Path) -> None:
    """For other releases of torch: ``python -m tests.wheel``."""
    for name in (*SHIPPED, "Makefile"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    there = Path(sys.executable).parent
    subprocess.run(
        ["make", "--silent", "--assume-old=.venv/.installed", "wheel", f"BIN={there}"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PRNN_")},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    (sdist,), (wheel,) = (tmp_path.glob(f"dist/*{suffix}") for suffix in (".tar.gz", ".whl"))
    assert re.fullmatch(r"prnn-[\d.]+\.tar\.gz", sdist.name)
    assert re.fullmatch(r"prnn-[\d.]+-cp310-abi3-manylinux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if ".so" in name] == ["prnn/_native.abi3.so"], (
            "torch's are left out"
        )
        library = archive.read("prnn/_native.abi3.so")
    assert not re.search(rb"\0_?Py[A-Z]", library), "it uses nothing of Python, whose version then does not matter"
    check(wheel, "here", tmp_path)
