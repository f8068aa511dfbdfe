"""Wrong arguments and inputs get torch's errors; copies, pickles and logs behave."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import prnn.nn
from prnn import ops

BAD_ARGUMENTS = {
    "dropout above 1": ((3, 4), {"dropout": 1.5}),
    "dropout below 0": ((3, 4), {"dropout": -0.1}),
    "dropout a bool": ((3, 4), {"dropout": True}),
    "bias not a bool": ((3, 4), {"bias": 1}),
    "batch_first not a bool": ((3, 4), {"batch_first": "yes"}),
    "input_size a float": ((3.0, 4), {}),
    "hidden_size a float": ((3, 4.0), {}),
    "input_size zero": ((0, 4), {}),
    "hidden_size negative": ((3, -4), {}),
    "num_layers zero": ((3, 4), {"num_layers": 0}),
    "unknown": ((3, 4), {"colour": "red"}),
    "proj_size": ((3, 4), {"proj_size": 4}),
    "proj_size negative": ((3, 4), {"proj_size": -1}),
}


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(name, case):
    positional, keywords = BAD_ARGUMENTS[case]
    with pytest.raises((TypeError, ValueError)) as theirs:
        getattr(torch.nn, name)(*positional, **keywords)
    with pytest.raises(theirs.type) as ours:
        getattr(prnn.nn, name)(*positional, **keywords)
    if case not in ("unknown", "proj_size", "proj_size negative"):  # python words the one, the others may differ
        assert str(ours.value) == str(theirs.value)


def test_projection_is_for_lstm_and_nonlinearity_is_known():
    with pytest.raises(ValueError, match="only supported for LSTM"):
        prnn.nn.GRU(3, 4, proj_size=2)
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'gelu'. Select from 'tanh' or 'relu'."):
        prnn.nn.RNN(3, 4, nonlinearity="gelu")


BAD_INPUTS = {
    "one dimension": ((4,), None),
    "four dimensions": ((2, 3, 4, 4), None),
    "wrong features": ((5, 2, 3), None),
    "no steps": ((0, 2, 4), None),
    "no steps, unbatched": ((0, 4), None),
    "state of another batch": ((5, 2, 4), (2, 3, 6)),
    "state of another size": ((5, 2, 4), (2, 2, 7)),
    "state of too few layers": ((5, 2, 4), (1, 2, 6)),
    "state unbatched": ((5, 2, 4), (2, 6)),
    "state batched": ((5, 4), (2, 1, 6)),
}


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input(name, case):
    shape, state = BAD_INPUTS[case]
    hx = None if state is None else torch.zeros(state)
    hx = (hx, hx) if hx is not None and name == "LSTM" else hx
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        getattr(torch.nn, name)(4, 6, 2)(torch.zeros(shape), hx)
    with pytest.raises(theirs.type) as ours:
        getattr(prnn.nn, name)(4, 6, 2)(torch.zeros(shape), hx)
    assert str(ours.value) == str(theirs.value)


def test_wrong_cell_state_and_dtypes():
    module = prnn.nn.LSTM(4, 6, proj_size=3)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 6\), got \[1, 2, 3\]"):
        module(torch.zeros(5, 2, 4), (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)))
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match weight dtype"):
        module(torch.zeros(5, 2, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"dtype of the input, torch\.float32, got torch\.float16"):
        prnn.nn.GRU(4, 6)(torch.zeros(5, 2, 4), torch.zeros(1, 2, 6).half())


def test_copies_are_independent_and_equal(compare, kind):
    _, ours = compare.pair(kind, 3, 4, num_layers=2)
    x = torch.randn(4, 2, 3)
    expected = ours(x)[0]
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    for other in copies:
        assert torch.equal(other(x)[0], expected)
    double = copies[0].to(torch.float64)
    torch.testing.assert_close(double(x.double())[0], expected.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_deepcopy_after_the_weight_was_replaced_by_a_computed_one():
    """The modules of torch keep a list of flat weights, and fail here."""
    module = torch.nn.utils.weight_norm(prnn.nn.GRU(3, 4), "weight_hh_l0")
    x = torch.randn(4, 2, 3)
    expected = module(x)[0]
    del module.weight_hh_l0  # not a leaf: only leaves can be copied
    assert torch.equal(copy.deepcopy(module)(x)[0], expected)


def test_logs_once_which_backend_ran(caplog):
    module, x = prnn.nn.GRU(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3)
    with caplog.at_level(logging.INFO, logger="prnn"):
        module(x)
        module(x)
        [said] = [record.getMessage() for record in caplog.records]
        [backend] = {line.split(": ", 1)[1] for line in prnn.nn.explain(module, x).splitlines()[1:]}
        assert said == f"GRU(3, 4, num_layers=2, bidirectional=True), float32 on cpu: backend {backend}"
        copy.deepcopy(module)(x)
    assert len(caplog.records) == 2


def test_explain_names_each_layer_and_direction():
    module, x = prnn.nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), torch.randn(2, 5, 3)
    with prnn.ops.backend("reference"):
        head, *lines = prnn.nn.explain(module, x).splitlines()
    assert "LSTM(3, 4, num_layers=2" in head and "T=5 B=2 float32 on cpu" in head
    names = ["layer 0:", "layer 0 reverse:", "layer 1:", "layer 1 reverse:"]
    assert [line.strip().split(" reference")[0] for line in lines] == names
    assert all("forced" in line for line in lines)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    assert "T=3 B=2" in prnn.nn.explain(module, packed)
    assert "T=5 B=1" in prnn.nn.explain(module, torch.randn(5, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert "bfloat16" in prnn.nn.explain(module, x, lengths=[1, 5])
    with pytest.raises(TypeError, match="explain takes a prnn RNN, GRU, LSTM or Recurrent, got Linear"):
        prnn.nn.explain(torch.nn.Linear(3, 4), x)


@pytest.mark.parametrize("kind", ["parameter", "hidden"])
def test_tensors_on_two_devices_are_an_error_in_torchs_words(kind):
    module, x = prnn.nn.GRU(3, 4), torch.randn(5, 2, 3)
    state = torch.zeros(1, 2, 4, device="meta" if kind == "hidden" else "cpu")
    module = module.to("meta") if kind == "parameter" else module
    with pytest.raises(RuntimeError, match=f"Input and {kind} tensors are not at the same device, .*cpu .* meta"):
        module(x, state)


def test_under_distributed_data_parallel(tmp_path, compare):
    """One gloo process: DDP copies the parameters' gradients through its buckets, hooks and all."""
    theirs, ours = compare.pair("gru", 3, 4, num_layers=2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        DistributedDataParallel(ours)(x)[0].sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    theirs(x)[0].sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(getattr(ours, name).grad, parameter.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_parameter_that_does_not_fit_is_named(backend):
    layer = prnn.nn.LSTM(4, 6, 2)
    layer.weight_hh_l1 = torch.nn.Parameter(torch.randn(24, 5))
    with ops.backend(backend), pytest.raises(ValueError, match=r"weight_hh must be \[24, 6\].*got \[24, 5\]"):
        layer(torch.randn(5, 3, 4))
