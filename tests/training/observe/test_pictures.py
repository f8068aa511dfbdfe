"""Pictures of a run: drawn without formulas, no danger to the run, and read again only inside it."""

import os
import struct

import matplotlib
import pytest
from matplotlib.figure import Figure

from prnn.tasks.searching import heat_map
from prnn.training.observe import loggers, pictures
from prnn.training.observe.summary import plot_loss
from tests.training.test_loop import train

pytestmark = pytest.mark.plots


def titled(text):
    figure = Figure(figsize=(2, 1), layout="constrained")
    figure.subplots().set_title(text)
    return figure


@pytest.mark.parametrize("text", ["cost_$_and_$", "$x_{$", "\\frac", "$\\undefined$", "50 % #1 &"])
def test_no_text_is_a_formula(tmp_path, text, caplog):
    with matplotlib.rc_context({"text.usetex": True}):  # as a user's matplotlibrc may have it
        assert pictures.save(tmp_path, "title", lambda: titled(text)) and not caplog.messages


def test_words_of_a_corpus_are_labels_and_those_without_glyphs_are_told_once(tmp_path, caplog):
    import torch

    words = ["$", "a$b_{$", "\\", "步骤", "ก"]
    assert pictures.save(tmp_path, "attention", lambda: heat_map(torch.eye(5), words, words))
    assert [message for message in caplog.messages if "attention.png" not in message] == []
    assert len(caplog.messages) == 1 and "are boxes" in caplog.text


def test_a_run_in_a_directory_with_dollars_has_its_plot(tmp_path):
    run = tmp_path / "cost_$_and_$"
    train(run, max_steps=2)
    assert (run / "loss.png").is_file() and (run / "summary.json").is_file()


def test_a_picture_that_cannot_be_drawn_is_one_warning(tmp_path, caplog):
    def draw():
        raise RuntimeError("no font")

    assert not pictures.save(tmp_path, "line", draw)
    (tmp_path / "loss.png").mkdir()
    plot_loss(tmp_path, "title")
    assert len(caplog.messages) == 2 and "line.png cannot be written (RuntimeError: no font)" in caplog.text
    assert "loss.png cannot be written (Is a directory)" in caplog.text


def png(width, height):
    return struct.pack(">8sI4sII", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", width, height)


def test_a_record_leads_to_no_file_outside_the_run_and_to_none_that_fills_the_memory(tmp_path, monkeypatch, caplog):
    run, outside = tmp_path / "run", tmp_path / "secret.png"
    (run / "sub").mkdir(parents=True)
    for path in (run / "in.png", run / "sub" / "in.png", outside):
        path.write_bytes(png(10, 10))
    (run / "link.png").symlink_to(outside)
    (run / "loop.png").symlink_to("loop.png")
    (run / "inner.png").symlink_to("in.png")
    (run / "up").symlink_to(tmp_path)
    os.mkfifo(run / "pipe.png")
    (run / "wide.png").write_bytes(png(2**31, 2))
    (run / "empty.png").write_bytes(b"")
    (run / "none.png").write_bytes(png(0, 10))
    (run / "text.png").write_text("no picture, but long enough for a header")
    with (run / "long.png").open("wb") as file:
        file.write(png(10, 10))
        file.truncate(pictures.MOST_BYTES + 1)
    names = ["in.png", "sub/in.png", "inner.png", "../secret.png", str(outside), "link.png", "loop.png"]
    names += ["up/secret.png", "pipe.png", "wide.png", "empty.png", "none.png", "text.png", "long.png", "gone.png"]
    names += ["\0.png", "a" * 5000, ""]
    record = {"kind": "pictures", "step": 1, "files": {str(index): name for index, name in enumerate(names)}}
    assert set(pictures.existing(record, run)) == {"0", "1", "2"}
    assert len(caplog.messages) == len(names) - 4  # one is not there: it may have been deleted

    shown = []
    logger = object.__new__(loggers.WandbLogger)  # what W&B would be given
    monkeypatch.setattr(logger, "_run_dir", run, raising=False)
    monkeypatch.setattr(logger, "_image", shown.append, raising=False)
    monkeypatch.setattr(
        logger, "_run", type("Run", (), {"log": lambda *_, **__: None, "offline": False})(), raising=False
    )
    for name, value in {"_last": -1, "_tables": False, "_note": run / "wandb" / "last_step.txt"}.items():
        monkeypatch.setattr(logger, name, value, raising=False)
    logger.log(record)
    assert shown == [str(run / "in.png"), str(run / "sub" / "in.png"), str(run / "in.png")]
