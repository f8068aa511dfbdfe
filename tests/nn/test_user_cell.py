"""``prnn.Recurrent``: the kernels of cells in Python against their equations, and the module around them."""

from __future__ import annotations

import copy
import cProfile
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import prnn
from prnn import native
from prnn.errors import UserError
from tests.nn import cells
from tests.nn.cells import CELLS

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

SHAPES = [(1, 1, 1, 1), (5, 1, 2, 3), (6, 4, 3, 17), (3, 7, 5, 100), (70, 2, 1, 20), (2, 300, 3, 9)]  # T, B, I, H
OPTIONS: list[dict[str, Any]] = [
    {},
    {"lengths": True},
    {"resets": True},
    {"lengths": True, "resets": True, "bidirectional": True, "num_layers": 2},
    {"bias": False, "batch_first": True, "resets": True},
    {"bias": "input", "bidirectional": True},
]


def make(cell: str, I: int, H: int, **options: Any) -> prnn.Recurrent:
    torch.manual_seed(1)
    layer = prnn.Recurrent(CELLS[cell], I, H, **options)
    with torch.no_grad():
        for parameter in layer.parameters() if cell == "lif" else ():
            parameter.copy_(gridded(parameter))
    return layer


def gridded(x: Tensor) -> Tensor:
    """Multiples of an eighth, whose sums are exact: a spike then depends on no rounding, nor on its order."""
    return (x * 8).round() / 8


def inputs_of(layer: prnn.Recurrent, T: int, B: int) -> dict[str, Tensor]:
    values = {"noise": torch.randn(T, B, layer.hidden_size), "keep": torch.rand(T, B, 1) > 0.7}
    return {name: values[name] for name in layer.cell.signature.inputs}


def results(layer: prnn.Recurrent, x: Tensor, state: Any = None, **given: Any) -> dict[str, Tensor]:
    """The output, the final state, and the gradients of everything that may have one, of a loss that sees all."""
    wanted: dict[str, Tensor] = dict(layer.named_parameters())
    x = wanted["x"] = x.detach().requires_grad_()
    if state is not None:
        state = {name: tensor.detach().requires_grad_() for name, tensor in state.items()}
        wanted |= {f"initial {name}": tensor for name, tensor in state.items()}
    if given.get("inputs"):
        given["inputs"] = {
            name: tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in given["inputs"].items()
        }
        wanted |= {f"input {name}": tensor for name, tensor in given["inputs"].items() if tensor.requires_grad}
    output, final = layer(x, state, **given)
    loss = (output.double() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    loss = loss + sum((tensor.double() ** 2).sum() for tensor in final.values())
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    named = zip(wanted, grads, strict=True)
    return {"output": output, **{f"final {name}": value for name, value in final.items()}} | {
        f"grad {name}": grad for name, grad in named
    }


def off(computed: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest error, relative to a tensor's norm."""
    assert computed.keys() == right.keys()
    largest = 0.0
    for name, tensor in right.items():
        assert computed[name].shape == tensor.shape and computed[name].dtype == tensor.dtype, name
        assert torch.isfinite(computed[name]).all(), name
        if tensor.numel():
            error = (computed[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-3)
            largest = max(largest, error.item())
    return largest


def state_of(layer: prnn.Recurrent, B: int) -> dict[str, Tensor]:
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    return {name: gridded(torch.rand(rows, B, layer.hidden_size)) for name in layer.cell.signature.states}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_against_the_equations(cell: str, options: dict[str, Any]) -> None:
    module = {name: value for name, value in options.items() if name not in ("lengths", "resets")}
    for T, B, I, H in SHAPES:
        layer = make(cell, I, H, **module)
        given: dict[str, Any] = {"inputs": inputs_of(layer, T, B)}
        x, state = gridded(torch.randn(T, B, I)), state_of(layer, B)
        if "lengths" in options:
            given["lengths"] = torch.randint(0, T + 1, (B,))
            padding = torch.arange(T).unsqueeze(1) >= given["lengths"]
            x[padding] = torch.nan
            if "noise" in given["inputs"]:
                given["inputs"]["noise"][padding] = torch.nan
        if "resets" in options:
            given["resets"] = torch.rand(T, B) < 0.3
        if options.get("batch_first"):
            x = x.transpose(0, 1)
            given["resets"] = given["resets"].t()
            given["inputs"] = {name: value.transpose(0, 1) for name, value in given["inputs"].items()}
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
        assert "prnn" not in str(program.graph)
        torch.testing.assert_close(program.module()(x, **given)[0], right["output"])


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


def test_parameters_have_readable_names_and_initial_values() -> None:
    layer = make("rate", 3, 6, num_layers=2, bidirectional=True)
    assert [name for name in layer.state_dict() if name.endswith("_l1_reverse")] == [
        f"{kind}_l1_reverse" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "tau", "gain")
    ]
    assert layer.tau_l0.shape == (1,) and layer.tau_l0.item() == pytest.approx(0.3)
    assert layer.gain_l1.shape == (6,) and layer.gain_l1.std() > 0

    @prnn.cell(gates=1, params={"a": torch.arange(4.0), "b": prnn.scalar(2.0, requires_grad=False)})
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + gh[0]) * p.a * p.b}

    layer = prnn.Recurrent(cell, 2, 4)
    assert layer.a_l0.tolist() == [0, 1, 2, 3] and not layer.b_l0.requires_grad
    with pytest.raises(UserError, match=r"the initial value of a_l0 must be \[5\], got \[4\]"):
        prnn.Recurrent(cell, 2, 5)


@pytest.mark.parametrize(
    ("fill", "value"),
    [(lambda a: a.fill_(3), 3), (lambda a: torch.full_like(a, 3), 3), (lambda a: 3, 3), (torch.nn.init.ones_, 1)],
    ids=["in place", "a tensor", "a number", "torch.nn.init"],
)
def test_functions_that_fill_a_parameter(fill: Any, value: float) -> None:
    layer = prnn.Recurrent(prnn.cell(gates=1, params={"a": fill})(cells.integrator.function), 2, 4)
    assert layer.a_l0.tolist() == [value] * 4


def test_a_parameter_that_is_not_filled_is_told() -> None:
    def part(a: Tensor) -> None:
        a[:2] = 1

    for fill, message in ((part, "left some of it out"), (lambda a: "one", "returned 'one': expected a tensor")):
        with pytest.raises(UserError, match=message):
            prnn.Recurrent(prnn.cell(gates=1, params={"a": fill})(cells.integrator.function), 2, 4)


@pytest.mark.parametrize("first", ["grad", "vmap", "anomaly"])
def test_a_cell_is_compiled_within_any_mode(first: str) -> None:
    slope = {"grad": 1.5, "vmap": 2.5, "anomaly": 3.5}[first]

    @prnn.cell(gates=1)
    def cell(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        return {"h": torch.tanh(slope * (gx[0] + gh[0]))}

    layer, x = prnn.Recurrent(cell, 2, 3), torch.randn(4, 1, 2)
    if first == "grad":
        weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        grads = torch.func.grad(lambda w: torch.func.functional_call(layer, w, (x,))[0].sum())(weights)
        layer(x)[0].sum().backward()
        torch.testing.assert_close(grads["weight_hh_l0"], layer.weight_hh_l0.grad)
    elif first == "vmap":
        torch.testing.assert_close(torch.vmap(lambda x: layer(x)[0])(x.unsqueeze(0))[0], layer(x)[0])
    else:
        with torch.autograd.set_detect_anomaly(True):
            layer(x)[0].sum().backward()
    assert layer.cell.cell.refused(torch.float32) is None


def test_copies_and_pickles() -> None:
    layer, x = make("lif", 3, 5), torch.randn(4, 2, 3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.cell is layer.cell
        assert torch.equal(other(x)[0], layer(x)[0])

    @prnn.cell(gates=1)
    def local(gx, gh, state, p, inputs):
        return {"h": gx[0] + gh[0]}

    with pytest.raises(pickle.PicklingError, match="cannot be pickled: expected it as"):
        pickle.dumps(local)
    assert pickle.loads(pickle.dumps(cells.lif.with_native("never"))).native == "never"


def test_a_pickle_finds_the_cell_under_another_name() -> None:
    """Cells of one name are numbered in the order in which a process makes them."""
    layer, x = make("lif", 3, 5), torch.randn(4, 2, 3)
    state = layer.__dict__ | {"mode": "gru", "_cell": "gru"}
    other = copy.copy(layer)
    other.__setstate__(state)
    assert torch.equal(other(x)[0], layer(x)[0])


def test_remainders_stay_in_their_range() -> None:
    @prnn.cell(gates=2, states=("h", "other"), recurrent="none")
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.remainder(gx[0], 0.75), "other": torch.fmod(gx[1], 0.75)}

    layer = prnn.Recurrent(cell, 1, 2, bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
    x = torch.tensor([-1e-9, -1e-8, 0.0, 0.75, 1.5, -0.75, 0.8, -0.8, 1e7, -1e7, 1e6 + 0.1]).view(-1, 1, 1)
    for t in range(len(x)):
        output, final = layer(x[t : t + 1])
        assert output.min() >= 0 and output.max() <= 0.75 and final["other"].abs().max() <= 0.75
        torch.testing.assert_close(output[0, 0, 0], torch.remainder(x[t, 0, 0], 0.75), atol=1e-6, rtol=0)
        torch.testing.assert_close(final["other"][0, 0, 0], torch.fmod(x[t, 0, 0], 0.75), atol=1e-6, rtol=0)


def test_sizes_in_a_formula_are_refused() -> None:
    @prnn.cell(gates=1)
    def scaled(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + gh[0] / state.h.shape[-1])}

    with pytest.raises(
        UserError, match="the cell scaled is not the same at each call: it depends on the size of a tensor"
    ):
        prnn.Recurrent(scaled, 2, 3)(torch.zeros(2, 1, 2))


def test_parameters_with_dimensions_of_their_own() -> None:
    @prnn.cell(gates=1, params={"a": 0.5})
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + gh[0]) * p.a.clamp(0, 1).unsqueeze(0)}

    layer, x = prnn.Recurrent(cell, 2, 3), torch.randn(4, 1, 2)
    with prnn.backend("reference"):
        right = layer(x)[0]
    torch.testing.assert_close(layer(x)[0], right)


def test_states_that_are_left_out_have_their_own_dtype() -> None:
    layer, x = make("lif", 3, 5).bfloat16(), torch.randn(4, 2, 3).bfloat16()
    _, final = layer(x)
    for given in ({"v": final["v"]}, {"h": final["h"]}):
        _, last = layer(x, given)
        assert last["h"].dtype == torch.bfloat16 and last["v"].dtype == torch.float32


def test_no_kernel_ahead_where_none_would_run() -> None:
    with pytest.raises(UserError, match="the native kernels take float32 and bfloat16, not float64"):
        make("gru", 3, 5).double().compile_native()


def test_under_a_profiler() -> None:
    @prnn.cell(gates=1)
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + 2 * gh[0])}

    profile = cProfile.Profile()
    profile.runcall(prnn.Recurrent(cell, 2, 3), torch.zeros(2, 1, 2))


def test_states_in_and_out() -> None:
    layer, x = make("slstm", 3, 5), torch.randn(4, 2, 3)
    _, final = layer(x, {"c": torch.ones(1, 2, 5)})
    assert list(final) == ["h", "c", "n", "m"]
    _, as_tuple = layer(x, tuple(final.values()))
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 4
    output, final = layer(x[:, 0])
    assert output.shape == (4, 5) and final["m"].shape == (1, 5)


def test_a_packed_sequence_with_inputs() -> None:
    layer, lengths = make("rate", 3, 5), [3, 7, 5]
    x, given = torch.randn(7, 3, 3), inputs_of(layer, 7, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, final = layer(packed, inputs=given)
    right, right_final = layer(x, lengths=lengths, inputs=given)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    assert torch.equal(padded, right) and torch.equal(final["v"], right_final["v"])


def test_inputs_for_each_layer() -> None:
    layer = make("rate", 3, 5, num_layers=2)
    x, keep = torch.randn(4, 2, 3), torch.zeros(4, 2, 5)
    noise = [torch.randn(4, 2, 5), torch.randn(4, 2, 1)]
    same, _ = layer(x, inputs={"noise": noise[0], "keep": keep})
    output, _ = layer(x, inputs={"noise": noise, "keep": keep})
    assert not torch.equal(same, output)
    with prnn.backend("reference"):
        torch.testing.assert_close(layer(x, inputs={"noise": noise, "keep": keep})[0], output)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"state": {"q": torch.zeros(1, 2, 5)}}, "state has no 'q': the states of rate are h, v"),
    ({"state": {"v": torch.zeros(2, 5)}}, r"state\['v'\] must be a tensor \[L\*D,B,H\], got 2-D"),
    ({"state": {"v": torch.zeros(1, 3, 5)}}, r"must be \[L\*D,B,H\] = \[1, 2, 5\], got \[1, 3, 5\]"),
    ({"state": (torch.zeros(1, 2, 5),)}, "state must be a tuple of h, v, got 1 tensors"),
    ({"inputs": {}}, "inputs lacks 'noise', which the cell rate takes at each step"),
    ({"inputs": {"x": 1}}, "inputs has 'x': the cell rate takes noise, keep"),
    ({"inputs": [1]}, "inputs must be a dictionary of tensors, got a list"),
    (
        {"inputs": {"noise": torch.zeros(4, 2, 3), "keep": torch.zeros(1)}},
        r"inputs\['noise'\] must broadcast to \[T,B,H\] = \[4, 2, 5\], got \[4, 2, 3\]",
    ),
    ({"inputs": {"noise": 1.0, "keep": torch.zeros(1)}}, r"inputs\['noise'\] must be a tensor, got a float"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_told(given: dict[str, Any], message: str) -> None:
    layer = make("rate", 3, 5)
    given = {"inputs": inputs_of(layer, 4, 2)} | given
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(4, 2, 3), **given)


def test_what_is_no_cell_is_told() -> None:
    with pytest.raises(UserError, match="Recurrent takes a cell made by prnn.cell"):
        prnn.Recurrent(lambda *_: None, 2, 3)
    with pytest.raises(UserError, match='bias=3: expected True, False, "input" or "recurrent"'):
        prnn.Recurrent(cells.lif, 2, 3, bias=3)
    with pytest.raises(UserError, match="states is the text 'h'"):
        prnn.cell(gates=1, states="h")
    with pytest.raises(UserError, match=r"params\['a'\] is 'one': expected a number"):
        prnn.cell(gates=1, params={"a": "one"})
    with pytest.raises(UserError, match=r"params is \['a'\]: expected a dictionary"):
        prnn.cell(gates=1, params=["a"])
    with pytest.raises(UserError, match=r"write @prnn.cell\(gates=1\)"):
        prnn.cell(lambda *_: None)
    with pytest.raises(UserError, match=r"a cell is called as <lambda>\(gx, gh, state, p, inputs\): too many"):
        prnn.cell(gates=1)(lambda gx, gh, state, p: {})
