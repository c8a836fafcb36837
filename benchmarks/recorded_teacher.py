"""What a recorded teacher saves: CPU time of a training step, live and recorded, medians of interleaved rounds.

    python benchmarks/recorded_teacher.py resnet32x4 resnet8x4 --rounds 9

A step is forward, backward and SGD on a batch of random images of CIFAR's size; the teacher is folded. With a record
the step includes the lookup, of rows that are all there. Times are of the process (one thread), so that others on the
machine count less than on the clock.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

import blockkd
from blockkd.distiller import Distiller
from blockkd.environment import environment
from blockkd.folding import fold_batch_norm
from blockkd.logit_table import LogitTable
from blockkd.models import Named
from blockkd.recording import RecordedTeacher

VIEWS, IMAGES, CLASSES = 162, 2000, 100


def stepper(distiller: Distiller, record: RecordedTeacher | None, batch: int) -> Callable[[], None]:
    """A training step on one and the same batch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    indices = torch.randperm(IMAGES, generator=generator)[:batch]
    views = torch.randint(0, VIEWS, (batch,), generator=generator)
    distiller.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(list(distiller.parameters()), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        context = {}
        if record is not None:
            context["recorded"] = record.lookup(indices, views, images, distiller.teacher_logits)
        optimizer.zero_grad()
        distiller(images, labels, **context).total.backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    example = torch.randn(2, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        record = RecordedTeacher(LogitTable(folder, {}, (IMAGES, VIEWS, CLASSES)))
        steps: dict[str, Callable[[], None]] = {}
        for way, source in (("live", None), ("recorded", record)):
            for name in ("KD", "N_n", "all stones"):
                torch.manual_seed(0)
                teacher = fold_batch_norm(Named(options.teacher, CLASSES)().eval(), example)
                student = Named(options.student, CLASSES)()
                distiller: Distiller = blockkd.KD(teacher, student)
                if name != "KD":
                    distiller = blockkd.BlockKD(teacher, student, example, stones="all" if name != "N_n" else "last")
                steps[f"{name}, {way}"] = stepper(distiller, source, options.batch)
        torch.manual_seed(0)
        alone = blockkd.CrossEntropy(None, Named(options.student, CLASSES)())
        steps["student alone"] = stepper(alone, None, options.batch)
        for step in steps.values():
            step()  # warms up, and fills the record
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                started = time.process_time()
                step()
                times[name].append(time.process_time() - started)
    print(f"{options.teacher} → {options.student}, batch {options.batch}, {options.rounds} rounds; {environment()}")
    print(f"{'step':<22}{'ms (median)':>12}{'min':>8}{'max':>8}{'/ KD live':>11}")
    base = times["KD, live"]
    for name, own in times.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(own, base, strict=True))
        print(
            f"{name:<22}{1e3 * statistics.median(own):>12.0f}{1e3 * min(own):>8.0f}{1e3 * max(own):>8.0f}{ratio:>11.3f}"
        )


if __name__ == "__main__":
    main()
