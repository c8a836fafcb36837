"""The runs that are interrupted, and what is compared when they have ended."""

from pathlib import Path
from typing import Any

import yaml

from blockkd.runs import Row, read_csv
from tests.test_cli import SMALL

# A teacher, a student with dropout under Block-KD, whose L_cross starts in the middle, and another under plain KD.
PLAIN: dict[str, Any] = SMALL | {
    "method": {"class_path": "blockkd.BlockKD", "init_args": {"gamma": 0.9, "cross_from_epoch": 1}},
    "beside": {"kd": {"class_path": "blockkd.KD"}},
}
# Augmented images, the last stone, and a record of the teacher.
RECORDED: dict[str, Any] = PLAIN | {
    "data": {"class_path": "tests.test_record_teacher.FewPixels"},
    "method": {
        "class_path": "blockkd.BlockKD",
        "init_args": {"stones": "last", "gamma": 0.9, "cross_from_epoch": 1},
    },
    "record_teacher": True,
}
RECIPES: dict[str, dict[str, Any]] = {"plain": PLAIN, "recorded": RECORDED}


def one_student(method: str, /, **more: Any) -> dict[str, Any]:
    """A recipe with one method, two epochs, and an untrained teacher."""
    content = PLAIN | {"beside": {}, "epochs": 2, "method": {"class_path": method}} | more
    return content | {"teacher": {**content["teacher"], "epochs": 0}}


def write_recipe(folder: Path, content: dict[str, Any]) -> None:
    """The recipe of ``begin``."""
    (folder / "small.yaml").write_text(yaml.safe_dump(content))


def begin(output: str) -> list[str]:
    """The command that starts a run."""
    return ["distill", "--config", "small.yaml", "--output", output]


def go_on(folder: Path, output: str) -> list[str]:
    """The command that a scheduler gives again and again until it ends with 0."""
    return ["distill", "--resume", output] if (folder / output / "recipe.yaml").is_file() else begin(output)


def assert_equal_runs(one: Path, two: Path) -> None:
    """Weights to the bit, and rows but for the seconds; nothing but the run is left."""
    for folder in (one, two):
        left = [path for path in folder.rglob("*") if path.suffix in (".ckpt", ".draft")]
        assert not left or all(path.parent == folder for path in left), left
    files = {path.relative_to(one) for path in one.rglob("*") if path.suffix in (".safetensors", ".f16", ".u8")}
    assert files == {path.relative_to(two) for path in two.rglob("*") if path.suffix in (".safetensors", ".f16", ".u8")}
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    for table in ("metrics.csv", "results.csv"):
        assert rows(one / table) == rows(two / table), table


def rows(table: Path) -> list[Row]:
    """All columns that do not measure time."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_csv(table)]
