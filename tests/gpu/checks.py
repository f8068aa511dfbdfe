"""What the CUDA kernels must do on a GPU, as plain functions: pytest runs them (test_gpu.py), and so does
``python -m benchmarks.gpu_check`` where there is no pytest. They need torch alone, and a GPU.

Shapes: T time steps, B batch, I input size, H hidden size, G gates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch import Tensor

import prnn
from prnn import ops
from prnn.ops import cells, composite
from tests.gpu import memory_checks

Check = Callable[[], None]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
REGIMES = ("block", "cluster", "grid")
# Odd sizes, one sample and many, more than a tile holds, weights beyond the registers.
SIZES = (
    (1, 1, 1),
    (1, 3, 17),
    (5, 1, 3),
    (6, 9, 40),
    (33, 4, 100),
    (7, 33, 130),
    (20, 16, 256),
    (9, 70, 64),
    (12, 5, 515),
    (6, 16, 1100),
    (9, 300, 512),  # several tiles, one after the other
)
OPTIONS = ("plain", "lengths", "resets", "reverse", "everything")


@contextmanager
def regime(name: str | None) -> Iterator[None]:
    """One regime alone; None leaves the choice to the cost model."""
    before = os.environ.pop("PRNN_CUDA_REGIME", None)
    if name is not None:
        os.environ["PRNN_CUDA_REGIME"] = name
    try:
        yield
    finally:
        os.environ.pop("PRNN_CUDA_REGIME", None)
        if before is not None:
            os.environ["PRNN_CUDA_REGIME"] = before


def close(found: Tensor, right: Tensor, tolerance: float, what: str) -> None:
    """Raises AssertionError if an element is off by more than ``tolerance`` of the largest, or is no number."""
    scale = right.abs().max().clamp(min=1e-30).item() if right.numel() else 1.0
    error = (found.double() - right).abs().max().item() / scale if right.numel() else 0.0
    assert found.shape == right.shape, f"{what}: {list(found.shape)}, expected {list(right.shape)}"
    assert bool(found.isfinite().all()), f"{what} holds NaN or infinity"
    assert error <= tolerance, f"{what} is off by {error:.2g} of its largest element"


def fits(cell: str, dtype: torch.dtype, B: int, H: int) -> bool:
    request = ops.Request(cell, 1, B, H, H, dtype, "cuda", False, False, False, torch.cuda.current_device(), True)
    try:
        with ops.backend("cuda"):
            ops.choose(request)
    except ops.BackendError:
        return False
    return True


def recurrence_is_right(
    cell: str,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    options: str,
    name: str | None,
    tolerance: float | None = None,
) -> None:
    """Output and all gradients against the reference equations in double precision."""
    (T, B, H), I = size, 5
    spec = cells.CELLS[cell]
    generator = torch.Generator().manual_seed(T * 1000 + B * 10 + H)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    rows = spec.gates * H
    values = [draw(T, B, I), draw(rows, I), draw(rows, H, scale=0.7 * H**-0.5), draw(rows), draw(rows), draw(B, H)]
    c0 = draw(B, H).float() if spec.has_c else None
    lengths = resets = None
    if options in ("lengths", "everything"):
        lengths = torch.randint(0, T + 1, (B,), generator=generator)
    if options in ("resets", "everything"):
        resets = torch.rand((T, B), generator=generator) < 0.2
    reverse = options in ("reverse", "everything")
    incoming = [draw(T, B, H), draw(B, H)]
    if lengths is not None:
        incoming[0][torch.arange(T).unsqueeze(-1) >= lengths] = 0

    def run(device: str, double: bool, layer: Callable[..., tuple[Tensor, Tensor, Tensor | None]]) -> list[Tensor]:
        move = partial(torch.Tensor.to, device=device)
        tensors = [move(v.double() if double else v).requires_grad_() for v in values]
        c = None if c0 is None else move(c0.double() if double else c0).requires_grad_()
        output, h_n, c_n = layer(
            *tensors, c, cell=cell, lengths=None if lengths is None else move(lengths),
            resets=None if resets is None else move(resets), reverse=reverse,
        )  # fmt: skip
        grads = [move(g.double() if double else g) for g in incoming]
        ends = [output, h_n] + ([] if c_n is None else [c_n])
        grads += [] if c_n is None else [torch.ones_like(c_n)]
        leaves = tensors + ([] if c is None else [c])
        return [*ends, *torch.autograd.grad(ends, leaves, grads)]

    with regime(name), ops.backend("cuda"):
        found = run("cuda", False, ops.layer)
        again = run("cuda", False, ops.layer)
    right = run("cpu", True, composite.layer)
    names = ["output", "h_n", "c_n"] if spec.has_c else ["output", "h_n"]
    names += ["grad_x", "grad_weight_ih", "grad_weight_hh", "grad_bias_ih", "grad_bias_hh", "grad_h0", "grad_c0"]
    for what, mine, other, repeated in zip(names, found, right, again, strict=False):
        close(mine.cpu(), other, tolerance or TOLERANCE[dtype], what)
        assert torch.equal(mine, repeated), f"{what}: another run gave other bits"


def modules_are_torchs(cell: str) -> None:
    """A bidirectional stack, batch first, from torch.nn's state_dict, in float32 without tf32."""
    arguments = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    name = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}[cell]
    if name == "RNN":
        arguments["nonlinearity"] = cell.removeprefix("rnn_")
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(12, 48, **arguments).cuda()
    ours = getattr(prnn, name)(12, 48, **arguments).cuda()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 9, 12, device="cuda")
    right = theirs(x)[0]
    right.sum().backward()
    with ops.backend("cuda"):
        found = ours(x)[0]
        found.sum().backward()
    close(found, right.double(), 1e-5, "output")
    for (parameter, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close(mine.grad, other.grad.double(), 1e-4, f"the gradient of {parameter}")


def two_directions_are_right(cell: str, dtype: torch.dtype, name: str) -> None:
    """Side by side in one launch, or one after the other: the same as two layers of one direction."""
    torch.manual_seed(5)
    T, B, I, H = 12, 20, 16, 96
    G = cells.CELLS[cell].gates
    shapes = ((G * H, I), (G * H, H), (G * H,), (G * H,))
    weights = [[torch.randn(s, device="cuda", dtype=dtype) * H**-0.5 for s in shapes] for _ in range(2)]
    x, h0 = torch.randn(T, B, I, device="cuda", dtype=dtype), torch.randn(2, B, H, device="cuda", dtype=dtype)
    c0 = torch.randn(2, B, H, device="cuda") if cells.CELLS[cell].has_c else None
    with regime(name), ops.backend("cuda"), torch.no_grad():
        both = ops.directions(x, [(*w, None) for w in weights], h0, c0, cell=cell, autocast=False)[0]
        for d in range(2):
            c = None if c0 is None else c0[d]
            alone = ops.layer(x, *weights[d], h0[d], c, cell=cell, reverse=d == 1)[0]
            close(both[..., d * H : (d + 1) * H], alone.double(), TOLERANCE[dtype], f"direction {d}")


def tf32_is_as_exact_as_it_can_be(name: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        for cell in cells.CELLS:
            recurrence_is_right(cell, torch.float32, (9, 20, 96), "lengths", name, 5e-3)
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def a_graph_can_be_captured(name: str) -> None:
    """CUDA graphs: captured once, replayed on other input."""
    torch.manual_seed(2)
    model = prnn.GRU(16, 64).cuda()
    still = torch.randn(10, 8, 16, device="cuda")
    with regime(name), ops.backend("cuda"), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(still)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(still)[0]
        for _ in range(3):
            x = torch.randn_like(still)
            right = model(x)[0]
            still.copy_(x)
            graph.replay()
            assert torch.equal(captured, right), "a replay gave other bits"


def streams_are_respected(name: str) -> None:
    """Work queued on a side stream waits for what that stream does."""
    torch.manual_seed(3)
    model = prnn.LSTM(16, 64).cuda()
    x = torch.randn(20, 8, 16, device="cuda")
    with regime(name), ops.backend("cuda"), torch.no_grad():
        right = model(x * 3)[0]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            late = torch.zeros_like(x)
            torch.cuda._sleep(50_000_000)  # some 30 ms: a kernel that did not wait would see the zeros
            late.copy_(x)
            found = model(late * 3)[0]
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(found, right)


def every_device_works() -> None:
    for device in range(torch.cuda.device_count()):
        model = prnn.RNN(8, 32).to(f"cuda:{device}")
        with ops.backend("cuda"):
            output, _ = model(torch.randn(4, 2, 8, device=f"cuda:{device}"))
        assert output.device.index == device and bool(output.isfinite().all())


def what_does_not_fit_says_so() -> None:
    request = ops.Request("lstm", 4, 2, 8, 40_000, torch.float32, "cuda", False, False, False, 0, False)
    try:
        with ops.backend("cuda"):
            ops.choose(request)
    except ops.BackendError as error:
        assert "40000 units fit into no regime" in str(error), error
    else:
        raise AssertionError("40,000 units were accepted")
    model = prnn.LSTM(8, 32).cuda()
    assert "cuda (block regime" in prnn.explain(model, torch.randn(4, 2, 8, device="cuda"))


def a_compiled_module_is_the_same() -> None:
    torch.manual_seed(4)
    model = prnn.LSTM(8, 32).cuda()
    x = torch.randn(6, 3, 8, device="cuda")
    with ops.backend("cuda"):
        right = model(x)[0]
        right.sum().backward()
        wanted = model.weight_hh_l0.grad.clone()
        model.zero_grad()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = compiled(x)[0]
        found.sum().backward()
        assert torch.equal(found, right)
        assert torch.equal(model.weight_hh_l0.grad, wanted)
        more = torch.randn(6, 5, 8, device="cuda")
        assert torch.equal(compiled(more)[0], model(more)[0]), "another batch"


def every_regime_is_there(counts: dict[str, int]) -> None:
    """Clusters need sm_90; nothing else may be missing without notice."""
    expected = [name for name in REGIMES if name != "cluster" or torch.cuda.get_device_capability() >= (9, 0)]
    missing = [name for name in expected if counts.get(name, 0) < 20]
    assert not missing, f"hardly a layer fits into: {', '.join(missing)} ({counts})"


def checks() -> dict[str, Check]:
    """All of them by name; what no regime of this GPU holds is left out."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # float32 is to be float32, here and in cuDNN
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    found: dict[str, Check] = {}
    counts: dict[str, int] = {}
    for cell, dtype, size, name in product(cells.CELLS, TOLERANCE, SIZES, REGIMES):
        with regime(name):
            if not fits(cell, dtype, size[1], size[2]):
                continue
        counts[name] = counts.get(name, 0) + 1
        # Each combination meets each option at some size.
        options = OPTIONS[(len(found) + SIZES.index(size)) % len(OPTIONS)]
        kind = str(dtype).removeprefix("torch.")
        found[f"{cell} {kind} T{size[0]} B{size[1]} H{size[2]} {options} {name}"] = partial(
            recurrence_is_right, cell, dtype, size, options, name
        )
    for cell in cells.CELLS:
        found[f"{cell} modules"] = partial(modules_are_torchs, cell)
    for name in REGIMES:
        with regime(name):
            if not fits("lstm", torch.float32, 8, 64):
                continue
        found[f"graph {name}"] = partial(a_graph_can_be_captured, name)
        found[f"streams {name}"] = partial(streams_are_respected, name)
        found[f"tf32 {name}"] = partial(tf32_is_as_exact_as_it_can_be, name)
        for cell, dtype in product(cells.CELLS, TOLERANCE):
            kind = str(dtype).removeprefix("torch.")
            found[f"{cell} {kind} directions {name}"] = partial(two_directions_are_right, cell, dtype, name)
    found["regimes"] = partial(every_regime_is_there, counts)
    found["devices"] = every_device_works
    found["limits"] = what_does_not_fit_says_so
    found["compile"] = a_compiled_module_is_the_same
    return found | memory_checks.checks()
