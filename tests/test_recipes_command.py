"""``blockkd recipes``: all that can be composed is listed, and what is printed is the recipe itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blockkd.cli import main
from blockkd.commands.composing import compose, first_sentence, methods_of, pairs, recipe_names
from blockkd.commands.distill import distill_parser
from blockkd.commands.invocation import flat
from blockkd.commands.parsing import parse

Capture = pytest.CaptureFixture[str]


def printed(capsys: Capture, *words: str) -> str:
    assert main(["recipes", *words]) == 0
    return capsys.readouterr().out


def test_whatever_can_be_composed_is_listed(capsys: Capture) -> None:
    text = printed(capsys)
    first_words = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    plain = {name for name in recipe_names() if name.count("/") == 1}
    assert plain | set(pairs()) | set(methods_of("cifar100")) | set(methods_of("glue")) == first_words
    assert "resnet32x4 → resnet8x4" in text
    assert "Knowledge distillation: 0.1 CE + 0.9 KD at temperature 4" in text


@pytest.mark.parametrize("group", ["glue/sst2", "cifar100_small", "digits", "imagenet/"])
def test_a_group_lists_its_own_alone(group: str, capsys: Capture) -> None:
    text = printed(capsys, group)
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and "/" in line.split()[0]]
    assert lines
    assert all(line.startswith(group.rstrip("/") + "/") for line in lines)


def test_a_pair_lists_whole_names(capsys: Capture) -> None:
    text = printed(capsys, "cifar100/vgg13-vgg8")
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert listed == [name for name in recipe_names() if name.startswith("cifar100/vgg13-vgg8/")]
    assert "Next, one of them as YAML: blockkd recipes cifar100/vgg13-vgg8/block_kd" in text


@pytest.mark.parametrize(
    "name", ["cifar100/resnet32x4-resnet8x4/block_kd", "glue/sst2/bert-base_6-layer/pkd", "digits/ablation"]
)
def test_what_is_printed_is_the_recipe(name: str, tmp_path: Path, capsys: Capture) -> None:
    text = printed(capsys, name)
    assert yaml.safe_load(text) == compose(name)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    parser = distill_parser()
    one, two = (flat(parser, parse(parser, [f"--config={config}"])) for config in (name, file))
    assert one == two


def test_a_recipe_of_ones_own_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pair.yaml").write_text("base: cifar100/base\nstudent: resnet14\nmethods: {kd: {method.alpha: 0.3}}\n")
    recipe = yaml.safe_load(printed(capsys, "pair.yaml/kd"))
    assert recipe["student"]["init_args"]["name"] == "resnet14"
    assert recipe["method"]["init_args"]["alpha"] == 0.3


def test_for_programs(capsys: Capture) -> None:
    whole = json.loads(printed(capsys, "cifar100/vgg13-vgg8/kd", "--json"))
    assert whole["recipe"] == compose("cifar100/vgg13-vgg8/kd")
    listed = json.loads(printed(capsys, "--json"))["recipes"]
    assert [one["name"] for one in listed] == recipe_names()
    about = {one["name"]: one["about"] for one in listed}
    assert about["glue/cola/bert-base_6-layer/theseus"] == first_sentence("glue/methods/theseus")
    assert all(about.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar10", "there is no recipe 'cifar10'; did you mean cifar100"),
        ("cifar100/vgg13-vgg9", "did you mean cifar100/vgg13-vgg8"),
        ("cifar100/vgg13-vgg8/kdd", "did you mean cifar100/vgg13-vgg8/kd"),
        ("gone.yaml", "there is no recipe file gone.yaml"),
    ],
)
def test_a_bad_name_gets_one_sentence(name: str, said: str, capsys: Capture) -> None:
    assert main(["recipes", name]) == 2
    written = capsys.readouterr()
    assert said in written.err
    assert written.err.count("\n") == 1
    assert written.out == ""


def test_nobody_reads_to_the_end() -> None:
    script = "import sys; from blockkd.cli import main; sys.stdin.read(); sys.exit(main(['recipes']))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert said == b""
