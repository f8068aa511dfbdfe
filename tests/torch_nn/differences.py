"""Where prnn differs from torch.nn on purpose: the only place of this folder that says so.

The tests that an entry names are those that torch.nn passes and prnn does not; ``conftest.py`` marks them, for prnn, as
expected to fail, strictly.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """``reason`` is written for users. ``tests`` are "file.py::function", or longer beginnings of a test's name."""

    topic: str
    reason: str
    tests: tuple[str, ...] = ()


DIFFERENCES = (
    Difference(
        "Two more arguments of the forward pass",
        "forward takes lengths= and resets=, by keyword only and None unless given; everything else has torch.nn's "
        "place and name.",
    ),
    Difference(
        "Dropout masks",
        "The mask between layers is drawn from torch's generator, but not always in torch.nn's order: with the same "
        "seed a run is repeatable, and its masks may be others than torch.nn's.",
    ),
    Difference(
        "Errors",
        "Wrong arguments, inputs and states raise torch.nn's exceptions with its words where torch.nn checks them in "
        "Python. What torch.nn leaves to a kernel (a state of another dtype, a parameter of another shape, a packed "
        "input of LSTM, a pair of states that is none) is an error of prnn, which names the tensor.",
    ),
    Difference(
        "Weights are looked up at each call",
        "torch.nn keeps a list of its weights beside the parameters. prnn has none, so copy.deepcopy works after "
        "weight_norm and parametrisations were called, and a parameter that was deleted is missing.",
    ),
    Difference(
        "Checks that a subclass overrides",
        "check_input, check_forward_args, permute_hidden and the like do what torch.nn's do, but prnn's forward pass "
        "does not call them: it checks as it goes.",
    ),
    Difference(
        "Exact types",
        "type(module) is torch.nn.LSTM is false, and prnn.convert gives an instance of a subclass of yours another "
        "class, derived from yours: isinstance holds, a comparison of types does not, and what is pickled needs prnn "
        "to be loaded. A state_dict does not.",
    ),
    Difference(
        "What may change before the backward pass",
        "With batch_first torch.nn copies the input, and its RNN and GRU do not read the biases again; prnn's backward "
        "pass reads both, so autograd raises its error if they were written to in between.",
    ),
    Difference(
        "GRU under autocast on a CPU",
        "Computes in bfloat16 and returns it, as torch.nn's RNN does; torch.nn's GRU returns float32. torch.nn's LSTM "
        "needs a CPU with matrix units for bfloat16 there, prnn's does not.",
    ),
    Difference(
        "float16 on a CPU",
        "Is computed by torch, step by step: the native kernels take float32 and bfloat16. The results are at least as "
        "near to those in float64 as torch.nn's.",
    ),
)
