"""Runs to show: made up here, and one that was trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prnn import train

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a run directory: its records, perhaps a torn last line, a summary, a configuration and overrides."""

    def write(name: str, records: list[Any], *, torn: str = "", summary: Any = None, config: str = "") -> Path:
        path = tmp_path / name
        (path / ".hydra").mkdir(parents=True)
        (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records) + torn)
        if summary is not None:
            (path / "summary.json").write_text(json.dumps(summary))
        if config:
            (path / ".hydra" / "config.yaml").write_text(config)
            (path / ".hydra" / "overrides.yaml").write_text("- model=gru\n")
        return path

    return write


def trained_at(step: int, **more: Any) -> dict[str, Any]:
    """A training record: 100 tokens and 0.5 seconds a step."""
    return {
        "kind": "train", "step": step, "epoch": 0, "loss": 4.0 - 0.01 * step, "lr": 0.002, "grad_norm": 0.5,
        "tokens": 100 * step, "seconds": 0.5 * step, "tokens_per_second": 200.0, "tokens_per_second_per_device": 200.0,
        "data_wait": 0.01, "step_ms": 500.0, "memory_mib": 321.0, **more,
    }  # fmt: skip


def ranks_at(step: int, count: int, slow: int) -> dict[str, Any]:
    """A record of ``count`` processes, of which ``slow`` takes 30 ms a step and the others about 10."""
    entries = []
    for rank in range(count):
        p50 = 30.0 if rank == slow else 10.0 + 0.01 * rank
        times = {"min": p50 - 1, "p50": p50, "p95": p50 + 5, "max": p50 + 20}
        entries.append(
            {
                "rank": rank,
                "host": f"node{rank // 4}",
                "step_ms": times,
                "data_wait": 0.25,
                "exposed_comm": None if rank == 0 else 0.125,
                "memory_mib": 100.0 + rank,
            }
        )
    return {"kind": "ranks", "step": step, "ranks": entries}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run directory of a character model after 6 steps, with a validation after 3; TensorBoard and W&B apart."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    overrides = [
        "data.path=text.txt", "task.bptt=10", "task.sample_length=30", "trainer.batch_size=4", "model.hidden_size=8",
        "model.num_layers=1", "trainer.max_steps=6", "trainer.eval_every=3", "trainer.log_every=1",
        "trainer.threads=1", "run_dir=runs/char_lm/tiny",
    ]  # fmt: skip
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HYDRA_FULL_ERROR", "0")  # main() sets it
        patch.setattr(sys, "argv", ["prnn-train", *overrides])
        assert train.main() == 0
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
    yield folder / "runs" / "char_lm" / "tiny"
