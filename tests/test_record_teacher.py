"""The option ``--record_teacher`` through the commands."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import Dataset

from blockkd.cli import main
from blockkd.data import EpochSampler
from blockkd.data.augmentation import PadCropFlip
from blockkd.data.images import Parts
from blockkd.data.pixels import PixelImages, RawImages
from blockkd.logit_table import FILLED
from blockkd.recording import RecordedTeacher
from blockkd.runs import read_csv
from tests.test_cli import SMALL, FewDigits, interrupt, same_weights

__all__ = ["FewPixels"]

LAST = {"class_path": "blockkd.BlockKD", "init_args": {"stones": "last"}}


class FewPixels(FewDigits):
    """The digits as bytes, padded, cropped and flipped."""

    def load(self) -> Parts:
        def bytes_of(images: Tensor) -> Tensor:
            return (255 * (images - images.min()) / (images.max() - images.min())).byte()

        return Parts(*(PixelImages(bytes_of(part.images), part.labels, (0.3,), (0.4,)) for part in super().load()))

    def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
        train = self.parts.train
        assert isinstance(train, RawImages)
        return PadCropFlip(train, sampler)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    content = SMALL | {
        "data": {"class_path": "tests.test_record_teacher.FewPixels"},
        "epochs": 2,
        "method": LAST,
    }
    Path("recorded.yaml").write_text(yaml.safe_dump(content))
    return "recorded.yaml"


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each lookup from here on has to show to the teacher."""
    lookup, shown = RecordedTeacher.lookup, []

    def counting(self: RecordedTeacher, indices: Tensor, views: Tensor, images: Tensor, teacher: Any) -> Tensor:
        seen = [0]

        def counted(chosen: Tensor) -> Tensor:
            seen[0] += len(chosen)
            logits: Tensor = teacher(chosen)
            return logits

        logits = lookup(self, indices, views, images, counted)
        shown.append(seen[0])
        return logits

    monkeypatch.setattr(RecordedTeacher, "lookup", counting)
    return shown


def test_all_methods_and_runs_share_one_record(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = counted_runs(monkeypatch)
    distill = ["distill", "--config", recipe, "--record_teacher", "shared"]
    assert main([*distill, "--output", "one"]) == 0
    said = "".join(capsys.readouterr().err.split())  # the console breaks long paths
    assert f"256imagesin162viewseacharerecordedin{Path('shared').absolute()}(0.00GB)" in said
    steps = 2 * 4  # of each student
    assert len(shown) == 2 * steps
    assert sum(shown[:4]) == 256
    assert sum(shown[steps:]) == 0  # the second method sees the images that the first has seen
    filled = sum(shown)
    assert sum(Path("shared", FILLED).read_bytes()) == filled

    loaded = ["--teacher.weights", "one/teacher.safetensors"]
    assert main([*distill, "--output", "two", *loaded]) == 0
    assert sum(shown) == filled  # the same seed: the same views
    assert main([*distill, "--output", "three", *loaded, "--seed", "5"]) == 0
    assert sum(shown) > filled  # another seed: others
    assert same_weights(Path("one/student.safetensors"), Path("two/student.safetensors"))
    assert not same_weights(Path("one/student.safetensors"), Path("three/student.safetensors"))


def test_a_recorded_teacher_costs_nothing(recipe: str) -> None:
    assert main(["distill", "--config", recipe, "--epochs", "1", "--output", "live"]) == 0
    assert main(["distill", "--config", recipe, "--epochs", "1", "--record_teacher", "true"]) == 0
    live, recorded = (read_csv(Path(folder) / "results.csv") for folder in ("live", "runs/recorded"))
    flops = [{row["method"]: int(row["step_flops"]) for row in rows} for rows in (live, recorded)]
    for method in ("block_kd", "kd"):
        assert flops[1][method] < 0.7 * flops[0][method]
    assert flops[1]["cross_entropy"] == flops[0]["cross_entropy"]
    assert Path("runs/recorded/teacher_logits").is_dir()


def test_interrupted_and_resumed_equals_uninterrupted(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--config", recipe, "--record_teacher", "true"]
    assert main(["distill", *options, "--output", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 4 * 4 + 4 + 2, RuntimeError("pulled plug"))  # the first student's second epoch
        with pytest.raises(RuntimeError, match="pulled plug"):
            main(["distill", *options, "--output", "resumed"])
    assert sum(Path("resumed/teacher_logits", FILLED).read_bytes()) == 256  # of the first epoch alone
    assert main(["distill", "--resume", "resumed"]) == 0
    for student in ("block_kd/seed_0", "kd/seed_0"):
        assert same_weights(*(Path(run, student, "student.safetensors") for run in ("whole", "resumed")))
    logits = [Path(run, "teacher_logits", "logits.f16").read_bytes() for run in ("whole", "resumed")]
    assert logits[0] == logits[1]


def test_a_stale_record_ends_the_command_with_one_sentence(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    distill = ["distill", "--config", recipe, "--epochs", "1", "--record_teacher", "shared"]
    assert main([*distill, "--output", "one"]) == 0
    capsys.readouterr()
    assert main([*distill, "--output", "two", "--teacher.epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert "cannot record the teacher: " in error
    assert f"{Path('shared').absolute()} holds the recorded logits of something else, teacher: recorded" in error
    assert "Traceback" not in error


def test_a_method_that_needs_features_runs_its_teacher_and_says_so(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path(recipe).read_text())
    content |= {"method": {"class_path": "blockkd.baselines.SP"}, "beside": {}, "epochs": 1}
    Path("features.yaml").write_text(yaml.safe_dump(content))
    assert main(["distill", "--config", "features.yaml", "--output", "live"]) == 0
    assert "record_teacher" not in capsys.readouterr().err
    assert main(["distill", "--config", "features.yaml", "--record_teacher", "true"]) == 0
    assert "warning: record_teacher has no effect on sp, which needs more than logits" in capsys.readouterr().err
    assert same_weights(Path("live/student.safetensors"), Path("runs/features/student.safetensors"))
    assert not Path("runs/features/teacher_logits").exists()


def test_a_record_needs_batches_that_say_what_they_hold(tmp_path: Path) -> None:
    from blockkd import KD, CrossEntropy, DistillationModule
    from blockkd.logit_table import LogitTable

    network = torch.nn.Linear(2, 3)
    record = RecordedTeacher(LogitTable(tmp_path, {}, (4, 2, 3)))
    module = DistillationModule(KD(torch.nn.Linear(2, 3), network), torch.optim.SGD, recorded=record)
    inputs, labels, indices = torch.zeros(2, 2), torch.zeros(2).long(), torch.arange(2)
    with pytest.raises(ValueError, match=r"expected \(inputs, labels, indices, views\)"):
        module.training_step((inputs, labels, indices), 0)
    with pytest.raises(ValueError, match="CrossEntropy needs more of its teacher than logits"):
        DistillationModule(CrossEntropy(None, network), torch.optim.SGD, recorded=record)


def test_a_teacher_is_run_ahead_and_then_no_more(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = counted_runs(monkeypatch)
    options = ["--record_teacher", "true", "--record_ahead", "true", "--record_top", "3"]
    assert main(["distill", "--config", recipe, *options]) == 0
    views = 256 * 162
    ahead = -(-views // 512)
    assert sum(shown[:ahead]) == views
    assert len(shown) > ahead
    assert not any(shown[ahead:])
    assert (Path("runs/recorded/teacher_logits") / FILLED).read_bytes() == b"\x01" * views
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--record_ahead", "true"], "record_ahead says how the teacher is recorded, but record_teacher is false"),
        (["--record_top", "3"], "record_top says how the teacher is recorded, but record_teacher is false"),
        (["--record_top", "10", "--record_teacher", "true"], "record_top is 10, but there are 10 classes"),
    ],
)
def test_ways_to_record_without_a_record_are_refused(
    recipe: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "--config", recipe, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()  # refused before anything is trained
