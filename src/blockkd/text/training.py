"""A Distiller of text classifiers under Lightning, judged by its task's own metrics."""

from typing import Any, Literal

from jaxtyping import Float, Real
from torch import Tensor, nn

from blockkd.distiller import Distiller
from blockkd.text.fitting_together import check_labels
from blockkd.text.glue import Glue
from blockkd.text.metrics import TaskMetrics
from blockkd.text.tasks import Task
from blockkd.training import DistillationModule, OptimizerFactory


class TextDistillationModule(DistillationModule):
    """A DistillationModule that logs the metrics of a GLUE task in the place of the accuracy.

    Logs per epoch ``train/matthews``, ``val/matthews``, ``test/matthews`` and the like, one for each of the task's.

    Args:
        distiller: the method, with teacher and student.
        task: one of GLUE's, as ``Glue(...).task``.
        optimizer: parameters → optimizer.
        options: all other arguments of DistillationModule, by name.
    """

    def __init__(self, distiller: Distiller, task: Task, optimizer: OptimizerFactory, **options: Any) -> None:
        super().__init__(distiller, optimizer, **options)
        # By place, as Lightning finds the name of a metric by looking for it among the submodules.
        self.metrics = nn.ModuleDict({f"{part}_metrics": TaskMetrics(task) for part in ("train", "val", "test")})

    def log_epoch(self) -> None:
        """Log the metrics of all training batches since the last time, over all processes."""
        super().log_epoch()
        metrics = self._train_metrics
        if not any(metric.update_called for metric in metrics.values()):
            return
        values = {f"train/{name}": value for name, value in metrics.compute().items()}
        metrics.reset()
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)  # the same on all ranks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the metrics have summed up, which is nothing between two epochs."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["train_metrics"] = {
            name: {"updates": metric.update_count, "state": dict(metric.metric_state)}
            for name, metric in self._train_metrics.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what they had summed up."""
        super().on_load_checkpoint(checkpoint)
        for name, kept in checkpoint["train_metrics"].items():
            metric = self._train_metrics[name]
            metric._update_count = kept["updates"]  # there is no public way
            for key, value in kept["state"].items():
                there = (
                    [part.to(metric.device) for part in value] if isinstance(value, list) else value.to(metric.device)
                )
                setattr(metric, key, there)

    @property
    def _train_metrics(self) -> Any:
        return self.metrics["train_metrics"]

    def on_fit_start(self) -> None:
        """Compare what the data give with what the networks read, then as DistillationModule.

        Raises:
            MismatchError: the tokenizer is not theirs, batches are longer than they have positions for, or they number
                their labels differently.
        """
        data = getattr(self.trainer, "datamodule", None)
        networks = [network for network in (self.distiller.teacher, self.distiller.student) if network is not None]
        if isinstance(data, Glue):
            data.check_networks(*networks)
        else:
            check_labels(networks[0], networks[-1])
        super().on_fit_start()

    def measure(
        self, part: Literal["train", "val", "test"], logits: Float[Tensor, "B K"], targets: Real[Tensor, " B"]
    ) -> None:
        """Log what a batch adds to the task's metrics."""
        metrics: Any = self.metrics[f"{part}_metrics"]
        metrics.update(logits, targets)
        if part == "train":  # logged by ``log_epoch``: what Lightning holds of an epoch is not kept in checkpoints
            return
        name = self.watched if part == "val" else part
        named = {f"{name}/{metric}": value for metric, value in metrics.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(targets))
