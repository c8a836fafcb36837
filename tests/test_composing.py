"""Recipes are put together from their parts: pair, method, and what the pair asks of the method."""

from pathlib import Path

import pytest
import yaml

from blockkd.commands.composing import compose, merge, networks_by_name, recipe_names
from blockkd.commands.errors import InvalidInputError

CIFAR_PAIRS = {  # teacher-student: learning rate, β of DKD, weight of ReviewKD
    "resnet56-resnet20": (0.05, 2.0, 0.6),
    "resnet110-resnet32": (0.05, 2.0, 1.0),
    "resnet32x4-resnet8x4": (0.05, 8.0, 5.0),
    "wrn_40_2-wrn_16_2": (0.05, 6.0, 5.0),
    "wrn_40_2-wrn_40_1": (0.05, 6.0, 5.0),
    "vgg13-vgg8": (0.05, 6.0, 5.0),
    "resnet32x4-ShuffleV1": (0.01, 8.0, 5.0),
    "wrn_40_2-ShuffleV1": (0.01, 8.0, 5.0),
    "vgg13-MobileNetV2": (0.01, 6.0, 5.0),
    "ResNet50-MobileNetV2": (0.01, 8.0, 5.0),
    "resnet32x4-ShuffleV2": (0.01, 8.0, 8.0),
}


def test_an_overlay_goes_as_deep_as_both_have_keys() -> None:
    under = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 3}
    over = {"a": {"y": {"w": 4}}, "b": [5], "c": None}
    assert merge(under, over) == {"a": {"x": 1, "y": {"z": 2, "w": 4}}, "b": [5], "c": None}
    assert under == {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 3}


def test_an_empty_mapping_empties() -> None:
    assert merge({"beside": {"kd": 1}, "a": 1}, {"beside": {}}) == {"beside": {}, "a": 1}


def test_another_class_brings_its_own_arguments() -> None:
    under = {"class_path": "A", "init_args": {"x": 1}}
    assert merge(under, {"class_path": "B"}) == {"class_path": "B"}
    assert merge(under, {"class_path": "A", "init_args": {"y": 2}}) == {
        "class_path": "A",
        "init_args": {"x": 1, "y": 2},
    }
    assert merge(under, {"init_args": {"y": 2}})["init_args"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("pair", CIFAR_PAIRS)
def test_every_pair_has_the_fields_settings(pair: str) -> None:
    learning_rate, dkd, review = CIFAR_PAIRS[pair]
    recipes = {method: compose(f"cifar100/{pair}/{method}") for method in ("kd", "dkd", "review_kd", "block_dkd")}
    for recipe in recipes.values():
        teacher, student = pair.split("-")
        assert recipe["teacher"]["network"]["init_args"] == {"name": teacher}
        assert recipe["student"]["init_args"] == {"name": student}
        assert recipe["optimizer"]["init_args"] == {"lr": learning_rate, "momentum": 0.9, "weight_decay": 0.0005}
        assert recipe["teacher"]["optimizer"]["init_args"]["lr"] == 0.05
        assert recipe["epochs"] == recipe["teacher"]["epochs"] == 240
        assert recipe["scheduler"]["init_args"] == {"milestones": [150, 180, 210], "gamma": 0.1}
        assert recipe["data"]["init_args"]["batch_size"] == 64
        assert recipe["data"]["init_args"]["val_share"] == 0
        assert "methods" not in recipe
    assert recipes["kd"]["method"]["init_args"]["alpha"] == 0.1
    assert recipes["kd"]["method"]["init_args"]["beta"] == 0.9
    assert recipes["kd"]["method"]["init_args"]["distance"]["init_args"] == {"temperature": 4.0}
    for method in ("dkd", "block_dkd"):
        distance = recipes[method]["method"]["init_args"]["distance"]["init_args"]
        assert distance == {"alpha": 1.0, "beta": dkd, "temperature": 4.0}
    assert recipes["dkd"]["method"]["init_args"]["warmup_epochs"] == 20
    assert recipes["review_kd"]["method"]["init_args"]["beta"] == review


def test_standardized_dkd_keeps_what_the_pair_asks_for() -> None:
    method = compose("cifar100/vgg13-vgg8/dkd_standardized")["method"]["init_args"]
    assert method["beta"] == 15.0
    assert method["distance"]["init_args"] == {"alpha": 1.0, "beta": 2.0, "temperature": 2.0, "standardized": True}
    method = compose("cifar100/resnet32x4-resnet8x4/dkd_standardized")["method"]["init_args"]
    assert method["beta"] == 9.0
    assert method["distance"]["init_args"] == {"alpha": 1.0, "beta": 8.0, "temperature": 2.0, "standardized": True}


def test_imagenet_has_its_own_settings() -> None:
    recipe = compose("imagenet/resnet50-MobileNetV1/dkd")
    assert recipe["method"]["init_args"]["distance"]["init_args"] == {"alpha": 1.0, "beta": 2.0, "temperature": 1.0}
    assert recipe["optimizer"]["init_args"] == {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.0001}
    assert recipe["data"]["init_args"]["batch_size"] == 512
    assert recipe["scheduler"]["init_args"]["milestones"] == [30, 60, 90]
    assert compose("imagenet/resnet34-resnet18/kd")["method"]["init_args"]["alpha"] == 0.5


def test_all_names_are_there_and_no_part_among_them() -> None:
    names = recipe_names()
    assert len(names) == len(set(names))
    assert {"digits/block_kd", "cifar100/teacher", "cifar100/vgg13-vgg8/fcfd"} <= set(names)
    assert not [name for name in names if "pairs" in name or name.endswith("base") or name.startswith("methods/")]
    pairs = {name.split("/")[1] for name in names if name.startswith("cifar100/") and name.count("/") == 2}
    assert set(CIFAR_PAIRS) <= pairs


def test_a_recipe_of_ones_own_rests_on_a_composed_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: cifar100/vgg13-vgg8/kd\nstudent: timm/resnet18\nepochs: 3\n")
    (tmp_path / "yours.yaml").write_text("base: mine.yaml\nmethod: {init_args: {alpha: 0.5}}\n")
    recipe = compose(str(tmp_path / "yours.yaml"))
    assert recipe["student"] == {"class_path": "blockkd.models.Named", "init_args": {"name": "timm/resnet18"}}
    assert recipe["epochs"] == 3
    assert recipe["method"]["init_args"]["alpha"] == 0.5
    assert recipe["method"]["init_args"]["beta"] == 0.9


def test_a_pair_of_ones_own_takes_every_method(tmp_path: Path) -> None:
    pair = tmp_path / "mine.yaml"
    pair.write_text("base: cifar100/base\nstudent: resnet14\nmethods:\n  dkd: {method.distance.beta: 3.0}\n")
    recipe = compose(f"{pair}/dkd")
    assert recipe["student"]["init_args"] == {"name": "resnet14"}
    assert recipe["method"]["init_args"]["distance"]["init_args"]["beta"] == 3.0
    assert compose(f"{pair}/kd")["method"]["class_path"] == "blockkd.KD"
    with pytest.raises(InvalidInputError, match="there is no method 'dkdd' to put on"):
        compose(f"{pair}/dkdd")
    with pytest.raises(InvalidInputError, match="not which one it is for"):
        compose(str(pair))


def test_the_resolved_text_is_plain_yaml() -> None:
    recipe = compose("cifar100/vgg13-vgg8/block_kd")
    assert yaml.safe_load(yaml.safe_dump(recipe)) == recipe


@pytest.mark.parametrize(
    ("argv", "spelled"),
    [
        (["--student", "resnet8"], ["--student=blockkd.models.Named", "--student.name=resnet8"]),
        (["--student=wrn_40_2"], ["--student=blockkd.models.Named", "--student.name=wrn_40_2"]),
        (
            ["--teacher.network", "timm/resnet18.a1_in1k", "--seeds", "2"],
            ["--teacher.network=blockkd.models.Named", "--teacher.network.name=timm/resnet18.a1_in1k", "--seeds", "2"],
        ),
        (["--student", "my.Network"], ["--student=my.Network"]),
        (["--seeds=2", "--student"], ["--seeds=2", "--student"]),
    ],
)
def test_networks_are_called_by_name_on_the_line(argv: list[str], spelled: list[str]) -> None:
    assert networks_by_name(argv) == spelled


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar100/resnet56-resnet20/blok_kd", "did you mean cifar100/resnet56-resnet20/block_kd"),
        ("cifar100/resnet56-resnet21/kd", "did you mean cifar100/resnet56-resnet20/kd"),
        ("cifar100/resnet56-resnet20", "there is no recipe 'cifar100/resnet56-resnet20'; did you mean"),
        ("../digits/block_kd", "there is no recipe '../digits/block_kd'"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        compose(name)
    assert expected in str(error.value)
