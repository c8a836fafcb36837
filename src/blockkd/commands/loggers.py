"""Where the metrics of a job can be watched while it trains, beside our own CSV files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from blockkd.commands.errors import InvalidInputError
from blockkd.commands.event_file import EventFile
from blockkd.runs import Job, RunFolder

Service = Literal["wandb", "mlflow"]
EVENTS = "tensorboard"  # folder of a job
PROJECT = "blockkd"


def check_logger(service: Service | None) -> None:
    """Raise InvalidInputError where the service's package is missing."""
    if service is not None and find_spec(service) is None:
        raise InvalidInputError(f"logger is {service}, whose package is not installed: pip install {service}")


@contextmanager
def live_loggers(service: Service | None, folder: RunFolder, job: Job) -> Iterator[list[Logger]]:
    """TensorBoard's files in the job's folder always, and a service where one is asked for.

    How to reach a service, its package takes from the environment (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ...); both
    begin a new run there when a job is resumed.

    Args:
        service: Weights & Biases, MLflow, or none.
        folder: of the run; its name groups the jobs.
        job: what trains.
    """
    home = folder.job_folder(job)
    loggers: list[Logger] = [EventFile(home / EVENTS)]
    group = folder.path.absolute().name
    if service == "wandb":
        loggers.append(WandbLogger(name=f"{job}", group=group, project=PROJECT, save_dir=home))
    if service == "mlflow":
        there = os.environ.get("MLFLOW_TRACKING_URI")  # Lightning looks when it is imported, and not again
        loggers.append(MLFlowLogger(PROJECT, f"{group}: {job}", tracking_uri=there, save_dir=str(home / service)))
    try:
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):  # or the next job's metrics would go to the same run
                logger.experiment.finish()
