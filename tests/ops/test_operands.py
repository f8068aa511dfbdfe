"""Operands at the edge: sizes of zero, and what does not fit."""

import pytest
import torch

from prnn import ops
from prnn.ops.memory import Memories, Operands, memory_recurrence
from tests.ops.problems import assert_same, layer

CELLS = list(ops.CELLS)
# T, B, I, H
NOTHING = [(3, 2, 0, 4), (3, 2, 4, 0), (3, 2, 0, 0), (0, 2, 3, 4), (3, 0, 3, 4), (1, 2, 0, 600), (0, 0, 0, 0)]


def layer_operands(cell, T, B, I, H):
    spec, generator = ops.CELLS[cell], torch.Generator().manual_seed(0)
    G = spec.gates
    shapes = {"x": (T, B, I), "weight_ih": (G * H, I), "weight_hh": (G * H, H), "bias_ih": (G * H,)}
    shapes |= {"bias_hh": (G * H,), "h0": (B, H), "c0": (B, H)}
    drawn = {name: torch.randn(*shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return drawn if spec.has_c else drawn | {"c0": None}


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("sizes", NOTHING, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_of_zero_give_what_the_reference_gives(cell, sizes, reverse, backend):
    operands = layer_operands(cell, *sizes)
    leaves = [x for x in operands.values() if x is not None]
    found = []
    for name in (backend, "reference"):
        with ops.backend(name):
            outputs = [y for y in layer(**operands, cell=cell, reverse=reverse) if y is not None]
        total = sum(y.cos().sum() for y in outputs)
        found.append([*outputs, *torch.autograd.grad(total, leaves, materialize_grads=True)])
    assert_same(*found, 1e-5)


SPOILT = {
    "another rank": lambda x: x.unsqueeze(0),
    "a scalar": lambda x: torch.zeros((), dtype=x.dtype),
    "one more row": lambda x: x.new_zeros((x.shape[0], *(n + 1 for n in x.shape[1:])) if x.dim() > 1 else 99),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.detach().to_sparse(),
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("flaw", SPOILT)
@pytest.mark.parametrize("name", ["x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0"])
def test_an_operand_of_a_layer_that_does_not_fit_is_a_value_error(name, flaw):
    operands = layer_operands("lstm", 3, 2, 4, 5)
    operands[name] = SPOILT[flaw](operands[name])
    with pytest.raises(ValueError, match=r"must be|is on|is torch"):
        layer(**operands, cell="lstm")


@pytest.mark.parametrize("spoilt", [torch.ones(2), torch.ones(2, dtype=torch.complex64), torch.ones(3).long()])
def test_lengths_that_do_not_fit_are_a_value_error(spoilt):
    with pytest.raises(ValueError, match="lengths must be"):
        layer(**layer_operands("gru", 3, 2, 4, 5), cell="gru", lengths=spoilt)


def test_integers_stay_an_error_under_autocast():
    operands = layer_operands("gru", 3, 2, 4, 5)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="float32"):
        layer(**operands | {"x": operands["x"].long()}, cell="gru")


def memory_operands():
    shapes = {"gates_x": (3, 2, 5), "weight_hh": (5, 5), "weight_read": (5, 8), "weight_act": (12, 5)}
    shapes |= {"h0": (2, 5), "memory0": (6, 2, 4)}
    return {name: torch.randn(*shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("flaw", SPOILT)
@pytest.mark.parametrize("name", Operands._fields)
def test_an_operand_of_a_memory_that_does_not_fit_is_a_value_error(name, flaw):
    operands = memory_operands()
    operands[name] = SPOILT[flaw](operands[name])
    with pytest.raises(ValueError, match=r"must be|is torch"):
        memory_recurrence(Operands(**operands), Memories(2))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"gates_x": torch.ones(0, 2, 5)}, Memories(2)),
        ({"memory0": torch.ones(0, 2, 4)}, Memories(2)),
        ({"memory0": torch.ones(6, 2, 0)}, Memories(2)),
        ({"weight_read": torch.ones(5, 0)}, Memories(2)),
        ({"weight_read": torch.ones(5, 28)}, Memories(2)),  # seven cells of six
        ({"h0": None}, Memories(2)),
        ({}, Memories(4)),
        ({}, Memories(2, list=True)),
    ],
)
def test_memories_that_cannot_be_are_a_value_error(change, kind):
    with pytest.raises(ValueError, match=r"must be|takes|wants"):
        memory_recurrence(Operands(**memory_operands() | change), kind)


def test_no_samples_are_no_error():
    operands = memory_operands()
    empty = {
        name: operands[name][:, :0] if name != "h0" else operands[name][:0] for name in ("gates_x", "memory0", "h0")
    }
    output, memory = memory_recurrence(Operands(**operands | empty), Memories(2))
    assert output.shape == (3, 0, 5) and memory.shape == (6, 0, 4)
