"""What the commands refuse of text: one sentence, exit code 2, nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockkd.cli import main
from blockkd.commands.composing import compose, recipe_names
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe
from blockkd.text.networks import Pretrained, StudentOf
from blockkd.text.tasks import TASKS
from tests.text.families import classifier
from tests.text.making import folders, recipe_file, written

datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")
hub: Any = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

BLOCK_KD = "glue/sst2/bert-base_6-layer/block_kd"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    folders(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *options: str, base: str = BLOCK_KD, **recipe: Any) -> str:
    """The sentence, after having seen that there is one alone and that nothing is left."""
    path = recipe_file(base, **({"name": "teacher"} | recipe))
    assert main(["distill", "--config", path, *options, "--output", "run"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if line.startswith("blockkd: ") and not line.startswith("blockkd: warning")]
    assert len(said) == 1
    assert "Traceback" not in "\n".join(lines)
    assert not Path("run").exists()
    return said[0]


def changed_config(folder: str, **values: Any) -> None:
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_labels_that_are_numbered_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    changed_config("teacher", id2label={"0": "positive", "1": "negative"}, label2id={"positive": 0, "negative": 1})
    said = refused(capsys)
    assert "numbers its labels ['positive', 'negative'], the data ['negative', 'positive']" in said
    assert "reorder the rows of its last layer" in said


def test_a_student_that_numbers_its_labels_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    for name, labels in (("teacher", ("negative", "positive")), ("small", ("positive", "negative"))):
        network: Any = classifier("bert", layers=4 if name == "teacher" else 2, classes=2)
        network.config.id2label, network.config.label2id = (
            dict(enumerate(labels)),
            dict(zip(labels, (0, 1), strict=True)),
        )
        network.save_pretrained(name)
    said = refused(capsys, student={"name": "small"})
    assert "numbers its labels ['positive', 'negative']" in said
    assert "small" in said


def test_a_teacher_of_another_task(capsys: pytest.CaptureFixture[str]) -> None:
    three: Any = classifier("bert", classes=3)
    three.save_pretrained("teacher")
    assert "teacher' tells 3 labels apart, the task has 2 (negative, positive)" in refused(capsys)


def test_a_tokenizer_of_another_network(capsys: pytest.CaptureFixture[str]) -> None:
    small: Any = classifier("bert", classes=2)
    small.resize_token_embeddings(9)
    small.save_pretrained("teacher")
    said = refused(capsys)
    assert "the tokenizer writes 19 tokens and BertForSequenceClassification knows 9" in said
    assert "load the one from the network's own folder" in said


def test_sequences_longer_than_the_positions(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--data.max_length", "65")
    assert "sequences of 65 tokens are longer than the 64 positions of BertForSequenceClassification" in said
    assert "max_length=64" in said


def test_a_column_without_text(capsys: pytest.CaptureFixture[str]) -> None:
    written(Path("glue"), "rte", {"train": 40, "validation": 9}, sentence2=[" "] * 40)
    said = refused(capsys, base="glue/rte/bert-base_6-layer/kd")
    assert "the column 'sentence2' of the train split of rte holds no text" in said


@pytest.mark.parametrize("option", ["--method.teacher_blocks", "--method.student_blocks"])
def test_blocks_that_leave_layers_out(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, option, "[1]", "--method.n_blocks", "1")
    assert "must end in order, and the last of them with the last layer" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--student.hiden_size", "8"], "--student has no setting 'hiden_size'"),
        (
            ["--student.settings", "{hiden_size: 8}"],
            "BertConfig has no setting 'hiden_size', did you mean 'hidden_size'",
        ),
        (["--student.layers", "9"], "layers is 9, expected 1 … 4, as many as the teacher has"),
        (["--student.hidden_size", "9"], "hidden_size is 9, which 2 attention heads cannot share evenly"),
        (["--student.layers", "[1, 7]"], "expected numbers among 1 … 4, which the teacher has"),
        (["--data.task", "sst3"], "task is 'sst3', expected one of GLUE's: cola, sst2"),
        (["--teacher.accuracy", "2"], "teacher.accuracy is 2.0"),
        (["--scheduler.warmup", "1.5"], "warmup is 1.5, expected a share of all steps"),
    ],
)
def test_settings(options: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused(capsys, *options)


def test_distances_of_classes_on_a_regression(capsys: pytest.CaptureFixture[str]) -> None:
    written(Path("glue"), "stsb", {"train": 40, "validation": 9})
    said = refused(capsys, base="glue/stsb/bert-base_6-layer/dkd", name="pretrained")
    assert "DKD compares probabilities of classes, but the labels are numbers" in said
    assert "teacher.accuracy is 0.9, but the data are judged by Spearman" in refused(
        capsys, "--teacher.accuracy", "0.9", base="glue/stsb/bert-base_6-layer/kd", name="pretrained"
    )


def test_a_teacher_no_better_than_guessing_stops_a_strict_run(capsys: pytest.CaptureFixture[str]) -> None:
    written(Path("glue"), "cola", {"train": 40, "validation": 30})
    path = recipe_file("glue/cola/bert-base_6-layer/kd", name="teacher")
    assert main(["distill", "--config", path, "--strict", "--output", "run"]) == 2
    assert "stopped by --strict: the teacher's Matthews correlation on the 30 sentences" in capsys.readouterr().err
    assert not list(Path("run").glob("kd/seed_0/result.json"))


def test_images_for_a_classifier_of_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--teacher.network", "blockkd.text.networks.Pretrained", "--teacher.network.name", "teacher"]
    assert main(["distill", *network, "--output", "run"]) == 2
    assert "teacher' is to classify sentences, but Digits gives none" in capsys.readouterr().err
    assert main(["distill", "--student", "blockkd.text.networks.StudentOf", "--output", "run"]) == 2
    assert "ResNet is no network of transformers" in capsys.readouterr().err


def test_without_a_network_the_hubs_names_end_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--config", BLOCK_KD, "--output", "run"]) == 2
    said = capsys.readouterr().err
    assert "cannot use the data: " in said
    assert "nyu-mll/glue" in said
    assert main(["distill", "--config", BLOCK_KD, "--data.path", "glue", "--output", "run"]) == 2
    said = capsys.readouterr().err
    assert "there is no tokenizer in 'google-bert/bert-base-uncased', neither as a folder with its files nor on" in said
    options = ["--data.path", "glue", "--data.tokenizer", "teacher", "--output", "run"]
    assert main(["distill", "--config", BLOCK_KD, *options]) == 2
    said = capsys.readouterr().err
    assert "no classifier of sentences can be loaded from 'google-bert/bert-base-uncased'" in said
    assert not Path("run").exists()


def test_every_task_has_every_method() -> None:
    names = [name for name in recipe_names() if name.startswith("glue/") and name.count("/") == 3]
    assert {name.split("/")[1] for name in names} == set(TASKS)
    methods = {name.rpartition("/")[2] for name in names}
    assert {"fine_tuning", "kd", "dkd", "pkd", "theseus", "block_kd", "block_kd_light"} <= methods
    assert len(names) == len(TASKS) * len(methods)
    parser = recipe_parser("distill", DistillRecipe, "")
    for name in names:
        recipe = compose(name)
        assert recipe["data"]["init_args"]["task"] == name.split("/")[1]
        assert "methods" not in recipe
        assert recipe["epochs"] == 10
        assert recipe["teacher"]["epochs"] == 3
    for name in {f"glue/{task}/bert-base_6-layer/kd" for task in TASKS} | set(names[: len(methods)]):
        built = parser.instantiate(parse(parser, [f"--config={name}"]))
        assert isinstance(built["teacher"].network, Pretrained)
        assert isinstance(built["student"], StudentOf)
        assert built["student"].layers == 6


def test_networks_are_told_by_their_settings(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        yaml.safe_dump({"base": BLOCK_KD, "teacher": {"name": "./mine", "revision": "abc"}, "student": {"layers": 4}})
    )
    recipe = compose(str(tmp_path / "my.yaml"))
    assert recipe["teacher"]["network"]["init_args"] == {"name": "./mine", "revision": "abc"}
    assert recipe["teacher"]["epochs"] == 3
    assert recipe["student"] == {"class_path": "blockkd.text.networks.StudentOf", "init_args": {"layers": 4}}
    (tmp_path / "pair.yaml").write_text("base: glue/mrpc/bert-base_6-layer\nstudent: {name: ./small}\n")
    recipe = compose(f"{tmp_path}/pair.yaml/pkd")
    assert recipe["student"] == {"class_path": "blockkd.text.networks.Pretrained", "init_args": {"name": "./small"}}
    assert recipe["method"]["class_path"].endswith("PKD")
    assert recipe["data"]["init_args"]["task"] == "mrpc"
    recipe = compose("glue/rte/bert-base_6-layer/theseus")
    assert recipe["method"]["init_args"]["steps"] == 5 * (2490 // 32)
