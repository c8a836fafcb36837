"""What a process does when it gets a signal: what it says, its exit code, and how soon it ends."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from blockkd.cli import main
from blockkd.commands.midway import Midway
from blockkd.commands.stopping import Stop, Terminated
from blockkd.runs import Row
from blockkd.training import DistillationModule
from tests.reliability.processes import PATIENCE, Fate, fresh, run
from tests.reliability.runs import PLAIN, assert_equal_runs, begin, go_on, one_student, write_recipe
from tests.test_cli import Forgetful

GO_ON = "; go on with: blockkd distill --resume run"


class Sleepy(Forgetful):
    """A student whose training step takes an hour, until a file says that it was woken."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 2 and Path("run").exists() and not Path("awake").exists():
            Path("asleep").touch()
            time.sleep(3600)
        return super().forward(x)


class Swallowing(Forgetful):
    """A student that takes a signal for an error of its own, as compiled code does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if Path("run").exists():
            Path("training").touch()
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                raise ValueError("could not determine the shape") from None


class Slow(Forgetful):
    """A student that tells when it is being trained, and lets some time pass then."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 2 and Path("run").exists():  # not in the trial steps before it
            Path("training").touch()
            time.sleep(0.5)
        return super().forward(x)


SAYS = pytest.mark.parametrize(
    ("signum", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)


@SAYS
def test_a_signal_is_told_by_the_exit_code(signum: int, code: int, said: str, tmp_path: Path) -> None:
    """Also when it reaches the processes that load the data, which must give the step at hand its batch."""
    slow = {"class_path": "tests.reliability.test_stopping.Slow"}
    data = {"class_path": "tests.test_cli.FewDigits", "init_args": {"num_workers": 1}}
    write_recipe(tmp_path, one_student("blockkd.KD", student=slow, data=data))
    ended = run(begin("run"), tmp_path, Fate(at_file="training", signals=(signum,), whole_group=True))
    assert (ended.code, ended.said.splitlines()[-1]) == (code, f"blockkd: {said}{GO_ON}")
    assert ended.said.count("stopping after this step") == 1, "the other processes say nothing"
    assert "Traceback" not in ended.said
    assert (tmp_path / "run" / "kd" / "seed_0" / "last.ckpt").is_file()


@SAYS
def test_a_signal_that_became_an_error_is_still_told(signum: int, code: int, said: str, tmp_path: Path) -> None:
    swallowing = {"class_path": "tests.reliability.test_stopping.Swallowing"}
    write_recipe(tmp_path, one_student("blockkd.KD", student=swallowing))
    ended = run(begin("run"), tmp_path, Fate(at_file="training", signals=(signum,)))
    assert (ended.code, ended.said.splitlines()[-1]) == (code, f"blockkd: {said}{GO_ON}")


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), -signal.SIGTERM),  # by the system: a shell calls that 143, too
        ((signal.SIGINT, signal.SIGTERM), -signal.SIGTERM),
        ((signal.SIGINT, signal.SIGINT), 130),
    ],
)
def test_a_second_signal_ends_at_once(signals: tuple[int, ...], code: int, undisturbed: Path, tmp_path: Path) -> None:
    """In the middle of a step that would take an hour."""
    write_recipe(tmp_path, one_student("blockkd.KD", student={"class_path": "tests.reliability.test_stopping.Sleepy"}))
    ended = run(begin("run"), tmp_path, Fate(at_file="asleep", signals=signals))
    assert ended.code == code, ended.said
    assert "stopping after this step; a second signal ends at once, without saving" in ended.said
    assert "Traceback" not in ended.said
    (tmp_path / "awake").touch()
    assert run(go_on(tmp_path, "run"), tmp_path).code == 0
    assert_equal_runs(undisturbed, tmp_path / "run")


def test_a_signal_while_nothing_is_trained_ends_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last evaluation of a job, whose training is in its checkpoint."""
    write_recipe(folder, one_student("blockkd.BlockKD") | {"method": PLAIN["method"]})
    before = signal.getsignal(signal.SIGTERM)

    def hit(*_: object) -> Row:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    with monkeypatch.context() as patch:
        patch.setattr("blockkd.commands.jobs._step_costs", hit)
        assert main(begin("run")) == 143
    assert capsys.readouterr().err.splitlines()[-1] == f"blockkd: terminated{GO_ON}"
    assert signal.getsignal(signal.SIGTERM) == before
    assert main(begin("whole")) == 0
    assert main(go_on(folder, "run")) == 0
    assert_equal_runs(folder / "whole", folder / "run")  # the costs, too, are those of a step of the last epoch


def test_a_signal_during_the_last_measurement_is_told_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs under Lightning, which makes an exit code of its own out of interrupts."""
    write_recipe(folder, one_student("blockkd.KD"))
    step = DistillationModule.test_step

    def hit(self: DistillationModule, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationModule, "test_step", hit)
        assert main(begin("run")) == 143
    assert capsys.readouterr().err.splitlines()[-1] == f"blockkd: terminated{GO_ON}"
    assert main(go_on(folder, "run")) == 0


def test_a_process_of_its_own_ends_with_the_code(tmp_path: Path) -> None:
    """As a scheduler sees it: started anew, with nothing imported, and killed as soon as it has a folder."""
    write_recipe(tmp_path, one_student("blockkd.KD"))
    process = fresh([*begin("run"), "--epochs", "100000"], tmp_path)
    try:
        while not (tmp_path / "run" / "kd" / "seed_0" / "last.ckpt").is_file() and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        process.wait(PATIENCE)
    finally:
        process.kill()
    said = (tmp_path / "said.txt").read_text().splitlines()[-1]
    assert (process.returncode, said) == (143, f"blockkd: terminated{GO_ON}")


def test_handlers_are_given_back_whatever_happens() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    for signum, kind in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
        with Stop() as stop:
            stop.raise_if_received()  # nothing yet
            signal.raise_signal(signum)
            assert stop.received == signum
            with pytest.raises(kind) as caught:
                stop.raise_if_received()
        assert type(caught.value) is kind
        assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_several_processes_are_stopped_together_by_lightning(
    undisturbed: Path, folder: Path, steps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that left alone would let the others wait for ever; one that is told by another ends with the same code."""
    stop = Stop()
    stop.received = signal.SIGTERM
    alone, one_of_two = (SimpleNamespace(world_size=size) for size in (1, 2))
    callback = Midway(folder / "last.ckpt", stop)
    callback.on_validation_batch_end(cast(Trainer, one_of_two))
    with pytest.raises(Terminated):
        callback.on_validation_batch_end(cast(Trainer, alone))

    write_recipe(folder, one_student("blockkd.KD"))
    steps[:] = [None, SIGTERMException()]
    assert main(begin("run")) == 143
    assert capsys.readouterr().err.splitlines()[-1] == f"blockkd: terminated{GO_ON}"
    assert main(go_on(folder, "run")) == 0
    assert_equal_runs(undisturbed, folder / "run")
