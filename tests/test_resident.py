"""Batches cut on the device are the DataLoader's batches."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import blockkd
from blockkd.data import Digits, EpochSampler, HubImages, LabelledImages
from blockkd.data.augmentation import PADDING, PadCropFlip, RandomResizedCrop, crop_flip, pad
from blockkd.data.pixels import PixelImages
from blockkd.data.resident import ResidentLoader, resident
from blockkd.data.sampling import ShareSampler
from blockkd.divergence import FiniteWatch
from blockkd.training import DistillationModule
from tests.image_files import PLAIN, datasets, own_cache, tables
from tests.test_training import trainer

__all__ = ["own_cache"]  # a fixture, used by being here

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pictures(count: int = 37) -> PixelImages:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=generator)
    return PixelImages(pixels, torch.arange(count), MEAN, STD)


def batches(loader: Any, epoch: int) -> list[list[Tensor]]:
    loader.sampler.set_epoch(epoch)
    return [list(batch) for batch in loader]


def assert_same(first: list[list[Tensor]], second: list[list[Tensor]]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert len(one) == len(other)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("numbers_views", [False, True])
@pytest.mark.parametrize("augmentation", ["pad_crop_flip", None])
def test_batches_are_those_of_workers_bit_for_bit(tmp_path: Path, augmentation: Any, numbers_views: bool) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    settings = {**PLAIN, "augmentation": augmentation, "batch_size": 5, "eval_batch_size": 7}
    ways = [HubImages(str(path), label_column="label", val_share=0, num_workers=n, **settings) for n in (0, 1)]
    for data in ways:
        data.order_seed, data.numbers_views = 3, numbers_views
    resident_one, ordinary = (data.train_dataloader() for data in ways)
    assert isinstance(resident_one, ResidentLoader)
    assert isinstance(ordinary, DataLoader)
    for epoch in (0, 2):
        assert_same(batches(resident_one, epoch), batches(ordinary, epoch))
    assert_same(
        [list(batch) for batch in ways[0].test_dataloader()], [list(batch) for batch in ways[1].test_dataloader()]
    )


def test_images_padded_once_for_all_give_the_same_views() -> None:
    images = PadCropFlip(pictures(), EpochSampler(37, 0))
    padded = images.on(CPU)
    assert padded is not None
    padded._padded = pad(pictures().images)  # as on a device that is not the CPU
    indices = torch.randperm(37)[:20]
    views = torch.randint(0, images.n_views, (20,))
    for one, other in zip(images.batch(indices, views), padded.batch(indices, views), strict=True):
        assert torch.equal(one, other)


def test_one_gather_cuts_what_slices_cut() -> None:
    padded = pad(pictures(4).images)
    corners = torch.tensor([[0, 0], [8, 8], [3, 5], [7, 1], [4, 4]])
    indices, flipped = torch.tensor([3, 0, 1, 1, 2]), torch.tensor([True, False, True, False, True])
    for number, window in enumerate(crop_flip(padded, indices, corners, flipped)):
        (row, column), height, width = corners[number].tolist(), padded.shape[2] - 2 * PADDING, padded.shape[3] - 8
        expected = padded[indices[number], :, row : row + height, column : column + width]
        assert torch.equal(window, expected.flip(2) if flipped[number] else expected)


def test_images_on_the_cpu_are_not_copied() -> None:
    source = pictures()
    there = resident(PadCropFlip(source, EpochSampler(37, 0)), CPU)
    assert isinstance(there, PadCropFlip)
    assert there.source.images.data_ptr() == source.images.data_ptr()


def test_what_makes_its_items_otherwise_is_loaded_item_by_item() -> None:
    class Brighter(PixelImages):
        def whole(self, indices: list[int]) -> tuple[Tensor, Tensor]:
            pixels, labels = super().whole(indices)
            return pixels // 2 + 128, labels

    class Doubled(LabelledImages):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return 2 * self.images[index], self.labels[index]

    brighter = Brighter(pictures().images, torch.arange(37), MEAN, STD)
    doubled = Doubled(torch.rand(5, 1, 4, 4), torch.arange(5))
    endless = RandomResizedCrop(pictures(), EpochSampler(37, 0), (6, 5))
    assert resident(brighter, CPU) is None
    assert resident(doubled, CPU) is None
    assert resident(endless, CPU) is None
    assert resident(LabelledImages(torch.rand(5, 1, 4, 4), torch.arange(5)), CPU) is not None

    class OwnItems(Digits):
        def load(self) -> Any:
            train, val, test = super().load()
            return type(super().load())(Doubled(train.images, train.labels), val, test)

    images, _, indices = next(iter(OwnItems().train_dataloader()))
    assert torch.equal(images, 2 * Digits().parts.train.images[indices])


def test_what_has_no_room_is_loaded_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def little(nbytes: int, device: torch.device) -> bool:
        return device == CPU and nbytes < 37 * 3 * 14 * 13

    monkeypatch.setattr("blockkd.data.resident.has_room", little)
    assert resident(pictures(), CPU) is not None  # 37 · 3 · 6 · 5 bytes
    assert resident(PadCropFlip(pictures(), EpochSampler(37, 0)), CPU) is None  # padded by 4 on each side


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_batches_of_all_processes_together_are_those_of_one(ranks: int) -> None:
    whole = EpochSampler(50, seed=4)
    shares = [EpochSampler(50, 4, ranks, rank) for rank in range(ranks)]
    for epoch in (0, 5):
        for sampler in (whole, *shares):
            sampler.set_epoch(epoch)
        orders = [list(share) for share in shares]
        assert {len(order) for order in orders} == {50 // ranks}
        size = 3
        for number in range(50 // ranks // size):
            together = {i for order in orders for i in order[number * size : (number + 1) * size]}
            assert together == set(list(whole)[number * size * ranks : (number + 1) * size * ranks])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_processes_share_what_is_evaluated_without_loss_or_repetition(ranks: int) -> None:
    shares = [ShareSampler(10, ranks, rank) for rank in range(ranks)]
    assert sorted(index for share in shares for index in share) == list(range(10))
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]


class Reads(TorchDispatchMode):
    """Counts how often the host asks for a value, which on a GPU is to wait for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with a fused optimizer: whatever is read, is read once an epoch."""
    monkeypatch.setattr(FiniteWatch, "first_bad", Mock(return_value=None))
    monkeypatch.setattr("blockkd.baselines.logits.check_logits", Mock())  # it looks at labels on the CPU only
    reads: list[int] = []
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))

    class Watched(DistillationModule):
        def on_train_batch_end(self, *args: Any) -> None:
            del args
            reads.append(mode.count)

    module = Watched(blockkd.KD(teacher, student), partial(torch.optim.SGD, lr=0.1))
    mode = Reads()  # type: ignore[no-untyped-call]
    with mode:
        trainer(tmp_path, epochs=2).fit(module, datamodule=Digits())
    steps = len(reads) // 2
    for epoch in (reads[:steps], reads[steps:]):
        assert len(set(epoch)) == 1
