"""Language modelling at character, byte or word level, with the state carried across batches.

T: time steps, B: batch, V: vocabulary, H: hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prnn.config import COUNT, FLOAT, ModelConfig, Ranges, above, one_of, within
from prnn.config.structure import Count
from prnn.data.corpora import find_text
from prnn.data.encoding import Tokens, encode
from prnn.data.sampler import EvalStreams, TrainStreams
from prnn.data.text import LEVELS, Decoder, Vocabulary, VocabularyState, from_state
from prnn.errors import UserError
from prnn.nn import Stream, build
from prnn.task import Batch, Position, Shard, State, Task, map_state
from prnn.tasks.decode import MOST_TOKENS, Decoding, Score, stream
from prnn.tasks.losses import summed_cross_entropy

EVAL_POSITIONS = 4096  # predictions in one piece of the validation text, or fewer:
MOST_STREAMS = 1 << 20  # upper bound of task.eval_streams
EVAL_LOGITS = 1 << 23  # upper bound of a piece's logits (32 MiB in float32)


@dataclass
class Config:
    """The section ``task``."""

    name: str = "char_lm"
    bptt: int = 50  # T, time steps of backpropagation through time; the state is carried beyond
    eval_streams: int = 1  # parallel streams of the validation text; 1: state carried through all of it, in one process
    eval_tokens: int | None = None  # validate on this many tokens from the beginning of the validation part; null: all
    prompt: str | None = None  # the prompt of a sample; null: a newline
    sample_length: int = 500  # tokens in each sample shown during training
    temperature: float = 0.8  # of those samples
    top_k: int = 0  # of those samples: sample from the k most probable tokens; 0: from all
    top_p: float = 1.0  # of those samples: sample from the fewest most probable tokens with total probability p

    RANGES: ClassVar[Ranges] = {
        "bptt": within(1, COUNT),
        "eval_streams": within(1, MOST_STREAMS),
        "eval_tokens": within(2, COUNT),
        "sample_length": within(0, MOST_TOKENS),
        "temperature": within(0, FLOAT),
        "top_k": within(0, COUNT),
        "top_p": above(0, 1),
    }
    counts_tokens = True  # trainer.batch_tokens can be given

    def sequences(self, trainer: Any) -> int:
        """The sequences of a global batch."""
        return trainer.batch_size if trainer.batch_tokens is None else trainer.batch_tokens // self.bptt

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for settings that exclude each other; ``cfg`` is the whole ``TrainConfig``."""
        if self.sequences(cfg.trainer) < 1:
            raise UserError(
                f"trainer.batch_tokens={cfg.trainer.batch_tokens} must be at least task.bptt={self.bptt}: one sequence."
            )

    def decoding(self, seed: int) -> Decoding:
        return Decoding(self.sample_length, self.temperature, self.top_k, self.top_p, seed=seed)


@dataclass
class DataConfig:
    """The section ``data``."""

    name: str = "shakespeare"  # shakespeare (comes with prnn), or the name of a corpus with a url
    path: str | None = None  # a text of yours instead: a file, folder or pattern (docs/data.md), compressed or not
    url: str | None = None  # download address of the named corpus, if neither PRNN_DATA nor the cache has it
    sha256: str | None = None  # of that file; null: not checked
    level: str = "char"  # what a token is: char, byte or word
    max_words: int = 10_000  # word level: size of the vocabulary; rarer words become <unk>
    fraction: float = 1.0  # of the text that is taken, in blocks of about 16 KiB spread evenly over it
    val_fraction: float = 0.1  # fraction of what is taken, at its end, held out for validation

    RANGES: ClassVar[Ranges] = {
        "level": one_of(*LEVELS),
        "max_words": within(2, COUNT),  # one of them is <unk>
        "fraction": above(0, 1),
        "val_fraction": (lambda value: 0 < value < 1, "above 0 and below 1"),
    }


class CharModel(nn.Module):
    """Embedding or one-hot vectors, recurrent layers, a linear decoder."""

    def __init__(self, vocabulary_size: int, model: ModelConfig) -> None:
        super().__init__()
        width = model.embedding_size or vocabulary_size
        if model.embedding_size:
            self.embedding = nn.Parameter(torch.randn(vocabulary_size, width))
        else:
            # One-hot vectors as rows of an identity matrix: copying rows is the fastest way to build them.
            self.register_buffer("embedding", torch.eye(vocabulary_size), persistent=False)
        self.recurrent: nn.Module = build(model, width)
        self.dropout = nn.Dropout(model.dropout)
        self.decoder = nn.Linear(model.hidden_size, vocabulary_size)

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Tokens [T, B] int64 and the initial state -> logits [T, B, V] and the final state."""
        output, state = self.recurrent(F.embedding(tokens, self.embedding), state)
        return self.decoder(self.dropout(output)), state


class Saved(TypedDict):
    """The task's state in a checkpoint."""

    vocabulary: VocabularyState
    tokens: Count


class CharLM(Task):
    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    Saved: ClassVar[Any] = Saved

    def __init__(self, cfg: Any, state: dict[str, Any] | None) -> None:
        self.cfg = cfg
        self._state = state
        self._streams: tuple[TrainStreams, EvalStreams] | None = None
        self.vocabulary: Vocabulary
        if state is None:
            self._open()
        else:
            self.vocabulary = from_state(state["vocabulary"])
        self.unit = self.vocabulary.unit

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> CharLM:
        return cls(cfg, state)

    def state_dict(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.state_dict(), "tokens": len(self._open()[0].tokens)}

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.state_dict(), self._open()[0].tokens.digest]).encode()).hexdigest()

    def build_model(self) -> nn.Module:
        return CharModel(len(self.vocabulary), self.cfg.model)

    def example(self) -> Tensor:
        return torch.arange(len(self.vocabulary))[:, None]

    def pieces(self) -> tuple[tuple[bytes, ...], int, str]:
        vocabulary = self.vocabulary
        symbols = vocabulary.state_dict().get("symbols")
        of_bytes = tuple(bytes([number]) for number in range(256))
        pieces = of_bytes if symbols is None else tuple(each.encode("utf-8", "surrogateescape") for each in symbols)
        return pieces, vocabulary.start, vocabulary.level

    def steps_per_epoch(self) -> int:
        return self._open()[0].steps

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        streams, _ = self._open()
        for index in range(position.index, streams.steps):
            make = partial(self._train_batch, streams, position.epoch, index)
            yield shard.batches(streams.batch_size, make)

    def _train_batch(self, streams: TrainStreams, epoch: int, index: int, rows: slice) -> Batch:
        inputs, targets = streams.batch(epoch, index, rows)
        tensors = {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        return Batch(tensors, count=targets.size, tokens=targets.size, reset_state=index == 0)

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        logits, state = model(batch.tensors["inputs"], state)
        loss = summed_cross_entropy(logits, batch.tensors["targets"])
        return loss, map_state(Tensor.detach, state)

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        _, streams = self._open()
        positions = min(EVAL_POSITIONS, EVAL_LOGITS // len(self.vocabulary))
        length = max(1, positions // -(-streams.streams // shard.world_size))
        for i, (inputs, targets, count) in enumerate(streams.pieces(shard.rank, shard.world_size, length)):
            tensors = {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
            yield Batch(tensors, count=count, tokens=count, reset_state=i == 0)

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        task = self.cfg.task
        if not task.sample_length:
            return None
        pieces = self.generate(model, device, task.prompt, task.decoding(seed=self.cfg.seed))
        prompt = (task.prompt or "").encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # of level byte
        return prompt + "".join(pieces)

    def generate(self, model: nn.Module, device: torch.device, prompt: str | None, decoding: Decoding) -> Iterator[str]:
        """The text after ``prompt``, in pieces, as it is generated; None: after a newline.

        Raises ``UserError`` for a character of the prompt that is not in the vocabulary.
        """
        tokens, decoder = self._prompt_tokens(prompt), self.vocabulary.decoder()
        for token in tokens if prompt else ():
            decoder.push(token)  # for the spacing after the prompt's last word
        return _generate(model, torch.tensor(tokens, device=device)[:, None], decoder, decoding)

    def score(self, model: nn.Module, device: torch.device, text: str, prompt: str | None) -> Score:
        """The probability of ``text`` after ``prompt``; None: after a newline. Raises the same as ``generate``."""
        before, scored = self._prompt_tokens(prompt), self.vocabulary.encode(text, "the text to score")
        if not len(scored):
            raise UserError("the text to score is empty: it must have at least one token.")
        tokens = torch.tensor([*before, *scored.tolist()], device=device)[:, None]
        positions = max(1, min(EVAL_POSITIONS, EVAL_LOGITS // len(self.vocabulary)))
        nats, state, training = 0.0, None, model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, len(tokens) - 1, positions):
                logits, state = model(tokens[:-1][start : start + positions], state)
                targets = tokens[1 + start :][:positions]
                log_probs = logits.double().log_softmax(-1).gather(-1, targets[..., None]).flatten()
                nats += float(log_probs[max(0, len(before) - 1 - start) :].sum())
        model.train(training)
        return Score(nats, tokens=len(scored), characters=len(text))

    def _prompt_tokens(self, prompt: str | None, what: str = "the prompt") -> list[int]:
        return self.vocabulary.encode(prompt or "", what).tolist() or [self.vocabulary.start]

    def _open(self) -> tuple[TrainStreams, EvalStreams]:
        """Look up and encode the text, once."""
        if self._streams is None:
            cfg, data = self.cfg, self.cfg.data
            text = find_text(data.name, data.path, data.url, data.sha256)
            tokens, vocabulary = encode(text, data.level, data.max_words, data.fraction)
            if self._state is None:
                self.vocabulary = vocabulary
            elif self._state != {"vocabulary": vocabulary.state_dict(), "tokens": len(tokens)}:
                what = text.name if data.fraction == 1 else f"data.fraction={data.fraction} of {text.name}"
                raise UserError(
                    f"{what} is not the text the checkpoint was trained on: give that text, or begin a new run."
                )
            self._prompt_tokens(cfg.task.prompt, f"task.prompt={cfg.task.prompt!r}")  # reported at the start
            self._streams = _split(cfg, tokens)
        return self._streams


def _split(cfg: Any, tokens: Tokens) -> tuple[TrainStreams, EvalStreams]:
    """The training and the validation part, in this order: of 1,115,394 tokens and 0.1, 1,003,854 and 111,540."""
    stop = len(tokens) if cfg.task.eval_tokens is None else cfg.task.eval_tokens
    middle = int(len(tokens) * (1 - cfg.data.val_fraction))
    train = TrainStreams(tokens, 0, middle, cfg.task.sequences(cfg.trainer), cfg.task.bptt, cfg.seed)
    if len(tokens) - middle < 2:
        raise UserError(
            f"data.val_fraction={cfg.data.val_fraction} of {len(tokens):,} tokens leaves {len(tokens) - middle} "
            "to validate on: at least 2 are needed."
        )
    return train, EvalStreams(tokens, middle, min(middle + stop, len(tokens)), cfg.task.eval_streams)


def _generate(model: nn.Module, prompt: Tensor, decoder: Decoder, decoding: Decoding) -> Iterator[str]:
    """``prompt`` [P, 1]: the tokens before the first generated one."""
    tokens = Stream(model)

    def step(last: Tensor, state: State) -> tuple[Tensor, State]:
        if state is not tokens.state:  # of other sequences than the last step's
            tokens.state = state
        return tokens.push(last[None])[-1], tokens.state

    logits = tokens.push(prompt)[-1]
    yield from stream(step, logits, tokens.state, decoder, decoding)


TASK = CharLM
