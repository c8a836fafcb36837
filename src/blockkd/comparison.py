"""Trained networks, several seeds for each method → what can be said of the methods, and how surely.

What a row is (``runs.Row``, one for each trained network, made by ``compare`` or read back with ``runs.read_csv``):

=========================  ===========================================================================================
``method``                 name of the entry; ``"teacher"`` for the teacher
``seed``                   of the training; what two methods share is compared in pairs
``epochs``                 how many the network was trained for
``test_accuracy``          0 … 1, after the last epoch
``best_epoch``             optional: the epoch, counted from 1, that was best on the validation part
``best_test_accuracy``     optional: the test accuracy of that epoch; absent where there is no validation part
``best_watched_accuracy``  optional, where there is no validation part: the largest test accuracy of any epoch. It is
                           chosen on the test set, so too high; many papers report it
``parameters``             of the student
``flops_per_image``        of the student's forward pass
``seconds``                training time of the whole job
``step_flops``             optional: FLOPs of one training step, for the whole batch
``batch_size``             optional: images in that step
``saved_mib``              optional: what one training step saves for backward, in MiB
``peak_memory_mib``        optional: the device's peak, in MiB
``metric``                 optional: by what else than the accuracy the network is judged (a task of GLUE's); it then
                           stands in the place of ``accuracy`` in the names above
=========================  ===========================================================================================

Accuracies, and differences of accuracies, are shares (0 … 1) here, and % where they are shown.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from scipy import stats

from blockkd.published import Published
from blockkd.report import TEACHER_NAME, by_method
from blockkd.runs import Row
from blockkd.scores import ACCURACY, metric_of, score

BASELINE = "kd"
CONFIDENCE = 0.95
EQUAL = 1e-6  # deviation of accuracies up to which they are equal: rounding leaves less, one image in 50,000 more


@dataclass(frozen=True)
class Spread:
    """Several networks in one number.

    Attributes:
        mean: of the n values.
        deviation: sample standard deviation; None for a single value.
        n: how many values.
        half_width: half of the 95 % confidence interval of the mean (Student's t); None where there is no deviation
            above zero to tell it from.
    """

    mean: float
    deviation: float | None
    n: int
    half_width: float | None


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, over the seeds that both have.

    Attributes:
        mean: of the n differences.
        n: how many seeds both have.
        low, high: 95 % confidence interval of the mean difference (paired, Student's t).
        p: of the two-sided paired t-test. With fewer than two pairs, or where all differences are equal, so that
            nothing tells how they vary, there is neither interval nor test: None.
        p_holm: ``p`` adjusted for all methods that were tested against this baseline (Holm, "A Simple Sequentially
            Rejective Multiple Test Procedure", Scandinavian Journal of Statistics, 1979).
    """

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Summary:
    """One method.

    Attributes:
        method: name of the entry.
        epochs: trained for.
        last: test accuracy after the last epoch.
        best: test accuracy of the best epoch; None where no network, or not every one, has it.
        best_chosen_on: the part by which the best epoch was chosen.
        difference: of ``last`` to the baseline's; None for the baseline, the teacher, and where no seed is shared.
        parameters, flops_per_image: of the network.
        seconds: training time.
        step_flops: FLOPs of one training step.
        relative_flops: FLOPs of a training step in units of the baseline's, both for one image where the batch sizes
            are known.
        relative_seconds: mean training time in units of the baseline's.
        saved_mib, peak_memory_mib: the largest of any network.
        published: what has been published for the method.
    """

    method: str
    epochs: int
    last: Spread
    best: Spread | None
    best_chosen_on: Literal["validation", "test"] | None
    difference: Difference | None
    parameters: int
    flops_per_image: int
    seconds: Spread
    step_flops: int | None
    relative_flops: float | None
    relative_seconds: float | None
    saved_mib: float | None
    peak_memory_mib: float | None
    published: Published | None


@dataclass(frozen=True)
class Comparison:
    """All methods of a comparison, the teacher first, then in the order of the rows.

    Attributes:
        summaries: one for each method.
        baseline: what differences and relative costs refer to; None when it was not trained.
        published_only: published numbers of methods that were not trained, by name.
        metric: by which the networks are judged.
    """

    summaries: tuple[Summary, ...]
    baseline: str | None
    published_only: Mapping[str, Published] = field(default_factory=dict)
    metric: str = ACCURACY

    def __iter__(self) -> Iterator[Summary]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)


def summarise(
    rows: Sequence[Row], baseline: str | None = None, published: Mapping[str, Published] | None = None
) -> Comparison:
    """What the rows say of each method.

    Args:
        rows: one for each trained network, in any order.
        baseline: the method that the others are compared to; ``"kd"``, if it is there, when left out.
        published: published numbers by method.

    Raises:
        ValueError: the baseline is not among the methods, a network is there twice, or networks of one method were
            trained for different numbers of epochs.
    """
    groups = by_method(rows)
    if baseline is not None and baseline not in groups:
        raise ValueError(f"there is no method {baseline!r} to compare with; there are {', '.join(groups)}")
    for method, group in groups.items():
        _check_group(method, group)
    chosen = baseline or (BASELINE if BASELINE in groups else None)
    reference = groups[chosen] if chosen is not None else []
    published = published or {}
    summaries = [_summary(method, group, reference, published.get(method)) for method, group in groups.items()]
    rest = {method: number for method, number in published.items() if method not in groups}
    return Comparison(tuple(_adjusted(summaries)), chosen, rest, metric_of(rows))


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and confidence interval of one value or more."""
    n = len(values)
    deviation = statistics.stdev(values) if n > 1 else None
    varies = deviation is not None and deviation > EQUAL
    half_width = deviation * float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) / n**0.5 if deviation and varies else None
    return Spread(statistics.fmean(values), deviation, n, half_width)


def paired_difference(theirs: Mapping[int, float], ours: Mapping[int, float]) -> Difference | None:
    """The second minus the first, over the seeds that both have; None where there is none.

    Args:
        theirs: accuracy of the baseline by seed.
        ours: accuracy of the method by seed.
    """
    seeds = sorted(theirs.keys() & ours.keys())
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2 or statistics.stdev(differences) <= EQUAL:
        return Difference(mean, n)
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(mean, n, low=float(interval.low), high=float(interval.high), p=float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down procedure, in the given order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    stepped = (min((len(order) - rank) * p_values[i], 1.0) for rank, i in enumerate(order))
    adjusted = dict(zip(order, accumulate(stepped, max), strict=True))
    return [adjusted[i] for i in range(len(p_values))]


def _summary(method: str, rows: Sequence[Row], reference: Sequence[Row], published: Published | None) -> Summary:
    best, chosen_on = _best(rows)
    same = method in (TEACHER_NAME, *(row["method"] for row in reference))
    return Summary(
        method=method,
        epochs=int(rows[0]["epochs"]),
        last=spread([score(row) for row in rows]),
        best=best,
        best_chosen_on=chosen_on,
        difference=None if same else paired_difference(_by_seed(reference), _by_seed(rows)),
        parameters=int(rows[0]["parameters"]),
        flops_per_image=int(rows[0]["flops_per_image"]),
        seconds=spread([float(row["seconds"]) for row in rows]),
        step_flops=None if (most := _largest(rows, "step_flops")) is None else int(most),
        relative_flops=None if method == TEACHER_NAME else _relative_flops(rows, reference),
        relative_seconds=None if method == TEACHER_NAME else _relative_seconds(rows, reference),
        saved_mib=_largest(rows, "saved_mib"),
        peak_memory_mib=_largest(rows, "peak_memory_mib"),
        published=published,
    )


def _best(rows: Sequence[Row]) -> tuple[Spread | None, Literal["validation", "test"] | None]:
    metric = metric_of(rows)
    if all(f"best_test_{metric}" in row for row in rows):
        return spread([score(row, "best_test") for row in rows]), "validation"
    if all(f"best_watched_{metric}" in row for row in rows):
        return spread([score(row, "best_watched") for row in rows]), "test"
    return None, None


def _adjusted(summaries: Sequence[Summary]) -> list[Summary]:
    tested = {s.method: s.difference.p for s in summaries if s.difference is not None and s.difference.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        replace(s, difference=replace(s.difference, p_holm=adjusted[s.method]))
        if s.difference is not None and s.method in adjusted
        else s
        for s in summaries
    ]


def _by_seed(rows: Sequence[Row]) -> dict[int, float]:
    return {int(row["seed"]): score(row) for row in rows}


def _largest(rows: Sequence[Row], column: str) -> float | None:
    return max((float(row[column]) for row in rows if column in row), default=None)


def _relative_flops(rows: Sequence[Row], reference: Sequence[Row]) -> float | None:
    ours, theirs = _largest(rows, "step_flops"), _largest(reference, "step_flops")
    if not ours or not theirs:
        return None
    images, their_images = _largest(rows, "batch_size"), _largest(reference, "batch_size")
    return (ours / images) / (theirs / their_images) if images and their_images else ours / theirs


def _relative_seconds(rows: Sequence[Row], reference: Sequence[Row]) -> float | None:
    ours, theirs = (sum(float(row["seconds"]) for row in side) / max(len(side), 1) for side in (rows, reference))
    return ours / theirs if theirs else None


def _check_group(method: str, rows: Sequence[Row]) -> None:
    seeds = [int(row["seed"]) for row in rows]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"{method} is there more than once for seed {twice[0]}; give each network one row")
    epochs = sorted({int(row["epochs"]) for row in rows})
    if len(epochs) > 1:
        raise ValueError(
            f"networks of {method} were trained for {epochs[0]} and for {epochs[-1]} epochs: their mean would say "
            "nothing; give the two an entry each"
        )
