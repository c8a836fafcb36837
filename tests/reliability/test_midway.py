"""A signal in the middle of an epoch: what goes on there is what would have gone on anyway, to the bit."""

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from blockkd.cli import main
from blockkd.commands import midway
from blockkd.commands.midway import begin_at, random_states, set_random_states
from blockkd.commands.slices import Deadline, StopInTime
from blockkd.data import EpochSampler
from tests.reliability.figures import Figures
from tests.reliability.runs import PLAIN, RECORDED, assert_equal_runs, begin, go_on, one_student, write_recipe
from tests.test_cli import FewDigits

STEPS = 4  # in an epoch


class NoisyImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with noise out of the random numbers of the process, which an own dataset may well take."""

    def __init__(self, source: Dataset[tuple[Tensor, Tensor]]) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.source[index]
        return image + 0.1 * torch.randn_like(image), label


class NoisyDigits(FewDigits):
    def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
        del sampler
        return NoisyImages(self.parts.train)


CASES: dict[str, dict[str, Any]] = {
    "Block-KD, L_cross from epoch 1": one_student("blockkd.BlockKD") | {"method": PLAIN["method"]},
    "FCFD, which draws paths": one_student("blockkd.baselines.FCFD"),
    "CRD, which keeps a memory": one_student("blockkd.baselines.CRD"),
    "DKD, which warms up": one_student("blockkd.baselines.DecoupledKD"),
    "recorded teacher, augmentation": RECORDED | {"beside": {}, "epochs": 2},
    "noise of the process": one_student("blockkd.KD", data={"class_path": "tests.reliability.test_midway.NoisyDigits"}),
    "two batches to a step": one_student("blockkd.KD", trainer={"accumulate_grad_batches": 2}),
    "data in a worker": one_student("blockkd.KD") | {"data": {**PLAIN["data"], "init_args": {"num_workers": 1}}},
    "noise in a worker": one_student(
        "blockkd.KD", data={"class_path": "tests.reliability.test_midway.NoisyDigits", "init_args": {"num_workers": 1}}
    ),
}
# Where the next process cannot know what the rest of the epoch would have been, the epoch is done again.
AGAIN = {"noise in a worker"}


@pytest.mark.parametrize("case", CASES)
def test_stopped_at_a_step_and_resumed(case: str, folder: Path, steps: list[Any], figures: Figures) -> None:
    """Stopped in three processes, twice within one epoch; each of them goes on with the next step."""
    write_recipe(folder, CASES[case])
    assert main(begin("whole")) == 0
    teacher = [None] * (STEPS * CASES[case]["teacher"]["epochs"])
    for plan in ([*teacher, signal.SIGTERM], [signal.SIGTERM], [None, None, signal.SIGTERM]):
        steps[:] = plan
        assert main(go_on(folder, "halves")) == 143
        figures.count("stops within an epoch survived")
    steps[:] = [None] * 100
    assert main(go_on(folder, "halves")) == 0
    left = 2 * STEPS - (100 - len(steps))
    done = {"two batches to a step": 2 + 0 + 4}.get(case, 0 if case in AGAIN else 1 + 1 + 3)
    assert left == done, "steps of the stopped processes that were not taken again"
    assert_equal_runs(folder / "whole", folder / "halves")


def test_an_old_checkpoint_is_renewed_within_the_epoch(
    undisturbed: Path, folder: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a process that is killed without a word, or falls over, loses minutes and not an epoch."""
    write_recipe(folder, one_student("blockkd.KD"))
    monkeypatch.setattr(midway, "OLDEST", 0.0)
    steps[:] = [None, None, RuntimeError("the machine fell over")]
    with pytest.raises(RuntimeError, match="fell over"):
        main(begin("halves"))
    steps[:] = [None] * 100
    assert main(go_on(folder, "halves")) == 0
    assert 100 - len(steps) == 2 * STEPS - 2
    assert_equal_runs(undisturbed, folder / "halves")


def test_a_signal_during_validation_costs_a_step(
    undisturbed: Path, folder: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(folder, one_student("blockkd.KD"))
    monkeypatch.setattr(midway, "OLDEST_BEFORE_VALIDATION", 0.0)
    steps[:] = [None] * (STEPS - 1) + [signal.SIGTERM]
    assert main(begin("halves")) == 143
    steps[:] = [None] * 100
    assert main(go_on(folder, "halves")) == 0
    assert 100 - len(steps) == 1 + STEPS
    assert_equal_runs(undisturbed, folder / "halves")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_seen_is_not_loaded_again(workers: int, tmp_path: Path) -> None:
    """Images of the steps before may take an hour to decode."""
    seen = tmp_path / "seen"

    class Watched(FewDigits):
        def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
            del sampler
            return WatchedImages(self.parts.train, seen)

    loader = Watched(num_workers=workers).train_dataloader()
    whole = [batch[2] for batch in loader]
    seen.unlink()
    begin_at(loader, 3)
    assert [batch[2].tolist() for batch in loader] == [whole[3].tolist()]
    assert sorted(int(line) for line in seen.read_text().split()) == sorted(whole[3].tolist())
    assert len(loader) == STEPS
    assert [batch[2].tolist() for batch in loader] == [batch.tolist() for batch in whole]  # the next epoch is whole


class WatchedImages(Dataset[tuple[Tensor, Tensor]]):
    """Writes down what is asked for, in whatever process."""

    def __init__(self, source: Dataset[tuple[Tensor, Tensor]], seen: Path) -> None:
        self.source, self.seen = source, seen

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with self.seen.open("a") as file:
            file.write(f"{index}\n")
        return self.source[index]


def test_random_numbers_go_on(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.normal(), float(np.random.rand()), float(torch.rand(()))]

    draw()
    torch.save(random_states(), tmp_path / "states")
    expected = draw()
    draw()
    set_random_states(torch.load(tmp_path / "states", weights_only=True))
    assert draw() == expected


def test_a_slice_of_time_counts_all_of_a_resumed_epoch() -> None:
    first, second = StopInTime(Deadline(1.0)), StopInTime(Deadline(1.0))
    first.load_state_dict({"seconds": 1000.0})
    state = first.state_dict()
    assert 1000 <= state["seconds"] < 1010
    second.load_state_dict(state)

    class Alone:
        @staticmethod
        def reduce_boolean_decision(decision: bool, all: bool = True) -> bool:
            del all
            return decision

    class Stopped:
        should_stop, strategy = False, Alone()

    trainer: Any = Stopped()
    second.on_train_epoch_end(trainer, trainer)
    assert trainer.should_stop, "an epoch of 1,000 s does not fit into a minute"
    trainer.should_stop = False
    second.load_state_dict({"seconds": 1.0})
    second.on_train_epoch_end(trainer, trainer)
    assert not trainer.should_stop


def test_what_was_recorded_is_marked_before_the_step_is_saved(folder: Path, steps: list[Any]) -> None:
    """Or else the teacher would be asked again for some of a batch, and round otherwise."""
    content = CASES["recorded teacher, augmentation"]
    write_recipe(folder, content)
    steps[:] = [None] * (STEPS * content["teacher"]["epochs"]) + [signal.SIGTERM]
    assert main(begin("run")) == 143
    assert sum((folder / "run" / "teacher_logits" / "filled.u8").read_bytes()) == 64, "the images of one batch"
