"""The page holds nothing that is elsewhere, and text from strangers stays text."""

import re
import xml.etree.ElementTree as ET

import pytest

from blockkd.reporting.page import page
from blockkd.reporting.sections import Example, Gallery, Section, Table
from blockkd.reporting.style import (
    COLOURS,
    IN_THE_DARK,
    INK,
    PAPER,
    QUIET,
    Picture,
    colours_of,
    dashes_of,
    legend_below,
    look,
    panel,
)

HOSTILE = "<script>alert(1)</script> --> \"' $\\frac{1}{ & ]]>"


def drawn(name: str, label: str) -> Picture:
    figure, axes = panel()
    axes.plot([0, 1], [1, 2], color=COLOURS[0], label=label)
    axes.set(xlabel=label, title=label)
    legend_below(axes)
    return Picture(name, label, figure)


@pytest.fixture
def hostile() -> str:
    with look():
        gallery, table = (
            Gallery(HOSTILE, [Example(HOSTILE, b"png"), Example(HOSTILE, sentences=[HOSTILE])]),
            Table([HOSTILE], [[HOSTILE]], HOSTILE),
        )
        pictures = [drawn("one", HOSTILE), drawn("two", HOSTILE)]
        section = Section("a", HOSTILE, HOSTILE, pictures, [table], [gallery], [HOSTILE], [HOSTILE])
        return page(HOSTILE, [("data", HOSTILE)], [HOSTILE], [section])


def test_names_from_strangers_stay_text(hostile: str) -> None:
    assert "<script" not in hostile
    assert hostile.count("&lt;script&gt;") >= 12
    assert "default-src 'none'" in hostile


def test_it_asks_for_nothing(hostile: str) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]*)"', hostile)
    assert all(re.match(r"#|data:|(one|two)\.(png|svg)$", address) for address in addresses), addresses
    assert not re.findall(r"url\((?!#)", hostile)
    assert "@import" not in hostile


def test_identifiers_of_figures_do_not_meet(hostile: str) -> None:
    names = re.findall(r'\bid="([^"]*)"', hostile)
    assert len(names) == len(set(names))
    used = re.findall(r'(?:url\(#|xlink:href="#)([^")]*)', hostile)
    assert used
    assert set(used) <= set(names)


def test_inline_figures_take_their_colours_from_the_page() -> None:
    with look():
        picture = drawn("one", "kd")
        inline, file = picture.inline(), picture.svg().decode()
    assert not [colour for colour in IN_THE_DARK if colour in inline]
    assert f"var(--c{INK[1:]})" in inline
    assert PAPER in file
    assert "var(" not in file
    for text in (inline, file):
        ET.fromstring(text.replace("xlink:href", "href"))


def test_figures_are_the_same_every_time() -> None:
    with look():
        first, second = (drawn("one", "kd") for _ in range(2))
        assert first.svg() == second.svg()
        assert first.png() == second.png()
        assert first.inline() == second.inline()


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [INK, QUIET, *COLOURS])
def test_lines_and_letters_stand_out_from_either_ground(colour: str) -> None:
    """WCAG 2.1: 4.5 for text, which all of these are used for."""
    assert contrast(colour, PAPER) >= 4.5
    assert contrast(IN_THE_DARK[colour], IN_THE_DARK[PAPER]) >= 4.5


def test_no_two_methods_look_alike() -> None:
    labels = ["teacher", *(f"m{number}" for number in range(20))]
    looks = list(zip(colours_of(labels).values(), dashes_of(labels).values(), strict=True))
    assert len(set(looks)) == len(labels)
    first = list(dashes_of(labels).values())[1:5]
    assert len(set(first)) == 4  # the first few differ without any colour
