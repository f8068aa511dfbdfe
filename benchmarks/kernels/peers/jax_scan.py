"""JAX: ``lax.scan`` over the steps, compiled by XLA, the gradients by ``jax.vjp``; on the CPU.

The input projection is one GEMM before the scan, as in prnn. XLA's CPU client has its own thread pool of PJRT_NPROC
threads (``stats.limit_threads`` sets it to --threads before JAX starts, and restricts the process's affinity); the
pool's threads are counted here, and a pool of another size does not take part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.peers.base import Absent, Contender, Problem, require_plain

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None


def build(problem: Problem) -> Contender:
    if jax is None:
        raise Absent("not installed: pip install '.[bench]'")
    require_plain(problem)
    case = problem.case
    cpu = jax.devices("cpu")[0]
    weights = {name: jax.device_put(weight.numpy(), cpu) for name, weight in problem.weights.items()}
    trained = {name: weights.pop(name) for name in problem.trained}  # the others get no gradient
    x, grad_output = jax.device_put(problem.x.numpy(), cpu), jax.device_put(problem.grad_output.numpy(), cpu)
    _check_pool(problem.threads)

    def forward(trained: Any, weights: Any, x: Any) -> Any:
        if case.in_python:
            from benchmarks.kernels.peers import jax_cells  # which needs JAX when it is imported

            return jax_cells.layer(case, trained | weights, x)
        return _layer(case.cell, trained, x)

    def both(trained: Any, weights: Any, x: Any, grad_output: Any) -> Any:
        if case.input_requires_grad:
            output, pull = jax.vjp(lambda trained, x: forward(trained, weights, x), trained, x)
        else:
            output, pull = jax.vjp(lambda trained: forward(trained, weights, x), trained)
        return output, pull(grad_output)

    compiled = jax.jit(both if problem.train else forward)
    arguments = (trained, weights, x, grad_output) if problem.train else (trained, weights, x)

    def run() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def tensors() -> dict[str, Tensor]:
        if not problem.train:
            return {"output": _tensor(run())}
        output, gradients = run()
        results = {"output": _tensor(output)}
        results |= {name: _tensor(value) for name, value in gradients[0].items()}
        return results | ({"x": _tensor(gradients[1])} if case.input_requires_grad else {})

    return Contender(run, tensors)


def _layer(cell: str, weights: dict[str, Any], x: Any) -> Any:
    """x [T,B,I] -> output [T,B,H], torch.nn's equations, order of gates and weights."""
    w_ih, w_hh, b_ih, b_hh = (weights[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    H = w_hh.shape[1]
    zeros = jnp.zeros((x.shape[1], H), x.dtype)
    if cell == "gru":  # the reset gate acts on W h + b: b_hh stays with the recurrent product
        gates_x = x @ w_ih.T + b_ih
        return jax.lax.scan(lambda h, gx: _gru(h, gx, h @ w_hh.T + b_hh), zeros, gates_x)[1]
    gates_x = x @ w_ih.T + (b_ih + b_hh)
    if cell == "lstm":
        return jax.lax.scan(lambda state, gx: _lstm(state, gx + state[0] @ w_hh.T), (zeros, zeros), gates_x)[1]
    activation = jnp.tanh if cell == "rnn_tanh" else jax.nn.relu

    def step(h: Any, gx: Any) -> Any:
        h = activation(gx + h @ w_hh.T)
        return h, h

    return jax.lax.scan(step, zeros, gates_x)[1]


def _gru(h: Any, gx: Any, gh: Any) -> Any:
    (rx, zx, nx), (rh, zh, nh) = jnp.split(gx, 3, 1), jnp.split(gh, 3, 1)
    r, z = jax.nn.sigmoid(rx + rh), jax.nn.sigmoid(zx + zh)
    n = jnp.tanh(nx + r * nh)
    h = (1 - z) * n + z * h
    return h, h


def _lstm(state: Any, gates: Any) -> Any:
    i, f, g, o = jnp.split(gates, 4, 1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _check_pool(threads: int) -> None:
    """Raise Absent if XLA's pool in this process has another number of threads (on Linux, where they have names)."""
    tasks = list(Path("/proc/self/task").glob("*/comm"))
    pool = sum(task.read_text().strip() == "tf_XLAEigen" for task in tasks)
    if pool not in (0, threads):
        raise Absent(f"its pool has {pool} threads, not {threads}")


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
