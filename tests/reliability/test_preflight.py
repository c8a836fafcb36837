"""What is said before hours are spent, and that it is right."""

from collections import namedtuple
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from torch import Tensor, nn

from blockkd import KD, BlockKD
from blockkd.cli import main
from blockkd.commands import preflight as module
from blockkd.commands.checks import check_distilling
from blockkd.commands.invocation import Invocation
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.preflight import trial
from blockkd.commands.recipe import DistillRecipe
from blockkd.data import Digits
from blockkd.export import save_student
from blockkd.models import ResNet
from blockkd.runs import RunFolder
from tests.test_cli import SMALL
from tests.test_record_teacher import FewPixels

__all__ = ["FewPixels"]

Capture = pytest.CaptureFixture[str]
Usage = namedtuple("Usage", "total used free")


class Knowing(nn.Module):
    """Knows the digits by heart: finds each image among all, and says its class, in an order of its own."""

    def __init__(self, order: tuple[int, ...] = tuple(range(10))) -> None:
        super().__init__()
        parts = Digits().parts
        self.register_buffer("known", torch.cat([part.images for part in parts]).flatten(1))
        labels = torch.cat([part.labels for part in parts])
        self.classes = nn.Parameter(torch.eye(10)[torch.tensor(order)[labels]])

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.known).argmin(dim=1)  # type: ignore[arg-type]
        return 5 * self.classes[nearest]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_student(Knowing(), "right.safetensors")
    save_student(Knowing((1, 2, 3, 4, 5, 6, 7, 8, 9, 0)), "shifted.safetensors")
    content = SMALL | {
        "data": {"class_path": "blockkd.data.Digits"},
        "teacher": {**SMALL["teacher"], "network": {"class_path": "tests.reliability.test_preflight.Knowing"}},
        "method": {"class_path": "blockkd.KD"},
        "epochs": 1,
        "beside": {},
    }
    Path("small.yaml").write_text(yaml.safe_dump(content))
    return "small.yaml"


def distill(recipe: str, *options: str) -> int:
    return main(["distill", "--config", recipe, *options])


def test_a_teacher_that_fits_is_said_to(recipe: str, capsys: Capture) -> None:
    assert distill(recipe, "--teacher.weights", "right.safetensors", "--teacher.accuracy", "0.99", "--strict") == 0
    said = capsys.readouterr()
    assert "preflight: the teacher is right on 100.0% of 256 training images" in said.out
    assert "for 1 student (by 3 trial steps of each method)" in said.out
    assert "warning" not in said.err


def test_another_order_of_classes_is_warned_of_and_stops_a_strict_run(recipe: str, capsys: Capture) -> None:
    assert distill(recipe, "--teacher.weights", "shifted.safetensors", "--strict") == 2
    said = capsys.readouterr().err
    assert "stopped by --strict: the teacher seems to number 10 of 10 classes otherwise than the data" in said
    assert not Path("runs").exists()
    assert distill(recipe, "--teacher.weights", "shifted.safetensors") == 0
    assert "warning: the teacher seems to number 10 of 10 classes otherwise" in capsys.readouterr().err


def test_a_teacher_worse_than_its_card_is_warned_of(recipe: str, capsys: Capture) -> None:
    options = ["--teacher.weights", "shifted.safetensors", "--teacher.accuracy", "0.9"]
    assert distill(recipe, *options) == 0
    assert "is said to be on 90.00%" in capsys.readouterr().err
    assert distill(recipe, *options[:3], "90", "--overwrite") == 2
    assert "teacher.accuracy is 90.0, expected a share above 0 and up to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("replaced", "value", "message"),
    [
        ("shutil.disk_usage", Usage(10, 9, 1), "on disk and there are 0.0 MB left: it will stop when they are used up"),
        ("machine_memory", 1000, "of memory and the machine has 0.0 MB: the system will end the run"),
    ],
)
def test_too_little_disk_or_memory_is_warned_of(
    recipe: str, replaced: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(f"blockkd.commands.preflight.{replaced}", Mock(return_value=value))
    assert distill(recipe, "--strict") == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def built(recipe: str) -> DistillRecipe:
    parser = recipe_parser("distill", DistillRecipe, "")
    return Invocation(parser, parse(parser, [f"--config={recipe}"]), RunFolder(".")).recipe(DistillRecipe)


def test_a_trial_leaves_the_networks_parameters_of_a_run_alone(recipe: str) -> None:
    """They are those of spare networks, and random numbers are drawn anew before each job."""
    found = check_distilling(built(recipe), {"kd": lambda teacher, student: KD(teacher, student)})
    assert found.trials.keys() == {"kd"}
    assert not check_distilling(built(recipe), {}, tried=False).trials


def test_what_a_step_takes_grows_with_what_the_method_does(recipe: str) -> None:
    def teacher() -> nn.Module:
        return ResNet(14, (16, 16, 32, 64), 10, 1)

    def student() -> nn.Module:
        return ResNet(8, (4, 4, 8, 16), 10, 1)

    light = trial(KD(teacher(), student()), built(recipe))
    full = trial(BlockKD(teacher(), student(), torch.zeros(2, 1, 8, 8)), built(recipe))
    assert full.memory > light.memory > 0
    assert full.disk > light.disk > 0
    assert light.seconds > 0
    assert light.cuts == ""
    assert full.cuts == "cuts the teacher after layer1, layer2, layer3 and the student after layer1, layer2, layer3"


def test_pixels_normalised_otherwise_than_the_teacher_knows_them_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, recipe: str, capsys: Capture
) -> None:
    asked = Mock(return_value="the teacher knows other pixels")
    monkeypatch.setattr(module, "normalisation_warning", asked)
    data = ["--data", "tests.reliability.test_preflight.FewPixels"]
    assert distill(recipe, *data, "--teacher.weights", "right.safetensors") == 0
    assert "warning: the teacher knows other pixels" in capsys.readouterr().err
    _, images, labels, mean, std, right = asked.call_args.args
    assert len(images) == len(labels) == len(right) == 256
    assert mean == pytest.approx([0.3])
    assert std == pytest.approx([0.4])


def test_a_resumed_run_is_not_tried_again(recipe: str, capsys: Capture) -> None:
    assert distill(recipe) == 0
    assert "preflight: " in capsys.readouterr().out
    assert main(["distill", "--resume", "runs/small"]) == 0
    assert "preflight: " not in capsys.readouterr().out
    assert main(["distill", "--resume", "runs/small", "--strict"]) == 2
    assert "leave out --strict" in capsys.readouterr().err


def test_a_teacher_alone_has_nothing_to_be_strict_about(recipe: str, capsys: Capture) -> None:
    assert main(["teach", "--config", recipe, "--strict"]) == 2
    assert "strict" in capsys.readouterr().err
