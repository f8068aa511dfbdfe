"""prnn-export: the model of a run."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from prnn import tasks, trained
from prnn.config import ModelConfig, TrainConfig
from prnn.data import parallel_corpora
from prnn.export_run import main
from prnn.tasks import adding, char_lm, decision, irnn_mnist, stack_rnn, translation
from prnn.tasks.decode import Decoding
from prnn.training import checkpoint


def saved(folder: Path, task, data, model: ModelConfig) -> Path:
    """A run with two checkpoints of an untrained model: step 1 is the best, step 2 the last."""
    folder.mkdir()
    cfg = TrainConfig(task=task, data=data)
    cfg.model = model
    cfg.trainer.batch_size, cfg.trainer.max_steps = 2, 2
    built = tasks.build(cfg)
    for step in (1, 2):
        torch.manual_seed(step)
        manifest = {"config": asdict(cfg), "task": built.state_dict()}
        path = checkpoint.save(folder, step, built.build_model().state_dict(), {"position": {}}, manifest)
        if step == 1:
            checkpoint.mark_best(folder, path, 1.0)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("ROMEO: and JULIET.\nOne says this,\n\nthe other that.\n" * 20)
    data = char_lm.DataConfig(path=str(folder / "text.txt"))
    return saved(folder / "run", char_lm.Config(bptt=5), data, ModelConfig(hidden_size=16, num_layers=2))


def test_a_language_model(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main([f"run={run_dir}", "which=best", f"out={tmp_path / 'out'}", "frames=20"]) == 0
    out, err = capsys.readouterr()
    assert "model.onnx: " in out and "largest error" in out and "comparing with the training code" in err
    _, task, model = trained.load(str(run_dir), "best")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    tokens = torch.tensor([task.vocabulary.encode("ROMEO: and").tolist()]).T
    names = [each.name for each in session.get_inputs()]
    states = [np.zeros((2, 1, 16), np.float32)] * 2
    logits, *_ = session.run(None, dict(zip(names, [tokens.numpy(), *states], strict=True)))
    with torch.no_grad():
        np.testing.assert_allclose(logits, model.eval()(tokens)[0], atol=1e-5)


TASKS = {
    "adding": (adding.Config, adding.DataConfig, ModelConfig(cell="rnn_tanh", hidden_size=8)),
    "decision": (decision.Config, decision.DataConfig, ModelConfig(cell="prnn.cells:ctrnn", hidden_size=8)),
    "irnn_mnist": (irnn_mnist.Config, irnn_mnist.DataConfig, ModelConfig(cell="rnn_relu", hidden_size=8)),
    "stack_rnn": (stack_rnn.Config, stack_rnn.DataConfig, ModelConfig(hidden_size=8)),
}


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("name", TASKS)
def test_tasks(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, data, model = TASKS[name]
    folder = saved(tmp_path / "run", config(), data(), model)
    assert main([f"run={folder}", "format=pt2", f"out={tmp_path / 'out'}"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["format=tflite"], "format=tflite must be one of onnx, pt2, aoti, c."),
        (["fromat=onnx"], "fromat is not a setting of prnn-export; did you mean format?"),
        (["frames=many"], "frames=many must be an integer."),
        (["which=first"], "which=first must be last or best."),
        (["run=a", "run=b"], "run is given twice: give one of them."),
        (["out="], "out must be given: the folder to make, as out=exported."),
        (["onnx"], "'onnx' is not KEY=VALUE, such as format=onnx; --help lists the settings."),
    ],
)
def test_wrong_settings(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [each.partition("=")[0] for each in arguments]
    assert main([*(f"{key}=x" for key in ("run", "out") if key not in keys), *arguments]) == 2
    assert capsys.readouterr().err == f"prnn: {words}\n"


def test_help_and_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "tolerance" in capsys.readouterr().out
    assert main([f"run={tmp_path / 'none'}", f"out={tmp_path / 'out'}"]) == 2
    assert "there is no run" in capsys.readouterr().err


def test_a_task_whose_model_is_more_than_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = parallel_corpora.DataConfig(train_size=20, dev_size=5, test_size=0)
    folder = saved(tmp_path / "run", translation.Config(), data, ModelConfig(hidden_size=8, embedding_size=4))
    assert main([f"run={folder}", f"out={tmp_path / 'out'}"]) == 2
    assert "task=translation, whose model is not one call of an input and a state" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_a_program_in_c_writes_text(level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("ROMEO: and JULIET.\nOne says this,\n\nthe other that, où ça?\n" * 20)
    data = char_lm.DataConfig(path=str(tmp_path / "text.txt"), level=level)
    run = saved(tmp_path / "run", char_lm.Config(bptt=5), data, ModelConfig(hidden_size=16, num_layers=2))
    out = tmp_path / "out"
    assert main([f"run={run}", "format=c", f"out={out}", "frames=20", "name=plays"]) == 0, capsys.readouterr().err
    subprocess.run(["make", "-s", "-C", str(out)], check=True)

    def written(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [out / "generate", *arguments], capture_output=True, text=True, check=False, errors="replace"
        )

    greedy = written("ROMEO", "8", "0").stdout
    _, task, model = trained.load(str(run), "last")
    expected = "".join(task.generate(model, torch.device("cpu"), "ROMEO", Decoding(8, greedy=True)))
    # C's rule for spaces between words is shorter.
    of = (lambda text: text.replace(" ", "").strip("\n")) if level == "word" else (lambda text: text.removesuffix("\n"))
    assert of(greedy) == of(f"ROMEO{expected}")
    assert written("ROMEO", "30", "1.0", "0", "3").stdout == written("ROMEO", "30", "1.0", "0", "3").stdout
    assert written("ROMEO", "30", "1.0", "0", "3").stdout != written("ROMEO", "30", "1.0", "0", "4").stdout
    if level == "char":
        assert written("€").returncode == 2 and "vocabulary" in written("€").stderr
    assert main([f"run={run}", "format=c", "weights=int8", f"out={tmp_path / 'int8'}", "frames=20"]) == 0
