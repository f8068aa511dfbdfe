"""The kernels of cells in Python against their equations, through ``prnn.Recurrent``."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import prnn
from prnn import native
from prnn.errors import UserError
from tests.nn.cells import CELLS, OPTIONS, draw, inputs_of, make, off, results, state_of

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

SHAPES = [(1, 1, 1, 1), (5, 1, 2, 3), (6, 4, 3, 17), (3, 7, 5, 100), (70, 2, 1, 20), (2, 300, 3, 9)]  # T, B, I, H


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_against_the_equations(cell: str, options: dict[str, Any]) -> None:
    for T, B, I, H in SHAPES:
        layer, x, state, given = draw(cell, T, B, I, H, options)
        with prnn.backend("cpu"):
            computed = results(layer, x, state, **given)
            layer_state_left_out = results(layer, x, **given)
        with prnn.backend("reference"):
            assert off(computed, results(layer, x, state, **given)) < 2e-5, (T, B, I, H)
            assert off(layer_state_left_out, results(layer, x, **given)) < 2e-5, (T, B, I, H)


@pytest.mark.parametrize(
    ("H", "heads"), [(12, 3), (32, 4), (24, 2), (6, 6), (100, 10), (96, 3), (40, 5), (14, 7)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_heads_against_the_equations(H: int, heads: int, dtype: torch.dtype) -> None:
    for cell in ("slstm", "gru"):
        layer = make(cell, 4, H, heads=heads, bidirectional=True).to(dtype)
        assert layer.weight_hh_l0.shape == (layer.cell.signature.gates * H, H // heads)
        x = torch.randn(9, 5, 4).to(dtype)
        given = {"lengths": torch.tensor([9, 3, 0, 8, 5]), "resets": torch.rand(9, 5) < 0.2}
        with prnn.backend("cpu"):
            computed = results(layer, x, **given)
        with prnn.backend("reference"):
            right = results(layer, x, **given)
        assert off(computed, right) < (2e-5 if dtype == torch.float32 else 0.05)


def test_heads_are_a_dense_weight_of_diagonal_blocks() -> None:
    layer, dense = make("gru", 3, 6, heads=2), make("gru", 3, 6)
    state = dict(layer.state_dict())
    blocks = [torch.block_diag(*gate.split(3)) for gate in state["weight_hh_l0"].split(6)]
    dense.load_state_dict(state | {"weight_hh_l0": torch.cat(blocks)})
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(layer(x)[0], dense(x)[0])


def test_recurrent_weights_of_each_kind() -> None:
    assert make("indrnn", 3, 5).weight_hh_l0.shape == (10,)
    names = list(make("integrator", 3, 5).state_dict())
    assert names == ["weight_ih_l0", "bias_ih_l0"]
    with pytest.raises(UserError, match="heads=4 with hidden_size=6: expected a divisor of hidden_size"):
        make("gru", 3, 6, heads=4)
    with pytest.raises(UserError, match='expected 1, as the cell has recurrent="diagonal"'):
        make("indrnn", 3, 6, heads=2)
    with pytest.raises(UserError, match="recurrent='sparse': expected one of dense, diagonal, none"):
        prnn.cell(gates=1, recurrent="sparse")


@pytest.mark.parametrize(("cell", "heads"), [("indrnn", 1), ("gru", 20), ("gru", 10), ("gru", 4), ("gru", 2)])
def test_an_infinite_state_stays_in_its_head(cell: str, heads: int) -> None:
    layer, x, state = make(cell, 3, 20, heads=heads), torch.randn(4, 2, 3), torch.zeros(1, 2, 20)
    size = 1 if cell == "indrnn" else 20 // heads
    first = 5 // size * size
    state[0, 0, 5] = torch.inf
    others = torch.ones(20, dtype=torch.bool)
    others[first : first + size] = False
    output, _ = layer(x, {"h": state})
    assert not torch.isfinite(output[:, 0, 5]).any()
    assert torch.isfinite(output[:, :, others]).all()
    output[:, :, others].sum().backward()
    assert torch.isfinite(layer.weight_hh_l0.grad.view(-1, 20, layer.weight_hh_l0[0].numel())[:, others]).all()


def test_graphs_tell_cells_with_other_equations_apart() -> None:
    def cell(slope: float) -> Any:
        @prnn.cell(gates=1)
        def same(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
            return {"h": torch.tanh(slope * (gx[0] + gh[0]))}

        return same.cell

    def digests(*cells: Any) -> list[str]:
        return [each.name_in_graph(torch.float32).partition("@")[2] for each in cells]

    first, other, again = digests(cell(1.0), cell(2.0), cell(1.0))
    assert first == again != other

    def clamped(low: float) -> Any:
        @prnn.cell(gates=1, params={"a": 0.5})
        def same(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
            return {"h": torch.tanh(gx[0] + gh[0]) * p.a.clamp(low, 5)}

        return same.cell

    first, other, again = digests(clamped(0.0), clamped(2.0), clamped(0.0))
    assert first == again != other


IMPORTED_IN_INFERENCE_MODE = """
import torch, prnn
with torch.inference_mode():
    cell = prnn.cells.leaky
layer = prnn.Recurrent(cell, 2, 3)
layer(torch.ones(4, 1, 2))[0].sum().backward()
assert layer.alpha_logit_l0.grad.abs().sum() > 0
"""


def test_gradients_of_derived_parameters_whatever_mode_prnn_was_imported_in() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED_IN_INFERENCE_MODE], check=True)


def test_dtypes_share_one_trace() -> None:
    squares = [True]

    @prnn.cell(gates=1, params={"a": 0.5})
    def cell(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        return {"h": torch.tanh(gx[0] + gh[0]) * (torch.square(p.a) if squares[0] else torch.exp(p.a))}

    layer, x = prnn.Recurrent(cell, 2, 3), torch.randn(4, 1, 2)
    right = layer(x)[0]
    squares[0] = False
    torch.testing.assert_close(layer.bfloat16()(x.bfloat16())[0].float(), right, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_for_any_number_of_threads(cell: str) -> None:
    layer, threads = make(cell, 6, 200, bidirectional=True), torch.get_num_threads()
    x, given = torch.randn(9, 8, 6), {"inputs": inputs_of(layer, 9, 8)}
    try:
        torch.set_num_threads(1)
        one = results(layer, x, **given)
        torch.set_num_threads(2)
        two, again = results(layer, x, **given), results(layer, x, **given)
    finally:
        torch.set_num_threads(threads)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]) and torch.equal(tensor, again[name]), name


@prnn.cell(gates=2, states=("h", "v"), params={"threshold": 1.0})
def spiking(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
    v = torch.sigmoid(gx[1] + gh[1]) * state.v + gx[0] + gh[0]
    return {"h": prnn.spike(v - p.threshold), "v": v}


@prnn.cell(gates=2, states=("h", "v"), params={"threshold": 1.0, "one": 1.0})
def scaled(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
    """The same, but for what is known of h."""
    v = torch.sigmoid(gx[1] + gh[1]) * state.v + gx[0] + gh[0]
    return {"h": prnn.spike(v - p.threshold) * p.one, "v": v}


@pytest.mark.parametrize("what", ["finite", "infinite weight", "infinite gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(3, 1, 1, 1), (9, 1, 3, 17), (20, 5, 2, 100), (14, 66, 4, 64), (40, 1, 3, 512)]
)
def test_leaving_out_what_does_not_spike_changes_no_bit(
    T: int, B: int, I: int, H: int, threads: int, dtype: torch.dtype, what: str
) -> None:
    assert spiking.cell.generated[0].spikes and not scaled.cell.generated[0].spikes
    torch.manual_seed(1)
    ours, twin = (prnn.Recurrent(cell, I, H, bidirectional=True, bias="input").to(dtype) for cell in (spiking, scaled))
    if what == "infinite weight":
        ours.weight_hh_l0.data[-1, -1] = math.inf
    twin.load_state_dict({**twin.state_dict(), **ours.state_dict()})
    lengths, resets = torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.1
    lengths[-1] = T
    before, rates = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        for scale in (2.0, 6.0, 100.0):  # few spikes; more; many
            x = (scale * torch.randn(T, B, I)).to(dtype)
            given = {
                "lengths": lengths,
                "resets": resets,
                "state": {"h": torch.randn(2, B, H).to(dtype) * (torch.rand(2, B, H) < 0.1)},
            }
            given["largest"] = math.inf if what == "infinite gradient" else 1.0
            right = results(twin, x, **given)
            rates.append(right["output"].float().mean(-1))
            for name, tensor in results(ours, x, **given).items():
                torch.testing.assert_close(tensor, right[name], rtol=0, atol=0, equal_nan=True, msg=f"{scale} {name}")
                assert torch.equal(tensor.signbit(), right[name].signbit()) or what != "finite", f"{scale} {name}"
        few = (torch.cat(rates) > 0) & (torch.cat(rates) < 0.2)
        assert H == 1 or (few.any() and (torch.cat(rates) > 0.25).any())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_with_float32_states(cell: str) -> None:
    layer = make(cell, 4, 12).bfloat16()
    x, given = torch.randn(7, 3, 4).bfloat16(), {"inputs": inputs_of(layer, 7, 3)}
    with prnn.backend("cpu"):
        computed = results(layer, x, **given)
    with prnn.backend("reference"):
        right = results(layer, x, **given)
    assert off(computed, right) < 0.05
    assert computed["final h"].dtype == torch.bfloat16
    assert all(computed[f"final {name}"].dtype == torch.float32 for name in layer.cell.signature.states[1:])


def test_a_gru_in_python_is_the_built_in_one() -> None:
    ours, builtin = make("gru", 5, 9), prnn.GRU(5, 9)
    builtin.load_state_dict(ours.state_dict())
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(ours(x)[0], builtin(x)[0])


def test_empty_sequences_and_batches() -> None:
    layer = make("rate", 3, 5)
    given = {"inputs": {"noise": torch.zeros(4, 0, 5), "keep": torch.zeros(4, 0, 5)}}
    empty = results(layer, torch.zeros(4, 0, 3), **given)
    assert empty["output"].shape == (4, 0, 5)
    assert all((value == 0).all() for name, value in empty.items() if name.startswith("grad"))
    with prnn.backend("cpu"):  # samples without steps
        given = {"inputs": inputs_of(layer, 4, 2), "lengths": [0, 0]}
        none = results(layer, torch.full((4, 2, 3), torch.nan), state_of(layer, 2), **given)
    assert (none["output"] == 0).all() and (none["grad tau_l0"] == 0).all() and (none["grad input noise"] == 0).all()


def test_float64_runs_the_equations() -> None:
    layer = make("lif", 3, 5).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert "its equations under autograd (the native kernels take float32" in prnn.explain(layer, x)
    assert layer(x)[0].dtype == torch.float64


def test_second_order() -> None:
    layer, x, grads = make("rate", 3, 6), torch.randn(5, 2, 3, requires_grad=True), []
    given = inputs_of(layer, 5, 2)
    for backend in ("cpu", "reference"):
        with prnn.backend(backend):
            (first,) = torch.autograd.grad(layer(x, inputs=given)[0].square().sum(), x, create_graph=True)
            grads.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()]))
    for ours, right in zip(*grads, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", [("tau", "gain"), ("tau",), ("weight_hh",)], ids=str)
def test_every_way_to_a_gradient_gives_the_same(trained: tuple[str, ...]) -> None:
    """Ordinary calls and the operator have derivatives of derived parameters of their own."""
    layer, x = make("rate", 3, 6, bidirectional=True), torch.randn(5, 2, 3, requires_grad=True)
    given = inputs_of(layer, 5, 2)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name.partition("_l0")[0] in trained)
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]

    def loss(x: Tensor) -> Tensor:
        return layer(x, inputs=given)[0].square().sum()

    with prnn.backend("reference"):
        right = torch.autograd.grad(loss(x), wanted)
    value = loss(x)
    ways = {"once": torch.autograd.grad(value, wanted, retain_graph=True)}
    ways["again"] = torch.autograd.grad(value, wanted, retain_graph=True)
    ways["one by one"] = tuple(torch.autograd.grad(value, one, retain_graph=True)[0] for one in wanted)
    ways["with a graph"] = torch.autograd.grad(value, wanted, create_graph=True)
    batched = torch.autograd.grad(value, wanted, torch.ones(2), retain_graph=True, is_grads_batched=True)
    ways["batched"] = tuple(grad[1] for grad in batched)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ways["compiled"] = torch.autograd.grad(compiled(x), wanted)
    ways["vmap"] = torch.autograd.grad(torch.vmap(loss)(x.unsqueeze(0)).sum(), wanted)
    for way, grads in ways.items():
        for grad, expected in zip(grads, right, strict=True):
            torch.testing.assert_close(grad, expected, msg=lambda text, way=way: f"{way}: {text}")


def test_a_detached_parameter_has_no_gradient() -> None:
    @prnn.cell(gates=1, params={"a": 0.5, "b": 0.5})
    def cell(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        return {"h": torch.tanh(gx[0] + gh[0]) * torch.exp(p.a.detach()) * torch.exp(p.b)}

    @prnn.cell(gates=1, params={"a": 0.5})
    def alone(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        return {"h": torch.tanh(gx[0] + gh[0]) * torch.exp(p.a.detach())}

    for layer in (prnn.Recurrent(cell, 2, 3), prnn.Recurrent(alone, 2, 3)):
        for call in (layer, torch.compile(layer, backend="aot_eager")):
            layer.zero_grad()
            call(torch.randn(4, 1, 2))[0].sum().backward()
            assert not layer.a_l0.grad.any()  # and not None, which DistributedDataParallel does not expect


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("cell", ["lif", "rate"])
def test_compiled_and_exported(cell: str) -> None:
    layer = make(cell, 3, 6)
    x, given = torch.randn(4, 2, 3), {"inputs": inputs_of(layer, 4, 2)}
    right = results(layer, x, **given)
    compiled = torch.compile(lambda x, **given: layer(x, **given), fullgraph=True, backend="aot_eager")
    output, _ = compiled(x, **given)
    output.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    layer(x, **given)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert torch.equal(grads[name], parameter.grad), name
    with torch.no_grad():
        program = torch.export.export(layer, (x,), given)
        decomposed = program.run_decompositions()
        assert "prnn" not in str(decomposed.graph)
        for each in (program, decomposed):
            torch.testing.assert_close(each.module()(x, **given)[0], right["output"])


def test_autocast_casts_weights_and_keeps_states_and_parameters() -> None:
    layer = make("rate", 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output, final = layer(torch.randn(4, 2, 3), inputs=inputs_of(layer, 4, 2))
    assert output.dtype == final["h"].dtype == torch.bfloat16
    assert final["v"].dtype == torch.float32
    output.float().sum().backward()
    assert layer.tau_l0.grad.dtype == torch.float32 and (layer.tau_l0.grad != 0).all()


@pytest.mark.parametrize("trained", [("gain",), ("weight_hh", "bias_ih"), ("tau", "weight_ih"), ()], ids=str)
def test_only_some_are_trained(trained: tuple[str, ...]) -> None:
    layer, x = make("rate", 3, 6), torch.randn(4, 2, 3)
    inputs = inputs_of(layer, 4, 2)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name.rpartition("_")[0] in trained)
    grads = []
    for backend in ("cpu", "reference"):
        layer.zero_grad()
        x = x.detach().requires_grad_()
        with prnn.backend(backend):
            layer(x, inputs=inputs)[0].square().sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for computed, right in zip(*grads, strict=True):
        assert (computed is None) == (right is None)
        if computed is not None:
            torch.testing.assert_close(computed, right)
