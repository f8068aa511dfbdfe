"""nn/init.py and nn/build.py."""

import pytest
import torch

from prnn.cell_table import CELLS
from prnn.config import ModelConfig
from prnn.nn import LSTM, RNN, build, forget_bias_, identity_, single_bias_


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


@pytest.mark.parametrize("cell", CELLS)
def test_a_single_bias_is_the_one_trained(cell):
    module = build(ModelConfig(cell, hidden_size=5, num_layers=2, bias_hh=False), 3, bidirectional=True)
    module(torch.randn(4, 2, 3))[0].sum().backward()
    second = {name: p for name, p in module.named_parameters() if name.startswith("bias_hh")}
    assert len(second) == 4 and all(not p.any() and not p.requires_grad and p.grad is None for p in second.values())
    assert all(p.grad is not None for name, p in module.named_parameters() if name not in second)


def test_a_single_bias_moves_by_one_update():
    torch.manual_seed(0)
    both = identity_(RNN(3, 5), input_std=0.1)
    single = single_bias_(RNN(3, 5))
    single.load_state_dict(both.state_dict())
    for module in (both, single):
        optimizer = torch.optim.RMSprop([p for p in module.parameters() if p.requires_grad], lr=0.1)
        module(torch.ones(4, 2, 3))[0].sum().backward()
        optimizer.step()
    assert single.bias_ih_l0.any()
    assert torch.allclose(both.bias_ih_l0 + both.bias_hh_l0, 2 * (single.bias_ih_l0 + single.bias_hh_l0))
