"""prnn.convert and prnn.patch: the same objects, numbers and gradients, and the way back."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import warnings
import weakref
from abc import ABC

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, rnn, weight_norm

import prnn
from prnn.errors import UserError

KINDS = ("RNN", "GRU", "LSTM")


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.layers = nn.ModuleList([nn.GRU(12, 7, batch_first=True), nn.RNN(7, 4, nonlinearity="relu")])
        self.cell = nn.LSTMCell(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in (self.encoder, *self.layers):
            x, _ = layer(x)
        return self.head(x)


class Doubled(nn.LSTM):
    """A user's subclass, with an argument of its own and a forward pass around the original's."""

    def __init__(self, size, factor=2.0):
        super().__init__(input_size=size, hidden_size=size)
        self.factor = factor

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return self.factor * output, state


class HandlesEmpty(ABC, nn.RNNBase):
    """As pytorch-forecasting has it: a class beside nn.LSTM in the bases."""

    def forward(self, x, hx=None):
        return super().forward(x, hx=hx)


class Mixture(HandlesEmpty, nn.LSTM):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


def results(model, x):
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    output = model(x)
    output = output[0] if isinstance(output, tuple) else output
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(output.square().sum(), [x, *trained.values()], allow_unused=True)
    return {"output": output, **dict(zip(("x", *trained), grads, strict=True))}


def assert_same(model, other, x):
    torch.testing.assert_close(results(model, x), results(other, x), rtol=1e-4, atol=1e-5)


def test_a_model_is_converted_in_place_and_back(capsys):
    model = Tagger()
    before, x = copy.deepcopy(model), torch.randn(3, 8, 5)
    modules, parameters, keys = list(model.modules()), list(model.parameters()), list(model.state_dict())
    assert prnn.convert(model) is model
    assert type(model.encoder) is prnn.LSTM and [type(each) for each in model.layers] == [prnn.GRU, prnn.RNN]
    for given, now in ((modules, model.modules()), (parameters, model.parameters())):
        assert all(a is b for a, b in zip(given, now, strict=True))
    assert list(model.state_dict()) == keys
    assert_same(before, model, x)
    assert capsys.readouterr().err.splitlines() == [
        "prnn.convert: replaced encoder (LSTM), layers.0 (GRU), layers.1 (RNN)",
        "prnn.convert: left cell (LSTMCell), because one step has no weights to keep: torch.nn's cells are prnn's too",
    ]
    prnn.convert(model, to="torch", verbose=False)
    assert type(model.encoder) is nn.LSTM and [type(each) for each in model.layers] == [nn.GRU, nn.RNN]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert_same(before, model, x)
    assert capsys.readouterr().err == ""
    for key in vars(before.encoder):  # nothing of prnn's is left, nothing of torch's is missing
        assert key in vars(model.encoder)
    assert vars(model.encoder).keys() == vars(before.encoder).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_alone(kind, capsys):
    module = getattr(nn, kind)(5, 6, batch_first=True).eval()
    assert prnn.convert(module) is module and type(module) is getattr(prnn, kind) and not module.training
    assert capsys.readouterr().err == f"prnn.convert: replaced the model itself ({kind})\n"
    prnn.convert(module)
    assert capsys.readouterr().err == "prnn.convert: replaced nothing\n"
    lengths = torch.tensor([4, 2, 0])
    output, _ = module(torch.randn(3, 4, 5), lengths=lengths)
    assert output[1, 2:].abs().sum() == 0


def test_hooks_dtype_mode_and_the_optimizer_go_on(capsys):
    model = nn.Sequential(nn.Linear(5, 5), nn.GRU(5, 6)).double().eval()
    calls = []
    model[1].register_forward_hook(lambda module, given, output: calls.append(type(module)))
    model[1].register_full_backward_hook(lambda module, into, out: calls.append("backward"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prnn.convert(model)
    before = model[1].weight_hh_l0.clone()
    model(torch.randn(4, 2, 5, dtype=torch.float64))[0].sum().backward()
    optimizer.step()
    assert calls == [prnn.GRU, "backward"]
    assert not model[1].training and model[1].weight_hh_l0.dtype == torch.float64
    assert not torch.equal(before, model[1].weight_hh_l0)


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrisations_go_on(norm):
    torch.manual_seed(0)
    module = norm(nn.GRU(5, 6), "weight_hh_l0")
    with torch.no_grad():  # torch.nn's cache is stale until the first call
        module(torch.randn(2, 1, 5))
    other, x = nn.GRU(5, 6), torch.randn(4, 2, 5)
    other.load_state_dict({name: getattr(module, name).detach() for name in dict(other.named_parameters())})
    prnn.convert(module)
    assert isinstance(module, prnn.GRU)
    torch.testing.assert_close(module(x)[0], other(x)[0])
    if parametrize.is_parametrized(module):
        assert type(module).__name__ == "ParametrizedGRU"
        grads = results(module, x)
        prnn.convert(module, to="torch")
        assert not isinstance(module, prnn.GRU) and parametrize.is_parametrized(module)
        torch.testing.assert_close(results(module, x), grads, rtol=1e-4, atol=1e-5)
        prnn.convert(module)
        parametrize.remove_parametrizations(module, "weight_hh_l0")
        assert type(module) is prnn.GRU
        torch.testing.assert_close(module(x)[0], other(x)[0])
    assert_same(copy.deepcopy(module) if norm is not weight_norm else module, module, x)


def test_a_users_subclass_calls_prnns_forward():
    module, x = Doubled(5), torch.randn(4, 2, 5)
    before = copy.deepcopy(module)
    prnn.convert(module)
    assert isinstance(module, Doubled) and isinstance(module, prnn.LSTM) and type(module).__name__ == "Doubled"
    assert_same(before, module, x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(copied) is type(module) and copied.factor == 2.0
        assert_same(before, copied, x)
    parametrised = parametrizations.weight_norm(copy.deepcopy(module), "weight_hh_l0")
    assert_same(copy.deepcopy(parametrised), parametrised, x)
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(parametrised)
    prnn.convert(parametrised, to="torch")
    assert not isinstance(parametrised, prnn.LSTM) and isinstance(parametrised, Doubled)
    prnn.convert(module, to="torch")
    assert type(module) is Doubled
    assert_same(before, module, x)
    mixture = Mixture(input_size=5, hidden_size=6)
    before = copy.deepcopy(mixture)
    assert isinstance(prnn.convert(mixture), prnn.LSTM)
    assert_same(before, mixture, x)


def test_what_is_left_is_named_with_the_reason(capsys):
    class Own(nn.RNNBase):
        pass

    class Prnns(prnn.GRU):
        pass

    replaced = nn.LSTM(3, 4)
    replaced.forward = lambda x: x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        compiled = torch.jit.script(nn.LSTM(3, 4))
    model = nn.ModuleDict({"own": Own("LSTM", 3, 4), "replaced": replaced, "compiled": compiled})
    prnn.convert(model)
    assert capsys.readouterr().err.splitlines() == [
        "prnn.convert: replaced nothing",
        "prnn.convert: left own (Own), because it has a forward pass of its own",
        "prnn.convert: left replaced (LSTM), because its forward has been replaced by another function",
        "prnn.convert: left compiled (RecursiveScriptModule), because torch.jit.script has compiled it",
    ]
    stack = prnn.nn.StackRNN(3, 4)
    prnn.convert(nn.ModuleDict({"derived": Prnns(3, 4), "stack": stack}), to="torch")
    assert capsys.readouterr().err.splitlines() == [
        "prnn.convert: replaced nothing",
        "prnn.convert: left derived (Prnns), because Prnns derives from prnn.GRU: derive it from torch.nn.GRU",
        "prnn.convert: left stack (StackRNN), because torch.nn has no such layer",
    ]


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match=r"prnn.convert takes a torch.nn.Module, got list"):
        prnn.convert([nn.LSTM(3, 4)])
    with pytest.raises(UserError, match='to="prnn" or to="torch", got \'cpu\''):
        prnn.convert(nn.LSTM(3, 4), to="cpu")


def test_a_shared_module_and_shared_weights_stay_shared():
    model = nn.ModuleList([nn.LSTM(4, 4), nn.LSTM(4, 4)])
    model.append(model[0])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    prnn.convert(model)
    assert model[2] is model[0] and model[1].weight_hh_l0 is model[0].weight_hh_l0
    assert all(type(each) is prnn.LSTM for each in model)


def originals():
    return [
        nn.RNN.__init__,
        nn.GRU.__init__,
        nn.LSTM.__init__,
        nn.RNNBase.__setstate__,
        nn.LSTM,
        nn.RNN.__dict__.keys(),
    ]


def test_patch_makes_prnns_modules_and_is_undone_exactly():
    before = originals()
    torch.manual_seed(0)
    expected = Tagger()
    pickled = pickle.dumps(expected.encoder)
    with prnn.patch():
        torch.manual_seed(0)
        model, sub, unpickled = Tagger(), Doubled(5), pickle.loads(pickled)
        assert type(model.encoder) is prnn.LSTM and isinstance(sub, prnn.LSTM) and type(unpickled) is prnn.LSTM
        assert isinstance(model.encoder, nn.LSTM) and isinstance(model.layers[0], nn.GRU)
        inner = prnn.patch()
        inner.undo()
        inner.undo()
        assert type(nn.GRU(3, 4)) is prnn.GRU and type(prnn.GRU(3, 4)) is prnn.GRU
    assert originals() == before
    assert type(nn.GRU(3, 4)) is nn.GRU and type(Doubled(5)) is Doubled and type(pickle.loads(pickled)) is nn.LSTM
    assert type(model.encoder) is prnn.LSTM
    assert_same(expected, model, torch.randn(3, 8, 5))
    holding, other = prnn.patch(), prnn.patch()
    holding.undo()
    assert type(nn.RNN(3, 4)) is prnn.RNN
    other.undo()
    assert originals() == before


def test_a_patch_that_is_undone_is_not_entered():
    patch = prnn.patch()
    patch.undo()
    with pytest.raises(UserError, match="this patch is undone"), patch:
        pass
    with prnn.patch() as patch:
        with pytest.raises(UserError, match="this patch is in use"), patch:
            pass
        assert isinstance(nn.GRU(5, 6), prnn.GRU)


def test_classes_are_not_kept_alive():
    class Passing(nn.LSTM):
        pass

    for module in (Passing(3, 4), torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4)))):
        kind = weakref.ref(type(prnn.convert(module, verbose=False)))
    del module, Passing
    gc.collect()
    assert kind() is None


def test_patch_is_undone_after_an_error():
    before = originals()
    with pytest.raises(ValueError, match="hidden_size"), prnn.patch():
        nn.LSTM(3, 0)
    assert originals() == before


def test_whole_models_are_saved_and_loaded_as_they_are():
    model, x = prnn.convert(Tagger(), verbose=False), torch.randn(2, 4, 5)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert type(loaded.encoder) is prnn.LSTM
    assert_same(model, loaded, x)


def test_packed_sequences_through_a_converted_model():
    module, x = nn.GRU(5, 6, bidirectional=True), torch.randn(7, 3, 5)
    packed = rnn.pack_padded_sequence(x, torch.tensor([3, 7, 5]), enforce_sorted=False)
    expected = module(packed)[0].data
    torch.testing.assert_close(prnn.convert(module)(packed)[0].data, expected)


def test_convert_needs_no_import_of_dynamo():
    code = "import sys, torch, prnn; prnn.convert(torch.nn.LSTM(3, 4)); assert 'torch._dynamo' not in sys.modules"
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def test_a_users_names_do_not_clash_with_prnns():
    class Own(nn.LSTM):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self._cell, self._kind, self._run, self.step_inputs = nn.Linear(6, 6), "mine", 3, None

        def forward(self, x):
            return self._forward(x)

        def _forward(self, x):
            output, state = super().forward(x)
            return self._cell(output), state

    x, module = torch.randn(3, 2, 5), Own(5, 6)
    expected = module(x)[0]
    torch.testing.assert_close(prnn.convert(module, verbose=False)(x)[0], expected)
    with prnn.patch():
        assert isinstance(Own(5, 6), prnn.LSTM)


def test_a_class_that_cannot_be_derived_from_leaves_the_rest_whole(capsys):
    class Registered(nn.GRU):
        def __init_subclass__(cls):
            raise ValueError("the registry has it already")

    model = nn.Sequential(nn.GRU(5, 6), Registered(6, 7), nn.GRU(7, 8))
    prnn.convert(model)
    assert [isinstance(each, prnn.GRU) for each in model] == [True, False, True]
    assert "left 1 (Registered)" in (err := capsys.readouterr().err) and "the registry has it already" in err
    with prnn.patch():
        assert not isinstance(Registered(5, 6), prnn.GRU)


def test_assigned_weights_are_a_reason_to_leave_a_module(capsys):
    x, theirs, ours = torch.randn(3, 2, 5), nn.GRU(5, 6), prnn.GRU(5, 6)
    for module, to in ((theirs, "prnn"), (ours, "torch")):
        module._flat_weights = [torch.ones_like(each) for each in module._flat_weights]
        expected, kind = module(x)[0], type(module)
        torch.testing.assert_close(prnn.convert(module, to=to)(x)[0], expected)
        assert type(module) is kind
        assert "because weight_ih_l0 is not what its _flat_weights hold" in capsys.readouterr().err


def test_a_class_made_of_a_parametrised_one_is_left(capsys):
    module = parametrizations.weight_norm(nn.LSTM(5, 6), "weight_hh_l0")
    module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})  # as fully_shard makes it
    prnn.convert(module)
    assert "its class was changed after parametrisations were added" in capsys.readouterr().err


def test_patch_leaves_copies_as_they_are():
    existing = nn.LSTM(5, 6)
    with prnn.patch():
        made = nn.LSTM(5, 6)
        assert not isinstance(copy.deepcopy(existing), prnn.LSTM)
        assert isinstance(copy.deepcopy(made), prnn.LSTM)
        back = prnn.convert(copy.deepcopy(made), to="torch", verbose=False)
        assert not isinstance(copy.deepcopy(back), prnn.LSTM)
        assert isinstance(pickle.loads(pickle.dumps(existing)), prnn.LSTM)


def test_what_a_users_class_hooks_set_stays():
    class Scaled(nn.LSTM):
        def __init_subclass__(cls, *, scale=1):
            cls.scale = scale

        def forward(self, x):
            output, state = super().forward(x)
            return output * self.scale, state

    class Threefold(Scaled, scale=3):
        pass

    module, x = Threefold(5, 6), torch.randn(3, 2, 5)
    expected = module(x)[0]
    torch.testing.assert_close(prnn.convert(module, verbose=False)(x)[0], expected)
    assert module.scale == 3


def test_a_subclass_with_arguments_of_new_is_copied():
    x, module = torch.randn(3, 2, 5), prnn.convert(Made(5, 6), verbose=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        torch.testing.assert_close(other(x), module(x))


class Made(nn.GRU):
    def __new__(cls, inputs, units):
        return super().__new__(cls)

    def __getnewargs__(self):
        return self.input_size, self.hidden_size


def test_lazy_modules_are_left_until_they_are_made(capsys):
    class Lazy(nn.modules.lazy.LazyModuleMixin, nn.GRU):
        cls_to_become = nn.GRU

        def initialize_parameters(self, x):
            pass

    prnn.convert(module := Lazy(5, 6))
    assert "it is lazy" in capsys.readouterr().err
    module(torch.randn(3, 2, 5))
    assert isinstance(prnn.convert(module, verbose=False), prnn.GRU)


def test_torchs_constructor_can_be_called_again():
    module = prnn.convert(nn.LSTM(5, 6), verbose=False)
    nn.LSTM.__init__(module, 5, 7)
    theirs = nn.LSTM(5, 7)
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x := torch.randn(3, 2, 5)), theirs(x))


def test_a_wrapper_put_on_while_a_patch_holds_stays(monkeypatch):
    original, calls = nn.LSTM.__init__, []
    with prnn.patch():
        inner = nn.LSTM.__init__

        def counted(self, *args, **kwargs):
            calls.append(args)
            inner(self, *args, **kwargs)

        monkeypatch.setattr(nn.LSTM, "__init__", counted)
    assert not isinstance(nn.LSTM(5, 6), prnn.LSTM) and calls == [(5, 6)]
    nn.LSTM.__init__ = original
