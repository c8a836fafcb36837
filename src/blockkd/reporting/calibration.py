"""Whether a network is right as often as it is sure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from blockkd.report import mean_and_deviation
from blockkd.reporting.curves import file_name
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Section, Table
from blockkd.reporting.style import GRID, INK, QUIET, Picture, colours_of, panel

BINS = 15
FEW = 10  # samples that a bin needs to say much
LEAD = (
    "A network is calibrated when it is right on 70 % of the {samples} of which it is 70 % sure. Bars under the line: "
    "it is too sure of itself. Hollow bars stand for fewer than {few} {samples}; below, how many {samples} have which "
    "confidence. ECE is the mean distance from the line, weighed by {samples}, over {bins} bins (Guo et al., On "
    "Calibration of Modern Neural Networks, ICML 2017; computed by torchmetrics); on few {samples} it is above zero "
    "even for a calibrated network."
)


@dataclass(frozen=True)
class Reliability:
    """What a bin of confidence holds.

    Attributes:
        count: images, ``(bins,)``.
        accuracy, confidence: mean over them, 0 … 1; 0 in an empty bin, ``(bins,)``.
    """

    count: Int[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error, 0 … 1."""
        return float((self.count * (self.accuracy - self.confidence).abs()).sum() / self.count.sum())


def reliability(logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"], bins: int = BINS) -> Reliability:
    """Images by the probability of the class that is said, in bins of equal width.

    Args:
        logits: ``(N, K)``.
        labels: classes ``(N,)``.
        bins: how many.
    """
    confidence, said = logits.softmax(dim=1).max(dim=1)
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(place, values.double(), minlength=bins) / count.clamp(min=1)

    return Reliability(count, mean((said == labels).double()), mean(confidence))


def calibration_section(
    logits: Mapping[str, Sequence[Float[Tensor, "N K"]]],
    labels: Real[Tensor, " N"],
    most: int = 8,
    judged: Judged = IMAGES,
) -> Section:
    """A reliability diagram of each method, all its seeds together, and the ECE of each.

    Args:
        logits: by method, of each seed ``(N, K)``.
        labels: ``(N,)``.
        most: how many methods are drawn; the table has all.
        judged: what the networks look at; a regression is never sure of anything.
    """
    title = "Calibration"
    if not judged.has_classes:
        return Section("calibration", title, "", missing=[judged.needs_classes("Calibration")])
    if not logits:
        reason = "No network of these runs is trained yet; train on with --resume and report again."
        return Section("calibration", title, "", missing=[reason])
    colours = colours_of(list(logits))
    pictures = [
        _picture(method, seeds, labels, colours[method], judged.sample) for method, seeds in list(logits.items())[:most]
    ]
    rows = [_row(method, seeds, labels) for method, seeds in logits.items()]
    columns = ("method", "ECE (%)", "mean confidence (%)", "accuracy (%)", "cross-entropy (nats)")
    table = Table(columns, rows, f"on {len(labels)} test {judged.sample}s; mean ± standard deviation over the seeds")
    left = len(logits) - len(pictures)
    missing = [f"{left} more methods are in the table, but not drawn: report fewer runs to see them."] if left else []
    lead = LEAD.format(samples=f"{judged.sample}s", few=FEW, bins=BINS)
    return Section("calibration", title, lead, pictures, [table], missing=missing)


def _picture(method: str, seeds: Sequence[Tensor], labels: Tensor, colour: str, sample: str) -> Picture:
    figure, axes = panel(height=3.3)
    figure.clear()
    axes, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    found = reliability(torch.cat(list(seeds)), labels.repeat(len(seeds)))
    edges = [(place + 0.5) / BINS for place in range(BINS)]
    filled = found.count > 0
    heights = [100 * float(value) if there else 0.0 for value, there in zip(found.accuracy, filled, strict=True)]
    for edge, height, count in zip(edges, heights, found.count.tolist(), strict=True):
        face = colour if count >= FEW else "none"
        axes.bar(edge, height, width=0.9 / BINS, color=face, edgecolor=colour, linewidth=0.8)
    axes.plot([0, 1], [0, 100], color=INK, linewidth=1, linestyle=(0, (3, 2)))
    ece = mean_and_deviation([100 * reliability(one, labels).error for one in seeds], 1)
    axes.set(ylabel="right (%)", ylim=(0, 101), xlim=(0, 1), title=f"{method}: ECE {ece} %")
    counts.bar(edges, (found.count / len(seeds)).tolist(), width=0.9 / BINS, color=QUIET)
    counts.set_yscale("log")
    counts.yaxis.set_major_formatter("{x:g}")
    counts.set_ylim(bottom=0.5)
    counts.set(xlabel="confidence in the class that is said", ylabel=f"{sample}s")
    counts.grid(axis="x", color=GRID)
    caption = f"{method}: how often it is right, by how sure it is" + (
        f", {len(seeds)} seeds." if len(seeds) > 1 else "."
    )
    return Picture(f"calibration-{file_name(method)}", caption, figure)


def _row(method: str, seeds: Sequence[Tensor], labels: Tensor) -> tuple[str, ...]:
    values = []
    for logits in seeds:
        probabilities = logits.softmax(dim=1)
        error = multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=BINS, norm="l1")
        right = (logits.argmax(dim=1) == labels).float().mean()
        nats = torch.nn.functional.cross_entropy(logits, labels)
        values.append(
            (100 * float(error), 100 * float(probabilities.amax(dim=1).mean()), 100 * float(right), float(nats))
        )
    ece, confidence, accuracy, nats_of = zip(*values, strict=True)
    ordered = ((ece, 1), (confidence, 1), (accuracy, 2), (nats_of, 3))
    return (method, *(mean_and_deviation(list(column), digits) for column, digits in ordered))
