"""Distillation under the Trainer of transformers: the student alone is saved, and a resumed training is the same."""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="accelerate is not installed")

from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.block_kd import BlockKD
from blockkd.calling import logits_of
from blockkd.integrations.transformers import METHOD_FILE, DistillationTrainer
from tests.text.families import TEXT, classifier, sentences, transformers
from tests.text.tokens import encoded, tokenizer


def pair(student: str = "bert", teacher: str = "bert") -> tuple[nn.Module, nn.Module]:
    return classifier(teacher, classes=2), classifier(student, layers=2, width=8, classes=2, seed=1)


# Without what random numbers and the order of summation change.
SHARED: dict[str, Any] = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}


def trainer(
    folder: Path, networks: tuple[nn.Module, nn.Module], method: Any = BlockKD, **settings: Any
) -> DistillationTrainer:
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3, "logging_steps": 2}
    off = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    args = transformers.TrainingArguments(str(folder), **(options | off | settings))
    teacher, student = networks
    return DistillationTrainer(
        model=student,  # type: ignore[arg-type]
        teacher=teacher,
        args=args,
        method=method,
        train_dataset=encoded(22),
        eval_dataset=encoded(6, seed=1),
        processing_class=tokenizer(),
    )


def without_dropout(training: DistillationTrainer) -> DistillationTrainer:
    for module in training.distiller.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return training


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", TEXT)
def test_the_saved_model_is_the_student_and_nothing_else(family: str, tmp_path: Path) -> None:
    networks = pair(family, family)
    before = weights(networks[0]), weights(networks[1])
    training = trainer(tmp_path, networks, max_steps=2)
    training.train()
    training.save_model(str(tmp_path / "saved"))
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert same(again.state_dict(), networks[1].state_dict())
    assert type(again) is type(networks[1])
    assert not (tmp_path / "saved" / METHOD_FILE).exists()
    inputs = sentences([4, 6])
    assert torch.equal(logits_of(again.eval(), inputs), logits_of(networks[1].eval(), inputs))
    assert same(weights(networks[0]), before[0])
    assert not same(weights(networks[1]), before[1])


@pytest.mark.parametrize(
    "method", [BlockKD, partial(BlockKD, stones="last", gamma=1.0, cross_from_epoch=1), KD, CrossEntropy]
)
@pytest.mark.parametrize("step", [3, 6, 8])  # within the first epoch, at its end, within the second
def test_resumed_is_uninterrupted_bit_for_bit(method: Any, step: int, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": step, "num_train_epochs": 2, "weight_decay": 0.1}
    whole = trainer(tmp_path / "whole", pair(), method, **settings)
    whole.train()
    networks = pair()
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.add_(1.0)  # what it starts from plays no part
    torch.manual_seed(99)
    resumed = trainer(tmp_path / "resumed", networks, method, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert same(weights(resumed.distiller), weights(whole.distiller))
    assert resumed.state.global_step == whole.state.global_step == 12
    assert resumed.state.log_history[-2] == whole.state.log_history[-2]  # the last losses; then come the times
    final = (resumed.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"])  # type: ignore[union-attr]
    assert all(torch.equal(final[0][i]["exp_avg"], final[1][i]["exp_avg"]) for i in final[0])


def test_a_checkpoint_holds_the_method_beside_the_student(tmp_path: Path) -> None:
    training = trainer(tmp_path, pair(), save_strategy="steps", save_steps=2, max_steps=2)
    training.train()
    checkpoint = tmp_path / "checkpoint-2"
    student = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert same(student.state_dict(), training.distiller.student.state_dict())
    own = load_file(checkpoint / METHOD_FILE)
    expected = training.distiller.get_submodule("connectors").state_dict()
    assert same(own, {f"connectors.{name}": value for name, value in expected.items()})
    assert own
    assert "connectors" not in json.dumps(json.loads((checkpoint / "config.json").read_text()))


def test_it_is_the_plain_loop(tmp_path: Path) -> None:
    """One step of the Trainer is one step of the method with the same optimizer."""
    networks = pair()
    settings = SHARED | {"max_steps": 1, "learning_rate": 1e-3}
    training = without_dropout(trainer(tmp_path, networks, **settings, lr_scheduler_type="constant"))
    twin = copy.deepcopy(training.distiller)
    batch = next(iter(training.get_train_dataloader()))
    transformers.set_seed(training.args.seed)
    training.train()
    labels = batch.pop("labels")
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    losses = twin(dict(batch), labels)
    losses.total.backward()
    optimizer.step()
    torch.testing.assert_close(weights(training.distiller), weights(twin))
    logged = training.state.log_history[-1]
    assert logged["train_loss"] == pytest.approx(losses.total.item(), rel=1e-5)


def test_connectors_are_trained_and_terms_are_logged(tmp_path: Path) -> None:
    training = trainer(tmp_path, pair())
    before = weights(training.distiller.connectors)  # type: ignore[arg-type]
    training.train()
    assert not same(before, weights(training.distiller.connectors))  # type: ignore[arg-type]
    entry = training.state.log_history[0]
    terms = {name: value for name, value in entry.items() if name.startswith("loss_")}
    assert set(terms) == {
        f"loss_{part}/{who}" for part in ("task", "distill") for who in ("student", "stone_1", "stone_2")
    }
    assert sum(terms.values()) == pytest.approx(entry["loss"], rel=1e-4)


def test_gradient_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    results = []
    for size, steps in ((4, 1), (2, 2)):
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        training = without_dropout(trainer(tmp_path, pair(), **SHARED, **batches))
        training.train()
        results.append(weights(training.distiller))
    torch.testing.assert_close(*results)


def test_evaluation_is_of_the_student_alone(tmp_path: Path) -> None:
    networks = pair()
    training = trainer(tmp_path, networks, eval_strategy="epoch")
    training.train()
    metrics = training.evaluate()
    student = networks[1].eval()
    rows = encoded(6, seed=1)
    batch = tokenizer().pad([{k: v for k, v in row.items() if k != "label"} for row in rows], return_tensors="pt")
    labels = torch.tensor([row["label"] for row in rows])
    expected = nn.functional.cross_entropy(logits_of(student, dict(batch)), labels)
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert [entry["eval_loss"] for entry in training.state.log_history if "eval_loss" in entry][-1] == metrics[
        "eval_loss"
    ]


def test_the_best_model_is_loaded_back(tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    training = trainer(tmp_path, pair(), **settings, metric_for_best_model="loss", num_train_epochs=3)
    training.train()
    best = training.state.best_model_checkpoint
    assert best is not None
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(best)
    assert same(loaded.state_dict(), training.distiller.student.state_dict())


def test_an_optimizer_made_beforehand_has_the_connectors_too(tmp_path: Path) -> None:
    training = trainer(tmp_path, pair())
    held = {id(p) for group in training.create_optimizer().param_groups for p in group["params"]}
    assert held == {id(p) for p in training.distiller.parameters()}


def test_training_twice_goes_on_with_the_same_student(tmp_path: Path) -> None:
    networks = pair()
    training = trainer(tmp_path, networks, max_steps=1)
    training.train()
    assert training.model is networks[1]
    assert training.callback_handler.model is networks[1]
    before = weights(networks[1])
    training.train()
    assert not same(before, weights(networks[1]))


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """With half the batch on each; gradients of student and connectors are shared between the processes."""
    one = without_dropout(trainer(tmp_path / "one", pair(), **SHARED))
    one.train()
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(load_file(tmp_path / "two.safetensors"), weights(one.distiller))


def test_the_epoch_is_told(tmp_path: Path) -> None:
    training = trainer(tmp_path, pair(), partial(BlockKD, gamma=1.0, cross_from_epoch=1), logging_steps=6)
    training.train()
    crossed = [any(name.startswith("loss_cross") for name in entry) for entry in training.state.log_history[:2]]
    assert crossed == [False, True]


def test_a_teacher_that_takes_more_columns_gets_them(tmp_path: Path) -> None:
    """DistilBERT takes no segments; its teacher does."""
    networks = pair(student="distilbert", teacher="bert")
    asked: list[dict[str, Any]] = []
    networks[0].register_forward_pre_hook(lambda _m, _a, kwargs: asked.append(kwargs), with_kwargs=True)
    training = trainer(tmp_path, networks, max_steps=1)
    asked.clear()
    training.train()
    assert asked
    assert all("token_type_ids" in kwargs for kwargs in asked)


def test_mixed_precision(tmp_path: Path) -> None:
    networks = pair()
    training = trainer(tmp_path, networks, bf16=True, max_steps=3, eval_strategy="steps", eval_steps=2)
    training.train()
    assert all(parameter.dtype == torch.float32 for parameter in networks[1].parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
        ({"label_names": ["start", "end"]}, "expected one column"),
    ],
)
def test_arguments_without_effect_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, pair(), **settings)


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    teacher, student = pair()
    for option in ("model_init", "compute_loss_func"):
        with pytest.raises(ValueError, match=f"{option} has no effect"):
            DistillationTrainer(student, teacher, **{option: lambda *_: None})  # type: ignore[arg-type]
    args = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="give example="):
        DistillationTrainer(student, teacher, args)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, pair(), KD, save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(ValueError, match="holds 0 tensors that do not fit BlockKD"):
        trainer(tmp_path, pair()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (tmp_path / "checkpoint-2" / METHOD_FILE).unlink()
    with pytest.raises(ValueError, match=r"holds no distiller\.safetensors: it was not written by"):
        trainer(tmp_path, pair()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_sequences_that_are_too_long_are_told(tmp_path: Path) -> None:
    training = trainer(tmp_path, pair())
    training.train_dataset = [
        {**row, **{name: row[name] * 30 for name in row if name != "label"}} for row in encoded(8)
    ]
    with pytest.raises(ValueError, match=r"sequences of \d+ tokens are longer than the 64 positions"):
        training.train()


def test_networks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    teacher, student = pair()
    with pytest.raises(ValueError, match="the teacher tells 3 labels apart"):
        trainer(tmp_path, (classifier("bert", classes=3), student))
    for network, names in ((teacher, ["no", "yes"]), (student, ["yes", "no"])):
        network.config.id2label = dict(enumerate(names))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"0 is 'no' to the teacher, 'yes' to the student.*set id2label"):
        trainer(tmp_path, (teacher, student))
