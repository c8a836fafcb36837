"""What a device has room for, and what it gains from."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.optim import Optimizer

from blockkd.distiller import Distiller, Losses

Mode = Literal["off", "default", "reduce-overhead"]
Compile = Literal["auto"] | Mode
LONG = 5000  # steps, from which on a minute of compiling is nothing


def has_room(nbytes: int, device: torch.device) -> bool:
    """Whether so many bytes, kept there for good, leave the device half of what it has free. The CPU takes all.

    What is in the machine's memory stays where it is when the device is the CPU.
    """
    if device.type == "cpu":
        return True
    return device.type == "cuda" and nbytes < torch.cuda.mem_get_info(device)[0] // 2


def fused(optimizer: Optimizer, device_type: str = "cuda") -> Optimizer:
    """The same optimizer with the update of all parameters in one kernel, if it has that and nothing speaks against it.

    That is: all parameters are on such a device, the optimizer takes ``fused``, and neither ``fused`` nor ``foreach``
    was asked for or refused. It must not have taken a step yet.
    """
    settings, kind = optimizer.defaults, type(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    asked = any(settings.get(name) is not None for name in ("fused", "foreach"))
    there = all(p.device.type == device_type and p.is_floating_point() for p in parameters)
    if "fused" not in settings or asked or not there:
        return optimizer
    taken = inspect.signature(kind).parameters  # ``defaults`` can hold more, such as AdamW's decoupled_weight_decay
    groups = [{**group, "fused": True} for group in optimizer.param_groups]
    return kind(groups, **{name: value for name, value in settings.items() if name in taken} | {"fused": True})


def is_gated(optimizer: Optimizer) -> bool:
    """Whether the optimizer skips its step, on the device itself, when its ``found_inf`` is up."""
    return all(bool(group.get("fused")) for group in optimizer.param_groups)


def best_compile(device: torch.device, steps: int) -> Mode:
    """What to compile with where nobody asked for anything.

    On the CPU that is nothing: it made a step of KD 2 % and one of Block-KD 5 % faster (ResNet32x4 → ResNet8x4, batch
    64) and took 40 seconds. On a GPU the networks of CIFAR wait for their kernels to be launched, which CUDA graphs
    end; a run has to be long enough for the compiler.
    """
    return "reduce-overhead" if device.type == "cuda" and steps >= LONG else "off"


def compiled(distiller: Distiller, mode: Mode, or_not: bool = False) -> Callable[..., Losses]:
    """The distiller as a function ``(inputs, targets, ...) → Losses``, compiled whole, or as it is.

    Args:
        distiller: the method; one that does not compile stays as it is.
        mode: of ``torch.compile``.
        or_not: where compiling fails, warn and go on without it, instead of raising what torch raises.
    """
    if mode == "off" or not distiller.compiles:
        return distiller
    compute: Callable[..., Losses] = torch.compile(distiller.forward, mode=mode, fullgraph=True, dynamic=False)

    def step(*args: Any, **kwargs: Any) -> Losses:
        nonlocal compute
        torch.compiler.cudagraph_mark_step_begin()  # what the last step gave may be overwritten
        try:
            return compute(*args, **kwargs)
        except TorchDynamoException as error:
            if not or_not:
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"{type(distiller).__name__} runs without being compiled: {reason}", stacklevel=2)
            compute = distiller
            return distiller(*args, **kwargs)

    return step
