"""model.cell=module:name: a cell written in Python in training, sampling and resuming, and what is refused."""

import json
import sys
from pathlib import Path

import pytest

from prnn import sample
from prnn.training import checkpoint
from tests import warm
from tests.command.small import SMALL, runs
from tests.training.test_loop import assert_same_bits

CELLS = """
import prnn

@prnn.cell(gates=1, states=("h", "v"), params={"beta": 0.9})
def lif(gx, gh, state, p, inputs):
    v = p.beta.clamp(0, 1) * state.v + gx[0] + gh[0] - state.h
    return {"h": prnn.spike(v - 1.0), "v": v}

@prnn.cell(gates=1, recurrent="diagonal")
def alone(gx, gh, state, p, inputs):
    return {"h": (gx[0] + gh[0]).tanh()}

@prnn.cell(gates=1)
def branching(gx, gh, state, p, inputs):
    return {"h": gx[0] if gx[0].sum() > 0 else gh[0]}

number = 3
"""
MODULES = {
    "mine": CELLS,
    "raises": "def half(x):\n    return x / 0\n\nhalf(1)\n",
    "exits": "import sys\nsys.exit('no')\n",
    "decodes": "import json\njson.loads('x')\n",
    "unparsed": "def f(:\n",
    "needs": "import nowhere_to_be_found\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """The modules in the working directory, forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def record(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_cell_of_the_working_directory_is_trained_by_its_kernels(call):
    status, out, err = call("model.cell=mine:lif")
    assert (status, err) == (0, "")
    assert "Recurrent(lif, 128, 8), float32 on cpu: backend cpu (native kernels" in out
    [run] = runs()
    assert checkpoint.read(run).manifest["config"]["model"]["cell"] == "mine:lif"
    assert checkpoint.read(run).model_state["recurrent.beta_l0"].shape == (8,)
    symbols, E, H = len(set(Path("text.txt").read_text())), 128, 8
    products = E * H + H * H + H * symbols  # of the forward pass; the backward pass has two for each
    assert json.loads((run / "summary.json").read_text())["flops_per_token"] == 3 * 2 * products


@pytest.mark.parametrize(
    "model", [["model.cell=mine:lif"], ["model=slstm", "model.num_layers=2", "trainer.accumulate=2"]]
)
def test_a_resumed_run_has_the_bits_of_a_straight_one(call, model):
    """With carried states besides h: a run of six steps, and one of three, a resume and three."""
    model = [*model, "trainer.eval_every=2"]
    assert call(*model, "run_dir=straight")[0] == 0
    assert call(*model, "run_dir=cut", "trainer.max_steps=3")[0] == 0
    [rank] = checkpoint.read(Path("cut")).state["ranks"]
    names = {"h", "v"} if "model.cell=mine:lif" in model else {"h", "c", "n", "m"}
    assert all(part.keys() == names for part in rank["carried"])
    metrics = Path("cut/metrics.jsonl")  # without what ended the first part
    kept = [line for line in metrics.read_text().splitlines() if '"step": 3' not in line or '"train"' in line]
    metrics.write_text("\n".join(kept) + "\n")
    assert call("resume=cut", "trainer.max_steps=6", small=False)[0] == 0
    assert_same_bits(Path("straight"), Path("cut"))


def test_text_is_sampled_from_an_slstm(call, capsys):
    assert call("model=slstm", "model.hidden_size=8", "run_dir=run")[0] == 0
    texts = []
    for more in (["seed=1"], ["seed=1"], ["beam=3"], ["score=question"]):
        assert sample.main(["run=run", "prompt=to be", "length=12", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("to be") and len(texts[0]) == len("to be") + 12 + 1
    assert texts[2].startswith("to be") and "perplexity" in texts[3]


def test_a_run_whose_cell_has_gone_is_not_sampled(call, capsys):
    assert call("model.cell=mine:lif", "run_dir=run")[0] == 0
    Path("mine.py").unlink()
    del sys.modules["mine"]
    assert sample.main(["run=run", "prompt=to be"]) == 2
    assert "prnn: model.cell=mine:lif: there is no module 'mine' in the current directory" in capsys.readouterr().err


REFUSED = [
    (["model.cell=mine"], "model.cell=mine must be one of rnn_tanh, rnn_relu, gru, lstm, or module:name of a cell"),
    (["model.cell=mine:"], "model.cell=mine: must be one of"),
    (["model.cell='mine:lif x'"], "model.cell=mine:lif x must be one of"),
    (["model.cell=nowhere.cells:lif"], "model.cell=nowhere.cells:lif: there is no module 'nowhere' in the current dir"),
    (["model.cell=mine.cells:lif"], "model.cell=mine.cells:lif: there is no module 'mine.cells' in the current dir"),
    (["model.cell=mine:lfi"], "model.cell=mine:lfi: the module mine has no 'lfi'."),
    (["model.cell=mine:number"], "model.cell=mine:number is of type int, not a cell: expected what prnn.cell makes"),
    (["model.cell=raises:x"], "importing raises raised ZeroDivisionError (raises.py:2): division by zero."),
    (["model.cell=exits:x"], "importing exits raised SystemExit (exits.py:2): no."),
    (["model.cell=decodes:x"], "importing decodes raised JSONDecodeError (decodes.py:2): Expecting value"),
    (["model.cell=unparsed:x"], "importing unparsed raised SyntaxError"),
    (["model.cell=needs:x"], "importing needs raised ModuleNotFoundError (needs.py:1): No module named 'nowhere_to_be"),
    (["model.cell=prnn.cells:ctrnn"], "model.cell=prnn.cells:ctrnn takes noise at each step, which this task does not"),
    (["model.heads=2"], "model.heads=2 is for cells written in Python, not model.cell=lstm: set it to 1."),
    (["model=slstm", "model.heads=3"], "model.heads=3 must divide model.hidden_size=8."),
    (["model.cell=mine:alone", "model.heads=2"], "model.cell=mine:alone: heads=2 with hidden_size=8: expected 1, as"),
    (
        ["model=slstm", "model.init=identity"],
        "that of model.cell=prnn.cells:slstm with model.heads=4 is 32x2: set model.",
    ),
    (
        ["model.cell=mine:alone", "model.init=identity"],
        "model.init=identity is for cells with a square recurrent matrix",
    ),
    (["model.cell=mine:lif", "model.bias_hh=false"], "model.bias_hh=false is for built-in cells"),
    (["model.cell=mine:lif", "model.forget_bias=1"], "model.forget_bias=1.0 is for model.cell=lstm, not mine:lif"),
    (
        ["model.cell=mine:branching"],
        "model.cell=mine:branching: mine.py:15: a kernel, which computes each unit of each sample by itself, has",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_a_mistake_is_told_in_one_sentence_and_leaves_nothing(call, arguments, sentence):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("prnn: ") and err.count("\n") == 1 and sentence in err, err
    assert not [path for path in runs() if list(path.iterdir())]


@pytest.mark.parametrize(
    "task",
    [
        ["task=adding", "data.length=10", "data.epoch_sequences=100", "data.val_sequences=20"],
        ["task=stack_rnn", "task.memory=none", "task.test_size=3", "task.test_sequences=3"],
        ["task=irnn_mnist", "data.pool=2", "task.readout=sum"],
    ],
)
def test_other_tasks_take_one_too(call, task):
    """With the initialisation of the task's default model, where that is an IRNN."""
    more = ["model.cell=mine:lif", "model.hidden_size=8", "trainer.max_steps=2", "trainer.threads=1", "run_dir=run"]
    status, out, err = call(*task, *more, small=False)
    assert (status, err) == (0, "") and "on cpu: backend cpu (native kernels" in out
    weights = checkpoint.read(Path("run")).model_state
    assert ("stack_rnn" in task[0]) == bool(weights["recurrent.bias_ih_l0"].abs().max() > 0.02)
    assert weights["recurrent.beta_l0"].mean() == pytest.approx(0.9, abs=0.01)


def test_a_translation_takes_built_in_cells_alone(call):
    status, _, err = call("task=translation", "model.cell=mine:lif", "trainer.max_steps=1", small=False)
    assert status == 2 and "task=translation takes built-in cells alone" in err and err.count("\n") == 1


@pytest.mark.slow(seconds=15)
@pytest.mark.xdist_group("curves")
def test_two_processes_follow_the_curve_of_one(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    commands = [
        ([*SMALL, "model.cell=mine:lif", f"run_dir=of{size}"], environment)
        for size in (1, 2)
        for environment in warm.ranks(size)
    ]
    statuses, said = warm.run("prnn.train", commands, folder=tmp_path)
    assert statuses == [0, 0, 0], said
    alone, together = (
        {r["step"]: r["loss"] for r in record(tmp_path / f"of{size}") if r["kind"] == "train"} for size in "12"
    )
    assert len(alone) == 6 and together == pytest.approx(alone, rel=1e-4)
