"""torch.nn's modules, and prnn's, which have the same interface."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import prnn
from benchmarks.kernels.peers.base import Contender, Problem, eager, make_module


def build(problem: Problem) -> Contender:
    """torch.nn; samples of different lengths are passed as a PackedSequence, and the time includes packing."""
    module = _module(problem, nn)

    def forward(x: Tensor) -> Tensor:
        if problem.lengths is None:
            return module(x)[0]
        packed = pack_padded_sequence(x, problem.lengths, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0])[0]

    return eager(problem, dict(module.named_parameters()), forward)


def build_prnn(problem: Problem) -> Contender:
    """prnn; samples of different lengths as ``lengths=``."""
    module = _module(problem, prnn)
    backend = prnn.explain(module, problem.x, lengths=problem.lengths).splitlines()[1].split(": ", 1)[1]
    parameters = dict(module.named_parameters())
    return eager(problem, parameters, lambda x: module(x, lengths=problem.lengths)[0], backend)


def build_equations(problem: Problem) -> Contender:
    """The equations of a cell written in Python, as prnn's backend "reference" runs them; not timed: a loop made by
    hand (python_loop.py, unbound_loop.py) is the faster one.
    """
    module = _module(problem, prnn)

    def forward(x: Tensor) -> Tensor:
        with prnn.backend("reference"):
            return module(x)[0]

    return eager(problem, dict(module.named_parameters()), forward, timed=False)


def _module(problem: Problem, package: object) -> nn.Module:
    module = make_module(package, problem.case).to(problem.x.device, problem.x.dtype)
    module.load_state_dict(problem.weights)
    return module
