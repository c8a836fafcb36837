"""Which classes a method gains and loses against a reference, with images or sentences."""

import io
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blockkd.reporting.curves import file_name
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Example, Gallery, Section
from blockkd.reporting.style import BLUE, INK, VERMILION, Picture, panel

TITLE = "Class by class"
SHOWN = 12  # classes at either end, where there are too many for all
EXAMPLES = 8
LONGEST = 22  # letters of a class name
ROW = 0.17  # inches


def class_gains(
    logits: Float[Tensor, "N K"], reference: Float[Tensor, "N K"], labels: Int[Tensor, " N"]
) -> Float[Tensor, " K"]:
    """Accuracy on each class minus the reference's, in points; not a number for a class without images, ``(K,)``.

    Args:
        logits: of the network, ``(N, K)``.
        reference: of the other one, ``(N, K)``.
        labels: ``(N,)``.
    """
    classes = logits.shape[1]
    gained = (logits.argmax(dim=1) == labels).double() - (reference.argmax(dim=1) == labels).double()
    return 100 * torch.bincount(labels, gained, minlength=classes) / torch.bincount(labels, minlength=classes)


def classes_section(
    method: str,
    reference: str,
    logits: Mapping[str, Mapping[int, Float[Tensor, "N K"]]],
    labels: Int[Tensor, " N"],
    names: Sequence[str],
    show: Callable[[int, str], Example],
    judged: Judged = IMAGES,
) -> Section:
    """Points gained and lost in each class, paired by seed, and samples that only one of the two gets right.

    Args:
        method: the one that is looked at.
        reference: the one that it is compared with.
        logits: by method and seed, ``(N, K)``.
        labels: ``(N,)``.
        names: of the classes.
        show: the sample of a number 0 … N - 1, with what is said of it.
        judged: what the networks look at.
    """
    pairs = _pairs(logits[method], logits[reference])
    gains = torch.stack([class_gains(ours, theirs, labels) for ours, theirs in pairs]).mean(dim=0)
    picture = _picture(method, reference, gains, names)
    ours, theirs = (seed.argmax(dim=1) for seed in pairs[0])
    gained, lost = (ours == labels) & (theirs != labels), (ours != labels) & (theirs == labels)
    galleries = []
    for title, found, wrong in (
        (f"Right with {method}, wrong with {reference}", gained, theirs),
        (f"Right with {reference}, wrong with {method}", lost, ours),
    ):
        numbers = found.nonzero().flatten().tolist()
        examples = [
            show(i, f"{_short(names[int(labels[i])])}, taken for {_short(names[int(wrong[i])])}")
            for i in numbers[:EXAMPLES]
        ]
        if examples:
            galleries.append(Gallery(f"{title}: {len(numbers)} of {len(labels)} {judged.sample}s", examples))
    known = gains[~gains.isnan()]
    lead = (
        f"Accuracy of {method} on each class, minus that of {reference}: better on {int((known > 0).sum())} of "
        f"{len(known)} classes, worse on {int((known < 0).sum())}, by {statistics.fmean(known.tolist()):+.2f} points "
        f"on average; {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of networks. The {judged.sample}s are "
        "those of the first."
    )
    return Section("classes", TITLE, lead, [picture], galleries=galleries)


def png_of(image: Float[Tensor, "C H W"]) -> bytes:
    """An image of one or three channels, pixels 0 … 1, as PNG; of other numbers of channels the first is shown."""
    from PIL import Image

    channels = image if image.shape[0] == 3 else image[:1]
    pixels = (channels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(content, "PNG")
    return content.getvalue()


def _pairs(ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """By seed, where both have it; otherwise each with the first of the reference, as with the one teacher."""
    shared = sorted(ours.keys() & theirs.keys()) if len(theirs) > 1 else []
    first = next(iter(theirs.values()))
    return [(ours[seed], theirs[seed]) for seed in shared] or [(one, first) for one in ours.values()]


def _picture(method: str, reference: str, gains: Tensor, names: Sequence[str]) -> Picture:
    order = [k for k in gains.argsort(descending=True).tolist() if not gains[k].isnan()]
    left_out = max(len(order) - 2 * SHOWN, 0)
    shown = order if not left_out else [*order[:SHOWN], *order[-SHOWN:]]
    figure, axes = panel(height=0.9 + ROW * max(len(shown), 6))
    values = [float(gains[k]) for k in shown]
    axes.barh(range(len(shown)), values, color=[BLUE if value >= 0 else VERMILION for value in values], height=0.7)
    axes.axvline(0, color=INK, linewidth=0.9)
    if left_out:
        axes.axhline(SHOWN - 0.5, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_yticks(range(len(shown)), [_short(names[k]) for k in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    reach = max(1.0, *(abs(value) for value in values)) * 1.08
    axes.set(xlabel="points gained (right) or lost (left)", xlim=(-reach, reach))
    axes.grid(axis="y", visible=False)
    said = f"; the {left_out} classes between are left out" if left_out else ""
    caption = f"Accuracy of {method} minus that of {reference}, by class{said}."
    return Picture(f"classes-{file_name(method)}", caption, figure)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
