"""The stepping stones ``N_i = T_c ∘ T_n ∘ … ∘ T_{i+1} ∘ C_i ∘ S_i ∘ … ∘ S_1``, run in one sweep.

A stone joins the teacher's data flow where its student part ends. From there on all stones go through the same
frozen blocks, so each block runs once, on the features of all stones that have joined, one after the other along
the batch: never once per stone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from blockkd.blocks import Blocks
from blockkd.frozen import lean_backward

Stones = Literal["all", "last"] | Sequence[int]


def stone_logits(
    teacher: Blocks, connected: Mapping[int, Float[Tensor, "B ..."] | Mapping[str, Tensor]], **beside: Any
) -> dict[int, Float[Tensor, "B K"]]:
    """The logits ``Y^{N_i}`` of every stone.

    The teacher must be in evaluation mode: each example is then treated by itself, so that going through a block
    together changes nothing.

    Args:
        teacher: the teacher's n blocks and classifier.
        connected: for each stone i, the student's connected feature ``C_i(F_i^S)``, in the space of the teacher's
            feature after block i. Stone 0 enters before the first block: with the network's input, it is the teacher.
        beside: what the teacher's blocks take beside the features of this batch, ``teacher.beside(inputs)``; tensors
            ``(B, ...)``, or what repeats itself by ``repeated(times)``. Repeated for the stones.

    Returns:
        Logits ``(B, K)`` by stone, in the order of the stones.

    Raises:
        ValueError: there is no stone, or one that does not exist.
    """
    check_stones(list(connected), len(teacher), first=0)
    joined: list[int] = []
    sweep: Any = None
    with lean_backward(*(feature for feature in connected.values() if isinstance(feature, Tensor))):
        for i in range(len(teacher) + 1):
            if i > 0 and sweep is not None:
                sweep = teacher.blocks[i - 1](sweep, **_repeated(beside, len(joined)))
            if i in connected:
                joining: Any = connected[i]
                sweep = joining if sweep is None else torch.cat([sweep, joining])
                joined.append(i)
        logits: Tensor = teacher.classifier(sweep, **_repeated(beside, len(joined)))
    return dict(zip(joined, logits.chunk(len(joined)), strict=True))


def chosen_stones(stones: Stones, n: int) -> tuple[int, ...]:
    """The stones meant, in order: ``"all"`` of 1 … n, ``"last"`` (only ``N_n``), or those listed.

    Raises:
        ValueError: a stone outside 1 … n, twice the same, or a word that means nothing here.
    """
    if isinstance(stones, str):
        words = {"all": tuple(range(1, n + 1)), "last": (n,)}
        if stones not in words:
            raise ValueError(f"stones is {stones!r}, expected 'all', 'last' or a list of stones among 1 … {n}")
        return words[stones]
    if isinstance(stones, int):
        raise ValueError(f"stones is {stones}, expected a list of stones, such as [{stones}]")
    check_stones(stones, n, first=1)
    return tuple(sorted(stones))


def check_stones(stones: Sequence[int], n: int, first: int) -> None:
    """Raises ValueError unless all are different and lie within ``first`` … n."""
    wrong = [stone for stone in stones if not first <= stone <= n]
    if wrong or len(set(stones)) < len(stones):
        raise ValueError(
            f"stones is {list(stones)}, expected different stones among {first} … {n}: the networks have {n} blocks"
        )


def _repeated(beside: Mapping[str, Any], times: int) -> dict[str, Any]:
    return {
        name: torch.cat([value] * times) if isinstance(value, Tensor) else value.repeated(times)
        for name, value in beside.items()
    }
