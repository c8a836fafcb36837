"""How long a run still takes, from what is known of its jobs."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from blockkd.report import TEACHER_NAME
from blockkd.runs import Job


@dataclass
class Forecast:
    """The jobs that are not finished, and what an epoch of each is likely to take.

    Attributes:
        epochs: of every job that is not finished.
        promised: seconds that an epoch of a method takes by its trial steps, where there were any.
        processes: how many share the jobs.
        measured: seconds that an epoch of a method took, where one was trained; of the job at hand so far.
    """

    epochs: dict[Job, int] = field(default_factory=dict)
    promised: Mapping[str, float] = field(default_factory=dict)
    processes: int = 1
    measured: dict[str, float] = field(default_factory=dict)

    def drop(self, is_finished: Callable[[Job], bool]) -> None:
        """Forget the jobs that are finished, also those that other processes have done."""
        self.epochs = {job: epochs for job, epochs in self.epochs.items() if not is_finished(job)}

    def left(self, job: Job, seconds_left: float, seconds_of_epoch: float) -> float:
        """Seconds until all jobs are done.

        Args:
            job: the job at hand.
            seconds_left: of this job.
            seconds_of_epoch: that its epochs have taken on average.
        """
        self.measured[job.method] = seconds_of_epoch
        others = sum(epochs * self._epoch(other.method) for other, epochs in self.epochs.items() if other != job)
        return seconds_left + others / self.processes

    def _epoch(self, method: str) -> float:
        """Measured; or promised, corrected by how promises were kept; or as the other students take, or the teacher."""
        if method in self.measured:
            return self.measured[method]
        kept = [self.measured[name] / self.promised[name] for name in self.measured.keys() & self.promised.keys()]
        if method in self.promised:
            return self.promised[method] * _mean(kept, otherwise=1.0)
        students = [seconds for name, seconds in self.measured.items() if name != TEACHER_NAME]
        return _mean(students or self.measured.values(), otherwise=0.0)


def _mean(values: Iterable[float], otherwise: float) -> float:
    known = list(values)
    return statistics.fmean(known) if known else otherwise
