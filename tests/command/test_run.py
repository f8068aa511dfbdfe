"""The command line: run directories, and what a person who errs is told."""

import errno
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prnn import job, ops
from prnn.errors import AgreedError, UserError
from prnn.ops import backends
from prnn.training import checkpoint, distributed, run_dir
from tests.command.small import SMALL, runs


@pytest.mark.plots
def test_a_run_has_one_directory_and_latest_points_to_it(call):
    status, out, err = call()
    assert (status, err) == (0, "")
    [path] = runs()
    assert path.parent == Path("runs/char_lm")
    assert Path("runs/latest").resolve() == path.resolve()
    assert {p.name for p in path.iterdir()} == {
        ".hydra", "metrics.jsonl", "checkpoints", "samples.txt", "loss.png", "summary.json", "train.log", "job.json",
        "heartbeat",
    }  # fmt: skip
    assert {p.name for p in (path / ".hydra").iterdir()} == {"config.yaml", "overrides.yaml", "hydra.yaml"}
    assert "validation loss" in out and out.count(": backend ") == 1  # the backend is printed once
    assert json.loads((path / "summary.json").read_text())["stopped_by"] == "max_steps"
    assert checkpoint.read(path).manifest["config"]["task"]["name"] == "char_lm"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["task=nonsense"], "there is no task=nonsense: the known ones are .*char_lm"),
        (["task.name=nonsense"], "there is no task 'nonsense': the known tasks are adding, char_lm"),
        (["model=nonsense"], "there is no model=nonsense: the known ones are .*lstm"),
        (["model.hiden_size=3"], "model.hiden_size is not a setting; did you mean model.hidden_size?"),
        (["+model.width=3"], "model.width is not a setting"),
        (["nonsense=3"], "nonsense is not a setting"),
        (["nonsense"], "'nonsense' cannot be parsed: write it as KEY=VALUE"),
        (["model.hidden_size=big"], "model.hidden_size=big must be an integer"),
        (["model.hidden_size=-1"], "model.hidden_size=-1 must be at least 1"),
        (["trainer.device=cuda"], "trainer.device=cuda, but torch sees no CUDA device"),
        (["trainer.batch_size=100000"], "trainer.batch_size"),
        (["data.path=missing.txt"], "missing.txt"),
        (["resume=missing"], "there is no run 'missing'"),
        (["resume=latest"], "there is no run yet"),
        (["resume=."], "it has no .hydra/overrides.yaml"),
        (["resume=.", "--multirun"], "resume continues one run, and --multirun starts several"),
        (["resume=.", "run_dir=x"], "leave run_dir out"),
        (["logger.wandb_mode=maybe"], "logger.wandb_mode=maybe must be one of"),
        (["task.btpt=3"], "task.btpt is not a setting; did you mean task.bptt?"),
        (["task=char_lm", "data.pth=x"], "data.pth is not a setting; did you mean data.path?"),
        (["run_dir=a=b"], "'run_dir=a=b' cannot be parsed: a string with such .* run_dir='\"a=b\"'"),
        (["run_dir=a,b"], "'run_dir=a,b' gives several values: .* run_dir='\"a,b\"'; --multirun starts a job for each"),
        (["resume=a,b"], "'resume=a,b' gives several values: .* resume='\"a,b\"'"),
        (["resume=[a]"], "'resume=[a]' gives several values: "),
        (["logger=-inf"], "Hydra makes no configuration of the overrides (Config group override must be a string"),
        (["trainer.threads=100000000"], "trainer.threads=100000000 must be at least 1 and at most 1,024."),
        (["model.num_layers=1000000000"], "model.num_layers=1000000000 must be at least 1 and at most 1,000."),
        (
            ["task.prompt=ROMEO"],
            "task.prompt='ROMEO' holds the character 'R' (U+0052, position 0), which does not occur",
        ),
        (["trainer.profile=7+1"], "trainer.profile=7+1 begins after the last step, which is 6"),
        (["run_dir=text.txt/x"], "text.txt/x cannot be used (Not a directory): .* set run_dir"),
        (["run_dir=/proc/xx"], "/proc/xx cannot be used (No such file or directory): .* set run_dir"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_and_leaves_nothing(call, arguments, sentence):
    if torch.cuda.is_available() and "trainer.device=cuda" in arguments:
        pytest.skip("this machine has the device")
    status, out, err = call(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("prnn: ")
    assert err.count("\n") == 1
    assert sentence.split(".*")[0] in err
    assert sentence.split(".*")[-1] in err
    assert not [path for path in runs() if list(path.iterdir())]


def test_a_run_dir_in_use_is_not_overwritten(call):
    assert call("run_dir=mine")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")}
    status, _, err = call("run_dir=mine")
    assert status == 2
    assert "run_dir=mine already holds a run: continue it with resume=mine, or choose another run_dir" in err
    assert {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")} == before


def test_a_run_dir_in_use_is_named_so_that_it_can_be_pasted(call):
    assert call('run_dir="a, b"')[0] == 0
    assert "continue it with resume='\"a, b\"', or choose" in call('run_dir="a, b"')[2]


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_runs_that_is_no_directory_is_told(call, kind):
    Path("runs").write_text("") if kind == "file" else Path("runs").symlink_to("nowhere")
    status, out, err = call()
    assert (status, out) == (2, "")
    assert err.startswith("prnn: runs") and "cannot be used" in err and "set run_dir" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "where",
    ["disk.write_synced", "observe.run_logger.rewind", "observe.run_logger.Record", "observe.run_logger.Console"],
)
def test_a_full_disk_at_the_start_is_told(call, monkeypatch, where):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"prnn.training.{where}", full)
    status, _, err = call()
    assert status == 2
    assert "prnn: the run directory or a file of the run cannot be used (No space left on device)" in err
    assert err.count("\n") == 1


def test_an_error_of_rank_0s_files_is_one_sentence_for_all_ranks(monkeypatch):
    monkeypatch.setattr(distributed.World, "broadcast", lambda self, value: value)
    for world, kind in ((distributed.World(), UserError), (distributed.World(size=2), AgreedError)):
        with pytest.raises(kind, match="/nowhere/x cannot be used .No such file or directory.: .*set run_dir"):
            world.on_main(lambda: Path("/nowhere/x").write_text(""))


def test_training_does_not_depend_on_the_link_to_the_latest_run(call):
    Path("runs/latest").mkdir(parents=True)
    status, out, _ = call()
    assert status == 0
    assert "runs/latest does not point to this run" in out


@pytest.mark.parametrize("arguments", [["resume=mine"], ["run_dir=mine"]])
def test_a_run_is_written_by_one_job_at_a_time(call, arguments):
    if "resume=mine" in arguments:
        call("run_dir=mine")
    small = not Path("mine").exists()
    other = run_dir.Lock(Path("mine"))
    before = {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")}
    status, _, err = call(*arguments, small=small)
    assert status == 2
    assert "mine is being written by another job" in err
    assert err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")} == before
    other.release()
    assert call(*arguments, small=small)[0] == 0
    assert not Path("mine/.lock").exists()


def test_the_lock_is_held_while_a_job_trains(call, monkeypatch):
    def fit(*arguments, **settings):
        with pytest.raises(UserError, match="is being written by another job"):
            run_dir.Lock(Path("mine"))
        raise UserError("seen")

    monkeypatch.setattr(job, "fit", fit)
    assert call("run_dir=mine")[2] == "prnn: seen\n"
    assert not Path("mine").exists()


def test_a_misspelt_backend_is_told_before_anything_is_written(call, monkeypatch):
    monkeypatch.setattr(backends, "_forced", "foo")  # as read from PRNN_BACKEND
    message = "prnn: PRNN_BACKEND=foo: set it to one of reference, torch, cpu, cuda, or unset it.\n"
    assert call()[::2] == (2, message)
    assert not runs()


def test_a_backend_that_cannot_run_the_model_is_told(call, monkeypatch):
    def refuse(*arguments, **settings):
        raise ops.BackendError("the backend 'cpu' was forced, but it does not run this")

    monkeypatch.setattr("prnn.tasks.char_lm.CharLM.loss", refuse)
    status, _, err = call()
    assert status == 2
    assert err.startswith("prnn: the backend 'cpu' was forced, but it does not run this: unset PRNN_BACKEND")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: unspecified launch failure"), RuntimeError("[gloo/x.cc] closed by peer")]
)
def test_a_gpu_that_is_lost_is_told_with_the_layer_that_lost_it(call, monkeypatch, error):
    fault = "prnn: lstm bfloat16 T=64 B=16 H=768, forward, grid regime, 96 blocks: block 7 waited more than 2 s"
    monkeypatch.setattr(ops.native, "cuda_fault", lambda: fault)

    def lose(*arguments, **settings):
        raise error

    monkeypatch.setattr("prnn.tasks.char_lm.CharLM.loss", lose)
    assert call()[::2] == (1, f"{fault}.\n")


def test_a_runtime_error_is_its_own_where_no_gpu_is_lost(call, monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr("prnn.tasks.char_lm.CharLM.loss", fail)
    with pytest.raises(RuntimeError, match="misaligned address"):
        call()


def test_a_wait_that_is_no_number_is_told(call, monkeypatch):
    def refuse(*arguments, **settings):
        raise ops.BackendError("PRNN_CUDA_WAIT_SECONDS=two: expected the seconds")

    monkeypatch.setattr("prnn.tasks.char_lm.CharLM.loss", refuse)
    assert call()[::2] == (2, "prnn: PRNN_CUDA_WAIT_SECONDS=two: expected the seconds.\n")


def test_a_signal_is_handed_on_to_whoever_waited_for_it(call, monkeypatch):
    def fit(*arguments, **settings):
        return SimpleNamespace(step=3, signal=int(signal.SIGUSR2))

    monkeypatch.setattr(job, "fit", fit)
    received = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        assert call()[0] == 128 + signal.SIGUSR2
        assert received == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_loss_that_is_not_finite_ends_with_status_1(call):
    status, _, err = call("optimizer.name=sgd", "optimizer.lr=1e38", "trainer.clip_norm=null", "trainer.max_steps=50")
    assert status == 1
    assert "is not finite at step" in err
    assert err.count("\n") == 1


def test_a_configuration_is_shown_without_making_directories(call, capsys):
    for arguments in (["--cfg", "job"], ["--cfg", "hydra", "--resolve"], ["--help"]):
        try:
            status = call(*arguments)[0]
        except SystemExit as stop:
            status = stop.code
        assert status == 0
    assert not Path("runs").exists()


def test_a_folder_of_ones_own_configuration(call):
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/tiny.yaml").write_text("# @package _global_\nmodel:\n  hidden_size: 5\n")
    small = [word for word in SMALL if "hidden_size" not in word]
    assert call(*small, f"hydra.searchpath=[file://{Path('own').resolve()}]", "experiment=tiny", small=False)[0] == 0
    assert checkpoint.read(Path("runs/latest")).manifest["config"]["model"]["hidden_size"] == 5


def test_two_jobs_of_the_same_second_get_two_directories(tmp_path):
    names = {run_dir.claim(tmp_path).name for _ in range(3)}
    assert len(names) == 3


def test_a_bug_before_hydra_is_not_blamed_on_the_overrides(call, monkeypatch):
    def fail(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr("prnn.training.run_dir.find", fail)
    with pytest.raises(KeyError, match="a bug"):
        call("resume=latest")
