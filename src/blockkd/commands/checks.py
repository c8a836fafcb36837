"""Everything about a recipe that can be checked before a folder is made or an hour spent."""

import copy
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from blockkd.calling import Inputs, count, logits_of
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.loggers import check_logger
from blockkd.commands.preflight import Trial, trial
from blockkd.commands.recipe import (
    DistillRecipe,
    MethodFactory,
    NetworkFactory,
    OptimizerFactory,
    SchedulerFactory,
    TeachRecipe,
)
from blockkd.commands.together import check_strategy
from blockkd.data.images import ImageData, finite_views
from blockkd.data.sampling import EpochSampler
from blockkd.distiller import Distiller
from blockkd.models.weights import load_weights
from blockkd.report import TEACHER_NAME
from blockkd.scores import ACCURACY, title_of
from blockkd.text.networks import StudentOf


def build_network(factory: NetworkFactory, role: str) -> nn.Module:
    """A new network. Raises InvalidInputError when its settings are not accepted."""
    with user_input(f"cannot build the {role}"):
        return factory()


def build_student(recipe: DistillRecipe, teacher: nn.Module) -> nn.Module:
    """A new student, which may be made of the teacher. Raises InvalidInputError when its settings are not accepted."""
    student = recipe.student
    with user_input("cannot build the student"):
        return student(teacher) if isinstance(student, StudentOf) else student()


def build_method(
    factory: MethodFactory, name: str, teacher: nn.Module, student: nn.Module, data: ImageData
) -> Distiller:
    """A new Distiller, told of the data what it asks for: some images to tell shapes by, how many there are to train.

    Raises:
        InvalidInputError: its settings or the networks are not accepted.
    """
    # jsonargparse gives a functools.partial with all that the class and its bases take; a plain function has names.
    asked = dict.fromkeys(inspect.signature(factory).parameters) | getattr(factory, "keywords", {})
    told: dict[str, Any] = {}
    if "example" in asked:
        told["example"] = data.example()
    if "n_samples" in asked and asked["n_samples"] is None and asked.get("queue_size") is None:
        told["n_samples"] = len(data.parts.train)
    with user_input(f"cannot set up {name}"):
        return factory(teacher, student, **told)


def method_class(factory: MethodFactory) -> type[Distiller]:
    """The class that the factory makes, or ``Distiller`` where it does not say."""
    # jsonargparse gives a functools.partial around its own function, with the class among the arguments.
    classes = [value for value in getattr(factory, "args", ()) if inspect.isclass(value)]
    return next((found for found in classes if issubclass(found, Distiller)), Distiller)


def is_job_name(name: object) -> bool:
    """Whether a method can be called so: it names a folder beside the run's own files, which all have a point."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name) is not None


def check_teaching(recipe: TeachRecipe) -> nn.Module:
    """Check data, trainer and teacher.

    Returns:
        The teacher, with its weights where the recipe names a file.

    Raises:
        InvalidInputError: says what does not fit.
    """
    with user_input("cannot use the data"):
        example = recipe.data.example()
    with user_input("cannot use the trainer's options"):
        check_strategy(recipe.trainer)
    check_logger(recipe.logger)
    teacher = build_network(recipe.teacher.network, "teacher")
    said = recipe.teacher.accuracy
    if said is not None and ACCURACY not in recipe.data.metrics:
        judged = " and ".join(map(title_of, recipe.data.metrics))
        raise InvalidInputError(f"teacher.accuracy is {said}, but the data are judged by {judged}: leave it out")
    if said is not None and not 0 < said <= 1:
        raise InvalidInputError(f"teacher.accuracy is {said}, expected a share above 0 and up to 1, such as 0.7263")
    if recipe.teacher.weights is not None:
        with user_input("cannot use the teacher's weights"):
            load_weights(teacher, recipe.teacher.weights)
    with user_input("the teacher does not fit the data"):
        recipe.data.check_networks(teacher)
    check_classes({"teacher": teacher}, recipe.data, example)
    if not recipe.teacher.is_trained:
        _check_batch_norm(teacher, recipe.data, "teacher")
        _check_optimizer(teacher, recipe.teacher.optimizer, recipe.teacher.scheduler, "--teacher.optimizer")
    return teacher


class Checked(NamedTuple):
    """What the checks leave: the teacher as ``check_teaching`` gives it, and the methods' trials if there were any."""

    teacher: nn.Module
    trials: dict[str, Trial]


def check_distilling(recipe: DistillRecipe, methods: Mapping[str, MethodFactory], tried: bool = True) -> Checked:
    """Check all that ``check_teaching`` does, the student, and every method by one forward pass.

    Args:
        recipe: what all methods share.
        methods: by name.
        tried: whether every method takes some training steps as well, to tell what they cost.

    Raises:
        InvalidInputError: says what does not fit.
    """
    teacher = check_teaching(recipe)
    example = recipe.data.example()
    if recipe.record_teacher:
        _check_recording(recipe)
    elif recipe.record_ahead or recipe.record_top is not None:
        name = "record_ahead" if recipe.record_ahead else "record_top"
        raise InvalidInputError(f"{name} says how the teacher is recorded, but record_teacher is false: set it as well")
    student = build_student(recipe, teacher)
    with user_input("teacher, student and data do not fit together"):
        recipe.data.check_networks(teacher, student)
    check_classes({"teacher": teacher, "student": student}, recipe.data, example)
    trials: dict[str, Trial] = {}
    for name, factory in methods.items():
        if name == TEACHER_NAME or not is_job_name(name):
            raise InvalidInputError(
                f"a method cannot be called {name!r}: its name names a folder; use letters, digits, - and _"
            )
        spare_teacher, spare_student = copy.deepcopy(teacher), build_student(recipe, teacher)
        distiller = build_method(factory, name, spare_teacher, spare_student, recipe.data)
        _check_batch_norm(distiller, recipe.data, f"student under {name}")
        with user_input(f"{name} cannot take a step"):
            labels = recipe.data.parts.test.labels[: count(example)]
            context = {"indices": torch.arange(len(labels))} if distiller.needs_indices else {}
            distiller(example, labels, **context)
        _check_optimizer(distiller, recipe.optimizer, recipe.scheduler, "--optimizer")
        if tried:
            trials[name] = trial(distiller, recipe)
    return Checked(teacher, trials)


@torch.no_grad()
def check_classes(networks: Mapping[str, nn.Module], data: ImageData, example: Inputs) -> None:
    """Raise InvalidInputError unless all networks give logits of as many classes as the data has."""
    counts: dict[str, int] = {}
    for role, network in networks.items():
        was_training = network.training
        with user_input(f"the {role} does not accept {data.sample}s of shape {_shape(example)}"):
            logits = logits_of(network.eval(), example)
        network.train(was_training)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidInputError(f"the {role} gives {got}, expected logits of shape (batch, classes)")
        counts[role] = logits.shape[1]
    if any(count != data.num_classes for count in counts.values()):
        said = ", ".join(f"the {role} has {count} classes" for role, count in counts.items())
        raise InvalidInputError(
            f"class counts differ: {said}, the data has {data.num_classes}; give each network "
            f"num_classes {data.num_classes}"
        )


def chance_warning(
    accuracy: float, num_classes: int, images: int, part: str = "val", samples: str = "images"
) -> str | None:
    """What to say of a teacher whose accuracy is near that of guessing, or None.

    Near means within four standard deviations of guessing on so many images, or a twentieth of the way from guessing
    to perfect, whichever is more.
    """
    chance = 1 / num_classes
    margin = max(4 * math.sqrt(chance * (1 - chance) / images), 0.05 * (1 - chance))
    if accuracy > chance + margin:
        return None
    return (
        f"the teacher is right on {accuracy:.1%} of the {part} {samples}, where guessing gives {chance:.1%}: it "
        "looks untrained, or its classes are numbered otherwise than the data's; a student can learn nothing from it"
    )


def teacher_warning(result: Mapping[str, Any], data: ImageData) -> str | None:
    """What to say of a teacher that is no better than guessing on what is watched, or None.

    Args:
        result: of the teacher's job.
        data: on which it was measured.
    """
    part = data.watched
    samples = len(getattr(data.parts, part))
    if ACCURACY in data.metrics:
        return chance_warning(float(result[f"{part}_{ACCURACY}"]), data.num_classes, samples, part, f"{data.sample}s")
    metric = data.metrics[0]
    value = float(result[f"{part}_{metric}"])
    if value > max(4 / math.sqrt(samples), 0.05):  # of guesses it is 0, with a deviation of 1 / √n; NaN of constants
        return None
    return (
        f"the teacher's {title_of(metric)} on the {samples} {data.sample}s of the {part} part is {value:.3f}, where "
        "guessing gives 0: it looks untrained; a student can learn nothing from it"
    )


def _shape(example: Inputs) -> str:
    shapes = {"": example} if isinstance(example, Tensor) else example
    return ", ".join(f"{name} {tuple(value.shape[1:])}".strip() for name, value in shapes.items())


def _check_recording(recipe: DistillRecipe) -> None:
    with user_input("cannot record the teacher"):
        finite_views(recipe.data.training_images(EpochSampler(len(recipe.data.parts.train), 0))).identity()
    if recipe.record_top is not None and recipe.record_top >= recipe.data.num_classes:
        raise InvalidInputError(
            f"record_top is {recipe.record_top}, but there are {recipe.data.num_classes} classes: expected fewer, or "
            "null for all"
        )


def _check_batch_norm(network: nn.Module, data: ImageData, role: str) -> None:
    if data.batch_size == 1 and any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise InvalidInputError(
            f"batch_size is 1, but the {role} has batch norm, which needs at least 2 images to normalise by; "
            "set --data.batch_size to 2 or more"
        )


def _check_optimizer(
    learner: nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None, option: str
) -> None:
    with user_input(f"{option} or its scheduler is not accepted"):
        built = optimizer([parameter for parameter in learner.parameters() if parameter.requires_grad])
        if scheduler is not None:
            scheduler(built)
