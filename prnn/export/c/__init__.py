"""A model as plain C99: a header and a source, without allocation, for float32 or for int8 weights.

``model``        from a step's program to its parts; ``plan``: what is known before
``builder``      the graph's nodes one after the other; ``nodes``, ``values`` what they are, ``views`` where they stand
``operators``    products, look-ups, concatenation; ``reductions``, ``convolution``
``layers``       recurrent layers; ``cell_functions`` of ``cells``
``expressions``  pointwise operators as statements; ``constants`` weights as arrays
``text``         the files' text, with ``parts/``, which is C; ``vocabulary``, ``golden``: what its programs read

Weights as int8 (``weights="int8"``): matrices, kernels of convolutions and tables, each row whole numbers from -127 to
127 times a scale, so that a weight is off by at most 1/254 of its row's largest. Sums are floats. Biases, recurrent
weights of diagonal recurrence and parameters of cells stay floats. Outputs of small networks with random weights
differ by 0.3 to 0.9 per cent of the largest (a GRU of 64, a detector, a character model; ``tests/export``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prnn.errors import UserError
from prnn.export.c import text
from prnn.export.c.golden import golden
from prnn.export.c.model import Model, compile_step
from prnn.export.c.vocabulary import Vocabulary
from prnn.export.program import Case, Step

__all__ = ["Vocabulary", "check", "compiler", "write"]

WEIGHTS = ("float32", "int8")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


def write(
    folder: Path,
    name: str,
    step: Step,
    cases: Sequence[Case],
    weights: str = "float32",
    vocabulary: Vocabulary | None = None,
    bound: float = 1e-5,
) -> None:
    """Write ``NAME.h``, ``NAME.c``, ``replay.c`` with its ``golden.bin``, a ``Makefile``, and ``generate.c`` for a
    model of text; the same model gives the same bytes. ``bound``: of the error, in ``make check``.

    Raises UserError for a model that C has not, and for arguments that do not fit.
    """
    if name in ("replay", "generate", "golden", "Makefile"):
        raise UserError(f"name={name}: expected another, since a file of the folder is called so")
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
    model = compile_step(name, step, weights)
    files = {f"{name}.h": text.header(model), f"{name}.c": text.source(model)}
    files["replay.c"] = _named(text.part("replay.c"), name)
    programs = "replay"
    if vocabulary is not None:
        files["generate.c"] = _generate(model, vocabulary)
        programs += " generate"
    makefile = text.part("Makefile").replace("MODEL", name).replace("PROGRAM_NAMES", programs)
    files["Makefile"] = makefile.replace("TOLERANCE", f"{bound:g}")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_text(content, encoding="utf-8")
    (folder / "golden.bin").write_bytes(
        golden(cases, model.output.size, [each.numel() for _, each in model.states], model.reversed)
    )


def check(folder: Path, name: str, bound: float, flags: Sequence[str] = ("-O2",), runner: Sequence[str] = ()) -> float:
    """Compile what ``write`` wrote, without a warning, and replay its cases: the largest error relative to the largest
    entry, infinite where something is not a number. ``runner``: the command that runs the program, an emulator.

    Raises UserError where there is no compiler, or where it refuses.
    """
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "replay"
        sources = [str(folder / "replay.c"), str(folder / f"{name}.c")]
        command = [*compiler(), *STRICT, *flags, "-o", str(program), *sources, "-lm"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            lines = [line for line in built.stderr.splitlines() if "error" in line] or ["no message"]
            raise UserError(f"{command[0]} does not compile {name}.c: {lines[0]}")
        if not program.exists():
            raise UserError(f"{command[0]} made no program: PRNN_CC and CC name a C compiler")
        replay = [*runner, str(program), str(folder / "golden.bin"), repr(bound)]
        done = subprocess.run(replay, capture_output=True, text=True)
    found = re.search(r"largest error (\S+),", done.stdout)
    if done.returncode > 1 or done.returncode < 0 or found is None:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"the replay of {name} failed: {lines[0] if lines else f'exit status {done.returncode}'}")
    error = float(found.group(1))
    return error if error == error else float("inf")


def compiler() -> list[str]:
    """The C compiler's command: $PRNN_CC, $CC, cc, gcc or clang; UserError where there is none."""
    for command in (os.environ.get("PRNN_CC"), os.environ.get("CC"), "cc", "gcc", "clang"):
        words = (command or "").split()
        if words and shutil.which(words[0]):
            return words
    raise UserError("there is no C compiler: install gcc or clang, or set PRNN_CC to the command of one")


def _named(code: str, name: str) -> str:
    """The C of ``parts`` for a model of this name."""
    return re.sub(r"\bMODEL_", f"{name.upper()}_", re.sub(r"\bmodel(?=_|\.h)", name, code))


def _generate(model: Model, vocabulary: Vocabulary) -> str:
    if model.reversed or model.input.kind != "int32_t" or model.input.size != 1:
        raise UserError("a vocabulary is given, and the model takes no single tokens: expected tokens [T,B] as input")
    start, pieces = vocabulary.start, vocabulary.pieces
    if not all(isinstance(piece, bytes) for piece in pieces) or vocabulary.level not in ("char", "byte", "word"):
        raise UserError('a vocabulary has the bytes of each token, and a level of "char", "byte" or "word"')
    if not isinstance(start, int) or not 0 <= start < len(pieces):
        raise UserError(f"the vocabulary's start is {start}: expected a token from 0 to {len(pieces) - 1}")
    if len(vocabulary.pieces) != model.output.size:
        raise UserError(
            f"the vocabulary has {len(vocabulary.pieces)} pieces, and the model's output {model.output.size} entries: "
            "expected as many"
        )
    return _named(text.part("generate.c"), model.name).replace("/* VOCABULARY */", vocabulary.source())
