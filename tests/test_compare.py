"""``blockkd compare``: shared teacher, data and seeds; slices of time; several processes; what is left behind."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor

from blockkd.cli import main
from blockkd.commands.beside import published_beside
from blockkd.commands.entries import Entry
from blockkd.commands.slices import Deadline
from blockkd.data import Digits, LabelledImages
from blockkd.data.images import Parts
from blockkd.models.named import Named
from blockkd.models.weights import read_state_dict
from blockkd.runs import Job, RunFolder, read_csv
from blockkd.text.networks import Pretrained, StudentOf
from blockkd.training import DistillationModule
from tests.test_cli import SMALL, interrupt

FASTER = {"epochs": 2, "teacher": {"network": SMALL["teacher"]["network"], "epochs": 2}}
METHODS = {
    "ours": {"class_path": "blockkd.BlockKD", "init_args": {"stones": "last"}},
    "kd": {"class_path": "blockkd.KD"},
    "plain": {"class_path": "blockkd.CrossEntropy"},
}


class NothingHeldOut(Digits):
    """No validation part, as in the field's protocol."""

    def load(self) -> Parts:
        train, _, test = super().load()
        empty = LabelledImages(train.images[:0], train.labels[:0])
        return Parts(
            LabelledImages(train.images[:256], train.labels[:256]),
            empty,
            LabelledImages(test.images[:64], test.labels[:64]),
        )


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, method in METHODS.items():
        content = SMALL | FASTER | {"method": method, "beside": {}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    taught = {key: value for key, value in (SMALL | FASTER).items() if key in ("data", "teacher")}
    (tmp_path / "kd_teacher.yaml").write_text(yaml.safe_dump({"base": "digits/teacher", **taught}))
    return [f"{name}.yaml" for name in METHODS]


def students(folder: str) -> dict[str, dict[str, Tensor]]:
    return {str(path.parent): read_state_dict(path) for path in Path(folder).rglob("student.safetensors")}


def assert_same_students(one: str, two: str) -> None:
    first, second = students(one), students(two)
    assert first
    assert {name.removeprefix(one) for name in first} == {name.removeprefix(two) for name in second}
    for (_, a), (_, b) in zip(sorted(first.items()), sorted(second.items()), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_comparison_leaves_tables_figure_and_recipes(recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *recipes, "--seeds", "2", "--output", "run"]) == 0
    printed = capsys.readouterr().out
    assert "± " in printed
    assert "not finished" not in printed
    rows = read_csv(Path("run/results.csv"))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("teacher", 0),
        *[(method, seed) for seed in (0, 1) for method in METHODS],
    ]
    student = rows[1]
    assert student["batch_size"] == 64
    assert int(student["step_flops"]) > 64 * 2 * int(student["flops_per_image"])
    assert float(student["saved_mib"]) > 0
    assert student["best_epoch"] in (1, 2)
    table = {row["method"]: row for row in read_csv(Path("run/comparison.csv"))}
    assert table["kd"]["n"] == 2
    assert float(table["ours"]["relative_flops"]) > 1
    text = Path("run/comparison.md").read_text()
    assert "command: `blockkd compare ours.yaml kd.yaml plain.yaml --seeds 2" in text
    assert torch.__version__ in text
    assert Path("run/comparison.png").stat().st_size > 10_000
    assert not list(Path("run").rglob("*.ckpt"))

    assert main(["distill", "--config", "run/kd/recipe.yaml", "--teacher.weights", "run/teacher.safetensors"]) == 0
    again = read_state_dict(Path("runs/kd/student.safetensors"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in students("run")["run/kd/seed_0"].items())


def test_best_epoch_is_chosen_on_the_validation_part(recipes: list[str]) -> None:
    assert main(["compare", recipes[1], "--epochs", "3", "--output", "run"]) == 0
    curve = [float(row["val/accuracy"]) for row in read_csv(Path("run/kd/seed_0/metrics.csv"))]
    result = read_csv(Path("run/results.csv"))[1]
    assert result["best_epoch"] == 1 + curve.index(max(curve))
    assert main(["evaluate", "run/kd/seed_0"]) == 2  # a job's folder is no run


def test_slices_of_time_give_what_one_run_gives(recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *recipes, "--output", "whole"]) == 0
    capsys.readouterr()
    short = ["--minutes", "1e-6"]
    assert main(["compare", *recipes, "--output", "sliced", *short]) == 0
    assert "3 of 3 students are not finished" in capsys.readouterr().out
    for _ in range(20):  # an epoch each: two of the teacher, two of each student
        assert main(["compare", "--resume", "sliced", *short]) == 0
        if "not finished" not in capsys.readouterr().out:
            break
    else:
        pytest.fail("slices do not come to an end")
    assert_same_students("whole", "sliced")
    rows = [read_csv(Path(folder) / "metrics.csv") for folder in ("whole", "sliced")]
    for whole, sliced in zip(*rows, strict=True):
        assert {**whole, "seconds": 0} == {**sliced, "seconds": 0}


def test_processes_share_the_work(recipes: list[str]) -> None:
    assert main(["compare", *recipes, "--seeds", "2", "--output", "alone"]) == 0
    assert main(["compare", *recipes, "--seeds", "2", "--output", "together", "--processes", "2"]) == 0
    assert_same_students("alone", "together")


def test_a_job_that_another_process_has_is_left_to_it(recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *recipes, "--output", "run", "--minutes", "1e-6"]) == 0
    with RunFolder("run").claim(Job("kd", 0)) as ours:
        assert ours
        assert main(["compare", "--resume", "run"]) == 0
        assert "1 of 3 students are not finished" in capsys.readouterr().out
    assert not Path("run/kd/seed_0/result.json").exists()
    assert main(["compare", "--resume", "run"]) == 0
    assert Path("run/kd/seed_0/result.json").exists()


def test_a_resumed_comparison_takes_more_seeds_and_trains_nothing_twice(
    recipes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["compare", *recipes, "--output", "run"]) == 0
    trained: list[str] = []
    step = DistillationModule.training_step

    def counting(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        trained.append(type(self.distiller).__name__)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", counting)
    assert main(["compare", "--resume", "run", "--seeds", "2"]) == 0
    assert len(trained) == 3 * 2 * 4  # lines × epochs × batches
    trained.clear()
    assert main(["compare", "--resume", "run", "--seeds", "2"]) == 0
    assert not trained
    assert len(read_csv(Path("run/results.csv"))) == 1 + 2 * 3


def test_one_recipe_and_the_methods_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL | FASTER))
    assert main(["compare", "small.yaml"]) == 0
    rows = read_csv(tmp_path / "runs/compare/small/results.csv")
    assert [row["method"] for row in rows] == ["teacher", "block_kd", "kd", "cross_entropy"]


def test_without_a_validation_part_the_test_part_is_watched_and_marked(recipes: list[str]) -> None:
    data = ["--data", "tests.test_compare.NothingHeldOut"]
    assert main(["compare", *recipes[:2], *data, "--output", "run"]) == 0
    curve = [float(row["test/accuracy"]) for row in read_csv(Path("run/kd/seed_0/metrics.csv"))]
    result = read_csv(Path("run/results.csv"))[2]
    assert result["best_watched_accuracy"] == pytest.approx(max(curve))
    assert "best_epoch" not in result
    assert "val_accuracy" not in result
    assert "†" in Path("run/comparison.md").read_text()
    assert main(["distill", "--config", recipes[1], *data, "--output", "distilled"]) == 0
    assert Path("distilled/figure.png").stat().st_size > 10_000


@pytest.mark.usefixtures("recipes")
def test_settings_that_are_not_the_same_for_all_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("fast.yaml").write_text("base: kd.yaml\noptimizer: {init_args: {lr: 0.2}}\n")
    assert main(["compare", "kd.yaml", "fast.yaml", "--output", "run"]) == 0
    assert "Not the same for all: optimizer.init_args.lr" in capsys.readouterr().out
    assert "optimizer.init_args.lr: `kd 0.1, fast 0.2`" in Path("run/comparison.md").read_text()


@pytest.mark.usefixtures("recipes")
def test_one_that_diverges_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wild.yaml").write_text("base: kd.yaml\noptimizer: {init_args: {lr: 1.0e+30}}\n")
    assert main(["compare", "wild.yaml", "kd.yaml", "--output", "run"]) == 2
    said = capsys.readouterr()
    assert "the loss of 1 students is not finite: wild, seed 0" in said.err
    assert Path("run/kd/seed_0/result.json").exists()
    assert "1 of 2 students are not finished" in said.out


def test_an_interrupt_says_how_to_go_on(
    recipes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 10, KeyboardInterrupt())
        assert main(["compare", *recipes, "--output", "run"]) == 130
    assert "go on with: blockkd compare --resume run" in capsys.readouterr().err
    assert main(["compare", "--resume", "run"]) == 0
    assert main(["compare", *recipes, "--output", "whole"]) == 0
    assert_same_students("whole", "run")


def test_a_deadline() -> None:
    assert Deadline().allows(1e9)
    assert Deadline().minutes_left() is None
    deadline = Deadline(minutes=0.5)
    assert deadline.allows(29)
    assert not deadline.allows(31)
    time.sleep(0.01)
    left = deadline.minutes_left()
    assert left is not None
    assert 0.4 < left < 0.5
    assert Deadline(1e-9).minutes_left() == 0


BAD = {
    "nothing": ([], "no recipe is given"),
    "option first": (["--seeds", "2", "kd.yaml"], "no recipe is given"),
    "one method for all": (["kd.yaml", "ours.yaml", "--method", "KD"], "--method would make all lines"),
    "a run's own file": (["files.yaml"], "cannot be called 'metrics.csv'"),
    "a name that is no text": (["numbers.yaml"], "has the key 5, which is not a name; put it in quotes"),
    "unknown": (["cifar100/resnet56-resnet20/kdd"], "did you mean"),
    "twice": (["kd.yaml", "kd.yaml"], "two lines of the comparison are called 'kd'"),
    "data": (["kd.yaml", "other.yaml"], "kd.yaml and other.yaml differ in data.init_args.batch_size"),
    "minutes": (["kd.yaml", "--minutes", "0"], "--minutes is 0.0, expected more than 0"),
    "minutes word": (["kd.yaml", "--minutes", "ten"], "invalid float value: 'ten'"),
    "processes": (["kd.yaml", "--processes", "0"], "--processes is 0"),
    "option": (["kd.yaml", "--seedz", "3"], "unknown option --seedz; did you mean --seed or --seeds"),
    "resume nothing": (["--resume", "gone"], "gone holds no run"),
    "resume and recipe": (["kd.yaml", "--resume", "gone"], "give it alone"),
    "resume a run": (["--resume", "run"], "holds no comparison; go on with blockkd distill --resume run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case: str, recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes
    Path("other.yaml").write_text("base: kd.yaml\ndata: {init_args: {batch_size: 32}}\n")
    Path("files.yaml").write_text("base: kd.yaml\nbeside: {metrics.csv: {class_path: blockkd.KD}}\n")
    Path("numbers.yaml").write_text("base: kd.yaml\nbeside: {5: {class_path: blockkd.KD}}\n")
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("epochs: 3\n")
    before = sorted(str(path) for path in Path.cwd().rglob("*"))
    arguments, expected = BAD[case]
    assert main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("blockkd: ")
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(str(path) for path in Path.cwd().rglob("*")) == before


def test_a_comparison_is_no_run_of_distill(recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", recipes[1], "--output", "run", "--minutes", "1e-6"]) == 0
    assert main(["evaluate", "run"]) == 2
    assert "run holds a comparison; evaluate a student of it" in capsys.readouterr().err
    assert main(["distill", "--resume", "run"]) == 2
    assert "go on with blockkd compare --resume run" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--trainer.precision", "bf16-mixed"], ["--trainer.gradient_clip_val", "1"]])
def test_the_arithmetic_stays_when_a_comparison_goes_on(
    option: list[str], recipes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", recipes[1], "--output", "run", "--minutes", "1e-6"]) == 0
    assert main(["compare", "--resume", "run", *option]) == 2
    assert "keeps its recipe" in capsys.readouterr().err


def test_a_comparison_goes_on_from_another_folder(
    recipes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["teach", "--config", "kd_teacher.yaml", "--output", "taught"]) == 0
    weights = ["--teacher.weights", "taught/teacher.safetensors"]
    assert main(["compare", recipes[1], *weights, "--output", "run", "--minutes", "1e-6"]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["compare", "--resume", "../run"]) == 0


@pytest.mark.parametrize("broken", ["", "{}", "[1]"])
def test_a_damaged_result_is_named(broken: str, recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", recipes[1], "--output", "run"]) == 0
    Path("run/kd/seed_0/result.json").write_text(broken)
    assert main(["compare", "--resume", "run"]) == 2
    said = capsys.readouterr().err
    assert "result.json is damaged (" in said
    assert "delete run/kd/seed_0, and the job is done again" in said


def test_published_numbers_stand_only_beside_what_they_belong_to(recipes: list[str]) -> None:
    names = {"teacher": "resnet56", "student": "resnet20"}
    for count, found in ((50_000, True), (49_999, False)):
        data = SimpleNamespace(num_classes=100, parts=SimpleNamespace(train=range(count)))
        teacher = SimpleNamespace(network=Named(names["teacher"]))
        recipe = SimpleNamespace(data=data, teacher=teacher, student=Named(names["student"]))
        entry = Entry("kd", "mine.yaml", Namespace(), recipe)  # type: ignore[arg-type, no-untyped-call]
        assert bool(published_beside([entry])) is found
        assert recipes
    recipe.student = Named("resnet8")
    assert not published_beside([entry])


@pytest.mark.parametrize(
    ("layers", "changes", "width", "sentences", "found"),
    [
        (6, {}, 768, 67_349, True),
        ([1, 3, 5, 8, 10, 12], {}, 768, 67_349, True),
        (4, {}, 768, 67_349, False),
        (6, {"hidden_size": 384}, 768, 67_349, False),
        (6, {}, 256, 67_349, False),
        (6, {}, 768, 6_735, False),
    ],
)
def test_published_numbers_of_glue_stand_only_beside_bert_base_and_six_layers(
    layers: Any, changes: dict[str, Any], width: int, sentences: int, found: bool, tmp_path: Path
) -> None:
    config = {"model_type": "bert", "num_hidden_layers": 12, "hidden_size": width, "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = SimpleNamespace(num_classes=2, parts=SimpleNamespace(train=range(sentences)), task_name="sst2")
    teacher = SimpleNamespace(network=Pretrained(str(tmp_path)))
    recipe = SimpleNamespace(data=data, teacher=teacher, student=StudentOf(layers, **changes))
    numbers = published_beside([Entry("kd", "mine.yaml", Namespace(), recipe)])  # type: ignore[arg-type, no-untyped-call]
    assert bool(numbers) is found
    if found:
        assert (numbers["teacher"].accuracy, numbers["teacher"].verified) == (91.5, True)
        assert (numbers["pkd"].accuracy, numbers["pkd"].verified) == (91.3, False)


def test_a_resumed_comparison_keeps_its_recipes(recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *recipes, "--output", "run", "--minutes", "1e-6"]) == 0
    assert main(["compare", "--resume", "run", "--epochs", "5"]) == 2
    assert "keeps its recipe, but epochs would change" in capsys.readouterr().err
    assert main(["compare", *recipes, "--output", "run"]) == 2
    assert "already holds a run" in capsys.readouterr().err
