"""Each rule of ``lowering``: the operator's values and derivative, with torch's in float64."""

from __future__ import annotations

import contextlib
import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from prnn.codegen.lowering import RULES
from tests.codegen.harness import Cell, Library, one_gate

CELLS: dict[str, Cell] = {}


def enter(functions, **options):
    CELLS.update({name: one_gate(function, **options) for name, function in functions.items()})


enter(
    {
        "neg": lambda x: -x,
        "abs": lambda x: x.abs(),
        "exp": lambda x: x.exp(),
        "expm1": lambda x: x.expm1(),
        "sin": lambda x: x.sin(),
        "cos": lambda x: x.cos(),
        "tanh": lambda x: x.tanh(),
        "sigmoid": lambda x: x.sigmoid(),
        "atan": lambda x: x.atan(),
        "positive": lambda x: +x,
        "square": lambda x: x.square(),
        "tan": lambda x: x.tan(),
        "reciprocal": lambda x: x.reciprocal(),
        "cosh": lambda x: x.cosh(),
        "sinh": lambda x: x.sinh(),
        "floor": lambda x: x.floor() * x,
        "ceil": lambda x: x.ceil() * x,
        "trunc": lambda x: x.trunc() * x,
        "round": lambda x: x.round() * x,
        "round decimals": lambda x: x.round(decimals=2) * x,
        "frac": lambda x: x.frac(),
        "sign": lambda x: x.sign() * x,
        "sgn": lambda x: x.sgn() * x,
        "maximum": lambda x, y: torch.maximum(x, y),
        "minimum": lambda x, y: torch.minimum(x, y),
        "max": lambda x, y: torch.max(x, y),
        "equal maximum": lambda x, y: torch.maximum(x.floor() * x, y.floor() * x) + torch.minimum(x * 2, x * 2),
        "relu ties": lambda x: torch.relu(torch.relu(x) * x) + torch.clamp(torch.relu(x), 0, 1),
        "add": lambda x, y: torch.add(x, y, alpha=3),
        "sub": lambda x, y: torch.sub(x, y, alpha=0.5) - 2,
        "rsub": lambda x, y: torch.rsub(x, y, alpha=2) + (1 - x) + torch.rsub(x, 3.0, alpha=2),
        "mul": lambda x, y: x * y * -1,
        "div": lambda x, y: x / y + 1 / y + x / 4 - x / -3,
        "floor div": lambda x, y: torch.div(x, y, rounding_mode="floor") * x + torch.div(x, 0.1, rounding_mode="floor"),
        "trunc div": lambda x, y: torch.div(x, y, rounding_mode="trunc") * x,
        "floor_divide": lambda x, y: (x.detach() // y.detach()) * x + x.detach() // 0 * y,
        "addcmul": lambda x, y: torch.addcmul(x, x, y, value=2),
        "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=2),
        "lerp": lambda x, y: torch.lerp(x, y, 0.25) * torch.lerp(x, y, 0.75),
        "lerp tensor": lambda x, y: torch.lerp(x, y, x),
        "fmod": lambda x, y: torch.fmod(x, y) + x.fmod(0.75),
        "remainder": lambda x, y: x % y.detach() + x % 0.75 + 2 % x.detach(),
        "hypot": lambda x, y: torch.hypot(x, y),
        "heaviside": lambda x, y: torch.heaviside(x.detach(), y.detach()) * x,
        "where": lambda x, y: torch.where(x > y, x, y * y) + torch.where(x < 0, x, 2.0),
        "comparisons": lambda x, y: sum(
            (f(x, y) * (x + k) for k, f in enumerate((torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne))), y
        ),
        "compared numbers": lambda x: (x >= 0.5) * x - (x != 0.25) * (x <= 1) * x + (x < 1) * 3.0,
        "masks": lambda x, y: torch.where(((x > 0) | (y > 0)) & ~((x < 1) ^ (y < 1)), x, y),
        "logical": lambda x, y: torch.where(
            torch.logical_xor(torch.logical_and(x > 0, y), torch.logical_or(x > y, y > 1)) & torch.logical_not(x > 1.5),
            x,
            y,
        ),
        "bitwise": lambda x, y: torch.where(
            torch.bitwise_xor(x > 0, y > 0).bitwise_or(x > 1).bitwise_and(y < 1.5).bitwise_not(), x, y
        ),
        "masks as numbers": lambda x, y: (
            (x > 0) * y + (y > 0).to(x.dtype) * x + ((x > 0) == (y > 0)) * 2.0 + (x > 1) / 2
        ),
        "sums of masks": lambda x, y: ((x > 0) + (y > 0)) * x + ((x > 0) * (y > 0)) * y + ((x > 0) * 1.0 + (y > 0)) * 3,
        "masked_fill": lambda x, y: x.masked_fill(y > 0, 0.5),
        "isnan": lambda x, y: torch.where(x.isnan(), x, y * x),
        "isinf": lambda x, y: torch.where((x / 0).isinf(), x, y * x),
        "isfinite": lambda x, y: torch.where(x.isfinite(), x, y),
        "nan_to_num": lambda x, y: (x * torch.where(y > 0, math.nan, 1)).nan_to_num(2) + torch.nan_to_num(x + y),
        "infinities": lambda x, y: torch.nan_to_num(x.sign() * math.inf, posinf=3, neginf=-4) * y,
        "clamp": lambda x: x.clamp(-0.5, 1) + x.clamp(max=0.5),
        "clip": lambda x: torch.clip(x, min=0.25),
        "clamp_min": lambda x, y: x.clamp_min(0.5) * x.clamp(min=y),
        "clamp_max": lambda x, y: x.clamp_max(0.5) * x.clamp(max=y),
        "clamp tensors": lambda x, y: torch.clamp(x, -y.abs(), y.abs()),
        "relu": F.relu,
        "relu6": lambda x: F.relu6(4 * x),
        "threshold": lambda x: F.threshold(x, 0.5, -2.0),
        "hardtanh": lambda x: F.hardtanh(x),
        "hardtanh bounds": lambda x: F.hardtanh(x, -0.25, 1.5),
        "silu": lambda x: F.silu(x),
        "softshrink": lambda x: 2 * F.softshrink(x) - F.softshrink(x, 0.75),
        "hardshrink": lambda x: F.hardshrink(x),
        "logsigmoid": lambda x: F.logsigmoid(x),
        "mish": lambda x: F.mish(x),
        "elu": lambda x: F.elu(x, 0.75),
        "elu in place": lambda x: F.elu_(x * 2, 0.75),
        "celu": lambda x: F.celu(x, 0.5),
        "leaky_relu": lambda x: F.leaky_relu(x, 0.25),
        "softplus": lambda x: F.softplus(x) + F.softplus(x, 2, 1),
        "softplus far": lambda x: F.softplus(x * 100),
        "softsign": F.softsign,
        "tanhshrink": F.tanhshrink,
        "integer powers": lambda x: x**2 + x**3 - x**4 + x**0 + x**1,
        "negative powers": lambda x: x**-1 + x**-2,
        "converted constants": lambda x: x * (torch.tensor(2.7).int() + torch.full_like(x, 3.7, dtype=torch.int32)),
        "functions of constants": lambda x: (
            torch.where(torch.relu(torch.tensor(2.0)) > 0, x, 0.0) * (torch.tensor(7.0) // 2)
        ),
        "detach": lambda x, y: x.detach() * y + x,
        "copy": lambda x, y: torch.zeros_like(x).copy_(x) * y.clone(),
        "factories": lambda x, y: (
            x * torch.full_like(x, 2) + y.new_zeros(y.shape) + torch.ones_like(x) * torch.tensor(0.5)
        ),
        "in place": lambda x, y: (x * 1).add_(y, alpha=2).mul_(y).sub_(1).div_(2).neg_().clamp_(-0.5, 0.5),
        "filled": lambda x, y: (x * 1).masked_fill_(y > 0, 2.0).add_(torch.empty_like(x).fill_(3.0)).zero_() + x,
        "views": lambda x, y: x.unsqueeze(0).squeeze(0).view(x.shape).reshape(x.shape) * y.expand_as(x),
    }
)
enter({
    "log": lambda x: x.log(), "log1p": lambda x: x.log1p(), "sqrt": lambda x: x.sqrt(), "rsqrt": lambda x: x.rsqrt(),
    "half powers": lambda x: x**0.5 + x**1.5 - x**-0.5 + x**2.5, "pow": lambda x, y: x**y,
    "float pow": lambda x: x**5.25,
    "true_divide": lambda x, y: torch.true_divide(x, y),
}, low=0.5, high=3)  # fmt: skip
enter({
    "log erfc": lambda x: torch.erfc(2 * x).log(), "large cosh": lambda x: (29.6 * x).cosh() * 1e-20,
    "large sinh": lambda x: (29.6 * x).sinh() * 1e-20, "tiny divisor": lambda x: x / 2.0**-130,
    "softplus of a constant": lambda x: x * F.softplus(torch.tensor(1.0)),
    "erf": lambda x: x.erf(), "erfc": lambda x: x.erfc(), "exp2": lambda x: x.exp2(), "sinc": lambda x: x.sinc(),
    "number power": lambda x: 2**x, "equal logaddexp": lambda x, y: torch.logaddexp(x, x) * y,
    "logaddexp": lambda x, y: torch.logaddexp(x, y), "gelu": lambda x: F.gelu(x),
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "selu": lambda x: F.selu(x), "hardsigmoid": lambda x: F.hardsigmoid(x), "hardswish": lambda x: F.hardswish(x * 2),
}, exact=False)  # fmt: skip
enter({"log2": lambda x: x.log2(), "log10": lambda x: x.log10()}, low=0.5, high=3, exact=False)


class Recording(dict):
    """Rules, and those that were read."""

    def __init__(self, rules):
        super().__init__(rules)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


@pytest.fixture(scope="session")  # xdist comes back to this file after others
def rules():
    """The rules that the cells' traces use."""
    rules = Recording(RULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("prnn.codegen.trace"), "RULES", rules)
        for cell in CELLS.values():
            with contextlib.suppress(Exception):  # again in the cell's own test
                cell.generated  # noqa: B018
    return rules.read


@pytest.fixture(scope="session")
def library(rules, tmp_path_factory):
    return Library(CELLS, tmp_path_factory.mktemp("operators"))


@pytest.mark.parametrize("name", CELLS)
def test_operator(library, name):
    library.compare(name)


def special(large):
    return [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        large,
        -large,
        1 / large,
        -1 / large,
        3,
        -3,
        1,
        -1,
        0.5,
        -0.5,
        2.5,
    ]


@pytest.mark.parametrize("name", [name for name in CELLS if name != "nan_to_num"])  # whose largest number is a float's
def test_operator_at_special_values(library, name):
    for shift in range(len(special(1))):
        library.compare(name, shift, special(1e100))


@pytest.fixture(scope="session")
def float_library(rules, tmp_path_factory):
    return Library(CELLS, tmp_path_factory.mktemp("operators"), torch.float32)


# torch's own gelu is NaN at infinity in float32, its fmod and remainder are where the quotient is large; its cosh and
# sinh are infinite where exp is.
TORCH_IS_WRONG = ("gelu", "fmod", "remainder", "large cosh", "large sinh")


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("name", [name for name in CELLS if name not in TORCH_IS_WRONG])
def test_operator_in_float32_at_special_values(float_library, name):
    for large in (1e15, 1e37):
        for shift in range(len(special(large))):
            float_library.compare(name, shift, special(large))


def test_every_rule_is_tested(rules):
    assert set(RULES) - rules == set()
