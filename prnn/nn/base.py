"""The part of RNN, GRU and LSTM shared with ``torch.nn``: arguments, parameters, initialisation and input checks.

The modules are instances of ``torch.nn.RNNBase``, but without its cache of flat weights, which goes stale under
parametrisations and breaks ``deepcopy`` under ``weight_norm``: ``_flat_weights`` is computed when it is read.
``nn/tracing.py`` has torch.compile look into them, which refuses instances of torch.nn's classes. Names that torch.nn's
classes do not have begin with ``_prnn``: a user's subclass may have any other (``nn/conversion.py``).

Letters: T time steps, B batch, I input size, H hidden size, P output size (``proj_size`` or H), G gates,
D directions, L layers.
"""

from __future__ import annotations

import copy
import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.utils import _pytree

from prnn import ops
from prnn.cell_table import lookup

_CELLS = {cell.mode: name for name, cell in ops.CELLS.items()}


# What a ``torch.nn`` module keeps beside its attributes and parameters, and what prnn's keep for themselves.
CACHES = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_prnn_assigned_weights", "_prnn_explained")


class RecurrentBase(nn.RNNBase):
    """Attributes, parameters (names, order, initial values) and methods are those of ``torch.nn.RNNBase``.

    ``mode`` is torch's name of the cell, "RNN_TANH", "RNN_RELU", "GRU" or "LSTM", or the name of another. Raises
    TypeError and ValueError for invalid arguments, with torch's messages.
    """

    __jit_unused_properties__ = ["all_weights", "_flat_weights", "_flat_weights_names", "_prnn_cell", "_prnn_has_c"]  # noqa: RUF012

    _prnn_assigned_weights: dict[str, Tensor] | None = None  # what was assigned to ``_flat_weights``
    _prnn_named_in_errors = "RNN"  # as torch names all its modules
    _prnn_explained = False  # whether this instance has logged which backend runs

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # RNNBase's own would register parameters of its cells
        _check_arguments(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size)
        if proj_size and not lookup(_CELLS.get(mode, mode)).projects:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            for suffix in ("", "_reverse") if bidirectional else ("",):
                self._prnn_add_parameters(layer, suffix, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def _prnn_add_parameters(self, layer: int, suffix: str, factory: dict[str, Any]) -> None:
        """Register the parameters of one layer in one direction, in torch's order."""
        gates = lookup(self._prnn_cell).gates * self.hidden_size
        output_size = self.proj_size or self.hidden_size
        layer_input_size = self.input_size if layer == 0 else output_size * (2 if self.bidirectional else 1)
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, layer_input_size),
            "weight_hh": (gates, output_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        names = {f"{kind}_l{layer}{suffix}": shape for kind, shape in shapes.items()}
        for name, shape in names.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)))
        self._all_weights.append(list(names))

    @property
    def _prnn_has_c(self) -> bool:
        """Whether the state is a pair (h, c)."""
        return lookup(self._prnn_cell).has_c

    @property
    def _prnn_cell(self) -> str:
        """The cell's name in ``ops.CELLS``; ``mode`` may be assigned, as in torch."""
        return _CELLS.get(self.mode, self.mode)

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)); with the same seed the weights equal ``torch.nn``'s."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """No-op, for compatibility with models written for ``torch.nn``.

        In torch it lays weights out for cuDNN. Here each call packs or loads the weights itself, and a parameter may
        have any storage, be shared, or be computed by a parametrisation.
        """

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @_flat_weights_names.setter
    def _flat_weights_names(self, names: list[str]) -> None:
        """Ignored: torch.nn's constructor assigns it."""

    @property
    def _flat_weights(self) -> _FlatWeights:
        """The weights of all layers and directions as they are now. Assigned to, as code that drops or shares weights
        does, the values serve in the place of the parameters until others are assigned or the module is moved.
        """
        return _FlatWeights(self)

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Tensor | None]) -> None:
        names = self._flat_weights_names
        if len(weights) != len(names):
            raise ValueError(f"_flat_weights takes {len(names)} weights ({', '.join(names)}), got {len(weights)}")
        pairs = zip(names, weights, strict=True)
        assigned = {name: each for name, each in pairs if each is not None and each is not getattr(self, name, None)}
        self._prnn_assigned_weights = assigned or None

    def __setattr__(self, name: str, value: Any) -> None:
        if self._prnn_assigned_weights is not None:  # the last assignment holds
            self._prnn_assigned_weights.pop(name, None)
        nn.Module.__setattr__(self, name, value)

    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel  # RNNBase's keeps its cache up to date

    def _init_flat_weights(self) -> None:
        self._prnn_assigned_weights = None

    def _update_flat_weights(self) -> None:
        pass

    def _weights_have_changed(self) -> bool:
        return False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._init_flat_weights()
        return nn.Module._apply(self, fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Each copy has its own caches, and logs its own backend."""
        return {name: value for name, value in self.__dict__.items() if name not in CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of a ``torch.nn`` module too, also of one pickled by an old version of torch."""
        nn.Module.__setstate__(self, state)
        own = self.__dict__
        for name in CACHES:
            own.pop(name, None)
        own.setdefault("proj_size", 0)  # since torch 1.8
        names = own.pop("all_weights", None) or own["_all_weights"]  # before torch 1.4
        own["_all_weights"] = names if isinstance(names[0][0], str) else self._prnn_weight_names()

    def _prnn_weight_names(self) -> list[list[str]]:
        kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else [])]
        kinds += ["weight_hr"] if self.proj_size else []
        suffixes = [f"l{layer}{end}" for layer in range(self.num_layers) for end in ("", "_reverse")]
        return [[f"{kind}_{each}" for kind in kinds] for each in suffixes[:: 1 if self.bidirectional else 2]]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, in the order of registration."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.proj_size != 0:
            text += f", proj_size={self.proj_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.batch_first is not False:
            text += f", batch_first={self.batch_first}"
        if self.dropout != 0:
            text += f", dropout={self.dropout}"
        if self.bidirectional is not False:
            text += f", bidirectional={self.bidirectional}"
        return text

    def _prnn_layer_weights(self, row: int) -> ops.Weights:
        """The weights of one layer and direction.

        Looked up by name on every call, so that parametrisations, ``weight_norm`` and ``torch.func.functional_call``
        take effect.
        """
        # getattr on a Module takes a microsecond; it is needed only for what is not a plain parameter.
        plain, names = self._parameters, self._all_weights[row]
        weights: list[Any] = [plain[name] if name in plain else getattr(self, name) for name in names]
        if self._prnn_assigned_weights is not None:
            weights = [self._prnn_assigned_weights.get(*pair) for pair in zip(names, weights, strict=True)]
        if self.proj_size and not self.bias:
            weights[2:2] = None, None
        return ops.Weights(*weights)

    def _prnn_check_input(self, input: Tensor, dims: int, autocast: bool) -> None:
        """The checks of ``torch.nn.RNNBase.check_input``."""
        name = self._all_weights[0][0]
        weight: Any = self._parameters[name] if name in self._parameters else getattr(self, name)
        dtype = weight.dtype
        if input.dtype != dtype and not autocast:
            model = f", or convert model: model.to({input.dtype})" if input.is_floating_point() else ""
            raise ValueError(
                f"{self._prnn_named_in_errors} input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}){model}"
            )
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )
        if weight.device != input.device:
            raise _other_device(input, weight, "parameter")

    def _prnn_check_state(self, state: tuple[Tensor, ...], x: Tensor, autocast: bool) -> None:
        """``state`` is (h,) of [L*D,B,P] or (h, c) with c of [L*D,B,H], x is [T,B,I]; raises RuntimeError as torch
        does.
        """
        expected = (len(self._all_weights), x.shape[1], self.proj_size or self.hidden_size)
        for i, tensor in enumerate(state):
            if tensor.shape != expected:
                name = "hidden" if len(state) == 1 else f"hidden[{i}]"
                raise RuntimeError(f"Expected {name} size {expected}, got {list(tensor.shape)}")
            if tensor.dtype != x.dtype and not autocast:
                raise RuntimeError(f"hx must have the dtype of the input, {x.dtype}, got {tensor.dtype}")
            if tensor.device != x.device:
                raise _other_device(x, tensor, "hidden")
            expected = (*expected[:2], self.hidden_size)


class _FlatWeights(list[Any]):
    """A module's weights in the order of registration; an item that is assigned goes to the module."""

    def __init__(self, module: RecurrentBase) -> None:
        assigned = module._prnn_assigned_weights or {}
        super().__init__(
            assigned[name] if name in assigned else getattr(module, name, None) for name in module._flat_weights_names
        )
        self._module = module

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        current = list(self._module._flat_weights)
        current[index] = value
        self._module._flat_weights = current

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return copy.deepcopy(list(self), memo)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("the number of a layer's weights is fixed: assign items of _flat_weights, or a list as long")

    __delitem__ = __iadd__ = append = clear = extend = insert = pop = remove = reverse = sort = _refuse


# To torch's transformations of arguments it is a list.
_pytree.register_pytree_node(_FlatWeights, lambda weights: (list(weights), None), lambda weights, _: list(weights))


def _other_device(input: Tensor, other: Tensor, kind: str) -> RuntimeError:
    return RuntimeError(
        f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} and {kind} "
        f"tensor at {other.device}"
    )


def _check_arguments(
    input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool, dropout: float, proj_size: int
) -> None:
    """The checks of ``torch.nn.RNNBase``, in torch's order, so that the first error is the same."""
    if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=4,
        )
    for name, flag in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")
