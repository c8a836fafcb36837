"""A recorded forward, cut into pieces that each run from one tensor."""

import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from blockkd.cuts import CutError, CutPoint, PerExample, batch_size, classify, depths, express, lone_carriers
from blockkd.tracing import ROOT, Key, Trace

_serial = count()


@dataclass(frozen=True)
class Segment:
    """One piece: a graph with one input, whose targets are names inside the network.

    Attributes:
        graph: the operations.
        fixed: it contains sizes that were measured on the example.
    """

    graph: fx.Graph
    fixed: bool

    def targets(self) -> set[str]:
        """The submodules, parameters and buffers that it uses."""
        return {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}

    def function(self) -> Callable[[nn.Module, Tensor], Tensor]:
        """Compile to ``function(network, x)``."""
        code = self.graph.python_code("self")
        filename = f"<blockkd segment {next(_serial)}>"
        linecache.cache[filename] = (len(code.src), None, code.src.splitlines(True), filename)
        namespace = dict(code.globals)
        exec(compile(code.src, filename, "exec"), namespace)
        function: Callable[[nn.Module, Tensor], Tensor] = namespace["forward"]
        return function


def split(network: nn.Module, one: Trace, two: Trace, points: Sequence[CutPoint]) -> list[Segment]:
    """Cut after these points.

    Args:
        network: the network that was traced.
        one, two: its traces with two batch sizes.
        points: n cut points in order, perhaps found in another mode of the network.

    Returns:
        n + 1 segments; the last is the classifier.

    Raises:
        CutError: a cut point is not there in this mode of the network, or is none, or has other layers before it.
    """
    carriers, depth = set(lone_carriers(one, two)), depths(network, one)
    cuts = []
    for point in points:
        node = one.find(point.key)
        if node is None or node not in carriers:
            raise CutError(f"there is no cut at {_words(point.key)}")
        shape = one.facts[node].shape
        assert shape is not None
        if depth[node] != (point.depth, point.weights) or tuple(shape[1:]) != point.feature.shape:
            raise CutError(f"{_words(point.key)} lies at another place of the network")
        cuts.append(node)
    nodes = list(one.graph.nodes)
    places = [nodes.index(cut) for cut in cuts]
    if places != sorted(set(places)):
        raise CutError("the cuts are reached in another order")
    values = _Values(one, two)
    starts = [0, *(place + 1 for place in places)]
    ends = [*(place + 1 for place in places), len(nodes)]
    entries = [None, *cuts]
    return [_segment(values, nodes[start:end], entry) for start, end, entry in zip(starts, ends, entries, strict=True)]


class _Values:
    """What is known of the nodes of a trace when one of them is needed in another segment."""

    def __init__(self, one: Trace, two: Trace) -> None:
        self.kinds = classify(one)
        self.batches = (batch_size(one), batch_size(two))
        twins = zip(one.graph.nodes, two.graph.nodes, strict=True)
        self.pairs = {a: (one.facts[a].value, two.facts[b].value) for a, b in twins if a in one.facts}

    def expressed(self, node: fx.Node) -> Any:
        return express(*self.pairs[node], *self.batches)


def _segment(values: _Values, nodes: Sequence[fx.Node], entry: fx.Node | None) -> Segment:
    graph = fx.Graph()
    x = graph.placeholder("x")
    copies: dict[fx.Node, Any] = {} if entry is None else {entry: x}
    fixed = False

    def copied(node: fx.Node) -> Any:
        # Needed here, computed in an earlier segment: made again from parameters, or read off this segment's input.
        nonlocal fixed
        if node not in copies:
            if values.kinds[node] == "size":
                value = values.expressed(node)
                fixed = fixed or _holds_number(value)
                copies[node] = _written(graph, x, value)
            elif values.kinds[node] == "free":
                copies[node] = copy(node)
            else:
                raise CutError(f"{node.name} is needed later as well")
        return copies[node]

    def copy(node: fx.Node) -> fx.Node:
        new = graph.node_copy(node, copied)
        if node.op in ("call_module", "get_attr"):
            new.target = str(node.target).removeprefix(ROOT + ".")
        return new

    for node in nodes:
        if node.op == "placeholder":
            copies[node] = x
        elif node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], copied))
        else:
            copies[node] = copy(node)
    if nodes[-1].op != "output":
        graph.output(copies[nodes[-1]])
    return Segment(graph, fixed)


def _written(graph: fx.Graph, x: fx.Node, value: Any) -> Any:
    if isinstance(value, PerExample):
        batch = graph.call_method("size", (x, 0))
        return batch if value.factor == 1 else graph.call_function(_times, (batch, value.factor))
    if isinstance(value, tuple):
        return tuple(_written(graph, x, item) for item in value)
    if isinstance(value, torch.device):
        return graph.call_function(getattr, (x, "device"))
    if isinstance(value, torch.dtype):
        return graph.call_function(getattr, (x, "dtype"))
    return value


def _times(size: int, factor: int) -> int:
    return size * factor


def _holds_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_holds_number, value))
    return isinstance(value, int) and not isinstance(value, bool)


def _words(key: Key) -> str:
    place = key[1][-1][0] or "forward"
    return f"the output of {place!r}" if key[0] == "output" else f"{key[2]} in {place!r}"
