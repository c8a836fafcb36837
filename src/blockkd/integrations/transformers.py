"""Distillation with the Trainer of transformers (``pip install 'blockkd[text]'``)."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from blockkd.block_kd import BlockKD
from blockkd.calling import Inputs
from blockkd.distiller import Distiller
from blockkd.text.fitting_together import check_labels, check_length, check_vocabulary, longest

METHOD_FILE = "distiller.safetensors"  # what the method itself learns, beside the student in a checkpoint
STUDENT = "student."


class DistillationTrainer(Trainer):
    """A ``transformers.Trainer`` that trains ``model``, the student, by a distillation method.

    Everything else is the Trainer's: arguments, callbacks, evaluation (of the student alone, with its own loss),
    saving, resuming. What is saved as the model holds nothing but the student, and
    ``AutoModelForSequenceClassification.from_pretrained`` loads it. A checkpoint holds in a file of its own what the
    method learns beside (connectors), so that a resumed training ends as one that was never interrupted.

        trainer = DistillationTrainer(model=student, teacher=teacher, args=TrainingArguments("runs/sst2"),
                                      train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
        trainer.train()

    Beside the loss its terms are logged (``loss_task/student``, ``loss_distill/stone_2``, ...).

    Args:
        model: the student.
        teacher: trained; reads the same tokens; frozen from here on.
        args: as of the Trainer.
        method: (teacher, student) → the method; where it has a parameter ``example``, a batch is given to it as well.
            Block-KD by default; ``functools.partial(BlockKD, stones="last")`` or ``KD`` are others.
        example: a batch by which the method cuts the networks; two training samples when left out.
        options: all other arguments of the Trainer, by name.

    Raises:
        ValueError: teacher, student and tokenizer do not fit together, there is nothing to take an example from, or an
            argument would have no effect here.
        PartitionError: a network cannot be cut as asked.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: nn.Module,
        args: TrainingArguments | None = None,
        *,
        method: Callable[..., Distiller] = BlockKD,
        example: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        _check_options(options)
        super().__init__(model=model, args=args, **options)
        _check_arguments(self)
        check_labels(teacher, model)
        check_vocabulary(self.processing_class, teacher, model)
        self._networks = (teacher, model)
        self._longest = min((n for n in map(longest, self._networks) if n is not None), default=None)
        self._teacher_columns = list(inspect.signature(teacher.forward).parameters)
        told = {}
        if "example" in inspect.signature(method).parameters:
            told["example"] = self._example(model) if example is None else dict(example)
        self.distiller = method(teacher, model, **told)
        if self.distiller.student is not model:
            raise ValueError(
                f"{type(self.distiller).__name__} makes another network of the student: train it otherwise"
            )
        if self.distiller.needs_indices:
            raise ValueError(
                f"{type(self.distiller).__name__} asks which samples a batch holds, which is not told here"
            )
        self.distiller.check_schedule(int(self.args.num_train_epochs))
        if self.place_model_on_device:
            self.distiller.to(self.args.device)
        self.model_accepts_loss_kwargs = False  # losses are means over the batch, not sums over its tokens
        self._terms: dict[str, Tensor] = {}
        self._batches = 0
        self.add_callback(_Epochs(self.distiller))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The method's loss of a training batch; the student's own loss of any other."""
        if not isinstance(self.accelerator.unwrap_model(model, keep_torch_compile=False), _Step):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = dict(inputs)
        self._check_length(batch)
        result = model(batch, batch.pop(self.label_names[0]))
        self._note(result["terms"])
        return (result["loss"], {"logits": result["logits"]}) if return_outputs else result["loss"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimizer over the student and all that the method learns beside it."""
        return super().create_optimizer(self.distiller if model is None else model)

    def prediction_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The student's loss and logits, in the precision that it is trained in."""
        with self.accelerator.autocast():
            return super().prediction_step(model, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and beside a training loss the mean of each of its terms since the last time."""
        if "loss" in logs and self._batches:
            logs = logs | {f"loss_{name}": float(value) / self._batches for name, value in self._terms.items()}
            self._terms, self._batches = {}, 0
        super().log(logs, *args, **kwargs)

    def _check_length(self, batch: Mapping[str, Any]) -> None:
        tokens = batch.get("input_ids")
        if tokens is not None and self._longest is not None and tokens.shape[1] > self._longest:
            check_length(tokens.shape[1], *self._networks)

    def _note(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        self._batches += 1

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepare: Any = super()._prepare_for_training
        # What is wrapped and optimised is the whole step, so that gradients are shared between processes as usual.
        with self._training_the_whole_step():
            prepared = prepare(*args, **kwargs)
        self.callback_handler.model = self.model
        return prepared

    @contextmanager
    def _training_the_whole_step(self) -> Iterator[None]:
        student = self.model
        if self.model_wrapped is student:
            self.model_wrapped = _Step(self.distiller)
        self.model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        try:
            yield
        finally:
            self.model = student

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in self._teacher_columns if name not in columns]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            own = {
                name: value.detach().cpu().contiguous().clone() for name, value in _own_state(self.distiller).items()
            }
            save_file(own, Path(output_dir) / METHOD_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            file = Path(checkpoint) / METHOD_FILE
            if not file.is_file():
                raise ValueError(
                    f"{checkpoint} holds no {METHOD_FILE}: it was not written by a DistillationTrainer, or with "
                    "save_only_model, and training cannot go on from there"
                )
            _load_own_state(self.distiller, load_file(file), file)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _example(self, student: nn.Module) -> dict[str, Tensor]:
        dataset: Any = self.train_dataset
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ValueError(
                "the method cuts the networks by a batch, and there is no train_dataset of which samples can be read "
                "by number: give example=, a batch of inputs"
            )
        collate = self._get_collator_with_removed_columns(self.data_collator)
        batch = collate([dataset[i] for i in range(min(2, len(dataset)))])
        kept = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        kept.pop(self.label_names[0], None)
        device = next(student.parameters()).device
        return {name: value.to(device) for name, value in kept.items()}


class _Step(nn.Module):
    """One step of the method as a module that can be wrapped: what it is given and gives back are plain containers."""

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, inputs: Inputs, targets: Tensor) -> dict[str, Any]:
        losses = self.distiller(inputs, targets)
        terms = {name: term.detach() for name, term in losses.terms.items()}
        return {"loss": losses.total, "terms": terms, "logits": losses.logits}


class _Epochs(TrainerCallback):
    """Tells the method which epoch begins."""

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, control, kwargs
        self.distiller.set_epoch(int(state.epoch or 0))


def _own_state(distiller: Distiller) -> dict[str, Tensor]:
    return {name: value for name, value in distiller.state_dict().items() if not name.startswith(STUDENT)}


def _load_own_state(distiller: Distiller, state: dict[str, Tensor], file: Path) -> None:
    expected = _own_state(distiller)
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in expected.items()}:
        raise ValueError(
            f"{file} holds {len(state)} tensors that do not fit {type(distiller).__name__}, which has {len(expected)}: "
            "resume with the method, the networks and the blocks that the training began with"
        )
    distiller.load_state_dict(state, strict=False)


def _check_options(options: Mapping[str, Any]) -> None:
    for name, instead in {
        "model_init": "give a model",
        "compute_loss_func": "give a method",
    }.items():
        if options.get(name) is not None:
            raise ValueError(f"{name} has no effect in a DistillationTrainer: {instead}")


def _check_arguments(trainer: Trainer) -> None:
    args = trainer.args
    if args.label_smoothing_factor:
        raise ValueError("label_smoothing_factor has no effect on a method's own losses: leave it out")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("FSDP and DeepSpeed would shard the student apart from its teacher: train with DDP (torchrun)")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process for {args.n_gpu} GPUs (nn.DataParallel) cannot run a network in blocks: start one process "
            "for each, with torchrun or accelerate launch"
        )
    if len(trainer.label_names) != 1:
        raise ValueError(f"the labels are {trainer.label_names}, expected one column (label_names=['labels'])")
