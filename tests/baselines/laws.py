"""The laws of every method on features, and the networks to try them on."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from blockkd.baselines.features import AT
from blockkd.blocks import Blocks
from blockkd.distiller import Distiller
from blockkd.models import create_model
from tests.networks import IMAGE, Plain

Loss = Callable[..., Tensor]

CIFAR_PAIRS = [
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("resnet32x4", "ShuffleV1"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals_oracle(fast: Loss, slow: Loss, *inputs: Tensor) -> None:
    """Value, and gradient in every input."""
    results = []
    for function in (fast, slow):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = function(*leaves)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def assert_full_precision(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    """Half-precision features give the float32 loss of the same numbers, also under autocast."""
    student, teacher = student.bfloat16(), teacher.bfloat16()
    expected = loss(student.float(), teacher.float())
    assert expected.dtype == torch.float32
    torch.testing.assert_close(loss(student, teacher), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher), expected)


def tiny(dtype: torch.dtype = torch.float64) -> tuple[Plain, Plain, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = Plain((6, 8, 12)).to(dtype), Plain((3, 4, 5)).to(dtype)
    return teacher, student, torch.randn(4, *IMAGE, dtype=dtype), torch.tensor([0, 3, 4, 1])


@cache
def cifar_pair(teacher: str, student: str) -> tuple[nn.Module, nn.Module, Blocks, Blocks]:
    """Two networks of the field, cut once for all methods."""
    torch.manual_seed(0)
    big, small = create_model(teacher, num_classes=10), create_model(student, num_classes=10)
    cut = AT(big, small, torch.randn(2, 3, 32, 32))
    return big, small, cut.teacher_blocks, cut.student_blocks


def assert_lawful_step(distiller: Distiller, x: Tensor, y: Tensor) -> None:
    """The method's own loss reaches the student's first layer and all that is trained beside it, never the teacher."""
    teacher = distiller.teacher
    assert teacher is not None
    before = copy.deepcopy(teacher.state_dict())
    distiller.train()
    distiller.zero_grad()
    losses = distiller(x, y)
    assert all(torch.isfinite(term) for term in losses.terms.values())
    torch.testing.assert_close(losses.total, torch.stack(list(losses.terms.values())).sum())
    own = [term for name, term in losses.terms.items() if name.startswith("feature/")]
    torch.stack(own).sum().backward()
    reached = {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    beside = {name for name, _ in distiller.named_parameters() if not name.startswith("student.")}
    assert next(name for name, _ in distiller.named_parameters()) in reached
    assert beside <= reached
    assert all(torch.isfinite(p.grad).all() for p in distiller.parameters() if p.grad is not None)
    torch.optim.SGD(distiller.parameters(), lr=1e-6).step()
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def field_pair(teacher: str, student: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    made = (create_model(name, num_classes=10) for name in (teacher, student))
    return *made, torch.rand(2, 3, 32, 32), torch.tensor([0, 9])  # type: ignore[return-value]


def check_step(distiller: Distiller, x: Tensor, y: Tensor, **context: Tensor) -> None:
    """One step: gradients reach all that learns, the teacher stays as it is, the state can be saved and loaded."""
    assert distiller.teacher is not None
    before = copy.deepcopy(distiller.teacher.state_dict())
    twin = copy.deepcopy(distiller)
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=1e-6)
    distiller.train()
    distiller.teacher.train()  # which someone may do by mistake
    losses = distiller(x, y, **context)
    losses.total.backward()
    optimizer.step()

    assert losses.logits.shape == distiller.teacher(x).shape
    assert all(term.isfinite() for term in losses.terms.values())
    learning = {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in learning.values())
    groups = {name.split(".")[0] for name in learning}
    reached = {name.split(".")[0] for name, grad in learning.items() if grad is not None and grad.any()}
    assert reached == groups
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())
    assert not distiller.teacher.training
    assert all(torch.equal(value, before[name]) for name, value in distiller.teacher.state_dict().items())

    held = {id(p) for p in distiller.parameters()}
    assert not held & {id(p) for p in distiller.teacher.parameters()}
    twin.load_state_dict(distiller.state_dict())
    results = []
    for one in (distiller, twin):
        one.eval().set_epoch(3)
        torch.manual_seed(1)
        results.append(one(x, y, **context).total)
    torch.testing.assert_close(results[0], results[1])


class ChannelsLast(nn.Module):
    """Maps with their channels last, averaged before the head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Conv2d(3, width, 3, 2, 1), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(self.embed(x).permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


class TwoLayerHead(Plain):
    """Its logits are no linear layer's output."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2.0
