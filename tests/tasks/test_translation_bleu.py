"""BLEU and the other test figures of the translation task."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from prnn.data.parallel_corpora import DataConfig
from prnn.data.parallel_text import UNK
from prnn.nn.seq2seq import Seq2Seq
from prnn.task import TaskResults
from prnn.tasks.translation import Translation
from tests.tasks.test_translation import CPU, built


def test_without_sacrebleu_one_warning_says_that_bleu_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task, model = built()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        figures = task.test(model, CPU).figures
    assert figures.keys() == {"loss", "perplexity", "exact"}
    assert [record.message for record in caplog.records] == [
        "BLEU is skipped in the test: it needs the package sacrebleu (the extra `translation`)."
    ]


def outcome(monkeypatch: pytest.MonkeyPatch, task: Translation, model: Seq2Seq, found: list[str]) -> TaskResults:
    """The test of a model that translates the test part as ``found``."""
    monkeypatch.setattr(Translation, "_translations", lambda *arguments: found)
    with torch.no_grad():
        return task.test(model, CPU)


def test_bleu_is_of_the_words_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    task, model = built()
    references = [target for _, target in task._open().parts.test]
    perfect = outcome(monkeypatch, task, model, references)
    assert (perfect.figures["bleu"], perfect.figures["exact"]) == (pytest.approx(100), 1)
    assert "|tok:13a|" in perfect.signatures["bleu"] and "|case:lc|" in perfect.signatures["bleu"]
    wrong = outcome(monkeypatch, task, model, ["x"] * len(references)).figures
    assert wrong["bleu"] < 1 and wrong["exact"] == 0


CHINESE = ("你好世界", "今天天气很好", "我们去公园散步吧", "他在看一本很有意思的书")


@pytest.mark.parametrize(
    ("level", "tokenize", "used"),
    [("char", None, "char"), ("char", "zh", "zh"), ("word", "char", "char"), ("word", "zh", "zh"), ("word", None, "")],
)
def test_bleu_of_text_without_spaces(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    level: str,
    tokenize: str | None,
    used: str,
) -> None:
    """A perfect translation has a BLEU of 100, or none, where the tokenizer finds no four tokens in any reference."""
    pytest.importorskip("sacrebleu")
    path = tmp_path / "zh.tsv"
    path.write_text("".join(f"{n}\t{CHINESE[n % 4]}\n" for n in range(20)), encoding="utf-8")
    data = DataConfig(path=str(path), train_size=None, dev_size=2, test_size=8, level=level)
    task, model = built(data, bleu_tokenize=tokenize)
    references = [target for _, target in task._open().parts.test]
    found = outcome(monkeypatch, task, model, references)
    assert found.figures["exact"] == 1
    if used:
        assert found.figures["bleu"] == pytest.approx(100) and f"|tok:{used}|" in found.signatures["bleu"]
        half = outcome(monkeypatch, task, model, [*references[:4], *["x"] * 4]).figures["bleu"]
        assert 1 < half < 99 and not caplog.records
    else:
        assert "bleu" not in found.figures and found.signatures == {}
        assert [record.message for record in caplog.records] == [
            "BLEU is skipped in the test: no reference has four tokens of sacreBLEU's tokenizer 13a "
            "(task.bleu_tokenize; char and zh are for text without spaces)."
        ]


def test_a_few_sentences_with_spaces_are_not_all_of_a_corpus_without(caplog: pytest.LogCaptureFixture) -> None:
    """By words, 13a would see the last of these references alone, and a translation wrong in all others is perfect."""
    pytest.importorskip("sacrebleu")
    references = [CHINESE[n % 4] for n in range(17)] + ["你好 ， 世界 ！ 再见"]
    for tokenize, used in ((None, False), ("13a", True), ("zh", True)):
        task, _ = built(bleu_tokenize=tokenize)
        caplog.clear()
        assert (task._bleu(references, references) is not None) == used
        told = "BLEU is skipped in the test: most references are in a script without spaces"
        assert [each.message.startswith(told) for each in caplog.records if each.levelname == "WARNING"] == [True] * (
            not used
        )


def test_one_reference_of_four_tokens_gives_a_bleu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    path = tmp_path / "x.tsv"
    for longest in (3, 4):
        path.write_text("".join(f"{n}\t{' '.join('abcd'[: n % longest + 1])}\n" for n in range(20)))
        task, model = built(DataConfig(path=str(path), train_size=None, dev_size=2, test_size=10))
        references = [target for _, target in task._open().parts.test]
        assert max(len(line.split()) for line in references) == longest
        found = outcome(monkeypatch, task, model, references).figures
        assert found.get("bleu") == (pytest.approx(100) if longest == 4 else None)


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_figures_regard_case_where_the_data_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowercase: bool
) -> None:
    pytest.importorskip("sacrebleu")
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"a {n}\tDijo Juan: «Sí, son {n}.5 o {n},000 panes»\n" for n in range(20)))
    data = DataConfig(path=str(path), train_size=None, dev_size=2, test_size=5, lowercase=lowercase)
    task, model = built(data)
    references = [target for _, target in task._open().parts.test]
    for change, right in ((str, True), (str.lower, lowercase)):
        monkeypatch.setattr(
            Translation, "_translations", lambda *a, change=change: [change(line) for line in references]
        )
        with torch.no_grad():
            figures = task.test(model, CPU).figures
        assert figures["exact"] == right and (figures["bleu"] > 99.9) == right and figures["bleu"] > 10


def test_an_unknown_word_is_right_for_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"{n}\tuno dos tres cuatro número{n}\n" for n in range(20)))
    data = DataConfig(path=str(path), train_size=None, dev_size=2, test_size=5, min_count=2)
    task, model = built(data)
    references = [target for _, target in task._open().parts.test]
    assert all(task.target.encode(line)[-1] == UNK for line in references)
    read = [task.target.decode(task.target.encode(line)) for line in references]
    assert read == ["uno dos tres cuatro <unk>"] * 5
    for found in (read, references[1:] + references[:1]):
        monkeypatch.setattr(Translation, "_translations", lambda *a, found=found: found)
        with torch.no_grad():
            figures = task.test(model, CPU).figures
        assert figures["exact"] == 0 and 10 < figures["bleu"] < 90
