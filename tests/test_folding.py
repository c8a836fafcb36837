"""Folding: the same function, fewer layers, the original untouched, the same places to cut."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import weight_norm

from blockkd import KD, BlockKD, partition
from blockkd.bench.contenders import settle
from blockkd.distiller import Distiller
from blockkd.folding import fold_batch_norm
from blockkd.models import NETWORKS, create_model
from tests.networks import Plain

timm = pytest.importorskip("timm")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def lively(network: nn.Module) -> nn.Module:
    """Batch norms whose every number matters."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 2.0)
    return network.eval()


class Net(nn.Module):
    """A layer, what follows it, and a head; ``how`` says what is between."""

    def __init__(self, layer: nn.Module, norm: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.layer, self.norm = nn.Conv2d(3, 8, 3, padding=1), layer, norm
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.stem(x).relu())).relu().mean((2, 3)))


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(self.norm(self.layer(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class TwoUsers(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.stem(x))
        return self.head((self.norm(x) + x).mean((2, 3)))


class ReadsWeight(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(self.stem(x)))
        weight = self.get_parameter("layer.weight")
        return self.head(x.mean((2, 3)) * weight.mean())


class Activated(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.stem(x)).relu()).mean((2, 3)))


class Overwritten(Net):
    """What the layer was given is gone when its norm has run."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.layer(x)
        x.zero_()
        return self.head(self.norm(y).mean((2, 3)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3 * 256, 12, bias=False), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear(x.flatten(1))).relu())


class Sequences(nn.Module):
    """Of (B, L, D) a batch norm takes L for the channels; here L = 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(256, width), nn.BatchNorm1d(3), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear(x.flatten(2))).mean(1))


class Aliased(Net):
    """The norm is held under two names."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.also = nn.ModuleList([self.norm])


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, **options)


FOLDED = {
    "convolution": lambda: Net(conv(), nn.BatchNorm2d(8)),
    "without bias": lambda: Net(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)),
    "grouped": lambda: Net(conv(groups=4), nn.BatchNorm2d(8)),
    "transposed": lambda: Net(nn.ConvTranspose2d(8, 6, 3), nn.BatchNorm2d(6), 6),
    "grouped and transposed": lambda: Net(nn.ConvTranspose2d(8, 6, 3, groups=2), nn.BatchNorm2d(6), 6),
    "without affine": lambda: Net(conv(), nn.BatchNorm2d(8, affine=False)),
    "SyncBatchNorm": lambda: Net(conv(), nn.SyncBatchNorm(8)),
    "BatchNormAct2d": lambda: Net(conv(), timm.layers.BatchNormAct2d(8, act_layer=nn.SiLU)),
    "linear": Vectors,
    "overwritten input": lambda: Overwritten(conv(), nn.BatchNorm2d(8)),
    "two names": Aliased,
}
NOT_FOLDED = {
    "shared": lambda: Twice(conv(), nn.BatchNorm2d(8)),
    "two users": lambda: TwoUsers(conv(), nn.BatchNorm2d(8)),
    "weights read elsewhere": lambda: ReadsWeight(conv(), nn.BatchNorm2d(8)),
    "activation between": lambda: Activated(conv(), nn.BatchNorm2d(8)),
    "batch statistics": lambda: Net(conv(), nn.BatchNorm2d(8, track_running_stats=False)),
    "weight norm": lambda: Net(weight_norm(conv()), nn.BatchNorm2d(8)),
    "standardised weights": lambda: Net(Standardised(8, 8, 3), nn.BatchNorm2d(8)),
    "sequences": lambda: Sequences(3),
    "sequences of another width": lambda: Sequences(4),
}


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_can_be_folded_is_folded_and_stays_equal(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    network = lively(make()).to(dtype)
    folded = fold_batch_norm(network, X.to(dtype))
    assert (norms(network), norms(folded)) == (1, 0)
    fresh = torch.randn(6, 3, 16, 16, dtype=dtype)
    expected = network(fresh)
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(folded(fresh), expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))
    assert {name for name, _ in network.named_modules()} == {name for name, _ in folded.named_modules()}


@pytest.mark.parametrize("make", NOT_FOLDED.values(), ids=NOT_FOLDED)
def test_what_cannot_be_folded_comes_back_as_an_equal_copy(make: Callable[[], nn.Module]) -> None:
    network = lively(make())
    folded = fold_batch_norm(network, X)
    assert norms(folded) == 1
    assert torch.equal(folded(X), network(X))


@pytest.mark.parametrize("hooked", ["layer", "norm"])
@pytest.mark.parametrize("factor", [1, 2])
def test_hooks_stay_alive(hooked: str, factor: int) -> None:
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(output)
        return output * factor

    network = lively(Net(conv(), nn.BatchNorm2d(8)))
    getattr(network, hooked).register_forward_hook(hook)
    folded = fold_batch_norm(network, X)
    seen.clear()
    expected = network(X)
    assert torch.equal(folded(X), expected)
    assert torch.equal(*seen)  # called by both, with the same


def test_the_original_stays_as_it_is_bit_for_bit() -> None:
    network = lively(create_model("resnet8", num_classes=5)).train()
    before = copy.deepcopy(network)
    fold_batch_norm(network, X)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.state_dict().items())
    assert torch.equal(network(X), before(X))


def test_the_copy_is_frozen_and_in_evaluation_mode_for_good() -> None:
    network = nn.Sequential(Plain(), nn.Dropout(0.5))
    folded = fold_batch_norm(network, X)
    for fold in (folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert fold.train() is fold
        assert not any(module.training for module in fold.modules())
        assert not any(parameter.requires_grad for parameter in fold.parameters())
        assert torch.equal(fold(X), folded(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    network = lively(create_model("resnet8", num_classes=5))
    reference = fold_batch_norm(copy.deepcopy(network).to(dtype).double(), X.double())
    folded = fold_batch_norm(network.to(dtype), X.to(dtype))
    assert norms(folded) == 0
    pairs = zip(folded.parameters(), reference.parameters(), strict=True)
    assert all(torch.equal(ours, exact.to(dtype)) for ours, exact in pairs)


def test_values_that_overflow_are_refused() -> None:
    network = lively(Net(conv(), nn.BatchNorm2d(8)))
    nn.init.constant_(network.get_parameter("head.weight"), 3e38)
    with pytest.raises(ValueError, match="use the network as it is"):
        fold_batch_norm(network, X)


class Secretive(Net):
    """Uses the layer's weight where no recorded graph shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(self.layer.__dict__["_parameters"]["weight"].std())


def test_a_copy_that_is_not_equal_is_refused() -> None:
    with pytest.raises(ValueError, match="uses the weights of a layer beside calling it"):
        fold_batch_norm(lively(Secretive(conv(), nn.BatchNorm2d(8))), X)


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_followed_is_left_unfolded_with_a_warning() -> None:
    network = lively(Branching(conv(), nn.BatchNorm2d(8)))
    with pytest.warns(UserWarning, match="no batch norm of Branching is folded: .* branches on the values"):
        folded = fold_batch_norm(network, X)
    assert norms(folded) == 1
    assert torch.equal(folded(X), network(X))


def same_cuts(network: nn.Module, x: Tensor) -> nn.Module:
    folded = fold_batch_norm(network, x)
    ours, theirs = (partition(net, x, frozen=True) for net in (folded, network))
    assert (ours.names, ours.features) == (theirs.names, theirs.features)
    return folded


# How many batch norms stay: those of pre-activation networks that open a block after a sum.
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_field_folds_and_is_cut_at_the_same_places(name: str) -> None:
    network = settle(create_model(name, num_classes=5), torch.randn(4, 3, 32, 32)).eval()
    folded = same_cuts(network, torch.randn(2, 3, 32, 32))
    stays = {"wrn_16_1": 7, "wrn_16_2": 6, "wrn_40_1": 19, "wrn_40_2": 18}
    assert norms(folded) == stays.get(name, 0)


@pytest.mark.parametrize(
    ("name", "side", "stay"),
    [
        ("timm/resnet18", 64, 0),
        ("timm/mobilenetv3_small_050", 64, 0),
        ("timm/efficientnet_b0", 64, 0),
        ("timm/tf_efficientnet_lite0", 64, 0),
        ("timm/regnety_002", 64, 0),
        ("timm/vit_tiny_patch16_224", 224, 0),
        ("timm/convnext_atto", 64, 0),
        ("torchvision/densenet121", 64, 62),
        ("torchvision/resnet50", 64, 0),
    ],
)
def test_networks_of_other_libraries(name: str, side: int, stay: int) -> None:
    network = settle(create_model(name, num_classes=5), torch.randn(4, 3, side, side)).eval()
    assert norms(same_cuts(network, torch.randn(2, 3, side, side))) == stay


def trained(teacher: nn.Module, make: Callable[..., Distiller], steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    distiller = make(teacher, create_model("resnet8", num_classes=5))
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = distiller(images, labels).total
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return losses


@pytest.mark.parametrize("make", [KD, lambda t, s: BlockKD(t, s, X)], ids=["KD", "BlockKD"])
def test_twenty_steps_under_the_folded_teacher_are_those_under_the_original(make: Callable[..., Distiller]) -> None:
    teacher = settle(create_model("resnet14", num_classes=5), X)
    folded = fold_batch_norm(teacher, X)
    plain = trained(copy.deepcopy(teacher), make)
    torch.testing.assert_close(trained(folded, make), plain, rtol=1e-3, atol=0)
    assert plain[-1] < plain[0]
