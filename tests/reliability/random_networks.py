"""Small networks drawn at random: chains with branches, of convolutions, norms, pools and tricks of every kind."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS, SIDE, CLASSES = 3, 8, 4


class Residual(nn.Module):
    """``x + body(x)``, or any other way to bring the two together."""

    def __init__(self, body: nn.Module, join: str) -> None:
        super().__init__()
        self.body, self.join = body, join

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if y.shape != x.shape:
            return y
        if self.join == "in place":
            y += x
            return y
        if self.join == "average":
            return torch.stack([x, y]).mean(0)
        if self.join == "gate":
            return x * torch.sigmoid(y)
        return x + y


class Twice(nn.Module):
    """Calls one and the same module two times, as shared weights do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.body(y) if y.shape == x.shape else y


class Dense(nn.Module):
    """Every layer sees all before it."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width * (i + 1), width, 3, padding=1) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(torch.relu(layer(torch.cat(seen, 1))))
        return seen[-1]


class Trick(nn.Module):
    """A forward that does something else with its input."""

    seen: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))
        self.scale = nn.Parameter(torch.full((1,), 0.7))

    def extra_repr(self) -> str:
        return self.kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "by value":
            return x if float(x.sum()) > 0 else -x
        if self.kind == "counter":
            self.calls += 1
            return x * self.calls
        if self.kind == "random":
            return x + torch.rand_like(x)
        if self.kind == "tuple":
            return (x, x)
        if self.kind == "buffer":
            self.seen += 1
            return x + self.seen
        if self.kind == "mode":
            return x * 2 if self.training else x
        if self.kind == "by size":
            return x if x.shape[0] > 2 else x * 2
        if self.kind == "scale":
            return x * self.scale
        if self.kind == "numpy":
            return torch.from_numpy(x.detach().numpy())
        if self.kind == "half a batch":
            return x[: max(1, len(x) // 2)]
        if self.kind == "raises":
            raise RuntimeError("cannot go on")
        return x.reshape(x.shape)


TRICKS = [
    *(
        "by value",
        "counter",
        "random",
        "tuple",
        "buffer",
        "mode",
        "by size",
        "scale",
        "numpy",
        "half a batch",
        "raises",
    ),
    "nothing",
]


def _layer(kind: str, width: int, out: int) -> nn.Module:
    make: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: nn.Conv2d(width, out, 3, padding=1),
        "strided": lambda: nn.Conv2d(width, out, 3, stride=2, padding=1),
        "block": lambda: nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()),
        "norm": lambda: nn.BatchNorm2d(width),
        "group norm": lambda: nn.GroupNorm(1, width),
        "relu": lambda: nn.ReLU(inplace=True),
        "pool": lambda: nn.MaxPool2d(2, ceil_mode=True),
        "dropout": lambda: nn.Dropout(0.3),
        "identity": nn.Identity,
        "zero": lambda: nn.Conv2d(width, width, 1).apply(_zero),
    }
    return make[kind]()


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


KEEPING = ("norm", "group norm", "relu", "pool", "dropout", "identity", "zero")


class Head(nn.Module):
    """Mean over the grid and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A classifier of images ``(B, 3, 8, 8)`` → ``(B, 4)``, or what looks like one."""
    torch.manual_seed(draw(st.integers(0, 99)))
    width = draw(st.integers(1, 4))
    parts: list[nn.Module] = [nn.Conv2d(CHANNELS, width, 3, padding=1)]
    for _ in range(draw(st.integers(0, 5))):
        part, width = draw(_parts(width))
        parts.append(part)
    if draw(st.integers(0, 3)) == 0:
        parts.insert(draw(st.integers(0, len(parts))), Trick(draw(st.sampled_from(TRICKS))))
    if draw(st.integers(0, 9)):
        parts.append(Head(width))
    network = nn.Sequential(*parts)
    network.train(draw(st.booleans()))
    return network


@st.composite
def _parts(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    form = draw(st.sampled_from(["layer", "layer", "chain", "residual", "residual", "twice", "dense"]))
    if form == "dense":
        return Dense(width, draw(st.integers(1, 3))), width
    if form == "layer":
        return draw(_layers(width))
    if form == "chain":
        layers = []
        for _ in range(draw(st.integers(1, 3))):
            layer, width = draw(_layers(width))
            layers.append(layer)
        return nn.Sequential(*layers), width
    body = _layer(draw(st.sampled_from(["conv", "block", *KEEPING])), width, width)
    if form == "twice":
        return Twice(body), width
    return Residual(body, draw(st.sampled_from(["sum", "in place", "average", "gate"]))), width


@st.composite
def _layers(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    kind = draw(st.sampled_from(["conv", "strided", "block", *KEEPING]))
    out = width if kind in KEEPING else draw(st.integers(1, 4))
    return _layer(kind, width, out), out
