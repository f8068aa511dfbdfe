"""A fifth cell by the recipe in CONTRIBUTING.md, in a copy of the tree: a minimal gated unit (Zhou et al., 2016)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("prnn", "conf", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")

EQUATIONS = '''
def _mgu_forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Maybe) -> Stepped:
    """f = sigmoid(x + h); n = tanh(x_n + f * h_n); h = (1 - f) h_prev + f n."""
    f_x, n_x = gates_x.chunk(2, dim=-1)
    f_h, n_h = gates_h.chunk(2, dim=-1)
    f = (f_x + f_h).sigmoid()
    n = (n_x + f * n_h).tanh()
    return h_prev + f * (n - h_prev), None, (f, n, n_h)


def _mgu_backward(grad_h: Tensor, grad_c: Maybe, h: Tensor, h_prev: Tensor, c_prev: Maybe, saved: Maybe) -> Gradients:
    f, n, n_h = saved.chunk(3, dim=-1)
    grad_n = grad_h * f * (1 - n * n)
    grad_f = (grad_h * (n - h_prev) + grad_n * n_h) * f * (1 - f)
    return (grad_f, grad_n), (grad_f, grad_n * f), grad_h * (1 - f), None


'''
STRUCT = """
// f = sigmoid(x + h); n = tanh(x_n + f * h_n); h = (1 - f) h_prev + f n.
struct Mgu : BuiltinCell {
  static constexpr int kGates = 2, kSaved = 3;  // f, n, h_n
  static constexpr bool kSplitsGates = true, kNeedsHPrev = true;

  PRNN_CELL_FUNCTION V forward(const V* gates_x, const V* gates_h, V h_prev, V*, const V*, const V*, V* saved) {
    const V f = sigmoid_of(gates_x[0] + gates_h[0]);
    const V n = tanh_of(gates_x[1] + f * gates_h[1]);
    saved[0] = f, saved[1] = n, saved[2] = gates_h[1];
    return h_prev + f * (n - h_prev);
  }
  PRNN_CELL_FUNCTION V backward(V grad_h, V*, V, V h_prev, const V*, const V*, const V*, const V* saved, V* grad_x,
                                V* grad_gates_h, V*, V*) {
    const V f = saved[0], n = saved[1], h_n = saved[2];
    const V grad_n = grad_h * f * (1.0f - n * n);
    grad_x[0] = grad_gates_h[0] = (grad_h * (n - h_prev) + grad_n * h_n) * f * (1.0f - f);
    grad_x[1] = grad_n;
    grad_gates_h[1] = grad_n * f;
    return grad_h * (1.0f - f);
  }
};
"""
# file, text after which it goes (the end of the file for None), what is added
RECIPE = [
    ("prnn/cell_table.py", "CELLS: dict[str, Cell] = {", EQUATIONS),
    (
        "prnn/cell_table.py",
        "    for cell in (\n",
        '        Cell("mgu", 2, ("h",), 3, True, _mgu_forward, _mgu_backward),\n',
    ),
    ("prnn/csrc/cells.h", None, STRUCT),
    ("prnn/csrc/cell_table.h", "  X(RnnRelu, rnn_relu) \\\n", "  X(Mgu, mgu) \\\n"),
    ("conf/model/mgu.yaml", None, "defaults: [default, _self_]\ncell: mgu\n"),
]

CHECK = """
from unittest import mock
import torch, prnn
from prnn import ops
from prnn.nn import build
from prnn.config import ModelConfig
from tests.ops.problems import assert_same, problem

assert "mgu" in ops.native.cells(), ops.native.status()
for options in ({}, {"lengths": True, "resets": True}):
    for shape in ((1, 1, 1), (5, 3, 17), (4, 7, 100)):
        p = problem("mgu", *shape, **options)
        right = p.outputs_and_gradients("reference")
        for backend in ("torch", "cpu"):
            assert_same(p.outputs_and_gradients(backend), right, 2e-5)
layers = build(ModelConfig(cell="mgu", hidden_size=5, num_layers=2), 3)
for T in (1, 4):
    x = torch.randn(T, 2, 3)
    explained = prnn.explain(layers, x)
    assert "cpu (native kernels" in explained, explained
    computed = layers(x)
    with ops.backend("reference"):
        assert_same(list(computed), list(layers(x)), 1e-5)
request = ops.Request("mgu", 9, 16, 64, 96, torch.float32, "cuda", False, False, False, 0, True)
with mock.patch.object(ops.native, "cuda_status", lambda: (True, "")), \\
        mock.patch.object(ops.native, "cuda_cells", lambda: ("lstm",)):
    for T in (1, 9):
        choice = ops.choose(request._replace(T=T))
        assert str(choice) == "torch, step by step (there is no native kernel for mgu)", choice
"""


@pytest.mark.slow(seconds=60)
def test_a_fifth_cell_by_the_recipe(tmp_path: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    for name, after, text in RECIPE:
        path = tmp_path / name
        before = path.read_text() if path.exists() else ""
        at = len(before) if after is None else before.index(after) + (0 if after.startswith("CELLS") else len(after))
        path.write_text(before[:at] + text + before[at:])
    assert len({name for name, _, _ in RECIPE}) <= 5
    environment = os.environ | {"PRNN_REQUIRE_NATIVE": "1", "PRNN_NO_CUDA": "1", "PYTHONPATH": str(tmp_path)}
    environment["PRNN_CXXFLAGS"] = "-O0"  # a fraction of the compiler's time; the layers here are small
    run = ["trainer.max_steps=2", "model=mgu", "model.hidden_size=16", "trainer.batch_size=4", "trainer.device=cpu"]
    for command in (
        ["setup.py", "build_ext", "--inplace"],
        ["-c", CHECK],
        ["-m", "prnn.train", *run, f"run_dir={tmp_path / 'run'}"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (tmp_path / "run" / "metrics.jsonl").exists()
