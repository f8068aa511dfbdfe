"""The output modified in place before the backward pass, as torch.nn's RNN and GRU allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prnn
from tests.nn.conftest import make_pair

CHANGES = {
    "relu": torch.relu_,
    "masked_fill": lambda output: output.masked_fill_(output > 0, 0),
    "one step": lambda output: output[1].mul_(3),
    "a detached part": lambda output: output.detach()[0].zero_(),
    "nothing": lambda output: output,
}


@pytest.mark.parametrize("backend", [None, "cpu", "torch", "reference"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru"])
@pytest.mark.parametrize("T", [1, 4])
def test_gradients_are_those_of_torch(kind, change, backend, T):
    theirs, ours = make_pair(kind, 5, 6, num_layers=2, bidirectional=True)
    x, grads = torch.randn(T, 3, 5), []
    if change == "one step" and T == 1:
        pytest.skip("there is one step")
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        with prnn.backend(None if module is theirs else backend):
            output, h_n = module(leaf)
        before = h_n.detach().clone()
        CHANGES[change](output)
        assert torch.equal(h_n, before)
        loss = output.square().sum() + h_n.sum()
        grads.append([output.detach(), *torch.autograd.grad(loss, [leaf, *module.parameters()])])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_without_a_change_nothing_is_copied(kind):
    module, head = getattr(prnn, kind)(5, 6), nn.Linear(6, 2)
    output = module(torch.randn(4, 3, 5))[0]
    head(torch.relu(output)[:, -1]).logsumexp(-1).sum().backward()
    assert torch._C._is_cow_tensor(output)
    output.detach().relu_()
    assert not torch._C._is_cow_tensor(output)
    assert not torch._C._is_cow_tensor(module.requires_grad_(False)(torch.randn(4, 3, 5))[0])
