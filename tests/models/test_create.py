"""Networks by name: ours, timm's, torchvision's; and what is said when there is none."""

import sys

import pytest
import torch

from blockkd.models import create_model


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet50", "ResNet50"),
        ("wrn-40-2", "wrn_40_2"),
        ("mobilenet_v2", "MobileNetV2"),
        ("shufflev1", "ShuffleV1"),
        ("vgg-13", "vgg13"),
        ("RESNET32X4", "resnet32x4"),
    ],
)
def test_unknown_name_says_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"no network is called '{name}'; did you mean.*{meant}"):
        create_model(name)


@pytest.mark.parametrize("name", ["", "zzzzzz", "keras/resnet", "timm/"])
def test_a_name_like_no_other_lists_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"no network is called .*(did you mean|resnet8, resnet14.*ShuffleV2)"):
        create_model(name)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="dropout"):
        create_model("resnet8", dropout=0.1)


def test_no_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        create_model("resnet8", num_classes=0)


def test_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    network = create_model("timm/resnet18", num_classes=7, in_channels=1).eval()
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"timm has no network called 'resnt18'; did you mean.*resnet18"):
        create_model("timm/resnt18")


def test_torchvision() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    network = create_model("torchvision/resnet18", num_classes=7, in_channels=3).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match="torchvision has no classifier called 'resnet19'; did you mean"):
        create_model("torchvision/resnet19")
    with pytest.raises(ValueError, match="torchvision's networks take 3 channels"):
        create_model("torchvision/resnet18", in_channels=1)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_absent_library_says_what_to_install(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=f"'{library}/resnet18' needs {library}.*pip install {library}"):
        create_model(f"{library}/resnet18")
