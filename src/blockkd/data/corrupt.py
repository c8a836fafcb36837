"""Image files that cannot be read: what is said of them, and how many are allowed."""

import warnings
from collections.abc import Mapping

import torch


class ImageFileError(ValueError):
    """What is wrong with an image file, in one sentence.

    A DataLoader that meets it in a worker process raises it again with the worker's traceback as its message; of that
    only the last sentence is told.
    """

    def __str__(self) -> str:
        return super().__str__().rstrip().rpartition(f"{type(self).__name__}: ")[2]


class CorruptImageError(ImageFileError):
    """An image file cannot be decoded."""


class CorruptImages:
    """Remembers which images were found to be corrupt; each counts once, over all worker processes.

    Args:
        sizes: how many images each split has.
        limit: how many corrupt ones are allowed, over all splits.
    """

    def __init__(self, sizes: Mapping[str, int], limit: int) -> None:
        self.limit = limit
        # In shared memory, so that what one worker finds counts in all, and in the main process.
        self._found = {split: torch.zeros(size, dtype=torch.bool).share_memory_() for split, size in sizes.items()}

    def __len__(self) -> int:
        return sum(int(found.count_nonzero()) for found in self._found.values())

    def __contains__(self, place: tuple[str, int]) -> bool:
        split, row = place
        return bool(self._found[split][row])

    def add(self, split: str, row: int, error: CorruptImageError) -> str:
        """Count an image.

        Returns:
            The image with what is wrong with it, in words.

        Raises:
            ImageFileError: more images are corrupt than allowed.
        """
        self._found[split][row] = True
        described = f"{place_name(split, row)} ({error})"
        if len(self) > self.limit:
            raise ImageFileError(
                f"{described} is corrupt, and {self.limit} corrupt images are allowed (max_corrupt): repair or "
                "remove it, or allow more"
            ) from error
        return described

    def places(self) -> list[str]:
        """All that were found, in words."""
        return [
            place_name(split, row) for split, found in self._found.items() for row in found.nonzero()[:, 0].tolist()
        ]


def place_name(split: str, row: int) -> str:
    """An image in words."""
    return f"image {row} of the {split} split"


def warn(message: str) -> None:
    """Warn without naming a line of this package, which helps nobody."""
    warnings.warn(message, stacklevel=1)
