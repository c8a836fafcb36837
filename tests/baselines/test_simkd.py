"""Laws of SimKD."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockkd.baselines.simkd import SimKD
from blockkd.export import save_student
from tests.baselines.laws import CIFAR_PAIRS, check_step, field_pair, tiny
from tests.oracles import features as oracle


@pytest.mark.parametrize(("teacher", "student"), CIFAR_PAIRS)
def test_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    theirs, ours, x, y = field_pair(teacher, student)
    check_step(SimKD(theirs, ours, x), x, y)


def test_simkd_learns_the_teachers_pooled_map_and_nothing_else() -> None:
    teacher, student, x, y = tiny()
    distiller = SimKD(teacher, student, x, weight=2.0)
    twin = copy.deepcopy(distiller)
    losses = distiller(x, y)
    projected = twin.student.projected(x)
    (feature,), _ = twin.teacher_features(x)
    torch.testing.assert_close(losses.total, 2 * oracle.hint(projected, feature))
    torch.testing.assert_close(losses.total, distiller(x, (y + 1) % 5).total)  # labels play no part


@pytest.mark.parametrize("names", [("resnet8", "ShuffleV1"), ("MobileNetV2", "vgg8"), ("vgg8", "MobileNetV2")])
def test_the_larger_grid_is_averaged_down(names: tuple[str, str]) -> None:
    teacher, student, x, y = field_pair(*names)
    distiller = SimKD(teacher, student, x)
    grids = [blocks.features[0].grid for blocks in (distiller.student_blocks, distiller.teacher_blocks)]
    assert tuple(distiller.student.projected(x).shape[2:]) == min(grids)
    assert distiller(x, y).total.isfinite()
    larger = torch.rand(2, 3, 64, 64)  # another resolution keeps the proportion
    assert tuple(distiller.student.projected(larger).shape[2:]) == tuple(2 * n for n in min(grids))
    assert distiller(larger, y[:2]).total.isfinite()


def test_what_is_deployed_is_body_projector_and_the_teachers_classifier() -> None:
    teacher, student, x, y = tiny()
    distiller = SimKD(teacher, student, x)
    own = student.head.weight.clone()
    check_step(distiller, x, y)
    network = distiller.deployable()
    assert network is distiller.student
    assert {name.split(".")[0] for name in network.state_dict()} == {"network", "projector", "classifier"}
    assert torch.equal(network.classifier.weight, teacher.head.weight)
    assert torch.equal(student.head.weight, own)
    assert not network.classifier.weight.requires_grad
    assert not student.head.weight.requires_grad
    network.eval()
    logits = distiller(x, y).logits
    torch.testing.assert_close(network(x), logits)
    assert network.projector.layers[0].training is False


def test_the_deployable_works_alone_after_a_copy_and_is_what_is_saved(tmp_path: Path) -> None:
    teacher, student, x, _ = tiny(torch.float32)
    distiller = SimKD(teacher, student, x).eval()
    expected = distiller.student(x)
    alone = copy.deepcopy(distiller.deployable())
    with torch.no_grad():
        for parameter in (*teacher.parameters(), *student.parameters()):
            parameter.zero_()
    torch.testing.assert_close(alone(x), expected)
    path = save_student(distiller, tmp_path / "student.safetensors")
    assert load_file(path).keys() == distiller.student.state_dict().keys()


def test_bad_options_are_told_so() -> None:
    teacher, student, x, _ = tiny()
    with pytest.raises(ValueError, match="reduction is 13, expected 1 … 12"):
        SimKD(teacher, student, x, reduction=13)
    with pytest.raises(ValueError, match=r"weight is 0\.0, expected above zero"):
        SimKD(teacher, student, x, weight=0.0)
