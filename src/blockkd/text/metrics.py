"""GLUE's own metrics, from what a classifier or a regression says of a batch."""

from typing import Any

from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, BinaryMatthewsCorrCoef, MulticlassAccuracy

from blockkd.text.tasks import Task


class TaskMetrics(MetricCollection):
    """All metrics of a task by name: ``accuracy``, ``f1`` (of class 1), ``matthews``, ``pearson``, ``spearman``.

    Args:
        task: one of GLUE's.
    """

    def __init__(self, task: Task) -> None:
        made: dict[str, Metric | MetricCollection] = {name: _metric(name, task) for name in task.metrics}
        super().__init__(made, compute_groups=False)
        self.regression = not task.labels

    def update(self, *batch: Any, **kwargs: Any) -> None:
        """Add a batch: logits ``(B, K)``, or the one number told of each, and labels ``(B,)``."""
        logits, targets = batch
        super().update(logits[:, 0] if self.regression else logits.argmax(dim=1), targets, **kwargs)


def _metric(name: str, task: Task) -> Metric:
    if name == "accuracy":
        return MulticlassAccuracy(num_classes=task.outputs, average="micro")
    made: dict[str, type[Metric]] = {
        "f1": BinaryF1Score,
        "matthews": BinaryMatthewsCorrCoef,
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    return made[name]()
