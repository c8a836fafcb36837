"""Where connectors start, slowly: every place of every image by itself, and the normal equations written out."""

import numpy as np


def means(rows: list[list[float]]) -> list[float]:
    return [sum(row[k] for row in rows) / len(rows) for k in range(len(rows[0]))]


def deviations(rows: list[list[float]]) -> list[float]:
    centre = means(rows)
    return [(sum((row[k] - centre[k]) ** 2 for row in rows) / len(rows)) ** 0.5 for k in range(len(centre))]


def affine(z: list[list[float]], t: list[list[float]]) -> list[list[float]]:
    """The values of the affine map z → t of the least sum of squares, at each z, by a column of ones."""
    ones = np.array([[*row, 1.0] for row in z])
    solution, *_ = np.linalg.lstsq(ones, np.array(t), rcond=None)
    return (ones @ solution).tolist()


def rows(maps: np.ndarray) -> list[list[float]]:
    """``(B, C, H, W)`` → a row of C numbers for each image and place, one after the other."""
    batch, channels, height, width = maps.shape
    return [
        [float(maps[b, c, i, j]) for c in range(channels)]
        for b in range(batch)
        for i in range(height)
        for j in range(width)
    ]
