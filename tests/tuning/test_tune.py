"""``prnn-tune``: studies of a stand-in for prnn.train, and a real one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prnn import tune
from prnn.tuning import study, trial

optuna = pytest.importorskip("optuna")
FAKE = Path(__file__).with_name("fake_train.py")
LIMIT = "trainer.max_seconds=10"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run ``prnn-tune`` with the stand-in; gives the status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-S", str(FAKE)))
    monkeypatch.setattr(trial, "_POLL_SECONDS", 0.02)

    def run(*arguments):
        status = tune.main([*arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def opened(name="a", root=Path()):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = root / "runs/tune" / name / study.JOURNAL
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(path))))


def test_a_study_finds_the_best_and_goes_on(call):
    words = ["study=a", "prune=false", "optimizer.lr=interval(0.1,2)", LIMIT, "sampler_seed=1"]
    status, out, err = call(*words, "trials=5")
    assert (status, err) == (0, "") and out.count("validation loss") == 5 and "study a: 5 complete" in out
    best = opened().best_trial
    assert best.value == pytest.approx(float(f"{best.params['optimizer.lr']:.4g}") + 0.1)
    assert f"prnn-train {LIMIT} optimizer.lr={best.params['optimizer.lr']:.4g}" in out
    assert call(*words, "trials=5")[1].startswith("study a: 5 complete")  # there is nothing left to do
    status, out, _ = call(*words, "trials=8", "workers=3")
    assert status == 0 and "study a: 8 complete" in out
    assert sorted(path.name for path in Path("runs/tune/a").glob("0*")) == [f"{n:04d}" for n in range(8)]
    status, _, err = call(*words, "trials=9", "seed=3")
    assert status == 2 and "study=a was begun with other settings (trainer.max_seconds=10" in err


def test_a_half_line_of_a_killed_worker_is_cut_off(call):
    words = ["study=a", "optimizer.lr=interval(0.1,2)", LIMIT]
    call(*words, "trials=1")
    with Path("runs/tune/a", study.JOURNAL).open("a") as journal:
        journal.write('{"op_code": 4, "wor')
    status, out, err = call(*words, "trials=2")
    assert (status, err) == (0, "") and "study a: 2 complete" in out and len(opened().trials) == 2


def test_the_lock_of_the_journal_leads_to_it(call, monkeypatch):
    """From wherever it is read: Optuna releases no other lock of a worker that was killed."""
    links, link = [], os.symlink
    monkeypatch.setattr(os, "symlink", lambda source, target: (links.append(Path(source)), link(source, target)))
    assert call("study=a", "optimizer.lr=interval(0.1,2)", LIMIT, "trials=1")[0] == 0
    assert set(links) == {Path("runs/tune/a", study.JOURNAL).resolve()}


def test_an_unpromising_trial_is_pruned_at_a_validation(call):
    words = ["study=a", "optimizer.lr=interval(0.1,9)", LIMIT, "+pace=0.03"]
    call(*words, "trials=1")
    for lr in (0.1, 0.2, 0.3, 0.4, 9.0):
        opened().enqueue_trial({"optimizer.lr": lr})
    status, out, _ = call(*words, "trials=6")
    pruned = opened().trials[-1]
    last = max(pruned.intermediate_values)
    assert status == 0 and f"pruned at {last}0%  optimizer.lr=9" in out
    assert pruned.state.name == "PRUNED" and 2 <= last < 10  # after the warm-up, and before the end
    opened().enqueue_trial({"optimizer.lr": 9.0})
    assert "pruned" not in call(*words, "trials=7", "prune=false")[1].splitlines()[0]


def test_the_first_trial_has_the_values_of_a_run_without_the_study(call):
    call("study=a", "optimizer.lr=interval(0.001,9)", "trainer.batch_size=20,50", LIMIT, "trials=1")
    assert opened().trials[0].params == {"optimizer.lr": 0.002, "trainer.batch_size": 50}
    call("study=b", "optimizer.lr=interval(0.001,9)", "trainer.batch_size=20,30", LIMIT, "trials=1")
    assert opened("b").trials[0].params["optimizer.lr"] != 0.002  # one of them is not in the space


def test_the_values_of_a_run_without_the_study():
    words = ["model=gru,lstm", "optimizer.betas=[0.9,0.99],[0.9,0.999]", "trainer.batch_size=range(30,60,20)"]
    assert tune.read(words).defaults == {"model": "lstm", "optimizer.betas": "[0.9,0.999]", "trainer.batch_size": 50}
    assert tune.read(["model=gru,lstm", "experiment=char_rnn,torch_rnn"]).defaults is None


def test_failures_are_told_and_the_study_goes_on(call):
    status, out, err = call("study=a", "optimizer.lr=60,0.5", LIMIT, "trials=2", "sampler_seed=3")
    assert status == 0 and not err
    failed = [each for each in opened().trials if each.state.name == "FAIL"]
    assert all(each.user_attrs["failure"] == "the loss diverged." for each in failed)
    assert out.count("failed: the loss diverged.") == len(failed)


def test_a_study_whose_first_trial_is_refused_ends(call):
    status, _, err = call("study=a", "optimizer.lr=101,102", LIMIT, "trials=9")
    assert (status, err.splitlines()[-1]) == (2, "prnn: trial 0 was refused: optimizer.lr must be smaller.")
    assert len(opened().trials) == 1


def test_a_study_of_failures_ends(call):
    status, out, err = call("study=a,b", "optimizer.lr=101.5,102", LIMIT, "trials=9")  # whatever its name
    assert status == 2 and "trial 0 was refused: optimizer.lr must be smaller." in err
    status, out, err = call("study=b", "optimizer.lr=80,90", LIMIT, "trials=9", "seconds=10")  # an end of its own
    assert status == 2 and "3 trials failed one after the other, the last with: RuntimeError: unforeseen (" in err
    assert out.count("failed: RuntimeError: unforeseen") == 3 == len(opened("b").trials)


def test_a_trial_of_another_process_is_left_to_it(call, monkeypatch):
    words = ["study=a", "optimizer.lr=interval(0.1,1)", LIMIT]
    call(*words, "trials=1")
    for pid, taken in ((os.getppid(), False), (os.getpid(), True)):  # one lives; one of that number, before, does not
        here = opened()
        trial = here.ask()
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("pid", pid)
        trial.suggest_float("optimizer.lr", 0.1, 1)
        _, _, err = call(*words, "trials=1")
        assert ("was cut off, and is run again" in err) == taken

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert study._alive(1)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["trials=1"], "study must be given"),
        (["study=a/b", "trials=1"], "study must be given"),
        (["study=a"], "give trials or seconds"),
        (["study=a", "trials=0"], "trials=0 must be above 0"),
        (["study=a", "trials=1", "run_dir=x"], "run_dir=x: prnn-tune chooses the directory of each trial"),
        (["study=a", "trials=1", "--lr=3"], "'--lr=3' is not KEY=VALUE"),
        (["study=a", "trials=1", LIMIT], "nothing is to be tuned"),
        (["study=a", "trials=1", LIMIT, "modle=rnn,gru", "optimzer=adam"], "optimzer"),
        (["study=a", "trials=1", LIMIT, "seed=1,2", "storage=nonesuch://x"], "the storage nonesuch://x cannot be used"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(words, sentence, call):
    status, out, err = call(*words)
    assert status == 2 and sentence in err and err.count("\n") == 1 and not out


def test_a_worker_that_is_killed_leaves_its_trial_to_the_next(tmp_path):
    script = (
        "import sys\nfrom prnn import tune\nfrom prnn.tuning import trial\n"
        f"trial.COMMAND = (sys.executable, '-S', {str(FAKE)!r})\nsys.exit(tune.main(sys.argv[1:]))\n"
    )
    words = ["study=a", "optimizer.lr=interval(0.1,1)", LIMIT, "trials=1", "+slow=true"]

    def start():
        command = [sys.executable, "-c", script, *words]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **piped)

    def interrupted(number, run):
        process = start()
        while not (tmp_path / "runs/tune/a" / run / "waits").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        os.kill(process.pid, number)
        try:
            out, err = process.communicate(timeout=60)
            until = time.monotonic() + 60
            while sys.platform == "linux" and not (tmp_path / "runs/tune/a" / run / "stopped").exists():
                assert time.monotonic() < until, "the trial goes on without its worker"
                time.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, out, err

    assert interrupted(signal.SIGKILL, "0000")[0] == -signal.SIGKILL
    status, out, err = interrupted(signal.SIGINT, "0001")
    assert status == 130 and "trial 0 was cut off, and is run again" in err
    assert "  stopped  optimizer.lr" in out and "stopped; the same line goes on with the study" in err
    assert out.startswith("trial 1") and "study a: none" in out  # what was stopped has not failed
    found = opened(root=tmp_path).trials
    assert [each.state.name for each in found] == ["FAIL", "FAIL", "WAITING"]
    assert found[2].system_attrs["fixed_params"] == found[1].params == found[0].params


@pytest.mark.slow(seconds=25)
def test_two_trials_of_a_real_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 100)
    small = ["model.hidden_size=8", "model.num_layers=1", "task.bptt=10", "trainer.batch_size=4", "trainer.threads=1"]
    words = [*small, f"data.path={text}", "trainer.max_steps=6", "trainer.eval_every=3", "model=rnn,gru"]
    command = [sys.executable, "-m", "prnn.tune", "study=a", "trials=2", "workers=2", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "study a: 2 complete" in done.stdout, done.stderr
    for run in sorted((tmp_path / "runs/tune/a").glob("0*")):
        assert json.loads((run / "summary.json").read_text())["steps"] == 6
