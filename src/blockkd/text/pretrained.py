"""Text classifiers with trained weights, from a folder or from the hub."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from blockkd.text.tasks import Task


def is_fine_tuned(name: str, revision: str | None = None) -> bool:
    """Whether the classifier of this name has a trained head. Raises as ``load_teacher`` does when there is none."""
    return not _load(name, revision)[1]["missing_keys"]


def load_teacher(name: str, task: Task | None = None, revision: str | None = None) -> Any:
    """A classifier that was fine-tuned for a task.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name on the hub.
        task: what it is to be used for; its labels are compared with the classifier's.
        revision: branch, tag or commit on the hub; None is its newest.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: there is none, its head was never trained, or it tells other labels apart.
        ModuleNotFoundError: the library ``transformers`` is missing.
    """
    teacher, info = _load(name, revision)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} holds no trained weights for {len(missing)} parameters ({missing[0]}, ...): it was not "
            "fine-tuned as a classifier of sentences; fine-tune it first"
        )
    if task is not None:
        check_task(teacher, task, name)
    return teacher.eval()


def load_start(name: str, task: Task, revision: str | None = None) -> Any:
    """A network to be fine-tuned for a task: pretrained, with a new head where it has none.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name on the hub.
        task: gives the labels of the head.
        revision: branch, tag or commit on the hub; None is its newest.

    Raises:
        ValueError: there is none, or it has a head for other labels.
        ModuleNotFoundError: the library ``transformers`` is missing.
    """
    names = dict(enumerate(task.labels))
    labels: dict[str, Any] = {"id2label": names, "label2id": {label: i for i, label in names.items()}} if names else {}
    return _load(name, revision, num_labels=task.outputs, **labels)[0].train()


def configuration(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the configuration of a network says, by name.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name on the hub.
        revision: branch, tag or commit on the hub; None is its newest.

    Raises:
        ValueError: there is none.
        ModuleNotFoundError: the library ``transformers`` is missing.
    """
    transformers = _transformers()
    try:
        found = transformers.AutoConfig.from_pretrained(_where(name), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"there is no configuration of a network in {name!r}: {_first_line(error)}") from error
    content: dict[str, Any] = found.to_dict()
    return content


def check_task(network: Any, task: Task, name: str) -> None:
    """Compare a classifier's labels with a task's.

    Raises:
        ValueError: they are others, or numbered otherwise.
    """
    config = network.config
    if config.num_labels != task.outputs:
        raise ValueError(
            f"{name!r} tells {config.num_labels} labels apart, the task has {task.outputs}"
            + (f" ({', '.join(task.labels)})" if task.labels else " (it is a regression)")
        )
    said = [str(config.id2label[i]).lower() for i in range(config.num_labels)]
    if sorted(said) == sorted(task.labels) and said != list(task.labels):
        raise ValueError(
            f"{name!r} numbers its labels {said}, the data {list(task.labels)}: reorder the rows of its last layer and "
            "its id2label"
        )


def _load(name: str, revision: str | None, **options: Any) -> Any:
    transformers, where = _transformers(), _where(name)
    if not Path(where).is_dir() and revision is None:
        warnings.warn(
            f"{name!r} is taken from the hub in its newest state, which can change between two runs: name a commit as "
            "revision",
            stacklevel=4,
        )
    try:
        with silent(transformers):  # what is missing of a checkpoint is told by us
            return transformers.AutoModelForSequenceClassification.from_pretrained(
                where,
                revision=revision,
                output_loading_info=True,
                dtype=torch.float32,  # not that of the checkpoint, in which training may not be possible
                trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no classifier of sentences can be loaded from {name!r}, neither as a folder nor from the hub: "
            f"{_first_line(error)}"
        ) from error


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "networks for text need the library transformers: pip install 'blockkd[text]'"
        ) from error
    return transformers


def _where(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def silent(transformers: Any) -> Iterator[None]:
    """While it shows no progress and gives no advice."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
