"""Random networks, cut at random places: the blocks equal the network bit for bit, or the cut is refused in words."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn

import blockkd
from blockkd.blocks import Blocks, PartitionError
from tests.reliability.commands import Record, count, time_limit
from tests.reliability.fuzzing import CASES, TEXTS, cases
from tests.reliability.random_networks import CHANNELS, CLASSES, SIDE, Trick, networks

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = torch.rand(4, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 0.3


def result(forward: Any, network: nn.Module, images: Tensor, training: bool) -> list[Tensor]:
    """Logits and buffers after one forward pass, from one and the same random state; the network is left as it was."""
    before = copy.deepcopy(network.state_dict())
    modes = [(module, module.training) for module in network.modules()]
    torch.manual_seed(7)
    for module in network.modules():
        if isinstance(module, Trick):
            module.calls = 0
    network.train(training)
    with torch.no_grad():
        logits = forward(images)
    found = [logits, *(buffer.clone() for buffer in network.buffers())]
    network.load_state_dict(before)
    for module, mode in modes:
        module.training = mode
    return found


def recomposes(blocks: Blocks, network: nn.Module) -> bool:
    """Whether the blocks give what the network gives, in both modes and at another batch size."""
    modes = (False,) if blocks.training_error else (False, True)
    return all(
        torch.equal(one.nan_to_num(), two.nan_to_num())
        for training in modes
        for images in (IMAGES, IMAGES[:2])
        for one, two in zip(
            result(network, network, images, training), result(blocks, network, images, training), strict=True
        )
    )


def untouched(network: nn.Module, before: dict[str, Tensor], modes: list[bool]) -> bool:
    """Whether a network is as it was, parameters, buffers and modes."""
    after = network.state_dict()
    same = all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return same and modes == [module.training for module in network.modules()]


def cut(network: nn.Module, **how: Any) -> Blocks | None:
    """The blocks, or None where the cut was refused; either way the network must be as it was."""
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    with time_limit(60):
        try:
            blocks = blockkd.partition(network, IMAGES, **how)
        except PartitionError as error:
            blocks, said = None, str(error)
        else:
            said = ""
    assert blocks is not None or len(said) > 20
    assert untouched(network, before, modes)
    return blocks


def test_fuzz_networks(record_property: Record) -> None:
    """Networks cut by themselves, or into so many blocks."""
    found: list[bool] = []

    @cases(150)
    @given(networks(), st.sampled_from([None, None, None, 1, 2, 3, 4, 7, 100, 0, -1]))
    def run(network: nn.Module, n_blocks: int | None) -> None:
        blocks = cut(network, n_blocks=n_blocks)
        found.append(blocks is not None)
        if blocks is not None:
            assert n_blocks in (None, len(blocks))
            assert blocks(IMAGES).shape == (len(IMAGES), CLASSES)
            assert recomposes(blocks, network)

    run()
    assert set(found) == {True, False}
    count(record_property, CASES, len(found))


def test_fuzz_names(record_property: Record) -> None:
    """Networks cut at names, of which some are their own and others are none."""
    found: list[bool] = []

    @cases(200)
    @given(networks(), st.data())
    def run(network: nn.Module, data: st.DataObject) -> None:
        own = [name for name, _ in network.named_modules()]
        outer = [name for name, _ in network.named_children()]
        in_order = st.lists(st.sampled_from(outer), min_size=1, max_size=3, unique=True).map(sorted)
        names = st.sampled_from(own) | TEXTS
        after: Any = data.draw(in_order | in_order | st.lists(names, max_size=4) | names)
        blocks = cut(network, after=after)
        found.append(blocks is not None)
        if blocks is not None:
            assert len(blocks) == len(after)
            assert recomposes(blocks, network)

    run()
    assert set(found) == {True, False}
    count(record_property, CASES, len(found))


def test_fuzz_examples(record_property: Record) -> None:
    """Examples that are none: other shapes, kinds and types."""
    network = nn.Sequential(nn.Conv2d(CHANNELS, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    network(IMAGES)
    found: list[bool] = []
    shapes = st.lists(st.integers(0, 5), max_size=5) | st.just([2, CHANNELS, SIDE, SIDE])
    kinds = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64])

    @cases(100)
    @given(shapes, kinds, st.sampled_from(["tensor", "tensor", "tensor", "list", "meta", "sparse"]))
    def run(shape: list[int], kind: torch.dtype, form: str) -> None:
        example: Any = torch.zeros(shape, dtype=kind)
        example = {
            "list": example.tolist(),
            "meta": example.to("meta"),
            "sparse": example.to_sparse() if shape else example,
        }.get(form, example)
        refusals = (PartitionError, TypeCheckError)  # the tests check the annotations of arguments, users do not
        try:
            blockkd.partition(network, example)
        except refusals:
            found.append(False)
        else:
            found.append(True)

    run()
    assert set(found) == {True, False}
    count(record_property, CASES, len(found))
