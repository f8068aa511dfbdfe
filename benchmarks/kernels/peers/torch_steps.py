"""A GEMM per step, eagerly under autograd: the cost of a hand-written recurrent layer in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import prnn
from benchmarks.kernels.peers.base import Absent, Contender, Problem, make_module
from prnn.cell_table import CELLS


def module_and_loop(problem: Problem) -> tuple[nn.Module, Tensor]:
    """Prepare the parameters of prnn's module, and x, for ``loop``."""
    if not problem.case.plain:
        raise Absent("one layer in one direction without lengths only")
    module = make_module(prnn, problem.case).to(problem.x.device, problem.x.dtype)
    module.load_state_dict(problem.weights)
    return module, problem.x.clone().requires_grad_(problem.train and problem.case.input_requires_grad)


def loop(problem: Problem, module: nn.Module, x: Tensor) -> Tensor:
    """x [T,B,I] -> output [T,B,H]: one input projection, then a GEMM per step in the case's dtype; cell in float32."""
    case = problem.case
    w_ih, w_hh, b_ih, b_hh = (module.get_parameter(f"{name}_l0") for name in WEIGHTS)
    gates_x = nn.functional.linear(x, w_ih, b_ih)
    h, weight = x.new_zeros(case.B, case.H), w_hh.t()
    c = x.new_zeros(case.B, case.H, dtype=torch.float32) if case.cell == "lstm" else None
    step, outputs = CELLS[case.cell].forward, []
    for t in range(case.T):
        gates_h = torch.addmm(b_hh, h, weight)
        new, c, _ = step(gates_x[t].float(), gates_h.float(), h.float(), c)
        h = new.to(x.dtype)
        outputs.append(h)
    return torch.stack(outputs)


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def gradients_of(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    results = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    return results | ({"x": x.grad.clone()} if x.grad is not None else {})


def build(problem: Problem) -> Contender:
    module, x = module_and_loop(problem)

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        x.grad = None
        with torch.set_grad_enabled(problem.train):
            output = loop(problem, module, x)
            if problem.train:
                output.backward(problem.grad_output)
        if x.is_cuda:
            torch.cuda.synchronize()
        return output.detach()

    return Contender(run, lambda: {"output": run().clone()} | gradients_of(module, x))
