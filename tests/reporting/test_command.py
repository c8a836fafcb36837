"""``blockkd report`` over a tiny run: what it leaves, what it says of runs that are unfinished, damaged or unlike."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from blockkd.cli import main
from blockkd.models.weights import read_state_dict
from blockkd.reporting import figures
from blockkd.runs import read_csv
from tests.reporting.browser import browser, shown
from tests.test_cli import SMALL, FewDigits

FASTER = SMALL | {"epochs": 2, "teacher": {"network": SMALL["teacher"]["network"], "epochs": 2}}
HOSTILE = "<img src=x onerror=alert(1)>$\\frac{1}{\x1b[2J"


class NamedDigits(FewDigits):
    """Its classes have names that somebody chose badly."""

    class_names = (HOSTILE, "七", "a" * 200, *"3456789")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs and their report, as the current one."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        method = SMALL | {
            "method": {"class_path": "blockkd.BlockKD", "init_args": {"gamma": 1.0, "cross_from_epoch": 1}}
        }
        first = FASTER | {
            "method": method["method"],
            "data": {"class_path": "tests.reporting.test_command.NamedDigits"},
        }
        Path("first.yaml").write_text(yaml.safe_dump(first))
        assert main(["distill", "--config", "first.yaml", "--watch_stones", "true", "--output", "run"]) == 0
        alone = FASTER | {"method": {"class_path": "blockkd.KD"}, "beside": {}}
        Path("kd.yaml").write_text(yaml.safe_dump(alone))
        assert main(["compare", "kd.yaml", "--output", "compared", "--epochs", "1", "--teacher.epochs", "1"]) == 0
        assert main(["report", "run"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def text(path: str = "run/report/index.html") -> str:
    return Path(path).read_text(encoding="utf-8")


def test_the_page_has_every_section_filled_but_the_one_that_the_run_cannot_fill() -> None:
    page = text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Results", "Part by part", "While training", "Along the depth", "The networks", "Calibration",
        "Class by class", "Features",
    ]  # fmt: skip
    assert re.findall(r'<p class="why">(.*?)</p>', page) == [
        "Not trained: block_kd_stones_distill, block_kd_stones_task. They are recipes behind every pair of images, as "
        "kd is; on digits one recipe trains all: blockkd distill --config digits/ablation --seeds 5."
    ]
    assert "L_cross starts" in page
    assert (
        page.count("<svg") == len(list(Path("run/report").glob("*.svg"))) == len(list(Path("run/report").glob("*.png")))
    )


def test_numbers_are_those_of_the_run() -> None:
    page = text()
    rows = {row["method"]: row for row in read_csv(Path("run/results.csv"))}
    for method, row in rows.items():
        assert re.search(rf">{method}</th><td>{100 * float(row['test_accuracy']):.2f}</td>", page)
    last = [row for row in read_csv(Path("run/metrics.csv")) if row["method"] == "block_kd"][-1]
    accuracy, agreement = (100 * float(last[f"val/stone_2/{name}"]) for name in ("accuracy", "agrees_teacher"))
    assert f'<th scope="row">N_2</th><td>{accuracy:.1f}</td><td>{agreement:.1f}</td>' in page
    # What the networks themselves say again, on the same images, is what the run has found.
    calibration = page[page.index('id="calibration"') : page.index('id="classes"')]
    for method, row in rows.items():
        assert re.search(rf">{method}</th>.*?<td>{100 * float(row['test_accuracy']):.2f}</td>", calibration)


def test_names_from_a_dataset_stay_text() -> None:
    page = text()
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert "&lt;img src=x" in page


def test_a_report_is_made_again_to_the_bit_and_nothing_of_the_run_changes() -> None:
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert main(["report", "run"]) == 0
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert [str(path) for path in before if before[path] != after[path]] == []


def test_several_runs_on_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "again", ignore=shutil.ignore_patterns("report"))
    assert main(["report", "run", "again", "--output", "both", "--images", "20"]) == 0
    assert "both/index.html" in capsys.readouterr().out
    page = text("both/index.html")
    for label in ("teacher", "block_kd (run)", "block_kd (again)", "teacher (again)", "kd (again)"):
        assert f'<th scope="row">{label}</th>' in page
    assert "on 20 test images" in page


def test_a_comparison_without_stones_and_without_cross_entropy() -> None:
    assert main(["report", "compared"]) == 0
    reasons = re.findall(r'<p class="why">(.*?)</p>', text("compared/report/index.html"))
    assert any("needs two methods" in reason for reason in reasons)
    assert any("No method of these runs has stones" in reason for reason in reasons)
    assert any("kd has no stones" in reason for reason in reasons)
    assert any("labels alone" in reason for reason in reasons)
    assert "Accuracy of kd minus that of teacher" in text("compared/report/index.html")


def test_an_unfinished_run_shows_what_is_there() -> None:
    shutil.copytree("run", "half", ignore=shutil.ignore_patterns("report", "student.safetensors", "result.json"))
    assert main(["report", "half"]) == 0
    page = text("half/report/index.html")
    assert (
        "half is unfinished: 0 of 4 networks are trained to the end. Go on with: blockkd distill --resume half" in page
    )
    assert "While training" in page
    assert "L_cross starts" in page
    assert "No network is trained to the end yet" in page
    shutil.copytree("run", "bare", ignore=shutil.ignore_patterns("report", "*.safetensors", "seed_*", "*.csv"))
    assert main(["report", "bare"]) == 0
    page = text("bare/report/index.html")
    assert "No epoch is finished yet" in page
    assert "C_1" in page  # how the networks are cut is known before any training


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no run is given; for example: blockkd report runs/digits/block_kd"),
        (["nowhere"], "nowhere holds no run"),
        (["run", "nowhere"], "nowhere holds no run"),
        (["run", "./run"], "run is given twice"),
        (["run", "compared"], "run and compared differ in data.class_path"),
        (["run", "--images", "1"], "--images is 1, expected 2 or more"),
        (["run", "--output", "run"], "run is not empty and holds no report"),
        (["run", "--output", "first.yaml"], "first.yaml is a file"),
        (["run", "--outptu", "x"], "unknown option --outptu; did you mean --output?"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["report", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_weights_that_do_not_fit_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "broken", ignore=shutil.ignore_patterns("report"))
    (Path("broken") / "kd" / "seed_0" / "student.safetensors").write_bytes(b"no tensors")
    assert main(["report", "broken"]) == 2
    assert "cannot use the student's weights" in capsys.readouterr().err
    assert not Path("broken/report").exists()


def test_a_full_disk_leaves_the_old_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = text()

    def full(path: Path, *parts: bytes, flush: bool = True) -> None:
        del parts, flush
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(figures, "write_durably", full)
    assert main(["report", "run"]) == 74
    assert "No space left" in capsys.readouterr().err
    assert text() == before


def test_a_teacher_by_itself_and_over_what_a_report_left_that_was_cut_short() -> None:
    alone = {key: FASTER[key] for key in ("data", "teacher")}
    Path("teacher.yaml").write_text(yaml.safe_dump({"base": "digits/teacher"} | alone))
    assert main(["teach", "--config", "teacher.yaml", "--teacher.epochs", "1", "--output", "taught"]) == 0
    Path("taught/report").mkdir()
    Path("taught/report/accuracy.png").write_bytes(b"half")
    assert main(["report", "taught"]) == 0
    page = text("taught/report/index.html")
    assert "There is no student" in page
    assert "teacher: ECE" in page
    assert Path("taught/report/accuracy.png").stat().st_size > 1000


def test_watching_is_a_part_of_the_recipe_and_has_to_have_an_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--config", "kd.yaml", "--watch_stones", "true", "--output", "none", "--epochs", "1"]) == 0
    assert "watch_stones has no effect: kd has no stones" in capsys.readouterr().err
    first, second = (read_state_dict(Path(f"{run}/kd/seed_0/student.safetensors")) for run in ("none", "run"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with browser(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(chromium: object, width: int, theme: str) -> None:
    page = Path("run/report/index.html")
    with shown(chromium, page, width, theme) as (tab, seen):
        assert seen.said == []
        assert seen.asked == [page.resolve().as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        figures = tab.evaluate(
            "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width, "
            "s.getBoundingClientRect().height])"
        )
        assert len(figures) == len(list(page.parent.glob("*.svg")))
        assert all(width_ > 300 and height > 150 for width_, height in figures)
        letters = tab.evaluate(
            "[...document.querySelectorAll('figure svg text')].map(t => parseFloat(getComputedStyle(t).fontSize) * "
            "Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))"
        )
        assert min(letters) > 7.5  # pixels of the screen
        assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        ground, ink = tab.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (brightness(ground) > brightness(ink)) == (theme == "light")
        axis = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert (brightness(ground) > brightness(axis)) == (theme == "light")


def brightness(colour: str) -> int:
    """Of ``rgb(r, g, b)``."""
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])
