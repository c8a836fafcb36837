"""Which images are held out for validation, and which are trained on."""

import torch
from jaxtyping import Int
from torch import Tensor


def hold_out(labels: Int[Tensor, " N"], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of those to train on and of those held out, each in ascending order.

    Raises:
        ValueError: the share cannot be held out with all classes in both parts.
    """
    from sklearn.model_selection import train_test_split

    everything = list(range(len(labels)))
    if share == 0:
        return everything, []
    try:
        rest, held_out = train_test_split(everything, test_size=share, stratify=labels.numpy(), random_state=seed)
    except ValueError as error:
        raise ValueError(
            f"cannot hold val_share = {share} out of {len(labels)} training images of "
            f"{len(labels.unique())} classes: {error} Choose another val_share, or 0"
        ) from error
    return sorted(rest), sorted(held_out)


def choose(labels: Int[Tensor, " N"], count: int, seed: int) -> list[int]:
    """``count`` indices in ascending order, of every class the same share; of classes of one size as many, or one less.

    Where shares are no whole numbers they are apportioned by the rule of Webster and Sainte-Laguë (M. Balinski,
    H. Young, "Fair Representation", 1982), which never takes back: a larger count only adds images.

    Raises:
        ValueError: there are fewer labels than ``count``.
    """
    if count > len(labels):
        raise ValueError(
            f"train_images is {count}, but there are only {len(labels)} training images (less those held out by "
            "val_share): choose fewer, or leave it out to train on all"
        )
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    classes = labels[by_class]
    # Image r of m in its class stands at (r + 1/2) / m: up to any point t, each class has got t · m, rounded.
    places = (torch.arange(len(labels)) - starts[classes] + 0.5).double() / sizes[classes]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + 1))  # among equal places
    chosen = by_class[order[places[order].argsort(stable=True)[:count]]]
    return sorted(chosen.tolist())
