"""Digits, the order of training images, and the check of labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import Dataset

from blockkd.data import Digits, EpochSampler, ImageData, LabelledImages, check_labels
from blockkd.data.images import Parts


def labels_of(data: ImageData, epoch: int) -> torch.Tensor:
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return torch.cat([labels for _, labels, _ in loader])


def test_digits_are_split_into_three_disjoint_stratified_parts() -> None:
    parts = Digits().parts
    assert [len(part) for part in parts] == [1005, 252, 540]
    rows = torch.cat([part.images.flatten(1) for part in parts])
    assert len(torch.unique(rows, dim=0)) == len(rows) == 1797
    for part in parts:
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.015)


def test_digits_are_normalised_by_the_training_images() -> None:
    train = Digits().parts.train.images
    assert train.shape[1:] == (1, 8, 8)
    assert abs(float(train.mean())) < 1e-5
    assert abs(float(train.std()) - 1) < 1e-5


def test_the_split_hangs_on_its_own_seed_only() -> None:
    torch.manual_seed(1)
    first = Digits().parts.test.images
    torch.manual_seed(2)
    other_run = Digits()
    other_run.order_seed = 7
    assert torch.equal(first, other_run.parts.test.images)
    assert not torch.equal(first, Digits(split_seed=1).parts.test.images)


def test_order_hangs_on_seed_and_epoch_only() -> None:
    data = Digits()
    first = labels_of(data, 3)
    torch.rand(10)
    assert torch.equal(first, labels_of(data, 3))
    assert not torch.equal(first, labels_of(data, 4))
    data.order_seed = 1
    assert not torch.equal(first, labels_of(data, 3))


def test_workers_see_the_same_order_as_the_main_process() -> None:
    assert torch.equal(labels_of(Digits(num_workers=1), 2), labels_of(Digits(), 2))


def test_training_drops_the_smaller_last_batch_and_evaluation_keeps_it() -> None:
    data = Digits(batch_size=100, eval_batch_size=100)
    assert [len(labels) for _, labels, _ in data.train_dataloader()] == [100] * 10
    assert [len(labels) for _, labels in data.test_dataloader()] == [100] * 5 + [40]
    assert [len(labels) for _, labels in data.val_dataloader()] == [100] * 2 + [52]


@given(st.integers(1, 200), st.integers(0, 1000), st.integers(0, 1000))
def test_sampler_permutes(length: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(length, seed)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(length))
    assert list(sampler) == list(sampler)


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    one, two = EpochSampler(100, 0), EpochSampler(100, 1)
    one.set_epoch(1)
    assert list(one) != list(two)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_out_of_range_is_named(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"label {wrong} in the val part is out of range.*0 … 2 \(1 of 3"):
        check_labels(torch.tensor([0, wrong, 2]), 3, "val")
    check_labels(torch.tensor([0, 1, 2]), 3, "val")


def test_labels_are_checked_when_the_data_is_loaded() -> None:
    class Wrong(ImageData):
        num_classes = 2

        def load(self) -> Parts:
            part = LabelledImages(torch.zeros(80, 1, 4, 4), torch.arange(80) % 3)
            return Parts(part, part, part)

    with pytest.raises(ValueError, match="label 2 in the train part"):
        Wrong().example()


def test_training_batches_say_which_images_they_hold() -> None:
    data = Digits(batch_size=100)
    train = data.parts.train
    seen: list[int] = []
    for images, labels, indices in data.train_dataloader():
        assert indices.dtype == torch.int64
        assert torch.equal(images, train.images[indices])
        assert torch.equal(labels, train.labels[indices])
        seen += indices.tolist()
    assert len(set(seen)) == len(seen) == 1000
    assert 0 <= min(seen) <= max(seen) < 1005


class Doubled(Dataset[tuple[Tensor, Tensor]]):
    """Has no ``__getitems__``."""

    def __init__(self, source: Dataset[tuple[Tensor, Tensor]], sampler: EpochSampler) -> None:
        self.source, self.sampler = source, sampler

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.source[index]
        return 2 * image + self.sampler.epoch, label


class Augmented(Digits):
    def training_images(self, sampler: EpochSampler) -> Dataset[tuple[Tensor, Tensor]]:
        return Doubled(super().training_images(sampler), sampler)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_dataset_augments_its_training_images_and_no_others(persistent: bool) -> None:
    data = Augmented(batch_size=500, num_workers=1)
    data.persistent_workers = persistent
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    for epoch in (0, 3):
        loader.sampler.set_epoch(epoch)
        for images, _, indices in loader:
            assert torch.equal(images, 2 * data.parts.train.images[indices] + epoch)
    assert torch.equal(next(iter(data.test_dataloader()))[0], data.parts.test.images)


def test_a_dataset_must_say_how_many_classes_it_has() -> None:
    class Silent(ImageData):
        def load(self) -> Parts:
            raise AssertionError("it is refused before it loads anything")

    with pytest.raises(TypeError, match="num_classes"):
        Silent()  # type: ignore[abstract]


class WithoutValidation(Digits):
    def load(self) -> Parts:
        train, val, test = super().load()
        return Parts(train, LabelledImages(val.images[:0], val.labels[:0]), test)


class Line(LightningModule):
    """The smallest network; remembers how many images it was shown to validate on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.watched: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        del batch_idx
        return functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        del batch_idx
        self.watched.append(len(batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        del batch_idx
        self.log("test/loss", functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1]))

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")  # what Lightning says of short runs
def test_lightning_trains_without_a_validation_part_and_watches_the_test_part() -> None:
    data = WithoutValidation()
    assert data.example(3).shape == (3, 1, 8, 8)
    trainer = Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    module = Line()
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2 * (1005 // 64)
    assert module.watched == [540, 540]  # the test part
    assert trainer.test(module, datamodule=data, verbose=False)[0]["test/loss"] > 0


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        Digits(batch_size=0)
    with pytest.raises(ValueError, match="eval_batch_size is -1"):
        Digits(eval_batch_size=-1)
    with pytest.raises(ValueError, match="only 1005 training images"):
        Digits(batch_size=2000).train_dataloader()


def test_example_tells_the_shape() -> None:
    assert Digits().example(3).shape == (3, 1, 8, 8)
