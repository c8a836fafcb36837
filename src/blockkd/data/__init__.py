"""Datasets, each a LightningDataModule."""

from blockkd.data.corrupt import ImageFileError
from blockkd.data.digits import Digits
from blockkd.data.hub import HubImages
from blockkd.data.images import ImageData, LabelledImages, check_labels
from blockkd.data.sampling import EpochSampler

__all__ = ["Digits", "EpochSampler", "HubImages", "ImageData", "ImageFileError", "LabelledImages", "check_labels"]
