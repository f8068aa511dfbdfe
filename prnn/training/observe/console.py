"""Console output of a run: the terminal and ``train.log``."""

from __future__ import annotations

import contextlib
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prnn.terminal import Patient, visible, wrapped
from prnn.training.run_files import LOG


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Raise the log level to WARNING: a copy of the model would log its backend once more."""
    logger = logging.getLogger("prnn")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


class _EscapingFormatter(logging.Formatter):
    """Escapes control characters, also in ``train.log``, which may be read on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore write errors: a full disk must not fill the terminal with tracebacks."""

    def close(self) -> None:
        """Ignore errors of the last write too, which would mask the exception that ended training."""
        with contextlib.suppress(OSError):
            super().close()


class _TerminalHandler(logging.StreamHandler):
    """Writes plain lines, above the progress bar if there is one."""

    bar: Any = None

    def format(self, record: logging.LogRecord) -> str:
        return wrapped(super().format(record), self.stream)

    def emit(self, record: logging.LogRecord) -> None:
        if self.bar is None:
            super().emit(record)
        else:
            self.bar.write(self.format(record), file=self.stream)


def _figures(record: dict[str, Any]) -> str:
    return "".join(f"  {key} {value:.4f}" for key, value in record["figures"].items())


class Console:
    """Rank 0: ``train.log``, stdout and a progress bar on a terminal. Other ranks: warnings on stderr, no files."""

    def __init__(self, run_dir: Path, rank: int, progress: str, unit: str) -> None:
        self._logger = logging.getLogger("prnn")
        self._before = (self._logger.level, self._logger.propagate, list(self._logger.handlers))
        self._bar: Any = None
        self._unit = unit
        self._straggler: int | None = None  # the last one reported
        self._share, self._began = 0.0, (time.monotonic(), 0.0)  # of the training that is done: now, and at the start
        if rank == 0:
            self._terminal = _TerminalHandler(Patient(sys.stdout))
            self._terminal.setFormatter(_EscapingFormatter())
            if progress == "quiet":
                self._terminal.setLevel(logging.WARNING)
            file = _QuietFileHandler(run_dir / LOG, encoding="utf-8")
            file.setFormatter(_EscapingFormatter("%(asctime)s %(levelname)s %(message)s"))
            handlers: list[logging.Handler] = [self._terminal, file]
            if progress == "on" or (progress == "auto" and sys.stdout.isatty()):
                self._terminal.bar = self._bar = self._make_bar(self._terminal.stream)
        else:
            handlers = [logging.StreamHandler(Patient(sys.stderr))]
            handlers[0].setLevel(logging.WARNING)
            handlers[0].setFormatter(_EscapingFormatter(f"[rank {rank}] %(message)s"))
        self._logger.handlers[:] = handlers
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False

    @staticmethod
    def _make_bar(stream: Any) -> Any:
        from tqdm import tqdm

        form = "{percentage:3.0f}%|{bar}| {desc}[{elapsed}<{remaining}{postfix}]"
        return tqdm(total=1.0, bar_format=form, dynamic_ncols=True, file=stream)

    def begin(self, share: float) -> None:
        """Start to measure time, ``share`` of the training having been done before."""
        self._share, self._began = share, (time.monotonic(), share)
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = share

    def step(self, step: int, share: float) -> None:
        """Advance to optimizer step ``step``, with which ``share`` of the training is done."""
        self._share = share
        if self._bar is not None:
            self._bar.set_description_str(f"step {step} ", refresh=False)
            self._bar.update(share - self._bar.n)

    def _left(self) -> str:
        """The share done, and the time that the rest will take at the rate so far."""
        began, before = self._began
        rate = (self._share - before) / max(time.monotonic() - began, 1e-9)
        if rate <= 0 or self._share >= 1:
            return f"{self._share:.0%}"
        minutes, seconds = divmod(round((1 - self._share) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{self._share:.0%}, {f'{hours}:{minutes:02}' if hours else minutes}:{seconds:02} left"

    def show(self, record: dict[str, Any]) -> None:
        """Print a record in human-readable form."""
        step, loss = record["step"], record.get("loss")
        if record["kind"] == "sample":
            self._logger.info("--- sample at step %d\n%s\n---", step, record["text"])
        elif record["kind"] == "val":
            self._logger.info("step %d  validation loss %.4f%s", step, loss, _figures(record))
        elif record["kind"] == "test":
            self._logger.info("test of the model of step %d%s", record["of_step"], _figures(record))
        elif record["kind"] == "pictures":
            self._logger.info("pictures: %s", ", ".join(record["files"].values()))
        elif record["kind"] == "ranks":
            self._report_straggler(record)
        elif self._bar is not None:
            speed = f"{record['tokens_per_second']:,.0f} {self._unit}/s"
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed}", refresh=False)
        else:
            self._logger.info(
                "step %d  epoch %d  loss %.4f  lr %.3g  gradient norm %.3g  %s %s/s  (%s)",
                step, record["epoch"], loss, record["lr"], record["grad_norm"],
                f"{record['tokens_per_second']:,.0f}", self._unit, self._left(),
            )  # fmt: skip

    def _report_straggler(self, record: dict[str, Any]) -> None:
        """Print one line when a rank falls behind; again only after the straggler has changed."""
        rank, self._straggler, before = record["straggler"], record["straggler"], self._straggler
        if rank is None or rank == before:
            return
        compute = [row["compute_ms"]["p50"] for row in record["ranks"]]
        row = record["ranks"][rank]
        self._logger.info(
            "step %d  rank %d on %s is a straggler: %.3g ms of computation per step, the others %.3g; "
            "waiting for data %.0f %% of the time",
            record["step"], rank, row["host"], compute.pop(rank), statistics.median(compute), 100 * row["data_wait"],
        )  # fmt: skip

    def close(self) -> None:
        """Close the handlers and restore the logging configuration."""
        if self._bar is not None:
            self._bar.close()
        for handler in self._logger.handlers:
            handler.close()
        self._logger.level, self._logger.propagate, self._logger.handlers[:] = self._before
