"""Whatever happened to the newest checkpoint: it is not loaded, nothing in it is executed, the last good one is used,
and one sentence says so.
"""

import hashlib
import io
import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from prnn.errors import UserError
from prnn.training import checkpoint, fit
from prnn.training.checkpoint import MANIFEST, STATE, WEIGHTS
from prnn.training.checkpoint.directory import checksum
from prnn.training.distributed import World
from tests.training.toy_task import ToyTask, toy_config

GOOD, VICTIM = 10, 15


def make(run_dir, step):
    weights = {"w": torch.full((64,), float(step))}
    return checkpoint.save(run_dir, step, weights, {"step": step, "x": torch.arange(64)}, {"config": {}, "task": {}})


class Evil:
    """Leaves a file called ``owned`` in the current directory when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def truncate(share):
    return lambda data: data[: int(len(data) * share)] if share < 1 else data[:-1]


def flip(share):
    def flipped(data):
        place = min(int(len(data) * share), len(data) - 1)
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return flipped


def torch_saved(new_format):
    buffer = io.BytesIO()
    torch.save({"step": VICTIM, "evil": Evil()}, buffer, _use_new_zipfile_serialization=new_format)
    return buffer.getvalue()


def replace(name, content, signed=False):
    """Put ``content`` in the place of a file; ``signed``: the manifest vouches for it."""

    def damage(victim):
        (victim / name).write_bytes(content)
        if signed:
            manifest = json.loads((victim / MANIFEST).read_bytes())
            del manifest["checksum"]
            manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
            (victim / MANIFEST).write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))

    return damage


def change(name, function):
    return lambda victim: (victim / name).write_bytes(function((victim / name).read_bytes()))


def swap_with_older(*names):
    """Another checkpoint's files in the place of this one's; that one is gone."""

    def damage(victim):
        for name in names:
            shutil.copy(victim.with_name("step_00000005") / name, victim / name)

    return damage


def swap_files(victim):
    weights, state = (victim / WEIGHTS).read_bytes(), (victim / STATE).read_bytes()
    (victim / WEIGHTS).write_bytes(state)
    (victim / STATE).write_bytes(weights)


def make_folder(victim):
    (victim / WEIGHTS).unlink()
    (victim / WEIGHTS).mkdir()


EMPTY = {"format": checkpoint.FORMAT, "step": VICTIM}
DAMAGES = {
    **{
        f"{name} {what}": change(name, function)
        for name in (WEIGHTS, STATE, MANIFEST)
        for what, function in {
            "without its last byte": truncate(1), "cut in half": truncate(0.5), "of zero length": truncate(0),
            "with a bit flipped at its start": flip(0), "in its middle": flip(0.5), "at its end": flip(1),
        }.items()
    },
    **{f"{name} missing": lambda victim, name=name: (victim / name).unlink() for name in (WEIGHTS, STATE, MANIFEST)},
    **{f"{name} of another step": swap_with_older(name) for name in (WEIGHTS, STATE, MANIFEST)},
    "all of another step": swap_with_older(WEIGHTS, STATE, MANIFEST),
    "weights and state swapped": swap_files,
    "a folder for a file": make_folder,
    "state: a pickle with code": replace(STATE, pickle.dumps(Evil(), 2)),
    "state: a pickle with code, vouched for": replace(STATE, pickle.dumps(Evil(), 2), signed=True),
    "state: torch.save of code, vouched for": replace(STATE, torch_saved(True), signed=True),
    "state: torch's old format with code, vouched for": replace(STATE, torch_saved(False), signed=True),
    "state: empty, vouched for": replace(STATE, b"", signed=True),
    "weights: a pickle with code, vouched for": replace(WEIGHTS, pickle.dumps(Evil(), 2), signed=True),
    "manifest: a pickle with code": replace(MANIFEST, pickle.dumps(Evil(), 2)),
    "manifest: too deep": replace(MANIFEST, b"[" * 200_000),
    "manifest: of nothing": replace(
        MANIFEST, json.dumps({**EMPTY, "checksum": checksum(EMPTY)}).encode()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_it_is_not_loaded_nor_executed_and_the_last_good_one_is_used(tmp_path, monkeypatch, caplog, name):
    monkeypatch.chdir(tmp_path)
    _, _, victim = (make(tmp_path, step) for step in (5, GOOD, VICTIM))
    DAMAGES[name](victim)
    loaded = checkpoint.read(tmp_path)
    assert (loaded.step, loaded.state["step"]) == (GOOD, GOOD)
    assert torch.equal(loaded.model_state["w"], torch.full((64,), float(GOOD)))
    assert not Path("owned").exists()
    [message] = caplog.messages
    assert message.startswith(f"checkpoint step_{VICTIM:08d}: ")
    assert message.endswith(f"; using step_{GOOD:08d} instead")
    assert "\n" not in message
    if " " in name and name.split()[0] in (WEIGHTS, STATE, MANIFEST):
        assert name.split()[0] in message


def test_there_are_thirty_and_the_code_in_them_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(DAMAGES) >= 30
    pickle.loads(pickle.dumps(Evil(), 2))
    assert Path("owned").exists()


# What is written and sealed as it should be, and does not hold what it should


def seal(path):
    """Let the manifest vouch for the files as they are."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest.pop("checksum", None)
    for name in manifest["sha256"]:
        manifest["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / MANIFEST).write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))


def edit(name, function):
    """A damage: ``function`` changes what the file holds."""

    def damage(path):
        if name == MANIFEST:
            held = json.loads((path / name).read_bytes())
            function(held)
            (path / name).write_text(json.dumps(held))
        elif name == WEIGHTS:
            held = safetensors.torch.load_file(path / name)
            function(held)
            safetensors.torch.save_file(held, path / name)
        else:
            held = torch.load(path / name, weights_only=True)
            function(held)
            torch.save(held, path / name)
        seal(path)

    return damage


def put(*keys_and_value):
    """A change: the value at the end of the keys; ``...`` removes the entry."""
    *keys, last, value = keys_and_value

    def change(held):
        for key in keys:
            held = held[key]
        if value is ...:
            del held[last]
        else:
            held[last] = value

    return change


EDITS = {
    # name: (file, change, what the sentence says)
    "no position": (STATE, put("position", ...), "state lacks position"),
    "a negative position": (STATE, put("position", "index", -1), "epoch and index"),
    "a position of other keys": (STATE, put("position", "row", 1), "'row', which is not known"),
    "steps that are text": (STATE, put("progress", "step", "5"), "progress.step must be an integer, got '5'"),
    "another step": (STATE, put("progress", "step", 4), "progress.step must be 5, got 4"),
    "a best loss of NaN": (
        STATE,
        put("progress", "best_loss", math.nan),
        "must be a finite number, got nan",
    ),
    "no window's steps": (STATE, put("progress", "window", "steps", None), "window.steps must be an integer, got None"),
    "an unknown progress": (STATE, put("progress", "later", 1), "'later', which is not known"),
    "no processes": (STATE, put("ranks", []), "of at least one process"),
    "no random numbers": (STATE, put("ranks", 0, "rng", "torch", torch.zeros(3)), "torch's random state"),
    "Python's random numbers": (STATE, put("ranks", 0, "rng", "python", (3, (1, 2), None)), "Python's random state"),
    "a carried state of integers": (STATE, put("ranks", 0, "carried", [torch.ones(1, 8, 8, dtype=int)]), "carried"),
    "no learning rate": (STATE, put("optimizer", "param_groups", 0, "lr", ...), r"param_groups\[0\] lacks lr"),
    "no groups": (STATE, put("optimizer", "param_groups", []), "at least one parameter group"),
    "an average of another shape": (STATE, put("optimizer", "state", 0, "exp_avg", torch.ones(3)), "of shape"),
    "an average without memory of its own": (
        STATE,
        lambda held: held["optimizer"]["state"][0].update(
            exp_avg=torch.zeros(1).expand(held["optimizer"]["state"][0]["exp_avg"].shape)
        ),
        "without overlapping elements",
    ),
    "a negative view of an average": (
        STATE,
        lambda held: held["optimizer"]["state"][0].update(
            exp_avg=torch._neg_view(held["optimizer"]["state"][0]["exp_avg"])
        ),
        "without overlapping elements",
    ),
    "no average": (STATE, put("optimizer", "state", 1, "exp_avg", ...), "state.1 lacks exp_avg"),
    "a number for a state": (STATE, put("optimizer", "state", 1, 0), "state.1 must be a dictionary, got 0"),
    "a parameter too many": (STATE, put("optimizer", "state", 99, {}), "is of parameter 99"),
    "a scaler cut short": (STATE, put("scaler", {"scale": 1.0}), "GradScaler"),
    "an ID that is no text": (STATE, put("wandb_id", 7), "wandb_id must be a text, got 7"),
    "a list for the state": (STATE, lambda held: (held.clear(), held.update(a=1)), "state lacks"),
    "no weight": (WEIGHTS, put("head.bias", ...), "weights lacks head.bias"),
    "a weight of another shape": (WEIGHTS, put("head.bias", torch.ones(2)), r"must be of shape \[1\]"),
    "a weight of integers": (WEIGHTS, put("head.bias", torch.ones(1, dtype=int)), "must be of torch.float32"),
    "a weight of NaN": (WEIGHTS, put("head.bias", torch.full((1,), math.nan)), "must be of finite numbers"),
    "no configuration": (MANIFEST, put("config", ...), "manifest lacks config"),
    "a section that is a list": (MANIFEST, put("config", "model", [1]), "config.model must be a dictionary"),
    "no optimizer's name": (MANIFEST, put("config", "optimizer", "name", ...), "config.optimizer lacks name"),
    "no seed": (MANIFEST, put("config", "seed", None), "config.seed must be an integer, got None"),
    "other processes": (MANIFEST, put("processes", 2), "must be of 2 processes, got 1"),
    "no number of processes": (MANIFEST, put("processes", 0), "processes must be above 0, got 0"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of five steps with a checkpoint, in either format."""
    folder = tmp_path_factory.mktemp("runs")
    for layout in ("file", "sharded"):
        cfg = toy_config(max_steps=5, eval_every=0, checkpoint_format=layout)
        fit(cfg, ToyTask(cfg), World(), folder / layout)
    return folder


def resumed(run, layout="file", steps=6):
    cfg = toy_config(max_steps=steps, eval_every=0, checkpoint_format=layout)
    return fit(cfg, ToyTask(cfg), World(), run, checkpoint.read(run))


@pytest.mark.parametrize("name", EDITS)
def test_what_is_sealed_and_does_not_hold_what_it_should_is_told_in_a_sentence(tmp_path, runs, name):
    file, change, said = EDITS[name]
    run = shutil.copytree(runs / "file", tmp_path / "run")
    record = (run / "metrics.jsonl").read_bytes()
    edit(file, change)(run / "checkpoints" / "step_00000005")
    with pytest.raises(UserError, match=said) as raised:
        resumed(run)
    assert "step_00000005" in str(raised.value) and " damaged" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (run / "metrics.jsonl").read_bytes() == record


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("rank_00000.pt", put("optimizer", ...), "rank_00000 lacks optimizer"),
        ("rank_00000.pt", put("optimizer", "x", {}), "must be an integer, got 'x'"),
        ("rank_00000.pt", put("optimizer", 0, "step", ...), "state.0 lacks step"),
        ("rank_00000.pt", put("rng", ...), r"ranks\[0\] lacks rng"),
        (STATE, put("optimizer", 7), "state.optimizer must be a dictionary, got 7"),
        (MANIFEST, put("processes", 10**12), "no sha256 of rank_00001.pt"),
        (MANIFEST, put("processes", ...), "manifest lacks processes"),
    ],
)
def test_so_is_a_sharded_one(tmp_path, runs, file, change, said):
    run = shutil.copytree(runs / "sharded", tmp_path / "run")
    edit(file, change)(run / "checkpoints" / "step_00000005")
    with pytest.raises(UserError, match=said):
        resumed(run, "sharded")


@pytest.mark.parametrize("layout", ["file", "sharded"])
@pytest.mark.parametrize("name", [MANIFEST, STATE])
@pytest.mark.parametrize("what", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_file_without_an_end_is_not_read(tmp_path, runs, layout, name, what):
    run = shutil.copytree(runs / layout, tmp_path / "run")
    path = run / "checkpoints" / "step_00000005" / name
    path.unlink()
    what(path)
    with pytest.raises(UserError, match="is damaged .*not a regular file"):
        checkpoint.read(run)


@pytest.mark.parametrize("content", ["[" * 200_000, "\xff", "{}", None])
def test_a_mark_of_the_best_that_cannot_be_read_is_none(tmp_path, content):
    folder = checkpoint.folder(tmp_path)
    folder.mkdir()
    if content is None:
        os.mkfifo(folder / checkpoint.BEST)
    else:
        (folder / checkpoint.BEST).write_text(content)
    assert checkpoint.best_name(tmp_path) is None


def test_a_carried_state_of_other_sizes_is_refused_by_the_model(tmp_path, runs):
    run = shutil.copytree(runs / "file", tmp_path / "run")
    edit(STATE, put("ranks", 0, "carried", [torch.ones(1, 8, 5)]))(run / "checkpoints" / "step_00000005")
    with pytest.raises(UserError, match="is damaged: the carried state does not fit the model"):
        resumed(run)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path, runs):
    run = shutil.copytree(runs / "file", tmp_path / "run")
    path = run / "checkpoints" / "step_00000005"
    for keys in (("kept",), ("wandb_id",), ("fingerprint",), ("progress", "plateau"), ("ranks", 0, "hook")):
        edit(STATE, put(*keys, ...))(path)
    edit(MANIFEST, put("config", "distributed", ...))(path)
    edit(MANIFEST, put("val_loss", ...))(path)
    assert resumed(run).step == 6
