"""What is recorded of a teacher of sentences is what it says, however a batch is padded."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockkd.baselines.logits import KD
from blockkd.block_kd import BlockKD
from blockkd.calling import logits_of
from blockkd.data.images import finite_views
from blockkd.logit_table import EXACT_LOGITS, FILLED, RecordError, table_bytes
from blockkd.recording import RecordedTeacher, fill, record_teacher
from blockkd.text.glue import Glue
from blockkd.text.sentences import TokenizedSentences
from blockkd.text.training import TextDistillationModule
from blockkd.text.vocabulary import tokenizer_identity
from tests.text.families import TEXT, classifier, sentences
from tests.text.test_glue import glue, own_cache, quiet_trainer  # noqa: F401
from tests.text.tokens import tokenizer

PADDED = 2e-6  # what padding changes in the logits of these networks, which are of size 1; 20 roundings of float32


class Counted:
    """A classifier that counts the sentences that it reads."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.read = network, 0

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        self.read += len(inputs["input_ids"])
        return logits_of(self.network, inputs)


def opened(folder: Path, teacher: nn.Module, data: Glue) -> RecordedTeacher:
    return record_teacher(folder, teacher, finite_views(data.parts.train), data.num_classes)


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_padding_changes_a_teachers_logits_by_rounding_only(family: str) -> None:
    network = classifier(family).eval()
    alone = logits_of(network, sentences([5, 3, 7]))
    for length in (8, 16, 40):
        padded = logits_of(network, sentences([5, 3, 7], to=length))
        assert float((padded - alone).abs().max() / alone.abs().max()) < PADDED


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_what_is_recorded_is_what_the_teacher_says(task: str, tmp_path: Path) -> None:
    data = glue(tmp_path / "glue", task)
    teacher = classifier("bert", classes=data.num_classes).eval()
    record, counted = opened(tmp_path / "record", teacher, data), Counted(teacher)
    for again in range(2):
        seen = torch.zeros(36)
        for inputs, _, indices in data.train_dataloader():
            recorded = record.lookup(indices, torch.zeros_like(indices), inputs, counted)
            live = logits_of(teacher, inputs).detach()
            assert recorded.dtype == torch.float32
            # Exact where it was written in this very batch, up to the padding of another one after that.
            assert (recorded - live).abs().max() <= again * PADDED * live.abs().max()
            seen[indices] += 1
        assert seen.eq(1).all()
        record.flush()
        assert counted.read == 36
        data.order_seed += 1


def test_all_sentences_can_be_recorded_ahead(tmp_path: Path) -> None:
    data = glue(tmp_path / "glue")
    teacher = classifier("bert", classes=2).eval()
    record, counted = opened(tmp_path / "record", teacher, data), Counted(teacher)
    left = list(fill(record, finite_views(data.parts.train), counted, torch.device("cpu"), batch_size=16))
    assert left == [20, 4, 0]
    assert counted.read == 36
    assert bool(opened(tmp_path / "record", teacher, data).table.filled().all())
    inputs, labels, indices, views = next(iter(numbered(data).train_dataloader()))
    read = record.lookup(indices, views, inputs, counted)
    assert counted.read == 36
    torch.testing.assert_close(read, logits_of(teacher, inputs).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(labels, data.parts.train.labels[indices])


def numbered(data: Glue) -> Glue:
    data.numbers_views = True
    return data


def test_the_table_takes_four_bytes_a_number(tmp_path: Path) -> None:
    data = glue(tmp_path / "glue")
    table = opened(tmp_path / "record", classifier("bert", classes=2), data).table
    assert table.nbytes == table_bytes((36, 1, 2), dtype=torch.float32) == 36 * 9
    files = {name: (tmp_path / "record" / name).stat().st_size for name in (EXACT_LOGITS, FILLED)}
    assert sum(files.values()) == table.nbytes
    table.write(torch.tensor([0]), torch.tensor([[7e4, 0.1]]))
    assert torch.equal(table.read([column[:1] for column in table.columns]), torch.tensor([[7e4, 0.1]]))
    with pytest.raises(RecordError, match="float32 ends at"):
        table.write(torch.tensor([0]), torch.tensor([[1e39, 0.0]], dtype=torch.float64))


def test_a_stale_record_is_refused_by_the_name_of_what_changed(tmp_path: Path) -> None:
    teacher = classifier("bert", classes=2)
    opened(tmp_path / "record", teacher, glue(tmp_path / "glue"))
    assert not opened(tmp_path / "record", copy.deepcopy(teacher), glue(tmp_path / "glue", n_lengths=2)).table.created
    other = tokenizer()
    other.add_tokens(["sublime"])
    cases: dict[str, tuple[nn.Module, Glue]] = {
        "teacher": (classifier("bert", classes=2, seed=5), glue(tmp_path / "glue")),
        "max_length": (teacher, glue(tmp_path / "glue", max_length=64)),
        "tokenizer": (teacher, glue(tmp_path / "glue", tokenizer=other)),
        "tokens": (teacher, glue(tmp_path / "glue", split_seed=1)),
        "shape": (teacher, glue(tmp_path / "glue", val_share=0.0)),
    }
    for name, (network, data) in cases.items():
        with pytest.raises(
            RecordError, match=rf"holds the recorded logits of something else.*{name}: recorded .*, now"
        ):
            opened(tmp_path / "record", network, data)


def test_a_tokenizer_is_known_by_its_vocabulary_and_its_padding() -> None:
    other, left = tokenizer(), tokenizer()
    other.add_tokens(["sublime"])
    left.padding_side = "left"
    assert tokenizer_identity(tokenizer()) == tokenizer_identity(tokenizer())
    assert len({tokenizer_identity(each) for each in (tokenizer(), other, left)}) == 3


def test_sentences_without_padding_make_no_batch() -> None:
    found = TokenizedSentences({"input_ids": [[1, 2], [3]]}, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="nothing says how these sentences are padded"):
        found.batch(torch.tensor([0]), torch.tensor([0]))


LIGHT = partial(BlockKD, stones="last")


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(("task", "method"), [("sst2", KD), ("sst2", LIGHT), ("stsb", LIGHT)])
def test_a_student_learns_from_the_record_what_it_learns_from_the_teacher(
    task: str, method: Callable[..., Any], views: bool, tmp_path: Path
) -> None:
    weights = []
    for recorded in (False, True):
        data = glue(tmp_path / "glue", task, batch_size=8, max_length=64)
        data.numbers_views = views
        teacher = classifier("bert", classes=data.num_classes)
        student = classifier("bert", layers=2, width=8, classes=data.num_classes, seed=1)
        torch.manual_seed(0)
        example = {} if method is KD else {"example": data.example()}
        distiller = method(teacher, student, **example)
        for module in distiller.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        record = opened(tmp_path / "record", teacher, data) if recorded else None
        optimizer = partial(torch.optim.SGD, lr=0.1)
        module = TextDistillationModule(distiller, data.task, optimizer, watched="val", recorded=record)
        quiet_trainer().fit(module, data)
        weights.append({name: value.clone() for name, value in distiller.state_dict().items()})
    assert bool((record.table.filled().sum() == 32) | (record.table.filled().sum() == 36))  # type: ignore[union-attr]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
