"""The partition on sixty classifiers of timm and torchvision: cut by themselves, or told why not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blockkd.blocks import Blocks, PartitionError
from blockkd.models import create_model
from blockkd.partitioning import partition
from tests.sixty import HINDERED, HINDERED_IN_TRAINING, SIDES

pytest.importorskip("timm")
pytest.importorskip("torchvision")


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = create_model(name, num_classes=7)
    return network, torch.randn(3, 3, SIDES[name], SIDES[name])


def same(blocks: Blocks, network: nn.Module, x: Tensor) -> bool:
    results = []
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for forward in (blocks, network):
        network.load_state_dict(before)
        torch.manual_seed(1)
        with torch.no_grad():
            logits = forward(x)
        results.append([logits, *(buffer.clone() for buffer in network.buffers())])
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", [name for name in SIDES if name not in HINDERED])
def test_it_partitions_by_itself(name: str) -> None:
    network, x = built(name)
    blocks = partition(network, x[:2])
    assert 2 <= len(blocks) <= 6
    assert same(blocks, network.eval(), x)
    network.train()
    if name in HINDERED_IN_TRAINING:
        with pytest.raises(PartitionError, match=HINDERED_IN_TRAINING[name]):
            blocks(x)
    else:
        assert same(blocks, network, x)


@pytest.mark.parametrize("name", HINDERED)
def test_it_says_why_not(name: str) -> None:
    network, x = built(name)
    with pytest.raises(PartitionError, match=HINDERED[name]):
        partition(network, x[:2])


def test_at_least_95_percent_do_in_both_modes() -> None:
    assert len(SIDES) == 60
    assert len(HINDERED) + len(HINDERED_IN_TRAINING) <= 0.05 * len(SIDES)


def test_the_list_in_the_documentation_is_this_list() -> None:
    page = (Path(__file__).parent.parent / "docs" / "partition.md").read_text()
    assert [name for name in SIDES if f"| `{name}` |" not in page] == []
