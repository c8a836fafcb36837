"""Text classifiers as a recipe says them: one by its folder or name, and a student made of the teacher."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from blockkd.data.images import ImageData
from blockkd.text.glue import Glue
from blockkd.text.pretrained import configuration, is_fine_tuned, load_start, load_teacher
from blockkd.text.students import student_of
from blockkd.text.tasks import Task


class Pretrained:
    """Loads the classifier of sentences in a folder or on the hub, anew at every call.

    One that was fine-tuned for the data's task comes as it is. One that is pretrained only gets a new head for it.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name on the hub.
        revision: branch, tag or commit on the hub; None is its newest.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name, self.revision = name, revision
        self.task: Task | None = None
        self._is_fine_tuned: bool | None = None

    def prepare(self, data: ImageData) -> None:
        """Learn what the network is for; data that names no tokenizer is read by this network's.

        Raises:
            ValueError: the data are no sentences.
        """
        if not isinstance(data, Glue):
            raise ValueError(
                f"{self.name!r} is to classify sentences, but {type(data).__name__} gives none: take "
                "blockkd.text.glue.Glue for the data"
            )
        self.task = data.task
        data.read_as(self.name, self.revision)

    @property
    def is_fine_tuned(self) -> bool:
        """Whether it has a trained head. Raises ValueError when there is no such network."""
        if self._is_fine_tuned is None:
            self._is_fine_tuned = is_fine_tuned(self.name, self.revision)
        return self._is_fine_tuned

    def configuration(self) -> dict[str, Any]:
        """What its configuration says, by name. Raises ValueError when there is no such network."""
        return configuration(self.name, self.revision)

    def __call__(self) -> nn.Module:
        """The network.

        Raises:
            ValueError: there is none, or it tells other labels apart than the task.
        """
        assert self.task is not None, "the data come first"
        load = load_teacher if self.is_fine_tuned else load_start
        network: nn.Module = load(self.name, self.task, self.revision)
        return network


class StudentOf:
    """Makes a student of the teacher; see ``student_of``.

    Args:
        layers: how many layers it has, or which of the teacher's it copies, by number from 1; null is as many.
        start: from what it starts: ``spread`` or ``first`` layers of the teacher, or ``fresh`` random weights. Where a
            width is another than the teacher's there is nothing to copy.
        hidden_size: width of the hidden states; null is the teacher's.
        num_attention_heads: heads of each layer; null is the teacher's.
        intermediate_size: inner width of the layers; null keeps its proportion to ``hidden_size``.
        settings: further entries of the family's configuration that are to be others, by name.
    """

    def __init__(
        self,
        layers: int | Sequence[int] | None = None,
        start: Literal["spread", "first", "fresh"] = "spread",
        hidden_size: int | None = None,
        num_attention_heads: int | None = None,
        intermediate_size: int | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.layers, self.start = layers, start
        sizes = {
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
        }
        self.changes = {name: size for name, size in sizes.items() if size is not None} | dict(settings or {})

    def __call__(self, teacher: nn.Module) -> nn.Module:
        """A new student.

        Raises:
            ValueError: settings that the teacher's family does not have or that contradict each other, layers that the
                teacher does not have, or a teacher that has no layers by number.
        """
        if not hasattr(getattr(teacher, "config", None), "num_hidden_layers"):
            raise ValueError(
                f"a student is to be made of the teacher's layers, but {type(teacher).__name__} is no network of "
                "transformers: give the student a class path or a name of its own"
            )
        student: nn.Module = student_of(teacher, self.layers, self.start, **self.changes)
        return student
