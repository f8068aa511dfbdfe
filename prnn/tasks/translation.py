"""Translation with an encoder-decoder model.

S: source steps, T: target steps, B: batch, N: sentences of a batched search, V: target vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from prnn.config import FRACTION, PYTHON_CELL, Ranges, one_of, within
from prnn.config.structure import Rule
from prnn.data.bucketing import Buckets, TokenBuckets
from prnn.data.parallel_corpora import DataConfig, find_pairs
from prnn.data.parallel_text import BOS, EOS, PAD, SPECIAL, Pair, Parts, Symbols, SymbolsState
from prnn.errors import UserError
from prnn.nn.seq2seq import ATTENTIONS, Seq2Seq
from prnn.task import Batch, Position, Shard, State, Task, TaskResults
from prnn.tasks.decode import MOST_BEAMS, MOST_LENGTH_PENALTY
from prnn.tasks.losses import summed_cross_entropy
from prnn.tasks.searching import Tokens, attention_of, heat_map, make_batch, search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVAL_SENTENCES = 128  # in one piece of the validation data, or fewer:
EVAL_LOGITS = 1 << 23  # upper bound of a piece's logits (32 MiB in float32)
LONGEST = 10_000  # tokens of a translation: an untrained model may generate them all
SEARCHED_TOGETHER = 64  # batch size of the search
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # sacreBLEU's tokenizers without further dependencies
EXAMPLES = 5  # validation sentences shown in samples and pictures
# Thai, Lao, Myanmar, Khmer, kana and Han.
WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

_log = logging.getLogger(__name__)


@dataclass
class Config:
    """The section ``task``."""

    name: str = "translation"
    attention: str = "bahdanau"  # luong, dot (Luong's, without a matrix), bahdanau or none
    bidirectional: bool = True  # bidirectional encoder
    bridge: bool = True  # the decoder's initial state is the encoder's final one; false: zeros
    beam: int = 5  # beam width; 1: greedy
    length_penalty: float = 1.0  # ranking by log-probability over length to this power; 0 favours short translations
    max_length: int | None = None  # maximum tokens of a translation; null: twice the source's plus 10
    label_smoothing: float = 0.0  # probability mass spread over the vocabulary; in training only
    bleu_tokenize: str | None = None  # sacreBLEU's tokenizer: 13a, intl, zh, char or none; null: by data.level

    RANGES: ClassVar[Ranges] = {
        "attention": one_of(*ATTENTIONS),
        "beam": within(1, MOST_BEAMS),
        "length_penalty": within(0, MOST_LENGTH_PENALTY),
        "max_length": within(1, LONGEST),
        "label_smoothing": FRACTION,
        "bleu_tokenize": one_of(*BLEU_TOKENIZERS),
    }
    counts_tokens = True  # trainer.batch_tokens is supported: target tokens, about the same number in each batch

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for settings that exclude each other; ``cfg`` is the whole ``TrainConfig``."""
        if self.attention == "dot" and self.bidirectional:
            raise UserError(
                "task.attention=dot requires states of the same width, so it needs task.bidirectional=false; "
                "task.attention=luong supports both."
            )
        if self.attention == "none" and not self.bridge:
            raise UserError("task.attention=none with task.bridge=false gives the decoder no access to the source.")
        if PYTHON_CELL.fullmatch(cfg.model.cell):
            raise UserError(
                f"model.cell={cfg.model.cell} is written in Python, and task=translation takes built-in cells alone, "
                "whose states its bridge knows: set model=gru or model=lstm."
            )
        if not cfg.model.embedding_size:
            raise UserError("model.embedding_size=0 must be at least 1 for task=translation: tokens are embedded.")


@dataclass(frozen=True)
class _Opened:
    """The pairs, and the tokens of the training and validation pairs."""

    parts: Parts
    train: list[Tokens]
    dev: list[Tokens]
    buckets: Buckets | TokenBuckets


class Saved(TypedDict):
    """The task's state in a checkpoint."""

    source: SymbolsState
    target: SymbolsState
    pairs: str
    examples: list[Annotated[list[str], Rule(lambda pair: len(pair) == 2, "a text and its translation")]]


class Translation(Task):
    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    Saved: ClassVar[Any] = Saved
    unit = "target tokens"

    def __init__(self, cfg: Any, state: dict[str, Any] | None) -> None:
        self.cfg = cfg
        self._state = state
        self._opened: _Opened | None = None
        self.source: Symbols
        self.target: Symbols
        self.examples: list[Pair]
        if state is None:
            self._open()
        else:
            self.source, self.target = (Symbols.from_state(state[side]) for side in ("source", "target"))
            self.examples = [(source, target) for source, target in state["examples"]]

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> Translation:
        return cls(cfg, state)

    def fingerprint(self) -> str:
        return self.state_dict()["pairs"]

    def state_dict(self) -> dict[str, Any]:
        parts = self._open().parts
        return {
            "source": self.source.state_dict(),
            "target": self.target.state_dict(),
            "pairs": hashlib.sha256(repr((parts.train, parts.dev, parts.test)).encode()).hexdigest(),
            "examples": [list(pair) for pair in self.examples],
        }

    def build_model(self) -> nn.Module:
        task = self.cfg.task
        return Seq2Seq(
            len(self.source), len(self.target), self.cfg.model, task.attention, task.bidirectional, task.bridge
        )

    # Batches and loss

    def steps_per_epoch(self) -> int:
        return self._open().buckets.steps

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        opened = self._open()
        for rows in opened.buckets.epoch(position.epoch)[position.index :]:
            yield shard.batches(len(rows), partial(self._train_batch, opened.train, rows))

    def _train_batch(self, train: list[Tokens], rows: np.ndarray, which: slice) -> Batch:
        return make_batch([train[row] for row in rows[which]])

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        pairs = sorted(self._open().dev, key=lambda pair: (len(pair[0]), len(pair[1])))
        return (make_batch(piece) for piece in self._pieces(pairs)[shard.rank :: shard.world_size])

    def _pieces(self, pairs: list[Tokens]) -> list[list[Tokens]]:
        longest = max((len(target) + 1 for _, target in pairs), default=1)
        size = max(1, min(EVAL_SENTENCES, EVAL_LOGITS // (longest * len(self.target))))
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        smoothing = self.cfg.task.label_smoothing if model.training else 0.0
        return summed_cross_entropy(_logits(model, batch), batch.tensors["targets"], PAD, smoothing), None

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        logits, targets = _logits(model, batch), batch.tensors["targets"]
        correct = (logits.argmax(-1) == targets) & (targets != PAD)
        return {"loss": summed_cross_entropy(logits, targets, PAD), "accuracy": correct.sum()}, None

    # Translations

    def translate(
        self,
        model: nn.Module,
        device: torch.device,
        lines: Iterable[str],
        beam: int | None = None,
        length_penalty: float | None = None,
    ) -> Iterator[str]:
        """Translate line by line, each as soon as it is read."""
        for line in lines:
            yield self._translations(model, device, [line], beam, length_penalty)[0]

    def _translations(
        self,
        model: nn.Module,
        device: torch.device,
        lines: Sequence[str],
        beam: int | None = None,
        length_penalty: float | None = None,
    ) -> list[str]:
        """The translations of ``lines``, "" for a line without tokens. Sentences of similar length are batched."""
        task = self.cfg.task
        width = task.beam if beam is None else beam
        penalty = task.length_penalty if length_penalty is None else length_penalty
        sources = [self.source.encode(line) for line in lines]
        order = sorted((row for row in range(len(lines)) if len(sources[row])), key=lambda row: len(sources[row]))
        translations = [""] * len(lines)
        for start in range(0, len(order), SEARCHED_TOGETHER):
            rows = order[start : start + SEARCHED_TOGETHER]
            best = self._search(model, [sources[row] for row in rows], width, penalty)
            for row, tokens in zip(rows, best, strict=True):
                translations[row] = self.target.decode(tokens)
        return translations

    def _search(self, model: nn.Module, sources: list[np.ndarray], width: int, penalty: float) -> list[tuple[int, ...]]:
        assert isinstance(model, Seq2Seq)
        bound = self.cfg.task.max_length
        return search(model, sources, [bound or 2 * len(source) + 10 for source in sources], width, penalty)

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        if not self.examples:
            return None
        outputs = self._translations(model, device, [source for source, _ in self.examples])
        return "\n\n".join(
            f"source     {source}\nreference  {target}\noutput     {output}"
            for (source, target), output in zip(self.examples, outputs, strict=True)
        )

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        tested = TaskResults(pictures=self._pictures(model))
        if pairs := self._open().parts.test:
            tested.figures = self._test_loss(model, device, pairs)
            outputs = self._translations(model, device, [source for source, _ in pairs])
            references = [target for _, target in pairs]
            tested.figures["exact"] = sum(
                self.target.split(output) == self.target.split(target)
                for output, target in zip(outputs, references, strict=True)
            ) / len(pairs)  # fmt: skip
            if (bleu := self._bleu(outputs, references)) is not None:
                tested.figures["bleu"], tested.signatures["bleu"] = bleu
        return tested

    def _bleu(self, outputs: list[str], references: list[str]) -> tuple[float, str] | None:
        """Corpus BLEU and sacreBLEU's signature; None, with a warning, where it cannot be computed.

        Tokenised by ``task.bleu_tokenize``, or like the data: characters, or words by 13a. Case-insensitive for
        lower-cased data. BLEU, of n-grams up to four, is undefined for a corpus without a reference of four tokens:
        sacreBLEU gives 0 for the references themselves, and shorter n-grams would be another metric.
        """
        try:
            from sacrebleu.metrics import BLEU
        except ImportError:
            _log.warning("BLEU is skipped in the test: it needs the package sacrebleu (the extra `translation`).")
            return None
        tokenize = self.cfg.task.bleu_tokenize or ("char" if self.cfg.data.level == "char" else "13a")
        metric = BLEU(lowercase=self.cfg.data.lowercase, tokenize=tokenize)
        if not metric.corpus_score(references, [references]).score:
            _log.warning(
                "BLEU is skipped in the test: no reference has four tokens of sacreBLEU's tokenizer %s "
                "(task.bleu_tokenize; char and zh are for text without spaces).", tokenize,
            )  # fmt: skip
            return None
        chosen = self.cfg.task.bleu_tokenize is not None or tokenize != "13a"
        if not chosen and _are_without_spaces(references, metric.tokenizer):
            _log.warning(
                "BLEU is skipped in the test: most references are in a script without spaces and have fewer than four "
                "tokens of sacreBLEU's tokenizer %s: set task.bleu_tokenize to zh or char.", tokenize,
            )  # fmt: skip
            return None
        score, signature = metric.corpus_score(outputs, [references]).score, str(metric.get_signature())
        _log.info("BLEU %.2f (%s)", score, signature)
        return score, signature

    def _test_loss(self, model: nn.Module, device: torch.device, pairs: list[Pair]) -> dict[str, float]:
        total, count = 0.0, 0
        tokens = sorted(self._tokens(pairs), key=lambda pair: (len(pair[0]), len(pair[1])))
        for piece in self._pieces(tokens):
            batch = make_batch(piece)
            batch.tensors = {name: tensor.to(device) for name, tensor in batch.tensors.items()}
            total += float(self.eval_step(model, batch, None)[0]["loss"])
            count += batch.count
        return {"loss": total / count, "perplexity": math.exp(min(total / count, 700.0))}

    def _pictures(self, model: nn.Module) -> dict[str, Callable[[], Figure]]:
        """The attention weights for the longest example."""
        assert isinstance(model, Seq2Seq)
        if model.attention is None or not self.examples:
            return {}
        line = max((source for source, _ in self.examples), key=lambda source: len(self.source.encode(source)))
        source = self.source.encode(line)
        (tokens,) = self._search(model, [source], self.cfg.task.beam, self.cfg.task.length_penalty)
        source_words = [SPECIAL[BOS], *self.source.split(line), SPECIAL[EOS]]
        target_words = [self.target.symbols[t] for t in tokens]
        return {"attention": partial(heat_map, attention_of(model, source, tokens), source_words, target_words)}

    # Data

    def _open(self) -> _Opened:
        """Generate or read the pairs and encode them, once."""
        if self._opened is None:
            data = self.cfg.data
            parts = find_pairs(data)
            if self._state is None:
                self.source, self.target = (
                    Symbols.of(texts, data.level, data.lowercase, data.vocabulary_size, data.min_count)
                    for texts in zip(*parts.train, strict=True)
                )
                self.examples = parts.dev[:EXAMPLES]
            train, dev = self._tokens(parts.train), self._tokens(parts.dev)
            self._opened = _Opened(parts, train, dev, self._buckets(train))
            state = self._state
            if state is not None and state != self.state_dict():
                self._opened = None
                raise UserError(
                    f"{data.path or data.name} does not contain the pairs the checkpoint was trained on: give those, "
                    "or begin a new run."
                )
        return self._opened

    def _buckets(self, train: list[Tokens]) -> Buckets | TokenBuckets:
        trainer, seed = self.cfg.trainer, self.cfg.seed
        lengths = np.array([[len(source), len(target) + 1] for source, target in train])
        if trainer.batch_tokens is None:
            return Buckets(lengths, trainer.batch_size, seed)
        return TokenBuckets(lengths, trainer.batch_tokens, seed)

    def _tokens(self, pairs: list[Pair]) -> list[Tokens]:
        return [(self.source.encode(source), self.target.encode(target)) for source, target in pairs]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """[T,B,V]"""
    tensors = batch.tensors
    return model(tensors["source"], tensors["lengths"], tensors["inputs"])


def _are_without_spaces(references: list[str], tokenizer: Callable[[str], str]) -> bool:
    """Whether most references are in scripts without spaces and have too few tokens for 4-grams."""
    few = [WITHOUT_SPACES.search(text) and len(tokenizer(text).split()) < 4 for text in references]
    return 2 * sum(map(bool, few)) > len(references)


TASK = Translation
