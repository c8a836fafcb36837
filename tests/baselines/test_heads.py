"""Where the final linear layer and the map before it are found, in which networks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.catkd import CATKD
from blockkd.baselines.heads import Head, cut_before_pooling
from blockkd.baselines.simkd import SimKD
from blockkd.models import create_model
from tests.baselines.laws import ChannelsLast, TwoLayerHead, check_step
from tests.networks import IMAGE, Functional, Plain, Tokens, perceptron


class Sidewards(nn.Module):
    """A linear layer of the same width, registered and run after the one that gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.beside = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        logits = self.head(x)
        self.beside(x)
        return logits


def test_the_layer_that_gives_the_logits_is_found_by_its_values() -> None:
    torch.manual_seed(0)
    network, x = Sidewards(), torch.rand(3, 6)
    found = Head(network, example=torch.zeros(2, 6))  # a blank example is enough
    assert found.name == "head"
    assert found.linear(network) is network.head
    assert Head(network).name == "beside"  # without an example the last one, as the docstring says
    assert Head(network, "body", x).name == "body"
    with found.watched(network) as inputs:
        logits = network(x)
    assert torch.equal(found.embedding(network, inputs, logits), network.body(x))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_a_head_that_is_not_linear_has_no_linear_layer() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Identity())
    with pytest.raises(ValueError, match=r"layer '1' is a Identity, expected an nn\.Linear"):
        Head(network, "1").linear(network)


def test_logits_that_no_linear_layer_gives_are_told_so() -> None:
    with pytest.raises(ValueError, match=r"TwoLayerHead gives logits that are not the output of one .* \['head'\]"):
        Head(TwoLayerHead(), example=torch.rand(2, *IMAGE))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_the_map_before_pooling_is_found(name: str) -> None:
    network = create_model(name, num_classes=10).eval()
    x = torch.rand(2, 3, 32, 32)
    blank = torch.zeros(2, 3, 32, 32)  # a blank example is enough
    head = Head(network, example=blank)
    (feature,), logits = cut_before_pooling(network, head, blank).run(x)
    linear = head.linear(network)
    torch.testing.assert_close(linear(feature.mean((2, 3))), logits)


def test_logits_that_are_not_finite_are_told_so() -> None:
    network = Plain()
    network.head.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="Plain gives logits that are not finite"):
        Head(network, example=torch.rand(2, *IMAGE))


class NormBehindPooling(Plain):
    """As ConvNeXt ends."""

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(F.layer_norm(x.mean((2, 3)), (x.shape[1],)))


class GlobalMaximum(nn.Module):
    """On a blank image its maximum over the places is their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).amax((2, 3)))


@pytest.mark.parametrize("network", [NormBehindPooling(), GlobalMaximum()])
def test_no_other_pooling_is_taken_for_an_average(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="does not end in global average pooling and one linear layer: no map"):
        cut_before_pooling(network, Head(network), torch.zeros(2, *IMAGE))


@pytest.mark.parametrize("method", [SimKD, CATKD])
@pytest.mark.parametrize("network", [Functional(), Tokens(), perceptron()])
def test_networks_of_another_form_are_told_so(method: type[SimKD] | type[CATKD], network: nn.Module) -> None:
    shape = (3, 4, 4) if isinstance(network, nn.Sequential) else IMAGE
    x = torch.rand(4, *shape)
    with pytest.raises(ValueError, match="does not end in global average pooling and one linear layer"):
        method(network, Plain(), x)


@pytest.mark.parametrize("method", [SimKD, CATKD])
def test_maps_with_channels_last(method: type[SimKD] | type[CATKD]) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 3, 4, 1])
    check_step(method(ChannelsLast(6), ChannelsLast(4), x), x, y)
    check_step(method(ChannelsLast(6), Plain((4, 5, 6)), x), x, y)
