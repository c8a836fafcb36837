"""Finds the step in which numbers stop being finite, before the optimizer takes it, and says where they did."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_map

from blockkd.distiller import Distiller
from blockkd.ranks import world_size

LAG = 2  # steps by which the host is behind a GPU when it looks: enough that the GPU always has work


@dataclass(frozen=True)
class Step:
    """A training step, which can be taken again.

    Attributes:
        epoch: counted from 0.
        number: of optimizer steps taken before it.
        inputs: a batch ``(B, ...)``.
        targets: labels ``(B,)``.
        context: what else the method is given.
        randomness: the states of the generators before the step, of the CPU and, if it is used, of the GPU.
        terms: the loss terms that it gave, where it has been taken.
    """

    epoch: int
    number: int
    inputs: Any
    targets: Tensor
    context: Mapping[str, Tensor] = field(default_factory=dict)
    randomness: tuple[Tensor, ...] = ()
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def on(self, device: torch.device) -> "Step":
        """The same step with its batch on a device."""
        inputs, targets, context = tree_map(lambda leaf: leaf.to(device), (self.inputs, self.targets, self.context))
        return replace(self, inputs=inputs, targets=targets, context=context)


class DivergedError(ArithmeticError):
    """Numbers are no longer finite; raised before the optimizer step.

    Attributes:
        step: the step, to be taken again; None where it is not known in this process.
    """

    def __init__(self, message: str, step: Step | None = None) -> None:
        super().__init__(message)
        self.step = step


class FiniteWatch:
    """Keeps a flag on the device that goes up with the first value that is not finite, and stays up.

    An optimizer that reads the flag as its ``found_inf`` (torch's fused ones do) takes no step from then on. Where it
    does, the host need not wait for each step: it looks at the flag of ``LAG`` steps ago. On the CPU, and for other
    optimizers, it looks at once.

    Args:
        device: where the values are.
        gated: whether the optimizer reads the flag.
    """

    def __init__(self, device: torch.device, gated: bool) -> None:
        self.lag = LAG if gated and device.type == "cuda" else 0
        self.flag = torch.zeros((), device=device)
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Step]] = deque()

    def look(self, values: Float[Tensor, "..."]) -> None:
        """Raise the flag if one of these is NaN or infinite."""
        self.flag = torch.maximum(self.flag, (~values.detach().isfinite().all()).to(self.flag.dtype))

    def look_at_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Raise the flag if one of the gradients is NaN or infinite, or all together are too large for their type."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.look(get_total_norm(gradients))

    def first_bad(self, step: Step) -> Step | None:
        """The first step with the flag up, among those up to ``step`` that are known by now."""
        if not self.lag:
            return step if bool(self.flag) else None
        copied = torch.empty((), pin_memory=True).copy_(self.flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((copied, event, step))
        return self._first_pending(self.lag)

    def drain(self) -> Step | None:
        """The first step with the flag up, of all so far; waits for the device."""
        return self._first_pending(0)

    def _first_pending(self, left: int) -> Step | None:
        while len(self._pending) > left:
            flag, event, step = self._pending.popleft()
            if event is not None:
                event.synchronize()
            if bool(flag):
                return step
        return None


def randomness(device: torch.device) -> tuple[Tensor, ...]:
    """The states of torch's generators, of the CPU and of the device if it is a GPU."""
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


@dataclass(frozen=True)
class Diagnosis:
    """What a step that diverged looks like when it is taken again.

    Attributes:
        terms: each loss term's value, of the first time where it is known.
        again: each loss term's value when the step was taken again.
        modules: names of the modules whose output was not finite, the first first.
        gradients: names of the parameters whose gradient was not finite.
        weights: names of the parameters and buffers that are not finite themselves.
        inputs: whether the batch itself is finite.
    """

    terms: Mapping[str, float]
    again: Mapping[str, float]
    modules: tuple[str, ...]
    gradients: tuple[str, ...]
    weights: tuple[str, ...]
    inputs: bool

    @property
    def bad_terms(self) -> dict[str, float]:
        """Those terms that are not finite."""
        return {name: value for name, value in self.terms.items() if not math.isfinite(value)}

    @property
    def finite(self) -> bool:
        """Whether nothing is wrong, this time."""
        return all(math.isfinite(value) for value in self.again.values()) and not self.gradients

    def __str__(self) -> str:
        said = [f"{name} is {value}" for name, value in self.bad_terms.items()]
        if not said and self.gradients:
            said.append(f"the losses are finite, but the gradient of {_some(self.gradients)} is not")
        if not self.inputs:
            said.append("the batch itself holds values that are not finite")
        if self.weights:
            said.append(f"{_some(self.weights)} was no longer finite before")
        if self.modules:
            said.append(f"the first module whose output is not finite is {self.modules[0]}")
        elif self.bad_terms:
            said.append("every module's output is finite, so it is the loss that overflows")
        return "; ".join(said)


def diagnose(distiller: Distiller, step: Step) -> Diagnosis:
    """Take the step again, with the same random numbers, and look at everything.

    Leaves gradients behind, and statistics of batch norm that have seen the batch once more.

    Args:
        distiller: as it was in the step; its epoch is set.
        step: the step.
    """
    bad: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        del args
        if not all(_finite(tensor) for tensor in _tensors(output)):
            bad.append(f"{name} ({type(module).__name__})")

    distiller.set_epoch(step.epoch)
    distiller.zero_grad()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_devices(step)))
        for generator, state in zip(("cpu", "cuda"), step.randomness, strict=False):
            (torch.set_rng_state if generator == "cpu" else torch.cuda.set_rng_state)(state)
        for name, module in _named_modules(distiller):
            hook = module.register_forward_hook(partial(look, name))
            stack.callback(hook.remove)
        with torch.enable_grad():
            losses = distiller(step.inputs, step.targets, **step.context)
            losses.total.backward()
    held = [*distiller.state_dict().items()]
    if distiller.teacher is not None:
        held += [(f"teacher.{name}", tensor) for name, tensor in distiller.teacher.state_dict().items()]
    return Diagnosis(
        terms={name: float(term.detach()) for name, term in (step.terms or losses.terms).items()},
        again={name: float(term.detach()) for name, term in losses.terms.items()},
        modules=tuple(bad),
        gradients=tuple(n for n, p in distiller.named_parameters() if p.grad is not None and not _finite(p.grad)),
        weights=tuple(name for name, tensor in held if not _finite(tensor)),
        inputs=all(_finite(tensor) for tensor in _tensors(step.inputs)),
    )


def first_diagnosis(own: Diagnosis) -> str:
    """What is to be said of a step: in several processes, by the first whose batch is bad, or else whose losses are.

    Args:
        own: this process's; all of them call this.
    """
    told: list[tuple[bool, str]] = [(own.inputs, str(own))] * world_size()
    if len(told) == 1:
        return str(own)
    distributed.all_gather_object(told, told[0])
    bad = sorted((inputs, rank, said) for rank, (inputs, said) in enumerate(told) if said)
    return f"in process {bad[0][1]}, {bad[0][2]}" if bad else ""


def _named_modules(distiller: Distiller) -> Iterator[tuple[str, nn.Module]]:
    """All innermost modules that a step may call, student's and connectors' and teacher's."""
    networks = [("", distiller)] if distiller.teacher is None else [("", distiller), ("teacher.", distiller.teacher)]
    for prefix, network in networks:
        for name, module in network.named_modules():
            if name and not any(True for _ in module.children()):
                yield prefix + name, module


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _devices(step: Step) -> list[int]:
    return [torch.cuda.current_device()] if len(step.randomness) > 1 else []


def _some(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
