"""``blockkd completion SHELL``: a script by which a shell completes the commands by the tab key."""

from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser

from blockkd.commands.errors import InvalidInputError
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.machine import Document, add_json_option

SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = (
    "Print a script by which a shell completes commands, options, their values, recipes and files. For bash: blockkd "
    "completion bash > ~/.local/share/bash-completion/completions/blockkd"
)


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    shell = _parse(argv)
    from blockkd.commands.completing import script  # which imports every command

    text = script(shell)
    print(text)
    return {"shell": shell, "script": text}


def completion_parser() -> ArgumentParser:
    """The options of ``completion``."""
    parser = ArgumentParser(
        prog="blockkd completion",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    add_json_option(parser)
    return parser


def _parse(argv: Sequence[str]) -> str:
    try:
        return str(completion_parser().parse_args(list(argv))["shell"])
    except ArgumentError as error:
        given = [word for word in argv if not word.startswith("-")]
        got = f"got {given[0]!r}" if given else "none is given"
        raise InvalidInputError(f"for which shell? {got}, expected one of {', '.join(SHELLS)}") from error
