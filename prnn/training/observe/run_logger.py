"""The rank-0 logger: sends every record to ``metrics.jsonl``, the loggers (W&B, TensorBoard) and the terminal."""

from __future__ import annotations

import logging
import resource
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prnn.config import TrainConfig
from prnn.errors import UserError
from prnn.task import Batch, Task
from prnn.training import cores, disk
from prnn.training.distributed import World
from prnn.training.observe import flops, loggers, pictures, ranks, summary
from prnn.training.observe.console import Console
from prnn.training.observe.record_reader import damage
from prnn.training.observe.record_writer import Record, append_sample, gap, rewind
from prnn.training.observe.wandb_setup import wandb_id
from prnn.training.progress import Progress, Window
from prnn.training.run_files import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


class RunLogger:
    """Silent on ranks above 0, except for warnings.

    Training continues from ``step``, with the ``saved`` state of its checkpoint (a new run: from -1, with none). Later
    records are dropped; those of the step itself, which may be newer than the checkpoint, are not written again.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        job: dict[str, Any],
        world: World,
        run_dir: Path,
        unit: str,
        step: int,
        saved: dict[str, Any],
    ) -> None:
        self._cfg, self._world, self._run_dir, self._unit = cfg, world, run_dir, unit
        self._times = ranks.StepTimes()
        self._peak = flops.peak(cfg.trainer, world.device)
        self._counted = False
        self._flops_per_token: float | None = None  # unknown before the first step
        self.wandb_id: str | None = None
        self.tested: dict[str, float] = {}
        self.signatures: dict[str, str] = {}  # of the test metrics
        self._loggers = loggers.Loggers([])
        self._record: Record | None = None
        self._console: Console | None = None
        self._written: set[tuple[str, int]] = set()

        def open_files() -> list[str]:
            disk.make_directory(run_dir)
            missing = gap(run_dir, saved.get("record"), step)
            self._written, damaged = rewind(run_dir, step)
            self.wandb_id = wandb_id(run_dir, saved.get("wandb_id")) if cfg.logger.wandb else None
            self._loggers = loggers.build(cfg.logger, run_dir, job, max(step, 0), self.wandb_id)
            self._record = Record(run_dir)
            return [*([missing] if missing else []), *([damage(damaged, run_dir / METRICS)] if damaged else [])]

        try:
            faults = world.on_main(open_files)  # raises on all ranks if a logger's package is missing
            self._console = Console(run_dir, world.rank, cfg.trainer.progress, unit)
            with suppress(OSError):  # for the heartbeat of a rank that does not share rank 0's file system
                run_dir.mkdir(parents=True, exist_ok=True)
            for fault in faults if world.is_main else []:
                _log.warning("%s", fault)
            self._hosts = world.gather(socket.gethostname())
        except BaseException:
            self.close(failed=True)
            raise

    def count_flops(self, task: Task, model: nn.Module, batch: Batch) -> float:
        """Count the FLOPs per token, once, before rank 0's first step. Returns the seconds this took."""
        if self._counted or not self._world.is_main:
            return 0.0
        began, self._counted = time.perf_counter(), True
        try:
            self._flops_per_token = flops.per_token(self._cfg, task, model, batch)
        except Exception as error:  # only a copy of the model failed: training can go on without the metric
            _log.warning("FLOPs could not be counted (%s); records have no TFLOP/s", error)
        if self._world.device.type == "cuda":  # exclude the copy's memory
            torch.cuda.reset_peak_memory_stats(self._world.device)
        return time.perf_counter() - began

    def begin(self, share: float) -> None:
        """The training begins, or goes on, with this share of it done."""
        if self._console is not None:
            self._console.begin(share)

    def step(self, step: int, share: float, took: float, waited: float, exposed: float) -> None:
        """Record the seconds of one optimizer step, and those of them spent waiting for data and for other ranks;
        with it, ``share`` of the training is done.
        """
        self._times.add(took, waited, exposed)
        if self._console is not None:
            self._console.step(step, share)

    def train(self, window: Window, progress: Progress, epoch: int, lr: float, share: float) -> None:
        """Record the training loss of ``window``, and the step times of all ranks; a collective. ``share`` of the
        training is done.
        """
        times, self._times = self._times, ranks.StepTimes()
        if window.steps == 0:
            return
        rate = window.tokens / max(window.seconds, 1e-9)
        memory = memory_mib(self._world.device)
        rows: list[dict[str, Any]] = []
        if self._world.size > 1 and times.took:  # after a resume, the window may be older than the times
            rows = ranks.gather(times, memory, self._hosts, self._world)
        self._emit(
            {
                "kind": "train",
                "step": progress.step,
                "epoch": epoch,
                "share": round(share, 4),
                "loss": window.loss / max(window.count, 1),
                "lr": lr,
                "grad_norm": window.grad_norm / window.steps,  # mean over the window, before clipping
                "tokens": progress.tokens,
                "seconds": round(progress.seconds, 3),
                "tokens_per_second": round(rate, 1),  # of training, all processes together
                "tokens_per_second_per_device": round(rate / self._world.size, 1),
                "data_wait": round(window.waiting / max(window.seconds, 1e-9), 4),  # share of the time
                "exposed_comm": round(mean(row["exposed_comm"] for row in rows), 4)
                if rows
                else None,  # share, all ranks
                "step_ms": times.median_ms,
                "memory_mib": round(memory, 1),
                **self._efficiency(rate),
            }
        )
        if rows and progress.step > 1:  # the first step is dominated by one-time setup
            slow = ranks.straggler(rows) if len(times.took) >= ranks.LEAST_STEPS else None
            self._emit({"kind": "ranks", "step": progress.step, "straggler": slow, "ranks": rows})

    def _efficiency(self, tokens_per_second: float) -> dict[str, float | None]:
        """TFLOP/s of all devices together at ``tokens_per_second``, and MFU where the peak is known."""
        if self._flops_per_token is None:
            return {"tflops": None, "mfu": None}
        tflops = tokens_per_second * self._flops_per_token / 1e12
        mfu = None if self._peak is None else float(f"{tflops / (self._peak.tflops * self._world.size):.4g}")
        return {"tflops": float(f"{tflops:.4g}"), "mfu": mfu}

    def validation(self, step: int, loss: float, figures: dict[str, float]) -> None:
        """Record a validation: its loss and the task's other metrics."""
        self._emit({"kind": "val", "step": step, "loss": loss, "figures": figures})

    def sample(self, step: int, text: str) -> None:
        """Record a sample, and append it to ``samples.txt``."""
        if self._emit({"kind": "sample", "step": step, "text": text}):
            append_sample(self._run_dir, step, text)

    def test(self, step: int, of_step: int, figures: dict[str, float], signatures: dict[str, str]) -> None:
        """Record the final test of the model of step ``of_step``: its metrics and their signatures."""
        self.tested, self.signatures = figures, signatures
        how = {"signatures": signatures} if signatures else {}
        self._emit({"kind": "test", "step": step, "of_step": of_step, "figures": figures, **how})

    def pictures(self, step: int, drawings: dict[str, Callable[[], Figure]]) -> None:
        """Write ``NAME.png`` into the run directory for each drawing, and record the file names."""
        files = {name: f"{name}.png" for name, draw in drawings.items() if pictures.save(self._run_dir, name, draw)}
        if files:
            self._emit({"kind": "pictures", "step": step, "files": files})

    def _emit(self, record: dict[str, Any]) -> bool:
        """Send a record to all outputs, on rank 0, unless it was written before; returns whether it was sent."""
        if self._record is None or self._console is None or (record["kind"], record["step"]) in self._written:
            return False
        self._record.write(record)
        self._loggers.log(record)
        self._console.show(record)
        return True

    def state_dict(self) -> dict[str, Any]:
        """The logger's entries of a checkpoint; fsyncs ``metrics.jsonl``."""
        return {"wandb_id": self.wandb_id, "record": None if self._record is None else self._record.mark()}

    def directory(self) -> Path:
        """Rank 0: the current path of the run directory. Raises ``UserError`` if it is gone."""
        if self._record is None or (lost := self._record.directory.lost()) is None:
            return self._run_dir
        if lost.place is not None:
            return lost.place
        raise UserError(
            f"the run directory {self._run_dir} is not where it was: {lost}. Its contents are lost, and "
            "training has stopped: start a new run, in a run_dir that persists."
        )

    def finish(self, progress: Progress, epochs: float, parameters: int, reason: str) -> None:
        """Write ``loss.png`` and ``summary.json``."""
        if not self._world.is_main:
            return
        summary.plot_loss(self._run_dir, f"{self._run_dir.parent.name}/{self._run_dir.name}: {progress.step:,} steps")
        device = self._world.device
        figures = {
            "val_loss": progress.eval_loss,
            "best_val_loss": progress.best_loss,
            "best_step": progress.best_step if progress.best_loss is not None else None,
            **({"val": progress.eval_figures, "best_val": progress.best_figures} if progress.eval_figures else {}),
            **({"test": self.tested} if self.tested else {}),
            **({"signatures": self.signatures} if self.signatures else {}),
            "stopped_by": reason,
            "steps": progress.step,
            "epochs": round(epochs, 4),
            "seconds": round(progress.seconds, 3),
            "unit": self._unit,
            "tokens": progress.tokens,
            "tokens_per_second": round(rate := progress.tokens / max(progress.seconds, 1e-9), 1),
            **self._efficiency(rate),
            "flops_per_token": self._flops_per_token,
            "peak_tflops": None if self._peak is None else self._peak.tflops,  # of one device
            "peak_source": None if self._peak is None else self._peak.source,
            "parameters": parameters,
            "processes": self._world.size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),  # of each process
            "cores": cores.available(),  # likewise
            "memory_mib": round(memory_mib(device), 1),
        }
        summary.write_summary(self._run_dir, figures)

    def close(self, failed: bool) -> None:
        """Close files and loggers."""
        self._loggers.close(failed)
        if self._record is not None:
            self._record.close()
        if self._console is not None:
            self._console.close()


def memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the GPU, or the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
