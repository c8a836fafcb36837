"""GLUE's tasks as data: what is read, how it is padded, and how it is judged."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from scipy import stats
from sklearn import metrics as sk
from torch import Tensor

from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.block_kd import BlockKD
from blockkd.text.glue import Glue, load_tokenizer
from blockkd.text.metrics import TaskMetrics
from blockkd.text.sentences import Padding
from blockkd.text.tasks import TASKS
from blockkd.text.training import TextDistillationModule
from tests.models.shared_data import data_file
from tests.text.families import classifier
from tests.text.making import written
from tests.text.tokens import reviews, tokenizer

datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def glue(folder: Path, task: str = "sst2", **options: Any) -> Glue:
    split = TASKS[task].evaluation
    if not folder.joinpath(TASKS[task].subset).is_dir():
        written(folder, task, {"train": 40, split: 9})
    return Glue(task, options.pop("tokenizer", tokenizer()), str(folder), **({"batch_size": 4} | options))


def batches(loader: Any) -> Iterator[Any]:
    return iter(loader)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_read(task: str, tmp_path: Path) -> None:
    data = glue(tmp_path / "glue", task)
    assert [len(part) for part in data.parts] == [36, 4, 9]
    inputs, labels, indices = next(batches(data.train_dataloader()))
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    pair = len(TASKS[task].columns) == 2
    assert bool(inputs["token_type_ids"].any()) == pair
    assert labels.dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert data.num_classes == {"stsb": 1, "mnli": 3, "mnli-mm": 3}.get(task, 2)
    assert len(indices) == 4
    logits = classifier("bert", classes=data.num_classes)(**inputs).logits
    assert logits.shape == (4, data.num_classes)


def test_samples_are_what_the_tokenizer_says(tmp_path: Path) -> None:
    data = glue(tmp_path / "glue", val_share=0.0)
    assert data.watched == "test"
    expected = tokenizer()([row["sentence"] for row in reviews(40, 0)])
    seen = torch.zeros(40, dtype=torch.int64)
    for inputs, labels, indices in batches(data.train_dataloader()):
        for ids, mask, label, i in zip(inputs["input_ids"], inputs["attention_mask"], labels, indices, strict=True):
            assert ids[mask.bool()].tolist() == expected["input_ids"][int(i)]
            assert ids[~mask.bool()].eq(1).all()
            assert int(label) == reviews(40, 0)[int(i)]["label"]
            seen[i] += 1
    assert seen.eq(1).all()


def test_the_order_hangs_on_seed_and_epoch_only(tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        data = glue(tmp_path / "glue")
        data.order_seed = seed
        orders.append(torch.cat([indices for _, _, indices in data.train_dataloader()]).tolist())
    assert orders[0] == orders[1] != orders[2]


def test_batches_have_few_lengths(tmp_path: Path) -> None:
    data = glue(tmp_path / "glue", max_length=20, n_lengths=5)
    assert data._padding().lengths == (4, 8, 12, 16, 20)
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for inputs, *_ in batches(loader):
            length, longest = inputs["input_ids"].shape[1], int(inputs["attention_mask"].sum(1).max())
            assert longest <= length < longest + 4
            assert length % 4 == 0
    assert glue(tmp_path / "glue", max_length=10, n_lengths=4)._padding().lengths == (3, 5, 8, 10)
    assert glue(tmp_path / "glue", n_lengths=1)._padding().lengths == (128,)


def test_long_sentences_are_cut(tmp_path: Path) -> None:
    data = glue(tmp_path / "glue", max_length=5)
    assert data.parts.train.longest == 5  # type: ignore[attr-defined]
    assert data.example()["input_ids"].shape[1] <= 5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers_own(side: str) -> None:
    write = tokenizer()
    write.padding_side = side
    rows = [write(text) for text in ("the film was good", "bad", "very very poor plot")]
    expected = write.pad(rows, padding="max_length", max_length=8, return_tensors="pt")
    tokens = [{k: torch.tensor(v) for k, v in row.items() if k != "attention_mask"} for row in rows]
    ours = Padding(write, (4, 8, 16)).inputs(tokens)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("task", TASKS)
def test_metrics_are_gluess_own(task: str) -> None:
    generator = np.random.default_rng(0)
    measured = TaskMetrics(TASKS[task])
    if task == "stsb":
        said, labels = generator.normal(size=(30, 1)).astype("float32"), generator.uniform(0, 5, 30).astype("float32")
        told = said[:, 0]
    else:
        said = generator.normal(size=(30, TASKS[task].outputs)).astype("float32")
        labels, told = generator.integers(0, TASKS[task].outputs, 30), said.argmax(1)
    for start in (0, 10, 20):
        measured.update(torch.from_numpy(said[start : start + 10]), torch.from_numpy(labels[start : start + 10]))
    oracle: dict[str, Any] = {
        "accuracy": sk.accuracy_score,
        "f1": sk.f1_score,
        "matthews": sk.matthews_corrcoef,
        "pearson": lambda a, b: stats.pearsonr(a, b)[0],
        "spearman": lambda a, b: stats.spearmanr(a, b)[0],
    }
    result = measured.compute()
    assert tuple(result) == TASKS[task].metrics or set(result) == set(TASKS[task].metrics)
    for name, value in result.items():
        assert float(value) == pytest.approx(float(oracle[name](labels, told)), abs=1e-5)


def quiet_trainer() -> Trainer:
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=2, accelerator="cpu", **off)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["cola", "stsb", "mnli-mm", "mrpc"])
@pytest.mark.parametrize("method", [BlockKD, KD, CrossEntropy])
def test_a_student_trains_under_lightning(task: str, method: Any, tmp_path: Path) -> None:
    data = glue(tmp_path / "glue", task, batch_size=8, max_length=64)
    teacher = classifier("bert", classes=data.num_classes)
    student = classifier("bert", layers=2, width=8, classes=data.num_classes, seed=1)
    made = method(teacher, student, data.example()) if method is BlockKD else method(teacher, student)
    module = TextDistillationModule(made, data.task, partial(torch.optim.AdamW, lr=1e-3), watched="val")
    trainer = quiet_trainer()
    trainer.fit(module, data)
    logged = {name for name in trainer.callback_metrics if name.startswith(("val/", "train/"))}
    for metric in TASKS[task].metrics:
        assert {f"val/{metric}", f"train/{metric}"} <= logged
    assert "val/loss" in logged
    tested = trainer.test(module, data, verbose=False)[0]
    by_hand = TaskMetrics(TASKS[task])
    with torch.no_grad():
        for inputs, labels in batches(data.test_dataloader()):
            by_hand.update(student.eval()(**inputs).logits, labels)
    assert tested == pytest.approx(
        {f"test/{name}": float(value) for name, value in by_hand.compute().items()}, nan_ok=True
    )


def test_data_that_do_not_fit_the_networks_are_refused_before_training(tmp_path: Path) -> None:
    teacher, student = classifier("bert", classes=2), classifier("bert", layers=2, classes=2, seed=1)

    def fit(**options: Any) -> None:
        module = TextDistillationModule(KD(teacher, student), TASKS["sst2"], partial(torch.optim.SGD, lr=0.1))
        quiet_trainer().fit(module, glue(tmp_path / "glue", **options))

    with pytest.raises(ValueError, match="sequences of 65 tokens are longer than the 64 positions"):
        fit(max_length=65)
    other = tokenizer()
    other.pad_token = "[MASK]"
    with pytest.raises(ValueError, match="pads with token 4 and BertForSequenceClassification takes 1"):
        fit(max_length=64, tokenizer=other)
    teacher.config.id2label = {0: "no", 1: "yes"}  # type: ignore[union-attr]
    student.config.id2label = {0: "yes", 1: "no"}  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="number their labels differently"):
        fit(max_length=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sst3"}, r"task is 'sst3', expected one of GLUE's: cola, sst2"),
        ({"n_lengths": 0}, "n_lengths is 0"),
        ({"n_lengths": 200}, "n_lengths is 200"),
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Glue(**({"task": "sst2", "tokenizer": tokenizer(), "path": "nowhere"} | options))


def test_bad_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the column 'sentence' of the train split of sst2 holds no text"):
        glue(written(tmp_path / "a", "sst2", {"train": 40, "validation": 9}, sentence=["", " "] * 20)).parts  # noqa: B018
    with pytest.raises(ValueError, match=r"has no split 'validation_matched' of mnli, only \['train'\]"):
        glue(written(tmp_path / "b", "mnli", {"train": 40}), "mnli").parts  # noqa: B018
    with pytest.raises(ValueError, match=r"has no folder 'cola', only \['sst2'\]"):
        Glue("cola", tokenizer(), str(tmp_path / "a")).parts  # noqa: B018
    with pytest.raises(ValueError, match="label 7 in the train part is out of range: 2 classes"):
        glue(written(tmp_path / "c", "rte", {"train": 40, "validation": 9}, label=[0, 1, 7, 7] * 10), "rte").parts  # noqa: B018
    (tmp_path / "d" / "sst2").mkdir(parents=True)
    other = datasets.Dataset.from_dict({"text": ["good"] * 9, "label": [0] * 9})
    for split in ("train", "validation"):
        other.to_parquet(tmp_path / "d" / "sst2" / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"has no column 'sentence', only \['text', 'label'\]"):
        Glue("sst2", tokenizer(), str(tmp_path / "d")).parts  # noqa: B018


def test_files_are_told_apart_as_on_the_hub(tmp_path: Path) -> None:
    """Splits in several files; and the two of MNLI, whose names begin as ``validation`` does."""
    folder = written(tmp_path / "glue", "mnli", {"train": 40, "validation_matched": 9, "validation_mismatched": 7})
    (folder / "mnli" / "train.parquet").rename(folder / "mnli" / "train-00000-of-00002.parquet")
    more = written(tmp_path / "more", "mnli", {"train": 10})
    (more / "mnli" / "train.parquet").rename(folder / "mnli" / "train-00001-of-00002.parquet")
    assert [len(part) for part in glue(folder, "mnli", val_share=0.0).parts] == [50, 0, 9]
    assert [len(part) for part in glue(folder, "mnli-mm", val_share=0.0).parts] == [50, 0, 7]
    (tmp_path / "none" / "sst2").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no parquet files"):
        glue(tmp_path / "none").parts  # noqa: B018
    (tmp_path / "none" / "sst2" / "train.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"cannot read .*train\.parquet"):
        glue(tmp_path / "none").parts  # noqa: B018


def test_some_empty_sentences_are_sentences(tmp_path: Path) -> None:
    texts = ["", "good film", None, "bad"] * 10
    data = glue(written(tmp_path / "glue", "sst2", {"train": 40, "validation": 9}, sentence=texts))
    assert len(data.parts.train) == 36


def test_a_tokenizer_is_loaded_from_a_folder(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "teacher")
    data = glue(tmp_path / "glue", tokenizer=str(tmp_path / "teacher"))
    other = glue(tmp_path / "glue")
    assert all(torch.equal(data.example()[name], value) for name, value in other.example().items())
    with pytest.raises(ValueError, match="there is no tokenizer in"):
        load_tokenizer(str(tmp_path / "nowhere"))
    lacking = tokenizer()
    lacking.pad_token = None
    lacking.save_pretrained(tmp_path / "lacking")
    with pytest.raises(ValueError, match="has no padding token"):
        load_tokenizer(str(tmp_path / "lacking"))


def test_what_is_recorded_of_sentences_hangs_on_every_token(tmp_path: Path) -> None:
    one, same = glue(tmp_path / "glue").parts.train, glue(tmp_path / "glue").parts.train
    assert one.identity() == same.identity()
    assert one.identity() != glue(tmp_path / "glue", max_length=6).parts.train.identity()


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("sst2", (67349, 872)),
        ("cola", (8551, 1043)),
        ("mrpc", (3668, 408)),
        ("rte", (2490, 277)),
        ("stsb", (5749, 1500)),
    ],
)
def test_the_real_tasks(task: str, rows: tuple[int, int]) -> None:
    folder = data_file(f"glue/{task}/train.parquet").parents[1]
    data = Glue(task, tokenizer(), str(folder), val_share=0.0)
    assert (len(data.parts.train), len(data.parts.test)) == rows
    labels: Tensor = data.parts.test.labels
    if task == "stsb":
        assert float(labels.min()) == 0.0
        assert float(labels.max()) == 5.0
    else:
        assert set(labels.tolist()) == {0, 1}
