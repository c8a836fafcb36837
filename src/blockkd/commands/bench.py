"""``blockkd bench``: what a training step of each method costs here, and whether Block-KD costs what it may."""

import copy
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console
from torch import nn

from blockkd.baselines.logits import KD
from blockkd.bench.contenders import Batch, Contender, contenders, settle
from blockkd.bench.figure import cost_figure
from blockkd.bench.mdistiller import Checkout
from blockkd.bench.measuring import Measured, Spread, interleaved, measure
from blockkd.bench.results import table, targets, write_csv, write_rounds
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import cpu_threads
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.machine import Document, add_json_option
from blockkd.commands.parsing import explain
from blockkd.environment import environment
from blockkd.folding import fold_batch_norm
from blockkd.models import create_model
from blockkd.report import print_table

CLASSES = 100
LAYOUT_ROUNDS = 7
CSV, ROUNDS, FIGURE, SETTINGS = "bench.csv", "rounds.csv", "bench.png", "bench.yaml"
DESCRIPTION = (
    "Time one training step of every method on a pair of networks, in interleaved rounds, with the FLOPs and the saved "
    "activations of each, and say whether Block-KD reaches its targets. The networks are untrained and the images are "
    "noise, which costs the same; nothing is downloaded."
)


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    options = _parse(argv)
    device = _device(options)
    folder = _folder(options["output"])
    with cpu_threads(options["threads"]), Console(stderr=True).status("") as status:
        torch.manual_seed(0)
        tell: Callable[[str], object] = status.update
        batch = _batch(options, device)
        teacher, student = (_network(options, role, batch) for role in ("teacher", "student"))
        theirs, left_out = _theirs(options, batch)
        channels_last = _channels_last(options, teacher, student, batch, tell)
        tell("building the methods")
        with user_input(f"cannot bench {options['teacher']} → {options['student']}"):
            ours = list(contenders(teacher, student, batch, channels_last=channels_last, compiled=options["compile"]))
        measured, rate = measure([*ours, *theirs], options["rounds"], tell)
        facts = environment()
    found = targets(measured)
    reached = [str(target) for target in found]
    settings = {**options.as_dict(), "channels_last": channels_last, "device": str(device)}
    print_table(table(measured, rate))
    print("\n".join([*left_out, _summary(settings), *reached]))
    if folder is not None:
        _write(folder, measured, rate, {"command": shlex.join(["blockkd", "bench", *argv]), **settings}, facts, reached)
        print(f"Written: {', '.join(str(folder / name) for name in (CSV, ROUNDS, FIGURE, SETTINGS))}")
    return {
        "settings": settings,
        "environment": facts,
        "matrix_flops_per_second": rate,
        "methods": [{"method": name, **dataclasses.asdict(one)} for name, one in measured.items()],
        "left_out": left_out,
        "targets": [{**dataclasses.asdict(target), "reached": target.reached} for target in found],
    }


def _parse(argv: Sequence[str]) -> Namespace:
    parser = bench_parser()
    try:
        return parser.parse_args(list(argv))  # not as for recipes: networks are plain names here
    except ArgumentError as error:
        raise InvalidInputError(explain(parser, str(error))) from error


def bench_parser() -> ArgumentParser:
    """The options of ``bench``."""
    parser = ArgumentParser(
        prog="blockkd bench",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--teacher", type=str, default="resnet32x4", help="network, by a name that create_model knows")
    add("--student", type=str, default="resnet8x4", help="network, by a name that create_model knows")
    add("--batch-size", type=PositiveInt, default=64, help="images per step")
    add("--image-size", type=PositiveInt, default=32, help="height and width of the images")
    add("--rounds", type=PositiveInt, default=15, help="how many times each method is timed")
    add("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one")
    add("--threads", type=PositiveInt | None, default=None, help="CPU threads; torch's own choice when left out")
    add(
        "--channels-last",
        choices=("auto", "on", "off"),
        default="auto",
        help="layout of weights and features, but for the naive reference; auto: what plain KD is faster with here",
    )
    add(
        "--compile",
        choices=("off", "default", "reduce-overhead"),
        default="off",
        help="torch.compile of every method, but for the naive reference",
    )
    add("--precision", choices=("32", "bf16"), default="32", help="bf16: forward passes under autocast")
    add("--against", type=Path | None, default=None, help="an mdistiller checkout, whose methods are timed as well")
    add("--output", type=Path | None, default=None, help=f"a folder for {CSV}, {ROUNDS}, {FIGURE} and {SETTINGS}")
    add_json_option(parser)
    return parser


def _device(options: Namespace) -> torch.device:
    name = options["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with user_input(f"cannot use the device {name!r}"):
        device = torch.device(name)
        torch.zeros(1, device=device)
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"the device is {name!r}, expected cpu or cuda: others cannot be timed here")
    if options["compile"] == "reduce-overhead" and device.type != "cuda":
        raise InvalidInputError("--compile reduce-overhead records CUDA graphs, which have no effect on the CPU")
    return device


def _folder(path: Path | None) -> Path | None:
    if path is None:
        return None
    if (path / CSV).exists():
        raise InvalidInputError(f"{path} holds the results of another bench; give --output another folder")
    with user_input("cannot write the results"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _batch(options: Namespace, device: torch.device) -> Batch:
    if options["batch_size"] < 2:
        raise InvalidInputError("batch_size is 1: batch norm needs at least 2 images to normalise by")
    images = torch.randn(options["batch_size"], 3, options["image_size"], options["image_size"])
    labels = torch.randint(CLASSES, (len(images),))
    return Batch(images.to(device), labels.to(device), options["precision"] == "bf16")


def _network(options: Namespace, role: str, batch: Batch) -> nn.Module:
    with user_input(f"cannot build the {role}"):
        network = create_model(options[role], CLASSES).to(batch.device)
        return settle(network, batch.images)


def _channels_last(
    options: Namespace, teacher: nn.Module, student: nn.Module, batch: Batch, tell: Callable[[str], object]
) -> bool:
    if options["channels_last"] != "auto":
        return bool(options["channels_last"] == "on")
    tell("comparing layouts")
    layouts = {}
    for name, layout in (("plain", torch.contiguous_format), ("last", torch.channels_last)):
        kd = KD(fold_batch_norm(teacher, batch.images[:2]), copy.deepcopy(student))
        layouts[name] = Contender(name, kd.to(memory_format=layout), batch, compiled=options["compile"]).step
    seconds = interleaved(layouts, LAYOUT_ROUNDS, batch.device)
    return Spread.of([last / plain for last, plain in zip(seconds["last"], seconds["plain"], strict=True)]).median < 1


def _theirs(options: Namespace, batch: Batch) -> tuple[list[Contender], list[str]]:
    """The methods of the mdistiller checkout where one is given, and what is to be said of those that do not run."""
    if options["against"] is None:
        return [], []
    with user_input(f"cannot use mdistiller from {options['against']}"):
        checkout = Checkout(options["against"])
        found = list(checkout.contenders(options["teacher"], options["student"], CLASSES, batch))
    return [c for c in found if isinstance(c, Contender)], [reason for reason in found if isinstance(reason, str)]


def _summary(settings: dict[str, object]) -> str:
    layout = "channels-last" if settings["channels_last"] else "contiguous"
    return (
        f"{settings['teacher']} → {settings['student']}, batch {settings['batch_size']}, {settings['device']}, "
        f"{layout}, precision {settings['precision']}, compile {settings['compile']}"
    )


def _write(
    folder: Path,
    measured: dict[str, Measured],
    rate: float,
    settings: dict[str, object],
    facts: dict[str, str],
    reached: list[str],
) -> None:
    write_csv(measured, rate, folder / CSV)
    write_rounds(measured, folder / ROUNDS)
    cost_figure(measured, _summary(settings), folder / FIGURE)
    plain = {name: value if isinstance(value, bool) else str(value) for name, value in settings.items()}
    where = {name: str(value) for name, value in facts.items()}  # a version of torch is a string of its own kind
    content = {"settings": plain, "environment": where, "matrix_flops_per_second": round(rate), "targets": reached}
    (folder / SETTINGS).write_text(yaml.safe_dump(content, sort_keys=False, width=120), encoding="utf-8")
