"""``prnn.Stream``: a model fed piece by piece, its state kept between the calls.

Letters: T frames of a call, B streams, L layers, D directions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prnn.nn.stack import ListRNN, StackRNN, state_before

_CALL = "a Stream takes a model called as model(input, state) that returns (output, state)"


class Stream:
    """``model`` on B streams of frames that arrive over time.

    Args:
        model: RNN, GRU, LSTM, Recurrent, StackRNN, ListRNN, or a module ``model(input, state) -> (output, state)``,
            state None at first: a tensor, or a tuple or dictionary of tensors, whose dimension 1 is B as in torch.nn.
        batch_size: B.
        state: that before the first frame, and after ``reset``; the model's own if left out.

    ``push`` records no gradient, runs the model in evaluation mode, and leaves its mode as it was. Pieces of any length
    give what one call over the whole does. In float32 they give it to the bit for layers that run prnn's CPU kernels,
    which ``prnn.backend("cpu")`` forces; a call of one or two frames of 192 units or more may run torch's own
    functions, which are faster, and linear layers may sum in another order: up to 6e-7 of the largest entry was
    measured. In bfloat16 the cell state of an LSTM is rounded after each call, and within one is float32: up to 4e-3.

    Raises ValueError for layers in both directions, and frames, a state or rows that do not fit.

    Example::

        stream = prnn.Stream(prnn.GRU(64, 128), batch_size=8)
        output = stream.push(frames)         # [T,8,64] to [T,8,128], T as it comes
        stream.reset([3])                    # stream 3 begins anew
    """

    def __init__(self, model: nn.Module, batch_size: int = 1, state: Any = None) -> None:
        if not isinstance(model, nn.Module) or isinstance(model, nn.RNNCellBase):
            raise ValueError(f"{_CALL}, got {type(model).__name__}")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a number of streams, at least 1, got {batch_size!r}")
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                where = f"{type(module).__name__}{f' ({name})' if name else ''}"
                raise ValueError(
                    f"{where} runs in both directions: it needs the whole sequence, and cannot be streamed"
                )
        self.model, self.batch_size = model, batch_size
        self._state: Any = None
        self._initial: Any = None  # the state of B streams that ``reset`` puts back
        self._frames: Tensor | None = None  # the last ones
        if state is not None:
            self.state = state
            self._initial = _cloned(state)

    @property
    def state(self) -> Any:
        """The state after the last frame, as the model returns it; None before the first one. May be assigned; its
        dimension 1 is then the number of streams, and ``reset`` puts back the model's own.
        """
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        rows = _rows(state)
        if state is not None and (len(rows) != 1 or -1 in rows):
            raise ValueError("a state's tensors must have the streams along dimension 1, the same number of them")
        # A model may write to its state.
        self._state, self._initial = _cloned(state), None
        self.batch_size = rows.pop() if rows else self.batch_size

    def push(self, frames: Tensor) -> Any:
        """The model's output for T more frames of all streams, in its layout; T may differ from call to call."""
        output, state = self._called(frames, self._state)
        rows = _rows(state)
        if rows != {self.batch_size}:
            raise ValueError(
                f"the Stream is of {self.batch_size} streams, and the state after these frames, {list(frames.shape)}, "
                f"has {', '.join(map(str, sorted(rows)))} along dimension 1"
            )
        self._state, self._frames = state, frames
        return output

    @torch.no_grad()
    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put the state of some streams, by number or as booleans [B], back to that before the first frame; of all, if
        left out.
        """
        if rows is None:
            self._state = _cloned(self._initial)
            return
        index = self._index(rows)
        if self._state is None or not index.numel():
            return

        def restart(state: Any, initial: Any) -> Any:
            if not isinstance(state, Tensor):
                return state
            places = index.to(state.device)
            return state.index_copy(1, places, initial.index_select(1, places).to(state.dtype))

        before = self._before()
        if pytree.tree_structure(before) != pytree.tree_structure(self._state):
            raise ValueError("rows cannot be reset: the Stream's first state is of another form than the model returns")
        self._state = pytree.tree_map(restart, self._state, before)

    def _index(self, rows: Any) -> Tensor:
        try:
            index = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError):
            index = torch.empty(0, 0)
        if index.dtype == torch.bool and index.shape == (self.batch_size,):
            return index.nonzero().flatten()
        if rows is not None and not isinstance(rows, Tensor) and not len(rows):
            return torch.empty(0, dtype=torch.int64)
        whole = index.dim() == 1 and not index.is_floating_point() and index.dtype != torch.bool
        if not whole or (index.numel() and not (int(index.min()) >= 0 and int(index.max()) < self.batch_size)):
            expected = f"numbers from 0 to {self.batch_size - 1} or booleans [{self.batch_size}]"
            raise ValueError(f"rows must be {expected}, got {rows}")
        return index.long()

    def _before(self) -> Any:
        """The state before the first frame, of every stream."""
        if self._initial is not None:
            return self._initial
        before = state_before(self.model, self._state)
        if not isinstance(self.model, (nn.RNNBase, StackRNN, ListRNN)):  # another may begin with anything
            last = self._frames
            if last is None or not torch.equal(self._called(last, None)[0], self._called(last, before)[0]):
                raise ValueError(
                    f"{type(self.model).__name__} begins with another state than zeros: give state= to the Stream, the "
                    "state before the first frame, for single streams to be reset"
                )
        return before

    def _called(self, frames: Tensor, state: Any) -> tuple[Any, Any]:
        """Output and state, in evaluation mode."""
        try:
            with torch.no_grad(), _evaluating(self.model):
                returned = self.model(frames) if state is None else self.model(frames, state)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            shape = list(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{type(self.model).__name__} does not take the frames {shape} ({reason})") from error
        if not (isinstance(returned, (tuple, list)) and len(returned) == 2) or not _rows(returned[1]):
            raise ValueError(f"{_CALL}, and {type(self.model).__name__} returned a {type(returned).__name__}")
        return returned[0], returned[1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the one it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _rows(state: Any) -> set[int]:
    """The sizes of dimension 1; -1 of a tensor without one."""
    leaves = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
    return {leaf.shape[1] if leaf.dim() > 1 else -1 for leaf in leaves}


def _cloned(state: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, state)
