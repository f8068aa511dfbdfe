"""``prnn.RNN``, ``GRU`` and ``LSTM`` beside torch.nn's, constructed or converted: with arguments at random, and some
calls of each, with another input, form, state and grad mode, weights that were stepped, frozen or exchanged, and now
and then an argument that does not fit.

Outputs, final states, every gradient, classes, dtypes and what requires a gradient are torch.nn's; where torch.nn
raises, so does prnn, and where prnn raises, torch.nn does or the call has a flaw. The calls are made in one child
process, which a crash ends; under an address sanitizer with ``python -m tests.fuzz.sanitized --target modules``.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

from tests.fuzz import child
from tests.fuzz.draw import Draw

TRIALS = 150
CALLS = 4  # of a module, at most
TOLERANCE = {"float32": 1e-4, "float64": 1e-10, "bfloat16": 3e-1}  # of a tensor's largest element
STEPS, BATCHES, UNITS = (0, 1, 1, 1, 2, 3, 7, 8, 9, 12), (0, 1, 1, 2, 3, 5, 8), (1, 2, 3, 5, 8, 17, 33, 100)
FLAWS = ("shape", "rank", "dtype", "device", "lengths", "state")


def trial(rng: random.Random, folder: Path) -> None:
    """One module."""
    child.ask(__name__, rng.getrandbits(63))


def _modules(draw: Draw) -> tuple[Any, Any, dict[str, Any]]:
    """torch.nn's module, prnn's with the same weights, and what both were given."""
    import prnn

    torch, rng = draw.torch, draw.rng
    draw.dtype = rng.choice((torch.float32,) * 4 + (torch.float64, torch.bfloat16))
    kind = rng.choice(("RNN", "GRU", "LSTM"))
    given: dict[str, Any] = {"input_size": rng.choice(UNITS), "hidden_size": rng.choice(UNITS)}
    given |= {"num_layers": rng.choice((1, 1, 2, 3)), "bidirectional": draw.chance(0.3), "bias": draw.chance(0.8)}
    given |= {"batch_first": draw.chance(0.5), "dtype": draw.dtype}
    if kind == "LSTM" and given["hidden_size"] > 1 and draw.chance(0.2):
        given["proj_size"] = rng.randrange(1, given["hidden_size"])
    if kind == "RNN":
        # in bfloat16 the sign of a sum near 0, and with it a gradient, is anybody's
        given["nonlinearity"] = "tanh" if draw.dtype == torch.bfloat16 else rng.choice(("tanh", "relu"))
    torch.manual_seed(rng.getrandbits(31))
    theirs = getattr(torch.nn, kind)(**given)
    if draw.chance(0.5):
        ours = prnn.convert(copy.deepcopy(theirs), verbose=False)
    else:
        ours = getattr(prnn, kind)(**given)
        ours.load_state_dict(theirs.state_dict())
    return theirs, ours, {"kind": kind, **given}


def _between_calls(draw: Draw, modules: tuple[Any, Any]) -> None:
    """Train, freeze or exchange weights, of both modules alike."""
    torch, rng = draw.torch, draw.rng
    what, seed = rng.choice(("nothing", "nothing", "step", "freeze", "exchange", "assign", "mode")), rng.getrandbits(31)
    for module in modules:
        torch.manual_seed(seed)
        weights = dict(module.named_parameters())
        some = [name for name in weights if torch.rand(()) < 0.5]
        if what == "mode":
            module.train(not module.training)
        for name in some:
            noise = 0.1 * torch.randn(weights[name].shape, dtype=draw.dtype)
            if what == "step":
                with torch.no_grad():
                    weights[name].add_(noise)
            elif what == "freeze":
                weights[name].requires_grad_(not weights[name].requires_grad)
            elif what == "exchange":
                setattr(module, name, torch.nn.Parameter(noise))
            elif what == "assign":
                weights[name].data = noise


def _call(draw: Draw, given: dict[str, Any]) -> dict[str, Any]:
    """What one call is given: operands, which of them have a state, and the lengths of a packed sequence."""
    rng, draw.leaves, draw.flaw = draw.rng, [], None
    form = rng.choice(("batch", "batch", "batch", "one", "packed"))
    T, B = rng.choice(STEPS), rng.choice(BATCHES)
    if form == "packed":
        T, B = max(1, T), max(1, B)
    batch = [] if form == "one" else [B]
    shape = [*batch, T] if given["batch_first"] else [T, *batch]
    rows = given["num_layers"] * (2 if given["bidirectional"] else 1)
    operands = {"x": draw.tensor(*shape, given["input_size"]), "h0": None, "c0": None}
    if draw.chance(0.6):
        operands["h0"] = draw.tensor(rows, *batch, given.get("proj_size") or given["hidden_size"])
        if given["kind"] == "LSTM":
            same = not given.get("proj_size") and draw.chance(0.1)
            operands["c0"] = operands["h0"] if same else draw.tensor(rows, *batch, given["hidden_size"])
    lengths = [rng.randint(1, T) for _ in range(B)] if form == "packed" else None
    if lengths:
        lengths[rng.randrange(B)] = T
    flaw = rng.choice(FLAWS) if draw.chance(0.2) else None
    if flaw == "lengths" and lengths:
        lengths[rng.randrange(B)] = rng.choice((0, T + 1))
        draw.flaw = "another length"
    elif flaw == "state" and operands["h0"] is not None:
        draw.flaw = "another number of states"
        operands["c0"] = None if given["kind"] == "LSTM" else operands["h0"]
    elif flaw in ("shape", "rank", "dtype", "device"):
        draw.spoil(operands, flaw)
    return {**operands, "lengths": lengths, "keywords": draw.chance(0.2)}


def _flat(value: Any) -> list[Any]:
    return [each for part in value for each in _flat(part)] if isinstance(value, tuple) else [value]


def _outcome(draw: Draw, module: Any, call: dict[str, Any], mode: str, used: list[bool], seed: int) -> Any:
    """Outputs and gradients of one call; or the exception."""
    torch = draw.torch
    x, h0, c0, lengths = call["x"], call["h0"], call["c0"], call["lengths"]
    hx = h0 if c0 is None else (h0, c0)
    try:
        with {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
            if lengths is not None:
                first, pack = module.batch_first, torch.nn.utils.rnn.pack_padded_sequence
                x = pack(x, torch.tensor(lengths), batch_first=first, enforce_sorted=False)
            results = module(input=x, hx=hx) if call["keywords"] else module(x, hx)
        outputs = _flat(results)
        torch.manual_seed(seed)
        pairs = [(y, torch.randn(y.shape).to(y.dtype)) for y in outputs if torch.is_tensor(y)]
        pairs = [pair for pair, use in zip(pairs, used, strict=False) if use and pair[0].requires_grad]
        wanted = [leaf for leaf in [*draw.leaves, *module.parameters()] if leaf.requires_grad]
        grads = [None for _ in wanted]
        if pairs and mode == "grad":
            values, incoming = zip(*pairs, strict=True)
            grads = [*torch.autograd.grad(values, wanted, incoming, allow_unused=True)]
    except Exception as error:
        return error
    return type(results[0]), outputs, grads


def _unequal(found: Any, expected: Any, tolerance: float) -> str | None:
    if found is None or expected is None:  # a gradient of zeros, or none: the operator computes a layer's all at once
        there = expected if found is None else found
        return None if there is None or not there.any() else "is on one side alone"
    for name in ("shape", "dtype"):
        if getattr(found, name) != getattr(expected, name):
            return f"has {name} {getattr(found, name)}, not {getattr(expected, name)}"
    if found.is_inference() != expected.is_inference():
        return "is an inference tensor on one side alone"
    if not found.numel():
        return None
    error, largest = (found.double() - expected.double()).abs().max().item(), expected.double().abs().max().item()
    return None if error <= tolerance * max(1.0, largest) else f"is off by {error:.3g}, of {largest:.3g}"


def _check(seed: int) -> str | None:
    """Make the calls of one module; what was wrong, or None."""
    draw = Draw(seed)
    torch, rng = draw.torch, draw.rng
    torch.set_num_threads(rng.choice((1, 2)))
    theirs, ours, given = _modules(draw)
    tolerance = TOLERANCE[str(draw.dtype).removeprefix("torch.")]
    for number in range(rng.randint(1, CALLS)):
        _between_calls(draw, (theirs, ours))
        call = _call(draw, given)
        if given["kind"] == "LSTM" and call["lengths"] and draw.flaw:
            continue  # torch.nn writes beyond the end of its memory
        mode, used = rng.choice(("grad", "grad", "no_grad", "inference")), [rng.random() < 0.8 for _ in range(3)]
        shapes = {name: [*call[name].shape] for name in ("x", "h0", "c0") if call[name] is not None}
        told = f"call {number} of {given}, {mode}, flaw: {draw.flaw}, {shapes}, lengths {call['lengths']}"
        found, expected = (_outcome(draw, module, call, mode, used, seed + number) for module in (ours, theirs))
        if isinstance(found, Exception) or isinstance(expected, Exception):
            if isinstance(found, Exception) and (draw.flaw or isinstance(expected, Exception)):
                continue
            return f"prnn: {_named(found)}; torch.nn: {_named(expected)}\n{told}"
        if found[0] is not expected[0]:
            return f"the output is a {found[0]}, not a {expected[0]}\n{told}"
        if [y.requires_grad for y in found[1][:2]] != [y.requires_grad for y in expected[1][:2]]:  # c_n's may be fewer
            return f"other outputs require a gradient\n{told}"
        names = [f"output {n}" for n in range(len(found[1]))] + [f"gradient {n}" for n in range(len(found[2]))]
        for name, actual, right in zip(names, found[1] + found[2], expected[1] + expected[2], strict=True):
            if problem := _unequal(actual, right, tolerance):
                return f"{name} {problem}\n{told}"
    return None


def _named(outcome: Any) -> str:
    return f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else "a result"


if __name__ == "__main__":
    child.main(_check)
