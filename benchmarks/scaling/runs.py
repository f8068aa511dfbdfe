"""The measurements of the scaling study: trainings of 1 to N processes with torchrun, and their metrics.

For each task and number of processes n the contenders are interleaved, round by round, so that a slowdown of the
machine affects all of them:

    1               one process
    weak            n processes, each with the batch of the single process: n times the global batch
    strong          n processes that share the batch of the single process
    side by side    n independent trainings of one process at the same time, without communication: the upper bound on
                    ``weak`` given the machine's shared memory, caches and clock

Each run is ``python -m prnn.train`` as a user starts it, with one thread per process; the figures are those of its
metrics.jsonl, window by window (``log_every`` steps), without the first record and the first window.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import stats
from benchmarks.common.files import ROOT
from prnn.data.mnist import FILES, load
from prnn.errors import UserError
from prnn.training.observe.record_reader import read_records
from prnn.training.run_files import METRICS, SUMMARY

LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3  # of loss and gradient norm, relative, for the same global batch
CHECKED_STEPS = 5
IMAGES, TEST_IMAGES, SIDE = 6400, 50, 28
QUIET = (
    "trainer.device=cpu", "trainer.threads=1", "trainer.progress=off", "trainer.eval_every=0",
    "trainer.checkpoint_every=0", "logger=default",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """The settings of a task in the study."""

    overrides: tuple[str, ...]
    batch: int  # of one process
    window_steps: int  # some seconds of training
    gradient_stages: str  # how far its communication can hide behind its backward pass


PRESETS = {
    "char_lm": Preset(
        ("task=char_lm", "task.sample_length=0", "task.eval_tokens=2"), 50, 15,
        "1.1 MiB in one bucket: all of it is sent after the last gradient",
    ),
    "irnn_mnist": Preset(
        ("experiment=irnn_keras", "data.name=scaling"), 32, 30,
        "one recurrent layer: weight_hh's gradient is ready at the end of the backward pass; one bucket of 44 KiB",
    ),
}  # fmt: skip


def write_images(folder: Path) -> str:
    """IDX files for ``irnn_mnist`` under ``folder``/scaling; returns what is in them.

    The first images of MNIST where $PRNN_DATA has them, else noise: a step takes as long. Few for the final test, which
    is no part of what is measured.
    """
    real = (Path(os.environ.get("PRNN_DATA") or "/nowhere") / "mnist" / FILES[0][0]).exists()
    generator = np.random.default_rng(1)
    for part, (names, count) in enumerate(zip(FILES, (IMAGES, TEST_IMAGES), strict=True)):
        if real:
            images = load("mnist", "file:///nowhere")[part].part(slice(count))
            pixels, labels = images.pixels, images.labels
        else:
            pixels = generator.integers(0, 256, (count, SIDE * SIDE))
            labels = generator.integers(0, 10, count)
        (folder / "scaling").mkdir(parents=True, exist_ok=True)
        head = np.array([0x0803, count, SIDE, SIDE], ">u4").tobytes()
        for name, content in zip(
            names, (head + pixels.astype(np.uint8).tobytes(),
                    np.array([0x0801, count], ">u4").tobytes() + labels.astype(np.uint8).tobytes()), strict=True,
        ):  # fmt: skip
            (folder / "scaling" / name).write_bytes(gzip.compress(content, 1))
    return "the first images of MNIST" if real else "noise in place of MNIST"


class Runner:
    """Starts trainings under ``folder`` and reads their records; ``corpus`` is the text of char_lm."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self.parameters: dict[str, int] = {}  # of each task's model, once it has been trained
        self.images = write_images(folder / "data")
        data_dir = os.environ.get("PRNN_DATA")
        self.corpus = "tinyshakespeare" if data_dir and (Path(data_dir) / "tinyshakespeare").is_dir() else "shakespeare"
        if self.corpus == "tinyshakespeare":
            (folder / "data" / self.corpus).symlink_to((Path(str(data_dir)) / self.corpus).resolve())

    def train(self, task: str, processes: int, batch: int, settings: Sequence[str], copies: int = 1) -> list[Any]:
        """``copies`` trainings at the same time, each of ``processes``; the ``train`` records of each."""
        preset, folders, started = PRESETS[task], [], []
        text = [f"data={self.corpus}"] if task == "char_lm" else []
        with ExitStack() as stack:
            for _ in range(copies):
                self._count += 1
                run_dir = self.folder / f"{self._count:03}-{task}-{processes}"
                command = [
                    sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
                    "-m", "prnn.train", *preset.overrides, *text, *QUIET, f"trainer.batch_size={batch}", *settings,
                    f"run_dir={run_dir}",
                ]  # fmt: skip
                output = stack.enter_context(run_dir.with_suffix(".log").open("w"))
                started.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self._env()))
                folders.append(run_dir)
            try:
                failed = [process.wait() for process in started]
            finally:
                for process in started:
                    process.terminate()
        for status, run_dir in zip(failed, folders, strict=True):
            if status:
                lines = run_dir.with_suffix(".log").read_text(errors="replace").strip().splitlines() or [""]
                message = next((line for line in lines if line.startswith("prnn: ")), lines[-1])
                raise UserError(f"a training of {task} by {processes} processes ended with status {status}: {message}")
        self.parameters[task] = json.loads((folders[0] / SUMMARY).read_text())["parameters"]
        return [[r for r in read_records(each / METRICS) if r["kind"] == "train"] for each in folders]

    def _env(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables = {"PYTHONPATH": path, "PRNN_DATA": str(self.folder / "data"), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **variables, "PYTHONWARNINGS": "ignore"}


def check(runner: Runner, task: str, counts: Sequence[int]) -> dict[str, float]:
    """Largest relative differences to one process's losses and gradient norms; ``UserError`` if more than rounding."""
    settings = [f"trainer.max_steps={CHECKED_STEPS}", "trainer.log_every=1"]
    batch = PRESETS[task].batch
    (alone,) = runner.train(task, 1, batch, settings)
    worst = {"loss": 0.0, "grad_norm": 0.0}
    for n in counts:
        (records,) = runner.train(task, n, batch, settings)
        for key, before in worst.items():
            worst[key] = max(before, *(abs(b[key] / a[key] - 1) for a, b in zip(alone, records, strict=True)))
    if worst["loss"] > LOSS_TOLERANCE or worst["grad_norm"] > NORM_TOLERANCE:
        raise UserError(
            f"{task}: with the same global batch the losses of the first steps differ by {worst['loss']:.2g} (at most "
            f"{LOSS_TOLERANCE:g}) and the gradient norms by {worst['grad_norm']:.2g} (at most {NORM_TOLERANCE:g}): "
            "nothing was timed."
        )
    return {key: float(f"{value:.2g}") for key, value in worst.items()}


def windows(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The last ``count`` records of whole windows, each by its own step; the end of a run writes no further one."""
    return [
        {key: record[key] for key in ("tokens_per_second", "step_ms", "exposed_comm")}
        for record in list(records)[-count:]
    ]


def measure(runner: Runner, task: str, counts: Sequence[int], repeats: int, per_run: int) -> dict[str, list[Any]]:
    """The windows of each contender, ``repeats`` times ``per_run`` of them: those of one round under one index."""
    preset = PRESETS[task]
    steps = preset.window_steps
    settings = [f"trainer.max_steps={steps * (per_run + 1)}", f"trainer.log_every={steps}"]
    contenders = {"1": (1, preset.batch, 1)}
    for n in counts:
        contenders[f"weak {n}"] = (n, n * preset.batch, 1)
        contenders[f"strong {n}"] = (n, preset.batch, 1)
        contenders[f"side by side {n}"] = (1, preset.batch, n)
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (processes, batch, copies) in contenders.items():
            each = [windows(records, per_run) for records in runner.train(task, processes, batch, settings, copies)]
            rates = [sum(row["tokens_per_second"] for row in together) for together in zip(*each, strict=True)]
            results[name] += [{**row, "tokens_per_second": rate} for row, rate in zip(each[0], rates, strict=True)]
    return results


def efficiency(results: dict[str, list[Any]], counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each contender: rates, steps and exposed shares with their spread; the efficiency, window by window.

    Weak scaling: T1 / Tn, times of a step with n times the global batch. Strong scaling: T1 / (n Tn), the same global
    batch. In tokens a second both are rate_n / (n rate_1), and 1 is the ideal.
    """
    alone = [row["tokens_per_second"] for row in results["1"]]
    rows = [{"scaling": "1", "processes": 1, **_spreads(results["1"])}]
    for n in counts:
        for scaling in ("weak", "strong", "side by side"):
            windows_of = results[f"{scaling} {n}"]
            shares = [row["tokens_per_second"] / (n * one) for row, one in zip(windows_of, alone, strict=True)]
            rows.append(
                {"scaling": scaling, "processes": n, **_spreads(windows_of), "efficiency": stats.spread(shares)}
            )
    return rows


def _spreads(rows: list[Any]) -> dict[str, Any]:
    shares = [row["exposed_comm"] for row in rows if row["exposed_comm"] is not None]
    return {
        "windows": len(rows),
        "tokens_per_second": stats.spread([row["tokens_per_second"] for row in rows], 1),
        "step_ms": stats.spread([row["step_ms"] for row in rows]),
        "exposed_comm": stats.spread(shares, 4) if shares else None,
        "exposed_ms": round(statistics.median(s * r["step_ms"] for s, r in zip(shares, rows, strict=True)), 3)
        if shares
        else None,
    }
