"""Decoding on models small enough to work out by hand: tables of next-token probabilities."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from prnn.data.text import CharVocabulary
from prnn.errors import UserError
from prnn.task import State
from prnn.tasks.decode import Decoding, beam_search, beam_searches, probabilities, sample, select_rows, stream, until

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.9, 0.0])


class Table:
    """P(next token | last token), with a state that records which sequence it belongs to: the tokens read so far."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.logits = torch.tensor(rows).log()

    def __call__(self, last: Tensor, state: State) -> tuple[Tensor, State]:
        read, (count,) = state
        assert read.shape[1] == last.shape[0]
        return self.logits[last], (torch.cat([read, last[None, :, None]], dim=2), (count + 1,))

    def start(self, first: int) -> tuple[Tensor, State]:
        return self(torch.tensor([first]), (torch.empty(1, 1, 0, dtype=torch.long), (torch.zeros(1, 1),)))

    def log_prob(self, first: int, tokens: tuple[int, ...]) -> float:
        return sum(float(self.logits[a, b]) for a, b in zip((first, *tokens), tokens, strict=False))


# From 0, the likeliest first step (1) leads to a coin toss among many; the second likeliest (2) to certainty.
GARDEN_PATH = Table([[0.01, 0.55, 0.44], [0.34, 0.33, 0.33], [0.005, 0.005, 0.99]])


def drawn(table: Table, decoding: Decoding, first: int = 0) -> list[int]:
    return list(sample(table, *table.start(first), decoding))


def test_temperature_divides_the_logits() -> None:
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS.double() / temperature).softmax(0)
        torch.testing.assert_close(probabilities(LOGITS, Decoding(temperature=temperature)), expected)
    assert probabilities(LOGITS * 100, Decoding(temperature=1e-300)).tolist() == [0, 1, 0, 0, 0]
    assert probabilities(LOGITS, Decoding(temperature=0.0)).tolist() == [0, 1, 0, 0, 0]


def test_top_k_keeps_the_k_most_probable() -> None:
    found = probabilities(LOGITS, Decoding(top_k=2))
    expected = torch.tensor([-torch.inf, 2.0, -torch.inf, 1.9, -torch.inf]).double().softmax(0)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(probabilities(LOGITS, Decoding(top_k=99)), LOGITS.double().softmax(0))


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    kept = {p: probabilities(logits, Decoding(top_p=p)).nonzero().flatten().tolist() for p in (0.3, 0.45, 0.75, 0.95)}
    assert kept == {0.3: [1], 0.45: [1, 3], 0.75: [1, 2, 3], 0.95: [0, 1, 2, 3]}
    torch.testing.assert_close(probabilities(logits, Decoding(top_p=0.45))[1], torch.tensor(4 / 7, dtype=torch.float64))


@pytest.mark.parametrize("decoding", [Decoding(greedy=True), Decoding(top_k=1), Decoding(top_p=1e-9)])
def test_greedy_and_its_limits_take_the_most_probable(decoding: Decoding) -> None:
    assert probabilities(LOGITS, decoding).tolist() == [0, 1, 0, 0, 0]
    assert probabilities(torch.ones(4), decoding).tolist() == [1, 0, 0, 0]
    table = Table([[0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.5, 0.4, 0.1]])
    assert drawn(table, Decoding(7, decoding.temperature, decoding.top_k, decoding.top_p, decoding.greedy)) == [
        1, 2, 0, 1, 2, 0, 1,
    ]  # fmt: skip


def test_samples_follow_the_probabilities() -> None:
    table = Table([[0.1, 0.9], [0.5, 0.5]])
    tokens = drawn(table, Decoding(4000, seed=5))
    after_0 = [b for a, b in zip([0, *tokens], tokens, strict=False) if a == 0]
    assert abs(sum(after_0) / len(after_0) - 0.9) < 0.03


def test_a_seed_repeats_and_leaves_the_global_generator_alone() -> None:
    table = Table([[0.5, 0.5], [0.5, 0.5]])
    before = torch.get_rng_state()
    first = drawn(table, Decoding(50, seed=7))
    assert drawn(table, Decoding(50, seed=7)) == first != drawn(table, Decoding(50, seed=8))
    assert drawn(table, Decoding(50)) != drawn(table, Decoding(50))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_state_follows_the_sequence() -> None:
    seen = []

    def step(last: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = GARDEN_PATH(last, state)
        seen.append(state[0].flatten().tolist())
        return logits, state

    tokens = list(sample(step, *GARDEN_PATH.start(0), Decoding(4, seed=1)))
    assert seen == [[0, *tokens[:1]], [0, *tokens[:2]], [0, *tokens[:3]]]


def test_beam_search_finds_what_greedy_misses() -> None:
    greedy = tuple(drawn(GARDEN_PATH, Decoding(4, greedy=True)))
    (narrow,) = beam_search(GARDEN_PATH, *GARDEN_PATH.start(0), length=4, width=1)
    assert narrow.tokens == greedy
    best, second = beam_search(GARDEN_PATH, *GARDEN_PATH.start(0), length=4, width=2)
    assert best.tokens == (2, 2, 2, 2)
    assert best.log_prob > second.log_prob and best.log_prob > GARDEN_PATH.log_prob(0, greedy)


def test_a_wide_beam_is_exhaustive_and_its_log_probabilities_are_right() -> None:
    table = Table(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).softmax(1).tolist())
    found = beam_search(table, *table.start(1), length=3, width=64)
    assert len(found) == 64 and len({hypothesis.tokens for hypothesis in found}) == 64
    scores = [hypothesis.log_prob for hypothesis in found]
    assert scores == sorted(scores, reverse=True)
    for hypothesis in found:
        assert math.isclose(hypothesis.log_prob, table.log_prob(1, hypothesis.tokens), rel_tol=1e-6)


def test_a_beam_of_one_is_greedy_where_sequences_end() -> None:
    # 1 ends. After 0 the end is the second likeliest, and ending at once likelier than any longer sequence.
    table = Table([[0.55, 0.45], [0.5, 0.5]])
    (greedy,) = beam_search(table, *table.start(0), length=4, width=1, end=1)
    assert greedy.tokens == (0, 0, 0, 0)
    best, _ = beam_search(table, *table.start(0), length=4, width=2, end=1)
    assert best.tokens == (1,)


def test_searches_from_several_beginnings_are_those_from_each() -> None:
    table = Table(torch.rand(5, 5, generator=torch.Generator().manual_seed(3)).softmax(1).tolist())
    logits, state = table(torch.tensor([0, 3, 2, 4]), (torch.empty(1, 4, 0, dtype=torch.long), (torch.zeros(1, 4),)))
    lengths = [5, 0, 2, 7]
    together = beam_searches(table, logits, state, lengths, width=3, end=1, length_penalty=0.7)
    for first, length, found in zip((0, 3, 2, 4), lengths, together, strict=True):
        assert found == beam_search(table, *table.start(first), length, width=3, end=1, length_penalty=0.7)


def test_beam_search_carries_each_sequences_own_state() -> None:
    def step(last: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = GARDEN_PATH(last, state)
        # Nothing follows a sequence whose state is another's: the last two tokens must be linked.
        assert torch.equal(state[0][0, :, -1], last)
        read.extend(tuple(row) for row in state[0][0].tolist())
        return logits, state

    read: list[tuple[int, ...]] = []
    found = beam_search(step, *GARDEN_PATH.start(0), length=4, width=3)
    for hypothesis in found:
        assert (0, *hypothesis.tokens[:-1]) in read


def test_beam_search_ends_at_the_end_token_and_the_length_penalty_favours_the_long() -> None:
    # 0: go on, 1: end. Ending at once has probability 0.4; going on twice and ending 0.6 * 0.6 * ... each step.
    table = Table([[0.6, 0.4], [0.5, 0.5]])
    (best, *_) = beam_search(table, *table.start(0), length=6, width=2, end=1)
    assert best.tokens == (1,) and math.isclose(best.log_prob, math.log(0.4), rel_tol=1e-6)
    (best, *_) = beam_search(table, *table.start(0), length=6, width=2, end=1, length_penalty=1.0)
    assert best.tokens == (0,) * 6 and math.isclose(best.score, math.log(0.6), rel_tol=1e-6)
    assert beam_search(table, *table.start(0), length=0, width=2)[0].tokens == ()


def test_select_rows_goes_through_nested_states() -> None:
    state = (torch.arange(6).view(1, 3, 2), (None, torch.arange(3).view(1, 3)))
    first, (nothing, second) = select_rows(state, torch.tensor([2, 0, 0]))
    assert first.tolist() == [[[4, 5], [0, 1], [0, 1]]] and nothing is None and second.tolist() == [[2, 0, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one\n\ntwo", "\n\n", "one"),
        ("one\n two\n", "\n\n", "one\n two\n"),
        ("aaab", "aab", "a"),
        ("abababc", "ababc", "ab"),
        ("stop", "stop", ""),
        ("almost sto", "stop", "almost sto"),
        ("anything", "", "anything"),
        ("", "x", ""),
    ],
)
def test_the_stop_string_cuts_exactly(text: str, stop: str, expected: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(until(pieces, stop)) == expected


def test_nothing_more_is_asked_for_after_the_stop() -> None:
    def pieces() -> Iterator[str]:
        yield from ("a", "b", "c")
        pytest.fail("asked for more")

    assert list(until(pieces(), "bc")) == ["a"]


@pytest.mark.parametrize("decoding", [Decoding(30, seed=2), Decoding(30, greedy=True), Decoding(6, beam=3)])
def test_streamed_pieces_are_the_whole(decoding: Decoding) -> None:
    decoder = CharVocabulary("abc").decoder()
    pieces = list(stream(GARDEN_PATH, *GARDEN_PATH.start(0), decoder, decoding))
    whole = "".join(pieces)
    assert len(whole) == decoding.length
    assert len(pieces) == (6 if decoding.beam else 30)  # one at a time, not all at the end
    if decoding.seed is not None:
        assert whole == "".join("abc"[token] for token in drawn(GARDEN_PATH, decoding))


@pytest.mark.parametrize(
    "decoding, sentence",
    [
        (Decoding(length=-1), "task.length=-1 must be at least 0"),
        (Decoding(temperature=-0.5), "task.temperature=-0.5 must be at least 0"),
        (Decoding(temperature=math.nan), "task.temperature=nan"),
        (Decoding(top_k=-1), "task.top_k=-1"),
        (Decoding(top_p=0.0), "task.top_p=0.0"),
        (Decoding(top_p=1.1), "task.top_p=1.1"),
        (Decoding(beam=-2), "task.beam=-2"),
        (Decoding(seed=-1), "task.seed=-1"),
        (Decoding(greedy=True, beam=2), "exclude each other"),
    ],
)
def test_settings_out_of_range(decoding: Decoding, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        decoding.validate("task.")
