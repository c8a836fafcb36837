"""The student, alone: its parameters and buffers under their own names, as safetensors."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from blockkd.distiller import Distiller
from blockkd.durable import write_durably
from blockkd.models.weights import load_weights


def save_student(source: nn.Module, path: str | Path) -> Path:
    """Write a student as safetensors, with exactly its own parameter and buffer names.

    The file is written under a temporary name, flushed to the disk and renamed: no half-written file ever has the name.

    Args:
        source: a Distiller, a DistillationModule, or the network itself.
        path: where to write; the folder must exist.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    # A copy of each tensor: safetensors refuses names that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _states(source).items()}
    write_durably(path, save(tensors, metadata={"format": "pt"}))
    return path


def load_student(network: nn.Module, path: str | Path) -> nn.Module:
    """Read the weights that ``save_student`` wrote; every name and shape must match.

    Args:
        network: of the architecture that was saved; changed in place.
        path: the file.

    Returns:
        The network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds the weights of another network.
    """
    load_weights(network, path)
    return network


def _states(source: nn.Module) -> dict[str, Tensor]:
    inner = getattr(source, "distiller", source)  # a DistillationModule holds its Distiller under this name
    network = inner.student if isinstance(inner, Distiller) else source
    states: dict[str, Tensor] = network.state_dict()
    return states
