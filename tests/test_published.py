"""The published numbers are those of the sources, under names that we know."""

from importlib.resources import files
from typing import Any

import pytest
import yaml

from blockkd.published import Published, published, published_pairs

CIFAR_PAIRS = [
    "resnet56-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "vgg13-vgg8",
    "resnet32x4-ShuffleV1",
    "wrn_40_2-ShuffleV1",
    "vgg13-MobileNetV2",
    "ResNet50-MobileNetV2",
    "resnet32x4-ShuffleV2",
]
IMAGENET_PAIRS = ["resnet34-resnet18", "resnet50-MobileNetV1"]
OURS = {"cross_entropy", "kd", "fitnet", "at", "sp", "vid", "rkd", "pkt", "nst", "crd", "ofd", "review_kd", "sim_kd"}
OURS |= {"dist", "dkd", "kd_standardized", "dkd_standardized", "mlkd"}
METHODS = OURS | {"teacher", "mlkd_standardized", "norm", "norm_kd"}


def content() -> dict[str, Any]:
    return yaml.safe_load((files("blockkd") / "published.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("task", "pair", "method", "accuracy", "source"),
    [
        ("cifar100", "resnet56-resnet20", "kd", 70.66, "RepDistiller"),
        ("cifar100", "resnet56-resnet20", "mlkd_standardized", 72.33, "LSKD"),
        ("cifar100", "resnet110-resnet32", "review_kd", 73.89, "NORM"),
        ("cifar100", "resnet32x4-resnet8x4", "dkd", 76.32, "mdistiller"),
        ("cifar100", "resnet32x4-resnet8x4", "sim_kd", 78.08, "NORM"),
        ("cifar100", "wrn_40_2-wrn_16_2", "crd", 75.48, "RepDistiller"),
        ("cifar100", "wrn_40_2-wrn_40_1", "dist", 74.43, "DIST"),
        ("cifar100", "vgg13-vgg8", "cross_entropy", 70.36, "RepDistiller"),
        ("cifar100", "resnet32x4-ShuffleV1", "norm", 77.42, "NORM"),
        ("cifar100", "wrn_40_2-ShuffleV1", "fitnet", 73.73, "RepDistiller"),
        ("cifar100", "vgg13-MobileNetV2", "rkd", 64.52, "RepDistiller"),
        ("cifar100", "ResNet50-MobileNetV2", "teacher", 79.34, "RepDistiller"),
        ("cifar100", "resnet32x4-ShuffleV2", "kd_standardized", 75.56, "LSKD"),
        ("imagenet", "resnet34-resnet18", "kd", 71.03, "mdistiller"),
        ("imagenet", "resnet50-MobileNetV1", "norm", 74.26, "NORM"),
    ],
)
def test_numbers_are_those_of_the_source(task: str, pair: str, method: str, accuracy: float, source: str) -> None:
    number = published(task, pair)[method]
    assert number.accuracy == accuracy
    assert number.source.startswith(source)


def test_what_a_source_does_not_give_is_left_out() -> None:
    assert "dist" not in published("cifar100", "vgg13-vgg8")
    assert "ofd" not in published("cifar100", "vgg13-vgg8")
    assert published("cifar100", "resnet8-resnet8") == {}
    assert published("imagenet", "vgg13-vgg8") == {}


def test_a_longer_training_says_so() -> None:
    numbers = published("cifar100", "resnet32x4-resnet8x4")
    for method, number in numbers.items():
        assert ("480 epochs" in number.protocol) == method.startswith("mlkd")


def test_pairs_and_methods_are_the_known_ones_and_values_are_percent() -> None:
    assert published_pairs() == [("cifar100", p) for p in CIFAR_PAIRS] + [("imagenet", p) for p in IMAGENET_PAIRS]
    for task, pair in published_pairs():
        numbers = published(task, pair)
        assert {"teacher", "cross_entropy", "kd"} <= set(numbers) <= METHODS
        for number in numbers.values():
            assert isinstance(number, Published)
            assert 0 < number.accuracy < 100
            assert number.protocol
            assert number.url.startswith("https://")


def test_methods_and_pairs_are_named_as_our_recipes() -> None:
    recipes = files("blockkd") / "recipes"
    assert {f"{method}.yaml" for method in OURS} <= {path.name for path in (recipes / "methods").iterdir()}
    assert {f"{pair}.yaml" for pair in CIFAR_PAIRS} <= {path.name for path in (recipes / "cifar100/pairs").iterdir()}


def test_students_learn_and_lie_in_one_range_for_a_pair() -> None:
    for task, pair in published_pairs():  # a column that slipped would stand out here
        numbers = published(task, pair)
        alone = numbers["cross_entropy"].accuracy
        assert all(abs(number.accuracy - alone) < 7.5 for name, number in numbers.items() if name != "teacher")
        assert numbers["teacher"].accuracy == max(
            numbers["teacher"].accuracy, numbers["cross_entropy"].accuracy, numbers["kd"].accuracy
        )


def test_one_teacher_one_number_and_one_student_one_number() -> None:
    alone: dict[tuple[str, str, str], set[float]] = {}
    for task, pair in published_pairs():
        teacher, student = pair.split("-")
        numbers = published(task, pair)
        alone.setdefault((task, "teacher", teacher), set()).add(numbers["teacher"].accuracy)
        alone.setdefault((task, "student", student), set()).add(numbers["cross_entropy"].accuracy)
    assert all(len(values) == 1 for values in alone.values()), alone


def test_every_row_is_as_long_as_its_header_and_every_source_is_used() -> None:
    used = set()
    for table in content()["tables"]:
        for method, row in table["rows"].items():
            assert len(row["accuracy"]) == len(table["pairs"]), method
            assert any(value is not None for value in row["accuracy"]), method
            used.add(row["source"])
    assert used == set(content()["sources"])
