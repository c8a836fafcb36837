"""The published numbers are those of the sources, under names that we know."""

from importlib.resources import files
from typing import Any

import pytest
import yaml

from blockkd.comparison import summarise
from blockkd.comparison_tables import comparison_markdown, comparison_rows, comparison_table
from blockkd.published import Published, published, published_glue, published_pairs
from blockkd.runs import Row
from blockkd.text.tasks import TASKS

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
    glue = content()["glue"]
    for method, row in glue["rows"].items():
        assert len(row["accuracy"]) == len(glue["tasks"]), method
        used.add(row["source"])
    assert used == set(content()["sources"])


@pytest.mark.parametrize(
    ("task", "method", "score", "verified"),
    [
        ("mnli", "teacher", 83.5, True),
        ("stsb", "distilbert", 81.2, True),
        ("cola", "fine_tuning", 43.4, False),
        ("qnli", "kd", 88.0, False),
        ("rte", "pkd", 66.5, False),
        ("sst2", "theseus", 91.5, False),
    ],
)
def test_numbers_of_glue_are_those_of_the_digest(task: str, method: str, score: float, verified: bool) -> None:
    number = published(task, "bert-base_6-layer")[method]
    assert number.accuracy == score
    assert number.verified == verified
    assert ("unverified" in number.source) != verified
    assert "development set" in number.protocol


def test_tasks_of_glue_are_ours_and_the_student_is_worse_than_its_teacher() -> None:
    assert {task for task, _ in published_glue()} == set(TASKS) - {"mnli-mm"}
    assert {pair for _, pair in published_glue()} == {"bert-base_6-layer"}
    assert "teacher" not in published("cola", "bert-base_6-layer")
    assert published("mnli-mm", "bert-base_6-layer") == {}
    for task, pair in published_glue():
        numbers = published(task, pair)
        assert numbers["theseus"].accuracy > numbers["fine_tuning"].accuracy
        assert task == "cola" or numbers["teacher"].accuracy >= numbers["kd"].accuracy
        assert {number.verified for number in numbers.values()} <= {True, False}


def test_what_is_not_verified_is_shown_with_its_mark() -> None:
    row: Row = {"method": "kd", "seed": 0, "epochs": 1, "test_accuracy": 0.9}
    rows: list[Row] = [row | {"seconds": 1.0, "parameters": 10, "flops_per_image": 10}]
    comparison = summarise(rows, published=published("sst2", "bert-base_6-layer"))
    table = comparison_table(comparison)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["published"][0] == "90.50?"
    assert dict(zip(cells["method"], cells["published"], strict=True))["distilbert"] == "90.70"
    assert "?: recalled, not read in its source" in str(table.caption)
    assert "90.50 (published, BERT-of-Theseus paper (unverified))" in comparison_markdown(comparison, {})
    assert "unverified" in str(comparison_rows(comparison)[0]["published_source"])
    verified = summarise(rows, published=published("cifar100", "resnet56-resnet20"))
    assert "?" not in str(comparison_table(verified).caption)
