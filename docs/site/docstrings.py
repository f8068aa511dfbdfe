"""An extension of Griffe: the docstrings of prnn, which are plain text with a little reST, as Markdown.

``Example::`` with an indented block becomes a fenced one, lines that begin with a word in backquotes and spaces a list,
docs/NAME.md a link; a single * or < stands for itself.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_BLOCK = re.compile(r"^([ \t]*)(.*)::\n\n((?:\1[ \t]+.*\n?|[ \t]*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^([ \t]*)(``[^`\n]+``) {2,}", re.MULTILINE)
_CODE = re.compile(r"(^[ \t]*```.*?^[ \t]*```|``.+?``|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


class Markdown(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None and obj.path.startswith("prnn"):
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    text = _ENTRY.sub(r"\1- \2 ", _BLOCK.sub(_fenced, f"{docstring}\n"))
    return "".join(part if index % 2 else _escaped(part) for index, part in enumerate(_CODE.split(text))).rstrip()


def _fenced(match: re.Match[str]) -> str:
    indent, words, block = match.groups()
    code = textwrap.indent(textwrap.dedent(block).strip("\n"), indent)
    return f"{indent}{words}:\n\n{indent}```python\n{code}\n{indent}```\n\n"


def _escaped(text: str) -> str:
    text = re.sub(r"(?<!^)\*", r"\*", text).replace("<", "&lt;")
    return linked(text)


def linked(text: str) -> str:
    """With links to the pages that it names as files, for a page in reference/."""
    return re.sub(r"\bdocs/(\w+)\.md\b", r"[docs/\1.md](../\1.md)", text)
