"""Writes docs/torch_nn.md: what was tried with torch.nn's recurrent modules and with prnn's, and where they differ.

    python -m tests.torch_nn.page        runs the tests of this folder, half a minute

Every row of the tables is a test; the text above them stands here.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.common.markdown import table
from tests.torch_nn.differences import DIFFERENCES

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "torch_nn.md"
HEAD = """<!-- Written by `python -m tests.torch_nn.page`. -->
# In the place of torch.nn

`prnn.RNN`, `prnn.GRU` and `prnn.LSTM` are subclasses of torch.nn's, with the same arguments, parameters, `state_dict`
and initial values: `isinstance(module, torch.nn.LSTM)` holds, and so do RNNBase's attributes and helpers.

| you have | you write |
|---|---|
| your own code | `prnn.LSTM(...)` for `torch.nn.LSTM(...)` |
| a model | `prnn.convert(model)` |
| a program that builds its model itself | `with prnn.patch():` around the construction |

```python
import copy
import torch
import prnn

model = torch.nn.Sequential(torch.nn.LSTM(8, 16, num_layers=2, batch_first=True))
prnn.convert(model)  # in place: prints "replaced 0 (LSTM)", and what it left, with the reason
output, state = model(torch.randn(4, 25, 8))
print(prnn.explain(model[0], torch.randn(4, 25, 8)))  # "layer 0: cpu (native kernels ...)"

with prnn.patch():  # torch.nn.RNN, GRU and LSTM make prnn's modules
    other = torch.nn.GRU(8, 16)
assert isinstance(other, prnn.GRU) and isinstance(other, torch.nn.GRU)

prnn.convert(model, to="torch")  # the way back
```

`convert` changes the class of a module and nothing else: the module, its Parameters, hooks, parametrisations
(`weight_norm`), optimizer and place in the model stay, and a subclass of yours, whose `super().forward` is then prnn's.
`RNNCell`, `GRUCell` and `LSTMCell` are torch.nn's own in prnn too: one step has no weights to keep for the next, and
packing them costs what it saves. A call of one step with gradients runs torch.nn's cells inside prnn's layers.

| tool | with prnn's modules |
|---|---|
| `torch.compile` | one operator in the graph, `fullgraph=True` included; torch.nn's are left out of the graph |
| `torch.export` | dynamic T and B, strict and not; a saved program loads without prnn after `run_decompositions()` |
| `torch.onnx.export` | ONNX's RNN, GRU, LSTM of any T and B; `dynamo=False` without `lengths` and `resets` |
| `torch.jit.trace` | torch.nn's operators: the file loads without prnn; with `lengths` or `resets` it needs prnn |
| `torch.jit.script` | compiles torch.nn's module of the same parameters; a warning: the model holds it now |
| `torch.fx`, `quantize_fx` | a leaf, as torch.nn's are |
| `quantize_dynamic`, `prepare` | quantise layers that are converted back, by torch.nn's class, prnn's or name |
| `FlopCounterMode`, the profiler | count and show `prnn::layer` |
| `torch.func`, `vmap` | also where torch.nn has no rule: over samples, over a stack of models |

On a CPU the output may be modified in place before the backward pass, as that of torch.nn's RNN and GRU, and of LSTM
too: it shares its memory with what the backward pass reads, so that nothing is copied unless something is written
(`T*B*H` elements then, once).

A training loop of one's own gains by `prnn.keep_freed_memory()`, as `prnn-train` does: glibc then reuses a step's
memory instead of mapping it anew.

Twelve third-party programs were run before and after `convert` or `patch`: PyTorch Forecasting, GluonTS, Darts,
NeuralForecast, TorchRL, Stable-Baselines3, Stanza, Flair, SpeechBrain, Open-Unmix, EnCodec and Captum
([results](../benchmarks/results/zen3-2core/programs.md)). Calls of 1 to 8 steps are measured apart
([results](../benchmarks/results/zen3-2core/steps.md)).
"""


class Outcomes:
    """Counts what each test function gave with each library."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[tuple[str, str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            file, _, test = report.nodeid.rpartition("/")[2].partition("::")
            function, _, parameters = test.partition("[")
            library = parameters.partition("-")[0].rstrip("]")
            if report.when != "teardown":
                outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
                self.of.setdefault(f"{file}::{function}", Counter())[library, outcome] += 1


def functions(file: Path) -> list[str]:
    return re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)


def files() -> list[Path]:
    return [path for path in sorted(HERE.glob("test_*.py")) if path.name != "test_differences.py"]


def rows(file: Path, outcomes: Outcomes) -> Iterator[list[str]]:
    module = import_module(f"tests.torch_nn.{file.stem}")
    for name in functions(file):
        counts = outcomes.of[f"{file.name}::{name}"]
        text = " ".join((getattr(module, name).__doc__ or "").split())
        yield [f"`{name}`", text, result(counts, "torch"), result(counts, "prnn")]


def result(counts: Counter[tuple[str, str]], library: str) -> str:
    found = {outcome: count for (of, outcome), count in counts.items() if of == library}
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))


def page(outcomes: Outcomes) -> str:
    differences = (
        [each.topic, each.reason + (f" ({', '.join(f'`{test}`' for test in each.tests)})" if each.tests else "")]
        for each in DIFFERENCES
    )
    return "\n".join(_parts(differences, outcomes))


def _parts(differences: Iterable[list[str]], outcomes: Outcomes) -> Iterator[str]:
    yield HEAD
    yield "## Differences\n"
    yield table(["what", "how, and why"], differences) + "\n"
    yield "## What was tried\n"
    yield (
        "PyTorch's own tests of recurrent modules, written anew, each with torch.nn's modules first and then with "
        "prnn's (`tests/torch_nn`); passed and skipped cases of each. They run in CI.\n"
    )
    for file in files():
        summary = " ".join((import_module(f"tests.torch_nn.{file.stem}").__doc__ or "").split("\n\n")[0].split())
        yield f"### {file.stem.removeprefix('test_')}\n\n{summary}\n"
        yield table(["test", "what it checks", "torch.nn", "prnn"], rows(file, outcomes)) + "\n"


def main() -> int:
    outcomes = Outcomes()
    status = pytest.main([*map(str, files()), "-q", "-p", "no:cacheprovider"], plugins=[outcomes])
    if status:
        return int(status)
    PAGE.write_text(page(outcomes))
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
