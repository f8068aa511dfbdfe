"""Text on its way to a terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.terminal import Patient, Wrapping, finish_streams, put, say, shown, visible, wrapped

ROOT = Path(__file__).resolve().parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)


def test_what_a_terminal_obeys_is_written_out() -> None:
    assert visible("\x1b]0;x\x07\r\x7f") == "␛]0;x␇␍␡"
    assert visible("\x9b \u202e \u2066 \u200f \u061c \udc9b") == r"\u009b \u202e \u2066 \u200f \u061c \udc9b"
    assert visible("a\tb\nπ 步骤 é 👩‍🚀") == "a\tb\nπ 步骤 é 👩‍🚀"
    codes = [chr(code) for code in range(0x110000)]
    assert len([each for each in codes if visible(each) != each]) == 30 + 1 + 32 + 3 + 7 + 4 + 2048


def test_data_is_as_it_is_into_a_pipe_and_visible_on_a_terminal() -> None:
    assert shown("\x1b", io.StringIO()) == "\x1b" and shown("\x1b", Terminal()) == "␛"
    said = io.StringIO()
    say("\x1b", said)
    assert said.getvalue() == "␛\n"  # a message is for a person


@pytest.mark.parametrize(("encoding", "errors"), [("ascii", "strict"), ("ascii", "surrogateescape")])
def test_a_character_that_the_encoding_lacks_becomes_a_question_mark(encoding: str, errors: str) -> None:
    out = stream(encoding, errors)
    Patient(out).write("π \udc9b é")
    assert out.buffer.getvalue() == b"? ? ?"  # type: ignore[attr-defined]
    out = stream("latin-1")
    say("π é", out)
    assert out.buffer.getvalue() == b"? \xe9\n"  # type: ignore[attr-defined]


def test_a_full_disk_takes_no_message_and_the_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        Patient(full).write("x" * 100_000)
        say("x", full)
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(UserError, match=r"^the output cannot be written \(No space left on device\)"):
            put("x")
        full.write("goes nowhere")
        finish_streams()


def test_a_closed_stream_takes_everything_and_no_file_takes_its_number(tmp_path: Path) -> None:
    program = (
        "import os, sys; from prnn.terminal import prepare_streams; prepare_streams(); "
        "assert all(os.path.samestat(os.fstat(i), os.stat(os.devnull)) for i in range(3)); "
        "print('x'); print('x', file=sys.stderr); assert sys.stdin.read() == ''; "
        "assert os.open('/', os.O_RDONLY) > 2; os._exit(7)"
    )
    command = f'{sys.executable} -c "{program}" <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 7


@pytest.mark.parametrize(
    ("closed", "status", "said"),
    [(">/dev/full", 2, "prnn: the output cannot be written (No space left on device): "), ("<&- >&-", 0, "")],
)
def test_output_that_cannot_be_written_is_told(tmp_path: Path, closed: str, status: int, said: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "val", "step": 1, "loss": 2.0}\n')
    command = f"{sys.executable} -m prnn.report run=. {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=-1)
    assert done.returncode == status
    assert done.stderr.decode().startswith(said) and done.stderr.count(b"\n") == (status != 0)


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["latin-1", "C"],
)
def test_no_command_stumbles_over_a_name(tmp_path: Path, locale: dict[str, str]) -> None:
    run = tmp_path / "π\x9b\udcff"  # the last byte is no UTF-8
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"kind": "val", "step": 1, "loss": 2.0}\n7\n')
    done = subprocess.run(
        [sys.executable, "-m", "prnn.report", b"run=" + os.fsencode(run)],
        env={**os.environ, **locale, "PYTHONPATH": str(ROOT)}, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr and b"1 damaged line of" in done.stderr
    assert b"report.html" in done.stdout and b"?" in done.stdout
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "\x9b" not in page


def test_long_lines_are_wrapped_between_words_on_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "one two three four five six-seven eight\n\n  short line\n" + "x" * 30
    assert wrapped(text, io.StringIO()) == text
    lines = wrapped(text, Terminal()).split("\n")
    assert lines == ["one two three four", "five six-seven eight", "", "  short line", "x" * 20, "x" * 10]
    wrapping, plain = Wrapping(Terminal()), Wrapping(io.StringIO())
    pieces = ["one", " two", " three", " four", " five", ",", "\n", "six", " " + "y" * 18, " z"]
    assert "".join(map(plain, pieces)) == "".join(pieces)
    assert "".join(map(wrapping, pieces)) == "one two three four\nfive,\nsix\n" + "y" * 18 + " z"
