"""What a recipe says. The types here are the schema of the YAML files and of the options on the command line."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockkd.commands.loggers import Service
from blockkd.data.images import ImageData
from blockkd.devices import Compile
from blockkd.distiller import Distiller
from blockkd.models.named import Named
from blockkd.text.networks import Pretrained, StudentOf

NetworkFactory = Named | Pretrained | Callable[[], nn.Module]
MethodFactory = Callable[[nn.Module, nn.Module], Distiller]
OptimizerFactory = Callable[[list[Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass(kw_only=True)
class TrainerOptions:
    """Options of Lightning's Trainer.

    Args:
        accelerator: cpu, gpu, mps, ..., or auto.
        devices: how many, a list of them, or auto.
        num_nodes: how many machines.
        strategy: how devices work together: auto, ddp, fsdp, ...
        precision: of the arithmetic; weights, their updates and the losses stay in float32.
        accumulate_grad_batches: batches per optimizer step.
        gradient_clip_val: largest norm of the gradient; null does not clip.
        deterministic: refuse algorithms whose result varies between runs.
    """

    accelerator: str = "auto"
    devices: int | list[int] | str = "auto"
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: float | None = None
    deterministic: bool = False


@dataclass(kw_only=True)
class TeacherRecipe:
    """The teacher: a network, and its weights or how to train it.

    Args:
        network: class path of the network; its name can be given as --teacher.name.
        weights: file with trained weights (safetensors, or a state dict in .pt/.pth); then nothing is trained.
        accuracy: on which share of the test images, 0 … 1, its card says that it is right; compared with what is found.
        epochs: epochs of training; a text classifier fine-tuned for the task has none.
        optimizer: class path of a torch optimizer.
        scheduler: class path of a learning rate schedule, stepped per epoch; null is a cosine over all epochs.
    """

    network: NetworkFactory
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None = None
    weights: str | None = None
    accuracy: float | None = None
    epochs: NonNegativeInt = 30

    @property
    def is_trained(self) -> bool:
        """Whether it comes with weights for the data, so that nothing is to be trained."""
        return self.weights is not None or (isinstance(self.network, Pretrained) and self.network.is_fine_tuned)

    @property
    def epochs_to_train(self) -> int:
        """How many epochs of training it takes."""
        return 0 if self.is_trained else int(self.epochs)


@dataclass(kw_only=True)
class TeachRecipe:
    """Train a teacher by itself.

    Args:
        data: class path of the dataset.
        teacher: the teacher.
        seed: seed of weights, data order and dropout.
        threads: CPU threads of torch; null leaves torch its choice. A given number makes results on the CPU
            independent of how many cores there are.
        channels_last: keep images and networks in memory channel by channel of each pixel; often faster.
        compile: compile the step into one graph: off, default, reduce-overhead (records CUDA graphs), or auto, which is
            reduce-overhead on one GPU for more than a few thousand steps, and off else. Changes results by rounding.
        logger: wandb or mlflow, to which the metrics go as well; they are always kept as CSV and for TensorBoard.
        trainer: options of Lightning's Trainer.
    """

    data: ImageData
    teacher: TeacherRecipe
    seed: NonNegativeInt = 0
    threads: PositiveInt | None = None
    channels_last: bool = False
    compile: Compile = "auto"
    logger: Service | None = None
    trainer: TrainerOptions = field(default_factory=TrainerOptions)


@dataclass(kw_only=True)
class DistillRecipe(TeachRecipe):
    """Train a teacher (or load one), then students under one or more methods.

    Args:
        data: class path of the dataset.
        teacher: the teacher.
        student: class path of the student's network, or of StudentOf for text.
        method: the method, a Distiller.
        beside: further methods by name, trained with the same split, data order, epochs, optimizer and
            initial student.
        epochs: epochs of each student.
        optimizer: class path of a torch optimizer.
        scheduler: class path of a learning rate schedule, stepped per epoch; null is a cosine over all epochs.
        seed: first seed of weights, data order and dropout.
        seeds: how many seeds the students are repeated with; the teacher stays the same.
        threads: CPU threads of torch; null leaves torch its choice. A given number makes results on the CPU
            independent of how many cores there are.
        channels_last: keep images and networks in memory channel by channel of each pixel; often faster.
        compile: compile the step into one graph: off, default, reduce-overhead (records CUDA graphs), or auto, which is
            reduce-overhead on one GPU for more than a few thousand steps, and off else. Changes results by rounding.
        logger: wandb or mlflow, to which the metrics go as well; they are always kept as CSV and for TensorBoard.
        fold_teacher: fold the teacher's batch norm into its convolutions, for methods that do not look at it; the
            same up to rounding, and faster.
        record_teacher: keep the teacher's logits for every view of every training image, for all methods that need
            nothing else of its forward pass, and so run it on each view once only. A folder, in which other runs find
            them again; true is the run's own. Takes 1.6 GB for CIFAR-100; augmentation must be pad_crop_flip, none, or
            random_resized_crop with n_views.
        record_ahead: run the teacher on all views before the first student that needs it, instead of on each when it is
            first met.
        record_top: how many of a view's largest logits are recorded, and the others as one number; null records all.
        watch_stones: measure after each epoch, on the validation part, how often each stone is right and agrees with
            teacher and student, for methods that have stones; trains the same.
        trainer: options of Lightning's Trainer.
    """

    student: NetworkFactory | StudentOf
    method: MethodFactory
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None = None
    beside: dict[str, MethodFactory] = field(default_factory=dict)
    epochs: PositiveInt = 30
    seeds: PositiveInt = 1
    fold_teacher: bool = True
    record_teacher: bool | str = False
    record_ahead: bool = False
    record_top: PositiveInt | None = None
    watch_stones: bool = False


def method_name(class_path: str) -> str:
    """``"blockkd.block_kd.BlockKD"`` → ``"block_kd"``: how a method is called in tables and folders."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_path.rpartition(".")[2])
    return words.lower()
