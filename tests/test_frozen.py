"""Frozen layers keep less for the backward pass, and give what they give without that."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from blockkd import BlockKD, stones
from blockkd.costs import saved_bytes
from blockkd.frozen import lean_backward
from blockkd.models import create_model

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9, 8)),
    "grouped and dilated": (lambda: nn.Conv2d(4, 6, (3, 1), (1, 2), (2, 0), (2, 1), groups=2), (2, 4, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 4, 5)),
    "padding by word": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 8)),
    "without batch": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (2, 4, 9, 8)),
    "batch norm in training": (lambda: nn.BatchNorm2d(4), (2, 4, 9, 8)),
    "batch norm of vectors": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "without affine": (lambda: nn.BatchNorm2d(4, affine=False), (2, 4, 9, 8)),
    "batch statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 9, 8)),
    "ReLU": (nn.ReLU, (2, 4, 9, 8)),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), (2, 4, 9, 8)),
}


def gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, the gradient of its input, and what the layer left of the input."""
    x = x.detach().requires_grad_()
    given = x * 1
    y = layer(given)
    return y, torch.autograd.grad(y.sin().sum(), x)[0], given


def frozen(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer: nn.Module = make().double()
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is not None:
        assert layer.running_mean is not None
        nn.init.uniform_(layer.running_var, 0.5, 2)
        for tensor in (layer.running_mean, *layer.parameters()):
            nn.init.uniform_(tensor, 0.5, 2)
    return layer.train(name == "batch norm in training").requires_grad_(False), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_the_same(name: str, layout: torch.memory_format) -> None:
    layer, x = frozen(name)
    if layout == torch.channels_last and x.ndim != 4:
        pytest.skip("only of maps")
    x = x.to(memory_format=layout) if x.ndim == 4 else x
    plain = gradient(layer, x)
    with lean_backward():
        lean = gradient(layer, x)
    assert torch.equal(lean[0], plain[0])
    assert torch.equal(lean[2], plain[2])
    torch.testing.assert_close(lean[1], plain[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "batch norm", "ReLU"])
def test_the_second_derivative_is_right(name: str) -> None:
    layer, x = frozen(name)

    def lean(x: Tensor) -> Tensor:
        with lean_backward():
            return layer(x).sin().sum()

    torch.autograd.gradcheck(lean, x.requires_grad_())
    torch.autograd.gradgradcheck(lean, x)


def kept(run: Callable[[], object]) -> int:
    sizes = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    del result
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["conv2d", "conv1d", "conv3d", "batch norm", "ReLU", "without affine"])
def test_what_is_kept_is_no_feature(name: str) -> None:
    layer, x = frozen(name)
    x = torch.cat([x] * 8).requires_grad_()
    with lean_backward():
        lean = kept(lambda: layer(x))
    parameters = sum(tensor.nbytes for tensor in layer.state_dict().values())
    mask = x.numel() if name == "ReLU" else 0
    assert lean <= parameters + mask
    assert kept(lambda: layer(x)) >= x.nbytes


def test_layers_that_learn_still_learn() -> None:
    layer, x = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).eval(), torch.randn(2, 4, 9, 8)
    grads = []
    for context in (lean_backward(), torch.enable_grad()):
        layer.zero_grad()
        with context:
            layer(x.requires_grad_()).sin().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("function", [F.relu, torch.relu, Tensor.relu])
def test_every_way_to_write_relu(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(64, 64, requires_grad=True)
    with lean_backward():
        assert kept(lambda: function(x)) == x.numel()


def test_autocast_gives_the_gradient_in_the_inputs_type() -> None:
    layer = nn.Conv2d(4, 6, 3).requires_grad_(False)
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    found = []
    for context in (lean_backward(), torch.enable_grad()):
        with torch.autocast("cpu", torch.bfloat16), context:
            y = layer(x)
        assert y.dtype == torch.bfloat16
        found.append(torch.autograd.grad(y.sin().sum(), x)[0])
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)
    with torch.autocast("cpu", torch.bfloat16), lean_backward():
        kept = layer(x).grad_fn.saved_tensors
    assert [weight.dtype for weight in kept] == [torch.bfloat16]  # other devices than the CPU take no mixture


def test_block_kd_learns_the_same_and_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    teacher, student = create_model("resnet14", num_classes=5), create_model("resnet8", num_classes=5)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    distiller = BlockKD(teacher, student, images)
    losses, grads, sizes = [], [], []
    for context in (lambda *_: nullcontext(), lean_backward):
        monkeypatch.setattr(stones, "lean_backward", context)
        distiller.zero_grad()
        total = distiller(images, labels).total
        sizes.append(saved_bytes(distiller, images, labels))
        total.backward()
        losses.append(total)
        grads.append([p.grad.clone() for p in distiller.parameters() if p.grad is not None])
    assert torch.equal(*losses)
    for plain, lean in zip(*grads, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    assert sizes[1] < 0.65 * sizes[0]
