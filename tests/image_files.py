"""Small datasets of image files and of parquet, made for a test."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blockkd.data import HubImages

datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")

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
    """The dataset is refused, with one sentence."""
    with pytest.raises(ValueError, match=match) as caught:
        HubImages(str(path), **{**PLAIN, **settings}).example()
    assert "\n" not in str(caught.value)
