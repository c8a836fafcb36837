"""Networks of the libraries, and those that take named tensors, through the functions; no run and no download."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blockkd.calling import Inputs
from blockkd.exporting import (
    ExportError,
    Facts,
    NotBareError,
    Preprocessing,
    Student,
    build,
    check_nothing_of_teacher,
    check_only_students,
    describe_transformers,
    difference_in_fresh_process,
    export,
    load_exported,
    write_int8,
    write_onnx,
    write_pt2,
)
from blockkd.exporting.calls import call, named
from blockkd.exporting.fresh import TOLERANCE
from blockkd.exporting.hub import write_hub
from blockkd.exporting.int8 import scheme_for
from blockkd.exporting.onnx_file import tensors_in_onnx
from blockkd.exporting.program import tensors_in_pt2
from blockkd.models import create_model

for module in ("onnxruntime", "onnxscript", "timm", "torchvision", "transformers"):
    pytest.importorskip(module, reason=f"{module} is not installed")

FACTS = Facts(
    "a",
    "kd",
    "b",
    "data",
    0,
    1,
    {"test": {"accuracy": 0.5}},
    {"test": {"accuracy": 0.6}},
    {"test": 10},
    1,
    2,
    3,
    4,
    "0" * 64,
)
GREY = Preprocessing((8, 8), (0.5,), (0.25,), labels=("no", "yes", "perhaps"))
TIMM = {
    "name": "timm/vit_tiny_patch16_224",
    "num_classes": 3,
    "options": {
        **{"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_channels": 1},
    },
}
TORCHVISION = {"name": "torchvision/squeezenet1_1", "num_classes": 3, "options": {}}


def bert() -> Any:
    import transformers

    library: Any = transformers

    torch.manual_seed(0)
    config = library.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=3,
    )
    return library.BertForSequenceClassification(config).eval()


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(1, 60, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}


def network(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    if name == "bert":
        return bert(), tokens()
    if name == "timm":
        return build(TIMM).eval(), torch.randn(2, 1, 16, 16)
    return build(TORCHVISION).eval(), torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("name", ["bert", "timm", "torchvision"])
def test_formats_say_the_same_in_fresh_processes(name: str, tmp_path: Path) -> None:
    """For batches of 1, 2 and 7, sentences of other lengths among them; and every tensor in them is the network's."""
    net, inputs = network(name)
    write_onnx(net, inputs, tmp_path / "model.onnx")
    write_pt2(net, inputs, tmp_path / "model.pt2")
    for path, found in (
        (tmp_path / "model.onnx", tensors_in_onnx(tmp_path / "model.onnx")),
        (tmp_path / "model.pt2", tensors_in_pt2(tmp_path / "model.pt2")),
    ):
        assert difference_in_fresh_process(path, net, inputs) < TOLERANCE
        check_only_students(found, net, path.name, spare=True)
        names = {found_name.removeprefix("network.") for found_name, _ in found}
        assert {key for key, _ in net.named_parameters()} <= names


def test_another_network_in_a_file_is_told(tmp_path: Path) -> None:
    net, inputs = network("timm")
    write_onnx(net, inputs, tmp_path / "model.onnx")
    with torch.no_grad():
        net.get_parameter("head.bias").add_(0.01)
    with pytest.raises(ExportError, match=r"says something else than the network: its logits differ by up to 0\.01"):
        difference_in_fresh_process(tmp_path / "model.onnx", net, inputs)
    with pytest.raises(NotBareError, match=r"'head\.bias' \(3,\), which has other values than the student's"):
        check_only_students(tensors_in_onnx(tmp_path / "model.onnx"), net, "model.onnx", spare=True)


@pytest.mark.parametrize("name", ["bert", "timm", "torchvision"])
def test_whole_numbers_come_near(name: str, tmp_path: Path) -> None:
    import onnxruntime

    net, inputs = network(name)
    given = named(inputs)
    write_onnx(net, inputs, tmp_path / "model.onnx")
    scheme = scheme_for(net)
    assert scheme == ("static" if name == "torchvision" else "dynamic")
    write_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx", scheme, iter([given] * 2))
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    (said,) = session.run(None, {key: tensor.numpy() for key, tensor in given.items()})
    expected = call(net, inputs).numpy()
    assert np.abs(said - expected).max() < 0.1 * max(1.0, np.abs(expected).max())
    assert np.abs(said - expected).max() > 0


def test_timm_loads_its_folder_without_us(tmp_path: Path) -> None:
    net, inputs = network("timm")
    lines = write_hub(net, TIMM, inputs, GREY, tmp_path / "hub")
    said = fresh("\n".join([*lines, "config = network.pretrained_cfg"]), inputs, tmp_path)
    assert torch.allclose(said["logits"], call(net, inputs), atol=1e-6)  # threads may add in another order
    assert said["shown"] == "(0.5,) (0.25,) (1, 16, 16)"


def test_transformers_loads_its_folders_without_us(tmp_path: Path) -> None:
    net, inputs = network("bert")
    lines = write_hub(net, describe_transformers(net), inputs, None, tmp_path / "hub")
    assert lines[1] == 'network = transformers.AutoModelForSequenceClassification.from_pretrained("hub")'
    said = fresh("\n".join(lines), inputs, tmp_path)
    assert torch.allclose(said["logits"], call(net, inputs), atol=1e-6)


def test_an_image_classifier_of_transformers_with_its_processor(tmp_path: Path) -> None:
    import transformers

    library: Any = transformers
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    library.ViTConfig(image_size=16, patch_size=8, num_channels=3, **small).save_pretrained(tmp_path / "vit")
    net = create_model(f"transformers/{tmp_path / 'vit'}", 3).eval()
    made = Preprocessing((16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), labels=("no", "yes", "perhaps"))
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    description = describe_transformers(net)
    assert str(tmp_path) not in str(description)
    student = Student(net, description, torch.zeros(2, 3, 16, 16), FACTS, made)
    export(student, tmp_path / "out", ["safetensors", "hub"])
    logits = call(net, made(pixels))
    assert torch.equal(call(load_exported(tmp_path / "out"), made(pixels)), logits)
    theirs = library.AutoModelForImageClassification.from_pretrained(tmp_path / "out/hub").eval()
    processor = library.AutoImageProcessor.from_pretrained(tmp_path / "out/hub")
    with torch.no_grad():
        found = theirs(**processor(images=list(pixels), return_tensors="pt")).logits
    assert torch.allclose(found, logits, atol=1e-4)
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}


def fresh(code: str, inputs: Inputs, place: Path) -> dict[str, Any]:
    """What a network that ``code`` builds says of the inputs, in a process that knows nothing of us."""
    torch.save(inputs, place / "inputs.pt")
    script = f"""
import sys, torch
{code}
inputs = torch.load("inputs.pt")
with torch.no_grad():
    said = network.eval()(inputs) if isinstance(inputs, torch.Tensor) else network.eval()(**inputs).logits
shown = " ".join(str(tuple(config[key])) for key in ("mean", "std", "input_size")) if "config" in dir() else ""
assert "blockkd" not in sys.modules
torch.save({{"logits": said, "shown": shown}}, "said.pt")
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, cwd=place)
    said: dict[str, Any] = torch.load(place / "said.pt")
    return said


class Unspeakable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out if float(out.sum()) > 0 else -out


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_what_a_format_cannot_express_is_said_in_one_sentence(suffix: str, tmp_path: Path) -> None:
    write = {"onnx": write_onnx, "pt2": write_pt2}[suffix]
    with pytest.raises(ExportError, match="cannot express Unspeakable") as raised:
        write(Unspeakable(), torch.randn(2, 4), tmp_path / f"model.{suffix}")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def linear() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()


def test_a_network_with_more_than_the_student_is_refused(tmp_path: Path) -> None:
    description = {"class_path": "tests.exporting.test_networks.Plain", "init_args": {}}
    student = Student(Plain(), description, torch.randn(2, 4), FACTS)
    export(student, tmp_path / "fine", ["safetensors"])
    assert torch.equal(
        load_exported(tmp_path / "fine").get_parameter("layer.weight"), student.network.get_parameter("layer.weight")
    )
    laden = Plain()
    laden.connector = nn.Linear(4, 8)
    with pytest.raises(NotBareError, match=r"2 tensors that no student has: connector\.bias, connector\.weight"):
        export(Student(laden, description, torch.randn(2, 4), FACTS), tmp_path / "laden", ["safetensors"])
    hidden = Plain()
    hidden.register_buffer("unsaved", torch.randn(8), persistent=False)
    with pytest.raises(NotBareError, match="1 tensors that no student has: unsaved"):
        export(Student(hidden, description, torch.randn(2, 4), FACTS), tmp_path / "hidden", ["safetensors"])
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


class Plain(nn.Module):
    layer: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_what_both_start_from_is_nobodys() -> None:
    """Equal bits alone convict nothing: tables and pretrained weights that a new student has as well are its own."""
    teacher, student = linear(), linear()
    with torch.no_grad():
        student.get_parameter("1.weight").add_(1)
    with pytest.raises(
        NotBareError, match=r"2 tensors of the student are the teacher's, bit for bit: 0\.weight, 0\.bias"
    ):
        check_nothing_of_teacher(student, teacher)
    check_nothing_of_teacher(student, teacher, fresh=linear())
    with torch.no_grad():
        student.get_parameter("0.weight").copy_(torch.ones(4, 4))
        teacher.get_parameter("0.weight").copy_(torch.ones(4, 4))
        student.get_parameter("0.bias").add_(1)
    check_nothing_of_teacher(student, teacher)


def test_a_strangers_description_names_networks_only(tmp_path: Path) -> None:
    for path in ("os.system", "subprocess.Popen", "torch.load"):
        with pytest.raises(ExportError):
            build({"class_path": path, "init_args": {}})
    with pytest.raises(ExportError, match="transformers has no network called 'pipeline'"):
        build({"transformers": "pipeline", "config": {"model_type": "bert"}, "returns_logits": False})
    with pytest.raises(ExportError, match="expected 'name', 'class_path'"):
        build({"pickle": "x"})
    with pytest.raises(ExportError, match="is missing: the folder holds no export"):
        load_exported(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ExportError, match="is damaged or was not written by blockkd"):
        load_exported(tmp_path)
