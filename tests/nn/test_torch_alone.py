"""The layers need torch alone: who uses them need not have, or import, what training needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import warm

ROOT = Path(__file__).resolve().parents[2]


def test_layers_run_where_only_torch_is() -> None:
    """So do prnn-doctor and prnn.check; the other commands say what they need, each in one line."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "tests/nn/torch_alone.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    layers, commands = "RNN GRU LSTM StackRNN ListRNN reference", "doctor check train sample report"
    assert done.stdout.split() == [*layers.split(), *commands.split()]
    missing = "hydra, matplotlib, numpy, omegaconf, safetensors, tqdm, yaml are missing"  # torch brings jinja2
    assert done.stderr.splitlines() == [
        f"{command} needs the packages of the extra train: pip install 'prnn[train]' ({missing})"
        for command in ("prnn-train", "prnn-sample", "prnn-report")
    ]


def test_layers_import_nothing_that_torch_has_not_imported() -> None:
    """torch._dynamo, with sympy, would take as long as torch itself."""
    code = """
import sys
before = set(sys.modules)
import prnn
import torch
layer = prnn.LSTM(2, 3)
output, _ = layer(torch.zeros(4, 1, 2))
output.sum().backward()
prnn.explain(layer, torch.zeros(4, 1, 2))
print(*sorted(set(sys.modules) - before))
"""
    done = warm.run_code(code, ROOT, {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert "prnn.nn.recurrent" in found and "torch._dynamo" not in found
    others = {name.partition(".")[0] for name in found} - {"prnn"} - sys.stdlib_module_names
    assert all(name.startswith("_sysconfigdata") for name in others), others
