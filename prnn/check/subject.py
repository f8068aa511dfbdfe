"""What is checked: a cell's layers, prnn's own, or any module with torch.nn.RNN's signature; and its exact equations.

- Cells and prnn's layers are compared with a float64 copy whose equations run as a Python loop under autograd.
- Other modules are compared with a float64 copy of themselves that is run one step at a time, with the state carried;
  finite differences (``rows.finite_differences``) then check what autograd makes of it.

Shapes: T steps, B batch, I input size, H hidden size, D directions, L layers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import prnn
from prnn.check.values import Given, NotSupported, Outputs, flatten, padding, unflatten
from prnn.codegen.definition import CellDefinition
from prnn.errors import UserError
from prnn.ops.reference import resets_within, reverse_resets, reverse_steps

OWN = (prnn.RNN, prnn.GRU, prnn.LSTM, prnn.Recurrent)
VENDOR = (nn.RNN, nn.GRU, nn.LSTM)
_KEPT = ("bias", "batch_first", "nonlinearity")  # of a module, in modules of other sizes
_SPIKES = 3  # a tensor of so few different values is one of spikes


class Subject:
    """A module as it is checked, and others like it.

    Args:
        target: a cell, a module, or what makes one of (input_size, hidden_size), such as a class.
        input_size, hidden_size: of the modules that are made; of a module that is given, what it was made with.
        gridded: whether weights and values are multiples of 1/8; None: where the output or a state is one of spikes.
    """

    def __init__(
        self, target: Any, input_size: int | None, hidden_size: int, dtype: torch.dtype, gridded: bool | None
    ) -> None:
        self.dtype, self.gridded = dtype, bool(gridded)
        self._factory = _factory(target)
        if isinstance(target, nn.Module):
            self.input_size = int(input_size or getattr(target, "input_size", None) or 0)
            self.hidden_size = getattr(target, "hidden_size", hidden_size)
            module = copy.deepcopy(target)
        else:
            self.input_size, self.hidden_size = input_size or 5, hidden_size
            module = self._make(hidden_size=hidden_size)
        if not self.input_size:
            raise UserError(f"{type(target).__name__} has no attribute input_size: give prnn.check the input_size")
        self.own = type(module) in OWN
        self.batch_first = bool(getattr(module, "batch_first", False))
        parameters = inspect.signature(module.forward).parameters
        self.lengths = "argument" if "lengths" in parameters else "packed" if type(module) in VENDOR else ""
        self.resets = "resets" in parameters
        self.inputs = module.cell.signature.inputs if isinstance(module, prnn.Recurrent) else ()
        self.directions = 2 if getattr(module, "bidirectional", False) else 1
        self.stepwise = self.directions == 1 or getattr(module, "num_layers", 1) == 1
        self._form: Any = None  # a state, as the module gives it
        self.module = self._prepared(module)
        spiking = self._spiking()
        if gridded is None and spiking:
            self.gridded = True
            self.module = self._prepared(module)

    def variant(self, **options: Any) -> nn.Module:
        """A module of the same kind with other options: hidden_size, num_layers, bidirectional."""
        if self._factory is None:
            raise NotSupported("a module has the sizes it was made with: check its class")
        try:
            return self._prepared(self._make(**({"hidden_size": self.hidden_size} | options)))
        except TypeError as error:
            raise NotSupported(f"it cannot be made with {', '.join(options)} ({error})") from None

    def _make(self, hidden_size: int, **options: Any) -> nn.Module:
        assert self._factory is not None
        made = self._factory(self.input_size, hidden_size, **options)
        if not isinstance(made, nn.Module):
            raise UserError(f"prnn.check was given what makes a {type(made).__name__}: expected a torch.nn.Module")
        return made

    def _prepared(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module).to("cpu", self.dtype)
        if any(isinstance(each, nn.Dropout) or getattr(each, "dropout", 0) for each in module.modules()):
            module.eval()  # a mask that is drawn anew compares with nothing
        if self.gridded:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    grid = on_grid(parameter)
                    if not name.startswith(("weight", "bias")):  # a threshold of 0 may be a divisor
                        grid = torch.where(grid == 0, parameter.sign() / 8, grid)
                    parameter.copy_(grid)
        return module

    def _spiking(self) -> bool:
        """Whether the output or a state has so few values; UserError where the module cannot be called."""
        x = torch.randn(17, 5, self.input_size, dtype=self.dtype)
        inputs = {name: torch.rand(17, 5, self.hidden_size) for name in self.inputs}
        try:
            with torch.no_grad():
                output, final = self.run(self.module, Given(x, inputs=inputs))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            called = f"{type(self.module).__name__}(input {list(x.shape)})"
            raise UserError(f"{called} does not give (output, state): {' '.join(str(error).split())}") from error
        tensors = (output, *final.values())
        return any(x.numel() > 2 * _SPIKES and 1 < x.unique().numel() <= _SPIKES for x in tensors)

    def zero_state(self, module: nn.Module, B: int) -> dict[str, Tensor]:
        """Zeros of the shapes and dtypes of the states, as one step shows them."""
        dtype = next(module.parameters()).dtype
        x = torch.zeros(1, B, self.input_size, dtype=dtype)
        inputs = {name: torch.zeros(1, B, self._width(module)) for name in self.inputs}
        with torch.no_grad():
            return {
                name: torch.zeros_like(final) for name, final in self.run(module, Given(x, inputs=inputs))[1].items()
            }

    def _width(self, module: nn.Module) -> int:
        return int(getattr(module, "hidden_size", self.hidden_size))

    def run(self, module: nn.Module, given: Given) -> Outputs:
        """The module, as a user calls it."""
        lengths, T = given.lengths, given.x.shape[0]

        def layout(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, 1) if self.batch_first else tensor

        arguments: dict[str, Any] = {}
        x: Any = layout(given.x)
        if lengths is not None and self.lengths == "packed":
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        elif lengths is not None:
            arguments["lengths"] = lengths
        if given.resets is not None:
            arguments["resets"] = layout(given.resets)
        if given.inputs:
            arguments["inputs"] = {name: layout(tensor) for name, tensor in given.inputs.items()}
        if given.state is not None:
            output, final = module(x, unflatten(given.state, self._form), **arguments)
        else:
            output, final = module(x, **arguments)
            self._form = final
        if isinstance(output, nn.utils.rnn.PackedSequence):
            output, _ = nn.utils.rnn.pad_packed_sequence(output, self.batch_first, total_length=T)
        return layout(output), flatten(final)

    def exact_module(self, module: nn.Module) -> nn.Module:
        """The float64 copy."""
        return copy.deepcopy(module).double()

    def exact(self, module: nn.Module, given: Given) -> Outputs:
        """The equations, of the float64 copy."""
        if self.own:
            with prnn.backend("reference"):
                return self.run(module, given)
        layers, directions = getattr(module, "num_layers", 1), 2 if getattr(module, "bidirectional", False) else 1
        if directions == 1:
            return self._steps(module, given)
        if layers > 1:  # a layer needs both directions of the one below at once
            return self.run(module, given)
        forward, backward = self._steps(module, given), self._steps(module, _reversed(given))
        halves = forward[0].chunk(2, -1)[0], reverse_steps(backward[0].chunk(2, -1)[1], given.lengths)
        final = {name: torch.cat((state[:1], backward[1][name][1:])) for name, state in forward[1].items()}
        return torch.cat(halves, dim=-1), final

    def _steps(self, module: nn.Module, given: Given) -> Outputs:
        """One step at a time; a reset zeroes the state before a step, and steps past a sample's length keep it."""
        x, lengths, state = given.x, given.lengths, given.state
        T, B, _ = x.shape
        dead = None if lengths is None else padding(T, lengths)
        if dead is not None:
            x = x.masked_fill(dead.unsqueeze(-1), 0)
        if state is None and (dead is not None or given.resets is not None or T == 0):
            state = self.zero_state(module, B)
        resets, outputs = resets_within(given.resets, lengths), []
        for t in range(T):
            if state is not None and resets is not None:
                reset = resets[t].unsqueeze(-1)
                state = {name: tensor.masked_fill(reset, 0) for name, tensor in state.items()}
            output, new = self.run(module, Given(x[t : t + 1], state))
            if dead is not None and state is not None:
                output = output.masked_fill(dead[t].unsqueeze(-1), 0)
                new = {name: torch.where(dead[t].unsqueeze(-1), state[name], new[name]) for name in new}
            outputs.append(output)
            state = new
        assert state is not None
        if not outputs:
            outputs = [self.run(module, Given(x.new_zeros(1, B, x.shape[2])))[0][:0]]
        return torch.cat(outputs), state


def _reversed(given: Given) -> Given:
    resets = reverse_resets(given.resets, given.lengths)
    return Given(reverse_steps(given.x, given.lengths), given.state, given.lengths, resets)


def _factory(target: Any) -> Callable[..., nn.Module] | None:
    """What makes modules like ``target`` of (input_size, hidden_size, **options); None where nothing does."""
    if isinstance(target, CellDefinition):
        return lambda *sizes, **options: prnn.Recurrent(target, *sizes, **options)
    if not isinstance(target, nn.Module):
        if callable(target):
            return target
        raise UserError(f"prnn.check takes a cell, a module or a class of modules, got {target!r}")
    if type(target) not in (*OWN, *VENDOR):
        return None
    kind: Any = type(target)
    first = (target.cell,) if isinstance(target, prnn.Recurrent) else ()
    kept = {name: getattr(target, name) for name in _KEPT if hasattr(target, name)}
    kept |= {"num_layers": target.num_layers, "bidirectional": target.bidirectional}
    return lambda *sizes, **options: kind(*first, *sizes, **(kept | options))


def on_grid(x: Tensor) -> Tensor:
    """Multiples of an eighth, whose sums are exact: a spike then depends on no rounding, nor on its order."""
    return (x * 8).round() / 8
