"""FLOPs of one training step, ResNet32x4 → ResNet8x4 at 32×32, batch 64: counted, so the same on every machine.

python benchmarks/flops.py
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from blockkd import KD, BlockKD, CrossEntropy, Distiller
from blockkd.models import create_model


def teraflops(distiller: Distiller, images: torch.Tensor, labels: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        distiller(images, labels).total.backward()
    return counter.get_total_flops() / 1e12


def main() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(100, (64,))
    teacher, student = create_model("resnet32x4"), create_model("resnet8x4")
    distillers: dict[str, Distiller] = {
        "cross-entropy": CrossEntropy(None, student),
        "KD": KD(teacher, student),
        "N_3": BlockKD(teacher, student, images[:2], stones="last"),
        "N_2, N_3": BlockKD(teacher, student, images[:2], stones=[2, 3]),
        "all stones": BlockKD(teacher, student, images[:2]),
    }
    for name, distiller in distillers.items():
        print(f"{name:<14}{teraflops(distiller, images, labels):.3f} TFLOP")


if __name__ == "__main__":
    main()
