"""Inputs and the outputs of the training code for them, which go with every artefact.

Letters: T frames, B streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from prnn.errors import UserError
from prnn.export.program import Case
from prnn.export.subject import Subject


def cases(subject: Subject, frames: int) -> list[Case]:
    """Where a call continues the last one: one frame; seven frames of five streams, from a state that is not the first;
    many frames of two streams, with resets. And many frames without, where it does not also as many as the example has.
    """
    if not subject.carries:
        return [_case(subject, subject.example.shape[subject.frames], 5), _case(subject, frames, 2)]
    warm = subject.run(subject.values(4, 5), subject.initial(5), False)[1:]
    resets = torch.rand(frames, 2, generator=subject.generator) < 0.1
    return [
        _case(subject, 1, 1),
        _case(subject, 7, 5, warm),
        _case(subject, frames, 2, resets=resets),
        _case(subject, frames, 2),
    ]


def _case(
    subject: Subject, T: int, B: int, states: Sequence[Tensor] | None = None, resets: Tensor | None = None
) -> Case:
    input, states = subject.values(T, B), tuple(subject.initial(B) if states is None else states)
    output, *final = _with_resets(subject, input, states, resets, True)
    output_single, *final_single = _with_resets(subject, input, states, resets, False)
    for tensor in (output, *final):
        if not tensor.isfinite().all():
            raise UserError(f"{subject.kind} itself gives numbers that are not finite, over {T} frames")
    return Case(input, resets, states, output, tuple(final), output_single, tuple(final_single))


def _with_resets(
    subject: Subject, input: Tensor, states: Sequence[Tensor], resets: Tensor | None, double: bool
) -> tuple[Tensor, ...]:
    """The training code on the pieces between resets."""
    if resets is None:
        return subject.run(input, states, double)
    T, B = resets.shape
    bounds = [0, *(t for t in range(1, T) if resets[t].any()), T]
    initial, outputs = subject.initial(B), []
    for start, stop in itertools.pairwise(bounds):
        states = [
            torch.where(_along(resets[start], state, each.dim), first.to(state.dtype), state)
            for state, first, each in zip(states, initial, subject.states, strict=True)
        ]
        output, *states = subject.run(subject.piece(input, start, stop), states, double)
        outputs.append(output)
    return subject.join(outputs), *states


def _along(streams: Tensor, like: Tensor, dim: int) -> Tensor:
    """[B] along one dimension of ``like``."""
    return streams.reshape([-1 if d == dim else 1 for d in range(like.dim())])


def float32_error(every: Sequence[Case]) -> float:
    """The training code's largest error in float32, of the largest entry of an output or state in float64."""
    errors = [0.0]
    for case in every:
        if case.output_single is not None:
            pairs = zip((case.output_single, *case.final_single), (case.output, *case.final), strict=True)
            errors += [_error(a, b) for a, b in pairs if b.numel()]
    return max(errors)


def _error(found: Tensor, expected: Tensor) -> float:
    """As ``replay.py``, which stands alone, computes it."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30))
