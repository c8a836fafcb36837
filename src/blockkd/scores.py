"""By which metric a trained network is judged, and where its rows say so.

A result's ``metric`` names it; where there is none it is the accuracy. The columns are called after it:
``test_matthews``, ``best_test_matthews``, ``val/matthews``.
"""

from collections.abc import Iterable

from blockkd.runs import Row

ACCURACY = "accuracy"
TITLES = {
    ACCURACY: ACCURACY,
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def metric_of(rows: Iterable[Row]) -> str:
    """By which metric these results are judged; they are of one run."""
    return next((str(row["metric"]) for row in rows if "metric" in row), ACCURACY)


def title_of(metric: str) -> str:
    """What a metric is called in tables and figures."""
    return TITLES.get(metric, metric)


def score(row: Row, part: str = "test") -> float:
    """What a result says of the network by its metric.

    Args:
        row: of a job.
        part: ``"val"``, ``"test"``, ``"best_test"`` or ``"best_watched"``.

    Raises:
        KeyError: the result does not say it.
    """
    return float(row[f"{part}_{metric_of([row])}"])
