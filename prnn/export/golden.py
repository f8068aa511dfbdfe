"""Inputs and the outputs of the training code for them, which go with every artefact.

Letters: T frames, B streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from prnn.export.program import Case
from prnn.export.subject import Subject


def cases(subject: Subject, frames: int) -> list[Case]:
    """One frame; seven frames of five streams, from a state that is not the initial one; and many frames of two
    streams, with resets where a call continues the last one.
    """
    first = _case(subject, 1, 1, None)
    warm = subject.run(subject.values(4, 5), subject.initial(5), False)[1:]
    every = [first, _case(subject, 7, 5, warm)]
    if subject.carries:
        resets = torch.rand(frames, 2, generator=subject.generator) < 0.1
        every.append(_case(subject, frames, 2, None, resets))
    every.append(_case(subject, frames, 2, None))
    return every


def _case(subject: Subject, T: int, B: int, states: Sequence[Tensor] | None, resets: Tensor | None = None) -> Case:
    input, states = subject.values(T, B), tuple(subject.initial(B) if states is None else states)
    output, *final = _with_resets(subject, input, states, resets, True)
    output_single, *final_single = _with_resets(subject, input, states, resets, False)
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


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of a tensor's elements, of the largest of its expected ones; NaN where one is."""
    errors = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))
        for a, b in zip(found, expected, strict=True)
        if b.numel()
    ]
    return max(errors, default=0.0) if all(error == error for error in errors) else float("nan")


def own_error(every: Sequence[Case]) -> float:
    """The training code's in float32."""
    return max(largest_error((case.output_single, *case.final_single), (case.output, *case.final)) for case in every)
