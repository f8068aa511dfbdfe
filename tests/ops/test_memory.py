"""Soft stacks and lists: the kernel against the equations, and the equations against what a stack is."""

import pytest
import torch

from prnn import native, ops
from prnn.ops.memory import Memories, Operands, memory_recurrence, reference, refusal, steps

LOADED, WHY = native.status()
needs_kernel = pytest.mark.skipif(not LOADED, reason=f"native library: {WHY}")
KINDS = {"pushpop": Memories(2), "noop": Memories(3), "list": Memories(3, list=True), "zero": Memories(2, empty=0.0)}
# T, B, H, S, N, K
SHAPES = [(1, 1, 1, 1, 2, 1), (3, 2, 3, 2, 5, 2), (9, 11, 17, 3, 6, 3), (7, 3, 40, 10, 200, 2), (30, 9, 5, 4, 12, 2)]
SHAPES += [(4, 17, 100, 1, 8, 1)]


def operands(T, B, H, S, N, K, kind, dtype=torch.float32, recurrent=True, fresh=False):
    """Random ones that want gradients; ``fresh`` memories are empty, and want none."""

    def draw(*shape):
        return (0.7 * torch.randn(*shape, dtype=dtype)).requires_grad_()

    memory0 = torch.full((N, B, S), kind.empty, dtype=dtype) if fresh else torch.rand(N, B, S, dtype=dtype)
    return Operands(
        draw(T, B, H),
        draw(H, H) if recurrent else None,
        draw(H, S * K),
        draw(S * (kind.actions + 1), H),
        torch.rand(B, H, dtype=dtype).requires_grad_(recurrent),
        memory0.requires_grad_(not fresh),
    )


def results(function, given, kind, fresh):
    """Outputs, and gradients of a weighted sum of them; with fresh memories of the output alone."""
    outputs = function(given, kind)
    weights = [torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x) for x in outputs]
    used = zip(outputs[: 1 if fresh else 2], weights, strict=False)
    wanted = [x for x in given if x is not None and x.requires_grad]
    return [*outputs, *torch.autograd.grad(sum((x * w).sum() for x, w in used), wanted, materialize_grads=True)]


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "filled"])
@pytest.mark.parametrize("recurrent", [True, False], ids=["R", "noR"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_the_equations(shape, kind, recurrent, fresh, dtype):
    kind = KINDS[kind]
    if kind.list and shape[4] // 2 + shape[5] > shape[4]:
        pytest.skip("a list so short cannot be read so deep")
    given = operands(*shape, kind, dtype, recurrent, fresh)
    relative = 1e-12 if dtype == torch.float64 else 2e-5
    pairs = zip(results(memory_recurrence, given, kind, fresh), results(reference, given, kind, fresh), strict=True)
    for ours, right in pairs:
        assert ours.shape == right.shape
        assert (ours - right).abs().max() <= relative * right.abs().max().clamp(min=1)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_partly_filled_is_carried_on(kind):
    """Where only some cells differ from the empty value, and the state of one call is that of the next."""
    kind = KINDS[kind]
    given = operands(8, 3, 4, 2, 20, 2, kind, torch.float64, fresh=True)
    whole = memory_recurrence(given, kind)
    first, memory = memory_recurrence(given._replace(gates_x=given.gates_x[:5]), kind)
    second, memory = memory_recurrence(
        given._replace(gates_x=given.gates_x[5:], h0=first[-1], memory0=memory.detach()), kind
    )
    assert torch.allclose(torch.cat([first, second]), whole[0], atol=1e-14)
    assert torch.allclose(memory, whole[1], atol=1e-14)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_who_is_told_that_memories_are_empty_need_not_look(kind):
    kind = KINDS[kind]
    given = operands(6, 5, 4, 2, 20, 2, kind, fresh=True)
    looked = results(memory_recurrence, given, kind, True)
    told = results(lambda *operands: memory_recurrence(*operands, fresh=True), given, kind, True)
    assert all(torch.equal(one, other) for one, other in zip(looked, told, strict=True))


def test_what_no_kernel_takes_is_said_and_runs_by_steps():
    kind = Memories(2)
    given = operands(4, 3, 5, 2, 6, 2, kind, torch.bfloat16)
    assert refusal(given, kind) == "the native kernels take float32 and float64, not bfloat16"
    assert memory_recurrence(given, kind)[0].dtype == torch.bfloat16
    elsewhere = Operands(*(x.float().to("meta") for x in given))
    assert refusal(elsewhere, kind) == "the tensors are on meta"
    assert memory_recurrence(elsewhere, kind)[1].shape == (6, 3, 2)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_to_second_order(kind):
    kind = KINDS[kind]
    given = operands(3, 2, 3, 2, 5, 2, kind, torch.float64)

    def function(*tensors):
        return memory_recurrence(Operands(*tensors), kind)

    assert torch.autograd.gradcheck(function, tuple(given))
    assert torch.autograd.gradgradcheck(function, tuple(given))


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_actions(kind):
    kind = KINDS[kind]._replace(rounds=True)
    given = operands(9, 5, 6, 3, 12, 2, kind, torch.float64)
    for ours, right in zip(memory_recurrence(given, kind), reference(given, kind), strict=True):
        assert torch.allclose(ours, right, atol=1e-14)
    taken = torch.stack([actions[:-1] for _, _, actions in steps(given, kind)])
    assert set(taken.unique().tolist()) == {0.0, 1.0}


@needs_kernel
def test_operands_that_are_not_contiguous():
    kind = Memories(2)
    given = operands(4, 3, 5, 2, 6, 2, kind, torch.float64)
    turned = Operands(*(x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in given))
    for ours, right in zip(
        results(memory_recurrence, turned, kind, False), results(reference, given, kind, False), strict=True
    ):
        assert torch.allclose(ours, right, atol=1e-12)


@needs_kernel
def test_the_same_bits_for_any_number_of_threads():
    kind = Memories(3)
    given = operands(12, 33, 40, 10, 30, 2, kind)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output, memory_n, grad_gates_x, *_, grad_memory0 = results(memory_recurrence, given, kind, False)
        found.append((output, memory_n, grad_gates_x, grad_memory0))  # the weights' are torch's products
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [{"weight_read": torch.zeros(5, 3)}, {"weight_act": torch.zeros(5, 5)}, {"memory0": torch.zeros(6, 2, 2)}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_operands_that_do_not_fit(wrong):
    given = operands(4, 3, 5, 2, 6, 2, Memories(2))
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        memory_recurrence(given._replace(**wrong), Memories(2))


# What a stack is: actions so definite that they are taken wholly.


def forced(pushes, values, N=8, no_op=()):
    """Operands that push (+), pop (-) or leave alone (0) one stack at each step whatever it holds, pushing near to
    ``values``: unit t fires at step t alone, and says what is done then.
    """
    T, big = len(pushes), 200.0
    gates_x = torch.full((T, 1, T), -big, dtype=torch.float64)
    gates_x[range(T), 0, range(T)] = big
    actions = {"+": 0, "-": 1, "0": 2}
    kind = Memories(3)
    weight_act = torch.zeros(kind.actions + 1, T, dtype=torch.float64)
    for t, (action, value) in enumerate(zip(pushes, values, strict=True)):
        weight_act[actions[action], t] = big
        weight_act[3, t] = torch.logit(torch.tensor(value, dtype=torch.float64))
    memory0 = torch.full((N, 1, 1), kind.empty, dtype=torch.float64)
    return Operands(
        gates_x, None, torch.zeros(T, 2, dtype=torch.float64), weight_act, torch.zeros(1, T).double(), memory0
    ), kind


@pytest.mark.parametrize("function", [pytest.param(memory_recurrence, marks=needs_kernel), reference])
def test_pushes_are_popped_in_reverse_and_what_was_below_is_restored(function):
    values = [0.9, 0.2, 0.6, 0.5, 0.5, 0.5, 0.5]
    for count in range(1, 4):
        given, kind = forced("+++"[:count], values[:count])
        _, memory = function(given, kind)
        assert memory[:count, 0, 0].tolist() == pytest.approx(values[:count][::-1])
        given, kind = forced("+++"[:count] + "-" * count, values[: 2 * count])
        _, memory = function(given, kind)
        assert memory.flatten().tolist() == pytest.approx([-1.0] * 8)
    given, kind = forced("++-00", values[:5])
    assert function(given, kind)[1][:2].flatten().tolist() == pytest.approx([0.9, -1.0])


@pytest.mark.parametrize("function", [pytest.param(memory_recurrence, marks=needs_kernel), reference])
def test_an_empty_stack_stays_empty_and_a_full_one_loses_its_lowest(function):
    given, kind = forced("---", [0.5] * 3)
    assert function(given, kind)[1].flatten().tolist() == pytest.approx([-1.0] * 8)
    given, kind = forced("+++++", [0.1, 0.2, 0.3, 0.4, 0.5], N=3)
    assert function(given, kind)[1].flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])


@pytest.mark.parametrize("function", [pytest.param(memory_recurrence, marks=needs_kernel), reference])
def test_a_list_takes_in_at_its_head(function):
    given, _ = forced("000", [0.1, 0.2, 0.3], N=8)  # the third action of a list is to insert
    kind = Memories(3, list=True)
    memory = function(given, kind)[1].flatten().tolist()
    assert memory[4] == pytest.approx(0.3)
    moved = function(given._replace(memory0=torch.arange(8.0).double().view(8, 1, 1)), kind)[1].flatten().tolist()
    assert moved[5:] == [5.0, 6.0, 7.0]  # right of the head nothing moves
    assert moved[1:4] == pytest.approx([4.0, 0.1, 0.2])  # what was at the head goes left


@pytest.mark.parametrize("kind", KINDS)
def test_the_shares_of_the_actions_sum_to_one(kind):
    kind = KINDS[kind]
    for _, _, actions in steps(operands(5, 3, 4, 2, 6, 2, kind), kind):
        assert torch.allclose(actions[:-1].sum(0), torch.ones(3, 2))


def test_the_equations_serve_where_the_kernel_does_not(monkeypatch):
    monkeypatch.setattr(native, "_STATUS", (False, "for the test"))
    monkeypatch.setattr("prnn.ops.memory._call", None)
    given = operands(4, 3, 5, 2, 6, 2, Memories(2))
    for ours, right in zip(memory_recurrence(given, Memories(2)), reference(given, Memories(2)), strict=True):
        assert torch.equal(ours, right)


@needs_kernel
def test_a_backend_can_be_forced(monkeypatch):
    given, kind = operands(4, 3, 5, 2, 6, 2, Memories(2)), Memories(2)
    with ops.backend("cuda"), pytest.raises(ops.BackendError, match="'cuda' was forced"):
        memory_recurrence(given, kind)
    with ops.backend("cpu"):
        memory_recurrence(given, kind)
    monkeypatch.setattr("prnn.ops.memory._call", None)  # the kernel must not run
    for name in ("reference", "torch"):
        with ops.backend(name):
            memory_recurrence(given, kind)


@needs_kernel
def test_second_order_where_one_operand_was_computed_from_another():
    """A sequence in two calls: the first call's part in the second's operands must be counted once."""
    kind = Memories(2)
    given = operands(6, 2, 4, 2, 8, 2, kind, torch.float64, fresh=True)
    found = []
    for create_graph in (False, True):
        first, memory = memory_recurrence(given._replace(gates_x=given.gates_x[:3]), kind)
        second, _ = memory_recurrence(given._replace(gates_x=given.gates_x[3:], h0=first[-1], memory0=memory), kind)
        found.append(torch.autograd.grad(second.sum(), list(given[:4]), create_graph=create_graph))
    for plain, graph in zip(*found, strict=True):
        assert torch.allclose(plain, graph, atol=1e-12)


def test_rounding_has_no_gradient():
    kind = Memories(2, rounds=True)
    output, memory = memory_recurrence(operands(4, 3, 5, 2, 6, 2, kind), kind)
    assert not output.requires_grad
    assert not memory.requires_grad
