"""What the processes of test_ranks do: every method, in several processes and in one."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from blockkd import BlockKD, baselines
from blockkd.baselines.multilevel import MultiLevel
from blockkd.costs import step_flops
from blockkd.data.augmentation import PadCropFlip
from blockkd.data.images import ImageData, LabelledImages, Parts, finite_views
from blockkd.data.pixels import PixelImages, RawImages
from blockkd.data.sampling import EpochSampler
from blockkd.distances import DIST, DKD, KL, LogitDistance, SquaredError
from blockkd.distiller import Distiller
from blockkd.divergence import DivergedError
from blockkd.features import Feature
from blockkd.ranks import across_ranks, gathered
from blockkd.recording import record_teacher
from blockkd.training import DistillationModule
from tests.networks import IMAGE, Plain

Make = Callable[[nn.Module, nn.Module, Tensor], Distiller]

BATCH, STEPS, SAMPLES, CLASSES = 8, 3, 24, 5
IMAGES = 48  # to train on under Lightning
DISTANCES: dict[str, LogitDistance] = {
    "KL": KL(),
    "KL standardized": KL(standardized=True),
    "DKD": DKD(),
    "DIST": DIST(),
    "DIST standardized": DIST(standardized=True),
    "squared error": SquaredError(),
    "multi-level": MultiLevel(),
}


def method(kind: type[Distiller], **options: Any) -> Make:
    def make(teacher: nn.Module, student: nn.Module, example: Tensor) -> Distiller:
        takes_example = not issubclass(kind, baselines.KD | baselines.CrossEntropy)
        return kind(teacher, student, **({"example": example} if takes_example else {}), **options)

    return make


METHODS: dict[str, Make] = {
    "CrossEntropy": method(baselines.CrossEntropy, label_smoothing=0.1),
    "DecoupledKD": method(baselines.DecoupledKD, warmup_epochs=2),
    "MLKD": method(baselines.MLKD),
    "BlockKD, all stones": method(BlockKD),
    "BlockKD, last stone": method(BlockKD, stones="last"),
    "BlockKD, L_cross": method(BlockKD, gamma=0.9, cross_from_epoch=1),
    "BlockKD, L_cross, learning ensemble": method(BlockKD, gamma=0.9, detach_ensemble=False),
    **{f"BlockKD, {name}": method(BlockKD, distance=distance, gamma=0.5) for name, distance in DISTANCES.items()},
    **{f"KD, {name}": method(baselines.KD, distance=distance) for name, distance in DISTANCES.items()},
    **{
        f"FeatureAlignment, {way}": method(baselines.FeatureAlignment, way=way)
        for way in ("two_projections", "one_mapping", "consolidated", "implicit")
    },
    "CRD, memory": method(baselines.CRD, n_samples=IMAGES, negatives=6, dim=7),
    "CRD, queue": method(baselines.CRD, queue_size=11, negatives=6, dim=7),
    "CRD, queue shorter than a batch": method(baselines.CRD, queue_size=5, negatives=6, dim=7),
    "FCFD": method(baselines.FCFD),
    **{
        name: method(getattr(baselines, name))
        for name in ("AT", "CATKD", "FitNet", "NST", "OFD", "PKT", "RKD", "ReviewKD", "SP", "SimKD", "VID")
    },
}


class Bare(nn.Module):
    """Three stages without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 3, 4, 5)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(sizes[i], sizes[i + 1], 3, 1 if i == 0 else 2, 1), nn.ReLU()) for i in range(3)
        )
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def without_batch_norm(kind: type[Distiller], **options: Any) -> Make:
    """The method with a student that has no batch norm."""

    def make(teacher: nn.Module, student: nn.Module, example: Tensor) -> Distiller:
        del student
        return method(kind, **options)(teacher, Bare().double(), example)

    return make


def bare_connector(student: Feature, teacher: Feature) -> nn.Module:
    return nn.Conv2d(student.channels, teacher.channels, 1)


# Means over samples of a student and connectors without batch norm.
ACCUMULATING: dict[str, Make] = {
    "CrossEntropy": without_batch_norm(baselines.CrossEntropy),
    "DecoupledKD": without_batch_norm(baselines.DecoupledKD),
    **{
        f"KD, {name}": without_batch_norm(baselines.KD, distance=distance)
        for name, distance in DISTANCES.items()
        if not name.startswith(("DIST", "multi-level"))
    },
    "BlockKD": without_batch_norm(BlockKD, gamma=0.5, make_connector=bare_connector),
    "FitNet": without_batch_norm(baselines.FitNet, make_connector=bare_connector),
    **{
        f"FeatureAlignment, {way}": without_batch_norm(
            baselines.FeatureAlignment, way=way, make_connector=bare_connector
        )
        for way in ("two_projections", "one_mapping", "consolidated", "implicit")
    },
    **{name: without_batch_norm(getattr(baselines, name)) for name in ("AT", "CATKD", "NST", "VID")},
}
# Losses that compare samples with each other, or hang on what was seen before.
NOT_ACCUMULATING: dict[str, Make] = {
    **{name: without_batch_norm(baselines.KD, distance=DISTANCES[name]) for name in ("DIST", "multi-level")},
    **{name: without_batch_norm(getattr(baselines, name)) for name in ("SP", "PKT", "RKD")},
    "CRD": without_batch_norm(baselines.CRD, n_samples=IMAGES, negatives=6, dim=7),
}


def accumulation_apart(make: Make) -> float:
    """The gradient of two halves of a batch, averaged, against that of the whole."""
    images, labels, indices = batches()[0]
    results = []
    for parts in (1, 2):
        distiller = built(make, seed=3)
        torch.manual_seed(7)
        for rows in torch.arange(BATCH).chunk(parts):
            context = {"indices": indices[rows]} if distiller.needs_indices else {}
            (distiller(images[rows], labels[rows], **context).total / parts).backward()
        results.append({n: p.grad.clone() for n, p in distiller.named_parameters() if p.grad is not None})
    return deviation(results[1], results[0])


def networks() -> tuple[Plain, Plain]:
    """A teacher whose running statistics are not those of its start, and a student."""
    torch.manual_seed(0)
    teacher, student = Plain((6, 8, 12), CLASSES).double(), Plain((3, 4, 5), CLASSES).double()
    with torch.no_grad():
        for _ in range(5):
            teacher(2 * torch.randn(16, *IMAGE).double() + 1)
    return teacher, student


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and indices of every step, of all ranks together."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, *IMAGE, generator=generator).double()
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    order = torch.randperm(SAMPLES, generator=generator)
    return [(images[part], labels[part], part) for part in order.split(BATCH)[:STEPS]]


def built(make: Make, seed: int) -> Distiller:
    """The method on fresh networks; what else it holds is drawn from ``seed``."""
    teacher, student = networks()
    torch.manual_seed(seed)
    return make(teacher, student, batches()[0][0][:2]).double()


def trained(distiller: Distiller, compute: nn.Module, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Three steps of SGD on this rank's rows; what comes out, with the losses of every step."""
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    torch.manual_seed(7)
    losses = []
    for step, (images, labels, indices) in enumerate(batches()):
        distiller.set_epoch(step)
        context = {"indices": indices[rank::ranks]} if distiller.needs_indices else {}
        result = compute(images[rank::ranks], labels[rank::ranks], **context)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        losses.append(torch.stack(list(result.terms.values())).detach())
    state = {name: value.clone() for name, value in distiller.state_dict().items()}
    gradients = {f"gradient of {n}": p.grad.clone() for n, p in distiller.named_parameters() if p.grad is not None}
    return state | gradients | {f"losses of step {step}": values for step, values in enumerate(losses)}


def in_one_process() -> dict[str, dict[str, Tensor]]:
    """What every method gives in a single process."""
    results = {}
    for name, make in METHODS.items():
        distiller = built(make, seed=3)
        results[name] = trained(distiller, distiller)
    return results


def deviation(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, as a share of that tensor's largest entry."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    found = 0.0
    for name, value in theirs.items():
        assert value.isfinite().all(), name
        size = float(value.double().abs().max()) if value.numel() else 0.0
        apart = float((ours[name].double() - value.double()).abs().max()) if value.numel() else 0.0
        found = max(found, apart / max(size, 1e-3))
    return found


def join(rank: int, ranks: int, folder: Path) -> None:
    """Become one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store_{ranks}", rank=rank, world_size=ranks)


def batch_norm_apart(rank: int, ranks: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Batch norm over all ranks' rows minus that of all rows: values, gradients, running statistics."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(3 * ranks, 4, 5, generator=generator).mul(3).add(100).to(dtype)
    asked = torch.randn(3 * ranks, 4, 5, generator=generator).to(dtype)  # so the losses of ranks are different ones
    results = []
    for x, gradient, across in ((rows, asked, False), (rows[rank::ranks], asked[rank::ranks], True)):
        norm, x = nn.BatchNorm1d(4, momentum=0.3).to(dtype), x.clone().requires_grad_()
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        with across_ranks(across):
            y = norm(x)
        y.backward(gradient)
        assert x.grad is not None
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
        found = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
        results.append(found | {name: buffer for name, buffer in norm.named_buffers() if "running" in name})
    whole, own = results
    for name in ("weight", "bias"):
        dist.all_reduce(own[name])
    rows_of = {"y", "x"}
    return {n: own[n] - (value[rank::ranks] if n in rows_of else value) for n, value in whole.items()}


def gathered_apart(rank: int, ranks: int) -> dict[str, Tensor]:
    """``gathered`` minus the rows in the one process's order; its gradient minus that of the sum of all losses."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(2 * ranks, 3, generator=generator).double()
    weights = torch.randn(ranks, 2 * ranks, 3, generator=generator).double()  # every rank has a loss of its own
    own = rows[rank::ranks].clone().requires_grad_()
    with across_ranks():
        of_all = gathered(own)
    (of_all.square() * weights[rank]).sum().backward()
    assert own.grad is not None
    return {"rows": of_all.detach() - rows, "gradient": own.grad - (2 * rows * weights.sum(0))[rank::ranks]}


def one_rank_by_itself(rank: int) -> None:
    """The first rank evaluates, computes a loss and counts what a step costs; nobody else takes part."""
    if rank == 0:
        distiller = built(METHODS["KD, DIST"], seed=3)
        images, labels, _ = batches()[0]
        with torch.no_grad():
            distiller.eval()(images, labels)
        DIST()(distiller.student(images), distiller.teacher_logits(images), labels)
        step_flops(distiller, images, labels)


def every_method(rank: int, ranks: int, folder: Path) -> None:
    """Train every method as one of several processes; writes how far all is from what one process gives."""
    join(rank, ranks, folder)
    one_rank_by_itself(rank)
    laws = {f"batch norm: {name}": value for name, value in batch_norm_apart(rank, ranks).items()}
    laws |= {f"gathered: {name}": value for name, value in gathered_apart(rank, ranks).items()}
    torch.save({name: float(value.abs().max()) for name, value in laws.items()}, folder / f"laws_{ranks}_{rank}.pt")
    expected = torch.load(folder / "one_process.pt", weights_only=True)
    apart = {}
    for name, make in METHODS.items():
        distiller = built(make, seed=3 + rank)  # the first rank's counts
        wrapped = DistributedDataParallel(distiller, find_unused_parameters=distiller.leaves_unused)
        found = trained(distiller, wrapped, rank, ranks)
        for step in range(STEPS):  # a loss is the mean over the ranks
            dist.all_reduce(found[f"losses of step {step}"].div_(ranks))
        apart[name] = deviation(found, expected[name])
    torch.save(apart, folder / f"apart_{ranks}_{rank}.pt")
    dist.destroy_process_group()


class Noise(ImageData):
    """Random bytes, padded, cropped and flipped; 31 images to evaluate, which no number of ranks shares evenly.

    Args:
        batch_size: of each process.
        bad: a training image that is no number.
    """

    num_classes = CLASSES

    def __init__(self, batch_size: int, bad: int | None = None) -> None:
        super().__init__(batch_size, eval_batch_size=5)
        self.bad = bad

    def load(self) -> Parts:
        generator = torch.Generator().manual_seed(5)

        def part(size: int) -> PixelImages:
            pixels = torch.randint(256, (size, *IMAGE), generator=generator, dtype=torch.uint8)
            labels = torch.randint(CLASSES, (size,), generator=generator)
            return PixelImages(pixels, labels, (0.5,) * 3, (0.3,) * 3)

        return Parts(part(IMAGES), part(31), part(16))

    def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
        train = self.parts.train
        assert isinstance(train, RawImages)
        if self.bad is None:
            return PadCropFlip(train, sampler)
        images = torch.stack([train[i][0] for i in range(len(train))])
        images[self.bad] = torch.nan
        return LabelledImages(images, train.labels)


def under_lightning(
    make: Make,
    folder: Path,
    ranks: int = 1,
    batch: int = 16,
    record: str | None = None,
    bad: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Two epochs by the project's own module and data, ``batch`` images in all ranks: weights, and what was logged."""
    data = Noise(batch // ranks, bad)
    data.order_seed, data.numbers_views = 3, record is not None
    distiller = built(make, seed=3)
    recorded = None
    if record is not None:
        views = finite_views(data.training_images(EpochSampler(len(data.parts.train), 0)))
        assert distiller.teacher is not None
        recorded = record_teacher(folder / record, distiller.teacher, views, CLASSES)
    module = DistillationModule(distiller, partial(torch.optim.SGD, lr=0.01, momentum=0.9), recorded=recorded)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier test; several processes would begin with that seed
    torch.manual_seed(7)
    trainer.fit(module, datamodule=data)
    logged = {f"logged {name}": value for name, value in trainer.callback_metrics.items()}
    return {name: value.clone() for name, value in distiller.state_dict().items()} | logged


# Methods that take part in other ways: labels and logits, a memory by index, parameters that a step leaves unused.
LIGHTNING = ("KD, DIST", "BlockKD, L_cross", "CRD, memory", "FCFD")


def with_lightning(folder: Path, ranks: int = 1) -> dict[str, dict[str, Tensor]]:
    """What those methods give, KD with accumulated gradients, and Block-KD with a recorded teacher."""
    results = {name: under_lightning(METHODS[name], folder, ranks) for name in LIGHTNING}
    # Two batches of half the size for each step of several processes.
    accumulated: dict[str, Any] = {"batch": 8, "accumulate_grad_batches": 2} if ranks > 1 else {}
    results["accumulated"] = under_lightning(without_batch_norm(baselines.KD), folder, ranks, **accumulated)
    results["recorded"] = under_lightning(METHODS["BlockKD, last stone"], folder, ranks, record=f"table_{ranks}")
    return results


def as_lightning_rank(rank: int, ranks: int, folder: Path, port: int) -> None:
    """Be one of the processes that Lightning's Trainer would start."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    expected = torch.load(folder / "lightning_one_process.pt", weights_only=True)
    found = with_lightning(folder, ranks)
    apart = {}
    for name, values in expected.items():
        for logged in (False, True):
            parts = (
                {key: value for key, value in result.items() if key.startswith("logged") == logged}
                for result in (found[name], values)
            )
            apart[f"{name}, logged" if logged else name] = deviation(*parts)
    torch.save(apart, folder / f"lightning_apart_{ranks}_{rank}.pt")
    said = []
    try:
        under_lightning(METHODS["KD, KL"], folder, ranks, bad=7)
    except DivergedError as error:
        said.append(str(error))
    try:
        under_lightning(METHODS["KD, KL"], folder, ranks, callbacks=[FailsInOneProcess(rank)])
    except (RuntimeError, ValueError) as error:
        said.append(f"{type(error).__name__}: {error}")
    (folder / f"said_{ranks}_{rank}.json").write_text(json.dumps(said))


class FailsInOneProcess(Callback):
    """An error that the others know nothing of."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module, batch
        if self.rank == 1 and batch_idx == 1:
            raise ValueError("this process alone")


class Small(Plain):
    """A student for the digits, without dropout, which no two processes share."""

    def __init__(self) -> None:
        super().__init__((4, 8, 8), classes=10, channels=1)


class FailsInTheSecond(Small):
    """What one process alone cannot do, while the other waits for it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 16 and os.environ.get("LOCAL_RANK") == "1":
            raise MemoryError("this process alone")
        return super().forward(x)
