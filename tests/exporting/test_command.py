"""``blockkd export`` on a run of digits: what it writes, what it refuses, and what it leaves behind when it does."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import blockkd
from blockkd.cli import main
from blockkd.data import Digits
from blockkd.exporting import Preprocessing, load_preprocessing, onnx_file
from blockkd.exporting.folder import sha256
from blockkd.exporting.latency import benchmark
from blockkd.models import ResNet
from blockkd.runs import read_csv
from tests.test_cli import FewDigits

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

RECIPE: dict[str, Any] = {
    "base": "digits/block_kd",
    "data": {"class_path": "tests.test_cli.FewDigits"},
    "teacher": {"network": {"init_args": {"depth": 8, "widths": [8, 8, 16, 32]}}, "epochs": 1},
    "epochs": 1,
}
FILES = {
    *("README.md", "export.json", "preprocessing.json", "config.json", "model.safetensors"),
    *("model.onnx", "model.int8.onnx", "model.pt2", "benchmark.json"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch: Block-KD, KD and SimKD."""
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "small.yaml"
    beside = {"kd": {"class_path": "blockkd.KD"}, "sim_kd": {"class_path": "blockkd.baselines.SimKD"}}
    recipe.write_text(yaml.safe_dump({**RECIPE, "beside": beside}))
    assert main(["distill", "--config", str(recipe), "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """All of it, at once."""
    formats = ["--format", "safetensors", "onnx", "pt2", "--int8", "--benchmark"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockkd.exporting.exporter.benchmark", partial(benchmark, rounds=3))
        assert main(["export", str(run), *formats]) == 0
    return run / "export"


def student(run: Path, method: str = "block_kd") -> nn.Module:
    network = ResNet(8, (4, 4, 8, 16), num_classes=10, in_channels=1)
    return blockkd.load_student(network, run / method / "seed_0" / "student.safetensors").eval()


def test_everything_is_there_and_is_listed(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    listed = json.loads((exported / "export.json").read_text())["files"]
    assert listed.keys() == FILES - {"export.json"}
    for name, facts in listed.items():
        path = exported / name
        assert (path.stat().st_size, sha256(path)) == (facts["bytes"], facts["sha256"])
    assert not list(exported.parent.glob(".export*"))


def test_two_lines_give_the_network_back(exported: Path, run: Path) -> None:
    network = blockkd.load_exported(exported)
    images = FewDigits().parts.test.images
    assert not network.training
    assert torch.equal(network(images), student(run)(images))
    preprocessing = load_preprocessing(exported)
    assert isinstance(preprocessing, Preprocessing)
    from sklearn.datasets import load_digits

    raw = torch.tensor(load_digits().images[:, None], dtype=torch.float32)
    made = preprocessing(raw)
    # Which of the raw digits are the test images is for the split to know: each is one of them.
    distances = (made[None] - images[:5, None]).abs().amax((2, 3, 4)).amin(1)
    assert float(distances.max()) < 1e-5
    assert preprocessing.labels == tuple("0123456789")


def test_the_card_says_what_the_run_measured(exported: Path, run: Path) -> None:
    card = (exported / "README.md").read_text()
    rows = {str(row["method"]): row for row in read_csv(run / "results.csv")}
    for method in ("teacher", "block_kd"):
        assert (
            f"{100 * float(rows[method]['test_accuracy']):.2f} | {100 * float(rows[method]['val_accuracy']):.2f}"
            in card
        )
        assert f"{int(rows[method]['parameters']):,} | {int(rows[method]['flops_per_image']):,}" in card
    assert sha256(run / "recipe.yaml") in card
    assert "256 train, 64 val, 64 test" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == "image-classification"
    assert str(run) not in card


def test_the_quantised_file_was_measured(exported: Path, run: Path) -> None:
    """By an independent count, image by image."""
    import onnxruntime

    part = FewDigits().parts.test
    images = [part[index] for index in range(len(part))]
    said = json.loads((exported / "export.json").read_text())["int8"]
    for name, key in (("model.onnx", "float"), ("model.int8.onnx", "int8")):
        session = onnxruntime.InferenceSession(exported / name)
        right = [
            int(session.run(None, {"images": image[None].numpy()})[0].argmax()) == int(label) for image, label in images
        ]
        assert said[key] == {"accuracy": pytest.approx(sum(right) / len(right))}
    assert said["scheme"] == "static"
    (row,) = [row for row in read_csv(run / "results.csv") if row["method"] == "block_kd"]
    assert said["float"]["accuracy"] == pytest.approx(float(row["test_accuracy"]))
    assert f"{100 * said['int8']['accuracy']:.2f} % for `model.int8.onnx`" in (exported / "README.md").read_text()


def test_the_benchmark_says_what_was_timed_and_where(exported: Path) -> None:
    found = json.loads((exported / "benchmark.json").read_text())
    rows = [(row["network"], row["engine"]) for row in found["rows"]]
    assert rows == [
        ("teacher", "PyTorch"),
        ("student", "PyTorch"),
        ("student", "onnxruntime"),
        ("student, int8", "onnxruntime"),
    ]
    for row in found["rows"]:
        for batch in ("1", "32"):
            low, high = row["batches"][batch]["quartiles"]
            assert 0 < low <= row["batches"][batch]["median_seconds"] <= high
    assert found["threads"] == 1
    assert {"CPU", "torch", "onnxruntime"} <= found["environment"].keys()


def test_nothing_says_where_this_machine_keeps_its_files(exported: Path, run: Path) -> None:
    for path in exported.iterdir():
        content = path.read_bytes()
        for place in (str(run), str(Path(blockkd.__file__).parent), "site-packages"):
            assert place.encode() not in content, path.name


def test_a_fresh_process_loads_the_export(exported: Path) -> None:
    code = (
        f"import blockkd, torch; print(tuple(blockkd.load_exported({str(exported)!r})(torch.zeros(3, 1, 8, 8)).shape))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "(3, 10)\n"
    )


def test_another_student_by_its_method(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--method", "kd", "--output", str(tmp_path / "kd")]) == 0
    images = FewDigits().parts.test.images
    assert torch.equal(blockkd.load_exported(tmp_path / "kd")(images), student(run, "kd")(images))


def test_what_simkd_deploys_is_exported_and_named(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--method", "sim_kd", "--output", str(tmp_path / "out")]) == 0
    network = blockkd.load_exported(tmp_path / "out")
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    theirs = load_file(run / "teacher.safetensors")["fc.weight"]
    assert torch.equal(network.get_parameter("classifier.weight"), theirs)
    assert (
        "the method deploys these on purpose: classifier.weight, classifier.bias"
        in (tmp_path / "out/README.md").read_text()
    )


def test_an_export_is_replaced_only_when_asked_and_nothing_else_ever(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", str(run), "--output", str(out)]
    assert main(command) == 0
    first = (out / "model.safetensors").stat().st_ino
    assert main(command) == 2
    assert "already holds an export; replace it with --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert (out / "model.safetensors").stat().st_ino != first
    (out / "mine.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 2
    assert "holds mine.txt, which no export wrote" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "mine"


def test_a_teachers_tensor_in_the_students_file_is_found(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both networks alike, so that the tensor fits by name and shape and only its bits tell."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("export"))
    file = copy / "block_kd/seed_0/student.safetensors"
    mine, theirs = load_file(file), load_file(copy / "teacher.safetensors")
    theirs["layer1.0.conv1.weight"][:4, :4] = mine["layer1.0.conv1.weight"]
    save_file(mine | {"fc.bias": theirs["fc.bias"]}, file)
    assert main(["export", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "1 tensors of the student are the teacher's, bit for bit: fc.bias" in said
    assert not (copy / "export").exists()


def test_a_tensor_that_gets_into_a_file_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = onnx_file.write_onnx
    stolen: Tensor = load_file(run / "teacher.safetensors")["layer1.0.conv1.weight"]

    def smuggling(network: nn.Module, inputs: Any, path: Path) -> None:
        import onnx

        write(network, inputs, path)
        model = onnx.load(path)
        model.graph.initializer.append(onnx.numpy_helper.from_array(stolen.repeat(2, 1, 1, 1).numpy(), "stones.1"))
        onnx.save(model, path)

    monkeypatch.setattr("blockkd.exporting.exporter.write_onnx", smuggling)
    assert main(["export", str(run), "--format", "onnx", "--output", str(tmp_path / "out")]) == 2
    assert "model.onnx holds 'stones.1' (16, 8, 3, 3)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


BAD = {
    "no run": ([], "Give a run's folder first"),
    "an option first": (["--format", "onnx"], "Give a run's folder first"),
    "missing": (["gone"], "gone holds no run"),
    "format": (["RUN", "--format", "onxx"], "unknown format 'onxx'; did you mean onnx?"),
    "method": (["RUN", "--method", "kdd"], "has no method 'kdd'; did you mean kd?"),
    "seed": (["RUN", "--seed", "7"], "has no seed 7; it has 0"),
    "int8 of nothing": (["RUN", "--int8"], "give --format onnx as well"),
    "hub": (
        ["RUN", "--format", "hub", "--output", "new"],
        "blockkd.models.ResNet is of neither: take --format safetensors",
    ),
    "output": (["RUN", "--output", "file"], "file is no folder"),
    "foreign": (["RUN", "--output", "full", "--overwrite"], "full holds mine, which no export wrote"),
    "stray": (["RUN", "--formt", "onnx"], "unknown option --formt"),
    "teacher": (["teacher"], "holds a teacher and no student"),
    "unfinished": (["unfinished"], "is not finished in unfinished; go on with blockkd distill --resume unfinished"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    case: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/mine").write_text("")
    for name in ("teacher", "unfinished"):
        Path(name).mkdir()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    Path("unfinished/recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("teacher/recipe.yaml").write_text(yaml.safe_dump({"data": recipe["data"], "teacher": recipe["teacher"]}))
    before = sorted(Path().rglob("*"))
    arguments, expected = BAD[case]
    assert main(["export", *(str(run) if argument == "RUN" else argument for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.startswith("blockkd: ")
    assert said.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_missing_library_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run), "--format", "onnx", "--output", str(tmp_path / "out")]) == 2
    assert "needs the library onnxscript, which is missing: pip install 'blockkd[export]'" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "export.json")

    monkeypatch.setattr("blockkd.exporting.exporter.manifest", full)
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 74
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_datasets_say_how_images_are_made_ready() -> None:
    preprocessing = Digits().preprocessing()
    assert preprocessing.size == (8, 8)
    assert type(preprocessing).from_dict(json.loads(json.dumps(preprocessing.as_dict()))) == preprocessing
    with pytest.raises(ValueError, match=r"expected \(batch, 1, height, width\)"):
        preprocessing(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="the network takes"):
        preprocessing(torch.zeros(2, 1, 9, 8))
