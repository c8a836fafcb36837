"""A comparison → the table on the terminal, the rows of a CSV file, and a section of Markdown that stands by itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich import box
from rich.table import Table

from blockkd.comparison import Comparison, Difference, Spread, Summary
from blockkd.published import Published
from blockkd.report import TEACHER_NAME
from blockkd.runs import Row
from blockkd.scores import title_of

ON_TEST_SET = "†"  # marks what was chosen on the test set
EMPTY = ""


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Summary], str]
    on_terminal: bool = True


def comparison_table(comparison: Comparison, test_images: int | None = None, sample: str = "image") -> Table:
    """The table for the terminal, at most about 120 columns wide; what nobody has is left out.

    Args:
        comparison: what to show.
        test_images: how many images the accuracy was measured on, if that shall be said.
        sample: what one of them is called.
    """
    notes = [*_notes(comparison, test_images, sample), *_published_notes(comparison)]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        caption="\n".join(["", *notes]),
        caption_justify="left",
    )
    columns = _filled(comparison, on_terminal=True)
    for column in columns:
        table.add_column(column.title, justify="left" if column.title == "method" else "right")
    for summary in comparison:
        table.add_row(*(column.cell(summary) for column in columns))
    if comparison.published_only:
        table.add_section()
    for method, number in comparison.published_only.items():
        cells = {"method": method, "published": _short(number)}
        table.add_row(*(cells.get(column.title, EMPTY) for column in columns), style="dim")
    return table


def comparison_rows(comparison: Comparison) -> list[Row]:
    """Everything, one row for each method; accuracies are 0 … 1, published ones in % as printed.

    What there is not is an empty cell. Methods that are published only come last, with ``n`` 0.
    """
    return [
        *(_row(summary, comparison.baseline, comparison.metric) for summary in comparison),
        *(
            {"method": method, "n": 0, **_published_cells(number)}
            for method, number in comparison.published_only.items()
        ),
    ]


def comparison_markdown(
    comparison: Comparison,
    footer: Mapping[str, str],
    title: str = "Comparison",
    test_images: int | None = None,
    sample: str = "image",
) -> str:
    """A section that can be read without anything beside it: table, what its columns mean, and how it was made.

    Args:
        comparison: what to show.
        footer: what to print beneath, by name: the command, and ``environment()``.
        title: of the section.
        test_images: how many images the accuracy was measured on, if that shall be said.
        sample: what one of them is called.
    """
    columns = _filled(comparison, on_terminal=False)
    lines = [f"## {title}", "", *_markdown_table(columns, comparison), ""]
    lines += [f"* {note}" for note in _notes(comparison, test_images, sample)]
    if comparison.published_only:
        rest = comparison.published_only.items()
        lines += ["", "Published, and not trained here:", "", "| method | published |", "|---|---:|"]
        lines += [f"| {_code(method)} | {_published_with_source(number)} |" for method, number in rest]
    if _sources(comparison):
        lines += ["", "Published numbers are not ours, and their protocol differs from one source to the next:", ""]
        lines += [f"* {source}: {number.protocol}. {number.url}" for source, number in _sources(comparison).items()]
    if footer:
        lines += ["", "How it was made:", "", *(f"* {name}: {_code(value)}" for name, value in footer.items())]
    return "\n".join(lines) + "\n"


def _columns(comparison: Comparison, on_terminal: bool) -> list[_Column]:
    baseline = comparison.baseline
    return [
        _Column("method", lambda s: s.method if on_terminal else _code(s.method)),
        _Column("n", lambda s: str(s.last.n)),
        _Column("epochs", lambda s: str(s.epochs), on_terminal=_epochs_differ(comparison)),
        _Column("last epoch", lambda s: _spread(s.last)),
        _Column("best epoch", _best),
        _Column(f"− {baseline} [95 % CI]", lambda s: _difference(s.difference, s.last.n)),
        _Column("p", lambda s: _p(_test(s)[0]), on_terminal=False),
        _Column("p (Holm)", lambda s: _p(_test(s)[1])),
        _Column("published", _published_on_terminal if on_terminal else _published),
        _Column("parameters", lambda s: f"{s.parameters:,}", on_terminal=False),
        _Column("FLOPs / image", lambda s: f"{s.flops_per_image:,}", on_terminal=False),
        _Column("step GFLOPs", lambda s: _number(s.step_flops and s.step_flops / 1e9, 2), on_terminal=False),
        _Column(f"FLOPs × {baseline}", lambda s: _number(s.relative_flops, 2)),
        _Column("seconds", lambda s: _number(s.seconds.mean, 0 if s.seconds.mean >= 100 else 1)),
        _Column(f"seconds × {baseline}", lambda s: _number(s.relative_seconds, 2), on_terminal=False),
        _Column("saved MiB", lambda s: _number(s.saved_mib, 1), on_terminal=False),
        _Column("peak MiB", lambda s: _number(s.peak_memory_mib, 0), on_terminal=False),
    ]


def _filled(comparison: Comparison, on_terminal: bool) -> list[_Column]:
    columns = [c for c in _columns(comparison, on_terminal) if c.on_terminal or not on_terminal]
    published_only = bool(comparison.published_only) and on_terminal
    return [c for c in columns if any(map(c.cell, comparison)) or (c.title == "published" and published_only)]


def _notes(comparison: Comparison, test_images: int | None, sample: str) -> list[str]:
    where = "on the test set" if test_images is None else f"on {test_images:,} test {sample}s"
    title = title_of(comparison.metric)
    notes = [f"{title} in %, {where}; n: networks trained, one for each seed; mean ± sample standard deviation"]
    chosen_on = {summary.best_chosen_on for summary in comparison}
    if "validation" in chosen_on:
        notes.append(f"best epoch: test {title} of the epoch that was best on the validation part")
    if "test" in chosen_on:
        notes.append(
            f"{ON_TEST_SET}: largest test {title} of any epoch, so chosen on the test set and too high; beside the "
            "last epoch because many papers report it"
        )
    if any(summary.difference for summary in comparison):
        notes.append(_difference_note(comparison))
    if _epochs_differ(comparison):
        notes.append("not all methods were trained for the same number of epochs")
    if any(summary.relative_flops for summary in comparison):
        notes.append(
            f"FLOPs × {comparison.baseline}: of one training step, forward and backward, teacher and student; seconds: "
            "of the whole training, mean"
        )
    return notes


def _difference_note(comparison: Comparison) -> str:
    tested = sum(s.difference is not None and s.difference.p is not None for s in comparison)
    paired = f"− {comparison.baseline}: difference after the last epoch, paired by seed"
    if not tested:
        return f"{paired}; no test: it needs two seeds or more, and differences that are not all equal"
    return (
        f"{paired}, with 95 % confidence interval and p of a two-sided paired t-test; Holm: adjusted for the "
        f"{tested} method{'s' * (tested > 1)} tested; empty: fewer than two seeds, or all differences equal"
    )


def _published_notes(comparison: Comparison) -> list[str]:
    if not _sources(comparison):
        return []
    below = "; below the line: not trained here" if comparison.published_only else ""
    doubt = any(not number.verified for number in _sources(comparison).values())
    recalled = "; ?: recalled, not read in its source" if doubt else ""
    return [f"published: not ours; from {', '.join(_sources(comparison))}, each by its own protocol{below}{recalled}"]


def _sources(comparison: Comparison) -> dict[str, Published]:
    ours = [summary.published for summary in comparison if summary.published is not None]
    return {number.source: number for number in (*ours, *comparison.published_only.values())}


def _markdown_table(columns: list[_Column], comparison: Comparison) -> list[str]:
    return [
        "| " + " | ".join(column.title for column in columns) + " |",
        "|" + "|".join("---" if column.title == "method" else "---:" for column in columns) + "|",
        *("| " + " | ".join(column.cell(summary) for column in columns) + " |" for summary in comparison),
    ]


def _row(summary: Summary, baseline: str | None, metric: str) -> Row:
    cells: dict[str, str | int | float | None] = {
        "method": summary.method,
        "n": summary.last.n,
        "epochs": summary.epochs,
        **_spread_cells(f"test_{metric}", summary.last),
        **_spread_cells(f"best_test_{metric}", summary.best),
        "best_chosen_on": summary.best_chosen_on,
        "baseline": baseline,
        **_difference_cells(summary.difference),
        "parameters": summary.parameters,
        "flops_per_image": summary.flops_per_image,
        **_spread_cells("seconds", summary.seconds),
        "relative_seconds": summary.relative_seconds,
        "step_flops": summary.step_flops,
        "relative_flops": summary.relative_flops,
        "saved_mib": summary.saved_mib,
        "peak_memory_mib": summary.peak_memory_mib,
        **_published_cells(summary.published),
    }
    return {name: EMPTY if value is None else value for name, value in cells.items()}


def _spread_cells(name: str, value: Spread | None) -> dict[str, float | None]:
    parts = (None, None, None) if value is None else (value.mean, value.deviation, value.half_width)
    return dict(zip((f"{name}_mean", f"{name}_std", f"{name}_half_width"), parts, strict=True))


def _difference_cells(value: Difference | None) -> dict[str, float | None]:
    names = ("difference_n", "difference_mean", "difference_low", "difference_high", "p", "p_holm")
    parts = (None,) * 6 if value is None else (value.n, value.mean, value.low, value.high, value.p, value.p_holm)
    return dict(zip(names, parts, strict=True))


def _published_cells(number: Published | None) -> Row:
    if number is None:
        return {"published_percent": EMPTY, "published_source": EMPTY, "published_protocol": EMPTY}
    return {
        "published_percent": number.accuracy,
        "published_source": number.source,
        "published_protocol": number.protocol,
    }


def _epochs_differ(comparison: Comparison) -> bool:
    return len({summary.epochs for summary in comparison if summary.method != TEACHER_NAME}) > 1


def _best(summary: Summary) -> str:
    mark = ON_TEST_SET if summary.best_chosen_on == "test" else EMPTY
    return EMPTY if summary.best is None else _spread(summary.best) + mark


def _spread(value: Spread) -> str:
    mean = _percent(value.mean)
    return mean if value.deviation is None else f"{mean} ± {_percent(value.deviation)}"


def _difference(difference: Difference | None, networks: int) -> str:
    if difference is None:
        return EMPTY
    text = _signed(difference.mean)
    if difference.low is not None and difference.high is not None:
        text += f" [{_signed(difference.low)}, {_signed(difference.high)}]"
    return text if difference.n == networks else f"{text} n={difference.n}"


def _published_on_terminal(summary: Summary) -> str:
    return EMPTY if summary.published is None else _short(summary.published)


def _short(number: Published) -> str:
    return _percent(number.accuracy / 100) + ("" if number.verified else "?")


def _published(summary: Summary) -> str:
    return EMPTY if summary.published is None else _published_with_source(summary.published)


def _published_with_source(number: Published) -> str:
    return f"{number.accuracy:.2f} (published, {number.source})"


def _test(summary: Summary) -> tuple[float | None, float | None]:
    return (None, None) if summary.difference is None else (summary.difference.p, summary.difference.p_holm)


def _p(value: float | None) -> str:
    if value is None:
        return EMPTY
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _signed(share: float) -> str:
    text = f"{100 * share:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def _number(value: float | None, digits: int) -> str:
    return EMPTY if value is None else f"{value:,.{digits}f}"


def _code(text: str) -> str:
    return f"`{text}`"
