"""Block-KD between transformers: padding says nothing, context reaches every block, numbers are regressed."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.block_kd import BlockKD
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import logits_of
from blockkd.distances import DIST, DKD, KL, SquaredError
from blockkd.distiller import Losses
from tests.oracles import block_kd as oracle
from tests.text.families import IMAGES, TEXT, classifier, images, sentences
from tests.text.test_stacks import by_hook

LABELS = torch.tensor([0, 2, 1])


def distilled(family: str, *, student: str | None = None, classes: int = 3, **options: object) -> BlockKD:
    """A teacher of 4 layers, a narrower student of 2, in double precision and without dropout."""
    teacher = classifier(family, layers=4, width=16, classes=classes).double()
    small = classifier(student or family, layers=2, width=8, classes=classes, seed=1).double()
    example = images(2) if family in IMAGES else sentences([4, 6])
    example = {name: value.double() if value.is_floating_point() else value for name, value in example.items()}
    torch.manual_seed(2)
    distiller = BlockKD(teacher, small, example, **options)  # type: ignore[arg-type]
    for module in distiller.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return distiller.eval()


def stepped(distiller: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and logits, and gradients, of one batch."""
    distiller.zero_grad()
    losses = distiller(inputs, labels)
    losses.total.backward()
    gradients = [p.grad.clone() for p in distiller.parameters() if p.grad is not None]
    return [*losses.terms.values(), losses.logits], gradients


@pytest.mark.parametrize("family", TEXT)
def test_further_padding_changes_neither_losses_nor_gradients(family: str) -> None:
    distiller = distilled(family, gamma=0.5)
    distiller.set_epoch(1)
    short = stepped(distiller, sentences([5, 3, 7]), LABELS)
    assert len(short[0]) == 10
    for length in (8, 13, 20):
        padded = stepped(distiller, sentences([5, 3, 7], to=length), LABELS)
        torch.testing.assert_close(short, padded)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "qwen3"])
@pytest.mark.parametrize("method", [KD, CrossEntropy])
def test_further_padding_changes_nothing_of_methods_without_blocks(family: str, method: type) -> None:
    student = classifier(family, layers=2, seed=1).double().eval()
    distiller = method(classifier(family).double(), student).eval()
    short = stepped(distiller, sentences([5, 3, 7]), LABELS)
    torch.testing.assert_close(short, stepped(distiller, sentences([5, 3, 7], to=11), LABELS))


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_the_order_in_the_batch_changes_nothing(order: list[int]) -> None:
    distiller, inputs = distilled("deberta-v2"), sentences([5, 3, 7])
    first = stepped(distiller, inputs, LABELS)[0][:-1]
    moved = {name: value[order] for name, value in inputs.items()}
    torch.testing.assert_close(first, stepped(distiller, moved, LABELS[order])[0][:-1])


@pytest.mark.parametrize("family", [*TEXT, *IMAGES])
def test_the_loss_and_its_gradient_are_those_of_the_equations(family: str) -> None:
    distiller = distilled(family, gamma=0.7, alpha=0.3, beta=0.9, distance=KL(3.0))
    if family in IMAGES:
        inputs: dict[str, Tensor] = {name: value.double() for name, value in images(3).items()}
    else:
        inputs = sentences([5, 3, 7])
    distiller.zero_grad()
    losses = distiller(inputs, LABELS)
    losses.total.backward()
    gradients = [p.grad.clone() for p in distiller.parameters() if p.grad is not None]

    distiller.zero_grad()
    teacher = distiller.teacher
    assert teacher is not None
    logits = logits_of(distiller.student, inputs)
    seen: list[Tensor] = []
    hooks = [
        distiller.student.get_submodule(name).register_forward_hook(
            lambda _m, _a, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for name in distiller.student_blocks.names
    ]
    logits = logits_of(distiller.student, inputs)
    for hook in hooks:
        hook.remove()
    stones = {
        i: by_hook(teacher, distiller.teacher_blocks.names[i - 1], distiller.connectors[str(i)](seen[i - 1]), inputs)
        for i in (1, 2)
    }
    expected = oracle.loss(logits, logits_of(teacher, inputs), stones, LABELS, 2, (0.3, 0.9, 0.7), 3.0, True)
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(gradients, [p.grad for p in distiller.parameters() if p.grad is not None])


@pytest.mark.parametrize("stone", [1, 2])
def test_a_stones_gradient_reaches_its_student_blocks_and_its_connector_only(stone: int) -> None:
    distiller = distilled("bert")
    distiller(sentences([5, 3, 7]), LABELS).terms[f"distill/stone_{stone}"].backward()
    reached = {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    places = {"student.bert.embeddings", "student.bert.encoder.layer.0", f"connectors.{stone}"}
    places |= {"student.bert.encoder.layer.1"} if stone == 2 else set()
    assert {next((place for place in places if name.startswith(place + ".")), name) for name in reached} == places
    assert distiller.teacher is not None
    assert all(p.grad is None for p in distiller.teacher.parameters())


@pytest.mark.parametrize(("teacher", "student"), [("bert", "distilbert"), ("roberta", "mpnet"), ("modernbert", "bert")])
def test_families_can_be_mixed(teacher: str, student: str) -> None:
    distiller = distilled(teacher, student=student)
    short = stepped(distiller, sentences([5, 3, 7]), LABELS)
    torch.testing.assert_close(short, stepped(distiller, sentences([5, 3, 7], to=9), LABELS))


def test_the_student_has_as_many_blocks_as_layers_and_the_teacher_as_many() -> None:
    distiller = distilled("bert")
    assert distiller.student_blocks.names == ("bert.encoder.layer.0", "bert.encoder.layer.1")
    assert distiller.teacher_blocks.names == ("bert.encoder.layer.1", "bert.encoder.layer.3")
    other = distilled("bert", teacher_blocks=[1, 4])
    assert other.teacher_blocks.names == ("bert.encoder.layer.0", "bert.encoder.layer.3")
    assert [str(feature) for feature in other.student_blocks.features] == ["6×8 LD", "6×8 LD"]


def test_the_teacher_stays_as_it_is_while_the_student_trains() -> None:
    distiller = distilled("modernbert").train()
    teacher = distiller.teacher
    assert teacher is not None
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    totals = []
    teacher.train()  # somebody's mistake
    for _ in range(8):
        optimizer.zero_grad()
        losses = distiller(sentences([5, 3, 7]), LABELS)
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < totals[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert {key.split(".")[0] for key in distiller.state_dict()} == {"student", "connectors"}


@pytest.mark.parametrize("distance", [None, KL(2.0), SquaredError()])
def test_a_regression_is_learned_by_squared_errors(distance: object) -> None:
    distiller = distilled("bert", classes=1, alpha=0.25, beta=0.75, distance=distance)
    inputs, numbers = sentences([5, 3, 7]), torch.tensor([0.5, 4.0, 2.5], dtype=torch.float64)
    losses = distiller(inputs, numbers)
    assert distiller.teacher is not None
    ours, theirs = losses.logits[:, 0], logits_of(distiller.teacher, inputs)[:, 0]
    torch.testing.assert_close(losses.terms["task/student"], 0.25 * (ours - numbers).square().sum() / 3)
    torch.testing.assert_close(losses.terms["distill/student"], 0.75 * (ours - theirs).square().sum() / 3)
    kd = KD(distiller.teacher, distiller.student, 0.25, 0.75, distance)  # type: ignore[arg-type]
    for name, term in kd(inputs, numbers).terms.items():
        torch.testing.assert_close(term, losses.terms[name])


@pytest.mark.parametrize("distance", [DKD(), DIST()])
def test_distances_of_classes_are_refused_for_a_regression(distance: object) -> None:
    distiller = distilled("bert", classes=1, distance=distance)
    with pytest.raises(ValueError, match="compares probabilities of classes, but the labels are numbers"):
        distiller(sentences([5, 3, 7]), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("method", [BlockKD, KD])
def test_what_the_teacher_said_before_can_be_given(method: type) -> None:
    networks = classifier("bert").double(), classifier("bert", layers=2, seed=1).double()
    inputs = sentences([5, 3, 7])
    distiller = (BlockKD(*networks, inputs) if method is BlockKD else KD(*networks)).eval()
    recorded = logits_of(networks[0], inputs)
    assert torch.equal(distiller(inputs, LABELS, recorded=recorded).total, distiller(inputs, LABELS).total)
    other = distiller(inputs, LABELS, recorded=recorded.flip(1)).total
    assert not torch.equal(other, distiller(inputs, LABELS).total)


def test_label_smoothing_is_refused_for_a_regression() -> None:
    with pytest.raises(ValueError, match="the labels are numbers"):
        CrossEntropy(None, classifier("bert", classes=1), 0.1)(sentences([5, 3]), torch.zeros(2))


def test_methods_that_do_not_know_padding_are_refused() -> None:
    class Places(BlockwiseDistiller):
        def forward(self, inputs: Any, targets: Tensor, **context: Tensor) -> Losses:
            raise NotImplementedError  # it is refused before its first step

    with pytest.raises(TypeError, match="Places compares features place by place and does not know which"):
        Places(classifier("bert"), classifier("bert", layers=2, seed=1), sentences([4, 6]))


def test_one_tensor_given_to_blocks_of_named_ones_is_told() -> None:
    distiller = distilled("bert")
    with pytest.raises(TypeError, match="was cut for named tensors, got one tensor"):
        distiller.teacher_blocks.beside(sentences([4, 6])["input_ids"])


def test_the_whole_step_compiles_to_one_graph_for_all_lengths() -> None:
    """A first graph for the length that comes first, and one for all others: no recompilation without end."""
    code = """
import torch
import blockkd
from torch._dynamo.utils import counters
from tests.text.families import classifier, sentences
teacher, student = classifier("bert", layers=2), classifier("bert", layers=1, width=8, seed=1)
distiller = blockkd.BlockKD(teacher, student, sentences([4, 6])).eval()
compiled = torch.compile(distiller, fullgraph=True, backend="eager")
labels = torch.tensor([0, 1, 2])
for length in (8, 16, 24, 32, 8, 16):
    inputs = sentences([5, 3, 7], to=length)
    losses = compiled(inputs, labels)
    torch.testing.assert_close(losses.total, distiller(inputs, labels).total)
    losses.total.backward()
print(counters["stats"]["unique_graphs"])
"""
    # In a process of its own, without the checks of shapes that the tests put around every function.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) <= 2
