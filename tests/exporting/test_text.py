"""``blockkd export`` on runs of sentences: read back by the libraries that users have, from text as users type it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import blockkd
from blockkd.cli import main
from blockkd.exporting import load_preprocessing
from blockkd.exporting.calls import of_sizes, sizes, to_check
from blockkd.exporting.folder import sha256
from blockkd.runs import read_csv
from blockkd.text.preprocessing import TextPreprocessing
from tests.text.families import classifier, sentences, transformers
from tests.text.making import folders, recipe_file, written

for module in ("onnxruntime", "onnxscript"):
    pytest.importorskip(module, reason=f"{module} is not installed")
datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")

ONE, TWO = ["the film was very good", "bad", "a poor plot and awful actor"], ["the plot", "great great film", "fine"]
FILES = {
    *("README.md", "export.json", "preprocessing.json", "config.json", "model.safetensors", "model.onnx"),
    *("model.int8.onnx", "model.pt2", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "hub/README.md"),
    *("hub/config.json", "hub/model.safetensors", "hub/tokenizer.json", "hub/tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: a run on pairs of sentences, ``run``, all of it exported."""
    place = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
        folders(place)
        for task in ("mrpc", "stsb"):
            written(place / "glue", task, {"train": 80, "validation": 30})
        recipe = recipe_file("glue/mrpc/bert-base_6-layer/block_kd", name="teacher", val_share=0.2)
        assert main(["distill", "--config", recipe, "--optimizer.lr", "0.001", "--output", "run"]) == 0
        assert main(["export", "run", "--format", "safetensors", "onnx", "pt2", "hub", "--int8"]) == 0
        yield place


@pytest.fixture(autouse=True)
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@torch.no_grad()
def expected() -> Tensor:
    """What transformers makes of the run's own folder."""
    network = transformers.AutoModelForSequenceClassification.from_pretrained("run/student.pretrained").eval()
    read = transformers.AutoTokenizer.from_pretrained("run/student.pretrained")
    logits: Tensor = network(**read(ONE, TWO, padding=True, return_tensors="pt")).logits
    return logits


def test_everything_is_there_and_is_listed() -> None:
    out = Path("run/export")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == FILES
    said = json.loads((out / "export.json").read_text())
    assert said["files"].keys() == FILES - {"export.json"}
    assert all(sha256(out / name) == facts["sha256"] for name, facts in said["files"].items())
    assert said["of_the_teacher"] == {"deployed": [], "started": []}


def test_two_lines_take_sentences_to_logits() -> None:
    network, preprocessing = blockkd.load_exported("run/export"), load_preprocessing("run/export")
    assert isinstance(preprocessing, TextPreprocessing)
    inputs = preprocessing(ONE, TWO)
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    with torch.no_grad():
        assert torch.equal(network(**inputs).logits, expected())
    assert preprocessing.labels == ("not_equivalent", "equivalent")
    assert preprocessing([" ".join(["good"] * 99)], ["bad"])["input_ids"].shape == (1, 32)
    with pytest.raises(ValueError, match="1 lists of sentences are given, expected 2: sentence1 and sentence2"):
        preprocessing(ONE)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_programs_take_any_batch_and_length_and_see_no_padding(name: str) -> None:
    inputs = load_preprocessing("run/export")(ONE, TWO)  # type: ignore[call-arg, arg-type]
    assert isinstance(inputs, dict)
    logits = expected()
    assert torch.allclose(run(name, inputs), logits, atol=1e-4)
    padded = {
        key: torch.nn.functional.pad(value, (0, 11), value=int(key == "input_ids")) for key, value in inputs.items()
    }
    assert torch.allclose(run(name, padded), logits, atol=1e-4)
    seen = padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}
    assert not torch.allclose(run(name, seen), logits, atol=1e-3), "the mask counts"
    turned = inputs | {"token_type_ids": 1 - inputs["token_type_ids"]}
    assert not torch.allclose(run(name, turned), logits, atol=1e-3), "and so do the types"
    one = {key: value[:1, :3] for key, value in inputs.items()}
    assert run(name, one).shape == (1, 2)


def run(name: str, inputs: dict[str, Tensor]) -> Tensor:
    path = f"run/export/{name}"
    if name.endswith("pt2"):
        with torch.no_grad():
            said: Tensor = torch.export.load(path).module()(**inputs)
        return said
    import onnxruntime

    arrays = {key: value.numpy() for key, value in inputs.items()}
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, arrays)[0])


def test_transformers_loads_network_and_tokenizer_without_us(tmp_path: Path) -> None:
    script = f"""
import sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
network, read = (kind.from_pretrained("run/export/hub") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
with torch.no_grad():
    said = network.eval()(**read({ONE!r}, {TWO!r}, padding=True, return_tensors="pt")).logits
assert "blockkd" not in sys.modules
assert network.config.id2label == {{0: "not_equivalent", 1: "equivalent"}}
assert read.model_max_length == 32
torch.save(said, {str(tmp_path / "said.pt")!r})
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
    assert torch.allclose(torch.load(tmp_path / "said.pt"), expected(), atol=1e-6)


def test_the_quantised_file_is_judged_by_the_tasks_own_metrics() -> None:
    """By an independent count, sentence by sentence."""
    table = datasets.Dataset.from_parquet("glue/mrpc/validation.parquet").to_dict()
    read: Any = load_preprocessing("run/export")
    for name, key in (("model.onnx", "float"), ("model.int8.onnx", "int8")):
        said = [
            int(run(name, read([one], [two])).argmax())
            for one, two in zip(table["sentence1"], table["sentence2"], strict=True)
        ]
        pairs = list(zip(said, table["label"], strict=True))
        hits, wrong = pairs.count((1, 1)), pairs.count((1, 0)) + pairs.count((0, 1))
        stored = json.loads(Path("run/export/export.json").read_text())["int8"]
        assert stored["scheme"] == "dynamic"
        assert stored[key]["f1"] == pytest.approx(2 * hits / max(2 * hits + wrong, 1))
        assert stored[key]["accuracy"] == pytest.approx(1 - wrong / 30)


def test_the_card_says_what_the_run_measured_and_where_nothing_lies(home: Path) -> None:
    card = Path("run/export/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-classification"
    rows = {str(row["method"]): row for row in read_csv(Path("run/results.csv"))}
    for method in ("teacher", "block_kd"):
        names = [f"{part}_{metric}" for part in ("test", "val") for metric in ("f1", "accuracy")]
        assert " | ".join(f"{100 * float(rows[method][name]):.2f}" for name in names) in card
    assert "| FLOPs / sentence | test F1 (%) | test accuracy (%) | val F1 (%) | val accuracy (%) |" in card
    assert "distilled from teacher\n" in card
    assert "Glue mrpc glue, 64 train, 16 val, 30 test sentences" in card
    assert "pairs of sentence1 and sentence2" in card
    assert "None of them is one of the teacher's." in card
    for path in Path("run/export").rglob("*"):
        assert path.is_dir() or str(home).encode() not in path.read_bytes(), path


def test_what_a_student_kept_of_its_start_is_named_and_anything_else_of_the_teacher_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student's two layers are copies of the teacher's first and last."""
    copy, teacher = tmp_path / "run", load_file("run/teacher.safetensors")
    shutil.copytree("run", copy, ignore=shutil.ignore_patterns("export"))
    file = copy / "block_kd/seed_0/student.safetensors"
    mine = load_file(file)
    key = "bert.encoder.layer.{}.output.dense.weight"
    kept = {key.format(1): teacher[key.format(3)], "classifier.weight": teacher["classifier.weight"]}
    save_file(mine | kept, file)
    assert main(["export", str(copy), "--output", str(tmp_path / "out")]) == 0
    assert f"these have stayed as they were: {', '.join(sorted(kept))}." in (tmp_path / "out/README.md").read_text()
    save_file(mine | {key.format(1): teacher[key.format(1)]}, file)
    assert main(["export", str(copy)]) == 2
    assert f"1 tensors of the student are the teacher's, bit for bit: {key.format(1)}" in capsys.readouterr().err
    assert not (copy / "export").exists()


def test_a_regression_and_a_student_of_another_family() -> None:
    """DistilBERT knows no types of tokens; its folder's tokenizer gives none, so that both go together."""
    classifier("distilbert", layers=2, classes=1, seed=3).save_pretrained("small")  # type: ignore[operator]
    options = {"name": "pretrained", "student": {"name": "small"}}
    recipe = recipe_file("glue/stsb/bert-base_6-layer/block_kd", **options)  # type: ignore[arg-type]
    assert main(["distill", "--config", recipe, "--teacher.epochs", "1", "--output", "graded"]) == 0
    assert main(["export", "graded", "--format", "onnx", "hub", "--int8"]) == 0
    hub = "graded/export/hub"
    network = transformers.AutoModelForSequenceClassification.from_pretrained(hub).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(hub)(ONE, TWO, padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert network(**inputs).logits.shape == (3, 1)
    card = Path("graded/export/README.md").read_text()
    assert "takes `input_ids`, `attention_mask`, whole numbers" in card
    assert "One number is told of each." in card
    found = json.loads(Path("graded/export/export.json").read_text())
    assert set(found["int8"]["float"]) == {"spearman", "pearson"}
    assert found["int8"]["float"]["pearson"] == pytest.approx(found["scores"]["test"]["pearson"], abs=1e-3)


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_compared_are_whole_sentences_cut_where_the_padding_is(side: str) -> None:
    batch = sentences([3, 9, 6])
    if side == "left":
        batch = {name: value.flip(1) for name, value in batch.items()}
    rows = {tuple(row) for row in batch["input_ids"].tolist()}
    whole = to_check(batch, 7, seed=1)
    assert isinstance(whole, dict)
    assert whole["input_ids"].shape == (7, 9)
    assert {tuple(row) for row in whole["input_ids"].tolist()} <= rows
    for share in (1.0, 0.5, 0.01):
        cut = to_check(batch, 5, share=share)
        assert isinstance(cut, dict)
        assert cut["attention_mask"].shape == cut["input_ids"].shape == (5, max(int(9 * share), 1))
        assert torch.equal(cut["attention_mask"], (cut["input_ids"] != 1).long())
        assert bool(cut["attention_mask"].any(dim=1).all()), "there is something to attend to in each"


def test_a_batch_is_made_again_from_its_sizes() -> None:
    for inputs in (torch.randn(2, 3, 4, 4), sentences([3, 5])):
        again = of_sizes(json.loads(json.dumps(sizes(inputs))))
        assert sizes(again) == sizes(inputs)
        assert isinstance(again, Tensor) == isinstance(inputs, Tensor)
