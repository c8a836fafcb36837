"""Text through the commands: what a user types, what it leaves, and that it goes on where it was stopped."""

import os
import re
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from blockkd.cli import main
from blockkd.models.weights import read_state_dict
from blockkd.runs import read_csv
from blockkd.text.pretrained import load_teacher
from blockkd.training import DistillationModule
from tests.models.shared_data import data_file
from tests.reliability.runs import assert_equal_runs
from tests.text.families import classifier, transformers
from tests.text.making import DATA, folders, recipe_file, written

datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")

KD, BLOCK_KD = "glue/sst2/bert-base_6-layer/kd", "glue/sst2/bert-base_6-layer/block_kd"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return folders(tmp_path)


def glue_task(task: str) -> None:
    if not Path("glue", task).is_dir():
        written(Path("glue"), task, {"train": 80, "validation": 30})


def same(one: Path, two: Path) -> bool:
    first, second = read_state_dict(one), read_state_dict(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_file(BLOCK_KD, epochs=2)
    smaller = ["--student.layers", "2", "--student.hidden_size", "8"]
    assert main(["distill", "--config", recipe, "--teacher.name", "./teacher", *smaller, "--output", "run"]) == 0
    out = capsys.readouterr().out
    assert "preflight: the teacher is right on" in out
    assert "test sentences" in out
    assert "FLOPs / sentence" in out
    student = transformers.AutoModelForSequenceClassification.from_pretrained("run/student.pretrained")
    assert student.config.num_hidden_layers == 2
    assert student.config.hidden_size == 8
    state = read_state_dict(Path("run/student.safetensors"))
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        name: tuple(value.shape) for name, value in student.state_dict().items()
    }
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    tokens = transformers.AutoTokenizer.from_pretrained("run/student.pretrained")("the film was good")["input_ids"]
    assert tokens == transformers.AutoTokenizer.from_pretrained("teacher")("the film was good")["input_ids"]
    held = {path.name for path in Path("run/student.pretrained").iterdir()}
    assert held == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    stored = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert Path(stored["teacher"]["network"]["init_args"]["name"]).is_absolute()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Before each training step one of these signals is sent to this process, or none; used up from the front."""
    plan: list[Any] = []
    step = DistillationModule.training_step

    def planned(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        sent = plan.pop(0) if plan else None
        if sent is not None:
            os.kill(os.getpid(), sent)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", planned)
    return plan


@pytest.mark.parametrize(("task", "method"), [("sst2", "block_kd"), ("stsb", "theseus")])
def test_stopped_and_resumed_equals_uninterrupted(task: str, method: str, steps: list[Any]) -> None:
    """Within the teacher's epoch, twice within one of the student's, and between two; dropout and draws included."""
    glue_task(task)
    recipe = recipe_file(f"glue/{task}/bert-base_6-layer/{method}", name="pretrained", epochs=2, val_share=0.1)
    begin = ["distill", "--config", recipe, "--teacher.epochs", "1", "--output"]
    assert main([*begin, "whole"]) == 0
    for stop in ([None, SIGTERM], [None] * 7 + [SIGTERM], [SIGTERM], [None, None, SIGTERM]):
        steps[:] = stop
        assert main(["distill", "--resume", "halves"] if Path("halves").exists() else [*begin, "halves"]) == 143
    steps[:] = [None] * 100
    assert main(["distill", "--resume", "halves"]) == 0
    assert len(steps) == 100 - (2 * 9 - 5), "steps that were taken before are not taken again"
    assert_equal_runs(Path("whole"), Path("halves"))
    metric = {"sst2": "accuracy", "stsb": "spearman"}[task]
    assert all(f"train/{metric}" in row for row in read_csv(Path("whole/metrics.csv")))


def test_a_pretrained_network_is_fine_tuned_first(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_file(KD, name="pretrained")
    data = [f"--data.{name}={value}" for name, value in DATA.items()]
    teach = ["teach", "--config", "glue/teacher", "--teacher.name", "pretrained", "--teacher.epochs", "2", *data]
    assert main([*teach, "--output", "taught"]) == 0
    assert "blockkd distill --teacher.name taught/teacher.pretrained" in capsys.readouterr().out
    assert [row["epoch"] for row in read_csv(Path("taught/metrics.csv"))] == [0, 1]
    learning_rates = [float(row["lr"]) for row in read_csv(Path("taught/metrics.csv"))]
    assert learning_rates[0] == 0.0  # it is warmed up
    assert 0 < learning_rates[1] < 2e-5
    fine_tuned = transformers.AutoModelForSequenceClassification.from_pretrained("taught/teacher.pretrained")
    assert fine_tuned.config.id2label == {0: "negative", 1: "positive"}
    distill = ["distill", "--config", recipe, "--teacher.name", "taught/teacher.pretrained", "--output", "run"]
    assert main(distill) == 0
    assert same(Path("taught/teacher.safetensors"), Path("run/teacher.safetensors")), "it is taken as it is"
    assert read_csv(Path("run/results.csv"))[0]["epochs"] == 0
    assert not Path("run/teacher.pretrained").exists()


@pytest.mark.parametrize(
    ("task", "metric", "title", "others"),
    [
        ("cola", "matthews", "Matthews correlation", ()),
        ("stsb", "spearman", "Spearman correlation", ("pearson",)),
        ("mrpc", "f1", "F1", ("accuracy",)),
    ],
)
def test_tasks_are_judged_by_their_own_metric(
    task: str, metric: str, title: str, others: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    glue_task(task)
    recipe = recipe_file(f"glue/{task}/bert-base_6-layer/block_kd", name="pretrained", epochs=3, val_share=0.2)
    faster = ["--teacher.epochs", "3", "--teacher.optimizer.lr", "0.003", "--optimizer.lr", "0.003"]
    assert main(["distill", "--config", recipe, *faster, "--output", "run"]) == 0
    captured = capsys.readouterr()
    assert f"test {title}" in captured.out
    teacher, student = read_csv(Path("run/results.csv"))
    assert teacher["metric"] == student["metric"] == metric
    rows = [row for row in read_csv(Path("run/metrics.csv")) if row["method"] == "block_kd"]
    chosen = max(rows, key=lambda row: float(row[f"val/{metric}"]))
    assert student["best_epoch"] == int(chosen["epoch"]) + 1
    assert {f"test_{name}" for name in (metric, *others)} <= student.keys()
    assert f"best_test_{metric}" in student
    assert main(["evaluate", "run"]) == 0
    evaluated = capsys.readouterr().out
    assert "blockkd report run" in evaluated
    assert "blockkd export run" in evaluated
    for row in (teacher, student):
        assert f"{100 * float(row[f'test_{metric}']):.2f}" in evaluated
    assert title in evaluated


def test_two_methods_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    glue_task("cola")
    names = [f"glue/cola/bert-base_6-layer/{method}" for method in ("kd", "pkd")]
    options = ["--teacher.name", "teacher", "--student.layers", "2", *(f"--data.{k}={v}" for k, v in DATA.items())]
    assert main(["compare", *names, *options, "--epochs", "1", "--seeds", "2", "--output", "both"]) == 0
    out = capsys.readouterr().out
    assert "Matthews correlation in %, on 30 test sentences" in out
    assert "− kd" in out
    text = Path("both/comparison.md").read_text()
    assert "largest test Matthews correlation of any epoch" in text, "nothing is held out"
    table = {row["method"]: row for row in read_csv(Path("both/comparison.csv"))}
    results = [row for row in read_csv(Path("both/results.csv")) if row["method"] == "pkd"]
    assert table["pkd"]["test_matthews_mean"] == pytest.approx(sum(float(r["test_matthews"]) for r in results) / 2)
    assert Path("both/pkd/seed_1/student.pretrained/config.json").is_file()


def test_inspect_shows_blocks_and_stones(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_file(BLOCK_KD)
    assert main(["inspect", "--config", recipe, "--teacher.name", "teacher", "--student.hidden_size", "8"]) == 0
    out = capsys.readouterr().out
    assert "bert.encoder.layer.1" in out
    assert "N_2" in out
    length = int(re.search(r"for one sentence of (\d+) tokens", out)[1])  # type: ignore[index]
    assert f"{length}×16" in out
    assert f"{length}×8 → {length}×16" in out
    layers = sum(p.numel() for p in load_teacher("teacher").bert.encoder.parameters())
    assert f"{layers // 2:,}" in out, "two of four layers are a block"
    assert main(["inspect", "--config", recipe_file(KD), "--teacher.name", "teacher"]) == 0
    assert "blocks as they could be cut; kd needs none" in capsys.readouterr().out


def test_a_student_of_its_own_folder_is_trained() -> None:
    network: Any = classifier("distilbert", layers=2, classes=2, seed=3)
    network.save_pretrained("small")
    recipe = recipe_file(BLOCK_KD, student={"name": "small"})
    assert main(["distill", "--config", recipe, "--teacher.name", "teacher", "--output", "run"]) == 0
    student = transformers.AutoModelForSequenceClassification.from_pretrained("run/student.pretrained")
    assert type(student).__name__ == "DistilBertForSequenceClassification"
    assert main(["evaluate", "run/student.safetensors", "--config", "run/recipe.yaml"]) == 0


def test_the_order_of_sentences_hangs_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = DistillationModule.training_step, []

    def noting(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        seen.append(batch[2].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", noting)
    recipe = recipe_file("glue/sst2/bert-base_6-layer/fine_tuning", beside={"kd": {"class_path": "blockkd.KD"}})
    assert main(["distill", "--config", recipe, "--teacher.name", "teacher", "--seeds", "2", "--output", "run"]) == 0
    orders = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert orders[0] == orders[1] != orders[2] == orders[3]


def test_some_steps_on_the_real_sst2(capsys: pytest.CaptureFixture[str]) -> None:
    """On its development set, once in the place of the training split, which is too large for a test."""
    real = data_file("glue/sst2/validation.parquet")
    for split in ("train", "validation"):
        Path("real/sst2").mkdir(parents=True, exist_ok=True)
        Path(f"real/sst2/{split}.parquet").symlink_to(real)
    data = ["--data.path", "real", "--data.batch_size", "128"]
    options = ["--teacher.name", "teacher", "--method.cross_from_epoch", "0", "--output", "run"]
    assert main(["distill", "--config", recipe_file(BLOCK_KD), *data, *options]) == 0
    assert "on 872 test sentences" in capsys.readouterr().out
    row = next(row for row in read_csv(Path("run/metrics.csv")) if row["method"] == "block_kd")
    assert {"train/cross/student", "train/task/stone_1", "train/distill/stone_2"} <= row.keys()
