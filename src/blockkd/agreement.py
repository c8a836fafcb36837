"""Whether a teacher and the data were made for each other: its classes' order, the normalisation, what its card says.

All is told from what the teacher says of images whose labels are known. What differs by chance is not told: of two ways
to count right answers on the same images, the images are looked at on which just one of them is right (McNemar's test).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from blockkd.calling import Inputs, count, logits_of, rows

SIGMAS = 4.0  # a difference by chance is larger once in 16,000 times
KNOWN = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100's": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "one half for all": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none, pixels from 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none, pixels from 0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


@torch.no_grad()
def predictions(teacher: nn.Module, inputs: Inputs, batch_size: int = 64) -> Int[Tensor, " N"]:
    """The class that the teacher, in evaluation mode, finds likeliest for each example of a batch."""
    was_training = teacher.training
    teacher.eval()
    try:
        starts = range(0, count(inputs), batch_size)
        parts = (rows(inputs, start, start + batch_size) for start in starts)
        return torch.cat([logits_of(teacher, part).argmax(dim=1) for part in parts])
    finally:
        teacher.train(was_training)


def order_warning(
    predicted: Int[Tensor, " N"], labels: Int[Tensor, " N"], num_classes: int, names: Sequence[str] = ()
) -> str | None:
    """What to say of a teacher whose classes are numbered otherwise than the data's, or None.

    The numbering under which it would be right most often is found on every other image, and is counted on the rest.

    Args:
        predicted: the teacher's classes, ``(N,)``.
        labels: the data's, ``(N,)``.
        num_classes: K.
        names: of the data's classes, if known.
    """
    together = torch.bincount(labels[::2] * num_classes + predicted[::2], minlength=num_classes**2)
    _, best = linear_sum_assignment(together.view(num_classes, num_classes).numpy(), maximize=True)
    means = torch.from_numpy(best)
    right, matched = predicted[1::2] == labels[1::2], predicted[1::2] == means[labels[1::2]]
    if not _clearly_more(matched, right):
        return None
    moved = [k for k in range(num_classes) if int(means[k]) != k and bool((labels == k).any())]
    shown = ", ".join(f"{_named(k, names)} is its {int(means[k])}" for k in moved[:3])
    return (
        f"the teacher seems to number {len(moved)} of {num_classes} classes otherwise than the data ({shown}"
        f"{', ...' if len(moved) > 3 else ''}): so numbered it would be right on {_share(matched)} of "
        f"{len(matched)} images, and it is on {_share(right)}; a student would learn its mistakes. Bring the data's "
        "classes into the teacher's order"
    )


def normalisation_warning(
    teacher: nn.Module,
    images: Float[Tensor, "N C H W"],
    labels: Int[Tensor, " N"],
    mean: Sequence[float],
    std: Sequence[float],
    right: Bool[Tensor, " N"],
) -> str | None:
    """What to say of a teacher that is clearly better on images normalised as another dataset's, or None.

    Args:
        teacher: maps a batch to logits ``(B, K)``.
        images: as they are normalised now.
        labels: ``(N,)``.
        mean: per channel, what was taken off pixels of 0 … 1.
        std: per channel, what they were divided by after that.
        right: on which images it is right as they are, ``(N,)``.
    """
    if len(mean) != 3:
        return None
    pixels = images * _per_channel(std, images) + _per_channel(mean, images)
    best: tuple[str, Bool[Tensor, " N"]] | None = None
    for name, (other_mean, other_std) in KNOWN.items():
        if _alike(mean, other_mean) and _alike(std, other_std):
            continue
        shifted = (pixels - _per_channel(other_mean, images)) / _per_channel(other_std, images)
        found = predictions(teacher, shifted) == labels
        if _clearly_more(found, right) and (best is None or found.sum() > best[1].sum()):
            best = name, found
    if best is None:
        return None
    name, found = best
    other_mean, other_std = KNOWN[name]
    return (
        f"the teacher is right on {_share(right)} of {len(labels)} images as the data normalises them, and on "
        f"{_share(found)} under another normalisation ({name}): it was probably trained with that, and the student "
        f"would learn from a weaker teacher. Set --data.mean '{list(other_mean)}' --data.std '{list(other_std)}'"
    )


def card_warning(accuracy: float, expected: float, images: int) -> str | None:
    """What to say of a teacher that is clearly worse than its card says, or None.

    Args:
        accuracy: measured, between 0 and 1.
        expected: what is said of it.
        images: on how many it was measured.
    """
    spread = math.sqrt(expected * (1 - expected) / images)
    if accuracy >= expected - max(SIGMAS * spread, 0.005):
        return None
    return (
        f"the teacher is right on {accuracy:.2%} of {images} test images, and is said to be on {expected:.2%}: its "
        "weights, the order of its classes, the images' size or their normalisation are others than they were"
    )


def _clearly_more(these: Bool[Tensor, " N"], those: Bool[Tensor, " N"]) -> bool:
    gained, lost = int((these & ~those).sum()), int((those & ~these).sum())
    return gained - lost > SIGMAS * math.sqrt(gained + lost) if gained > lost else False


def _share(right: Bool[Tensor, " N"]) -> str:
    return f"{float(right.float().mean()):.1%}"


def _named(number: int, names: Sequence[str]) -> str:
    return f"class {number} ({names[number]})" if names else f"class {number}"


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values)).to(like).view(-1, 1, 1)


def _alike(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether nothing but rounding, and the way in which a deviation is counted, lies between the two."""
    return all(abs(a - b) < 0.02 * max(abs(a), abs(b), 0.05) for a, b in zip(ours, theirs, strict=True))
