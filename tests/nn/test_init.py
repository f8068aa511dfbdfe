"""nn/init.py and nn/build.py."""

import pytest
import torch

from prnn.cell_table import CELLS
from prnn.config import ModelConfig
from prnn.nn import LSTM, RNN, build, forget_bias_, identity_


def test_identity_keeps_a_state_and_its_gradient():
    rnn = identity_(RNN(2, 5, nonlinearity="relu"))
    assert torch.equal(rnn.weight_hh_l0, torch.eye(5))
    assert not rnn.bias_ih_l0.any()
    assert not rnn.bias_hh_l0.any()
    h0 = torch.rand(1, 3, 5, requires_grad=True)
    _, h_n = rnn(torch.zeros(100, 3, 2), h0)
    assert torch.equal(h_n, h0)
    [grad] = torch.autograd.grad(h_n.sum(), h0)
    assert torch.equal(grad, torch.ones_like(h0))


def test_scaled_identity_and_input_weights():
    rnn = identity_(RNN(300, 100, num_layers=2, bidirectional=True), scale=0.01, input_std=0.5)
    assert torch.equal(rnn.weight_hh_l1_reverse, 0.01 * torch.eye(100))
    assert rnn.weight_ih_l0.std().item() == pytest.approx(0.5, rel=0.05)
    assert identity_(RNN(300, 100)).weight_ih_l0.std().item() == pytest.approx(1e-3, rel=0.05)


def test_forget_bias_touches_the_forget_gate_alone():
    torch.manual_seed(0)
    plain = LSTM(2, 3)
    torch.manual_seed(0)
    lstm = forget_bias_(LSTM(2, 3), 1.5)
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0)[3:6].tolist() == [1.5] * 3
    for rows in (slice(0, 3), slice(6, 12)):
        assert torch.equal(lstm.bias_ih_l0[rows], plain.bias_ih_l0[rows])
    assert torch.equal(lstm.weight_hh_l0, plain.weight_hh_l0)


@pytest.mark.parametrize("cell", CELLS)
def test_build_makes_what_the_configuration_says(cell):
    module = build(ModelConfig(cell, hidden_size=7, num_layers=2, dropout=0.2), 5, bidirectional=True)
    assert module._prnn_cell == cell
    assert (module.input_size, module.hidden_size, module.num_layers, module.dropout) == (5, 7, 2, 0.2)
    assert module.bidirectional
    assert build(ModelConfig(cell, num_layers=1, dropout=0.2), 5).dropout == 0  # nothing lies between layers


def test_build_initialises():
    assert torch.equal(build(ModelConfig("rnn_relu", 4, 1, init="identity"), 1).weight_hh_l0, torch.eye(4))
    assert build(ModelConfig("lstm", 4, 1, forget_bias=2.0), 1).bias_ih_l0[4:8].tolist() == [2.0] * 4
