"""Operations counted, against numbers by hand: 2 for each element of each weight, at every step of every sample."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prnn
from prnn import ops
from prnn.nn import ListRNN, StackRNN
from prnn.ops import flops  # noqa: F401  (registers the formulas)
from prnn.ops.operands import Operands

T, B, I, H = 5, 3, 4, 6
ROWS = {"RNN": H, "GRU": 3 * H, "LSTM": 4 * H}


def counted(module, x, backward=True, **options):
    with FlopCounterMode(display=False) as counter:
        output, _ = module(x, **options)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def forced(backend):
    if backend == "cpu" and not ops.native.status()[0]:
        pytest.skip(f"native library: {ops.native.status()[1]}")
    return prnn.backend(backend)


def test_an_lstm_in_numbers():
    with forced("cpu"):
        # weight_ih is 24 x 4, weight_hh 24 x 6: 240 multiplications and additions, 15 times
        assert counted(prnn.LSTM(4, 6), torch.randn(5, 3, 4), backward=False) == 7200
        # and backward: weight_hh for the state's gradient, both for the weights' gradients
        assert counted(prnn.LSTM(4, 6), torch.randn(5, 3, 4)) == 7200 + 4320 + 7200


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("want_x", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 2, 1])])
def test_every_cell_forward_and_backward(name, backend, want_x, lengths):
    of_x, of_h = 2 * T * B * ROWS[name] * I, 2 * T * B * ROWS[name] * H
    x = torch.randn(T, B, I, requires_grad=want_x)
    with forced(backend):
        found = counted(getattr(prnn, name)(I, H), x, lengths=lengths)
    whole = backend == "torch" and name == "LSTM" and lengths is None  # oneDNN has x's gradient in any case
    assert found == (of_x + of_h) + (of_x + 2 * of_h) + (of_x if want_x or whole else 0)


def test_both_directions_layers_and_a_projection():
    with forced("cpu"):
        two = counted(prnn.GRU(I, H, num_layers=2, bidirectional=True), torch.randn(T, B, I), backward=False)
    assert two == 2 * T * B * 3 * H * 2 * ((I + H) + (2 * H + H))
    projected = counted(prnn.LSTM(I, H, proj_size=2), torch.randn(T, B, I))
    forward = 2 * T * B * (4 * H * (I + 2) + 2 * H)
    assert projected == forward + 2 * forward - 2 * T * B * 4 * H * I


@pytest.mark.parametrize(("make", "actions"), [(StackRNN, 2), (ListRNN, 3)])
def test_memories(make, actions):
    module = make(I, H, 2, capacity=8)  # two memories, of which two cells are read
    weights = H * 4 + (2 * actions + 2) * H
    x = torch.randn(T, B, I)
    assert counted(module, x, backward=False) == 2 * T * B * (H * I + weights)
    if ops.native.status()[0]:
        assert counted(module, x) == 2 * T * B * (2 * H * I + 3 * weights)


def test_a_compiled_graph_s_operators_count_alike():
    with forced("cpu"):
        module = prnn.GRU(I, H)
        x, h = torch.randn(T, B, I), torch.zeros(1, B, H)
        weights = (module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0)
        with FlopCounterMode(display=False) as counter:
            torch.ops.prnn.layer("gru", False, "cpu", True, *Operands.of(x, [ops.Weights(*weights)], (h,)))
        assert counter.get_total_flops() == 2 * T * B * 3 * H * (I + H)


def test_formulas_are_registered_in_any_program():
    code = """
import torch, prnn, sys
layer = prnn.GRU(3, 4)
assert "prnn.ops.flops" not in sys.modules and "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    layer(torch.randn(5, 2, 3))
assert counter.get_total_flops() == 2 * 5 * 2 * 12 * (3 + 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
