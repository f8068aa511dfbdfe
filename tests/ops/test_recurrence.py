"""Every backend against the reference equations, and the equations against torch.nn."""

import pytest
import torch

from prnn import ops
from tests.ops.problems import ODD_SHAPES, TOLERANCE, assert_same, layer, problem, recurrence

CELLS = list(ops.CELLS)
OPTIONS = [{}, {"bias": False}, {"lengths": True}, {"resets": True}, {"lengths": True, "resets": True}]

LOADED = ops.native.status()[0]
needs_native = pytest.mark.skipif(not LOADED, reason=f"native library: {ops.native.status()[1]}")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_torch_backend_equals_reference(cell, shape, options, dtype):
    p = problem(cell, *shape, dtype=dtype, **options)
    assert_same(p.outputs_and_gradients("torch"), p.outputs_and_gradients("reference"), TOLERANCE[dtype])


@needs_native
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [*ODD_SHAPES, (4, 9, 131), (9, 33, 40)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_cpu_backend_equals_reference(cell, shape, options):
    p = problem(cell, *shape, **options)
    assert_same(p.outputs_and_gradients("cpu"), p.outputs_and_gradients("reference"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_low_precision_accumulates_in_float32(cell, dtype):
    """The 16-bit result is the float32 one up to the rounding of h and of the results: far under one ulp a step."""
    p = problem(cell, 12, 3, 17, dtype=dtype, lengths=True)
    exact = problem(cell, 12, 3, 17, dtype=dtype, lengths=True)
    exact.differentiable = [None if x is None else x.detach().float().requires_grad_() for x in exact.differentiable]
    exact.grads = [g.float() for g in exact.grads]
    expected = [x.to(dtype) for x in exact.outputs_and_gradients("reference")]
    for backend in ("torch", "reference", *(["cpu"] if dtype == torch.bfloat16 and LOADED else [])):
        assert_same(p.outputs_and_gradients(backend), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{}, {"lengths": True, "resets": True}], ids=str)
@pytest.mark.parametrize("projection", [1, 3])
def test_projection(projection, options):
    p = problem("lstm", 5, 4, 7, dtype=torch.float64, projection=projection, **options)
    assert_same(p.outputs_and_gradients("torch"), p.outputs_and_gradients("reference"), 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_reference_equals_torch_nn(cell):
    """The definition of right is torch's own, in outputs and in every gradient."""
    T, B, H = 6, 3, 5
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}.get(cell)
    module = kind(4, H) if kind else torch.nn.RNN(4, H, nonlinearity=cell.removeprefix("rnn_"))
    module = module.double()
    p = problem(cell, T, B, H, dtype=torch.float64)
    x = torch.randn(T, B, 4, dtype=torch.float64, requires_grad=True)
    state = [s for s in p.differentiable[3:5] if s is not None]
    output, last = module(x, tuple(s[None] for s in state) if cell == "lstm" else state[0][None])
    expected = [output, *(s[0] for s in (last if cell == "lstm" else (last,)))]
    with ops.backend("reference"):
        actual = layer(x, *module._flat_weights, state[0], state[1] if len(state) > 1 else None, cell=cell)
    actual = [y for y in actual if y is not None]
    inputs = [x, *module.parameters(), *state]
    assert_same(
        [*actual, *torch.autograd.grad(actual, inputs, p.grads)],
        [*expected, *torch.autograd.grad(expected, inputs, p.grads)],
        1e-12,
    )


BACKENDS = ["torch", pytest.param("cpu", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_run_each_sample_alone(backend):
    p = problem("rnn_tanh", 8, 4, 5)
    gates_x, weight, bias, h0, *_ = p.differentiable
    lengths = torch.tensor([8, 0, 3, 1])
    with ops.backend(backend):
        output, h_n, _ = recurrence(gates_x, weight, bias, h0, None, lengths, None, "rnn_tanh")
        for b, length in enumerate(lengths.tolist()):
            alone = recurrence(gates_x[:length, b : b + 1], weight, bias, h0[b : b + 1], None, None, None, "rnn_tanh")
            torch.testing.assert_close(output[:length, b], alone[0][:, 0])
            torch.testing.assert_close(h_n[b], alone[1][0])
            assert not output[length:, b].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_never_looked_at(backend):
    """NaN in the padding reaches neither the results nor any gradient, and the padding's own gradient is zero."""
    clean, dirty = (
        problem("rnn_relu", 6, 3, 9, lengths=True, seed=3),
        problem("rnn_relu", 6, 3, 9, lengths=True, seed=3),
    )
    padding = torch.arange(6)[:, None] >= dirty.lengths
    with torch.no_grad():
        dirty.differentiable[0][padding] = float("nan")
    expected, actual = clean.outputs_and_gradients(backend), dirty.outputs_and_gradients(backend)
    assert_same(actual, expected, 0)
    assert padding.any() and not actual[2][padding].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_split_the_sequence(backend):
    """A reset before step 3 makes two sequences of one, the second from a zero state; past the end it does nothing."""
    p = problem("rnn_tanh", 7, 2, 5)
    gates_x, weight, bias, h0, *_ = p.differentiable
    resets = torch.zeros(7, 2, dtype=torch.bool)
    resets[3], resets[6, 1] = True, True
    lengths = torch.tensor([7, 5])
    with ops.backend(backend):
        output, h_n, _ = recurrence(gates_x, weight, bias, h0, None, lengths, resets, "rnn_tanh")
        first = recurrence(gates_x[:3], weight, bias, h0, None, None, None, "rnn_tanh")
        second = recurrence(gates_x[3:], weight, bias, torch.zeros_like(h0), None, lengths - 3, None, "rnn_tanh")
    torch.testing.assert_close(output, torch.cat((first[0], second[0])))
    torch.testing.assert_close(h_n, second[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequence_returns_the_state(backend):
    p = problem("rnn_tanh", 0, 2, 5)
    output, h_n, *grads = p.outputs_and_gradients(backend)
    assert output.shape == (0, 2, 5)
    torch.testing.assert_close(h_n, p.differentiable[3])
    torch.testing.assert_close(grads[-1], p.grads[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_non_contiguous_operands(cell, backend):
    p = problem(cell, 5, 4, 7)
    expected = p.outputs_and_gradients(backend)
    strided = problem(cell, 5, 4, 7)
    strided.differentiable = [
        None if x is None else torch.stack((x.detach(), x.detach() + 1), dim=-1)[..., 0].requires_grad_()
        for x in strided.differentiable
    ]
    strided.grads = [torch.stack((g, g), dim=-1)[..., 0] for g in strided.grads]
    assert not strided.differentiable[0].is_contiguous()
    assert_same(strided.outputs_and_gradients(backend), expected, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_steps_than_65535(backend):
    """T beyond 16 bits: an identity network sums its inputs, exactly, and passes the gradient back unchanged."""
    T = 70_000
    gates_x = torch.ones(T, 1, 1, requires_grad=True)
    h0 = torch.zeros(1, 1, requires_grad=True)
    with ops.backend(backend):
        output, h_n, _ = recurrence(gates_x, torch.ones(1, 1), None, h0, None, None, None, "rnn_relu")
    assert output[:, 0, 0].equal(torch.arange(1.0, T + 1))
    grads = torch.autograd.grad(h_n.sum(), (gates_x, h0))
    assert all((g == 1).all() for g in grads)


@pytest.mark.parametrize("cell", CELLS)
def test_same_inputs_same_bits(cell):
    p = problem(cell, 33, 5, 17, lengths=True)
    first, second = p.outputs_and_gradients(), p.outputs_and_gradients()
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_layer_in_reverse(cell):
    """Reverse with lengths and resets: each sample flipped by hand, and the boundaries seen from the other side."""
    T, H, G = 6, 4, ops.CELLS[cell].gates
    x, weight_ih, weight_hh = torch.randn(T, 2, 3), torch.randn(G * H, 3), torch.randn(G * H, H)
    h0 = torch.randn(2, H)
    c0 = torch.randn(2, H) if ops.CELLS[cell].has_c else None
    lengths = torch.tensor([6, 4])
    resets = torch.zeros(T, 2, dtype=torch.bool)
    resets[2], resets[0] = True, True  # a boundary between steps 1 and 2; none before the first step's own end
    output, h_n, _ = layer(
        x, weight_ih, weight_hh, None, None, h0, c0, cell=cell, lengths=lengths, resets=resets, reverse=True
    )
    for b, length in enumerate(lengths.tolist()):
        flipped = x[:length, b : b + 1].flip(0)
        cut = length - 2
        state = (h0[b : b + 1], None if c0 is None else c0[b : b + 1])
        zero = (torch.zeros(1, H), None if c0 is None else torch.zeros(1, H))
        first, *_ = layer(flipped[:cut], weight_ih, weight_hh, None, None, *state, cell=cell)
        second, last, _ = layer(flipped[cut:], weight_ih, weight_hh, None, None, *zero, cell=cell)
        torch.testing.assert_close(output[:length, b], torch.cat((first, second)).flip(0)[:, 0])
        torch.testing.assert_close(h_n[b], last[0])
        assert not output[length:, b].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_out_of_range_act_as_the_nearest_in_range(reverse):
    """Nobody looks at their values inside a compiled graph or on a GPU; none may lead beyond the sequence."""
    x, weight_ih, weight_hh, h0 = torch.randn(5, 3, 4), torch.randn(6, 4), torch.randn(6, 6), torch.randn(3, 6)
    results = [
        layer(x, weight_ih, weight_hh, None, None, h0, None, cell="rnn_tanh", lengths=lengths, reverse=reverse)
        for lengths in (torch.tensor([5, 9, -2]), torch.tensor([5, 5, 0]))
    ]
    assert_same([y for y in results[0] if y is not None], [y for y in results[1] if y is not None], 0)


@pytest.mark.parametrize("cell", CELLS)
def test_meta_device_gives_shapes(cell):
    p = problem(cell, 5, 2, 3)
    p.differentiable = [None if x is None else x.to("meta") for x in p.differentiable]
    assert [y.shape for y in p.run()] == [g.shape for g in p.grads]


@pytest.mark.parametrize("options", [{"lengths": True}, {"resets": True}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@needs_native
def test_second_order_through_the_native_kernel_with(cell, options):
    p = problem(cell, 4, 3, 5, **options)
    inputs = [x for x in p.differentiable if x is not None]
    found = []
    for backend in ("cpu", "reference"):
        outputs = p.run(backend)
        first = torch.autograd.grad(outputs, inputs, p.grads, create_graph=True)
        found.append(list(torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)))
    assert_same(found[0], found[1], 2e-5)
