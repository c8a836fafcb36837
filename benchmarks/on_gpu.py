"""One call on a GPU: first that the fast path is right there, then what it costs, then as much training as fits.

    python benchmarks/on_gpu.py --data FOLDER --output OUT --minutes 9

FOLDER holds CIFAR-100 in the hub's layout. A second call with the same OUT goes on with the training. What is printed
also stands in OUT/log.txt. On a machine without a GPU, ``--device cpu --pair resnet14-resnet8`` runs the same steps,
which says whether this script works and nothing about speed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import blockkd
from blockkd.bench.contenders import settle
from blockkd.data import EpochSampler
from blockkd.data.augmentation import PadCropFlip
from blockkd.data.pixels import PixelImages
from blockkd.data.resident import resident
from blockkd.devices import compiled, fused
from blockkd.distiller import Losses
from blockkd.divergence import FiniteWatch, Step
from blockkd.environment import environment
from blockkd.folding import fold_batch_norm
from blockkd.models import create_model

STEPS = 20
TOLERANCE = 1e-3  # of the loss after 20 steps in float32: rounding grows from step to step


class Log:
    """Prints, and keeps what was printed."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def __call__(self, text: str) -> None:
        """One line."""
        print(text, flush=True)
        print(text, file=self.file, flush=True)


def batches_are_those_of_the_cpu(device: torch.device) -> str:
    """Images cut on the device against images cut on the CPU."""
    pixels = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    source = PixelImages(pixels, torch.arange(512), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    images = PadCropFlip(source, EpochSampler(512, 0))
    there = resident(images, device)
    assert there is not None
    views = torch.randint(0, images.n_views, (512,))
    expected, _ = images.batch(torch.arange(512), views)
    got, _ = there.batch(torch.arange(512, device=device), views.to(device))
    torch.testing.assert_close(got.cpu(), expected)
    return f"largest difference {float((got.cpu() - expected).abs().max()):.1e}"


def losses_of(distiller: blockkd.BlockKD, run: Callable[..., Losses], layout: torch.memory_format) -> list[float]:
    """The losses of 20 steps on changing batches."""
    device = next(distiller.parameters()).device
    optimizer = fused(torch.optim.SGD(distiller.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4), device.type)
    losses: list[Tensor] = []
    for number in range(STEPS):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(64, 3, 32, 32, generator=generator).to(device).contiguous(memory_format=layout)
        labels = torch.randint(0, 100, (64,), generator=generator).to(device)
        total = run(images, labels).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.detach().clone())
    return torch.stack(losses).tolist()


def the_fast_path_is_the_plain_one(device: torch.device, pair: tuple[str, str], mode: str) -> str:
    """Folded, channels-last, compiled, fused against none of these; float32 without TF32."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32)
    teacher = settle(create_model(pair[0], 100), images).eval()
    student = create_model(pair[1], 100)
    folded = fold_batch_norm(teacher, images[:2])
    plain = blockkd.BlockKD(teacher, student, images[:2], gamma=0.3)
    fast = blockkd.BlockKD(folded, create_model(pair[1], 100), images[:2], gamma=0.3)
    fast.load_state_dict(plain.state_dict())
    plain.to(device)
    fast.to(device).to(memory_format=torch.channels_last)
    expected = losses_of(plain, plain, torch.contiguous_format)
    got = losses_of(fast, compiled(fast, mode), torch.channels_last)  # type: ignore[arg-type]
    off = max(abs(a - b) / abs(b) for a, b in zip(got, expected, strict=True))
    assert off < TOLERANCE, f"{off:.1e}: {got} instead of {expected}"
    return f"largest relative difference of the loss in {STEPS} steps {off:.1e}"


def no_step_is_taken_from_a_bad_one_on(device: torch.device) -> str:
    """The flag on the device, seen some steps later."""
    layer = nn.Linear(8, 4).to(device)
    optimizer = fused(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9), device.type)
    watch, found, weights = FiniteWatch(device, gated=True), None, []
    for number, value in enumerate([1.0, 2.0, float("nan"), 1.0, 1.0, 1.0]):
        loss = layer(torch.full((2, 8), value, device=device)).square().mean()
        watch.look(loss)
        optimizer.zero_grad()
        loss.backward()
        watch.look_at_gradients(layer.parameters())
        optimizer.found_inf = watch.flag  # type: ignore[attr-defined]
        optimizer.step()
        weights.append(layer.weight.detach().clone())
        found = found or watch.first_bad(Step(0, number, None, torch.zeros(2)))
    assert found is not None
    assert found.number == 2
    assert all(torch.equal(weight, weights[1]) for weight in weights[1:])
    return f"seen {watch.lag} steps later"


def command(log: Log, *arguments: str) -> None:
    """A command of blockkd, in a process of its own."""
    log(f"\n$ blockkd {' '.join(arguments)}")
    start = time.perf_counter()
    code = "import sys; from blockkd.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    log(f"{done.stdout}{done.stderr}exit code {done.returncode}, {time.perf_counter() - start:.0f} s")


def main() -> None:
    """Correctness, cost, training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-100; without it nothing is trained")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="of training in this call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pair", default="resnet32x4-resnet8x4")
    parser.add_argument("--methods", nargs="+", default=["kd_standardized", "block_kd_standardized"])
    parser.add_argument("--rounds", default="9")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    log, device = Log(given.output / "log.txt"), torch.device(given.device)
    teacher, student = given.pair.split("-")
    mode = "reduce-overhead" if device.type == "cuda" else "off"
    training = given.output / "training"
    log(f"{time.strftime('%F %T')} {environment()}")
    if not training.exists():
        checks = [
            partial(batches_are_those_of_the_cpu, device),
            partial(the_fast_path_is_the_plain_one, device, (teacher, student), mode),
            partial(no_step_is_taken_from_a_bad_one_on, device),
        ]
        for check in checks:
            log(f"{check.func.__name__}: {check()}")
        bench = [
            "bench",
            "--device",
            given.device,
            "--teacher",
            teacher,
            "--student",
            student,
            "--rounds",
            given.rounds,
        ]
        for size, precision in ((64, "32"), (64, "bf16"), (512, "bf16")):
            folder = given.output / f"bench_{size}_{precision}"
            options = ["--batch-size", str(size), "--precision", precision, "--compile", mode, "--output", str(folder)]
            command(log, *bench, *options)
    if given.data is None:
        return
    if training.exists():
        command(log, "compare", "--resume", str(training), "--minutes", str(given.minutes))
        return
    recipes = [f"cifar100/{given.pair}/{method}" for method in given.methods]
    options = ["--data.path", str(given.data), "--trainer.precision", "bf16-mixed", "--output", str(training)]
    command(log, "compare", *recipes, *options, "--minutes", str(given.minutes))


if __name__ == "__main__":
    main()
