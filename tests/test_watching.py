"""Stones are watched image by image, and a training that is watched stays the same to the bit."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn

from blockkd import KD, BlockKD
from blockkd.models import ResNet
from blockkd.training import DistillationModule
from blockkd.watching import StoneWatch, agreement
from tests.test_cli import FewDigits, Forgetful


def share(ours: Tensor, theirs: Tensor) -> float:
    """Of images on which two networks say the same, or one says what the label is, one by one."""
    said = [row.argmax() if row.ndim else row for row in ours]
    other = [row.argmax() if row.ndim else row for row in theirs]
    return sum(int(a == b) for a, b in zip(said, other, strict=True)) / len(said)


def fitted(method: Any, callbacks: list[StoneWatch]) -> tuple[DistillationModule, FewDigits, dict[str, float]]:
    seed_everything(0, verbose=False)
    data = FewDigits(eval_batch_size=24)  # of 64 images: the last batch is smaller
    teacher = ResNet(8, (8, 8, 16, 32), num_classes=10, in_channels=1)
    distiller = method(teacher, Forgetful(), **({} if method is KD else {"example": data.example()}))
    module = DistillationModule(distiller, partial(torch.optim.SGD, lr=0.1))
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[*callbacks],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, data, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.fixture(scope="module")
def watched() -> tuple[DistillationModule, FewDigits, dict[str, float]]:
    return fitted(BlockKD, [StoneWatch()])


def test_shares_are_those_of_the_last_epochs_networks(
    watched: tuple[DistillationModule, FewDigits, dict[str, float]],
) -> None:
    module, data, metrics = watched
    images = data.parts.val.images
    distiller = module.distiller.eval()
    assert isinstance(distiller, BlockKD)
    logits, labels = distiller.all_logits(images), data.parts.val.labels
    assert metrics["val/teacher/accuracy"] == pytest.approx(share(logits["teacher"], labels))
    assert metrics["val/student/agrees_teacher"] == pytest.approx(share(logits["student"], logits["teacher"]))
    for i in (1, 2, 3):
        stone = logits[f"stone_{i}"]
        assert metrics[f"val/stone_{i}/accuracy"] == pytest.approx(share(stone, labels))
        assert metrics[f"val/stone_{i}/agrees_teacher"] == pytest.approx(share(stone, logits["teacher"]))
        assert metrics[f"val/stone_{i}/agrees_student"] == pytest.approx(share(stone, logits["student"]))


def test_a_watched_training_is_the_same(watched: tuple[DistillationModule, FewDigits, dict[str, float]]) -> None:
    alone, _, metrics = fitted(BlockKD, [])
    assert not [name for name in metrics if "stone" in name and name.startswith("val/")]
    state = watched[0].distiller.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.distiller.state_dict().items())


def test_a_method_without_stones_is_left_alone() -> None:
    _, _, metrics = fitted(KD, [StoneWatch()])
    assert not [name for name in metrics if "stone" in name or "agrees" in name]


def test_agreement_counts_images() -> None:
    one_hot = nn.functional.one_hot(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0], [2, 1, 1, 2]]), 3).float()
    found = agreement(dict(zip(("student", "teacher", "stone_2"), one_hot, strict=True)), torch.tensor([0, 1, 1, 1]))
    assert {name: float(value) for name, value in found.items()} == {
        "teacher/accuracy": 0.75,
        "student/accuracy": 0.5,
        "student/agrees_teacher": 0.5,
        "stone_2/accuracy": 0.5,
        "stone_2/agrees_teacher": 0.5,
        "stone_2/agrees_student": 0.5,
    }
