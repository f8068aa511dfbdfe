"""onnxruntime: one RNN, GRU or LSTM node on the CPU, forward only (it does not train)."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.peers.base import Absent, Contender, Problem, require_plain

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    onnx = onnxruntime = None

# ONNX's order of gates, as positions in torch.nn's: r z n -> z r h, and i f g o -> i o f c.
ORDER = {"rnn_tanh": (0,), "rnn_relu": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
OPSET, IR_VERSION = 14, 8  # the operators' current form; a format that every runtime since 2021 reads


def build(problem: Problem) -> Contender:
    if onnxruntime is None:
        raise Absent("not installed: pip install '.[bench]'")
    if problem.train:
        raise Absent("forward only")
    require_plain(problem)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    model = _model(problem)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"x": problem.x.numpy()}

    def tensors() -> dict[str, Tensor]:
        return {"output": torch.from_numpy(session.run(["Y"], inputs)[0]).squeeze(1)}  # [T,1,B,H]

    return Contender(lambda: session.run(["Y"], inputs), tensors)


def _model(problem: Problem) -> onnx.ModelProto:
    """x [T,B,I] -> Y [T,1,B,H], the weights as constants: W [1,G*H,I], R [1,G*H,H], B [1,2*G*H]."""
    case = problem.case
    reorder = lambda weight: torch.cat([weight.chunk(len(order))[i] for i in order])  # noqa: E731
    order = ORDER[case.cell]
    w_ih, w_hh, b_ih, b_hh = (reorder(weight) for weight in problem.weights.values())
    constants = {"W": w_ih[None], "R": w_hh[None], "B": torch.cat([b_ih, b_hh])[None]}
    attributes: dict[str, object] = {"hidden_size": case.H, "direction": "forward"}
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1  # the reset gate acts after the product
    if case.cell.startswith("rnn"):
        attributes["activations"] = [case.cell.removeprefix("rnn_").capitalize()]
    node = helper.make_node(case.cell.split("_")[0].upper(), ["x", "W", "R", "B"], ["Y"], **attributes)
    graph = helper.make_graph(
        [node],
        "recurrence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.B, case.I])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [case.T, 1, case.B, case.H])],
        [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
