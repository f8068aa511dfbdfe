"""Stands in for ``prnn.train``: what a seed does is read from ``script.json``; every call is noted in ``calls.jsonl``.

{"1": 0.5}            finishes with that validation loss, after three steps
{"1": "diverged"}     and "died", "killed", "mistake", "stopped" (told to by the sweep, which has got a Ctrl-C)
{"1": "until_sigterm"}  runs until SIGTERM, then writes a checkpoint; the file ``ready`` exists while it runs
{"1": ["died", 0.5]}  one after the other, from call to call
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn.config import CONF

SUMMARY = {
    "best_step": 3, "stopped_by": "max_steps", "steps": 3, "seconds": 2.0, "tokens_per_second": 30.0,
    "unit": "characters", "parameters": 7, "processes": 1, "threads": 1, "device": "cpu",
}  # fmt: skip


def main() -> int:
    arguments = dict(word.split("=", 1) for word in sys.argv[1:])
    with Path("calls.jsonl").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    run_dir = Path(arguments.get("run_dir") or arguments["resume"])
    run_dir.mkdir(parents=True, exist_ok=True)
    script = json.loads(Path("script.json").read_text())
    seed = run_dir.name.removeprefix("seed-")
    todo = script[seed]
    if isinstance(todo, list):
        todo, script[seed] = todo[0], todo[1:] if len(todo) > 2 else todo[1]
        Path("script.json").write_text(json.dumps(script))
    return perform(todo, run_dir)


def perform(todo: object, run_dir: Path) -> int:
    (run_dir / "metrics.jsonl").touch()
    if todo == "diverged":
        print("prnn: the loss is not finite at step 2 (loss nan): lower optimizer.lr.\nwandb: bye", flush=True)
        return 1
    if todo == "died":
        raise MemoryError("too little")
    if todo == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if todo == "mistake":
        print("prnn: trainer.batch_size=7 is odd.", flush=True)
        return 2
    if todo in ("stopped", "deaf"):
        return be_stopped(run_dir, deaf=todo == "deaf")
    if todo == "until_sigterm":
        return until_sigterm(run_dir)
    summary = {**SUMMARY, "best_val_loss": todo, "test": {"solved": 0.25}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return 0


def until_sigterm(run_dir: Path) -> int:
    """Save a checkpoint of 6 bytes at SIGTERM, with the settings that were given."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [each for each in sys.argv[1:] if not each.startswith("run_dir=")])
    (run_dir / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(cfg, run_dir / ".hydra" / "config.yaml")
    (run_dir / ".hydra" / "overrides.yaml").touch()
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    Path("ready").touch()
    began = time.monotonic()
    while not heard and time.monotonic() - began < 60:
        time.sleep(0.01)
    Path("ready").unlink()
    checkpoint = run_dir / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").write_text("abcdef")
    return 128 + signal.SIGTERM


def be_stopped(run_dir: Path, deaf: bool) -> int:
    """Let the sweep have its Ctrl-C, and wait for what it hands on: one signal, no more."""
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    (run_dir / "pid").write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGINT)
    while not heard:
        time.sleep(0.01)
    if deaf:
        os.kill(os.getppid(), signal.SIGINT)  # a second Ctrl-C, from somebody who will not wait
        time.sleep(60)
    time.sleep(0.5)
    assert len(heard) == 1
    (run_dir / "checkpoints" / "step_00000003").mkdir(parents=True)
    return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
