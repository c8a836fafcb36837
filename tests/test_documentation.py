"""Every code block of the documentation is run: Python as it stands, one page in one namespace, commands by the CLI.

Commands in a block marked ``bash`` are run as they stand. Those marked ``sh`` need data, devices or days: of them it is
checked that they could start, that is, that their options and recipes can be read.
"""

import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import yaml
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from blockkd.cli import main
from blockkd.commands.compare import compare_parser
from blockkd.commands.distill import distill_parser
from blockkd.commands.parsing import parse
from blockkd.commands.teach import teach_parser

PARSERS_OF = {"distill": distill_parser, "inspect": distill_parser, "teach": teach_parser}
DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "```" in path.read_text())


def _commands(example: Example) -> Iterator[list[str]]:
    for line in example.parsed.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "blockkd", f"{words[0]} is no command of ours"
            yield words[1:]


def _run(example: Example) -> None:
    for words in _commands(example):
        assert main(words) == 0, words


def _check(example: Example) -> None:
    for command, *words in _commands(example):
        if "--resume" in words:
            continue  # its recipe is that of the run
        if command == "compare":
            recipes = list(takewhile(lambda word: not word.startswith("-"), words))
            options = [word for word in words[len(recipes) :] if word not in {"--minutes", "55"}]
            for recipe in (one for word in recipes for one in _braces(word)):
                parse(compare_parser(), [f"--config={recipe}", *options])
        elif command in PARSERS_OF:
            parse(PARSERS_OF[command](), words)


def _braces(word: str) -> list[str]:
    """``a/{b,c}`` as a shell takes it: ``a/b`` and ``a/c``."""
    before, brace, rest = word.partition("{")
    inner, _, after = rest.partition("}")
    return [f"{before}{part}{after}" for part in inner.split(",")] if brace else [word]


def _read(example: Example) -> None:
    assert yaml.safe_load(example.parsed)


PARSERS = (
    PythonCodeBlockParser(),
    CodeBlockParser(language="bash", evaluator=_run),
    CodeBlockParser(language="sh", evaluator=_check),
    CodeBlockParser(language="yaml", evaluator=_read),
)


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after the other, in an empty folder."""
    document = Sybil(parsers=PARSERS, path=str(DOCS)).parse(DOCS / page)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for example in document.examples():
        example.evaluate()
