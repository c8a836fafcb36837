"""Networks of timm, torchvision and transformers by name; nothing is downloaded."""

import copy
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from blockkd.block_kd import BlockKD
from blockkd.export import save_student
from blockkd.models import create_model
from blockkd.partitioning import partition

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    network = create_model("timm/resnet18", num_classes=7, in_channels=1).eval()
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"timm has no network called 'resnt18'; did you mean.*resnet18"):
        create_model("timm/resnt18")


def test_timm_gets_the_pretrained_weights_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    asked: list[tuple[str, dict[str, Any]]] = []

    def build(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", build)
    create_model("timm/resnet18.a1_in1k", 7, pretrained=True, drop_rate=0.1)
    create_model("timm/resnet18", 1000)
    assert asked == [
        ("resnet18.a1_in1k", {"pretrained": True, "num_classes": 7, "drop_rate": 0.1}),
        ("resnet18", {"pretrained": False, "num_classes": 1000}),
    ]


@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("timm/resnet18.nix", False, r"timm has no pretrained weights called 'resnet18.nix'; there are resnet18\.a1"),
        ("timm/coatnet_0_224", True, "timm has no pretrained weights called 'coatnet_0_224'; there are none"),
        ("torchvision/resnet50.nix", False, r"'resnet50.nix'; there are resnet50\.IMAGENET1K_V1, resnet50\.IMAGENET1K"),
    ],
)
def test_pretrained_weights_that_are_not_there(name: str, pretrained: bool, said: str) -> None:
    pytest.importorskip(name.partition("/")[0])
    with pytest.raises(ValueError, match=said):
        create_model(name, pretrained=pretrained)


def test_torchvision() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    network = create_model("torchvision/resnet18", num_classes=7, in_channels=3).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match="torchvision has no classifier called 'resnet19'; did you mean"):
        create_model("torchvision/resnet19")
    with pytest.raises(ValueError, match="torchvision's networks take 3 channels"):
        create_model("torchvision/resnet18", in_channels=1)


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.69), (34, 21.80), (50, 25.56)])
def test_the_imagenet_networks_have_their_known_sizes(depth: int, millions: float) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    with torch.device("meta"):
        network = create_model(f"torchvision/resnet{depth}", num_classes=1000)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("num_classes", [1000, 7])
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])  # a linear classifier, and a convolution
def test_torchvisions_pretrained_weights(name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    published = {key: torch.full_like(value, 2) for key, value in models.get_model(name).state_dict().items()}
    loaded: list[str] = []

    def state_of(weights: Any, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        loaded.append(str(weights))
        return published

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", state_of)
    network = create_model(f"torchvision/{name}", num_classes, pretrained=True)
    create_model(f"torchvision/{name}.IMAGENET1K_V1", num_classes, pretrained=True)
    create_model(f"torchvision/{name}", num_classes)
    kind = type(models.get_model_weights(name).DEFAULT).__name__
    assert loaded == [f"{kind}.IMAGENET1K_V1"] * 2  # the only ones of these networks
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, published[key])}
    head = {"resnet18": "fc", "squeezenet1_1": "classifier.1"}[name]
    assert changed == (set() if num_classes == 1000 else {f"{head}.weight", f"{head}.bias"})
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, num_classes)


@pytest.mark.parametrize(("tag", "meant"), [("", "IMAGENET1K_V2"), (".IMAGENET1K_V1", "IMAGENET1K_V1")])
def test_a_tag_chooses_among_torchvisions_weights(tag: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    asked: list[str] = []

    def build(name: str, weights: Any) -> nn.Module:
        asked.append(f"{name} {weights.name}")
        return nn.Identity()

    monkeypatch.setattr(models, "get_model", build)
    create_model(f"torchvision/resnet50{tag}", 1000, pretrained=True)
    assert asked == [f"resnet50 {meant}"]


def test_weights_are_torchvisions_only_by_one_way() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    with pytest.raises(FileNotFoundError, match="no weights file at DEFAULT"):
        create_model("torchvision/resnet18", weights="DEFAULT")


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_absent_library_says_what_to_install(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=f"'{library}/resnet18' needs {library}.*pip install {library}"):
        create_model(f"{library}/resnet18")


def vit(transformers: Any) -> Any:
    return transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )


def swin(transformers: Any) -> Any:
    return transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4
    )


def resnet(transformers: Any) -> Any:
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1])


def convnext(transformers: Any) -> Any:
    sizes = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
    return transformers.ConvNextConfig(**sizes, patch_size=2, image_size=32)


FAMILIES = {"vit": vit, "swin": swin, "resnet": resnet, "convnext": convnext}
every_family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
Make = Callable[[Any], Any]


def saved(make: Make, folder: Path, num_classes: int = 7, dtype: torch.dtype = torch.float32) -> Any:
    """The library's own classifier, written to the folder; its weights are none that a new network could have."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(1)
    config = make(transformers)
    config.num_labels = num_classes
    network = transformers.AutoModelForImageClassification.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return network


@every_family
def test_a_local_folder_gives_the_librarys_network(make: Make, tmp_path: Path) -> None:
    theirs = saved(make, tmp_path)
    ours = create_model(f"transformers/{tmp_path}", 7, pretrained=True)
    assert all(module.training for module in ours.modules())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(IMAGES), theirs(pixel_values=IMAGES).logits)


@every_family
def test_it_starts_from_random_numbers_unless_asked(make: Make, tmp_path: Path) -> None:
    theirs = saved(make, tmp_path).state_dict()
    torch.manual_seed(0)
    ours = create_model(f"transformers/{tmp_path}", 5).state_dict()
    weights = [name for name, value in theirs.items() if value.ndim > 1]
    assert weights
    assert all(ours[name].shape != theirs[name].shape or not torch.equal(ours[name], theirs[name]) for name in weights)
    assert ours["classifier.1.weight" if "classifier.1.weight" in ours else "classifier.weight"].shape[0] == 5


@every_family
def test_another_class_count_replaces_the_classifier_alone(make: Make, tmp_path: Path) -> None:
    theirs = saved(make, tmp_path).state_dict()
    ours = create_model(f"transformers/{tmp_path}", 5, pretrained=True)
    state = ours.state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, theirs[name])}
    assert {name.rpartition(".")[0] for name in changed} in ({"classifier"}, {"classifier.1"})
    assert ours(IMAGES).shape == (2, 5)


@every_family
def test_it_can_be_cut_copied_and_pickled(make: Make, tmp_path: Path) -> None:
    saved(make, tmp_path)
    teacher = create_model(f"transformers/{tmp_path}", 7, pretrained=True)
    blocks = partition(teacher.eval(), IMAGES)
    assert len(blocks) >= 3
    with torch.no_grad():
        logits = teacher(IMAGES)
        torch.testing.assert_close(blocks(IMAGES), logits, rtol=0, atol=0)
        for twin in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
            assert list(twin.state_dict()) == list(teacher.state_dict())
            torch.testing.assert_close(twin(IMAGES), logits)


@every_family
def test_it_teaches_and_learns(make: Make, tmp_path: Path) -> None:
    saved(make, tmp_path)
    theirs, ours = create_model(f"transformers/{tmp_path}", 7, pretrained=True), create_model("resnet8", 7)
    for teacher, student in ((theirs, ours), (ours, theirs)):
        student.requires_grad_(True)
        losses = BlockKD(teacher, student, IMAGES)(IMAGES, torch.tensor([0, 1]))
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_saved_student_loads_again(tmp_path: Path) -> None:
    theirs = saved(vit, tmp_path)
    student = create_model(f"transformers/{tmp_path}", 7, pretrained=True)
    again = create_model(f"transformers/{tmp_path}", 7, weights=save_student(student, tmp_path / "s.safetensors"))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


def test_half_precision_checkpoints_become_single(tmp_path: Path) -> None:
    saved(vit, tmp_path, dtype=torch.bfloat16)
    for pretrained in (False, True):
        network = create_model(f"transformers/{tmp_path}", 7, pretrained=pretrained)
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_options_are_those_of_the_configuration(tmp_path: Path) -> None:
    saved(vit, tmp_path)
    network = create_model(f"transformers/{tmp_path}", 7, in_channels=1, num_hidden_layers=2)
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert not any(".layers.2." in name or ".layer.2." in name for name in network.state_dict())
    with pytest.raises(TypeError, match=r"\(ViTConfig\) has no hidden_sise"):
        create_model(f"transformers/{tmp_path}", 7, hidden_sise=8)


def test_a_revision_is_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    saved(vit, tmp_path)
    asked: list[tuple[str, str]] = []
    for factory in (transformers.AutoConfig, transformers.AutoModelForImageClassification):

        def from_hub(name: str, *, revision: str, given: Any = factory.from_pretrained, **options: Any) -> Any:
            asked.append((name, revision))
            return given(tmp_path, **options)

        monkeypatch.setattr(factory, "from_pretrained", from_hub)
    create_model("transformers/someone/vit", 7, pretrained=True, revision="v2")
    assert asked == [("someone/vit", "v2")] * 2


def test_pretrained_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    saved(vit, tmp_path)
    with pytest.raises(ValueError, match=r"do not fit its configuration: \d+ tensors outside the classifier"):
        create_model(f"transformers/{tmp_path}", 7, pretrained=True, in_channels=1)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state.pop("vit.layernorm.weight")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors outside the classifier are missing .* \(vit.layernorm.weight\)"):
        create_model(f"transformers/{tmp_path}", 7, pretrained=True)


def test_a_folder_without_weights_can_be_started_anew(tmp_path: Path) -> None:
    saved(vit, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert create_model(f"transformers/{tmp_path}", 3)(IMAGES).shape == (2, 3)
    with pytest.raises(ValueError, match="transformers cannot load the pretrained weights of"):
        create_model(f"transformers/{tmp_path}", 3, pretrained=True)


def test_what_is_no_image_classifier_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(ValueError, match="transformers finds no network at"):
        create_model(f"transformers/{tmp_path}", 7)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"cannot build an image classifier from .*T5Config"):
        create_model(f"transformers/{tmp_path}", 7)
    with pytest.raises(ValueError, match=r"transformers finds no network at '\./nowhere'"):  # no name on the hub either
        create_model("transformers/./nowhere", 7)
