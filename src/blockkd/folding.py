"""Batch norm of a frozen network, folded into the layers before it.

In evaluation mode a batch norm is the same affine map for every input. Behind a convolution or a linear layer it can be
made part of that layer's weights: one pass over the feature less, and one tensor less to keep for the backward pass
of the stepping stones, which go through the teacher with gradients.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from blockkd.examples import example_for
from blockkd.tracing import ROOT, Trace, TraceError, trace, undisturbed

Layer = _ConvNd | nn.Linear
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold_batch_norm(network: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A frozen copy of ``network`` whose batch norms are part of the layers before them, where that is possible.

    Give it as the teacher: ``BlockKD(fold_batch_norm(teacher, images), student)``. A batch norm is folded when it
    normalises by running statistics and is the only one to use the output of a convolution or linear layer, each being
    called once in the forward and having neither hooks nor parametrizations (as weight norm is one). Its place is
    taken by ``nn.Identity`` under its name, so that the network can be cut where the original can; what else it does
    (timm's ``BatchNormAct2d`` has an activation) stays. Batch norms before a convolution, as pre-activation networks
    have them, stay as they are, and so does all inside of a submodule whose forward cannot be followed. A network
    without anything to fold comes back as an equal copy.

    Methods that run the teacher's batch norm on other statistics than its own (``FCFD``) need the original.

    Args:
        network: maps a batch to logits ``(B, K)``; stays as it is, bit for bit.
        example: a batch of inputs ``(B, ...)``, by which the forward is followed and the copy is compared; when left
            out, a size that the network accepts is tried out.

    Returns:
        The copy: without gradients, and in evaluation mode whatever ``train()`` is called on it. Its outputs are the
        original's up to rounding: each folded layer and the logits were compared on the example, and differ by no more
        than √ε of the largest value, ε being the precision of the dtype (0.03 % in float32, 3 % in float16).

    Raises:
        ValueError: the logits of the copy differ by more, or are not finite.
    """
    network = getattr(network, "_orig_mod", network)  # behind torch.compile stands the network itself
    example = example_for(network) if example is None else example
    folded = copy.deepcopy(network).requires_grad_(False).eval()
    object.__setattr__(folded, "train", partial(_stay_in_evaluation, folded))
    with torch.no_grad(), undisturbed(folded, training=False):
        expected = folded(example)
        folds = _proven(folded, [_Fold(*pair) for pair in _pairs(folded, example)], example)
    for fold in folds:
        fold.apply(folded)
    with torch.no_grad(), undisturbed(folded, training=False):
        logits = folded(example)
    if not _close(logits, expected):
        raise ValueError(
            f"with its batch norm folded, {type(network).__name__} gives logits that differ by up to "
            f"{float((logits - expected).abs().max()):.3g}, where the largest is "
            f"{float(expected.abs().max()):.3g}: more than rounding. Its values overflow, or its forward uses the "
            "weights of a layer beside calling it; use the network as it is"
        )
    return folded


def _stay_in_evaluation(network: nn.Module, mode: bool = True) -> nn.Module:
    del mode
    return type(network).train(network, False)


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[Layer, _BatchNorm]]:
    """Layers and the batch norms that alone use what they give, by the recorded forward."""
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return []
    try:
        recorded = _trace(network, example[:2])
    except TraceError as error:
        warnings.warn(f"no batch norm of {type(network).__name__} is folded: {error}", stacklevel=3)
        return []
    nodes = [node for node in recorded.graph.nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in recorded.graph.nodes if node.op == "get_attr"}
    found = []
    for node in nodes:
        before = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else node
        if before.op != "call_module" or list(before.users) != [node] or {node.target, before.target} & read:
            continue
        layer, norm = (network.get_submodule(str(n.target).removeprefix(f"{ROOT}.")) for n in (before, node))
        shape = recorded.facts[before].shape  # of a linear layer's sequences (B, L, D) a norm takes L for the channels
        if not isinstance(layer, Layer) or shape is None or len(shape) != layer.weight.ndim:
            continue
        if _has_statistics(norm) and _untouched(layer) and _untouched(norm):
            found.append((layer, norm))
    return found


def _trace(network: nn.Module, example: Tensor) -> Trace:
    """The forward down to the layers of ``torch.nn`` and to all layers and batch norms made of these."""
    closed = {type(network.get_submodule(name)) for name in trace(network, example).opaque}
    opened = []
    for name, module in network.named_modules():
        of_torch = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
        if name and not of_torch and not isinstance(module, Layer | _BatchNorm) and type(module) not in closed:
            opened.append(name)
    return trace(network, example, opened)


def _has_statistics(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None


def _untouched(module: nn.Module) -> bool:
    return not any(getattr(module, hooks) for hooks in _HOOKS) and not is_parametrized(module)


class _Fold:
    """A layer and its batch norm, and what they become."""

    def __init__(self, layer: Layer, norm: _BatchNorm) -> None:
        self.layer, self.norm = layer, norm
        self.folded = copy.deepcopy(layer)
        self.folded.weight, self.folded.bias = _folded_weights(layer, norm)
        # What a batch norm of another library does after it has normalised, it does by its children, in their order.
        children = OrderedDict(norm.named_children())
        self.rest = (nn.Sequential(children) if children else nn.Identity()).eval()

    def apply(self, network: nn.Module) -> None:
        """Write it into ``network``; the layer stays the same object, the norm may be held under several names."""
        self.layer.weight, self.layer.bias = self.folded.weight, self.folded.bias
        for holder in network.modules():
            for name, module in holder._modules.items():
                if module is self.norm:
                    holder._modules[name] = self.rest


def _folded_weights(layer: Layer, norm: _BatchNorm) -> tuple[nn.Parameter, nn.Parameter]:
    tensors = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    # In float64, so that weights of half precision are rounded once only; not every device has it, the CPU does.
    weight, bias, mean, variance, scale, shift = (None if t is None else t.cpu().double() for t in tensors)
    assert weight is not None
    assert mean is not None
    assert variance is not None
    groups = layer.groups if isinstance(layer, _ConvTransposeNd) else 0
    weight = _swapped(weight, groups) if groups else weight
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    weight = _swapped(weight, groups) if groups else weight
    laid_out = torch.empty_like(layer.weight).copy_(weight)  # in memory as before
    return nn.Parameter(laid_out, requires_grad=False), nn.Parameter(bias.to(layer.weight), requires_grad=False)


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight ``(inputs, outputs / groups, ...)`` → ``(outputs, inputs / groups, ...)``.

    And back: swapping within each group undoes itself.
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _proven(network: nn.Module, folds: Sequence[_Fold], example: Tensor) -> list[_Fold]:
    """Those folds that give on the example what layer and norm gave, each compared as the forward passes it.

    This sorts out layers with a forward of their own in which the weights are not simply multiplied (standardised
    or quantised ones), norms with more to them than children that run one after the other, and modules that are called
    more than once.
    """
    waiting: dict[_Fold, list[Tensor]] = {fold: [] for fold in folds}
    verdicts: dict[_Fold, list[bool]] = {fold: [] for fold in folds}

    def after_layer(fold: _Fold, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        del layer, output
        waiting[fold].append(fold.rest(fold.folded(*args, **kwargs)))  # now: what it got may be overwritten later

    def after_norm(fold: _Fold, norm: nn.Module, args: Any, output: Tensor) -> None:
        del norm, args
        verdicts[fold].append(len(waiting[fold]) == 1 and _close(waiting[fold].pop(), output))

    hooks = []
    for fold in folds:
        hooks.append(fold.layer.register_forward_hook(partial(after_layer, fold), with_kwargs=True))
        hooks.append(fold.norm.register_forward_hook(partial(after_norm, fold)))
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [fold for fold in folds if verdicts[fold] == [True] and not waiting[fold]]


def _close(value: Tensor, expected: Tensor) -> bool:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return bool((value - expected).abs().max() <= tolerance * expected.abs().max())
