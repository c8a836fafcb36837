"""What Block-KD gains or loses by changing one thing, predicted before and measured after.

    python benchmarks/levers.py digits                  # → benchmarks/results/levers_digits.csv
    python benchmarks/levers.py cifar100_5000 --seeds 3 --levers light "light, standardized logits"
    python benchmarks/levers.py digits --norms          # → benchmarks/results/gradient_norms_digits.csv
    python benchmarks/levers.py cifar100_5000 --heads   # → benchmarks/results/heads_cifar100_5000.csv
    python benchmarks/evidence.py                       # the tables

Where it starts from is the setting of full Block-KD that ``fair_fight.py`` has found on this rung. Every form, that one
included, gets the same three learning rates around it, chosen by the selection seeds; then come the final seeds. Both
are judged by held-out training images: the test part is not read. Rows that are there are not run again.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from statistics import mean
from typing import Any

import lever_variants as variants
import torch
from fair_fight import Case, optima
from ladder import RESULTS, RUNGS, Task, accuracy, add_row, fit, image_flops, recorded, rows_of, student_of, versions
from torch import Tensor

from blockkd import BlockKD, partition
from blockkd.baselines.preactivation import cut_before_relu
from blockkd.connector_start import Start, start_connectors
from blockkd.distances import DIST, DKD, KL
from blockkd.stones import Stones

FACTORS = (0.5, 1.0, 2.0)  # of the learning rate of the fair fight
FIRST = 4  # batches by which connectors are started and gradients measured
PAPER = "paper"
LIGHT_STANDARDIZED = "light, standardized logits"


@dataclass(frozen=True)
class Lever:
    """One form of Block-KD.

    Attributes:
        make: case → distiller.
        predicted: against the paper's form: "better", "same" or "worse", written before it was run.
        start: how its connectors are started; None leaves them as drawn.
        like: the form that it is compared with.
    """

    make: Callable[[Case], BlockKD]
    predicted: str
    start: Start | None = None
    like: str = PAPER


def form(kind: type[BlockKD] = BlockKD, **changes: Any) -> Callable[[Case], BlockKD]:
    """The paper's form but for these changes."""

    def make(c: Case) -> BlockKD:
        usual = {"beta": c.weight, "gamma": c.weight, "cross_from_epoch": c.late}
        return kind(c.teacher, c.student, c.example, **(usual | changes))

    return make


def scaled(share: float) -> Callable[[Case], BlockKD]:
    """All stone weights times this."""
    return form(stone_weights=[share / 4, share / 2, share])


def distance(times: float, **changes: Any) -> Callable[[Case], BlockKD]:
    """Another logit distance, with weights so many times those of KL."""
    return lambda c: form(beta=times * c.weight, gamma=times * c.weight, **changes)(c)


def on_standardized(kind: type[BlockKD] = BlockKD, stones: Stones = "last") -> Callable[[Case], BlockKD]:
    """Standardized logits, weighed as the field weighs them in KD."""
    return lambda c: form(
        kind, beta=10 * c.weight, gamma=10 * c.weight, distance=KL(2.0, standardized=True), stones=stones
    )(c)


def before_relu(c: Case) -> BlockKD:
    """Connectors lead to what the teacher's features are before their ReLU."""
    blocks = cut_before_relu(c.teacher, partition(c.teacher, c.example, frozen=True), c.example, frozen=True)
    return form(teacher_blocks=blocks)(c)


LEVERS = {
    PAPER: Lever(form(), "same"),
    "started by least squares": Lever(form(), "better", "least_squares"),
    "started by moments": Lever(form(), "better", "moments"),
    "gradients balanced": Lever(form(variants.Balanced), "better"),
    "stones' gradient warmed up": Lever(form(variants.WarmedUp), "same"),
    "stone weights × 1/4": Lever(scaled(0.25), "same"),
    "stones from last to first": Lever(form(variants.LastToFirst), "better"),
    "one stone a step": Lever(form(variants.OneByOne), "same"),
    "standardized logits": Lever(on_standardized(stones="all"), "better"),
    "DKD": Lever(distance(1.0, distance=DKD(1.0, 2.0)), "better"),
    "DIST": Lever(distance(1.0, distance=DIST()), "same"),
    "without the ensemble": Lever(form(gamma=0.0), "same"),
    "ensemble from the start": Lever(form(cross_from_epoch=0), "worse"),
    "own statistics in the teacher": Lever(form(variants.OwnStatistics), "same"),
    "least squares, statistics settled": Lever(form(variants.SettledConnectors), "same", "least_squares"),
    "3×3 connectors": Lever(form(make_connector=variants.three_by_three), "same"),
    "softer for early stones": Lever(form(variants.SofterEarly), "same"),
    "before the ReLU": Lever(before_relu, "same"),
    "L2 on features": Lever(form(variants.FeaturesAlike), "same"),
    "both ways": Lever(form(variants.BothWays), "same"),
    "light": Lever(form(stones="last"), "same"),
    "light, started by least squares": Lever(form(stones="last"), "same", "least_squares", like="light"),
    # written when the search on cifar100_5000 had shown KD on standardized logits far above plain KD
    LIGHT_STANDARDIZED: Lever(on_standardized(), "better", like="light"),
    "light, DKD": Lever(distance(1.0, distance=DKD(1.0, 2.0), stones="last"), "better", like="light"),
    "light, L2 on features": Lever(form(variants.FeaturesAlike, stones="last"), "better", like="light"),
    "light, 3×3 connectors": Lever(form(stones="last", make_connector=variants.three_by_three), "same", like="light"),
    # written when the first trials had shown all stones on standardized logits far above all else
    "light, standardized, a classifier of its own": Lever(
        on_standardized(variants.DeepSupervision), "same", like=LIGHT_STANDARDIZED
    ),
    "standardized, stones in the first half": Lever(
        on_standardized(variants.FirstHalf, "all"), "same", like="standardized logits"
    ),
    "standardized, one stone a step": Lever(
        on_standardized(variants.OneByOne, "all"), "worse", like="standardized logits"
    ),
}


class Study:
    """All runs on one rung."""

    def __init__(self, name: str) -> None:
        self.rung = RUNGS[name]
        self.path, self.norms_path = RESULTS / f"levers_{name}.csv", RESULTS / f"gradient_norms_{name}.csv"
        self.heads_path = RESULTS / f"heads_{name}.csv"
        self.rows = rows_of(self.path)
        self.base = optima(name)["block_kd"]
        self.task = lru_cache(maxsize=2)(self.rung.task)

    def search(self, lever: str) -> None:
        """Three learning rates by the selection seeds."""
        for factor in FACTORS:
            for seed in self.rung.selection:
                self.run("trial", lever, seed, f"{factor * self.base['rate']:.5g}")

    def final(self, lever: str, seed: int) -> None:
        """The best rate on a final seed."""
        self.run("final", lever, seed, self.best_rate(lever))

    def best_rate(self, lever: str) -> str:
        """By the trials, the lowest of equals."""
        trials = [row for row in self.rows if (row["part"], row["lever"]) == ("trial", lever)]
        rates = sorted({row["rate"] for row in trials}, key=float)
        return max(rates, key=lambda rate: mean(float(row["held_out"]) for row in trials if row["rate"] == rate))

    def run(self, part: str, lever: str, seed: int, rate: str) -> None:
        """One run, if it is not there."""
        wanted = part, lever, str(seed), rate
        if any(tuple(row[name] for name in ("part", "lever", "seed", "rate")) == wanted for row in self.rows):
            return
        task: Task = self.task(seed)
        distiller = self.make(LEVERS[lever], task, seed)
        flops = self.cost(distiller, task)
        fit(distiller, task.batches, self.rung.epochs, float(rate), self.rung.mixed)
        row = {
            "part": part,
            "lever": lever,
            "like": LEVERS[lever].like,
            "predicted": LEVERS[lever].predicted,
            "seed": seed,
            "epochs": self.rung.epochs,
            "rate": rate,
            "weight": f"{self.base['weight']:.5g}",
            "mflops_per_image": f"{flops / 1e6:.4g}",
            "held_out": f"{accuracy(distiller.student, task.held_out):.2f}",
            "versions": versions(),
        }
        self.rows.append(add_row(self.path, row))

    def cost(self, distiller: BlockKD, task: Task) -> float:
        """Floating-point operations of a step for one image, the mean over all epochs where stones come and go.

        Where a step draws one stone, the mean over the stones by how often each is drawn.
        """
        if isinstance(distiller, variants.OneByOne):
            every, total = distiller.stones, 0.0
            for stone in every:
                distiller.stones = (stone,)
                total += distiller.stone_weights[stone] * image_flops(distiller, task)
            distiller.stones = every
            return total / sum(distiller.stone_weights.values())
        if not isinstance(distiller, variants.LastToFirst | variants.FirstHalf):
            return image_flops(distiller, task)
        by_stones, found = {}, []
        for epoch in range(self.rung.epochs):
            distiller.set_epoch(epoch)
            if distiller.stones not in by_stones:
                by_stones[distiller.stones] = image_flops(distiller, task)
            found.append(by_stones[distiller.stones])
        return mean(found)

    def make(self, lever: Lever, task: Task, seed: int) -> BlockKD:
        """A distiller, started."""
        teacher, student = student_of(task, seed, self.rung.mixed)
        first = [x for x, _, _ in islice(task.batches(0), FIRST)]
        distiller = lever.make(Case(teacher, student, first[0][:2], self.rung.epochs, self.base["weight"]))
        if isinstance(distiller, variants.LastToFirst | variants.FirstHalf):
            distiller.epochs = self.rung.epochs
        if isinstance(distiller, variants.WarmedUp):
            distiller.warm_epochs = self.rung.epochs // 3
        distiller.train()
        if lever.start is not None:
            start_connectors(distiller, first, lever.start)
        return distiller

    def heads(self, seed: int) -> None:
        """How often the light form is right by the student's own classifier, by that of ``N_n``, by their mean."""
        there = {(row["lever"], row["seed"]) for row in rows_of(self.heads_path)}
        for lever in ("light", LIGHT_STANDARDIZED):
            if (lever, str(seed)) in there:
                continue
            self.search(lever)
            task, rate = self.task(seed), self.best_rate(lever)
            distiller = self.make(LEVERS[lever], task, seed)
            fit(distiller, task.batches, self.rung.epochs, float(rate), self.rung.mixed)
            right = learners_right(distiller, *task.held_out)
            variants.merge_heads(distiller, task.held_out[0][:64])
            right["mean"] = accuracy(distiller.student, task.held_out)
            for head, value in right.items():
                row = {"lever": lever, "seed": seed, "rate": rate, "head": head}
                add_row(self.heads_path, row | {"held_out": f"{value:.2f}", "versions": versions()})

    def norms(self, seed: int) -> None:
        """How long the gradients are that reach the student, and how often each learner is right, before and after."""
        there = {(row["lever"], row["seed"]) for row in rows_of(self.norms_path)}
        for lever in (PAPER, "started by moments", "started by least squares"):
            if (lever, str(seed)) in there:
                continue
            task = self.task(seed)
            distiller = self.make(LEVERS[lever], task, seed)
            before = self.learners(distiller, task)
            fit(distiller, task.batches, self.rung.epochs, self.base["rate"], self.rung.mixed)
            for when, found in (("start", before), ("end", self.learners(distiller, task))):
                for learner, (norm, right) in found.items():
                    row = {"lever": lever, "seed": seed, "when": when, "learner": learner}
                    measured = {"gradient_norm": f"{norm:.4g}", "held_out": f"{right:.2f}", "versions": versions()}
                    add_row(self.norms_path, row | measured)

    def learners(self, distiller: BlockKD, task: Task) -> dict[str, tuple[float, float]]:
        """By learner the mean norm of its gradient in the student, and its accuracy in evaluation mode."""
        parameters = [parameter for parameter in distiller.student.parameters() if parameter.requires_grad]
        names = ["student", *(f"stone_{i}" for i in distiller.stones)]
        norms: dict[str, list[float]] = {name: [] for name in names}
        distiller.train()
        for x, y, logits in islice(task.batches(0), FIRST):
            terms = distiller(x, y, **recorded(distiller, logits)).terms
            for name in names:
                own = torch.stack([term for key, term in terms.items() if key.endswith(f"/{name}")]).sum()
                gradients = torch.autograd.grad(own, parameters, retain_graph=True, allow_unused=True)
                squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
                norms[name].append(float(torch.stack(squares).sum().sqrt()))
        right = learners_right(distiller, *task.held_out)
        return {name: (mean(norms[name]), right[name]) for name in names}


@torch.no_grad()
def learners_right(distiller: BlockKD, x: Tensor, y: Tensor) -> dict[str, float]:
    """Percent, in evaluation mode."""
    distiller.eval()
    features, logits = distiller.student_features(x)
    said = {"student": logits} | {f"stone_{i}": z for i, z in distiller._stone_logits(features, x).items()}
    return {name: 100 * float((z.argmax(1) == y).float().mean()) for name, z in said.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rung", choices=list(RUNGS))
    parser.add_argument("--levers", nargs="*", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--seeds", type=int, default=5, help="how many of the final seeds")
    parser.add_argument("--norms", action="store_true", help="measure gradients instead")
    parser.add_argument("--heads", action="store_true", help="compare classifiers of the light form")
    given = parser.parse_args()
    study = Study(given.rung)
    if given.norms or given.heads:
        for seed in study.rung.finals[: given.seeds]:
            study.norms(seed) if given.norms else study.heads(seed)
        return
    for lever in given.levers:
        study.search(lever)
        for seed in study.rung.finals[: given.seeds]:
            study.final(lever, seed)


if __name__ == "__main__":
    main()
