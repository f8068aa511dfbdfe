"""What is printed to be typed: overrides and command lines, read back by the shell and by Hydra."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import command_line, config
from prnn.config import CONF
from prnn.errors import UserError
from prnn.training import run_dir

NAMES = [
    "mine", "runs/lr=0.1,h=16", "a b", " lead", "it's", 'q"q', "$5-$10", "${x}",
    "a\\${x}", "\\\\${x}${y}", "(x)", "[a]",
    "{a:1}", "-x", "é", "日本", "a\\", "a\\\\", "\\'", "'", '"', "a\nb", "a\tb",
    "\x1b[31m", "a\udcffb", "null", "007", "1e3",
    "true", "#", "!", "*", "&;|<>`", "choices(a,b)", "x:y", "./latest", "./~x", "./???",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_comes_back_through_hydra(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        written = command_line.override("run_dir", name)
        assert compose("train", [written]).run_dir == name
    assert command_line.text(command_line.parsed(written)) == name


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_come_back_through_a_shell(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w", encoding=encoding))  # noqa: SIM115, PTH123
    line = command_line.shell(*NAMES)
    assert line.isprintable()
    assert encoding == "utf-8" or line.isascii()
    sys.stderr.close()
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert [os.fsdecode(word) for word in said.split(b"\0")[:-1]] == NAMES


def test_plain_names_are_written_plainly():
    assert command_line.shell(command_line.override("resume", "runs/char_lm/2026-11-23_21-40-05")) == (
        "resume=runs/char_lm/2026-11-23_21-40-05"
    )


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (["python", "-m", "prnn.train"], ["python", "-m", "prnn.train"]),
        ([".venv/bin/python", "-X", "dev", "-m", "prnn.train"], [".venv/bin/python", "-X", "dev", "-m", "prnn.train"]),
        (["{bin}/python", "{bin}/prnn-train"], ["prnn-train"]),
        (["{other}/python", "{other}/prnn-train"], ["{other}/python", "{other}/prnn-train"]),
        (["/bin/sh", "{other}/prnn-train"], ["{other}/prnn-train"]),  # its own interpreter: its path was typed
    ],
)
def test_the_program_is_the_one_that_was_started(monkeypatch, tmp_path, before, expected):
    places = {name: tmp_path / name for name in ("bin", "other")}
    for folder in places.values():
        folder.mkdir()
        (folder / "prnn-train").write_text("#!/bin/sh\n")
        (folder / "prnn-train").chmod(0o755)
    monkeypatch.setenv("PATH", str(places["bin"]))
    monkeypatch.setattr(sys, "orig_argv", [word.format(**places) for word in before] + ["seed=2", "a b"])
    assert command_line.program(["seed=2", "a b"]) == [word.format(**places) for word in expected]
    assert command_line.program(["seed=3"]) == ["prnn-train"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b/runs/x", "runs/x"),
        ("/a/c", "../c"),
        ("/a/b/latest", "./latest"),
        ("/a/b/~x", "./~x"),
        ("/a/b/???", "./???"),
    ],
)
def test_a_run_is_named_as_it_is_found(path, name):
    assert run_dir.name_of(Path(path), Path("/a/b")) == name


@pytest.mark.parametrize("value", ["a=b,c", "(x", "it's", "a b$"])
def test_an_override_that_cannot_be_read_is_told_with_its_quotes(value):
    sentence = str(command_line.unreadable(f"run_dir={value}"))
    word = shlex.split(sentence.removesuffix(".").rpartition("the shell: ")[2])[0]
    assert command_line.parsed(word).value() == value


def test_several_values_are_no_name():
    with pytest.raises(UserError, match=r"'resume=a,b' gives several values: .* resume='\"a,b\"'; --multirun starts"):
        command_line.text(command_line.parsed("resume=a,b"))


@pytest.mark.parametrize(
    ("noted", "mended"),
    [
        ("data.path=${oc.env:X}/c", "data.path=${oc.env:X}/c"),
        ("logger.tags=[a,b]", "logger.tags=[a,b]"),
        ("~model", "~model"),
        ("data.path=/a,b=c/corpus.txt", 'data.path="/a,b=c/corpus.txt"'),
        ("data.path=/a,b/corpus.txt", 'data.path="/a,b/corpus.txt"'),
    ],
)
def test_notes_of_earlier_versions_with_resolved_values_are_read_as_texts(noted, mended):
    assert command_line.mended(noted) == mended


@pytest.mark.parametrize("value", ["${x}", "a\\${x}", "\\\\${x", "${a}${b}", "plain", 3, None, {"a": ["${x}", 1.5]}])
def test_a_resolved_value_is_no_interpolation_again(value):
    made = OmegaConf.create({"value": config.literal(value)})
    assert OmegaConf.to_container(made, resolve=True)["value"] == value
