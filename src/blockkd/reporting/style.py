"""How all figures look: one set of colours and sizes, legible on white paper, on a phone and in the dark."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from blockkd.report import TEACHER_NAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a figure is drawn in on white, and what takes its place on the page in the dark. Hues are those of Okabe and Ito
# (https://jfly.uni-koeln.de/color/), told apart by everybody; in lightness they are set apart from either ground.
INK, QUIET, GRID, PAPER = "#1b1f24", "#646c76", "#d9dde3", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, OCHRE = "#0072b2", "#bf4d00", "#00805c", "#a2447a", "#916400"
IN_THE_DARK = {
    INK: "#e6e9ee", QUIET: "#a0a8b3", GRID: "#3a414b", PAPER: "#15181d",
    BLUE: "#5cb6ea", VERMILION: "#ff8f52", GREEN: "#43cfa3", PURPLE: "#e59cc7", OCHRE: "#e3b341",
}  # fmt: skip
COLOURS = (VERMILION, BLUE, GREEN, PURPLE, OCHRE)
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH, HEIGHT = 4.0, 3.0  # inches; as wide as a phone, so that letters keep their size there
LEGEND_ROW = 0.2  # inches
PIXELS_PER_INCH = 200

_SETTINGS: Any = {  # matplotlib types each key by itself
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names may come from a stranger, and are no formulas
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure, and what is said of it.

    Attributes:
        name: of its files, and what the identifiers in its SVG begin with.
        caption: one or two sentences beneath it.
        figure: the drawing.
    """

    name: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        """As pixels, on white."""
        return self._saved("png")

    def svg(self) -> bytes:
        """As vectors, on white, with letters as outlines, so that it looks the same everywhere."""
        return self._saved("svg", letters="path")

    def inline(self) -> str:
        """As an element of a page: letters are text, and each colour is a variable of the page (``theme``)."""
        text = self._saved("svg", letters="none").decode("utf-8")
        text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text[text.index("<svg") :], flags=re.S)
        text = re.sub(r'(<svg\b[^>]*?)\s(?:width="[^"]*"\s?|height="[^"]*"\s?)+', r"\1 ", text, count=1)
        text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\1{self.name}-", text)
        for colour in IN_THE_DARK:
            text = text.replace(colour, f"var({_variable(colour)})")
        return text

    def _saved(self, kind: str, letters: str = "path") -> bytes:
        content = io.BytesIO()
        # What is drawn alike is written alike: no date, no random identifiers.
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": letters}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            self.figure.savefig(content, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
        return content.getvalue()


@contextmanager
def look() -> Iterator[None]:
    """While figures are made and saved."""
    with mpl.rc_context(_SETTINGS):
        yield


def panel(height: float = HEIGHT, width: float = WIDTH) -> "tuple[Figure, Axes]":
    """A new figure, in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def theme() -> str:
    """The colours as CSS variables, for both themes."""
    light = "".join(f"{_variable(colour)}:{colour};" for colour in IN_THE_DARK)
    dark = "".join(f"{_variable(colour)}:{other};" for colour, other in IN_THE_DARK.items())
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same in all figures; the teacher is grey."""
    students = [label for label in labels if not is_teacher(label)]
    found = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(students)}
    return {label: found.get(label, QUIET) for label in labels}


def dashes_of(labels: Sequence[str]) -> dict[str, str | tuple[int, tuple[int, ...]]]:
    """How each method's lines are broken: differs from one to the next, and among all of one colour."""
    students = [label for label in labels if not is_teacher(label)]
    found = {label: DASHES[number % len(DASHES)] for number, label in enumerate(students)}
    return {label: found.get(label, (0, (2, 2))) for label in labels}


def is_teacher(label: str) -> bool:
    """Whether this names a teacher: of one run, or of several."""
    return label == TEACHER_NAME or label.startswith(f"{TEACHER_NAME} (")


def legend_below(axes: "Axes", columns: int = 2) -> None:
    """The legend under the axes, where it hides nothing; the figure grows by as much."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.figure
    assert isinstance(figure, Figure)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + rows * LEGEND_ROW)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.6, columnspacing=1.2)


def _variable(colour: str) -> str:
    return f"--c{colour.removeprefix('#')}"
