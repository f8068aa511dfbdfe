"""norse's LSNNRecurrent: an adaptive spiking neuron as prnn.cells.alif is, but with other equations.

A synaptic current that decays, no biases, thresholds that start elsewhere: its numbers are its own, and its time is
that of a layer of the same size and purpose.
"""

from __future__ import annotations

from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager


def build(problem: Problem) -> Contender:
    if problem.case.cell != "alif":
        raise Absent("of alif only")
    try:
        from norse.torch import LSNNRecurrent
    except ImportError as error:
        raise Absent(f"not installed ({error}): pip install --no-deps norse nir nirtorch h5py") from error
    case, leaves = problem.case, problem.leaves()
    # autapses: a unit sees its own spikes, as in alif.
    module = LSNNRecurrent(
        case.I, case.H, input_weights=leaves["weight_ih_l0"], recurrent_weights=leaves["weight_hh_l0"], autapses=True
    )
    return eager(problem, leaves, lambda x: module(x)[0], compared=False)
