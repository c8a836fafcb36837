"""What a layer of a transformer attends with: queries, keys, values and scores, of any family, and nothing is changed.

They are read where they are used, at the one call that every implementation of attention comes to. Asking for
``output_attentions`` would not do: it gives probabilities after dropout, of which scores cannot be had, no queries,
keys or values, and it costs the fast kernels. Hooks on projections would have to know each family: their names, that
ModernBERT and DeBERTa have one for all three, where rotary positions, norms of queries and groups of heads come in.

So while a layer runs, two functions of torch are watched:

* ``scaled_dot_product_attention`` is given the queries, keys and values that are really multiplied, positions and all,
  the mask, and the scale. It is what transformers 5 runs by itself (``attn_implementation="sdpa"``).
* ``softmax`` over tokens × tokens is given the scores, of implementations written out (``"eager"``; MPNet and DeBERTa,
  which add positions of their own). Queries, keys and values cannot be told there.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from blockkd.baselines.numerics import products, widen
from blockkd.blocks import Blocks
from blockkd.calling import Inputs
from blockkd.stack_blocks import StackBlocks
from blockkd.stacks import Call, run_whole


@dataclass(frozen=True)
class Projections:
    """Queries, keys and values as they are multiplied, ``(B, H, L, d)``; of grouped heads one for each query head."""

    queries: Float[Tensor, "B H L d"]
    keys: Float[Tensor, "B H L d"]
    values: Float[Tensor, "B H L e"]
    scale: float


@dataclass(frozen=True)
class Attention:
    """What one layer attends with.

    Attributes:
        projections: queries, keys, values; None where only scores are known.
        given: the scores ``(B, H, L, L)`` as the layer computed them; None where projections are known.
        mask: what the layer does not attend to: False, or a number near the least, is left out; broadcasts to
            ``(B, H, L, L)``. None where it attends to all.
    """

    projections: Projections | None
    given: Float[Tensor, "B H L L"] | None
    mask: Tensor | None

    @property
    def seen(self) -> Tensor:
        """The queries ``(B, H, L, d)``, or the scores where these are not known."""
        seen = self.given if self.projections is None else self.projections.queries
        assert seen is not None
        return seen

    @property
    def heads(self) -> int:
        """H, the number of attention heads."""
        return self.seen.shape[1]

    def scores(self) -> Float[Tensor, "B H L L"]:
        """The scores before the softmax, ``q kᵀ · scale`` and what positions add; of pairs left out without meaning."""
        if self.projections is None:
            assert self.given is not None
            return widen(self.given)
        p = self.projections
        scores = products(widen(p.queries), widen(p.keys)) * p.scale
        if self.mask is None or self.mask.dtype == torch.bool:
            return scores
        return scores + self.mask

    def attended(self) -> Bool[Tensor, "#B #H #L #L"]:
        """Which tokens (last dimension) each token (before it) attends to; padding among others may be left out."""
        mask = self.given if self.mask is None else self.mask
        if mask is None:
            assert self.projections is not None
            return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=self.projections.queries.device)
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


@dataclass(frozen=True)
class Inside:
    """One forward pass of a network that runs layers.

    Attributes:
        entering: the hidden state ``(B, L, D)`` that enters the first layer: the embeddings.
        states: the hidden states ``(B, L, D)`` after each block.
        attention: of the layers asked for, by their numbers from 1.
        logits: ``(B, K)``.
    """

    entering: Float[Tensor, "B L D"]
    states: list[Float[Tensor, "B L D"]]
    attention: Mapping[int, Attention]
    logits: Float[Tensor, "B K"]


def run_inside(blocks: StackBlocks, layers: Collection[int], inputs: Inputs, context: Mapping[str, Any]) -> Inside:
    """The network's own forward, and what is seen inside of it.

    Args:
        blocks: the network, cut.
        layers: numbers, from 1, of those whose attention is wanted.
        inputs: a batch of named tensors.
        context: further arguments of the network.

    Raises:
        ValueError: a layer's attention cannot be seen.
    """
    entering: list[Tensor] = []
    attention: dict[int, Attention] = {}

    def run(number: int, layer: nn.Module, call: Call) -> Any:
        hidden = blocks.stack.hidden(call)
        if number == 1:
            entering.append(hidden)
        if number not in layers:
            return layer(*call[0], **call[1])
        seen: list[Attention] = []
        with _Watch(seen):
            returned = layer(*call[0], **call[1])
        attention[number] = _the_one(seen, hidden, number, blocks.network)
        return returned

    states, logits = run_whole(blocks.network, blocks.stack, inputs, context, run)
    return Inside(entering[0], [states[end - 1] for end in blocks.ends], attention, logits)


def stack_of(blocks: Blocks, who: str) -> StackBlocks:
    """The blocks, if they are layers of a network that can be looked into. Raises ValueError if not."""
    if not isinstance(blocks, StackBlocks):
        raise ValueError(
            f"{who} looks into the layers of transformers that take named tensors: give an example that is a mapping, "
            "as tokenizers and processors give it, and no Blocks made by hand"
        )
    return blocks


def projections_of(attention: Attention, network: nn.Module, who: str) -> Projections:
    """Queries, keys and values. Raises ValueError where only the scores are known."""
    if attention.projections is not None:
        return attention.projections
    name = type(network).__name__
    if getattr(network, "_supports_sdpa", False):
        mend = "load it with attn_implementation='sdpa'"
    else:
        mend = "its family computes attention by code of its own; take TinyBERT or PKD for it, or another network"
    raise ValueError(f"{who} relates queries, keys and values, which {name} does not show: {mend}")


class _Watch(TorchFunctionMode):
    """Notes what attention is computed of, and changes nothing.

    Args:
        seen: where to note it.
    """

    def __init__(self, seen: list[Attention]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.seen.append(_multiplied(*args, **kwargs))
        elif func in _SOFTMAX and args and args[0].ndim == 4 and args[0].shape[-1] == args[0].shape[-2]:
            self.seen.append(Attention(None, args[0], None))
        return func(*args, **kwargs)


_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


def _multiplied(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """What ``scaled_dot_product_attention`` is called with."""
    del dropout_p
    groups = query.shape[1] // key.shape[1] if enable_gqa else 1
    # Whether groups are repeated by the kernel or before it hangs on the mask, so on the padding; here never.
    key, value = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return Attention(
        Projections(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale), None, attn_mask
    )


def _the_one(seen: Sequence[Attention], hidden: Tensor, number: int, network: nn.Module) -> Attention:
    name = type(network).__name__
    if not seen:
        chosen = getattr(getattr(network, "config", None), "_attn_implementation", None)
        said = f"attn_implementation={chosen!r}" if isinstance(chosen, str) else "its own code"
        raise ValueError(
            f"the attention of layer {number} of {name} cannot be seen, as {said} computes it: load the network with "
            "attn_implementation='sdpa'"
        )
    first = seen[0].seen
    if len(seen) > 1 or (first.shape[0], first.shape[-2]) != hidden.shape[:2]:
        raise ValueError(
            f"layer {number} of {name} attends {len(seen)} time(s) to {first.shape[-2]} tokens at a time, not once to "
            f"all {hidden.shape[1]} (as Swin within its windows): such attention cannot be compared; take a method on "
            "hidden states or logits"
        )
    if torch.is_grad_enabled() and hidden.requires_grad and not first.requires_grad:
        raise ValueError(
            f"layer {number} of {name} is checkpointed in a way that keeps gradients from its attention: enable "
            "gradient checkpointing with use_reentrant=False"
        )
    return seen[0]
