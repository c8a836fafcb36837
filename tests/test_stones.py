"""Laws of the stones: a sweep is each stone alone; ``N_0`` is the teacher; only the input's gradient is paid for."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks
from blockkd.models import ResNet, WideResNet
from blockkd.partitioning import partition
from blockkd.stones import chosen_stones, stone_logits
from tests import networks
from tests.networks import CUTTABLE, IMAGE
from tests.oracles.block_kd import one_by_one


def teacher_blocks(name: str = "plain") -> tuple[nn.Module, Blocks, Tensor]:
    torch.manual_seed(0)
    make, shape = CUTTABLE[name]
    network = make().double().eval().requires_grad_(False)
    example = torch.randn(3, *shape, dtype=torch.float64)
    return network, partition(network, example, frozen=True), example


@pytest.mark.parametrize("name", CUTTABLE)
def test_stone_zero_is_the_teacher(name: str) -> None:
    network, blocks, x = teacher_blocks(name)
    assert torch.equal(stone_logits(blocks, {0: x})[0], network(x))


@pytest.mark.parametrize("name", CUTTABLE)
def test_a_stone_of_the_teachers_own_features_is_the_teacher(name: str) -> None:
    network, blocks, x = teacher_blocks(name)
    features, logits = blocks.run(x)
    for stone in stone_logits(blocks, dict(enumerate(features, start=1))).values():
        torch.testing.assert_close(stone, logits)
    assert torch.equal(logits, network(x))


@pytest.mark.parametrize("name", sorted(set(CUTTABLE) - {"hidden-branch"}))  # which looks at the whole batch
def test_one_sweep_equals_each_stone_alone(name: str) -> None:
    _, blocks, x = teacher_blocks(name)
    features = [torch.randn_like(feature, requires_grad=True) for feature in blocks.run(x)[0]]
    swept = stone_logits(blocks, dict(enumerate(features, start=1)))
    assert list(swept) == list(range(1, len(blocks) + 1))
    weights = {i: torch.randn_like(logits) for i, logits in swept.items()}
    gradients = torch.autograd.grad(sum((swept[i] * weights[i]).sum() for i in swept), features)  # type: ignore[arg-type]
    for i, feature in enumerate(features, start=1):
        alone = one_by_one(list(blocks.blocks), blocks.classifier, i, feature)
        torch.testing.assert_close(swept[i], alone)
        (gradient,) = torch.autograd.grad((alone * weights[i]).sum(), feature)
        torch.testing.assert_close(gradients[i - 1], gradient)


@pytest.mark.parametrize(("kind", "stone", "affine"), [("resnet", 3, True), ("resnet", 2, False), ("wide", 3, False)])
def test_where_the_teacher_pools_its_last_block_the_last_stone_is_affine_in_the_students_pooled_feature(
    kind: str, stone: int, affine: bool
) -> None:
    torch.manual_seed(0)
    teacher: nn.Module
    student: nn.Module
    if kind == "resnet":
        teacher, student = (ResNet(8, (4, 4, 6, width), num_classes=5).double() for width in (12, 8))
    else:  # normalises and rectifies between the last block and pooling
        teacher, student = (WideResNet(10, widen, num_classes=5).double() for widen in (2, 1))
    x = torch.randn(160, 3, 16, 16, dtype=torch.float64)
    for _ in range(3):  # running statistics that are not those of the start
        teacher(x)
    distiller = BlockKD(teacher, student, x[:2], stones=[stone])
    distiller(x, torch.randint(5, (160,)))
    said = distiller.eval().all_logits(x)[f"stone_{stone}"]
    feature = distiller.student_features(x)[0][-1].mean((2, 3))
    rows = torch.cat([feature, torch.ones(160, 1, dtype=torch.float64)], dim=1).detach()  # 65 unknowns at the most
    residual = rows @ torch.linalg.lstsq(rows, said).solution - said
    share = float(residual.norm() / (said - said.mean(0)).norm())
    assert share < 1e-9 if affine else share > 0.01, share


def test_a_block_runs_once_however_many_stones_pass() -> None:
    _, blocks, x = teacher_blocks()
    calls: list[tuple[int, int]] = []
    for i, block in enumerate((*blocks.blocks, blocks.classifier), start=1):
        block.register_forward_hook(lambda _m, inputs, _o, i=i: calls.append((i, len(inputs[0]))))
    features = blocks.run(x)[0]
    calls.clear()
    stone_logits(blocks, dict(enumerate(features, start=1)))
    assert calls == [(2, 3), (3, 6), (4, 9)]


@pytest.mark.parametrize(
    ("stones", "chosen"), [("all", (1, 2, 3)), ("last", (3,)), ([3, 1], (1, 3)), ([], ()), ((2,), (2,))]
)
def test_chosen_stones(stones: object, chosen: tuple[int, ...]) -> None:
    assert chosen_stones(stones, 3) == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize("stones", [[0], [4], [1, 1], "first"])
def test_wrong_stones(stones: object) -> None:
    # The type checker of the tests is faster than our own sentence where the word is wrong.
    with pytest.raises((ValueError, TypeCheckError), match=r"stones is .*expected|Literal"):
        chosen_stones(stones, 3)  # type: ignore[arg-type]


class Masked(nn.Module):
    """A block that needs a mask beside the hidden state."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + torch.tanh(self.linear((x * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]))


class MaskedMean(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class MaskedNetwork(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Masked() for _ in range(depth))
        self.head = MaskedMean()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x, mask)


def test_context_travels_beside_the_hidden_state() -> None:
    torch.manual_seed(0)
    network = MaskedNetwork().double().eval()
    blocks = Blocks(list(network.layers), network.head)
    x, mask = torch.randn(3, 4, 6, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    mask[0, 2:] = 0
    features, logits = blocks.run(x, mask=mask)
    assert torch.equal(logits, network(x, mask))
    for stone in stone_logits(blocks, dict(enumerate(features, start=1)), mask=mask).values():
        torch.testing.assert_close(stone, logits)


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("stones", ["all", "last", [2, 3]])
def test_flops_of_a_step_are_the_ideal(stones: object) -> None:
    """Student 3 × forward, teacher 1 ×, connectors 3 ×, each tail 2 ×: no weight gradient is computed there."""
    torch.manual_seed(0)
    teacher, student = networks.Plain((16, 32, 64)), networks.Plain((4, 8, 16))
    x, y = torch.randn(8, *IMAGE), torch.randint(5, (8,))
    distiller = BlockKD(teacher, student, x, stones=stones)  # type: ignore[arg-type]
    tails, connectors = 0, 0
    features = distiller.student_blocks.run(x)[0]
    for i in distiller.stones:
        connector = distiller.connectors[str(i)]
        connected = connector(features[i - 1])
        connectors += flops(partial(connector, features[i - 1]))
        theirs = distiller.teacher_blocks
        tails += flops(partial(one_by_one, list(theirs.blocks), theirs.classifier, i, connected))
    first = flops(lambda: student.get_submodule("stages.0.0")(x))
    ideal = 3 * flops(lambda: student(x)) - first + flops(lambda: teacher(x)) + 3 * connectors + 2 * tails
    assert flops(lambda: distiller(x, y).total.backward()) == ideal
