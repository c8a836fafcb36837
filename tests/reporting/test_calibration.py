"""Reliability against images counted one by one, and against torchmetrics' calibration error."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from blockkd.reporting.calibration import BINS, calibration_section, reliability
from blockkd.reporting.style import look


def test_bins_are_those_of_counting() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(200, 4), torch.randint(4, (200,))
    found = reliability(logits, labels, bins=5)
    probabilities = logits.softmax(dim=1)
    for place in range(5):
        members = [n for n in range(200) if place / 5 <= float(probabilities[n].max()) < (place + 1) / 5]
        right = [int(probabilities[n].argmax()) == int(labels[n]) for n in members]
        sure = [float(probabilities[n].max()) for n in members]
        assert int(found.count[place]) == len(members)
        assert float(found.accuracy[place]) == pytest.approx(sum(right) / max(len(members), 1))
        assert float(found.confidence[place]) == pytest.approx(sum(sure) / max(len(members), 1), rel=1e-5)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_error_is_that_of_torchmetrics(scale: float) -> None:
    torch.manual_seed(1)
    logits, labels = scale * torch.randn(300, 6), torch.randint(6, (300,))
    expected = multiclass_calibration_error(logits.softmax(dim=1), labels, 6, n_bins=BINS, norm="l1")
    assert reliability(logits, labels).error == pytest.approx(float(expected), abs=1e-5)


def test_someone_sure_of_everything_lands_in_the_last_bin() -> None:
    found = reliability(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert found.count.tolist() == [0] * (BINS - 1) + [2]
    assert found.error == pytest.approx(0.5)


def test_the_section_has_a_row_for_each_method_and_draws_so_many() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (50,))
    logits = {"teacher": [torch.randn(50, 3)], "kd": [torch.randn(50, 3), torch.randn(50, 3)]}
    with look():
        section = calibration_section(logits, labels, most=1)
    assert [picture.name for picture in section.pictures] == ["calibration-teacher"]
    assert [row[0] for row in section.tables[0].rows] == ["teacher", "kd"]
    assert "±" in section.tables[0].rows[1][1]
    assert "1 more" in section.missing[0]
