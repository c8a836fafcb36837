"""Any image classification dataset on the Hugging Face hub or in a local folder."""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from blockkd.data.augmentation import CountedCrops, PadCropFlip, RandomResizedCrop
from blockkd.data.columns import check_column, class_numbers, image_column, label_column
from blockkd.data.corrupt import CorruptImages, warn
from blockkd.data.decoding import MODES, Decoder
from blockkd.data.images import ImageData, Parts
from blockkd.data.memory import MemoryLoader
from blockkd.data.pixels import EncodedImages, PixelImages, RawImages
from blockkd.data.preprocessing import Preprocessing
from blockkd.data.reading import find_test_split, image_files, read_splits
from blockkd.data.sampling import EpochSampler
from blockkd.data.splitting import choose, hold_out

AUGMENTATIONS = ("pad_crop_flip", "random_resized_crop", None)


class HubImages(ImageData):
    """Images from the Hugging Face hub or a local folder, through the ``datasets`` library.

    A local folder holds image files in one folder per class (``train/cat/1.png``, ``test/dog/7.png``), or parquet
    files in the hub's layout. All images are decoded once and held in memory as bytes: 0.2 GB for CIFAR, 1.4 GB for
    Tiny-ImageNet, 16 GB for ImageNet-1k at 64×64. What is larger stays encoded with ``in_memory: false`` and is
    decoded when it is used; ``num_workers`` is then best the number of CPU cores. The defaults for normalisation are
    those of CIFAR-100. ImageNet's habit is ``in_memory: false``, ``image_side: 224``, ``resize_side: 256``,
    ``augmentation: random_resized_crop``, ``mean: [0.485, 0.456, 0.406]``, ``std: [0.229, 0.224, 0.225]``.

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
        train_images: how many images are trained on, of every class the same share, for experiments on a small
            budget; None trains on all that are not held out. Validation and test stay the same.
        split_seed: which images are held out and which are trained on; independent of the run's seed.
        channels: 1 (grey) or 3 (RGB); images are converted where they are otherwise.
        image_side: height and width in pixels: the middle square of each image, scaled. None leaves the images as
            they are; then all must have one size.
        resize_side: the shorter side in pixels that images are scaled to before the middle square of ``image_side``
            is cut out; None is ``image_side``.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
        augmentation: of training images: ``pad_crop_flip`` pads the raw pixels by 4 zeros, crops at random, and
            mirrors half of the images; ``random_resized_crop`` scales a random box of each image to its size, and
            mirrors half of them; None leaves them as they are.
        n_views: with ``random_resized_crop``, how many boxes of each image there are; one after the other they serve
            the epochs, the same for all seeds, and so a teacher's logits can be recorded. None draws new ones always.
        in_memory: whether images are decoded once and kept, or stay encoded and are decoded when they are used. The
            images are the same, but ``random_resized_crop`` takes its boxes from the whole image only where these
            stay encoded, and in memory from the middle square that is kept.
        max_corrupt: how many corrupt images are allowed, with a warning: in memory they are left out, else the next
            image that can be read stands in their place.
        batch_size: images per training step; the last, smaller batch of an epoch is dropped.
        eval_batch_size: images per step of validation and test.
        num_workers: processes that load data; 0 loads in the main process.

    Raises:
        ValueError: a setting is out of its range; later, on first use, what is wrong with the dataset.
    """

    persistent_workers = True

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
        train_images: int | None = None,
        split_seed: int = 0,
        channels: int = 3,
        image_side: int | None = None,
        resize_side: int | None = None,
        mean: tuple[float, ...] = (0.5071, 0.4867, 0.4408),
        std: tuple[float, ...] = (0.2675, 0.2565, 0.2761),
        augmentation: Literal["pad_crop_flip", "random_resized_crop"] | None = "pad_crop_flip",
        n_views: int | None = None,
        in_memory: bool = True,
        max_corrupt: int = 10,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        _check_sides(image_side, resize_side)
        _check_channels(channels, mean, std)
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share is {val_share}, expected a share of the training part: 0 or more, less than 1")
        if train_images is not None and train_images < 1:
            raise ValueError(f"train_images is {train_images}, expected at least 1, or None for all")
        if max_corrupt < 0:
            raise ValueError(f"max_corrupt is {max_corrupt}, expected at least 0")
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation is {augmentation!r}, expected one of {', '.join(map(repr, AUGMENTATIONS))}")
        if test_split == train_split:
            raise ValueError(f"train_split and test_split are both {train_split!r}: the test would be on training data")
        self.path, self.subset, self.revision = path, subset, revision
        self.image_column, self.label_column = image_column, label_column
        self.train_split, self.test_split = train_split, test_split
        self.val_share, self.train_images, self.split_seed = val_share, train_images, split_seed
        self.channels, self.image_side, self.resize_side = channels, image_side, resize_side
        self.mean, self.std, self.augmentation = mean, std, augmentation
        if n_views is not None and (n_views < 1 or augmentation != "random_resized_crop"):
            raise ValueError(
                f"n_views is {n_views} and augmentation {augmentation!r}: expected 1 or more, of random_resized_crop; "
                "pad_crop_flip has 162"
            )
        self.in_memory, self.max_corrupt, self.n_views = in_memory, max_corrupt, n_views
        self._class_names: list[str] = []
        self._corrupt = CorruptImages({}, max_corrupt)
        self._told = 0

    @property
    def class_names(self) -> list[str]:
        """What the classes are called, by number; loads the data on first use."""
        if not self._class_names:
            self.parts  # noqa: B018
        return self._class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are; loads the data on first use."""
        return len(self.class_names)

    def load(self) -> Parts:
        """Read, hold out the validation part, choose what to train on, and decode where it is kept in memory."""
        splits = read_splits(self.path, self.subset, self.revision)
        names = self.train_split, find_test_split(self.path, list(splits), self.train_split, self.test_split)
        train, test = (splits[name] for name in names)
        for name, split in zip(names, (train, test), strict=True):
            if len(split) == 0:
                raise ValueError(f"the {name} split of {self.path!r} is empty")
        images = image_column(train, self.image_column)
        labels = label_column(train, self.label_column)
        for column in (images, labels):
            check_column(test, column)
        class_names, train_labels, test_labels = class_numbers(train, test, labels, names)
        if len(train_labels.unique()) < 2:
            raise ValueError(
                f"all training images are of one class, {class_names[int(train_labels[0])]!r}; expected two or more"
            )
        rows, held_out = self._training_rows(train_labels)
        self._corrupt = CorruptImages({name: len(splits[name]) for name in names}, self.max_corrupt)
        train_files, test_files = image_files(train, images), image_files(test, images)
        parts = self._keep(
            (train_files, rows, train_labels[rows], names[0]),
            (train_files, held_out, train_labels[held_out], names[0]),
            (test_files, range(len(test)), test_labels, names[1]),
        )
        _check_one_size(parts)
        self._class_names = class_names
        return parts

    def preprocessing(self) -> Preprocessing:
        """As evaluation does it; loads the data on first use."""
        height, width = self.example(1).shape[2:]
        return Preprocessing(
            size=(height, width),
            mean=tuple(self.mean),
            std=tuple(self.std),
            resize_side=self.resize_side or self.image_side,
            labels=tuple(map(str, self.class_names)),
        )

    def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
        """The training images, augmented."""
        train = self.parts.train
        assert isinstance(train, RawImages)
        if self.augmentation == "pad_crop_flip":
            return PadCropFlip(train, sampler)
        if self.augmentation == "random_resized_crop":
            height, width = train.fitted([0])[0].shape[2:]
            if self.n_views is not None:
                return CountedCrops(train, sampler, (height, width), self.n_views)
            return RandomResizedCrop(train, sampler, (height, width))
        return super().training_images(sampler)

    def teardown(self, stage: str) -> None:
        """Say which images were found to be corrupt while they were used, in this process and its workers."""
        del stage
        if not self.in_memory and len(self._corrupt) > self._told:
            self._told = len(self._corrupt)
            places = "; ".join(self._corrupt.places())
            warn(f"{self._told} corrupt so far, others stand in for them: {places}")

    def _training_rows(self, labels: Int[Tensor, " N"]) -> tuple[list[int], list[int]]:
        rest, held_out = hold_out(labels, self.val_share, self.split_seed)
        if self.train_images is not None:
            rest = [rest[index] for index in choose(labels[rest], self.train_images, self.split_seed)]
        return rest, held_out

    def _keep(self, *selections: tuple[Any, Sequence[int], Int[Tensor, " N"], str]) -> Parts:
        """Train, validation and test, each from the files of its split, its rows, its labels, and its split's name."""
        decoder = Decoder(self.channels, self.image_side, self.resize_side)
        if not self.in_memory:
            return Parts(
                *(
                    EncodedImages(files, rows, labels, self.mean, self.std, split, decoder, self._corrupt)
                    for files, rows, labels, split in selections
                )
            )
        loader = MemoryLoader(decoder, self._corrupt, sum(len(rows) for _, rows, _, _ in selections))
        parts = []
        for files, rows, labels, split in selections:
            pixels, kept = loader.load(files, rows, split)
            parts.append(PixelImages(pixels, labels[kept], self.mean, self.std))
        loader.warn()
        return Parts(*parts)


def _check_sides(image_side: int | None, resize_side: int | None) -> None:
    if image_side is not None and image_side < 1:
        raise ValueError(f"image_side is {image_side}, expected at least 1 pixel")
    if resize_side is not None and (image_side is None or resize_side < image_side):
        raise ValueError(
            f"resize_side is {resize_side} and image_side {image_side}: the middle square of image_side is cut out of "
            "what resize_side gives, so set image_side, and resize_side to the same or more"
        )


def _check_channels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if channels not in MODES:
        raise ValueError(f"channels is {channels}, expected 1 (grey) or 3 (RGB)")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values, expected one per channel: {channels}")
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}, expected values above 0")


def _check_one_size(parts: Parts) -> None:
    """Compare the first image of the training part with the first of the test part."""
    train, test = (part[0][0].shape[1:] for part in (parts.train, parts.test))
    if train != test:
        sizes = ("×".join(str(side) for side in size) for size in (train, test))
        raise ValueError(
            "training images are {} pixels, test images {}: set image_side to scale them all".format(*sizes)
        )
