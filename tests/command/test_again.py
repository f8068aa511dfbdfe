"""The command line once more: resuming, restarts, and the jobs of a sweep."""

import errno
import json
import pickle
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prnn import job, sample
from prnn.training import checkpoint, disk, run_dir
from prnn.training.observe import run_state
from prnn.training.observe.record_reader import read_records
from tests.command.small import SMALL, runs

pytestmark = pytest.mark.slow(seconds=5)


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


@pytest.mark.parametrize("first", ["true", "false"])
def test_a_resume_does_not_change_which_biases_are_trained(call, first):
    other = {"true": "false", "false": "true"}[first]
    assert call(f"model.bias_hh={first}", "optimizer=sgd")[0] == 0  # whose state is empty: nothing in it tells
    status, _, err = call("resume=latest", f"model.bias_hh={other}", small=False)
    assert status == 2 and err.count("\n") == 1
    assert f"was trained with model.bias_hh={first}, not with {other}: restore the setting, or begin a new run" in err


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


def test_a_configuration_by_another_name_is_found_again(call):
    Path("mine").mkdir()
    Path("mine/other.yaml").write_text("defaults: [train, _self_]\noptimizer: {lr: 0.5}\n")
    assert call("run_dir=run", "--config-dir", "mine", "--config-name", "other")[0] == 0
    for steps in (7, 8):
        assert call("resume=run", f"trainer.max_steps={steps}", small=False)[0] == 0
        loaded = checkpoint.read("run")
        assert (loaded.step, loaded.manifest["config"]["optimizer"]["lr"]) == (steps, 0.5)
    assert run_dir.overrides(Path("run"))[0].count("mine") == 1
    assert call("resume=run", "trainer.max_steps=9", "--config-dir", "mine", small=False)[0] == 0
    assert checkpoint.read("run").manifest["config"]["optimizer"]["lr"] == 0.5
    Path("run/.hydra/hydra.yaml").write_text("hydra: 7")
    status, _, err = call("resume=run", "trainer.max_steps=10", small=False)
    assert status == 2 and "hydra.yaml is damaged: --config-name of the run cannot be read from it" in err


def test_an_environment_variable_that_is_gone_is_told(call, monkeypatch):
    monkeypatch.setenv("MY_NAME", "a")
    assert call("logger.name=${oc.env:MY_NAME}")[0] == 0
    monkeypatch.delenv("MY_NAME")
    status, _, err = call("resume=latest", small=False)
    assert status == 2
    assert err == "prnn: logger.name refers to the environment variable MY_NAME, which is not set.\n"


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_run_that_ended_before_its_first_checkpoint_starts_again(call, caplog, unfinished):
    assert call("run_dir=mine")[0] == 0
    before = read_records(Path("mine/metrics.jsonl"))
    weights = checkpoint.read("mine").model_state
    Path("mine/summary.json").unlink()
    shutil.rmtree("mine/checkpoints")
    if unfinished:
        Path("mine/checkpoints/.step_00000002.tmp").mkdir(parents=True)
    assert call("resume=mine", small=False)[0] == 0
    assert (
        "mine has no checkpoint yet: training starts at the first step; a copy of its record so far is metrics"
        in caplog.text
    )
    assert read_records(Path("mine/metrics.jsonl.other")) == before
    after = read_records(Path("mine/metrics.jsonl"))
    assert [(r["kind"], r["step"], r.get("loss")) for r in after] == [
        (r["kind"], r["step"], r.get("loss")) for r in before
    ]
    assert all(weights[name].equal(tensor) for name, tensor in checkpoint.read("mine").model_state.items())


@pytest.mark.parametrize("gone", ["all", "each", "unmounted", "of a finished run"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_over(call, gone):
    """Whose record says that there were some: it is longer than the way to the first."""
    assert call("run_dir=mine", "trainer.max_steps=6" if gone == "of a finished run" else "trainer.max_steps=9")[0] == 0
    if gone != "of a finished run":
        Path("mine/summary.json").unlink()
    Path("mine/checkpoints").rename("away")
    if gone == "each":
        Path("mine/checkpoints").mkdir()
    elif gone == "unmounted":
        Path("mine/checkpoints").symlink_to("/there/is/no/such/disk")
    record = Path("mine/metrics.jsonl").read_bytes()
    status, _, err = call("resume=mine", small=False)
    assert status == 2 and "mine holds no checkpoint" in err and Path("mine/checkpoints").exists() == (gone == "each")
    assert Path("mine/metrics.jsonl").read_bytes() == record


@pytest.mark.parametrize("count", ["x", "-1", "1.5"])
def test_a_restart_count_that_is_no_number_is_told(call, monkeypatch, count):
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    status, _, err = call()
    assert status == 2
    assert err.startswith(f"prnn: SLURM_RESTART_COUNT={count} must be an integer")
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
    status, out, err = call("--multirun", "model.hidden_size=-4,4", "trainer.max_steps=2")
    assert status == 2
    assert "model.hidden_size=-4" in err
    assert [line.split()[:4] for line in out.splitlines()[-2:]] == [
        ["0", "model.hidden_size=-4", "failed", "(model.hidden_size=-4"],
        ["1", "model.hidden_size=4", "done", "(max_steps)"],
    ]
    [sweep] = [path for path in Path("runs/multirun").iterdir() if path.is_dir()]
    assert checkpoint.read(sweep / "1").manifest["config"]["model"]["hidden_size"] == 4
    assert str(run_state.read(sweep / "0")).startswith("failed (model.hidden_size=-4 must be at least 1")
    assert "model.hidden_size=-4" in run_dir.overrides(sweep / "0")


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
    here = job._Command.job

    def sent(self, cfg):  # what submitit does: the command is sent away, its error comes back
        here(pickle.loads(pickle.dumps(self)), cfg)

    monkeypatch.setattr(job._Command, "job", sent)
    status, out, err = call("--multirun", "run_dir=sweep", "model.hidden_size=-4,4", "trainer.max_steps=2")
    assert status == 2
    assert "\n  0    model.hidden_size=-4  failed (model.hidden_size=-4 must be" in out  # from the directories
    assert "prnn: job 0 of the sweep: " in err and "model.hidden_size=-4" in err
    assert checkpoint.listing(Path("sweep/1"))


def test_a_command_can_be_sent_away_while_its_directory_is_locked(call):
    command = job._Command(["--multirun"], 0)
    command.lock = run_dir.Lock(Path("mine"))
    away = pickle.loads(pickle.dumps(command))
    assert (command.away, away.away, away.lock) == (False, True, None)
    command.lock.release()


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
    before, write_synced = (path / ".hydra" / "overrides.yaml").read_bytes(), disk.write_synced

    def full(target, content):
        if "overrides" not in target.name:
            return write_synced(target, content)
        target.write_bytes(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_synced", full)
        assert call("resume=latest", "trainer.max_steps=8", small=False)[0] == 2
    assert (path / ".hydra" / "overrides.yaml").read_bytes() == before


TYPED = [
    "model.embedding_size=${.hidden_size}",
    "logger.name=n${seed}",
    "+hydra.job.env_set.TAG='a=b'",
    "logger.group=${oc.env:TAG}",
    "logger.entity='\\${literally}'",
    "logger.tags=[a,'b, c','é\nf']",
    "logger.project='it\\'s'",
    "+trainer.max_seconds=1000",
    "~trainer.clip_norm",
    "optimizer.schedule={name:linear,final_factor:0.5}",
    "task.prompt=",
    "trainer.profile=null",
]


def test_overrides_are_noted_as_they_were_typed_and_resume_takes_them(call, monkeypatch):
    Path("a,b=c").mkdir()
    Path("text.txt").rename("a,b=c/text.txt")
    monkeypatch.setenv("DATA", "a,b=c")
    typed = [*(word for word in SMALL if "data.path" not in word), "data.path=${oc.env:DATA}/text.txt", *TYPED]
    assert call(*typed, small=False)[::2] == (0, "")
    [path] = runs()
    assert sorted(run_dir.overrides(path)) == sorted(typed)
    assert OmegaConf.to_container(OmegaConf.load(path / ".hydra/config.yaml"), resolve=False)["data"]["path"] == (
        "${oc.env:DATA}/text.txt"
    )
    assert call("resume=latest", "trainer.max_steps=8", "trainer.log_every=2", small=False)[::2] == (0, "")
    more = {"trainer.max_steps=8", "trainer.log_every=2"}
    assert set(typed) - {"trainer.max_steps=6", "trainer.log_every=1"} | more == set(run_dir.overrides(path)) - {
        "resume=latest"
    }
    saved = checkpoint.read(path).manifest["config"]
    assert saved["data"]["path"] == "a,b=c/text.txt" and saved["model"]["embedding_size"] == 8
    logger = [saved["logger"][key] for key in ("name", "group", "entity", "tags", "project")]
    assert logger == ["n1", "a=b", "${literally}", ["a", "b, c", "é\nf"], "it's"]
    assert sample.main([f"run={path}", "length=1"]) == 0


def test_the_jobs_of_a_sweep_note_interpolations(call):
    sweep = ("--multirun", "run_dir=sweep", "seed=1,2", "model.embedding_size=${.hidden_size}", "trainer.max_steps=2")
    assert call(*sweep)[0] == 0
    assert call("resume=sweep/1", "trainer.max_steps=3", small=False)[0] == 0
    assert OmegaConf.to_container(OmegaConf.load("sweep/1/.hydra/config.yaml"))["model"]["embedding_size"] == (
        "${.hidden_size}"
    )
    assert checkpoint.read(Path("sweep/1")).manifest["config"]["seed"] == 2


def test_a_restarted_job_with_interpolations_finds_its_run(call, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    call("logger.name=${.project}")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call("logger.name=${.project}")[0] == 0
    assert len(runs()) == 1


def test_a_run_whose_notes_an_earlier_version_has_resolved_goes_on(call):
    Path("a,b=c").mkdir()
    shutil.copy("text.txt", "a,b=c")
    assert call('data.path="a,b=c/text.txt"')[0] == 0
    [path] = runs()
    notes = path / ".hydra/overrides.yaml"
    notes.write_text(notes.read_text().replace('data.path="a,b=c/text.txt"', "data.path=a,b=c/text.txt"))
    assert "- data.path=a,b=c/text.txt" in notes.read_text()
    assert call("resume=latest", "trainer.max_steps=8", small=False)[::2] == (0, "")


def test_the_run_to_resume_may_be_an_interpolation(call, monkeypatch):
    assert call('run_dir="lr=0.1,h=16"')[0] == 0
    monkeypatch.setenv("EARLIER", "lr=0.1,h=16")
    assert call("resume=${oc.env:EARLIER}", "trainer.max_steps=8", small=False)[::2] == (0, "")
    assert checkpoint.read(Path("lr=0.1,h=16")).step == 8


@pytest.fixture
def stopped(monkeypatch):
    """Training ends as after a signal."""
    fit = job.fit
    monkeypatch.setattr(job, "fit", lambda *given, **named: replace(fit(*given, **named), signal=signal.SIGUSR1))


NAME = "runs/lr=0.1,h=16 (it's $5)"


@pytest.mark.parametrize("flags", [[], ["--config-dir=its own"]])
def test_what_is_told_after_a_signal_goes_on_with_the_run(call, stopped, flags):
    Path("its own").mkdir()
    status, _, err = call(
        f'run_dir="{NAME}"', "hydra.job.chdir=true", f"data.path={Path('text.txt').resolve()}", *flags
    )
    assert status == 128 + signal.SIGUSR1
    before, _, line = err.strip().partition("continue with: ")
    assert before == "prnn: stopped at step 6, with a checkpoint; "
    program, *words = shlex.split(line)
    assert (program, words[:-1]) == ("prnn-train", flags)
    assert call(*words, "trainer.max_steps=8", small=False)[0] == 128 + signal.SIGUSR1
    assert checkpoint.read(Path(NAME)).step == 8


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "0"}, "the same launcher goes on from it, with resume='a b' in place of its overrides"),
        (
            {"RANK": "0", "PRNN_RUN_DIR": "a b"},
            "a restart with PRNN_RUN_DIR='a b' goes on from it, and so does any job",
        ),
    ],
)
def test_under_a_launcher_what_goes_on_is_not_this_process(call, stopped, monkeypatch, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    err = call("run_dir='a b'")[2]
    assert sentence in err
    assert "continue with" not in err


def test_a_job_of_a_sweep_is_continued_alone(call, stopped):
    err = call("--multirun", "run_dir=sweep", "seed=1,2")[2]
    assert "continue this job of the sweep with: prnn-train resume=sweep/0" in err
