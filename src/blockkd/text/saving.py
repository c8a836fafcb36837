"""A text classifier as a folder that transformers reads: its weights, its configuration and its tokenizer."""

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from blockkd.durable import DRAFT
from blockkd.export import save_student

WEIGHTS = "model.safetensors"  # as transformers calls them


def save_classifier(network: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write what ``AutoModelForSequenceClassification`` and ``AutoTokenizer`` load by ``from_pretrained``.

    The folder gets its name when all is in it. A network that transformers did not make has no such form: then nothing
    is written.

    Args:
        network: the classifier, and nothing else.
        tokenizer: that reads for it.
        folder: to write; one that is there is replaced.

    Raises:
        OSError: it cannot be written.
    """
    config: Any = copy.deepcopy(getattr(network, "config", None))
    if not hasattr(config, "save_pretrained"):
        return
    draft = _draft(folder)
    config.architectures = [type(network).__name__]
    config.save_pretrained(draft)
    save_student(network, draft / WEIGHTS)
    tokenizer.save_pretrained(draft)
    _replace(draft, folder)


def copy_classifier(source: Path, folder: Path) -> None:
    """Copy what ``save_classifier`` wrote, if it did; whole or not at all. Raises OSError when it cannot be written."""
    if source.is_dir():
        draft = _draft(folder)
        shutil.copytree(source, draft, dirs_exist_ok=True)
        _replace(draft, folder)


def _draft(folder: Path) -> Path:
    draft = folder.with_name(f".{folder.name}.folder{DRAFT}")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir()
    return draft


def _replace(draft: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
