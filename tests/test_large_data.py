"""Images that stay encoded until they are used: the same as in memory, corrupt or not; and the limit of memory."""

import pickle
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._utils import ExceptionWrapper

from blockkd.data import HubImages, ImageFileError, memory
from blockkd.data.augmentation import CountedCrops
from blockkd.data.corrupt import CorruptImageError
from blockkd.data.images import Loader
from blockkd.data.pixels import EncodedImages
from blockkd.data.sampling import EpochSampler
from tests.image_files import PLAIN, image_folder, own_cache, picture, pixels_of, png, tables

__all__ = ["own_cache"]  # a fixture, used by being here


def encoded(path: Path, **settings: Any) -> HubImages:
    return HubImages(str(path), in_memory=False, **{**PLAIN, "val_share": 0, **settings})


def batches(loader: Loader) -> list[list[Tensor]]:
    return [list(batch) for batch in loader]


def equal(first: list[list[Tensor]], second: list[list[Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, two) for pair in zip(first, second, strict=True) for one, two in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("settings", [{}, {"image_side": 6}, {"image_side": 5, "resize_side": 7}, {"train_images": 9}])
def test_encoded_images_are_those_in_memory(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tables(tmp_path / "data", [0, 1, 2] * 8, [2, 0, 1])
    large = encoded(path, val_share=0.25, **settings)
    small = HubImages(str(path), val_share=0.25, **settings, **PLAIN)
    assert all(isinstance(part, EncodedImages) for part in large.parts)
    assert [len(part) for part in large.parts] == [len(part) for part in small.parts]
    for name in ("train", "val", "test"):
        assert equal(*(batches(getattr(data, f"{name}_dataloader")()) for data in (large, small)))
    assert torch.equal(large.example(), small.example())


def test_workers_load_the_same_batches_epoch_after_epoch(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=8)
    loaders = [encoded(path, num_workers=workers, augmentation="random_resized_crop", batch_size=4).train_dataloader()
               for workers in (0, 2)]  # fmt: skip
    for epoch in (0, 1, 5):
        for loader in loaders:
            assert isinstance(loader.sampler, EpochSampler)
            loader.sampler.set_epoch(epoch)
        assert equal(*(batches(loader) for loader in loaders))


def test_evaluation_sees_the_middle_of_the_resized_image(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=4)
    wide = picture(99, height=30, width=45)
    wide.save(path / "test/ant/00.png")
    seen = encoded(path, image_side=14, resize_side=16).parts.test[0][0] * 255
    resized = np.asarray(wide.resize((24, 16), Image.Resampling.BILINEAR)).astype(float)
    wanted = torch.from_numpy(resized[1:15, 5:19]).permute(2, 0, 1)
    assert seen.shape == (3, 14, 14)
    assert float((seen - wanted).abs().max()) < 1.5  # rounding: Pillow's, torch's


def test_images_of_several_sizes_need_a_side(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=4)
    picture(99, height=8, width=9).save(path / "train/ant/01.png")
    data = encoded(path, augmentation=None, batch_size=12)
    with pytest.raises(ImageFileError, match=r"image \d+ of the train split is .*set image_side"):
        batches(data.train_dataloader())
    picture(99, height=6, width=6).save(path / "test/ant/00.png")
    with pytest.raises(ValueError, match="training images are 8×8 pixels, test images 6×6"):
        encoded(path).example()
    assert encoded(path, image_side=4, batch_size=12).example().shape == (2, 3, 4, 4)


def test_parts_can_be_sent_to_workers_that_do_not_fork(tmp_path: Path) -> None:
    part = encoded(tables(tmp_path / "data", [0, 1] * 4)).parts.train
    assert isinstance(part, EncodedImages)
    sent = ForkingPickler.loads(ForkingPickler.dumps(part))
    assert all(torch.equal(sent[index][0], part[index][0]) for index in range(8))
    sent.corrupt.add("train", 3, CorruptImageError("no image"))
    assert ("train", 3) in part.corrupt  # both look at the same memory


# Corrupt images


def broken_folder(tmp_path: Path, *broken: str) -> Path:
    """Four images each of ant (0-3), bee (4-7) and cat (8-11); pictures 12 … 17 to test on."""
    path = image_folder(tmp_path / "data", per_class=4)
    for name in broken:
        (path / name).write_bytes(b"no image")
    return path


@pytest.mark.filterwarnings("ignore:.*is corrupt")
def test_the_next_readable_image_stands_in_for_a_corrupt_one_with_its_label(tmp_path: Path) -> None:
    path = broken_folder(tmp_path, "train/ant/02.png", "train/ant/03.png", "train/cat/03.png")
    data = encoded(path, max_corrupt=3, augmentation=None)
    train = data.parts.train
    with pytest.warns(UserWarning, match=r"image 2 of the train split \(.*ant.02.png: not an image file\) is corrupt"):
        items = [train[index] for index in range(12)]
    with warnings.catch_warnings(action="error"):
        train[2]  # said once
    wanted = [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
    assert [int(label) for _, label in items] == [row // 4 for row in wanted]
    for (image, _), row in zip(items, wanted, strict=True):
        assert torch.equal((image * 255).round().byte(), (pixels_of_picture(row) * 255).round().byte())
    again = encoded(path, max_corrupt=3, augmentation=None).parts.train
    with pytest.warns(UserWarning, match="is corrupt"):
        backwards = [again[index] for index in reversed(range(12))][::-1]
    assert equal([list(item) for item in items], [list(item) for item in backwards])


def pixels_of_picture(seed: int) -> Tensor:
    return pixels_of(png(seed))


def test_a_stand_in_for_a_training_image_is_never_a_validation_image(tmp_path: Path) -> None:
    path = broken_folder(tmp_path, *(f"train/bee/{number:02}.png" for number in range(4)))
    data = encoded(path, val_share=0.25, max_corrupt=4, augmentation=None, batch_size=9)
    with pytest.warns(UserWarning, match="is corrupt"):
        train, val = (
            {part[index][0].numpy().tobytes() for index in range(len(part))}
            for part in (data.parts.train, data.parts.val)
        )
    assert not train & val


@pytest.mark.filterwarnings("ignore:.*is corrupt")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images_are_counted_once_over_all_workers(tmp_path: Path, num_workers: int) -> None:
    path = broken_folder(tmp_path, "train/ant/02.png", "train/cat/03.png", "test/bee/01.png")
    data = encoded(path, max_corrupt=3, num_workers=num_workers)
    loader = data.train_dataloader()
    for _ in range(2):
        assert len(batches(loader)) == 6
    batches(data.test_dataloader())
    with pytest.warns(
        UserWarning, match="^3 corrupt so far.*: image 2 of the train split; image 11 .*; image 3 of the t"
    ):
        data.teardown("fit")
    with warnings.catch_warnings(action="error"):
        data.teardown("test")  # nothing new to say


@pytest.mark.filterwarnings("ignore:.*is corrupt")
def test_more_corrupt_images_than_allowed_end_the_epoch(tmp_path: Path) -> None:
    path = broken_folder(tmp_path, *(f"train/{name}/02.png" for name in ("ant", "bee", "cat")))
    loader = encoded(path, max_corrupt=2).train_dataloader()
    with pytest.raises(ImageFileError, match=r"^image .*02.png: not an image file\) is corrupt, and 2 corrupt images"):
        batches(loader)


def test_an_error_that_comes_out_of_a_worker_is_still_one_sentence(tmp_path: Path) -> None:
    path = broken_folder(tmp_path, "train/ant/02.png")
    try:
        encoded(path, max_corrupt=0).parts.train[2]
    except ImageFileError:
        # What a DataLoader does with it; a real one takes ten seconds to end workers after an error.
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ImageFileError) as caught:
        sent.reraise()
    assert str(caught.value) == (
        f"image 2 of the train split ({path}/train/ant/02.png: not an image file) is corrupt, and 0 corrupt images are "
        "allowed (max_corrupt): repair or remove it, or allow more"
    )


@pytest.mark.filterwarnings("ignore:.*is corrupt")
def test_a_part_without_any_readable_image_is_refused(tmp_path: Path) -> None:
    path = broken_folder(
        tmp_path, *(f"test/{name}/0{number}.png" for name in ("ant", "bee", "cat") for number in (0, 1))
    )
    with pytest.raises(ImageFileError, match="the test split has no image that can be read"):
        encoded(path).example()


def test_the_sentence_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageFileError("image 3 is corrupt")))
    assert str(error) == "image 3 is corrupt"


# Memory


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tables(tmp_path / "data", [0, 1] * 10, [0, 1, 1])
    needed = 23 * 3 * 8 * 8
    monkeypatch.setattr(memory, "machine_memory", lambda: needed)
    assert len(HubImages(str(path), **PLAIN).parts.test) == 3
    monkeypatch.setattr(memory, "machine_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"23 images of 8×8 pixels need 0.0 GB .*set in_memory to false"):
        HubImages(str(path), **PLAIN).example()
    assert HubImages(str(path), image_side=7, **PLAIN).example().shape == (2, 3, 7, 7)
    assert encoded(path).example().shape == (2, 3, 8, 8)


def test_the_machine_says_how_much_memory_it_has() -> None:
    there = memory.machine_memory()
    assert there is None or 2**27 < there < 2**50


def test_images_that_stay_files_are_known_by_which_they_are_and_by_some_of_them(tmp_path: Path) -> None:
    def identity(path: Path, **settings: Any) -> dict[str, str]:
        return encoded(path, **settings).parts.train.identity()

    path = image_folder(tmp_path / "data", per_class=8)
    first = identity(path)
    assert first == identity(path)
    assert "files)" in first["images"]
    assert first != identity(path, image_side=4)
    assert identity(path, val_share=0.25) != identity(path, val_share=0.25, split_seed=1)
    assert first["normalisation"] != identity(path, mean=(0.1, 0.2, 0.3))["normalisation"]
    picture(99).save(path / "train" / "bee" / "03.png")
    assert first != identity(path)


def test_a_number_of_views_belongs_to_random_resized_crops(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=8)
    data = encoded(path, augmentation="random_resized_crop", n_views=2)
    assert isinstance(data.training_images(EpochSampler(len(data.parts.train), 0)), CountedCrops)
    for wrong in ({"n_views": 0, "augmentation": "random_resized_crop"}, {"n_views": 2, "augmentation": None}):
        with pytest.raises(ValueError, match="expected 1 or more, of random_resized_crop"):
            encoded(path, **wrong)
