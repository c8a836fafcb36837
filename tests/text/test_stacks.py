"""Laws of transformer stacks in blocks: they are the network, bit for bit, with padded batches of any length."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from blockkd.blocks import PartitionError
from blockkd.calling import Inputs, logits_of
from blockkd.models.logits_only import returning_logits
from blockkd.partitioning import partition
from blockkd.stack_blocks import StackBlocks, one_after_the_other
from blockkd.stacks import StackError
from blockkd.stones import stone_logits
from tests.text.families import IMAGES, TEXT, classifier, images, sentences, transformers

FAMILIES = [*TEXT, *IMAGES]


def batch(family: str, lengths: tuple[int, ...] = (5, 3, 7)) -> dict[str, Tensor]:
    return dict(images(len(lengths))) if family in IMAGES else sentences(list(lengths))


def cut(family: str, n: int = 2, frozen: bool = False) -> tuple[nn.Module, StackBlocks]:
    network = classifier(family)
    blocks = partition(network, batch(family), n, frozen=frozen)
    assert isinstance(blocks, StackBlocks)
    return network, blocks


@pytest.mark.parametrize("lengths", [(5, 3, 7), (4, 4), (1, 9, 2, 9, 6)])  # padded, without padding, longer
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomposed_blocks_equal_the_network_bit_for_bit(family: str, training: bool, lengths: tuple[int, ...]) -> None:
    network, blocks = cut(family)
    inputs = batch(family, lengths)
    results = []
    for forward in (
        lambda: logits_of(network, inputs),
        lambda: blocks(inputs),
        lambda: one_after_the_other(blocks, inputs),
    ):
        network.train(training)
        network.zero_grad()
        torch.manual_seed(1)
        logits = forward()
        logits.square().sum().backward()
        results.append([logits, *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    for others in results[1:]:
        assert torch.equal(others[0], results[0][0])
        for ours, plain in zip(others[1:], results[0][1:], strict=True):
            assert torch.equal(ours, plain)


@pytest.mark.parametrize("family", ["bert", "distilbert", "qwen3"])
def test_dropout_is_on_in_training_mode(family: str) -> None:
    """Without it the law of the training mode would say nothing."""
    network, blocks = cut(family)
    network.train()
    assert not torch.equal(blocks(batch(family)), blocks(batch(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_hidden_states_after_each_block(family: str) -> None:
    network, blocks = cut(family)
    network.eval()
    inputs = batch(family)
    seen: list[Tensor] = []
    for name in blocks.names:
        network.get_submodule(name).register_forward_hook(
            lambda _m, _a, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    logits_of(network, inputs)
    features, _ = blocks.run(inputs)
    assert all(torch.equal(a, b) for a, b in zip(features, seen[:2], strict=True))
    assert [tuple(f.shape[1:]) for f in features] == list(blocks.shapes)


@pytest.mark.parametrize("lengths", [(5, 3, 7), (4, 4), (6, 2, 1, 6, 6, 6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_stone_zero_is_the_teacher(family: str, lengths: tuple[int, ...]) -> None:
    network, blocks = cut(family, frozen=True)
    network.eval()
    inputs = batch(family, lengths)
    assert torch.equal(stone_logits(blocks, {0: inputs}, **blocks.beside(inputs))[0], logits_of(network, inputs))


def by_hook(network: nn.Module, name: str, hidden: Tensor, inputs: Inputs) -> Tensor:
    """The network's own logits when a layer gives this hidden state, whatever it was asked: a stone by itself."""

    def instead(_m: object, _a: object, output: object) -> object:
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = network.get_submodule(name).register_forward_hook(instead)
    try:
        return logits_of(network, inputs)
    finally:
        handle.remove()


@pytest.mark.parametrize("lengths", [(5, 3, 7), (4, 4), (6, 2, 1, 6, 6, 6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_sweep_equals_each_stone_alone(family: str, lengths: tuple[int, ...]) -> None:
    network, blocks = cut(family, n=4, frozen=True)
    network.double().eval().requires_grad_(False)
    inputs = batch(family, lengths)
    if family in IMAGES:
        inputs = {name: value.double() for name, value in inputs.items()}
    features = [torch.randn_like(feature, requires_grad=True) for feature in blocks.run(inputs)[0]]
    swept = stone_logits(blocks, dict(enumerate(features, start=1)), **blocks.beside(inputs))
    weights = {i: torch.randn_like(logits) for i, logits in swept.items()}
    gradients = torch.autograd.grad(sum((swept[i] * weights[i]).sum() for i in swept), features)  # type: ignore[arg-type]
    for i, feature in enumerate(features, start=1):
        alone = by_hook(network, blocks.names[i - 1], feature, inputs)
        torch.testing.assert_close(swept[i], alone)
        (gradient,) = torch.autograd.grad((alone * weights[i]).sum(), feature)
        torch.testing.assert_close(gradients[i - 1], gradient)


def test_a_mask_that_the_first_batches_did_not_have_is_repeated() -> None:
    """Masks are left out where nothing is padded; which tensors grow with the batch is learned when they come."""
    network, blocks = cut("bert", frozen=True)
    network.eval()
    for lengths in ((4, 4), (2, 4), (4, 4), (1, 4)):
        inputs = sentences(list(lengths))
        features, logits = blocks.run(inputs)
        for stone in stone_logits(blocks, dict(enumerate(features, start=1)), **blocks.beside(inputs)).values():
            torch.testing.assert_close(stone, logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_beside_the_hidden_state_can_be_used_again(family: str) -> None:
    """Nothing in it remembers that it was used, as a decoder's cache of keys and values would."""
    network, blocks = cut(family, frozen=True)
    network.eval()
    inputs = batch(family)
    beside = blocks.beside(inputs)
    first, second = (stone_logits(blocks, {0: inputs}, **beside)[0] for _ in range(2))
    assert torch.equal(first, second)


class Tabled(nn.Module):
    """Hands its layers a table beside the mask, which has a row for each class and not for each example."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor, table: Tensor) -> Tensor:
            return torch.tanh(self.linear(x)) * mask[..., None] + table.mean(0) * len(table)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(3, 8))
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, attention_mask, table=self.table)
        return self.head(x.sum(1))


def test_only_what_grows_with_the_batch_is_repeated() -> None:
    torch.manual_seed(0)
    network = Tabled().double().eval()
    inputs = sentences([3, 5, 2])  # as many as the table has rows
    blocks = partition(network, inputs, frozen=True)
    features, logits = blocks.run(inputs)
    for stone in stone_logits(blocks, dict(enumerate(features, start=1)), **blocks.beside(inputs)).values():
        torch.testing.assert_close(stone, logits)


def test_a_network_compiled_in_place_is_cut_all_the_same() -> None:
    network, inputs = classifier("bert").eval(), batch("bert")
    expected = logits_of(network, inputs)
    network.compile(backend="eager")
    blocks = partition(network, inputs, 2, frozen=True)
    features, logits = blocks.run(inputs)
    assert len(features) == 2
    assert torch.equal(logits, expected)
    assert torch.equal(one_after_the_other(blocks, inputs), expected)


def test_uniform_and_other_maps() -> None:
    network = classifier("bert", layers=12)
    example = sentences([4, 3])
    assert partition(network, example, 6).names == tuple(f"bert.encoder.layer.{i}" for i in (1, 3, 5, 7, 9, 11))
    assert partition(network, example, 5).names == tuple(f"bert.encoder.layer.{i}" for i in (1, 4, 6, 9, 11))
    assert len(partition(network, example)) == 12
    assert partition(network, example, after=[3, 12]).names == ("bert.encoder.layer.2", "bert.encoder.layer.11")
    named = ["bert.encoder.layer.0", "bert.encoder.layer.11"]
    assert partition(network, example, after=named).names == tuple(named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blocks": 5}, "has 4 layers and cannot be cut into 5 blocks"),
        ({"n_blocks": 0}, "cannot be cut into 0 blocks"),
        ({"after": [1, 3]}, "the last of them with the last layer, number 4"),
        ({"after": [2, 1, 4]}, "must end in order"),
        ({"after": [2, 2, 4]}, "must end in order"),
        ({"after": [2, 5]}, "has no layer 5"),
        ({"after": ["bert.encoder.layer.9"]}, r"has no layer 'bert.encoder.layer.9', did you mean .*1 … 4"),
    ],
)
def test_maps_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partition(classifier("bert"), sentences([4, 3]), **options)  # type: ignore[arg-type]


def test_cutting_leaves_the_network_as_it_was() -> None:
    network = classifier("bert")
    network.train()
    before, state, random = copy.deepcopy(network.state_dict()), repr(network), torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in network.modules()]
    blocks = partition(network, sentences([4, 3]), 2)
    blocks(sentences([3, 2]))
    assert repr(network) == state
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert hooks == [len(module._forward_hooks) for module in network.modules()]
    assert all(module.training for module in network.modules())
    blocks = partition(network, sentences([4, 3]), 2)
    torch.set_rng_state(random)
    expected = torch.rand(3)
    torch.set_rng_state(random)
    partition(network, sentences([4, 3]), 2)
    assert torch.equal(torch.rand(3), expected)


def test_blocks_share_the_parameters_and_hold_all_of_them() -> None:
    for family in FAMILIES:
        network, blocks = cut(family)
        parts = [*blocks.blocks, blocks.classifier]
        held = [{id(p) for p in part.parameters()} for part in parts]
        assert set().union(*held) == {id(p) for p in network.parameters()}, family
        assert sum(map(len, held)) >= len({id(p) for p in network.parameters()})
        classifier_names = {n for n, p in network.named_parameters() if id(p) in held[-1]}
        assert not any("layer." in name or "layers." in name or "embed_tokens" in name for name in classifier_names)


def test_what_is_replaced_in_the_network_later_is_seen() -> None:
    network, blocks = cut("bert")
    network.eval()
    other = classifier("bert", seed=1).get_submodule("bert.encoder.layer.2")
    network.get_submodule("bert.encoder.layer").add_module("2", other)
    network.get_submodule("bert.encoder.layer.2").eval()
    inputs = batch("bert")
    assert torch.equal(one_after_the_other(blocks, inputs), logits_of(network, inputs))
    assert torch.equal(blocks(inputs), logits_of(network, inputs))


def test_copies_and_pickles_stand_on_their_own() -> None:
    _, blocks = cut("qwen3")
    inputs = batch("qwen3")
    blocks.eval()
    expected = blocks(inputs)
    for again in (copy.deepcopy(blocks), pickle.loads(pickle.dumps(blocks))):
        with torch.no_grad():
            next(iter(blocks.network.parameters())).add_(0.0)
        assert torch.equal(one_after_the_other(again, inputs), expected)
        assert {id(p) for p in again.parameters()}.isdisjoint({id(p) for p in blocks.parameters()})


def test_gradient_checkpointing_stays_alive() -> None:
    network, blocks = cut("bert")
    network.gradient_checkpointing_enable()  # type: ignore[operator]
    network.train()
    gradients = []
    for forward in (lambda: logits_of(network, batch("bert")), lambda: blocks(batch("bert"))):
        torch.manual_seed(0)
        network.zero_grad()
        forward().square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_image_transformers_take_one_tensor_as_well(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    if kind == "vit":
        network = classifier("vit")
    else:
        config = transformers.SwinConfig(
            embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 2], window_size=2, image_size=32, patch_size=2, num_labels=3
        )
        network = transformers.AutoModelForImageClassification.from_config(config)
    network = returning_logits(network)
    x = torch.randn(3, 3, 16 if kind == "vit" else 32, 16 if kind == "vit" else 32)
    blocks = partition(network, x)
    assert len(blocks) >= 3
    network.train(training)
    torch.manual_seed(1)
    expected = network(x)
    torch.manual_seed(1)
    assert torch.equal(blocks(x), expected)


class Between(nn.Module):
    """Does something between its layers, beside calling them."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.embed, self.head, self.shift = nn.Embedding(50, 8), nn.Linear(8, 3), shift
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x) + self.shift
        x = (x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return self.head(x)


def test_networks_that_cannot_be_cut_are_refused() -> None:
    inputs = sentences([4, 3])
    with pytest.raises(PartitionError, match="runs no list of layers"):
        partition(Between(1.0), inputs)
    shared = transformers.AlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(PartitionError, match="runs no list of layers"):
        partition(transformers.AutoModelForSequenceClassification.from_config(shared), inputs)
    with pytest.raises(PartitionError, match=r"does not accept an example of \{'input_ids': \(2, 99\)"):
        partition(classifier("bert"), sentences([99, 3]))
    patched = classifier("bert")
    patched.forward = patched.forward
    with pytest.raises(PartitionError, match="replaced by hand"):
        partition(patched, inputs)
    with pytest.raises(PartitionError, match="do not give its logits in evaluation mode"):
        partition(Around(0.0), inputs)


class Around(Between):
    """Uses what enters the layers once more behind them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = start = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(((x + start) * attention_mask[..., None]).sum(1))


def test_a_forward_that_is_replaced_after_the_cut_is_told() -> None:
    network, blocks = cut("bert")
    network.forward = network.forward
    for work in (blocks, blocks.beside):
        with pytest.raises(StackError, match="ran 0 of its 4 layers: its forward was replaced"):
            work(batch("bert"))


def test_any_network_of_layers_that_takes_named_tensors_can_be_cut() -> None:
    class Plain(Between):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.embed(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head((x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))

    network = Plain(0.0)
    blocks = partition(network, sentences([4, 3]), after=[1, 3])
    inputs = sentences([2, 6, 1])
    assert torch.equal(one_after_the_other(blocks, inputs), network(**inputs))
