"""The student leaves alone: its own names, its own logits, nothing of teacher or method."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import blockkd
from blockkd.export import load_student, save_student
from blockkd.models import ResNet


def small(widths: tuple[int, int, int, int] = (4, 4, 8, 16)) -> nn.Module:
    return ResNet(8, widths, num_classes=5, in_channels=1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


@pytest.mark.parametrize("wrapped", ["network", "distiller", "module"])
def test_file_has_exactly_the_students_names_and_logits(tmp_path: Path, wrapped: str) -> None:
    student = small()
    images = torch.randn(8, 1, 8, 8)
    student(images)  # moves the batch-norm statistics
    distiller = blockkd.BlockKD(small((8, 8, 16, 32)), student, images)
    module = blockkd.DistillationModule(distiller, torch.optim.SGD)
    source = {"network": student, "distiller": distiller, "module": module}[wrapped]
    path = save_student(source, tmp_path / "student.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(student.state_dict())
    restored = load_student(small(), path).eval()
    assert torch.equal(restored(images), student.eval()(images))


def test_tied_weights_survive(tmp_path: Path) -> None:
    network = Tied()
    restored = load_student(Tied(), save_student(network, tmp_path / "tied.safetensors"))
    x = torch.randn(3, 4)
    assert torch.equal(restored(x), network(x))
    assert restored.get_parameter("second.weight") is restored.get_parameter("first.weight")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save_student(small(), tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match="of another shape"):
        load_student(small((8, 8, 16, 32)), path)
    with pytest.raises(ValueError, match="missing"):
        load_student(nn.Linear(2, 2), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_student(small(), tmp_path / "gone.safetensors")


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_student(small(), tmp_path / "student.safetensors")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left.*student\.safetensors"):
        save_student(small(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
