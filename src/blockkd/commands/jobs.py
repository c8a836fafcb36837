"""The jobs of a run: train the teacher, train a student; each leaves its weights and its result in the folder."""

import shutil
import warnings
from collections.abc import Mapping

from lightning import seed_everything
from rich.console import Console
from rich.progress import Progress
from torch import nn

from blockkd import costs
from blockkd.baselines.logits import CrossEntropy
from blockkd.commands.checks import build_method, build_network, chance_warning
from blockkd.commands.fitting import accuracy, fit
from blockkd.commands.recipe import DistillRecipe, MethodFactory, TeachRecipe
from blockkd.export import load_student, save_student
from blockkd.report import TEACHER_NAME
from blockkd.runs import STUDENT, TEACHER, Job, Row, RunFolder
from blockkd.training import DistillationModule, DivergedError


def run_teacher(recipe: TeachRecipe, loaded: nn.Module, folder: RunFolder, progress: Progress) -> nn.Module:
    """Train the teacher, unless it has weights or this run has trained it before; warn when it is near chance.

    Args:
        recipe: what to do.
        loaded: the teacher of ``check_teaching``, taken when the recipe names weights.
        folder: of the run.
        progress: shows the job.
    """
    # Plain ints: jsonargparse's own kinds of int have no place in a checkpoint, which is read as plain data.
    job = Job(TEACHER_NAME, int(recipe.seed))
    done = folder.result(job)
    if done is not None:
        teacher = load_student(build_network(recipe.teacher.network, "teacher"), folder.path / TEACHER)
    else:
        seed_everything(recipe.seed, verbose=False)
        trained = recipe.teacher.weights is not None
        teacher = loaded if trained else build_network(recipe.teacher.network, "teacher")
        module = DistillationModule(CrossEntropy(None, teacher), recipe.teacher.optimizer, recipe.teacher.scheduler)
        epochs = 0 if trained else int(recipe.teacher.epochs)
        done = _run(job, module, recipe, epochs, folder, progress)
        save_student(module, folder.path / TEACHER)
        _finish(job, done, folder, progress.console)
    images = len(recipe.data.parts.val)
    warning = chance_warning(float(done["val_accuracy"]), recipe.data.num_classes, images)
    if warning:
        warnings.warn(warning, stacklevel=2)
    return teacher


def run_student(
    job: Job, factory: MethodFactory, recipe: DistillRecipe, teacher: nn.Module, folder: RunFolder, progress: Progress
) -> None:
    """Train one student, unless this run has done so before."""
    if folder.result(job) is not None:
        return
    seed_everything(job.seed, verbose=False)  # so that every method starts from the same student
    student = build_network(recipe.student, "student")
    distiller = build_method(factory, job.method, teacher, student, recipe.data.example())
    module = DistillationModule(distiller, recipe.optimizer, recipe.scheduler)
    result = _run(job, module, recipe, int(recipe.epochs), folder, progress)
    save_student(module, folder.job_folder(job) / STUDENT)
    _finish(job, result, folder, progress.console)


def student_jobs(recipe: DistillRecipe, methods: Mapping[str, MethodFactory]) -> list[Job]:
    """Every student of the run: all methods of the first seed, then of the next."""
    return [Job(method, recipe.seed + number) for number in range(recipe.seeds) for method in methods]


def publish(job: Job, folder: RunFolder) -> None:
    """Put the job's student where a user looks for it, at the top of the folder."""
    draft = folder.path / f".{STUDENT}"
    shutil.copyfile(folder.job_folder(job) / STUDENT, draft)
    draft.replace(folder.path / STUDENT)


def _run(
    job: Job, module: DistillationModule, recipe: TeachRecipe, epochs: int, folder: RunFolder, progress: Progress
) -> Row:
    network, data = module.distiller.student, recipe.data
    try:
        rows = fit(module, data, folder, job, epochs, recipe.trainer, progress) if epochs else []
    except DivergedError as error:
        raise DivergedError(f"{job}: {error}") from error
    return {
        "method": job.method,
        "seed": job.seed,
        "epochs": epochs,
        "val_accuracy": accuracy(module, data, "val", recipe.trainer),
        "test_accuracy": accuracy(module, data, "test", recipe.trainer),
        "parameters": costs.parameters(network),
        "flops_per_image": costs.flops(network, data.example()),
        "seconds": sum(float(row["seconds"]) for row in rows),
    }


def _finish(job: Job, result: Row, folder: RunFolder, console: Console) -> None:
    folder.finish(job, result)
    (folder.job_folder(job) / "last.ckpt").unlink(missing_ok=True)
    if not console.is_terminal:  # on a terminal the progress line says it
        took = f", {float(result['seconds']):.1f} s" if result["epochs"] else ""
        console.print(f"{job}: test accuracy {float(result['test_accuracy']):.2%}{took}", highlight=False)
