"""Images from a folder or parquet: what is read, how it is augmented, and what is said of bad input."""

import io
import os
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from blockkd.data import EpochSampler, HubImages
from blockkd.data.pixels import AugmentedImages, PixelImages, pad_crop_flip

datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")

REAL = Path(os.environ.get("BLOCKKD_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar100"
PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "batch_size": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(seed: int, height: int = 8, width: int = 8, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def pixels_of(encoded: bytes) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(encoded))).copy()).permute(2, 0, 1).float() / 255


def image_folder(root: Path, per_class: int = 10, classes: Sequence[str] = ("ant", "bee", "cat")) -> Path:
    """``root/train/CLASS/*.png`` and two images per class in ``root/test``."""
    seed = 0
    for split, count in (("train", per_class), ("test", 2)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                picture(seed).save(root / split / name / f"{index:02}.png")
                seed += 1
    return root


def table(root: Path, split: str, images: Sequence[Any], labels: Sequence[Any], label: Any, **more: Any) -> None:
    """Write ``root/split.parquet`` in the hub's layout."""
    root.mkdir(exist_ok=True)
    features = datasets.Features(
        {"img": datasets.Image(), "label": label, **{name: f for name, (f, _) in more.items()}}
    )
    columns = {"img": [image and {"bytes": image, "path": None} for image in images], "label": list(labels)}
    columns |= {name: values for name, (_, values) in more.items()}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(root / f"{split}.parquet"))


def tables(
    root: Path, train: Sequence[Any], test: Sequence[Any] = (0, 1), label: Any = None, test_name: str = "test"
) -> Path:
    """Train and test with the given labels; image ``i`` of train is ``png(i)``, of test ``png(1000 + i)``."""
    label = label or datasets.ClassLabel(names=["zebra", "ant", "bee"])
    table(root, "train", [png(index) for index in range(len(train))], train, label)
    table(root, test_name, [png(1000 + index) for index in range(len(test))], test, label)
    return root


def refuses(match: str, path: Path, **settings: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        HubImages(str(path), **{**PLAIN, **settings}).example()
    assert "\n" not in str(caught.value)


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
    refuses(r"image 2 of the train split has more than 8 bits per channel", path)


# The validation part


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.1, 0.25, 0.5]))
def test_what_is_held_out_is_stratified_and_not_trained_on(seed: int, share: float) -> None:
    from blockkd.data.hub import _hold_out

    labels = torch.tensor([0, 1, 2, 3] * 20)[torch.randperm(80)]
    rest, held_out = _hold_out(labels, share, seed)
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


# Augmentation


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
    augmented = AugmentedImages(source, EpochSampler(copies, 0)).__getitems__(list(range(copies)))
    seen = Counter(window.round().byte().numpy().tobytes() for window, _ in augmented)
    assert set(seen) == possible
    chi_squared = sum((count - 100) ** 2 / 100 for count in seen.values())
    assert chi_squared < 161 + 4 * (2 * 161) ** 0.5  # mean and four deviations of the distribution with 161 degrees


def test_the_border_is_black_before_normalisation() -> None:
    source = PixelImages(torch.full((200, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(200).long(), (0.5,), (0.25,))
    windows = torch.stack([w for w, _ in AugmentedImages(source, EpochSampler(200, 0)).__getitems__(list(range(200)))])
    assert set(windows.flatten().tolist()) == {-2.0, 2.0}


def epoch_of(path: Path, epoch: int, order_seed: int = 0, **settings: Any) -> dict[int, Tensor]:
    """The augmented images of an epoch by label; every image has its own."""
    data = HubImages(str(path), label_column="label", val_share=0, **{**PLAIN, **settings})
    data.order_seed = order_seed
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}


def same(first: dict[int, Tensor], second: dict[int, Tensor]) -> int:
    assert first.keys() == second.keys()
    return sum(torch.equal(first[label], second[label]) for label in first)


def test_augmentation_hangs_on_seed_epoch_and_image_only(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    first = epoch_of(path, 3)
    torch.rand(10)
    assert same(first, epoch_of(path, 3)) == 12
    assert same(first, epoch_of(path, 3, batch_size=4)) == 12
    assert same(first, epoch_of(path, 3, num_workers=2)) == 12
    assert same(first, epoch_of(path, 4)) < 6
    assert same(first, epoch_of(path, 3, order_seed=1)) < 6


def test_one_loader_draws_anew_each_epoch_and_again_the_same(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    loader = HubImages(str(path), label_column="label", val_share=0, **PLAIN).train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.set_epoch(epoch)
        epochs.append(
            {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}
        )
    assert same(epochs[0], epochs[1]) < 6
    assert same(epochs[0], epochs[2]) == 12


def test_only_training_images_are_augmented_and_only_if_asked(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", range(12), range(12), datasets.Value("int64"))
    plain = {index: pixels_of(png(index)) for index in range(12)}
    unaugmented = epoch_of(path, 0, augmentation=None)
    assert all(torch.allclose(unaugmented[label], plain[label], atol=1e-7) for label in plain)
    assert same(unaugmented, epoch_of(path, 0)) < 6
    data = HubImages(str(path), label_column="label", val_share=0, **PLAIN)
    ((images, _),) = data.test_dataloader()
    assert torch.allclose(images[3], pixels_of(png(1003)), atol=1e-7)


# Bad input


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    return content[:45] + b"\xff" * 40 + content[85:]


def claims_huge_size(content: bytes) -> bytes:
    header = content[12:16] + struct.pack(">II", 10**6, 10**6) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize("damage", [truncated, overwritten, claims_huge_size, lambda _: b"", lambda _: b"no image"])
def test_corrupt_images_are_named_and_left_out(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = image_folder(tmp_path / "data")
    broken = path / "train/bee/04.png"
    broken.write_bytes(damage(broken.read_bytes()))
    data = HubImages(str(path), val_share=0, max_corrupt=1, **PLAIN)
    with pytest.warns(UserWarning, match=r"left out 1 corrupt: image 14 of the train split \(.*bee.04.png: "):
        train = data.parts.train
    assert train.labels.tolist() == [0] * 10 + [1] * 9 + [2] * 10
    wanted = torch.from_numpy(np.asarray(picture(15)).copy()).permute(2, 0, 1)
    assert torch.equal(train.images[14], wanted)  # the one after the corrupt image moved up


def test_more_corrupt_images_than_allowed_fail_over_both_splits(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data")
    for name in ("train/ant/00.png", "test/cat/01.png"):
        (path / name).write_bytes(b"no image")
    refuses(
        r"image 5 of the test split .*cat.01.png: not an image file\) is corrupt, and 1 corrupt", path, max_corrupt=1
    )
    refuses(r"image 0 of the train split .*is corrupt, and 0 corrupt", path, max_corrupt=0)
    with pytest.warns(UserWarning, match="left out 2 corrupt"):
        assert HubImages(str(path), max_corrupt=2, **PLAIN).parts.test.labels.tolist() == [0, 0, 1, 1, 2]


def test_an_image_that_is_missing_counts_as_corrupt(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["a", "b"])
    for split in ("train", "test"):
        table(tmp_path, split, [png(0), None, png(2)], [0, 1, 1], label)
    refuses(r"image 1 of the train split \(.*\) is corrupt", tmp_path, max_corrupt=0)


def test_a_split_with_no_image_left_is_refused(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", per_class=2)
    for file in (path / "test").rglob("*.png"):
        file.write_bytes(b"no image")
    refuses("the test split has no image that can be read", path, val_share=0)


def test_columns_that_do_not_exist_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", [0, 1] * 3)
    refuses(r"no column 'fine' in the train split; its columns are img \(Image\), label \(ClassLabel\)", path,
            label_column="fine")  # fmt: skip
    refuses(r"no column 'photo' in the train split; its columns are img", path, image_column="photo")
    refuses(r"column 'label' holds no images; the columns are img", path, image_column="label")
    refuses(r"column 'img' holds no labels .*the columns are img", path, label_column="img")
    refuses(r"no columns are of type ClassLabel.*label \(string\)", tables(tmp_path / "strings", ["a", "b"] * 3,
            ["a", "b"], datasets.Value("string")))  # fmt: skip
    floats = tables(tmp_path / "floats", [0.5, 1.5], [0.5, 1.5], datasets.Value("float32"))
    refuses(r"column 'label' holds no labels .*label \(float32\)", floats, label_column="label")


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["a", "b"])
    text = datasets.Value("string")
    refuses("all training images are of one class, 'b'", tables(tmp_path / "one", [1, 1, 1], [0], names))
    refuses("all training images are of one class, 'x'", tables(tmp_path / "x", ["x"] * 3, ["x"], text),
            label_column="label")  # fmt: skip
    refuses("label 'y' in the test split does not occur in the train split",
            tables(tmp_path / "y", ["x", "z"] * 3, ["y"], text), label_column="label")  # fmt: skip
    refuses("image 1 of the train split has no label", tables(tmp_path / "none", ["x", None], ["x"], text),
            label_column="label")  # fmt: skip
    refuses("the labels of the test split are withheld", tables(tmp_path / "hidden", [0, 1] * 3, [-1, -1], names))
    refuses("label -1 in the train part is out of range", tables(tmp_path / "minus", [0, 1, -1], [0, 1], names))


def test_a_label_beyond_the_class_names_is_refused(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tables(tmp_path / "data", [0, 1] * 3, [0, 1], datasets.ClassLabel(names=["a", "b"]))
    content = parquet.read_table(path / "train.parquet")
    worse = content.set_column(1, content.schema.field("label"), [[0, 1, 7, 0, 1, 0]])
    parquet.write_table(worse, path / "train.parquet")
    refuses("(label|Class label) 7", path)


def test_empty_datasets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuses(r"cannot read .*expected a folder with train/CLASS", tmp_path / "empty")
    refuses(r"cannot read .*\"test\" corresponds to no data", tables(tmp_path / "data", [0, 1], []))


def test_a_broken_parquet_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tables(tmp_path / "data", [0, 1] * 3)
    (path / "train.parquet").write_bytes(b"no parquet at all")
    refuses(r"cannot read .*: Parquet magic bytes", path)


def test_an_empty_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load_dataset(str(tables(tmp_path / "data", [0, 1] * 3)))
    whole["test"] = whole["test"].select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: whole)
    refuses("the test split of .* is empty", tmp_path)


def test_paths_and_splits_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    refuses("there is no folder .*missing", tmp_path / "missing")
    path = tables(tmp_path / "data", [0, 1] * 3)
    refuses(r"no split 'dev', it has \['train', 'test'\]: set test_split", path, test_split="dev")
    refuses(r"no split 'all', it has \['train', 'test'\]: set train_split", path, train_split="all")
    refuses("train_split and test_split are both 'test'", path, train_split="test", test_split="test")
    (path / "test.parquet").unlink()
    refuses(r"no test or validation split, only \['train'\]: set test_split", path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"val_share": -0.1}, "val_share is -0.1"),
        ({"channels": 4}, "channels is 4"),
        ({"image_side": 0}, "image_side is 0"),
        ({"mean": (0.5,)}, "mean has 1 values, expected one per channel: 3"),
        ({"std": (0.5,) * 4}, "std has 4 values, expected one per channel: 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std is .*expected values above 0"),
        ({"max_corrupt": -1}, "max_corrupt is -1"),
        ({"augmentation": "cutout"}, "augmentation is 'cutout'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HubImages("anywhere", **wrong)


def test_a_revision_of_a_folder_is_said_to_have_no_effect(tmp_path: Path) -> None:
    data = HubImages(str(tables(tmp_path / "data", [0, 1] * 3)), revision="v2", val_share=0, **PLAIN)
    with pytest.warns(UserWarning, match="revision 'v2' has no effect"):
        data.example()


def test_without_the_library_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        HubImages(str(tmp_path)).example()


# The real thing


@pytest.mark.skipif(not (REAL / "test.parquet").is_file(), reason="CIFAR-100 is not at $BLOCKKD_DATA/cifar100")
def test_the_test_part_of_cifar100_is_complete(tmp_path: Path) -> None:
    for split in ("train", "test"):  # the 50,000 training images would take too long here
        (tmp_path / f"{split}.parquet").symlink_to(REAL / "test.parquet")
    data = HubImages(str(tmp_path), val_share=0)
    test = data.parts.test
    assert test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert data.class_names[:2] == ["apple", "aquarium_fish"]
