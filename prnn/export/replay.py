"""Replays golden.npz through the model beside it, and compares: python replay.py [BOUND, else that of the export]

Needs numpy, and onnxruntime (model.onnx) or torch (model.pt2), not what the model was trained with. Each case runs
whole, and where calls continue one another frame by frame and in ten pieces; the state of a stream is reset where the
case says so. Prints the largest error of each, of the largest expected element; exit status 1 where one is above BOUND
or is not a number. Letters: T frames, B streams.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray
Run = Callable[[Array, Sequence[Array]], list[Array]]  # input and states to output and states


def onnx(file: Path, signature: dict[str, Any]) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [signature["input"]["name"], *(state["input"] for state in signature["states"])]
    outputs = [signature["output"]["name"], *(state["output"] for state in signature["states"])]
    return lambda input, states: session.run(outputs, dict(zip(names, (input, *states), strict=True)))


def pt2(file: Path, signature: dict[str, Any]) -> Run:
    import torch

    return _of_torch(torch.export.load(file).module())


def aoti(file: Path, signature: dict[str, Any]) -> Run:
    import torch

    return _of_torch(torch._inductor.aoti_load_package(str(file)))


def _of_torch(program: Any) -> Run:
    import torch

    def run(input: Array, states: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return [each.numpy() for each in program(*map(torch.from_numpy, (input, *states)))]

    return run


FORMATS = {"onnx": onnx, "pt2": pt2, "aoti": aoti}


def in_pieces(run: Run, signature: dict[str, Any], case: dict[str, Array], length: int) -> list[Array]:
    """Output and final states after calls of ``length`` frames, and of fewer before a reset."""
    frames, states = signature["input"]["frames"], [case[each["input"]].copy() for each in signature["states"]]
    input, resets = case["input"], case.get("resets")
    T, outputs, start = input.shape[frames], [], 0
    while start < T:
        stop = min(T, start + length)
        if resets is not None:
            stop = next((t for t in range(start + 1, stop) if resets[t].any()), stop)
            for state, each in zip(states, signature["states"], strict=True):
                rows = np.moveaxis(state, each["streams"], 0)  # a view
                rows[resets[start]] = np.moveaxis(np.asarray(each["initial"], state.dtype), each["streams"], 0)
        piece = np.ascontiguousarray(np.take(input, range(start, stop), frames))
        output, *states = (np.array(each) for each in run(piece, states))
        outputs.append(output)
        start = stop
    along = signature["output"]["frames"]
    return [outputs[-1] if along is None else np.concatenate(outputs, along), *states]


def error(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, of the largest expected element."""
    errors = [
        float(np.abs(a.astype(np.float64) - b).max() / max(float(np.abs(b).max()), 1e-30))
        if a.shape == b.shape
        else np.inf
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.max(errors))  # NaN where one is


def main(folder: Path, bound: float | None) -> int:
    signature = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    run = FORMATS[signature["format"]](folder / signature["file"], signature)
    golden, errors = np.load(folder / "golden.npz"), []
    for number in range(signature["cases"]):
        case = {name.split("/", 1)[1]: golden[name] for name in golden.files if name.startswith(f"{number}/")}
        expected = [case["output"], *(case[each["output"]] for each in signature["states"])]
        shape = case["input"].shape
        T, B = shape[signature["input"]["frames"]], shape[signature["input"]["streams"]]
        ways = {"whole": T, "frame by frame": 1, "in ten pieces": -(-T // 10)}
        for way, length in ways.items():
            if way != "whole" and (T == 1 or not signature["carries"]):
                continue
            found = error(in_pieces(run, signature, case, length), expected)
            resets = ", with resets" if "resets" in case else ""
            print(f"T {T}, B {B}{resets}, {way}: {found:.1e}")
            errors.append(found)
    worst = float(np.max(errors))
    bound = signature["tolerance"] if bound is None else bound
    print(f"largest error {worst:.2e}, {'within' if worst <= bound else 'NOT within'} the bound {bound:g}")
    return 0 if worst <= bound else 1


def _bound(arguments: Sequence[str]) -> float | None:
    """That of the command line; ends the program where it is no number."""
    try:
        return float(*arguments) if arguments else None
    except (TypeError, ValueError):
        sys.exit(f"replay.py takes the bound of the error, such as 1e-5, got {' '.join(arguments)}")


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, _bound(sys.argv[1:])))
