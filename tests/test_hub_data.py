"""Images from a folder or parquet: what is read, and how it is split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blockkd.data import HubImages
from blockkd.data.pixels import PixelImages
from blockkd.data.splitting import choose, hold_out
from tests.image_files import PLAIN, datasets, image_folder, own_cache, picture, pixels_of, png, refuses, table, tables
from tests.models.shared_data import data_file

__all__ = ["own_cache"]  # a fixture, used by being here


# What is read


def test_a_folder_of_images_is_three_parts_with_the_folders_as_classes(tmp_path: Path) -> None:
    data = HubImages(str(image_folder(tmp_path / "data")), val_share=0.2, **PLAIN)
    assert (data.num_classes, data.class_names) == (3, ["ant", "bee", "cat"])
    assert [len(part) for part in data.parts] == [24, 6, 6]
    first_test, label = data.parts.test[0]
    assert torch.equal(
        (first_test * 255).round().byte(), torch.from_numpy(np.asarray(picture(30)).copy()).permute(2, 0, 1)
    )
    assert int(label) == 0
    assert data.parts.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_parquet_keeps_the_order_of_its_class_names(tmp_path: Path) -> None:
    data = HubImages(str(tables(tmp_path / "data", [0, 1, 2] * 4, [2, 0])), val_share=0, **PLAIN)
    assert data.class_names == ["zebra", "ant", "bee"]
    assert data.parts.train.labels.tolist() == [0, 1, 2] * 4
    assert data.parts.test.labels.tolist() == [2, 0]
    assert torch.allclose(data.parts.train[5][0], pixels_of(png(5)), atol=1e-7)
    assert torch.allclose(data.parts.test[1][0], pixels_of(png(1001)), atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "train", "test", "names"),
    [
        ("string", ["owl", "bat", "owl", "bat"], ["bat", "owl"], ["bat", "owl"]),
        ("int64", [10, 9, 10, 9], [9, 10], ["9", "10"]),  # by size, not alphabetically
    ],
)
def test_labels_of_other_types_are_numbered_in_order(
    tmp_path: Path, dtype: str, train: list[Any], test: list[Any], names: list[str]
) -> None:
    path = tables(tmp_path / "data", train, test, datasets.Value(dtype))
    data = HubImages(str(path), label_column="label", val_share=0, **PLAIN)
    assert data.class_names == names
    assert data.parts.train.labels.tolist() == [1, 0, 1, 0]
    assert data.parts.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("layout", ["struct", "binary"])
def test_parquet_without_the_hubs_metadata_is_read(tmp_path: Path, layout: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for split in ("train", "test"):
        images: list[Any] = [png(index) for index in range(4)]
        if layout == "struct":
            images = [{"bytes": image, "path": None} for image in images]
        parquet.write_table(
            pyarrow.table({"photo": images, "kind": ["a", "b", "a", "b"]}), tmp_path / f"{split}.parquet"
        )
    # A struct of bytes and path can only be an image; a column of bytes has to be named.
    column = None if layout == "struct" else "photo"
    data = HubImages(str(tmp_path), image_column=column, label_column="kind", val_share=0, **PLAIN)
    assert torch.allclose(data.parts.train[3][0], pixels_of(png(3)), atol=1e-7)


def test_validation_is_the_test_part_where_there_is_no_test(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", [0, 1] * 4, [1, 0, 1], test_name="validation")
    assert HubImages(str(path), val_share=0, **PLAIN).parts.test.labels.tolist() == [1, 0, 1]


def test_test_comes_before_validation_unless_another_is_named(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", [0, 1] * 4, [1, 0, 1], test_name="validation")
    tables(path, [0, 1] * 4, [0, 0])
    assert len(HubImages(str(path), val_share=0, **PLAIN).parts.test) == 2
    assert len(HubImages(str(path), val_share=0, test_split="validation", **PLAIN).parts.test) == 3


def test_columns_are_chosen_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "data"
    coarse = datasets.ClassLabel(names=["small", "large"])
    for split in ("train", "test"):
        fine = datasets.ClassLabel(names=["a", "b", "c"])
        table(path, split, [png(i) for i in range(6)], [0, 1, 2] * 2, fine, coarse=(coarse, [0, 0, 1] * 2))
    refuses(r"2 columns are of type ClassLabel.*set label_column.*img \(Image\), label \(ClassLabel\), coarse", path)
    data = HubImages(str(path), label_column="coarse", val_share=0, **PLAIN)
    assert data.class_names == ["small", "large"]
    assert data.parts.train.labels.tolist() == [0, 0, 1, 0, 0, 1]


def test_a_configuration_is_chosen_by_name(tmp_path: Path) -> None:
    for name, names in (("two", ["a", "b"]), ("three", ["a", "b", "c"])):
        for split in ("train", "test"):
            label = datasets.ClassLabel(names=names)
            table(tmp_path, f"{name}-{split}", [png(0), png(1), png(2), png(3)], [0, 1] * 2, label)
    entries = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}-{split}.parquet\n" for split in ("train", "test"))
        for name in ("two", "three")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    assert HubImages(str(tmp_path), subset="three", val_share=0, **PLAIN).num_classes == 3
    assert HubImages(str(tmp_path), subset="two", val_share=0, **PLAIN).num_classes == 2
    refuses("three", tmp_path)


# Pixels


def test_items_are_normalised_per_channel(tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    path = tables(tmp_path / "data", [0, 1] * 3)
    data = HubImages(str(path), val_share=0, mean=mean, std=std, batch_size=2, augmentation=None)
    expected = pixels_of(png(1))
    for channel in range(3):
        expected[channel] = (expected[channel] - mean[channel]) / std[channel]
    train = data.parts.train
    assert isinstance(train, PixelImages)
    assert torch.allclose(train[1][0], expected, atol=1e-6)
    assert torch.equal(train.__getitems__([0, 1])[1][0], train[1][0])
    assert train.images.dtype == torch.uint8


def test_the_defaults_are_those_of_cifar100(tmp_path: Path) -> None:
    data = HubImages(str(tables(tmp_path / "data", [0, 1] * 3)), val_share=0, batch_size=2)
    mean, std = torch.tensor([0.5071, 0.4867, 0.4408]), torch.tensor([0.2675, 0.2565, 0.2761])
    expected = (pixels_of(png(0)) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(data.parts.train[0][0], expected, atol=1e-6)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_of_other_modes_are_converted(tmp_path: Path, channels: int, mode: str) -> None:
    path = image_folder(tmp_path / "data", per_class=2)
    picture(77, mode="L").save(path / "train/ant/00.png")
    picture(78, mode="RGBA").save(path / "train/ant/01.png")
    data = HubImages(str(path), channels=channels, mean=(0,) * channels, std=(1,) * channels, batch_size=2, val_share=0)
    for index, (seed, kept_as) in enumerate([(77, "L"), (78, "RGBA")]):
        wanted = np.asarray(picture(seed, mode=kept_as).convert(mode)).reshape(8, 8, channels)
        assert np.array_equal(data.parts.train.images[index].permute(1, 2, 0).numpy(), wanted)


def test_images_of_several_sizes_are_refused_or_scaled(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=2)
    wide = Image.new("RGB", (36, 8))
    wide.paste((255, 255, 255), (10, 0, 26, 8))  # white in and near the middle square, black at both sides
    wide.save(path / "train/ant/01.png")
    refuses(r"image 1 of the train split is 8×36 pixels, image 0 is 8×8.*set image_side", path, val_share=0)
    data = HubImages(str(path), image_side=4, val_share=0, **PLAIN)
    assert data.parts.train.images.shape == (6, 3, 4, 4)
    assert bool((data.parts.train.images[1] == 255).all())
    for seed in range(30, 36):
        picture(seed, 6, 6).save(path / f"test/{['ant', 'bee', 'cat'][(seed - 30) // 2]}/{seed % 2:02}.png")
    (path / "train/ant/01.png").unlink()
    refuses(r"training images are 8×8 pixels, test images 6×6: set image_side", path, val_share=0)


def test_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=2)
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(path / "train/bee/00.png")
    refuses(r"image 2 of the train split has more than 8 bits per channel", path, val_share=0)


# The validation part


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.1, 0.25, 0.5]))
def test_what_is_held_out_is_stratified_and_not_trained_on(seed: int, share: float) -> None:
    labels = torch.tensor([0, 1, 2, 3] * 20)[torch.randperm(80)]
    rest, held_out = hold_out(labels, share, seed)
    assert sorted(rest + held_out) == list(range(80))
    assert torch.bincount(labels[held_out]).tolist() == [round(20 * share)] * 4


def test_validation_and_training_share_no_image_and_hang_on_the_split_seed(tmp_path: Path) -> None:
    path = str(tables(tmp_path / "data", [0, 1, 2] * 10))

    def rows(part: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in part.images}

    first, again = (HubImages(path, val_share=0.2, **PLAIN) for _ in range(2))
    again.order_seed = 5
    other = HubImages(path, val_share=0.2, split_seed=1, **PLAIN)
    train, val = rows(first.parts.train), rows(first.parts.val)
    assert (len(train), len(val), len(train | val)) == (24, 6, 30)
    assert rows(again.parts.val) == val != rows(other.parts.val)
    assert rows(other.parts.test) == rows(first.parts.test)


def test_images_keep_their_labels_through_the_split(tmp_path: Path) -> None:
    labels = [0, 1, 2] * 10
    data = HubImages(str(tables(tmp_path / "data", labels)), val_share=0.2, **PLAIN)
    label_of = {(pixels_of(png(index)) * 255).round().byte().numpy().tobytes(): labels[index] for index in range(30)}
    for part in (data.parts.train, data.parts.val):
        for image, label in zip(part.images, part.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == int(label)


def test_a_share_that_cannot_be_stratified_is_refused(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", [0, 0, 0, 0, 1])
    refuses(r"cannot hold val_share = 0.4 out of 5 training images of 2 classes.*Choose another", path, val_share=0.4)


def test_training_on_everything_leaves_validation_empty(tmp_path: Path) -> None:
    data = HubImages(str(tables(tmp_path / "data", [0, 1, 2] * 4)), val_share=0, **PLAIN)
    assert [len(part) for part in data.parts] == [12, 0, 2]
    assert data.parts.val.images.shape == (0, 3, 8, 8)
    assert data.watched == "test"
    ((watched, _),) = data.val_dataloader()
    assert torch.equal(watched[0], data.parts.test[0][0])
    assert HubImages(data.path, val_share=0.25, **PLAIN).watched == "val"


# A part of the training images


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=8), st.floats(0, 1), st.integers(0, 1000))
def test_every_class_gets_its_share_of_the_chosen_and_more_adds_to_less(
    sizes: list[int], share: float, seed: int
) -> None:
    labels = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    labels = labels[torch.randperm(len(labels))]
    count = max(1, int(share * len(labels)))
    chosen = choose(labels, count, seed)
    assert len(set(chosen)) == len(chosen) == count
    assert chosen == sorted(chosen) == choose(labels, count, seed)
    counts = torch.bincount(labels[chosen], minlength=len(sizes)).tolist()
    for size, got in zip(sizes, counts, strict=True):
        for other, others in zip(sizes, counts, strict=True):  # no class would be nearer to its share with another's
            assert (got - 0.5) / size <= (others + 0.5) / other + 1e-9
            assert size != other or abs(got - others) <= 1
    assert set(chosen) <= set(choose(labels, min(count + 3, len(labels)), seed))


def test_every_image_is_as_likely_to_be_chosen_as_any_other_of_its_class() -> None:
    labels = torch.tensor([0, 1, 2, 3] * 5)
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[choose(labels, 6, seed)] += 1
    assert (counts - 600).abs().max() < 4.5 * (2000 * 0.3 * 0.7) ** 0.5  # deviations of a binomial distribution


def test_fewer_training_images_leave_validation_and_test_as_they_are(tmp_path: Path) -> None:
    path = str(tables(tmp_path / "data", [0, 1, 2] * 10))
    few, everything = (HubImages(path, val_share=0.2, train_images=count, **PLAIN) for count in (7, None))
    assert [len(part) for part in few.parts] == [7, 6, 2]
    for part in ("val", "test"):
        assert torch.equal(getattr(few.parts, part).images, getattr(everything.parts, part).images)
    train = everything.parts.train
    chosen = choose(train.labels, 7, 0)
    assert torch.equal(few.parts.train.images, train.images[chosen])
    assert sorted(torch.bincount(few.parts.train.labels).tolist()) == [2, 2, 3]
    other = HubImages(path, val_share=0.2, train_images=7, split_seed=1, **PLAIN)
    assert not torch.equal(other.parts.train.images, few.parts.train.images)


def test_more_training_images_than_there_are_are_refused(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", [0, 1] * 10)
    refuses("train_images is 17, but there are only 16", path, val_share=0.2, train_images=17)


# The real thing


def test_the_test_part_of_cifar100_is_complete(tmp_path: Path) -> None:
    for split in ("train", "test"):  # the 50,000 training images would take too long here
        (tmp_path / f"{split}.parquet").symlink_to(data_file("cifar100/test.parquet"))
    data = HubImages(str(tmp_path), val_share=0, train_images=1000)
    test = data.parts.test
    assert test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert torch.bincount(data.parts.train.labels).tolist() == [10] * 100
    assert data.class_names[:2] == ["apple", "aquarium_fish"]
