"""Students made of teachers, and networks from folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blockkd.block_kd import BlockKD
from blockkd.calling import logits_of
from blockkd.text.fitting_together import (
    MismatchError,
    check_labels,
    check_length,
    check_tokenizers,
    check_vocabulary,
    longest,
)
from blockkd.text.pretrained import load_start, load_teacher
from blockkd.text.students import student_of
from blockkd.text.tasks import TASKS
from blockkd.text.vocabulary import tokenizer_beside
from tests.text.families import TEXT, classifier, sentences, transformers
from tests.text.tokens import tokenizer


@pytest.mark.parametrize("family", TEXT)
def test_a_student_of_all_layers_is_the_teacher(family: str) -> None:
    teacher = classifier(family).eval()
    student = student_of(teacher)
    assert student.training
    inputs = sentences([4, 7])
    assert torch.equal(logits_of(student.eval(), inputs), logits_of(teacher, inputs))
    assert {id(p) for p in teacher.parameters()}.isdisjoint({id(p) for p in student.parameters()})


def skipping(teacher: nn.Module, kept: list[int], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The teacher's logits with only these of its layers (from 1) doing anything."""
    names = {
        name
        for name, m in teacher.named_modules()
        if name.endswith((".layer", ".layers")) and len(list(m.children())) == 4
    }
    (stack,) = names

    def instead(_m: object, args: tuple[Any, ...], output: object) -> object:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    hooks = [
        teacher.get_submodule(f"{stack}.{i}").register_forward_hook(instead) for i in range(4) if i + 1 not in kept
    ]
    logits = logits_of(teacher, inputs)
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize(
    ("layers", "start", "kept"), [(2, "first", [1, 2]), (2, "spread", [1, 4]), ([1, 3], "spread", [1, 3])]
)
def test_a_student_is_the_teacher_without_the_other_layers(
    family: str, layers: Any, start: Any, kept: list[int]
) -> None:
    teacher = classifier(family).eval()
    student = student_of(teacher, layers, start).eval()
    inputs = sentences([4, 7])
    torch.testing.assert_close(logits_of(student, inputs), skipping(teacher, kept, inputs))
    assert student.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 4  # type: ignore[union-attr]
    BlockKD(teacher, student, inputs)(inputs, torch.tensor([0, 1])).total.backward()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(6, [1, 3, 5, 8, 10, 12]), (4, [1, 5, 8, 12]), (3, [1, 7, 12]), (1, [1]), (12, list(range(1, 13)))],
)
def test_layers_are_spread_evenly(layers: int, expected: list[int]) -> None:
    teacher = classifier("bert", layers=12)
    student = student_of(teacher, layers)
    for place, number in enumerate(expected):
        ours, theirs = (
            network.get_parameter(f"bert.encoder.layer.{i}.output.dense.weight")
            for network, i in ((student, place), (teacher, number - 1))
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", TEXT)
def test_another_width_starts_fresh(family: str) -> None:
    teacher = classifier(family)
    student = student_of(teacher, 2, hidden_size=8)
    assert student.config.hidden_size == 8
    assert student.config.num_hidden_layers == 2
    assert student.config.vocab_size == teacher.config.vocab_size  # type: ignore[union-attr]
    assert student.config.id2label == teacher.config.id2label  # type: ignore[union-attr]
    inner = "hidden_dim" if family == "distilbert" else "intermediate_size"
    assert getattr(student.config, inner) == 16
    assert logits_of(student, sentences([4, 7])).shape == (2, 3)


def test_a_fresh_student_copies_nothing_and_may_be_deeper() -> None:
    teacher = classifier("bert")
    student = student_of(teacher, 6, "fresh")
    assert student.config.num_hidden_layers == 6
    ours, theirs = (n.get_parameter("bert.encoder.layer.0.output.dense.weight") for n in (student, teacher))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((5,), {}, "layers is 5, expected 1 … 4"),
        ((0,), {}, "layers is 0"),
        (([1, 5],), {}, r"layers is \[1, 5\], expected numbers among 1 … 4"),
        (([],), {}, r"layers is \[\]"),
        ((2, "last"), {}, "start is 'last'"),
        ((2,), {"hidden_sise": 8}, "no setting 'hidden_sise', did you mean 'hidden_size'"),
        ((2,), {"hidden_size": 9}, "hidden_size is 9, which 2 attention heads cannot share"),
        (([1, 2],), {"hidden_size": 8}, "are to be copied, but hidden_size"),
    ],
)
def test_students_that_make_no_sense(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_of(classifier("bert"), *arguments, **options)


def test_networks_are_loaded_from_folders(tmp_path: Path) -> None:
    teacher = classifier("bert", classes=2)
    teacher.save_pretrained(tmp_path / "tuned")  # type: ignore[operator]
    again = load_teacher(str(tmp_path / "tuned"), TASKS["sst2"])
    assert not again.training
    inputs = sentences([4, 7])
    assert torch.equal(logits_of(again, inputs), logits_of(teacher.eval(), inputs))
    teacher.bert.save_pretrained(tmp_path / "bare")  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match=r"no trained weights for 2 parameters \(classifier.bias"):
        load_teacher(str(tmp_path / "bare"))
    begun = load_start(str(tmp_path / "bare"), TASKS["mnli"])
    assert begun.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert torch.equal(begun.bert.pooler.dense.weight, teacher.get_parameter("bert.pooler.dense.weight"))
    assert load_start(str(tmp_path / "bare"), TASKS["stsb"]).config.num_labels == 1
    with pytest.raises(ValueError, match="no classifier of sentences can be loaded"):
        load_teacher(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no classifier of sentences can be loaded"):
        load_start(str(tmp_path / "tuned"), TASKS["mnli"])  # its head is for two labels


def test_labels_of_a_task_are_compared(tmp_path: Path) -> None:
    teacher = classifier("bert", classes=2)
    teacher.save_pretrained(tmp_path / "plain")  # type: ignore[operator]
    with pytest.raises(
        ValueError, match=r"tells 2 labels apart, the task has 3 \(entailment, neutral, contradiction\)"
    ):
        load_teacher(str(tmp_path / "plain"), TASKS["mnli"])
    with pytest.raises(ValueError, match="it is a regression"):
        load_teacher(str(tmp_path / "plain"), TASKS["stsb"])
    teacher.config.id2label = {0: "not_entailment", 1: "entailment"}  # type: ignore[union-attr]
    teacher.save_pretrained(tmp_path / "turned")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"numbers its labels \['not_entailment', 'entailment'\]"):
        load_teacher(str(tmp_path / "turned"), TASKS["rte"])


def test_labels_of_teacher_and_student_are_compared() -> None:
    teacher, student = classifier("bert", classes=2), classifier("bert", layers=2, classes=2)
    check_labels(teacher, student)
    teacher.config.id2label = {0: "no", 1: "yes"}  # type: ignore[union-attr]
    check_labels(teacher, student)  # of the student's labels nothing is known
    check_labels(teacher, nn.Linear(2, 2))
    student.config.id2label = {0: "yes", 1: "no"}  # type: ignore[union-attr]
    with pytest.raises(MismatchError, match="0 is 'no' to the teacher, 'yes' to the student"):
        check_labels(teacher, student)


def test_vocabularies_are_compared() -> None:
    small = transformers.AutoModelForSequenceClassification.from_config(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, pad_token_id=1)
    )
    teacher = classifier("bert")
    check_vocabulary(tokenizer(), teacher)
    with pytest.raises(MismatchError, match="the tokenizer writes 19 tokens and BertForSequenceClassification knows 9"):
        check_vocabulary(tokenizer(), teacher, small)
    with pytest.raises(
        MismatchError, match=r"different numbers of tokens \(BertForSequenceClassification 50 and .* 9\)"
    ):
        check_vocabulary(None, teacher, small)
    small.config.vocab_size, small.config.pad_token_id = 50, 0
    with pytest.raises(MismatchError, match="pads with token 1 and BertForSequenceClassification takes 0"):
        check_vocabulary(tokenizer(), small)


def saved(folder: Path, more: list[str], seed: int = 0) -> Any:
    """A network in a folder, with a tokenizer that knows further words, loaded from there."""
    write = tokenizer()
    write.add_tokens(more)
    write.save_pretrained(folder)
    network: Any = classifier("bert", layers=1, seed=seed)
    network.save_pretrained(folder)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def test_tokenizers_are_compared_token_by_token() -> None:
    one, other = tokenizer(), tokenizer()
    check_tokenizers(one, other)
    one.add_tokens(["sublime", "dull"])
    other.add_tokens(["dull", "sublime"])
    words = "the teacher and the student do not read the same tokens: 'dull' is number 20 to the teacher and number 19"
    with pytest.raises(MismatchError, match=words):
        check_tokenizers(one, other)
    with pytest.raises(
        MismatchError, match=r"'sublime' is number 19 to A and unknown to B, and so with 2 of 21 tokens"
    ):
        check_tokenizers(one, tokenizer(), ("A", "B"))


def test_the_tokenizer_beside_a_network_is_compared_with_the_one_given(tmp_path: Path) -> None:
    teacher, student = saved(tmp_path / "teacher", ["sublime"]), saved(tmp_path / "student", ["dull"], 1)
    beside = tokenizer_beside(teacher)
    assert beside is not None
    assert beside.get_vocab()["sublime"] == 19
    assert tokenizer_beside(classifier("bert")) is None
    assert tokenizer_beside(nn.Linear(2, 2)) is None
    check_vocabulary(beside, teacher)
    check_vocabulary(None, teacher, classifier("bert"))
    with pytest.raises(
        MismatchError, match=r"the tokenizer given and the BertFor\S+ of '.*student' do not read the same"
    ):
        check_vocabulary(beside, teacher, student)
    with pytest.raises(MismatchError, match=r"of '.*teacher' and the BertFor\S+ of '.*student' do not .*: 'dull'"):
        check_vocabulary(None, teacher, student)
    (tmp_path / "student" / "tokenizer.json").write_text("{")
    assert tokenizer_beside(student) is None


def test_the_trainer_compares_tokenizers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from tests.text.test_trainer import trainer

    networks = saved(tmp_path / "teacher", ["sublime"]), classifier("bert", layers=1, width=8, seed=1)
    with pytest.raises(MismatchError, match=r"'sublime' is unknown to the tokenizer given and number 19 to the Bert"):
        trainer(tmp_path, networks)


def test_lengths_are_compared() -> None:
    for family, positions in (("bert", 64), ("roberta", 62), ("mpnet", 62), ("distilbert", 64)):
        network = classifier(family).eval()
        assert longest(network) == positions
        check_length(positions, network)
        logits_of(network, sentences([positions, 3]))
        with pytest.raises((IndexError, RuntimeError)):
            logits_of(network, sentences([positions + 1, 3]))
        with pytest.raises(MismatchError, match=f"longer than the {positions} positions"):
            check_length(positions + 1, network)
    check_length(10**6, nn.Linear(2, 2))
