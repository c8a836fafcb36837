"""What the processes of test_ranks do: every method, in several processes and in one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from blockkd import BlockKD, baselines
from blockkd.baselines.multilevel import MultiLevel
from blockkd.distiller import Distiller
from blockkd.objectives import DIST, DKD, KL, LogitDistance, SquaredError
from tests.networks import IMAGE, Plain

Make = Callable[[nn.Module, nn.Module, Tensor], Distiller]

BATCH, STEPS, SAMPLES, CLASSES = 8, 3, 24, 5
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
    "CRD, memory": method(baselines.CRD, n_samples=SAMPLES, negatives=6, dim=7),
    "CRD, queue": method(baselines.CRD, queue_size=11, negatives=6, dim=7),
    "CRD, queue shorter than a batch": method(baselines.CRD, queue_size=5, negatives=6, dim=7),
    "FCFD": method(baselines.FCFD),
    **{
        name: method(getattr(baselines, name))
        for name in ("AT", "CATKD", "FitNet", "NST", "OFD", "PKT", "RKD", "ReviewKD", "SP", "SimKD", "VID")
    },
}


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


def every_method(rank: int, ranks: int, folder: Path) -> None:
    """Train every method as one of several processes; the first writes how far the result is from one process's."""
    join(rank, ranks, folder)
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
