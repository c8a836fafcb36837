"""What is said of settings, files and tables of images that cannot be used."""

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockkd.data import HubImages
from tests.image_files import PLAIN, datasets, image_folder, own_cache, picture, png, refuses, table, tables

__all__ = ["own_cache"]  # a fixture, used by being here


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
    refuses(r"image 1 of the train split \(.*\) is corrupt", tmp_path, max_corrupt=0, val_share=0)


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
        ({"train_images": 0}, "train_images is 0"),
        ({"resize_side": 8}, "resize_side is 8 and image_side None"),
        ({"image_side": 8, "resize_side": 7}, "resize_side is 7 and image_side 8"),
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
