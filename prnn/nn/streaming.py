"""``prnn.Stream``: a model fed piece by piece, its state kept between the calls.

Letters: T frames of a call, B streams, L layers, D directions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prnn.nn.stack import state_before

_CALL = "a Stream takes a model called as model(input, state) that returns (output, state)"


class Stream:
    """``model`` on B streams of frames that arrive over time.

    Args:
        model: RNN, GRU, LSTM, Recurrent, StackRNN, ListRNN, or a module ``model(input, state) -> (output, state)``,
            state None at first: a tensor, or a tuple or dictionary of tensors, whose dimension 1 is B as in torch.nn.
        batch_size: B.
        state: that before the first frame, and after ``reset``; the model's own if left out.

    ``push`` records no gradient, runs the model in evaluation mode, and leaves its mode as it was. Pieces of any length
    give what one call over the whole does: to the bit for layers that run prnn's CPU kernels, which ``prnn.backend
    ("cpu")`` forces; a call of one or two frames of 192 units or more may run torch's own functions, which are faster,
    and linear layers may sum in another order: up to 5e-7 of the largest entry in float32, where that was measured.

    Raises ValueError for layers in both directions, and frames, a state or rows that do not fit.

    Example::

        stream = prnn.Stream(prnn.GRU(64, 128), batch_size=8)
        output = stream.push(frames)         # [T,8,64] to [T,8,128], T as it comes
        stream.reset([3])                    # stream 3 begins anew
    """

    def __init__(self, model: nn.Module, batch_size: int = 1, state: Any = None) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"{_CALL}, got a {type(model).__name__}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a number of streams, at least 1, got {batch_size!r}")
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                where = f"{type(module).__name__}{f' ({name})' if name else ''}"
                raise ValueError(
                    f"{where} runs in both directions: it needs the whole sequence, and cannot be streamed"
                )
        self.model, self.batch_size = model, batch_size
        self._state: Any = None
        self._initial: Any = None  # the state of B streams, which ``reset`` puts back
        if state is not None:
            self.state = state
            self._initial = self._state

    @property
    def state(self) -> Any:
        """The state after the last frame, as the model returns it; None before the first one. May be assigned; its
        dimension 1 is then the number of streams.
        """
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        rows = {leaf.shape[1] if leaf.dim() > 1 else -1 for leaf in _leaves(state)}
        if state is not None and (len(rows) != 1 or -1 in rows):
            raise ValueError("a state's tensors must have the streams along dimension 1, the same number of them")
        self._state = state
        self.batch_size = rows.pop() if rows else self.batch_size

    def push(self, frames: Tensor) -> Any:
        """The model's output for T more frames of all streams, in its layout; T may differ from call to call."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.no_grad():
                returned = self.model(frames) if self._state is None else self.model(frames, self._state)
        finally:
            if training:
                self.model.train()
        if not (isinstance(returned, tuple) and len(returned) == 2) or not _leaves(returned[1]):
            raise ValueError(f"{_CALL}, and {type(self.model).__name__} returned a {type(returned).__name__}")
        output, state = returned
        rows = {leaf.shape[1] if leaf.dim() > 1 else -1 for leaf in _leaves(state)}
        if rows != {self.batch_size}:
            raise ValueError(
                f"the Stream is of {self.batch_size} streams, and the state after these frames, {list(frames.shape)}, "
                f"has {', '.join(map(str, sorted(rows)))} along dimension 1"
            )
        self._state = state
        return output

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put the state of some streams, by number or as booleans [B], back to that before the first frame; of all, if
        left out.
        """
        if rows is None:
            self._state = self._initial
            return
        index = rows if isinstance(rows, Tensor) else torch.tensor(rows)
        if index.dtype == torch.bool:
            if index.shape != (self.batch_size,):
                raise ValueError(f"rows must be booleans [{self.batch_size}], got {list(index.shape)}")
            index = index.nonzero().flatten()
        elif index.numel() and not (int(index.min()) >= 0 and int(index.max()) < self.batch_size):
            raise ValueError(f"rows must be from 0 to {self.batch_size - 1}, got {index.flatten().tolist()}")
        if self._state is None or not index.numel():
            return

        def restart(state: Tensor, initial: Tensor) -> Tensor:
            places = index.to(state.device)
            return state.index_copy(1, places, initial.index_select(1, places))

        first = state_before(self.model, self._state) if self._initial is None else self._initial
        self._state = pytree.tree_map(restart, self._state, first)


def _leaves(state: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
