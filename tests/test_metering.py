"""Means over an epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blockkd.metering import EpochMeans

numbers = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(numbers, numbers, st.integers(1, 9)), min_size=1, max_size=20))
def test_means_are_weighted_by_the_samples(rows: list[tuple[float, float, int]]) -> None:
    means = EpochMeans()
    for a, b, weight in rows:
        means.add(("a", "b"), torch.tensor([a, b]), weight)
    weights = sum(weight for _, _, weight in rows)
    found = means.means()
    assert float(found["a"]) == pytest.approx(sum(a * weight for a, _, weight in rows) / weights, abs=1e-3)
    assert float(found["b"]) == pytest.approx(sum(b * weight for _, b, weight in rows) / weights, abs=1e-3)


def test_a_value_that_begins_in_mid_epoch_is_the_mean_over_the_samples_that_had_it() -> None:
    means = EpochMeans()
    means.add(["loss"], torch.tensor([1.0]), 3)
    means.add(["loss", "cross"], torch.tensor([2.0, 5.0]), 1)
    means.add(["loss", "cross"], torch.tensor([2.0, 7.0]), 1)
    assert {name: float(mean) for name, mean in means.means().items()} == pytest.approx({"loss": 1.4, "cross": 6.0})


def test_what_was_added_is_not_changed_later() -> None:
    means, row = EpochMeans(), torch.tensor([1.0])
    means.add(["a"], row, 1)
    means.add(["a"], row, 1)
    assert row.tolist() == [1.0]


def test_processes_sum_up_what_they_saw() -> None:
    shares = [EpochMeans(), EpochMeans()]
    shares[0].add(["a"], torch.tensor([1.0]), 3)
    shares[1].add(["a"], torch.tensor([9.0]), 1)
    seen: list[Tensor] = []

    def of_both(own: Tensor) -> Tensor:
        seen.append(own)
        return torch.stack(seen).sum(dim=0)

    shares[0].means(of_both)
    assert float(shares[1].means(of_both)["a"]) == 3.0


def test_a_checkpoint_holds_what_was_summed_up() -> None:
    means, again = EpochMeans(), EpochMeans()
    means.add(["a"], torch.tensor([1.0]), 2)
    again.load_state_dict(means.state_dict())
    for share in (means, again):
        share.add(["a"], torch.tensor([4.0]), 1)
    assert again.means() == means.means() == {"a": torch.tensor(2.0)}


def test_cleared_it_has_nothing() -> None:
    means = EpochMeans()
    means.add(["a"], torch.tensor([1.0]), 2)
    means.clear()
    assert means.means() == {}
