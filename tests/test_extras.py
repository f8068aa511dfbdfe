"""The beginning of a command: Ctrl-C while it is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prnn import extras

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("module", ["train", "sample", "report", "runs"])
def test_ctrl_c_during_an_import_ends_a_command_without_a_traceback(tmp_path: Path, module: str) -> None:
    (tmp_path / "omegaconf").mkdir()  # which all of them import
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "omegaconf/__init__.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", f"prnn.{module}", "--help"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_is_the_program_s_own_where_a_command_is_imported_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for program, handler in (
            ("/x/bin/prnn-train", signal.SIG_DFL), ("/x/prnn/train.py", signal.SIG_DFL),
            ("/x/bin/pytest", signal.default_int_handler), ("", signal.default_int_handler),
        ):  # fmt: skip
            monkeypatch.setattr(sys, "argv", [program])
            extras.begin_imports("prnn-train")
            assert signal.getsignal(signal.SIGINT) is handler, program
            extras.end_imports()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a command in the background
        monkeypatch.setattr(sys, "argv", ["/x/bin/prnn-train"])
        extras.begin_imports("prnn-train")
        extras.end_imports()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
