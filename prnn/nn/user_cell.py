"""``prnn.Recurrent``: layers of a cell written in Python.

Letters: T steps, B batch, I input size, H hidden size, G gates, D directions, L layers, M per-step inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from prnn import ops
from prnn.codegen.definition import CellDefinition, Initial
from prnn.errors import UserError
from prnn.nn.layers import Lengths, RecurrentLayers
from prnn.nn.recurrent import Device
from prnn.ops.reference import compute_dtype

_BIASES = {True: ("bias_ih", "bias_hh"), False: (), "input": ("bias_ih",), "recurrent": ("bias_hh",)}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Recurrent(RecurrentLayers):
    """Layers of a cell written in Python with ``prnn.cell``, run by kernels compiled for it where there are any.

    Args:
        cell: what ``prnn.cell`` made of a function.
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as for torch.nn.RNN.
        bias: True for an input and a recurrent bias in each gate, False for none, "input" or "recurrent" for one.
        heads: diagonal blocks of ``weight_hh``, which is then [G*H,H/heads]: a unit meets those of its own head alone.
        native: "never" runs the cell as a Python loop, "auto" where it cannot be compiled; the cell's own if left out.

    Parameters: ``weight_ih_l0`` [G*H,I], ``weight_hh_l0`` [G*H,H], ``bias_ih_l0``, ``bias_hh_l0`` [G*H] as in torch.nn
    (``weight_hh_l0`` [G*H] for a cell with recurrent="diagonal", none with "none"), and the cell's, such as ``beta_l0``
    [H], or [1] for a ``prnn.scalar``; with ``_reverse`` for the second direction.
    Weights and biases are drawn from U(-1/sqrt(H), 1/sqrt(H)).

    ``forward(input, state=None, *, lengths=None, resets=None, inputs=None)``:

    - input, lengths, resets: as for ``prnn.RNN``;
    - state: a dictionary of tensors [L*D,B,H] (unbatched: [L*D,H]) by the names of the cell's states, those left out
      zero; or a tuple of all in their order. A reset makes every state zero.
    - inputs: a dictionary of the cell's per-step inputs: each a tensor that broadcasts to [T,B,H] ([B,T,H] with
      ``batch_first``, unbatched [T,H]) for all layers, or a list with one for each;
    - returns output [T,B,D*H] in the layout of the input, and the final state: a dictionary, or a tuple where the
      state was given as one.

    States other than h, parameters and per-step inputs are computed in float32 where the input is of a 16-bit type, and
    under autocast. float64, and devices without kernels, run the equations as a Python loop under autograd;
    ``prnn.explain`` says what runs, and why.

    Raises ValueError for a state or inputs that do not fit the cell, UserError for a cell that cannot be compiled.

    Example::

        layer = prnn.Recurrent(lif, input_size=64, hidden_size=128, num_layers=2)
        spikes, final = layer(torch.randn(100, 32, 64))  # [100,32,128], {"h": [2,32,128], "v": [2,32,128]}
    """

    _prnn_named_in_errors = "Recurrent"

    def __init__(
        self,
        cell: CellDefinition,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        heads: int = 1,
        native: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(cell, CellDefinition):
            raise UserError(f"Recurrent takes a cell made by prnn.cell, got {cell!r}")
        if bias not in _BIASES:
            raise UserError(f'bias={bias!r}: expected True, False, "input" or "recurrent"')
        for name in set(cell.params) & set(_WEIGHTS):
            raise UserError(f"the cell {cell.__name__} has a parameter {name!r}, which is the name of the layer's own")
        self._definition = cell if native is None else cell.with_native(native)
        recurrent = cell.signature.recurrent
        whole = isinstance(heads, int) and heads > 0 and (heads == 1 or recurrent == "dense")
        if not whole or (isinstance(hidden_size, int) and hidden_size % heads):  # torch.nn refuses other sizes
            expected = (
                "a divisor of hidden_size" if recurrent == "dense" else f'1, as the cell has recurrent="{recurrent}"'
            )
            raise UserError(f"heads={heads} with hidden_size={hidden_size}: expected {expected}")
        self.heads = heads
        self._biases = tuple(name for name in _BIASES[bias] if recurrent != "none" or name == "bias_ih")
        super().__init__(
            self._definition.cell.name,
            *(input_size, hidden_size, num_layers, bool(bias), batch_first, dropout, bidirectional, 0, device, dtype),
        )
        self.bias = bias  # type: ignore[assignment]

    @property
    def cell(self) -> CellDefinition:
        """The cell."""
        return self._definition

    @property
    def step_inputs(self) -> tuple[str, ...]:
        """The names of what the cell is given at each step besides x."""
        return self._definition.signature.inputs

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The name under which the cell is registered in this process, perhaps not that of the one that pickled it.
        self.mode = self._definition.cell.name

    def compile_native(self) -> None:
        """Compile the kernel for this layer's dtype now; UserError with the reason where there cannot be one.

        On a GPU the cell is translated; its kernels depend on the batch size, and are compiled at the first call.
        """
        weight = self._prnn_layer_weights(0).weight_hh
        dtype, cell = weight.dtype, self._definition.cell
        refusal = cell.refused_on_gpu(dtype, weight.get_device()) if weight.is_cuda else cell.refused(dtype)
        if refusal is not None:
            raise UserError(f"the cell {self._definition.__name__} has no kernel for {dtype}: {refusal}")

    def _prnn_add_parameters(self, layer: int, suffix: str, factory: dict[str, Any]) -> None:
        rows, D = self._definition.signature.gates * self.hidden_size, 2 if self.bidirectional else 1
        columns = self.input_size if layer == 0 else D * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns)}
        if self._recurrent != "none":
            shapes["weight_hh"] = (rows,) if self._recurrent == "diagonal" else (rows, self.hidden_size // self.heads)
        shapes |= dict.fromkeys(self._biases, (rows,))
        for name, initial in self._definition.params.items():
            shapes[name] = (1 if initial.shared else self.hidden_size,)
        names = {f"{kind}_l{layer}{suffix}": shape for kind, shape in shapes.items()}
        for name, shape in names.items():
            initial_of = self._definition.params.get(_kind(name))
            trained = initial_of is None or initial_of.requires_grad
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory), requires_grad=trained))
        self._all_weights.append(list(names))

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/sqrt(H), 1/sqrt(H)); the cell's parameters get their initial values."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for names in self._all_weights:
            for name in names:
                parameter, kind = getattr(self, name), _kind(name)
                if kind in _WEIGHTS:
                    nn.init.uniform_(parameter, -bound, bound)
                else:
                    _fill(parameter, name, self._definition.params[kind])

    def forward(
        self,
        input: Any,
        state: Any = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        return self._prnn_forward(input, state, lengths, resets, inputs)

    @property
    def _prnn_kind(self) -> str:
        return "Recurrent"

    def extra_repr(self) -> str:
        heads = f", heads={self.heads}" if self.heads > 1 else ""
        return f"{self._definition.__name__}, {super().extra_repr()}{heads}"

    def _prnn_layer_weights(self, row: int) -> ops.Weights:
        plain: dict[str, Any] = self._parameters
        tensors = {
            _kind(name): plain[name] if name in plain else getattr(self, name) for name in self._all_weights[row]
        }
        names = self._definition.params
        params = None
        if names:
            dtype = compute_dtype(tensors["weight_ih"].dtype)
            params = torch.stack([tensors[name].to(dtype).expand(self.hidden_size) for name in names])
        weight_ih, weight_hh = tensors["weight_ih"], tensors.get("weight_hh")
        if weight_hh is None:
            weight_hh = weight_ih.new_empty(weight_ih.shape[0], 0)
        elif self._recurrent == "diagonal":
            weight_hh = weight_hh.unsqueeze(1)
        return ops.Weights(weight_ih, weight_hh, tensors.get("bias_ih"), tensors.get("bias_hh"), None, params)

    @property
    def _recurrent(self) -> str:
        return self._definition.signature.recurrent

    @property
    def _names(self) -> tuple[str, ...]:
        """Those of the states a caller sees."""
        return self._definition.signature.states

    def _prnn_as_state(self, hx: Any, batched: bool) -> tuple[Tensor, ...] | None:
        if hx is None:
            return None
        names, given = self._names, hx
        if isinstance(given, Tensor):
            given = (given,)
        if not isinstance(given, (Mapping, tuple, list)):
            raise ValueError(f"state must be a dictionary or a tuple of {', '.join(names)}, got {given!r}")
        if not isinstance(given, Mapping):
            if len(given) != len(names):
                raise ValueError(f"state must be a tuple of {', '.join(names)}, got {len(given)} tensors")
            given = dict(zip(names, given, strict=True))
        letters = "[L*D,B,H]" if batched else "[L*D,H]"
        for name, tensor in given.items():
            if name not in names:
                raise ValueError(
                    f"state has no {name!r}: the states of {self._definition.__name__} are {', '.join(names)}"
                )
            if not isinstance(tensor, Tensor) or tensor.dim() != (3 if batched else 2):
                got = f"{tensor.dim()}-D" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"state[{name!r}] must be a tensor {letters}, got {got}")
        if not given:
            return None
        first, dtype = next(iter(given.values())), getattr(self, self._all_weights[0][0]).dtype
        shape = (len(self._all_weights), *first.shape[1:-1], self.hidden_size)
        for name, tensor in given.items():
            expected = (shape[0], *tensor.shape[1:-1], shape[-1])
            if tensor.shape != expected:
                raise ValueError(f"state[{name!r}] must be {letters} = {list(expected)}, got {list(tensor.shape)}")
        wide = compute_dtype(dtype)
        state = tuple(
            given[name] if name in given else first.new_zeros(shape, dtype=dtype if name == "h" else wide)
            for name in names
        )
        return state if batched else tuple(tensor.unsqueeze(1) for tensor in state)

    def _prnn_check_state(self, state: tuple[Tensor, ...], x: Tensor, autocast: bool) -> None:
        expected = (len(self._all_weights), x.shape[1], self.hidden_size)
        wrong = {
            name: list(each.shape) for name, each in zip(self._names, state, strict=True) if each.shape != expected
        }
        if wrong:  # all of them where the caller gave one, since the others were made like it
            name, got = next(iter(wrong.items()))
            which = "state" if len(wrong) == len(state) else f"state[{name!r}]"
            raise ValueError(f"{which} must be [L*D,B,H] = {list(expected)}, got {got}")
        for name, tensor in zip(self._names, state, strict=True):
            if name == "h" and tensor.dtype != x.dtype and not autocast:
                raise ValueError(f"state['h'] must have the dtype of the input, {x.dtype}, got {tensor.dtype}")
            if not tensor.is_floating_point():
                raise ValueError(f"state[{name!r}] must be of floating-point numbers, got {tensor.dtype}")
            if tensor.device != x.device:
                raise ValueError(f"the state is on {tensor.device}, the input on {x.device}")

    def _prnn_zero_state(self, x: Tensor, directions: int) -> tuple[Tensor, ...]:
        shape, others = (directions, x.shape[1], self.hidden_size), len(self._names) - 1
        h = torch.zeros(shape, dtype=x.dtype, device=x.device)
        if not others:
            return (h,)
        dtype = compute_dtype(ops.autocast_dtype(x))
        return h, *(torch.zeros(shape, dtype=dtype, device=x.device) for _ in range(others))

    def _prnn_operator_state(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(h,), (h, state [D,B,H]) or (h, states [K,D,B,H]), where an output that is no state is one, of zeros."""
        h, *others = state
        if self._definition.signature.pseudo_state:
            others.append(torch.zeros_like(others[0] if others else h))
        dtype = compute_dtype(h.dtype)
        others = [other.to(dtype) for other in others]
        return (h, *others) if len(others) < 2 else (h, torch.stack(others))

    def _prnn_module_state(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, *rest = state
        others = rest[0].unbind(0) if rest and rest[0].dim() == 4 else rest
        return h, *others[: len(self._names) - 1]

    def _prnn_final_state(self, state: tuple[Tensor, ...], hx: Any) -> Any:
        return state if isinstance(hx, tuple) else dict(zip(self._names, state, strict=True))

    def _prnn_check_inputs(self, inputs: Any, T: int, B: int, x: Tensor, layout: str) -> list[Tensor] | None:
        names = self.step_inputs
        if inputs is not None and not isinstance(inputs, Mapping):
            raise ValueError(f"inputs must be a dictionary of tensors, got a {type(inputs).__name__}")
        given = inputs or {}
        for name in given:
            if name not in names:
                raise ValueError(
                    f"inputs has {name!r}: the cell {self._definition.__name__} takes {', '.join(names) or 'none'}"
                )
        for name in names:
            if name not in given:
                raise ValueError(
                    f"inputs lacks {name!r}, which the cell {self._definition.__name__} takes at each step"
                )
        if not names:
            return None
        if all(isinstance(each, Tensor) for each in given.values()):
            return [self._of_layer(given, 0, T, B, x, layout)] * self.num_layers
        return [self._of_layer(given, number, T, B, x, layout) for number in range(self.num_layers)]

    def _of_layer(self, given: Mapping[str, Any], number: int, T: int, B: int, x: Tensor, layout: str) -> Tensor:
        """The per-step inputs of one layer: [T,B,M*H]."""
        names = self._definition.signature.inputs
        each = [self._per_step(given[name], name, number, T, B, x, layout) for name in names]
        return each[0] if len(each) == 1 else torch.cat(each, dim=-1)

    def _per_step(self, given: Any, name: str, number: int, T: int, B: int, x: Tensor, layout: str) -> Tensor:
        """A per-step input of one layer: [T,B,H]."""
        if isinstance(given, (list, tuple)) and not isinstance(given, PackedSequence):
            if len(given) != self.num_layers:
                raise ValueError(
                    f"inputs[{name!r}] must have a tensor for each of {self.num_layers} layers, got {len(given)}"
                )
            given = given[number]
        if not isinstance(given, Tensor):
            raise ValueError(f"inputs[{name!r}] must be a tensor, got a {type(given).__name__}")
        if given.is_complex():
            raise ValueError(f"inputs[{name!r}] must be of real numbers, got {given.dtype}")
        sizes = {"T": T, "B": B}
        shape = (*(sizes[letter] for letter in layout), self.hidden_size)
        try:
            expanded = given.to(device=x.device, dtype=compute_dtype(ops.autocast_dtype(x))).expand(shape)
        except RuntimeError:
            letters = ",".join((*layout, "H"))
            raise ValueError(
                f"inputs[{name!r}] must broadcast to [{letters}] = {list(shape)}, got {list(given.shape)}"
            ) from None
        return expanded.unsqueeze(1) if layout == "T" else expanded.transpose(0, 1) if layout == "BT" else expanded


def _kind(name: str) -> str:
    """The parameter's name without the layer and the direction."""
    return name.removesuffix("_reverse").rpartition("_l")[0]


def _fill(parameter: nn.Parameter, name: str, initial: Initial) -> None:
    value: Any = initial.value
    with torch.no_grad():
        has_values = not parameter.is_meta and torch._C._len_torch_dispatch_stack() == 0
        if callable(value):
            filled = value(parameter.fill_(torch.nan))
            value = parameter if filled is None else filled  # those of torch.nn.init return what they have filled
        if isinstance(value, Tensor):
            if value.shape not in (parameter.shape, torch.Size()):
                raise UserError(f"the initial value of {name} must be {list(parameter.shape)}, got {list(value.shape)}")
            parameter.copy_(value)
        elif isinstance(value, Real):
            parameter.fill_(float(value))
        else:
            raise UserError(f"the function that fills {name} returned {value!r}: expected a tensor, a number or None")
        if callable(initial.value) and has_values and parameter.isnan().any():
            raise UserError(f"the initial value of {name} is NaN, or what was to fill it left some of it out")
