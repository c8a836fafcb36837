"""What can be told before hours are spent: whether the teacher fits the data, and what the run will take."""

import shutil
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockkd import costs
from blockkd.agreement import normalisation_warning, order_warning, predictions
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs, first_rows, logits_of
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import make_trainer
from blockkd.commands.recipe import DistillRecipe
from blockkd.data.images import ImageData, finite_views
from blockkd.data.memory import machine_memory
from blockkd.data.pixels import RawImages
from blockkd.data.sampling import EpochSampler
from blockkd.distiller import Distiller
from blockkd.logit_table import DTYPE, table_bytes
from blockkd.scores import ACCURACY
from blockkd.text.glue import Glue

STEPS = 3
PATIENCE = 10.0  # seconds, after which no further trial step is taken
IMAGES = 256  # that the teacher is shown
COUNTED = 64  # images of which the memory of a step is counted
STATES = 3  # parameters, and up to two numbers that an optimizer keeps for each


@dataclass(frozen=True)
class Trial:
    """What some steps of a method have shown.

    Attributes:
        seconds: of a training step, the median; the first one does not count, if there are others.
        evaluating: seconds to evaluate an image.
        memory: bytes that a step takes: on a GPU what was allocated at the most, else what is kept for the backward
            pass, and parameters, gradients and what the optimizer keeps.
        disk: bytes of a job's files at the most: two checkpoints, the best and the last student.
        cuts: how the networks are cut, or nothing where they are not.
    """

    seconds: float
    evaluating: float
    memory: int
    disk: int
    cuts: str


def trial(distiller: Distiller, recipe: DistillRecipe) -> Trial:
    """Take some steps with a batch as in training.

    Raises:
        InvalidInputError: the device has not the memory for it.
    """
    device = make_trainer(recipe.trainer).strategy.root_device
    batch = recipe.data.batch_size
    inputs, labels = recipe.data.trial_batch()
    context = {"indices": torch.arange(batch) % len(recipe.data.parts.train)}
    asked = context if distiller.needs_indices else {}
    few = min(batch, COUNTED)
    some = {name: value[:few] for name, value in asked.items()}
    saved = costs.saved_bytes(distiller, first_rows(inputs, few), labels[:few], **some)
    inputs, labels, asked = tree_map(lambda leaf: leaf.to(device), (inputs, labels, asked))
    with user_input(f"a step with batch_size {batch} does not work on {device}"):
        distiller.to(device)
        seconds, peak = _timed_steps(distiller, recipe, inputs, labels, asked)
    start = time.perf_counter()
    with torch.no_grad():
        logits_of(distiller.student.eval(), inputs).sum().item()
    evaluating = (time.perf_counter() - start) / batch
    learned = sum(p.nbytes for p in distiller.parameters() if p.requires_grad)
    memory = peak or saved * batch // few + (STATES + 1) * learned
    student = sum(p.nbytes for p in distiller.student.parameters())
    copies = 4 if isinstance(recipe.data, Glue) else 2  # text classifiers are also left as folders
    return Trial(seconds, evaluating, memory, 2 * STATES * learned + copies * student, _cuts(distiller))


def preflight(
    recipe: DistillRecipe, trials: Mapping[str, Trial], teacher: nn.Module | None, folder: Path, strict: bool
) -> None:
    """Say what the run will take, and warn of what will go wrong.

    Args:
        recipe: of all methods.
        trials: by method.
        teacher: with its weights; None where the run will train it.
        folder: of the run, made or not.
        strict: stop at a warning.

    Raises:
        InvalidInputError: there is a warning, and ``strict``.
    """
    said, found = _resources(recipe, trials, folder)
    first = {t.cuts: name for name, t in [*trials.items()][::-1] if t.cuts}  # of methods that are cut alike
    lines = [f"{name} {text}" for text, name in [*first.items()][::-1]]
    if teacher is not None:
        right, doubts = _agreement(teacher, recipe.data)
        lines = [right, *lines] if right else lines
        found = [*doubts, *found]
    print("\n".join(f"preflight: {line}" for line in (*lines, *said)))
    if found and strict:
        raise InvalidInputError(f"stopped by --strict: {'; '.join(found)}")
    for warning in found:
        warnings.warn(warning, stacklevel=2)


def epoch_seconds(trials: Mapping[str, Trial], data: ImageData) -> dict[str, float]:
    """What an epoch of each method takes by its trial steps, the validation included."""
    steps, watched = len(data.parts.train) // data.batch_size, len(getattr(data.parts, data.watched))
    return {name: steps * trial.seconds + watched * trial.evaluating for name, trial in trials.items()}


def _timed_steps(
    distiller: Distiller, recipe: DistillRecipe, inputs: Inputs, labels: Tensor, context: Mapping[str, Tensor]
) -> tuple[float, int]:
    """Median seconds, and the peak of memory on a GPU."""
    optimizer = recipe.optimizer([p for p in distiller.parameters() if p.requires_grad])
    precision = make_trainer(recipe.trainer).precision_plugin
    on_gpu = labels.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    while len(seconds) < STEPS and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        with precision.train_step_context():
            total = distiller(inputs, labels, **context).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        total.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds), torch.cuda.max_memory_allocated() if on_gpu else 0


def _resources(recipe: DistillRecipe, trials: Mapping[str, Trial], folder: Path) -> tuple[list[str], list[str]]:
    """What the run takes, and what there is too little of."""
    data, students = recipe.data, len(trials) * recipe.seeds
    seconds = recipe.seeds * recipe.epochs * sum(epoch_seconds(trials, data).values())
    name, largest = max(trials.items(), key=lambda item: item[1].memory)
    record = 0
    if recipe.record_teacher is True:
        views = finite_views(data.training_images(EpochSampler(len(data.parts.train), 0)))
        shape = len(views), views.n_views, data.num_classes
        record = table_bytes(shape, recipe.record_top, getattr(views, "logits_dtype", DTYPE))
    disk = sum(t.disk for t in trials.values()) * recipe.seeds + record
    taken = "without what is recorded" if recipe.record_teacher else f"by {STEPS} trial steps of each method"
    said = [
        f"about {_duration(seconds)} for {students} {'student' if students == 1 else 'students'} ({taken}), "
        f"{_size(largest.memory)} of memory for a step of {name}, {_size(disk)} on disk"
    ]
    found = []
    there = machine_memory()
    on_cpu = make_trainer(recipe.trainer).strategy.root_device.type == "cpu"
    if on_cpu and there is not None and largest.memory > there:
        found.append(
            f"a step of {name} takes about {_size(largest.memory)} of memory and the machine has {_size(there)}: the "
            "system will end the run; take a smaller --data.batch_size, or fewer stones"
        )
    free = shutil.disk_usage(_existing(folder)).free
    if disk > free:
        found.append(
            f"the run takes up to {_size(disk)} on disk and there are {_size(free)} left: it will stop when they are "
            "used up; make room, or give --output on another disk"
        )
    return said, found


def _agreement(teacher: nn.Module, data: ImageData) -> tuple[str, list[str]]:
    """How often the teacher is right, and what speaks against how it is used; the test part is not looked at."""
    part, name = (data.parts.val, "held-out") if len(data.parts.val) >= IMAGES else (data.parts.train, "training")
    chosen = range(0, len(part), max(1, len(part) // IMAGES))[:IMAGES]
    inputs, labels = data.some(part, chosen)
    if ACCURACY not in data.metrics:  # the classes are too uneven to be counted, or there are none
        return "", []
    predicted = predictions(teacher, inputs)
    right = predicted == labels
    found = [order_warning(predicted, labels, data.num_classes, getattr(data, "class_names", ()))]
    if isinstance(part, RawImages):
        mean, std = part.mean.flatten().tolist(), part.std.flatten().tolist()
        found.append(normalisation_warning(teacher, inputs, labels, mean, std, right))
    said = f"the teacher is right on {float(right.float().mean()):.1%} of {len(labels)} {name} {data.sample}s"
    return said, [warning for warning in found if warning]


def _cuts(distiller: Distiller) -> str:
    if not isinstance(distiller, BlockwiseDistiller):
        return ""
    theirs, ours = (", ".join(blocks.names) for blocks in (distiller.teacher_blocks, distiller.student_blocks))
    return f"cuts the teacher after {theirs} and the student after {ours}"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
