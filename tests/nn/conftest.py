"""Shared by the module tests: pairs of equal modules, one of torch.nn and one of prnn.nn, and their comparison."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import prnn.nn

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm_proj": ("LSTM", {"proj_size": 1}),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def make_pair(kind: str, input_size: int, hidden_size: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """(theirs, ours), built from the same seed."""
    name, extra = KINDS[kind]
    pair = []
    for library in (torch.nn, prnn.nn):
        torch.manual_seed(7)
        pair.append(getattr(library, name)(input_size, hidden_size, **extra, **options))
    return pair[0], pair[1]


def make_state(module: nn.Module, batch: int | None, dtype: torch.dtype = torch.float32) -> Any:
    """A random hx that fits ``module``; without the batch dimension if ``batch`` is None."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    middle = () if batch is None else (batch,)
    h0, c0 = (torch.randn(rows, *middle, size, dtype=dtype) for size in sizes)
    return (h0, c0) if module.mode == "LSTM" else h0


def as_list(results: Any) -> list[Tensor]:
    """The tensors of (output, h_n) or (output, (h_n, c_n))."""
    output, state = results
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(state if isinstance(state, tuple) else (state,))]


def outputs_and_gradients(module: nn.Module, x: Any, hx: Any, **keywords: Any) -> dict[str, Tensor]:
    """Everything a module computes: its results, and the gradients of input, h0, c0 and each parameter."""
    wanted = {}
    if isinstance(x, PackedSequence):
        wanted["data"] = x.data.detach().clone().requires_grad_()
        x = PackedSequence(wanted["data"], *x[1:])
    else:
        wanted["input"] = x = x.detach().requires_grad_()
    if hx is not None:
        state = tuple(t.detach().clone().requires_grad_() for t in (hx if isinstance(hx, tuple) else (hx,)))
        wanted |= {f"h0[{i}]": tensor for i, tensor in enumerate(state)}
        hx = state if isinstance(hx, tuple) else state[0]
    wanted |= dict(module.named_parameters())
    results = as_list(module(x, hx, **keywords))
    torch.manual_seed(11)
    loss = sum((tensor * torch.randn(tensor.shape).to(tensor.dtype)).sum() for tensor in results)
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    found = {f"result {i}": tensor.detach() for i, tensor in enumerate(results)}
    return found | {f"gradient of {name}": g for name, g in zip(wanted, gradients, strict=True)}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name], expected, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


class Compare:
    """Handed to the tests as a fixture, so that they need not import from a conftest."""

    kinds = KINDS
    tolerance = TOLERANCE
    pair = staticmethod(make_pair)
    state = staticmethod(make_state)
    results = staticmethod(as_list)
    everything = staticmethod(outputs_and_gradients)
    equal = staticmethod(assert_equal)


@pytest.fixture
def compare() -> type[Compare]:
    return Compare


@pytest.fixture(params=tuple(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)
