"""Text classifiers with trained weights, from a folder or from the hub."""

from typing import Any

from blockkd.text.tasks import Task


def load_teacher(name: str, task: Task | None = None) -> Any:
    """A classifier that was fine-tuned for a task.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name on the hub.
        task: what it is to be used for; its labels are compared with the classifier's.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: there is none, its head was never trained, or it tells other labels apart.
        ModuleNotFoundError: the library ``transformers`` is missing.
    """
    teacher, info = _load(name)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} holds no trained weights for {len(missing)} parameters ({missing[0]}, ...): it was not "
            "fine-tuned as a classifier of sentences; fine-tune it first"
        )
    if task is not None:
        check_task(teacher, task, name)
    return teacher.eval()


def load_start(name: str, task: Task) -> Any:
    """A network to be fine-tuned for a task: pretrained, with a new head where it has none.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name on the hub.
        task: gives the labels of the head.

    Raises:
        ValueError: there is none, or it has a head for other labels.
        ModuleNotFoundError: the library ``transformers`` is missing.
    """
    names = dict(enumerate(task.labels))
    labels: dict[str, Any] = {"id2label": names, "label2id": {label: i for i, label in names.items()}} if names else {}
    return _load(name, num_labels=task.outputs, **labels)[0].train()


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


def _load(name: str, **options: Any) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "networks for text need the library transformers: pip install 'blockkd[text]'"
        ) from error
    try:
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no classifier of sentences can be loaded from {name!r}, neither as a folder nor from the hub: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
