"""StackRNN and ListRNN: the modules, and weights made by hand that solve a^n b^n."""

from typing import Any

import pytest
import torch

from prnn.nn import ListRNN, StackRNN
from prnn.ops.memory import reference

MODULES = {
    "stack": lambda: StackRNN(3, 8, stacks=2, capacity=12),
    "noop": lambda: StackRNN(3, 8, stacks=2, depth=3, capacity=12, no_op=True, recurrent=True),
    "list": lambda: ListRNN(3, 8, lists=2, capacity=12),
}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]()


def test_shapes_state_and_a_sequence_in_two_calls(module):
    x = torch.randn(9, 4, 3)
    output, (h, memory) = module(x)
    assert (output.shape, h.shape, memory.shape) == ((9, 4, 8), (1, 4, 8), (12, 4, 2))
    assert torch.equal(h[0], output[-1])
    first, state = module(x[:5])
    second, (_, carried) = module(x[5:], state)
    assert torch.allclose(torch.cat([first, second]), output, atol=1e-6)
    assert torch.allclose(carried, memory, atol=1e-6)


def test_trace_is_what_forward_does(module):
    x = torch.randn(6, 3, 3)
    for rounds in (False, True):
        output, (_, memory) = module(x, rounds=rounds)
        traced, memories, actions = module.trace(x, rounds=rounds)
        assert torch.allclose(traced, output, atol=1e-6)
        assert torch.allclose(memories[-1], memory, atol=1e-6)
        assert actions.shape == (6, module.kind.actions + 1, 3, 2)
        assert torch.allclose(actions[:, :-1].sum(1), torch.ones(6, 3, 2))


def test_noise_is_drawn_only_where_it_is_asked_for(module):
    x = torch.randn(6, 3, 3)
    assert torch.equal(module(x)[0], module(x)[0])
    assert not torch.equal(module(x, noise=0.5)[0], module(x, noise=0.5)[0])


@pytest.mark.parametrize(("kind", "some"), [("value_noise", 1.0), ("action_noise", 1.0), ("flips", 0.5)])
def test_noise_on_values_or_actions_changes_the_memories_alone(module, kind, some):
    x = torch.randn(6, 3, 3)
    output, (h, memory) = module(x)
    noisy, (noisy_h, noisy_memory) = module(x, **{kind: some})
    assert noisy.shape == output.shape and noisy_h.shape == h.shape and noisy_memory.shape == memory.shape
    assert torch.equal(noisy[0], output[0]) and not torch.equal(noisy[1:], output[1:])
    faint, (_, state) = module(x, **{kind: 1e-6})
    assert torch.allclose(faint, output, atol=1e-5) and torch.allclose(state, memory, atol=1e-5)
    assert torch.equal(module(x, (h, memory), **{kind: some})[0][0], module(x, (h, memory))[0][0])
    module(x, **{kind: some})[0].sum().backward()
    assert all(p.grad.shape == p.shape and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("kind", ["noise", "value_noise", "action_noise", "flips"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_noise_out_of_range_is_told(module, kind, value):
    with pytest.raises(ValueError, match=f"{kind} must be a number of at least 0"):
        module(torch.randn(6, 3, 3), **{kind: value})


def test_a_probability_of_flips_above_1_is_told(module):
    with pytest.raises(ValueError, match=r"flips must be a probability, at most 1, got 1\.5"):
        module(torch.randn(6, 3, 3), flips=1.5)


def pushing(value: float, action: float, **options: Any) -> StackRNN:
    """Three stacks whose values have the logit ``value``; PUSH has the logit ``action``, POP its negative."""
    module = StackRNN(1, 4, stacks=3, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()  # all units are 0.5
        module.weight_act[:6:2].fill_(action / 2)
        module.weight_act[1:6:2].fill_(-action / 2)
        module.weight_act[6:].fill_(value / 2)
    torch.manual_seed(0)
    return module


STEPS = torch.zeros(2, 100_000, 1, dtype=torch.float64)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("logit", [0.0, 300.0])
def test_flips_are_as_many_as_asked_for(recurrent, logit):
    _, (_, memory) = pushing(logit, 1e3, recurrent=recurrent)(STEPS, flips=0.2, value_noise=1e-9)
    plain = torch.sigmoid(torch.tensor(logit)).item()
    for cell in memory[:2]:  # of the second step, and of the first
        for value, share in {plain: 0.8, **{end: 0.1 + 0.8 * (end == plain) for end in (0.0, 1.0)}}.items():
            shares = torch.isclose(cell, torch.tensor(value, dtype=torch.float64)).double().mean(0)
            assert shares.tolist() == pytest.approx([share] * 3, abs=0.005)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_value_noise_has_the_deviation_asked_for(recurrent, both):
    noise = {"value_noise": 2.0, **({"action_noise": 1.0} if both else {})}
    _, (_, memory) = pushing(0.0, 1e3, recurrent=recurrent)(STEPS, **noise)
    logits = torch.logit(torch.cat([memory[0], memory[1]], 1))  # of the second step, and of the first
    assert logits.mean(0).abs().max() < 0.03
    assert logits.std(0).tolist() == pytest.approx([2.0] * 6, rel=0.01)
    assert torch.corrcoef(logits.t()).triu(1).abs().max() < 0.02  # each memory and step has its own


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_action_noise_has_the_deviation_asked_for(recurrent, both):
    noise = {"action_noise": 2.0, **({"value_noise": 1.0} if both else {})}
    # The value is 1, whatever the noise on it, and an empty cell 0: after two steps the first cell is the second step's
    # share of PUSH, and the second cell that share times the first step's.
    _, (_, memory) = pushing(1e3, 0.0, recurrent=recurrent, empty=0.0)(STEPS, **noise)
    shares = torch.cat([memory[0], memory[1] / memory[0]], 1)
    difference = torch.logit(shares)  # of PUSH's and POP's logits, each with noise of its own
    assert difference.mean(0).abs().max() < 0.03
    assert difference.std(0).tolist() == pytest.approx([2.0 * 2**0.5] * 6, rel=0.01)
    assert torch.corrcoef(difference.t()).triu(1).abs().max() < 0.02  # each memory and step has its own


def test_under_autocast_the_memories_stay_float32(module):
    x = torch.randn(6, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, (_, memory) = module(x)
        again, _ = module(x, (output[-1:], memory))
    assert output.dtype == memory.dtype == again.dtype == torch.float32
    assert torch.allclose(output, module(x)[0], atol=2e-2)
    output.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_parameters_are_the_papers():
    names = {name: tuple(p.shape) for name, p in StackRNN(3, 8, stacks=5, depth=2, recurrent=True).named_parameters()}
    assert names == {"weight_ih": (8, 3), "weight_hh": (8, 8), "weight_read": (8, 10), "weight_act": (15, 8)}
    assert "weight_hh" not in dict(StackRNN(3, 8).named_parameters())
    assert ListRNN(3, 8, lists=5).weight_act.shape == (20, 8)


@pytest.mark.parametrize("network", [StackRNN, ListRNN])
def test_initial_weights_have_the_deviation_asked_for(network):
    for options, std in (({}, 0.5), ({"init_std": 0.1}, 0.1), ({"init_std": 0.0}, 0.0)):
        for parameter in network(200, 200, 20, depth=5, recurrent=True, **options).parameters():
            assert parameter.mean().abs() < 0.02 and parameter.std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("network", [StackRNN, ListRNN])
def test_initial_weights_of_single_parameters(network):
    std = {"weight_ih": 2.0, "weight_hh": 0.2, "weight_read": 0.0, "weight_act": 0.1}
    module = network(200, 200, 20, depth=5, recurrent=True, init_std=std)
    for _ in range(2):
        assert {name: p.std().item() for name, p in module.named_parameters()} == pytest.approx(std, rel=0.03)
        module.reset_parameters()
    with pytest.raises(ValueError, match="init_std must be one number, or one for each of weight_ih, .*, got"):
        network(3, 8, init_std={"weight_ih": 2.0})
    with pytest.raises(ValueError, match="init_std must be a number of at least 0, got -1"):
        network(3, 8, init_std={**std, "weight_ih": -1.0})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StackRNN(3, 8, stacks=0), "memories must be at least 1"),
        (lambda: StackRNN(3, 8, depth=3, capacity=2), "capacity of 2"),
        (lambda: StackRNN(3, 8, init_std=-0.1), "init_std must be a number of at least 0, got -0.1"),
        (lambda: ListRNN(3, 8, init_std=float("nan")), "init_std must be a number of at least 0, got nan"),
        (lambda: ListRNN(3, 8, depth=7, capacity=12), "7 deep from cell 6"),
        (lambda: StackRNN(3, 8)(torch.zeros(4, 2, 5)), r"\[T,B,3\]"),
        (
            lambda: StackRNN(3, 8)(torch.zeros(4, 2, 3), MODULES["stack"]().empty_state(torch.zeros(4, 2, 3))),
            "memories",
        ),
    ],
)
def test_mistakes_are_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def solver(dtype=torch.float64):
    """Weights that solve a^n b^n exactly: one stack, which counts the a's.

    Unit 0 fires on a: push 1. Unit 1 fires on b while there is something in the stack: pop. Unit 2 fires on b where
    what is left is the last (cell 1 is empty), or nothing: the next is a.
    """
    module, big = StackRNN(2, 3, stacks=1, depth=2, capacity=70).to(dtype), 60.0
    decoder = torch.nn.Linear(3, 2, bias=False).to(dtype)
    with torch.no_grad():
        # Without biases: both letters are given in full. Cells hold about 1 where something was pushed, -1 else.
        module.weight_ih.copy_(torch.tensor([[big, -big], [-big, big], [-2 * big, 0.0]]))
        module.weight_read.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, -big]]))
        module.weight_act.copy_(torch.tensor([[big, -big, 0.0], [-big, big, 0.0], [big, big, 0.0]]))
        decoder.weight.copy_(torch.tensor([[2.0, -1.0, 4.0], [1.0, 1.0, -4.0]]))
    return module, decoder


@pytest.mark.parametrize("rounds", [False, True])
def test_weights_made_by_hand_solve_anbn(rounds):
    """a^n b^n for n up to 60: all b's after the first, and that the next sequence begins, though nothing marks it."""
    module, decoder = solver()
    text = "".join("a" * n + "b" * n for n in range(1, 61))
    tokens = torch.tensor(["ab".index(letter) for letter in text])
    x = torch.nn.functional.one_hot(tokens, 2).double().unsqueeze(1)
    output, (_, memory) = module(x, rounds=rounds)
    predicted = decoder(output)[:, 0].argmax(-1)
    for i in range(len(text) - 1):
        if text[i] == "b":  # from here on everything is known
            assert "ab"[predicted[i]] == text[i + 1], i
    assert torch.allclose(memory, torch.full_like(memory, -1.0), atol=1e-9)
    assert torch.allclose(output, reference(module._operands(x, None), module.kind._replace(rounds=rounds))[0])
