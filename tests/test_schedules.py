"""A learning rate that is warmed up and decays, step by step."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blockkd.baselines.logits import CrossEntropy
from blockkd.schedules import LinearWarmup
from blockkd.training import DistillationModule

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.3}], lr=0.1)


def rates(scheduler: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("steps", "warm"), [(10, 0), (10, 1), (100, 10), (7, 3), (1, 0)])
def test_it_is_the_fields_schedule(steps: int, warm: int) -> None:
    expected = rates(transformers.get_linear_schedule_with_warmup(optimizer(), warm, steps), steps + 2)
    assert rates(LinearWarmup(optimizer(), warm / steps, steps), steps + 2) == pytest.approx(expected)


def test_it_goes_on_from_its_state() -> None:
    whole = rates(LinearWarmup(optimizer(), 0.2, 10), 10)
    half = LinearWarmup(optimizer(), 0.2, 10)
    rates(half, 4)
    other = LinearWarmup(optimizer(), 0.2)
    other.load_state_dict(half.state_dict())
    other.optimizer.load_state_dict(half.optimizer.state_dict())
    assert rates(other, 6) == whole[4:]


def test_a_module_tells_it_how_many_steps_there_are() -> None:
    seen: list[float] = []

    class Noting(DistillationModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            del batch, batch_idx
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    data = DataLoader(TensorDataset(torch.randn(20, 3), torch.randint(2, (20,))), batch_size=4)
    sgd, schedule = partial(torch.optim.SGD, lr=1.0), partial(LinearWarmup, warmup=0.2)
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=2, accelerator="cpu", **off).fit(
        Noting(CrossEntropy(None, nn.Linear(3, 2)), sgd, schedule), data
    )
    assert seen == pytest.approx([0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup is 1.0, expected a share of all steps"):
        LinearWarmup(optimizer(), 1.0)
