"""What comes from a hub comes at the revision that was asked for, or with a warning; the hub is a stand-in here."""

import warnings
from typing import Any

import pytest
from torch import nn

from blockkd.data import HubImages
from blockkd.models import create_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands in for a library's way to the hub: knows one revision, and writes down what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def load_dataset(self, path: str, name: str | None, revision: str | None) -> Any:
        del name
        datasets = pytest.importorskip("datasets")
        self.asked.append((path, revision))
        if revision not in (None, COMMIT):
            raise datasets.exceptions.DatasetNotFoundError(f"Revision '{revision}' doesn't exist for dataset '{path}'")
        raise ValueError("the stand-in has no images")

    def build(self, name: str, **options: Any) -> nn.Module:
        self.asked.append((name, options.get("pretrained_cfg_overlay")))
        return nn.Identity()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", stand_in.load_dataset)
    monkeypatch.setattr(pytest.importorskip("timm"), "create_model", stand_in.build)
    return stand_in


def test_a_dataset_is_taken_at_its_revision(hub: Hub) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="no images"):
            HubImages("someone/birds", revision=COMMIT).example()
    assert hub.asked == [("someone/birds", COMMIT)]


def test_a_dataset_without_revision_is_warned_of(hub: Hub) -> None:
    unpinned = pytest.warns(UserWarning, match="'someone/birds' is taken from the hub in its newest state.*as revision")
    with unpinned, pytest.raises(ValueError, match="no images"):
        HubImages("someone/birds").example()
    assert hub.asked == [("someone/birds", None)]


def test_a_revision_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"cannot read 'someone/birds': Revision 'gone' doesn't exist"):
        HubImages("someone/birds", revision="gone").example()
    assert hub.asked == [("someone/birds", "gone")]


def test_timms_weights_are_taken_at_their_revision(hub: Hub) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_model("timm/resnet18.a1_in1k", 7, pretrained=True, revision=COMMIT)
    assert hub.asked == [("resnet18.a1_in1k", {"hf_hub_id": f"timm/resnet18.a1_in1k@{COMMIT}"})]


def test_timm_reads_the_revision_off_the_name() -> None:
    hf_split = pytest.importorskip("timm.models._hub").hf_split
    assert hf_split(f"timm/resnet18.a1_in1k@{COMMIT}") == ("timm/resnet18.a1_in1k", COMMIT)


def test_timms_weights_without_revision_are_warned_of(hub: Hub) -> None:
    with pytest.warns(UserWarning, match="'timm/resnet18.a1_in1k' is taken from the hub in its newest state"):
        create_model("timm/resnet18.a1_in1k", 7, pretrained=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_model("timm/resnet18", 7)  # nothing is taken
    assert [overlay for _, overlay in hub.asked] == [None, None]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm/resnet18", {}, "nothing is loaded for 'timm/resnet18': set pretrained as well"),
        ("torchvision/resnet18", {}, "torchvision's weights have no revisions"),
        ("timm/resnet18", {"checkpoint_path": "x.pth"}, "checkpoint_path would load weights that no check of ours"),
        ("timm/resnet18", {"pretrained_cfg": {"file": "x.pth"}}, "pretrained_cfg would load weights"),
        ("transformers/x/y", {"attn_implementation": "evil/attention"}, "code from the hub is never run"),
    ],
)
def test_a_revision_or_source_that_means_nothing_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    pytest.importorskip(name.partition("/")[0])
    with pytest.raises(ValueError, match=said):
        create_model(name, 7, revision=COMMIT, **options)


def test_a_transformer_of_the_hub_without_revision_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    asked: list[str | None] = []

    def from_hub(name: str, *, revision: str | None, **options: Any) -> Any:
        del name, options
        asked.append(revision)
        raise OSError(f"{revision} is not a valid git identifier")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_hub)
    unpinned = pytest.warns(UserWarning, match="'transformers/someone/vit' is taken from the hub in its newest state")
    with unpinned, pytest.raises(ValueError, match="None is not a valid git identifier"):
        create_model("transformers/someone/vit", 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=f"{COMMIT} is not a valid git identifier"):
            create_model("transformers/someone/vit", 7, revision=COMMIT)
    assert asked == [None, COMMIT]
