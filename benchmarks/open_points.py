"""The open points of Block-KD, measured on a cheap task.

    python benchmarks/open_points.py            # writes benchmarks/results/open_points.csv, prints the table

Digits with 400 training images; accuracy is measured at the last epoch on the 857 images that are neither among these
nor in the test set. Every variant gets the same three learning rates and seeds; the table shows each at the rate that
is best in the mean over the seeds.
"""

import argparse
import copy
import csv
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from blockkd import KD, BlockKD, CrossEntropy, Distiller, connector
from blockkd.data import Digits
from blockkd.distiller import Losses
from blockkd.features import Feature
from blockkd.models import ResNet

EPOCHS, BATCH, TRAIN = 40, 50, 400
RATES = (0.02, 0.05, 0.15)
RESULTS = Path(__file__).parent / "results" / "open_points.csv"


def ends_in_relu(student: Feature, teacher: Feature) -> nn.Module:
    return nn.Sequential(connector(student, teacher), nn.ReLU())


def block(**options: object) -> Callable[[nn.Module, nn.Module, Tensor], Distiller]:
    return lambda teacher, student, x: BlockKD(teacher, student, x, **options)  # type: ignore[arg-type]


VARIANTS: dict[str, Callable[[nn.Module, nn.Module, Tensor], Distiller]] = {
    "CE": lambda _, student, __: CrossEntropy(None, student),
    "KD 0.1/0.9": lambda teacher, student, _: KD(teacher, student),
    "KD 1/1": lambda teacher, student, _: KD(teacher, student, alpha=1.0, beta=1.0),
    "N_n 1/1/0": block(stones="last", gamma=0.0),
    "N_n 0.1/0.9/0": block(stones="last", alpha=0.1, beta=0.9, gamma=0.0),
    "all 1/1/0": block(gamma=0.0),
    "all 0.1/0.9/0": block(alpha=0.1, beta=0.9, gamma=0.0),
    "all 0.1/0.9/0.9": block(alpha=0.1, beta=0.9, gamma=0.9),
    "all 0.1/0.9/0.9 not detached": block(alpha=0.1, beta=0.9, gamma=0.9, detach_ensemble=False),
    "all 0.1/0.9/0.9 cross unweighted": block(alpha=0.1, beta=0.9, gamma=0.9),
    "all 0.1/0.9/0.9 cross late": block(alpha=0.1, beta=0.9, gamma=0.9, cross_from_epoch=EPOCHS * 200 // 240),
    "all 0.1/0.9/0 connector ends in ReLU": block(alpha=0.1, beta=0.9, gamma=0.0, make_connector=ends_in_relu),
}


def total(losses: Losses, distiller: Distiller, unweighted: bool) -> Tensor:
    """The loss; with ``unweighted``, L_cross without the stone weights w_i."""
    if not unweighted or not isinstance(distiller, BlockKD):
        return losses.total
    weights = distiller.stone_weights.items()
    extra = [losses.terms[f"cross/stone_{i}"] * (1 / weight - 1) for i, weight in weights if weight < 1]
    return losses.total + torch.stack(extra).sum()


def fit(distiller: Distiller, x: Tensor, y: Tensor, rate: float, seed: int, unweighted: bool = False) -> None:
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(distiller.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    distiller.train()
    for epoch in range(EPOCHS):
        distiller.set_epoch(epoch)
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            optimizer.zero_grad()
            total(distiller(x[batch], y[batch]), distiller, unweighted).backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * (network.eval()(x).argmax(1) == y).float().mean().item()


def held_out(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = Digits()
    data.setup("fit")
    parts = [data.parts.train, data.parts.val]
    x, y = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 + seed))
    return x[order[:TRAIN]], y[order[:TRAIN]], x[order[TRAIN:]], y[order[TRAIN:]]


def one_seed(seed: int) -> list[dict[str, object]]:
    x, y, other_x, other_y = held_out(seed)
    torch.manual_seed(seed)
    teacher = ResNet(20, (16, 16, 32, 64), num_classes=10, in_channels=1)
    student = ResNet(8, (4, 4, 8, 16), num_classes=10, in_channels=1)
    fit(CrossEntropy(None, teacher), x, y, 0.05, seed)
    rows: list[dict[str, object]] = [row("teacher", 0.05, seed, accuracy(teacher, other_x, other_y), 0.0)]
    for name, make in VARIANTS.items():
        for rate in RATES:
            torch.manual_seed(seed)  # equal connectors
            learner = copy.deepcopy(student)
            start = time.perf_counter()
            fit(make(teacher, learner, x[:2]), x, y, rate, seed, unweighted="unweighted" in name)
            seconds = time.perf_counter() - start
            rows.append(row(name, rate, seed, accuracy(learner, other_x, other_y), seconds))
            print(rows[-1], flush=True)
    return rows


def row(variant: str, rate: float, seed: int, score: float, seconds: float) -> dict[str, object]:
    return {"variant": variant, "rate": rate, "seed": seed, "accuracy": round(score, 2), "seconds": round(seconds, 2)}


def table(rows: list[dict[str, str]]) -> str:
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in rows:
        scores[line["variant"]][line["rate"]].append(float(line["accuracy"]))
    text = ["| variant (α/β/γ) | best rate | accuracy, mean ± std |", "|---|---|---|"]
    for variant, by_rate in scores.items():
        rate, best = max(by_rate.items(), key=lambda item: mean(item[1]))
        text.append(f"| {variant} | {rate} | {mean(best):.2f} ± {stdev(best) if len(best) > 1 else 0:.2f} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [line for seed in range(seeds) for line in one_seed(seed)]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with RESULTS.open(newline="") as file:
        print(table(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
