"""What prnn's recurrent modules have in common: checks, forms of input, layers; and ``explain``.

Letters: T steps, B batch, I input size, H hidden size, P output size (``proj_size`` or H), D directions, L layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from prnn import ops
from prnn.nn import packing, tracing
from prnn.nn.base import RecurrentBase

Lengths = Tensor | list[int] | tuple[int, ...]

_log = logging.getLogger("prnn")


class RecurrentLayers(RecurrentBase):
    """What RNN, GRU, LSTM and ``Recurrent`` have in common; with ``mode`` the name of a cell, its layers.

    Beyond ``torch.nn``:

    - ``lengths`` [B], integers in 0..T on any device, or a list. Steps at or past a sample's length give zero output
      and leave its state unchanged: h_n is the state at the end of each sample, where the reverse direction starts.
      Padding, even NaN, has no effect. Checking lengths on a GPU synchronises with it.
    - ``resets`` [T,B] ([B,T] with ``batch_first``, [T] unbatched) bool: where true, an episode begins: the sample's
      state is zeroed before that step. In the reverse direction, too, no state crosses the boundary between two
      episodes.

    Dropout between layers is active in training mode only. Its mask is drawn from torch's generator, so it is
    reproducible, but differs from ``torch.nn``'s. Under autocast, input, weights and state are cast to the autocast
    dtype, as for torch.nn.LSTM; the cell state accumulates in float32 within the call. Under ``torch.compile`` use
    ``lengths`` rather than a PackedSequence, whose sizes are data-dependent. Forward-mode AD goes through the reference
    implementation. ``torch.jit.trace`` records torch.nn's own operators, which load where prnn is not installed.
    """

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Lengths | None = None, resets: Tensor | None = None
    ) -> tuple[Any, Any]:
        """Output and final state, as ``RNN.forward``; of a cell with c as ``LSTM.forward``."""
        return self._prnn_forward(input, hx, lengths, resets)

    @property
    def _prnn_kind(self) -> str:
        """What ``explain`` calls it."""
        return self.mode

    def _prnn_forward(
        self, input: Any, hx: Any, lengths: Lengths | None, resets: Tensor | None, inputs: Any = None
    ) -> tuple[Any, Any]:
        if lengths is None and resets is None and (results := self._prnn_plain_call(input, hx)) is not None:
            return results
        if (tracer := tracing.tracer_of(input, hx, lengths, resets)) is not None:
            return tracing.as_leaf(tracer, self, input, hx, lengths=lengths, resets=resets, inputs=inputs)
        if tracing.runs_torch(self, lengths, resets):
            return super().forward(input, hx)  # of torch.nn's class
        if isinstance(input, PackedSequence):
            return self._prnn_forward_packed(input, hx, lengths, resets, inputs)
        if not hasattr(input, "dim"):  # what stands for a tensor has it, too
            raise TypeError(f"{self._prnn_kind}: expected input to be a tensor, got {type(input).__name__}")
        batched = input.dim() == 3
        if not batched and input.dim() != 2:
            name = self._prnn_kind.split("_")[0]
            tensor = " tensor" if name == "RNN" else ""
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{tensor} instead")
        state = self._prnn_as_state(hx, batched)
        transposed = self.batch_first and batched
        if not batched:
            input = input.unsqueeze(1)
            resets = None if resets is None else resets.unsqueeze(1)
        elif transposed:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling() and input.is_inference():
                input = input.clone()  # of which autograd saves a view
            input = input.transpose(0, 1)
        autocast = ops.autocast_enabled(input)
        self._prnn_check_input(input, 3, autocast)
        T, B, _ = input.shape
        if lengths is not None:
            lengths = packing.check_lengths(lengths, T, B, input.device)
            input = input if lengths is None else packing.clear_padding(input, lengths)
        if resets is not None:
            resets = packing.check_resets(resets, T, B, transposed).to(input.device)

        layout = "BT" if transposed else "TB" if batched else "T"
        inputs = self._prnn_check_inputs(inputs, T, B, input, layout)
        if state is not None:
            self._prnn_check_state(state, input, autocast)
        output, state = self._prnn_run(input, state, lengths, resets, autocast, inputs)
        if transposed:
            output = output.transpose(0, 1)
        elif not batched:
            output, state = output.squeeze(1), tuple(tensor.squeeze(1) for tensor in state)
        return output, self._prnn_final_state(state, hx)

    def _prnn_plain_call(self, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Output and final state, computed in a shorter way, if there is one."""
        return None

    def __prepare_scriptable__(self) -> nn.Module:
        return import_module("prnn.nn.conversion").scriptable(self)  # converts to the classes below

    def _prnn_final_state(self, state: tuple[Tensor, ...], hx: Any) -> Any:
        """The state as the caller gets it, who gave ``hx``."""
        return state if len(state) == 2 else state[0]

    def _prnn_check_inputs(self, inputs: Any, T: int, B: int, x: Tensor, layout: str) -> list[Tensor] | None:
        """The per-step inputs [T,B,M*H] of each layer; only cells written in Python have any."""
        return None

    def _prnn_as_state(self, hx: Any, batched: bool) -> tuple[Tensor, ...] | None:
        """Return hx as (h0,) or (h0, c0), each [L*D,B,*]; RuntimeError for a wrong number of dimensions."""
        if hx is None:
            return None
        if self._prnn_has_c and len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        state = (hx[0], hx[1]) if self._prnn_has_c else (hx,)
        dims = 3 if batched else 2
        for tensor in state:
            if tensor.dim() != dims:
                kind, got = ("unbatched 2-D", "batched 3-D")[batched], ", ".join(f"{each.dim()}-D" for each in state)
                if self._prnn_has_c:
                    raise RuntimeError(f"For {kind} input, hx and cx should also be {dims}-D but got ({got}) tensors")
                raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {got} tensor")
        return state if batched else tuple(tensor.unsqueeze(1) for tensor in state)

    def _prnn_forward_packed(
        self, packed: PackedSequence, hx: Any, lengths: Lengths | None, resets: Tensor | None, inputs: Any
    ) -> tuple[PackedSequence, Any]:
        """Run in the packed (sorted) order; hx, resets and the returned state are in the original order."""
        if lengths is not None:
            raise ValueError("lengths cannot be given with a PackedSequence, which has its own")
        autocast = ops.autocast_enabled(packed.data)
        self._prnn_check_input(packed.data, 2, autocast)
        input, sorted_lengths = packing.unpack(packed)
        T, B, _ = input.shape
        order = packed.sorted_indices
        state = self._prnn_as_state(hx, True)
        if state is not None:
            self._prnn_check_state(state, input, autocast)  # before a wrong batch size is permuted
            state = packing.permute(state, order)
        if resets is not None:
            resets = packing.check_resets(resets, T, B, self.batch_first).to(input.device)
            resets = resets if order is None else resets.index_select(1, order)
        device_lengths = None if sorted_lengths is None else sorted_lengths.to(input.device)
        layout = "BT" if self.batch_first else "TB"
        at_steps = self._prnn_check_inputs(inputs, T, B, input, layout)
        if at_steps is not None and order is not None:
            at_steps = [each.index_select(1, order) for each in at_steps]
        output, state = self._prnn_run(input, state, device_lengths, resets, autocast, at_steps)
        state = packing.permute(state, packed.unsorted_indices)
        return packing.repack(output, sorted_lengths, packed), self._prnn_final_state(state, hx)

    def _prnn_run(
        self,
        x: Tensor,
        state: tuple[Tensor, ...] | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        autocast: bool,
        inputs: list[Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers: x [T,B,I], checked state or None -> output [T,B,D*P], final state (h_n,) or (h_n, c_n)."""
        if x.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if not (torch.compiler.is_compiling() or self._prnn_explained):
            self._prnn_explained = True
            if _log.isEnabledFor(logging.INFO):
                _log.info("%s", _summary(self, x, lengths, resets))
        D, count = 2 if self.bidirectional else 1, self.num_layers
        options: Any = {"lengths": lengths, "resets": resets, "checked": not autocast}
        if count == 1:  # 4 us less than as a list of one
            initial = self._prnn_operator_state(self._prnn_zero_state(x, D) if state is None else state)
            weights = [self._prnn_layer_weights(row) for row in range(D)]
            at_steps = None if inputs is None else inputs[0]
            x, last = ops.layer(x, weights, initial, self._prnn_cell, inputs=at_steps, **options)
            return x, self._prnn_module_state(last)
        rows = range(0, count * D, D)  # of each layer, the first of its weights and states
        if state is None:  # one serves every layer
            states = [self._prnn_operator_state(self._prnn_zero_state(x, D))] * count
        else:
            states = [self._prnn_operator_state(tuple(part[row : row + D] for part in state)) for row in rows]
        x, all_last = ops.layers(
            x,
            [[self._prnn_layer_weights(row + d) for d in range(D)] for row in rows],
            states,
            self._prnn_cell,
            dropout=self.dropout if self.training else 0.0,
            inputs=inputs,
            **options,
        )
        final = [self._prnn_module_state(last) for last in all_last]
        return x, tuple(torch.cat(parts) for parts in zip(*final, strict=True))

    def _prnn_operator_state(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state of one layer as ``ops.layer`` takes it."""
        return state

    def _prnn_module_state(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The other way round."""
        return state

    def _prnn_zero_state(self, x: Tensor, directions: int) -> tuple[Tensor, ...]:
        """The state of one layer: h0 [D,B,P], and c0 [D,B,H] for a cell with c."""
        B, dtype, device = x.shape[1], x.dtype, x.device  # (x.new_zeros takes 3 us more)
        h0 = torch.zeros(directions, B, self.proj_size or self.hidden_size, dtype=dtype, device=device)
        if not self._prnn_has_c:
            return (h0,)
        return h0, torch.zeros(directions, B, self.hidden_size, dtype=dtype, device=device) if self.proj_size else h0


tracing.look_into(RecurrentLayers)


def explain(module: torch.nn.Module, x: Any, lengths: Lengths | None = None, resets: Tensor | None = None) -> str:
    """Which backend ``module(x, lengths=lengths, resets=resets)`` would use for each layer, and why.

    ``module`` is an RNN, GRU, LSTM or Recurrent of prnn; TypeError otherwise.
    """
    if not isinstance(module, RecurrentLayers):
        raise TypeError(f"explain takes a prnn RNN, GRU, LSTM or Recurrent, got {type(module).__name__}")
    if not isinstance(x, PackedSequence) and not hasattr(x, "dim"):
        raise TypeError(f"explain takes the layer's input, a tensor or a PackedSequence, got {type(x).__name__}")
    checked_lengths: Tensor | None = None
    if isinstance(x, PackedSequence):
        x, checked_lengths = packing.unpack(x)
        if resets is not None:
            packing.check_resets(resets, x.shape[0], x.shape[1], module.batch_first)
    else:
        batched = x.dim() != 2
        module._prnn_check_input(x, 3 if batched else 2, ops.autocast_enabled(x))
        transposed = module.batch_first and batched
        x = x.transpose(0, 1) if transposed else x if batched else x.unsqueeze(1)
        if isinstance(resets, Tensor) and not batched:
            resets = resets.unsqueeze(1)
        if resets is not None:
            resets = packing.check_resets(resets, x.shape[0], x.shape[1], transposed)
        if lengths is not None:
            checked_lengths = packing.check_lengths(lengths, x.shape[0], x.shape[1], x.device)
    return _explanation(module, x, checked_lengths, resets)


def _summary(module: RecurrentLayers, x: Tensor, lengths: Tensor | None, resets: Tensor | None) -> str:
    """One line, where all layers have the same backend: of the first call, whose sizes may not be those of others."""
    x = x.to(ops.autocast_dtype(x))
    choices = list(dict.fromkeys(map(str, _choices(module, x, lengths, resets))))
    if len(choices) > 1:
        return _explanation(module, x, lengths, resets)
    dtype = str(x.dtype).removeprefix("torch.")
    return f"{module._prnn_kind}({module.extra_repr()}), {dtype} on {x.device}: backend {choices[0]}"


def _weights(module: RecurrentLayers) -> list[ops.Weights]:
    directions = 2 if module.bidirectional else 1
    return [module._prnn_layer_weights(row) for row in range(module.num_layers * directions)]


def _choices(module: RecurrentLayers, x: Tensor, lengths: Tensor | None, resets: Tensor | None) -> Iterator[ops.Choice]:
    """The backend of each layer and direction."""
    directions = 2 if module.bidirectional else 1
    for of_row in _weights(module):
        yield ops.choose(ops.Request.of(x, of_row, module._prnn_cell, lengths, resets, directions))


def _explanation(module: RecurrentLayers, x: Tensor, lengths: Tensor | None, resets: Tensor | None) -> str:
    """The text of ``explain`` for the first layer's input x [T,B,I]; later layers differ only in I."""
    T, B, _ = x.shape
    x = x.to(ops.autocast_dtype(x))
    lines = [
        f"{module._prnn_kind}({module.extra_repr()}), T={T} B={B} {str(x.dtype).removeprefix('torch.')} on {x.device}"
    ]
    directions, weights = 2 if module.bidirectional else 1, _weights(module)
    for row, choice in enumerate(_choices(module, x, lengths, resets)):
        direction = " reverse" if row % directions else ""
        lines.append(f"  layer {row // directions}{direction}: {choice}")
    of_layers = [weights[row : row + directions] for row in range(0, len(weights), directions)]
    dropout, checked = module.dropout if module.training else 0.0, not ops.autocast_enabled(x)
    if ops.run_together(x, of_layers, module._prnn_cell, lengths, resets, dropout, checked):
        lines.append("  the layers run in one call, at the same time where that is faster")
    return "\n".join(lines)
