"""Laws of CRD."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.contrast import CRD, Memory, noise_contrastive
from blockkd.baselines.logits import KD
from blockkd.distances import KL
from tests import networks
from tests.baselines.laws import CIFAR_PAIRS, TwoLayerHead, check_step, field_pair, tiny
from tests.networks import IMAGE
from tests.oracles import contrast as oracle

INDICES = torch.tensor([3, 0, 8, 5])


def crd(**options: Any) -> tuple[CRD, Tensor, Tensor]:
    teacher, student, x, y = tiny()
    settings: dict[str, Any] = {"dim": 6, "negatives": 7} | options
    if "queue_size" not in settings:
        settings.setdefault("n_samples", 9)
    return CRD(teacher, student, x, **settings).train(), x, y


def embeddings(distiller: CRD, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the tiny networks, whose classifier gets the mean over the last stage."""
    found = []
    teacher: Any = distiller.teacher
    student: Any = distiller.student
    for network, embed in ((student, distiller.embed_student), (teacher, distiller.embed_teacher)):
        value = x
        for stage in network.stages:
            value = stage(value)
        found.append(torch.stack([oracle.unit(row) for row in embed(value.mean((2, 3)))]))
    return found[0], found[1]


@pytest.mark.parametrize(("teacher", "student"), CIFAR_PAIRS)
def test_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    theirs, ours, x, y = field_pair(teacher, student)
    check_step(CRD(theirs, copy.deepcopy(ours), x, n_samples=1000), x, y, indices=torch.tensor([7, 999]))
    check_step(CRD(theirs, ours, x, queue_size=64, negatives=128), x, y)


@pytest.mark.parametrize("queue", [False, True])
def test_the_loss_is_that_of_the_equations(queue: bool) -> None:
    distiller, x, y = crd(alpha=0.0, beta=0.6, temperature=0.3, **({"queue_size": 9} if queue else {}))
    distiller.memory.labels.copy_(torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, -1]))
    twin = copy.deepcopy(distiller)
    torch.manual_seed(5)
    losses = distiller(x, y, indices=None if queue else INDICES)
    losses.total.backward()

    torch.manual_seed(5)
    drawn = torch.randint(9, (4, 7))
    ours, theirs = embeddings(twin, x)
    memory = twin.memory
    allowed = torch.tensor(
        [
            [int(memory.labels[j]) != int(label) and (queue or int(j) != int(index)) for j in row]
            for row, label, index in zip(drawn, y, INDICES, strict=True)
        ]
    )
    assert not bool(allowed.all())
    keys = (theirs.detach(), ours.detach()) if queue else (memory.teacher[INDICES], memory.student[INDICES])
    expected = oracle.direction(ours, keys[0], memory.teacher, drawn, allowed, 0.3)
    expected = expected + oracle.direction(theirs, keys[1], memory.student, drawn, allowed, 0.3)
    expected = 0.6 * expected
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    for a, b in zip(distiller.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_the_first_batch_settles_the_scale() -> None:
    distiller, x, y = crd(alpha=0.0, temperature=0.5)
    assert torch.isinf(distiller.log_mean_student)
    distiller(x, y, indices=INDICES)
    settled = distiller.log_mean_student.clone(), distiller.log_mean_teacher.clone()
    assert all(bool(value.isfinite()) for value in settled)
    twin = copy.deepcopy(distiller)
    torch.manual_seed(5)
    term = distiller(x, y, indices=INDICES).terms["feature/student"]
    assert torch.equal(distiller.log_mean_student, settled[0])
    assert torch.equal(distiller.log_mean_teacher, settled[1])
    torch.manual_seed(5)
    drawn = torch.randint(9, (4, 7))
    ours, _ = embeddings(twin, x)
    allowed = (twin.memory.labels[drawn] != y[:, None]) & (drawn != INDICES[:, None])
    keys, mean = twin.memory.teacher[INDICES], math.exp(float(settled[0]))
    expected = oracle.direction(ours, keys, twin.memory.teacher, drawn, allowed, 0.5, mean)
    torch.testing.assert_close(term, 0.8 * expected)


def test_the_memory_moves_by_momentum_where_its_samples_came_by() -> None:
    distiller, x, y = crd(momentum=0.3)
    before = copy.deepcopy(distiller.memory)
    ours, theirs = embeddings(copy.deepcopy(distiller), x)
    distiller(x, y, indices=INDICES)
    for i, new_student, new_teacher, label in zip(INDICES, ours, theirs, y, strict=True):
        torch.testing.assert_close(distiller.memory.student[i], oracle.moved(before.student[i], new_student, 0.3))
        torch.testing.assert_close(distiller.memory.teacher[i], oracle.moved(before.teacher[i], new_teacher, 0.3))
        assert distiller.memory.labels[i] == label
    others = torch.tensor([i for i in range(9) if i not in INDICES])
    assert torch.equal(distiller.memory.student[others], before.student[others])
    assert not distiller.memory.student.requires_grad
    kept = distiller.memory.student.clone()
    distiller.eval()(x, y, indices=INDICES)
    assert torch.equal(distiller.memory.student, kept)


def test_a_queue_holds_the_last_embeddings_and_no_more() -> None:
    distiller, x, y = crd(queue_size=6)
    first = embeddings(copy.deepcopy(distiller), x)[0]
    distiller(x, y)
    torch.testing.assert_close(distiller.memory.student[:4], first)
    second = embeddings(copy.deepcopy(distiller), x)[0]
    distiller(x, y)
    torch.testing.assert_close(distiller.memory.student[[4, 5, 0, 1]], second)
    torch.testing.assert_close(distiller.memory.student[2:4], first[2:4])
    assert distiller.memory.labels.tolist() == [4, 1, 4, 1, 0, 3]
    assert int(distiller.cursor) == 2

    short, x, y = crd(queue_size=3)
    latest = embeddings(copy.deepcopy(short), x)[1]
    short(x, y)
    torch.testing.assert_close(short.memory.teacher[[1, 2, 0]], latest[1:])


def test_memory_does_not_grow_with_the_data_in_a_queue() -> None:
    sizes = []
    for options in ({"n_samples": 5000}, {"queue_size": 50}):
        distiller, _, _ = crd(**options)
        sizes.append(sum(buffer.numel() for buffer in distiller.memory.buffers()))
    assert sizes == [5000 * 13, 50 * 13]


def test_memory_starts_with_directions_of_length_one() -> None:
    memory = Memory(50, 6)
    torch.testing.assert_close(memory.student.square().sum(1), torch.ones(50))
    assert not torch.equal(memory.student, memory.teacher)


def test_noise_contrastive_survives_sharp_temperatures_and_half_precision() -> None:
    torch.manual_seed(0)
    positive, negative = -torch.rand(3).half(), torch.rand(3, 5).half()
    allowed, log_mean = torch.ones(3, 5, dtype=torch.bool), torch.tensor(1.0)
    loss = noise_contrastive(positive, negative, allowed, log_mean, 0.001)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    torch.testing.assert_close(loss, noise_contrastive(positive.float(), negative.float(), allowed, log_mean, 0.001))


def test_order_and_what_is_not_allowed_play_no_part() -> None:
    torch.manual_seed(0)
    positive, negative = torch.rand(3).double(), torch.rand(3, 5).double()
    allowed, log_mean = torch.rand(3, 5) > 0.4, torch.tensor(0.3).double()
    loss = noise_contrastive(positive, negative, allowed, log_mean, 0.2)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(noise_contrastive(positive[order], negative[order], allowed[order], log_mean, 0.2), loss)
    other = torch.where(allowed, negative, 0.9)
    torch.testing.assert_close(noise_contrastive(positive, other, allowed, log_mean, 0.2), loss)
    none = noise_contrastive(positive, negative, torch.zeros_like(allowed), log_mean, 0.2)
    torch.testing.assert_close(none, -F.logsigmoid(positive / 0.2 - math.log(5) - 0.3).mean())


def test_a_closer_positive_costs_less_and_a_closer_negative_more() -> None:
    positive = torch.tensor([0.2], requires_grad=True)
    negative = torch.tensor([[0.1, 0.4]], requires_grad=True)
    allowed = torch.ones(1, 2, dtype=torch.bool)
    noise_contrastive(positive, negative, allowed, torch.tensor(0.0), 0.1).backward()
    assert positive.grad is not None
    assert negative.grad is not None
    assert bool(positive.grad < 0)
    assert bool((negative.grad > 0).all())


def test_training_draws_student_and_teacher_embeddings_together() -> None:
    distiller, x, y = crd(alpha=0.0, negatives=64)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)
    agreement = []
    for _ in range(40):
        ours, theirs = embeddings(copy.deepcopy(distiller), x)
        agreement.append(float((ours * theirs).sum(1).mean().detach()))
        optimizer.zero_grad()
        distiller(x, y, indices=INDICES).total.backward()
        optimizer.step()
    assert agreement[-1] > agreement[0] + 0.3


def test_networks_without_maps_take_part() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 3, 4, 1])
    check_step(CRD(networks.Tokens(), networks.Plain(), x, n_samples=9, negatives=5), x, y, indices=INDICES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": None}, "n_samples is None and queue_size is None, expected exactly one"),
        ({"n_samples": 9, "queue_size": 4}, "n_samples is 9 and queue_size is 4"),
        ({"queue_size": 4, "momentum": 0.5}, "a queue has none"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"n_samples": 0}, "n_samples is 0, expected above zero"),
        ({"negatives": 0, "temperature": 0.0}, "negatives is 0, temperature is 0.0, expected above zero"),
    ],
)
def test_bad_options_are_told_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crd(**options)


def test_bad_indices_are_told_so() -> None:
    distiller, x, y = crd()
    with pytest.raises(ValueError, match="must know which ones these are: call it with indices="):
        distiller(x, y)
    with pytest.raises(ValueError, match="indices lie in 0 … 9, expected 0 … 8: n_samples is 9"):
        distiller(x, y, indices=torch.tensor([0, 1, 2, 9]))
    with pytest.raises(ValueError, match="not the output of one linear layer"):
        CRD(networks.Plain(), TwoLayerHead(), x.float(), n_samples=9)
    named = CRD(networks.Plain(), TwoLayerHead(), x.float(), n_samples=9, negatives=4, student_head="head")
    assert named(x.float(), y, indices=INDICES).total.isfinite()


def test_a_logit_distance_beside_it() -> None:
    """CRD + KD, as the authors report it."""
    distiller, x, y = crd(logit_weight=0.7, distance=KL(2.0), alpha=0.3)
    twin = copy.deepcopy(distiller)
    terms = distiller(x, y, indices=INDICES).terms
    assert set(terms) == {"task/student", "distill/student", "feature/student", "feature/teacher"}
    assert twin.teacher is not None
    expected = KD(twin.teacher, twin.student, 0.3, 0.7, KL(2.0))(x, y).terms
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_nothing_of_it_is_in_the_student() -> None:
    distiller, x, y = crd()
    names = {name.split(".")[0] for name in distiller.state_dict()}
    parts = {"student", "embed_student", "embed_teacher", "memory"}
    assert names == parts | {"log_mean_student", "log_mean_teacher", "cursor"}
    assert list(distiller.student.state_dict()) == list(networks.Plain((3, 4, 5)).state_dict())
    assert isinstance(distiller.student, nn.Module)
    without = crd(beta=0.0)[0](x, y)
    assert without.terms.keys() == {"task/student"}
