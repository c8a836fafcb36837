"""The jobs of a run: train the teacher, train a student; each leaves its weights and its result in the folder."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning import seed_everything
from rich.progress import Progress
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from blockkd import costs
from blockkd.agreement import card_warning
from blockkd.baselines.logits import CrossEntropy
from blockkd.calling import count
from blockkd.commands.checkpoints import remove_checkpoints
from blockkd.commands.checks import build_method, build_network, build_student, method_class, teacher_warning
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import fit, make_trainer, measured, module_for
from blockkd.commands.forecast import Forecast
from blockkd.commands.loggers import live_loggers
from blockkd.commands.progress import ProgressLine
from blockkd.commands.recipe import (
    DistillRecipe,
    MethodFactory,
    OptimizerFactory,
    SchedulerFactory,
    TeachRecipe,
)
from blockkd.commands.slices import Deadline
from blockkd.commands.together import agreed, is_first
from blockkd.data.images import FiniteViews, ImageData, finite_views
from blockkd.data.sampling import EpochSampler
from blockkd.distiller import Distiller
from blockkd.divergence import DivergedError
from blockkd.durable import remove_drafts, write_durably
from blockkd.export import load_student, save_student
from blockkd.folding import fold_batch_norm
from blockkd.ranks import rank, world_size
from blockkd.recording import RecordedTeacher, fill, record_teacher
from blockkd.replaying import save_step
from blockkd.report import TEACHER_NAME
from blockkd.runs import (
    BEST,
    DIVERGED,
    STUDENT,
    STUDENT_FOLDER,
    TEACHER,
    TEACHER_FOLDER,
    TEACHER_LOGITS,
    Job,
    Row,
    RunFolder,
)
from blockkd.scores import ACCURACY, metric_of, score, title_of
from blockkd.text.glue import Glue
from blockkd.text.saving import copy_classifier, save_classifier
from blockkd.training import DistillationModule
from blockkd.watching import StoneWatch

MIB = 2**20
COST_IMAGES = 64


@dataclass(frozen=True)
class Workplace:
    """Where jobs are done.

    Attributes:
        folder: of the run.
        progress: shows the jobs.
        deadline: when to stop between two epochs.
        strict: whether to stop at a doubt about the teacher.
        forecast: of all jobs.
    """

    folder: RunFolder
    progress: Progress
    deadline: Deadline
    strict: bool = False
    forecast: Forecast = field(default_factory=Forecast)

    @contextmanager
    def claim(self, job: Job, wait: bool = False) -> Iterator[bool]:
        """Claim a job; of processes that train together the first does it for all."""
        with self.folder.claim(job, wait) if is_first() else nullcontext(False) as ours:
            yield agreed(ours)


def run_teacher(recipe: TeachRecipe, loaded: nn.Module, place: Workplace) -> nn.Module | None:
    """Train the teacher, unless it has weights or this run has trained it before; warn when it is near chance.

    Args:
        recipe: what to do.
        loaded: the teacher of ``check_teaching``, taken when the recipe names weights.
        place: where.

    Returns:
        The teacher, or None when time ran out.
    """
    # Plain ints: jsonargparse's own kinds of int have no place in a checkpoint, which is read as plain data.
    job, folder = Job(TEACHER_NAME, int(recipe.seed)), place.folder
    with place.claim(job, wait=True):  # other processes need it too
        done = agreed(_done(job, place) if is_first() else None)
        if done is not None:
            with user_input("cannot go on with the run's teacher"):
                teacher = load_student(build_network(recipe.teacher.network, "teacher"), folder.path / TEACHER)
        else:
            seed_everything(recipe.seed, verbose=False)
            trained = recipe.teacher.is_trained
            teacher = loaded if trained else build_network(recipe.teacher.network, "teacher")
            learner = CrossEntropy(None, teacher)
            module = _module(learner, recipe, recipe.teacher.optimizer, recipe.teacher.scheduler)
            done = _run(job, module, recipe, recipe.teacher.epochs_to_train, place)
            if done is None:
                return None
            if is_first():
                save_student(module, folder.path / TEACHER)
                if not trained:
                    _save_folder(teacher, recipe.data, folder.path / TEACHER_FOLDER)
                _finish(job, done, place)
    doubts = [teacher_warning(done, recipe.data)]
    if recipe.teacher.accuracy is not None:
        tested = len(recipe.data.parts.test)
        doubts.append(card_warning(float(done["test_accuracy"]), recipe.teacher.accuracy, tested))
    for doubt in filter(None, doubts):
        if place.strict:
            raise InvalidInputError(f"stopped by --strict: {doubt}")
        if is_first():
            warnings.warn(doubt, stacklevel=2)
    return teacher


def run_student(job: Job, factory: MethodFactory, recipe: DistillRecipe, teacher: nn.Module, place: Workplace) -> bool:
    """Train one student, unless this run has done so before or another process is at it; whether time is left."""
    with place.claim(job) as ours:
        if not ours or agreed(_done(job, place) if is_first() else None) is not None:
            return True
        seed_everything(job.seed, verbose=False)  # so that every method starts from the same student
        distiller = set_up(job, factory, recipe, teacher)
        recorded = _record(job, distiller, teacher, recipe, place)
        module = _module(distiller, recipe, recipe.optimizer, recipe.scheduler, recorded)
        result = _run(job, module, recipe, int(recipe.epochs), place)
        if result is None:
            return False
        if is_first():
            save_student(module, place.folder.job_folder(job) / STUDENT)
            _save_folder(module.distiller.student, recipe.data, place.folder.job_folder(job) / STUDENT_FOLDER)
            _finish(job, result, place)
    return agreed(place.deadline.allows())


def set_up(job: Job, factory: MethodFactory, recipe: DistillRecipe, teacher: nn.Module) -> Distiller:
    """The method of a job with a new student, and with the teacher or its folded copy."""
    student = build_student(recipe, teacher)
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in teacher.modules())
    if recipe.fold_teacher and has_batch_norm and not method_class(factory).reads_batch_norm:
        teacher = fold_batch_norm(teacher, recipe.data.example())
    return build_method(factory, job.method, teacher, student, recipe.data)


def student_jobs(recipe: DistillRecipe, methods: Mapping[str, MethodFactory]) -> list[Job]:
    """Every student of the run: all methods of the first seed, then of the next."""
    return [Job(method, int(recipe.seed) + number) for number in range(recipe.seeds) for method in methods]


def publish(job: Job, folder: RunFolder) -> None:
    """Put the job's student where a user looks for it, at the top of the folder."""
    write_durably(folder.path / STUDENT, (folder.job_folder(job) / STUDENT).read_bytes())
    copy_classifier(folder.job_folder(job) / STUDENT_FOLDER, folder.path / STUDENT_FOLDER)


def _module(
    distiller: Distiller,
    recipe: TeachRecipe,
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None,
    recorded: RecordedTeacher | None = None,
) -> DistillationModule:
    options = {"watched": recipe.data.watched, "channels_last": recipe.channels_last, "compile": recipe.compile}
    return module_for(recipe.data, distiller, optimizer, scheduler=scheduler, recorded=recorded, **options)


def _record(
    job: Job, distiller: Distiller, teacher: nn.Module, recipe: DistillRecipe, place: Workplace
) -> RecordedTeacher | None:
    """The record of the teacher, if there is to be one and the method can use it."""
    if not recipe.record_teacher or distiller.teacher is None:
        return None
    if not distiller.takes_recorded:
        warnings.warn(f"record_teacher has no effect on {job.method}, which needs more than logits", stacklevel=2)
        return None
    own = recipe.record_teacher is True
    folder = place.folder.path / TEACHER_LOGITS if own else Path(str(recipe.record_teacher)).expanduser()
    images = finite_views(recipe.data.training_images(EpochSampler(len(recipe.data.parts.train), 0)))
    with user_input("cannot record the teacher"):
        recorded = record_teacher(folder, teacher, images, recipe.data.num_classes, recipe.record_top)
    table = recorded.table
    if table.created:
        samples, views, _ = table.shape
        each = f" in {views} views each" if views > 1 else ""
        place.progress.console.print(
            f"teacher: logits of {samples} {recipe.data.sample}s{each} are recorded in {table.folder} "
            f"({table.nbytes / 1e9:.2f} GB)",
            highlight=False,
        )
    if recipe.record_ahead:
        _record_ahead(recorded, images, distiller, recipe, place)
    return recorded


def _record_ahead(
    recorded: RecordedTeacher, images: FiniteViews, distiller: Distiller, recipe: DistillRecipe, place: Workplace
) -> None:
    """Run the teacher on all that is missing; when time runs out, the rest is for the next slice."""
    device = make_trainer(recipe.trainer).strategy.root_device
    distiller.to(device)
    missing = int((~recorded.table.filled()).sum())
    line = place.progress.add_task("teacher's logits", total=missing, note="", visible=missing > 0)
    for left in fill(recorded, images, distiller.teacher_logits, device, share=(rank(), world_size())):
        place.progress.update(line, completed=missing - left)
        if not place.deadline.allows():
            break
    recorded.flush()


def _done(job: Job, place: Workplace) -> Row | None:
    """The result of a job that is finished; whoever finished it may have been killed just before it tidied up."""
    if job.method == TEACHER_NAME:
        remove_drafts(place.folder.path, TEACHER)
    result = place.folder.result(job)
    if result is not None:
        remove_checkpoints(place.folder.job_folder(job))
    return result


def _kept(error: DivergedError, module: DistillationModule, job: Job, place: Workplace) -> str:
    """Keep the step for ``blockkd replay``; says so, or why not."""
    if error.step is None or not is_first():
        return ""
    path = place.folder.job_folder(job) / DIVERGED
    try:
        save_step(path, error.step, module.distiller, str(error))
    except OSError as full:
        return f"; the step could not be kept: {full.strerror}"
    return f"; look at the step with: blockkd replay {path}"


def _run(job: Job, module: DistillationModule, recipe: TeachRecipe, epochs: int, place: Workplace) -> Row | None:
    """Train, and measure what came of it; None when time ran out."""
    data, trainer = recipe.data, recipe.trainer
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    rows: list[Row] = []
    if epochs:
        try:
            watchers = [StoneWatch()] if getattr(recipe, "watch_stones", False) else []
            with live_loggers(recipe.logger, place.folder, job) as loggers, _line(job, data, place) as line:
                rows = fit(module, data, place.folder, job, epochs, trainer, line, place.deadline, watchers, loggers)
        except DivergedError as error:
            raise DivergedError(f"{job}: {error}{_kept(error, module, job, place)}") from error
        if len(rows) < epochs:
            return None
        module.distiller.set_epoch(epochs - 1)  # a resumed job may have had no epoch left to do
    peak = torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else 0.0
    costs_of_step = _step_costs(module, data) if epochs else {}
    if epochs and torch.cuda.is_available():
        costs_of_step["peak_memory_mib"] = peak
    network = module.distiller.student
    result: Row = {"method": job.method, "seed": job.seed, "epochs": epochs}
    if data.metrics[0] != ACCURACY:
        result["metric"] = data.metrics[0]
    for part in ("val", "test") if data.watched == "val" else ("test",):
        result |= measured(module, data, part, trainer)
    return {
        **result,
        **_best(job, module, recipe, rows, place),
        "parameters": costs.parameters(network),
        "flops_per_image": costs.flops(network, data.example()),
        "seconds": sum(float(row["seconds"]) for row in rows),
        **costs_of_step,
    }


@contextmanager
def _line(job: Job, data: ImageData, place: Workplace) -> Iterator[ProgressLine]:
    """Shows the job while it trains; what is done stands above it."""
    place.forecast.drop(lambda other: place.folder.result(other) is not None)
    line = ProgressLine(place.progress, place.forecast, job, data.metrics)
    try:
        yield line
    finally:
        line.close()


def _best(job: Job, module: DistillationModule, recipe: TeachRecipe, rows: list[Row], place: Workplace) -> Row:
    """What the best epoch gives: chosen on the validation part; without one, the best that was seen on the test part,
    which is no fair measure and named so.
    """
    if not rows:
        return {}
    metric = recipe.data.metrics[0]
    if recipe.data.watched == "test":
        return {f"best_watched_{metric}": max(float(row[f"test/{metric}"]) for row in rows)}
    path = place.folder.job_folder(job) / BEST
    last = {name: tensor.clone() for name, tensor in module.distiller.student.state_dict().items()}
    load_student(module.distiller.student, path)
    best = measured(module, recipe.data, "test", recipe.trainer)
    module.distiller.student.load_state_dict(last)
    epoch = max(rows, key=lambda row: float(row[f"val/{metric}"]))["epoch"]  # the first of equals, as BestEpoch keeps
    return {"best_epoch": int(epoch) + 1, **{f"best_{name}": value for name, value in best.items()}}


def _step_costs(module: DistillationModule, data: ImageData) -> Row:
    """Of one training step, on a batch of at most 64 images: most of it grows in proportion, and memory is finite.

    What is recorded of the teacher counts as found.
    """
    distiller, inputs = module.distiller.cpu(), data.example(min(data.batch_size, COST_IMAGES))
    batch = count(inputs)
    labels = data.parts.test.labels[:batch]
    context = {"indices": torch.arange(batch)} if distiller.needs_indices else {}
    if module.recorded is not None:
        context["recorded"] = torch.zeros(batch, data.num_classes)
    return {
        "batch_size": batch,
        "step_flops": costs.step_flops(distiller, inputs, labels, **context),
        "saved_mib": costs.saved_bytes(distiller, inputs, labels, **context) / MIB,
    }


def _finish(job: Job, result: Row, place: Workplace) -> None:
    (place.folder.job_folder(job) / DIVERGED).unlink(missing_ok=True)  # of an attempt before this one
    place.folder.finish(job, result)
    remove_checkpoints(place.folder.job_folder(job))
    took = f", {float(result['seconds']):.1f} s" if result["epochs"] else ""
    said = f"{job}: test {title_of(metric_of([result]))} {score(result):.2%}{took}"
    place.progress.console.print(said, highlight=False)


def _save_folder(network: nn.Module, data: ImageData, folder: Path) -> None:
    """Leave a text classifier as a folder that transformers loads."""
    if isinstance(data, Glue):
        save_classifier(network, data.tokenizer, folder)
