"""doctor.py: one screen, true about this machine, and calm about what is not there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prnn
from prnn import doctor, native

SECTIONS = ["versions", "processor", "gpu", "backends", "network", "packages", "environment"]


def test_command_prints_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["prnn-doctor"])
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert 20 < len(lines) <= 45
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == SECTIONS
    assert torch.__version__ in lines[1] and prnn.__version__ in lines[0]


def test_json_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["prnn-doctor", "--json"])
    assert doctor.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == SECTIONS
    assert found["packages"]["hydra-core"] == importlib.metadata.version("hydra-core")
    assert found["backends"]["reference"] == "yes" and found["network"].keys() == {"gloo", "nccl", "mpi"}


def test_processor_is_this_one() -> None:
    found = doctor.report()["processor"]
    assert found["cores"] == f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"
    assert str(torch.get_num_threads()) in found["threads"]
    assert ("avx2" in found["features"].split()) == (" avx2 " in Path("/proc/cpuinfo").read_text().replace("\n", " "))


@pytest.mark.parametrize(("loaded", "word"), [(True, "yes"), (False, "no")])
def test_native_library_and_why_not(monkeypatch: pytest.MonkeyPatch, loaded: bool, word: str) -> None:
    monkeypatch.setattr(native, "status", lambda: (loaded, "the reason"))
    assert doctor.report()["backends"]["cpu"] == f"{word}: the reason"


def test_missing_package_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert set(doctor.report()["packages"].values()) == {"not installed"}


def test_no_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert doctor.report()["gpu"] == {"none": "this torch is built without CUDA"}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.report()["gpu"] == {"none": "CUDA_VISIBLE_DEVICES is empty"}


@pytest.mark.gpu
def test_gpu_is_named() -> None:
    assert torch.cuda.get_device_name(0) in doctor.report()["gpu"]["cuda:0"]


def test_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRNN_DATA", raising=False)
    assert "data" not in doctor.report()["environment"]
    monkeypatch.setenv("PRNN_DATA", str(tmp_path))
    assert doctor.report()["environment"]["data"] == "none found"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "bible").mkdir()
    assert doctor.report()["environment"]["data"] == "bible, mnist"
    monkeypatch.setenv("PRNN_DATA", str(tmp_path / "nowhere"))
    assert doctor.report()["environment"]["data"].endswith("nowhere is not a folder")


def test_unknown_flag_is_refused() -> None:
    run = subprocess.run([sys.executable, "-m", "prnn.doctor", "--jsno"], capture_output=True, text=True)
    assert run.returncode == 2 and "--jsno" in run.stderr


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    assert "nothing can be written" not in doctor._cells()
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "file"))
    assert doctor._cells().endswith(f", nothing can be written into {tmp_path}/file/cells")
