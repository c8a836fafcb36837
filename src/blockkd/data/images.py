"""What every image dataset is to the rest: three labelled parts, a number of classes, loaders."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Real
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from blockkd.data.preprocessing import Preprocessing
from blockkd.data.resident import Resident, ResidentLoader, resident
from blockkd.data.sampling import EpochSampler, ShareSampler

Loader = DataLoader[Any] | ResidentLoader


@runtime_checkable
class FiniteViews(Protocol):
    """Training images of each of which there are finitely many views: what augmentation can make of it, numbered.

    Attributes:
        n_views: how many views each image has; 1 where nothing is drawn at random.
    """

    n_views: int

    def __len__(self) -> int: ...

    def drawn(self) -> Int[Tensor, " N"]:
        """Which view of each image is drawn in this epoch, ``(N,)``, each ``0 … n_views - 1``."""

    def batch(
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """These views of the images at these indices, and their labels."""

    def identity(self) -> dict[str, str]:
        """What every view of every image hangs on, by name: pixels, normalisation, augmentation."""


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with their labels, the same in every epoch.

    Args:
        images: ``(N, C, H, W)``, or what a subclass makes tensors of: one per label, got by its index.
        labels: ``(N,)``, class numbers from 0.
    """

    n_views = 1
    images: Any

    def __init__(self, images: Any, labels: Int[Tensor, " N"]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def drawn(self) -> Int[Tensor, " N"]:
        """There is one view of each image, 0."""
        return torch.zeros(len(self), dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        """What the images take in memory; 0 where they are not in memory as one tensor."""
        return self.images.nbytes if isinstance(self.images, Tensor) else 0

    def on(self, device: torch.device) -> "LabelledImages | None":
        """The same images on a device, or None where they are no one tensor. Images that lie there are not copied."""
        if not isinstance(self.images, Tensor):
            return None
        there = copy.copy(self)
        there.images, there.labels = self.images.to(device), self.labels.to(device)
        return there

    def batch(
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """Images and labels at these indices, which lie on the images' device."""
        del views
        return self.images[indices], self.labels[indices]

    def identity(self) -> dict[str, str]:
        """A hash of all images.

        Raises:
            ValueError: the images are not in memory.
        """
        if not isinstance(self.images, Tensor):
            raise ValueError("images that stay files have no identity that is quickly told: set in_memory to true")
        digest = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        for image in self.images.contiguous().split(1024):
            digest.update(image.cpu().numpy())
        return {"images": digest.hexdigest(), "augmentation": "none"}


class Parts(NamedTuple):
    """The three parts of a dataset; the test part chooses nothing."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages


def check_labels(labels: Real[Tensor, " N"], num_classes: int, part: str) -> None:
    """Raise ValueError that names the label when one lies outside ``0 … num_classes - 1``; a regression has none."""
    if labels.is_floating_point():
        return
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"label {int(wrong[0])} in the {part} part is out of range: {num_classes} classes have the labels "
            f"0 … {num_classes - 1} ({len(wrong)} of {len(labels)} labels are out of range)"
        )


class NumberedImages(Dataset[tuple[Any, ...]]):
    """Adds to each image and label the index that it was asked for by, and, if wished, the number of the view.

    Args:
        source: gives images and labels.
        with_views: say also which view of the image it is.

    Raises:
        ValueError: the views were asked for, but there is no end of them.
    """

    def __init__(self, source: Dataset[tuple[Tensor, Tensor]], with_views: bool = False) -> None:
        self.source = source
        self.numbered = finite_views(source) if with_views else None

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, ...]]:
        """A whole batch at once, where the source has that; the DataLoader prefers this to ``__getitem__``."""
        at_once = getattr(self.source, "__getitems__", None)
        items = at_once(indices) if at_once else [self.source[index] for index in indices]
        numbers = [indices] if self.numbered is None else [indices, self.numbered.drawn()[indices].tolist()]
        return [(*item, *row) for item, *row in zip(items, *numbers, strict=True)]


def finite_views(images: object) -> FiniteViews:
    """The training images, if each has finitely many views. Raises ValueError if not."""
    if not isinstance(images, FiniteViews):
        raise ValueError(
            f"{type(images).__name__} draws from endlessly many views of each image, which cannot be numbered: "
            "take augmentation pad_crop_flip or none, or say by n_views how many there shall be"
        )
    return images


class ImageData(LightningDataModule, ABC):
    """Images with labels in three parts: train, validation, test.

    A dataset says ``num_classes`` and gives ``load``; the rest is here. It may augment by ``training_images``.
    Batches for training are ``(images, labels, indices)``, for evaluation ``(images, labels)``. With ``numbers_views``
    those for training are ``(images, labels, indices, views)``.

    Args:
        batch_size: images per training step; the last, smaller batch of an epoch is dropped.
        eval_batch_size: images per step of validation and test.
        num_workers: processes that load data. With 0, images that are in memory are put on the device once, and batches
            are cut there; others are loaded by the main process.
    """

    metrics: tuple[str, ...] = ("accuracy",)  # by which networks are judged; the first is the one that counts
    sample = "image"  # what one is called

    # Whether workers live on from epoch to epoch: only where their own random numbers play no part, for these go on.
    persistent_workers = False

    def __init__(self, batch_size: int = 64, eval_batch_size: int = 512, num_workers: int = 0) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.order_seed = 0  # the run's seed; decides the order of the training images and nothing else
        self.numbers_views = False  # whether training batches say which view of each image they hold
        self._parts: Parts | None = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes there are; a class attribute will do."""

    @abstractmethod
    def load(self) -> Parts:
        """The three parts; called once. The validation part may be empty."""

    def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
        """What is trained on: by index in the training part, an image ``(C, H, W)`` and its label.

        Args:
            sampler: gives the run's seed and the epoch, for what is drawn at random.
        """
        del sampler
        return self.parts.train

    @property
    def parts(self) -> Parts:
        """The three parts, loaded on first use and with labels checked.

        Raises:
            ValueError: labels out of range, or fewer training images than one batch.
        """
        if self._parts is None:
            parts = self.load()
            for name, part in zip(parts._fields, parts, strict=True):
                check_labels(part.labels, self.num_classes, name)
            if len(parts.train) < self.batch_size:
                raise ValueError(
                    f"batch_size is {self.batch_size}, but there are only {len(parts.train)} training images: "
                    "not one full batch; choose a smaller batch_size"
                )
            self._parts = parts
        return self._parts

    def example(self, size: int = 2) -> Float[Tensor, "B C H W"]:
        """The first ``size`` test images, to tell shapes by."""
        test = self.parts.test
        return torch.stack([test[index][0] for index in range(min(size, len(test)))])

    def some(self, part: LabelledImages, indices: Sequence[int]) -> tuple[Any, Tensor]:
        """These samples of a part as a batch, and their labels ``(B,)``."""
        items = [part[index] for index in indices]
        return torch.stack([item[0] for item in items]), torch.stack([torch.as_tensor(item[1]) for item in items])

    def trial_batch(self) -> tuple[Any, Tensor]:
        """A batch as large as in training, to try a step with; here random images and labels."""
        images = torch.randn(self.batch_size, *self.example(1).shape[1:])
        return images, torch.randint(self.num_classes, (self.batch_size,))

    def check_networks(self, *networks: nn.Module) -> None:
        """Raise ValueError where networks, the teacher first, cannot be used with these data; here all can."""

    def preprocessing(self) -> Preprocessing | None:
        """How raw pixels become what the networks take; None where the dataset does not say. Goes into exports."""
        return None

    def train_dataloader(self) -> Loader:
        """Full batches in the order of ``order_seed`` and the epoch.

        A batch is ``(images, labels, indices)``, or, with ``numbers_views``, ``(images, labels, indices, views)``.
        Indices, ``(B,)``, are those in the training part; views, ``(B,)``, say what augmentation made of each image.

        Raises:
            ValueError: the views are to be numbered, but there is no end of them.
        """
        sampler = EpochSampler(len(self.parts.train), self.order_seed, *self._ranks)
        if self.trainer is not None:  # workers start to load a resumed epoch before Lightning calls set_epoch
            sampler.set_epoch(self.trainer.current_epoch)
        images = self.training_images(sampler)
        there = self._resident(images)
        if there is not None:
            numbers = 2 if self.numbers_views else 1
            return ResidentLoader(there, sampler, self.batch_size, self._device, drop_last=True, numbers=numbers)
        return self._loader(
            NumberedImages(images, self.numbers_views),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            generator=sampler.worker_generator,
        )

    @property
    def watched(self) -> Literal["val", "test"]:
        """What is looked at after each epoch: the validation part, or the test part where nothing is held out."""
        return "val" if len(self.parts.val) else "test"

    def val_dataloader(self) -> Loader:
        """All images that are looked at after each epoch, in order; test images among them choose nothing."""
        return self._in_order(getattr(self.parts, self.watched))

    def test_dataloader(self) -> Loader:
        """All test images, in order."""
        return self._in_order(self.parts.test)

    @property
    def _ranks(self) -> tuple[int, int]:
        """How many processes share the work, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _in_order(self, images: LabelledImages) -> Loader:
        if len(images) < self._ranks[0]:  # one without any would leave the others waiting for what it has measured
            raise ValueError(
                f"{len(images)} images to evaluate cannot be shared by {self._ranks[0]} processes, of which each needs "
                "one: take more images, or fewer devices"
            )
        sampler, there = ShareSampler(len(images), *self._ranks), self._resident(images)
        if there is not None:
            return ResidentLoader(there, sampler, self.eval_batch_size, self._device)
        return self._loader(images, batch_size=self.eval_batch_size, sampler=sampler)

    def _resident(self, images: object) -> Resident | None:
        """The images on the device that they are used on, unless workers are to load them or there is no room."""
        return None if self.num_workers else resident(images, self._device)

    def _loader(self, images: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            images,
            num_workers=self.num_workers,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
