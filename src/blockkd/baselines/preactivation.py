"""Features before the ReLU that ends a stage (OFD, ReviewKD)."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from blockkd.blocks import Blocks
from blockkd.cuts import CutPoint
from blockkd.examples import random_like
from blockkd.partitioning import Survey
from blockkd.tracing import undisturbed


def check_maps(method: str, *networks: Blocks) -> None:
    """Raises ValueError where a block gives tokens or vectors: ``method`` needs maps."""
    for blocks in networks:
        for name, feature in zip(blocks.names, blocks.features, strict=True):
            if feature.layout not in ("CHW", "HWC"):
                raise ValueError(
                    f"{method} needs maps, but {type(blocks.network).__name__} gives {feature} after {name!r}: cut it "
                    "where it still has a grid, or use a method for tokens and logits"
                )


def cut_before_relu(network: nn.Module, blocks: Blocks, example: Tensor, *, frozen: bool = False) -> Blocks:
    """The network cut at the same stages, each before the ReLU that ends or follows it.

    Args:
        network: the network behind ``blocks``; its ``nn.ReLU`` modules stop overwriting their input.
        blocks: the network as ``partition`` cuts it.
        example: a batch of inputs ``(B, ...)``.
        frozen: the network stays in evaluation mode, as a teacher does.
    """
    for module in network.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False  # else what it gets is gone before anybody can look at it
    survey = Survey(network, example)
    ends = survey.named(blocks.names)
    runs = [[p for p in survey.points if (p.depth, p.feature) == (end.depth, end.feature)] for end in ends]
    candidates = [point for run in runs for point in run]
    every = survey.cut(candidates, frozen=True)
    with torch.no_grad(), undisturbed(network, training=False):
        outputs, _ = every.run(random_like(example))
    values = dict(zip(candidates, outputs, strict=True))
    points = [_relu_input(run, values) or end for run, end in zip(runs, ends, strict=True)]
    lost = [point.name for point in points if not bool((values[point] < 0).any())]
    if lost and frozen:  # of any student's feature its connector can make what it needs
        warnings.warn(
            f"{survey.label} gives no negative value after {', '.join(lost)}, and what its ReLU gets cannot be looked "
            "at: the feature after the activation is used",
            stacklevel=3,
        )
    return survey.cut(points, frozen=frozen)


def _relu_input(run: Sequence[CutPoint], values: Mapping[CutPoint, Tensor]) -> CutPoint | None:
    """Of the places between two layers with weights, the input of the last ReLU."""
    for point, following in reversed(list(pairwise(run))):
        before, after = values[point], values[following]
        if bool((before < 0).any()) and any(torch.equal(after, x) for x in (before.relu(), before.clamp(0, 6))):
            return point
    return None
