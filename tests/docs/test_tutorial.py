"""The tutorial pages: their Python is one program each, and what they show printed is what it prints."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "tutorial"
PAGES = sorted(path.name for path in FOLDER.glob("*.md")) or [
    pytest.param("", marks=pytest.mark.skip(reason="docs/tutorial has no page"))
]
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n?```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?%?")


class Block(NamedTuple):
    """A block of Python, and what the page shows that it prints."""

    code: str
    shown: str


def blocks(text: str) -> list[Block]:
    return [Block(code, shown or "") for code, shown in _BLOCK.findall(text)]


def printed(program: list[Block], script: Path) -> Iterator[str]:
    """What each block of a program prints; names carry over from block to block."""
    names, lines = {"__name__": "page"}, ""
    for code, _ in program:
        start, lines = lines.count("\n"), lines + code
        script.write_text(lines, encoding="utf-8")  # a cell's source is read from it
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile("\n" * start + code, str(script), "exec"), names)
        yield said.getvalue()


def difference(shown: str, said: str) -> str | None:
    """The first line that is not as shown; None where all are.

    Words and integers are the same; numbers with a point differ by at most a quarter, or 0.02. A line ``...`` stands
    for any lines.
    """
    expected, found = shown.strip().splitlines(), said.strip().splitlines()
    while expected and expected[0].strip() != "...":
        if not found or not _same_line(expected[0], found[0]):
            return f"shown {expected[0]!r}, printed {found[0] if found else 'nothing'!r}"
        expected, found = expected[1:], found[1:]
    if not expected:
        return None if not found else f"not shown: {found[0]!r}"
    rest = "\n".join(expected[1:])
    starts = range(len(found) + 1) if rest else [len(found)]
    fits = any(difference(rest, "\n".join(found[start:])) is None for start in starts)
    return None if fits else f"after the dots: shown {expected[1]!r}, not printed"


def _same_line(shown: str, said: str) -> bool:
    if [_NUMBER.sub("#", word) for word in shown.split()] != [_NUMBER.sub("#", word) for word in said.split()]:
        return False
    return all(map(_same_number, _NUMBER.findall(shown), _NUMBER.findall(said)))


def _same_number(shown: str, said: str) -> bool:
    if "." not in shown and "e" not in shown.lower():
        return shown == said
    one, other = (float(text.rstrip("%").replace(",", "")) for text in (shown, said))
    return math.isclose(one, other, rel_tol=0.25, abs_tol=0.02)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.slow(seconds=15)
def test_a_page_prints_what_it_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where it writes
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    found = blocks((FOLDER / page).read_text(encoding="utf-8"))
    assert found, f"{page} has no Python"
    with matplotlib.rc_context():  # which pages change
        for block, said in zip(found, printed(found, tmp_path / "page.py"), strict=True):
            what = difference(block.shown, said)
            assert what is None, f"{page}, the block that begins with {block.code.splitlines()[0]!r}: {what}"
    pictures = {path.name for path in tmp_path.glob("*.svg")}
    assert pictures == set(re.findall(r"!\[[^]]*\]\((\S+\.svg)\)", (FOLDER / page).read_text(encoding="utf-8")))
    assert all((FOLDER / name).stat().st_size < 60 * 1024 for name in pictures)


@pytest.mark.parametrize(
    ("shown", "said", "same"),
    [
        ("loss 1.25, step 10", "loss 1.5, step 10", True),
        ("loss 1.25, step 10", "loss 1.7, step 10", False),
        ("loss 1.25, step 10", "loss 1.25, step 11", False),
        ("0.01", "0.028", True),
        ("97.5%", "99.1%", True),
        ("1,000 steps", "1,000 steps", True),
        ("a word", "a sword", False),
        ("", "something", False),
        ("something", "", False),
        ("...", "a\nb", True),
        ("a\n...\nb 1", "a\nx\ny\nb 1", True),
        ("a\n...\nb 1", "a\nx\ny\nb 2", False),
        ("a\n...", "a", True),
        ("...\nb", "", False),
    ],
)
def test_what_counts_as_the_same(shown: str, said: str, same: bool) -> None:
    assert (difference(shown, said) is None) == same


def test_the_blocks_of_a_page() -> None:
    page = "```python\na\n```\n\n```text\nsaid\n```\n\nwords\n\n```python\nb\n```\n\n```sh\nc\n```\n"
    assert blocks(page) == [Block("a\n", "said\n"), Block("b\n", "")]
