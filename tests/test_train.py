"""The command line: run directories, resuming, sweeps, and what a person who errs is told."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prnn import ops, train
from prnn.errors import UserError
from prnn.training import checkpoint, distributed, run_dir
from prnn.training.logging import read_records

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "data.path=text.txt", "task.bptt=10", "trainer.batch_size=4", "model.hidden_size=8", "model.num_layers=1",
    "trainer.max_steps=6", "trainer.eval_every=3", "trainer.checkpoint_every=3", "trainer.log_every=1",
    "trainer.threads=1",
]  # fmt: skip


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run ``prnn-train`` in an empty directory, in this process; gives the status, stdout and stderr."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main() sets it
    Path("text.txt").write_text("to be or not to be, that is the question. " * 100)

    def run(*arguments, small=True):
        monkeypatch.setattr(sys, "argv", ["prnn-train", *(SMALL if small else []), *arguments])
        status = train.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def runs():
    return sorted(path for path in Path("runs").glob("*/*") if not path.is_symlink() and path.parent.name != "latest")


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
    assert "validation loss" in out
    assert json.loads((path / "summary.json").read_text())["stopped_by"] == "max_steps"
    assert checkpoint.read(path).manifest["config"]["task"]["name"] == "char_lm"


def test_resume_takes_the_earlier_overrides_and_the_new_ones_on_top(call):
    call()
    status, _, err = call("resume=latest", "trainer.max_steps=8", small=False)
    assert (status, err) == (0, "")
    [path] = runs()
    loaded = checkpoint.read(path)
    assert loaded.step == 8
    assert loaded.manifest["config"]["model"]["hidden_size"] == 8
    keys = [override.partition("=")[0] for override in run_dir.overrides(path)]
    assert len(keys) == len(set(keys))
    assert [r["step"] for r in read_records(path / "metrics.jsonl") if r["kind"] == "train"] == list(range(1, 9))


def test_a_refused_resume_leaves_the_run_as_it_was(call):
    call()
    [path] = runs()
    before = (path / ".hydra" / "overrides.yaml").read_text()
    status, out, err = call("resume=latest", "model.hidden_size=9", small=False)
    assert (status, out) == (2, "")
    assert err.startswith("prnn: the checkpoint ")
    assert "model.hidden_size=8 (this job asks for 9)" in err
    assert err.count("\n") == 1
    assert (path / ".hydra" / "overrides.yaml").read_text() == before
    assert call("resume=latest", small=False)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["task=nonsense"], "there is no task=nonsense: the known ones are .*char_lm"),
        (["task.name=nonsense"], "there is no task 'nonsense': the known tasks are adding, char_lm"),
        (["model=nonsense"], "there is no model=nonsense: the known ones are .*lstm"),
        (["model.hiden_size=3"], "model.hiden_size is not a setting; did you mean model.hidden_size?"),
        (["+model.width=3"], "model.width is not a setting"),
        (["nonsense=3"], "nonsense is not a setting"),
        (["nonsense"], "'nonsense' cannot be read: write it as KEY=VALUE"),
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


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_runs_that_is_no_directory_is_told(call, kind):
    Path("runs").write_text("") if kind == "file" else Path("runs").symlink_to("nowhere")
    status, out, err = call()
    assert (status, out) == (2, "")
    assert err.startswith("prnn: runs") and "cannot be used" in err and "set run_dir" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("where", ["run_dir.write_synced", "reporter.rewind", "reporter.Record", "reporter.Console"])
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
    for world, kind in ((distributed.World(), UserError), (distributed.World(size=2), distributed.AgreedError)):
        with pytest.raises(kind, match="/nowhere/x cannot be used .No such file or directory.: .*set run_dir"):
            world.on_main(lambda: Path("/nowhere/x").write_text(""))


def test_training_does_not_depend_on_the_link_to_the_latest_run(call):
    Path("runs/latest").mkdir(parents=True)
    status, out, _ = call()
    assert status == 0
    assert "runs/latest does not point to this run" in out


def test_a_record_without_a_checkpoint_is_kept_except_from_a_restart(call, monkeypatch):
    assert call("run_dir=mine")[0] == 0
    shutil.rmtree("mine/checkpoints")
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    status, _, err = call("run_dir=mine")
    assert status == 2
    assert "run_dir=mine already holds the record of a run, without a checkpoint" in err
    assert {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()} == before
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert call("run_dir=mine")[0] == 0


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

    monkeypatch.setattr(train, "fit", fit)
    assert call("run_dir=mine")[2] == "prnn: seen\n"
    assert not Path("mine").exists()


@pytest.mark.parametrize("count", ["x", "-1", "1.5"])
def test_a_restart_count_that_is_no_number_is_told(call, monkeypatch, count):
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    status, _, err = call()
    assert status == 2
    assert err.startswith(f"prnn: SLURM_RESTART_COUNT={count} must be an integer")
    assert err.count("\n") == 1


def test_a_misspelt_backend_is_told_before_anything_is_written(call, monkeypatch):
    monkeypatch.setenv("PRNN_BACKEND", "foo")
    assert call()[::2] == (2, "prnn: PRNN_BACKEND=foo must be one of reference, torch, cpu, cuda, or not set.\n")
    assert not runs()


def test_a_backend_that_cannot_run_the_model_is_told(call, monkeypatch):
    def refuse(*arguments, **settings):
        raise ops.BackendError("the backend 'cpu' was forced, but it does not run this")

    monkeypatch.setattr("prnn.tasks.char_lm.CharLM.loss", refuse)
    status, _, err = call()
    assert status == 2
    assert err.startswith("prnn: the backend 'cpu' was forced, but it does not run this: unset PRNN_BACKEND")
    assert err.count("\n") == 1


@pytest.mark.parametrize("scheduler", ["torchrun", "slurm"])
def test_a_restarted_job_finds_its_run_and_goes_on(call, monkeypatch, scheduler):
    monkeypatch.setenv(*{"torchrun": ("TORCHELASTIC_RUN_ID", "none"), "slurm": ("SLURM_JOB_ID", "12")}[scheduler])
    call("trainer.log_every=2")  # another command of the same job
    call()
    mine = Path("runs/latest").resolve()
    call("optimizer.lr=0.1")
    monkeypatch.setenv({"torchrun": "TORCHELASTIC_RESTART_COUNT", "slurm": "SLURM_RESTART_COUNT"}[scheduler], "1")
    assert call()[0] == 0
    assert Path("runs/latest").resolve() == mine
    assert len(runs()) == 3


def test_a_sweep_has_a_directory_for_each_job_and_goes_on_after_a_mistake(call):
    status, _, err = call("--multirun", "model.hidden_size=-4,4", "trainer.max_steps=2")
    assert status == 2
    assert "model.hidden_size=-4" in err
    [sweep] = [path for path in Path("runs/multirun").iterdir() if path.is_dir()]
    assert checkpoint.read(sweep / "1").manifest["config"]["model"]["hidden_size"] == 4
    assert not (sweep / "0").exists()


def test_the_directory_a_launcher_chose_is_used_and_its_run_continued(call, monkeypatch):
    monkeypatch.setenv("PRNN_RUN_DIR", "by/launcher")
    assert call("trainer.max_steps=2")[0] == 0
    assert call("trainer.max_steps=4")[0] == 0  # no count of restarts: torchrun's agent may be a new one
    steps = [json.loads(line) for line in Path("by/launcher/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "val"][-1] == 4
    assert sum(record["kind"] == "train" and record["step"] == 1 for record in steps) == 1
    assert call("run_dir=mine", "trainer.max_steps=2")[0] == 0  # the command line has the last word
    assert checkpoint.listing(Path("mine"))


def test_a_restarted_job_of_a_sweep_goes_on(call, monkeypatch):
    sweep = ("--multirun", "run_dir=sweep", "seed=1,2")
    assert call(*sweep, "trainer.max_steps=2")[0] == 0
    status, _, err = call(*sweep, "trainer.max_steps=4")
    assert status == 2 and "run_dir=sweep/0 already holds a run" in err.replace(str(Path.cwd()) + "/", "")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call(*sweep, "trainer.max_steps=4")[0] == 0
    assert [checkpoint.read(Path("sweep", job)).manifest["step"] for job in "01"] == [4, 4]


def test_a_mistake_in_a_job_of_another_process_comes_home(call, monkeypatch):
    here = train._Command.job

    def job(self, cfg):  # what submitit does: the command is sent away, its error comes back
        here(pickle.loads(pickle.dumps(self)), cfg)

    monkeypatch.setattr(train._Command, "job", job)
    status, _, err = call("--multirun", "run_dir=sweep", "model.hidden_size=-4,4", "trainer.max_steps=2")
    assert status == 2
    assert "prnn: job 0 of the sweep: " in err and "model.hidden_size=-4" in err
    assert checkpoint.listing(Path("sweep/1"))


def test_a_command_can_be_sent_away_while_its_directory_is_locked(call):
    command = train._Command(["--multirun"], 0)
    command.lock = run_dir.Lock(Path("mine"))
    away = pickle.loads(pickle.dumps(command))
    assert (command.away, away.away, away.lock) == (False, True, None)
    command.lock.release()


def test_a_signal_is_handed_on_to_whoever_waited_for_it(call, monkeypatch):
    def fit(*arguments, **settings):
        return SimpleNamespace(step=3, signal=int(signal.SIGUSR2))

    monkeypatch.setattr(train, "fit", fit)
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


@pytest.mark.parametrize("way", ["hydra.searchpath=[file://it's own]", "--config-dir=it's own"])
def test_a_resumed_run_finds_its_own_folder_of_configuration(call, tmp_path, monkeypatch, way):
    Path("it's own/experiment").mkdir(parents=True)
    Path("it's own/experiment/tiny.yaml").write_text("# @package _global_\nmodel:\n  hidden_size: 5\n")
    small = [word for word in SMALL if "hidden_size" not in word and "data.path" not in word]
    way = way.replace("[file://it's own]", '["file://it\'s own"]')
    text = tmp_path / "text.txt"
    assert call(*small, f"data.path={text}", way, "experiment=tiny", small=False)[::2] == (0, "")
    [path] = [path.resolve() for path in runs()]
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for steps in (8, 10):
        assert call(f"resume={path}", f"trainer.max_steps={steps}", small=False)[::2] == (0, "")
    assert checkpoint.read(path).step == 10
    assert checkpoint.read(path).manifest["config"]["model"]["hidden_size"] == 5


@pytest.mark.parametrize(
    "content", [b"", b"- a: [", b"a: 1\n", b"- {a: 1}\n", b"\xff\xfe", b"- '${x\n", b"just text\n"]
)
def test_damaged_notes_are_told_and_nothing_is_trained_on_defaults(call, content):
    call()
    [path] = runs()
    (path / ".hydra" / "overrides.yaml").write_bytes(content)
    status, _, err = call("resume=latest", "trainer.max_steps=8", small=False)
    assert status == 2
    assert ".hydra/overrides.yaml is damaged" in err
    assert err.count("\n") == 1
    assert checkpoint.read(path).step == 6


def test_notes_are_replaced_whole_or_not_at_all(call, monkeypatch):
    call()
    [path] = runs()
    before, write_synced = (path / ".hydra" / "overrides.yaml").read_bytes(), run_dir.write_synced

    def full(target, content):
        if "overrides" not in target.name:
            return write_synced(target, content)
        target.write_bytes(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_synced", full)
        assert call("resume=latest", "trainer.max_steps=8", small=False)[0] == 2
    assert (path / ".hydra" / "overrides.yaml").read_bytes() == before


def test_two_jobs_of_the_same_second_get_two_directories(tmp_path):
    names = {run_dir.claim(tmp_path).name for _ in range(3)}
    assert len(names) == 3


def start(folder, *command):
    """A command in a process group of its own, with its output in a file."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=env, stdout=said, stderr=said, start_new_session=True
        )


def wait_for(folder, text, seconds=60):
    end = time.monotonic() + seconds
    while text not in (folder / "said.txt").read_text():
        assert time.monotonic() < end, (folder / "said.txt").read_text()
        time.sleep(0.05)


def test_ctrl_c_saves_and_says_how_to_go_on(call, tmp_path):
    process = start(tmp_path, "prnn.train", *SMALL, "trainer.max_steps=100000", "trainer.checkpoint_every=0")
    wait_for(tmp_path, "step 3 ")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said
    step = checkpoint.read(Path("runs/latest")).step
    assert f"stopped at step {step}, with a checkpoint; continue with: prnn-train resume=runs/char_lm/" in said
    assert call("resume=latest", f"trainer.max_steps={step + 1}", small=False)[0] == 0


@pytest.mark.parametrize(("progress", "both"), [("auto", False), ("on", True)], ids=["stdout", "stdout and stderr"])
def test_training_goes_on_when_nobody_reads_any_more(call, tmp_path, progress, both):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1" if both else ""}
    command = [sys.executable, "-m", "prnn.train", *SMALL, f"trainer.progress={progress}"]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else said
        )
        process.stdout.close()
    assert process.wait(60) == 0
    assert (tmp_path / "said.txt").read_text() == ""
    assert checkpoint.read(Path("runs/latest")).step == 6


def test_torchrun_makes_one_run_directory(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "prnn.train"]
    process = start(tmp_path, *torchrun, *SMALL)
    assert process.wait(100) == 0, (tmp_path / "said.txt").read_text()
    assert len(list((tmp_path / "runs" / "char_lm").iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "said.txt", "runs"}
    assert (tmp_path / "said.txt").read_text().count("done at step 6") == 1
    assert checkpoint.read(tmp_path / "runs" / "latest").manifest["processes"] == 2
