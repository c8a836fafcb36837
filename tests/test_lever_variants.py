"""Forms of Block-KD that are measured and not shipped: they are what they say they are."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blockkd import BlockKD
from blockkd.distances import KL
from blockkd.models import ResNet
from tests.benchmark_scripts import script


@pytest.fixture(scope="module")
def variants() -> ModuleType:
    return script("lever_variants")


def made(kind: type[BlockKD]) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = (ResNet(8, widths, num_classes=5).double() for widths in ((8, 8, 10, 12), (4, 4, 6, 8)))
    x, y = torch.randn(16, 3, 16, 16, dtype=torch.float64), torch.randint(5, (16,))
    torch.manual_seed(0)
    distiller = kind(teacher, student, x[:2], gamma=0.5, distance=KL(2.0, standardized=True))
    return distiller.double(), x, y  # also what a kind has added


def gradients(distiller: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    distiller(x, y).total.backward()
    return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", [1, 4])
def test_a_quarter_of_the_batch_is_block_kd_where_the_share_is_all_of_it(variants: ModuleType, share: int) -> None:
    plain, x, y = made(BlockKD)
    thinned, _, _ = made(variants.Quarter)
    thinned.share = share
    terms, fewer = plain(x, y).terms, thinned(x, y).terms
    assert set(terms) == set(fewer)
    equal = [torch.allclose(terms[name], fewer[name]) for name in terms if "stone" in name]
    assert all(equal) if share == 1 else not any(equal)
    torch.testing.assert_close(terms["distill/student"], fewer["distill/student"])
    if share == 1:
        torch.testing.assert_close(gradients(thinned, x, y), gradients(plain, x, y))


def test_stones_on_a_quarter_are_told_the_labels_and_logits_of_that_quarter(variants: ModuleType) -> None:
    distiller, x, y = made(variants.Quarter)
    terms = distiller(x, y).terms
    features, _ = distiller.student_features(x)
    said = distiller._stone_logits([feature[:4] for feature in features], x[:4])
    target = distiller.teacher_logits(x)[:4]
    for i, z in said.items():
        weight = distiller.stone_weights[i]
        torch.testing.assert_close(terms[f"task/stone_{i}"], 0.1 * weight * F.cross_entropy(z, y[:4]))
        torch.testing.assert_close(terms[f"distill/stone_{i}"], 0.9 * weight * distiller.distance(z, target, y[:4]))


def test_deep_supervision_leaves_the_teachers_blocks_out(variants: ModuleType) -> None:
    distiller, x, y = made(variants.DeepSupervision)
    found = gradients(distiller, x, y)
    assert {name.split(".")[1] for name in found if name.startswith("classifiers.")} == {"1", "2", "3"}
    with torch.no_grad():
        for parameter in distiller.teacher_blocks.blocks.parameters():
            parameter.zero_()
    features, _ = distiller.student_features(x)
    before = {i: distiller.classifiers[str(i)](f) for i, f in distiller._connected(features).items()}
    torch.testing.assert_close(distiller._stone_logits(features, x), before)


def test_tails_drawn_anew_are_trained_and_the_teacher_is_not(variants: ModuleType) -> None:
    distiller, x, y = made(variants.TailsDrawnAnew)
    kept = [value.clone() for value in distiller.teacher.state_dict().values()]
    found = gradients(distiller, x, y)
    assert any(name.startswith("tails.") for name in found)
    assert all(torch.equal(a, b) for a, b in zip(kept, distiller.teacher.state_dict().values(), strict=True))
    assert not any(parameter.requires_grad for parameter in distiller.teacher.parameters())
    theirs, ours = distiller.teacher_blocks.classifier.state_dict(), distiller.tails.classifier.state_dict()
    assert not any(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_merged_heads_say_the_mean_of_what_both_said(variants: ModuleType) -> None:
    distiller, x, y = made(BlockKD)
    for _ in range(3):
        distiller(x, y)
    said = distiller.eval().all_logits(x)
    variants.merge_heads(distiller, x)
    torch.testing.assert_close(distiller.student(x), (said["student"] + said["stone_3"]) / 2)


def test_stones_of_the_first_half_are_gone_in_the_second(variants: ModuleType) -> None:
    distiller, x, y = made(variants.FirstHalf)
    distiller.epochs = 4
    names = []
    for epoch in range(4):
        distiller.set_epoch(epoch)
        names.append(any("stone" in name for name in distiller(x, y).terms))
    assert names == [True, True, False, False]
