"""Names of recorded fields as a reader sees them, and the units of their values."""

from __future__ import annotations

from dataclasses import dataclass

from prnn.training.limits import LIMITS


@dataclass(frozen=True)
class Words:
    """A metric's name and its unit; ``percent``: a fraction, shown as a percentage."""

    name: str
    unit: str = ""
    percent: bool = False


def share(name: str) -> Words:
    """A fraction of one."""
    return Words(name, percent=True)


# Fields of the records of docs/observability.md, and the figures of the tasks in prnn/tasks.
_WORDS = {
    "loss": Words("loss"),
    "lr": Words("learning rate"),
    "grad_norm": Words("gradient norm"),
    "loss_scale": Words("loss scale"),
    "epoch": Words("epochs"),
    "tokens_per_second": Words("throughput", "tokens/s"),
    "tokens_per_second_per_device": Words("throughput per device", "tokens/s"),
    "data_wait": share("waiting for data"),
    "exposed_comm": share("exposed communication"),
    "step_ms": Words("step time", "ms"),
    "memory_mib": Words("memory", "MiB"),
    "tflops": Words("arithmetic", "TFLOP/s"),
    "mfu": share("model FLOP utilisation"),
    "accuracy": share("accuracy"),
    "ideal_accuracy": share("accuracy of an ideal observer"),
    "perplexity": Words("perplexity"),
    "bleu": Words("BLEU"),
    "exact": share("exact translations"),
    "solved": share("sizes solved"),
    "solved_to": Words("longest size solved"),
    "right": share("correct sequences"),
    "right_to": Words("longest size mostly solved"),
}
_ROUNDED = "_rounded"  # stack_rnn's figures with the memory's actions rounded

_TASKS = {
    "adding": "adding",
    "char_lm": "language model",
    "decision": "decision",
    "irnn_mnist": "image classification",
    "stack_rnn": "algorithmic patterns",
    "translation": "translation",
}
_UNITS = {"adding": "sequences", "decision": "trials", "irnn_mnist": "images", "stack_rnn": "characters",
          "translation": "target tokens"}  # fmt: skip
_LEVELS = {"char": "characters", "byte": "bytes", "word": "words"}


def words(field: str) -> Words:
    """The words for a field; for an unknown one, as of a task outside prnn, its key with spaces."""
    known = _WORDS.get(field)
    if known is None and field.endswith(_ROUNDED) and (base := _WORDS.get(field.removesuffix(_ROUNDED))):
        return Words(f"{base.name}, actions rounded", base.unit, base.percent)
    return known or Words(field.replace("_", " ").strip() or field)


def title(field: str) -> str:
    """The words for a field, capitalised as a heading."""
    name = words(field).name
    return name[:1].upper() + name[1:]


def reason(stopped_by: str) -> str:
    """Why a run ended: ``stopped_by`` of its summary."""
    limit = LIMITS.get(stopped_by)
    return words(stopped_by).name if limit is None else limit.words


def task(name: str) -> str:
    """The words for a task; its name with spaces for an unknown one."""
    return _TASKS.get(name, name.replace("_", " "))


def unit(task: str, level: str) -> str:
    """The unit of a task's tokens, for a run without a summary, which has it; ``level`` is that of its text."""
    return (_LEVELS.get(level) if task == "char_lm" else _UNITS.get(task)) or "tokens"
