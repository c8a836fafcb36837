"""``blockkd report`` over tiny runs on sentences: the task's metric, sentences that stay text, a regression."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockkd.cli import main
from blockkd.partitioning import partition
from blockkd.reporting.classes import classes_section
from blockkd.reporting.judging import Judged
from blockkd.reporting.measuring import all_logits, features_of, mean_of_tokens
from blockkd.reporting.page import page
from blockkd.reporting.sections import Example
from blockkd.reporting.similarity import centred_gram
from blockkd.reporting.style import look
from blockkd.runs import read_csv
from blockkd.text.glue import Glue
from blockkd.text.pretrained import load_teacher
from tests.reporting.browser import browser, shown
from tests.text.making import folders, recipe_file, written
from tests.text.tokens import reviews, tokenizer

datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")

HOSTILE = "<img src=x onerror=alert(1)>"
HIDDEN = "\u202e\x1b[2J"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: a run on CoLA, which accuracy does not judge, whose sentences are HTML; and its report."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        folders(folder)
        reader = tokenizer()
        reader.add_tokens([HOSTILE, HIDDEN])
        reader.save_pretrained("teacher")
        texts = [f"{HOSTILE} {row['sentence']} {HIDDEN}" for row in reviews(80, seed=5)]
        written(Path("glue"), "cola", {"train": 80, "validation": 30}, sentence=texts)
        beside = {"fine_tuning": {"class_path": "blockkd.CrossEntropy"}}
        recipe = recipe_file("glue/cola/bert-base_6-layer/block_kd", name="teacher", epochs=2, beside=beside)
        watched = ["--watch_stones", "true", "--method.cross_from_epoch", "1", "--optimizer.lr", "0.001"]
        assert main(["distill", "--config", recipe, *watched, "--output", "run"]) == 0
        weights = Path("run/block_kd/seed_0/student.safetensors")
        mine = load_file(weights)
        other = mine | {f"classifier.{name}": -mine[f"classifier.{name}"] for name in ("weight", "bias")}
        save_file(other, "run/fine_tuning/seed_0/student.safetensors")  # so that they agree on nothing
        assert main(["report", "run"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def text(path: str = "run/report/index.html") -> str:
    return Path(path).read_text(encoding="utf-8")


def section(key: str, path: str = "run/report/index.html") -> str:
    return text(path).partition(f'<section id="{key}">')[2].partition("</section>")[0]


def data(task: str = "cola") -> Glue:
    return Glue(task, tokenizer="teacher", path="glue", max_length=32, batch_size=8, val_share=0.0)


def test_every_section_but_the_ablation_is_filled_and_speaks_of_sentences() -> None:
    (reason,) = re.findall(r'<p class="why">(.*?)</p>', text())
    assert reason.startswith(
        "Not trained: block_kd_stones_distill, block_kd_stones_task, kd. A recipe trains them that"
    )
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", text(), flags=re.S)
    assert not re.findall(r"\bimages?\b", words)
    assert "30 test sentences" in text()
    assert "task cola" in text()


def test_results_and_curves_are_those_of_the_tasks_metric() -> None:
    for row in read_csv(Path("run/results.csv")):
        assert f"{row['method']}</th><td>{100 * float(row['test_matthews']):.2f}</td>" in section("results")
    assert "test Matthews correlation (%)" in section("results")
    lengths = [data().example(size)["input_ids"].shape[1] for size in (2, 8)]
    assert f"FLOPs of one training step for one sentence of {lengths[1]} tokens" in section("results")
    assert f"are of a forward pass for one sentence of {lengths[0]} tokens" in section("results")
    assert Path("run/report/matthews.png").is_file()
    assert not Path("run/report/accuracy.png").exists()
    assert "test Matthews correlation (%)" in section("curves")


def test_stones_are_watched_by_accuracy_where_the_task_is_not_judged_by_it() -> None:
    last = [row for row in read_csv(Path("run/metrics.csv")) if row["method"] == "block_kd"][-1]
    for name, label in (("stone_1", "N_1"), ("student", "student")):
        accuracy, agrees = (100 * float(last[f"test/{name}/{key}"]) for key in ("accuracy", "agrees_teacher"))
        assert f'<th scope="row">{label}</th><td>{accuracy:.1f}</td><td>{agrees:.1f}</td>' in section("stones")


def test_the_diagram_shows_layers_with_tokens_and_width() -> None:
    length = data().example()["input_ids"].shape[1]
    assert f">{length} tokens<" in section("networks")
    assert section("networks").count(f">{length}×16<") == 4
    assert "encoder.layer.3" in section("networks")
    assert "N_2" in section("networks")
    assert f"one sentence of {length} tokens" in section("networks")


def test_sentences_are_shown_and_stay_text() -> None:
    classes = section("classes")
    quotes = re.findall(r"<blockquote>(.*?)</blockquote>", classes)
    assert len(quotes) == 16, "eight that one gets right, and eight that the other does"
    known = {row["sentence"] for row in reviews(30, seed=5)}
    for quote in quotes:
        assert quote.startswith("&lt;img src=x onerror=alert(1)&gt; ")
        assert quote.endswith(r"\u202e\x1b[2J")
        assert quote.removeprefix("&lt;img src=x onerror=alert(1)&gt; ").removesuffix(r"\u202e\x1b[2J").strip() in known
    assert "<img src=x" not in text()
    assert not {"\x1b", "\u202e"} & set(text())
    assert "acceptable, taken for unacceptable" in classes
    assert "minus that of fine_tuning" in classes


def test_what_is_shown_of_a_pair_are_both_sentences() -> None:
    written(Path("glue"), "mrpc", {"train": 16, "validation": 4})
    pairs = data("mrpc")
    rows = datasets.Dataset.from_parquet("glue/mrpc/validation.parquet")
    for index in range(4):
        expected = [rows[index]["sentence1"], rows[index]["sentence2"]]
        assert pairs.test_sentences(index) == expected


def test_a_section_of_sentences_is_escaped() -> None:
    right = torch.eye(2)
    with look():
        made = classes_section(
            "a", "b", {"a": {0: right}, "b": {0: 1 - right}}, torch.tensor([0, 1]), ["x", "y"],
            lambda number, said: Example(said, sentences=[f"</blockquote><script>{number}", "{{ 7*7 }}"]),
            Judged("sentence"),
        )  # fmt: skip
        made_page = page("title", [], [], [made])
    assert "2 of 2 sentences" in made_page
    assert "<script" not in made_page
    assert "&lt;/blockquote&gt;&lt;script&gt;1" in made_page
    assert "{{ 7*7 }}" in made_page


def test_logits_and_features_are_those_of_each_sentence_by_itself() -> None:
    """Whatever it is padded to; the oracle reads one sentence at a time, with no padding at all."""
    part, network = data(), load_teacher("teacher").eval()
    indices = torch.tensor([0, 3, 7, 20, 29])
    cpu = torch.device("cpu")
    (logits,) = all_logits([network], part, indices, cpu, batch_size=2)
    blocks = partition(network, part.example(), frozen=True)
    found = features_of({"one": blocks}, part, indices, cpu)["one"]
    said: list[Tensor] = []
    hidden: list[list[Tensor]] = []
    for index in indices.tolist():
        one: Any = part.parts.test[index][0]
        tokens = {name: value[None] for name, value in one.items()}
        with torch.no_grad():
            output = network(**tokens, output_hidden_states=True)
        said.append(output.logits)
        hidden.append([state[0].mean(dim=0) for state in output.hidden_states[1:]])
    assert torch.allclose(logits, torch.cat(said), atol=1e-5)
    assert torch.allclose(found.last, torch.stack([states[-1] for states in hidden]), atol=1e-5)
    for place, gram in enumerate(found.grams):
        assert torch.allclose(gram, centred_gram(torch.stack([states[place] for states in hidden])), atol=1e-3)


def test_the_mean_of_tokens_sees_no_padding() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    assert mean_of_tokens(hidden, torch.tensor([[1, 1, 0], [1, 1, 1]])).flatten().tolist() == [2.0, 7.0]


def test_a_regression_leaves_out_what_needs_classes_and_says_so() -> None:
    written(Path("glue"), "stsb", {"train": 80, "validation": 30})
    recipe = recipe_file("glue/stsb/bert-base_6-layer/block_kd", name="pretrained", val_share=0.2)
    stones = ["--watch_stones", "true", "--teacher.epochs", "1"]
    assert main(["distill", "--config", recipe, *stones, "--output", "graded"]) == 0
    assert main(["report", "graded"]) == 0
    page = "graded/report/index.html"
    for key in ("stones", "calibration", "classes", "features"):
        (reason,) = re.findall(r'<p class="why">(.*?)</p>', section(key, page))
        assert "needs classes, and these data have none" in reason
        assert "judged by Spearman correlation" in reason
    assert [path.stem for path in Path("graded/report").glob("*.svg") if path.stem.startswith(("cka", "map"))] == [
        "cka-block_kd"
    ]
    for row in read_csv(Path("graded/results.csv")):
        scores = "".join(f"<td>{100 * float(row[f'test_{metric}']):.2f}</td>" for metric in ("spearman", "pearson"))
        assert f"{row['method']}</th>{scores}" in section("results", page)
    assert "validation squared error" in section("curves", page)
    assert "nats" not in text(page)


def test_runs_that_read_by_other_tokenizers_are_not_put_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_file("glue/cola/bert-base_6-layer/kd", name="pretrained")
    assert main(["distill", "--config", recipe, "--teacher.epochs", "1", "--output", "other"]) == 0
    capsys.readouterr()
    assert main(["report", "run", "other", "--output", "both"]) == 2
    said = capsys.readouterr().err
    assert "other" in said
    assert "tokenizer" in said
    assert not Path("both").exists()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with browser(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.mark.parametrize(("width", "theme"), [(400, "dark"), (1280, "light")])
def test_in_a_browser(chromium: object, width: int, theme: str) -> None:
    path = Path("run/report/index.html")
    with shown(chromium, path, width, theme) as (tab, seen):
        assert seen.said == []
        assert seen.asked == [path.resolve().as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate("document.images.length") == 0
        quotes = tab.evaluate("[...document.querySelectorAll('blockquote')].map(q => [q.textContent, q.offsetWidth])")
        assert len(quotes) == 16
        assert all(HOSTILE in quote and 250 < wide <= 75 * 16 for quote, wide in quotes)
