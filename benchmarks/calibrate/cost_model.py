"""The cost model of the CUDA kernels with variable constants: parsing, evaluation, fitting, and output as a patch.

The constants are those of ``prnn/csrc/cuda/costs.h``; ``plan_costs.cpp`` evaluates ``planner.cpp`` with any of them. P
constants, N measurements; one more parameter than constants, the microseconds of a call, is fitted and never written.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common.files import ROOT
from prnn.errors import UserError

COSTS, CELLS = "prnn/csrc/cuda/costs.h", "prnn/csrc/cell_table.h"
_CONSTANT = re.compile(r"^  double (\w+) = ([\d.]+);( *)(//.*)?$", re.MULTILINE)

PRIOR = 1.0  # standard deviation of a constant's logarithm before anything is measured: a factor of e
LEAST_NOISE = 1e-3  # of a measurement, relative: below that the model's own rounding is fitted
_DAMPING = 10.0 ** np.arange(-6, 5)
_STARTS = 8  # the model has kinks (what takes longest counts), so that one descent may end before the best

Logs = np.ndarray  # [P + 1] logarithms of parameters, relative to where they began
Predict = Callable[[np.ndarray], np.ndarray]  # sets of parameters [K, P + 1] -> microseconds [K, N]


def cells() -> tuple[str, ...]:
    """Their names, in the order of their numbers."""
    return tuple(re.findall(r"^  X\(\w+, (\w+)\)", (ROOT / CELLS).read_text(), re.MULTILINE))


def constants(text: str) -> dict[str, float]:
    """Name -> value, in the order of the file's struct."""
    return {match[1]: float(match[2]) for match in _CONSTANT.finditer(text)}


def patch(text: str, values: dict[str, float]) -> str:
    """A unified diff from this text of costs.h to one with new values; empty if none differs."""
    lines, comments = [], []
    for line in text.splitlines(keepends=True):
        match = _CONSTANT.match(line)
        changed = match and values[match[1]] != float(match[2])
        lines.append(f"  double {match[1]} = {number(values[match[1]]) if changed else match[2]};" if match else line)
        comments.append((match[4] or "") if match else None)
    column = 2 + max(len(line) for line, comment in zip(lines, comments, strict=True) if comment)
    new = [
        line if comment is None else f"{line:{column}}{comment}".rstrip() + "\n"
        for line, comment in zip(lines, comments, strict=True)
    ]
    return "".join(difflib.unified_diff(text.splitlines(keepends=True), new, f"a/{COSTS}", f"b/{COSTS}"))


def number(value: float) -> str:
    """Format with three significant digits."""
    return np.format_float_positional(float(f"{value:.3g}"), trim="-")


class Program:
    """The cost model, compiled into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "plan_costs"
        cuda = (ROOT / COSTS).parent
        compiler = os.environ.get("CXX", "").split() or ["g++"]
        files = [str(Path(__file__).with_name("plan_costs.cpp")), str(cuda / "planner.cpp")]
        try:
            subprocess.run(
                [*compiler, "-std=c++17", "-O1", f"-I{cuda}", *files, "-o", str(self.path)],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"the kernels' cost model is C++, and {compiler[0]} (CXX) does not start: {error}."
            ) from error
        except subprocess.CalledProcessError as error:
            why = (error.stderr.splitlines() or [f"{compiler[0]} ended with status {error.returncode}"])[0]
            raise UserError(f"the kernels' cost model does not compile: {why}") from error

    def microseconds(self, plans: list[str], sets: np.ndarray) -> np.ndarray:
        """``plans``: lines as plan_costs.cpp reads them, N of them; sets [K, P] of constants -> [K, N]."""
        rows = [" ".join(f"{value:.17g}" for value in values) for values in sets]
        text = "\n".join([f"{len(plans)} {len(sets)}", *plans, *rows])
        done = subprocess.run([str(self.path)], input=text, check=True, capture_output=True, text=True)
        return np.array([line.split() for line in done.stdout.splitlines()], dtype=float)


@dataclass(frozen=True)
class Fit:
    """The fitted parameters [P + 1], and how well the measurements determine them."""

    values: np.ndarray
    uncertainty: np.ndarray  # standard deviations of their logarithms; PRIOR where nothing was learnt
    sensitivity: np.ndarray  # the largest change of a prediction, in percent, for one percent of the parameter
    noise: float  # what remains, relative, as a standard deviation


def fit(predict: Predict, start: np.ndarray, measured: np.ndarray) -> Fit:
    """Least squares of log(predicted / measured), with a log-scale prior centred on ``start``.

    The weight of the prior depends on the noise, estimated from the residuals: with exact measurements it only keeps
    parameters that no measurement determines.
    """
    at, noise = np.zeros(len(start)), 0.03
    others = 0.5 * np.random.default_rng(0).standard_normal((_STARTS, len(at)))
    for starts in (others, [], []):
        problem = _Problem(predict, start, measured, noise)
        at = min((problem.descend(begin) for begin in (at, *starts)), key=problem.cost)
        left = np.log(predict(start * np.exp(at)[None])[0] / measured)
        learnt = len(at) - float((problem.uncertainty(at) ** 2).sum()) / PRIOR**2
        noise = max(LEAST_NOISE, float(np.sqrt((left**2).sum() / max(1.0, len(left) - learnt))))
    problem = _Problem(predict, start, measured, noise)
    return Fit(start * np.exp(at), problem.uncertainty(at), problem.sensitivity(at), noise)


class _Problem:
    def __init__(self, predict: Predict, start: np.ndarray, measured: np.ndarray, noise: float) -> None:
        self.predict, self.start, self.measured, self.noise = predict, start, measured, noise

    def residuals(self, at: np.ndarray) -> np.ndarray:
        """[K, P + 1] -> [K, N]."""
        return np.log(self.predict(self.start * np.exp(at)) / self.measured) / self.noise

    def costs(self, at: np.ndarray) -> np.ndarray:
        return (self.residuals(at) ** 2).sum(1) + ((at / PRIOR) ** 2).sum(1)

    def cost(self, at: Logs) -> float:
        return float(self.costs(at[None])[0])

    def jacobian(self, at: Logs, step: float = 1e-4) -> np.ndarray:
        """[N, P + 1]: of log predictions by log parameters."""
        shifts = step * np.eye(len(at))
        residuals = self.residuals(np.concatenate((at + shifts, at - shifts))) * self.noise
        return ((residuals[: len(at)] - residuals[len(at) :]) / (2 * step)).T

    def sensitivity(self, at: Logs) -> np.ndarray:
        return np.abs(self.jacobian(at)).max(0)

    def information(self, at: Logs) -> np.ndarray:
        jacobian = self.jacobian(at) / self.noise
        return jacobian.T @ jacobian + np.eye(len(at)) / PRIOR**2

    def uncertainty(self, at: Logs) -> np.ndarray:
        return np.sqrt(np.diag(np.linalg.inv(self.information(at))))

    def descend(self, at: Logs, most_steps: int = 60) -> Logs:
        """Levenberg-Marquardt; a step tries all dampings at once, since asking the program once is what takes time."""
        best = self.cost(at)
        for _ in range(most_steps):
            jacobian = self.jacobian(at) / self.noise
            gradient = jacobian.T @ self.residuals(at[None])[0] + at / PRIOR**2
            hessian = jacobian.T @ jacobian + np.eye(len(at)) / PRIOR**2
            damped = [hessian + damping * np.diag(np.diag(hessian)) for damping in _DAMPING]
            tried = np.array([at - np.clip(np.linalg.solve(each, gradient), -1, 1) for each in damped])
            costs = self.costs(tried)
            if not costs.min() < best * (1 - 1e-6):
                break
            at, best = tried[costs.argmin()], float(costs.min())
        return at
