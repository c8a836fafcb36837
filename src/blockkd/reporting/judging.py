"""What networks look at and by what they are judged: decides the words on the page, and which sections there are."""

from dataclasses import dataclass

from blockkd.report import watched_score
from blockkd.runs import Row
from blockkd.scores import ACCURACY, title_of


@dataclass(frozen=True)
class Judged:
    """The data as far as the page speaks of them.

    Attributes:
        sample: what one input is called.
        metrics: by which networks are judged; the first is the one that counts.
        has_classes: false for a regression, which has nothing to be right or wrong about.
        inputs: what one input is in the costs of a forward pass: of sentences also how long.
        step_inputs: what it is in those of a training step, whose batch is padded to another length; "" for the same.
    """

    sample: str = "image"
    metrics: tuple[str, ...] = (ACCURACY,)
    has_classes: bool = True
    inputs: str = "one image"
    step_inputs: str = ""

    @property
    def metric(self) -> str:
        """The one that counts."""
        return self.metrics[0]

    @property
    def title(self) -> str:
        """What it is called."""
        return title_of(self.metric)

    def watched(self, row: Row) -> float | None:
        """The metric after an epoch, in %; None where the row does not say."""
        known = any(f"{part}/{self.metric}" in row for part in ("val", "test"))
        return watched_score(row, self.metric) if known else None

    def needs_classes(self, what: str) -> str:
        """Why a regression has no such section."""
        return (
            f"{what} needs classes, and these data have none: each {self.sample} has a number, judged by {self.title}."
        )


IMAGES = Judged()
