"""``--json``: one strict JSON document on standard output, which says what the run's own files say."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blockkd import costs
from blockkd.cli import COMMANDS, main
from blockkd.commands.machine import as_json
from blockkd.export import load_student
from blockkd.models import ResNet
from blockkd.runs import read_csv
from tests.test_cli import SMALL, Forgetful

Capture = pytest.CaptureFixture[str]
SHORT = SMALL | {"epochs": 1, "teacher": {"network": SMALL["teacher"]["network"], "epochs": 1}, "beside": {"kd": "KD"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recipes."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "small.yaml").write_text(yaml.safe_dump(SHORT))
    (folder / "teach.yaml").write_text(yaml.safe_dump({"base": "digits/teacher", **part(SHORT, "data", "teacher")}))
    return folder


def part(recipe: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: recipe[key] for key in keys}


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def run(place: Path) -> Iterator[dict[str, Any]]:
    """What ``distill --json`` says of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        arguments = [sys.executable, "-m", "blockkd.cli", "distill", "--json", "--config", "small.yaml"]
        path = ":".join([str(Path(__file__).parent.parent), *filter(None, sys.path)])
        done = subprocess.run(arguments, capture_output=True, text=True, env={"PYTHONPATH": path}, check=True)
        assert "preflight:" in done.stderr  # for people
        assert "block_kd, seed 0: test accuracy" in done.stderr
        yield strictly(done.stdout)


def strictly(printed: str) -> dict[str, Any]:
    """One line, one document, no NaN."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    assert printed.count("\n") == 1
    document: dict[str, Any] = json.loads(printed, parse_constant=refuse)
    return document


def asked(capsys: Capture, *words: str, code: int = 0) -> dict[str, Any]:
    assert main([*words, "--json"]) == code
    return strictly(capsys.readouterr().out)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def finite(value: Any) -> Any:
    """The oracle: every float that is not finite is nothing."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), values))
def test_numbers_come_back_as_they_were(document: dict[str, Any]) -> None:
    assert strictly(as_json(document) + "\n") == finite(document)


def test_paths_and_tuples_have_a_form() -> None:
    assert as_json({"a": Path("b/c"), "inner": {1: (1, 2.5)}}) == '{"a": "b/c", "inner": {"1": [1, 2.5]}}'


def test_distill_says_what_its_results_say(run: dict[str, Any]) -> None:
    assert run["command"] == "distill"
    assert run["results"] == read_csv(Path("runs/small/results.csv"))
    assert run["run"] == "runs/small"
    assert run["next"] == ["blockkd report runs/small", "blockkd export runs/small"]


def test_evaluate(run: dict[str, Any], capsys: Capture) -> None:
    document = asked(capsys, "evaluate", run["run"])
    assert [row["network"] for row in document["networks"]] == ["teacher", "student"]
    for row, trained in zip(document["networks"], run["results"], strict=False):
        assert row["accuracy"] == trained["test_accuracy"]
        assert row["parameters"] == trained["parameters"]
    assert (document["part"], document["examples"]) == ("test", 64)


def test_teach(capsys: Capture) -> None:
    document = asked(capsys, "teach", "--config", "teach.yaml")
    assert document["results"] == read_csv(Path("runs/teach/results.csv"))
    assert document["next"] == ["blockkd distill --teacher.weights runs/teach/teacher.safetensors"]


def test_compare(run: dict[str, Any], capsys: Capture) -> None:
    options = ["--teacher.weights", f"{run['run']}/teacher.safetensors", "--seeds", "2", "--output", "compared"]
    document = asked(capsys, "compare", "small.yaml", *options)
    assert document["unfinished"] == 0
    assert document["results"] == read_csv(Path("compared/results.csv"))
    assert document["comparison"] == read_csv(Path("compared/comparison.csv"))
    assert {row["method"] for row in document["comparison"]} == {"teacher", "block_kd", "kd", "cross_entropy"}


def test_inspect_counts_what_is_there(capsys: Capture) -> None:
    document = asked(capsys, "inspect", "--config", "small.yaml")
    teacher, student = ResNet(8, (8, 8, 16, 32), 10, 1), Forgetful()
    for role, network in (("teacher", teacher), ("student", student)):
        found = document["networks"][role]
        assert found["parameters"] == costs.parameters(network)
        assert sum(block["parameters"] for block in found["blocks"]) == costs.parameters(network)
        assert sum(block["flops"] for block in found["blocks"]) == found["flops"]
    assert [stone["stone"] for stone in document["stones"]] == [1, 2, 3]
    assert document["stones"][0]["student_shape"] == [4, 8, 8]
    together = document["step"]["kd_flops"] + sum(stone["added_flops"] for stone in document["stones"])
    assert document["step"]["flops"] == together
    assert document["step"]["parameters_beside_student"] == sum(one["parameters"] for one in document["stones"])


def test_inspect_of_networks_that_cannot_be_cut(capsys: Capture) -> None:
    options = ["--student", "tests.test_inspect.Uncut", "--method", "KD", "--beside", "{}"]
    networks = asked(capsys, "inspect", "--config", "small.yaml", *options)["networks"]
    assert "Uncut cannot be cut by itself" in networks["cannot_be_cut"]
    assert networks["student"]["blocks"] is None


def test_report(run: dict[str, Any], capsys: Capture) -> None:
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    document = asked(capsys, "report", run["run"], "--images", "16")
    assert Path(document["report"]).is_file()
    assert (document["runs"], document["unfinished"]) == (["runs/small"], [])


def test_export(run: dict[str, Any], capsys: Capture) -> None:
    document = asked(capsys, "export", run["run"], "--output", "exported")
    assert document["files"]
    for name, size in document["files"].items():
        assert (Path("exported") / name).stat().st_size == size
    student = load_student(Forgetful(), "runs/small/student.safetensors")
    assert sum(document["files"].values()) > 4 * costs.parameters(student)


def test_replay(capsys: Capture) -> None:
    options = ["--config", "small.yaml", "--optimizer.lr", "1e30", "--output", "bad"]
    failed = asked(capsys, "distill", *options, code=2)
    assert "the loss is no longer finite" in failed["error"]
    document = asked(capsys, "replay", "bad")
    assert (document["finite"], document["method"], document["seed"]) == (False, "block_kd", 0)
    assert None in document["terms"].values()  # NaN and infinity have no place in JSON
    assert document["next"][0].startswith("blockkd distill --config bad/recipe.yaml --optimizer.lr LOWER")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distil"], "unknown command 'distil'; did you mean distill?"),
        (["distill", "--epoch", "3"], "unknown option --epoch; did you mean --epochs"),
        (["compare"], "no recipe is given"),
        (["evaluate", "gone"], "gone holds no run"),
        (["export", "gone"], "gone holds no run"),
        (["report", "gone"], "gone holds no run"),
        (["bench", "--rounds", "0"], "rounds"),
        (["replay", "gone"], "gone holds no step"),
    ],
)
def test_bad_input_is_a_document_and_a_sentence(words: list[str], said: str, capsys: Capture) -> None:
    assert main([*words, "--json"]) == 2
    printed = capsys.readouterr()
    document = strictly(printed.out)
    assert said in document["error"]
    assert document["exit_code"] == 2
    assert printed.err == f"blockkd: {document['error']}\n"


def test_what_libraries_write_goes_to_the_error_stream() -> None:
    script = (
        "import os, sys; from blockkd.commands import machine\n"
        "with machine.people_on_the_error_stream():\n"
        "    print('for people'); os.write(1, b'from C'); os.system('echo from a child')\n"
        "print(machine.as_json({}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert sorted(done.stderr.split("\n")) == sorted(["for people", "from Cfrom a child", ""])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_that_it_has_it(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out
