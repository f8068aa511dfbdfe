"""Getting tokens out of a model that predicts the next one: sampling, greedy and beam search, stop strings.

The model provides one function, a step: the last token of each of N sequences and their state in, the logits [N, V]
of the next token and the new state out. The state is what the model carries: a tensor with the sequences along its
dimension 1, or nested tuples of such tensors (``select_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prnn.data.text import Decoder
from prnn.errors import UserError
from prnn.task import State, map_state

MOST_BEAMS = 1000  # of a search: more may not fit into memory
MOST_TOKENS = 10_000_000  # of a text: they come one by one, and a small model needs minutes for so many
MOST_LENGTH_PENALTY = 10.0  # a length to a power beyond would not fit into a float

Step = Callable[[Tensor, State], tuple[Tensor, State]]  # (tokens [N] int64, state) -> (logits [N, V], state)


@dataclass(frozen=True)
class Decoding:
    """How to choose the next tokens."""

    length: int = 500  # tokens to generate
    temperature: float = 1.0  # the logits are divided by it: below 1 the likely becomes likelier
    top_k: int = 0  # choose among the k likeliest tokens only; 0: among all
    top_p: float = 1.0  # choose among the fewest likeliest tokens whose probabilities reach p
    greedy: bool = False  # always the likeliest token
    beam: int = 0  # beam search of this width for the likeliest continuation; 0: none
    seed: int | None = None  # of a generator of its own; None: drawn anew each time
    stop: str = ""  # end before this string first appears; "": run to the full length

    def validate(self, prefix: str = "") -> None:
        """Raise ``UserError`` for a setting out of range; ``prefix`` goes before the name (``"task."``)."""
        rules = (
            ("length", 0 <= self.length <= MOST_TOKENS, f"at least 0 and at most {MOST_TOKENS:,}"),
            ("temperature", 0 < self.temperature < math.inf, "above 0 (greedy=true takes the likeliest token)"),
            ("top_k", 0 <= self.top_k < 1 << 63, "at least 0 (0: among all tokens) and below 2^63"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beam", 0 <= self.beam <= MOST_BEAMS, f"from 0 (no beam search) to {MOST_BEAMS}"),
            ("seed", self.seed is None or 0 <= self.seed < 1 << 63, "null or from 0 to 2^63 - 1"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise UserError(f"{prefix}{name}={getattr(self, name)} must be {expected}.")
        if self.greedy and self.beam:
            raise UserError(f"{prefix}greedy=true and {prefix}beam={self.beam} exclude each other: give one of them.")


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text."""

    nats: float  # log-probability of the text after its prompt
    tokens: int  # predictions: characters, bytes or words
    characters: int

    @property
    def bits_per_character(self) -> float:
        return -self.nats / math.log(2) / self.characters

    @property
    def perplexity(self) -> float:
        """Per token. Infinite past what a float holds."""
        return math.exp(min(-self.nats / self.tokens, 700.0))


@runtime_checkable
class TextTask(Protocol):
    """A task whose model writes text; ``prnn-sample`` runs those."""

    unit: str

    def generate(self, model: nn.Module, device: torch.device, prompt: str | None, decoding: Decoding) -> Iterator[str]:
        """The text after ``prompt``, in pieces, as it is made. None: there is no prompt."""

    def score(self, model: nn.Module, device: torch.device, text: str, prompt: str | None) -> Score:
        """The probability of ``text`` after ``prompt``."""


@runtime_checkable
class TranslatingTask(Protocol):
    """A task whose model answers a line with a line; ``prnn-sample`` reads those from stdin."""

    def translate(
        self,
        model: nn.Module,
        device: torch.device,
        lines: Iterable[str],
        beam: int | None = None,
        length_penalty: float | None = None,
    ) -> Iterator[str]:
        """The translation of each of ``lines``, before the next one is read; of an empty one, an empty one.

        ``beam`` is the width of the search, 1: greedy. None: as the run was configured.
        """


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence of the beam; ``log_prob`` in nats."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float = field(default=0.0)  # log_prob / len(tokens) ** length_penalty: what hypotheses are ranked by


def probabilities(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits [V] to the probabilities [V] that are drawn from, float64 on the CPU."""
    logits = logits.detach().to("cpu", torch.float64)
    if not logits.max().isfinite():  # NaN is the largest where there is one
        raise UserError("the model's outputs are not finite numbers: nothing can be drawn from them.")
    if decoding.greedy:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    # The largest becomes 0 first, so that no temperature, however small, overflows.
    ordered, order = ((logits - logits.max()) / decoding.temperature).sort(descending=True, stable=True)
    kept = ordered.softmax(0)
    if decoding.top_k:
        kept[decoding.top_k :] = 0
    # A token stays if those before it do not reach top_p of what top_k left.
    kept = kept / kept.sum()
    if decoding.top_p < 1:
        kept[1:][kept.cumsum(0)[:-1] >= decoding.top_p] = 0
    return torch.zeros_like(kept).scatter_(0, order, kept / kept.sum())


def sample(step: Step, logits: Tensor, state: State, decoding: Decoding) -> Iterator[int]:
    """Yield ``decoding.length`` tokens, one at a time; ``logits`` [1, V] are those of the first.

    Draws from a generator of its own, on the CPU: a seed gives the same text on every device that computes the same
    logits, and leaves torch's global generator alone.
    """
    generator = torch.Generator()
    if decoding.seed is None:
        generator.seed()
    else:
        generator.manual_seed(decoding.seed)
    for i in range(decoding.length):
        token = torch.multinomial(probabilities(logits[0], decoding), 1, generator=generator)
        yield int(token)
        if i + 1 < decoding.length:
            logits, state = step(token.to(logits.device), state)


def beam_search(
    step: Step,
    logits: Tensor,
    state: State,
    length: int,
    width: int,
    end: int | None = None,
    length_penalty: float = 0.0,
) -> list[Hypothesis]:
    """The ``width`` best sequences found, best first; ``logits`` [1, V] are those of the first token.

    A sequence is finished by the token ``end`` (which it includes) or by having ``length`` tokens.
    ``length_penalty`` 0 ranks by probability, which favours the short; 1 by log-probability per token.
    """
    return beam_searches(step, logits, state, [length], width, end, length_penalty)[0]


def beam_searches(
    step: Step,
    logits: Tensor,
    state: State,
    lengths: Sequence[int],
    width: int,
    end: int | None = None,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """``beam_search`` from N beginnings at once, with logits [N, V] and a length each; one call of ``step`` serves all.

    What ``step`` must know of the beginning a sequence belongs to is part of its state.
    """
    beams = [_Beam(length, width, end, length_penalty) for length in lengths]
    growing, rows = list(beams), [1] * len(beams)
    while True:
        kept, first = [], 0
        for beam, own, count in zip(growing, logits.split(rows), rows, strict=True):
            kept.append(beam.grow(own) + first)
            first += count
        growing = [beam for beam, own in zip(growing, kept, strict=True) if len(own)]
        rows = [len(own) for own in kept if len(own)]
        if not growing:
            return [beam.finished for beam in beams]
        last = torch.cat([beam.sequences[:, -1] for beam in growing])
        state = select_rows(state, torch.cat(kept).to(logits.device))
        logits, state = step(last.to(logits.device), state)


class _Beam:
    """The search from one beginning: its R unfinished sequences of I tokens, and the best of the finished ones."""

    def __init__(self, length: int, width: int, end: int | None, length_penalty: float) -> None:
        self.length, self.width, self.end, self.length_penalty = length, width, end, length_penalty
        self.finished = [] if length else [Hypothesis((), 0.0)]  # best first
        self.sequences = torch.empty(1, 0, dtype=torch.long)  # [R, I]
        self.totals = torch.zeros(1, dtype=torch.float64)  # [R], log-probabilities

    def grow(self, logits: Tensor) -> Tensor:
        """Take one more token; logits [R, V]. Returns which of the rows go on, each as often as it does; none: done."""
        if not self.length:
            return torch.empty(0, dtype=torch.long)
        candidates = self.totals[:, None] + logits.detach().to("cpu", torch.float64).log_softmax(-1)
        # Twice the width: even if half of them end here, `width` go on.
        best, where = candidates.flatten().topk(min(2 * self.width, candidates.numel()))
        rows, tokens = where // candidates.shape[1], where % candidates.shape[1]
        grown = torch.cat([self.sequences[rows], tokens[:, None]], dim=1)
        size = grown.shape[1]
        at_end = torch.zeros_like(tokens, dtype=torch.bool) if self.end is None else tokens == self.end
        # An end counts where it is among the `width` likeliest: so a beam of one is greedy search.
        ended = at_end & (torch.arange(len(tokens)) < self.width) | torch.tensor(size == self.length)
        self.finished += [
            Hypothesis(tuple(grown[j].tolist()), float(best[j]), float(best[j]) / size**self.length_penalty)
            for j in ended.nonzero().flatten().tolist()
        ]
        self.finished = sorted(self.finished, key=lambda h: -h.score)[: self.width]
        alive = (~(ended | at_end)).nonzero().flatten()[: self.width]
        # Log-probabilities only fall, so this is the best score an unfinished sequence can still reach.
        if len(alive) and len(self.finished) == self.width:
            reachable = float(best[alive[0]]) / self.length**self.length_penalty
            alive = alive[:0] if reachable <= self.finished[-1].score else alive
        self.sequences, self.totals = grown[alive], best[alive]
        return rows[alive]


def select_rows(state: State, rows: Tensor) -> State:
    """The state of the sequences ``rows`` [N]."""
    return map_state(lambda part: part.index_select(1, rows), state)


def stream(step: Step, logits: Tensor, state: State, decoder: Decoder, decoding: Decoding) -> Iterator[str]:
    """Text by any of the methods, in pieces as soon as they are certain: with a beam, all at the end."""
    if decoding.beam:
        tokens: Iterable[int] = beam_search(step, logits, state, decoding.length, decoding.beam)[0].tokens
    else:
        tokens = sample(step, logits, state, decoding)
    return until(_decoded(tokens, decoder), decoding.stop)


def _decoded(tokens: Iterable[int], decoder: Decoder) -> Iterator[str]:
    for token in tokens:
        yield decoder.push(token)
    yield decoder.flush()


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """The text of ``pieces`` before the first ``stop``, no part of which is ever let out; "" stops nothing."""
    held = ""
    for piece in pieces:
        held += piece
        at = held.find(stop) if stop else -1
        if at >= 0:
            held = held[:at]
            break
        # The end of what is held may be the beginning of `stop`.
        doubtful = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if held.endswith(stop[:n])), 0)
        safe = len(held) - doubtful
        if safe:
            yield held[:safe]
        held = held[safe:]
    if held:
        yield held
