"""What a kernel cannot compute: one sentence, with the line of the user's code."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from prnn.codegen import Signature, generate
from prnn.errors import UserError

OUTSIDE = torch.ones(5)
REFUSALS = []


def refusal(sentence, **signature):
    """Enters a cell function: the line that ends in "# here", else its definition, is the one that is named."""

    def register(function):
        REFUSALS.append((function, sentence, Signature(**{"gates": 2, "params": ("a", "b"), **signature})))
        return function

    return register


@refusal("an `if` or `while` depends on a tensor's values, which differ at run time: use torch.where")
def branch(gx, gh, state, p, inputs):
    if gx[0] > 0:  # here
        return {"h": gx[0]}
    return {"h": gh[0]}


@refusal("an `if` or `while` depends on a tensor's values, which differ at run time: use torch.where")
def branch_on_a_parameter(gx, gh, state, p, inputs):
    return {"h": gx[0] if p.a.sum() > 0 else gh[0]}  # here


@refusal("item() depends on a tensor's values, which differ at run time: use a tensor, torch.tanh and not math.tanh")
def item(gx, gh, state, p, inputs):
    return {"h": gx[0] * p.a.mean().item()}  # here


@refusal("float() depends on a tensor's values")
def number(gx, gh, state, p, inputs):
    return {"h": gx[0] * float(gh[0])}  # here


@refusal("draws random numbers, which a kernel does not: give the noise as a per-step input")
def noise(gx, gh, state, p, inputs):
    return {"h": gx[0] + torch.randn_like(gx[0])}  # here


@refusal("draws random numbers")
def dropout(gx, gh, state, p, inputs):
    return {"h": torch.nn.functional.dropout(gx[0])}  # here


@refusal("a kernel, which computes each unit of each sample by itself, has no mean: compute it outside the cell")
def mean(gx, gh, state, p, inputs):
    x = gx[0]
    return {"h": x - x.mean(1, keepdim=True)}  # here


@refusal("has no mm: compute it outside the cell")
def matrix(gx, gh, state, p, inputs):
    return {"h": gx[0] @ torch.ones(5, 5)}  # here


@refusal("has no roll: compute it outside the cell")
def roll(gx, gh, state, p, inputs):
    return {"h": torch.roll(gx[0], 1, 1)}  # here


@refusal("has no t: compute it outside the cell")
def transposed(gx, gh, state, p, inputs):
    return {"h": gx[0].t().tanh().t()}  # here


@refusal("has no slice: compute it outside the cell")
def sliced(gx, gh, state, p, inputs):
    return {"h": gx[0] * gh[0][:, :1]}  # here


@refusal("an indexed assignment works across units or samples: use torch.where")
def indexed(gx, gh, state, p, inputs):
    x = gx[0] * 1
    x[[0]] = 1.0  # here
    return {"h": x}


@refusal('a kernel cannot compute digamma: use other functions, or run the Python loop with native="never"')
def special(gx, gh, state, p, inputs):
    return {"h": torch.digamma(gx[0])}  # here


@refusal("gives float64 numbers, and a kernel computes in float32: write numbers as 1.0 and leave out")
def double(gx, gh, state, p, inputs):
    return {"h": gx[0].double().tanh().float()}  # here


@refusal("where gives int64 numbers, and a kernel computes in float32: write numbers as 1.0")
def integers(gx, gh, state, p, inputs):
    return {"h": torch.where(gx[0] > 0, 1, 0) * gh[0]}  # here


@refusal("gives int64 numbers")
def integer(gx, gh, state, p, inputs):
    return {"h": gx[0].long() * gh[0]}  # here


@refusal(
    "a tensor of shape [5] comes from outside the cell function: make it a parameter, a per-step input or a Python"
)
def foreign(gx, gh, state, p, inputs):
    return {"h": gx[0] * OUTSIDE}  # here


@refusal("fails when it is called with tensors [B,H] of [4, 7]: RuntimeError: The size of tensor a (7) must match")
def sized(gx, gh, state, p, inputs):
    return {"h": gx[0] * torch.ones(5)}  # here


@refusal("fails when it is called with tensors [B,H] of [3, 5]: ValueError: not enough values to unpack (expected 3")
def unpacks(gx, gh, state, p, inputs):
    a, b, c = gx  # here
    return {"h": a + b + c}


@refusal("tanh(): argument 'input' (position 1) must be Tensor, not tuple")
def of_a_tuple(gx, gh, state, p, inputs):
    return {"h": torch.tanh(gx)}  # here


@refusal("a cell's parameter is read as an attribute, by its name, got ['a']")
def subscript(gx, gh, state, p, inputs):
    return {"h": gx[0] * p["a"]}  # here


@refusal("where expected condition to be a boolean tensor, but got a tensor with dtype Float")
def mask_of_numbers(gx, gh, state, p, inputs):
    return {"h": torch.where(state.h, gx[0], gh[0])}  # here


@refusal(
    "torch cannot differentiate it (one of the variables needed for gradient computation has been modified by an in"
)
def changed(gx, gh, state, p, inputs):
    h = torch.relu(gx[0])
    h[h > 1] = 1.0
    return {"h": h}


@refusal("a tensor of 5 numbers differs between units: make it a parameter")
def literal(gx, gh, state, p, inputs):
    return {"h": gx[0] * torch.tensor([1.0, 2, 3, 4, 5])}  # here


@refusal("mul_ changes a parameter or an argument in place: make a new tensor")
def argument_in_place(gx, gh, state, p, inputs):
    return {"h": gx[0].mul_(2)}  # here


@refusal("__setitem__ changes a parameter or an argument in place: make a new tensor")
def item_in_place(gx, gh, state, p, inputs):
    state.h[gx[0] > 0] = 0  # here
    return {"h": state.h}


@refusal("add_ changes a parameter or an argument in place: make a new tensor")
def derived_in_place(gx, gh, state, p, inputs):
    a = torch.sigmoid(p.a)
    a += 1  # here
    return {"h": gx[0] * a}


@refusal("an expression of parameters has shape [5, 1]: expected one number for each unit")
def outer(gx, gh, state, p, inputs):
    return {"h": gx[0] * p.a[:, None]}  # here


@refusal("an expression of parameters has type torch.int64: expected floating-point numbers")
def ranks(gx, gh, state, p, inputs):
    return {"h": gx[0] * p.a.argsort()}  # here


@refusal("torch cannot differentiate it (derivative for aten::heaviside is not implemented)")
def no_derivative(gx, gh, state, p, inputs):
    return {"h": torch.heaviside(gx[0], gh[0])}


@refusal("sum works across samples, and a cell is computed unit by unit")
def sum_in_a_derivative(gx, gh, state, p, inputs):
    class Centred(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad - grad.sum(0)  # here

    return {"h": Centred.apply(gx[0])}


@refusal("the cell index with gates=2 takes an index of gx, gh or another tuple that is not there: tuple index out of")
def index(gx, gh, state, p, inputs):
    return {"h": gx[2]}


@refusal("the cell returns_nothing returned a NoneType: expected a dict with h")
def returns_nothing(gx, gh, state, p, inputs):
    pass


@refusal("the cell lacks_v returned no 'v': expected a dict with h, v", states=("h", "v"))
def lacks_v(gx, gh, state, p, inputs):
    return {"h": gx[0]}


@refusal("the cell lacks_y returned no 'y': expected a dict with h, y", output="y")
def lacks_y(gx, gh, state, p, inputs):
    return {"h": gx[0]}


@refusal("the cell returns_more returned an unknown 'u': expected a dict with h")
def returns_more(gx, gh, state, p, inputs):
    return {"h": gx[0], "u": gx[0]}


@refusal("the cell returns_a_number returned a float as 'h': expected a tensor [B,H]")
def returns_a_number(gx, gh, state, p, inputs):
    return {"h": 1.0}


@refusal("the cell returns_a_parameter returned 'h' of shape [5]: expected [B,H], here [3, 5]")
def returns_a_parameter(gx, gh, state, p, inputs):
    return {"h": p.a}


@refusal("the cell returns_a_mask returned 'h' of type torch.bool: expected floating-point numbers")
def returns_a_mask(gx, gh, state, p, inputs):
    return {"h": gx[0] > 0}


@refusal("the cell has no state 'u', only h, v", states=("h", "v"))
def wrong_state(gx, gh, state, p, inputs):
    return {"h": state.u}  # here


@refusal("the cell has no per-step input 'keep'")
def wrong_input(gx, gh, state, p, inputs):
    return {"h": inputs.keep}  # here


@refusal("a cell's state 'h' can only be read: return the new values in the dict")
def assigns(gx, gh, state, p, inputs):
    state.h = gx[0]  # here


@pytest.mark.parametrize(
    ("function", "sentence", "signature"), REFUSALS, ids=lambda value: getattr(value, "__name__", "")
)
def test_refusal(function, sentence, signature):
    with pytest.raises(UserError) as refused:
        generate(function, signature, "Cell")
    lines, first = inspect.getsourcelines(function)
    number = next((number for number, line in enumerate(lines, first) if line.endswith("# here\n")), None)
    message = str(refused.value)
    assert sentence in message and "\n" not in message
    line = first if number is None else number
    assert re.match(rf"\S*test_refusals\.py:{line}: ", message), message


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"gates": 0}, "a cell has gates=0: expected a whole number, at least 1"),
        ({"gates": "1"}, "a cell has gates='1': expected a whole number, at least 1"),
        ({"gates": 1, "states": ("v", "h")}, "expected 'h', the layer's hidden state, first"),
        ({"gates": 1, "states": ()}, "expected 'h', the layer's hidden state, first"),
        ({"gates": 1, "states": ("h", "h")}, "a cell has states=('h', 'h'): expected different names"),
        (
            {"gates": 1, "params": ("a b",)},
            "a cell has params=('a b',): expected different names that can be attributes",
        ),
        ({"gates": 1, "params": ("lambda",)}, "expected different names that can be attributes"),
        ({"gates": 1, "inputs": ("_x",)}, "a cell has inputs=('_x',): expected different names"),
        ({"gates": 1, "output": "a b"}, "a cell has output='a b': expected the name of a state or of another result"),
    ],
)
def test_signature(fields, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        Signature(**fields)


def test_an_unknown_function_of_parameters_is_hoisted():
    def cell(gx, gh, state, p, inputs):
        return {"h": gx[0] * torch.digamma(p.a) + p.b.cumsum(0)}

    _, prologue = generate(cell, Signature(1, params=("a", "b")), "Cell")
    assert set(prologue.names) == {"digamma_a", "cumsum_b"}


def test_the_modes_of_the_caller_do_not_matter():
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + gh[0]) * torch.sigmoid(p.a)}

    signature = Signature(1, params=("a",))
    plain = generate(cell, signature, "Cell")[0].text
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), torch.device("meta")):
        with mode:
            assert generate(cell, signature, "Cell")[0].text == plain
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert generate(cell, signature, "Cell")[0].text == plain
    finally:
        torch.set_default_dtype(before)
