"""Where a network should be cut: at the ends of its stages, and so that teacher and student match."""

from collections.abc import Sequence
from itertools import combinations
from math import log2

from blockkd.cuts import CutError, CutPoint, Depth

# The convolution(s) of a stem are no stage: a stretch of constant resolution with at most so many layers, when they
# are less than this share of the network's layers and of its parameters ...
STEM_LAYERS, STEM_SHARE = 3, 0.06
# ... and as few layers behind the pooling belong to the classifier, when they are less than this share of the layers.
HEAD_SHARE = 0.25
# With fewer modules made of modules, all places are looked at: the network is written as one long list of layers.
FEW_MODULES = 3
# Networks whose resolution never changes are cut into this many blocks of equal depth, as many as the stages that
# convolutional networks for images have.
DEFAULT_BLOCKS = 4


def stage_ends(points: Sequence[CutPoint], total: Depth) -> list[CutPoint]:
    """The last cut point of each stage; one only where the resolution never changes.

    A stage is a stretch of constant resolution that is more than a stem. It is looked for among the outputs of
    composite modules where there are some: inside of blocks tensors take shapes of their own. Its end is the last one
    of the outermost level, or else the last cut point before the resolution changes. Maps and tokens are preferred to
    vectors: those come after pooling, so in the classifier.

    Args:
        points: all cut points.
        total: the layers and weights of the whole network.
    """
    spatial = [point for point in points if point.feature.grid] or list(points)
    modules = [point for point in spatial if point.composite]
    # Too few of them where a network is written as one long list of layers.
    runs = _runs(modules if len({point.depth for point in modules}) >= FEW_MODULES else spatial)
    ends: list[CutPoint] = []
    for run in _filled(runs, spatial):
        start = ends[-1].depth if ends else 0
        end = _end(run, start)
        layers = end.depth - start
        weights = end.weights - (ends[-1].weights if ends else 0)
        share = max(layers / total.layers, weights / total.weights)
        stem = layers <= STEM_LAYERS and share < STEM_SHARE
        few = layers <= STEM_LAYERS and layers < HEAD_SHARE * total.layers
        pooled = bool(ends) and end.feature.area == 1 and few
        if layers > 0 and not stem and not pooled:
            ends.append(end)
    return ends


def _runs(points: Sequence[CutPoint]) -> list[list[CutPoint]]:
    """Stretches of about the same number of places (a class token more or less does not count)."""
    runs: list[list[CutPoint]] = []
    for point in points:
        if runs and abs(log2(runs[-1][-1].feature.area / point.feature.area)) < 0.5:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _filled(runs: Sequence[Sequence[CutPoint]], points: Sequence[CutPoint]) -> list[list[CutPoint]]:
    """Each run with all points of its resolution up to where the next one begins."""
    places = {point.key: i for i, point in enumerate(points)}
    starts = [places[run[0].key] for run in runs] + [len(points)]
    return [
        [point for point in points[start:end] if point.feature.area == run[-1].feature.area or point in run]
        for run, start, end in zip(runs, starts, starts[1:], strict=False)
    ]


def choose(points: Sequence[CutPoint], ends: Sequence[CutPoint], n: int | None) -> list[CutPoint]:
    """``n`` cut points, the last at the end of the last stage.

    By default one per stage, or ``DEFAULT_BLOCKS`` of equal depth where there is but one. Fewer than there are
    stages: the last n. More: the longest stages are cut further, by equal depth.

    Args:
        points: all cut points.
        ends: those that end a stage.
        n: how many to choose.

    Raises:
        CutError: there are not so many.
    """
    if not ends:
        raise CutError("it has no cut point between its first and its last layer")
    if n is None:
        if len(ends) > 1:
            return list(ends)
        within = [point for point in points if point.depth <= ends[0].depth]
        n = min(DEFAULT_BLOCKS, len({point.depth for point in within}))
    if n <= len(ends):
        return list(ends[len(ends) - n :])
    shares = _shares(ends, n)
    chosen: list[CutPoint] = []
    for i, (end, share) in enumerate(zip(ends, shares, strict=True)):
        start = ends[i - 1].depth if i else 0
        chosen += _equal_depth(points, start, end, share)
    if len(chosen) != n:
        raise CutError(f"it can be cut into {len(chosen)} blocks at most, not {n}")
    return chosen


def align(teacher: Sequence[CutPoint], student: Sequence[CutPoint], n: int) -> tuple[list[CutPoint], list[CutPoint]]:
    """Choose n of each network's stages so that those paired lie at resolutions as alike as possible.

    The last stages are always paired; of equally good choices the one with the latest stages is taken.
    """

    def subsets(ends: Sequence[CutPoint]) -> list[list[CutPoint]]:
        heads = combinations(range(len(ends) - 2, -1, -1), n - 1)
        return [[ends[i] for i in reversed(head)] + [ends[-1]] for head in heads]

    def apart(pair: tuple[list[CutPoint], list[CutPoint]]) -> float:
        return sum(abs(log2(t.feature.area / s.feature.area)) for t, s in zip(*pair, strict=True))

    return min(((t, s) for t in subsets(teacher) for s in subsets(student)), key=apart)


def counterparts(named: Sequence[CutPoint], ends: Sequence[CutPoint]) -> list[CutPoint]:
    """Of one network's stages those whose resolutions are as alike as possible to the ``named`` cuts of the other."""
    latest_first = list(ends)[::-1]  # so that they win among equals
    choices = list(combinations(latest_first, len(named)))

    def apart(choice: tuple[CutPoint, ...]) -> float:
        pairs = zip(named, reversed(choice), strict=True)
        return sum(abs(log2(a.feature.area / b.feature.area)) for a, b in pairs)

    best = min(choices, key=apart)
    return list(best[::-1])


def _end(run: Sequence[CutPoint], before: int) -> CutPoint:
    halfway = before + (run[-1].depth - before) / 2
    modules = [point for point in run if point.composite and point.depth >= halfway]
    if not modules:
        return run[-1]
    level = min(point.level for point in modules)
    last = [point for point in modules if point.level == level][-1]
    # A residual sum in the network's own forward may come behind the module of its branch.
    return [last, *(point for point in run if point.level <= level and point.depth > last.depth)][-1]


def _shares(ends: Sequence[CutPoint], n: int) -> list[int]:
    depths = [end.depth - (ends[i - 1].depth if i else 0) for i, end in enumerate(ends)]
    shares = [1] * len(ends)
    while sum(shares) < n:
        longest = max(range(len(ends)), key=lambda i: depths[i] / shares[i])
        shares[longest] += 1
    return shares


def _equal_depth(points: Sequence[CutPoint], start: int, end: CutPoint, parts: int) -> list[CutPoint]:
    """Cut the stretch from depth ``start`` to ``end`` into ``parts``, at the outermost level that allows it."""
    step = (end.depth - start) / parts
    wanted = [start + step * j for j in range(1, parts)]
    inner = [point for point in points if start < point.depth < end.depth]
    picks: list[CutPoint] = []
    for rank in sorted({_rank(point) for point in inner}):
        allowed = {point.depth: point for point in sorted(inner, key=_rank, reverse=True) if _rank(point) <= rank}
        picks = _nearest([allowed[depth] for depth in sorted(allowed)], wanted)
        if picks and all(abs(point.depth - place) <= step / 2 for point, place in zip(picks, wanted, strict=True)):
            break
    return [*picks, end]


def _rank(point: CutPoint) -> tuple[bool, int]:
    """Outputs of composite modules come first, the outermost of them before others."""
    return (not point.composite, point.level)


def _nearest(points: Sequence[CutPoint], wanted: Sequence[float]) -> list[CutPoint]:
    """For each wanted depth the nearest point, all different and in order; none when there are too few."""
    picks: list[CutPoint] = []
    first = 0
    for j, place in enumerate(wanted):
        last = len(points) - (len(wanted) - 1 - j)
        if first >= last:
            return []
        best = min(range(first, last), key=lambda i: abs(points[i].depth - place))
        picks.append(points[best])
        first = best + 1
    return picks
