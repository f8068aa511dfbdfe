"""Sequences with episode starts, in one call: what sb3-contrib's loop over their steps makes of them."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch

import prnn
from prnn.errors import UserError
from prnn.integrations.sequences import process_sequence

N, T, I, H = 3, 7, 5, 6
# Where episodes begin, [N,T].
STARTS = {
    "nowhere": torch.zeros(N, T),
    "everywhere": torch.ones(N, T),
    "first step": torch.eye(T)[0].expand(N, T),
    "first step of one": torch.eye(N, T)[:1].expand(N, T) * torch.eye(N)[0].unsqueeze(1),
    "inside": torch.eye(N, T).roll(2, 1),
    "both": torch.tensor([[1.0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]]),
}


def step_by_step(features, state, episode_starts, lstm):
    """One call of the layer for each step, of a state that is zeroed where an episode begins."""
    outputs = []
    for x, start in zip(features.view(N, -1, I).unbind(1), episode_starts.view(N, -1).unbind(1), strict=True):
        output, state = lstm(x.unsqueeze(0), tuple((1.0 - start).view(1, N, 1) * part for part in state))
        outputs.append(output[0])
    return torch.stack(outputs, 1).flatten(0, 1), state


def everything(function, module, features, state, starts):
    """Output, final state, and the gradients of features, state and parameters."""
    wanted = [features.clone().requires_grad_(), *(part.clone().requires_grad_() for part in state)]
    output, final = function(wanted[0], tuple(wanted[1:]), starts, module)
    results = [output, *final]
    loss = sum((result * (1 + torch.arange(result.numel()).view_as(result).sin())).sum() for result in results)
    return [*results, *torch.autograd.grad(loss, [*wanted, *module.parameters()])]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("where", STARTS)
def test_one_call_equals_one_call_a_step(where, layers):
    theirs = torch.nn.LSTM(I, H, num_layers=layers)
    ours = prnn.LSTM(I, H, num_layers=layers)
    ours.load_state_dict(theirs.state_dict())
    features, state = torch.randn(N * T, I), tuple(torch.randn(2, layers, N, H))
    starts = STARTS[where].flatten()
    expected = everything(step_by_step, theirs, features, state, starts)
    for given in (starts, starts.bool()):
        found = everything(process_sequence, ours, features, state, given)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("starts", [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
def test_a_step_of_each_environment_without_gradients(starts):
    theirs = torch.nn.LSTM(I, H)
    ours = prnn.LSTM(I, H)
    ours.load_state_dict(theirs.state_dict())
    state = expected_state = tuple(torch.randn(2, 1, N, H))
    for _ in range(3):  # from the second on, the layer's way for few steps
        features, episode_starts = torch.randn(N, I), torch.tensor(starts)
        with torch.no_grad():
            expected, expected_state = step_by_step(features, expected_state, episode_starts, theirs)
            output, state = process_sequence(features, state, episode_starts, ours)
        torch.testing.assert_close((output, state), (expected, tuple(expected_state)), atol=1e-5, rtol=1e-5)


def test_sequences_take_one_call_of_the_layer():
    calls = []
    lstm = prnn.LSTM(I, H)
    lstm.register_forward_hook(lambda module, given, results: calls.append(given[0].shape))
    state = torch.zeros(1, N, H), torch.zeros(1, N, H)
    process_sequence(torch.randn(N * T, I), state, STARTS["both"].flatten(), lstm)
    assert calls == [(T, N, I)]


def test_without_sb3_contrib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)  # an import of it fails
    for name in [name for name in sys.modules if name.startswith("sb3_contrib.") or name == "prnn.integrations.sb3"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"prnn\.integrations\.sb3 needs sb3-contrib: pip install 'prnn\[sb3\]'"):
        import_module("prnn.integrations.sb3")
