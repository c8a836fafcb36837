"""Where a network can be cut, and where it should be.

A cut point is a place in the forward where one tensor alone carries everything that is still needed. Values that
are not tensors (sizes, dtypes, devices) do not hinder a cut when they can be read off that tensor again, nor do
tensors that depend on parameters only, since the later block can compute them itself.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log2
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from blockkd.features import Feature, feature_of
from blockkd.tracing import Fact, Key, Path, Trace

# The convolution(s) of a stem are no stage: a stretch of constant resolution with at most so many layers, when they
# are less than this share of the network's layers and of its parameters ...
STEM_LAYERS, STEM_SHARE = 3, 0.06
# ... and as few layers behind the pooling belong to the classifier, when they are less than this share of the layers.
HEAD_SHARE = 0.25
FEW_MODULES = 3
# Networks whose resolution never changes are cut into this many blocks of equal depth, as many as the stages that
# convolutional networks for images have.
DEFAULT_BLOCKS = 4


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


def stage_ends(points: Sequence[CutPoint], total: Depth) -> list[CutPoint]:
    """The last cut point of each stage; one only where the resolution never changes.

    A stage is a stretch of constant resolution that is more than a stem. It is looked for among the outputs of
    composite modules where there are some: inside of blocks tensors take shapes of their own. Its
    end is the last one of the outermost level, or else the last cut point before the resolution changes. Maps and
    tokens are preferred to vectors: those come after pooling, so in the classifier.

    Args:
        points: all cut points.
        total: the layers and weights of the whole network.
    """
    spatial = [point for point in points if point.feature.grid] or list(points)
    modules = [point for point in spatial if point.composite]
    # Too few of them where a network is written as one long list of layers.
    runs = _runs(modules if len({point.depth for point in modules}) >= FEW_MODULES else spatial)
    ends: list[CutPoint] = []
    for run in _filled(runs, spatial):
        start = ends[-1].depth if ends else 0
        end = _end(run, start)
        layers = end.depth - start
        weights = end.weights - (ends[-1].weights if ends else 0)
        share = max(layers / total.layers, weights / total.weights)
        stem = layers <= STEM_LAYERS and share < STEM_SHARE
        few = layers <= STEM_LAYERS and layers < HEAD_SHARE * total.layers
        pooled = bool(ends) and end.feature.area == 1 and few
        if layers > 0 and not stem and not pooled:
            ends.append(end)
    return ends


def _runs(points: Sequence[CutPoint]) -> list[list[CutPoint]]:
    """Stretches of about the same number of places (a class token more or less does not count)."""
    runs: list[list[CutPoint]] = []
    for point in points:
        if runs and abs(log2(runs[-1][-1].feature.area / point.feature.area)) < 0.5:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _filled(runs: Sequence[Sequence[CutPoint]], points: Sequence[CutPoint]) -> list[list[CutPoint]]:
    """Each run with all points of its resolution up to where the next one begins."""
    places = {point.key: i for i, point in enumerate(points)}
    starts = [places[run[0].key] for run in runs] + [len(points)]
    return [
        [point for point in points[start:end] if point.feature.area == run[-1].feature.area or point in run]
        for run, start, end in zip(runs, starts, starts[1:], strict=False)
    ]


def choose(points: Sequence[CutPoint], ends: Sequence[CutPoint], n: int | None) -> list[CutPoint]:
    """``n`` cut points, the last at the end of the last stage.

    By default one per stage, or ``DEFAULT_BLOCKS`` of equal depth where there is but one. Fewer than there are
    stages: the last n. More: the longest stages are cut further, by equal depth.

    Args:
        points: all cut points.
        ends: those that end a stage.
        n: how many to choose.

    Raises:
        CutError: there are not so many.
    """
    if not ends:
        raise CutError("it has no cut point between its first and its last layer")
    if n is None:
        if len(ends) > 1:
            return list(ends)
        within = [point for point in points if point.depth <= ends[0].depth]
        n = min(DEFAULT_BLOCKS, len({point.depth for point in within}))
    if n <= len(ends):
        return list(ends[len(ends) - n :])
    shares = _shares(ends, n)
    chosen: list[CutPoint] = []
    for i, (end, share) in enumerate(zip(ends, shares, strict=True)):
        start = ends[i - 1].depth if i else 0
        chosen += _equal_depth(points, start, end, share)
    if len(chosen) != n:
        raise CutError(f"it can be cut into {len(chosen)} blocks at most, not {n}")
    return chosen


def align(teacher: Sequence[CutPoint], student: Sequence[CutPoint], n: int) -> tuple[list[CutPoint], list[CutPoint]]:
    """Choose n of each network's stages so that those paired lie at resolutions as alike as possible.

    The last stages are always paired; of equally good choices the one with the latest stages is taken.
    """

    def subsets(ends: Sequence[CutPoint]) -> list[list[CutPoint]]:
        heads = combinations(range(len(ends) - 2, -1, -1), n - 1)
        return [[ends[i] for i in reversed(head)] + [ends[-1]] for head in heads]

    def apart(pair: tuple[list[CutPoint], list[CutPoint]]) -> float:
        return sum(abs(log2(t.feature.area / s.feature.area)) for t, s in zip(*pair, strict=True))

    return min(((t, s) for t in subsets(teacher) for s in subsets(student)), key=apart)


def counterparts(named: Sequence[CutPoint], ends: Sequence[CutPoint]) -> list[CutPoint]:
    """Of one network's stages those whose resolutions are as alike as possible to the ``named`` cuts of the other."""
    latest_first = list(ends)[::-1]  # so that they win among equals
    choices = list(combinations(latest_first, len(named)))

    def apart(choice: tuple[CutPoint, ...]) -> float:
        pairs = zip(named, reversed(choice), strict=True)
        return sum(abs(log2(a.feature.area / b.feature.area)) for a, b in pairs)

    best = min(choices, key=apart)
    return list(best[::-1])


def _end(run: Sequence[CutPoint], before: int) -> CutPoint:
    halfway = before + (run[-1].depth - before) / 2
    modules = [point for point in run if point.composite and point.depth >= halfway]
    if not modules:
        return run[-1]
    level = min(point.level for point in modules)
    last = [point for point in modules if point.level == level][-1]
    # A residual sum in the network's own forward may come behind the module of its branch.
    return [last, *(point for point in run if point.level <= level and point.depth > last.depth)][-1]


def _shares(ends: Sequence[CutPoint], n: int) -> list[int]:
    depths = [end.depth - (ends[i - 1].depth if i else 0) for i, end in enumerate(ends)]
    shares = [1] * len(ends)
    while sum(shares) < n:
        longest = max(range(len(ends)), key=lambda i: depths[i] / shares[i])
        shares[longest] += 1
    return shares


def _equal_depth(points: Sequence[CutPoint], start: int, end: CutPoint, parts: int) -> list[CutPoint]:
    """Cut the stretch from depth ``start`` to ``end`` into ``parts``, at the outermost level that allows it."""
    step = (end.depth - start) / parts
    wanted = [start + step * j for j in range(1, parts)]
    inner = [point for point in points if start < point.depth < end.depth]
    picks: list[CutPoint] = []
    for rank in sorted({_rank(point) for point in inner}):
        allowed = {point.depth: point for point in sorted(inner, key=_rank, reverse=True) if _rank(point) <= rank}
        picks = _nearest([allowed[depth] for depth in sorted(allowed)], wanted)
        if picks and all(abs(point.depth - place) <= step / 2 for point, place in zip(picks, wanted, strict=True)):
            break
    return [*picks, end]


def _rank(point: CutPoint) -> tuple[bool, int]:
    """Outputs of composite modules come first, the outermost of them before others."""
    return (not point.composite, point.level)


def _nearest(points: Sequence[CutPoint], wanted: Sequence[float]) -> list[CutPoint]:
    """For each wanted depth the nearest point, all different and in order; none when there are too few."""
    picks: list[CutPoint] = []
    first = 0
    for j, place in enumerate(wanted):
        last = len(points) - (len(wanted) - 1 - j)
        if first >= last:
            return []
        best = min(range(first, last), key=lambda i: abs(points[i].depth - place))
        picks.append(points[best])
        first = best + 1
    return picks


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
