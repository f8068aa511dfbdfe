"""A study: trials that several workers, on one machine or several, take from one storage of Optuna's."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prnn import command_line
from prnn.errors import UserError
from prnn.terminal import say
from prnn.training.run_files import CHECKPOINTS, TRIAL_LOG
from prnn.tuning.space import Space
from prnn.tuning.trial import STOPPED, Result, Trial

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.log"
_STARTUP_TRIALS, _WARMUP_RUNGS, _LEAST_OTHERS = 4, 2, 3  # of pruning
_MOST_FAILURES = 3  # one after the other, after which the next would hardly do better
_HERE = "host", "pid"


@dataclass(frozen=True)
class Plan:
    """What this process does for a study."""

    name: str
    folder: Path  # of its runs
    storage: str | None  # an address of a database; None: a journal in the folder
    trials: int | None
    seconds: float | None
    workers: int
    threads: int | None  # of each trial; None: as prnn-train chooses
    prune: bool
    seed: int | None


class Study:
    """A study of Optuna's, and the workers of this process."""

    def __init__(self, plan: Plan, space: Space) -> None:
        self.plan, self.space = plan, space
        self.stop = threading.Event()
        self._asking = threading.Lock()
        self._began = time.monotonic()
        self._took: list[float] = []  # seconds of each trial that was not pruned
        self._failures = 0  # of the last trials, one after the other
        self._gave_up: str | None = None
        self._study = _open(plan)
        self._same_space()
        self._take_up()

    def run(self) -> None:
        """Run trials to the limit. Raises ``UserError`` where one trial after the other fails."""
        with ThreadPoolExecutor(self.plan.workers) as pool:
            running = [pool.submit(self._work) for _ in range(self.plan.workers)]
            try:
                wait(running)
            except BaseException:
                self.stop.set()
                raise
        for each in running:
            each.result()
        if self._gave_up is not None:
            raise UserError(self._gave_up)

    def _work(self) -> None:
        while not self.stop.is_set():
            with self._asking:
                if self._is_over():
                    return
                trial = self._study.ask()
                for key, value in zip(_HERE, (socket.gethostname(), os.getpid()), strict=True):
                    trial.set_user_attr(key, value)
                overrides = self.space.suggest(trial)
            run_dir = self.plan.folder / f"{trial.number:04d}"
            trial.set_user_attr("run_dir", str(run_dir))
            if self.plan.threads is not None:
                overrides.append(f"trainer.threads={self.plan.threads}")
            began = time.monotonic()
            result = Trial(overrides, run_dir, self._reporter(trial), self.stop).run()
            self._tell(trial, result, time.monotonic() - began)

    def _reporter(self, trial: optuna.Trial) -> Callable[[int, float], bool]:
        def report(rung: int, loss: float) -> bool:
            trial.report(loss, rung)
            return self.plan.prune and trial.should_prune()

        return report

    def _is_over(self) -> bool:
        """Whether no further trial is to be started."""
        plan = self.plan
        if plan.trials is not None and len(self._of("COMPLETE", "PRUNED", "RUNNING")) >= plan.trials:
            return True
        typical = statistics.median(self._took) if self._took else 0.0
        return plan.seconds is not None and time.monotonic() - self._began + typical > plan.seconds

    def _tell(self, trial: optuna.Trial, result: Result, took: float) -> None:
        from optuna.trial import TrialState

        if result.failure is not None:
            trial.set_user_attr("failure", result.failure)
            self._study.tell(trial, state=TrialState.FAIL)
            if result.failure == STOPPED:  # to be run again when the study goes on
                self._study.enqueue_trial(trial.params)
            else:
                self._count_failure(trial, result)
        elif result.pruned_at is not None:
            trial.set_user_attr("pruned_at", result.pruned_at)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._took.append(took)
            self._failures = 0
            self._study.tell(trial, result.loss)
        self._say(trial, result)

    def _count_failure(self, trial: optuna.Trial, result: Result) -> None:
        """Give up where the settings were refused, or trials fail one after the other."""
        self._failures += 1
        if result.status == 2 and not self._of("COMPLETE", "PRUNED"):
            self._gave_up = f"trial {trial.number} was refused: {result.failure}"
        elif self._failures == _MOST_FAILURES:
            log = self.plan.folder / f"{trial.number:04d}" / TRIAL_LOG
            self._gave_up = (
                f"{self._failures} trials failed one after the other, the last with: {result.failure} ({log})."
            )
        if self._gave_up is not None:
            self.stop.set()

    def _say(self, trial: optuna.Trial, result: Result) -> None:
        loss = "" if result.loss is None else f"  validation loss {result.loss:.4f}"
        how = f"  pruned at {result.pruned_at:.0%}" if result.pruned_at is not None else ""
        if result.failure is not None:
            how = "  stopped" if result.failure == STOPPED else f"  failed: {result.failure}"
        best = self.best()
        lead = "" if best is None else f"  (best {best.value:.4f}, trial {best.number})"
        words = command_line.shell(*self.space.overrides(trial.params))
        say(f"trial {trial.number}{loss}{how}  {words}{lead}", sys.stdout)

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The trial of the lowest validation loss."""
        return min(self._of("COMPLETE"), key=lambda each: each.value, default=None)

    def summary(self) -> str:
        """The trials in the order of their losses, and how to train the best one."""
        rows = sorted(self._of("COMPLETE"), key=lambda each: each.value)
        failed = [each for each in self._of("FAIL") if each.user_attrs.get("failure", STOPPED) != STOPPED]
        counts = {"complete": len(rows), "pruned": len(self._of("PRUNED")), "failed": len(failed)}
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"
        lines = [f"study {self.plan.name}: {told}"]
        for each in rows[:5]:
            lines.append(f"  {each.value:.4f}  trial {each.number:<4} {command_line.shell(*self._differing(each))}")
        if rows:
            words = [*self.space.fixed, *self._differing(rows[0])]
            lines += ["train the best one with:", f"  {command_line.shell('prnn-train', *words)}"]
        return "\n".join(lines)

    def _differing(self, trial: optuna.trial.FrozenTrial) -> list[str]:
        return self.space.overrides(trial.params)

    def _of(self, *states: str) -> list[Any]:
        from optuna.trial import TrialState

        return self._study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states))

    def _same_space(self) -> None:
        """Refuse a study that was begun with another search space: its trials could not be compared."""
        now = {"fixed": list(self.space.fixed), "swept": dict(self.space.swept)}
        before = self._study.user_attrs.get("space")
        if before is None:
            if self.space.defaults is not None:  # to compare with
                self._study.enqueue_trial(dict(self.space.defaults), skip_if_exists=True)
            self._study.set_user_attr("space", now)
        elif before != now:
            words = command_line.shell(*before["fixed"], *before["swept"].values())
            raise UserError(
                f"study={self.plan.name} was begun with other settings ({words}): go on with these, or give the new "
                "study another name."
            )

    def _take_up(self) -> None:
        """Trials of a worker of this host that is gone have failed, and are run again."""
        from optuna.trial import TrialState

        for each in self._of("RUNNING"):
            host, pid = (each.user_attrs.get(key) for key in _HERE)
            if host == socket.gethostname() and not _alive(pid):
                try:
                    self._study.tell(each.number, state=TrialState.FAIL)
                except ValueError:  # another worker that has just started was first
                    continue
                self._study.enqueue_trial(each.system_attrs.get("fixed_params", {}) | each.params)
                shutil.rmtree(self.plan.folder / f"{each.number:04d}" / CHECKPOINTS, ignore_errors=True)
                say(f"prnn: trial {each.number} was cut off, and is run again", sys.stderr)


def _alive(pid: Any) -> bool:
    """Whether a process is there that is not this one, which has no trial yet: in containers numbers come again."""
    if pid == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # another user's
        return True
    except (OSError, TypeError, ValueError):
        return False
    return True


def _cut_torn_line(path: Path) -> None:
    """Remove the half line that a worker has left which was killed while it wrote: Optuna can read no line after it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    def torn() -> bool:
        content = path.read_bytes() if path.exists() else b""
        return bool(content) and not content.endswith(b"\n")

    if not torn():
        return
    lock = JournalFileSymlinkLock(str(path))  # under which all workers write
    lock.acquire()
    try:
        if torn():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def _open(plan: Plan) -> optuna.Study:
    """Open or create the study. Raises ``UserError`` where Optuna or its storage is not there."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError(f"prnn-tune needs Optuna: pip install 'prnn[tune]' ({error}).") from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan.folder.mkdir(parents=True, exist_ok=True)
    # Absolute: Optuna's lock is a link to it, and only one that leads there is released after its owner was killed.
    journal = (plan.folder / JOURNAL).resolve()
    pruner = optuna.pruners.MedianPruner(_STARTUP_TRIALS, _WARMUP_RUNGS, n_min_trials=_LEAST_OTHERS)
    sampler = optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=_STARTUP_TRIALS, multivariate=True)
    try:
        if plan.storage is None:
            _cut_torn_line(journal)
        storage = plan.storage or JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(
            study_name=plan.name, storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's, a driver's, or of the journal's content
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"the storage {plan.storage or plan.folder / JOURNAL} cannot be used: {reason}.") from error
