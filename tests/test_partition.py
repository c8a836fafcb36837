"""Laws of the partition: recomposed blocks are the network, bit for bit, and share everything with it."""

import copy
import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from blockkd.blocks import Blocks, PartitionError
from blockkd.partitioning import Survey, cut_pair, partition
from blockkd.tracing import undisturbed
from tests import networks
from tests.networks import CUTTABLE, IMAGE


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CUTTABLE[name]
    return make(), torch.randn(2, *shape)


def outcome(forward: nn.Module, network: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and buffers, and gradients, after one step forward and backward from equal random state."""
    torch.manual_seed(1)
    logits = forward(x)
    network.zero_grad()
    logits.square().sum().backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    return [logits.detach(), *(buffer.clone() for buffer in network.buffers())], gradients


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("batch", [2, 5])
def test_recomposed_blocks_equal_the_network_bit_for_bit(name: str, training: bool, batch: int) -> None:
    network, example = made(name)
    blocks = partition(network, example)
    twin = copy.deepcopy(network)
    x = torch.randn(batch, *example.shape[1:])
    network.train(training)
    twin.train(training)
    (ours, our_gradients), (plain, gradients) = outcome(blocks, network, x), outcome(twin, twin, x)
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(our_gradients, gradients, strict=True):
        # What several blocks compute again from parameters gets its gradient in another order of summation.
        torch.testing.assert_close(a, b) if name == "shared-bias" else torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", CUTTABLE)
def test_features_have_the_shapes_told(name: str) -> None:
    network, example = made(name)
    blocks = partition(network, example)
    features, _ = blocks.run(example)
    assert [tuple(f.shape[1:]) for f in features] == list(blocks.shapes)


@pytest.mark.parametrize("name", CUTTABLE)
def test_blocks_share_the_parameters_and_their_names(name: str) -> None:
    network, example = made(name)
    blocks = partition(network, example)
    parts = [*blocks.blocks, blocks.classifier]
    assert {id(p) for p in blocks.parameters()} == {id(p) for p in network.parameters()}
    names = {key for part in parts for key in part.state_dict()}
    assert names == set(network.state_dict())


@pytest.mark.parametrize("name", CUTTABLE)
def test_a_block_works_alone_on_any_batch(name: str) -> None:
    network, example = made(name)
    network.eval()
    blocks = partition(network, example)
    together, alone = torch.cat([example, example]), example
    for block in (*blocks.blocks, blocks.classifier):
        together, alone = block(together), block(alone)
        torch.testing.assert_close(together, torch.cat([alone, alone]))


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("training", [False, True])
def test_partition_leaves_no_trace(name: str, training: bool) -> None:
    network, example = made(name)
    network.train(training)
    next(network.children()).eval()
    state = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    attributes = [set(module.__dict__) for module in network.modules()]
    kept = [dict(m.kept) for m in network.modules() if isinstance(m, networks.Cache)]
    random_state = torch.get_rng_state()
    partition(network, example)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in network.modules()] == modes
    assert [set(module.__dict__) for module in network.modules()] == attributes
    assert [dict(m.kept) for m in network.modules() if isinstance(m, networks.Cache)] == kept
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
    assert all(p.grad is None for p in network.parameters())


def test_undisturbed_gives_the_random_state_back() -> None:
    network = networks.RandomDepth()
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    with undisturbed(network, training=True):
        network(torch.randn(2, *IMAGE))
    assert random.getstate() == python_state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_blocks_follow_what_happens_to_the_network() -> None:
    network, example = made("shared-bias")
    blocks = partition(network, example)
    network.double()
    network.load_state_dict({k: v + 1 for k, v in network.state_dict().items()}, assign=True)
    network.head = nn.Linear(16, 7).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    assert torch.equal(blocks(x), network(x))
    blocks.float()
    assert network.shift.dtype == torch.float32
    assert torch.equal(blocks(x.float()), network(x.float()))
    assert {p.dtype for p in blocks.parameters()} == {torch.float32}


def test_modes_reach_the_blocks_from_both_sides() -> None:
    network, example = made("functional")
    blocks = partition(network, example)
    network.eval()
    assert torch.equal(blocks(example), blocks(example))
    network.train()
    assert not torch.equal(blocks(example), blocks(example))
    blocks.eval()
    assert not network.training
    assert torch.equal(blocks(example), network(example))


def test_a_copy_is_independent() -> None:
    network, example = made("plain")
    twin = copy.deepcopy(partition(network.eval(), example))
    before = twin(example)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert torch.equal(twin(example), before)


def test_cuts_lie_at_the_ends_of_stages() -> None:
    network, example = made("plain")
    blocks = partition(network, example)
    assert blocks.names == ("stages.0", "stages.1", "stages.2")
    assert blocks.shapes == ((4, 16, 16), (8, 8, 8), (16, 4, 4))


def test_equal_depth_where_the_resolution_never_changes() -> None:
    network, example = networks.Tokens(depth=8), torch.randn(2, *IMAGE)
    names = partition(network, example).names
    assert names == ("encoder.layers.1", "encoder.layers.3", "encoder.layers.5", "encoder")
    assert partition(network, example, n_blocks=2).names == ("encoder.layers.3", "encoder")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_as_many_blocks_as_asked(n: int) -> None:
    network, example = made("plain")
    blocks = partition(network, example, n_blocks=n)
    assert len(blocks) == n
    assert blocks.names[-1] == "stages.2"
    assert torch.equal(blocks.eval()(example), network(example))


def test_more_blocks_than_stages_cut_the_longest_stage() -> None:
    network = networks.Residual()
    example = torch.randn(2, *IMAGE)
    names = partition(network, example, n_blocks=3).names
    assert names[-1] == "act#4"
    assert len(set(names)) == 3
    assert partition(network, example, after=names).names == names


def test_no_cut_where_a_skip_passes() -> None:
    network, example = made("long-skip")
    survey = Survey(network, example)
    names = [name for point in survey.points for name in point.aliases]
    assert "middle" not in names
    assert "first" in names


def test_no_cut_at_a_tensor_that_is_changed_later() -> None:
    network, example = made("in-place")
    blocks = partition(network, example)
    features, _ = blocks.run(example)
    versions = [feature._version for feature in features]
    x = example
    for block, version in zip((*blocks.blocks, blocks.classifier), [None, *versions], strict=True):
        kept = x
        x = block(x)
        assert version is None or kept._version == version
    assert "norm2" not in [point.name for point in Survey(network, example).points]


def test_only_what_a_cut_goes_through_is_opened() -> None:
    network, example = made("residual")
    called: list[str] = []
    network.get_submodule("bodies.0").register_forward_hook(lambda *_: called.append("hook"))
    partition(network, example)
    called.clear()
    partition(network, example)(example)
    blocks = partition(network, example)
    called.clear()
    blocks(example)
    assert called == ["hook"]


def test_by_name() -> None:
    network, example = made("plain")
    blocks = partition(network, example, after=["stages.0.0", "stages.2"])
    assert blocks.names == ("stages.0.0", "stages.2")
    assert blocks.shapes == ((4, 16, 16), (16, 4, 4))
    assert torch.equal(blocks.eval()(example), network.eval()(example))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (["stages.7"], r"no submodule 'stages\.7', did you mean .*It can be cut after: stages\.0"),
        (["stages.1", "stages.0"], "in the order"),
        (["head"], "cannot be cut after 'head'"),
        (["stages.0.1"], "changed in place"),
        ([], "names no cut"),
    ],
)
def test_wrong_names_say_what_would_work(after: list[str], message: str) -> None:
    network, example = made("plain")
    with pytest.raises(PartitionError, match=message):
        partition(network, example, after=after)


def test_a_call_named_in_an_error_works() -> None:
    network, example = made("plain")
    with pytest.raises(PartitionError) as error:
        partition(network, example, n_blocks=50)
    call = str(error.value).rpartition("This call works: ")[2]
    assert call.startswith("blockkd.partition(network, example, after=[")
    names = call.partition("after=")[2].rstrip(")")
    assert len(partition(network, example, after=[n.strip("' ") for n in names.strip("[]").split(",")])) == 3


def test_branches_on_values_are_named() -> None:
    with pytest.raises(PartitionError, match=r"Branching.*branches on the values of a tensor.*blockkd\.Blocks"):
        partition(networks.Branching(), torch.randn(2, 6))


def test_a_part_that_cannot_be_followed_is_left_whole() -> None:
    network, example = made("hidden-branch")
    survey = Survey(network, example)
    assert set(survey.opaque) == {"parts.0"}
    assert "branches on the values" in survey.opaque["parts.0"]


def test_randomness_in_python_is_no_silent_mistake() -> None:
    network = networks.RandomDepth()
    blocks = partition(network, torch.randn(2, *IMAGE))
    assert blocks.training_error is not None
    assert "random" in blocks.training_error
    x = torch.randn(3, *IMAGE)
    assert torch.equal(blocks.eval()(x), network.eval()(x))
    with pytest.raises(PartitionError, match="random"):
        blocks.train()(x)


class Auxiliary(networks.Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits  # type: ignore[return-value]


def test_several_outputs_in_training_mode() -> None:
    blocks = partition(Auxiliary(), torch.randn(2, *IMAGE))
    assert "several values" in str(blocks.training_error)
    assert partition(Auxiliary(), torch.randn(2, *IMAGE), frozen=True).eval()(torch.randn(2, *IMAGE)).shape == (2, 5)


@pytest.mark.parametrize("example", [torch.randn(3), torch.randn(0, *IMAGE)])
def test_an_example_without_examples(example: Tensor) -> None:
    with pytest.raises(PartitionError, match="expected a batch"):
        partition(networks.Plain(), example)


def test_pairs_are_aligned_by_resolution() -> None:
    example = torch.randn(2, 3, 32, 32)
    teacher, student = networks.Plain((4, 8, 16, 32)), networks.Plain((4, 8, 8))
    theirs, ours = cut_pair(Survey(teacher, example), Survey(student, example))
    assert [p.feature.grid for p in ours] == [(32, 32), (16, 16), (8, 8)]
    assert [p.feature.grid for p in theirs] == [(32, 32), (16, 16), (4, 4)]


def test_blocks_by_hand() -> None:
    network, example = made("plain")
    assert isinstance(network, networks.Plain)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.head)
    blocks = Blocks(list(network.stages), head)
    torch.testing.assert_close(blocks.eval()(example), network.eval()(example))
    assert [f.shape for f in blocks.measure(example)] == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    with pytest.raises(PartitionError, match="at least one block"):
        Blocks([], head)


def test_a_cut_that_lies_elsewhere_in_training_is_no_cut() -> None:
    blocks = partition(networks.ModeDependent(), torch.randn(2, *IMAGE))
    assert "lies at another place" in str(blocks.training_error)


def test_what_a_graph_does_not_repeat_is_found_by_comparing() -> None:
    with pytest.raises(PartitionError, match="do not give what the network gives"):
        partition(networks.Aliasing(), torch.randn(2, 6))
    blocks = partition(networks.Aliasing(only_in_training=True), torch.randn(2, 6))
    assert "in training mode" in str(blocks.training_error)


def test_switched_gradients_are_refused() -> None:
    with pytest.raises(PartitionError, match="switches autocast or gradients"):
        partition(networks.Context(), torch.randn(2, *IMAGE))


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_what_is_switched_around_the_partition_does_not_matter(
    around: Callable[[], AbstractContextManager[None]],
) -> None:
    network, example = made("plain")
    with around():
        blocks = partition(network, example)
    assert len(blocks) == 3


def test_sizes_that_decided_something_bind_the_blocks() -> None:
    network, example = made("resolving")
    blocks = partition(network, example)
    assert blocks.only_for == torch.Size(IMAGE)
    with pytest.raises(PartitionError, match="was cut for inputs"):
        blocks(torch.randn(2, 3, 32, 32))
    assert partition(*made("plain")).only_for is None


def test_a_last_stage_of_one_place_is_a_stage() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*(networks.conv(8, 8) for _ in range(5)))
    network = nn.Sequential(
        nn.Sequential(networks.conv(3, 8), networks.conv(8, 8)),
        nn.Sequential(networks.conv(8, 8, 2), networks.conv(8, 8)),
        nn.MaxPool2d(2),
        deep,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    assert partition(network, torch.randn(2, 3, 4, 4)).names == ("0", "1", "3")


def test_layers_behind_the_pooling_belong_to_the_classifier() -> None:
    stage = [networks.conv(8, 8) for _ in range(6)]
    network = nn.Sequential(
        nn.Sequential(networks.conv(3, 8), *stage),
        nn.Sequential(networks.conv(8, 8, 2), *stage),
        nn.AdaptiveAvgPool2d(1),
        nn.Sequential(nn.Conv2d(8, 64, 1), nn.Hardswish()),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    assert partition(network, torch.randn(2, *IMAGE)).names == ("0", "1")


def test_a_stem_is_no_stage() -> None:
    body = [networks.conv(8, 8, 2), *(networks.conv(8, 8) for _ in range(20))]
    tail = [networks.conv(8, 8, 2), *(networks.conv(8, 8) for _ in range(10))]
    network = nn.Sequential(
        networks.conv(3, 8), nn.Sequential(*body), nn.Sequential(*tail), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    assert partition(network, torch.randn(2, *IMAGE)).names == ("1", "2")


def test_an_example_that_the_network_does_not_take() -> None:
    with pytest.raises(PartitionError, match=r"does not accept an example of shape \(2, 4, 16, 16\)"):
        partition(networks.Plain(), torch.randn(2, 4, 16, 16))


def test_cuts_match_those_named_in_the_other_network() -> None:
    example = torch.randn(2, 3, 32, 32)
    theirs, ours = Survey(networks.Plain(), example), Survey(networks.Plain((3, 4, 5)), example)
    named, found = cut_pair(theirs, ours, teacher_names=["stages.0", "stages.1"])
    assert [p.name for p in named] == [p.name for p in found] == ["stages.0", "stages.1"]
    assert [p.name for p in cut_pair(theirs, ours, student_names=["stages.1"])[0]] == ["stages.1"]


def test_a_compiled_network_is_cut_like_the_network_itself() -> None:
    network, example = made("plain")
    assert partition(torch.compile(network), example).names == partition(network, example).names  # type: ignore[arg-type]


def test_no_cut_where_the_batch_is_another_one() -> None:
    network, example = made("windows")
    places = [point.feature.shape for point in Survey(network, example).points]
    assert places
    assert all(len(shape) == 2 for shape in places)  # tokens (L, D), never rows (D,) of a longer batch


def test_a_network_that_loses_examples_is_refused() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: len(x) // 2]

    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), Half())
    with pytest.raises(PartitionError, match=r"returns a tensor \(1, 5\) for a batch of 2, expected logits"):
        partition(network, torch.randn(4, 4))
