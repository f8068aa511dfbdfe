"""The search space of a study: Hydra's sweeps as Optuna's distributions.

key=a,b,c  or  choice(a,b,c)         one of these
key=range(1,10,3)                    1, 4 or 7
key=interval(0.1,0.5)                a number between
key=int(interval(16,512))            an integer between
key=tag(log,interval(1e-4,1e-1))     equally likely in every decade
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from prnn import command_line, config
from prnn.errors import UserError

if TYPE_CHECKING:
    import optuna

_MISSING = object()


@dataclass(frozen=True)
class Space:
    """The overrides that every trial has, those that differ, by key, and the values of these without a study.

    ``defaults`` is None where one of them is not in the space.
    """

    fixed: tuple[str, ...]
    swept: Mapping[str, str]
    defaults: Mapping[str, Any] | None

    @classmethod
    def of(cls, words: Iterable[str], params: Mapping[str, Any], default: Callable[[str], Any]) -> Space:
        """Sort the words of a command line; ``params`` (``hydra.sweeper.params``) are swept where no word sets the key.

        ``default`` gives what a key or a group is without a study. Raises ``UserError`` where nothing is swept, or a
        sweep has no distribution.
        """
        swept = {str(key): f"{key}={value}" for key, value in params.items()}
        for word in words:
            parsed = command_line.parsed(word)
            swept.pop(parsed.key_or_group, None)
            if parsed.is_sweep_override():
                swept[parsed.key_or_group] = word
        if not swept:
            raise UserError(
                "nothing is to be tuned: give a setting several values, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))' or model.hidden_size=64,128, or take a preset that does, "
                "experiment=tune_char_lm."
            )
        distributions = {key: _distribution(command_line.parsed(word)) for key, word in swept.items()}
        defaults = {key: _default(*distributions[key], default(key)) for key in swept}
        known = None if _MISSING in defaults.values() else defaults
        return cls(tuple(command_line.without_sweeps(words)), swept, known)

    def suggest(self, trial: optuna.Trial) -> list[str]:
        """The overrides of a trial."""
        return [*self.fixed, *(_suggested(trial, key, word) for key, word in self.swept.items())]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides that differ, of a trial with these parameters."""
        return [_override(word, params[key]) for key, word in self.swept.items() if key in params]


def _suggested(trial: optuna.Trial, key: str, word: str) -> str:
    kind, given = _distribution(command_line.parsed(word))
    return _override(word, getattr(trial, f"suggest_{kind}")(key, **given))


def _distribution(word: Override) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of Optuna's suggestion for a sweep. Raises ``UserError`` where there is none."""
    sweep, text = word.value(), word.input_line
    if isinstance(sweep, ChoiceSweep):
        return "categorical", {"choices": [_plain(each) for each in sweep.list]}
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range()) if sweep.step else []
        if values:
            return "categorical", {"choices": values}
    if isinstance(sweep, IntervalSweep) and sweep.start is not None and sweep.end is not None:
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        if math.isfinite(high - low) and low < high and (low > 0 or not log):
            return "int" if isinstance(low, int) and isinstance(high, int) else "float", {
                "low": low, "high": high, "log": log,
            }  # fmt: skip
    raise UserError(
        f"{text!r} cannot be tuned: write several values, choice(...), range(...) or interval(LOW,HIGH) with LOW below "
        "HIGH (and above 0 with tag(log,...))."
    )


def _default(kind: str, given: Mapping[str, Any], value: Any) -> Any:
    """The parameter that stands for ``value`` in a distribution, or ``_MISSING``."""
    if kind == "categorical":
        return next((each for each in given["choices"] if _same(each, value)), _MISSING)
    if isinstance(value, int if kind == "int" else (int, float)) and given["low"] <= value <= given["high"]:
        return value
    return _MISSING


def _same(choice: Any, value: Any) -> bool:
    """Whether a choice is a value: 1 is 1.0, and not true; a text may be quoted."""
    if all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (choice, value)):
        return bool(choice == value)
    return _unquoted(config.written(choice)) == config.written(value)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _plain(value: Any) -> Any:
    """A choice as Optuna keeps it: a number as such, anything else as it is written on the command line."""
    return value if isinstance(value, bool | int | float | None) else Override._get_value_element_as_str(value)


def _override(word: str, value: Any) -> str:
    """The override for a proposed value; of an interval, with as many digits as a person would type."""
    key, sweep = word.partition("=")[0], command_line.parsed(word).value()
    if isinstance(value, float) and isinstance(sweep, IntervalSweep):
        return f"{key}={min(max(float(f'{value:.4g}'), sweep.start or value), sweep.end or value):.15g}"
    return f"{key}={config.written(value)}"
