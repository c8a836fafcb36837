"""TinyBERT and MiniLM by their recipes, on a tiny copy of SST-2."""

from pathlib import Path
from typing import Any

import pytest

from blockkd.cli import main
from tests.text.making import folders, recipe_file
from tests.text.test_glue import own_cache  # noqa: F401


@pytest.mark.parametrize(
    ("method", "options", "term"),
    [("tiny_bert", {}, "train/attention/block_2"), ("mini_lm", {"relation_heads": 4}, "train/relation/QQ")],
)
def test_a_student_is_distilled_by_the_recipe(
    method: str, options: dict[str, Any], term: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders(tmp_path))
    recipe = recipe_file(f"glue/sst2/bert-base_6-layer/{method}", method={"init_args": options})
    assert main(["distill", "--config", recipe, "--teacher.name", "teacher", "--output", "run"]) == 0
    assert Path("run/student.pretrained/model.safetensors").is_file()
    assert term in Path("run/metrics.csv").read_text().partition("\n")[0]


def test_heads_that_do_not_divide_the_width_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders(tmp_path))
    recipe = recipe_file("glue/sst2/bert-base_6-layer/mini_lm")
    assert main(["distill", "--config", recipe, "--teacher.name", "teacher", "--output", "run"]) == 2
    assert "relation_heads is 48, which cannot share the 16 numbers of the" in capsys.readouterr().err
    assert not Path("run").exists()
