"""What makes the recurrence a good citizen of PyTorch: orders of differentiation, compile, functorch, errors."""

import pytest
import torch

import prnn
from prnn import ops
from prnn.ops import operator
from prnn.ops.operands import Operands, Weights
from tests.ops.problems import assert_same, layer, problem, recurrence

CELLS = list(ops.CELLS)
LOADED = ops.native.status()[0]


def outputs(p, backend):
    """A function of p's differentiable operands alone, as gradcheck wants it."""

    def function(*tensors):
        given = iter(tensors)
        *operands, weight_hr = (None if x is None else next(given) for x in p.differentiable)
        with ops.backend(backend):
            results = recurrence(*operands, p.lengths, p.resets, p.cell, weight_hr=weight_hr)
        return tuple(result for result in results if result is not None)

    return function, [x for x in p.differentiable if x is not None]


@pytest.mark.parametrize("options", [{}, {"lengths": True, "resets": True}, {"projection": 2}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck_to_second_order(cell, options):
    if "projection" in options and cell != "lstm":
        pytest.skip("a projection goes with an LSTM")
    function, inputs = outputs(problem(cell, 3, 2, 3, dtype=torch.float64, **options), "torch")
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def nested_gradients(function, inputs, order):
    """d/dx of a scalar of the gradient, ``order`` times over."""
    value = sum((y.sin() * torch.arange(1, y.numel() + 1).view_as(y)).sum() for y in function(*inputs))
    for _ in range(order):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        value = sum(g.pow(2).sum() for g in grads)
    return list(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_higher_orders_equal_the_reference(cell, order):
    p = problem(cell, 4, 2, 3, dtype=torch.float64, lengths=True)
    actual = nested_gradients(*outputs(p, "torch"), order)
    assert_same(actual, nested_gradients(*outputs(p, "reference"), order), 1e-10)


@pytest.mark.skipif(not LOADED, reason=f"native library: {ops.native.status()[1]}")
def test_second_order_through_the_native_kernel():
    p = problem("rnn_tanh", 4, 2, 3)
    actual = nested_gradients(*outputs(p, "cpu"), 1)
    assert_same(actual, nested_gradients(*outputs(p, "reference"), 1), 1e-4)


@pytest.mark.skipif(not LOADED, reason=f"native library: {ops.native.status()[1]}")
@pytest.mark.parametrize("frozen", ["x", "weights"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_second_order_where_not_all_need_a_gradient(cell, frozen):
    """A gradient penalty: data that needs none, or weights that are frozen."""
    found = []
    for backend in ("cpu", "reference"):
        x, *rest = layer_operands(cell)
        x.requires_grad_(frozen != "x")
        for weight in rest[:4]:
            weight.requires_grad_(frozen != "weights")
        with ops.backend(backend):
            output, *_ = layer(x, *rest, cell=cell)
        wanted = [t for t in (x, *rest) if t is not None and t.requires_grad]
        first = torch.autograd.grad(output.sin().sum(), wanted, create_graph=True)
        found.append(list(torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)))
    assert_same(found[0], found[1], 1e-4)


@pytest.mark.skipif(not LOADED, reason=f"native library: {ops.native.status()[1]}")
def test_saved_tensors_may_come_back_in_another_layout():
    p = problem("lstm", 4, 3, 6)
    expected = p.outputs_and_gradients("cpu")

    def strided(x):
        return torch.stack((x, x), dim=-1)[..., 0]

    with torch.autograd.graph.saved_tensors_hooks(strided, strided):
        outputs = p.run("cpu")
    inputs = [x for x in p.differentiable if x is not None]
    assert_same(list(torch.autograd.grad(outputs, inputs, p.grads)), expected[len(outputs) :], 0)


def test_no_units():
    output, h_n, _ = recurrence(
        torch.randn(3, 2, 0), torch.randn(0, 0), None, torch.zeros(2, 0), None, None, None, "rnn_tanh"
    )
    assert output.shape == (3, 2, 0)
    assert h_n.shape == (2, 0)


@pytest.mark.skipif(not LOADED, reason=f"native library: {ops.native.status()[1]}")
def test_the_native_operators_check_what_the_kernels_would_run_into():
    x, weight, h0, absent = torch.zeros(3, 2, 4), torch.zeros(12, 4), torch.zeros(1, 2, 4), [None] * 9
    operands = x, weight, weight, None, None, None, h0, *absent
    with pytest.raises(RuntimeError, match="no such cell"):
        torch.ops.prnn_native.layer_forward(*operands, 10**6, False, False)
    gru = ops.native.cell_id("gru")
    output, _, _, saved, _ = torch.ops.prnn_native.layer_forward(*operands, gru, False, False)
    with pytest.raises(RuntimeError, match="needs what a forward pass"):
        needs = True, True, True, True
        torch.ops.prnn_native.layer_backward(output, None, None, *operands, output, saved, None, gru, False, *needs)


def test_second_order_where_inputs_depend_on_each_other():
    """gates_x computed from h0: only the direct path may count as the operator's own derivative."""
    p = problem("rnn_tanh", 3, 2, 3, dtype=torch.float64)
    function, (gates_x, weight, bias, h0) = outputs(p, "torch")
    assert torch.autograd.gradgradcheck(lambda h: function(gates_x * h.sum(), weight, bias, h), [h0])


def layer_operands(cell="lstm", T=5, B=3, I=4, H=6, dtype=torch.float32):
    """x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0 of a layer."""
    spec, generator = ops.CELLS[cell], torch.Generator().manual_seed(0)
    shapes = [(T, B, I), (spec.gates * H, I), (spec.gates * H, H), (spec.gates * H,), (spec.gates * H,), (B, H)]
    shapes += [(B, H)] if spec.has_c else []
    tensors = [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    return tensors + [None] * (7 - len(tensors))


@pytest.mark.parametrize("reverse", [False, True])
def test_library_layer_to_second_order(reverse):
    """oneDNN's LSTM, which torch itself cannot differentiate twice."""
    x, *rest = layer_operands()
    with ops.backend("torch"):
        if ops.choose(ops.Request.of(x, Weights(*rest[:2]), "lstm")).implementation != "onednn":
            pytest.skip("torch has no oneDNN here")

    def function(*tensors):
        with ops.backend("torch"):
            return layer(*tensors, cell="lstm", reverse=reverse)

    def equations(*tensors):
        with ops.backend("reference"):
            return layer(*tensors, cell="lstm", reverse=reverse)

    operands = [x, *rest]
    for order in (0, 1):
        assert_same(nested_gradients(function, operands, order), nested_gradients(equations, operands, order), 1e-4)


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = ("test_aot_dispatch_dynamic",)  # the second order of the backward pass too: seconds for each time step
EVERY = QUICK + TRACED
SLOW = [pytest.mark.slow(seconds=25), pytest.mark.xdist_group("opcheck")]  # one worker imports what traces


def opchecked(operands, cell, backend, forward=EVERY, backward=EVERY, each_need=((True, True, True, True),)):
    """``opcheck`` of both operators by the tests named; of the gradients of x and of the weights that are needed."""
    arguments = (cell, False, backend, True, *operands)
    torch.library.opcheck(torch.ops.prnn.layer.default, arguments, test_utils=forward)
    results = [result.detach() for result in torch.ops.prnn.layer(*arguments)]
    grads = [torch.randn_like(result) for result in results[:3]]
    grads[2] = grads[2] if operands.c0 is not None else None
    for needs in each_need:
        arguments = (cell, False, backend, *needs, *grads, *results, *operands)
        torch.library.opcheck(torch.ops.prnn.layer_backward.default, arguments, test_utils=backward)


@pytest.mark.parametrize("options", [{}, {"lengths": True, "resets": True}], ids=str)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_opcheck_step_by_step(cell, options):
    p = problem(cell, 2, 3, 5, **options)
    gates_x, weight, bias, h0, c0, _ = p.differentiable
    state = [s.detach()[None].requires_grad_() for s in (h0, c0) if s is not None]
    operands = Operands.of(gates_x, [Weights(None, weight, None, bias)], state, p.lengths, p.resets)
    opchecked(operands, cell, "stepwise")


@pytest.mark.skipif(not LOADED, reason=f"native library: {ops.native.status()[1]}")
@pytest.mark.parametrize("tests", [QUICK, pytest.param(TRACED, marks=SLOW)], ids="-".join)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_opcheck_native(cell, directions, tests):
    x, *rest = layer_operands(cell, T=2)
    state = [torch.stack([s.detach()] * directions).requires_grad_() for s in rest[4:] if s is not None]
    second = [w.detach().flip(0).requires_grad_() for w in rest[:4]]
    weights = [Weights(*rest[:4]), Weights(*second)][:directions]
    lengths, resets = torch.tensor([2, 0, 1]), torch.rand(2, 3) < 0.3
    each_need = [(True, True, True, True)]
    if (cell, directions) == ("rnn_tanh", 1):  # slow: of one case
        each_need += [(True, False, False, False), (False, True, False, False)]
    opchecked(Operands.of(x, weights, state, lengths, resets), cell, "cpu", tests, tests, each_need)


def test_opcheck_vendor():
    x, *rest = layer_operands()
    with ops.backend("torch"):
        if ops.choose(ops.Request.of(x, Weights(*rest[:2]), "lstm")).implementation != "onednn":
            pytest.skip("torch has no oneDNN here")
    state = [s.detach()[None].requires_grad_() for s in rest[4:]]
    # The fake kernel leaves the size of the library's workspace open, which the dynamic-shape check cannot compare.
    # Its backward pass uses a part of the workspace as scratch, which the schema does not say.
    forward = ("test_schema", "test_autograd_registration")
    backward = ("test_autograd_registration", "test_faketensor")
    opchecked(Operands.of(x, [Weights(*rest[:4])], state), "lstm", "onednn", forward, backward)


@pytest.mark.parametrize("cell", ["rnn_relu", "lstm"])
def test_compile_keeps_the_graph_whole(cell):
    operands = layer_operands(cell)

    def loss(*tensors):
        output, h_n, _ = layer(*tensors, cell=cell)
        return output.square().sum() + h_n.sum()

    given = [x for x in operands if x is not None]
    expected = torch.autograd.grad(loss(*operands), given)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(list(torch.autograd.grad(compiled(*operands), given)), list(expected), 1e-5)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_functorch_transforms(cell):
    """vmap over a batch of problems, step by step; derivatives, forward and backward, by the reference equations."""
    x, *rest = (None if t is None else t.detach().double() for t in layer_operands(cell))

    def loss(x, *rest):
        return layer(x, *rest, cell=cell)[0].sum()

    stacked = torch.stack((x, 2 * x))
    mapped = torch.vmap(lambda one: loss(one, *rest))(stacked)
    torch.testing.assert_close(mapped, torch.stack([loss(one, *rest) for one in stacked]))
    gradient = torch.func.grad(loss)(x, *rest)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf, *rest), leaf)[0])
    _, tangent = torch.func.jvp(lambda x: loss(x, *rest), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, gradient.sum())


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("cell", CELLS)
def test_batched_gradients(cell, backend):
    """``is_grads_batched``, vectorised Jacobians, and a vmap over sequences, on the kernels."""
    if backend == "cpu" and not LOADED:
        pytest.skip(f"native library: {ops.native.status()[1]}")
    x, *rest = layer_operands(cell, T=3, B=2, I=3, H=2)

    def output(x):
        with ops.backend(backend):
            return layer(x, *rest, cell=cell)[0]

    y = output(x)
    grads = torch.eye(y.numel()).view(-1, *y.shape)
    inputs = [x, *(t for t in rest if t is not None)]
    batched = torch.autograd.grad(y, inputs, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, inputs, grad, retain_graph=True) for grad in grads]
    assert_same(list(batched), [torch.stack(parts) for parts in zip(*each, strict=True)], 1e-6)
    jacobian = torch.autograd.functional.jacobian(output, x.detach(), vectorize=True)
    assert_same([jacobian.view_as(batched[0])], [batched[0]], 1e-6)
    stacked = torch.stack((x, 2 * x)).detach()
    assert_same([torch.vmap(output)(stacked)], [torch.stack([output(one) for one in stacked])], 1e-6)


def test_gradcheck_with_batched_gradients():
    function, inputs = outputs(problem("gru", 3, 2, 3, dtype=torch.float64), "torch")
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_batched_grad=True)


def test_saves_only_what_a_gradient_needs():
    """Saved state depends on what requires grad, never on a mode of a module."""
    p = problem("lstm", 4, 2, 3)
    gates_x, weight, bias, h0, c0, _ = p.differentiable
    operands = Operands.of(gates_x, [Weights(None, weight, None, bias)], (h0[None], c0[None]))
    assert torch.ops.prnn.layer("lstm", False, "stepwise", True, *operands)[3].numel() == 4 * 2 * 5 * 3
    assert torch.ops.prnn.layer("lstm", False, "stepwise", False, *operands)[3].numel() == 0
    with torch.no_grad():
        assert not p.run("torch")[0].requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "gru2"}, "unknown cell 'gru2'"),
        ({"h0": torch.zeros(3, 5)}, r"h0 must be \[1, 2, 5\]"),
        ({"c0": torch.zeros(2, 5)}, "takes no c0"),
        ({"weight_hh": torch.zeros(5, 4)}, r"weight_hh must be \[5, 5\]"),
        ({"gates_x": torch.zeros(3, 2, 6)}, r"x must be \[3, 2, 5\]"),
        ({"bias_hh": torch.zeros(5, dtype=torch.float64)}, "bias_hh is torch.float64, the input is torch.float32"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths must be integers"),
        ({"resets": torch.zeros(3, 2)}, "resets must be booleans"),
        ({"weight_hr": torch.zeros(5, 5)}, "goes with an LSTM"),
    ],
)
def test_operands_that_do_not_fit(change, message):
    given = {
        "gates_x": torch.zeros(3, 2, 5),
        "weight_hh": torch.zeros(5, 5),
        "bias_hh": None,
        "h0": torch.zeros(2, 5),
        "c0": None,
        "lengths": None,
        "resets": None,
        "cell": "rnn_tanh",
    }
    with pytest.raises(ValueError, match=message):
        recurrence(**(given | change))


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_gradients_through_a_batch_of_parameters(cell, backend):
    """An ensemble: vmap over stacked weights, then an ordinary backward pass."""
    if backend == "cpu" and not LOADED:
        pytest.skip(f"native library: {ops.native.status()[1]}")
    x, *rest = layer_operands(cell)
    weights = [torch.stack([w.detach(), 2 * w.detach()]).requires_grad_() for w in rest[:4]]
    state = [s.detach()[None] for s in rest[4:] if s is not None]

    def loss(*weights):
        output, _ = ops.layer(x.detach(), [Weights(*weights)], state, cell)
        return output.square().sum()

    with ops.backend(backend):
        mapped = torch.vmap(loss)(*weights)
        grads = torch.autograd.grad(mapped.sum(), weights)
        alone = [loss(*each) for each in zip(*weights, strict=True)]
        expected = torch.autograd.grad(torch.stack(alone).sum(), weights)
    assert_same([mapped, *grads], [torch.stack(alone), *expected], 1e-6)


def test_vmap_over_nothing():
    x, *rest = (None if t is None else t.detach() for t in layer_operands("gru"))
    state = [s[None] for s in rest[4:] if s is not None]
    output = torch.vmap(lambda one: ops.layer(one, [Weights(*rest[:4])], state, "gru")[0])(x.new_zeros(0, *x.shape))
    assert output.shape == (0, *x.shape[:2], state[0].shape[-1])


def test_shapes_without_data_take_no_steps(monkeypatch):
    """Of tensors on "meta", and of fake ones outside their mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    not_called = operator.IMPLEMENTATIONS["stepwise"]._replace(forward=None, backward=None)
    monkeypatch.setitem(operator.IMPLEMENTATIONS, "stepwise", not_called)
    module = prnn.GRU(3, 5, device="meta")
    output, _ = module(torch.empty(1000, 2, 3, device="meta"))
    output.sum().backward()
    assert output.shape == (1000, 2, 5) and module.weight_hh_l0.grad.shape == (15, 5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        module, x = prnn.GRU(3, 5), torch.empty(4, 2, 3)
    assert module(x)[0].fake_mode is mode


def test_the_operator_is_not_cast_by_autocast():
    x, *rest = (None if t is None else t.detach() for t in layer_operands("gru"))
    operands = Operands.of(x, [Weights(*rest[:4])], [rest[4][None]])
    with torch.autocast("cpu"):
        output, *_ = torch.ops.prnn.layer("gru", False, "stepwise", True, *operands)
    assert output.dtype == torch.float32


def test_weights_that_do_not_go_together_are_refused():
    x, *rest = (None if t is None else t.detach() for t in layer_operands("gru"))
    one, h0 = Weights(*rest[:4]), rest[4][None]
    both = torch.cat((h0, h0))
    gates = torch.zeros(*x.shape[:2], rest[1].shape[0])
    for weights, state, given, options, message in (
        ([one, one, one], both, x, {}, "one or two directions"),
        ([one, one], both, x, {"reverse": True}, "one or two directions"),
        ([one, one._replace(bias_ih=None)], both, x, {}, "both directions"),
        ([one._replace(weight_ih=None)], h0, gates, {}, "bias_ih goes with weight_ih"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.layer(given, weights, [state], "gru", **options)
