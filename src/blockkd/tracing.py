"""A trace of a network's forward that knows the value behind every node.

``torch.fx`` records what a forward does to its input, symbolically. Here each symbol also carries the real value
that a small example gives, so that code which looks at sizes (``if``, ``len``, ``assert``, unpacking) can be
followed, while the recorded operations still work for any batch size. A submodule whose forward cannot be followed
becomes one opaque call of the module itself.
"""

import operator
import random
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

ROOT = "network"
_FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "arange", "eye", "linspace")

# The way to a module call: from the network inwards, each module's name and which of its calls there it is.
Path = tuple[tuple[str, int], ...]
# Finds a node again in another trace of the same network.
Key = tuple[Literal["output"], Path] | tuple[Literal["inside"], Path, str, int]


class TraceError(Exception):
    """The forward does something that a recorded graph cannot repeat; the message says what."""


@dataclass(frozen=True)
class Fact:
    """What the example gave at a node: a tensor's shape, or a value that is not a tensor."""

    shape: torch.Size | None
    floating: bool
    value: Any = None
    holds_tensors: bool = False


@dataclass
class Trace:
    """A recorded forward.

    Attributes:
        graph: the operations in the order in which they ran.
        facts: what the example gave at each node.
        overwritten: nodes whose tensor a later operation changes in place.
        outputs: the module calls whose result is this node, innermost first.
        scopes: the module call inside which a node was recorded.
        opaque: modules that could not be followed, with the reason.
        fixed: the code decided something by sizes of the example, or turned them into plain numbers; the graph holds
            for its resolution only.
        checkpointed: the modules in whose own forward gradient checkpointing was on, which a graph does not keep.
    """

    graph: fx.Graph
    facts: dict[fx.Node, Fact]
    overwritten: set[fx.Node]
    outputs: dict[fx.Node, list[Path]]
    scopes: dict[fx.Node, Path]
    opaque: dict[str, str] = field(default_factory=dict)
    fixed: bool = False
    checkpointed: set[str] = field(default_factory=set)

    def key(self, node: fx.Node) -> Key:
        """A name for the node that another trace of the same network, opened further or less far, also has.

        The outermost module call that returns it where there is one; else the place inside its scope.
        """
        paths = self.outputs.get(node, [])
        if paths:
            return ("output", paths[-1])
        scope = self.scopes[node]
        siblings = [
            other
            for other in self.graph.nodes
            if other.op == node.op and other.target == node.target and self.scopes.get(other) == scope
        ]
        return ("inside", scope, str(node.target), siblings.index(node))

    def find(self, key: Key) -> fx.Node | None:
        """The node with this ``key``, or None."""
        if key[0] == "output":
            return next((node for node, paths in self.outputs.items() if key[1] in paths), None)
        recorded = (node for node in self.graph.nodes if node in self.scopes)
        return next((node for node in recorded if self.key(node) == key), None)


def trace(network: nn.Module, example: Tensor, opened: Collection[str] | None = None) -> Trace:
    """Record ``network(example)`` in the mode (training or evaluation) in which the network is.

    Args:
        network: any module that maps one tensor to one tensor.
        example: input ``(B, ...)`` on the network's device.
        opened: names of the submodules to look into; all others are single calls of the module itself.
            By default everything is opened down to the layers of ``torch.nn``.

    Raises:
        TraceError: the network's own forward (or that of an ``opened`` submodule) cannot be followed.
    """
    opaque: dict[str, str] = {}
    closed: set[type[nn.Module]] = set()
    while True:
        tracer = _Tracer(example, opened, closed)
        try:
            with torch.enable_grad(), torch.autocast(example.device.type, torch.bfloat16), tracer.factories():
                recorded = tracer.record(network)
        except Exception as error:  # a network's own code runs here, and may raise anything
            culprit = tracer.innermost()
            module = network.get_submodule(culprit)
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            if culprit == "" or opened is not None:
                where = f"{type(module).__name__}.forward" + (f" ({culprit})" if culprit else "")
                raise TraceError(f"{where} cannot be followed: {reason}") from error
            opaque[culprit] = reason
            closed.add(type(module))
            continue
        recorded.opaque = opaque
        return recorded


@contextmanager
def undisturbed(network: nn.Module, training: bool) -> Iterator[None]:
    """Switch the network to a mode, and afterwards give everything back as it was.

    That is: modes, buffers, random state, and whatever a forward leaves on its modules (some keep a cache of what
    they computed last, which must hold neither symbols nor the example).
    """
    before = [_Attributes(module) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    python_state, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = None if numpy is None else numpy.random.get_state()
    cuda = sorted({p.device.index or 0 for p in network.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=cuda):
            network.train(training)
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        for attributes in before:
            attributes.restore()
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)


class _Attributes:
    """What a module's attributes are, and what the plain dicts and lists among them hold."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.values = module, dict(module.__dict__)
        self.containers = [(value, value.copy()) for value in self.values.values() if type(value) in (dict, list)]

    def restore(self) -> None:
        self.module.__dict__.clear()
        self.module.__dict__.update(self.values)
        for container, content in self.containers:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


class _OneInput(nn.Module):
    """Gives the network exactly one argument, whatever else its forward could take."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


class _Proxy(fx.Proxy):
    """A symbol with the value that the example gave it."""

    value: Any
    tracer: "_Tracer"

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)

    def __bool__(self) -> bool:
        if isinstance(self.value, Tensor):
            raise TraceError("the code branches on the values of a tensor")
        self.tracer.fixed = True
        return bool(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator["_Proxy"]:
        take = operator.getitem
        return iter([self.tracer.create_proxy("call_function", take, (self, i), {}) for i in range(len(self))])

    def __index__(self) -> int:
        if isinstance(self.value, Tensor):
            raise TraceError("the code turns a tensor into a Python number")
        self.tracer.fixed = True
        return int(self.value)

    __int__ = __index__


class _Attribute(_Proxy, fx.proxy.Attribute):
    """``proxy.name``: recorded only when it is used as a value, since it may be a method about to be called."""

    def __init__(self, root: _Proxy, attr: str) -> None:
        self.root, self.attr, self.tracer = root, attr, root.tracer
        self._made: _Proxy | None = None

    def _proxy(self) -> _Proxy:
        if self._made is None:
            self._made = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {})
        return self._made

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        return self._proxy().node

    @property
    def value(self) -> Any:
        return self._proxy().value

    def __call__(self, *args: Any, **kwargs: Any) -> _Proxy:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, example: Tensor, opened: Collection[str] | None, closed: Collection[type[nn.Module]]) -> None:
        super().__init__()
        self.example = example
        self.opened = opened
        self.closed = closed
        self.fixed = False
        self.checkpointed: set[str] = set()
        self.stack: Path = ()
        self.facts: dict[fx.Node, Fact] = {}
        self.outputs: dict[fx.Node, list[Path]] = {}
        self.scopes: dict[fx.Node, Path] = {}
        self.overwritten: set[fx.Node] = set()
        self._calls: Counter[tuple[Path, str]] = Counter()
        self._storages: dict[fx.Node, StorageWeakRef] = {}
        self._evaluating = False
        self._random = _random_state()

    def record(self, network: nn.Module) -> Trace:
        """Trace ``network`` from its one input to its one output."""
        graph = self.trace(_OneInput(network))
        for node in reversed(graph.nodes):
            if not node.users and node.target in (operator.getitem, getattr):
                graph.erase_node(node)  # what was taken apart and not used would keep the whole alive
        found = self.facts, self.overwritten, self.outputs, self.scopes
        return Trace(graph, *found, {}, self.fixed, self.checkpointed)

    @contextmanager
    def factories(self) -> Iterator[None]:
        """Let functions that make tensors take symbols for sizes, which torch itself does not hand on to fx."""

        def recorded(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                found: list[_Proxy] = []
                fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, _Proxy) else None)
                known = self._evaluating or not found
                return (
                    function(*args, **kwargs) if known else self.create_proxy("call_function", function, args, kwargs)
                )

            return call

        originals = {name: getattr(torch, name) for name in _FACTORIES}
        try:
            for name, function in originals.items():
                setattr(torch, name, recorded(function))
            yield
        finally:
            for name, function in originals.items():
                setattr(torch, name, function)

    def innermost(self) -> str:
        """The module in whose forward the tracer stopped, by its name inside the network."""
        return self.stack[-1][0] if self.stack else ""

    # What fx asks of a tracer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        name = _inside(module_qualified_name)
        if name == "":
            return False
        if self.opened is not None:
            return name not in self.opened
        if isinstance(m, nn.TransformerEncoder | nn.TransformerDecoder):
            return type(m) in self.closed
        return super().is_leaf_module(m, module_qualified_name) or type(m) in self.closed

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        name, outer = _inside(self.path_of_module(m)), self.stack
        path = (*outer, (name, self._calls[outer, name]))
        self._calls[outer, name] += 1
        if not self.is_leaf_module(m, self.path_of_module(m)):
            self.stack = path  # on an exception it stays so, and tells where it happened
        result = super().call_module(m, forward, args, kwargs)
        self.stack = outer
        if isinstance(result, _Proxy) and type(result.value) in (list, tuple):
            return type(result.value)(result)  # of symbols, so that code which asks for a list finds one
        if isinstance(result, _Proxy) and name:
            self.outputs.setdefault(result.node, []).append(path)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            raise TraceError("forward makes a tensor that does not come from its input; register it as a buffer")
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> _Proxy:
        if not torch.is_autocast_enabled(self.example.device.type) or not torch.is_grad_enabled():
            raise TraceError("forward switches autocast or gradients on or off, which a graph does not keep")
        if _random_state() != self._random:
            raise TraceError("forward draws random numbers outside of its modules and tensor operations")
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            self.checkpointed.add(self.innermost())
        value = self._evaluate(kind, target, args, kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        assert isinstance(proxy, _Proxy)
        proxy.value = value
        self.facts[proxy.node] = _fact(value)
        self.scopes[proxy.node] = self.stack
        if isinstance(value, Tensor):
            self._storages[proxy.node] = StorageWeakRef(value.untyped_storage())
        return proxy

    # The values beside the symbols

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.example
        if kind == "get_attr":
            module, _, name = target.rpartition(".")
            return self.root.get_submodule(module).__dict__.get(name, _registered(self.root, module, name))
        args, kwargs = _values(args), _values(kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        versions = [t._version for t in tensors]
        self._evaluating = True
        try:
            # Both are on around the code itself, so that code which switches them off is noticed.
            with torch.no_grad(), torch.autocast(self.example.device.type, enabled=False):
                if kind == "call_module":
                    value = self.root.get_submodule(target)(*args, **kwargs)
                elif kind == "call_method":
                    value = getattr(args[0], target)(*args[1:], **kwargs)
                else:
                    value = target(*args, **kwargs)
        finally:
            self._evaluating = False
        self._random = _random_state()
        for tensor, version in zip(tensors, versions, strict=True):
            if tensor._version != version:
                self._note_overwritten(tensor)
        return value

    def _note_overwritten(self, tensor: Tensor) -> None:
        storage = StorageWeakRef(tensor.untyped_storage())
        self.overwritten.update(node for node, other in self._storages.items() if other.cdata == storage.cdata)


def _registered(root: nn.Module, module: str, name: str) -> Any:
    owner = root.get_submodule(module)
    return owner._parameters.get(name, owner._buffers.get(name))


def _inside(qualified: str) -> str:
    return qualified.removeprefix(ROOT).removeprefix(".")


def _values(args: Any) -> Any:
    # Not fx's own map: its lists are immutable, and a module may well fill the list that it is given.
    if isinstance(args, _Proxy):
        return args.value
    if isinstance(args, tuple):
        items = [_values(item) for item in args]
        return type(args)(*items) if hasattr(args, "_fields") else tuple(items)
    if isinstance(args, list):
        return [_values(item) for item in args]
    if isinstance(args, dict):
        return {name: _values(item) for name, item in args.items()}
    if isinstance(args, slice):
        return slice(_values(args.start), _values(args.stop), _values(args.step))
    return args


def _fact(value: Any) -> Fact:
    if isinstance(value, Tensor):
        return Fact(value.shape, value.is_floating_point())
    holds = False

    def look(item: Any) -> Any:
        nonlocal holds
        holds = holds or isinstance(item, Tensor)
        return item

    fx.node.map_aggregate(value, look)
    return Fact(None, False, None if holds else value, holds)


def _random_state() -> tuple[bytes, Any, Any]:
    numpy = sys.modules.get("numpy")
    other = None if numpy is None else numpy.random.get_state()[1].tobytes()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), other
