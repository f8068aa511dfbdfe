"""A command line of ``prnn-train`` on one rank: where it writes, what it resumes, and the jobs that Hydra composes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from prnn import command_line, config, extras, importing, plugins, tasks
from prnn.data.paths import expanded
from prnn.error_messages import check_forced_backend, not_composed, user_error
from prnn.errors import AgreedError, UserError
from prnn.manage import sweep
from prnn.terminal import finish_streams, prepare_streams, say
from prnn.training import checkpoint, disk, distributed, fit, limits, run_dir
from prnn.training.checkpoint import Checkpoint
from prnn.training.malloc import keep_freed_memory
from prnn.training.observe import run_state
from prnn.training.observe.record_reader import Records
from prnn.training.run_files import METRICS, SUMMARY

_log = logging.getLogger("prnn.train")  # the command, which users know


def main() -> int:
    """Run the command line; returns the exit status."""
    prepare_streams()
    extras.end_imports()
    rank, together = 0, False
    command: _Command | None = None
    try:
        rank, *_ = distributed.environment()
        command = _Command(sys.argv[1:], rank)
        status = command.run()
        together = True
    except BrokenPipeError:  # of what Hydra prints (`--cfg job | head`); training itself does not stop for it
        status = 0
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        if rank == 0:
            intact = command is not None and command.where is not None and checkpoint.listing(command.where)
            say(f"\nprnn: stopped at once{'; earlier checkpoints are intact' if intact else ''}.", sys.stderr)
    except _Stop as stop:
        status, together = stop.status, stop.together
    except Exception as error:
        message = user_error(error) if command is None else command.message(error)
        if message is None:
            raise
        status, together = _report(message, rank), isinstance(message, AgreedError)
    finish_streams()
    distributed.leave(status, together)
    return status


class _Stop(BaseException):
    """The end of everything: passes through Hydra, which would go on with the next job of a sweep."""

    def __init__(self, status: int, together: bool) -> None:
        super().__init__(status)
        self.status, self.together = status, together


def _report(error: UserError, rank: int) -> int:
    """Print the message as one line, that of an error common to all processes on rank 0 alone; the exit status."""
    sentence = str(error).replace("\n", "\\n")  # of a value that holds one
    distributed.tell_launcher(f"prnn: {sentence}")
    if rank == 0 or not isinstance(error, AgreedError):
        prefix = "prnn" if rank == 0 else f"prnn [rank {rank}]"
        say(f"{prefix}: {sentence}", sys.stderr)
    return error.exit_status


class _Command:
    """One command line on one rank: where it writes, what it resumes, and the jobs Hydra runs for it."""

    def __init__(self, argv: list[str], rank: int) -> None:
        self.rank = rank
        self.cwd = Path.cwd()  # before Hydra, which may change it
        self.program = command_line.program(argv)
        self.args = _parsed(argv)
        self.flags = _without(argv, self.args.overrides)
        self.overrides: list[str] = list(self.args.overrides)
        self.resume: Path | None = None  # the run to continue
        self.chosen: Path | None = None  # the directory of this command
        self.where: Path | None = None  # the directory of the last job that has begun
        self.lock: run_dir.Lock | None = None  # on it, while a job runs
        self.status = 0
        self.composed = False  # whether Hydra has made a configuration of the overrides
        self.away = False  # a job in another process, on another machine perhaps

    def __getstate__(self) -> dict[str, Any]:
        """What Hydra's launchers send to the process that runs a job of a sweep."""
        return {**self.__dict__, "lock": None, "away": True}

    def run(self) -> int:
        """Hand over to Hydra, which calls ``job`` once, or once for each job of a sweep."""
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main(); otherwise Hydra prints them its own way and exits
        check_forced_backend()
        plugins.let_hydra_search()
        self._take_up_earlier_run()
        OmegaConf.register_new_resolver("prnn_run_dir", self._choose, replace=True)
        scratch = tempfile.mkdtemp(prefix="prnn-") if self.rank > 0 else None
        before, sys.argv = sys.argv, [sys.argv[0], *self._hydra_overrides(scratch), *self.flags]
        try:
            hydra.main(config_path=str(config.CONF), config_name=config.MAIN_CONFIG, version_base="1.3")(self.job)()
        except Exception as error:
            if self.composed or self.message(error) is not None:
                raise
            raise not_composed(error) from error
        finally:
            sys.argv = before
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            if self.args.multirun and self.rank == 0 and self.chosen is not None:
                for line in sweep.summary(self.cwd / self.chosen):
                    say(line, sys.stdout)
        return self.status

    def message(self, error: Exception, cfg: DictConfig | None = None) -> UserError | None:
        """The message of an error that the user can do something about; None for any other."""
        return user_error(error, cfg, kept=self._kept if cfg is not None else str, known_keys=self._known_keys)

    def _known_keys(self) -> Iterable[str]:
        """Every setting, those of the chosen task included."""
        values = dict(word.partition("=")[::2] for word in self.overrides)
        try:
            return config.known_keys(tasks.schemas(values.get("task.name") or values.get("task") or "char_lm"))
        except UserError:  # no such task, which has a message of its own
            return config.known_keys()

    def _take_up_earlier_run(self) -> None:
        """``resume=DIR``: the overrides of that run come first, the new ones on top."""
        values = {o.key_or_group: o for o in map(command_line.parsed, self.overrides)}
        name = command_line.text(values["resume"]) if "resume" in values else None
        if name is None:
            return
        if self.args.multirun:
            raise UserError("resume continues one run, and --multirun starts several: leave one of them out.")
        if "run_dir" in values:
            raise UserError("resume continues a run in its own directory: leave run_dir out.")
        self.resume = run_dir.find(name)
        again = {*values, "resume", "run_dir"}
        earlier = [o for o in run_dir.overrides(self.resume) if command_line.parsed(o).key_or_group not in again]
        self.overrides = [*earlier, *self.overrides]
        if self.args.config_name is None:
            self.flags = [*run_dir.flags(self.resume, self.args.config_dir), *self.flags]

    def _hydra_overrides(self, scratch: str | None) -> list[str]:
        """The overrides, with Hydra's own files directed to the run directory on rank 0, elsewhere to ``scratch``."""
        # `.hydra` is written by `_start`, not by Hydra: a refused job must not spoil the run it wanted to resume.
        silent = ["hydra.output_subdir=null", "hydra/job_logging=none"]
        if scratch is not None:
            nowhere = [f"hydra.run.dir={scratch}", f"hydra.sweep.dir={scratch}"]
            return [*self.overrides, *nowhere, *silent, "hydra/hydra_logging=none"]
        setting = "oc.select:run_dir,null"
        run = f"hydra.run.dir='${{prnn_run_dir:${{{setting}}},${{hydra:runtime.choices.task}}}}'"
        sweep = f"hydra.sweep.dir='${{prnn_run_dir:${{{setting}}},multirun}}'"
        if not self.args.multirun:  # of a sweep, Hydra says which job it starts
            silent.append("hydra/hydra_logging=none")
        return [run, sweep, *silent, *self.overrides]

    def _choose(self, given: str | int | None, task: str) -> str:
        """Rank 0's run directory (with --multirun, the parent of one for each job), decided once."""
        if self.chosen is None:
            self.chosen = self._decide(given, task)
        return str(self.chosen)

    def _decide(self, given: str | int | None, task: str) -> Path:
        if self.resume is not None:
            return self.resume
        if self.args.cfg or self.args.info or self.args.help or self.args.hydra_help:  # only shown
            return Path(str(given) if given is not None else run_dir.RUNS / task / "<start time>")
        path = expanded(str(given)) if given is not None else None
        if run_dir.is_restart() and not self.args.multirun:
            path = path or run_dir.launched() or run_dir.earlier_attempt(self.overrides)
            if path is not None and checkpoint.listing(path):
                self.resume = path.resolve()
                return self.resume
        if path is None:
            return run_dir.claim(run_dir.RUNS / task)
        _refuse_used(path)
        return path

    def job(self, cfg: DictConfig) -> None:
        """One training run."""
        self.composed = True
        try:
            self._train(cfg)
        except Exception as error:
            message = self.message(error, cfg)
            if message is None:
                raise
            status = _report(message, self.rank)
            if self.rank == 0:
                self._unlock()
                self._leave_no_empty_directory(cfg, message)
            if not isinstance(message, AgreedError) and distributed.environment()[1] > 1:
                raise _Stop(status, together=False) from None  # the ranks have diverged
            self.status = max(self.status, status)  # the next job of a sweep may do better
            if self.away:  # Hydra's launcher carries the error to the process that the user looks at
                of_job = AgreedError(f"job {HydraConfig.get().job.num} of the sweep: {message}")
                of_job.exit_status = status
                raise of_job from None
        finally:
            self._unlock()

    def _leave_no_empty_directory(self, cfg: DictConfig, error: UserError) -> None:
        """Of a job that has written nothing; one of a sweep notes there that it has failed."""
        where = _output_dir()
        with contextlib.suppress(OSError):
            if self.args.multirun and where.is_dir() and not any(where.iterdir()):
                run_dir.write_notes(where, cfg, HydraConfig.get())
                run_state.note_failure(where, error)
            where.rmdir()

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _kept(self) -> str:
        """The end of a sentence about what has stopped training: the checkpoint there is, if there is one."""
        where = _output_dir()
        checkpoints = checkpoint.listing(where)
        if not checkpoints:
            return ""
        step = checkpoint.step_of(checkpoints[-1])
        resume = command_line.shell(command_line.override("resume", run_dir.name_of(where, self.cwd)))
        return f"; the checkpoint of step {step} stays, and {resume} goes on from it"

    def _train(self, cfg: DictConfig) -> None:
        cell, name = (str(OmegaConf.select(cfg, key)) for key in ("model.cell", "task.name"))
        importing.find_here(self.cwd, cell, name)
        try:
            typed = config.check(cfg, tasks.schemas(name))
        except UserError as error:
            raise AgreedError(str(error)) from error  # every rank comes to this conclusion
        keep_freed_memory()
        world = distributed.setup(typed.distributed, typed.trainer)
        where = world.broadcast(_output_dir())
        typed.run_dir, self.where = str(where), where
        loaded = world.on_main(lambda: self._prepare(where, typed.trainer.checkpoint_every))
        saved = loaded.manifest.get("task", {}) if loaded is not None else None
        task = tasks.build(typed, saved, loaded.path if loaded is not None else "")
        outcome = fit(typed, task, world, where, loaded, on_start=lambda: self._start(cfg, where))
        if outcome.signal is not None:
            if world.is_main:
                how = self._continuation(where)
                say(f"prnn: stopped at step {outcome.step}, with a checkpoint; {how}", sys.stderr)
            _raise_again(outcome.signal)
            raise _Stop(128 + outcome.signal, together=True)
        if world.is_main:
            loss = "" if outcome.val_loss is None else f", validation loss {outcome.val_loss:.4f}"
            shown = run_dir.name_of(where, self.cwd)
            say(f"done at step {outcome.step} ({outcome.reason}){loss}: {shown}", sys.stdout)
            limit = limits.beyond(outcome.reason, lambda key: OmegaConf.select(cfg, key), outcome.step)
            if loaded is not None and loaded.step == outcome.step and limit is not None:
                more = command_line.shell(command_line.override("resume", shown), limit[1])
                say(f"prnn: the run had already reached {limit[0]}; to go on, give another, as in {more}", sys.stderr)

    def _continuation(self, where: Path) -> str:
        """What to type to go on with the run in ``where``."""
        resume = command_line.override("resume", run_dir.name_of(where, self.cwd))
        chosen = run_dir.launched()
        if chosen is not None and chosen.resolve() == where.resolve():
            again = f"a restart with {run_dir.LAUNCHED}={command_line.shell(str(chosen))} goes on from it"
            return f"{again}, and so does any job with {command_line.shell(resume)} in place of its overrides"
        if "RANK" in os.environ:  # one of the processes of a launcher, whose own command line is not known here
            return f"the same launcher goes on from it, with {command_line.shell(resume)} in place of its overrides"
        flags = [] if self.args.multirun else self.flags
        what = "continue this job of the sweep with" if self.args.multirun else "continue with"
        return f"{what}: {command_line.shell(*self.program, *flags, resume)}"

    def _prepare(self, where: Path, checkpoint_every: int) -> Checkpoint | None:
        """Rank 0: the checkpoint to continue from, or the certainty that there is none to overwrite.

        From here on no other job may write to the directory.
        """
        self.lock = run_dir.Lock(where)
        if self.resume is not None:
            if _ended_before_its_first_checkpoint(where, checkpoint_every):
                _keep_record(where)
                return None
            return checkpoint.read(where)
        if self.args.multirun and run_dir.is_restart() and checkpoint.listing(where):  # one job of a sweep
            return checkpoint.read(where)
        _refuse_used(where)
        return None

    def _start(self, cfg: DictConfig, where: Path) -> None:
        """Rank 0: write down what is run, and let ``runs/latest`` point to it."""
        run_dir.write_notes(where, cfg, HydraConfig.get())
        if self.resume is None:
            run_dir.note(where, self.overrides)
        run_dir.link_latest(where)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}: prnn-train --help lists the options.")


def _parsed(argv: list[str]) -> argparse.Namespace:
    """The flags, which may stand among the overrides, and these. Raises ``UserError`` for another flag."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        flag, equals, value = unknown[0].lstrip("-").partition("=")
        after = argv[argv.index(unknown[0]) + 1 :] if unknown[0] in argv else []
        value = value if equals else next((each for each in after if "=" not in each and each[:1] != "-"), "VALUE")
        key = config.nearest(flag.replace("-", "_"), config.known_keys()) or "KEY"
        raise UserError(
            f"{unknown[0]} is not an option: settings are written without dashes, as KEY=VALUE, such as "
            f"{command_line.shell(f'{key}={value}')}; --help lists them."
        )
    return args


def _output_dir() -> Path:
    """The run directory of this job, whatever is in its name."""
    return Path(run_dir.unresolved(HydraConfig.get().runtime)["output_dir"])


def _raise_again(number: int) -> None:
    """Raise a signal again for the handler that was installed before training: submitit requeues its job on it."""
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        signal.raise_signal(number)


def _refuse_used(path: Path) -> None:
    resume = command_line.shell(command_line.override("resume", run_dir.name_of(path, Path.cwd())))
    if checkpoint.listing(path):
        raise UserError(f"run_dir={path} already holds a run: continue it with {resume}, or choose another run_dir.")
    record = path / METRICS
    if not run_dir.is_restart() and record.exists() and record.stat().st_size > 0:  # a restart has just written it
        raise UserError(
            f"run_dir={path} already holds the record of a run, without a checkpoint: start it again with {resume}, "
            "choose another run_dir, or remove this one."
        )


def _ended_before_its_first_checkpoint(path: Path, checkpoint_every: int) -> bool:
    """Whether no checkpoint of a run was ever due, or the first has failed; not one whose checkpoints are elsewhere."""
    if not checkpoint.holds_none(path) or (path / SUMMARY).exists():
        return False
    last = max((record["step"] for record in Records(path / METRICS)), default=0)
    # A sharded checkpoint is known to have failed at the next one.
    return checkpoint_every == 0 or last <= 2 * checkpoint_every


def _keep_record(path: Path) -> None:
    """A copy of the record of a run that starts again at its first step; a warning reports it."""
    record, kept = path / METRICS, ""
    if record.is_file() and record.stat().st_size > 0:
        copy = disk.free_name(record)
        shutil.copyfile(record, copy)
        kept = f"; a copy of its record so far is {copy.name}"
    _log.warning("%s has no checkpoint yet: training starts at the first step%s", path, kept)


def _without(argv: list[str], overrides: list[str]) -> list[str]:
    """The flags among the arguments, with their values."""
    left = list(argv)
    for override in overrides:
        left.remove(override)
    return left
