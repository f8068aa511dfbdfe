"""Networks with soft stacks or lists: the recurrence, in plain PyTorch and by native kernels.

Shapes: T time steps, B batch, H hidden size; S memories (stacks or lists) of N cells each, K cells of each are read,
A actions.

A step, for each sample, m' being the memories before it (Joulin and Mikolov, 2015, arXiv:1503.01007, equations 3 to 9):

    h = sigmoid(gates_x + weight_hh h' + weight_read m'[head .. head + K))
    a = softmax(weight_act h) for each memory,  v = sigmoid(weight_act h)    weight_act: S*A rows, then S
    m[i] = a0 m'[i-1] + a1 m'[i+1] + a2 m'[i], but
    stack:  m[0] = a0 v + a1 m'[1] + a2 m'[0]                     PUSH, POP and (A = 3) NO-OP; the head is cell 0
    list:   m[head] = a0 m'[head-1] + a1 m'[head+1] + a2 v        LEFT, RIGHT, INSERT; the head is cell N // 2,
            left of which a2 multiplies m'[i+1]: an insertion moves what is at the head and left of it to the left

No memory has cells 0 - 1 and N: they read as ``empty``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prnn import cuda_plan, native
from prnn.ops import backends, exported


class Memories(NamedTuple):
    """What kind of memories they are."""

    actions: int = 2  # A: 3 for a list
    list: bool = False
    empty: float = -1.0  # the value of a cell nothing was written to
    rounds: bool = False  # the most probable action is taken wholly, instead of each in part; has no gradient


class Operands(NamedTuple):
    """What the recurrence computes from."""

    gates_x: Tensor  # [T,B,H]
    weight_hh: Tensor | None  # [H,H]; None: h does not depend on the h before
    weight_read: Tensor  # [H,S*K], K columns for each memory
    weight_act: Tensor  # [S*A+S,H]
    h0: Tensor  # [B,H]; nothing depends on it without weight_hh
    memory0: Tensor  # [N,B,S]


def memory_recurrence(operands: Operands, kind: Memories, fresh: bool = False) -> tuple[Tensor, Tensor]:
    """Output [T,B,H] and the memories after the last step [N,B,S]. Raises ``ValueError`` for operands that do not fit
    each other, and ``BackendError`` for a forced backend that cannot run them.

    Native kernels run what ``refusal`` does not refuse. Elsewhere, and for derivatives of derivatives, the equations
    below do, a step at a time. ``fresh`` asserts that memory0 is empty everywhere: on a GPU, where it is not checked,
    time and memory then grow with the cells that can have been written to, not with N.
    """
    _check(operands, kind)
    if exported.recording(operands.gates_x):
        return torch.ops.prnn.exported_memory.default(*operands, *kind)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not kind.rounds):
        if refusal(operands, kind) is not None:
            return reference(operands, kind)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
            return _Recurrence.apply(kind, fresh, *operands)
        output, memory_n, *_ = _call(operands, kind, whole=False, fresh=fresh, save=False)
        return output, memory_n


def _check(operands: Operands, kind: Memories) -> None:
    """Raise ValueError unless everything fits gates_x [T,B,H] and memory0 [N,B,S] in shape, dtype, layout and device;
    B alone may be 0.
    """
    x, memory0, A = operands.gates_x, operands.memory0, kind.actions
    if A not in ((3,) if kind.list else (2, 3)):
        raise ValueError(f"a list takes 3 actions and a stack 2 or 3, got {A}")
    for name, given, form in (("gates_x", x, "[T,B,H]"), ("memory0", memory0, "[N,B,S]")):
        if given.dim() != 3 or 0 in (given.shape[0], given.shape[2]):
            raise ValueError(f"{name} must be {form} of at least one of each but B, got {list(given.shape)}")
    (_, B, H), (N, _, S) = x.shape, memory0.shape
    head, columns = head_of(N, kind), operands.weight_read.shape[-1] if operands.weight_read.dim() else 0
    if columns == 0 or columns % S or head + columns // S > N:
        raise ValueError(
            f"weight_read must be [{H},{S}*K], K from 1 to {N - head} cells, got {list(operands.weight_read.shape)}"
        )
    if operands.weight_hh is not None and operands.h0 is None:
        raise ValueError("weight_hh wants h0")
    shapes = ((*x.shape,), (H, H), (H, columns), (S * A + S, H), (B, H), (N, B, S))
    for name, tensor, shape in zip(Operands._fields, operands, shapes, strict=True):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise ValueError(f"{name} must be a dense tensor of floating point, got {tensor.dtype}, {tensor.layout}")
        if (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, gates_x is {x.dtype} on {x.device}")


def refusal(operands: Operands, kind: Memories) -> str | None:
    """Why no native kernel runs this; None if one does: float32 and float64, on a CPU, and on a GPU where the weights
    and the cells of two steps fit into the shared memory of one block.
    """
    forced = backends.forced()
    if forced in ("reference", "torch"):
        return f"the backend {forced!r} was forced"
    reason = _refused_by_native(operands, kind)
    if forced is not None and (reason or forced != ("cpu" if operands.gates_x.is_cpu else "cuda")):
        raise backends.BackendError(
            f"the backend {forced!r} was forced, but {reason or f'the tensors are on {operands.gates_x.device.type}'}"
        )
    if reason is not None:
        native.warn_if_missing(reason)
    return reason


def _refused_by_native(operands: Operands, kind: Memories) -> str | None:
    x = operands.gates_x
    if x.dtype not in (torch.float32, torch.float64):
        return f"the native kernels take float32 and float64, not {str(x.dtype).removeprefix('torch.')}"
    if not (x.is_cpu or x.is_cuda):
        return f"the tensors are on {x.device.type}"
    loaded, reason = native.status() if x.is_cpu else native.cuda_status()
    if not loaded:
        return f"native library: {reason}"
    if x.is_cpu:
        return None
    (N, _, S), H = operands.memory0.shape, x.shape[2]
    K, recurrent = operands.weight_read.shape[1] // S, operands.weight_hh is not None
    return _refused_by_gpu(H, S, N, K, kind.actions, recurrent, x.dtype == torch.float64, x.get_device()) or None


@lru_cache(maxsize=256)
def _refused_by_gpu(H: int, S: int, N: int, K: int, A: int, recurrent: bool, doubles: bool, device: int) -> str:
    if torch.cuda.get_device_capability(device) < cuda_plan.CAPABILITY:
        return "the CUDA kernels need sm_80 or later"
    return torch.ops.prnn_native.cuda_memory_refusal(H, S, N, K, A, recurrent, doubles, device)


def steps(operands: Operands, kind: Memories) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The reference implementation, a step at a time: h [B,H], the memories [N,B,S], and [A+1,B,S] the share of each
    action and, last, the value on offer.
    """
    h, memory = operands.h0, operands.memory0
    for gates in operands.gates_x:
        h, memory, actions = one_step(operands, kind, gates, h, memory)
        yield h, memory, actions


def one_step(
    weights: Operands, kind: Memories, gates: Tensor, h: Tensor | None, memory: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A step after h [B,H] and the memories [N,B,S], as in ``steps``; of the operands only the weights are used."""
    (N, B, S), A = memory.shape, kind.actions
    head, K = head_of(N, kind), weights.weight_read.shape[1] // S
    read = memory[head : head + K].permute(1, 2, 0).flatten(1)  # [B,S*K]
    sums = gates + read @ weights.weight_read.t()
    h = torch.sigmoid(sums if h is None or weights.weight_hh is None else sums + h @ weights.weight_hh.t())
    logits = h @ weights.weight_act.t()
    a = logits[:, : S * A].view(B, S, A).softmax(-1)
    if kind.rounds:
        a = torch.nn.functional.one_hot(a.argmax(-1), A).to(a.dtype)
    a, v = a.permute(2, 0, 1), torch.sigmoid(logits[:, S * A :])
    end = torch.full_like(memory[:1], kind.empty)
    up, down = torch.cat([end, memory[:-1]]), torch.cat([memory[1:], end])
    if kind.list:
        third = torch.cat([down[:head], v[None], memory[head + 1 :]])
    else:
        up, third = torch.cat([v[None], memory[:-1]]), memory
    memory = a[0] * up + a[1] * down + (a[2] * third if A == 3 else 0)
    return h, memory, torch.cat([a, v[None]])


def reference(operands: Operands, kind: Memories) -> tuple[Tensor, Tensor]:
    """``memory_recurrence`` by ``steps``."""
    output, memory = [], operands.memory0
    for h, after, _ in steps(operands, kind):
        output.append(h)
        memory = after  # the last alone is kept
    return torch.stack(output), memory


def unrolled(*arguments: Any) -> tuple[Tensor, Tensor]:
    """``exported_memory`` step by step."""
    return reference(*_parts(arguments))


def _parts(arguments: Sequence[Any]) -> tuple[Operands, Memories]:
    """Those of ``exported_memory``."""
    count = len(Operands._fields)
    return Operands(*arguments[:count]), Memories(*arguments[count:])


def _eager(*arguments: Any) -> tuple[Tensor, Tensor]:
    return memory_recurrence(*_parts(arguments))


def _scanned(*arguments: Any) -> tuple[Tensor, Tensor]:
    operands, kind = _parts(arguments)
    given = [each for each in operands[1:4] if each is not None]

    def body(h: Tensor, memory: Tensor, gates: Tensor, *weights: Any) -> list[Tensor]:
        rest = iter(weights)
        own = (None if each is None else next(rest) for each in operands[1:4])
        at_step = Operands(gates, *own, h, memory)  # type: ignore[arg-type, call-arg]
        h, memory, _ = one_step(at_step, kind, gates, h, memory)
        return [h, memory, h.clone()]

    _, memory, output = exported.scan(body, [operands.h0, operands.memory0], [operands.gates_x], given)
    return output, memory


exported.define(
    "prnn::exported_memory",
    "(Tensor gates_x, Tensor? weight_hh, Tensor weight_read, Tensor weight_act, Tensor h0, Tensor memory0, "
    "int actions, bool list, float empty, bool rounds) -> (Tensor, Tensor)",
    _eager,
    _scanned,
)


def head_of(cells: int, kind: Memories) -> int:
    """Where in its N ``cells`` a memory is read and written."""
    return cells // 2 if kind.list else 0


def _call(operands: Operands, kind: Memories, whole: bool, fresh: bool, save: bool) -> tuple[Tensor, ...]:
    """output, memory_n, and for the backward pass actions, reads, saved."""
    given = (kind.actions, kind.list, kind.empty, kind.rounds, whole, fresh, save)
    return torch.ops.prnn_native.memory_forward.default(*operands, *given)


class _Recurrence(torch.autograd.Function):
    """The kernel does what is serial; the weights' gradients are products over all steps at once."""

    @staticmethod
    def forward(ctx: Any, kind: Memories, fresh: bool, *given: Any) -> tuple[Tensor, Tensor]:
        operands = Operands(*given)
        # Where memory0 wants no gradient, cells nothing was written to need not be looked at.
        ctx.kind, ctx.fresh, ctx.whole = kind, fresh, bool(Operands(*ctx.needs_input_grad[2:]).memory0)
        output, memory_n, *saved = _call(operands, kind, ctx.whole, fresh, save=True)
        ctx.save_for_backward(*operands, output, *saved)
        ctx.set_materialize_grads(False)
        return output, memory_n

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_memory_n: Tensor | None) -> tuple[Tensor | None, ...]:
        *given, output, actions, reads, saved = ctx.saved_tensors
        operands = Operands(*given)
        kind, needs = ctx.kind, Operands(*ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():  # create_graph: these gradients are to be differentiated
            return (None, None, *_by_reference(operands, kind, needs, grad_output, grad_memory_n))
        weight_hh, h0 = operands.weight_hh, operands.h0
        grad_gates, grad_act, grad_memory0 = torch.ops.prnn_native.memory_backward.default(
            grad_output,
            grad_memory_n,
            *operands,
            output,
            actions,
            saved,
            kind.actions,
            kind.list,
            kind.empty,
            ctx.whole,
            ctx.fresh,
        )
        of_gates, of_act = grad_gates.flatten(0, 1), grad_act.flatten(0, 1)
        grad_hh = grad_h0 = None
        if weight_hh is not None:
            previous = torch.cat([h0[None], output[:-1]]).flatten(0, 1)
            grad_hh = of_gates.t() @ previous if needs.weight_hh else None
            grad_h0 = grad_gates[0] @ weight_hh if needs.h0 else None
        return (
            None,
            None,
            grad_gates,
            grad_hh,
            of_gates.t() @ reads.flatten(0, 1) if needs.weight_read else None,
            of_act.t() @ output.flatten(0, 1) if needs.weight_act else None,
            grad_h0,
            grad_memory0 if ctx.whole else None,
        )


def _by_reference(
    operands: Operands,
    kind: Memories,
    needs: Operands,
    grad_output: Tensor | None,
    grad_memory_n: Tensor | None,
) -> list[Tensor | None]:
    """The operands' gradients where ``needs`` has True, themselves part of a graph."""
    device_type = operands.gates_x.device.type
    # Fresh aliases: one operand may have been computed from another, and only the direct path counts here. (As in
    # gradients.second_order; the forward pass ran without autocast, so its derivatives do.)
    aliases = [None if x is None else x.view_as(x) for x in operands]
    with torch.autocast(device_type, enabled=False):
        pairs = zip(reference(Operands(*aliases), kind), (grad_output, grad_memory_n), strict=True)  # type: ignore[arg-type]
        given = [(result, grad) for result, grad in pairs if grad is not None]
        wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need and alias is not None]
        results, grads = [result for result, _ in given], [grad for _, grad in given]
        computed = iter(torch.autograd.grad(results, wanted, grads, create_graph=True, allow_unused=True))
    return [next(computed) if need else None for need in needs]
