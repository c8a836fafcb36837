"""What is recorded of a teacher equals what it says, whoever recorded it and however that ended."""

import copy
import json
import multiprocessing
import os
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockkd
from blockkd.data import EpochSampler
from blockkd.data.augmentation import CountedCrops, PadCropFlip, RandomResizedCrop
from blockkd.data.images import FiniteViews, LabelledImages, NumberedImages, finite_views
from blockkd.data.pixels import PixelImages
from blockkd.logit_table import CLASSES as CLASSES_FILE
from blockkd.logit_table import FILLED, IDENTITY, LOGITS, LogitTable, RecordError, pack, table_bytes, unpack
from blockkd.models import ResNet
from blockkd.recording import RecordedTeacher, fill, record_teacher, teacher_identity

ROUNDING = 2**-11  # of float16: half of its last digit, as a share of the number
CLASSES = 5


def tolerance(logits: Tensor) -> Tensor:
    """Rounding to float16, and to float32 where the teacher is run on other batches."""
    return ROUNDING * logits.abs() + 1e-5


def teacher(seed: int = 0, widths: tuple[int, int, int, int] = (8, 8, 16, 32)) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResNet(8, widths, CLASSES, 1)
        with torch.no_grad():
            network(torch.randn(64, 1, 8, 8))  # so that its batch norm has statistics of some kind
    return network.eval()


def pictures(n: int = 12, seed: int = 0) -> PixelImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return PixelImages(pixels, torch.arange(n) % CLASSES, (0.5,), (0.25,))


def augmented(n: int = 12, seed: int = 0, epoch: int = 0) -> PadCropFlip:
    sampler = EpochSampler(n, seed)
    sampler.set_epoch(epoch)
    return PadCropFlip(pictures(n), sampler)


def batch(images: PadCropFlip, indices: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    columns = zip(*NumberedImages(images, with_views=True).__getitems__(indices), strict=True)
    shown, labels, numbers, views = (list(column) for column in columns)
    return torch.stack(shown), torch.stack(labels), torch.tensor(numbers), torch.tensor(views)


class Counted:
    """A network that counts the images that it is shown."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.shown = network, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        logits: Tensor = self.network(images)
        return logits


@pytest.mark.parametrize("resident", [False, True])
def test_all_162_views_equal_the_live_teacher(tmp_path: Path, resident: bool) -> None:
    images, network = augmented(3), teacher()
    record = RecordedTeacher(record_teacher(tmp_path, network, images, CLASSES).table, resident)
    for attempt in range(2):
        counted = Counted(network)
        for index in range(3):
            for views in torch.arange(images.n_views).split(27):
                indices = [index] * len(views)
                shown = images.source.normalise(images.seen(indices, views)[0])
                live = network(shown).detach()
                recorded = record.lookup(torch.tensor(indices), views, shown, counted)
                assert recorded.dtype == live.dtype
                assert ((recorded - live).abs() <= tolerance(live)).all()
        assert counted.shown == (0 if attempt else 3 * 162)
        record.flush()
    assert live.abs().max() > 0.1  # not a comparison of zeros
    if resident:
        record.table.columns[0].zero_()  # nobody looks there any more
        assert torch.equal(record.lookup(torch.tensor(indices), views, shown, counted), recorded)
    assert bool(record.table.filled().all())


def test_the_view_of_a_batch_is_what_its_images_are() -> None:
    seen: set[int] = set()
    for epoch in range(5):
        images = augmented(12, epoch=epoch)
        shown, _, indices, views = batch(images, list(range(12)))
        assert views.dtype == torch.int64
        assert torch.equal(shown, images.source.normalise(images.seen(indices.tolist(), views)[0]))
        seen |= set(views.tolist())
    assert len(seen) > 20
    plain = LabelledImages(torch.zeros(4, 1, 2, 2), torch.zeros(4).long())
    assert [item[2:] for item in NumberedImages(plain, with_views=True).__getitems__([3, 1])] == [(3, 0), (1, 0)]
    assert [item[2:] for item in NumberedImages(plain).__getitems__([3, 1])] == [(3,), (1,)]


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    images, counted = augmented(), Counted(teacher())
    record = record_teacher(tmp_path, counted.network, images, CLASSES)
    for indices, runs in (([0, 1, 2], 3), ([2, 3, 1], 4), ([3, 2, 1, 0], 4)):
        shown, _, numbers, views = batch(images, indices)
        live = counted.network(shown).detach()
        assert torch.allclose(record.lookup(numbers, views, shown, counted), live, atol=1e-3, rtol=ROUNDING)
        assert counted.shown == runs


def test_images_or_views_that_are_not_there_are_refused(tmp_path: Path) -> None:
    record = record_teacher(tmp_path, teacher(), augmented(), CLASSES)
    for index, view in ((12, 0), (-1, 0), (0, 162), (0, -1)):
        with pytest.raises(RecordError, match="recorded are 12 images in 162 views each"):
            record.lookup(torch.tensor([index]), torch.tensor([view]), torch.zeros(1, 1, 8, 8), teacher())


def test_logits_that_cannot_be_recorded_are_refused(tmp_path: Path) -> None:
    record = record_teacher(tmp_path, teacher(), augmented(), CLASSES)
    number, image = torch.tensor([0]), torch.zeros(1, 1, 8, 8)
    for wrong, reason in (
        (torch.full((1, CLASSES), 7e4), "float16 ends at 65504"),
        (torch.zeros(1, CLASSES).bfloat16(), "bfloat16, which is too coarse"),
        (torch.zeros(1, 3), r"gave \(1, 3\), expected \(1, 5\)"),
    ):
        with pytest.raises(RecordError, match=reason):
            record.lookup(number, number, image, lambda _, wrong=wrong: wrong)  # type: ignore[misc]
    assert not record.table.filled().any()


def test_autocast_does_not_reach_the_recorded_teacher(tmp_path: Path) -> None:
    images, network = augmented(), teacher()
    record = record_teacher(tmp_path, network, images, CLASSES)
    shown, _, numbers, views = batch(images, list(range(12)))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(shown).dtype == torch.bfloat16
        recorded = record.lookup(numbers, views, shown, network)
    assert ((recorded - network(shown)).abs() <= tolerance(recorded)).all()


def test_a_stale_record_is_refused_by_the_name_of_what_changed(tmp_path: Path) -> None:
    images, network = augmented(), teacher()
    record_teacher(tmp_path, network, images, CLASSES)
    assert not record_teacher(tmp_path, copy.deepcopy(network), augmented(seed=3), CLASSES).table.created
    moved = copy.deepcopy(network)
    norm = next(module for module in moved.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean[0] += 1e-6  # a buffer
    one_pixel = pictures()
    one_pixel.images[11, 0, 7, 7] ^= 1
    brighter = PixelImages(pictures().images, pictures().labels, (0.4,), (0.25,))
    sampler = EpochSampler(12, 0)
    for theirs, data, name in (
        (moved, images, "teacher"),
        (network, PadCropFlip(one_pixel, sampler), "images"),
        (network, PadCropFlip(brighter, sampler), "normalisation"),
        (network, pictures(), "augmentation"),
        (network, augmented(11), "shape"),
    ):
        with pytest.raises(
            RecordError, match=rf"holds the recorded logits of something else.*{name}: recorded .*, now"
        ):
            record_teacher(tmp_path, theirs, data, CLASSES)


def test_a_network_is_known_by_its_weights_and_its_structure() -> None:
    known = teacher_identity(teacher())
    assert known == teacher_identity(teacher().train())
    assert known != teacher_identity(teacher(seed=1))
    coarse = nn.Conv2d(1, 2, 3, stride=2)
    fine = copy.deepcopy(coarse)
    fine.stride = (1, 1)  # the same weights
    assert teacher_identity(coarse) != teacher_identity(fine)


def test_the_size_is_known_and_reserved_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LogitTable(tmp_path / "one", {}, (7, 162, 10))
    files = [(tmp_path / "one" / name).stat() for name in (LOGITS, FILLED)]
    assert table.nbytes == sum(file.st_size for file in files) == 7 * 162 * 21
    if hasattr(os, "posix_fallocate"):
        assert sum(file.st_blocks for file in files) * 512 >= table.nbytes
    assert table_bytes((50_000, 162, 100)) == pytest.approx(1.63e9, rel=0.01)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100, 1, 99))
    with pytest.raises(RecordError, match=r"7 images × 162 views × 10 classes take 0.00 GB, and the disk of .*two has"):
        LogitTable(tmp_path / "two", {}, (7, 162, 10))
    assert not (tmp_path / "two" / LOGITS).exists()
    LogitTable(tmp_path / "one", {}, (7, 162, 10))  # takes no more


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    LogitTable(tmp_path, {}, (7, 2, 10))
    os.truncate(tmp_path / LOGITS, 10)
    with pytest.raises(RecordError, match=r"logits.f16 is missing or not of 280 bytes"):
        LogitTable(tmp_path, {}, (7, 2, 10))


def test_a_record_whose_making_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    LogitTable(tmp_path, {}, (7, 2, 10)).columns[0].fill_(3)
    (tmp_path / IDENTITY).unlink()  # it is written last
    table = LogitTable(tmp_path, {}, (7, 2, 10))
    assert table.created
    assert not table.columns[0].any()


def test_views_without_end_cannot_be_recorded() -> None:
    endless = RandomResizedCrop(pictures(), EpochSampler(12, 0), (8, 8))
    with pytest.raises(ValueError, match="RandomResizedCrop draws from endlessly many views"):
        finite_views(endless)
    with pytest.raises(ValueError, match="endlessly many views"):
        NumberedImages(endless, with_views=True)
    with pytest.raises(ValueError, match="set in_memory to true"):
        LabelledImages(["a.png"], torch.zeros(1).long()).identity()


def work(folder: Path, order: list[int], die_at: int | None) -> None:
    """What a process does: all images in an order, flushed after every third batch; it may die after a write."""
    torch.set_num_threads(1)
    images, network = augmented(24), teacher()
    record = record_teacher(folder, network, images, CLASSES)
    for step, index in enumerate(order):
        shown, _, numbers, views = batch(images, [index])
        record.lookup(numbers, views, shown, network)
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 3 == 2:
            record.flush()
    record.flush()


def in_processes(*calls: tuple[Any, ...]) -> list[int | None]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def check_rows(folder: Path) -> int:
    """Compare all rows that are marked with the live teacher; returns how many there are."""
    images, network = augmented(24), teacher()
    table = record_teacher(folder, network, images, CLASSES).table
    rows = table.filled().nonzero()[:, 0]
    shown = images.source.normalise(images.seen((rows // 162).tolist(), rows % 162)[0])
    with torch.no_grad():
        live = network(shown)
    assert ((table.columns[0][rows].float() - live).abs() <= tolerance(live)).all()
    return len(rows)


def test_processes_share_a_record_and_one_that_dies_leaves_no_wrong_row(tmp_path: Path) -> None:
    there, back = list(range(24)), list(range(23, -1, -1))
    assert in_processes((tmp_path, there, 16), (tmp_path, back, 10)) == [-signal.SIGKILL] * 2
    assert check_rows(tmp_path) == 24  # 15 from the front, 9 from the back: all that was flushed
    one = tmp_path / "one"
    assert in_processes((one, there, 4)) == [-signal.SIGKILL]
    assert check_rows(one) == 3
    counted, images = Counted(teacher()), augmented(24)
    record = record_teacher(one, counted.network, images, CLASSES)
    shown, _, numbers, views = batch(images, there)
    record.lookup(numbers, views, shown, counted)
    assert counted.shown == 21


def test_what_one_process_flushes_another_sees_at_once(tmp_path: Path) -> None:
    images = augmented()
    first, second = (record_teacher(tmp_path, teacher(), images, CLASSES) for _ in range(2))
    shown, _, numbers, views = batch(images, list(range(12)))
    first.lookup(numbers, views, shown, teacher())
    counted = Counted(teacher())
    second.lookup(numbers[:4], views[:4], shown[:4], counted)
    assert counted.shown == 4  # not marked yet
    first.flush()
    second.lookup(numbers, views, shown, counted)
    assert counted.shown == 4


def distillers() -> dict[str, blockkd.Distiller]:
    torch.manual_seed(1)
    student = ResNet(8, (4, 4, 8, 16), CLASSES, 1)
    example = torch.zeros(2, 1, 8, 8)

    def pair() -> tuple[nn.Module, nn.Module]:
        return teacher(), copy.deepcopy(student)

    return {
        "kd": blockkd.KD(*pair()),
        "all": blockkd.BlockKD(*pair(), example, gamma=0.5),
        "last": blockkd.BlockKD(*pair(), example, stones="last"),
    }


@pytest.mark.parametrize("name", ["kd", "all", "last"])
def test_20_steps_with_a_record_equal_those_with_the_live_teacher(tmp_path: Path, name: str) -> None:
    live = distillers()[name]
    images = augmented(16)
    record = record_teacher(tmp_path, teacher(), images, CLASSES)
    counted = Counted(teacher())
    paths = [(live, False), (copy.deepcopy(live), True)]
    losses: list[list[float]] = [[], []]
    for (distiller, recorded), seen in zip(paths, losses, strict=True):
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
        for step in range(20):
            images.sampler.set_epoch(step % 4)
            shown, labels, numbers, views = batch(images, list(range(16)))
            context = {"recorded": record.lookup(numbers, views, shown, counted)} if recorded else {}
            total = distiller(shown, labels, **context).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            seen.append(float(total.detach()))
    assert counted.shown <= 4 * 16  # four epochs' views, the same ones five times
    # Rounding moves a loss by a few millionths; steps over the kinks of ReLU make more of it, the more stones the more.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=2e-5)
    assert losses[1] == pytest.approx(losses[0], rel=5e-4)
    for ours, theirs in zip(paths[0][0].parameters(), paths[1][0].parameters(), strict=True):
        assert float((ours - theirs).detach().norm() / ours.detach().norm().clamp_min(0.1)) < 5e-3
    assert losses[0] != losses[1]  # the record was used


def test_block_kd_with_a_record_runs_the_teachers_tails_and_not_the_teacher() -> None:
    shown, labels = torch.randn(4, 1, 8, 8), torch.zeros(4).long()
    for name, distiller in distillers().items():
        live = distiller(shown, labels)
        assert distiller.teacher is not None
        recorded = distiller.teacher_logits(shown)
        conv = next(module for module in distiller.teacher.modules() if isinstance(module, nn.Conv2d))
        conv.weight.data.fill_(torch.nan)  # the first layer, of which no tail is made
        again = distiller(shown, labels, recorded=recorded)
        assert live.terms.keys() == again.terms.keys()
        for term, value in live.terms.items():
            assert torch.allclose(value, again.terms[term], rtol=1e-5), (name, term)
        assert distiller(shown, labels).total.isnan()


def test_without_the_distillation_term_there_is_nothing_to_record() -> None:
    example = torch.zeros(2, 1, 8, 8)
    assert blockkd.BlockKD(teacher(), teacher(1), example).takes_recorded
    assert not blockkd.BlockKD(teacher(), teacher(1), example, beta=0.0).takes_recorded


def test_the_identity_is_told_in_the_folder(tmp_path: Path) -> None:
    record_teacher(tmp_path, teacher(), augmented(), CLASSES)
    told = json.loads((tmp_path / IDENTITY).read_text())
    assert set(told) == {"teacher", "images", "normalisation", "augmentation", "shape"}
    assert told["augmentation"] == "pad by 4, crop, flip"


@pytest.mark.parametrize("top", [1, 3, 4])
def test_of_the_top_and_the_rest_the_softmax_stays(top: int) -> None:
    logits = 3 * torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(3))
    again = unpack(pack(logits, top), CLASSES)
    expected, got = logits.softmax(dim=1), again.softmax(dim=1)
    for row in range(len(logits)):
        order = logits[row].argsort(descending=True)
        kept, others = order[:top], order[top:]
        torch.testing.assert_close(got[row, kept], expected[row, kept], rtol=0.02, atol=0)
        shared = expected[row, others].sum() / len(others)
        torch.testing.assert_close(got[row, others], shared.expand(len(others)), rtol=0.02, atol=0)


@pytest.mark.parametrize("resident", [False, True])
def test_a_record_of_the_top_gives_what_was_kept_of_the_live_teacher(tmp_path: Path, resident: bool) -> None:
    network, images = teacher(), augmented()
    record = record_teacher(tmp_path, network, images, CLASSES, top=2)
    record.resident = resident
    views = images.drawn()
    batch, _ = images.batch(torch.arange(12), views)
    with torch.no_grad():
        live = network(batch)
    for _ in range(2):  # written, and read again
        got = record.lookup(torch.arange(12), views, batch, network)
        torch.testing.assert_close(got, unpack(pack(live, 2), CLASSES), rtol=2e-3, atol=2e-3)
        record.flush()
    assert record.table.nbytes == table_bytes((12, 162, CLASSES), 2) == 12 * 162 * (3 * 2 + 2 * 4 + 1)
    sizes = [(tmp_path / name).stat().st_size for name in (LOGITS, CLASSES_FILE, FILLED)]
    assert sum(sizes) == record.table.nbytes
    with pytest.raises(RecordError, match="the top 2 of them, now 12 images × 162 views × 5 classes:"):
        record_teacher(tmp_path, network, images, CLASSES)


@pytest.mark.parametrize("top", [0, 5])
def test_a_top_that_is_none_is_refused(tmp_path: Path, top: int) -> None:
    with pytest.raises(RecordError, match=rf"the top {top} of 5 classes cannot be kept: expected 1 … 4"):
        LogitTable(tmp_path, {}, (7, 2, 5), top)


def test_what_is_recorded_ahead_is_what_would_have_been_recorded(tmp_path: Path) -> None:
    network, images = teacher(), augmented()
    ahead = record_teacher(tmp_path / "ahead", network, images, CLASSES)
    shown = 0

    def counted(batch: Tensor) -> Tensor:
        nonlocal shown
        shown += len(batch)
        logits: Tensor = network(batch)
        return logits

    for left in fill(ahead, images, counted, torch.device("cpu"), batch_size=100):
        if left < 1000:
            break  # as an interrupt would
    ahead.flush()
    done = int(ahead.table.filled().sum())
    assert shown == done == 1000
    again = record_teacher(tmp_path / "ahead", network, images, CLASSES)
    assert [*fill(again, images, counted, torch.device("cpu"), batch_size=512)] == [432, 0]
    assert shown == 12 * 162
    assert bool(again.table.filled().all())
    for index, view in ((3, 0), (11, 161), (0, 80)):
        picture, _ = images.batch(torch.tensor([index]), torch.tensor([view]))
        with torch.no_grad():
            live = network(picture)
        got = again.lookup(torch.tensor([index]), torch.tensor([view]), picture, nobody)
        assert bool(((got - live).abs() <= tolerance(live)).all())
    assert [*fill(again, images, nobody, torch.device("cpu"))] == []


def nobody(batch: Tensor) -> Tensor:
    raise AssertionError(f"the teacher was asked for {len(batch)} images")


def test_counted_crops_repeat_for_all_seeds_and_can_be_recorded(tmp_path: Path) -> None:
    def crops(seed: int, epoch: int) -> CountedCrops:
        sampler = EpochSampler(12, seed)
        sampler.set_epoch(epoch)
        return CountedCrops(pictures(), sampler, (8, 8), n_views=3)

    def seen(images: CountedCrops) -> Tensor:
        return torch.stack([image for image, _ in images.__getitems__(list(range(12)))])

    by_epoch = [seen(crops(0, epoch)) for epoch in range(6)]
    assert torch.equal(torch.stack(by_epoch[:3]), torch.stack(by_epoch[3:]))
    assert not torch.equal(by_epoch[0], by_epoch[1])
    assert torch.equal(seen(crops(seed=9, epoch=4)), by_epoch[1])
    images = crops(0, 4)
    assert isinstance(images, FiniteViews)
    assert images.drawn().tolist() == [1] * 12
    every = torch.arange(12)
    for view in range(3):
        assert torch.equal(images.batch(every, torch.full((12,), view))[0], by_epoch[view])
    mixed = torch.tensor([0, 1, 2] * 4)
    expected = torch.stack([by_epoch[view][index] for index, view in enumerate(mixed.tolist())])
    assert torch.equal(images.batch(every, mixed)[0], expected)
    record = record_teacher(tmp_path, teacher(), images, CLASSES)
    assert record.table.shape == (12, 3, CLASSES)
    with pytest.raises(RecordError, match="augmentation: recorded 3 random resized crops to 8×8, flip, now 4 random"):
        record_teacher(tmp_path, teacher(), CountedCrops(pictures(), EpochSampler(12, 0), (8, 8), 4), CLASSES)


@pytest.mark.parametrize("said", [b"", b"[]", b"3", b'{"teacher": {}}', b"\xff\xfe", b"[" * 100_000])
def test_a_folder_that_does_not_say_what_it_holds_is_refused(tmp_path: Path, said: bytes) -> None:
    record_teacher(tmp_path, teacher(), augmented(), CLASSES)
    (tmp_path / IDENTITY).write_bytes(said)
    with pytest.raises(RecordError, match=r"identity\.json does not say what is recorded: delete the folder"):
        record_teacher(tmp_path, teacher(), augmented(), CLASSES)
    assert (tmp_path / IDENTITY).read_bytes() == said
