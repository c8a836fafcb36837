"""The ladder of tasks on which methods are compared, from cheap to dear, and how one run on a rung goes.

A rung says what is trained on what, for how long, what is searched, and by which seeds. Hyperparameters are chosen by
held-out training images of the selection seeds; the test part is read by the final seeds, once, after training.
"""

import copy
import csv
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from blockkd import CrossEntropy, Distiller
from blockkd.baselines import FCFD
from blockkd.costs import step_flops
from blockkd.data import Digits, HubImages
from blockkd.data.augmentation import PadCropFlip
from blockkd.data.images import LabelledImages, Parts
from blockkd.data.pixels import PixelImages
from blockkd.data.resident import ResidentLoader
from blockkd.data.sampling import EpochSampler
from blockkd.models import ResNet, create_model
from blockkd.recording import record_teacher

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("BLOCKKD_DATA", Path(__file__).parents[2] / "shared" / "data"))
SCRATCH = Path(os.environ.get("BLOCKKD_SCRATCH", "runs")) / "ladder"
DRAWS = 12  # of FCFD's paths, over which its cost is averaged

Images = tuple[Tensor, Tensor]
Batches = Callable[[int], Iterator[tuple[Tensor, Tensor, Tensor]]]


@dataclass(frozen=True)
class Task:
    """One seed's task.

    Attributes:
        teacher: trained.
        student: a new one, by the present random state.
        batches: epoch → its batches: images, labels, the teacher's logits of them.
        held_out: training images that are not trained on, ``(N, C, H, W)``, and their labels.
        test: the test part.
    """

    teacher: nn.Module
    student: Callable[[], nn.Module]
    batches: Batches
    held_out: Images
    test: Images


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        task: seed → the task of this seed.
        epochs, batch: how long is trained, by which batch size.
        rates: the lowest and the highest learning rate of the search.
        trials: of the search, for each method the same number; 0: settings are those that were best on ``starts_like``.
        selection: seeds by which hyperparameters are chosen.
        finals: seeds by which methods are compared at equal epochs; none of them is among ``selection``.
        compute_finals: those at equal compute.
        longest: at equal compute no method trains more than so many times the epochs.
        mixed: whether steps run in bfloat16 where autocast lets them, with channels last.
        starts_like: the rung whose optima are where searches start; None: the field's settings.
    """

    task: Callable[[int], Task]
    epochs: int
    batch: int
    rates: tuple[float, float]
    trials: int
    selection: tuple[int, ...]
    finals: tuple[int, ...]
    compute_finals: tuple[int, ...]
    longest: int = 8
    mixed: bool = False
    starts_like: str | None = None


def digits(seed: int, images: int = 400) -> Task:
    """Few handwritten digits, a new choice of them and a new teacher for each seed; the test part stays the same."""
    data = Digits()
    data.setup("fit")
    parts = [data.parts.train, data.parts.val]
    x, y = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 + seed))
    train, rest = order[:images], order[images:]
    teacher = _digits_teacher(x[train], y[train], seed)
    with torch.no_grad():
        logits = teacher.eval()(x[train])
    return Task(
        teacher,
        lambda: ResNet(8, (4, 4, 8, 16), num_classes=10, in_channels=1),
        _shuffled(x[train], y[train], logits, 50, seed),
        (x[rest], y[rest]),
        (data.parts.test.images, data.parts.test.labels),
    )


def cifar100(
    seed: int, images: int | None, batch: int, held_out: float, student: str = "resnet8", views: int = 10
) -> Task:
    """CIFAR-100 and the published ResNet-56; the images are the same for all seeds, their order and the student not.

    Each image has ``views`` crops and mirrorings, drawn once for all; one after the other they serve the epochs, and
    the teacher's logits of them are recorded once for all runs.
    """
    parts = _cifar(images, held_out)
    train = parts.train
    assert isinstance(train, PixelImages)
    teacher = _resnet56()
    which_view = EpochSampler(len(train), seed=0)
    seen = PadCropFlip(train, which_view).on(torch.device("cpu"))
    assert seen is not None
    recorded = record_teacher(SCRATCH / f"resnet56_{images}_{held_out}", teacher, seen, num_classes=100)
    sampler = EpochSampler(len(train), seed)
    loader = ResidentLoader(seen, sampler, batch, torch.device("cpu"), drop_last=True, numbers=2)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        sampler.set_epoch(epoch)
        which_view.set_epoch(epoch % views)
        for x, y, indices, drawn in loader:
            x = x.contiguous(memory_format=torch.channels_last)
            yield x, y, recorded.lookup(indices, drawn, x, teacher)
        recorded.flush()

    return Task(teacher, lambda: create_model(student), batches, _whole(parts.val), _whole(parts.test))


FEW_IMAGES = Rung(
    lambda seed: cifar100(seed, images=5000, batch=32, held_out=0.04),
    epochs=12,
    batch=32,
    rates=(0.02, 0.4),
    trials=4,
    selection=(100,),
    finals=(0, 1, 2),
    compute_finals=(0, 1, 2),
    mixed=True,
)

RUNGS = {
    "digits": Rung(
        digits,
        epochs=30,
        batch=50,
        rates=(0.01, 0.4),
        trials=6,
        selection=(100,),
        finals=tuple(range(6)),
        compute_finals=tuple(range(5)),
        longest=4,
    ),
    "cifar100_2000": Rung(
        lambda seed: cifar100(seed, images=2000, batch=32, held_out=0.04),
        epochs=10,
        batch=32,
        rates=(0.02, 0.4),
        trials=4,
        selection=(100,),
        finals=(0, 1, 2),
        compute_finals=(0, 1, 2),
        mixed=True,
        starts_like="digits",
    ),
    "cifar100_5000": FEW_IMAGES,
    # Two on which nothing is searched: each method trains by what was best for it on cifar100_5000. Predicted, when
    # nothing but that rung was known: the same order, nearer together. At equal compute with ResNet-20, when one seed
    # was known at equal epochs: KD on standardized logits above all stones on them, and live not told from them.
    "cifar100_5000_resnet20": replace(  # a larger student
        FEW_IMAGES,
        task=lambda seed: cifar100(seed, images=5000, batch=32, held_out=0.04, student="resnet20"),
        trials=0,
        selection=(),
        starts_like="cifar100_5000",
    ),
    "cifar100_5000_long": replace(  # four times as long
        FEW_IMAGES, epochs=48, trials=0, selection=(), starts_like="cifar100_5000"
    ),
    "cifar100_50000": Rung(  # for a GPU, or a night of a CPU
        lambda seed: cifar100(seed, images=None, batch=64, held_out=0.1),
        epochs=30,
        batch=64,
        rates=(0.02, 0.4),
        trials=6,
        selection=(100,),
        finals=(0, 1, 2),
        compute_finals=(0, 1, 2),
        mixed=True,
    ),
}


def fit(distiller: Distiller, batches: Batches, epochs: int, rate: float, mixed: bool = False) -> None:
    """Train by SGD with Nesterov momentum, the rate annealed along a cosine; stops where the loss is not finite."""
    learned = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    distiller.train()
    for epoch in range(epochs):
        distiller.set_epoch(epoch)
        for x, y, logits in batches(epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                total = distiller(x, y, **recorded(distiller, logits)).total
            if not total.isfinite():
                return
            total.backward()
            optimizer.step()
        schedule.step()


def recorded(distiller: Distiller, logits: Tensor) -> dict[str, Tensor]:
    """The teacher's logits, for methods that take them."""
    return {"recorded": logits} if distiller.takes_recorded else {}


@torch.no_grad()
def accuracy(network: nn.Module, images: Images) -> float:
    """Percent."""
    x, y = images
    right = sum(int((network.eval()(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(y)


def image_flops(distiller: Distiller, task: Task, read_record: bool = True) -> float:
    """Floating-point operations of a training step for one image.

    Args:
        distiller: the method.
        task: what it is trained on.
        read_record: the teacher's logits are read where the method can; else the teacher runs.
    """
    x, y, logits = next(iter(task.batches(0)))
    draws = DRAWS if isinstance(distiller, FCFD) else 1
    total = 0
    for _ in range(draws):
        total += step_flops(distiller, x, y, **(recorded(distiller, logits) if read_record else {}))
        if isinstance(distiller, FCFD):
            distiller.draw_paths()
    return total / draws / len(x)


def student_of(task: Task, seed: int, mixed: bool) -> tuple[nn.Module, nn.Module]:
    """A copy of the teacher, which methods may change, and the student that all methods of this seed start from."""
    torch.manual_seed(seed)
    teacher, student = copy.deepcopy(task.teacher), task.student()
    if mixed:
        for network in (teacher, student):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(seed)  # whatever the student has drawn: connectors of equal shape start equal
    return teacher, student


def rows_of(path: Path) -> list[dict[str, str]]:
    """What was measured so far."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, row: Mapping[str, object]) -> dict[str, str]:
    """One run, on disk at once, so that whoever goes on does not repeat it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return {name: str(value) for name, value in row.items()}


def versions() -> str:
    """What a row was measured with."""
    return f"torch {torch.__version__.partition('+')[0]}"


def _digits_teacher(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """Trained once, and kept for the other scripts."""
    torch.manual_seed(seed)
    teacher = ResNet(20, (16, 16, 32, 64), num_classes=10, in_channels=1)
    file = SCRATCH / f"digits_{len(x)}" / f"teacher_{seed}.safetensors"
    if not file.is_file():
        fit(CrossEntropy(None, teacher), _shuffled(x, y, torch.zeros(len(x), 10), 50, seed), epochs=40, rate=0.05)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_model(teacher, file)
    load_model(teacher, file)
    return teacher


def _shuffled(x: Tensor, y: Tensor, logits: Tensor, batch: int, seed: int) -> Batches:
    sampler = EpochSampler(len(x), seed)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        sampler.set_epoch(epoch)
        for rows in sampler.order().split(batch):
            yield x[rows], y[rows], logits[rows]

    return batches


@lru_cache(maxsize=1)
def _cifar(images: int | None, held_out: float) -> Parts:
    return HubImages(str(DATA / "cifar100"), val_share=held_out, train_images=images).parts


@lru_cache(maxsize=1)
def _resnet56() -> nn.Module:
    teacher = create_model("resnet56", weights=DATA / "teachers" / "cifar100_resnet56.pt")
    return teacher.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _whole(images: LabelledImages) -> Images:
    assert isinstance(images, PixelImages)
    return images.normalise(images.images), images.labels
