"""``prnn.check``: right layers pass, and each planted mistake is found by the row that is there for it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prnn
from prnn import native
from prnn.check import __main__ as command
from prnn.errors import UserError
from prnn.ops import operator
from tests.nn import cells

with_kernels = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")


class Elman(nn.Module):
    """A right layer of one step after the other, whose parts the mistakes below replace."""

    bidirectional = False

    def __init__(self, input_size: int = 3, hidden_size: int = 4) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        directions = 2 if self.bidirectional else 1
        self.w = nn.Parameter(torch.randn(directions, input_size, hidden_size) * 0.5)
        self.u = nn.Parameter(torch.randn(directions, hidden_size, hidden_size) * 0.5)

    def forward(
        self, x: Tensor, state: Tensor | None = None, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        T, B, _ = x.shape
        directions = len(self.w)
        state = x.new_zeros(directions, B, self.hidden_size) if state is None else state
        padding = torch.zeros(T, B, 1, dtype=torch.bool)
        if lengths is not None:
            padding = torch.arange(T).view(T, 1, 1) >= lengths.view(1, B, 1)
            x = self.cleared(x, padding)
        outputs, finals = [], []
        for d in range(directions):
            h, steps = state[d], [x[:0, :, :1].expand(0, B, self.hidden_size)]
            for t in range(T) if d == 0 else reversed(range(T)):
                if resets is not None and d == 0:
                    h = self.reset(h, resets[t].unsqueeze(-1))
                new = self.tanh(x[t] @ self.w[d] + h @ self.recurrent(d, t, T))
                h = new if self.ignores_padding(d) else torch.where(padding[t], h, new)
                if resets is not None and d == 1:  # the boundary before step t, from the other side
                    h = self.reset(h, resets[t].unsqueeze(-1)) if t else h
                    steps.append(new.masked_fill(padding[t], 0).unsqueeze(0))
                else:
                    steps.append(h.masked_fill(padding[t], 0).unsqueeze(0))
            outputs.append(torch.cat(steps if d == 0 else steps[:1] + steps[:0:-1]))
            finals.append(h)
        return self.output(torch.cat(outputs, dim=-1)), torch.stack(finals)

    def cleared(self, x: Tensor, padding: Tensor) -> Tensor:
        return x.masked_fill(padding, 0)

    def reset(self, h: Tensor, reset: Tensor) -> Tensor:
        return h.masked_fill(reset, 0)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def recurrent(self, d: int, t: int, T: int) -> Tensor:
        return self.u[d]

    def ignores_padding(self, d: int) -> bool:
        return False

    def output(self, output: Tensor) -> Tensor:
        return output


class BothDirections(Elman):
    bidirectional = True


class _Off(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1.001


class _Tanh(torch.autograd.Function):
    """Its derivative is right, and that of its derivative is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.result = torch.tanh(x).detach()
        return ctx.result.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 - ctx.result**2)


class GradientOff(Elman):
    def output(self, output: Tensor) -> Tensor:
        return _Off.apply(output)


class StateNotReset(Elman):
    def reset(self, h: Tensor, reset: Tensor) -> Tensor:
        return h


class ResetCrossedByGradient(Elman):
    def reset(self, h: Tensor, reset: Tensor) -> Tensor:
        return h - (h * reset).detach()


class LastStepForgotten(Elman):
    def recurrent(self, d: int, t: int, T: int) -> Tensor:
        return self.u[d].detach() if t == T - 1 else self.u[d]


class DependsOnThreads(Elman):
    def output(self, output: Tensor) -> Tensor:
        return output + 1e-6 * torch.get_num_threads()


class PaddingLeaks(Elman):
    def cleared(self, x: Tensor, padding: Tensor) -> Tensor:
        return x * ~padding


class PartlyUnwritten(Elman):
    def output(self, output: Tensor) -> Tensor:
        buffer = torch.empty_like(output)
        written = output.shape[0] - (output.shape[0] == 9)  # a long sequence lacks the last step
        buffer[:written] = output[:written]
        return buffer


class ReverseFromPadding(BothDirections):
    def ignores_padding(self, d: int) -> bool:
        return d == 1

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x + 0.1)  # as with a bias: what stands in the padding moves the state


class WrongSecondOrder(Elman):
    def tanh(self, x: Tensor) -> Tensor:
        return _Tanh.apply(x)


class DiffersWhenSplit(Elman):
    def recurrent(self, d: int, t: int, T: int) -> Tensor:
        return self.u[d] * 1.01 if t else self.u[d]


class NotRepeatable(Elman):
    calls = 0

    def output(self, output: Tensor) -> Tensor:
        self.calls += 1
        return output + 1e-6 * (self.calls % 2)


MISTAKES: list[tuple[type[Elman], set[str], str]] = [
    (GradientOff, {"finite differences", "second order"}, "the gradient of w"),
    (StateNotReset, {"resets", "memory"}, "resets"),
    (ResetCrossedByGradient, {"resets"}, "the gradient of"),
    (LastStepForgotten, {"sizes", "finite differences"}, "the gradient of u"),
    (PaddingLeaks, {"padding"}, "is not finite"),
    (PartlyUnwritten, {"memory"}, "the output"),
    (ReverseFromPadding, {"lengths", "both directions"}, "lengths"),
    (WrongSecondOrder, {"second order"}, "the second-order gradient of"),
    (DiffersWhenSplit, {"split"}, "is off by"),
    (NotRepeatable, {"repeated"}, "the output"),
]


@pytest.mark.parametrize(("mistake", "rows", "said"), MISTAKES, ids=[each[0].__name__ for each in MISTAKES])
def test_a_planted_mistake_is_found_by_its_row(mistake: type[Elman], rows: set[str], said: str) -> None:
    report = prnn.check(mistake())
    found = rows & set(report.failed)
    assert found and not report.ok, str(report)
    assert any(said in report[name].words for name in found), str(report)


def test_only_the_row_of_the_mistake_fails() -> None:
    assert prnn.check(PaddingLeaks()).failed == ["padding"]
    assert prnn.check(WrongSecondOrder()).failed == ["second order"]


def test_threads_are_an_information_for_other_modules() -> None:
    chosen = ["sizes", "threads"]
    report = prnn.check(DependsOnThreads(), rows=chosen)
    row = report["threads"]
    assert row.result == "information" and row.error > 1e-7 and "the output" in row.words and report.ok
    assert prnn.check(DependsOnThreads(), threads=True, rows=chosen).failed == ["threads"]


@pytest.mark.parametrize("layer", [Elman(), BothDirections(), prnn.GRU(4, 9, batch_first=True), nn.LSTM])
def test_what_is_right_passes(layer: Any) -> None:
    report = prnn.check(layer)
    assert report.ok, str(report)
    for name in ("sizes", "losses", "chained", "memory", "magnitudes", "repeated", "second order"):
        assert report[name].passed, str(report)
    foreign = not isinstance(layer, prnn.GRU)
    assert (report["finite differences"].passed is True) == foreign
    if layer is nn.LSTM:
        assert report["resets"].result == "not supported" and "no argument resets" in report["resets"].words
        assert report["hidden sizes"].passed and report["lengths"].passed
    elif foreign:
        assert report["hidden sizes"].result == "not supported" and report["lengths"].passed


@with_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", ["lif", "rate"])
def test_cells_pass(cell: str, dtype: torch.dtype) -> None:
    report = cells.CELLS[cell].check(hidden_size=9, dtype=dtype)
    assert report.ok, str(report)
    assert "native kernels" in report.runs
    assert ("multiples of 1/8" in report.title) == (cell == "lif")
    missing = [row.name for row in report.rows if row.passed is None]
    assert missing == ["no steps", "finite differences"]


@with_kernels
def test_a_wrong_kernel_of_prnn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operator.IMPLEMENTATIONS["cpu"]

    def backward(*arguments: Any) -> Any:
        grads = right.backward(*arguments)
        return grads._replace(weight_hh=grads.weight_hh * 1.001)

    monkeypatch.setitem(operator.IMPLEMENTATIONS, "cpu", right._replace(backward=backward))
    with prnn.backend("cpu"):
        report = prnn.check(prnn.GRU(3, 5), rows=["sizes"])
    assert report.failed == ["sizes"] and "weight_hh_l0" in report["sizes"].words


class LateSpike(Elman):
    """One unit is the other way round after the first step."""

    def tanh(self, x: Tensor) -> Tensor:
        return prnn.spike(x)

    def output(self, output: Tensor) -> Tensor:
        sign, one = output.new_tensor([-1.0, 1.0, 1.0, 1.0]), output.new_tensor([1.0, 0.0, 0.0, 0.0])
        return torch.cat((output[:1], output[1:] * sign + one))


def test_differing_spikes_are_counted() -> None:
    report = prnn.check(LateSpike(), rows=["sizes", "finite differences"])
    assert "multiples of 1/8" in report.title and report.failed == ["sizes"]
    assert "spikes differ" in report["sizes"].words
    assert report["finite differences"].words == "the output is discontinuous"


def test_nothing_of_the_caller_is_changed() -> None:
    layer, threads, drawn = prnn.RNN(3, 4), torch.get_num_threads(), torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    prnn.check(layer, rows=["sizes", "threads", "memory"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), drawn)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_an_exception_fails_its_row_and_no_other() -> None:
    class Refuses(Elman):
        def reset(self, h: Tensor, reset: Tensor) -> Tensor:
            raise RuntimeError("not now")

    report = prnn.check(Refuses(), rows=["sizes", "resets"])
    assert report.failed == ["resets"] and "RuntimeError: not now" in report["resets"].words


def test_a_module_without_float64_is_not_ok() -> None:
    class Float32(Elman):
        def forward(self, x: Tensor, *args: Any) -> Any:  # type: ignore[override]
            if x.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return super().forward(x, *args)

    report = prnn.check(Float32(), rows=["sizes", "repeated"])
    assert not report.ok and not report.failed and report["repeated"].passed
    assert "its float64 copy does not run: float32 only" in report["sizes"].words


def test_what_cannot_be_checked_is_told() -> None:
    with pytest.raises(UserError, match=r"prnn.check takes a cell, a module or a class of modules, got 3"):
        prnn.check(3)
    with pytest.raises(UserError, match="takes torch.float32 or torch.bfloat16, got torch.float64"):
        prnn.check(Elman(), dtype=torch.float64)
    with pytest.raises(UserError, match="has no row 'sixes': expected one of sizes"):
        prnn.check(Elman(), rows=["sixes"])
    with pytest.raises(UserError, match="Linear has no attribute input_size"):
        prnn.check(nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"Linear\(input \[17, 5, 3\]\) does not give \(output, state\)"):
        prnn.check(nn.Linear(3, 3), input_size=3)


def test_the_name_is_the_module_and_the_function() -> None:
    import prnn.check

    assert sys.modules["prnn.check"] is prnn.check
    assert prnn.check(Elman(), rows=["sizes"]).ok and prnn.check.check(Elman(), rows=["sizes"]).ok


def test_the_table_and_the_exit_statuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.main(["torch.nn:RNN", "--hidden-size", "3", "--input-size", "2", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "RNN, I 2, H 3, float32"
    assert any(line.startswith("sizes ") and line.endswith("passed") for line in lines)
    assert any(line.startswith("resets ") and line.endswith("not supported") for line in lines)
    assert lines[-1].endswith("not supported or information") and ", 0 failed" in lines[-1]
    monkeypatch.setattr(nn, "RNN", PaddingLeaks)
    assert command.main(["torch.nn.RNN"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(["torch.nn:RNN", "--dtpye"])
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prnn.nn:GUR", "prnn: 'prnn.nn:GUR' cannot be checked: the module prnn.nn has no 'GUR'."),
        (
            "nowhere.cells:lif",
            "prnn: 'nowhere.cells:lif' cannot be checked: there is no module 'nowhere' in the current directory or "
            "elsewhere on Python's path (PYTHONPATH).",
        ),
        ("lif", "prnn: 'lif' names no cell or module: expected package.module:name."),
    ],
)
def test_an_unknown_name_is_one_sentence(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([name]) == 2
    assert capsys.readouterr().err.splitlines() == [said]


def test_the_command_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "prnn.check", "prnn.nn:GUR"], capture_output=True, text=True)
    assert (
        run.returncode == 2
        and run.stderr == "prnn: 'prnn.nn:GUR' cannot be checked: the module prnn.nn has no 'GUR'.\n"
    )
