"""What holds for every method: its options are known by name, and what it needs of teacher and data is what it says."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import blockkd.baselines
from blockkd.block_kd import BlockKD
from blockkd.distiller import Distiller
from blockkd.folding import fold_batch_norm
from blockkd.models import create_model

METHODS: dict[str, type[Distiller]] = {
    "BlockKD": BlockKD,
    **{name: getattr(blockkd.baselines, name) for name in blockkd.baselines.__all__},
}
NEEDED: dict[str, dict[str, Any]] = {"CRD": {"n_samples": 9, "negatives": 6}}
CUTTING = {"teacher_blocks": "[a, b]", "student_blocks": "[a, b]", "n_blocks": "2"}
MIXING = {"beta": "2.5", "alpha": "0.5", "logit_weight": "0.25", "distance": "blockkd.distances.DKD"}
HEADS = {"teacher_head": "fc", "student_head": "fc"}
INHERITED: dict[str, dict[str, str]] = {
    **{name: MIXING | CUTTING | {"stages": "[1, 2]"} for name in ("FitNet", "AT", "VID", "SP", "NST", "OFD")},
    **dict.fromkeys(("PKT", "RKD", "CRD"), MIXING | HEADS),
    **dict.fromkeys(("FCFD", "FeatureAlignment", "BlockKD"), CUTTING),
    "ReviewKD": MIXING | CUTTING,
    "CATKD": MIXING,
}


@pytest.mark.parametrize("name", INHERITED)
def test_options_of_the_bases_are_options_of_the_method(name: str) -> None:
    """By name, with their help: jsonargparse reads them from ``**shared`` and the call of the base's ``__init__``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Callable[[nn.Module, nn.Module], Distiller])
    method = METHODS[name]
    argv = [f"--method={method.__module__}.{method.__qualname__}"]
    argv += [f"--method.{option}={value}" for option, value in INHERITED[name].items()]
    settings = parser.parse_args(argv).method.init_args
    assert set(INHERITED[name]) <= set(settings.as_dict())
    with pytest.raises(Exception, match="no_such_option"):
        parser.parse_args([argv[0], "--method.no_such_option=1"])


def step(method: type[Distiller], teacher: nn.Module, student: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)  # connectors, memory, paths and negatives alike
    x, y = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 3, 4, 1])
    known = inspect.signature(method).parameters
    options = NEEDED.get(method.__name__, {}) | ({"example": x} if "example" in known else {})
    distiller = method(teacher, student, **options).train()
    context = {"indices": torch.arange(len(x))} if distiller.needs_indices else {}
    return distiller(x, y, **context).total.detach()


@pytest.fixture(scope="module")
def teachers() -> tuple[nn.Module, nn.Module]:
    """A network whose running statistics are not those of its start, and the same with its batch norms folded away."""
    torch.manual_seed(0)
    teacher = create_model("resnet8", num_classes=5).double()
    with torch.no_grad():
        for _ in range(5):
            teacher(2 * torch.randn(16, 3, 32, 32).double() + 1)
    folded = fold_batch_norm(teacher, torch.randn(2, 3, 32, 32).double())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    return teacher.eval(), folded


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_reads_no_batch_norm_teaches_the_same_without(
    name: str, teachers: tuple[nn.Module, nn.Module]
) -> None:
    torch.manual_seed(1)
    student = create_model("resnet8", num_classes=5).double()
    losses = [step(METHODS[name], copy.deepcopy(teacher), copy.deepcopy(student)) for teacher in teachers]
    assert METHODS[name].reads_batch_norm != torch.allclose(losses[0], losses[1], rtol=1e-9)


def test_only_the_memory_of_every_sample_needs_to_know_which_they_are() -> None:
    teacher, student = nn.Linear(6, 5), nn.Linear(6, 5)
    crd = blockkd.baselines.CRD
    assert crd(teacher, student, n_samples=9).needs_indices
    assert not crd(teacher, student, queue_size=9).needs_indices
    assert not crd(teacher, student, n_samples=9, beta=0.0).needs_indices
    assert not blockkd.baselines.PKT(teacher, student).needs_indices
