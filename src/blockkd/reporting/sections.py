"""What the page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from blockkd.reporting.style import Picture


@dataclass(frozen=True)
class Table:
    """A table; the first column holds names, the others numbers as text.

    Attributes:
        columns: the head.
        rows: as long as the head.
        caption: what the numbers are.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """An image, or a sentence or two, and what two networks say of it.

    Attributes:
        text: of its class and what was said.
        png: the image.
        sentences: what was read, where it is no image.
    """

    text: str
    png: bytes = b""
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class Gallery:
    """Images or sentences with a heading."""

    title: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        lead: how to read it, and what it says of these runs, in sentences.
        pictures, tables, galleries: what is shown.
        points: what it says of single methods, one sentence each.
        missing: why something is not shown, and what to run for it; one line each.
    """

    key: str
    title: str
    lead: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    points: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is shown."""
        return not (self.pictures or self.tables or self.galleries)
