"""A step whose loss was no longer finite is kept, and taken again to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockkd
from blockkd.cli import main
from blockkd.divergence import Step, diagnose
from blockkd.replaying import StepFileError, load_step, save_step
from blockkd.runs import DIVERGED
from blockkd.training import DistillationModule
from tests.reliability.runs import begin, go_on, one_student, write_recipe
from tests.test_cli import Forgetful

FILE = Path("run") / "kd" / "seed_0" / DIVERGED


class Fragile(Forgetful):
    """Its output is infinite in training, as long as it is broken."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out / 0.0 if self.training and Path("broken").exists() else out


def test_a_step_is_kept_and_taken_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = {"class_path": "tests.reliability.test_replay.Fragile"}
    write_recipe(folder, one_student("blockkd.KD", student=student))
    step = DistillationModule.training_step

    def breaking(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 1:
            Path("broken").touch()
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationModule, "training_step", breaking)
        assert main(begin("run")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "kd, seed 0: the loss is no longer finite in epoch 0, step 1: task/student is nan" in said
    assert said.endswith(f"look at the step with: blockkd replay {FILE}")
    for what in ("run", str(FILE)):
        assert main(["replay", what]) == 0
        shown = capsys.readouterr().out
        assert "kd, seed 0, epoch 0, step 1." in shown
        assert "task/student" in shown
        assert "Taken again: task/student is nan" in shown
    Path("broken").unlink()
    assert main(["replay", "run"]) == 0
    assert "Taken again, everything is finite." in capsys.readouterr().out
    assert main(go_on(folder, "run")) == 0
    assert main(["replay", "run"]) == 2
    assert "holds no step to replay" in capsys.readouterr().err


def test_the_step_of_a_file_is_the_step_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def method() -> blockkd.KD:
        torch.manual_seed(1)
        networks = [nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in range(2)]
        return blockkd.KD(networks[0], networks[1])

    distiller, inputs, targets = method(), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        distiller.student[0].weight.add_(1.0)  # type: ignore[index]
    state = torch.get_rng_state()
    terms = {name: term.detach() for name, term in distiller(inputs, targets).terms.items()}
    context = {"recorded": torch.randn(4, 3)}
    step = Step(3, 17, inputs, targets, {}, (state,), terms)
    save_step(tmp_path / "step", step, distiller, "it was so")
    other = method()
    again, said = load_step(tmp_path / "step", other)
    assert said == "it was so"
    assert (again.epoch, again.number) == (3, 17)
    found = diagnose(other, again)
    expected = {name: float(term) for name, term in terms.items()}
    assert found.again == pytest.approx(expected, rel=1e-6)  # dropout fell on the same units
    save_step(tmp_path / "named", Step(0, 0, {"a": inputs, "b": targets}, targets, context), distiller, "")
    named, _ = load_step(tmp_path / "named", other)
    assert torch.equal(named.inputs["a"], inputs)
    assert torch.equal(named.inputs["b"], targets)
    assert torch.equal(named.context["recorded"], context["recorded"])


def test_what_is_no_step_is_refused(tmp_path: Path) -> None:
    linear = blockkd.CrossEntropy(None, nn.Linear(2, 3))
    (tmp_path / "torn").write_bytes(b"\x10")
    with pytest.raises(StepFileError, match="cannot read"):
        load_step(tmp_path / "torn", linear)
    blockkd.save_student(linear, tmp_path / "student")
    with pytest.raises(StepFileError, match="holds no training step"):
        load_step(tmp_path / "student", linear)
    save_step(tmp_path / "other", Step(0, 0, torch.ones(1, 2), torch.zeros(1).long()), linear, "")
    with pytest.raises(StepFileError, match=r"not one of this recipe's method: .*size mismatch"):
        load_step(tmp_path / "other", blockkd.CrossEntropy(None, nn.Linear(4, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no step to replay"),
        ([], "path"),
        (["stray.safetensors"], "does not lie in a run: expected RUN/METHOD/seed_NUMBER/diverged.safetensors"),
    ],
)
def test_bad_input_ends_with_a_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "stray.safetensors").touch()
    assert main(["replay", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
