"""Where a network can be cut.

A cut point is a place in the forward where one tensor alone carries everything that is still needed. Values that
are not tensors (sizes, dtypes, devices) do not hinder a cut when they can be read off that tensor again, nor do
tensors that depend on parameters only, since the later block can compute them itself.
"""

import operator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from blockkd.features import Feature, feature_of
from blockkd.tracing import Fact, Key, Path, Trace


class CutError(Exception):
    """The wanted cuts do not exist; the message says why."""


@dataclass(frozen=True)
class CutPoint:
    """A tensor that carries everything.

    Attributes:
        key: finds the node again in another trace of the same network.
        name: the submodule whose output it is (``act#2``: of its second call), or an operation inside a submodule.
        feature: its shape and layout for one example of the batch.
        depth: how many layers with weights have run up to it.
        weights: how many weights these layers have.
        level: how deep in the network's hierarchy it lies (0: output of a direct child of the network).
        composite: it is the output of a module made of other modules, as stages and blocks are.
        aliases: all submodules that return it.
    """

    key: Key
    name: str
    feature: Feature
    depth: int
    weights: int
    level: int
    composite: bool
    aliases: tuple[str, ...] = ()


class Depth(NamedTuple):
    """How far into a network: layers with weights that have run, and how many weights they have."""

    layers: int
    weights: int


def cut_points(network: nn.Module, one: Trace, two: Trace) -> list[CutPoint]:
    """All cut points in the order in which they are reached.

    Args:
        network: the network that was traced.
        one, two: its traces with two batch sizes, by which sizes that grow with the batch are told from others.
    """
    depth = depths(network, one)
    total = depth[one.graph.output_node()]
    image = one.facts[one.graph.find_nodes(op="placeholder")[0]].shape
    assert image is not None
    points = []
    for node in lone_carriers(one, two):
        feature = feature_of(one.facts[node].shape, image, _channels(network, node))
        if feature is None or depth[node].layers in (0, total.layers):
            continue  # nothing learned before it, or nothing after it
        paths = one.outputs.get(node, [])
        aliases = tuple(f"{name}#{k + 1}" if k else name for name, k in (path[-1] for path in paths))
        name = aliases[-1] if aliases else _place(one, node)
        module = network.get_submodule(paths[-1][-1][0]) if paths else None
        composite = module is not None and any(True for _ in module.children())
        level = _level(paths[-1] if paths else one.scopes[node], name)
        points.append(CutPoint(one.key(node), name, feature, *depth[node], level, composite, aliases))
    return points


def lone_carriers(one: Trace, two: Trace) -> list[fx.Node]:
    """The nodes of ``one`` whose tensor alone carries everything that later nodes need, in order."""
    kinds = classify(one)
    nodes = list(one.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    twins = dict(zip(nodes, two.graph.nodes, strict=True))
    batches = (batch_size(one), batch_size(two))
    alive: set[fx.Node] = set()
    carriers = []
    for i, node in enumerate(nodes):
        alive = {other for other in alive if last[other] > i}
        if last[node] > i:
            alive.add(node)
        carried = [other for other in alive if kinds[other] == "data"]
        if carried != [node] or node.op == "placeholder" or node in one.overwritten or node not in one.facts:
            continue
        if not _per_example(one.facts[node], two.facts[twins[node]], batches):
            continue
        sizes = [other for other in alive if kinds[other] == "size"]
        facts = [(one.facts[other], two.facts[twins[other]]) for other in sizes]
        if all(express(a.value, b.value, *batches) is not None or a.value is None for a, b in facts):
            carriers.append(node)
    return carriers


def classify(trace: Trace) -> dict[fx.Node, str]:
    """What each node holds: ``data`` of the input, ``free`` of the input (parameters only), or a ``size``."""
    kinds: dict[fx.Node, str] = {}
    for node in trace.graph.nodes:
        sources = {kinds[source] for source in node.all_input_nodes}
        fact = trace.facts.get(node)
        if node.op in ("placeholder", "output"):
            kinds[node] = "data"
        elif not sources & {"data", "size"}:
            kinds[node] = "free"
        elif fact and fact.shape is None and not fact.holds_tensors and _plain(fact.value):
            kinds[node] = "size"
        else:
            kinds[node] = "data" if "data" in sources else "free"
    return kinds


@dataclass(frozen=True)
class PerExample:
    """A size that grows with the batch: ``factor`` times the batch size."""

    factor: int


def express(a: Any, b: Any, batch_a: int, batch_b: int) -> Any:
    """Write a value seen as ``a`` with one batch size and ``b`` with another without knowing where it came from.

    Returns:
        The value itself where both agree, a ``PerExample`` where it grows with the batch, a tuple of these for
        tuples and sizes, and None where it is neither.
    """
    if isinstance(a, tuple):
        parts = tuple(express(x, y, batch_a, batch_b) for x, y in zip(a, b, strict=True))
        return None if any(part is None for part in parts) else parts
    if a == b:
        return a
    if isinstance(a, int) and a % batch_a == 0 and a * batch_b == b * batch_a:
        return PerExample(a // batch_a)
    return None


def depths(network: nn.Module, trace: Trace) -> dict[fx.Node, Depth]:
    """The depth up to and including each node. A layer is a weight of two dimensions or more."""
    found, layers, weights = {}, 0, 0
    for node in trace.graph.nodes:
        used: list[torch.Size] = []
        if node.op == "call_module":
            module = network.get_submodule(str(node.target).partition(".")[2])
            used = [parameter.shape for parameter in module.parameters() if parameter.ndim >= 2]
        elif node.op == "get_attr":
            shape = trace.facts[node].shape if node in trace.facts else None
            used = [shape] if shape is not None and len(shape) >= 2 and shape[0] > 1 else []  # no class token
        layers += len(used)
        weights += sum(shape.numel() for shape in used)
        found[node] = Depth(layers, weights)
    return found


# Layers that tell where the channels are in what they give, and what may stand between such a layer and a cut.
_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.TransformerEncoderLayer)
_KEEPING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Dropout, nn.Identity)
_KEEPING_FUNCTIONS = (F.relu, torch.relu, F.gelu, F.silu, operator.add, operator.iadd, torch.add, F.dropout)


def _channels(network: nn.Module, node: fx.Node) -> Literal["first", "last"] | None:
    """Where the channels are, told from the layer that gave the tensor; None where none is near."""
    while True:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target).partition(".")[2])
            if isinstance(module, _FIRST):
                return "first"
            if isinstance(module, _LAST):
                return "last"
            if not isinstance(module, _KEEPING):
                return None
        elif node.target not in _KEEPING_FUNCTIONS:
            return None
        if not node.all_input_nodes:
            return None
        node = node.all_input_nodes[-1]  # of a sum the branch that was computed last


def _level(path: Path, name: str) -> int:
    """How many modules lie around a place, by names and by calls (a module may be called far from its own place)."""
    outer = [outer for outer, _ in path[:-1] if outer]
    nested = all(name.startswith(other + ".") for other in outer)
    return name.count(".") if nested else sum(other.count(".") + 1 for other in outer) + name.count(".")


def batch_size(trace: Trace) -> int:
    """How many examples the trace was made with."""
    shape = trace.facts[trace.graph.find_nodes(op="placeholder")[0]].shape
    assert shape is not None
    return shape[0]


def _per_example(one: Fact, two: Fact, batches: tuple[int, int]) -> bool:
    if one.shape is None or two.shape is None or not one.floating or not one.shape:
        return False
    return (one.shape[0], two.shape[0]) == batches and one.shape[1:] == two.shape[1:]


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | str | torch.dtype | torch.device)


def _place(trace: Trace, node: fx.Node) -> str:
    scope = trace.scopes[node][-1][0]
    return f"{scope}.{node.name}" if scope else node.name
