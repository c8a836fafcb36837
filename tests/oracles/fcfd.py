"""FCFD by its equations, for networks of stages (convolution, batch norm, ReLU) and a head on the mean over places.

Every batch norm is written out, with the statistics that it is to use; no network is switched to any mode.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tests.networks import Plain
from tests.oracles.block_kd import distance, task

Bridge = tuple[nn.Module, nn.BatchNorm2d]


def normalised(norm: nn.BatchNorm2d, x: Tensor, of_the_batch: bool) -> Tensor:
    """``γ_c · (x - μ_c) / √(σ_c² + ε) + β_c``, channel by channel."""
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean[c], norm.running_var[c]
        if of_the_batch:
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
        channels.append(norm.weight[c] * (values - mean) / (variance + norm.eps) ** 0.5 + norm.bias[c])
    return torch.stack(channels, dim=1)


def stage(network: Plain, i: int, x: Tensor, of_the_batch: bool) -> Tensor:
    convolution: nn.Module
    norm: nn.BatchNorm2d
    convolution, norm, _ = network.stages[i]  # type: ignore[misc]
    return normalised(norm, convolution(x), of_the_batch).clamp(min=0)


def bridged(bridge: Bridge, x: Tensor) -> Tensor:
    x = normalised(bridge[1], bridge[0](x), True)
    return torch.where(x > 0, x, 0.1 * x)


def head(network: Plain, x: Tensor) -> Tensor:
    return network.head(x.mean((2, 3)))


def squared(learner: Tensor, target: Tensor) -> Tensor:
    return sum(((a - b) ** 2).sum() for a, b in zip(learner, target, strict=True)) / target.numel()


def loss(
    teacher: Plain,
    student: Plain,
    there: Mapping[int, Bridge],
    back: Mapping[int, Bridge],
    x: Tensor,
    y: Tensor,
    paths: Sequence[tuple[str, int]],
    weights: tuple[float, float, float, float],
    epoch: int,
    warmup_epochs: int,
    temperature: float,
) -> Tensor:
    """The whole loss in epoch ``epoch`` = 1, 2, …; ``paths`` are (whose blocks come first, how many of them)."""
    n = len(student.stages)
    theirs, ours = [x], [x]
    for i in range(n):
        theirs.append(stage(teacher, i, theirs[-1], False).detach())
        ours.append(stage(student, i, ours[-1], True))
    target, logits = head(teacher, theirs[n]).detach(), head(student, ours[n])

    alike: dict[int, list[Tensor]] = {i: [bridged(there[i], ours[i])] for i in range(1, n + 1)}
    mixed = torch.zeros((), dtype=x.dtype)
    for first, after in paths:
        feature = alike[after][0] if first == "student" else bridged(back[after], theirs[after])
        second = teacher if first == "student" else student
        for i in range(after, n):
            feature = stage(second, i, feature, True)
            if first == "student":
                alike[i + 1].append(feature)
        mixed = mixed + distance(head(second, feature), target, temperature)

    apart = torch.zeros((), dtype=x.dtype)
    for i, learners in alike.items():
        for learner in learners:
            apart = apart + squared(learner, theirs[i])
            if i == n:
                apart = apart + squared(learner.clamp(min=0).mean((2, 3)), theirs[i].clamp(min=0).mean((2, 3)))
    alpha, beta, mu, lam = weights
    grown = epoch / warmup_epochs if epoch < warmup_epochs else 1.0
    own = alpha * task(logits, y) + beta * distance(logits, target, temperature)
    return own + mu * mixed + lam * grown * apart
