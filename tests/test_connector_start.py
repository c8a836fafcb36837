"""Connectors start where the features say: against the equations, and against a student that is the teacher."""

import copy

import pytest
import torch
from torch import Tensor, nn

from blockkd.block_kd import BlockKD
from blockkd.connector_start import start_connectors
from blockkd.connectors import MapConnector, shrink
from blockkd.features import Feature
from tests import networks
from tests.networks import IMAGE
from tests.oracles import connector_start as oracle


class Coarse(nn.Module):
    """Three stages, all but the first on half the grid of ``networks.Plain``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = networks.conv(3, 3, 2), networks.conv(3, 4, 2), networks.conv(4, 5)
        self.head = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


def pair(student: nn.Module | None = None) -> tuple[BlockKD, list[Tensor]]:
    torch.manual_seed(0)
    teacher = networks.Plain((6, 8, 12)).double()
    student = networks.Plain((3, 4, 5)) if student is None else student
    teacher(torch.randn(16, *IMAGE, dtype=torch.float64))  # running statistics that are not those of a new network
    batches = [torch.randn(6, *IMAGE, dtype=torch.float64) for _ in range(3)]
    return BlockKD(teacher, student.double(), batches[0], n_blocks=3), batches


def features(distiller: BlockKD, batches: list[Tensor], i: int) -> tuple[list[list[float]], list[list[float]]]:
    """The oracle's rows of both networks after block i, on the connector's grid."""
    made = distiller.connectors[str(i)]
    assert isinstance(made, MapConnector)
    z: list[list[float]] = []
    t: list[list[float]] = []
    for x in batches:
        twin = copy.deepcopy(distiller).train()  # the student alone
        ours, _ = twin.student_features(x)
        theirs, _ = twin.teacher_features(x)
        mine = shrink(ours[i - 1], made.target.places).detach()
        z += oracle.rows(mine.numpy())
        t += oracle.rows(shrink(theirs[i - 1], (mine.shape[2], mine.shape[3])).numpy())
    return z, t


def connected(distiller: BlockKD, z: list[list[float]], i: int) -> Tensor:
    """What connector i gives for rows, in evaluation mode, ``(N, d)``."""
    made = distiller.connectors[str(i)]
    assert isinstance(made, MapConnector)
    return made.eval().norm(made.project(torch.tensor(z, dtype=torch.float64)[:, :, None, None]))[:, :, 0, 0].detach()


@pytest.mark.parametrize("student", ["plain", "coarse"])
def test_least_squares_is_the_nearest_affine_map(student: str) -> None:
    distiller, batches = pair(Coarse() if student == "coarse" else None)
    rows = {i: features(distiller, batches, i) for i in (1, 2, 3)}
    start_connectors(distiller, batches)
    for i, (z, t) in rows.items():
        torch.testing.assert_close(connected(distiller, z, i), torch.tensor(oracle.affine(z, t), dtype=torch.float64))


def test_moments_are_those_of_the_teachers_channels() -> None:
    distiller, batches = pair()
    rows = {i: features(distiller, batches, i) for i in (1, 2, 3)}
    drawn = [made.project.weight.clone() for made in distiller.connectors.values() if isinstance(made, MapConnector)]
    start_connectors(distiller, batches, "moments")
    for i, (z, t) in rows.items():
        given = connected(distiller, z, i).tolist()
        torch.testing.assert_close(oracle.means(given), oracle.means(t))
        torch.testing.assert_close(oracle.deviations(given), oracle.deviations(t), rtol=1e-3, atol=1e-6)
        made = distiller.connectors[str(i)]
        assert isinstance(made, MapConnector)
        assert torch.equal(made.project.weight, drawn[i - 1])


def test_the_stones_of_a_student_that_is_the_teacher_start_as_the_teacher() -> None:
    distiller, batches = pair()
    network = distiller.teacher
    assert network is not None
    twin = BlockKD(network, copy.deepcopy(network), batches[0], n_blocks=3)
    for module in twin.student.modules():
        if isinstance(module, nn.BatchNorm2d):  # which keeps to the teacher's statistics in training as well
            object.__setattr__(module, "train", lambda _=True, m=module: nn.Module.train(m, False))
    start_connectors(twin, batches)
    twin.eval()
    theirs, logits = twin.teacher_features(batches[0])
    for i, feature in enumerate(theirs, start=1):
        torch.testing.assert_close(twin.connectors[str(i)](feature), feature, rtol=1e-6, atol=1e-6)
    stones = twin._stone_logits(theirs, batches[0])
    for stone in stones.values():
        torch.testing.assert_close(stone, logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["moments", "least_squares"])
def test_nothing_but_connectors_moves(how: str) -> None:
    distiller, batches = pair()
    student = copy.deepcopy(distiller.student.state_dict())
    assert distiller.teacher is not None
    teacher = copy.deepcopy(distiller.teacher.state_dict())
    random = torch.get_rng_state()
    start_connectors(distiller, batches, how)  # type: ignore[arg-type]
    for before, network in ((student, distiller.student), (teacher, distiller.teacher)):
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert distiller.student.training
    distiller(batches[0], torch.zeros(6, dtype=torch.int64)).total.backward()
    assert all(p.grad is not None for p in distiller.connectors.parameters())


def test_what_cannot_be_started_is_said() -> None:
    distiller, batches = pair()
    with pytest.raises(ValueError, match="there is no batch"):
        start_connectors(distiller, [])
    with pytest.raises(ValueError, match="how is 'mean'"):
        start_connectors(distiller, batches, "mean")  # type: ignore[arg-type]

    def plain(student: Feature, teacher: Feature) -> nn.Module:
        return nn.Conv2d(student.channels, teacher.channels, 1)

    assert distiller.teacher is not None
    other = BlockKD(distiller.teacher, distiller.student, batches[0], n_blocks=3, make_connector=plain)
    with pytest.raises(ValueError, match="only MapConnector"):
        start_connectors(other, batches)
