"""Whatever happened to the newest checkpoint: it is not loaded, nothing in it is executed, the last good one is used,
and one sentence says so.
"""

import hashlib
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from prnn.training import checkpoint
from prnn.training.checkpoint import MANIFEST, STATE, WEIGHTS

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
            (victim / MANIFEST).write_text(json.dumps({**manifest, "checksum": checkpoint._checksum(manifest)}))

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
        MANIFEST, json.dumps({**EMPTY, "checksum": checkpoint._checksum(EMPTY)}).encode()
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
