"""How often an exported file is right, measured by onnxruntime on the run's own images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from blockkd.exporting.calls import IMAGES, Named
from blockkd.exporting.errors import library

BATCH = 64
CALIBRATION = 512  # training images that say in which range activations lie


def session(path: Path, threads: int) -> Any:
    """A file of ONNX, ready to run on the CPU with so many threads."""
    onnxruntime = library("onnxruntime", "running ONNX")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # advice on shapes is no user's business
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_accuracy(path: Path, images: Dataset[Any]) -> float:
    """The share of labelled images, 0 … 1, of which the file finds the label likeliest."""
    runs, right, count = session(path, torch.get_num_threads()), 0, 0
    for pixels, labels in batches(images, range(len(images))):  # type: ignore[arg-type]
        (logits,) = runs.run(None, {IMAGES: pixels.numpy()})
        right += int((torch.from_numpy(logits).argmax(1) == labels).sum())
        count += len(labels)
    return right / count


def calibration(images: Dataset[Any]) -> Iterator[Named]:
    """Some training images, evenly spread, as evaluation sees them."""
    count = len(images)  # type: ignore[arg-type]
    some = range(0, count, max(1, -(-count // CALIBRATION)))
    yield from ({IMAGES: pixels} for pixels, _ in batches(images, some))


def batches(images: Dataset[Any], indices: range) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``(B, C, H, W)`` with their labels ``(B,)``, in order."""
    for start in range(0, len(indices), BATCH):
        items = [images[index] for index in indices[start : start + BATCH]]
        yield torch.stack([image for image, _ in items]).contiguous(), torch.stack([label for _, label in items])
