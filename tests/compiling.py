"""Compiled steps; run by test_devices.py in a process in which shapes are not checked, as compiled code cannot be."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.optim import SGD

import blockkd
from blockkd.baselines import (
    AT,
    CATKD,
    CRD,
    FCFD,
    MLKD,
    NST,
    OFD,
    PKT,
    RKD,
    SP,
    VID,
    DecoupledKD,
    FeatureAlignment,
    FitNet,
    ReviewKD,
    SimKD,
)
from blockkd.devices import compiled
from blockkd.distiller import Distiller, Losses
from blockkd.folding import fold_batch_norm
from blockkd.models import create_model

METHODS: list[Callable[..., Distiller]] = [
    blockkd.CrossEntropy, blockkd.KD, DecoupledKD, blockkd.BlockKD, MLKD, FitNet, AT, SP, NST, VID, OFD, CATKD, SimKD,
    FeatureAlignment, PKT, RKD, FCFD, ReviewKD, partial(CRD, n_samples=8),
]  # fmt: skip


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, 3, 16, 16, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return create_model("resnet20", 10), create_model("resnet8", 10)


def made(make: Callable[..., Distiller]) -> Distiller:
    takes = inspect.signature(make).parameters
    return make(*networks(), **({"example": batch()[0][:2]} if "example" in takes else {}))


class Graphs:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        del inputs
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    backend, original = Graphs(), torch.compile
    torch._dynamo.reset()

    def counted(function: Any, mode: str, **options: Any) -> Any:
        del mode  # is inductor's
        return original(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", counted)
    return backend


@pytest.mark.parametrize("make", METHODS, ids=lambda make: getattr(make, "__name__", "CRD"))
def test_a_step_is_one_graph_and_stays_it_or_the_method_says_that_it_is_none(
    make: Callable[..., Distiller], graphs: Graphs
) -> None:
    distiller = made(make)
    step = compiled(distiller, "default")
    if not distiller.compiles:
        assert step is distiller
        return
    images, labels = batch()
    counts = []
    for epoch in range(12):
        distiller.set_epoch(epoch)
        step(images, labels).total.backward()
        counts.append(graphs.count)
    assert counts[1] == counts[-1]  # nothing is compiled after the first steps


def test_the_start_of_l_cross_compiles_nothing_and_counts(graphs: Graphs) -> None:
    options: dict[str, Any] = {"gamma": 0.5, "cross_from_epoch": 2}
    plain = blockkd.BlockKD(*networks(), batch()[0][:2], **options)
    fast = blockkd.BlockKD(*networks(), batch()[0][:2], **options)
    fast.load_state_dict(plain.state_dict())
    step = compiled(fast, "default")
    for epoch in range(4):
        for distiller in (plain, fast):
            distiller.set_epoch(epoch)
        expected, got = plain(*batch()), step(*batch())
        torch.testing.assert_close(got.total, expected.total)
        for name, term in got.terms.items():
            torch.testing.assert_close(term, expected.terms.get(name, torch.tensor(0.0)))
        assert any(name.startswith("cross/") for name in expected.terms) == (epoch >= 2)
    assert graphs.count == 1


def steps_of(distiller: Distiller, run: Callable[..., Losses], layout: torch.memory_format) -> list[float]:
    """The loss of 20 steps of training on changing batches."""
    optimizer = SGD(distiller.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses = []
    for number in range(20):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(8, 3, 16, 16, generator=generator).contiguous(memory_format=layout)
        labels = torch.randint(0, 10, (8,), generator=generator)
        total = run(images, labels).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return losses


def test_the_fast_path_and_the_plain_one_agree_over_20_steps() -> None:
    """Batch norm folded, channels-last, compiled, L_cross: against all of these left away, in float32."""
    teacher, student = networks()
    images, _ = batch()
    teacher.train()(images)  # so that there is something to fold
    options: dict[str, Any] = {"gamma": 0.3}
    plain = blockkd.BlockKD(teacher.eval(), student, images[:2], **options)
    other = networks()[1]
    fast = blockkd.BlockKD(fold_batch_norm(teacher, images[:2]), other, images[:2], **options)
    fast.load_state_dict(plain.state_dict())
    fast.to(memory_format=torch.channels_last)
    expected = steps_of(plain, plain, torch.contiguous_format)
    got = steps_of(fast, compiled(fast, "default"), torch.channels_last)
    # Rounding grows from step to step, as each begins where the last one ended.
    assert got[:5] == pytest.approx(expected[:5], rel=1e-5)
    assert got == pytest.approx(expected, rel=1e-3)
    weights = [torch.cat([p.detach().flatten() for p in d.student.parameters()]) for d in (plain, fast)]
    assert float((weights[1] - weights[0]).norm() / weights[0].norm()) < 1e-2


def test_what_cannot_be_compiled_is_said_and_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs

        def fail(*args: Any) -> Any:
            del args
            raise TorchDynamoException("no compiler here\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    distiller = made(blockkd.KD)
    with pytest.raises(TorchDynamoException):
        compiled(distiller, "default")(*batch())
    step = compiled(distiller, "default", or_not=True)
    with pytest.warns(UserWarning, match=r"KD runs without being compiled: no compiler here$"):
        first = step(*batch())
    torch.testing.assert_close(step(*batch()).total, first.total)
