"""``blockkd inspect``: blocks and costs of any method, and what of the teacher's weights fits."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from blockkd import costs
from blockkd.baselines import FitNet
from blockkd.cli import main
from blockkd.models import create_model
from tests.test_cli import SMALL, FewDigits

RECIPE = {
    **SMALL,
    "teacher": {"network": "resnet14", "epochs": 1},
    "student": "resnet8",
}
CHANNELS = ["--teacher.network.options", "{in_channels: 1}", "--student.options", "{in_channels: 1}"]
INSPECT = ["inspect", "--config", "small.yaml", "--beside", "{}", *CHANNELS]


class Uncut(nn.Module):
    """Its forward hangs on a value, which no recorded graph can repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        if float(maps.sum()) > 0:
            maps = -maps
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(RECIPE))


def shown(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> str:
    assert main([*INSPECT, *options]) == code
    assert sorted(Path().glob("*.safetensors")) == []
    return capsys.readouterr().out


def rows(printed: str, label: str) -> list[list[str]]:
    """The cells of the table rows that begin with ``label``."""
    lines = (line.strip("│ ") for line in printed.splitlines() if "│" in line)
    found = [[cell.strip() for cell in line.split("│")] for line in lines]
    return [cells for cells in found if cells[0] == label]


def test_a_feature_method_shows_its_blocks_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(capsys, "--method", "FitNet")
    assert "stones" not in printed
    assert "could be cut" not in printed
    teacher, student = create_model("resnet14", 10, in_channels=1), create_model("resnet8", 10, in_channels=1)
    (first,) = rows(printed, "block 1")
    stem_and_stage = 2 * 64 * 9 * (16 + 4 * 16 * 16)  # on 8×8: a 3×3 convolution of 1 to 16 channels, four of 16 to 16
    assert first[1:5] == ["layer1", "16×8×8", f"{16 * 9 + 32 + 4 * (16 * 16 * 9 + 32):,}", f"{stem_and_stage:,}"]
    (whole,) = rows(printed, "whole")
    assert (whole[3], whole[7]) == (f"{costs.parameters(teacher):,}", f"{costs.parameters(student):,}")

    example = FewDigits().example()
    distiller = FitNet(teacher, student, example)
    (row,) = rows(printed, "fit_net")
    step = costs.step_flops(distiller, example, torch.tensor([0, 1])) // 2
    assert row[1:3] == [f"{costs.parameters(distiller.connectors):,}", f"{step:,}"]
    assert int(row[3].rstrip("%")) > 100


@pytest.mark.parametrize(("method", "name"), [("KD", "kd"), ("CrossEntropy", "cross_entropy"), ("CRD", "crd")])
def test_a_method_without_blocks_shows_how_they_would_be(
    method: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = shown(capsys, "--method", method)
    assert f"blocks as they could be cut; {name} needs none" in printed
    assert [rows(printed, f"block {i}")[0][1] for i in (1, 2, 3)] == ["layer1", "layer2", "layer3"]
    (row,) = rows(printed, name)
    share = int(row[3].rstrip("%"))
    assert share == 100 if name == "kd" else share < 100 if name == "cross_entropy" else share > 100
    assert (row[1] == "0") == (name != "crd")


def test_networks_that_cannot_be_cut_are_shown_as_wholes(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*INSPECT[:7], "--student", "tests.test_inspect.Uncut"]
    assert main([*options, "--method", "KD"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed, "whole")[0][7] == f"{8 * 9 + 8 + 8 * 10 + 10:,}"
    assert rows(printed, "block 1") == []
    assert "Methods that need blocks cannot be used with these networks: Uncut cannot be cut by itself" in printed
    assert rows(printed, "kd")
    assert main([*options, "--method", "FitNet"]) == 2
    assert "cannot set up fit_net: Uncut cannot be cut by itself" in capsys.readouterr().err


def test_simkd_shows_the_network_that_it_deploys(capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(capsys, "--method", "SimKD")
    assert "the whole student is what sim_kd makes of it to be deployed" in " ".join(printed.split())
    (whole,) = rows(printed, "whole")
    assert int(whole[7].replace(",", "")) > costs.parameters(create_model("resnet8", 10, in_channels=1))
    assert "to be deployed" not in shown(capsys, "--method", "KD")


def test_weights_that_fit_are_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    state = create_model("resnet14", 10, in_channels=1).state_dict()
    torch.save({"model": state}, "teacher.pth")
    printed = shown(capsys, "--method", "BlockKD", "--teacher.weights", "teacher.pth")
    assert f"weights: all {len(state)} tensors of teacher.pth fit the teacher." in printed
    assert "stones" in printed


def test_weights_that_do_not_fit_are_listed_in_full_behind_all_else(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = create_model("resnet14", 10, in_channels=1).state_dict()
    other = create_model("resnet20", 7, in_channels=1).state_dict()
    other.pop("bn1.weight")
    torch.save(other, "other.pth")
    assert main([*INSPECT, "--teacher.weights", "other.pth"]) == 2
    printed = capsys.readouterr()
    assert printed.out.index("blocks") < printed.out.index("stones") < printed.out.index("weights:")
    missing = set(teacher) - set(other)
    unexpected = set(other) - set(teacher)
    listed = printed.out[printed.out.index("weights:") :]
    assert rows(listed, "bn1.weight") == [["bn1.weight", "missing from the file"]]
    assert missing == {"bn1.weight"}
    assert len(unexpected) == 36
    assert all(rows(listed, name) == [[name, "not in the teacher"]] for name in unexpected)
    assert rows(listed, "fc.weight (file 7×64, network 10×64)")[0][1] == "of another shape or kind"
    assert listed.count("\n│ ") == 1 + 36 + 2
    assert f"weights: {len(teacher) - 3} tensors of other.pth fit the teacher" in " ".join(listed.split())
    assert printed.err.startswith(
        "blockkd: other.pth does not fit the teacher: 1 tensors are missing from the file, 36 "
    )
    said = "2 of another shape or kind. The known network nearest to the file is resnet20: 103 of its 107"
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher.weights", "gone.pth"], "cannot use the teacher's weights: there is no weights file at gone.pth"),
        (["--teacher.weights", "small.yaml"], "small.yaml does not load as plain weights"),
        (["--student.num_classes", "7"], "the student has 7 classes, the data has 10"),
        (["--student", "resnet9"], "unknown network 'resnet9' for --student; did you mean resnet"),
        (["--student", "timm/resnt18"], "cannot build the student: timm has no network called 'resnt18'; did you mean"),
    ],
)
def test_bad_input_gets_one_sentence(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = INSPECT[:7] if "--student" in options else INSPECT
    assert main([*given, *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
