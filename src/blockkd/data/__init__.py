"""Datasets, each a LightningDataModule."""

from blockkd.data.corrupt import ImageFileError
from blockkd.data.digits import Digits
from blockkd.data.hub import HubImages
from blockkd.data.images import EpochSampler, ImageData, LabelledImages, check_labels

__all__ = ["Digits", "EpochSampler", "HubImages", "ImageData", "ImageFileError", "LabelledImages", "check_labels"]
