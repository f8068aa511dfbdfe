"""Algorithmic patterns, predicted character by character by a network with stacks or lists.

Joulin and Mikolov: Inferring Algorithmic Patterns with Stack-Augmented Recurrent Nets (2015), arXiv:1503.01007.

T: time steps, B: rows of sequences, V: characters, H: hidden size, S: memories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prnn.config import COUNT, FLOAT, SIZE, ModelConfig, Ranges, one_of, within
from prnn.data.algorithmic import PROBLEMS, Problem, Rows, rows
from prnn.data.sampler import IGNORED
from prnn.errors import UserError
from prnn.nn import ListRNN, StackRNN, build
from prnn.nn.stack import PARAMETERS
from prnn.task import Batch, Position, Shard, State, Task, TaskResults
from prnn.tasks.generalization import Outcome, draw_memories, draw_sizes, solve, trace
from prnn.tasks.losses import summed_cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORIES = ("stack", "list", "none")
MOST_DRAWN = 1 << 26  # sequences times size, generated at once: some 3 GB of a few characters each
VALIDATION_ROWS, VALIDATION_LEAST = 100, 20  # as in the paper's code: 1,000 sequences, at least up to this size
VALIDATION_SEED, TEST_SEED = 1, 2  # the data are the same for every run


@dataclass
class Config:
    """The section ``task``."""

    name: str = "stack_rnn"
    problem: str = "anbn"  # the pattern: see prnn/data/algorithmic.py
    memory: str = "stack"  # stack, list, or none: a plain recurrent network of model.cell, for comparison
    memories: int = 10  # S, stacks or lists
    depth: int = 2  # K, cells of each that the hidden layer reads
    capacity: int = 200  # N, cells of each; values pushed beyond are lost
    no_op: bool = False  # stacks have a third action, NO-OP (lists always have three)
    recurrent: bool = False  # recurrent connections of the hidden layer (the paper's matrix R)
    init_std: float = 0.5  # standard deviation of the initial weights of a network with memories
    init_std_ih: float | None = None  # of its weights of the input instead; null: init_std
    init_std_read: float | None = None  # of its weights of the cells read instead; null: init_std
    validate_answers: bool = False  # validate on the characters alone that those before them determine
    rounds: bool = False  # validate, and so select the best model, with hard (argmax) actions
    noise: float = 0.0  # standard deviation of noise on the hidden pre-activations in training: units become 0 or 1
    value_noise: float = 0.0  # of noise on the values pushed in training: cells come to hold one bit each
    action_noise: float = 0.0  # of noise on the actions in training: memories do not drift in longer sequences
    flips: float = 0.0  # probability that a pushed value is replaced by 0 or 1 in training: it has to be kept in place
    noise_epochs: int = 0  # over which action_noise rises from 0 and flips fall to 0, linearly; 0: they are constant
    test_size: int = 59  # the test covers the sizes 2 to this
    test_sequences: int = 200  # of each size, concatenated
    test_row: int | None = None  # the test resets memories after this many, a divisor of test_sequences; null: never

    RANGES: ClassVar[Ranges] = {
        "problem": one_of(*PROBLEMS),
        "memory": one_of(*MEMORIES),
        "memories": within(1, SIZE),
        "depth": within(1, SIZE),
        "capacity": within(1, SIZE),
        "init_std": within(0, FLOAT),
        "init_std_ih": within(0, FLOAT),
        "init_std_read": within(0, FLOAT),
        "noise": within(0, FLOAT),
        "value_noise": within(0, 100),
        "action_noise": within(0, 100),
        "flips": within(0, 1),
        "noise_epochs": within(0, COUNT),
        "test_size": within(2, SIZE),
        "test_sequences": within(2, COUNT),
    }

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for settings that exclude each other; ``cfg`` is the whole ``TrainConfig``."""
        if self.test_row is not None and (self.test_row < 1 or self.test_sequences % self.test_row):
            raise UserError(
                f"task.test_row={self.test_row} must be null or a divisor of task.test_sequences={self.test_sequences}."
            )
        if self.test_size**2 * self.test_sequences > MOST_DRAWN:
            raise UserError(
                f"task.test_sequences={self.test_sequences} of each size up to task.test_size={self.test_size} are too "
                f"many: test_sequences x test_size x test_size must be at most {MOST_DRAWN:,}."
            )
        head = self.capacity // 2 if self.memory == "list" else 0
        if head + self.depth > self.capacity:
            raise UserError(
                f"task.depth={self.depth} must be at most {self.capacity - head} for a {self.memory} of "
                f"task.capacity={self.capacity} cells."
            )
        if cfg.trainer.compile and self.memory != "none":
            raise UserError(
                f"trainer.compile=true is not supported with task.memory={self.memory}, whose steps are already one "
                "kernel: set trainer.compile=false."
            )


@dataclass
class DataConfig:
    """The section ``data``: sequences are generated on demand."""

    name: str = "algorithmic"
    max_size: int = 15  # the largest n in training
    growing: bool = True  # curriculum: in epoch e (from 0) sizes go up to e + 3 only, until that is max_size
    sequences: int = 2000  # in an epoch
    row: int = 5  # sequences concatenated in a row, with empty memories before the first; trainer.batch_size is rows

    RANGES: ClassVar[Ranges] = {"max_size": within(2, SIZE), "sequences": within(1, COUNT), "row": within(1, COUNT)}

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for settings that exclude each other; ``cfg`` is the whole ``TrainConfig``."""
        if self.sequences < self.row * cfg.trainer.batch_size:
            raise UserError(
                f"data.sequences={self.sequences} must fill at least one batch: data.row={self.row} x "
                f"trainer.batch_size={cfg.trainer.batch_size} = {self.row * cfg.trainer.batch_size}."
            )
        if self.row * cfg.trainer.batch_size * self.max_size > MOST_DRAWN:
            raise UserError(
                f"data.row={self.row} x trainer.batch_size={cfg.trainer.batch_size} sequences of data.max_size="
                f"{self.max_size} are generated at once: the product of the three must be at most {MOST_DRAWN:,}."
            )


class PatternModel(nn.Module):
    """One-hot characters, a network with memories (or a plain recurrent one), a linear decoder without bias."""

    def __init__(self, characters: int, task: Config, model: ModelConfig) -> None:
        super().__init__()
        self.characters = characters
        self.noise = {"noise": task.noise, "value_noise": task.value_noise}
        H, S = model.hidden_size, task.memories
        own = {"weight_ih": task.init_std_ih, "weight_read": task.init_std_read}
        std = {**dict.fromkeys(PARAMETERS, task.init_std), **{k: v for k, v in own.items() if v is not None}}
        self.recurrent: nn.Module
        if task.memory == "stack":
            self.recurrent = StackRNN(
                characters, H, S, task.depth, task.capacity, task.no_op, task.recurrent, init_std=std
            )
        elif task.memory == "list":
            self.recurrent = ListRNN(characters, H, S, task.depth, task.capacity, task.recurrent, init_std=std)
        else:
            self.recurrent = build(model, characters)
        self.dropout = nn.Dropout(model.dropout)
        self.decoder = nn.Linear(H, characters, bias=False)

    def forward(
        self, tokens: Tensor, state: State = None, rounds: bool = False, **noise: float
    ) -> tuple[Tensor, State]:
        """Tokens [T,B] -> logits [T,B,V] and the final state; ``rounds``: hard (argmax) actions; ``noise``: what varies
        from epoch to epoch.
        """
        x = F.one_hot(tokens, self.characters).to(self.decoder.weight.dtype)
        if isinstance(self.recurrent, StackRNN | ListRNN):
            drawn = {**self.noise, **noise} if self.training else {}
            output, state = self.recurrent(x, state, rounds=rounds, **drawn)
        else:
            output, state = self.recurrent(x, state)
        return self.decoder(self.dropout(output)), state


class StackTask(Task):
    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    unit = "characters"

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.problem: Problem = PROBLEMS[cfg.task.problem]

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> StackTask:
        return cls(cfg)

    def state_dict(self) -> dict[str, Any]:
        return {"alphabet": self.problem.alphabet}

    def build_model(self) -> nn.Module:
        return PatternModel(len(self.problem.alphabet), self.cfg.task, self.cfg.model)

    def example(self) -> Tensor:
        return torch.arange(len(self.problem.alphabet))[:, None]

    def steps_per_epoch(self) -> int:
        return self.cfg.data.sequences // (self.cfg.data.row * self.cfg.trainer.batch_size)

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        data, B = self.cfg.data, self.cfg.trainer.batch_size
        largest = min(position.epoch + 3, data.max_size) if data.growing else data.max_size
        noise = self._noise(position.epoch)
        for index in range(position.index, self.steps_per_epoch()):
            random = np.random.default_rng([self.cfg.seed, position.epoch, index])
            drawn = rows(self.problem, random, random.integers(2, largest + 1, (B, data.row)).tolist())
            yield shard.batches(B, partial(self._batch, drawn, answers=self.problem.answers, noise=noise))

    def _noise(self, epoch: int) -> dict[str, float]:
        """The settings of noise that vary, for an epoch counted from 0."""
        task = self.cfg.task
        if not task.noise_epochs:
            return {"action_noise": task.action_noise, "flips": task.flips}
        done = min(1.0, epoch / task.noise_epochs)
        return {"action_noise": task.action_noise * done, "flips": task.flips * (1.0 - done)}

    def _batch(self, drawn: Rows, which: slice, answers: bool, noise: dict[str, float] | None = None) -> Batch:
        """The rows ``which``, truncated to the longest of them; ``answers``: with determined characters alone as
        targets.
        """
        targets, known = drawn.targets[:, which], drawn.known[:, which]
        T = int((targets != IGNORED).any(1).sum())
        inputs, targets, known = drawn.inputs[:T, which], targets[:T], known[:T]
        characters = int((targets != IGNORED).sum())
        if answers:
            targets = np.where(known, targets, IGNORED)
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in (("inputs", inputs), ("targets", targets))
        }
        return Batch(tensors, count=int((targets != IGNORED).sum()), tokens=characters, numbers=noise or {})

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        logits, _ = model(batch.tensors["inputs"], **batch.numbers)
        return summed_cross_entropy(logits, batch.tensors["targets"]), None

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        part = shard.part(VALIDATION_ROWS)
        if part:
            answers = self.problem.answers or self.cfg.task.validate_answers
            yield self._batch(self._validation, slice(part.start, part.stop), answers)

    @cached_property
    def _validation(self) -> Rows:
        largest = max(self.cfg.data.max_size, VALIDATION_LEAST if self.cfg.task.memory != "none" else 0)
        random = np.random.default_rng(VALIDATION_SEED)
        return rows(self.problem, random, random.integers(2, largest + 1, (VALIDATION_ROWS, 10)).tolist())

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        logits, _ = model(batch.tensors["inputs"], rounds=self.cfg.task.rounds)  # where there are memories
        return {"loss": summed_cross_entropy(logits, batch.tensors["targets"])}, None

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        """``solved``: the fraction of sizes 2 to ``test_size`` with every sequence correct (see ``generalization``),
        and with memories ``solved_rounded``, the same with hard actions; a plot of accuracy by size, and one of the
        memories.
        """
        task = self.cfg.task
        row = task.test_row or task.test_sequences
        sizes = [n for n in range(2, task.test_size + 1) for _ in range(task.test_sequences // row)]
        extra = 1 if self.problem.opens else 0  # its first character tests whether the last one's end was detected
        drawn = rows(self.problem, np.random.default_rng(TEST_SEED), [[n] * (row + extra) for n in sizes])

        def solved(rounds: bool) -> Outcome:
            def predict(tokens: Tensor, state: State) -> tuple[Tensor, State]:
                logits, state = model(tokens, state, rounds=rounds)
                return logits.argmax(-1), state

            return solve(predict, drawn, sizes, self.problem.opens, device)

        outcomes = {"as trained": solved(rounds=False)}
        figures = outcomes["as trained"].figures()
        pictures: dict[str, Callable[[], Figure]] = {"sizes": partial(draw_sizes, outcomes, self.cfg.data.max_size)}
        assert isinstance(model, PatternModel)
        if isinstance(model.recurrent, StackRNN | ListRNN):
            outcomes["actions rounded"] = solved(rounds=True)
            figures |= {f"{name}_rounded": value for name, value in outcomes["actions rounded"].figures().items()}
            shown = rows(self.problem, np.random.default_rng(TEST_SEED), [[4, 7, 5]])
            traced = trace(model.recurrent, model.decoder, self.problem, shown, device)
            pictures["memories"] = partial(draw_memories, traced, model.recurrent.kind, self.problem, shown)
        return TaskResults(figures, pictures)


TASK = StackTask
