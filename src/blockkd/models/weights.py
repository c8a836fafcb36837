"""Checkpoints from anywhere: read without running code, and loaded only where they fit."""

import argparse
import mmap
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from blockkd.models.zoo import NETWORKS

WRAPPERS = ("model", "state_dict")
PARALLEL_PREFIX = "module."
BATCH_COUNTER = "num_batches_tracked"
DEEPEST_WRAPPING = 5
LONGEST_NAME = 80  # of a tensor, in a message

# Kinds of number that stand for themselves. A network's own in any of them can take those of the others' precision.
_PLAIN = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)

Fingerprint = frozenset[tuple[str, tuple[int, ...]]]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, by name, onto the CPU. No code in the file runs.

    A ``.safetensors`` file is read as such, every other by ``torch.load(weights_only=True)``. The state dict
    may lie under ``"model"`` or ``"state_dict"``, beside an optimiser's state, counters and the command
    line's options (an ``argparse.Namespace``, as RepDistiller saves it); the prefix ``"module."`` of
    ``DataParallel`` is taken off.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file is damaged, holds objects other than plain data, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file at {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _unwrap(content)
    if not state or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        raise ValueError(
            f"{path} holds no state dict: expected tensors by name, at the top or under "
            f"{' or '.join(map(repr, WRAPPERS))}; got {_describe(content)}"
        )
    if all(name.startswith(PARALLEL_PREFIX) for name in state):
        return {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in state.items()}
    return dict(state)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load the checkpoint at ``path`` into ``network``, every parameter and buffer of it.

    Batch norm's counters of batches may be absent, as in files of before 2018: they say nothing about the
    weights.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file cannot be read as plain weights, or its names or shapes are not the network's;
            the message says what is missing, unexpected and of another shape, and which known network fits
            best.
    """
    state = read_state_dict(path)
    match = compare_weights(network, state)
    if not match.fits:
        raise ValueError(
            f"{path} does not fit {type(network).__name__}: "
            f"{_some(match.missing)} missing from the file; {_some(match.unexpected)} unexpected; "
            f"{_some(match.reshaped)} of another shape or kind. {best_fit(state)}"
        )
    try:
        network.load_state_dict(network.state_dict() | state)
    except RuntimeError as error:  # one that cannot be copied
        raise ValueError(f"{path} does not load into {type(network).__name__}: {error}") from error


@dataclass(frozen=True)
class WeightsMatch:
    """A file's tensors against a network's.

    Attributes:
        fitting: names that both have, with the same shape.
        missing: names that only the network has.
        unexpected: names that only the file has.
        reshaped: names that both have, each with its two shapes, or with the two kinds of number where the network
            computes with what the file has no plain numbers for.
    """

    fitting: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    @property
    def fits(self) -> bool:
        """Whether the file can be loaded into the network."""
        return not (self.missing or self.unexpected or self.reshaped)


def compare_weights(network: nn.Module, state: Mapping[str, Tensor]) -> WeightsMatch:
    """What of ``state`` fits ``network`` by name and shape; batch norm's counters may be absent from ``state``."""
    own = network.state_dict()
    match = WeightsMatch([], [], [name for name in state if name not in own], [])
    for name, tensor in own.items():
        if name not in state:
            if not name.endswith(BATCH_COUNTER):
                match.missing.append(name)
        elif state[name].shape != tensor.shape:
            match.reshaped.append(f"{name} (file {_size(state[name])}, network {_size(tensor)})")
        elif not _can_be_copied(state[name], tensor):
            match.reshaped.append(f"{name} (file {_kind(state[name])}, network {_kind(tensor)})")
        else:
            match.fitting.append(name)
    return match


def _can_be_copied(found: Tensor, own: Tensor) -> bool:
    """Whether copying keeps the values: packed or quantised ones would become weights that mean nothing."""
    if found.layout != torch.strided or found.is_quantized or found.is_meta or found.dtype not in _PLAIN:
        return False
    return found.is_floating_point() or not own.is_floating_point()


def _kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" ({str(tensor.layout).removeprefix('torch.')})"
    return f"{str(tensor.dtype).removeprefix('torch.')}{layout}{' without values' if tensor.is_meta else ''}"


def best_fit(state: Mapping[str, Tensor]) -> str:
    """One sentence that says which known network is most like ``state``."""
    name, agreeing, total = nearest_network(state)
    if 2 * agreeing < total:
        return "No known network is like it."
    return f"The known network nearest to the file is {name}: {agreeing} of its {total} tensors agree."


def nearest_network(state: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """The network of ``NETWORKS`` whose names and shapes are most like those of ``state``.

    Returns:
        Its name, how many of its tensors ``state`` has with the same shape, and how many it has in all.
        Likeness is the size of the intersection over that of the union, so a deeper network of the same
        family does not win.
    """
    found = _fingerprint(state)
    known = _known_fingerprints()
    best = max(known, key=lambda name: len(found & known[name]) / len(found | known[name]))
    return best, len(found & known[best]), len(known[best])


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return tensors


def _read_pickle(path: Path) -> Any:
    # A Namespace only holds values, each of which is checked in its turn.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            _check_grows(path)
            return torch.load(file, map_location="cpu", weights_only=True)
        except _PackedError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the unpickler, in any way
            foreign = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
            reason = f"it calls {foreign[1]}" if foreign else "it is damaged or holds more than tensors"
            raise ValueError(
                f"{path} does not load as plain weights ({reason}), and nothing else is loaded because it "
                "could run code: save the bare state_dict() of the network, best as .safetensors"
            ) from error


class _PackedError(ValueError):
    """A file would take more memory than it takes on disk."""


def _check_grows(path: Path) -> None:
    """Raise _PackedError where a file would be more in memory than on disk; torch.save packs nothing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # The one call that torch lets plain weights make and that fills memory at the file's word.
        if content.find(b"bytearray") >= 0:
            raise _PackedError(
                f"{path} calls bytearray, which no state dict needs: save the bare state_dict() of the network, best "
                "as .safetensors"
            )
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _PackedError(
            f"{path} is a compressed archive of {size:,} bytes, and torch.save compresses nothing: unpack it and save "
            "the state dict anew, best as .safetensors"
        )


def _unwrap(content: Any) -> Any:
    for _ in range(DEEPEST_WRAPPING):  # a mapping can hold itself
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return None


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with {_some([str(key) for key in content])}"
    return f"an object of type {type(content).__name__}"


def _fingerprint(state: Mapping[str, Tensor]) -> Fingerprint:
    return frozenset((name, tuple(tensor.shape)) for name, tensor in state.items() if not name.endswith(BATCH_COUNTER))


@cache
def _known_fingerprints() -> Mapping[str, Fingerprint]:
    with torch.device("meta"):
        return {name: _fingerprint(build().state_dict()) for name, build in NETWORKS.items()}


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str], shown: int = 3) -> str:
    """The number of names, and the first few: ``5 (a, b, c, ...)``."""
    if not names:
        return "0"
    cut = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in names[:shown]]
    return f"{len(names)} ({', '.join(cut)}{', ...' if len(names) > shown else ''})"
