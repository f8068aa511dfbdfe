"""Getting tokens out of a model that predicts the next one: sampling, greedy and beam search, stop strings.

All that is asked of the model is a step: the last token of each of N sequences and their state in, the logits [N, V]
of the next token and the new state out. The state is what the model carries: a tensor with the sequences along its
dimension 1, or nested tuples of such tensors (``select_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prnn.data.text import Decoder
from prnn.errors import UserError
from prnn.tasks.task import State, map_state

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
            ("length", self.length >= 0, "at least 0"),
            ("temperature", 0 < self.temperature < math.inf, "above 0 (greedy=true takes the likeliest token)"),
            ("top_k", self.top_k >= 0, "at least 0 (0: among all tokens)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beam", self.beam >= 0, "at least 0 (0: no beam search)"),
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
        """The text after ``prompt``, in pieces, as it is made. None is the prompt of somebody who gave none."""

    def score(self, model: nn.Module, device: torch.device, text: str, prompt: str | None) -> Score:
        """The probability of ``text`` after ``prompt``."""


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence of the beam; ``log_prob`` in nats."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float = field(default=0.0)  # log_prob / len(tokens) ** length_penalty: what hypotheses are ranked by


def probabilities(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits [V] to the probabilities [V] that are drawn from, float64 on the CPU."""
    logits = logits.detach().to("cpu", torch.float64)
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
    if length == 0:
        return [Hypothesis((), 0.0)]

    def hypothesis(tokens: Tensor, log_prob: float) -> Hypothesis:
        return Hypothesis(tuple(tokens.tolist()), log_prob, log_prob / len(tokens) ** length_penalty)

    device = logits.device
    finished: list[Hypothesis] = []
    sequences = torch.empty(1, 0, dtype=torch.long)
    totals = torch.zeros(1, dtype=torch.float64)
    for i in range(length):
        if i:
            logits, state = step(sequences[:, -1].to(device), state)
        candidates = totals[:, None] + logits.detach().to("cpu", torch.float64).log_softmax(-1)
        # Twice the width: even if half of them end here, `width` go on.
        best, where = candidates.flatten().topk(min(2 * width, candidates.numel()))
        rows, tokens = where // candidates.shape[1], where % candidates.shape[1]
        grown = torch.cat([sequences[rows], tokens[:, None]], dim=1)
        ended = tokens == end if end is not None else torch.zeros_like(tokens, dtype=torch.bool)
        ended[:] |= i + 1 == length
        finished += [hypothesis(grown[j], float(best[j])) for j in ended.nonzero().flatten().tolist()]
        finished = sorted(finished, key=lambda h: -h.score)[:width]
        alive = (~ended).nonzero().flatten()[:width]
        # Log-probabilities only fall, so this is the best score an unfinished sequence can still reach.
        if not len(alive) or (
            len(finished) == width and float(best[alive[0]]) / length**length_penalty <= finished[-1].score
        ):
            break
        sequences, totals = grown[alive], best[alive]
        state = select_rows(state, rows[alive].to(device))
    return finished


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
