"""``prnn-report``: what it makes, where, and what a person who errs is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from prnn.report import help_text, main, parse
from tests.reporting.conftest import trained_at

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "task" / "a"
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(trained_at(step)) + "\n" for step in (1, 2)))
    return path


def test_the_page_of_one_run_lies_in_it_and_that_of_several_does_not(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run.parents[1] / "latest").symlink_to(run)
    assert main(["run=latest"]) == 0
    assert capsys.readouterr() == (f"{run}/report.html\n", "")
    assert "task/a" in (run / "report.html").read_text()
    other = run.with_name("b")
    other.mkdir()
    (other / "metrics.jsonl").touch()
    assert main([f"run={run}", f"run={other}"]) == 0
    assert "task/b" in Path("report.html").read_text()
    assert main([f"run={run.parent}", "out=all.html"]) == 0
    assert Path("all.html").read_text() == Path("report.html").read_text()


def test_as_a_command(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prnn.report", f"run={run}", "to=spec"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["project"] == "prnn"


@pytest.mark.parametrize(("where", "status"), [("{run}", 0), ("nowhere", 2)])
def test_torch_is_not_imported(run: Path, where: str, status: int) -> None:
    code = "import sys; sys.modules['torch'] = None; from prnn.report import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, f"run={where.format(run=run)}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr


def test_a_watched_page_is_served_until_ctrl_c(run: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from prnn.report import main; sys.exit(main(sys.argv[1:]))"
    serving = subprocess.Popen(
        [sys.executable, "-c", code, f"run={run}", "watch=true"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert "task/a" in answer.read().decode()
        port = url.rstrip("/").rpartition(":")[2]
        assert main([f"run={run}", "watch=true", f"port={port}"]) == 2
        serving.send_signal(signal.SIGINT)
        _, errors = serving.communicate(timeout=30)
    finally:
        serving.kill()
    assert (serving.returncode, errors) == (130, "prnn: the page is served until Ctrl-C.\n")


def test_the_specification_goes_to_a_file(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([f"run={run}", "to=spec", "out=spec.json", "project=p", "entity=e"]) == 0
    found = json.loads(Path("spec.json").read_text())
    assert (found["project"], found["entity"]) == ("p", "e")
    assert capsys.readouterr().out == "spec.json\n"


def test_the_record_is_replayed_for_each_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    assert main([f"run={run}", "to=tensorboard"]) == 0
    assert "2 records of task/a" in capsys.readouterr().out and list((run / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "run must be given: a run directory, or run=latest."),
        (["latest"], "'latest' is not KEY=VALUE, such as run=latest; --help lists the settings."),
        (["rum=latest"], "rum is not a setting of prnn-report; did you mean run?"),
        (["run="], "run= is empty: give it a value, or leave it out."),
        (["run=a", "to=html"], "to=html must be one of page, tensorboard, wandb, spec, workspace, report."),
        (["run=a", "to=page", "to=spec"], "to is given twice: only run may be given more than once."),
        (["run=a", "out=x", "to=wandb"], "out is not for to=wandb: it is for to=page, spec."),
        (["run=a", "project=x"], "project is not for to=page: it is for to=wandb, spec, workspace, report."),
        (["run=nowhere"], "there is no run 'nowhere': give a run directory, such as "
                          "runs/char_lm/2026-11-23_21-40-05, a part of its name, or latest."),
        (["run=latest"], "there is no run yet (runs/latest does not exist): give a run directory, such as "
                         "runs/char_lm/2026-11-23_21-40-05."),
        (["run=runs/task/a", "out=no/such/folder.html"],
         "no/such/folder.html cannot be used (No such file or directory): set another file with out=FILE."),
        (["run=runs/task/a", "out=runs"], "runs cannot be used (Is a directory): set another file with out=FILE."),
        (["run=a", "watch=perhaps"], "watch=perhaps must be true or false."),
        (["run=a", "watch=true", "port=70000"], "port=70000 must be a whole number from 1 to 65535."),
        (["run=a", "port=8000"], "port is for watch=true: without it, no page is served."),
        (["run=a", "watch=true", "out=x"], "out is not for watch=true, which serves the page and writes no file."),
        (["run=a", "watch=true", "to=spec"], "watch is not for to=spec: it is for to=page."),
        (["run=nowhere", "watch=true"], "there is no run 'nowhere': give a run directory, such as "
                                        "runs/char_lm/2026-11-23_21-40-05, a part of its name, or latest."),
        (["run=.git"], "there is no run '.git': give a run directory, such as runs/char_lm/2026-11-23_21-40-05, a "
                       "part of its name, or latest."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(
    run: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"prnn: {sentence}\n")


def test_help_names_every_setting_and_form(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == help_text() + "\n"
    for name in (
        "run",
        "to",
        "out",
        "watch",
        "port",
        "project",
        "entity",
        "page",
        "tensorboard",
        "wandb",
        "spec",
        "workspace",
        "report",
    ):
        assert f"\n  {name} " in help_text() or f"\n    {name} " in help_text(), name
    assert parse(["run=a", "run=b"]).run == ["a", "b"]
