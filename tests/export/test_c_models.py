"""``prnn.export.c``: whole models, and weights of 8 bits; compared with training code in float64."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prnn
from prnn.errors import UserError
from prnn.export import c
from prnn.export.c.constants import quantised
from prnn.export.program import Case, State
from tests.export.models import Exported
from tests.export.nets import (
    BOUND,
    FAST,
    SANITIZED,
    Masks,
    Mixed,
    Named,
    Pooled,
    Residual,
    characters,
    detector,
    error_of,
    user_cell,
)

# Models.


def test_a_detector(tmp_path: Path) -> None:
    exported = detector()
    cases = [exported.case(T, B, seed=T) for T in (1, 7, 30) for B in (1, 5)] + [exported.case(20, 2, resets=True)]
    assert error_of(tmp_path, exported, cases) <= BOUND
    assert c.check(tmp_path, "net", BOUND, FAST) <= BOUND


def test_operators_of_most_kinds_and_a_state_of_no_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = Exported(Mixed(), torch.zeros(1, 1, 8), {"past": (1, 1, 8), "mean": (1, 1, 8)})
    assert error_of(tmp_path, exported, [exported.case(7, 3)]) <= BOUND
    assert c.check(tmp_path, "net", BOUND, FAST) <= BOUND


def test_convolutions_pooling_and_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = Exported(Pooled(), torch.zeros(1, 1, 60))
    assert error_of(tmp_path, exported, [exported.case(3, 2)], FAST) <= BOUND


def test_a_state_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            sums = torch.cumsum(x, 0) + state if len(x) > 1 else x + state
            return sums, sums[-1:]

    exported = Exported(Counting(), torch.zeros(1, 1, 3), {"sums": (1, 1, 3)})
    initial = torch.tensor([[[1.0, -2.0, 0.5]]])
    step = replace(exported.step, states=(State("sums", initial),))
    x = torch.randn(6, 2, 3)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[3, 1] = True
    zeros = torch.zeros(2, 3)
    output = x.double().cumsum(0)
    output[3:, 1] += initial[0, 0] - output[2, 1]
    c.write(tmp_path, "net", step, [Case(x, resets, (zeros,), output, (output[-1],))])
    assert c.check(tmp_path, "net", BOUND) <= BOUND


def test_names_that_clash(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = Exported(Named(), torch.zeros(1, 1, 4), {"input": (1, 1, 4), "int": (1, 1, 4)})
    assert error_of(tmp_path, exported, [exported.case(1, 2)]) <= BOUND


def test_masks_and_conversions(tmp_path: Path) -> None:
    exported = Exported(Masks(), torch.zeros(1, 1, 9))
    assert error_of(tmp_path, exported, [exported.case(20, 2)], FAST) <= BOUND


def test_operators_between_layers_of_both_directions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"h": (1, 1, 6), "h_both": (2, 1, 5), "h_last": (2, 1, 3), "c_last": (2, 1, 3)}
    exported = Exported(Residual(), torch.zeros(1, 1, 6), shapes)
    assert error_of(tmp_path, exported, [exported.case(T, 2) for T in (1, 9)], SANITIZED) <= BOUND


def test_temporaries_that_are_large_stand_in_the_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9000), nn.Tanh(), nn.Linear(9000, 3))
    exported = Exported(model, torch.zeros(1, 1, 8))
    assert error_of(tmp_path, exported, [exported.case(3, 2)]) <= BOUND
    assert "scratch[" in (tmp_path / "net.h").read_text()


def test_swapped_and_kept_states(tmp_path: Path) -> None:
    class Swapping(nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            a, b, kept = state
            outputs = []
            for t in range(len(x)):
                outputs.append(x[t] + a[0] * kept[0])
                a, b = b, a
            return torch.stack(outputs), (a, b, kept)

    exported = Exported(Swapping(), torch.zeros(1, 1, 4), dict.fromkeys(("a", "b", "double"), (1, 1, 4)))
    assert error_of(tmp_path, exported, [exported.case(5, 2)]) <= BOUND
    assert "double_2[4]" in (tmp_path / "net.h").read_text()


def test_two_layers_that_begin_with_the_same_state(tmp_path: Path) -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = prnn.GRU(4, 4), prnn.GRU(4, 4)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            outputs = []
            for t in range(len(x)):
                y, new = self.first(x[t : t + 1], h)
                z, h = self.second(y, h)
                outputs.append(y + z + new)
            return torch.cat(outputs), h

    torch.manual_seed(0)
    exported = Exported(Sharing(), torch.zeros(1, 1, 4), {"h": (1, 1, 4)})
    assert error_of(tmp_path, exported, [exported.case(5, 2)]) <= BOUND


def test_text_is_generated(tmp_path: Path) -> None:
    exported = characters()
    with torch.no_grad():  # a text that depends on each token
        for parameter in exported.flat.parameters():
            parameter.mul_(4)
    exported = Exported(exported.flat.model, exported.x, exported.shapes)
    exported.vocabulary = 20
    pieces = (*(bytes([97 + i]) for i in range(17)), b"\n", b"ab", b"\xc3\xa9")
    vocabulary = c.Vocabulary(pieces, 17, "char")
    assert error_of(tmp_path, exported, [exported.case(12, 2)], vocabulary=vocabulary) <= BOUND
    flags = ["CFLAGS=-O1 -Werror -fsanitize=address,undefined", f"CC={c.compiler()[0]}"]
    subprocess.run(["make", "-C", tmp_path, "generate", *flags], check=True, capture_output=True)

    def run(*arguments: str) -> bytes:
        return subprocess.run([tmp_path / "generate", *arguments], check=True, capture_output=True).stdout

    # The most probable token each time, after the longest pieces of the prompt: "ab" is one.
    tokens, expected = [18, 2], b"abc"
    model = exported.flat.model
    with torch.no_grad():
        logits, state = model(torch.tensor(tokens)[:, None])
        for _ in range(20):
            token = int(logits[-1, 0].argmax())
            expected += pieces[token]
            logits, state = model(torch.tensor([[token]]), state)
    assert run("abc", "20", "0") == expected + b"\n"
    assert run("abc", "30", "1.5", "5", "3") == run("abc", "30", "1.5", "5", "3") != run("abc", "30", "1.5", "5", "4")


# Weights of 8 bits.


def test_rows_are_rounded_to_the_nearest_of_255_numbers() -> None:
    matrix = torch.cat([torch.randn(5, 9) * torch.tensor([[1e-6], [1], [1], [30], [2]]), torch.zeros(1, 9)])
    scales, whole = quantised(matrix)
    assert torch.equal(whole, whole.round()) and int(whole.abs().max()) == 127
    largest = matrix.abs().amax(1, keepdim=True)
    assert ((whole * scales.unsqueeze(1) - matrix).abs() <= largest / 254 * 1.0001).all()


def test_weights_of_8_bits_are_those_of_the_rounded_model(tmp_path: Path) -> None:
    exported = characters()
    rounded = characters()
    with torch.no_grad():
        for name, parameter in rounded.flat.named_parameters():
            if parameter.dim() > 1 and "bias" not in name:
                scales, whole = quantised(parameter)
                parameter.copy_(whole * scales.unsqueeze(1))
    assert error_of(tmp_path, exported, [rounded.case(40, 2)], weights="int8") <= BOUND
    c.write(tmp_path, "net", exported.step, [exported.case(40, 2)], weights="int8")
    assert 1e-4 < c.check(tmp_path, "net", BOUND) < 0.05  # of rounding
    assert "static const int8_t decoder_weight" in (tmp_path / "net.c").read_text()


@pytest.mark.parametrize("make", [detector, lambda: user_cell("slstm", 2, heads=2)])
def test_weights_of_8_bits_of_convolutions_and_heads(tmp_path: Path, make: Any) -> None:
    exported = make()
    assert 1e-5 < error_of(tmp_path, exported, [exported.case(10, 2)], weights="int8") < 0.05


# What once was wrong and passed.


class Of(nn.Module):
    """A function of the input, and of parameters by name."""

    def __init__(self, function, **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def test_names_that_the_source_has_itself(tmp_path: Path) -> None:
    names = ("t1", "t2", "expf", "size_t", "MODEL_H", "INT8_MAX", "log", "product", "tanh_of")
    parameters = {name: torch.randn(4) for name in names}

    def function(self: Of, x: Tensor) -> Tensor:
        for name in names:
            y = torch.tanh(x * getattr(self, name))
            x = y * y + (y - 1) * getattr(self, name)
        return x

    exported = Exported(Of(function, **parameters), torch.zeros(1, 1, 4))
    for flags in (SANITIZED, FAST):
        assert error_of(tmp_path / flags[0].strip("-"), exported, [exported.case(3, 2)], flags) <= BOUND


def test_constants_that_are_infinite_and_small(tmp_path: Path) -> None:
    mask = torch.full((4, 4), -torch.inf).triu(1)

    def function(self: Of, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (1, 1), value=-torch.inf).amax(-1, keepdim=True)
        scores = x[..., None] * x[..., None, :] + mask
        return (
            scores.softmax(-1).flatten(-2).sum(-1, keepdim=True) + padded + nn.functional.layer_norm(x, (4,), eps=1e-50)
        )

    exported = Exported(Of(function), torch.zeros(1, 1, 4))
    assert error_of(tmp_path, exported, [exported.case(3, 2)]) <= BOUND


def test_log_softmax_of_large_logits(tmp_path: Path) -> None:
    exported = Exported(Of(lambda self, x: (1e4 + x).log_softmax(-1)), torch.zeros(1, 1, 4))
    case = exported.case(3, 2)
    wide = (1e4 + case.input).double().log_softmax(-1)  # of the sum in float32, which the model is given
    assert error_of(tmp_path, exported, [replace(case, output=wide)]) <= BOUND


def test_a_row_of_a_table_by_the_token_before(tmp_path: Path) -> None:
    class Previous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)

        def forward(self, tokens: Tensor, state: Any = None) -> Any:
            if state is None:
                state = torch.zeros_like(tokens[:1]), torch.zeros(1, tokens.shape[1], 4)
            before = torch.cat([state[0], tokens])
            rows = self.embedding(before[:-1])
            return rows + torch.cat([state[1], rows[:-1]]), (before[-1:], rows[-1:])

    exported = prnn.export(Previous(), tmp_path / "out", "c", example=torch.arange(7)[:, None])
    assert exported.carries and exported.error <= BOUND


def test_each_state_has_its_own_error(tmp_path: Path) -> None:
    """A large one does not hide that another is wrong."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = prnn.GRU(4, 4)

        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            _, h = self.gru(x, state[0])
            return 2 * x, (h, state[1] + 1e6 * len(x))

    exported = Exported(Counting(), torch.zeros(1, 1, 4), {"h": (1, 1, 4), "count": (1, 1, 1)})
    case = exported.case(5, 2)
    assert error_of(tmp_path / "right", exported, [case]) <= BOUND
    wrong = replace(case, final=(case.final[0] + 1e-3, case.final[1]))
    assert error_of(tmp_path / "wrong", exported, [wrong]) > 1e-4


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda self, x: (x.long() & 2).float(), r"aten.bitwise_and.* of integers"),
        (lambda self, x: (x * 255).to(torch.uint8).float(), "to uint8, which is computed in float32"),
        (lambda self, x: x.half().float(), "to float16"),
        (lambda self, x: x.mul_(2), "the model writes to"),
    ],
)
def test_what_floats_cannot_do_is_refused(function: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        c.write(tmp_path, "net", Exported(Of(function), torch.zeros(1, 1, 4)).step, [])


@pytest.mark.parametrize("vocabulary", [c.Vocabulary((b"a",) * 5, 9, "char"), c.Vocabulary(("a",) * 5, 0, "char")])
def test_a_vocabulary_that_does_not_fit(vocabulary: c.Vocabulary, tmp_path: Path) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens)

    exported = Exported(Logits(), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="vocabulary"):
        c.write(tmp_path, "net", exported.step, [], "float32", vocabulary)
