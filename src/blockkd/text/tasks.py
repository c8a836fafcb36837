"""The tasks of GLUE: which columns are read, what the labels mean, and by which metrics they are judged.

Source: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019,
arXiv 1804.07461, section 3 and table 1. Labels are numbered as in ``nyu-mll/glue`` on the hub.
"""

from dataclasses import dataclass

ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        columns: the sentence, or the two that are compared.
        labels: what the classes are called, by number; empty for a regression.
        metrics: names of its metrics; the first is the one that it is known by.
        subset: what the hub calls it.
        evaluation: the split that results are reported on, since the labels of the test split are not public.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    subset: str
    evaluation: str = "validation"

    @property
    def outputs(self) -> int:
        """How many numbers a classifier gives: one for each label, or one for a regression."""
        return max(len(self.labels), 1)


_MNLI = (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",), "mnli")

TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews",), "cola"),
    "sst2": Task(("sentence",), ("negative", "positive"), ("accuracy",), "sst2"),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy"), "mrpc"),
    "stsb": Task(("sentence1", "sentence2"), (), ("spearman", "pearson"), "stsb"),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy"), "qqp"),
    "mnli": Task(*_MNLI, evaluation="validation_matched"),
    "mnli-mm": Task(*_MNLI, evaluation="validation_mismatched"),
    "qnli": Task(("question", "sentence"), ENTAILMENT, ("accuracy",), "qnli"),
    "rte": Task(("sentence1", "sentence2"), ENTAILMENT, ("accuracy",), "rte"),
}


def task_named(name: str) -> Task:
    """The task of this name. Raises ValueError, with all names, when there is none."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}, expected one of GLUE's: {', '.join(TASKS)}")
    return TASKS[name]
