"""Calls of the operators: whole layers, recurrences and memories, with shapes, dtypes, layouts, lengths, resets and
gradients at random, and now and then an operand that does not fit.

A right call gives what the reference gives, forward and backward; a wrong one a ``ValueError``. The calls are made in
one child process, which a crash ends; under an address sanitizer with ``python -m tests.fuzz.sanitized``.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size, G gates; S memories of N cells, K read.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import child
from tests.fuzz.draw import SIZES, Draw

TRIALS = 400
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 3e-1, "float16": 2e-2}  # of a tensor's largest element
FLAWS = ("shape", "rank", "scalar", "dtype", "device", "sparse", "cell", "missing")
MAY_FIT = ("shape", "dtype")  # another number of steps or of cells is no flaw, nor is a cell state in float64


def trial(rng: random.Random, folder: Path) -> None:
    """One call."""
    child.ask(__name__, rng.getrandbits(63))


def _layer(draw: Draw, whole: bool) -> tuple[Callable[[], Any], bool]:
    """A call of ``layer`` or ``recurrence``, and whether it runs in bfloat16 whatever the operands are."""
    from prnn import ops
    from tests.ops.problems import layer, recurrence

    torch, rng = draw.torch, draw.rng
    cell = rng.choice(list(ops.CELLS))
    spec = ops.CELLS[cell]
    T, B, I, H = (draw.size() for _ in range(4))
    P = rng.randint(0, H) if spec.has_c and draw.chance(0.1) else H
    gates = spec.gates * H
    operands = {
        "x": draw.tensor(T, B, I if whole else gates),
        "weight_ih": draw.tensor(gates, I, scale=max(1, I) ** -0.5) if whole else None,
        "weight_hh": draw.tensor(gates, P, scale=max(1, P) ** -0.5),
        "bias_ih": draw.tensor(gates) if whole and draw.chance(0.8) else None,
        "bias_hh": draw.tensor(gates) if draw.chance(0.8) else None,
        "h0": draw.tensor(B, P),
        "c0": draw.tensor(B, H) if spec.has_c else None,
        "weight_hr": draw.tensor(P, H) if P != H else None,
        "lengths": None,
        "resets": None,
    }
    if draw.chance(0.3):
        kind = rng.choice((torch.int64, torch.int64, torch.int32, torch.uint8))
        lengths = [max(0, rng.randint(-2, T + 2)) if kind == torch.uint8 else rng.randint(-2, T + 2) for _ in range(B)]
        operands["lengths"] = torch.tensor(lengths, dtype=kind)
    if draw.chance(0.3):
        operands["resets"] = torch.rand(B, T, generator=draw.generator).t() < 0.3
    if P == H and spec.has_c and draw.chance(0.1):  # one tensor in two places
        operands["c0"] = operands["h0"]
    if whole and draw.chance(0.1) and operands["bias_hh"] is not None:
        operands["bias_ih"] = operands["bias_hh"]
    flaw = rng.choice(FLAWS) if draw.chance(0.25) else None
    if flaw == "cell":
        cell, draw.flaw = rng.choice(("", "LSTM", "gru" if spec.has_c else "lstm")), "another cell"
    elif flaw == "missing":
        if spec.has_c:
            operands["c0"], draw.flaw = None, "no c0"
    elif flaw is not None:
        draw.spoil(operands, flaw)
    x, w_ih, w_hh, b_ih, b_hh, h0, c0, w_hr, lengths, resets = operands.values()
    reverse = draw.chance(0.3)

    def call() -> Any:
        if not whole:
            return recurrence(x, w_hh, b_hh, h0, c0, lengths, resets, cell, weight_hr=w_hr)
        options = {"cell": cell, "lengths": lengths, "resets": resets, "reverse": reverse, "weight_hr": w_hr}
        return layer(x, w_ih, w_hh, b_ih, b_hh, h0, c0, **options)

    if draw.chance(0.1):
        cast = draw.dtype != torch.float64

        def under_autocast() -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return call()

        return under_autocast, cast
    return call, False


def _memory(draw: Draw) -> Callable[[], Any]:
    """A call of ``memory_recurrence``."""
    from prnn.ops.memory import Memories, Operands, memory_recurrence

    torch, rng = draw.torch, draw.rng
    if draw.dtype not in (torch.float32, torch.float64):
        draw.dtype = torch.float32
    T, H, S = (rng.choice(SIZES) for _ in range(3))
    B, N = draw.size(), rng.randint(2, 40)
    of_list = draw.chance(0.4)
    kind = Memories(3 if of_list else rng.choice((2, 3)), of_list, rng.choice((-1.0, 0.0)), draw.chance(0.1))
    K, recurrent, fresh = rng.randint(1, min(4, N - (N // 2 if of_list else 0))), draw.chance(0.5), draw.chance(0.4)
    operands = {
        "gates_x": draw.tensor(T, B, H),
        "weight_hh": draw.tensor(H, H, scale=H**-0.5) if recurrent else None,
        "weight_read": draw.tensor(H, S * K, scale=(S * K) ** -0.5),
        "weight_act": draw.tensor(S * (kind.actions + 1), H),
        "h0": draw.tensor(B, H),
        "memory0": torch.full((N, B, S), kind.empty, dtype=draw.dtype) if fresh else draw.tensor(N, B, S),
    }
    flaw = rng.choice(FLAWS) if draw.chance(0.25) else None
    if flaw == "cell":
        kind, draw.flaw = kind._replace(actions=rng.choice((0, 1, 4, *((2,) if of_list else ())))), "other actions"
    elif flaw == "missing":
        operands["weight_read"], draw.flaw = operands["weight_read"][:, :0], "nothing is read"
    elif flaw is not None:
        draw.spoil(operands, flaw)
    return lambda: memory_recurrence(Operands(**operands), kind, fresh and draw.flaw is None)


def _check(seed: int) -> str | None:
    """Make one call; what was wrong with it, or None."""
    from prnn import ops

    draw = Draw(seed)
    torch, rng = draw.torch, draw.rng
    torch.set_num_threads(rng.choice((1, 2)))
    what = rng.choice(("layer", "layer", "recurrence", "memory"))
    rounded = False
    if what == "memory":
        call = _memory(draw)
    else:
        call, rounded = _layer(draw, what == "layer")
    backend = rng.choice((None, None, "torch", "cpu"))
    learns = draw.chance(0.75)
    used = [rng.random() < 0.8 for _ in range(3)]
    expands = draw.chance(0.3)  # gradients as of a sum: one number everywhere

    def outcome(name: str | None) -> list[Any]:
        """Outputs and gradients."""
        torch.manual_seed(seed)
        with ops.backend(name), torch.set_grad_enabled(learns):
            outputs = [y for y in call() if y is not None]
        pairs = []
        for y, use in zip(outputs, used, strict=False):
            grad = torch.randn(()).to(y.dtype).expand(y.shape) if expands else torch.randn(y.shape).to(y.dtype)
            if use and learns and y.requires_grad:  # without steps, the reference's state is h0 itself
                pairs.append((y, grad))
        wanted = [leaf for leaf in draw.leaves if leaf.requires_grad]
        if not pairs or not wanted:
            return [*outputs, *(None for _ in wanted)]
        results, grads = zip(*pairs, strict=True)
        with ops.backend(name):
            return [*outputs, *torch.autograd.grad(results, wanted, grads, allow_unused=True)]

    told = f"{what}, backend {backend}, {draw.dtype}, flaw: {draw.flaw}, leaves {[[*x.shape] for x in draw.leaves]}"
    try:
        found = outcome(backend)
    except ops.BackendError:
        return None
    except ValueError as error:
        return None if draw.flaw else f"refused, but right: {error}\n{told}"
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{told}"
    if draw.flaw and not draw.flaw.startswith(MAY_FIT):
        return f"not refused\n{told}"
    try:
        expected = outcome("reference")
    except Exception as error:
        return f"the reference says {type(error).__name__}: {error}\n{told}"
    tolerance = TOLERANCE["bfloat16" if rounded else str(draw.dtype).removeprefix("torch.")]
    for number, (ours, right) in enumerate(zip(found, expected, strict=True)):
        if (ours is None) != (right is None):
            ours, right = (x if x is not None else torch.zeros(()) for x in (ours, right))
            if ours.any() or right.any():
                return f"result {number} has a gradient on one side alone\n{told}"
        elif ours is not None:
            if (ours.shape, ours.dtype) != (right.shape, right.dtype):
                return f"result {number} is {ours.dtype} {[*ours.shape]}, not {right.dtype} {[*right.shape]}\n{told}"
            error = (ours.double() - right.double()).abs().max().item() if ours.numel() else 0.0
            largest = max(1.0, right.double().abs().max().item()) if ours.numel() else 1.0
            if not error <= tolerance * largest:
                return f"result {number} is off by {error:.3g}, of {largest:.3g}\n{told}"
    return None


if __name__ == "__main__":
    child.main(_check)
