"""Every shipped recipe parses, and its method takes a step on its pair's networks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockkd import blockwise
from blockkd.blocks import Blocks
from blockkd.commands.checks import build_method
from blockkd.commands.composing import recipe_names
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe, TeachRecipe
from blockkd.data import Digits, LabelledImages
from blockkd.data.images import Parts

SIDES = {"cifar100": 32, "cifar100_small": 32, "imagenet": 64}
CLASSES = 20


class Noise(Digits):
    """Four images of noise, of the side that a task has."""

    num_classes = CLASSES

    def __init__(self, side: int) -> None:
        super().__init__(batch_size=4)
        self.side = side

    def load(self) -> Parts:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, self.side, self.side, generator=generator)
        part = LabelledImages(images, torch.tensor([3, 0, 19, 3]))
        return Parts(part, part, part)


def pairs() -> dict[str, list[str]]:
    names = [name for name in recipe_names() if name.count("/") == 2]
    found = {name.rpartition("/")[0] for name in names}
    return {pair: [name for name in names if name.startswith(f"{pair}/")] for pair in found}


@pytest.fixture
def cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods get the same blocks of the same networks: to cut takes longer than a step."""
    made: dict[Any, tuple[Blocks, Blocks]] = {}
    cut = blockwise._matching_blocks

    def once(teacher: nn.Module, student: nn.Module, example: Tensor, *wishes: Any) -> tuple[Blocks, Blocks]:
        key = (id(teacher), id(student), repr(wishes))
        if key not in made:
            made[key] = cut(teacher, student, example, *wishes)
        return made[key]

    monkeypatch.setattr(blockwise, "_matching_blocks", once)


@pytest.mark.usefixtures("cut_once")
@pytest.mark.parametrize("pair", sorted(pairs()))
def test_every_method_of_a_pair_takes_a_step(pair: str) -> None:
    parser = recipe_parser("distill", DistillRecipe, "")
    data = Noise(SIDES[pair.partition("/")[0]])
    images, labels = data.example(4), data.parts.train.labels
    networks: tuple[nn.Module, nn.Module] | None = None
    for name in pairs()[pair]:
        built = parser.instantiate(parse(parser, [f"--config={name}"]))
        if networks is None:
            torch.manual_seed(0)
            built["teacher"].network.num_classes = built["student"].num_classes = CLASSES
            networks = built["teacher"].network(), built["student"]()
        distiller = build_method(built["method"], name, *networks, data)
        distiller.set_epoch(built["epochs"] - 1)
        before = {key: value.clone() for key, value in networks[0].state_dict().items()}
        learners = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
        optimizer = built["optimizer"](learners)
        if built["scheduler"] is not None:
            built["scheduler"](optimizer)
        context = {"indices": torch.arange(4)} if distiller.needs_indices else {}
        losses = distiller(images, labels, **context)
        assert all(torch.isfinite(term) for term in losses.terms.values()), name
        optimizer.zero_grad()
        losses.total.backward()
        first = next(parameter for parameter in networks[1].parameters() if parameter.requires_grad)
        assert first.grad is not None, name
        assert first.grad.abs().sum() > 0, name
        torch.optim.SGD(learners, lr=1e-6).step()  # so that the next method does not start from a wreck
        assert all(torch.equal(value, before[key]) for key, value in networks[0].state_dict().items()), name


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("/teacher")])
def test_teachers_parse(name: str) -> None:
    parser = recipe_parser("teach", TeachRecipe, "")
    built = parser.instantiate(parse(parser, [f"--config={name}"]))
    assert built["teacher"].epochs > 0
