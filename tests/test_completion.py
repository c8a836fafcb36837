"""``blockkd completion``: bash itself is asked what it would offer behind the tab key."""

import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from blockkd.cli import COMMANDS, main
from blockkd.commands.completing import commands_parser
from blockkd.commands.completion import SHELLS
from blockkd.commands.composing import recipe_names
from blockkd.exporting.exporter import FORMATS
from blockkd.models.zoo import NETWORKS

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text="", **_: printed.append(str(text)))
        assert main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "blockkd.bash"
    path.write_text("\n".join(printed))
    return path


def offered(script: Path, *words: str, folder: Path | None = None) -> list[str]:
    """What bash offers for the last of these words."""
    typed = ["blockkd", *words]
    quoted = " ".join(f"'{word}'" for word in typed)
    asked = (
        f"source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(typed) - 1}; COMP_LINE=\"${{COMP_WORDS[*]}}\"; "
        "COMP_POINT=${#COMP_LINE}; function_name=$(complete -p blockkd | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        '$function_name blockkd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert BASH is not None
    done = subprocess.run([BASH, "--norc", "-c", asked], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


@needs_bash
def test_commands(script: Path) -> None:
    assert offered(script, "dis") == ["distill"]
    assert set(COMMANDS) <= set(offered(script, ""))


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["distill", "--epo"], ["--epochs"]),
        (["distill", "--trainer.prec"], ["--trainer.precision"]),
        (["distill", "--method.stones"], ["--method.stones"]),
        (["distill", "--method.stones", ""], ["all", "last"]),
        (["distill", "--student.hid"], ["--student.hidden_size"]),
        (["distill", "--teacher.name", "resnet11"], ["resnet110"]),
        (["distill", "--watch_stones", "t"], ["true"]),
        (["distill", "--trainer.precision", "bf16"], ["bf16-mixed"]),
        (["distill", "--method", "Review"], ["ReviewKD"]),
        (["distill", "--config", "cifar100/vgg13-vgg8/fc"], ["cifar100/vgg13-vgg8/fcfd"]),
        (["distill", "--epochs", "3", "--config", "digits/b"], ["digits/block_kd"]),
        (["compare", "cifar100/vgg13-vgg8/kd", "cifar100/vgg13-vgg8/fc"], ["cifar100/vgg13-vgg8/fcfd"]),
        (["compare", "--proc"], ["--processes"]),
        (["recipes", "digits/ab"], ["digits/ablation"]),
        (["evaluate", "run", "--part", "v"], ["val"]),
        (["completion", ""], list(SHELLS)),
        (["bench", "--js"], ["--json"]),
    ],
)
def test_options_and_their_values(script: Path, words: list[str], expected: list[str]) -> None:
    assert [word for word in offered(script, *words) if word not in ("-h", "--help")] == expected


@needs_bash
def test_all_formats_networks_and_recipes(script: Path) -> None:
    assert set(FORMATS) <= set(offered(script, "export", "run", "--format", ""))
    assert set(NETWORKS) <= set(offered(script, "distill", "--student", ""))
    assert set(recipe_names()) <= set(offered(script, "teach", "--config", ""))
    methods = offered(script, "distill", "--method", "")
    assert {"BlockKD", "KD", "CRD"} <= set(methods)
    assert not {"NaiveBlockKD", "FeatureDistiller"} & set(methods)  # not to be chosen


@needs_bash
def test_folders_and_files(script: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("rune.pth", "mine.yaml", "mine.txt"):
        (tmp_path / name).touch()
    assert offered(script, "report", "ru", folder=tmp_path) == ["runs"]
    assert offered(script, "distill", "--resume", "ru", folder=tmp_path) == ["runs"]
    assert sorted(offered(script, "evaluate", "ru", folder=tmp_path)) == ["rune.pth", "runs"]
    assert sorted(offered(script, "distill", "--teacher.weights", "ru", folder=tmp_path)) == ["rune.pth", "runs"]
    assert offered(script, "distill", "--config", "mi", folder=tmp_path) == ["mine.yaml"]


def test_every_option_of_every_command_is_known() -> None:
    """What a command's help lists, its completion offers."""
    commands = next(action.choices for action in commands_parser()._actions if isinstance(action.choices, dict))
    assert list(commands) == list(COMMANDS)
    for name, parser in commands.items():
        known = getattr(import_module(f"blockkd.commands.{name}"), f"{name}_parser")()
        shown = set(re.findall(r"--[\w.-]+", known.format_help())) & set(known._option_string_actions)
        assert {"--help", "--json"} <= shown
        assert shown <= set(parser._option_string_actions), name


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for word in ("distill", "--method.stones", "cifar100/vgg13-vgg8/fcfd"):
        assert word.removeprefix("--") in text


@pytest.mark.parametrize(("words", "said"), [(["fish"], "got 'fish', expected one of bash"), ([], "none is given")])
def test_another_shell_gets_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
