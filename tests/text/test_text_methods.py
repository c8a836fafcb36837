"""PKD, hidden states and BERT-of-Theseus, against their equations."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockkd.calling import logits_of
from blockkd.distiller import Distiller
from blockkd.text.hidden_states import PKD, patient_loss, telling_token
from blockkd.text.mini_lm import MiniLM
from blockkd.text.theseus import Theseus
from blockkd.text.tiny_bert import TinyBERT, hidden_state_loss
from tests.oracles import block_kd as stones
from tests.oracles import text as oracle
from tests.text.families import TEXT, classifier, images, sentences

LABELS = torch.tensor([0, 2, 1])


def made(method: Any, family: str = "bert", width: int = 16, **options: Any) -> Any:
    teacher = classifier(family).double()
    student = classifier(family, layers=2, width=width, seed=1).double()
    torch.manual_seed(2)
    distiller = method(teacher, student, sentences([4, 6]), **options)
    for module in distiller.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return distiller


def stepped(distiller: Distiller, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    distiller.zero_grad()
    losses = distiller(inputs, LABELS)
    losses.total.backward()
    return [*losses.terms.values(), losses.logits], [
        p.grad.clone() for p in distiller.parameters() if p.grad is not None
    ]


def hidden_states(network: nn.Module, inputs: dict[str, Tensor], layers: list[int]) -> list[Tensor]:
    states = network(**inputs, output_hidden_states=True).hidden_states
    return [states[i] for i in layers]


def test_patient_loss_is_the_equation_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    student, teacher = (
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 5, dtype=torch.float64),
    )
    for loss, expected in ((patient_loss(student, teacher), oracle.patient(student, teacher)),):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))
    torch.testing.assert_close(patient_loss(3 * student, teacher / 7), patient_loss(student, teacher))
    assert patient_loss(teacher, teacher) == 0
    assert torch.autograd.gradcheck(patient_loss, (student, teacher))


def test_hidden_state_loss_is_the_equation_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    teacher, mask = torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    loss, expected = hidden_state_loss(student, teacher, mask), oracle.hidden(student, teacher, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))
    spoiled = teacher.masked_fill(~mask[..., None], float("inf"))
    (gradient,) = torch.autograd.grad(hidden_state_loss(student, spoiled, mask), student)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("token", ["first", "last"])
def test_the_telling_token_is_no_padding(token: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    states = torch.arange(15.0).reshape(3, 5, 1)
    expected = {"first": [0.0, 7.0, 10.0], "last": [2.0, 9.0, 14.0]}[token]
    assert telling_token(states, mask, token)[:, 0].tolist() == expected


@pytest.mark.parametrize(("width", "token"), [(16, "first"), (8, "last")])
def test_pkd_is_the_equation(width: int, token: Any) -> None:
    distiller = made(PKD, width=width, beta=3.0, alpha=0.3, logit_weight=0.7, token=token).eval()
    inputs = sentences([5, 3, 7])
    losses = distiller(inputs, LABELS)
    (ours,), (theirs,) = hidden_states(distiller.student, inputs, [1]), hidden_states(distiller.teacher, inputs, [2])
    ends = [0, 0, 0] if token == "first" else [4, 2, 6]
    rows = [torch.stack([states[b, t] for b, t in enumerate(ends)]) for states in (ours, theirs)]
    mapped = rows[0] if width == 16 else rows[0] @ distiller.connectors["1"].weight.T
    assert set(losses.terms) == {"task/student", "feature/block_1", "distill/student"}
    torch.testing.assert_close(losses.terms["feature/block_1"], 3.0 * oracle.patient(mapped, rows[1]))
    target = logits_of(distiller.teacher, inputs)
    torch.testing.assert_close(losses.terms["task/student"], 0.3 * stones.task(losses.logits, LABELS))
    torch.testing.assert_close(losses.terms["distill/student"], 0.7 * stones.distance(losses.logits, target, 4.0))
    assert bool(list(distiller.connectors.parameters())) == (width == 8)


def test_tinyberts_hidden_states_are_the_equation() -> None:
    distiller = made(TinyBERT, width=8, beta=2.0, attention=0, embeddings=0).eval()
    inputs = sentences([5, 3, 7])
    losses = distiller(inputs, LABELS)
    ours, theirs = hidden_states(distiller.student, inputs, [1, 2]), hidden_states(distiller.teacher, inputs, [2, 4])
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        mapped = a @ distiller.connectors[str(i)].weight.T
        expected = 2.0 * oracle.hidden(mapped, b, inputs["attention_mask"])
        torch.testing.assert_close(losses.terms[f"feature/block_{i}"], expected)
    assert set(losses.terms) == {"feature/block_1", "feature/block_2", "distill/student"}


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "qwen3"])
@pytest.mark.parametrize("method", [PKD, partial(PKD, token="last")])
def test_further_padding_changes_neither_losses_nor_gradients(method: Any, family: str) -> None:
    distiller = made(method, family, width=8).eval()
    short = stepped(distiller, sentences([5, 3, 7]))
    torch.testing.assert_close(short, stepped(distiller, sentences([5, 3, 7], to=12)))


@pytest.mark.parametrize("replaced", [[True, False], [False, True], [True, True], [False, False]])
@pytest.mark.parametrize("family", TEXT)
def test_a_mixed_flow_is_the_equation(family: str, replaced: list[bool]) -> None:
    distiller = made(Theseus, family).eval()
    inputs = sentences([5, 3, 7])
    theirs, ours = distiller.teacher_blocks.beside(inputs), distiller.student_blocks.beside(inputs)
    end = oracle.mixed(
        distiller.teacher_blocks.entering(inputs, **theirs),
        [partial(block, **ours) for block in distiller.student_blocks.blocks],
        [partial(block, **theirs) for block in distiller.teacher_blocks.blocks],
        replaced,
    )
    expected = distiller.teacher_blocks.classifier(end, **theirs)
    torch.testing.assert_close(distiller.mixed(inputs, replaced), expected)
    if not any(replaced):
        torch.testing.assert_close(expected, logits_of(distiller.teacher, inputs))


def test_a_mixed_flow_teaches_the_blocks_that_it_runs() -> None:
    distiller = made(Theseus)
    logits = distiller.mixed(sentences([5, 3, 7]), [False, True])
    nn.functional.cross_entropy(logits, LABELS).backward()
    reached = {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all(name.startswith("student.bert.encoder.layer.1.") for name in reached)


def test_a_step_in_which_no_block_is_drawn_changes_nothing() -> None:
    distiller = made(Theseus)
    nn.functional.cross_entropy(distiller.mixed(sentences([5, 3, 7]), [False, False]), LABELS).backward()
    assert not any(p.grad is not None and p.grad.any() for p in distiller.parameters())


def test_the_rate_rises_to_one_and_is_kept() -> None:
    distiller = made(Theseus, start=0.25, steps=3)
    inputs = sentences([5, 3, 7])
    rates, names = [], []
    for _ in range(5):
        rates.append(distiller.rate)
        names.append(set(distiller(inputs, LABELS).terms))
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert names == [{"task/mixed"}] * 3 + [{"task/student"}] * 2
    again = made(Theseus, start=0.25, steps=3)
    again.load_state_dict(distiller.state_dict())
    assert again.steps_taken == 5
    distiller.eval()
    distiller(inputs, LABELS)
    assert distiller.steps_taken == 5


def test_blocks_are_drawn_with_the_rate() -> None:
    distiller = made(Theseus, start=0.3, steps=10**9)
    drawn: list[list[bool]] = []

    def mixed(inputs: dict[str, Tensor], replaced: list[bool]) -> Tensor:
        drawn.append(replaced)
        return logits_of(distiller.student, inputs)

    distiller.mixed = mixed
    torch.manual_seed(0)
    for _ in range(300):
        distiller(sentences([3, 2, 2]), LABELS)
    share = torch.tensor(drawn, dtype=torch.float64).mean(0)
    assert ((share - 0.3).abs() < 0.1).all()  # 3.8 standard deviations
    assert len({tuple(row) for row in drawn}) == 4


def test_the_student_of_theseus_alone_is_looked_at_in_evaluation() -> None:
    distiller = made(Theseus).eval()
    inputs = sentences([5, 3, 7])
    assert torch.equal(distiller(inputs, LABELS).logits, logits_of(distiller.student, inputs))


@pytest.mark.parametrize("method", [PKD, TinyBERT, MiniLM, Theseus])
def test_the_teacher_is_bitwise_unchanged(method: Any) -> None:
    distiller = made(method)
    before = copy.deepcopy(distiller.teacher.state_dict())
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        distiller(sentences([5, 3, 7]), LABELS).total.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in distiller.teacher.state_dict().items())
    assert not any(module.training for module in distiller.teacher.modules())


def test_theseus_resumes_bit_for_bit_under_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from tests.text.test_trainer import same, trainer, weights

    networks = [(classifier("bert", classes=2), classifier("bert", layers=2, classes=2, seed=1)) for _ in range(2)]
    method = partial(Theseus, start=0.2, steps=9)
    settings = {"save_strategy": "steps", "save_steps": 5}
    whole = trainer(tmp_path / "whole", networks[0], method, **settings)
    whole.train()
    resumed = trainer(tmp_path / "resumed", networks[1], method, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert same(weights(resumed.distiller.student), weights(whole.distiller.student))
    assert resumed.distiller.steps_taken == whole.distiller.steps_taken == 12


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (PKD, {"token": "middle"}, "token is 'middle'"),
        (PKD, {"stages": [3]}, "stages is"),
        (TinyBERT, {"beta": -1.0}, "expected zero or more"),
        (Theseus, {"start": 0.0}, "start is 0.0"),
        (Theseus, {"steps": 0}, "steps 0"),
        (Theseus, {"width": 8}, "take a student of the teacher's width"),
    ],
)
def test_options_that_make_no_sense(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(method, **options)


def test_hidden_states_of_other_tokens_are_refused() -> None:
    teacher, student = classifier("vit"), classifier("swin", layers=2)
    with pytest.raises(ValueError, match="both must read the same tokens"):
        TinyBERT(teacher, student, images(2))
