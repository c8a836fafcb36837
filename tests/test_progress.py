"""What a terminal shows of a training: enough for its width, at the right time, and without making the device wait."""

import io
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Task

import blockkd
from blockkd.cli import main
from blockkd.commands import progress as module
from blockkd.commands.forecast import Forecast
from blockkd.commands.progress import HostCopy, Line, ProgressLine, grouped_text, loss_text, progress_lines
from blockkd.metering import EpochMeans
from blockkd.runs import Job
from blockkd.training import DistillationModule
from tests.test_cli import SMALL
from tests.test_training import loader, network, sgd, trainer

LOSS = {
    "train/loss": 2.5,
    "train/task/student": 0.25,
    "train/task/stone_1": 0.5,
    "train/distill/student": 0.75,
    "train/distill/stone_1": 1.0,
}


def line(width: int, **fields: Any) -> str:
    """What is drawn of a job on a terminal so wide."""
    known = {"epoch": "epoch 3/30", "loss": LOSS, "watched": "val 91.27%", "left": 3723.0} | fields
    task = Task(0, "block_kd, seed 0", total=100, completed=10, _get_time=lambda: 0.0, fields=known)  # type: ignore[arg-type]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(Line(task))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("\n") == 1
    return text.rstrip()


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (
            170,
            "loss 2.5: task/student 0.25, task/stone_1 0.5, distill/student 0.75, distill/stone_1 1  val 91.27%",
        ),
        (110, "━╸                epoch 3/30  loss 2.5: task 0.75, distill 1.75  val 91.27%  1:02:03 left"),
        (92, "seed 0  epoch 3/30  loss 2.5: task 0.75, distill 1.75  val 91.27%  1:02:03 left"),
        (70, "block_kd, seed 0  epoch 3/30  loss 2.5  val 91.27%  1:02:03 left"),
    ],
)
def test_a_line_says_as_much_as_its_width_allows(width: int, said: str) -> None:
    assert said in line(width)


@settings(deadline=None)
@given(st.integers(40, 250), st.dictionaries(st.sampled_from(list(LOSS)), st.floats(1e-9, 1e9)))
def test_a_line_is_never_wider_than_the_terminal(width: int, loss: dict[str, float]) -> None:
    assert len(line(width, loss=loss)) <= width


def test_before_anything_is_known_there_is_a_line() -> None:
    assert line(100, epoch="", loss={}, watched="", left=None).startswith("block_kd, seed 0  ━")


def test_parts_are_summed_up_by_kind() -> None:
    assert grouped_text(LOSS) == "loss 2.5: task 0.75, distill 1.75"
    assert loss_text({"train/loss": 0.5}) == "loss 0.5"
    assert loss_text({}) == ""


def test_what_is_left_by_hand() -> None:
    teacher, kd, ce, kd_1, ce_1 = (Job(*job) for job in (("teacher", 0), ("kd", 0), ("ce", 0), ("kd", 1), ("ce", 1)))
    forecast = Forecast({teacher: 5, kd: 10, ce: 10, kd_1: 10, ce_1: 10}, {"kd": 2.0, "ce": 1.0})
    assert forecast.left(teacher, 3.0, 1.0) == 3 + 20 + 10 + 20 + 10  # as the trial steps promised
    forecast.drop(lambda job: job == teacher)
    assert forecast.left(kd, 15.0, 3.0) == 15 + 30 + 15 + 15  # half as fast as promised, and so will the other be
    forecast.drop(lambda job: job == kd)
    assert forecast.left(ce, 1.0, 1.0) == 1 + 30 + 10  # each as it was measured
    forecast.drop(lambda job: job in (ce, kd_1))
    assert forecast.left(ce_1, 2.5, 1.0) == 2.5


def test_without_trial_steps_the_others_take_what_this_one_takes() -> None:
    jobs = Job("teacher", 0), Job("kd", 0), Job("ce", 0)
    forecast = Forecast(dict.fromkeys(jobs, 10))
    assert forecast.left(jobs[0], 5.0, 1.0) == 5 + 10 + 10
    assert forecast.left(jobs[1], 8.0, 2.0) == 8 + 10 + 20  # students are more like each other than like the teacher


def test_processes_share_what_is_left() -> None:
    jobs = [Job("kd", seed) for seed in range(5)]
    assert Forecast(dict.fromkeys(jobs, 10), processes=2).left(jobs[0], 5.0, 1.0) == 5 + 40 / 2


def test_a_copy_holds_the_means_and_not_what_comes_later() -> None:
    means = EpochMeans()
    means.add(("a", "b"), torch.tensor([1.0, 2.0]), 3)
    means.add(("c",), torch.tensor([4.0]), 1)
    copy = HostCopy(means.sums())
    means.add(("a", "b"), torch.tensor([9.0, 9.0]), 9)
    assert copy.ready
    assert copy.means() == {"a": 1.0, "b": 2.0, "c": 4.0}


def terminal(width: int = 160) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def fitted(tmp_path: Path, console: Console, seconds_per_look: float, epochs: int = 2) -> list[dict[str, Any]]:
    """Train under a clock that goes on whenever it is looked at; what the line says after each step."""
    clock = (seconds_per_look * number for number in count())
    shown: list[dict[str, Any]] = []

    class Watched(DistillationModule):
        def on_train_batch_end(self, *args: Any) -> None:
            del args
            shown.append({**progress.tasks[0].fields} if progress.tasks else {})

    with progress_lines(console) as progress:
        job = Job("kd", 0)
        callback = ProgressLine(progress, Forecast({job: epochs}), job, ["accuracy"], clock=lambda: next(clock))
        trained = Watched(blockkd.KD(network(16), network(4)), sgd)
        trainer(tmp_path, epochs, callbacks=[callback]).fit(trained, loader(), loader())
        shown.append({**progress.tasks[0].fields} if progress.tasks else {})
        callback.close()
        assert not progress.tasks
    return shown


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[HostCopy]]:
    """All that are made."""
    made: list[HostCopy] = []

    class Counted(HostCopy):
        def __init__(self, sums: Any) -> None:
            super().__init__(sums)
            made.append(self)

    monkeypatch.setattr(module, "HostCopy", Counted)
    return made  # type: ignore[return-value]


def test_losses_are_the_means_of_the_epoch_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[float]] = []
    add = EpochMeans.add

    def recorded(self: EpochMeans, names: Any, values: Any, weight: int) -> None:
        if names[0] == "train/loss":
            rows.append(values.tolist())
        add(self, names, values, weight)

    monkeypatch.setattr(EpochMeans, "add", recorded)
    shown = fitted(tmp_path, terminal(), seconds_per_look=10.0)
    assert list(shown[3]["loss"]) == ["train/loss", "train/task/student", "train/distill/student"]
    expected = [sum(column) / 3 for column in zip(*rows[:3], strict=True)]  # asked for a step before it is shown
    assert list(shown[3]["loss"].values()) == pytest.approx(expected)
    whole = [sum(column) / 4 for column in zip(*rows[4:], strict=True)]
    assert list(shown[-1]["loss"].values()) == pytest.approx(whole)
    assert shown[-1]["watched"].startswith("val ")
    assert shown[-1]["epoch"] == "epoch 2/2"
    assert shown[-1]["left"] == 0


def test_losses_are_copied_no_more_often_than_the_line_is_renewed(tmp_path: Path, copies: list[HostCopy]) -> None:
    fitted(tmp_path, terminal(), seconds_per_look=0.01, epochs=20)
    assert len(copies) <= 0.01 * 20 * 4 * 3 / module.REFRESH + 1  # 4 steps an epoch, at most three looks a step
    copies.clear()
    fitted(tmp_path, terminal(), seconds_per_look=10.0, epochs=20)
    assert len(copies) > 20


def test_no_step_waits_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnItsWay(HostCopy):
        ready = False

        def means(self) -> dict[str, float]:
            raise AssertionError("it has not come yet")

    monkeypatch.setattr(module, "HostCopy", OnItsWay)
    shown = fitted(tmp_path, terminal(), seconds_per_look=10.0)
    assert "loss" not in shown[3]  # all of the first epoch's steps
    assert "loss" in shown[4]  # of the epoch that is over, which is read for its row


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_copy_waits() -> None:
    means = EpochMeans()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            means.add(("a", "b"), torch.ones(2, device="cuda"), 4)
            copy = HostCopy(means.sums())
            assert copy.ready in (True, False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert copy.ready
    assert copy.means() == {"a": 1.0, "b": 1.0}


def test_without_a_terminal_nothing_is_drawn_or_read(tmp_path: Path, copies: list[HostCopy]) -> None:
    console = Console(file=io.StringIO())
    assert not any(fitted(tmp_path, console, seconds_per_look=10.0))
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    assert not copies


def test_a_command_shows_the_job_at_hand_and_keeps_a_line_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = terminal()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("blockkd.commands.distill.console", lambda: console)
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, "beside": {"kd": "KD"}}))
    assert main(["distill", "--config", "small.yaml"]) == 0
    drawn: str = console.file.getvalue()  # type: ignore[attr-defined]
    for job in ("teacher", "block_kd", "kd"):
        assert f"{job}, seed 0: test accuracy" in drawn
        assert f"{job}, seed 0  ━" in drawn
    assert "epoch 3/3" in drawn
    assert "left" in drawn
    last = drawn.splitlines()[-1]
    assert "━" not in last  # no line of a job is left standing
