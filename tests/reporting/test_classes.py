"""Gains class by class, counted image by image, and the images that only one of two networks gets right."""

import math

import pytest
import torch
from torch import nn

from blockkd.reporting.classes import class_gains, classes_section, png_of
from blockkd.reporting.sections import Example
from blockkd.reporting.style import look


def test_gains_are_those_of_counting_and_a_class_without_images_has_none() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    ours, theirs = torch.randn(9, 4), torch.randn(9, 4)
    gains = class_gains(ours, theirs, labels)
    for k in (0, 1, 3):
        members = [n for n in range(9) if int(labels[n]) == k]
        won = sum(int(ours[n].argmax()) == k for n in members) - sum(int(theirs[n].argmax()) == k for n in members)
        assert float(gains[k]) == pytest.approx(100 * won / len(members))
    assert math.isnan(gains[2])


def test_examples_are_the_images_that_one_network_alone_gets_right() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    ours, theirs = ([0, 1, 0, 1, 1], [0, 2, 2, 2, 1])  # only we: 1; only they: 2; nobody: 3
    logits = {
        name: {5: nn.functional.one_hot(torch.tensor(said), 3).float()}
        for name, said in (("we", ours), ("they", theirs))
    }
    shown: list[int] = []

    def image(number: int, said: str) -> Example:
        shown.append(number)
        return Example(said, png_of(torch.zeros(1, 2, 2)))

    with look():
        section = classes_section("we", "they", logits, labels, ["cat", "dog", "<b>owl"], image)
    assert shown == [1, 2]
    assert [example.text for gallery in section.galleries for example in gallery.examples] == [
        "dog, taken for <b>owl",
        "<b>owl, taken for cat",
    ]
    assert "better on 1 of 3 classes, worse on 1" in section.lead
    assert section.galleries[0].title == "Right with we, wrong with they: 1 of 5 images"


def nothing(number: int, said: str) -> Example:
    del number
    return Example(said)


def test_seeds_are_paired_where_both_have_them() -> None:
    labels = torch.tensor([0, 1])
    right, wrong = torch.eye(2), 1 - torch.eye(2)
    with look():
        paired = classes_section(
            "a", "b", {"a": {1: right, 2: wrong}, "b": {2: wrong, 3: right}}, labels, ["x", "y"], nothing
        )
        to_one = classes_section("a", "b", {"a": {1: right, 2: right}, "b": {9: wrong}}, labels, ["x", "y"], nothing)
    assert "+0.00 points on average; 1 pair of networks" in paired.lead
    assert "+100.00 points on average; 2 pairs of networks" in to_one.lead
