"""What happens to training images, and that it hangs on seed, epoch and image alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blockkd.data import EpochSampler, HubImages
from blockkd.data.augmentation import PadCropFlip, RandomResizedCrop, pad_crop_flip
from blockkd.data.pixels import PixelImages
from tests.image_files import PLAIN, datasets, image_folder, own_cache, pixels_of, png, tables

__all__ = ["own_cache"]  # a fixture, used by being here


def oracle(image: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    """Pad by 4 zeros, crop, mirror: pixel by pixel."""
    channels, height, width = image.shape
    window = torch.zeros_like(image)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                y, x = row + top - 4, (width - 1 - column if mirrored else column) + left - 4
                if 0 <= y < height and 0 <= x < width:
                    window[channel, row, column] = image[channel, y, x]
    return window


def test_pad_crop_flip_equals_its_oracle_in_all_162_cases() -> None:
    image = torch.randint(1, 256, (2, 5, 6), dtype=torch.uint8)
    cases = [(top, left, mirrored) for top in range(9) for left in range(9) for mirrored in (False, True)]
    corners = torch.tensor([case[:2] for case in cases])
    flipped = torch.tensor([case[2] for case in cases])
    windows = pad_crop_flip(image.expand(len(cases), -1, -1, -1), corners, flipped)
    for window, case in zip(windows, cases, strict=True):
        assert torch.equal(window, oracle(image, *case)), case


def test_all_162_cases_are_equally_likely_and_nothing_else_occurs() -> None:
    image = torch.randint(1, 256, (1, 6, 6), dtype=torch.uint8)
    possible = {
        oracle(image, top, left, mirrored).numpy().tobytes()
        for top in range(9)
        for left in range(9)
        for mirrored in (False, True)
    }
    assert len(possible) == 162
    copies = 162 * 100
    source = PixelImages(image.repeat(copies, 1, 1, 1), torch.zeros(copies, dtype=torch.int64), (0.0,), (1 / 255,))
    augmented = PadCropFlip(source, EpochSampler(copies, 0)).__getitems__(list(range(copies)))
    seen = Counter(window.round().byte().numpy().tobytes() for window, _ in augmented)
    assert set(seen) == possible
    chi_squared = sum((count - 100) ** 2 / 100 for count in seen.values())
    assert chi_squared < 161 + 4 * (2 * 161) ** 0.5  # mean and four deviations of the distribution with 161 degrees


def test_the_border_is_black_before_normalisation() -> None:
    source = PixelImages(torch.full((200, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(200).long(), (0.5,), (0.25,))
    windows = torch.stack([w for w, _ in PadCropFlip(source, EpochSampler(200, 0)).__getitems__(list(range(200)))])
    assert set(windows.flatten().tolist()) == {-2.0, 2.0}


def epoch_of(path: Path, epoch: int, order_seed: int = 0, **settings: Any) -> dict[int, Tensor]:
    """The augmented images of an epoch by label; every image has its own."""
    data = HubImages(str(path), label_column="label", val_share=0, **{**PLAIN, **settings})
    data.order_seed = order_seed
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return {int(label): image for images, labels, _ in loader for image, label in zip(images, labels, strict=True)}


def same(first: dict[int, Tensor], second: dict[int, Tensor]) -> int:
    assert first.keys() == second.keys()
    return sum(torch.equal(first[label], second[label]) for label in first)


EVERY_WAY = pytest.mark.parametrize(
    ("augmentation", "in_memory"),
    [(name, kept) for name in ("pad_crop_flip", "random_resized_crop") for kept in (True, False)],
)


@EVERY_WAY
def test_augmentation_hangs_on_seed_epoch_and_image_only(tmp_path: Path, augmentation: str, in_memory: bool) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    way: dict[str, Any] = {"augmentation": augmentation, "in_memory": in_memory}
    first = epoch_of(path, 3, **way)
    torch.rand(10)
    assert same(first, epoch_of(path, 3, **way)) == 12
    assert same(first, epoch_of(path, 3, batch_size=4, **way)) == 12
    assert same(first, epoch_of(path, 3, num_workers=2, **way)) == 12
    assert same(first, epoch_of(path, 4, **way)) < 6
    assert same(first, epoch_of(path, 3, order_seed=1, **way)) < 6


@EVERY_WAY
@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_loader_draws_anew_each_epoch_and_again_the_same(
    tmp_path: Path, augmentation: Any, in_memory: bool, num_workers: int
) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    way: dict[str, Any] = {"augmentation": augmentation, "in_memory": in_memory, "num_workers": num_workers}
    data = HubImages(str(path), label_column="label", val_share=0, **way, **PLAIN)
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.set_epoch(epoch)
        epochs.append(
            {int(label): image for images, labels, _ in loader for image, label in zip(images, labels, strict=True)}
        )
    assert same(epochs[0], epochs[1]) < 6
    assert same(epochs[0], epochs[2]) == 12
    assert same(epochs[1], epoch_of(path, 1, augmentation=augmentation)) == 12  # whoever loads it, and how


def test_random_resized_crop_leaves_the_processs_own_random_numbers_alone(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    data = HubImages(str(path), label_column="label", val_share=0, augmentation="random_resized_crop", **PLAIN)
    images = data.training_images(EpochSampler(12, 0))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    images[0]
    assert torch.equal(torch.rand(3), expected)


def test_random_resized_crop_draws_boxes_of_the_fields_areas_and_shapes() -> None:
    side, size, copies = 240, 24, 600
    ramp = torch.arange(side, dtype=torch.uint8)
    # Red says in which column a pixel was, green in which row; scaling keeps a ramp a ramp but for the border.
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side).byte()])
    source = PixelImages(image.expand(copies, -1, -1, -1), torch.zeros(copies).long(), (0.0,) * 3, (1 / 255,) * 3)
    crops = RandomResizedCrop(source, EpochSampler(copies, 0), (size, size)).windows(list(range(copies)))[0].double()
    assert crops.shape == (copies, 3, size, size)
    widths = (crops[:, 0, 12, -2] - crops[:, 0, 12, 2]) * size / (size - 4)
    heights = (crops[:, 1, -2, 12] - crops[:, 1, 2, 12]) * size / (size - 4)
    areas, shapes = (widths.abs() * heights) / side**2, widths.abs() / heights
    assert 0.07 < float(areas.min()) < 0.12
    assert 0.9 < float(areas.max()) < 1.02
    assert 0.73 < float(shapes.min()) < 0.78
    assert 1.28 < float(shapes.max()) < 1.37
    assert abs(int((widths < 0).sum()) - copies / 2) < 4 * (copies / 4) ** 0.5  # mirrored
    assert bool((heights > 0).all())


def test_random_resized_crop_scales_whole_images_that_stay_encoded(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=4)
    for row in range(4):  # white at the far left only, which the middle square does not reach
        wide = Image.new("RGB", (40, 8))
        wide.paste((255, 255, 255), (0, 0, 8, 8))
        wide.save(path / f"train/ant/{row:02}.png")

    def brightest(in_memory: bool) -> float:
        data = HubImages(str(path), image_side=8, val_share=0, augmentation="random_resized_crop",
                         in_memory=in_memory, **PLAIN)  # fmt: skip
        sampler = EpochSampler(12, 0)
        images = data.training_images(sampler)
        seen = []
        for epoch in range(10):
            sampler.set_epoch(epoch)
            seen += [float(images[index][0].max()) for index in range(4)]
        return max(seen)

    assert brightest(in_memory=False) == 1.0
    assert brightest(in_memory=True) == 0.0


def test_only_training_images_are_augmented_and_only_if_asked(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    plain = {index: pixels_of(png(index)) for index in range(12)}
    unaugmented = epoch_of(path, 0, augmentation=None)
    assert all(torch.allclose(unaugmented[label], plain[label], atol=1e-7) for label in plain)
    assert same(unaugmented, epoch_of(path, 0)) < 6
    data = HubImages(str(path), label_column="label", val_share=0, **PLAIN)
    ((images, _),) = data.test_dataloader()
    assert torch.allclose(images[3], pixels_of(png(1003)), atol=1e-7)
