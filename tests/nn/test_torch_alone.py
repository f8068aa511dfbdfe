"""prnn.ops and prnn.nn need torch alone: who uses the layers need not have what training needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_layers_run_where_only_torch_is() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/nn/torch_alone.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["RNN", "GRU", "LSTM", "StackRNN", "ListRNN", "reference"]
