"""Handwritten digits from scikit-learn: real images that need no download."""

import torch
from torch import Tensor

from blockkd.data.images import ImageData, LabelledImages, Parts
from blockkd.data.preprocessing import Preprocessing

BRIGHTEST = 16.0  # the pixels are whole numbers from 0


class Digits(ImageData):
    """1,797 handwritten digits of 8×8 pixels in 10 classes; they come with scikit-learn.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998; scikit-learn
    ships its test part. The split is stratified and fixed by ``split_seed`` alone: about 56 % train, 14 %
    validation, 30 % test (1,005, 252 and 540 images). Pixels are normalised by mean and deviation of the
    training images.

    Args:
        batch_size: images per training step; the last, smaller batch of an epoch is dropped.
        eval_batch_size: images per step of validation and test.
        num_workers: processes that load data; 0 loads in the main process.
        split_seed: which images are in which part; independent of the run's seed.
    """

    num_classes = 10

    def __init__(
        self, batch_size: int = 64, eval_batch_size: int = 540, num_workers: int = 0, split_seed: int = 0
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        self.split_seed = split_seed
        self._mean, self._deviation = 0.0, 1.0  # of the raw training pixels, once they are loaded

    def preprocessing(self) -> Preprocessing:
        """By the training images' mean and deviation; loads the data on first use."""
        height, width = self.parts.test.images.shape[2:]
        return Preprocessing(
            size=(int(height), int(width)),
            mean=(self._mean / BRIGHTEST,),
            std=(self._deviation / BRIGHTEST,),
            rescale_factor=1 / BRIGHTEST,
            labels=tuple(map(str, range(self.num_classes))),
        )

    def load(self) -> Parts:
        """Split and normalise."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, classes = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
        labels = torch.tensor(classes, dtype=torch.int64)

        def split(indices: list[int], share: float) -> tuple[list[int], list[int]]:
            first, second = train_test_split(
                indices, test_size=share, stratify=labels[indices].numpy(), random_state=self.split_seed
            )
            return first, second

        rest, test = split(list(range(len(labels))), 0.3)
        train, val = split(rest, 0.2)
        mean, deviation = images[train].mean(), images[train].std()
        self._mean, self._deviation = float(mean), float(deviation)

        def part(indices: list[int]) -> LabelledImages:
            normalised: Tensor = (images[indices] - mean) / deviation
            return LabelledImages(normalised, labels[indices])

        return Parts(part(train), part(val), part(test))
