"""Validation and text of the character model: losses of whole texts, scores, samples."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from prnn.config import ModelConfig
from prnn.errors import UserError
from prnn.task import Position, Shard, Task
from prnn.tasks.decode import Decoding, TextTask
from tests.tasks.conftest import TEXT
from tests.tasks.test_char_lm import CPU, batches, built

# Validation


def validation_loss(task: Task, model: torch.nn.Module, world_size: int = 1) -> tuple[float, int]:
    total, count = 0.0, 0
    with torch.no_grad():
        for rank in range(world_size):
            state = None
            for batch in task.eval_batches(Shard(rank, world_size)):
                figures, state = task.eval_step(model, batch, None if batch.reset_state else state)
                total, count = total + float(figures["loss"]), count + batch.count
    return total / count, count


def test_validation_is_one_pass_over_the_last_part(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = built(text_file)
    loss, count = validation_loss(task, model)
    last = TEXT[int(len(TEXT) * 0.9) :]
    assert count == len(last) - 1
    expected = task.score(model, CPU, last[1:], prompt=last[0])
    assert loss == pytest.approx(-expected.nats / expected.tokens, rel=1e-6)
    monkeypatch.setattr("prnn.tasks.char_lm.EVAL_POSITIONS", 10)
    assert len(list(task.eval_batches(Shard()))) == -(-count // 10)
    assert validation_loss(task, model) == (pytest.approx(loss, rel=1e-6), count)


def test_validation_in_streams_does_not_depend_on_the_processes(text_file: Path) -> None:
    task, model = built(text_file, eval_streams=3)
    alone = validation_loss(task, model)
    assert alone[1] == len(TEXT) - int(len(TEXT) * 0.9) - 1
    for world_size in (2, 3, 4):
        assert validation_loss(task, model, world_size) == (pytest.approx(alone[0], rel=1e-6), alone[1])


def test_eval_tokens_bounds_the_validation_text(text_file: Path) -> None:
    assert validation_loss(*built(text_file, eval_tokens=20))[1] == 19


# Text


@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_score_is_the_sum_worked_out_step_by_step(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, level: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    task, model = built(text_file, bptt=5, level=level)
    monkeypatch.setattr("prnn.tasks.char_lm.EVAL_POSITIONS", 3)
    for prompt, text in (("The quick ", "brown fox."), (None, "lazy dog"), ("A stitch in time", " saves")):
        tokens = [
            *(task.vocabulary.encode(prompt) if prompt else [task.vocabulary.start]),
            *task.vocabulary.encode(text),
        ]
        scored = len(task.vocabulary.encode(text))
        nats, state = 0.0, None
        with torch.no_grad():
            for i, (last, following) in enumerate(pairwise(tokens)):
                logits, state = model(torch.tensor([[int(last)]]), state)
                if i >= len(tokens) - 1 - scored:
                    nats += float(logits[0, 0].log_softmax(0)[int(following)])
        score = task.score(model, CPU, text, prompt)
        assert score.nats == pytest.approx(nats, rel=1e-5)
        assert (score.tokens, score.characters) == (scored, len(text))
        assert score.bits_per_character == pytest.approx(-nats / math.log(2) / len(text), rel=1e-5)
        assert score.perplexity == pytest.approx(math.exp(-nats / scored), rel=1e-5)


def test_the_probabilities_of_all_continuations_add_up_to_one(text_file: Path) -> None:
    task, model = built(text_file)
    total = sum(math.exp(task.score(model, CPU, character, "The ").nats) for character in task.vocabulary.alphabet)
    assert total == pytest.approx(1, rel=1e-5)


def test_greedy_text_is_the_most_probable_next_character_each_time(text_file: Path) -> None:
    task, model = built(text_file)
    text = "".join(task.generate(model, CPU, "The ", Decoding(6, greedy=True)))
    for i, character in enumerate(text):
        scores = {other: task.score(model, CPU, other, "The " + text[:i]).nats for other in task.vocabulary.alphabet}
        assert character == max(scores, key=lambda other: scores[other])


def test_generating_leaves_the_model_as_it_was(text_file: Path) -> None:
    task, model = built(text_file, model=ModelConfig(hidden_size=6, num_layers=2, dropout=0.5))
    assert isinstance(task, TextTask) and model.training
    random = torch.get_rng_state()
    first = task.sample(model, CPU)
    assert first == task.sample(model, CPU) and len(first) == 500
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    pieces = task.generate(model, CPU, "The ", Decoding(5))
    next(pieces)
    assert torch.is_grad_enabled()  # in between two pieces too
    pieces.close()
    assert model.training and torch.equal(torch.get_rng_state(), random)


def test_words_continue_a_prompt_with_the_right_space(text_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    task, model = built(text_file, bptt=5, level="word")
    assert task.unit == "words"
    fox = int(task.vocabulary.encode("fox")[0])
    with torch.no_grad():
        model.decoder.bias[fox] = 100.0
    assert "".join(task.generate(model, CPU, "quick brown", Decoding(2, greedy=True))) == " fox fox"
    assert "".join(task.generate(model, CPU, None, Decoding(2, greedy=True))) == "fox fox"


def test_unknown_characters_and_empty_texts_are_refused_before_anything_is_written(text_file: Path) -> None:
    task, model = built(text_file)
    with pytest.raises(UserError, match=r"the prompt holds the character '€' \(U\+20AC, position 1\)"):
        task.generate(model, CPU, "a€", Decoding())
    with pytest.raises(UserError, match="the text to score holds the character '€'"):
        task.score(model, CPU, "€", None)
    with pytest.raises(UserError, match="the text to score is empty"):
        task.score(model, CPU, "", "a")


def test_a_model_learns_and_one_hot_vectors_are_not_saved(text_file: Path) -> None:
    task, model = built(text_file, bptt=20, model=ModelConfig(hidden_size=32, num_layers=1, embedding_size=0))
    assert not any("embedding" in name for name in model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    first, _ = validation_loss(task, model)
    for epoch in range(8):
        state = None
        for (batch,) in batches(task, position=Position(epoch)):
            loss, state = task.loss(model, batch, None if batch.reset_state else state)
            optimizer.zero_grad()
            (loss / batch.count).backward()
            optimizer.step()
    assert validation_loss(task, model)[0] < 0.5 * first
