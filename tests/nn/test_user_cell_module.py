"""``prnn.Recurrent`` as a module: parameters, states, inputs, copies, and what does not fit."""

from __future__ import annotations

import copy
import cProfile
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prnn
from prnn import native
from prnn.errors import UserError
from tests.nn import cells
from tests.nn.cells import inputs_of, make

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")


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
    state = layer.__dict__ | {"mode": "gru", "_prnn_cell": "gru"}
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
    ({"state": {"v": torch.zeros(1, 3, 5)}}, r"state must be \[L\*D,B,H\] = \[1, 2, 5\], got \[1, 3, 5\]"),
    (
        {"state": (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5))},
        r"state\['v'\] must be \[L\*D,B,H\] = \[1, 2, 5\], got \[1, 3, 5\]",
    ),
    ({"lengths": {"a": 1}}, "lengths must be a tensor or a list of integers, got {'a': 1}"),
    ({"state": {"v": torch.zeros(2, 2, 5)}}, r"state\['v'\] must be \[L\*D,B,H\] = \[1, 2, 5\], got \[2, 2, 5\]"),
    ({"state": {"v": torch.zeros(1, 2, 5).int()}}, r"state\['v'\] must be of floating-point numbers, got torch.int32"),
    ({"state": 3}, "state must be a dictionary or a tuple of h, v, got 3"),
    ({"state": (torch.zeros(1, 2, 5),)}, "state must be a tuple of h, v, got 1 tensors"),
    ({"inputs": {}}, "inputs lacks 'noise', which the cell rate takes at each step"),
    ({"inputs": {"x": 1}}, "inputs has 'x': the cell rate takes noise, keep"),
    ({"inputs": [1]}, "inputs must be a dictionary of tensors, got a list"),
    (
        {"inputs": {"noise": torch.zeros(4, 2, 3), "keep": torch.zeros(1)}},
        r"inputs\['noise'\] must broadcast to \[T,B,H\] = \[4, 2, 5\], got \[4, 2, 3\]",
    ),
    ({"inputs": {"noise": 1.0, "keep": torch.zeros(1)}}, r"inputs\['noise'\] must be a tensor, got a float"),
    (
        {"inputs": {"noise": torch.zeros(1, dtype=torch.complex64), "keep": torch.zeros(1)}},
        r"inputs\['noise'\] must be of real numbers, got torch.complex64",
    ),
    (
        {"inputs": {"noise": torch.nn.utils.rnn.pack_sequence([torch.zeros(2, 5)]), "keep": torch.zeros(1)}},
        r"inputs\['noise'\] must be a tensor, got a PackedSequence",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_told(given: dict[str, Any], message: str) -> None:
    layer = make("rate", 3, 5)
    given = {"inputs": inputs_of(layer, 4, 2)} | given
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(4, 2, 3), **given)


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["lif", "slstm", "rate"])
def test_states_other_than_h_are_float32(cell: str, given: torch.dtype) -> None:
    layer = make(cell, 3, 5).to(torch.bfloat16)
    state = {name: torch.rand(1, 2, 5).to(given) for name in layer.cell.signature.states[1:]}
    _, final = layer(torch.randn(4, 2, 3).bfloat16(), state, inputs=inputs_of(layer, 4, 2))
    assert {name: tensor.dtype for name, tensor in final.items()} == {
        name: torch.bfloat16 if name == "h" else torch.float32 for name in layer.cell.signature.states
    }


@pytest.mark.parametrize("B", [1, 3])
def test_a_packed_batch_of_another_size_than_the_state(B: int) -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(2, 3), torch.zeros(4, 3)], enforce_sorted=False)
    for layer in (make("lif", 3, 5), prnn.GRU(3, 5)):
        state = torch.zeros(1, B, 5)
        with pytest.raises((ValueError, RuntimeError), match=r"1, 2, 5\D+1, \d, 5"):
            layer(packed, {"v": state} if isinstance(layer, prnn.Recurrent) else state)


def test_what_is_no_input_is_told() -> None:
    layer = make("lif", 3, 5)
    with pytest.raises(TypeError, match="Recurrent: expected input to be a tensor, got list"):
        layer([1.0])
    with pytest.raises(ValueError, match=r"^Recurrent input dtype \(torch.int32\) .* input.to\(torch.float32\)$"):
        layer(torch.zeros(4, 2, 3).int())
    for explained, resets, message in (
        ([1.0], None, "explain takes the layer's input, a tensor or a PackedSequence, got list"),
        (torch.zeros(4, 2, 3), "no", "resets must be a bool tensor, got a str"),
        (torch.zeros(4, 2, 3), torch.zeros(2, 4).bool(), r"resets must have shape \[T,B\] = \[4, 2\], got \[2, 4\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            prnn.explain(layer, explained, resets=resets)
    assert "layer 0" in prnn.explain(layer, torch.zeros(4, 3), resets=torch.zeros(4).bool())


def test_what_is_no_cell_is_told() -> None:
    for size in ("6", np.int64(6)):
        with pytest.raises(TypeError, match="hidden_size should be of type int"):
            prnn.Recurrent(cells.lif, 2, size, heads=2)
    for heads in (1.0, 0, 4):
        with pytest.raises(UserError, match=f"heads={heads} with hidden_size=6: expected a divisor of hidden_size"):
            prnn.Recurrent(cells.lif, 2, 6, heads=heads)
    with pytest.raises(UserError, match="states is 2: expected a tuple of names"):
        prnn.cell(gates=1, states=2)
    with pytest.raises(UserError, match=r"inputs=\(3,\): expected different names"):
        prnn.cell(gates=1, inputs=(3,))
    with pytest.raises(UserError, match="output=None: expected the name of a state"):
        prnn.cell(gates=1, output=None)
    with pytest.raises(UserError, match="got <class .*Linear'>: expected a function"):
        prnn.cell(gates=1)(torch.nn.Linear)
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
