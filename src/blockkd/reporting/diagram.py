"""Both networks side by side, drawn from how they are cut: blocks, connectors, stones, with shapes and costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from blockkd import costs
from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks
from blockkd.calling import Inputs, image_shape
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Section, Table
from blockkd.reporting.style import BLUE, INK, PAPER, QUIET, VERMILION, WIDTH, Picture, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "The networks"
BOX, TALL, GAP = 1.53, 0.58, 0.34  # inches: a block's width and height, and the room to the next
LEFT, RIGHT = 0.02, WIDTH - BOX - 0.02  # where the columns begin, inches
HEAD = 0.62  # inches above the first block
LONGEST = 17  # letters of a block's name
LEAD = (
    "From top to bottom runs the data. Parameters, and FLOPs of a forward pass for {inputs}, a multiply-add counted "
    "as two. {shapes}A stone leaves the student through a connector and goes on in the frozen teacher; nothing of "
    "connectors and teacher is left in the student that is saved."
)
SEQUENCES = "Shapes are tokens × width. "


@dataclass(frozen=True)
class Cut:
    """A network, block by block and with its classifier at last.

    Attributes:
        names: after which submodule or operation each part ends.
        shapes: of what each gives.
        costs: parameters and FLOPs of each.
    """

    names: Sequence[str]
    shapes: Sequence[str]
    costs: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, blocks: Blocks, example: Inputs) -> "Cut":
        """From blocks and a batch of inputs ``(B, ...)``, one tensor or named ones."""
        shapes = ["×".join(map(str, shape)) for shape in blocks.shapes]
        return cls([*blocks.names, "classifier"], [*shapes, "logits"], costs.block_costs(blocks, example))


def diagram_section(
    teacher: Blocks,
    student: Blocks,
    example: Inputs,
    distiller: nn.Module | None,
    kd_flops: int,
    whose: str,
    judged: Judged = IMAGES,
) -> Section:
    """Both networks as they are cut.

    Args:
        teacher, student: cut into the same number of blocks.
        example: a batch of inputs ``(B, ...)``, one tensor or named ones.
        distiller: the method; connectors and stones are drawn where it has any.
        kd_flops: FLOPs of a training step of plain KD for one input.
        whose: what the method is called.
        judged: what the networks look at.
    """
    theirs, ours = Cut.of(teacher, example), Cut.of(student, example)
    shape = "×".join(map(str, image_shape(example)[1:]))
    lead = LEAD.format(inputs=judged.inputs, shapes=SEQUENCES if judged.sample == "sentence" else "")
    inputs = f"{shape} tokens" if judged.sample == "sentence" else f"{judged.sample} {shape}"
    if not isinstance(distiller, BlockKD) or not distiller.stones:
        reason = f"{whose} has no stones, so no connectors are drawn."
        return Section("networks", TITLE, lead, [_picture(ours, theirs, inputs, {})], missing=[reason])
    connectors = {i: costs.parameters(distiller.connectors[str(i)]) for i in distiller.stones}
    picture = _picture(ours, theirs, inputs, connectors)
    rows = []
    for i in connectors:
        added, connector = costs.stone_flops(distiller, i, example), type(distiller.connectors[str(i)]).__name__
        shares = f"{connectors[i]:,}", f"{added:,}", f"{added / kd_flops:+.0%}"
        rows.append((f"N_{i}", _path(i, len(teacher)), connector, *shares))
    columns = ("stone", "runs through", "connector", "its parameters", "added FLOPs", "of plain KD's step")
    caption = (
        f"{whose}: FLOPs that each stone adds to one training step, for {judged.inputs}; plain KD takes {kd_flops:,}"
    )
    return Section("networks", TITLE, lead, [picture], [Table(columns, rows, caption)])


def _path(stone: int, count: int) -> str:
    """What a stone runs through, of networks of so many blocks."""
    head = {1: "S_1", 2: "S_1, S_2"}.get(stone, f"S_1 … S_{stone}")
    tail = {count: "T_c", count - 1: f"T_{count}, T_c"}.get(stone, f"T_{stone + 1} … T_c")
    return f"{head} → C_{stone} → {tail}"


def short(number: int) -> str:
    """A count in three digits or so: ``"1.23 M"``."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _picture(ours: Cut, theirs: Cut, inputs: str, connectors: dict[int, int]) -> Picture:
    count = len(ours.names)
    height = HEAD + count * TALL + (count - 1) * GAP + 0.3
    figure, axes = panel(height=height)
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    for x, cut, colour, title in ((LEFT, ours, BLUE, "student S"), (RIGHT, theirs, QUIET, "teacher T, frozen")):
        middle = x + BOX / 2
        axes.text(middle, 0.14, title, ha="center", va="center", weight="bold")
        axes.text(middle, 0.34, inputs, ha="center", va="center", color=QUIET, fontsize=8)
        letter = title[-1] if x == LEFT else "T"
        for place in range(count):
            y = _top(place)
            _arrow(axes, (middle, y - (GAP if place else 0.18)), (middle, y), INK)
            _block(axes, x, y, f"{letter}_{place + 1 if place < count - 1 else 'c'}", cut, place, colour)
    for i, parameters in connectors.items():
        y = _top(i) - GAP / 2
        _arrow(axes, (LEFT + BOX / 2, y), (RIGHT + BOX / 2, y), VERMILION)
        axes.text(WIDTH / 2, y - 0.1, f"C_{i}", ha="center", va="center", color=VERMILION, weight="bold")
        axes.text(
            WIDTH / 2, y + 0.11, f"{short(parameters)} par.", ha="center", va="center", color=VERMILION, fontsize=8
        )
        axes.text(WIDTH / 2, y + 0.28, f"→ stone N_{i}", ha="center", va="center", color=VERMILION, fontsize=8)
    return Picture("networks", "Student and teacher as they are cut, and the connectors between them.", figure)


def _top(place: int) -> float:
    return HEAD + place * (TALL + GAP)


def _block(axes: "Axes", x: float, y: float, title: str, cut: Cut, place: int, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x + 0.05, y + 0.05),
            BOX - 0.1,
            TALL - 0.1,
            boxstyle="round,pad=0.05",
            facecolor=PAPER,
            edgecolor=colour,
            linewidth=1.6,
            zorder=3,
        )
    )
    name, (parameters, flops) = cut.names[place], cut.costs[place]
    name = name if len(name) <= LONGEST else f"…{name[1 - LONGEST :].lstrip('.')}"
    lines = (f"{title}  {name}", cut.shapes[place], f"{short(parameters)} par. · {short(flops)} FLOPs")
    for number, (line, size) in enumerate(zip(lines, (8.5, 8, 7.3), strict=True)):
        axes.text(x + BOX / 2, y + 0.12 + 0.17 * number, line, ha="center", va="center", fontsize=size, zorder=4)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    line = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=line)
