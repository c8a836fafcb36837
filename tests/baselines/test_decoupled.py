"""Laws of decoupled knowledge distillation with its warm-up."""

import copy

import pytest
import torch
from torch import Tensor

from blockkd.baselines.decoupled import DecoupledKD
from blockkd.baselines.logits import KD
from blockkd.distances import DIST, DKD
from tests import networks
from tests.oracles import objectives as oracle


def setting() -> tuple[networks.Plain, networks.Plain, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)).double(), networks.Plain((3, 4, 5)).double()
    return teacher, student, torch.randn(4, *networks.IMAGE, dtype=torch.float64), torch.tensor([0, 3, 4, 1])


@pytest.mark.parametrize(("epoch", "share"), [(None, 0.25), (0, 0.25), (1, 0.5), (3, 1.0), (50, 1.0)])
def test_the_weight_grows_to_beta_over_the_warm_up(epoch: int | None, share: float) -> None:
    teacher, student, x, y = setting()
    distiller = DecoupledKD(teacher, student, beta=2.0, warmup_epochs=4)
    if epoch is not None:
        distiller.set_epoch(epoch)
    losses = distiller(x, y)
    expected = oracle.decoupled_kd(losses.logits, teacher(x), y, 1.0, 8.0, 4.0)
    torch.testing.assert_close(losses.terms["distill/student"].detach(), share * 2.0 * expected)
    torch.testing.assert_close(losses.terms["task/student"].detach(), oracle.cross_entropy(losses.logits, y))


def test_warming_up_again_after_a_later_epoch_gives_the_same() -> None:
    teacher, student, x, y = setting()
    distiller = DecoupledKD(teacher, student).eval()
    first = distiller(x, y).total
    distiller.set_epoch(30)
    assert not torch.equal(distiller(x, y).total, first)
    distiller.set_epoch(0)
    assert torch.equal(distiller(x, y).total, first)


@pytest.mark.parametrize("distance", [DKD(beta=2.0), DIST()])
def test_without_warm_up_it_is_kd_with_that_distance(distance: DKD | DIST) -> None:
    teacher, student, x, y = setting()
    plain = KD(copy.deepcopy(teacher), copy.deepcopy(student), 1.0, 2.0, distance)
    ours = DecoupledKD(teacher, student, beta=2.0, warmup_epochs=0, distance=distance)
    assert torch.equal(ours(x, y).total, plain(x, y).total)


def test_a_warm_up_below_zero_is_refused() -> None:
    teacher, student, _, _ = setting()
    with pytest.raises(ValueError, match="warmup_epochs is -1"):
        DecoupledKD(teacher, student, warmup_epochs=-1)
