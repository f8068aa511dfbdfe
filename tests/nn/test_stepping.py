"""Plain calls: the shorter way gives what torch.nn gives, and leaves what is not plain to the general one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import prnn
from prnn import native
from prnn.nn import stepping
from tests.nn.conftest import as_list, make_pair, make_state

KINDS = ("rnn_tanh", "rnn_relu", "gru", "lstm")


@pytest.fixture
def shorter(monkeypatch):
    """Counts the calls that were computed in the shorter way."""
    count = []

    def counted(self, x, hx, original=stepping.plain_call):
        results = original(self, x, hx)
        if results is not None:
            count.append(x.shape)
        return results

    for module in (prnn.RNN, prnn.GRU, prnn.LSTM):
        monkeypatch.setattr(module, "_prnn_plain_call", counted)
    return count


def ready(kind, I, H, **options):
    """(theirs, ours), after a first call, which goes the general way and logs the backends."""
    theirs, ours = make_pair(kind, I, H, **options)
    ours(torch.zeros(1, 1, I))
    return theirs, ours


def gradients(module, x, hx):
    leaves = [x.clone().requires_grad_()]
    if hx is not None:
        hx = (
            tuple(each.clone().requires_grad_() for each in hx)
            if isinstance(hx, tuple)
            else hx.clone().requires_grad_()
        )
        leaves += hx if isinstance(hx, tuple) else [hx]
    results = as_list(module(leaves[0], hx))
    loss = sum((each.square().sum() for each in results), start=torch.zeros(()))
    return [each.detach() for each in results] + list(torch.autograd.grad(loss, [*leaves, *module.parameters()]))


@pytest.mark.parametrize(
    "layers", [{}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True, "batch_first": True}]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("T", "B", "H"), [(1, 1, 3), (1, 5, 17), (2, 1, 1), (3, 2, 100), (8, 4, 17), (30, 3, 17), (1, 1, 200)]
)
def test_results_and_gradients_are_those_of_torch(kind, T, B, H, bias, layers, shorter):
    theirs, ours = ready(kind, 5, H, bias=bias, **layers)
    shape = (B, T, 5) if layers.get("batch_first") else (T, B, 5)
    for x, state in ((torch.randn(shape), make_state(theirs, B)), (torch.randn(*shape[:2], 10)[..., ::2], None)):
        with torch.no_grad():
            expected = as_list(theirs(x, state))
            shorter.clear()
            torch.testing.assert_close(as_list(ours(x, state)), expected)
            assert shorter == [shape]
        shorter.clear()
        torch.testing.assert_close(gradients(ours, x, state), gradients(theirs, x, state), rtol=1e-4, atol=1e-5)
        assert T > 1 or shorter == [shape]


@torch.no_grad()
@pytest.mark.parametrize("layers", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_many_samples_and_units(kind, layers, shorter):
    theirs, ours = ready(kind, 5, 512, **layers)
    x = torch.randn((64, 1, 5) if layers else (1, 64, 5))
    torch.testing.assert_close(as_list(ours(x)), as_list(theirs(x)))
    assert shorter == [x.shape]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("absent", [["bias_ih_l0"], ["bias_hh_l0"], ["bias_ih_l0", "bias_hh_l0"]])
@pytest.mark.parametrize("kind", KINDS)
def test_absent_biases_are_zero(kind, absent, frozen):
    theirs, ours = ready(kind, 5, 6)
    for name in absent:
        setattr(ours, name, None)
        torch.nn.init.zeros_(getattr(theirs, name))
    ours.requires_grad_(not frozen)
    for T in (1, 2, 5):
        x = torch.randn(T, 3, 5)
        for _ in range(2):
            torch.testing.assert_close(as_list(ours(x)), as_list(theirs(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_with_gradients_is_torchs_cell(kind, shorter):
    _, ours = ready(kind, 5, 6, num_layers=2)
    ours(torch.randn(1, 3, 5))[0].sum().backward()
    assert shorter == [(1, 3, 5)]
    assert "torch" in prnn.explain(ours, torch.randn(1, 3, 5))
    output, state = ours(torch.randn(1, 3, 5))
    before = copy.deepcopy([each.detach() for each in as_list((output, state))[1:]])
    output.detach().relu_()
    torch.testing.assert_close([each.detach() for each in as_list((output, state))[1:]], before, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_plain_goes_the_general_way(kind, shorter):
    theirs, ours = ready(kind, 5, 6, num_layers=2)
    x = torch.randn(2, 3, 5)
    ours(x)
    assert len(shorter) == 1
    shorter.clear()
    ours(torch.randn(20_000, 3, 5))  # a large output
    ours(x, lengths=[2, 1, 2])
    ours(x, resets=torch.zeros(2, 3, dtype=torch.bool))
    ours(x[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x)[0].dtype == torch.bfloat16
    with prnn.backend("reference"):
        ours(x)
    torch.vmap(lambda each: ours(each)[0])(x.unsqueeze(0))
    torch.func.functional_call(ours, {name: 2 * each for name, each in ours.named_parameters()}, (x,))
    torch.jit.trace(ours, x, check_trace=False)
    copy.deepcopy(ours).double()(x.double())
    copy.deepcopy(ours).bfloat16()(x.bfloat16())
    normed = parametrizations.weight_norm(copy.deepcopy(ours), "weight_hh_l0")
    for _ in range(2):
        torch.testing.assert_close(as_list(normed(x)), as_list(theirs(x)))
    assigned = copy.deepcopy(ours)
    assigned._flat_weights = [2 * each for each in assigned._flat_weights]
    for _ in range(2):
        assigned(x)
    assert not shorter


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named_as_in_the_general_way(kind):
    theirs, ours = ready(kind, 5, 6)
    state = make_state(theirs, 3)
    wide = make_state(theirs, 4)
    mixed_state = (state[0], state[1].double()) if isinstance(state, tuple) else state.bfloat16()
    given = [
        (torch.randn(1, 3, 4), None),
        (torch.randn(1, 3, 5, 1), None),
        (torch.randn(0, 3, 5), None),
        (torch.randn(1, 3, 5, dtype=torch.float64), None),
        (torch.randn(1, 3, 5), wide),
        (torch.randn(1, 3, 5), make_state(theirs, 3, torch.float64)),
        (torch.randn(1, 3, 5), mixed_state),
        (torch.randn(1, 3, 5), torch.zeros(1, 3)),
        (torch.randn(1, 3, 5), (state, state, state)),
    ]
    for x, hx in given:
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises((ValueError, RuntimeError, AttributeError)) as general:
                copy.deepcopy(ours)(x, hx)  # the first call of a copy
            with torch.set_grad_enabled(grad), pytest.raises(general.type) as again:
                ours(x, hx)
            assert str(again.value) == str(general.value)
    mixed = copy.deepcopy(ours)
    mixed(torch.randn(1, 3, 5))
    mixed.weight_hh_l0 = nn.Parameter(torch.randn(3, 3))
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="weight_hh|weight_ih"):
            mixed(torch.randn(1, 3, 5))


@pytest.mark.parametrize("T", [1, 2])
def test_one_tensor_is_no_pair_of_states(T):
    theirs, ours = ready("lstm", 5, 6)
    state = torch.zeros(1, 3, 6)
    for module, error in ((theirs, IndexError), (ours, RuntimeError)):
        with pytest.raises(error):
            module(torch.randn(T, 3, 5), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_alone_may_want_a_gradient(kind):
    _, ours = ready(kind, 5, 6)
    ours.requires_grad_(False)
    state = make_state(ours, 3)
    leaves = [each.requires_grad_() for each in (state if isinstance(state, tuple) else (state,))]
    for T in (1, 2, 4):
        output = ours(torch.randn(T, 3, 5), state)[0]
        assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(output.sum(), leaves))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2])
def test_dropout_between_layers(kind, T, shorter):
    torch.manual_seed(0)
    _, ours = ready(kind, 5, 64, num_layers=2, dropout=0.5)
    x = torch.randn(T, 3, 5)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            ours.train()
            torch.manual_seed(1)
            first, second = ours(x)[0], ours(x)[0]
            torch.manual_seed(1)
            assert not torch.equal(first, second) and torch.equal(first, ours(x)[0])
            ours.eval()
            assert torch.equal(ours(x)[0], ours(x)[0])
    assert shorter


@pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")
def test_the_operator_keeps_states_of_another_type():
    """c is float32 where the rest is bfloat16."""
    module, x = prnn.LSTM(5, 6, num_layers=3).bfloat16(), torch.randn(2, 4, 5).bfloat16()
    h0, c0 = torch.randn(3, 4, 6).bfloat16(), torch.randn(3, 4, 6).bfloat16()
    with torch.no_grad():
        output, (h_n, c_n) = module(x, (h0, c0))
        found = torch.ops.prnn_native.stack_forward(
            x, h0, c0.float(), list(module.parameters()), native.cell_id("lstm"), 3, 1
        )
    torch.testing.assert_close([*found[:2], found[2].bfloat16()], [output, h_n, c_n], rtol=0, atol=0)
