"""Run folders made up by hand, in ``runs/`` of an empty current folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prnn.training.checkpoint.directory import checksum
from prnn.training.observe import run_state

Make = Callable[..., Path]


def trained_at(step: int, **more: Any) -> dict[str, Any]:
    """A training record: 100 tokens and 0.5 seconds a step."""
    return {"kind": "train", "step": step, "loss": 3.0, "tokens": 100 * step, "seconds": 0.5 * step,
            "tokens_per_second": 200.0, **more}  # fmt: skip


def checkpoint(path: Path, step: int) -> Path:
    """An intact checkpoint of a thousand bytes and a manifest."""
    folder = path / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"x" * 1000)
    manifest = {"format": 1, "step": step, "sha256": {"state.pt": hashlib.sha256(b"x" * 1000).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": checksum(manifest)}))
    return folder


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a run: its last phase and reason, age in seconds, records, checkpoints, the best one, overrides, summary."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        phase: str = "finished",
        reason: str = "max_steps",
        *,
        age: float = 100.0,
        steps: int = 10,
        checkpoints: tuple[int, ...] = (),
        best: tuple[int, float] | None = None,
        overrides: tuple[str, ...] = (),
        summary: dict[str, Any] | None = None,
        records: tuple[dict[str, Any], ...] = (),
    ) -> Path:
        path = Path("runs", name)
        (path / ".hydra").mkdir(parents=True)
        (path / "heartbeat").mkdir()
        task = next((each[5:] for each in overrides if each.startswith("task=")), "char_lm")
        level = next((each[11:] for each in overrides if each.startswith("data.level=")), "char")
        config = f"data:\n  name: x\n  level: {level}\n"
        config += f"seed: 1\ntask:\n  bptt: 5\n  name: {task}\ntrainer:\n  name: x\n  max_steps: {steps}\n"
        (path / ".hydra" / "config.yaml").write_text(config)
        (path / ".hydra" / "overrides.yaml").write_text("".join(f"- {each}\n" for each in overrides) or "[]\n")
        written = [*records, *([trained_at(steps)] if steps else [])]
        (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in written))
        (path / "heartbeat" / "rank_0.json").write_bytes(run_state.beat(0, steps, phase, time.time() - age, reason))
        for step in checkpoints:
            checkpoint(path, step)
        if best is not None:
            content = {"name": f"step_{best[0]:08d}", "loss": best[1]}
            (path / "checkpoints").mkdir(exist_ok=True)
            (path / "checkpoints" / "best.json").write_text(json.dumps(content))
        if summary is not None:
            (path / "summary.json").write_text(json.dumps({"stopped_by": reason, "steps": steps} | summary))
        for file in ("metrics.jsonl", "summary.json", "heartbeat/rank_0.json"):
            if (path / file).exists():
                os.utime(path / file, (time.time() - age,) * 2)
        return path

    return make
