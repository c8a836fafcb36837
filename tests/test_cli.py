"""The commands through their entry point: what they leave, what they print, and one sentence for bad input."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from blockkd.cli import COMMANDS, main
from blockkd.commands.checks import chance_warning
from blockkd.commands.composing import recipe_names
from blockkd.commands.recipe import method_name
from blockkd.data import Digits, LabelledImages
from blockkd.data.images import Parts
from blockkd.models import ResNet
from blockkd.models.weights import read_state_dict
from blockkd.runs import read_csv
from blockkd.training import DistillationModule

SMALL: dict[str, Any] = {
    "base": "digits/block_kd",
    "data": {"class_path": "tests.test_cli.FewDigits"},
    "teacher": {"network": {"init_args": {"depth": 8, "widths": [8, 8, 16, 32]}}, "epochs": 4},
    "student": {"class_path": "tests.test_cli.Forgetful"},
    "epochs": 3,
}


class FewDigits(Digits):
    """Fewer images, so that a test takes a second."""

    def load(self) -> Parts:
        parts = super().load()
        train, val, test = (
            LabelledImages(part.images[:size], part.labels[:size])
            for part, size in zip(parts, (256, 64, 64), strict=True)
        )
        return Parts(train, val, test)


class WrongLabels(Digits):
    num_classes = 9


class Forgetful(nn.Module):
    """A student with dropout, whose training hangs on the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, padding=1), nn.ReLU(), nn.Dropout(0.2))
        self.layer3 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return logits


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


def weights(path: Path) -> dict[str, Tensor]:
    return read_state_dict(path)


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int, error: BaseException) -> None:
    """Make the ``at_step``-th training step of the process fail."""
    step = DistillationModule.training_step
    taken = 0

    def failing(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        nonlocal taken
        taken += 1
        if taken == at_step:
            raise error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", failing)


def recorded_labels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """The method and the labels of every training step from here on."""
    step = DistillationModule.training_step
    seen: list[tuple[str, list[int]]] = []

    def recording(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        seen.append((type(self.distiller).__name__, batch[1].tolist()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", recording)
    return seen


@pytest.fixture
def sigint() -> Any:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_distill_leaves_a_complete_run(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--config", small, "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "small"
    assert "±" in printed
    assert "64 test images" in printed
    assert "blockkd report runs/small" in printed
    assert "blockkd export runs/small" in printed
    results = read_csv(run / "results.csv")
    assert [(row["method"], row["seed"]) for row in results] == [
        ("teacher", 0),
        *[(method, seed) for seed in (0, 1) for method in ("block_kd", "kd", "cross_entropy")],
    ]
    metrics = read_csv(run / "metrics.csv")
    assert len(metrics) == 4 + 2 * 3 * 3
    assert [row["epoch"] for row in metrics if row["method"] == "kd" and row["seed"] == 1] == [0, 1, 2]
    assert (run / "figure.png").stat().st_size > 10_000
    assert same_weights(run / "student.safetensors", run / "block_kd" / "seed_0" / "student.safetensors")
    assert set(weights(run / "student.safetensors")) == set(Forgetful().state_dict())
    assert not list(run.rglob("*.ckpt"))

    assert main(["evaluate", str(run)]) == 0
    evaluated = capsys.readouterr().out
    for row in (results[0], results[1]):
        assert f"{100 * float(row['test_accuracy']):.2f}" in evaluated


def test_the_resolved_recipe_gives_the_same_run_again(small: str, tmp_path: Path) -> None:
    assert main(["distill", "--config", small, "--epochs", "1", "--beside", "{}", "--output", "one"]) == 0
    assert main(["distill", "--config", "one/recipe.yaml", "--output", "two"]) == 0
    assert same_weights(tmp_path / "one" / "student.safetensors", tmp_path / "two" / "student.safetensors")
    one, two = (
        (tmp_path / name / "recipe.yaml").read_text().replace("  init_args: {}\n", "") for name in ("one", "two")
    )
    assert one == two


def test_a_method_trains_alike_whatever_is_beside_it(small: str, tmp_path: Path) -> None:
    options = ["distill", "--config", small, "--epochs", "1", "--method", "KD"]
    assert main([*options, "--beside", "{cross_entropy: CrossEntropy}", "--output", "two"]) == 0
    assert main([*options, "--beside", "{}", "--output", "one"]) == 0
    assert same_weights(tmp_path / "one" / "student.safetensors", tmp_path / "two" / "student.safetensors")
    first = read_csv(tmp_path / "two" / "metrics.csv")
    assert {row["method"] for row in first} == {"teacher", "kd", "cross_entropy"}


def test_methods_see_the_same_order_and_seeds_another(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, "method": "KD"}))
    seen = recorded_labels(monkeypatch)
    options = ["--beside", "{plain: CrossEntropy}", "--teacher.epochs", "0", "--epochs", "2", "--seeds", "2"]
    assert main(["distill", "--config", small, *options]) == 0
    orders = [[labels for _, labels in seen[start : start + 8]] for start in range(0, 32, 8)]
    assert [name for name, _ in seen[::8]] == ["KD", "CrossEntropy"] * 2
    assert orders[0] == orders[1]
    assert orders[2] == orders[3]
    assert orders[0] != orders[2]
    assert orders[0][:4] != orders[0][4:]  # the next epoch has another order


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("step", [2 * 4 + 3, 4 * 4 + 2 * 4 + 3, 4 * 4 + 3 * 4 + 4 + 2])
def test_interrupted_and_resumed_equals_uninterrupted(
    small: str, tmp_path: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of an epoch of the teacher, of the first student, of the second."""
    options = ["distill", "--config", small, "--beside", "{kd: KD}"]
    assert main([*options, "--output", "whole"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, KeyboardInterrupt())
        assert main([*options, "--output", "halves"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "blockkd: interrupted; go on with: blockkd distill --resume halves"
    )
    with pytest.MonkeyPatch.context() as patch:
        batches = recorded_labels(patch)
        assert main(["distill", "--resume", "halves"]) == 0
    total, steps_per_epoch = 4 * 4 + 2 * 3 * 4, 4
    assert len(batches) == total - (step - 1) // steps_per_epoch * steps_per_epoch  # finished epochs stay finished
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for path in whole.rglob("*.safetensors"):
        assert same_weights(path, halves / path.relative_to(whole)), path
    before, after = (read_csv(folder / "metrics.csv") for folder in (whole, halves))
    for row in (*before, *after):
        row.pop("seconds")
    assert before == after


def test_a_crash_leaves_a_run_that_resumes(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ["--scheduler", "MultiStepLR", "--scheduler.milestones", "[1]"]
    options = ["distill", "--config", small, "--beside", "{}", "--epochs", "2", *steps]
    assert main([*options, "--output", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 4 * 4 + 4 + 2, RuntimeError("the machine fell over"))
        with pytest.raises(RuntimeError, match="fell over"):
            main([*options, "--output", "halves"])
    assert main(["distill", "--resume", "halves"]) == 0
    assert same_weights(tmp_path / "whole" / "student.safetensors", tmp_path / "halves" / "student.safetensors")


def test_resume_adds_seeds_and_trains_nothing_twice(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["distill", "--config", small, "--beside", "{}", "--epochs", "1"]
    assert main([*options, "--seeds", "2", "--output", "two"]) == 0
    assert main([*options, "--output", "one"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 4 + 1, AssertionError("more than one epoch of one student was trained"))
        assert main(["distill", "--resume", "one", "--seeds", "2"]) == 0
    student = Path("block_kd") / "seed_1" / "student.safetensors"
    assert same_weights(tmp_path / "one" / student, tmp_path / "two" / student)
    assert len(read_csv(tmp_path / "one" / "results.csv")) == 3


def test_teach_then_distil_from_its_weights(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"base": "digits/teacher", "data": SMALL["data"], "teacher": SMALL["teacher"]}
    Path("teach.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["teach", "--config", "teach.yaml"]) == 0
    taught = tmp_path / "runs" / "teach" / "teacher.safetensors"
    assert "--teacher.weights" in capsys.readouterr().out
    assert main(["evaluate", "runs/teach"]) == 0
    evaluated = capsys.readouterr().out
    assert "│ student" not in evaluated
    assert "blockkd distill --teacher.weights runs/teach/teacher.safetensors" in evaluated
    options = ["--config", small, "--epochs", "1", "--beside", "{}", "--teacher.weights", str(taught)]
    assert main(["distill", *options]) == 0
    assert same_weights(taught, tmp_path / "runs" / "small" / "teacher.safetensors")
    metrics = read_csv(tmp_path / "runs" / "small" / "metrics.csv")
    assert {row["method"] for row in metrics} == {"block_kd"}


def test_inspect_shows_blocks_stones_and_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect"]) == 0
    printed = capsys.readouterr().out
    for expected in ("layer1", "16×8×8", "4×8×8 → 16×8×8", "N_3", "272,186", "5,142", "5,065,984", "99,136"):
        assert expected in printed
    block_1 = 2 * 64 * 9 * (1 * 16 + 6 * 16 * 16)  # stem and six 3×3 convolutions on 8×8, two operations each
    connector, classifier = 2 * 4 * 16 * 64, 2 * 64 * 10  # a 1×1 convolution on 2×2, and the teacher's last layer
    assert f" {block_1:,} " in printed
    assert f" {3 * connector + 2 * classifier:,} " in printed  # the frozen classifier has no weight gradient
    assert not list(tmp_path.iterdir())
    assert main(["inspect", "--method.stones", "[2]"]) == 0
    printed = capsys.readouterr().out
    assert "N_2" in printed
    assert "N_3" not in printed


def test_an_untrained_teacher_is_warned_of(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", small, "--epochs", "1", "--beside", "{}", "--teacher.epochs", "0"]
    assert main(["distill", *options]) == 0
    assert "warning: the teacher is right on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("accuracy", "classes", "images", "warned"),
    [(0.1, 10, 252, True), (0.9, 10, 252, False), (0.5, 2, 1000, True), (0.9, 2, 1000, False), (0.01, 100, 5000, True)],
)
def test_near_chance(accuracy: float, classes: int, images: int, warned: bool) -> None:
    assert (chance_warning(accuracy, classes, images) is not None) == warned


def test_a_loss_that_diverges_ends_the_run(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", small, "--method", "KD", "--beside", "{}", "--optimizer.lr", "1e30"]
    assert main(["distill", *options]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("blockkd: kd, seed 0: the loss is no longer finite in epoch")
    assert "task/student is" in message


BAD = {
    "unknown command": (["distil"], "unknown command 'distil'; did you mean distill?"),
    "unknown recipe": (["distill", "--config", "digits/blok_kd"], "did you mean digits/block_kd"),
    "missing recipe": (["distill", "--config", "gone.yaml"], "no recipe file gone.yaml"),
    "unknown method": (["distill", "--method", "BlokKD"], "unknown method 'BlokKD'"),
    "unknown method beside": (["distill", "--beside.kd", "Foo"], "unknown method 'Foo'"),
    "unknown network": (["distill", "--student", "ResNeet"], "did you mean resnet8"),
    "code for a method": (["distill", "--method", "os.abort"], "--method"),
    "code for a network": (["distill", "--student", "os.getcwd"], "--student"),
    "code with arguments": (
        ["distill", "--student", "{class_path: subprocess.getoutput, init_args: {cmd: touch ran}}"],
        "--student: subprocess.getoutput cannot be named in a recipe",
    ),
    "a harmless function": (
        ["distill", "--student", "{class_path: textwrap.dedent, init_args: {text: ' x'}}"],
        "--student: textwrap.dedent cannot be named in a recipe",
    ),
    "a function for later": (
        [
            "distill",
            "--scheduler",
            "{class_path: torch.optim.lr_scheduler.LambdaLR, init_args: {lr_lambda: textwrap.dedent}}",
        ],
        "--scheduler.lr_lambda: textwrap.dedent cannot be named in a recipe",
    ),
    "a class of another kind": (
        ["distill", "--student", "{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}"],
        "--student",
    ),
    "code inside of a method": (
        ["distill", "--method.distance", "{class_path: subprocess.getoutput, init_args: {cmd: touch ran}}"],
        "--method.distance",
    ),
    "code for data": (["distill", "--data", "subprocess.Popen"], "--data"),
    "unknown option": (["distill", "--epoch", "3"], "unknown option --epoch; did you mean --epochs"),
    "stray value": (["distill", "stray"], "unexpected argument 'stray'"),
    "class path that leads elsewhere": (["distill", "--method.distance", "blockkd.KL"], "write KL alone"),
    "unknown setting": (["distill", "--method.alhpa", "3"], "no setting 'alhpa'; did you mean alpha"),
    "unknown setting of a network": (["distill", "--student.dept", "8"], "no setting 'dept'; did you mean depth"),
    "unknown setting of data": (["distill", "--data.batch", "8"], "no setting 'batch'; did you mean batch_size"),
    "unknown setting of an optimizer": (["distill", "--optimizer.momentun", "8"], "did you mean momentum"),
    "unknown setting of a text student": (
        ["distill", "--config", "glue/sst2/bert-base_6-layer/kd", "--student.hiden_size", "312"],
        "--student has no setting 'hiden_size'; did you mean hidden_size",
    ),
    "wrong type": (["distill", "--epochs", "many"], "--epochs: expected a whole number above 0, got 'many'"),
    "no epoch": (["distill", "--epochs", "0"], "got 0"),
    "wrong learning rate": (["distill", "--optimizer.lr", "fast"], "--optimizer.lr"),
    "negative learning rate": (["distill", "--optimizer.lr", "-1"], "Invalid learning rate"),
    "missing value": (["distill", "--epochs"], "expected one argument"),
    "wrong depth": (["distill", "--student.depth", "9"], "cannot build the student: depth is 9"),
    "wrong stone": (["distill", "--method.stones", "[7]"], "expected different stones among 1"),
    "all weights zero": (
        ["distill", "--method.alpha", "0", "--method.beta", "0", "--method.gamma", "0"],
        "above zero",
    ),
    "no term": (
        ["distill", "--method", "KD", "--beside", "{}", "--method.alpha", "0", "--method.beta", "0"],
        "kd cannot take a step: no loss term is left",
    ),
    "student classes": (["distill", "--student.num_classes", "7"], "the student has 7 classes, the data has 10"),
    "teacher classes": (["distill", "--teacher.network.num_classes", "7"], "the teacher has 7 classes"),
    "channels": (["distill", "--student.in_channels", "3"], "the student does not accept images of shape (1, 8, 8)"),
    "labels": (["distill", "--data", "tests.test_cli.WrongLabels"], "label 9 in the train part is out of range"),
    "batch size 1": (["distill", "--data.batch_size", "1"], "batch_size is 1"),
    "batch size 0": (["distill", "--data.batch_size", "0"], "batch_size is 0"),
    "missing weights": (["distill", "--teacher.weights", "gone.pth"], "no weights file at gone.pth"),
    "devices": (["distill", "--trainer.devices", "x"], "cannot use the trainer's options"),
    "resume nothing": (["distill", "--resume", "gone"], "gone holds no run"),
    "evaluate nothing": (["evaluate", "gone"], "gone holds no run"),
    "two of a name": (["distill", "--beside.block_kd", "KD"], "two methods are called 'block_kd'"),
    "bad name": (["distill", "--beside", "{../x: KD}"], "cannot be called '../x'"),
    "file in the way": (["distill", "--output", "here/run"], "cannot write to here/run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("a file")
    arguments, expected = BAD[case]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("blockkd: ")
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # nothing half-written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: [1,\nb: }", "is not readable YAML"),
        ("- a list", "must hold keys and values"),
        ("base: digits/block_kd\nepoch: 3", "not known: 'epoch'; did you mean epochs"),
        ("base: bad.yaml", "is its own base"),
        ("base: 3", "'base' in bad.yaml must be"),
        ("epochs: 3", "the recipe says nothing about"),
        ("method: !!python/object/apply:os.abort []", "is not readable YAML"),
    ],
)
def test_bad_recipes_get_one_sentence(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    assert main(["distill", "--config", "bad.yaml"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("blockkd: ")
    assert expected in message
    assert message.count("\n") == 1


def test_weights_of_another_network_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(ResNet(8, (4, 4, 8, 16), 10, 1).state_dict(), "other.pth")
    assert main(["distill", "--teacher.weights", "other.pth"]) == 2
    assert "other.pth does not fit ResNet" in capsys.readouterr().err


def test_a_run_is_not_overwritten_unless_asked(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["distill", "--config", small, "--epochs", "1", "--teacher.epochs", "1", "--beside", "{}"]
    assert main(options) == 0
    assert main(options) == 2
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err
    assert main([*options, "--overwrite"]) == 0
    assert main(["distill", "--resume", "runs/small", "--epochs", "2"]) == 2
    assert "keeps its recipe, but epochs would change" in capsys.readouterr().err
    assert main(["distill", "--resume", "runs/small", "--config", small]) == 2
    assert "leave out --config" in capsys.readouterr().err
    Path("runs/small/student.safetensors").write_bytes(b"torn")
    assert main(["evaluate", "runs/small"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err


# The recipes whose data come with the package; tests/test_recipes.py has the others.
@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("digits/")])
def test_every_recipe_of_the_digits_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "teach" if name.endswith("teacher") else "distill"
    short = ["--teacher.epochs", "1"] + (["--epochs", "1"] if command == "distill" else [])
    assert main([command, "--config", name, *short]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_well(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 150
    for noise in ("known subclasses", "Callable", "torch.nn", ".help", "NonNegativeInt", "class '"):
        assert noise not in text


def test_start_up_needs_nothing_heavy() -> None:
    script = "import sys; from blockkd.cli import main; main(['--help']); print('torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert done.stdout.splitlines()[-1] == "False"
    assert "blockkd distill" in done.stdout


def test_the_process_ends_with_the_code_and_without_a_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "blockkd.cli", "distill", "--method", "Nix"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("blockkd: unknown method 'Nix'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("blockkd.BlockKD", "block_kd"),
        ("blockkd.KD", "kd"),
        ("CrossEntropy", "cross_entropy"),
        ("x.ReviewKD", "review_kd"),
    ],
)
def test_method_names(path: str, name: str) -> None:
    assert method_name(path) == name
