"""The training loop, over the Task protocol; independent of any particular task.

Everything the course of training depends on is in ``Progress``, ``Stepper``, ``Position`` and the random
numbers, and all of it is in a checkpoint: N steps, and k steps, a crash, a resume and N - k steps, give the same
bits, unless the learning rate follows the time. Another number of processes goes on with the same data and state,
and adds in another order.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from prnn.config import TrainConfig, TrainerConfig
from prnn.errors import AgreedError, UserError
from prnn.task import Batch, Position, Shard, Task
from prnn.training import checkpoint, evaluate, optim, rng, snapshot
from prnn.training.checkpoint import Checkpoint, sharded
from prnn.training.distributed import World
from prnn.training.interrupts import Interrupts, StopRequested, raise_if_requested
from prnn.training.observe import run_state, watchdog
from prnn.training.observe.activity import Activity
from prnn.training.observe.run_logger import RunLogger
from prnn.training.observe.tracing import Tracer
from prnn.training.progress import Progress, Window
from prnn.training.step import Stepper

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How training ended. ``signal`` is set where a signal stopped it, with a checkpoint to continue from."""

    reason: str  # of limits.LIMITS, or "signal"
    signal: int | None
    step: int
    val_loss: float | None
    run_dir: Path


def fit(
    cfg: TrainConfig,
    task: Task,
    world: World,
    run_dir: Path,
    resume: Checkpoint | None = None,
    on_start: Callable[[], None] | None = None,
) -> Outcome:
    """Train ``task`` until a limit of ``cfg.trainer`` or a signal; everything is written under ``run_dir``.

    All processes call it with the same arguments. ``on_start`` is called on rank 0 once all checks have
    passed: data and model are built, and the checkpoint fits. Raises ``Diverged`` (the loss is not
    finite) and other ``UserError``s.
    """
    with Interrupts(speak=world.is_main) as interrupts:
        trainer = _Trainer(cfg, task, world, run_dir, resume, interrupts)
        failed = True
        try:
            trainer.start(resume)
            if on_start is not None:
                world.on_main(on_start)
            if world.is_main:
                watchdog.forget_others(run_dir, world.size)
            with watchdog.Watchdog(trainer.activity, run_dir, world.rank, watchdog.patience(cfg, world.size)):
                outcome = trainer.run()
                if outcome.signal is None:
                    trainer.activity.end(run_state.FINISHED, outcome.reason)
                else:
                    trainer.activity.end(run_state.STOPPED, signal.Signals(outcome.signal).name)
            failed = False
        finally:
            with ExitStack() as closing:  # in the reverse order, each whether or not the others fail
                closing.callback(trainer.logger.close, failed)
                if failed and trainer.writer is not None and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                    closing.callback(_wait, trainer.writer)
                closing.callback(trainer.tracer.close)
    return outcome


def _wait(writer: sharded.Writer) -> None:
    """Give a checkpoint that is being written a little time; training has failed, and says why afterwards."""
    try:
        writer.wait(sharded.ENDED_SECONDS)
    except UserError as problem:
        if writer.world.is_main:
            _log.warning("%s", problem)


class _Trainer:
    """The course of one training run. To be closed (``logger``) once it is built, whatever happens then."""

    def __init__(
        self,
        cfg: TrainConfig,
        task: Task,
        world: World,
        run_dir: Path,
        resume: Checkpoint | None,
        interrupts: Interrupts,
    ) -> None:
        self.cfg, self.task, self.world, self.run_dir, self.interrupts = cfg, task, world, run_dir, interrupts
        self.job = asdict(cfg)
        self.fingerprint = task.fingerprint()
        if len(set(world.gather(self.fingerprint))) > 1:
            raise AgreedError(
                "the ranks do not read the same data: give each machine the same files, unchanged since the start."
            )
        rng.set_determinism(cfg.trainer.deterministic)
        rng.seed_all(cfg.seed)  # the same on all ranks: they build the same model
        model = task.build_model()
        if resume is not None:
            checkpoint.load_weights(model, resume, self.job)
        self.model = model.to(world.device)
        self.activity = Activity()
        self.stepper = Stepper(cfg, task, self.model, world, self.activity)
        if resume is not None:
            snapshot.check(resume, self.job, self.stepper)
        self.tracer = Tracer(cfg.trainer.profile, run_dir, world, self.activity)
        self.shard = Shard(world.rank, world.size, cfg.trainer.accumulate, cfg.trainer.micro_batch_size)
        self.steps_per_epoch = task.steps_per_epoch()
        self.total_steps = _total_steps(cfg.trainer, self.steps_per_epoch)
        if self.total_steps is not None and self.tracer.start > self.total_steps:
            raise UserError(
                f"trainer.profile={cfg.trainer.profile} begins after the last step, which is {self.total_steps}: no "
                "step would be traced."
            )
        self.writer: sharded.Writer | None = None
        if cfg.trainer.checkpoint_format == "sharded":
            self.writer = sharded.Writer(world, cfg.distributed.timeout_seconds)
        self.position, self.progress = Position(), Progress()
        self.saved: tuple[int, int, int] | None = None  # Progress.done of the last checkpoint
        self.warned = ""  # the last warning of a checkpoint that was not written: a step with a validation tries twice
        self.epoch, self.lr = 0, cfg.optimizer.lr  # of the last step
        # The last thing to be built: it opens files, and alters how the process logs.
        step, saved = (-1, {}) if resume is None else (resume.step, resume.state)
        self.logger = RunLogger(cfg, self.job, world, run_dir, task.unit, step, saved)

    def start(self, resume: Checkpoint | None) -> None:
        """Take up the training where ``resume`` stands, if there is one."""
        rng.seed_all(self.cfg.seed + 1_000_003 * (self.world.rank + 1))  # dropout differs between ranks
        if resume is None:
            return
        self.position, self.progress = snapshot.restore(
            resume, self.job, self.steps_per_epoch, self.fingerprint, self.stepper, self.world, self.shard
        )
        self.saved = self.progress.done
        # Of the last step, whose record may be still to write.
        before = resume.state["position"]
        self.epoch = before["epoch"] - (before["index"] == 0)
        self.lr = resume.state["optimizer"]["param_groups"][0]["lr"]
        if self.world.is_main:
            checkpoint.set_aside(self.run_dir, resume.step)
            with suppress(UserError):  # a kill may have come before that was done; it is tried again at the next one
                snapshot.mark_best(self.run_dir, self.progress)
            _log.info("continuing from %s", resume.path)

    def run(self) -> Outcome:
        """Train to a limit or a signal."""
        number = None
        try:
            reason = self._train()
        except StopRequested as stop:
            reason, number = "signal", stop.number
            self.tracer.close()
            self._save(final=True)
        return Outcome(reason, number, self.progress.step, self.progress.eval_loss, self.run_dir)

    def _train(self) -> str:
        """Train to a limit, which it returns. Here and below a signal to any rank raises ``StopRequested``."""
        batches: Iterator[list[Batch]] | None = None
        self.logger.begin(self._share())
        self._after_step()
        while (reason := self._limit()) is None:
            if batches is None:
                batches = iter(self.task.train_batches(self.shard, Position(**self.position.state_dict())))
            self._train_step(batches)
            if self.position.index == 0:
                batches = None
            self._after_step()
        self.tracer.close()
        self._finish(reason)
        return reason

    def _train_step(self, batches: Iterator[list[Batch]]) -> None:
        """Fetch the batches of a step, have ``Stepper.run`` make the update, and count it."""
        progress, position = self.progress, self.position
        self.tracer.before(progress.step + 1)
        self.activity.enter("data", progress.step + 1)
        began = time.perf_counter()
        step_batches = next(batches, None)
        waited = time.perf_counter() - began
        if step_batches is None:
            raise UserError(f"epoch {position.epoch} of the training data ended early, after {position.index} steps.")
        schedule, cuts = self.cfg.optimizer.schedule, progress.plateau.cuts
        if progress.step <= schedule.warmup_steps:
            progress.warmup_seconds = progress.agreed_seconds
        factor = optim.lr_factor(schedule, progress.step, position.epoch, self.total_steps, cuts, self._elapsed())
        self.epoch, self.lr = position.epoch, self.cfg.optimizer.lr * factor
        self._go_back()
        began += self.logger.count_flops(self.task, self.model, step_batches[0])  # once; not the step's time
        result = self.stepper.run(progress.step + 1, step_batches, self.lr, progress.seconds, self.interrupts.flags())
        took = time.perf_counter() - began
        progress.step += 1
        progress.seconds = result.seconds + took
        progress.agreed_seconds = result.seconds
        progress.tokens += result.tokens
        progress.window.add(result.loss, result.count, result.tokens, result.grad_norm, took, waited)
        position.index += 1
        if position.index >= self.steps_per_epoch:
            position.epoch, position.index = position.epoch + 1, 0
        self.logger.step(progress.step, self._share(), took, waited, result.exposed)
        self.tracer.after(progress.step)
        raise_if_requested(result.signals)

    def _elapsed(self) -> float | None:
        """The share of ``trainer.max_seconds`` after the warmup that has passed; None without that limit."""
        progress, limit = self.progress, self.cfg.trainer.max_seconds
        if limit is None:
            return None
        return (progress.agreed_seconds - progress.warmup_seconds) / max(limit - progress.warmup_seconds, 1e-9)

    def _after_step(self) -> None:
        """Whatever is due at this step and not yet done: record, validation, sample, checkpoint.

        A resumed run begins here, for what a signal has interrupted.
        """
        progress, trainer = self.progress, self.cfg.trainer
        step = progress.step
        if step == 0:
            return
        if step == 1 or step % trainer.log_every == 0:
            self._log_window()
        improved = False
        if _due(step, trainer.eval_every) and progress.eval_step != step:
            self._evaluate()
            improved = progress.best_step == step
        if _due(step, trainer.sample_every) and progress.sample_step != step:
            self._sample()
        # The best model so far is kept even between two periodic checkpoints. The last step's is _finish's.
        if (_due(step, trainer.checkpoint_every) or (improved and trainer.checkpoint_every > 0)) and not self._limit():
            self._save()

    def _go_back(self) -> None:
        """Start from the best model again, if validation has requested it: not before a step, so that what is saved,
        sampled and tested after a validation is the model that was validated.
        """
        back, self.progress.plateau.back = self.progress.plateau.back, False
        if back and self.stepper.go_back() and self.world.is_main:
            best = self.progress.plateau.best
            _log.info("back to the model of validation loss %.4f, with learning rate %.3g", best, self.lr)

    def _share(self) -> float:
        """The share of the training that is done, by the limit that is nearest; early stopping is not foreseen."""
        trainer, position = self.cfg.trainer, self.position
        done = [0.0]
        if trainer.max_steps is not None:
            done.append(self.progress.step / trainer.max_steps)
        if trainer.max_epochs is not None:
            done.append((position.epoch + position.index / self.steps_per_epoch) / trainer.max_epochs)
        if trainer.max_seconds is not None:
            done.append(self.progress.agreed_seconds / trainer.max_seconds)
        return min(max(done), 1.0)

    def _limit(self) -> str | None:
        """The setting that ends training now, or None."""
        trainer, progress = self.cfg.trainer, self.progress
        if trainer.max_steps is not None and progress.step >= trainer.max_steps:
            return "max_steps"
        if trainer.max_epochs is not None and self.position.epoch >= trainer.max_epochs:
            return "max_epochs"
        if trainer.max_seconds is not None and self.progress.agreed_seconds >= trainer.max_seconds:
            return "max_seconds"
        if trainer.patience is not None and progress.bad_evals >= trainer.patience:
            return "patience"
        if optim.below_min_lr(self.cfg.optimizer, progress.plateau.cuts):
            return "min_lr"
        return None

    def _finish(self, reason: str) -> None:
        """The last validation, record, sample and checkpoint, the test, the plot and the summary.

        After a signal, a resumed run goes on with the rest of them.
        """
        progress, position = self.progress, self.position
        if progress.eval_step != progress.step:
            self._evaluate()
        self._log_window()
        if progress.sample_step != progress.step:
            self._sample()
        self._save(final=True)
        self._test()
        parameters = sum(each.numel() for each in self.model.parameters() if each.requires_grad)
        self.logger.finish(progress, position.epoch + position.index / self.steps_per_epoch, parameters, reason)
        self._save(final=True)  # nothing, but where the run directory has gone meanwhile

    def _log_window(self) -> None:
        """Record the training loss since the last record."""
        self.activity.enter("record")
        window, self.progress.window = self.progress.window, Window()
        self.logger.train(window, self.progress, self.epoch, self.lr, self._share())

    def _evaluate(self) -> None:
        """Validate and remember the best.

        A checkpoint that is due with it is written before as well: validation may take long, and not be survived.
        """
        progress = self.progress
        if _due(progress.step, self.cfg.trainer.checkpoint_every) or self._limit():
            self._save()
        self.activity.enter("validation")
        figures = evaluate.evaluate(self.cfg, self.task, self.model, self.world, self.interrupts, self.activity)
        progress.eval_step = progress.step
        if not figures:
            return
        loss, due = figures.pop("loss"), _due(progress.step, self.cfg.trainer.eval_every)
        progress.validated(loss, figures, due)
        schedule = self.cfg.optimizer.schedule
        plateau = due and schedule.name == "plateau"
        if plateau and progress.plateau.see(loss, schedule.patience, schedule.threshold):
            self.stepper.keep()
        self.logger.validation(progress.step, loss, figures)

    def _sample(self) -> None:
        """Rank 0 shows and keeps a sample."""
        self.activity.enter("sample")
        text = evaluate.sample(self.cfg, self.task, self.model, self.world, self.interrupts, self.progress.step)
        self.progress.sample_step = self.progress.step
        if text is not None:
            self.logger.sample(self.progress.step, text)

    def _test(self) -> None:
        """Rank 0 tests the best model and draws pictures of what it does."""
        self.activity.enter("test")
        outcome = evaluate.test(
            self.cfg, self.task, lambda: snapshot.best_model(self.run_dir, self.job, self.model, self.progress),
            self.world, self.interrupts, self.progress.step,
        )  # fmt: skip
        if outcome is not None:
            tested, of_step = outcome
            if tested.figures:
                self.logger.test(self.progress.step, of_step, tested.figures, tested.signatures)
            self.logger.pictures(self.progress.step, tested.pictures)

    def _save(self, final: bool = False) -> None:
        """Write a checkpoint of this step, unless there is one that knows of all that was done at it.

        A full disk costs a periodic checkpoint, with a warning, as long as there is an older one to go back to;
        it is an error where there is none and at the end.
        """
        self.activity.enter("checkpoint")
        where = self.world.on_main(self.logger.directory)
        final = final or where != self.run_dir
        if self.writer is not None:
            try:
                self.writer.wait()  # for the one before
            except UserError as problem:
                self._go_on(problem, where, again=final)
                self.saved = None
        try:
            self._write(where)
            if final and self.writer is not None:
                self.writer.wait()
        except UserError as problem:
            if final:
                raise
            self._go_on(problem, where)
        if where != self.run_dir:
            raise AgreedError(
                f"the run directory {self.run_dir} was renamed while it was written to, and is now {where}: training "
                f"has stopped at step {self.progress.step}, with a checkpoint there to resume from."
            )

    def _go_on(self, problem: UserError, run_dir: Path, again: bool = False) -> None:
        """Warn of a checkpoint that was not written; raise where there is none to go back to, and no other try."""
        if not again and not self.world.on_main(lambda: bool(checkpoint.listing(run_dir))):
            raise problem
        if self.world.is_main and str(problem) != self.warned:
            self.warned = str(problem)
            _log.warning("%s %s", problem, "Trying again." if again else "Training goes on.")

    def _write(self, run_dir: Path) -> None:
        if self.saved != self.progress.done:
            snapshot.save(
                run_dir, self.cfg, self.job, self.task, self.stepper, self.world, self.position, self.progress,
                {**self.logger.state_dict(), "fingerprint": self.fingerprint}, self.writer,
            )  # fmt: skip
            self.saved = self.progress.done


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _total_steps(trainer: TrainerConfig, steps_per_epoch: int) -> int | None:
    """The last step, where it is known beforehand."""
    bounds = [] if trainer.max_steps is None else [trainer.max_steps]
    bounds += [] if trainer.max_epochs is None else [trainer.max_epochs * steps_per_epoch]
    return min(bounds, default=None)
