"""Our networks by name, and what is said when there is none; see test_libraries.py for those of other libraries."""

import pytest

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


def test_our_networks_have_no_pretrained_weights() -> None:
    with pytest.raises(ValueError, match="resnet8 has no pretrained weights to load by its name; give a file"):
        create_model("resnet8", pretrained=True)
