"""Folders as users of the commands have them: a fine-tuned classifier, a pretrained network, tasks of GLUE."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from blockkd.text.tasks import TASKS
from tests.text.families import classifier
from tests.text.tokens import reviews, tokenizer

datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")

DATA = {"path": "glue", "max_length": 32, "batch_size": 8, "eval_batch_size": 16}


def folders(at: Path) -> Path:
    """``teacher``, ``pretrained`` and ``glue`` in a folder."""
    network: Any = classifier("bert", classes=2)
    for name, kept in (("teacher", network), ("pretrained", network.bert)):
        kept.save_pretrained(at / name)
        tokenizer().save_pretrained(at / name)
    written(at / "glue", "sst2", {"train": 80, "validation": 30})
    return at


def recipe_file(base: str, name: str | None = None, val_share: float = 0.0, **values: Any) -> str:
    """A recipe of one's own in ``my.yaml``, over the tiny data and with one epoch; ``name`` is the teacher's."""
    teacher = {} if name is None else {"teacher": {"name": name}}
    data = {"init_args": {**DATA, "val_share": val_share}}
    content = {"base": base, "data": data, "student": {"layers": 2}, "epochs": 1, **teacher, **values}
    Path("my.yaml").write_text(yaml.safe_dump(content))
    return "my.yaml"


def written(folder: Path, task: str, rows: dict[str, int], **columns: Any) -> Path:
    """A task in the hub's layout: splits of so many rows; other columns in the place of the usual ones."""
    (folder / TASKS[task].subset).mkdir(parents=True)
    for seed, (split, count) in enumerate(rows.items()):
        found = reviews(count, seed)
        table: dict[str, Any] = {name: [row["sentence"] for row in found] for name in TASKS[task].columns}
        table["label"] = (
            [row["label"] for row in found] if TASKS[task].labels else [row["label"] * 2.5 for row in found]
        )
        table |= {name: values[:count] for name, values in columns.items()}
        datasets.Dataset.from_dict(table).to_parquet(folder / TASKS[task].subset / f"{split}.parquet")
    return folder
