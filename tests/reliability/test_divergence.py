"""Numbers that stop being finite: found before the optimizer uses them, and traced to where they arose."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import blockkd
from blockkd.devices import fused
from blockkd.distiller import Distiller, Losses
from blockkd.divergence import DivergedError, FiniteWatch, Step, diagnose
from blockkd.models import ResNet
from blockkd.training import DistillationModule
from tests.test_training import trainer

CPU = torch.device("cpu")


class Overflowing(nn.Module):
    """Infinite for inputs beyond its limit."""

    def __init__(self, limit: float = 90.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x.abs() > self.limit, float("inf"))


class RootOf(nn.Module):
    """The gradient of the root at 0 is infinite, its value is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sqrt()


def network(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), middle, nn.Linear(8, 3))


def loader(bad: int | None = None, value: float = 1e4) -> DataLoader[Any]:
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    if bad is not None:
        inputs[bad * 8] = value
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8)


def diverge(distiller: Distiller, data: Any, tmp_path: Path, **options: Any) -> DivergedError:
    module = DistillationModule(distiller, partial(SGD, lr=0.01, **options))
    with pytest.raises(DivergedError) as caught:
        trainer(tmp_path).fit(module, data)
    return caught.value


def test_the_step_the_term_and_the_module_are_named(tmp_path: Path) -> None:
    distiller = blockkd.KD(network(nn.ReLU()), network(Overflowing()))
    said = diverge(distiller, loader(bad=2), tmp_path)
    assert "epoch 0, step 2: " in str(said)
    assert "task/student is nan" in str(said)
    assert "the first module whose output is not finite is student.2 (Overflowing)" in str(said)
    assert said.step is not None
    assert torch.equal(said.step.inputs, [batch[0] for batch in loader(bad=2)][2])


def test_a_module_of_the_teacher_is_named_too(tmp_path: Path) -> None:
    distiller = blockkd.KD(network(Overflowing()), network(nn.ReLU()))
    assert "is teacher.2 (Overflowing)" in str(diverge(distiller, loader(bad=1), tmp_path))


def test_a_stone_and_its_connector_are_named(tmp_path: Path) -> None:
    teacher, student = ResNet(8, (8, 8, 16, 32), 3, 1), ResNet(8, (4, 4, 8, 16), 3, 1)
    distiller = blockkd.BlockKD(teacher, student, torch.zeros(2, 1, 8, 8))
    next(distiller.connectors["2"].parameters()).data.fill_(float("nan"))
    images = torch.randn(16, 1, 8, 8)
    said = str(diverge(distiller, DataLoader(TensorDataset(images, torch.zeros(16).long()), batch_size=8), tmp_path))
    assert "task/stone_2 is nan" in said
    assert "stone_1" not in said
    assert "connectors.2" in said
    assert "was no longer finite before" in said


def test_a_bad_batch_is_told_from_a_bad_network(tmp_path: Path) -> None:
    said = str(diverge(blockkd.KD(network(nn.ReLU()), network(nn.ReLU())), loader(3, float("nan")), tmp_path))
    assert "step 3" in said
    assert "the batch itself holds values that are not finite" in said


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    student = nn.Sequential(nn.Linear(6, 8), nn.Hardtanh(5, 6), nn.Linear(8, 3), RootOf())
    nn.init.zeros_(student[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(student[2].bias)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    said = str(diverge(blockkd.CrossEntropy(None, student), loader(), tmp_path))
    assert "epoch 0, step 0: the losses are finite, but the gradient of student." in said
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_with_scaled_gradients_an_overflow_is_the_scalers_business(tmp_path: Path) -> None:
    module = DistillationModule(blockkd.KD(network(nn.ReLU()), network(nn.ReLU())), partial(SGD, lr=0.01))
    run = trainer(tmp_path, epochs=1)

    class Scaling(DistillationModule):
        @property
        def _scaler(self) -> Any:
            return object()

        def on_after_backward(self) -> None:
            if self.global_step == 3:  # the last
                next(self.distiller.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    run.fit(Scaling(module.distiller, module.make_optimizer), loader())  # does not raise


@pytest.mark.parametrize("lag", [0, 2])
def test_no_step_is_taken_from_the_bad_one_on_however_late_it_is_seen(lag: int) -> None:
    """As on a GPU, where the host is some steps behind: the flag itself keeps the optimizer from its steps."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    optimizer = fused(SGD(layer.parameters(), lr=0.1, momentum=0.9), "cpu")
    watch = FiniteWatch(CPU, gated=True)
    weights: list[Tensor] = []
    values = [1.0, 2.0, float("nan"), 1.0, 1.0, 1.0]
    for number, value in enumerate(values):
        inputs = torch.full((2, 3), value)
        loss = layer(inputs).square().mean()
        watch.look(loss)
        optimizer.zero_grad()
        loss.backward()
        watch.look_at_gradients(layer.parameters())
        optimizer.found_inf = watch.flag  # type: ignore[attr-defined]
        optimizer.step()
        weights.append(layer.weight.detach().clone())
        watch._pending.append((watch.flag.clone(), None, Step(0, number, inputs, torch.zeros(2))))
        found = watch._first_pending(lag)
        if found is not None:
            break
    assert found is not None
    assert found.number == 2
    assert number == 2 + lag
    assert not torch.equal(weights[0], weights[1])
    assert all(torch.equal(weight, weights[1]) for weight in weights[1:])


def test_draining_finds_what_has_not_been_looked_at() -> None:
    watch = FiniteWatch(CPU, gated=True)
    for number, value in enumerate([0.0, float("inf")]):
        watch.look(torch.tensor(value))
        watch._pending.append((watch.flag.clone(), None, Step(0, number, None, torch.zeros(2))))
    found = watch.drain()
    assert found is not None
    assert found.number == 1
    assert watch.drain() is None


def test_a_step_is_taken_again_with_the_same_random_numbers() -> None:
    class Drawing(Distiller):
        def forward(self, inputs: Any, targets: Tensor, **context: Tensor) -> Losses:
            del targets, context
            self.drawn = torch.rand(4)
            logits = self.student(inputs)
            return Losses.of({"task/student": logits.square().mean()}, logits)

    distiller = Drawing(None, network(nn.ReLU()))
    state = torch.get_rng_state()
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    losses = distiller(inputs, torch.zeros(4))
    drawn = distiller.drawn
    after = torch.get_rng_state()
    found = diagnose(distiller, Step(0, 0, inputs, torch.zeros(4), randomness=(state,)))
    assert torch.equal(distiller.drawn, drawn)
    assert found.terms["task/student"] == float(losses.total.detach())  # dropout fell on the same units
    assert found.finite
    assert torch.equal(torch.get_rng_state(), after)
