"""A training step as a file, to be taken again: the batch, the random numbers, and all that learns.

The file is a safetensors file: it holds tensors and short texts, and nothing in it can run.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from blockkd.distiller import Distiller
from blockkd.divergence import Step
from blockkd.durable import write_durably

KIND = "blockkd training step"


class StepFileError(ValueError):
    """The file holds no step, or the step of another method."""


def save_step(path: Path, step: Step, distiller: Distiller, said: str) -> None:
    """Write a step down, with the student and the method's own modules as they are.

    Args:
        path: of the file; its folder must exist.
        step: the step.
        distiller: that took it.
        said: what was found of it, in words.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = dict(_flat("inputs", step.inputs))
    tensors["targets"] = step.targets
    tensors |= {f"context/{name}": tensor for name, tensor in step.context.items()}
    tensors |= {f"terms/{name}": tensor for name, tensor in step.terms.items()}
    tensors |= {f"randomness/{number}": state for number, state in enumerate(step.randomness)}
    tensors |= {f"state/{name}": tensor for name, tensor in distiller.state_dict().items()}
    about = {"kind": KIND, "epoch": str(step.epoch), "step": str(step.number), "said": said, "format": "pt"}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_durably(path, save(copies, metadata=about | {"order": json.dumps([*step.terms])}))


def load_step(path: Path, distiller: Distiller) -> tuple[Step, str]:
    """Read a step, and put student and method where they were.

    Args:
        path: of the file.
        distiller: of the method that took the step, over the same networks; changed in place.

    Returns:
        The step, on the CPU, and what was said of it.

    Raises:
        StepFileError: the file is damaged, holds no step, or one of another method.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StepFileError(f"cannot read {path}: {error}") from error
    if about.get("kind") != KIND or "targets" not in tensors:
        raise StepFileError(f"{path} holds no training step")
    try:
        distiller.load_state_dict(_named(tensors, "state"))
        step = Step(
            epoch=int(about["epoch"]),
            number=int(about["step"]),
            inputs=_inputs(tensors),
            targets=tensors["targets"],
            context=_named(tensors, "context"),
            randomness=tuple(state for _, state in sorted(_named(tensors, "randomness").items())),
            terms={name: tensors[f"terms/{name}"] for name in json.loads(about["order"])},
        )
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StepFileError(f"the step in {path} is not one of this recipe's method: {reason}") from error
    return step, about.get("said", "")


def _flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """A tensor under its name, or tensors by name under theirs."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"{name}/{key}", part
    else:
        yield name, value


def _named(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{group}/")}


def _inputs(tensors: Mapping[str, Tensor]) -> Any:
    return tensors["inputs"] if "inputs" in tensors else _named(tensors, "inputs")
