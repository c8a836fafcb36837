"""How ``--help`` looks: option, short description, default; no lists of every class there is."""

import re
from argparse import Action
from collections.abc import Iterable

from jsonargparse import DefaultHelpFormatter


class HelpFormatter(DefaultHelpFormatter):
    """Leaves out the options that only print other help, and shortens what jsonargparse says of types."""

    def add_arguments(self, actions: Iterable[Action]) -> None:
        """Show the options that a user sets."""
        super().add_arguments(action for action in actions if not _only_prints(action))

    def _expand_help(self, action: Action) -> str:
        text = re.sub(r"\s+", " ", super()._expand_help(action))
        text = re.sub(r",? known subclasses: ([^)]*)", _methods_and_data, text)
        text = re.sub(
            r"type: (?:\w+ \| )*(?:\w+\[)?(?:str, )?Callable\[.*?\](?: \| \w+)*(?=, default|\)|, one of|$)(, )?",
            "",
            text,
        )
        text = re.sub(r"type: (?:<class '\w+'>|Literal\[.*?\])(, )?", "", text)
        text = re.sub(r"type: (?:NonNegative|Positive)Int", "type: int", text)
        text = re.sub(r"required, |\(required\)", "", text)
        return re.sub(r"\(, ", "(", re.sub(r"\s*\(\s*\)", "", text))


def _only_prints(action: Action) -> bool:
    is_group_file = type(action).__name__ == "_ActionConfigLoad"
    return is_group_file or any(option.endswith(".help") for option in action.option_strings)


def _methods_and_data(match: re.Match[str]) -> str:
    paths = [path.strip() for path in match[1].split(",")]
    if "torch.nn.Module" in paths:  # any network will do; a list of all there are says nothing
        return ""
    names = sorted({path.rpartition(".")[2] for path in paths if path.startswith("blockkd.")})
    names = [name for name in names if name not in ("Distiller", "ImageData")]
    return f", one of: {' '.join(names)}" if names else ""
