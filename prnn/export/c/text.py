"""The text of a model's header and source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prnn.export.c.builder import Declaration, Line
from prnn.export.c.model import Model
from prnn.export.c.views import Buffer, nest

_NUMBERS = {
    "INFINITE": "#define INFINITE (1.0f / 0.0f)",
    "NOT_A_NUMBER": "#define NOT_A_NUMBER (0.0f / 0.0f)",
}
PARTS = Path(__file__).parent / "parts"


def part(name: str) -> str:
    """A file of C that comes with this package."""
    return (PARTS / name).read_text(encoding="utf-8")


def header(model: Model) -> str:
    """The header: sizes, the state and the functions."""
    name, NAME = model.name, model.name.upper()
    given = f"const {model.input.kind} *input"
    tokens = model.input.kind == "int32_t"
    shape = "".join(f"[{size}]" for size in model.input_shape)
    members = [
        f"  float {member}[{initial.numel()}]; /* {_shape(initial.shape)} */" for member, initial in model.states
    ]
    members += [f"  float scratch[{model.scratch}]; /* for the functions' own use */"] if model.scratch else []
    members = members or ["  float none[1]; /* the model has no state */"]
    of_tokens = "tokens, from 0 to one less than the size of the vocabulary"
    takes = of_tokens if tokens else f"floats {_shape(model.input_shape)}"
    of_int8 = [
        "   Weights are whole numbers of 8 bits times a scale for each row: off by at most 1/254 of the row's largest.",
        "",
    ]
    of_int8 = of_int8 if model.builder.constants.int8 else []
    workspace = sum(buffer.size for buffer in model.builder.sequences)
    lines = [
        f"/* {name}: a network in plain C99, made by prnn. No allocation, no global variables but constants: a state",
        "   for each stream of frames is all there is; threads may call the functions, each with its own.",
        "   Input, output and state must not overlap.",
        "",
        *of_int8,
        f"   An input frame is {takes},",
        f"   an output frame floats {_shape(model.output_shape)}.",
        "   Compile with -DPRNN_FAST_MATH for own functions in the place of those of <math.h>: errors of 1e-6, of exp",
        "   between -87 and 87, of sin and cos up to 8,000. */",
        "",
        f"#ifndef {NAME}_H",
        f"#define {NAME}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define {NAME}_INPUT_SIZE {model.input.size} /* of a frame{', ' + shape if shape else ''} */",
        f"#define {NAME}_OUTPUT_SIZE {model.output.size}",
        f"#define {NAME}_STATE_FLOATS {model.state_floats} /* at the beginning of the struct */",
        f"#define {NAME}_TAKES_TOKENS {int(tokens)}",
        f"#define {NAME}_HAS_STEP {int(not model.reversed)}",
    ]
    if model.reversed:
        lines += [f"#define {NAME}_WORKSPACE(frames) ((size_t)(frames) * {workspace}) /* floats */"]
    lines += ["", "typedef struct {", *members, f"}} {name}_state;", ""]
    lines += ["/* The state before the first frame. */", f"void {name}_init({name}_state *state);", ""]
    if model.reversed:
        lines += [
            "/* Whole sequences: a layer runs backwards, from the last frame to the first. input [frames]"
            f"[{model.input.size}], output",
            f"   [frames][{model.output.size}], workspace [{NAME}_WORKSPACE(frames)]. The state is the initial one of "
            "each direction, and then the",
            "   final one: that of the backward direction after the first frame. */",
            f"void {name}_run({name}_state *state, int frames, {given}, float *output, float *workspace);",
        ]
    else:
        lines += [
            f"/* One frame: input [{model.input.size}], output [{model.output.size}]. */",
            f"void {name}_step({name}_state *state, {given}, float *output);",
            "",
            f"/* Frames one after the other: input [frames][{model.input.size}], output [frames][{model.output.size}]. "
            "*/",
            f"void {name}_run({name}_state *state, int frames, {given}, float *output);",
        ]
    return "\n".join([*lines, "", "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])


def source(model: Model) -> str:
    """The source: functions that the model uses, its cells, its steps, and the weights at the end."""
    b, name = model.builder, model.name
    frames = _run_reversed(model) if model.reversed else _step_and_run(model)
    kernels = _definitions(b.functions, part("kernels.c"))
    needed = b.functions | set(re.findall(r"\w+_of(?=\()", "\n".join(kernels)))
    functions = [*kernels, *b.cells.values(), *_init(model), *frames]
    words = set(re.findall(r"\w+", "\n".join(functions)))
    arrays = [array for array_name, array in b.constants.arrays.items() if array_name in words]
    words |= {word for word in _NUMBERS for _, definition in arrays if word in definition}
    fast = _definitions(needed, part("functions_fast.c"))
    exact = _definitions(needed, part("functions_libm.c"))
    numbers = [line for word, line in _NUMBERS.items() if word in words or any(word in each for each in fast)]
    texts = [f'#include "{name}.h"']
    texts += ["\n".join(numbers)] if numbers else []
    if needed:
        texts += ["#ifdef PRNN_FAST_MATH", *fast, "#else", "#include <math.h>", *exact, "#endif"]
    if arrays:
        declarations = "\n".join(declaration for declaration, _ in arrays)
        texts += [f"/* The weights; their values are at the end. */\n{declarations}"]
    return "\n\n".join([*texts, *functions, *(definition for _, definition in arrays)]) + "\n"


def _definitions(wanted: Iterable[str], text: str) -> list[str]:
    """The definitions that ``wanted`` names, and those they need, in the order of the file."""
    by_name = {}
    for definition in re.split(r"\n\n(?=\S)", text.strip()):
        code = re.sub(r"/\*.*?\*/", "", definition, flags=re.DOTALL)
        found = re.search(r"(\w+)\(|\} (\w+);", code)
        assert found is not None
        by_name[found.group(1) or found.group(2)] = definition
    needed: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in by_name and name not in needed:
            needed.add(name)
            pending += re.findall(r"\w+", by_name[name])
    return [definition for name, definition in by_name.items() if name in needed]


def _init(model: Model) -> list[str]:
    name, constants = model.name, model.builder.constants
    lines = []
    for member, initial in model.states:
        size = initial.numel()
        if not initial.any():
            lines += nest([size], [f"state->{member}[i] = 0.0f;"])
        else:
            array = constants.plain(f"initial_{member}", initial)
            lines += nest([size], [f"state->{member}[i] = {array}[i];"])
    lines = lines or ["(void)state;"]
    return ["\n".join([f"void {name}_init({name}_state *state) {{", *(f"  {line}" for line in lines), "}"])]


def _step_and_run(model: Model) -> list[str]:
    name, kind = model.name, model.input.kind
    code = model.builder.code[0] if model.builder.code else []
    lines = _Lines(model)
    body = lines.of(code)
    body += [f"  (void){each};" for each in ("state", "input", "output") if not _mentions(body, each)]
    arguments = f"const {kind} *input, float *output"
    return [
        "\n".join([f"void {name}_step({name}_state *state, {arguments}) {{", *body, "}"]),
        "\n".join(
            [
                f"void {name}_run({name}_state *state, int frames, {arguments}) {{",
                f"  for (int t = 0; t < frames; t++, input += {model.input.size}, output += {model.output.size})",
                f"    {name}_step(state, input, output);",
                "}",
            ]
        ),
    ]


def _run_reversed(model: Model) -> list[str]:
    """Passes over the frames, each a loop; arrays of all frames are in the workspace."""
    name, b = model.name, model.builder
    lines = _Lines(model)
    text = [
        f"void {name}_run({name}_state *state, int frames, const {model.input.kind} *inputs, float *outputs,",
        f"{' ' * (len(name) + 10)}float *workspace) {{",
    ]
    arrays: list[tuple[Buffer, str]] = [(model.input, "inputs"), (model.output, "outputs")]
    offset = 0
    for sequence in b.sequences:
        start = f"workspace + (size_t)frames * {offset}" if offset else "workspace"
        arrays.append((sequence, start))
        offset += sequence.size
    for level, code in enumerate(b.code):
        body = lines.of(code)
        if not body:
            continue
        loop = "int t = frames - 1; t >= 0; t--" if level % 2 else "int t = 0; t < frames; t++"
        pointers = [
            f"  {'const ' if array is model.input else ''}{array.kind} *const {array.name} = "
            f"{start} + (size_t)t * {array.size};"
            for array, start in arrays
            if _mentions(body, array.name)
        ]
        text += [f"  for ({loop}) {{", *(f"  {line}" for line in [*pointers, *body]), "  }"]
    unused = [each for each in ("state", "inputs", "workspace") if not _mentions(text[2:], each)]
    return ["\n".join([*text, *(f"  (void){each};" for each in unused), "}"])]


class _Lines:
    """Statements with the declarations of temporaries: on the stack, or in the state's scratch."""

    def __init__(self, model: Model) -> None:
        self._in_state, self._offset = bool(model.scratch), 0

    def of(self, code: Sequence[Line]) -> list[str]:
        return [f"  {self._declared(line.buffer) if isinstance(line, Declaration) else line}" for line in code]

    def _declared(self, buffer: Buffer) -> str:
        if not self._in_state:
            return f"float {buffer.name}[{buffer.size}];"
        start = f"state->scratch + {self._offset}" if self._offset else "state->scratch"
        self._offset += buffer.size
        return f"float *const {buffer.name} = {start}; /* [{buffer.size}] */"


def _mentions(lines: Sequence[str], name: str) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines)


def _shape(sizes: Sequence[int]) -> str:
    return "".join(f"[{size}]" for size in sizes if size != 1) or "[1]"
