"""Forms of Block-KD in which one thing is changed: what lost, or is not settled, lives here and not in the package."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from blockkd import BlockKD, connector, partition
from blockkd.baselines.fcfd import own_batch_statistics
from blockkd.baselines.features import hint_loss
from blockkd.connectors import MapConnector
from blockkd.distances import KL
from blockkd.distiller import Losses
from blockkd.features import Feature
from blockkd.objectives import task_loss
from blockkd.schedules import warmup
from blockkd.stones import stone_logits


class WarmedUp(BlockKD):
    """The stones' gradient reaches the student by a share that grows from 0 to 1; the connectors learn at once."""

    warm_epochs = 10

    def _connected(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        share = min(1.0, self.epoch / self.warm_epochs)
        return super()._connected([feature.detach() + share * (feature - feature.detach()) for feature in features])


class Balanced(BlockKD):
    """In each step the gradient of stone i at F_i is made as long as w_i times that of the student's own losses."""

    _wanted: dict[int, Tensor]

    def forward(self, *given: Any, **named: Any) -> Losses:
        losses = super().forward(*given, **named)
        own = torch.stack([term for name, term in losses.terms.items() if name.endswith("/student")]).sum()
        gradients = torch.autograd.grad(own, self._seen, retain_graph=True)
        self._wanted.update({i: w * gradients[i - 1].norm() for i, w in self.stone_weights.items()})
        return losses

    def _connected(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        self._seen, self._wanted = list(features), {}
        return super()._connected([_OfLength.apply(f, self._wanted, i) for i, f in enumerate(features, start=1)])


class _OfLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, wanted: dict[int, Tensor], i: int) -> Tensor:
        ctx.wanted, ctx.i = wanted, i
        return feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient * (ctx.wanted[ctx.i] / gradient.norm().clamp(min=1e-12)), None, None


class OwnStatistics(BlockKD):
    """In the teacher's blocks each stone is normalised by the statistics of its own batch, as FCFD does."""

    def _stone_logits(self, features: Sequence[Tensor], *_: Any, **__: Any) -> dict[int, Tensor]:
        self._keep_teacher_frozen()
        with own_batch_statistics(self.teacher_blocks):
            return {i: stone_logits(self.teacher_blocks, {i: f})[i] for i, f in self._connected(features).items()}


class SettledConnectors(BlockKD):
    """The connectors' batch norm keeps to the running statistics that it starts with."""

    def train(self, mode: bool = True) -> "SettledConnectors":
        super().train(mode)
        for made in self.connectors.values():
            assert isinstance(made, MapConnector)
            made.norm.eval()
        return self


class OneByOne(BlockKD):
    """Each step takes one stone, drawn in proportion to its weight; it weighs as much as all together."""

    def forward(self, *given: Any, **named: Any) -> Losses:
        every, weights = self.stones, dict(self.stone_weights)
        shares = torch.tensor([weights[i] for i in every])
        drawn = every[int(torch.multinomial(shares, 1))] if self.training else every[-1]
        self.stones, self.stone_weights = (drawn,), {drawn: float(shares.sum())}
        try:
            return super().forward(*given, **named)
        finally:
            self.stones, self.stone_weights = every, weights


class LastToFirst(BlockKD):
    """Stones come one after the other: N_n from the start, N_1 last."""

    epochs = 30

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        n = len(self.student_blocks)
        self.stones = tuple(i for i in self.stone_weights if epoch >= (n - i) * self.epochs // n)


class FeaturesAlike(BlockKD):
    """A small L2 term between connected features and the teacher's, warmed up."""

    feature_weight, warmup_epochs = 0.1, 3

    def forward(self, inputs: Tensor, targets: Tensor, **named: Any) -> Losses:
        losses = super().forward(inputs, targets, **named)
        theirs, _ = self.teacher_features(inputs)
        weight = self.feature_weight * warmup(self.epoch, self.warmup_epochs)
        terms = {
            f"feature/block_{i}": weight * self.stone_weights[i] * hint_loss(feature, theirs[i - 1])
            for i, feature in self._kept.items()
        }
        return Losses.of(dict(losses.terms) | terms, losses.logits)

    def _connected(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        self._kept = super()._connected(features)
        return self._kept


class SofterEarly(BlockKD):
    """A temperature for each stone: the farther a stone is from the last, the softer what it is told."""

    def forward(self, inputs: Tensor, targets: Tensor, *, recorded: Tensor | None = None, **named: Any) -> Losses:
        losses = super().forward(inputs, targets, recorded=recorded, **named)
        target, n = self.teacher_logits(inputs, recorded, **named), len(self.student_blocks)
        assert isinstance(self.distance, KL)
        terms = dict(losses.terms)
        for i, logits in self._said.items():
            softer = replace(self.distance, temperature=(n - i + 1) * self.distance.temperature)
            terms[f"distill/stone_{i}"] = self.beta * self.stone_weights[i] * softer(logits, target, targets)
        return Losses.of(terms, losses.logits)

    def _stone_logits(self, *given: Any, **named: Any) -> dict[int, Tensor]:
        self._said = super()._stone_logits(*given, **named)
        return self._said


class BothWays(BlockKD):
    """Beside the stones also networks that start as teacher and end as student, by their own batch statistics."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        pairs = list(zip(self.teacher_blocks.features, self.student_blocks.features, strict=True))[:-1]
        self.back = nn.ModuleDict({str(i): connector(*pair) for i, pair in enumerate(pairs, start=1)})

    def forward(self, inputs: Tensor, targets: Tensor, **named: Any) -> Losses:
        losses = super().forward(inputs, targets, **named)
        theirs, target = self.teacher_features(inputs)
        terms = dict(losses.terms)
        for i, back in self.back.items():
            x = back(theirs[int(i) - 1])
            with own_batch_statistics(self.student_blocks):
                for block in list(self.student_blocks.blocks)[int(i) :]:
                    x = block(x)
                logits = self.student_blocks.classifier(x)
            weight = self.stone_weights[int(i)]
            terms[f"task/back_{i}"] = self.alpha * weight * task_loss(logits, targets)
            terms[f"distill/back_{i}"] = self.beta * weight * self.distance(logits, target, targets)
        return Losses.of(terms, losses.logits)


class Quarter(BlockKD):
    """The stones go on with a quarter of each batch: of their losses an estimate, for a quarter of their cost."""

    share = 4

    def forward(self, inputs: Tensor, targets: Tensor, *, recorded: Tensor | None = None, **_: Any) -> Losses:
        few = max(2, len(targets) // self.share)
        features, logits = self.student_features(inputs)
        stones = self._stone_logits([feature[:few] for feature in features], inputs[:few])
        teacher = self.teacher_logits(inputs, recorded)
        said = {"student": (1.0, logits)} | {f"stone_{i}": (self.stone_weights[i], z) for i, z in stones.items()}
        terms = {}
        for name, (weight, z) in said.items():
            to, y = teacher[: len(z)], targets[: len(z)]
            terms[f"task/{name}"] = self.alpha * weight * task_loss(z, y)
            terms[f"distill/{name}"] = self.beta * weight * self.distance(z, to, y)
            if self._cross_weight.counts():
                ensemble = torch.stack(list(stones.values())).mean(dim=0).detach()
                cross = self.distance(z[:few], ensemble, targets[:few])
                terms[f"cross/{name}"] = self._cross_weight.now() * weight * cross
        return Losses.of(terms, logits)


class DeepSupervision(BlockKD):
    """A control: behind each connector stands a new pooled linear classifier, in the place of the teacher's tail."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        classes, theirs = _linear(self.student).out_features, self.teacher_blocks.features
        self.classifiers = nn.ModuleDict(
            {
                str(i): nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(theirs[i - 1].channels, classes))
                for i in self.stones
            }
        )

    def _stone_logits(self, features: Sequence[Tensor], *_: Any, **__: Any) -> dict[int, Tensor]:
        return {i: self.classifiers[str(i)](feature) for i, feature in self._connected(features).items()}


class TailsDrawnAnew(BlockKD):
    """A control: the stones end in blocks of the teacher's make that know nothing at the start and are trained."""

    def __init__(self, teacher: nn.Module, student: nn.Module, example: Tensor, **named: Any) -> None:
        super().__init__(teacher, student, example, **named)
        anew = copy.deepcopy(teacher).requires_grad_(True).train()
        for layer in anew.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                layer.reset_parameters()
        self.tails = partition(anew, example)

    def _stone_logits(self, features: Sequence[Tensor], *_: Any, **__: Any) -> dict[int, Tensor]:
        said = {}
        for i, feature in self._connected(features).items():
            for block in list(self.tails.blocks)[i:]:
                feature = block(feature)
            said[i] = self.tails.classifier(feature)
        return said


class FirstHalf(BlockKD):
    """Stones in the first half of the training alone; then the student goes on as in KD."""

    epochs = 30

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.stones = tuple(self.stone_weights) if 2 * epoch < self.epochs else ()


def three_by_three(student: Feature, teacher: Feature) -> nn.Module:
    """The connector with a 3×3 convolution in the place of the 1×1."""
    made = connector(student, teacher)
    assert isinstance(made, MapConnector)
    made.project = nn.Conv2d(student.channels, teacher.channels, 3, padding=1, bias=False)
    return made


@torch.no_grad()
def merge_heads(distiller: BlockKD, images: Tensor) -> None:
    """The student's classifier becomes the mean of its own and that of ``N_n``: an affine map, as both are.

    Behind pooling, a 1×1 convolution, a batch norm in evaluation mode and the teacher's linear layer are one linear
    layer on the student's pooled feature.

    Args:
        distiller: both of its networks end in pooling and a linear layer; ``N_n`` is among its stones.
        images: a batch by which it is checked that the student's logits become the mean.
    """
    n = len(distiller.student_blocks)
    expected = distiller.eval().all_logits(images)
    made, own, theirs = distiller.connectors[str(n)], *map(_linear, (distiller.student, distiller.teacher_blocks))
    assert isinstance(made, MapConnector)
    assert made.norm.running_mean is not None
    assert made.norm.running_var is not None
    scale = made.norm.weight / (made.norm.running_var + made.norm.eps).sqrt()
    shift = made.norm.bias - scale * made.norm.running_mean
    own.weight.add_(theirs.weight @ (scale[:, None] * made.project.weight[:, :, 0, 0])).div_(2)
    own.bias.add_(theirs.weight @ shift + theirs.bias).div_(2)
    mean = (expected["student"] + expected[f"stone_{n}"]) / 2
    torch.testing.assert_close(distiller.student(images), mean, atol=1e-3, rtol=1e-3)


def _linear(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
