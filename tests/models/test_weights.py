"""Checkpoints: read without running code, loaded only where they fit, explained where they don't."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from blockkd.models import NETWORKS, create_model, load_weights, read_state_dict, weights
from blockkd.models.weights import nearest_network
from tests.models.shared_data import data_file

State = dict[str, Tensor]


def small(seed: int = 0, num_classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("resnet8", num_classes=num_classes)


def parallel(state: State) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 240, "best_acc": torch.tensor(72.0)},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {"param_groups": [{"lr": 0.1}]}},
    "parallel": parallel,
    "parallel in model": lambda state: {"model": parallel(state)},
    "with options": lambda state: {"opt": argparse.Namespace(lr=0.05, milestones=[150]), "model": state},
    "without counters": without_counters,
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("file", ["weights.pth", "weights.pt", "weights"])
def test_wrappers_are_understood(wrapping: str, file: str, tmp_path: Path) -> None:
    source = small(seed=1)
    torch.save(WRAPPINGS[wrapping](source.state_dict()), tmp_path / file)
    loaded = create_model("resnet8", num_classes=10, weights=tmp_path / file)
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_safetensors(tmp_path: Path) -> None:
    source = small(seed=1)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    loaded = small(seed=2)
    load_weights(loaded, str(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_prefix_stays_where_only_some_names_have_it(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.ones(2), "bias": torch.ones(2)}, tmp_path / "weights.pt")
    assert read_state_dict(tmp_path / "weights.pt").keys() == {"module.weight", "bias"}


def test_another_network_is_named_with_what_does_not_match(tmp_path: Path) -> None:
    torch.save({"model": create_model("resnet20").state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="does not fit ResNet") as shallow:
        create_model("resnet14", weights=tmp_path / "weights.pth")
    assert "0 missing from the file" in str(shallow.value)
    assert "36 (layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias, ...) unexpected" in str(shallow.value)
    assert "nearest to the file is resnet20: 107 of its 107 tensors agree" in str(shallow.value)

    with pytest.raises(ValueError, match=r"32 \(block0\.0\.weight, .*\) missing from the file; 128 \("):
        create_model("vgg8", weights=tmp_path / "weights.pth")


def test_another_class_count_is_a_difference_of_shape(tmp_path: Path) -> None:
    torch.save(small(num_classes=100).state_dict(), tmp_path / "weights.pth")
    network = small(num_classes=10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"2 \(fc\.weight \(file 100×64, network 10×64\), fc\.bias"):
        load_weights(network, tmp_path / "weights.pth")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_stranger_is_like_no_known_network(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="No known network is like it"):
        load_weights(small(), tmp_path / "weights.pth")


@pytest.mark.parametrize("name", NETWORKS)
def test_nearest_network_knows_each_by_its_tensors(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name, num_classes=10).state_dict()
    found, agreeing, total = nearest_network(state)
    assert found == name
    assert agreeing == total - 2  # the classifier, which has another number of classes


def test_a_deeper_network_that_contains_the_tensors_is_not_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    known = weights._known_fingerprints()
    monkeypatch.setattr(weights, "_known_fingerprints", lambda: dict(reversed(list(known.items()))))
    assert nearest_network(create_model("resnet14").state_dict()) == ("resnet14", 77, 77)


class Executed:
    """Unpickled, it would run a command that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("place", ["beside the model", "in the options", "bare pickle"])
def test_code_in_a_file_is_refused_and_does_not_run(place: str, tmp_path: Path) -> None:
    trace, path, state = tmp_path / "ran", tmp_path / "weights.pth", small().state_dict()
    if place == "bare pickle":
        path.write_bytes(pickle.dumps(Executed(trace), protocol=2))
    elif place == "in the options":
        torch.save({"opt": argparse.Namespace(a=Executed(trace)), "model": state}, path)
    else:
        torch.save({"extra": Executed(trace), "model": state}, path)
    with pytest.raises(ValueError, match=r"does not load as plain weights \(it calls \w+\.system\)"):
        load_weights(small(), path)
    assert not trace.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"it calls blockkd\.models\.resnet\.ResNet.*save the bare state_dict"):
        load_weights(small(), tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"hello, world", b"PK\x03\x04 not an archive"])
def test_damaged_files_say_so(content: bytes, tmp_path: Path) -> None:
    for file in ("weights.pth", "weights.safetensors"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} (does not load as plain weights|is not a whole safetensors)"):
            read_state_dict(tmp_path / file)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="it is damaged or holds more than tensors"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([1, 2], "an object of type list"),
        ({"net": {"weight": torch.ones(1)}}, r"a mapping with 1 \(net\)"),
        ({"epoch": 3, "model": {}}, r"a mapping with 2 \(epoch, model\)"),
        ({}, "a mapping with 0"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(content: Any, got: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"holds no state dict: .*; got {got}"):
        read_state_dict(tmp_path / "weights.pth")


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no weights file at"):
        create_model("resnet8", weights=tmp_path / "nowhere.pth")


def test_a_published_teacher_loads_as_it_is() -> None:
    path = data_file("teachers/cifar100_resnet56.pt")
    teacher = create_model("resnet56", num_classes=100, weights=path)
    published = read_state_dict(path)
    assert published.keys() == teacher.state_dict().keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in teacher.state_dict().items())
