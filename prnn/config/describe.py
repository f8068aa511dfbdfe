"""What the settings mean: the sentence, type, range and default of each, from the source of the dataclasses.

The source is parsed, not imported: a task imports torch, which takes longer than ``--help`` may. The sentence is the
comment after a field; the range of a task's field is evaluated from its class variable ``RANGES``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prnn import importing
from prnn.config import ranges, schema
from prnn.config.keys import expected
from prnn.errors import UserError

_ANY_FLOAT = f"a number from -{ranges.FLOAT:g} to {ranges.FLOAT:g}"


class Setting(NamedTuple):
    """One setting: its dotted key, its type and range in words, its default and its meaning."""

    key: str
    expected: str
    default: Any
    meaning: str


def settings(task: Path | None) -> Iterator[Setting]:
    """Every setting in the order of the schema; those of the sections task and data from the source of the task."""
    own = _Source(Path(schema.__file__))
    sections = {} if task is None else {"task": (_Source(task), "Config"), "data": (_Source(task), "DataConfig")}
    yield from _described(own, "TrainConfig", "", sections, ranges.RANGES)


def summary(path: Path) -> str:
    """The first sentence of the comment at the beginning of a configuration; "" without one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comment.append(line.lstrip("# ").rstrip())
    return re.split(r"\. |,? *https?:", " ".join(comment))[0].rstrip(".: ")


def _described(
    source: _Source, name: str, prefix: str, sections: dict[str, tuple[_Source, str]], known: ranges.Ranges
) -> Iterator[Setting]:
    """The settings of the dataclass ``name``, with the dotted ``prefix`` of its keys."""
    found = source.find(name)
    if found is None:
        return
    source, node = found
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        key, kind = prefix + field.target.id, ast.unparse(field.annotation)
        if kind.startswith("ClassVar"):
            continue
        if key in sections:
            there, inner = sections[key]
            yield from _described(there, inner, f"{key}.", {}, there.ranges(inner, f"{key}."))
        elif (inside := source.find(kind)) is not None:
            yield from _described(inside[0], kind, f"{key}.", {}, known)
        else:
            default = source.evaluate(field.value) if field.value is not None else None
            yield Setting(key, _words(source, kind, known.get(key)), default, source.comment(field))


def _words(source: _Source, kind: str, limits: ranges.Range | None) -> str:
    """A type and a range in words, without the bounds that come from the type of the number."""
    words = expected(source.evaluate(ast.parse(kind, mode="eval").body))
    limit = "" if limits is None else limits[1]
    for bound in (f" and at most {ranges.COUNT:,}", f" and at most {ranges.FLOAT:g}", _ANY_FLOAT):
        limit = limit.removesuffix(bound)
    if not limit:
        return words
    if limit.startswith(("at ", "above ", "from ")):
        of = " of" if limit.startswith("at ") else ""
        return f"{words.removesuffix(' or null')}{of} {limit}{', or null' if words.endswith(' or null') else ''}"
    return limit + (", or null" if words.endswith(" or null") else "")


class _Source:
    """The source of a module: its classes, their comments, and what its constants are, as far as that can be told."""

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            self._tree = ast.parse(text)
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
            raise UserError(f"{path} cannot be read as Python ({error}): correct it first.") from None
        self._comments = {each.start[0]: each.string.lstrip("# ") for each in tokens if each.type == tokenize.COMMENT}

    def comment(self, node: ast.AST) -> str:
        """The comment on the lines of a statement."""
        lines = range(getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) + 1)
        return next((self._comments[line] for line in lines if line in self._comments), "")

    def find(self, name: str, most: int = 8) -> tuple[_Source, ast.ClassDef] | None:
        """A class of this module, or of one that it imports it from, by way of ``most`` others; and its source."""
        for node in self._tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self, node
        there = self._imported(name)
        return there[0].find(there[1], most - 1) if there is not None and most else None

    def ranges(self, name: str, prefix: str) -> ranges.Ranges:
        """The class variable RANGES of a class; without those that cannot be told without an import."""
        found = self.find(name)
        if found is None:
            return {}
        source, node = found
        values = [
            each.value for each in node.body if isinstance(each, ast.AnnAssign | ast.Assign) and _is(each, "RANGES")
        ]
        if not values or not isinstance(values[0], ast.Dict):
            return {}
        pairs = zip(values[0].keys, values[0].values, strict=True)
        evaluated = {key.value: source.evaluate(value) for key, value in pairs if isinstance(key, ast.Constant)}
        return {prefix + str(key): value for key, value in evaluated.items() if isinstance(value, tuple)}

    def evaluate(self, node: ast.AST) -> Any:
        """The value of an expression of literals, of constants of modules and of functions of ``prnn.config``; None
        for any other.
        """
        assert isinstance(node, ast.expr)
        try:
            return eval(compile(ast.Expression(node), "<settings>", "eval"), _Names(self))
        except Exception:  # whatever the expression of a user's module raises where a name is not known
            return None

    def constant(self, name: str) -> Any:
        """The value of a name of the module. Raises ``KeyError`` where it cannot be told."""
        for node in self._tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is(node, name) and node.value is not None:
                if isinstance(node.value, ast.Dict):  # by its keys: the values may be functions
                    return dict.fromkeys(key.value for key in node.value.keys if isinstance(key, ast.Constant))
                return eval(compile(ast.Expression(node.value), "<settings>", "eval"), _Names(self))
        there = self._imported(name)
        if there is None:
            raise KeyError(name)
        return there[0].constant(there[1])

    def _imported(self, name: str) -> tuple[_Source, str] | None:
        """The source of the module that ``name`` is imported from, and its name there."""
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if name == (alias.asname or alias.name) and (path := importing.source(node.module)) is not None:
                        return _Source(path), alias.name
        return None


class _Names(dict[str, Any]):
    """The names that an expression may use."""

    def __init__(self, source: _Source) -> None:
        super().__init__(vars(ranges), Any=Any, field=lambda default_factory: default_factory())
        self._source = source

    def __missing__(self, name: str) -> Any:
        return self._source.constant(name)  # Python's own names are looked up after a KeyError


def _is(node: ast.Assign | ast.AnnAssign, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(each, ast.Name) and each.id == name for each in targets)
