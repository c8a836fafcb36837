"""What an exported file is worth, measured by onnxruntime on the run's own test part, by the data's own metrics."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from blockkd.calling import Inputs
from blockkd.data.images import ImageData, LabelledImages
from blockkd.exporting.calls import Named, named
from blockkd.exporting.errors import library
from blockkd.scores import ACCURACY
from blockkd.text.glue import Glue
from blockkd.text.metrics import TaskMetrics

BATCH = 64
CALIBRATION = 512  # training samples that say in which range activations lie


def session(path: Path, threads: int) -> Any:
    """A file of ONNX, ready to run on the CPU with so many threads."""
    onnxruntime = library("onnxruntime", "running ONNX")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # advice on shapes is no user's business
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_scores(path: Path, data: ImageData) -> dict[str, float]:
    """What each metric of the data says of the file on the test part, by name.

    Args:
        path: takes what the data give, or some of it.
        data: of images or of sentences.
    """
    runs, metrics = session(path, torch.get_num_threads()), _metrics(data)
    taken = [given.name for given in runs.get_inputs()]
    for inputs, labels in batches(data, data.parts.test, range(len(data.parts.test))):
        tensors = named(inputs)
        (logits,) = runs.run(None, {name: tensors[name].numpy() for name in taken})
        metrics.update(torch.from_numpy(logits), labels)
    return {name: float(value) for name, value in metrics.compute().items()}


def calibration(data: ImageData) -> Iterator[Named]:
    """Some training samples, evenly spread, as evaluation sees them."""
    count = len(data.parts.train)
    some = range(0, count, max(1, -(-count // CALIBRATION)))
    yield from (named(inputs) for inputs, _ in batches(data, data.parts.train, some))


def batches(data: ImageData, part: LabelledImages, indices: range) -> Iterator[tuple[Inputs, Tensor]]:
    """Samples of a part as inputs ``(B, ...)`` with their labels ``(B,)``, in order."""
    for start in range(0, len(indices), BATCH):
        yield data.some(part, indices[start : start + BATCH])


def _metrics(data: ImageData) -> MetricCollection:
    if isinstance(data, Glue):
        return TaskMetrics(data.task)
    return MetricCollection({ACCURACY: MulticlassAccuracy(num_classes=data.num_classes, average="micro")})
