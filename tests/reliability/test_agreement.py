"""Teachers that do not fit the data are told from those that do, and from chance."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from blockkd.agreement import KNOWN, card_warning, normalisation_warning, order_warning, predictions

CLASSES = 10


def answers(accuracy: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels, and what a teacher of this accuracy says."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    guesses = torch.randint(0, CLASSES, (n,), generator=generator)
    knows = torch.rand(n, generator=generator) < accuracy
    return labels, torch.where(knows, labels, guesses)


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.7, 1.0])
def test_a_teacher_whose_order_is_the_datas_is_not_accused(accuracy: float) -> None:
    for seed in range(40):
        labels, predicted = answers(accuracy, 300, seed)
        assert order_warning(predicted, labels, CLASSES) is None


@pytest.mark.parametrize("accuracy", [0.3, 0.7, 1.0])
def test_another_order_is_seen_and_named(accuracy: float) -> None:
    labels, predicted = answers(accuracy, 600, 0)
    order = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    said = order_warning(order[predicted], labels, CLASSES, [f"kind {k}" for k in range(CLASSES)])
    assert said is not None
    assert "number 10 of 10 classes otherwise" in said
    assert "class 0 (kind 0) is its 1, class 1 (kind 1) is its 2, class 2 (kind 2) is its 3, ...)" in said


def test_two_classes_that_have_changed_places_are_seen() -> None:
    labels, predicted = answers(0.8, 2000, 1)
    swapped = torch.tensor([0, 2, 1, 3, 4, 5, 6, 7, 8, 9])
    said = order_warning(swapped[predicted], labels, CLASSES)
    assert said is not None
    assert "number 2 of 10 classes otherwise than the data (class 1 is its 2, class 2 is its 1)" in said


class Threshold(nn.Module):
    """Tells bright images from dark ones by their mean, when normalised as it is used to."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.level = sum((0.5 - m) / s for m, s in zip(mean, std, strict=True)) / len(mean)

    def forward(self, x: Tensor) -> Tensor:
        above = x.mean(dim=(1, 2, 3)) - self.level
        return torch.stack([-above, above], dim=1)


def bright_and_dark(n: int = 200) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 2
    pixels = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.38
    return pixels + 0.04 * labels.view(-1, 1, 1, 1), labels


@pytest.mark.parametrize("name", ["ImageNet's", "one half for all", "none, pixels from 0 to 1"])
def test_the_normalisation_that_a_teacher_is_used_to_is_found(name: str) -> None:
    mean, std = KNOWN["CIFAR-100's"]
    pixels, labels = bright_and_dark()
    images = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    teacher = Threshold(*KNOWN[name])
    right = predictions(teacher, images) == labels
    said = normalisation_warning(teacher, images, labels, mean, std, right)
    assert said is not None
    assert f"({name})" in said
    assert f"--data.mean '{list(KNOWN[name][0])}'" in said


def test_the_right_normalisation_is_not_accused() -> None:
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    pixels, labels = bright_and_dark()
    images = (pixels - 0.5) / 0.5
    teacher = Threshold(mean, std)
    right = predictions(teacher, images) == labels
    assert bool(right.float().mean() > 0.9)
    assert normalisation_warning(teacher, images, labels, mean, std, right) is None


def test_grey_images_have_no_known_normalisation() -> None:
    teacher, images, labels = Threshold((0.0,), (1.0,)), torch.rand(4, 1, 4, 4), torch.zeros(4).long()
    assert normalisation_warning(teacher, images, labels, (0.5,), (0.5,), labels == 0) is None


def test_a_card_is_believed_within_chance_and_half_a_point() -> None:
    assert card_warning(0.7261, 0.7263, 10_000) is None
    assert card_warning(0.7600, 0.7263, 10_000) is None
    assert card_warning(0.7216, 0.7263, 10_000_000) is None
    assert card_warning(0.65, 0.7263, 100) is None
    said = card_warning(0.65, 0.7263, 10_000)
    assert said is not None
    assert "right on 65.00% of 10000 test images, and is said to be on 72.63%" in said


def test_predictions_leave_the_teacher_in_its_mode() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)).train()
    predicted = predictions(teacher, torch.rand(5, 3, 2, 2), batch_size=2)
    assert predicted.shape == (5,)
    assert teacher.training
    assert int(teacher[1].num_batches_tracked) == 0  # type: ignore[arg-type]
