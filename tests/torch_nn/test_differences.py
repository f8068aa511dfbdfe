"""The table of differences is true: its tests exist, and what it says of prnn holds."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, rnn

import prnn
from tests.torch_nn import page
from tests.torch_nn.differences import DIFFERENCES
from tests.torch_nn.samples import assert_same, leaves, small


def test_every_test_of_the_table_exists():
    for difference in DIFFERENCES:
        assert difference.reason.endswith(".")
        for test in difference.tests:
            file, function = test.split("[")[0].split("::")
            assert f"def {function}(" in (Path(__file__).parent / file).read_text()


def test_the_page_has_every_test_and_every_difference():
    text = page.PAGE.read_text()
    named = set(re.findall(r"^\| `(test_\w+)` ", text, re.MULTILINE))
    assert named == {name for file in page.files() for name in page.functions(file)}, "python -m tests.torch_nn.page"
    assert text.startswith(page.HEAD) and "failed" not in text
    assert all(difference.reason in text for difference in DIFFERENCES)


def test_two_more_arguments(layer):
    ours = inspect.signature(getattr(prnn, layer).forward).parameters
    assert list(ours) == ["self", "input", "hx", "lengths", "resets"]
    for name in ("lengths", "resets"):
        assert (ours[name].kind, ours[name].default) == (inspect.Parameter.KEYWORD_ONLY, None)


def test_dropout_masks(library, layer):
    """Repeatable with the same seed, in torch.nn and prnn."""
    module, arguments = small(library, layer, num_layers=2, dropout=0.5)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(leaves(module(*arguments)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_packed_input_of_lstm_is_checked():
    packed = rnn.pack_sequence([torch.randn(3, 5), torch.randn(2, 5)])
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 3, got 5"):
        prnn.LSTM(3, 4)(packed)


@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_errors_of_kernels(layer, wrong):
    module, (x, hx) = small(prnn, layer)
    if wrong == "dtype":
        with pytest.raises(RuntimeError, match=r"dtype of the input, torch\.float32, got torch\.float64"):
            module(x, tuple(each.double() for each in hx) if layer == "LSTM" else hx.double())
    else:
        module.weight_ih_l0 = torch.nn.Parameter(torch.randn(2, 3))
        with pytest.raises(ValueError, match=r"weight_ih must be .*, got \[2, 3\]"):
            module(x, hx)


def test_deepcopy_with_computed_weights(layer):
    module, arguments = small(prnn, layer)
    parametrizations.weight_norm(module, "weight_hh_l0")
    expected = module(*arguments)
    assert_same(copy.deepcopy(module)(*arguments), expected)


@pytest.mark.parametrize("layer", ["RNN", "GRU", "LSTM"])
def test_float16_is_near_float64(layer):
    theirs, (x, _) = small(torch.nn, layer)
    ours = getattr(prnn, layer)(3, 4)
    ours.load_state_dict(theirs.state_dict())
    exact = copy.deepcopy(theirs.half()).double()(x.half().double())[0]
    error, their_error = ((each.half()(x.half())[0] - exact).abs().max() for each in (ours, theirs))
    assert error <= their_error + 1e-4


def test_gradients_of_each_sample(layer):
    """By torch.func too, where torch.nn has no rule."""
    module, x = getattr(prnn, layer)(3, 4, batch_first=True), torch.randn(2, 5, 3)
    weights = {name: each.detach() for name, each in module.named_parameters()}

    def loss(weights, sample):
        return functional_call(module, weights, (sample[None],))[0].sum()

    found = vmap(grad(loss), (None, 0))(weights, x)
    for i, sample in enumerate(x):
        torch.testing.assert_close({name: each[i] for name, each in found.items()}, grad(loss)(weights, sample))
