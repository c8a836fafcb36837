"""A Distiller under Lightning."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import blockkd
from blockkd.distiller import Distiller, Losses
from blockkd.divergence import DivergedError
from blockkd.training import DistillationModule


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 6, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8)


def trainer(tmp_path: Path, epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **{"enable_checkpointing": False, **options},
    )


def kd() -> blockkd.KD:
    return blockkd.KD(network(16), network(4))


sgd = partial(SGD, lr=0.1)


class Failing(Distiller):
    """Gives a bad term at the third step."""

    def __init__(self, value: float) -> None:
        super().__init__(None, network(4))
        self.value, self.steps = value, 0

    def forward(self, inputs: Any, targets: Tensor, **context: Tensor) -> Losses:
        del targets, context
        self.steps += 1
        logits = self.student(inputs)
        bad = logits.sum() * (self.value if self.steps == 3 else 1.0)
        return Losses.of({"task/student": logits.square().mean(), "distill/stone_2": bad}, logits)


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    under_lightning, plain = kd(), kd()
    plain.load_state_dict(under_lightning.state_dict())
    assert plain.teacher is not None
    assert under_lightning.teacher is not None
    plain.teacher.load_state_dict(under_lightning.teacher.state_dict())
    module = DistillationModule(under_lightning, sgd, partial(StepLR, step_size=1, gamma=0.5))
    trainer(tmp_path).fit(module, loader(), loader())

    optimizer = sgd(list(plain.parameters()))
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5**epoch
        for inputs, targets in loader():
            optimizer.zero_grad()
            plain(inputs, targets).total.backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, under_lightning.state_dict()[name]), name


def test_the_default_schedule_is_a_cosine_over_all_epochs(tmp_path: Path) -> None:
    rates = []

    class Watched(DistillationModule):
        def on_train_epoch_end(self) -> None:
            rates.append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    trainer(tmp_path, epochs=4).fit(Watched(kd(), sgd), loader())
    expected = [0.1 * (1 + torch.cos(torch.tensor(torch.pi * epoch / 4)).item()) / 2 for epoch in range(1, 5)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_default_schedule_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_epochs"):
        trainer(tmp_path, epochs=-1).fit(DistillationModule(kd(), sgd), loader())


def test_every_term_and_accuracy_is_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    module = DistillationModule(kd(), sgd)
    run.fit(module, loader(), loader())
    logged = run.callback_metrics
    assert {"train/loss", "train/task/student", "train/distill/student", "train/accuracy"} <= set(logged)
    assert float(logged["train/loss"]) == pytest.approx(
        float(logged["train/task/student"] + logged["train/distill/student"]), rel=1e-5
    )
    module.eval()
    inputs, targets = loader().dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        share = float((module(inputs).argmax(1) == targets).float().mean())
    assert float(logged["val/accuracy"]) == pytest.approx(share)
    assert run.test(module, loader(), verbose=False)[0]["test/accuracy"] == pytest.approx(share)


def test_the_method_learns_which_epoch_it_is(tmp_path: Path) -> None:
    seen = []

    class Watched(blockkd.KD):
        def set_epoch(self, epoch: int) -> None:
            seen.append(epoch)

    trainer(tmp_path, epochs=3).fit(DistillationModule(Watched(network(16), network(4)), sgd), loader())
    assert seen == [0, 1, 2]


def test_a_student_left_in_evaluation_mode_is_trained_in_training_mode(tmp_path: Path) -> None:
    module = DistillationModule(kd(), sgd).eval()
    norm = module.distiller.student.get_submodule("1")
    trainer(tmp_path, epochs=1).fit(module, loader())
    assert int(norm.num_batches_tracked) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_term_stops_before_the_step(tmp_path: Path, value: float) -> None:
    distiller = Failing(value)
    history: list[Tensor] = []
    weight = distiller.student.get_parameter("0.weight")

    class Watched(DistillationModule):
        def on_train_batch_end(self, *args: Any) -> None:
            del args
            history.append(weight.detach().clone())

    with pytest.raises(DivergedError, match=r"epoch 0, step 2: distill/stone_2 is (nan|-?inf)") as caught:
        trainer(tmp_path).fit(Watched(distiller, sgd), loader())
    assert "task/student" not in str(caught.value)
    assert len(history) == 2
    assert torch.equal(weight, history[-1])


def block_kd() -> Distiller:
    from blockkd.models import ResNet

    return blockkd.BlockKD(ResNet(8, (8, 8, 16, 32), 3, 1), ResNet(8, (4, 4, 8, 16), 3, 1), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("make", [kd, block_kd])
def test_the_teacher_is_in_no_checkpoint(tmp_path: Path, make: Callable[[], Distiller]) -> None:
    distiller, data = make(), loader()
    assert distiller.teacher is not None
    if make is block_kd:
        images = torch.randn(16, 1, 8, 8)
        data = DataLoader(TensorDataset(images, torch.zeros(16, dtype=torch.int64)), batch_size=8)
    run = trainer(tmp_path, epochs=1, enable_checkpointing=True)
    run.fit(DistillationModule(distiller, sgd), data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert {f"distiller.student.{name}" for name in distiller.student.state_dict()} <= names
    assert not any("teacher" in name for name in names)
    largest = {tuple(value.shape) for value in distiller.teacher.state_dict().values() if value.ndim > 1}
    own = {tuple(value.shape) for value in distiller.state_dict().values() if value.ndim > 1}
    stored = {tuple(value.shape) for value in checkpoint["state_dict"].values()}
    optimized = {
        tuple(value.shape)
        for state in checkpoint["optimizer_states"][0]["state"].values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    assert not (largest - own) & (stored | optimized)


def test_a_method_that_is_not_one_graph_is_not_compiled_and_says_so(tmp_path: Path) -> None:
    class Looping(blockkd.KD):
        compiles = False

    module = DistillationModule(Looping(network(16), network(4)), sgd, compile="default")
    with pytest.warns(UserWarning, match="compile has no effect on Looping, whose step is not one graph"):
        trainer(tmp_path, epochs=1).fit(module, loader())
    assert module._compute is module.distiller


def test_on_the_cpu_nothing_is_compiled_by_itself(tmp_path: Path) -> None:
    module = DistillationModule(kd(), sgd, compile="auto")
    trainer(tmp_path, epochs=1).fit(module, loader())
    assert module._compute is module.distiller


def test_an_epoch_that_is_cut_short_logs_its_means(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3)
    run.fit(DistillationModule(kd(), sgd), loader())
    assert {"train/loss", "train/accuracy"} <= set(run.callback_metrics)
