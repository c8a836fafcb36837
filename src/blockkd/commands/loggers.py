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
DATABASE = "mlflow.db"  # of a run, where MLflow has no address of its own


def check_logger(service: Service | None) -> None:
    """Raise InvalidInputError where the service's package is missing."""
    if service is not None and find_spec(service) is None:
        raise InvalidInputError(f"logger is {service}, whose package is not installed: pip install {service}")


@contextmanager
def live_loggers(service: Service | None, folder: RunFolder, job: Job) -> Iterator[list[Logger]]:
    """TensorBoard's files in the job's folder always, and a service where one is asked for.

    How to reach a service, its package takes from the environment (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ...); both
    begin a new run there when a job is resumed. Where MLflow has no address it writes a database beside the jobs, for
    ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db``.

    Args:
        service: Weights & Biases, MLflow, or none.
        folder: of the run; its name groups the jobs.
        job: what trains.

    Raises:
        InvalidInputError: the service cannot be reached.
    """
    home = folder.job_folder(job)
    loggers: list[Logger] = [EventFile(home / EVENTS)]
    if service is not None:
        loggers.append(_reached(service, folder, job))
    try:
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):  # or the next job's metrics would go to the same run
                logger.experiment.finish()


def _reached(service: Service, folder: RunFolder, job: Job) -> Logger:
    where = folder.path.absolute()
    logger: WandbLogger | MLFlowLogger
    try:
        if service == "wandb":
            logger = WandbLogger(name=f"{job}", group=where.name, project=PROJECT, save_dir=folder.job_folder(job))
        else:
            # Lightning looks into the environment when it is imported, and not again.
            address = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{where / DATABASE}")
            logger = MLFlowLogger(PROJECT, f"{where.name}: {job}", tracking_uri=address)
        _ = logger.experiment  # the run there begins now, not after the first epoch
    except Exception as error:  # the service's own code: no network, no key, no such address
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"cannot log to {service}: {type(error).__name__}: {reason}") from error
    return logger
