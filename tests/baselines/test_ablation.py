"""The steps of the ablation: each is Block-KD with a part left out."""

import copy

import pytest
import torch

from blockkd.baselines.ablation import StonesByLabels
from blockkd.block_kd import BlockKD
from blockkd.distances import KL
from tests.oracles import block_kd as oracle
from tests.test_block_kd import pair


def test_stones_learn_from_labels_and_the_student_from_the_teacher_too() -> None:
    teacher, student, x, y = pair()
    distiller = StonesByLabels(teacher, student, x, alpha=0.3, beta=2.0, distance=KL(3.0))
    twin = copy.deepcopy(distiller)
    losses = distiller(x, y)
    losses.total.backward()

    features, logits = twin.student_blocks.run(x)
    theirs = twin.teacher_blocks
    expected = 0.3 * oracle.task(logits, y) + 2.0 * oracle.distance(logits, theirs(x), 3.0)
    for i in (1, 2, 3):
        connected = twin.connectors[str(i)](features[i - 1])
        stone = oracle.one_by_one(list(theirs.blocks), theirs.classifier, i, connected)
        expected = expected + 0.3 * 0.5 ** (3 - i) * oracle.task(stone, y)
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    for ours, other in zip(distiller.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad)


def test_it_has_no_cross_loss() -> None:
    teacher, student, x, _ = pair()
    with pytest.raises(ValueError, match=r"gamma is 0.5"):
        StonesByLabels(teacher, student, x, gamma=0.5)


def test_all_logits_are_those_of_each_network_by_itself() -> None:
    teacher, student, x, _ = pair()
    distiller = BlockKD(teacher, student, x, stones=[1, 3]).eval()
    found = distiller.all_logits(x)
    assert list(found) == ["student", "stone_1", "stone_3", "teacher"]
    assert not any(logits.requires_grad for logits in found.values())
    torch.testing.assert_close(found["student"], student(x))
    torch.testing.assert_close(found["teacher"], teacher(x))
    features, _ = distiller.student_blocks.run(x)
    blocks = distiller.teacher_blocks
    for i in (1, 3):
        connected = distiller.connectors[str(i)](features[i - 1])
        alone = oracle.one_by_one(list(blocks.blocks), blocks.classifier, i, connected)
        torch.testing.assert_close(found[f"stone_{i}"], alone)
