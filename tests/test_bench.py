"""``blockkd bench``: the naive reference is Block-KD, the clock takes turns, what is printed is what was measured."""

import copy
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blockkd import BlockKD
from blockkd.bench.contenders import (
    ALL_FOLDED,
    KD_FOLDED,
    LAST_FOLDED,
    LAST_RECORDED,
    NAIVE,
    Batch,
    Contender,
    contenders,
    settle,
)
from blockkd.bench.mdistiller import Checkout
from blockkd.bench.measuring import Measured, interleaved
from blockkd.bench.naive import NaiveBlockKD
from blockkd.bench.results import targets
from blockkd.cli import main
from blockkd.commands import bench
from blockkd.commands.errors import InvalidInputError
from blockkd.models import create_model

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2, 1])
SMALL = ["--teacher=resnet8", "--student=resnet8", "--batch-size=2", "--image-size=16", "--rounds=1", "--threads=1"]


def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    return settle(create_model("resnet14", num_classes=5), IMAGES), create_model("resnet8", num_classes=5)


@pytest.mark.parametrize("options", [{"stones": [2, 3]}, {"alpha": 0.5, "beta": 2.0, "stone_weights": [3.0, 1.0, 2.0]}])
def test_the_naive_reference_has_the_losses_and_gradients_of_block_kd(options: dict[str, Any]) -> None:
    teacher, student = networks()
    ours = BlockKD(teacher, student, IMAGES, **options).double()
    naive = NaiveBlockKD(copy.deepcopy(ours))
    expected, got = (method(IMAGES.double(), LABELS) for method in (ours, naive))
    assert set(got.terms) == set(expected.terms)
    for name, term in expected.terms.items():
        torch.testing.assert_close(got.terms[name], term)
    expected.total.backward()
    got.total.backward()
    gradients = dict(naive.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)
    assert naive.teacher is not None
    assert ours.teacher is not None
    assert any(parameter.grad is not None for parameter in naive.teacher.parameters())  # which ours does not compute
    assert all(parameter.grad is None for parameter in ours.teacher.parameters())


@pytest.mark.parametrize("channels_last", [False, True])
def test_twenty_steps_of_the_fast_path_are_those_of_the_naive_one(channels_last: bool) -> None:
    batch = Batch(IMAGES, LABELS)
    found = {c.name: c for c in contenders(*networks(), batch, channels_last=channels_last)}
    fast, naive = found[ALL_FOLDED], found[NAIVE]
    naive.distiller.load_state_dict(fast.distiller.state_dict())  # connectors start at random
    for contender in (fast, naive):
        contender.optimizer.param_groups[0]["lr"] = 0.01
        for _ in range(20):
            contender.step()
    losses = [float(c.distiller(IMAGES, LABELS).total.detach()) for c in (fast, naive)]
    start = float(BlockKD(*networks(), IMAGES)(IMAGES, LABELS).total.detach())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[1] < 0.9 * start


def test_channels_last_weights_are_switch_enough() -> None:
    found = {c.name: c for c in contenders(*networks(), Batch(IMAGES, LABELS), channels_last=True)}
    distiller = found[ALL_FOLDED].distiller
    assert isinstance(distiller, BlockKD)
    features, _ = distiller.student_features(IMAGES)
    theirs, _ = distiller.teacher_features(IMAGES)
    assert IMAGES.is_contiguous()
    for feature in (*features, *theirs):
        assert feature.is_contiguous(memory_format=torch.channels_last)


def test_every_contender_takes_steps_and_is_counted() -> None:
    batch = Batch(IMAGES, LABELS, bf16=True)
    found = list(contenders(*networks(), batch))
    assert len(found) == len({c.name for c in found}) == 19
    flops = {}
    for contender in found:
        before = [p.clone() for p in contender.distiller.parameters()]
        contender.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, contender.distiller.parameters(), strict=True))
        flops[contender.name] = contender.flops()
        assert contender.saved_bytes() > 0
    assert flops["cross-entropy"] < flops["KD"] == flops[KD_FOLDED] < flops[LAST_FOLDED] < flops[ALL_FOLDED]
    teacher = flops["KD"] - flops["KD, recorded"]  # its forward pass, which is all that a record saves
    assert teacher > 0
    assert flops[LAST_FOLDED] - flops[LAST_RECORDED] == teacher
    assert flops[ALL_FOLDED] == flops["all stones"] < flops[NAIVE]  # which has the gradients of the teacher's weights


def test_the_clock_takes_turns() -> None:
    turns: list[str] = []

    def step(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            turns.append(name)
            time.sleep(seconds)

        return run

    seconds = interleaved({"slow": step("slow", 0.06), "fast": step("fast", 0.02)}, 4, torch.device("cpu"))
    assert min(seconds["slow"]) >= 0.06
    assert 0.02 <= min(seconds["fast"]) < 0.05  # per step, though a turn takes several
    assert {len(values) for values in seconds.values()} == {4}
    timed = [name for i, name in enumerate(turns) if i >= 6 and name != turns[i - 1]]
    assert len(timed) >= 5  # not one after the other


def measured(*seconds: float, saved: int = 100) -> Measured:
    return Measured(seconds, flops=1, saved=saved, peak=None)


def test_targets_compare_round_by_round() -> None:
    found = {  # the third round was three times as slow for all
        KD_FOLDED: measured(1.0, 1.0, 3.0),
        ALL_FOLDED: measured(2.0, 2.4, 6.6, saved=60),
        LAST_FOLDED: measured(1.2, 1.2, 3.6),
        LAST_RECORDED: measured(0.5, 0.7, 1.8),
        NAIVE: measured(4.0, 4.0, 9.0, saved=100),
    }
    every, naive, last, recorded, memory = targets(found)
    assert [every.got.low, every.got.median, every.got.high] == pytest.approx([2.1, 2.2, 2.3])
    assert every.reached
    assert not last.reached
    assert recorded.got.median == pytest.approx(0.6)
    assert recorded.reached
    assert naive.got.median == pytest.approx(0.6)
    assert (memory.got.median, memory.reached) == (0.6, True)
    assert str(last).startswith("MISSED ")
    assert "1.20, to be at most 1.05" in str(last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher=resnet15"], "cannot build the teacher: no network is called 'resnet15'"),
        (["--batch-size=1"], "batch_size is 1"),
        (["--batch-size=0"], "--batch_size: .*above 0"),
        (["--device=moon"], "cannot use the device 'moon'"),
        (["--device=meta"], "expected cpu or cuda"),
        (["--device=cpu", "--compile=reduce-overhead"], "have no effect on the CPU"),
        (["--precision=8"], "--precision"),
        (["--against=/nowhere"], "holds no mdistiller/distillers"),
        (["--sped=1"], "unknown option --sped"),
    ],
)
def test_bad_input_is_one_sentence(options: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        bench.run([*SMALL, *options])
    assert "\n" not in str(caught.value)


# A package with the interface of an mdistiller checkout; its trainers need something that is not installed.
FAKE = {
    "mdistiller/__init__.py": "",
    "mdistiller/engine/__init__.py": "import not_installed_anywhere\n",
    "mdistiller/engine/cfg.py": """
class CFG:
    weight = 1.0
    def clone(self): return CFG()
    def merge_from_file(self, path): self.weight = 7.0
CFG = CFG()
CFG.clone = lambda: type(CFG)()
""",
    "mdistiller/models/__init__.py": """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, num_classes)
    def forward(self, x):
        pooled = self.conv(x).mean((2, 3))
        return self.fc(pooled), {"pooled_feat": pooled}
cifar_model_dict = {"resnet8": (Net, "somewhere.pth")}
""",
    "mdistiller/distillers/__init__.py": """
import torch
F = torch.nn.functional
class Vanilla(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student
    def get_learnable_parameters(self): return list(self.student.parameters())
    def forward(self, image, target, **kwargs):
        logits, _ = self.student(image)
        return logits, {"ce": F.cross_entropy(logits, target)}
class KD(Vanilla):
    def __init__(self, student, teacher, cfg):
        super().__init__(student)
        self.teacher, self.weight = teacher, cfg.weight
    def forward(self, image, target, epoch, **kwargs):
        logits, losses = super().forward(image, target)
        with torch.no_grad():
            theirs, _ = self.teacher(image)
        return logits, {**losses, "kd": min(epoch / 20, 1) * self.weight * (logits - theirs).square()}
class CRD(KD):
    def __init__(self, student, teacher, cfg, num_data): ...
distiller_dict = {"NONE": Vanilla, "KD": KD, "CRD": CRD}
""",
    "configs/cifar100/kd.yaml": "DISTILLER: {TYPE: KD, TEACHER: resnet8, STUDENT: resnet8}\n",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FAKE.items():
        path = tmp_path / "fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    before = set(sys.modules)
    yield tmp_path / "fake"
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "mdistiller":
            monkeypatch.delitem(sys.modules, name)


def test_an_mdistiller_checkout_is_timed_beside_ours(checkout: Path) -> None:
    path = list(sys.path)
    found = list(Checkout(checkout).contenders("resnet8", "resnet8", 5, Batch(IMAGES, LABELS)))
    assert sys.path == path
    kinds = [c.name if isinstance(c, Contender) else c for c in found]
    assert kinds[:2] == ["mdistiller CE", "mdistiller KD"]
    assert kinds[2].startswith("mdistiller CRD is left out: TypeError:")
    kd = found[1]
    assert isinstance(kd, Contender)
    inner: Any = kd.distiller.inner
    assert inner.weight == 7.0  # of the pair's own configuration
    frozen = copy.deepcopy(inner.teacher.state_dict())
    before = [p.clone() for p in inner.student.parameters()]
    losses = kd.distiller(IMAGES, LABELS)
    logits, teacher = inner.student(IMAGES)[0], inner.teacher(IMAGES)[0]
    expected = torch.nn.functional.cross_entropy(logits, LABELS) + 7 * (logits - teacher).square().mean()
    torch.testing.assert_close(losses.total, expected)
    kd.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, inner.student.parameters(), strict=True))
    assert all(torch.equal(frozen[name], value) for name, value in inner.teacher.state_dict().items())


def test_the_command_writes_what_it_prints(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    options = [f"--output={folder}", f"--against={checkout}", "--rounds=2", "--precision=bf16", "--json"]
    assert main(["bench", *SMALL, *options]) == 0
    printed = capsys.readouterr()
    said, document = printed.err, json.loads(printed.out)
    with (folder / "bench.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert len(rows) == 19 + 2
    assert all(name in said for name in rows)
    assert float(rows["KD"]["of_kd"]) == 1
    assert "mdistiller KD" in rows
    assert "mdistiller CRD is left out" in said
    with (folder / "rounds.csv").open(encoding="utf-8") as file:
        rounds = list(csv.DictReader(file))
    medians = [float(row["KD"]) for row in rounds]
    assert float(rows["KD"]["seconds"]) == pytest.approx(sum(medians) / 2, rel=1e-3)
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    stored = yaml.safe_load((folder / "bench.yaml").read_text(encoding="utf-8"))
    assert stored["settings"]["teacher"] == "resnet8"
    assert stored["settings"]["channels_last"] in (True, False)  # what auto came to
    assert stored["environment"]["torch"] == torch.__version__
    methods = {row["method"]: row for row in document["methods"]}
    for name, row in rows.items():
        assert statistics.median(methods[name]["seconds"]) == pytest.approx(float(row["seconds"]), rel=1e-4)
        assert methods[name]["saved"] == int(row["saved_bytes"])
    assert document["targets"][-1]["got"]["median"] == methods[ALL_FOLDED]["saved"] / methods[NAIVE]["saved"]
    assert "mdistiller CRD is left out" in document["left_out"][0]
    assert len(stored["targets"]) == 5
    assert all(line in said for line in stored["targets"])
    with pytest.raises(InvalidInputError, match="another folder"):
        bench.run([*SMALL, f"--output={folder}"])


def test_a_checkout_that_does_not_fit_is_refused(checkout: Path) -> None:
    with pytest.raises(InvalidInputError, match="mdistiller has no network 'resnet20'; it has resnet8"):
        bench.run([*SMALL, "--student=resnet20", f"--against={checkout}"])
    (checkout / "mdistiller/models/__init__.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(InvalidInputError, match="No module named 'not_installed_anywhere'"):
        bench.run([*SMALL, f"--against={checkout}"])
