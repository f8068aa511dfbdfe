"""The cells of prnn.cells in JAX, as steps of ``lax.scan``; imported where JAX is installed.

As in peers/python_loop.py, the product of all inputs, both biases and expressions of parameters are outside the scan.

T: time steps, B: batch, I: input size, H: hidden size, G: gates, K: heads, D: units of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kernels.cases import Case

Weights = dict[str, Any]
Step = Callable[[Any, Any], tuple[Any, Any]]  # as lax.scan takes it: (states, gates of the input) -> (states, h)


def layer(case: Case, p: Weights, x: Any) -> Any:
    """x [T,B,I] -> output [T,B,H]"""
    K, D, G = case.heads, case.H // case.heads, case.G
    bias = p["bias_ih_l0"] if case.cell == "python_gru" else p["bias_ih_l0"] + p["bias_hh_l0"]
    gates = x @ p["weight_ih_l0"].T + bias
    if K == 1:
        zeros = jnp.zeros((case.B, case.H), x.dtype)
        product = lambda h: h @ p["weight_hh_l0"].T  # noqa: E731
    else:  # heads stay apart until the end: states [K,B,D], gates [T,K,B,G*D]
        zeros = jnp.zeros((K, case.B, D), x.dtype)
        gates = gates.reshape(case.T, case.B, G, K, D).transpose(0, 3, 1, 2, 4).reshape(case.T, K, case.B, G * D)
        blocks = p["weight_hh_l0"].reshape(G, K, D, D).transpose(1, 3, 0, 2).reshape(K, D, G * D)
        product = lambda h: jnp.matmul(h, blocks)  # noqa: E731
    states, step = STEPS[case.cell](p, product, zeros)
    output = jax.lax.scan(step, states, gates)[1]
    return output if K == 1 else output.transpose(0, 2, 1, 3).reshape(case.T, case.B, case.H)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _spike(x: Any, surrogate: Callable[[Any], Any]) -> Any:
    """1 where x > 0, else 0; its derivative is ``surrogate`` of x."""
    return (x > 0).astype(x.dtype)


@_spike.defjvp
def _spike_jvp(surrogate: Callable[[Any], Any], primals: Any, tangents: Any) -> Any:
    return _spike(primals[0], surrogate), surrogate(primals[0]) * tangents[0]


def _fast_sigmoid(x: Any) -> Any:
    return 1 / (1 + 25 * jnp.abs(x)) ** 2


def _triangle(x: Any) -> Any:
    return jax.nn.relu(1 - jnp.abs(x))


def _leaky(p: Weights, product: Any, zeros: Any) -> tuple[Any, Step]:
    alpha = jax.nn.sigmoid(p["alpha_logit_l0"])

    def step(h: Any, gx: Any) -> Any:
        h = (1 - alpha) * h + alpha * jnp.tanh(gx + product(h))
        return h, h

    return zeros, step


def _lif(p: Weights, product: Any, zeros: Any) -> tuple[Any, Step]:
    beta, threshold = jnp.clip(p["beta_l0"], 0, 1), p["threshold_l0"]

    def step(states: Any, gx: Any) -> Any:
        h, v = states
        v = beta * v + gx + product(h) - threshold * jax.lax.stop_gradient(h)
        h = _spike(v - threshold, _fast_sigmoid)
        return (h, v), h

    return (zeros, zeros), step


def _alif(p: Weights, product: Any, zeros: Any) -> tuple[Any, Step]:
    alpha, rho, beta, theta = (p[f"{name}_l0"] for name in ("alpha", "rho", "beta", "threshold"))

    def step(states: Any, gx: Any) -> Any:
        h, v, b = states
        v = alpha * v + (1 - alpha) * (gx + product(h)) - (theta + beta * b) * h
        b = rho * b + (1 - rho) * h
        threshold = theta + beta * b
        h = _spike((v - threshold) / threshold, _triangle)
        return (h, v, b), h

    return (zeros, zeros, zeros), step


def _slstm(p: Weights, product: Any, zeros: Any) -> tuple[Any, Step]:
    def step(states: Any, gx: Any) -> Any:
        h, c, n, m = states
        i, f, z, o = jnp.split(gx + product(h), 4, -1)
        previous = jax.nn.log_sigmoid(f) + m
        m = jnp.where(n == 0, i, jnp.maximum(previous, i))  # n is 0 at the first step alone
        i, f = jnp.exp(i - m), jnp.exp(jnp.minimum(previous - m, 0))
        c, n = f * c + i * jnp.tanh(z), f * n + i
        h = jax.nn.sigmoid(o) * c / n
        return (h, c, n, m), h

    return (zeros, zeros, zeros, zeros), step


def _ligru(p: Weights, product: Any, zeros: Any) -> tuple[Any, Step]:
    def step(h: Any, gx: Any) -> Any:
        z, n = jnp.split(gx + product(h), 2, -1)
        z = jax.nn.sigmoid(z)
        h = z * h + (1 - z) * jax.nn.relu(n)
        return h, h

    return zeros, step


def _gru(p: Weights, product: Any, zeros: Any) -> tuple[Any, Step]:
    def step(h: Any, gx: Any) -> Any:
        (rx, zx, nx), (rh, zh, nh) = jnp.split(gx, 3, -1), jnp.split(product(h) + p["bias_hh_l0"], 3, -1)
        r, z = jax.nn.sigmoid(rx + rh), jax.nn.sigmoid(zx + zh)
        h = (1 - z) * jnp.tanh(nx + r * nh) + z * h
        return h, h

    return zeros, step


STEPS: dict[str, Callable[[Weights, Any, Any], tuple[Any, Step]]] = {
    "leaky": _leaky, "lif": _lif, "alif": _alif, "slstm": _slstm, "ligru": _ligru, "python_gru": _gru
}  # fmt: skip
