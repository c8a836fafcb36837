"""Small networks, each with one thing that makes cutting it hard."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Plain(nn.Module):
    """Three stages of one convolution each."""

    def __init__(self, widths: tuple[int, ...] = (4, 8, 16), classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.stages = nn.ModuleList(conv(sizes[i], sizes[i + 1], stride=1 if i == 0 else 2) for i in range(len(widths)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class Functional(nn.Module):
    """No stage modules; sizes of the input and dropout by ``self.training`` in the network's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, d, 3, padding=1) for c, d in ((3, 4), (4, 8), (8, 8)))
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4
        batch, channels, height, width = x.shape
        if channels != 3 or height != width:
            raise ValueError("wrong image")
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(x, 0.3, training=self.training)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        if self.training:
            x = F.dropout2d(x, 0.2)
        x = F.adaptive_avg_pool2d(F.relu(self.conv3(x)), 2)
        return self.fc(x.view(batch, -1))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.7
        return x * keep / 0.7


class Residual(nn.Module):
    """Drop path and random depth inside of blocks, with one activation module used everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.bodies = nn.ModuleList(conv(4, 4) for _ in range(4))
        self.drop = DropPath()
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for body in self.bodies:
            x = self.act(x + self.drop(body(x)))
        return self.head(x.mean((2, 3)))


class LongSkip(nn.Module):
    """A skip over the middle stage: no cut there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = conv(3, 4), conv(4, 4), conv(4, 8, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.middle(x)
        return self.head(self.last(x + y).mean((2, 3)))


class InPlace(nn.Module):
    """The next stage changes the output of the one before it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        F.relu_(x.flatten(1))  # changes x, through a view
        return self.head(x.mean((2, 3)))


class SharedBias(nn.Module):
    """A tensor made of parameters and of the input's size is used by every block."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 16))
        self.scale = nn.Linear(16, 16)
        self.register_buffer("shift", torch.ones(16))
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.embed = nn.Linear(3, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        bias = self.scale(self.table[:tokens]) + self.shift
        x = self.embed(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x + bias))
        return self.head(x.reshape(batch, tokens, -1).mean(1))


class Cache(nn.Module):
    """A block that keeps what it computed last, as some attention modules keep their position bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(6, 8), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(8))
        self.kept: dict[str, Tensor] = {}
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias * 2
        x = torch.relu(self.linear1(x) + self.kept["bias"])
        return self.head(torch.relu(self.linear2(x) + self.kept["bias"]))


class RandomDepth(nn.Module):
    """Skips stages at random, in Python, while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 4), conv(4, 4), conv(4, 4)])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for i, stage in enumerate(self.stages):
            if i and self.training and random.random() < 0.5:
                continue
            x = stage(x)
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    """Takes another way for other values: nothing a recorded graph could repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = self.second(x)
        return self.head(x)


class HiddenBranch(nn.Module):
    """A part that branches on values inside a network that does not."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if x.sum() > 0 else -self.linear(x)

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(self.Part(), self.Part(), self.Part())
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts(x))


class ModeDependent(nn.Module):
    """One operation more while it trains, before the first cut, of the kind after which cuts lie."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, d, 3, 2, 1) for c, d in ((3, 4), (4, 8), (8, 8)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = torch.relu(x + torch.randn_like(x))
        x = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        return self.head(x.mean((2, 3)))


class Aliasing(nn.Module):
    """Changes a tensor under another name of it, which a recorded graph does not repeat; the head starts at zero."""

    def __init__(self, only_in_training: bool = False) -> None:
        super().__init__()
        self.only_in_training = only_in_training
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        before = x
        if self.training or not self.only_in_training:
            x += 1
        return self.head(self.second(x) + before)


class Resolving(nn.Module):
    """Decides by the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 4), conv(4, 8, stride=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 20:
            x = nn.functional.max_pool2d(x, 2)
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Context(nn.Module):
    """Switches gradients off for its first stage, in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 4), conv(4, 8, stride=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.first(x))
        return self.head(self.second(x).mean((2, 3)))


class Recurrent(nn.Module):
    """Layers that give more than what is used, a tensor that is no buffer, and tensors made of the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(6, 6, batch_first=True) for _ in range(3))
        self.scale = torch.full((6,), 0.5)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            start = torch.zeros(1, x.size(0), 6, dtype=x.dtype)
            x, _ = layer(x * self.scale, (start, start))
        return self.head(x[:, -1])


class Windows(nn.Module):
    """Sizes that grow with the batch are used behind the cuts, and between them the batch is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        rows = batch * tokens
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x.reshape(rows, -1))).view(batch, tokens, -1)
        x = torch.relu(self.third(x))
        return self.head(x.reshape(rows, -1)).view(batch, tokens, -1).mean(1)


class Waveform(nn.Module):
    """Convolutions in one dimension."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(i, o, 3, s, 1), nn.BatchNorm1d(o), nn.ReLU())
                for i, o, s in ((1, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
            )
        )
        self.head = nn.Linear(4 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean(2))


class Tokens(nn.Module):
    """A small vision transformer of torch's own layers, with class token and positions."""

    def __init__(self, width: int = 16, depth: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


def perceptron(width: int = 12, depth: int = 4) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(48, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


IMAGE, VECTOR, SEQUENCE = (3, 16, 16), (6,), (4, 3)

# What can be cut in both modes, with the shape of its input.
CUTTABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Plain, IMAGE),
    "functional": (Functional, IMAGE),
    "residual": (Residual, IMAGE),
    "long-skip": (LongSkip, IMAGE),
    "in-place": (InPlace, IMAGE),
    "shared-bias": (SharedBias, SEQUENCE),
    "cache": (Cache, VECTOR),
    "hidden-branch": (HiddenBranch, VECTOR),
    "tokens": (Tokens, IMAGE),
    "perceptron": (perceptron, (3, 4, 4)),
    "recurrent": (Recurrent, (4, 6)),
    "waveform": (Waveform, (1, 32)),
    "windows": (Windows, (4, 6)),
    "resolving": (Resolving, IMAGE),
}
