"""Any image classification dataset on the Hugging Face hub or in a local folder."""

import importlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from blockkd.data.columns import check_column, class_numbers, image_column, label_column
from blockkd.data.decoding import MODES, Decoder
from blockkd.data.images import EpochSampler, ImageData, Parts
from blockkd.data.pixels import AugmentedImages, PixelImages


class HubImages(ImageData):
    """Images from the Hugging Face hub or a local folder, through the ``datasets`` library.

    A local folder holds image files in one folder per class (``train/cat/1.png``, ``test/dog/7.png``), or parquet
    files in the hub's layout. All images are decoded once and held in memory as bytes: 0.2 GB for CIFAR, 1.4 GB for
    Tiny-ImageNet, 16 GB for ImageNet-1k at 64×64. The defaults for normalisation are those of CIFAR-100.

    Args:
        path: a dataset's name on the hub (``uoft-cs/cifar100``), or a folder.
        subset: which of the dataset's configurations, where it has several.
        revision: branch, tag or commit on the hub; None is its newest.
        image_column: None finds it when there is exactly one column of images.
        label_column: class labels, whole numbers or strings; None finds it when exactly one column is of the hub's
            type ClassLabel. Strings are numbered alphabetically, numbers by size.
        train_split: what the training part is called.
        test_split: what the test part is called; None takes ``test``, or ``validation`` where there is no ``test``.
        val_share: share of the training part that is held out for validation, stratified; 0 trains on everything
            and leaves the validation part empty. The test part chooses nothing.
        split_seed: which images are held out; independent of the run's seed.
        channels: 1 (grey) or 3 (RGB); images are converted where they are otherwise.
        image_side: height and width in pixels: the middle square of each image, scaled. None leaves the images as
            they are; then all must have one size.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
        augmentation: of training images: ``pad_crop_flip`` pads the raw pixels by 4 zeros, crops at random, and
            mirrors half of the images; None leaves them as they are.
        max_corrupt: how many corrupt images are left out, with a warning, before loading fails.
        batch_size: images per training step; the last, smaller batch of an epoch is dropped.
        eval_batch_size: images per step of validation and test.
        num_workers: processes that load data; 0 loads in the main process.

    Raises:
        ValueError: a setting is out of its range; later, on first use, what is wrong with the dataset.
    """

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        val_share: float = 0.1,
        split_seed: int = 0,
        channels: int = 3,
        image_side: int | None = None,
        mean: tuple[float, ...] = (0.5071, 0.4867, 0.4408),
        std: tuple[float, ...] = (0.2675, 0.2565, 0.2761),
        augmentation: Literal["pad_crop_flip"] | None = "pad_crop_flip",
        max_corrupt: int = 10,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        _check_settings(val_share, channels, image_side, mean, std, max_corrupt)
        if augmentation not in ("pad_crop_flip", None):
            raise ValueError(f"augmentation is {augmentation!r}, expected 'pad_crop_flip' or None")
        if test_split == train_split:
            raise ValueError(f"train_split and test_split are both {train_split!r}: the test would be on training data")
        self.path, self.subset, self.revision = path, subset, revision
        self.image_column, self.label_column = image_column, label_column
        self.train_split, self.test_split = train_split, test_split
        self.val_share, self.split_seed = val_share, split_seed
        self.channels, self.image_side, self.max_corrupt = channels, image_side, max_corrupt
        self.mean, self.std, self.augmentation = mean, std, augmentation
        self._class_names: list[str] = []

    @property
    def class_names(self) -> list[str]:
        """What the classes are called, by number; loads the data on first use."""
        if not self._class_names:
            self.parts  # noqa: B018
        return self._class_names

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """How many classes there are; loads the data on first use."""
        return len(self.class_names)

    def load(self) -> Parts:
        """Read, decode, and hold out the validation part."""
        splits = _read(self.path, self.subset, self.revision)
        names = self.train_split, _test_split(self.path, list(splits), self.train_split, self.test_split)
        train, test = (splits[name] for name in names)
        for name, split in zip(names, (train, test), strict=True):
            if len(split) == 0:
                raise ValueError(f"the {name} split of {self.path!r} is empty")
        images = image_column(train, self.image_column)
        labels = label_column(train, self.label_column)
        for column in (images, labels):
            check_column(test, column)

        class_names, train_labels, test_labels = class_numbers(train, test, labels, names)
        decoder = Decoder(self.channels, self.image_side, self.max_corrupt)
        train_pixels, kept = decoder.decode(_encoded(train, images), names[0])
        train_labels = train_labels[kept]
        test_pixels, kept = decoder.decode(_encoded(test, images), names[1])
        test_labels = test_labels[kept]
        decoder.warn()
        _check_parts(train_pixels, test_pixels, train_labels, class_names)
        rest, held_out = _hold_out(train_labels, self.val_share, self.split_seed)
        self._class_names = class_names

        def part(pixels: Tensor, labels: Tensor) -> PixelImages:
            return PixelImages(pixels, labels, self.mean, self.std)

        return Parts(
            part(train_pixels[rest], train_labels[rest]),
            part(train_pixels[held_out], train_labels[held_out]),
            part(test_pixels, test_labels),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Full batches, augmented, in the order of ``order_seed`` and the epoch."""
        plain = super().train_dataloader()
        train, sampler = self.parts.train, plain.sampler
        if self.augmentation is None:
            return plain
        assert isinstance(train, PixelImages)
        assert isinstance(sampler, EpochSampler)
        return DataLoader(
            AugmentedImages(train, sampler),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=plain.drop_last,
            num_workers=self.num_workers,
            generator=plain.generator,
        )


def _check_settings(
    val_share: float,
    channels: int,
    image_side: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    max_corrupt: int,
) -> None:
    if not 0 <= val_share < 1:
        raise ValueError(f"val_share is {val_share}, expected a share of the training part: 0 or more, less than 1")
    if channels not in MODES:
        raise ValueError(f"channels is {channels}, expected 1 (grey) or 3 (RGB)")
    if image_side is not None and image_side < 1:
        raise ValueError(f"image_side is {image_side}, expected at least 1 pixel")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values, expected one per channel: {channels}")
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}, expected values above 0")
    if max_corrupt < 0:
        raise ValueError(f"max_corrupt is {max_corrupt}, expected at least 0")


def _read(path: str, subset: str | None, revision: str | None) -> Any:
    """The dataset's splits by name (a ``datasets.DatasetDict``)."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the images of {path!r} are read by the library datasets, which is missing: pip install datasets"
        ) from error
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            warnings.warn(f"revision {revision!r} has no effect: {path!r} is a local folder", stacklevel=2)
        path, revision = str(folder), None
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):  # no name on the hub either
        raise ValueError(f"there is no folder {path!r}; path is a folder, or a name on the hub like uoft-cs/cifar100")
    try:
        return datasets.load_dataset(path, name=subset, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"cannot read {path!r}: {' '.join(str(error).split())} (expected a folder with train/CLASS/*.png and "
            "test/CLASS/*.png, a folder with train*.parquet and test*.parquet, or the name of a dataset on the hub)"
        ) from error


def _test_split(path: str, known: Sequence[str], train: str, test: str | None) -> str:
    if test is None:
        found = [name for name in ("test", "validation") if name in known and name != train]
        if train in known and not found:
            raise ValueError(f"{path!r} has no test or validation split, only {known}: set test_split")
        test = found[0] if found else train
    for option, name in (("train_split", train), ("test_split", test)):
        if name not in known:
            raise ValueError(f"{path!r} has no split {name!r}, it has {known}: set {option}")
    return test


def _encoded(split: Any, column: str) -> Any:
    """The image files of a column, one by one, not decoded: ``datasets`` would stop at the first corrupt one."""
    if type(split.features[column]).__name__ == "Image":
        split = split.cast_column(column, type(split.features[column])(decode=False))
    for rows in split.select_columns([column]).iter(batch_size=1000):
        yield from rows[column]


def _check_parts(train: Tensor, test: Tensor, train_labels: Tensor, class_names: Sequence[str]) -> None:
    if len(train_labels.unique()) < 2:
        raise ValueError(
            f"all training images are of one class, {class_names[int(train_labels[0])]!r}; expected two or more"
        )
    if train.shape[2:] != test.shape[2:]:
        sizes = ("×".join(str(side) for side in pixels.shape[2:]) for pixels in (train, test))
        raise ValueError(
            "training images are {} pixels, test images {}: set image_side to scale them all".format(*sizes)
        )


def _hold_out(labels: Int[Tensor, " N"], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of those to train on and of those held out, each in ascending order."""
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
