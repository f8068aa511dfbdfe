"""Conversion between torch.nn's recurrent modules and prnn's, in place: ``convert`` and ``patch``.

prnn's classes derive from torch.nn's, with the same attributes and parameters. So a module becomes the other by a
change of its class: the object stays, with its parameters, hooks, parametrisations and place in the model. An instance
of a user's subclass gets a class derived from both, in which ``super().forward`` is prnn's.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from prnn.errors import UserError
from prnn.nn.base import CACHES
from prnn.nn.layers import RecurrentLayers
from prnn.nn.recurrent import GRU, LSTM, RNN
from prnn.nn.stack import ListRNN, StackRNN

Model = TypeVar("Model", bound=nn.Module)
_PAIRS: dict[Any, Any] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
_BACK = {own: torchs for torchs, own in _PAIRS.items()}
_CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)


def convert(model: Model, to: str = "prnn", *, verbose: bool = True) -> Model:
    """Replace every torch.nn.RNN, GRU and LSTM in ``model`` by prnn's, in place; with ``to="torch"``, the way back.

    Args:
        model: any module, also a recurrent one itself. Instances of subclasses of torch.nn's are converted too.
        to: "prnn" or "torch".
        verbose: print to stderr which modules were replaced, and which were left, with the reason.

    Returns:
        ``model``. It and its modules are the same objects as before, with the same Parameters: optimizers, hooks,
        parametrisations (``weight_norm``) and shared weights go on working, and the state_dict keeps its keys.

    Raises:
        UserError: ``model`` is not a module, or ``to`` is neither.

    LSTMCell, GRUCell and RNNCell are torch.nn's own in prnn too, and are left. So are, with ``to="torch"``, layers
    that torch.nn does not have: StackRNN, ListRNN and cells written in Python.

    Example::

        model = prnn.convert(Tagger())  # any model that holds torch.nn's layers
        scripted = torch.jit.script(prnn.convert(copy.deepcopy(model), to="torch"))
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"prnn.convert takes a torch.nn.Module, got {type(model).__name__}")
    if to not in ("prnn", "torch"):
        raise UserError(f'prnn.convert takes to="prnn" or to="torch", got {to!r}')
    replaced, left = [], []
    targets = [(path, module, _target(module, to)) for path, module in model.named_modules()]
    for path, module, target in targets:
        label = f"{path or 'the model itself'} ({type(module).__name__})"
        if isinstance(target, type):
            _become(module, target)
            replaced.append(label)
        elif target:
            left.append(f"{label}, because {target}")
    if verbose:
        lines = ["replaced " + (", ".join(replaced) or "nothing"), *(f"left {each}" for each in left)]
        print("\n".join(f"prnn.convert: {line}" for line in lines), file=sys.stderr)
    return model


class patch:
    """Have torch.nn.RNN, GRU and LSTM make prnn's modules, in programs that one does not own.

    ``prnn.patch()`` holds until its ``undo()``, ``with prnn.patch():`` until the end of the block. torch.nn's names
    stay what they are: code that has imported them before, derives from them or tests for them by ``isinstance`` goes
    on working; ``type(module) is torch.nn.LSTM`` is false. Modules constructed or unpickled meanwhile remain prnn's
    afterwards; ``convert`` changes modules that exist.

    Example::

        with prnn.patch():
            model = SomeonesModel()
    """

    _active = 0
    # of all patches: a class, the name of a method, that method, and the one in its place
    _originals: list[tuple[type[nn.Module], str, Callable[..., None], Callable[..., None]]] = []  # noqa: RUF012

    def __init__(self) -> None:
        self._held, self._entered = True, False
        patch._active += 1
        if patch._active == 1:
            for owner, name in (*((torchs, "__init__") for torchs in _PAIRS), (nn.RNNBase, "__setstate__")):
                original = vars(owner)[name]
                converting = _then_converted(original)
                patch._originals.append((owner, name, original, converting))
                setattr(owner, name, converting)

    def undo(self) -> None:
        """Restore torch.nn, unless another patch holds; a second call does nothing."""
        patch._active -= self._held
        self._held = False
        while patch._active == 0 and patch._originals:
            owner, name, original, converting = patch._originals.pop()
            if vars(owner)[name] is converting:  # and not what another library has put around it
                setattr(owner, name, original)

    def __enter__(self) -> patch:
        if not self._held or self._entered:
            state = "in use" if self._held else "undone"
            raise UserError(f"this patch is {state}: each `with` takes a prnn.patch() of its own")
        self._entered = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


def _then_converted(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not patch._active:  # kept by another library's wrapper
            return
        if sys._getframe(1).f_globals.get("__name__") == "copy":  # a copy of what is torch.nn's, perhaps on purpose
            return
        target = _target(self, "prnn")
        if isinstance(target, type):
            _become(self, target)

    return method


def scriptable(module: nn.Module) -> nn.Module:
    """A twin of torch.nn's class with the same parameters, which torch.jit.script puts in the module's place."""
    target = _target(module, "torch")
    if not isinstance(target, type):
        raise UserError(f"torch.jit.script cannot compile {type(module).__name__}, because {target}; torch.export can")
    warnings.warn(
        f"torch.jit.script replaces the model's {type(module).__name__} of prnn by torch.nn's, with the same "
        "parameters; prnn.convert(model) brings it back",
        stacklevel=2,
    )
    return _twin(module, target)


def _twin(module: nn.Module, kind: Any) -> nn.Module:
    twin = kind.__new__(kind)
    vars(twin).update({name: copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()})
    _become(twin, kind)
    return twin


def for_quantisation(model: nn.Module, qconfigs: dict[Any, Any]) -> dict[Any, Any]:
    """Convert the layers that are to be quantised to torch.nn's classes; returns ``qconfigs`` for those.

    ``qconfigs`` is what torch.ao.quantization's propagate_qconfig_ takes: by path or class; modules may have their own
    as the attribute ``qconfig`` too, and otherwise have that of the module that holds them.
    """
    qconfigs = {_BACK.get(key, key): value for key, value in qconfigs.items()}
    found: dict[str, Any] = {}
    for path, module in list(model.named_modules()):
        target = _target(module, "torch")
        kind = target if isinstance(target, type) else type(module)
        qconfig = qconfigs.get(kind, found.get(path.rpartition(".")[0]))
        found[path] = qconfig = getattr(module, "qconfig", qconfigs.get(path, qconfig))
        if qconfig is None or not isinstance(target, type):
            continue
        if isinstance(model, torch.fx.GraphModule):  # its modules are those of the model
            model.set_submodule(path, _twin(module, target))
        else:
            _become(module, target)
    return qconfigs


def _target(module: nn.Module, to: str) -> type[nn.Module] | str:
    """The class that ``module`` is to have, or why it keeps its own: "" if it is none of those that matter."""
    kind: Any = type(module)
    if parametrize.is_parametrized(module):  # the class is one made for this module
        if not kind.__name__.startswith("Parametrized"):  # fully_shard, for one, derives from that class
            wanted = isinstance(module, nn.RNNBase) and isinstance(module, RecurrentLayers) == (to == "torch")
            return "its class was changed after parametrisations were added" if wanted else ""
        target = _target_class(kind.__bases__[0], to)
        return _parametrised(kind, target) if isinstance(target, type) else target
    if to == "prnn" and isinstance(module, torch.jit.ScriptModule):
        compiled = getattr(module, "original_name", "") in ("RNN", "GRU", "LSTM")
        return "torch.jit.script has compiled it" if compiled else ""
    target = _target_class(kind, to)
    if isinstance(target, type) and isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it is lazy: convert it after its first call"
    if isinstance(target, type) and "forward" in vars(module):
        return "its forward has been replaced by another function"
    if isinstance(target, type) and (name := _other_weights(module)):
        return f"{name} is not what its _flat_weights hold"
    return target


def _other_weights(module: Any) -> str | None:
    """A parameter in the place of which another tensor was assigned to the list of weights."""
    if isinstance(module, RecurrentLayers):
        return next(iter(module._prnn_assigned_weights or {}), None)
    pairs = zip(vars(module).get("_flat_weights_names", ()), vars(module).get("_flat_weights", ()), strict=False)
    parameters = module._parameters
    return next((name for name, each in pairs if name in parameters and parameters[name] is not each), None)


def _target_class(kind: Any, to: str) -> type[nn.Module] | str:
    if to == "torch":
        return _torch_class(kind)
    if issubclass(kind, RecurrentLayers):
        return ""
    if kind in _PAIRS:
        return _PAIRS[kind]
    if issubclass(kind, _CELLS):
        return "one step has no weights to keep: torch.nn's cells are prnn's too"
    if kind.__module__.startswith("torch.ao.nn") and kind.__name__ in ("RNN", "GRU", "LSTM"):
        return "it is quantised"
    own = next((own for torchs, own in _PAIRS.items() if issubclass(kind, torchs)), None)
    if own is None:
        return "it has a forward pass of its own" if issubclass(kind, nn.RNNBase) else ""
    try:
        return _mixed(kind, own)
    except Exception as error:  # also of the user's __init_subclass__ or metaclass
        return f"{kind.__name__} and prnn.{own.__name__} have no common subclass ({error})"


def _torch_class(kind: type[nn.Module]) -> type[nn.Module] | str:
    if kind in _BACK:
        return _BACK[kind]
    if "_mixed_of" in vars(kind):
        return vars(kind)["_mixed_of"][0]
    for own, torchs in _BACK.items():
        if issubclass(kind, own):
            return f"{kind.__name__} derives from prnn.{own.__name__}: derive it from torch.nn.{torchs.__name__}"
    if issubclass(kind, (RecurrentLayers, StackRNN, ListRNN)):
        return "torch.nn has no such layer"
    return ""


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change the class of ``module``, and what it keeps besides its attributes and parameters."""
    names = [name for names in module._all_weights for name in names]  # type: ignore[union-attr]
    module.__class__ = kind
    for name in CACHES:
        vars(module).pop(name, None)
    if not isinstance(module, RecurrentLayers):
        vars(module)["_flat_weights_names"] = names
        nn.RNNBase._init_flat_weights(module)  # type: ignore[arg-type]


def _mixed(user: Any, own: Any) -> Any:
    """A class of a user's subclass of a torch.nn class and of prnn's class; one, which the user's class keeps."""
    if "_mixed_with_prnn" not in vars(user):
        named = {name: getattr(user, name) for name in ("__module__", "__qualname__", "__doc__")}
        named["_mixed_of"] = user, own
        if user.__reduce__ is object.__reduce__:
            named["__reduce__"] = _reduce
        mixed = type(user)(user.__name__, (user, own), named)
        for name in set(vars(user)).intersection(vars(mixed)).difference(named):
            if not name.startswith("__") and name != "_abc_impl":
                delattr(mixed, name)  # set by the user's __init_subclass__ or metaclass, without the class's keywords
        user._mixed_with_prnn = mixed
    return vars(user)["_mixed_with_prnn"]


def _reduce(module: nn.Module) -> tuple[Any, ...]:
    """By the two classes, since pickle does not find the one made of them."""
    state = module.__getstate__()  # of a parametrised module, this raises torch's error
    arguments: tuple[Any, ...] = getattr(module, "__getnewargs__", tuple)()
    return _empty, (*type(module)._mixed_of, *arguments), state  # type: ignore[attr-defined]


def _empty(user: Any, own: Any, *arguments: Any) -> nn.Module:
    mixed = _mixed(user, own)
    return mixed.__new__(mixed, *arguments)


def _parametrised(kind: Any, target: Any) -> Any:
    """The class that torch.nn.utils.parametrize would have made of ``target``: its properties compute the weights."""
    made = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind)(f"Parametrized{target.__name__}", (target,), made)
