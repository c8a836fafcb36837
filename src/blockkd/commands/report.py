"""``blockkd report RUN…``: one page about one or several runs, and its figures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from blockkd.commands.errors import InvalidInputError, printable, user_input
from blockkd.commands.fitting import cpu_threads, quiet
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.machine import Document, add_json_option
from blockkd.commands.parsing import explain
from blockkd.commands.report_runs import StoredRun, labels_of, read_runs
from blockkd.commands.report_sections import all_sections
from blockkd.report import TEACHER_NAME
from blockkd.reporting.figures import PAGE, is_free, write_report
from blockkd.reporting.page import page
from blockkd.reporting.sections import Section
from blockkd.reporting.style import Picture, look

FOLDER = "report"
IMAGES = 10_000
SHOWN = ("task", "path", "split_seed", "val_share")  # settings of the data
DESCRIPTION = (
    "Write one HTML page about runs of distill, compare or teach, which opens from disk and asks no network for "
    "anything, and its figures as PNG and SVG beside it: curves, stones, both networks, calibration, classes, costs, "
    "features. Networks are measured again on the test part; nothing is trained. Of an unfinished run it shows what "
    "is there."
)


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    options = _parse(argv)
    paths = [Path(path) for path in options["runs"]]
    if options["images"] < 2:
        raise InvalidInputError(f"--images is {options['images']}, expected 2 or more")
    target = Path(options["output"]) if options["output"] else paths[0] / FOLDER
    with quiet():
        runs = read_runs(paths)
        _check_target(target)
        with cpu_threads(runs[0].recipe.threads), look():
            title, sections = _title(runs), unique_names(list(all_sections(runs, int(options["images"]))))
            notes = [said for stored in runs if (said := stored.unfinished())]
            _write(target, page(title, _facts(runs), notes, sections), sections)
    print(f"The report lies in {target / PAGE}, its figures beside it.")
    return {"report": target / PAGE, "runs": paths, "unfinished": notes}


def unique_names(sections: Sequence[Section]) -> list[Section]:
    """Sections whose pictures all have names of their own, as their files must."""
    seen: dict[str, int] = {}

    def named(picture: Picture) -> Picture:
        seen[picture.name] = count = seen.get(picture.name, 0) + 1
        return picture if count == 1 else replace(picture, name=f"{picture.name}-{count}")

    return [replace(section, pictures=[named(picture) for picture in section.pictures]) for section in sections]


def report_parser() -> ArgumentParser:
    """The options of ``report``."""
    parser = ArgumentParser(
        prog="blockkd report",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", type=str, nargs="+", metavar="RUN", help="folder of a run; several must share their data"
    )
    parser.add_argument("--output", metavar="DIR", type=str, help=f"folder of the report (default: RUN/{FOLDER})")
    parser.add_argument(
        "--images", type=int, default=IMAGES, help="at most so many test images or sentences, spread evenly"
    )
    add_json_option(parser)
    return parser


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    parser = report_parser()
    try:
        return parser.parse_args(list(argv)).as_dict()
    except ArgumentError as error:
        if "RUN" in str(error) or "runs" in str(error):
            raise InvalidInputError("no run is given; for example: blockkd report runs/digits/block_kd") from error
        raise InvalidInputError(explain(parser, str(error))) from error


def _check_target(target: Path) -> None:
    """Raise InvalidInputError where a report would lie among files that are not a report's."""
    with user_input():
        if target.exists() and not target.is_dir():
            raise InvalidInputError(f"{target} is a file; choose another folder with --output")
        if not is_free(target):
            raise InvalidInputError(f"{target} is not empty and holds no report; choose another folder with --output")


def _write(target: Path, text: str, sections: Sequence[Section]) -> None:
    pictures = [picture for section in sections for picture in section.pictures]
    files = {f"{picture.name}.{kind}": content for picture in pictures
             for kind, content in (("png", picture.png()), ("svg", picture.svg()))}  # fmt: skip
    with user_input(f"cannot write to {target}"):
        write_report(target, text, files)


def _title(runs: Sequence[StoredRun]) -> str:
    return "Report: " + ", ".join(stored.name for stored in runs)


def _facts(runs: Sequence[StoredRun]) -> list[tuple[str, str]]:
    data = runs[0].recipe.data
    settings = {key.rpartition(".")[2]: value for key, value in runs[0].data.items()}
    shown = ", ".join(f"{key} {settings[key]}" for key in SHOWN if key in settings)
    sizes = f"{len(data.parts.train)} training, {len(data.parts.val)} validation, {len(data.parts.test)} test"
    classes = "numbers" if data.num_classes == 1 else f"{data.num_classes} classes"
    name = f"{type(data).__name__}, {classes}: {sizes} {data.sample}s" + (f" ({shown})" if shown else "")
    methods = dict.fromkeys(label for stored in runs for label in labels_of(runs, stored).values())
    seeds = sorted({job.seed for stored in runs for job in stored.jobs if job.method != TEACHER_NAME})
    facts = [
        ("data", printable(name)),
        ("methods", ", ".join(label for label in methods if not label.startswith(TEACHER_NAME))),
    ]
    facts.append(("seeds", ", ".join(map(str, seeds))))
    return [(key, value) for key, value in facts if value]
