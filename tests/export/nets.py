"""Models for the tests of exports, and what compiles one and compares it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prnn
from prnn import cells
from prnn.export import c
from prnn.export.program import Case
from tests.export.models import Exported

BOUND = 1e-5  # of the largest entry
FAST = ("-O2", "-DPRNN_FAST_MATH")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILT_IN = {"rnn_tanh": prnn.RNN, "gru": prnn.GRU, "lstm": prnn.LSTM}


def built_in(name: str, layers: int, directions: int, H: int = 24, **options: Any) -> Exported:
    torch.manual_seed(0)
    I, both = 10, directions == 2
    if name == "rnn_relu":
        options["nonlinearity"] = "relu"
    model = BUILT_IN.get(name, prnn.RNN)(I, H, layers, bidirectional=both, **options)
    P = options.get("proj_size") or H
    shapes = {"h": (layers * directions, 1, P)} | ({"c": (layers * directions, 1, H)} if name == "lstm" else {})
    return Exported(model, torch.zeros(1, 1, I), shapes)


def user_cell(name: str, directions: int, **options: Any) -> Exported:
    torch.manual_seed(0)
    definition = getattr(cells, name)
    model = prnn.Recurrent(definition, 5, 8, 2, bidirectional=directions == 2, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # not all units alike
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    shapes = dict.fromkeys(definition.signature.states, (2 * directions, 1, 8))
    exported = Exported(model, torch.zeros(1, 1, 5), shapes, as_dictionary=True)
    exported.scale = 0.0 if name == "slstm" else 1.0  # whose h is a ratio of states, the second positive
    return exported


def error_of(
    folder: Path, exported: Exported, cases: Sequence[Case], flags: Sequence[str] = ("-O2",), **options: Any
) -> float:
    runner = options.pop("runner", ())
    c.write(folder, "net", exported.step, cases, **options)
    return c.check(folder, "net", BOUND, flags, runner)


class Detector(nn.Module):
    """As of voice activity: convolutions over frequency, a GRU, a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 6, 5, stride=2, padding=2), nn.BatchNorm1d(6)
        self.second = nn.Conv1d(6, 12, 3, padding=2, dilation=2, groups=3)
        self.layer_norm, self.gru, self.out = nn.LayerNorm(12), prnn.GRU(12 * 20, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        T, B, bands = x.shape
        y = torch.relu(self.norm(self.first(x.reshape(T * B, 1, bands))))
        y = F.gelu(self.layer_norm(self.second(y).transpose(1, 2)))
        output, h = self.gru(y.reshape(T, B, -1), h)
        return torch.sigmoid(self.out(output)).squeeze(-1), h


class Mixed(nn.Module):
    """Operators of most kinds; its state is a buffer of past frames and a running mean, no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        past, mean = state  # [1,B,8], [1,B,8]
        T, B, _ = x.shape
        outputs = []
        for t in range(T):
            frame = x[t]
            mean = 0.9 * mean + 0.1 * frame
            planes = torch.stack([frame.view(B, 2, 4), past[0].view(B, 2, 4)], 1)
            y = self.conv(F.pad(planes, (1, 2))).flatten(1)
            attention = torch.softmax(frame.view(B, 2, 4) @ self.weight @ past[0].view(B, 2, 4).transpose(1, 2), -1)
            top = torch.amax(y, 1, keepdim=True) - y.mean(1, keepdim=True)
            parts = [y - top, torch.log_softmax(y, -1), attention.flatten(1), frame[:, [3, 0]]]
            parts += [torch.where(frame > 0, frame.clamp(max=0.5), F.elu(frame)), frame.view(B, 2, 4).sum(1)]
            parts += [F.glu(frame, -1), (frame.abs() + 1).log() * torch.floor(frame * 3), mean[0].sin()]
            outputs.append(torch.cat(parts, 1))
            past = frame.unsqueeze(0)
        return torch.stack(outputs), (past, mean)


class Named(nn.Module):
    """Whose names clash with C's and the export's."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("int", nn.Linear(4, 4))
        self.product, self.net, self.y = nn.Linear(4, 4), nn.Linear(3, 3), nn.Linear(4, 3)
        self.state, self.i, self.x = (nn.Parameter(torch.randn(4)) for _ in range(3))
        self.exp = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("output", torch.randn(3))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, second = state
        z = torch.tanh(self.int(x) * self.state + self.i * self.x).exp() * self.exp.sum(0)
        return self.net(self.y(self.product(z))) + self.output + second[..., :3], (0.5 * first + z, 0.5 * second + 1)


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        low, high = x > -1, x < 0.5
        y = torch.where((low & high) | ~(x < 1), x, -x).masked_fill(low ^ high, 3.0)
        y = y + low.float() + high.float() + (low + high).float() * 2 + (low.long() * 3 + high).to(x.dtype)
        y = y + x.bool().float() + (x * 3).int().to(x.dtype) / 2 + torch.remainder(x, 0.7) + F.softplus(x)
        y = y + F.logsigmoid(x) + torch.logaddexp(x, y) + torch.hypot(x, y) + x.abs().pow(2.3) + torch.pow(2.0, x)
        return torch.where(low.any(-1, keepdim=True) & high.all(-1, keepdim=True), y, 2 * y)


class Residual(nn.Module):
    """One layer in one direction and two in both, with operators between them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.gru = nn.Linear(6, 6), nn.LayerNorm(6), prnn.GRU(6, 6)
        self.both, self.last = prnn.GRU(6, 5, bidirectional=True), prnn.LSTM(10, 3, bidirectional=True)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, h_both, h_last, c_last = state
        x = x + torch.relu(self.linear(self.norm(x)))
        y, h = self.gru(x, h)
        z, h_both = self.both(y + x, h_both)
        z, (h_last, c_last) = self.last(F.silu(z) * z[..., :1], (h_last, c_last))
        return torch.log_softmax(z + x * y[..., :1], -1), (h, h_both, h_last, c_last)


class Pooled(nn.Module):
    """Convolutions, transposed ones, pooling and normalisation, of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=(2, 1), padding=1)
        self.up = nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0), groups=2)
        self.line = nn.ConvTranspose1d(6, 3, 3, stride=2, dilation=2, padding=1)
        self.norm, self.c = nn.GroupNorm(3, 6), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        T, B, _ = x.shape
        y = self.up(self.down(x.reshape(T * B, 2, 6, 5)))
        y = self.norm(y)
        z = F.max_pool2d(y, (2, 3), stride=2, padding=(1, 1)) + F.avg_pool2d(
            y, (2, 3), 2, (1, 1), count_include_pad=False
        )
        z = F.avg_pool2d(z, 2) * y.var((2, 3), keepdim=True)
        line = self.line(z.flatten(2)).flip(1, 2) * self.c[:, None]
        pooled = F.max_pool1d(line, 2) + line.var(1, correction=0).repeat(1, 2)[:, None, : line.shape[2] // 2]
        return torch.cat([z.flatten(1), pooled.flatten(1), F.avg_pool1d(line, 3, padding=1).flatten(1)], 1).view(
            T, B, -1
        )


class Characters(nn.Module):
    """An embedding, layers, a linear decoder."""

    def __init__(self, V: int, H: int = 32) -> None:
        super().__init__()
        self.embedding, self.recurrent, self.decoder = nn.Embedding(V, 16), prnn.LSTM(16, H, 2), nn.Linear(H, V)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.recurrent(self.embedding(tokens), state)
        return self.decoder(output), state


def detector() -> Exported:
    torch.manual_seed(0)
    model = Detector()
    with torch.no_grad():
        assert model.norm.running_mean is not None and model.norm.running_var is not None
        model.norm.running_mean.normal_(), model.norm.running_var.uniform_(0.5, 2)
    return Exported(model, torch.zeros(1, 1, 40), {"h": (1, 1, 64)})


def characters(V: int = 20) -> Exported:
    torch.manual_seed(0)
    exported = Exported(Characters(V), torch.zeros(1, 1, dtype=torch.int64), {"h": (2, 1, 32), "c": (2, 1, 32)})
    exported.vocabulary = V
    return exported
