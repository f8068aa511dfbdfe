"""The layer in operators that run where prnn is not installed: what an exported graph is decomposed to.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates,
D directions.

``ExportedProgram.run_decompositions`` leaves a ``scan`` over time of the reference equations, of any T and B: ATen
operators, which AOTInductor compiles to a loop, and an ONNX exporter to Scan. In ``torch.onnx.export`` the cells that
ONNX has become its RNN, GRU and LSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prnn.cell_table import Cell, lookup
from prnn.ops import reference
from prnn.ops.operands import Operands, Results, Weights, schema_of
from prnn.ops.reference import Constants


class OnnxOperator(NamedTuple):
    """ONNX's operator of a cell: ``gates`` are torch's, in ONNX's order."""

    name: str
    gates: tuple[int, ...]
    activation: str  # of each direction; "" where the default is the cell's
    attributes: dict[str, Any]


_ONNX = {
    "rnn_tanh": OnnxOperator("RNN", (0,), "Tanh", {}),
    "rnn_relu": OnnxOperator("RNN", (0,), "Relu", {}),
    "gru": OnnxOperator("GRU", (1, 0, 2), "", {"linear_before_reset": 1}),  # z, r, n
    "lstm": OnnxOperator("LSTM", (0, 3, 1, 2), "", {}),  # i, o, f, g
}


def call(operands: Operands, cell: str, reverse: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A layer as one operator of the graph that torch.export records: the output and the final state."""
    output, h_n, c_n = torch.ops.prnn.exported_layer.default(cell, reverse, *operands)
    return output, (h_n,) if operands.c0 is None else (h_n, c_n)


def register(layer: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]) -> None:
    """Make the operator, which ``layer`` computes where a graph runs as it was recorded."""

    def eager(cell: str, reverse: bool, *tensors: Any) -> tuple[Tensor, ...]:
        o = Operands(*tensors)
        state = (o.h0,) if o.c0 is None else (o.h0, o.c0)
        options = {"lengths": o.lengths, "resets": o.resets, "inputs": o.inputs, "reverse": reverse}
        output, final = layer(o.x, o.weights, state, cell, checked=True, **options)
        return output, *final, *[output.new_empty(0)] * (2 - len(final))

    def traced(cell: str, reverse: bool, *tensors: Any) -> tuple[Tensor, ...]:
        output, h_n, c_n, *_ = decomposed(Operands(*tensors), lookup(cell), reverse)
        return output, h_n, output.new_empty(0) if c_n is None else c_n

    define("prnn::exported_layer", schema_of(("str cell", "bool reverse"), 3), eager, traced)


def define(name: str, schema: str, eager: Callable[..., Any], traced: Callable[..., Any]) -> None:
    """An operator that ``eager`` computes where a graph runs as it was recorded, and that run_decompositions makes what
    ``traced`` is made of.
    """

    def decomposed(*arguments: Any) -> Any:
        # A recorded graph may be compiled, too: with the kernels.
        return (traced if torch.compiler.is_exporting() else eager)(*arguments)

    torch.library.define(name, schema)
    torch.library.impl(name, "CompositeImplicitAutograd", eager)
    operator = getattr(torch.ops.prnn, name.removeprefix("prnn::")).default
    operator.py_impl(torch._C.DispatchKey.CompositeImplicitAutograd)(decomposed)


def recording(x: Tensor) -> bool:
    """Whether torch.export records this call: its own flag holds for every thread."""
    return torch.compiler.is_exporting() and (
        torch.compiler.is_dynamo_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or type(x) not in (Tensor, torch.nn.Parameter)
    )


def scan(
    body: Callable[..., list[Tensor]], carry: Sequence[Tensor], series: Sequence[Tensor], constants: Sequence[Tensor]
) -> list[Tensor]:
    """torch's ``scan`` over the first dimension of ``series``: ``body(*carry, *series at t, *constants)`` returns the
    next carry and the outputs, none of them an argument or a view of another. The last carry, and the outputs [T,*].
    """
    from torch._higher_order_ops.scan import scan_op  # here: its import takes a second

    # Inductor makes the loop's output buffer from the sizes among the arguments.
    sizes = [size for size in series[0].shape[1:] if isinstance(size, torch.SymInt)]
    count = len(carry) + len(series) + len(constants)
    carry = [state.clone() for state in carry]  # which are refused where they share memory
    return scan_op(lambda *arguments: body(*arguments[:count]), carry, list(series), (*constants, *sizes))


def decomposed(operands: Operands, cell: Cell, reverse: bool) -> Results:
    """A layer as ``reference.layer`` computes it, in the operators that an exported graph may hold."""
    if torch.onnx.is_in_onnx_export() and cell.name in _ONNX and _is_onnxs(operands):
        return _onnx_layer(operands, _ONNX[cell.name], reverse)
    each = [_scanned(operands, d, cell, reverse or d == 1) for d in range(len(operands.weights))]
    return reference.joined(each, cell)


def _is_onnxs(operands: Operands) -> bool:
    """Whether ONNX's operators take it: they have no projection, and clear no state in the middle of a sequence; those
    of float64 have no implementation in onnxruntime.
    """
    typed = operands.x.dtype in (torch.float32, torch.float16)
    return typed and operands.weight_hr is None and operands.resets is None and operands.weight_ih is not None


def _onnx_layer(operands: Operands, operator: OnnxOperator, reverse: bool) -> Results:
    x, lengths, each = operands.x, operands.lengths, operands.weights
    D, H = len(each), operands.h0.shape[2]
    weights = (torch.stack([_reordered(part, operator) for part in parts]) for parts in _onnx_parts(each))
    state = [operands.h0] if operands.c0 is None else [operands.h0, operands.c0]
    attributes: dict[str, Any] = {
        "hidden_size": H,
        "direction": "bidirectional" if D == 2 else "reverse" if reverse else "forward",
    }
    if operator.activation:
        attributes["activations"] = [operator.activation] * D
    output, *final = torch.onnx.ops.symbolic_multi_out(
        operator.name,
        [x, *weights, None if lengths is None else lengths.to(torch.int32), *state],
        attributes | operator.attributes,
        dtypes=[x.dtype] * (1 + len(state)),
        shapes=[[x.shape[0], D, x.shape[1], H], *(list(each.shape) for each in state)],
    )  # [T,D,B,H]
    if lengths is not None:  # where onnxruntime gives a sample without steps a state of zeros
        final = [torch.where(lengths[:, None] == 0, before, after) for before, after in zip(state, final, strict=True)]
    output = output.squeeze(1) if D == 1 else output.transpose(1, 2).flatten(2)
    return Results(output, *final, *[None] * (2 - len(state)))


def _onnx_parts(each: list[Weights]) -> list[list[Tensor]]:
    """weight_ih, weight_hh and both biases [2*G*H], of each direction."""
    parts: list[list[Tensor]] = [[], [], []]
    for weight_ih, weight_hh, bias_ih, bias_hh, *_ in each:
        assert weight_ih is not None
        zeros = weight_hh.new_zeros(weight_hh.shape[0])
        biases = torch.cat([zeros if bias is None else bias for bias in (bias_ih, bias_hh)])
        for part, tensor in zip(parts, (weight_ih, weight_hh, biases), strict=True):
            part.append(tensor)
    return parts


def _reordered(tensor: Tensor, operator: OnnxOperator) -> Tensor:
    """The rows of weights, or of two biases one after the other, in ONNX's order of the gates."""
    G, biases = len(operator.gates), 1 if tensor.dim() == 2 else 2
    size = tensor.shape[0] // (G * biases)
    gates = [start * G + gate for start in range(biases) for gate in operator.gates]
    return torch.cat([tensor.narrow(0, gate * size, size) for gate in gates])  # one slice each, which exporters fold


def _scanned(operands: Operands, d: int, cell: Cell, reverse: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """One direction: its output [T,B,P] and final state."""
    series, constants = reference.prepared(operands, d, reverse)
    h, states = reference.first_state(operands, d, cell)
    product = reference.product_of(constants, h, reference.plain_product)
    carry, shared = (h, *states), [each for each in constants if each is not None]
    stepped = [each for each in series if each is not None]

    def body(*arguments: Any) -> list[Tensor]:
        state, rest = arguments[: len(carry)], iter(arguments[len(carry) :])
        at_step = [None if each is None else next(rest) for each in series]
        fixed = Constants(*(None if each is None else next(rest) for each in constants))  # type: ignore[arg-type]
        h, others, output, _ = reference.one_step(cell, product, at_step, fixed, state[0], tuple(state[1:]))
        return [tensor.clone() for tensor in (h, *others, output)]

    h, *last, output = scan(body, carry, stepped, shared)
    output = reference.reverse_steps(output, operands.lengths) if reverse else output
    return output, h, reference.stacked(reference.last_states(operands, tuple(last)))
