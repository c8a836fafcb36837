"""Means over an epoch, summed up where the values are computed and read once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Sums = list[tuple[tuple[str, ...], Float[Tensor, " V"], int]]


class EpochMeans:
    """Weighted means of named scalars; adding to them never waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # values that come together are summed together

    def add(self, names: Sequence[str], values: Float[Tensor, " V"], weight: int) -> None:
        """Count these values ``weight`` times, as the means over so many samples.

        Args:
            names: one for each value.
            values: ``(V,)``.
            weight: how many samples they are the means of.
        """
        key = tuple(names)
        if key in self._sums:
            total, weights = self._sums[key]
            total = total.to(values.device)  # of a checkpoint it lies in the machine's memory
            self._sums[key] = total.add_(values, alpha=weight), weights + weight
        else:
            self._sums[key] = values * weight, weight

    def means(self, over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, Float[Tensor, ""]]:
        """The mean of each value since ``clear``, over the samples that had it, on the values' device.

        Args:
            over_ranks: sums up a tensor over all processes that share the samples.
        """
        found: dict[str, tuple[Tensor, int]] = {}
        for names, (totals, weight) in self._sums.items():
            for name, total in zip(names, totals, strict=True):
                before, weights = found.get(name, (torch.zeros_like(total), 0))
                found[name] = before + total, weights + weight
        if not found:
            return {}
        sums = torch.stack([total for total, _ in found.values()])
        weights_of_all = torch.tensor([float(weight) for _, weight in found.values()]).to(sums)
        sums, weights_of_all = over_ranks(torch.stack([sums, weights_of_all]))
        return dict(zip(found, sums / weights_of_all, strict=True))

    def sums(self) -> Sums:
        """What is summed up, where it lies: names, sums ``(V,)`` of values times weights, and the sum of weights.

        The next ``add`` changes the tensors.
        """
        return [(names, totals, weight) for names, (totals, weight) in self._sums.items()]

    def clear(self) -> None:
        """Begin anew."""
        self._sums.clear()

    def state_dict(self) -> dict[str, Any]:
        """What is summed up, for a checkpoint within an epoch."""
        return {"sums": [[list(names), total, weight] for names, (total, weight) in self._sums.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums = {tuple(names): (total.clone(), weight) for names, total, weight in state["sums"]}
