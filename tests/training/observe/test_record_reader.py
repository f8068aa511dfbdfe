"""Records read: what is none is left out and counted."""

import json

import pytest

from prnn.training.observe.record_reader import MOST_LINE_BYTES, Records, read_object, read_records
from prnn.training.observe.record_writer import rewind
from tests.training.test_loop import train

DAMAGED = [
    "7", "null", "[]", '"kind"', "{", "\0\0\0", "[" * 100_000, '{"a":' * 100_000, '{"kind": "val"}', '{"step": 1}',
    '{"kind": 7, "step": 1}', '{"kind": "val", "step": "1"}', '{"kind": "val", "step": true}',
    '{"kind": "val", "step": -1}', '{"kind": "val", "step": 1' + "0" * 400 + "}",
    '{"kind": "val", "step": 1' + "0" * 5000 + "}", '{"kind": "val", "step": 1, "figures": 7}',
    '{"kind": "sample", "step": 1, "text": 7}', '{"kind": "pictures", "step": 1, "files": ["a.png"]}',
    '{"kind": "pictures", "step": 1, "files": {"a": 7}}', '{"kind": "ranks", "step": 1, "ranks": {"rank": 0}}',
    '{"kind": "ranks", "step": 1, "ranks": [{"host": "a"}]}', '{"kind": "val", "step": 1, "x": [[[[[1]]]]]}',
]  # fmt: skip
GOOD = '{"kind": "val", "step": 1, "loss": 1.0}'


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_left_out_and_counted(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    records = Records(path)
    assert [record["loss"] for record in records] == [1.0, 1.0] and records.damaged == 1
    assert len(list(records)) == 2 and records.damaged == 1  # read again


def test_lines_that_are_no_text_or_have_no_end_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b"\xff\xfe\n" + b"x" * (MOST_LINE_BYTES * 2 + 5) + b"\n" + GOOD.encode() + b'\n{"kind": "val", "st'
    )
    records = Records(path)
    assert len(list(records)) == 1 and records.damaged == 2  # the last line is being written
    path.write_text(GOOD)
    assert len(list(records)) == 1 and records.damaged == 0
    assert read_records(tmp_path / "none") == []


def test_halves_of_characters_and_infinities_are_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "sample", "step": 1, "text": "\\udc9b \\uD83D\\uDE00", "loss": NaN, "\\ud800": -Infinity}\n'
    )
    assert read_records(path) == [{"kind": "sample", "step": 1, "text": "? 😀", "loss": None, "?": None}]


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"7", b"\xff", b'{"a": [[[[[]]]]]}', b"1" + b"0" * 5000])
def test_an_object_that_is_damaged_is_empty(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    assert read_object(tmp_path / "summary.json") == {} == read_object(tmp_path)
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    assert read_object(tmp_path / "summary.json") == {"steps": 3}


def test_a_run_with_a_damaged_record_goes_on_and_tells(tmp_path, capsys):
    train(tmp_path, max_steps=4, save_every=2)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    hostile = [*DAMAGED, '{"kind": "sample", "step": 1}', '{"kind": "sample", "step": 3, "text": "\\ud800"}']
    path.write_text("\n".join([lines[0], *hostile, *lines[1:]]) + "\n")
    told, damaged = rewind(tmp_path, 4)
    assert ("train", 4) in told and damaged == len(DAMAGED)
    assert path.read_text().splitlines() == [lines[0], *hostile[-2:], *lines[1:]]  # what is whole stays as it was
    assert json.loads(lines[0])["step"] == 1
    path.write_text("\n".join([lines[0], *hostile, *lines[1:]]) + "\n")
    train(tmp_path, resume=True, max_steps=6)
    assert f"{len(DAMAGED)} damaged lines of {path} are left out" in capsys.readouterr().out
