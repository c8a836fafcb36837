"""What a device gains from gives the same results."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from blockkd.devices import best_compile, fused, has_room, is_gated

CPU = torch.device("cpu")


def test_compiled_steps() -> None:
    # Without conftest.py, whose checks of shapes no compiler can follow.
    options = ["--noconftest", "-n0", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(Path(__file__).parent / "compiling.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("make", [partial(SGD, lr=0.1, momentum=0.9), partial(AdamW, lr=1e-3, weight_decay=0.1)])
def test_a_fused_optimizer_takes_the_same_steps(make: Callable[..., Optimizer]) -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(5, 4), nn.Linear(5, 4)
    two.load_state_dict(one.state_dict())
    plain = make([{"params": [one.weight]}, {"params": [one.bias], "weight_decay": 0.0}])
    quick = fused(make([{"params": [two.weight]}, {"params": [two.bias], "weight_decay": 0.0}]), "cpu")
    assert type(quick) is type(plain)
    assert is_gated(quick)
    assert not is_gated(plain)
    for _ in range(5):
        inputs = torch.randn(7, 5)
        for network, optimizer in ((one, plain), (two, quick)):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(two.weight, one.weight)
    torch.testing.assert_close(two.bias, one.bias)
    assert quick.param_groups[1]["weight_decay"] == 0.0


def test_an_optimizer_stays_as_it_is_where_fusing_was_refused_or_is_not_known() -> None:
    parameters = [nn.Parameter(torch.zeros(3))]
    for optimizer in (
        SGD(parameters, lr=0.1, fused=False),
        SGD(parameters, lr=0.1, foreach=True),
        torch.optim.RMSprop(parameters, lr=0.1),
    ):
        assert fused(optimizer, "cpu") is optimizer
    assert fused(SGD(parameters, lr=0.1)) is not None  # on the CPU nothing is fused by itself
    assert not is_gated(fused(SGD(parameters, lr=0.1)))


def test_the_cpu_has_room_and_compiles_nothing_by_itself() -> None:
    assert has_room(2**60, CPU)
    assert best_compile(CPU, 10**9) == "off"
    assert best_compile(torch.device("cuda"), 10**9) == "reduce-overhead"
    assert best_compile(torch.device("cuda"), 100) == "off"
